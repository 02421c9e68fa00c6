"""The connections of one process to one database: its own, or lent by the user's pool."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import cached_property, partial
from typing import Any, Final
from weakref import WeakKeyDictionary

import psycopg
import psycopg_pool
from psycopg.rows import tuple_row

from durable._common.locks import hold
from durable._common.reports import say
from durable._common.threads import start_daemon
from durable.clocks import Clock
from durable.errors import DurableError, InvalidArgument, StoreUnavailable, UnsuitableServer
from durable.stores._postgres import conninfo, hosts, requirements
from durable.stores._postgres.conninfo import Pool
from durable.stores._postgres.cursors import OwnCursor
from durable.stores._postgres.error_messages import explain
from durable.stores._postgres.session import Connection, Session, is_sound
from durable.stores._postgres.watchdog import Watchdog

# In seconds. A caller waits until its own deadline; these bound what goes on without it.
_MAX_CONNECTING: Final = 10
_MIN_CONNECTING: Final = 2  # psycopg waits no shorter
_MAX_PREPARING: Final = 30.0
_MAX_BORROWING: Final = 30.0
_MIN_WAIT: Final = 0.2

_log = logging.getLogger("durable")

FORCE_SYNC_COMMIT: Final = b"SET synchronous_commit = on"
# A standby was started at another moment than its primary, and so was a server that a backup is restored into.
_SERVER: Final = (
    b"SELECT pg_catalog.to_char(pg_catalog.pg_postmaster_start_time() AT TIME ZONE 'UTC', 'YYYYMMDDHH24MISSUS')"
)


class Connections:
    """Its own are one for each writer, kept at hand. `prepare` is called once, with the very first
    connection, before anything else is done. Each connection is made in a thread of its own, so that no caller waits beyond
    its deadline, whatever takes so long: a name server, one host of several, a server that accepts and says nothing. One
    that comes too late is kept for the next caller.
    """

    def __init__(
        self,
        url: str | None,
        pool: Pool | None,
        prepare: Callable[[Connection], Sequence[str]],
        clock: Clock,
        *,
        strict: bool = False,
    ) -> None:
        self._parts = conninfo.read_url(url) if pool is None else {}
        self._pool = pool
        self._prepare = prepare
        self._clock = clock
        self._strict = strict
        self._opening = threading.Lock()
        self._good: hosts.Host | None = None  # the last one that gave a connection
        self._idle: list[Session] = []
        self._late: list[Connection] = []  # made after their callers had given up
        # What is prepared on a connection of the pool is remembered for as long as the connection lives.
        self._prepared: WeakKeyDictionary[Connection, dict[Any, bytes]] = WeakKeyDictionary()
        self._servers: WeakKeyDictionary[Connection, str] = WeakKeyDictionary()
        self._closed = False
        self.watchdog = Watchdog(clock)
        self.ready = False
        self.unfit: DurableError | None = None  # why no run may be kept there, though what is there can be read
        self.prepares = True  # statements; not behind a pooler
        self.forces_sync_commit = False  # in our own sessions, where the role has it off

    @cached_property
    def where(self) -> str:
        """The database's address for people: no password, no options."""
        return conninfo.address_of(self._parts) if self._pool is None else f"the pool {self._pool.name!r}"

    @property
    def pool_size(self) -> int | None:
        """The largest number of connections that the user's pool has; None without a pool."""
        return None if self._pool is None else self._pool.max_size

    def connect(self, until: float) -> Connection:
        """A new connection in autocommit mode, for the caller to close; made as the user's pool makes them, if there is one.

        `until` is a reading of the clock; `StoreUnavailable` when there is no connection by then.
        """
        if self._closed:
            raise InvalidArgument("the store is closed")
        with contextlib.suppress(IndexError):
            return self._late.pop()
        seconds = self._remaining(until)
        made: Future[Connection] = Future()
        start_daemon("durable-connecting", partial(self._make, made, seconds), partial(_fail, made))
        connection: Connection | None = None
        try:
            connection = made.result(seconds)
            return connection
        except TimeoutError:
            raise StoreUnavailable(self.where, f"no connection came about within {seconds:.1f} s") from None
        finally:
            if connection is None:  # too late, or interrupted: kept for the next caller
                made.add_done_callback(self._keep)
            del made  # an error would refer to itself through it

    def take(self, until: float) -> Session:
        """A session, to be given back; `StoreUnavailable` as for `connect`."""
        if self._pool is not None and not self.ready:
            # The first one not from the pool: a wrong password is then an error at once, and not a pool's timeout.
            self._hold(self.connect(until))
        try:
            session = self._idle.pop()
        except IndexError:
            session = self._session(self.connect(until) if self._pool is None else self._borrow(until))
        session.prepare = None if self.prepares else False
        session.is_lent = True
        return session

    def take_spare(self) -> Session | None:
        """An idle session, to be given back; None when there is none."""
        try:
            session = self._idle.pop()
        except IndexError:
            return None
        session.is_lent = True
        return session

    def give_back(self, session: Session) -> None:
        """Take a session back, whatever its state; quiet when it is back already."""
        if not session.is_lent:
            return
        connection = session.connection
        sound = is_sound(connection)
        if not sound:
            connection.close()
        session.is_lent = False  # before it is another's, whatever interrupts this
        if self._pool is not None:
            if sound:
                connection.autocommit = session.autocommit
            self._pool.putconn(connection)
        elif sound:
            self._idle.append(session)
            if self._closed:
                self.close()

    def server_of(self, connection: Connection) -> str:
        """Which server a connection in autocommit mode leads to, asked once. A pooler's may lead elsewhere next time."""
        if not self.prepares:
            return ""
        server = self._servers.get(connection)
        if server is None:
            self.watchdog.watch(connection, self._clock.elapsed() + _MAX_CONNECTING)
            try:
                cursor = OwnCursor(connection)
                server = str(cursor.execute(_SERVER, prepare=False).fetchall()[0][0])
            except psycopg.Error:
                if connection.closed:
                    raise
                server = ""  # the role may not ask
            finally:
                self.watchdog.unwatch(connection)
            self._servers[connection] = server
        return server

    def close(self) -> None:
        """Close the idle connections; the user's pool stays open."""
        self._closed = True
        with contextlib.suppress(IndexError):  # empty, also where another thread does the same
            while True:
                self._idle.pop().connection.close()
        with contextlib.suppress(IndexError):
            while True:
                self._late.pop().close()

    def explain(self, problem: psycopg.Error) -> DurableError:
        """What an error of the connection or the server means to a user; it never quotes a value or a password."""
        return explain(problem, self.where)

    def _remaining(self, until: float) -> float:
        return max(_MIN_WAIT, until - self._clock.elapsed())

    def _make(self, made: Future[Connection], seconds: float) -> None:
        if made.done():  # the turn before failed and said so
            return
        try:
            connection = self._connect_somewhere(min(_MAX_CONNECTING, max(_MIN_CONNECTING, math.ceil(seconds))))
            try:
                connection.cursor_factory = OwnCursor
                self._make_ready(connection)
            except BaseException:
                connection.close()
                raise
        except psycopg.Error as problem:
            made.set_exception(self.explain(problem))
        except MemoryError as problem:
            made.set_exception(StoreUnavailable(self.where, f"no connection could be made ({type(problem).__name__})"))
        except BaseException as problem:
            made.set_exception(problem)
        else:
            try:
                made.set_result(connection)
            except BaseException:
                if not made.done():
                    connection.close()
                raise

    def _connect_somewhere(self, seconds: int) -> Connection:
        """A connection to the first host that gives one; the host that gave the last one is asked first."""
        pool, parts = self._pool, self._parts if self._pool is None else conninfo.read_pool(self._pool)
        order = sorted(hosts.list_hosts(parts), key=lambda host: host != self._good)
        given = str(parts.get("connect_timeout") or (_MIN_CONNECTING if len(order) > 1 else _MAX_CONNECTING))
        patience = min(seconds, int(given) or seconds) if given.isdigit() else given

        def connect(host: hosts.Host) -> Connection:
            wanted: dict[str, Any] = {**host.parameters, "connect_timeout": patience}
            if pool is not None:
                return _connect_like(pool, wanted)
            every: dict[str, Any] = {**parts, **wanted}
            return psycopg.connect(**every, autocommit=True, prepare_threshold=None)

        if len(order) == 1:
            return connect(order[0])
        self._good, connection = hosts.connect_first(order, connect, seconds)
        return connection

    def _make_ready(self, connection: Connection) -> None:
        hold(self._opening, self._make_database_ready, connection)
        if self.prepares:  # a pooler makes these up
            told = connection.info.parameter_status
            standby, read_only = told("in_hot_standby") == "on", told("default_transaction_read_only") == "on"
            requirements.refuse_read_only(self.where, standby=standby, read_only=read_only)
        if self._pool is None and self.prepares:
            connection.prepare_threshold = 0
            if self.forces_sync_commit:
                connection.execute(FORCE_SYNC_COMMIT, prepare=False)
            self.server_of(connection)

    def _make_database_ready(self, connection: Connection) -> None:
        """Once a process: whichever connection comes first."""
        if self.ready:
            return
        self.watchdog.watch(connection, self._clock.elapsed() + _MAX_PREPARING)
        try:
            requirements.check_kind(connection, self.where)
            self.prepares = _is_direct(connection)
            settings = requirements.read_settings(connection, self.where)
            self.unfit = requirements.why_unfit(settings, self.where)
            self._judge(settings)
            self._warn(self._prepare(connection))
        finally:
            self.watchdog.unwatch(connection)
        self.ready = True

    def _judge(self, settings: dict[str, str | None]) -> None:
        """Put right what can be put right in our own sessions; warn of the rest, or refuse it."""
        if self._pool is None and self.prepares and settings.get("synchronous_commit") == "off":
            self.forces_sync_commit = True
            del settings["synchronous_commit"]
        self._warn(requirements.durability_warnings(settings))

    def _warn(self, warnings: Sequence[str]) -> None:
        if warnings and self._strict:
            raise UnsuitableServer(
                self.where, "; ".join(warnings), "Turn that on (of a table: SET LOGGED), or go without strict=True."
            )
        for warning in warnings:
            message = "PostgreSQL at %s: %s; postgres(url, strict=True) refuses such a server"
            say(_log, logging.WARNING, message, self.where, warning)

    def _keep(self, made: Future[Connection]) -> None:
        if made.exception() is None:
            self._hold(made.result())

    def _hold(self, connection: Connection) -> None:
        if self._late:
            connection.close()
            return
        self._late.append(connection)
        if self._closed:
            self.close()

    def _borrow(self, until: float) -> Connection:
        assert self._pool is not None  # noqa: S101 -- asked by the caller
        seconds = min(_MAX_BORROWING, self._remaining(until))
        try:
            connection: Connection = self._pool.getconn(timeout=seconds)
        except psycopg_pool.PoolTimeout:
            problem = f"no connection came free, or could be made, within {seconds:.1f} s"
            raise StoreUnavailable(self.where, problem) from None
        except psycopg_pool.PoolClosed:
            raise InvalidArgument("the pool that the store borrows from is closed") from None
        except psycopg.Error as problem:  # a bare error would not say that nothing was sent yet
            raise self.explain(problem) from None
        return connection

    def _session(self, connection: Connection) -> Session:
        try:
            session = Session(connection, self._prepared.setdefault(connection, {}), "")
            if not session.autocommit:
                connection.autocommit = True
            session.server = self.server_of(connection)
        except BaseException:  # also of a signal handler
            if self._pool is not None:
                self._pool.putconn(connection)
            else:
                connection.close()
            raise
        return session


def _fail(made: Future[Connection], problem: Exception) -> None:
    if not made.done():
        made.set_exception(problem)


def _is_direct(connection: Connection) -> bool:
    """Whether this always leads to one backend: not through a pooler, which makes up the process id that it tells.

    Behind a pooler the name of a prepared statement may belong to another client by the next time: executing it is then no
    error, but executes *another statement*. So this must be known beforehand.
    """
    row = connection.execute("SELECT pg_catalog.pg_backend_pid()", prepare=False).fetchone()
    return row is not None and row[0] == connection.info.backend_pid


def _connect_like(pool: Pool, wanted: dict[str, Any]) -> Connection:
    """A connection as the pool would make it, its `configure` included, that does not count among the pool's."""
    where, kwargs = conninfo.arguments_of(pool)
    connection: Connection = pool.connection_class.connect(where, **{**kwargs, **wanted})
    configure = getattr(pool, "_configure", None)
    if configure is not None:
        configure(connection)
    connection.autocommit = True
    connection.row_factory = tuple_row
    return connection
