"""One connection to the model and one to a real PostgreSQL, driven as one: what both do is compared at every step."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from time import monotonic
from types import MappingProxyType
from typing import Any, Final

import psycopg

from durable.stores._postgres.sql.loader import load_statements
from durable.stores._postgres.sql.names import Names
from harness.support import Database
from simulation.database import circular, serve
from simulation.session import Running, Session
from simulation.tables import ACCOUNTS, Account, Header, Lease, Signal, new_database

_GIVES_UP = 30.0  # seconds, after which it is neither done nor waiting
_MOMENTS = ("lastUpdated", "completedAt", "startedAt", "began")
_WAITING = re.compile(r"process \d+ still waiting for \w+ on (.+) after")

_LOCKS = """
SELECT pid, CASE locktype
           WHEN 'transactionid' THEN 'transaction ' || transactionid
           WHEN 'tuple' THEN format('tuple (%%s,%%s) of relation %%s of database %%s', page, tuple, relation, database)
           ELSE locktype END
  FROM pg_locks WHERE NOT granted AND pid = ANY (%s)
"""

# The deadlock detector looks a millisecond after a wait has begun, and the LOG message that it has found nothing reaches the
# waiting client at once. So whoever waits has been looked at, and the next one to close a circle is its victim, as in the model.
_SETTINGS = """
SET deadlock_timeout = '1ms'; SET log_lock_waits = on; SET client_min_messages = log; SET lc_messages = 'C';
SET synchronous_commit = off
"""

# The user's, for the bodies of transactions.
_USERS_TABLES = """
CREATE TABLE {schema}.accounts (name text COLLATE "C" PRIMARY KEY, balance integer NOT NULL);
CREATE TABLE {schema}.effects (execution integer PRIMARY KEY, run text COLLATE "C", site integer, token text);
"""
_USERS_STATEMENTS = {
    "move": "UPDATE {schema}.accounts SET balance = balance + %s WHERE name = %s",
    "effect": "INSERT INTO {schema}.effects (execution, run, site, token) VALUES (%s, %s, %s, %s)",
}

Reply = tuple[str, Any, int]  # "rows", the rows, how many; or "error", its SQLSTATE, 0


class Real:
    """A connection to PostgreSQL, whose statements run on a thread of its own."""

    def __init__(self, database: Database) -> None:
        self._connection = psycopg.connect(database.url, autocommit=True)
        self._connection.execute(_SETTINGS)
        self._connection.add_notice_handler(self._noticed)
        self._thread = ThreadPoolExecutor(1)
        self.pid = self._connection.info.backend_pid
        self.waits_for: str | None = None
        self.answer: Future[Reply] | None = None

    def execute(self, query: bytes, parameters: Any = None) -> None:
        """Send it; the answer comes when it comes."""
        self.waits_for = None
        self.answer = self._thread.submit(self._executed, query, parameters)

    def close(self) -> None:
        """Whatever it does."""
        self._connection.cancel_safe()
        self._thread.shutdown()
        self._connection.close()

    def _executed(self, query: bytes, parameters: Any) -> Reply:
        try:
            cursor = self._connection.execute(query, parameters)
        except psycopg.Error as problem:
            return "error", problem.sqlstate, 0
        rows = cursor.fetchall() if cursor.description else []
        return "rows", rows, cursor.rowcount

    def _noticed(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        if found := _WAITING.match(diagnostic.message_primary or ""):
            self.waits_for = found[1]


class Both:
    """A connection to the model, and one to PostgreSQL."""

    def __init__(self, name: str, real: Real) -> None:
        self.name = name
        self.real = real
        self.model: Any = None
        self.running: Running | None = None
        self.statement = ""
        self.waited = False

    @property
    def busy(self) -> bool:
        """Whether it waits for somebody."""
        return self.running is not None

    @property
    def failed(self) -> bool:
        """Whether its transaction refuses everything."""
        session: Session = self.model
        return session.failed


class Differs(AssertionError):
    """The model says one thing, and PostgreSQL another."""


class Comparison:
    """Both databases, and connections to both. `seen` counts what has occurred."""

    def __init__(self, database: Database, connections: int) -> None:
        with database.store() as store:
            store.load("creates the tables")
        names = Names(schema=database.schema)
        users = {name: sql.format(schema=f'"{database.schema}"').encode() for name, sql in _USERS_STATEMENTS.items()}
        self._sql = {**load_statements(names), **users}
        self._names = {**names.quoted, **{name: f'"{database.schema}".{name}' for name in ("accounts", "effects")}}
        self._watcher = psycopg.connect(database.url, autocommit=True)
        self._watcher.execute(_USERS_TABLES.format(schema=f'"{database.schema}"').encode())
        self._all = [Both("ABCD"[n], Real(database)) for n in range(connections)]
        self.seen: Counter[str] = Counter()
        self.history: list[str] = []
        self.prefix = ""
        self.connections: list[Both] = []
        self._signals_waited = False

    def close(self) -> None:
        """Let go of the connections."""
        self._watcher.close()
        for both in self._all:
            both.real.close()

    def start(
        self,
        seed: int,
        connections: int,
        documents: Mapping[str, Any],
        leases: Mapping[str, float],
        due: Mapping[str, float | None] = MappingProxyType({}),
    ) -> None:
        """An empty model, and ids that PostgreSQL has not seen; with these documents, and leases that end in so many seconds.

        Of the leases those are workers' that are `due` in so many seconds, or (None) have ended.
        """
        self.prefix, self.time = f"{seed}-", 1000.0
        self.model, self.tables = new_database(lambda: self.time)
        self.model.spares = self._spares
        self._signals_waited = False
        self.history, self.connections = [f"seed {seed}: {documents} {leases} {due}"], self._all[:connections]
        sequence = f"pg_get_serial_sequence({self._names['signals_text']}, 'number')::regclass"
        ((self.tables.numbers[0],),) = self._rows(f"SELECT COALESCE(pg_sequence_last_value({sequence}), 0)")
        for both in self.connections:
            both.model = Session(self.model, self.tables)
        writing = self.model.begin()
        for run_id, document in documents.items():
            row = Header(self.prefix + run_id, document, self.time)
            list(writing.statement().insert(self.tables.snapshots, row.id, row))
            query = f"INSERT INTO {self._names['snapshots']} (id, snapshot) VALUES (%s, %s)"
            self._watcher.execute(query.encode(), (row.id, json.dumps(document)))
        for name in ACCOUNTS:
            account = Account(self.prefix + name, 0)
            list(writing.statement().insert(self.tables.accounts, account.name, account))
            self._watcher.execute(f"INSERT INTO {self._names['accounts']} VALUES (%s, %s)".encode(), account)
        for run_id, seconds in leases.items():
            lease = Lease(self.prefix + run_id, 1, f"1:{run_id}.0", "me", self.time + seconds)
            due_in = due.get(run_id)
            if run_id in due:
                due_at = None if due_in is None else self.time + due_in
                lease = lease._replace(route=f"{self.prefix}q", priority=5, due_at=due_at)
            list(writing.statement().insert(self.tables.locks, lease.workflow_id, lease))
            columns = "workflow_id, epoch, owner_token, owner, route, priority, expires_at, due_at"
            moment = "clock_timestamp() + make_interval(secs => %s)"
            query = (
                f"INSERT INTO {self._names['locks']} ({columns}) VALUES (%s, %s, %s, %s, %s, %s, {moment}, {moment})"
            )
            self._watcher.execute(query.encode(), (*lease[:4], lease.route, lease.priority, seconds, due_in))
        writing.commit()
        self._watcher.execute(
            f"DELETE FROM {self._names['workers']}".encode()
        )  # which are counted, whoever they are of
        # Likewise those that were sent before, which polls would notice.
        self._watcher.execute(f"UPDATE {self._names['signals']} SET noticed = true WHERE NOT noticed".encode())

    def begin(self, both: Both) -> None:
        """BEGIN."""
        self._did(both, "BEGIN")
        both.model.begin()
        both.real.execute(b"BEGIN ISOLATION LEVEL READ COMMITTED")
        self._settled()

    def end(self, both: Both, how: str) -> None:
        """COMMIT or ROLLBACK, and whatever goes on when its locks are gone."""
        self._did(both, how)
        both.real.execute(how.encode())
        self._settled()
        with self._in_its_order():
            both.model.commit() if how == "COMMIT" else both.model.roll_back()
        self._compare()
        self._same_tables()

    def run(self, both: Both, name: str, parameters: Any) -> None:
        """A statement, as far as it goes; and, where it commits by itself, whatever goes on then."""
        self._did(both, f"{name} {parameters}")
        self.seen[name] += 1
        self.time += 0.001
        both.statement, both.waited = name, False
        mine, its = parameters, parameters
        if name == "transaction_record" and not both.failed:
            mine, its = self._with_transactions(both, parameters)
        both.real.execute(self._sql[name], its)
        self._settled()
        if both.failed:
            self._same(both, ("error", "25P02", 0), _answer(both))
            self.seen["25P02"] += 1
            return
        commits = self.model.commits
        with self._in_its_order():
            both.running = both.model.start(name, mine)
            both.running.proceed()
        self._compare()
        if commits != self.model.commits:
            self._same_tables()

    def _with_transactions(self, both: Both, parameters: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        """The parameters for the model and for the server: where there is a 1, what each calls this transaction."""
        both.real.execute(b"SELECT txid_current()")
        self._settled()
        _, ((txid,),), _ = _answer(both)
        before, right, after = parameters[:6], parameters[6], parameters[7:]
        return (*before, right * both.model.transaction.id, *after), (*before, right * txid, *after)

    def _did(self, both: Both, what: str) -> None:
        self.history.append(f"{both.name}: {what}")

    def _settled(self) -> None:
        """Wait until every connection has answered or waits for a lock, and was looked at by the deadlock detector."""
        until = monotonic() + _GIVES_UP
        while True:
            asked = {both.real: both.real.answer for both in self.connections}
            pending = {real: answer for real, answer in asked.items() if answer and not answer.done()}
            if not pending:
                return
            wait(pending.values(), timeout=0.0005)
            known = {real: real.waits_for for real, answer in pending.items() if not answer.done()}
            if known and None not in known.values():
                locks = dict(self._rows(_LOCKS, ([real.pid for real in known],)))
                if all(locks.get(real.pid) == waits_for for real, waits_for in known.items()):
                    return
            if monotonic() > until:
                raise Differs(self._told("PostgreSQL neither answers nor waits"))

    @contextmanager
    def _in_its_order(self) -> Iterator[None]:
        """Who of several waiting for one row gets it is the server's choice: in the model, whoever waits on there waits behind."""
        waiting = [both for both in self.connections if both.running and both.running.blocked]
        # Of two who are done, one that was refused, and so holds nothing any more, was before whom it stood in the way of.
        refused = any(_is_refused(both) and not _is_victim(both) for both in waiting)
        late = [both for both in waiting if not _is_done(both) or (refused and not _is_refused(both))]
        still = [both.running.wait for both in late if both.running]
        self.seen["one of several was let in"] += 0 < len(still) < len(waiting)
        behind = sorted(filter(None, still), key=lambda one: one.row.queue.index(one))
        for one in behind:
            one.row.queue.remove(one)
        yield
        self._go_on()
        for one in reversed(behind):
            one.row.queue.insert(0, one)
            serve(one.row)

    def _spares(self, closing: Any) -> bool:
        """Which of a circle is the victim is the server's choice, and when: it waits for the holders one after the other."""
        both = next(both for both in self.connections if both.model.transaction is closing)
        self.seen["spared"] += not _is_victim(both)
        return not _is_victim(both)

    def _go_on(self) -> None:
        """Let everybody in the model go on who can, and compare their answers."""
        while ready := self._ready():
            both = min(ready, key=_place)
            running = both.running
            if running and (running.done or running.proceed()):
                both.running = None
                said = running.error
                reply: Reply = (
                    ("rows", running.result.rows, running.result.rowcount)
                    if said is None
                    else ("error", said.sqlstate, 0)
                )
                self._same(both, reply, _answer(both) if _is_done(both) else None)

    def _ready(self) -> list[Both]:
        for both in self.connections:
            running = both.running
            if running and running.wait and running.blocked and _is_victim(both) and circular(running.wait):
                running.refuse("40P01")
        return [both for both in self.connections if both.running and (both.running.done or not both.running.blocked)]

    def _compare(self) -> None:
        """See that everybody has come as far in the model as in PostgreSQL."""
        self._go_on()
        for both in self.connections:
            if both.running is not None:
                both.waited = True
                self._signals_waited |= both.statement == "signal_batch"
                if _is_done(both):
                    raise Differs(self._told(f"{both.name} waits in the model, and answered: {_answer(both)}"))

    def _same(self, both: Both, mine: Reply, its: Reply | None) -> None:
        if its is None:
            raise Differs(self._told(f"{both.name} waits for {both.real.waits_for}, and has {mine} in the model"))
        (kind, value, count), (its_kind, its_value, its_count) = mine, its
        if kind == "rows":
            value, its_value = _comparable(both.statement, value), _comparable(both.statement, its_value)
        if (kind, value, count) != (its_kind, its_value, its_count):
            raise Differs(self._told(f"{both.name}: {both.statement}\n  model {mine}\n  PostgreSQL {its}"))
        self._tell(both, kind, value, count)

    def _tell(self, both: Both, kind: str, value: Any, count: int) -> None:
        name, after = both.statement, ", after a wait" if both.waited else ""
        if kind == "error":
            self.seen[value + after] += 1
            return
        if name == "poll":  # which always says when the next run is due
            count = sum(row[5] is not None for row in value)
        self.seen[f"{name}: {'something' if count else 'nothing'}{after}"] += 1
        if name == "renew":
            self.seen["skipped"] += [row[1] for row in value].count(False)

    def _same_tables(self) -> None:
        locks, runs, steps, signals, workers, *_, accounts, effects = (
            [*filter(None, map(table.committed, table.rows))] for table in self.tables.all()
        )
        mine: list[tuple[Any, ...]] = [
            *(("locks", *lease[:4], lease.expires_at > self.time, *self._due(lease)) for lease in locks),
            *(("snapshots", run.id, _document(run.snapshot)) for run in runs),
            *(("steps", *step[:-1]) for step in steps),
            *(("signals", *signal) for signal in signals),
            *(("workers", worker.id, list(worker.routes), worker.idle) for worker in workers if worker.routes),
            *(("accounts", *account) for account in accounts if account.name.startswith(self.prefix)),
            *(("effects", *effect) for effect in effects),
        ]
        its: list[tuple[Any, ...]] = []
        for table, columns in _COLUMNS.items():
            key = _KEYS.get(table, "workflow_id")
            query = f"SELECT {columns} FROM {self._names[table]} WHERE {key} >= %s AND {key} < %s"
            for row in self._rows(query, (self.prefix, self.prefix + "~")):
                its.append((table, *row[:1], _document(row[1])) if table == "snapshots" else (table, *row))
        if self._signals_waited:
            mine = self._adopt_numbers(mine, its)
        if sorted(mine, key=repr) != sorted(its, key=repr):
            only = [row for row in mine if row not in its], [row for row in its if row not in mine]
            raise Differs(self._told("the tables\n  model {}\n  PostgreSQL {}".format(*only)))
        self._adopt_order()

    def _adopt_order(self) -> None:
        """Of runs that became due by one statement, which is due first is the server's choice: a moment lies between two."""
        query = f"SELECT workflow_id FROM {self._names['locks']} WHERE workflow_id >= %s AND workflow_id < %s"
        due, places = f"{query} AND due_at IS NOT NULL ORDER BY due_at", Counter[float]()
        for (run_id,) in self._rows(due, (self.prefix, self.prefix + "~")):
            versions = self.tables.locks.row(run_id).versions
            commit, lease = versions[-1]
            if lease.due_at is not None and lease.due_at != self.time:  # what is due at once is due at once
                versions[-1] = commit, lease._replace(due_at=lease.due_at + places[lease.due_at] * _MOMENT)
                places[lease.due_at] += 1

    def _due(self, lease: Lease) -> tuple[str | None, int | None, bool | None]:
        """Where a run waits, and whether it is not due yet."""
        return lease.route, lease.priority, None if lease.due_at is None else lease.due_at > self.time

    def _adopt_numbers(self, mine: Sequence[tuple[Any, ...]], its: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """The model's rows, its signals renumbered as in PostgreSQL: which of two that wait for one another's rows draws
        from the sequence first is the server's choice."""
        numbers = {row[2:]: row[1] for row in its if row[0] == "signals"}
        adopted = list[tuple[Any, ...]]()
        for row in mine:
            number = numbers.get(row[2:], row[1]) if row[0] == "signals" else row[1]
            if number != row[1]:
                self.seen["numbered by the server"] += 1
                signal = Signal(number, *row[2:])
                versions = self.tables.signals.row((signal.workflow_id, signal.nonce)).versions
                versions[-1] = versions[-1][0], signal
            adopted.append((row[0], number, *row[2:]))
        return adopted

    def _rows(self, query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self._watcher.execute(query.encode(), parameters).fetchall()

    def _told(self, what: str) -> str:
        stand = [
            f"{both.name}: {_answer(both) if _is_done(both) else both.real.waits_for}" for both in self.connections
        ]
        return "\n".join([*self.history, what, "PostgreSQL at the end: " + "; ".join(stand)])


_MOMENT: Final = 1e-7  # seconds

_COLUMNS = {
    "locks": "workflow_id, epoch, owner_token, owner, expires_at > clock_timestamp(), route, priority, due_at > clock_timestamp()",
    "snapshots": "id, snapshot",
    "steps": "workflow_id, seq, key, kind, nonce, epoch, record::text",
    "signals": "number, workflow_id, name, payload::text, nonce, noticed",
    "workers": "id, routes, idle",
    "accounts": "name, balance",
    "effects": "execution, run, site, token",
}
_KEYS = {"snapshots": "id", "workers": "id", "accounts": "name", "effects": "run"}


@contextmanager
def compared(database: Database, connections: int) -> Iterator[Comparison]:
    """A comparison, and its end."""
    comparison = Comparison(database, connections)
    try:
        yield comparison
    finally:
        comparison.close()


def _answer(both: Both) -> Reply:
    return ("rows", [], 0) if both.real.answer is None else both.real.answer.result()


def _is_done(both: Both) -> bool:
    return both.real.answer is None or both.real.answer.done()


def _is_victim(both: Both) -> bool:
    return _is_done(both) and _answer(both) == ("error", "40P01", 0)


def _is_refused(both: Both) -> bool:
    return _is_done(both) and _answer(both)[0] == "error"


def _place(both: Both) -> int:
    """Who has done with it is before who waits; and whose transaction was refused, before whom it stood in the way of."""
    return 2 if not _is_done(both) else not _is_refused(both)


def _comparable(statement: str, rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Times as "not over", moments as there or not; rows sorted, but where their order is part of the answer."""
    if statement == "transaction_settings":  # its number and the session's settings: each has its own
        return [() for _ in rows]
    if statement == "read_runs":
        return [
            (*row[:4], row[4] is not None and row[4] > 0, *row[5:7], _document(row[7] and json.loads(row[7])), *row[8:])
            for row in rows
        ]
    if statement == "poll":  # whether something is due later, and of each run all but the moments
        told = [
            (*row[:10], _document(row[10] and json.loads(row[10])), row[11], row[12] is not None, row[13])
            for row in rows
        ]
        return sorted(((row[0] is not None, *row[1:]) for row in told), key=repr)
    if statement == "notice":  # numbers as JSON
        return [(json.loads(row[0]),) for row in rows]
    if statement == "read_journals":  # without how much of a record is stored
        return [(*row[:6], row[6] is not None, row[7]) for row in rows]
    return sorted(rows)


def _document(document: Any) -> Any:
    """A header, whose moments are only there or not."""
    if isinstance(document, dict) and isinstance(execution := document.get("execution"), dict):
        known: dict[str, Any] = {name: name in _MOMENTS or value for name, value in execution.items()}
        if "earlier" in known:
            known["earlier"] = [{**earlier, "began": True} for earlier in known["earlier"]]
        asked = {"cancel": {**document["cancel"], "at": True}} if "cancel" in document else {}
        return {**document, "execution": known, **asked}
    return document
