"""The ways to the database: connections, and what their errors mean to a user."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import threading
from collections.abc import Callable, MutableMapping, Sequence
from concurrent.futures import Future
from functools import cached_property, partial
from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary

import psycopg
import psycopg_pool
from psycopg import generators
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import UntranslatableCharacter, error_from_result
from psycopg.pq import ExecStatus, PipelineStatus, TransactionStatus
from psycopg.rows import tuple_row

from durable._common.reports import say
from durable._common.threads import kept_up
from durable.clocks import Clock
from durable.errors import DurableError, InvalidArgument, StoreUnavailable, UnsuitableServer
from durable.stores._postgres import hosts, requirements
from durable.stores._postgres.cursors import OwnCursor
from durable.stores._postgres.meanings import meaning
from durable.stores._postgres.watchdog import Watchdog

Connection: TypeAlias = psycopg.Connection[Any]
Pool: TypeAlias = psycopg_pool.ConnectionPool[Any]

# In seconds. Whoever waits does so until his own deadline; these bound what goes on without him.
_LONGEST_CONNECTING: Final = 10
_SHORTEST_CONNECTING: Final = 2  # psycopg waits no shorter
_LONGEST_PREPARING: Final = 30.0
_LONGEST_LENDING: Final = 30.0
_SHORTEST_WAIT: Final = 0.2
# A connection that nobody answers on is noticed by the kernel: after 5 s of silence it asks, three times in 6 s.
_DEFAULTS: Final = {
    "application_name": "durable",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
_UTF_8: Final = "utf-8"
_numbers: Final = itertools.count()  # of prepared statements: another store may use the same connection of a pool
_log = logging.getLogger("durable")

INSISTENCE: Final = b"SET synchronous_commit = on"
# A standby was started at another moment than its primary, and so was what a backup is restored into.
_SERVER: Final = (
    b"SELECT pg_catalog.to_char(pg_catalog.pg_postmaster_start_time() AT TIME ZONE 'UTC', 'YYYYMMDDHH24MISSUS')"
)


class Lane:
    """A connection in autocommit mode, lent out.

    `prepared` has the names of the statements prepared on it by `wrote`; `server` tells which server it leads to, by the moment
    when that was started. Empty where nobody can tell.
    """

    __slots__ = ("_cursor", "_encoding", "_prepared", "autocommit", "connection", "is_lent", "prepare", "server")

    def __init__(self, connection: Connection, prepared: MutableMapping[bytes, bytes], server: str) -> None:
        self.connection = connection
        self.server = server
        self.is_lent = True
        self.prepare: bool | None = None
        self.autocommit = connection.autocommit
        self._encoding = connection.info.encoding
        self._prepared = prepared
        self._cursor = OwnCursor(connection)

    def wrote(self, query: bytes, values: Sequence[bytes]) -> int:
        """Execute a statement with `$1`, `$2` … that returns no rows; how many rows it wrote. The values are in UTF-8.

        It goes past psycopg's cursor, which would take up to a sixth of a step.
        """
        wire = self.connection.pgconn
        if self._encoding != _UTF_8:
            values = [self._encoded(value) for value in values]
        if self.prepare is False or self.connection.prepare_threshold is None:
            wire.send_query_params(query, values)
        else:
            name = self._prepared.get(query)
            if name is None:
                name = b"durable_%d" % next(_numbers)
                wire.send_prepare(name, query)
                self._done()
                self._prepared[query] = name
            wire.send_query_prepared(name, values)
        return self._done()

    def _done(self) -> int:
        results = self.connection.wait(generators.execute(self.connection.pgconn))
        if len(results) == 1 and results[0].status == ExecStatus.COMMAND_OK:
            return results[0].command_tuples or 0
        for result in results:  # the first error is the one that says why; a pooler adds its own to a server's last
            if result.status != ExecStatus.COMMAND_OK:
                raise error_from_result(result, self.connection.info.encoding)
        raise psycopg.OperationalError(f"one statement was answered {len(results)} times")

    def _encoded(self, value: bytes) -> bytes:
        try:
            return value.decode().encode(self._encoding)
        except UnicodeEncodeError:
            raise UntranslatableCharacter(f"the connection's client_encoding is {self._encoding}") from None

    def rollback(self) -> None:
        """Roll back; psycopg then deallocates all that is prepared."""
        self._prepared.clear()
        self._cursor.execute(b"ROLLBACK", prepare=False)

    def execute(self, query: bytes, parameters: Any = None) -> psycopg.Cursor[Any]:
        """Execute a statement whose result is read before the next one."""
        self._cursor.execute(query, parameters, prepare=self.prepare)
        return self._cursor

    def also(self, query: bytes, parameters: Any = None) -> psycopg.Cursor[Any]:
        """Execute a statement of a pipeline, whose result is read after its end."""
        cursor = OwnCursor(self.connection)
        cursor.execute(query, parameters, prepare=self.prepare)
        return cursor


class Connections:
    """The connections of one process to one database: its own, or lent by the user's pool.

    Of its own it needs one for each writer, and keeps them at hand. `prepare` is called once, with the very first
    connection, before anything else is done. Each is made in a thread of its own, so that nobody waits for one beyond his
    deadline, whatever it is that takes so long: a name server, one host of several, a server that accepts and says
    nothing. One that comes too late is kept for the next who wants one.
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
        self._parts = _parts(url) if pool is None else {}
        self._pool = pool
        self._prepare = prepare
        self._clock = clock
        self._strict = strict
        self._opening = threading.Lock()
        self._good: hosts.Host | None = None  # that was connected to last
        self._idle: list[Lane] = []
        self._late: list[Connection] = []
        # Of a lent connection it must be remembered what is prepared on it, for as long as it lives.
        self._prepared: WeakKeyDictionary[Connection, dict[bytes, bytes]] = WeakKeyDictionary()
        self._servers: WeakKeyDictionary[Connection, str] = WeakKeyDictionary()
        self._closed = False
        self.watchdog = Watchdog(clock)
        self.ready = False
        self.unfit: DurableError | None = None  # why no run may be kept there, though it can be looked at
        self.prepares = True
        self.insists = False  # on synchronous_commit, which the role has off

    @cached_property
    def where(self) -> str:
        """The database's address for people: no password, no options."""
        if self._pool is not None:
            return f"the pool {self._pool.name!r}"
        parts = self._parts
        hosts = (parts.get("host") or parts.get("hostaddr") or "the local socket").split(",")
        ports = parts.get("port", "").split(",")
        host = ",".join(
            f"{host}:{port}" if port else host
            for host, port in zip(hosts, ports if len(ports) == len(hosts) else ports[:1] * len(hosts), strict=True)
        )
        user = f" as {parts['user']}" if "user" in parts else ""
        return f"{host}/{parts.get('dbname', '')}{user}"

    @property
    def pool_size(self) -> int | None:
        """How many connections the user's pool has at the most; None without one."""
        return None if self._pool is None else self._pool.max_size

    def connect(self, until: float) -> Connection:
        """A connection of one's own, in autocommit mode; made the way the user's pool makes them, if there is one.

        `StoreUnavailable` when there is none at this reading of the clock.
        """
        if self._closed:
            raise InvalidArgument("the store is closed")
        with contextlib.suppress(IndexError):
            return self._late.pop()
        seconds = self._left(until)
        made: Future[Connection] = Future()
        kept_up("durable-connecting", partial(self._make, made, seconds), partial(_cannot, made))
        connection: Connection | None = None
        try:
            connection = made.result(seconds)
            return connection
        except TimeoutError:
            raise StoreUnavailable(self.where, f"no connection came about within {seconds:.1f} s") from None
        finally:
            if connection is None:  # too late, or interrupted: for the next who wants one
                made.add_done_callback(self._keep)
            del made  # an error would refer to itself through it

    def take(self, until: float) -> Lane:
        """A connection in autocommit mode, to be given back; `StoreUnavailable` as for `connect`."""
        if self._pool is not None and not self.ready:
            # Not from the pool: a wrong password is then an error at once, and not a pool's timeout.
            self._hold(self.connect(until))
        try:
            lane = self._idle.pop()
        except IndexError:
            lane = self._lane(self.connect(until) if self._pool is None else self._lent(until))
        lane.prepare = None if self.prepares else False
        lane.is_lent = True
        return lane

    def spare(self) -> Lane | None:
        """A connection that is at hand, if one is; to be given back."""
        try:
            lane = self._idle.pop()
        except IndexError:
            return None
        lane.is_lent = True
        return lane

    def give_back(self, lane: Lane) -> None:
        """Take a connection back, whatever state it is in; quiet when it is back already."""
        if not lane.is_lent:
            return
        connection = lane.connection
        sound = is_sound(connection)
        if not sound:
            connection.close()
        lane.is_lent = False  # before it is another's, whatever interrupts this
        if self._pool is not None:
            if sound:
                connection.autocommit = lane.autocommit
            self._pool.putconn(connection)
        elif sound:
            self._idle.append(lane)
            if self._closed:
                self.close()

    def server_of(self, connection: Connection) -> str:
        """Which server a connection in autocommit mode leads to, asked once. A pooler's may lead elsewhere next time."""
        if not self.prepares:
            return ""
        server = self._servers.get(connection)
        if server is None:
            self.watchdog.watch(connection, self._clock.elapsed() + _LONGEST_CONNECTING)
            try:
                cursor = OwnCursor(connection)
                server = str(cursor.execute(_SERVER, prepare=False).fetchall()[0][0])
            except psycopg.Error:
                if connection.closed:
                    raise
                server = ""  # one that lets nobody ask
            finally:
                self.watchdog.unwatch(connection)
            self._servers[connection] = server
        return server

    def close(self) -> None:
        """Close what is at hand; nothing of the user's."""
        self._closed = True
        with contextlib.suppress(IndexError):  # empty, also where another thread does the same
            while True:
                self._idle.pop().connection.close()
        with contextlib.suppress(IndexError):
            while True:
                self._late.pop().close()

    def meaning(self, problem: psycopg.Error) -> DurableError:
        """What an error of the connection or the server means to a user; it never quotes a value or a password."""
        return meaning(problem, self.where)

    def _left(self, until: float) -> float:
        return max(_SHORTEST_WAIT, until - self._clock.elapsed())

    def _make(self, made: Future[Connection], seconds: float) -> None:
        if made.done():  # a fault of the thread's own was told, and this is its next turn
            return
        try:
            connection = self._connected(min(_LONGEST_CONNECTING, max(_SHORTEST_CONNECTING, math.ceil(seconds))))
            try:
                connection.cursor_factory = OwnCursor
                self._make_ready(connection)
            except BaseException:
                connection.close()
                raise
        except psycopg.Error as problem:
            made.set_exception(self.meaning(problem))
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

    def _connected(self, seconds: int) -> Connection:
        """A connection to the first host that gives one, the one that was good last before all others."""
        pool, parts = self._pool, self._parts if self._pool is None else _parts_of(self._pool)
        order = sorted(hosts.hosts(parts), key=lambda host: host != self._good)
        given = str(parts.get("connect_timeout") or (_SHORTEST_CONNECTING if len(order) > 1 else _LONGEST_CONNECTING))
        patience = min(seconds, int(given) or seconds) if given.isdigit() else given

        def connect(host: hosts.Host) -> Connection:
            wanted: dict[str, Any] = {**host.parameters, "connect_timeout": patience}
            if pool is not None:
                return _connected_like(pool, wanted)
            every: dict[str, Any] = {**parts, **wanted}
            return psycopg.connect(**every, autocommit=True, prepare_threshold=None)

        if len(order) == 1:
            return connect(order[0])
        self._good, connection = hosts.first(order, connect, seconds)
        return connection

    def _make_ready(self, connection: Connection) -> None:
        with self._opening:
            if not self.ready:
                self.watchdog.watch(connection, self._clock.elapsed() + _LONGEST_PREPARING)
                try:
                    requirements.check_kind(connection, self.where)
                    self.prepares = _is_direct(connection)
                    settings = requirements.condition(connection, self.where)
                    self.unfit = requirements.why_unfit(settings, self.where)
                    self._look_at(settings)
                    self._doubt(self._prepare(connection))
                finally:
                    self.watchdog.unwatch(connection)
                self.ready = True
        if self.prepares:  # a pooler makes these up
            told = connection.info.parameter_status
            standby, read_only = told("in_hot_standby") == "on", told("default_transaction_read_only") == "on"
            requirements.refuse_read_only(self.where, standby=standby, read_only=read_only)
        if self._pool is None and self.prepares:
            connection.prepare_threshold = 0
            if self.insists:
                connection.execute(INSISTENCE, prepare=False)
            self.server_of(connection)

    def _look_at(self, settings: dict[str, str | None]) -> None:
        """Mend what can be mended in our own sessions; say the rest, or refuse it."""
        if self._pool is None and self.prepares and settings.get("synchronous_commit") == "off":
            self.insists = True
            del settings["synchronous_commit"]
        self._doubt(requirements.doubts(settings))

    def _doubt(self, doubts: Sequence[str]) -> None:
        if doubts and self._strict:
            raise UnsuitableServer(
                self.where, "; ".join(doubts), "Turn that on (of a table: SET LOGGED), or go without strict=True."
            )
        for doubt in doubts:
            message = "PostgreSQL at %s: %s; postgres(url, strict=True) refuses such a server"
            say(_log, logging.WARNING, message, self.where, doubt)

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

    def _lent(self, until: float) -> Connection:
        assert self._pool is not None  # noqa: S101 -- asked by the caller
        seconds = min(_LONGEST_LENDING, self._left(until))
        try:
            connection: Connection = self._pool.getconn(timeout=seconds)
        except psycopg_pool.PoolTimeout:
            problem = f"no connection came free, or could be made, within {seconds:.1f} s"
            raise StoreUnavailable(self.where, problem) from None
        except psycopg_pool.PoolClosed:
            raise InvalidArgument("the pool that the store borrows from is closed") from None
        except psycopg.Error as problem:  # nothing was sent yet, which a bare error would not say
            raise self.meaning(problem) from None
        return connection

    def _lane(self, connection: Connection) -> Lane:
        try:
            lane = Lane(connection, self._prepared.setdefault(connection, {}), "")
            if not lane.autocommit:
                connection.autocommit = True
            lane.server = self.server_of(connection)
        except BaseException:  # what a signal handler raises, too
            if self._pool is not None:
                self._pool.putconn(connection)
            else:
                connection.close()
            raise
        return lane


def _cannot(made: Future[Connection], problem: Exception) -> None:
    if not made.done():
        made.set_exception(problem)


def is_sound(connection: Connection) -> bool:
    """Whether nothing is under way on it, as an interrupt may have left it."""
    wire = connection.pgconn
    return wire.transaction_status == TransactionStatus.IDLE and wire.pipeline_status == PipelineStatus.OFF


def _is_direct(connection: Connection) -> bool:
    """Whether this leads to one and the same backend: not through a pooler, which makes up the process id that it tells.

    Behind a pooler a prepared statement may belong to another client by the next time, under the same name: then it is
    not an error, but *another statement*. So it must be known beforehand.
    """
    row = connection.execute("SELECT pg_catalog.pg_backend_pid()", prepare=False).fetchone()
    return row is not None and row[0] == connection.info.backend_pid


def _parts(url: str | None) -> dict[str, str]:
    parts: dict[str, Any] = {}
    try:
        parts = dict(conninfo_to_dict(url or ""))
        # A password with a / or @ that is not percent-encoded slips into these, where it would be shown.
        slipped = any("@" in str(parts.get(part) or "") for part in ("host", "dbname"))
        readable = "\0" not in (url or "") and not slipped and _are_numbers(parts.get("port"))
    except (psycopg.ProgrammingError, UnicodeEncodeError):
        readable = False
    if not readable:  # libpq's message quotes what it could not read, which may be a password
        raise InvalidArgument(
            "the database URL cannot be read: it should look like postgresql://user@host:5432/dbname "
            "(percent-encode special characters in the password: / is %2F, @ is %40)"
        ) from None
    given = _with_environment({key: str(value) for key, value in parts.items() if value is not None})
    several = "," in given.get("host", "") + given.get("hostaddr", "")
    if several and given.get("target_session_attrs", "any") in _ANY_SERVER:
        given["target_session_attrs"] = "read-write"  # a journal read from a standby would be an old one
    return {**_DEFAULTS, **given, "client_encoding": "UTF8"}


_ANY_SERVER: Final = ("any", "prefer-standby")


def _with_environment(parts: dict[str, str]) -> dict[str, str]:
    """With what libpq would take from the environment of where the database is."""
    if "host" in parts or "hostaddr" in parts or "service" in parts:
        return parts
    known = {name: os.environ.get(f"PG{name.upper()}") for name in ("host", "hostaddr", "port")}
    return {**{name: value for name, value in known.items() if value}, **parts}


def _are_numbers(ports: object) -> bool:
    return ports is None or all(port.isdigit() for port in str(ports).split(",") if port)


def _made_of(pool: Pool) -> tuple[str, dict[str, Any]]:
    """What a pool makes its connections of."""
    kwargs = (pool.kwargs() if callable(pool.kwargs) else pool.kwargs) or {}
    return (pool.conninfo() if callable(pool.conninfo) else pool.conninfo), dict(kwargs)


def _parts_of(pool: Pool) -> dict[str, Any]:
    conninfo, kwargs = _made_of(pool)
    named = ("host", "hostaddr", "port", "service", "connect_timeout")
    parts = {**conninfo_to_dict(conninfo), **{name: kwargs[name] for name in named if name in kwargs}}
    return _with_environment({name: str(value) for name, value in parts.items() if value is not None})


def _connected_like(pool: Pool, wanted: dict[str, Any]) -> Connection:
    """A connection as the pool would make it, its `configure` included, that does not count among the pool's."""
    conninfo, kwargs = _made_of(pool)
    connection: Connection = pool.connection_class.connect(conninfo, **{**kwargs, **wanted})
    configure = getattr(pool, "_configure", None)
    if configure is not None:
        configure(connection)
    connection.autocommit = True
    connection.row_factory = tuple_row
    return connection
