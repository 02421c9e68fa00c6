"""The connection of a step's body as another library holds it: it may end what it has, and that ends nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

from psycopg.abc import AdaptContext
from psycopg.adapt import AdaptersMap
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from durable.errors import InvalidArgument, TransactionMisused
from durable.stores._postgres.guarded import GuardedConnection


class ToolConnection(GuardedConnection):
    """A face of a body's connection for a library that ends transactions by itself; made by `lend`.

    The library may roll back what has failed, which leaves nothing to be done with the transaction, and may close its
    connection, which stays open. A COMMIT, and a rollback of what has not failed, are refused.
    """

    _body: GuardedConnection
    _is_quiet: bool
    _is_doomed: bool

    # As long as the body has the connection, and whether it has ended the transaction, is known of that.
    @property
    def _over(self) -> bool:  # type: ignore[override] # pyright: ignore[reportIncompatibleVariableOverride]
        return self._body._over  # noqa: SLF001

    @property
    def ended(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._body.ended

    @ended.setter
    def ended(self, value: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._body.ended = value

    def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
        """As for the body, until the library has rolled back."""
        if self._is_doomed:
            raise self._rolled_back()
        return super().wait(gen, *args, **options)

    def rollback(self) -> None:  # type: ignore[override] # pyright: ignore[reportIncompatibleMethodOverride]
        """Do nothing, where it has failed, or was in the hands of the library only to look at the server; else it is refused.

        Amid an exception nothing more can be done with it. So that stands, and not our error in its place.
        """
        if self._is_quiet or self.pgconn.transaction_status == TransactionStatus.INERROR:
            return
        if sys.exception() is None:
            super().rollback()
        self._is_doomed = True

    def close(self) -> None:  # type: ignore[override] # pyright: ignore[reportIncompatibleMethodOverride]
        """Do nothing: closing it is its owner's business."""

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """In here a rollback does nothing: there is nothing of the body's that it could mean."""
        before, self._is_quiet = self._is_quiet, True
        try:
            yield
        finally:
            self._is_quiet = before

    def check(self) -> None:
        """Raise `TransactionMisused` where the library has rolled back."""
        if self._is_doomed:
            raise self._rolled_back()

    def _rolled_back(self) -> TransactionMisused:
        return self.misused("the body may not use rollback(), and did after an exception")


def lend(connection: object, function: str, context: AdaptContext | None = None) -> ToolConnection:
    """A face of the connection that a body was given, with adapters as in `context`; `InvalidArgument` for any other."""
    if not isinstance(connection, GuardedConnection) or isinstance(connection, ToolConnection):
        raise InvalidArgument(
            f"{function} takes the connection that the body of a step.transaction is given first, not "
            f"{type(connection).__module__}.{type(connection).__qualname__}"
        )
    face: ToolConnection = object.__new__(_tool_class(cast(Any, type(connection))))
    parts = {name: value for name, value in connection.__dict__.items() if name not in ("_over", "ended")}
    face.__dict__.update(parts, _body=connection, _is_quiet=False, _is_doomed=False)
    face.row_factory = tuple_row
    if context is not None:
        face.__dict__["_adapters"] = AdaptersMap(context.adapters)
    return face


@cache
def _tool_class(kind: Any) -> type[ToolConnection]:
    return ToolConnection if kind is GuardedConnection else type(kind.__name__, (ToolConnection, kind), {})
