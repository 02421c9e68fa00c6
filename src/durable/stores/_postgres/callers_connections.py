"""The connections that callers have of their own: which kinds are taken, and the psycopg connection in each."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, Final, cast

import psycopg
from psycopg.pq import TransactionStatus

from durable.errors import AsyncMismatch, UnsuitableConnection
from durable.stores._postgres.session import Connection

_BLOCKING: Final = "a psycopg.Connection, Django's connection, or a Connection of SQLAlchemy's (session.connection())"
_AWAITED: Final = "a psycopg.AsyncConnection, or an AsyncConnection of SQLAlchemy's (await session.connection())"
_NO_PSYCOPG: Final = "it is made by another driver than psycopg 3: postgresql+psycopg://… is SQLAlchemy's name for that"


@contextlib.contextmanager
def lent(given: Any, function: str) -> Iterator[Connection]:
    """The psycopg connection in what a caller of `function` gave, in the transaction that its owner knows of.

    Errors of the database leave as those of Django where the connection is Django's.
    """
    with contextlib.ExitStack() as stack:
        connection: object = _unwrap(given, stack)
        if isinstance(connection, psycopg.AsyncConnection):
            raise AsyncMismatch(
                f"{function} blocks, and its connection= awaits: await durable.aio.{function.rpartition('.')[2]}(…), or "
                f"give it {_BLOCKING}"
            )
        if not isinstance(connection, psycopg.Connection):
            raise _unknown(given, _BLOCKING)
        checked = cast(Connection, connection)  # type: ignore[redundant-cast]  # not to pyright
        _check_state(checked)
        yield checked


async def lent_async(given: Any, function: str) -> psycopg.AsyncConnection[Any]:
    """The same for `durable.aio`."""
    connection = given
    if _is_of(given, "sqlalchemy.ext.asyncio", "AsyncConnection"):
        if given.closed:
            raise _closed()
        if not given.in_transaction():
            await given.begin()
        connection = (await given.get_raw_connection()).driver_connection
    if isinstance(connection, psycopg.Connection) or _is_django(given) or _is_of(given, "sqlalchemy", "Connection"):
        raise AsyncMismatch(
            f"durable.aio.{function.rpartition('.')[2]} awaits, and its connection= blocks: call {function}(…), in a thread if "
            f"it is to hold up no event loop, or give it {_AWAITED}"
        )
    if not isinstance(connection, psycopg.AsyncConnection):
        raise _unknown(given, _AWAITED)
    checked = cast("psycopg.AsyncConnection[Any]", connection)  # type: ignore[redundant-cast]  # not to pyright
    _check_state(checked)
    return checked


def _unwrap(given: Any, stack: contextlib.ExitStack) -> Any:
    if _is_django(given):
        if given.vendor != "postgresql":
            raise UnsuitableConnection(f"connection= is Django's, to {given.vendor}, and the store is in PostgreSQL")
        given.ensure_connection()
        if given.in_atomic_block and given.needs_rollback:
            raise _failed()
        stack.enter_context(given.wrap_database_errors)
        return given.connection
    if _is_of(given, "sqlalchemy", "Connection"):
        if given.closed:
            raise _closed()
        if not given.in_transaction():  # as with its own statements: else its commit() would do nothing
            given.begin()
        return given.connection.driver_connection
    return getattr(given, "driver_connection", given)  # SQLAlchemy's raw one


def _check_state(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    if connection.closed:
        raise _closed()
    if connection.info.transaction_status == TransactionStatus.INERROR:
        raise _failed()


def _closed() -> UnsuitableConnection:
    return UnsuitableConnection("connection= is closed: give one that is open")


def _failed() -> UnsuitableConnection:
    return UnsuitableConnection(
        "connection= is in a transaction that has failed, in which PostgreSQL does nothing more: roll it back first"
    )


def _is_django(given: object) -> bool:
    return all(hasattr(given, name) for name in ("ensure_connection", "wrap_database_errors", "vendor"))


def _is_of(given: object, module: str, name: str) -> bool:
    """Whether it is an object of this class, of a module that is not imported for that."""
    class_ = getattr(sys.modules.get(module), name, None)
    return isinstance(class_, type) and isinstance(given, class_)


def _unknown(given: object, accepted: str) -> UnsuitableConnection:
    given_class = given if isinstance(given, type) else type(given)
    kind = f"{given_class.__module__}.{given_class.__qualname__}"
    if _is_of_another_driver(given, given_class):
        return UnsuitableConnection(f"connection= must be {accepted}, not {kind}: {_NO_PSYCOPG}")
    return UnsuitableConnection(f"connection= must be {accepted}, not {kind}")


def _is_of_another_driver(given: object, class_: type) -> bool:
    if class_.__module__.partition(".")[0] in ("psycopg2", "asyncpg", "pg8000"):
        return True
    is_sqlalchemys = _is_of(given, "sqlalchemy", "Connection") or _is_of(
        given, "sqlalchemy.ext.asyncio", "AsyncConnection"
    )
    return is_sqlalchemys or hasattr(given, "driver_connection") or _is_django(given)
