"""The ways to the database: a pool, and what its errors mean to a user."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias

import psycopg
import psycopg_pool
from psycopg.conninfo import conninfo_to_dict

from durable.errors import AccessDenied, DurableError, InvalidArgument, StoreUnavailable

Connection: TypeAlias = psycopg.Connection[Any]

_DEFAULTS: Final = {"connect_timeout": "10", "application_name": "durable"}
_SIGNS_OF_REFUSAL: Final = ("authentication failed", "no password supplied", "does not exist")
_POOL_SIZE: Final = 8
_WAIT_FOR_A_CONNECTION: Final = 30.0  # seconds


class Lane(NamedTuple):
    """A connection and a cursor on it."""

    connection: Connection
    cursor: psycopg.Cursor[Any]


class Connections:
    """Opens connections to one database, and keeps a pool of them from the first use on.

    `prepare` is called once, with the very first connection, before anything else is done.
    """

    def __init__(self, url: str, prepare: Callable[[Connection], None]) -> None:
        try:
            parts = conninfo_to_dict(url)
        except psycopg.ProgrammingError:
            # libpq's message quotes what it could not read, which may be a password.
            raise InvalidArgument(
                "the database URL cannot be read: it should look like postgresql://user@host:5432/dbname "
                "(percent-encode special characters in the password)"
            ) from None
        self._parts = {**_DEFAULTS, **{key: str(value) for key, value in parts.items() if value is not None}}
        self._prepare = prepare
        self._opening = threading.Lock()
        self._pool: psycopg_pool.ConnectionPool[Connection] | None = None
        self._idle: list[Lane] = []
        self._closed = False

    @property
    def where(self) -> str:
        """The database's address for people: no password, no options."""
        parts = self._parts
        host = parts.get("host") or parts.get("hostaddr") or "the local socket"
        port = f":{parts['port']}" if "port" in parts else ""
        user = f" as {parts['user']}" if "user" in parts else ""
        return f"{host}{port}/{parts.get('dbname', '')}{user}"

    def connect(self) -> Connection:
        """A connection of one's own, in autocommit mode."""
        try:
            return psycopg.connect(**self._parts, autocommit=True, prepare_threshold=0)  # type: ignore[arg-type]
        except psycopg.Error as problem:
            raise self.meaning(problem) from None

    def take(self) -> Lane:
        """A connection in autocommit mode, to be given back."""
        try:
            return self._idle.pop()
        except IndexError:
            return self._from_pool()

    def give_back(self, lane: Lane) -> None:
        """Take a connection back. One stays at hand with its cursor, which spares a lone caller the pool's bookkeeping."""
        if self._idle or self._closed or lane.connection.closed:
            self._to_pool(lane)
        else:
            self._idle.append(lane)

    def _from_pool(self) -> Lane:
        pool = self._pool or self._opened()
        try:
            connection = pool.getconn()
        except psycopg_pool.PoolTimeout:
            problem = f"no connection came free, or could be made, within {_WAIT_FOR_A_CONNECTION:g} s"
            raise StoreUnavailable(self.where, problem) from None
        except psycopg_pool.PoolClosed:
            raise InvalidArgument("the store is closed") from None
        return Lane(connection, connection.cursor())

    def _to_pool(self, lane: Lane) -> None:
        pool = self._pool
        if pool is None:
            lane.connection.close()
        else:
            pool.putconn(lane.connection)

    def close(self) -> None:
        """Close every connection of the pool."""
        with self._opening:
            self._closed = True
            pool, self._pool = self._pool, None
        while self._idle:
            self._idle.pop().connection.close()
        if pool is not None:
            pool.close()

    def meaning(self, problem: psycopg.Error) -> DurableError:
        """What an error of the connection or the server means to a user; it never quotes a value or a password."""
        state = problem.sqlstate
        text = problem.diag.message_primary or _first_line(problem)
        if state is not None and state.startswith("28"):
            return AccessDenied(self.where, text)
        if state == "3D000":
            return AccessDenied(self.where, text, "Create the database, or correct its name in the URL.")
        if state == "42501":
            return AccessDenied(self.where, text, "Grant the role what it lacks, or let another one create the tables.")
        if state is None and any(sign in str(problem) for sign in _SIGNS_OF_REFUSAL):
            return AccessDenied(self.where, text)
        return StoreUnavailable(self.where, text)

    def _opened(self) -> psycopg_pool.ConnectionPool[Connection]:
        with self._opening:
            if self._closed:
                raise InvalidArgument("the store is closed")
            if self._pool is None:
                # Made directly, not by the pool: a wrong password is then an error at once, not a timeout of the pool.
                with self.connect() as first:
                    try:
                        self._prepare(first)
                    except psycopg.Error as problem:
                        raise self.meaning(problem) from None
                self._pool = psycopg_pool.ConnectionPool(
                    kwargs={**self._parts, "autocommit": True, "prepare_threshold": 0},
                    min_size=1,
                    max_size=_POOL_SIZE,
                    timeout=_WAIT_FOR_A_CONNECTION,
                    name="durable",
                    open=True,
                )
            return self._pool


def _first_line(problem: Exception) -> str:
    return str(problem).strip().split("\n", 1)[0]
