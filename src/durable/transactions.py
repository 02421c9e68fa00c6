"""A `step.transaction` with SQLAlchemy, or with Django's ORM: on the very connection that its body is given.

def place(connection, number):
with sqlalchemy_session(connection) as session:
session.add(Order(number=number))

step.transaction("place", place, 7)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NoReturn

import psycopg

from durable._common.boundary import public
from durable.errors import InvalidArgument
from durable.stores._postgres.tool_connections import ToolConnection, lend

if TYPE_CHECKING:
    import sqlalchemy
    from sqlalchemy import orm

__all__ = ["django_connection", "sqlalchemy_connection", "sqlalchemy_session"]

_MAX_SERVERS: Final = 32  # for which a dialect is kept
_REFUSED: Final = ("commit", "rollback", "close", "set_autocommit", "on_commit")

#: What an engine connects to.
_lent: Final[ContextVar[ToolConnection]] = ContextVar("durable_lent")


@public("sqlalchemy_connection")
@contextmanager
def sqlalchemy_connection(connection: psycopg.Connection[Any]) -> Iterator[sqlalchemy.Connection]:
    """A `Connection` of SQLAlchemy's in the transaction of a step whose body was given this `connection`.

    It is good for the `with` block. `begin_nested()` is a savepoint, as everywhere. What would end the transaction, `commit()`,
    `rollback()`, `begin()` as a block, raises `TransactionMisused`: let the body return to commit, or raise to roll back.

    The first one in a process asks the server what SQLAlchemy wants to know of it, in the transaction.

    Raises `InvalidArgument` for another connection, and where SQLAlchemy is not installed.
    """
    engine, face = _engine_for(connection)
    token = _lent.set(face)
    try:
        with face.quiet():  # when it first connects it rolls back
            lent = engine.connect()
    finally:
        _lent.reset(token)
    try:
        yield lent
    finally:
        with face.quiet():
            lent.close()
    face.check()


@public("sqlalchemy_session")
@contextmanager
def sqlalchemy_session(
    connection: psycopg.Connection[Any], maker: Callable[..., orm.Session] | None = None
) -> Iterator[orm.Session]:
    """A `Session` of SQLAlchemy's in the transaction of a step whose body was given this `connection`.

    `maker` makes it: a `sessionmaker`, or a class; by default `Session`. It is flushed at the end of the `with` block, and
    closed. Otherwise as `sqlalchemy_connection`.
    """
    with sqlalchemy_connection(connection) as lent:
        from sqlalchemy.orm import Session  # noqa: PLC0415 -- of an extra

        session = (maker or Session)(bind=lent)
        face: Any = lent.connection.driver_connection
        try:
            yield session
            session.flush()
        finally:
            with face.quiet():
                session.close()


@public("django_connection")
@contextmanager
def django_connection(connection: psycopg.Connection[Any], using: str = "default") -> Iterator[Any]:
    """Let Django's ORM work in the transaction of a step whose body was given this `connection`, in the `with` block.

    In this thread the alias `using` of Django's databases is that connection then, as inside of `transaction.atomic()`:
    models, cursors and further `atomic()` blocks, which are savepoints, go there. What would end the transaction raises
    `TransactionMisused`; so does `transaction.on_commit()`: do that in a step of its own after this one.

    Raises `InvalidArgument` for another connection, for an alias that is no PostgreSQL by psycopg 3, and where Django is not
    installed.
    """
    connections = _connections()
    wrapper = connections.create_connection(using)
    if wrapper.vendor != "postgresql" or wrapper.Database.__name__ != "psycopg":
        raise InvalidArgument(f"django_connection: the alias {using!r} is not PostgreSQL by psycopg 3")
    params = wrapper.get_connection_params()
    face = lend(connection, "django_connection", params["context"])
    face.cursor_factory = params["cursor_factory"]
    wrapper.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    wrapper.connection = face
    wrapper.autocommit = True  # else it commits after it has set the time zone
    wrapper.init_connection_state()
    wrapper.autocommit, wrapper.in_atomic_block, wrapper.commit_on_exit = False, True, False
    for verb in _REFUSED:
        setattr(wrapper, verb, _refusal(face, f"{verb}()"))
    before = getattr(connections._connections, using, None)  # noqa: SLF001 -- there is no other way to see whether there is one
    connections[using] = wrapper
    try:
        yield wrapper
    finally:
        if before is None:
            del connections[using]
        else:
            connections[using] = before
    if wrapper.needs_rollback:
        problem = (
            "the body went on after an error in a block of atomic() without a savepoint, which had ended all of it"
        )
        raise face.misused(problem)
    face.check()


def _refusal(face: ToolConnection, what: str) -> Callable[..., NoReturn]:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise face.misused(f"the body may not use {what}")

    return refuse


def _engine_for(connection: psycopg.Connection[Any]) -> tuple[sqlalchemy.Engine, ToolConnection]:
    """An engine that knows the server, and gives out this connection."""
    face = lend(connection, "sqlalchemy_connection")
    info = face.info
    known = _known_engine(info.server_version, info.host, info.port, info.dbname, info.user)
    _, parameters = known.dialect.create_connect_args(known.url)
    if (context := parameters.get("context")) is not None:
        face = lend(connection, "sqlalchemy_connection", context)
    return known, face


@lru_cache(maxsize=_MAX_SERVERS)
def _known_engine(*_: object) -> sqlalchemy.Engine:
    """An engine for one server, whose dialect asks it what it wants to know when it first connects."""
    try:
        from sqlalchemy import create_engine  # noqa: PLC0415 -- of an extra
        from sqlalchemy.pool import NullPool  # noqa: PLC0415
    except ModuleNotFoundError:
        raise InvalidArgument(
            "sqlalchemy_connection: SQLAlchemy is not installed: pip install 'SQLAlchemy>=2'"
        ) from None
    return create_engine("postgresql+psycopg://", creator=_lent.get, poolclass=NullPool)


def _connections() -> Any:
    try:
        from django.db import connections  # noqa: PLC0415 -- of an extra  # pyright: ignore[reportMissingTypeStubs]
    except ModuleNotFoundError:
        raise InvalidArgument("django_connection: Django is not installed: pip install 'django>=4.2'") from None
    return connections
