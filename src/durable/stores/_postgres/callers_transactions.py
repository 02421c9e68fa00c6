"""What is written in callers' own transactions: runs that are started, and signals."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar
from weakref import WeakSet

import msgspec
import psycopg

from durable._engine.starts import Started
from durable.errors import SchemaMismatch, UnsuitableConnection
from durable.records import Status
from durable.stores._postgres.callers_connections import lent, lent_async
from durable.stores._postgres.cursors import OwnAsyncCursor, OwnCursor
from durable.stores._postgres.dropped_rows import dropped_rows
from durable.stores._postgres.job import ABSENT
from durable.stores._postgres.jobs import signal_row
from durable.stores._postgres.session import Connection, Session
from durable.stores._postgres.settings import Settings
from durable.stores._postgres.signal_statements import read_signalled
from durable.stores._postgres.sql.loader import load_statements
from durable.stores._postgres.sql.names import Names
from durable.stores._postgres.starts import Rows, plan_start, read_started
from durable.stores._work import await_work, perform_work
from durable.stores.requests import Enqueue, Request, Signal

T = TypeVar("T")

_TRIES: Final = 3  # where what stands in the way ends just then

_json: Final = msgspec.json.Encoder()


class _Statement(NamedTuple):
    """A statement for the caller's connection, to be answered with its rows."""

    text: bytes
    values: Mapping[str, Any] | tuple[str]


_Work: TypeAlias = Generator[_Statement, list[tuple[Any, ...]], T]


class _Home(NamedTuple):
    """Where the store's tables are. The server's identifier is that of its standbys, too; empty where it may not be asked."""

    database: str
    schema: str
    server: str


class CallersTransactions:
    """Writes in transactions of callers, for both colours. `ask` does some work on a connection of the store's own."""

    def __init__(self, ask: Callable[[Callable[[Session], Any]], Any], settings: Settings, rows: Rows) -> None:
        self._ask = ask
        self._rows = rows
        self._names = settings.names
        self._own = load_statements(settings.names)
        self._home: _Home | None = None
        self._sql: Mapping[str, bytes] = {}
        self._known = WeakSet[Any]()  # connections that lead to the store's database

    def perform(self, request: Request[T], given: Any, function: str) -> T:
        """What the request comes to in the transaction of this connection. Blocks."""
        self._find_home()
        with lent(given, function) as connection:
            return perform_work(self._work(request, connection), partial(_execute, connection))

    async def submit(self, request: Request[T], given: Any, function: str) -> T:
        """The same on an async connection."""
        if self._home is None:
            await asyncio.to_thread(self._find_home)
        connection = await lent_async(given, function)
        return await await_work(self._work(request, connection), partial(_execute_async, connection))

    def _find_home(self) -> None:
        if self._home is None:
            home = self._ask(self._read_home)
            qualified = Names(self._names.table, home.schema, self._names.lock)
            self._sql = load_statements(qualified)  # whatever the search path of the caller
            self._home = home

    def _read_home(self, session: Session) -> _Home:
        found = session.execute(self._own["find_home"], {}).fetchone()
        if found is None:
            raise SchemaMismatch(self._names.quoted["snapshots"], "it has gone since the store was opened")
        database, schema, may_ask = found
        server = session.execute(self._own["identify_server"], {}).fetchall() if may_ask else ()
        return _Home(database, schema, "".join(name for (name,) in server))

    def _work(self, request: Request[T], connection: Any) -> _Work[T]:
        if connection not in self._known:
            yield from self._check(connection)
        match request:
            case Enqueue():
                return (yield from self._enqueue(request))  # type: ignore[return-value]
            case Signal():
                return (yield from self._signal(request))  # type: ignore[return-value]
            case _:
                raise AssertionError(type(request).__name__)

    def _check(self, connection: Any) -> _Work[None]:
        """Refuse a connection to another database, once: its transaction must not fail for want of our tables."""
        home, table = self._home, self._names.table
        assert home is not None  # noqa: S101 -- found before
        values = {"schema": home.schema, "table": table}
        ((database, may_ask, is_there),) = yield _Statement(self._sql["locate_tables"], values)
        server = home.server
        if may_ask and home.server and is_there:
            ((server,),) = yield _Statement(self._sql["identify_server"], {})
        if not is_there or database != home.database or server != home.server:
            there = "" if is_there else f", which has no table {home.schema}.{table}"
            elsewhere = f"of the name {database!r} on another server" if database == home.database else f"{database!r}"
            raise UnsuitableConnection(
                f"connection= leads to the database {elsewhere}{there}; the store's tables are in the database "
                f"{home.database!r}, and a run can be started in a transaction of that one only"
            )
        self._known.add(connection)

    def _enqueue(self, enqueue: Enqueue) -> _Work[Sequence[Started]]:
        starting = plan_start(enqueue.runs, self._rows)
        for n, row in enumerate(starting.rows):
            row.n = n
        values = {"runs": _ascii(_json.encode(starting.rows).decode())}
        for _ in range(_TRIES):
            new = {n for (n,) in (yield _Statement(self._sql["enqueue"], values))}
            if len(new) == len(starting.rows):
                return [Started(run.run_id, True, run.workflow, run.input_hash, Status.QUEUED) for run in enqueue.runs]
            found = yield _Statement(self._sql["read_started"], values)
            (started,) = read_started([starting], new, found, starting.prefix)
            if started is not ABSENT:
                told: Sequence[Started] = started
                return told
        raise dropped_rows("leases")

    def _signal(self, signal: Signal) -> _Work[bool]:
        values = (_ascii(_json.encode([signal_row(signal, self._rows.row(signal.run_id))]).decode()),)
        for _ in range(_TRIES):
            rows = yield _Statement(self._sql["signal_batch"], values)
            (is_there,) = read_signalled(rows, 1)
            if is_there is not ABSENT:
                return bool(is_there)
        raise dropped_rows("signals")


def _execute(connection: Connection, statement: _Statement) -> list[tuple[Any, ...]]:
    cursor = OwnCursor(connection)
    return cursor.execute(statement.text, statement.values, prepare=False).fetchall()  # type: ignore[no-any-return]


async def _execute_async(connection: psycopg.AsyncConnection[Any], statement: _Statement) -> list[tuple[Any, ...]]:
    cursor = OwnAsyncCursor(connection)
    await cursor.execute(statement.text, statement.values, prepare=False)
    return await cursor.fetchall()


def _ascii(text: str) -> str:
    """The JSON with escapes in place of what a connection's encoding may not have."""
    if text.isascii():
        return text
    return "".join(char if char.isascii() else _escape(char) for char in text)


def _escape(char: str) -> str:
    units = char.encode("utf-16-be")
    return "".join(f"\\u{units[n]:02x}{units[n + 1]:02x}" for n in range(0, len(units), 2))
