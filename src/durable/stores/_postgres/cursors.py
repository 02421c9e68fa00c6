"""The cursor of our own statements, which no setting of the application reaches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import psycopg
from psycopg import postgres
from psycopg.adapt import AdaptersMap
from psycopg.pq import Format
from psycopg.rows import tuple_row
from psycopg.types import TypesRegistry, array

from durable.stores._postgres.sql.placeholders import number_parameters


def _default_adapters() -> AdaptersMap:
    types = TypesRegistry()
    postgres.register_default_types(types)
    adapters = AdaptersMap(types=types)
    postgres.register_default_adapters(adapters)
    array.register_all_arrays(adapters)
    return adapters


_ADAPTERS: Final = _default_adapters()


class OwnCursor(psycopg.RawCursor[Any]):
    """Returns tuples, by psycopg's own adapters: those that the application registers are for its own SQL.

    A statement with parameters is answered in binary, so that DateStyle, IntervalStyle and extra_float_digits have no effect.
    """

    def __init__(self, connection: psycopg.Connection[Any], **_: Any) -> None:
        super().__init__(connection, row_factory=tuple_row)
        self._adapters = (
            _ADAPTERS  # which nothing is registered with: a copy of its own would cost as much as a statement
        )

    def execute(
        self, query: Any, params: Any = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> Any:
        """See `psycopg.Cursor.execute`."""
        self.format = Format.BINARY if params is not None or binary else Format.TEXT
        return super().execute(*_numbered(query, params), prepare=prepare)


class OwnAsyncCursor(psycopg.AsyncRawCursor[Any]):
    """The same on an async connection, which is a caller's."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        super().__init__(connection, row_factory=tuple_row)
        self._adapters = AdaptersMap(_ADAPTERS)

    async def execute(
        self, query: Any, params: Any = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> Any:
        """See `psycopg.AsyncCursor.execute`."""
        self.format = Format.BINARY if params is not None or binary else Format.TEXT
        return await super().execute(*_numbered(query, params), prepare=prepare)


def _numbered(query: Any, params: Any) -> tuple[Any, Any]:
    """The statement with the placeholders of the protocol, and its parameters in their order."""
    if params is None:
        return query, None
    query, names = number_parameters(query if isinstance(query, bytes) else query.encode())
    return query, [params[name] for name in names] if isinstance(params, Mapping) else params
