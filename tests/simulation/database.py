"""A model of what PostgreSQL promises under READ COMMITTED: row versions, snapshots, row locks and their queues.

What it models, as PostgreSQL documents and does it:

- A *snapshot* is taken per statement: what was committed when the statement began, and what earlier statements of the
  same transaction wrote. What a statement writes itself it does not see.
- A row lock has one of four strengths (`KEY_SHARE` … `UPDATE`) and conflicts by the documented matrix. A change takes
  `UPDATE` when a *key column* changes (one that a unique index is over), else `NO_KEY_UPDATE`. Locks are held until the
  transaction ends.
- Who must wait queues, behind whoever waits before it and is in its way; who need not wait goes ahead of the queue.
- After a wait, or where a row has changed since the snapshot, the condition is looked at again on the newest version.
- Whoever closes a circle of waits is the victim of it (40P01). PostgreSQL finds it a second later, and may pick another.
- An insertion of a key that somebody else is inserting waits for the end of that transaction.
- A commit is one event, after which it is durable, seen and has let go of its locks. That the client hears of it is
  another event, and not this module's.

What is not modelled: deletion, savepoints, what a newcomer may snatch between the end of a lock and the waking of whoever
waits for it, and the victim's second of waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar

__all__ = [
    "KEY_SHARE",
    "NO_KEY_UPDATE",
    "POINT",
    "SHARE",
    "UPDATE",
    "Database",
    "Progress",
    "Row",
    "Statement",
    "Table",
    "Transaction",
    "Victim",
    "Violation",
    "Wait",
    "circular",
    "serve",
]

KEY_SHARE: Final = 0
SHARE: Final = 1
NO_KEY_UPDATE: Final = 2
UPDATE: Final = 3
_WRITER: Final = -1  # not a lock: a wait until nobody's insertion of this key is undecided

# Of each strength those that it conflicts with, as bits.
_CONFLICTS: Final = (1 << UPDATE, 1 << NO_KEY_UPDATE | 1 << UPDATE, 0b1110, 0b1111)


class Point:
    """A moment within a statement at which others may act."""


POINT: Final = Point()

V = TypeVar("V")


class Violation(Exception):
    """A constraint refuses it: a unique index (SQLSTATE 23505), or another one."""

    def __init__(self, table: str, sqlstate: str = "23505") -> None:
        super().__init__(table)
        self.sqlstate = sqlstate


class Victim(Exception):
    """It waits for somebody who waits for it: SQLSTATE 40P01."""


class Row(Generic[V]):
    """Everything that is known of one key: its committed versions, the undecided one, and who has locked it."""

    __slots__ = ("holders", "key", "pending", "queue", "versions", "writer")

    def __init__(self, key: Any) -> None:
        self.key = key
        self.versions: list[tuple[int, V]] = []  # with the number of the commit that made each
        self.writer: Transaction | None = None
        self.pending: list[tuple[int, V]] = []  # of the writer's statements, by number
        self.holders: dict[Transaction, int] = {}
        self.queue: list[Wait] = []

    def committed(self) -> V | None:
        """The newest committed version."""
        return self.versions[-1][1] if self.versions else None

    def newest(self, transaction: Transaction) -> V | None:
        """The newest version, for who has locked the row."""
        if self.writer is transaction:
            return self.pending[-1][1]
        return self.versions[-1][1] if self.versions else None

    def visible(self, statement: Statement) -> V | None:
        """The version that a statement's snapshot shows."""
        if self.writer is statement.transaction:
            for number, values in reversed(self.pending):
                if number < statement.number:
                    return values
        snapshot = statement.snapshot
        for commit, values in reversed(self.versions):
            if commit <= snapshot:
                return values
        return None


class Wait:
    """Somebody's place in a row's queue. `granted` once the wait is over; `notify` is called then."""

    __slots__ = ("granted", "notify", "row", "strength", "transaction")

    def __init__(self, transaction: Transaction, row: Row[Any], strength: int) -> None:
        self.transaction = transaction
        self.row = row
        self.strength = strength
        self.granted = False
        self.notify: Callable[[], object] | None = None


R = TypeVar("R")
Progress: TypeAlias = Generator["Wait | Point", None, R]  # what a statement yields on its way to its result


class Table(Generic[V]):
    """Rows by their primary key."""

    __slots__ = ("name", "rows")

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows: dict[Any, Row[V]] = {}

    def row(self, key: Any) -> Row[V]:
        """The row of this key, which need not be there."""
        row = self.rows.get(key)
        if row is None:
            row = self.rows[key] = Row(key)
        return row

    def visible(self, key: Any, statement: Statement) -> V | None:
        """What a statement sees under this key."""
        row = self.rows.get(key)
        return None if row is None else row.visible(statement)

    def committed(self, key: Any) -> V | None:
        """What is committed under this key."""
        row = self.rows.get(key)
        return None if row is None else row.committed()


class Change(NamedTuple):
    """What a commit did to one row."""

    table: Table[Any]
    before: Any
    after: Any


class Transaction:
    """Begun, and then committed or rolled back."""

    __slots__ = (
        "began",
        "chosen",
        "database",
        "fenced",
        "id",
        "idle_limit",
        "locked",
        "noticed",
        "notifies",
        "number",
        "over",
        "snapshot",
        "waits",
        "written",
    )

    def __init__(self, database: Database) -> None:
        self.database = database
        self.began = database.clock()
        database.begun += 1
        self.id = database.begun  # `txid_current()`
        self.idle_limit: float | None = None  # seconds without a statement, after which whoever holds it may end it
        self.number = 0  # of its statements
        self.snapshot = 0  # the commits that the last of them sees
        self.locked: list[Row[Any]] = []
        self.written: list[tuple[Table[Any], Row[Any]]] = []
        self.fenced: set[str] = set()  # the runs whose leases were locked so that they can start children
        self.noticed: list[tuple[str, int]] = []  # the signals that a statement has locked, for the next one
        self.chosen: dict[str, Any] = {}  # likewise what is chosen of queues and partitions
        self.notifies: list[str] = []  # channels on which something is said when it commits
        self.waits: Wait | None = None
        self.over = False

    def statement(self) -> Statement:
        """Begin the next statement: its snapshot is taken now."""
        self.number += 1
        self.snapshot = self.database.commits
        return Statement(self)

    def commit(self) -> int:
        """Make all that was written durable and visible, and let go of all locks. The commit's number."""
        database = self.database
        if self.written:
            database.commits += 1
            changes: list[Change] = []
            for table, row in self.written:
                after = row.pending[-1][1]
                changes.append(Change(table, row.committed(), after))
                row.versions.append((database.commits, after))
                row.pending, row.writer = [], None
            if database.audit is not None:
                database.audit(database.commits, changes)
        self._end()
        for channel in self.notifies:
            database.notify(channel)
        return database.commits

    def roll_back(self) -> None:
        """Forget all that was written, and let go of all locks."""
        if self.waits is not None:
            if not self.waits.granted:
                self.waits.row.queue.remove(self.waits)
                serve(self.waits.row)
            self.waits = None
        for _, row in self.written:
            row.pending, row.writer = [], None
        self._end()

    def _end(self) -> None:
        self.over = True
        for row in self.locked:
            del row.holders[self]
        for row in self.locked:
            if row.queue:
                serve(row)
        self.locked, self.written = [], []


class Statement:
    """One statement of a transaction, and what it may do to rows."""

    __slots__ = ("clock", "database", "now", "number", "snapshot", "transaction")

    def __init__(self, transaction: Transaction) -> None:
        self.transaction = transaction
        self.database = transaction.database
        self.number = transaction.number
        self.snapshot = transaction.database.commits
        self.now = transaction.began
        self.clock = transaction.database.clock

    def lock(self, row: Row[V], strength: int, *, skips: bool = False) -> Progress[bool]:
        """Lock a row, waiting if needs be. Returns whether it is locked: always, unless it `skips` what is locked."""
        transaction = self.transaction
        held = row.holders.get(transaction)
        if held is not None and held >= strength:
            return True
        if _free(row, transaction, strength):
            _grant(row, transaction, strength)
            return True
        if skips:
            return False
        yield from _waited(row, transaction, strength)
        return True

    def locked(
        self, table: Table[V], key: Any, strength: int, holds: Callable[[V], bool] | None = None, *, skips: bool = False
    ) -> Progress[V | None]:
        """`SELECT … WHERE key AND holds FOR …` of one row: its newest version, or None.

        What the snapshot shows must hold, and then what is newest when the lock is granted.
        """
        row = table.rows.get(key)
        seen = None if row is None else row.visible(self)
        if row is None or seen is None or (holds is not None and not holds(seen)):
            return None
        yield POINT
        if not (yield from self.lock(row, strength, skips=skips)):
            return None
        newest = row.newest(self.transaction)
        if newest is not seen and newest is not None and holds is not None and not holds(newest):
            return None  # and the lock is kept all the same
        return newest

    def update(
        self, table: Table[V], key: Any, holds: Callable[[V], bool] | None, changed: Callable[[V], V]
    ) -> Progress[V | None]:
        """`UPDATE … WHERE key AND holds` of one row: its new version, or None."""
        row = table.rows.get(key)
        seen = None if row is None else row.visible(self)
        if row is None or seen is None or (holds is not None and not holds(seen)):
            return None
        strength = self.database.strength(table, seen, changed(seen))
        yield from self.lock(row, strength)
        newest = row.newest(self.transaction)
        if newest is None or (newest is not seen and holds is not None and not holds(newest)):
            return None
        after = changed(newest)
        stronger = self.database.strength(table, newest, after)
        if stronger > strength:
            yield from self.lock(row, stronger)
        self.write(table, row, after)
        return after

    def insert(self, table: Table[V], key: Any, values: V, *, ignores: bool = True) -> Progress[bool]:
        """Insert a row, or find that it is there: whether it was inserted. `Violation` unless it `ignores` conflicts.

        One that is there, and is being changed, is waited for: it might be gone then.
        """
        row = table.row(key)
        yield from self.undecided(row)
        if row.versions or row.writer is not None:
            if not ignores:
                raise Violation(table.name)
            return False
        _grant(row, self.transaction, UPDATE)
        self.write(table, row, values)
        return True

    def undecided(self, row: Row[Any]) -> Progress[None]:
        """Wait, as a unique index does, until nobody else's writing of this row is undecided."""
        while row.writer is not None and row.writer is not self.transaction:
            yield from _waited(row, self.transaction, _WRITER)

    def upsert(
        self,
        table: Table[V],
        key: Any,
        values: V,
        columns: frozenset[str],
        holds: Callable[[V], bool],
        changed: Callable[[V], V],
    ) -> Progress[V | None]:
        """`INSERT … ON CONFLICT DO UPDATE SET columns WHERE holds`: the new version, or None.

        The lock is as strong as the columns that are named ask for, whatever becomes of their values.
        """
        row = table.row(key)
        while not row.versions and row.writer is not None and row.writer is not self.transaction:
            yield from _waited(row, self.transaction, _WRITER)
        if not row.versions and row.writer is None:
            yield from self.insert(table, key, values)
            return values
        strength = UPDATE if columns & self.database.keys[table.name] else NO_KEY_UPDATE
        yield from self.lock(row, strength)
        newest = row.newest(self.transaction)
        if newest is None or not holds(newest):
            return None
        after = changed(newest)
        self.write(table, row, after)
        return after

    def write(self, table: Table[V], row: Row[V], values: V) -> None:
        """Put a version in place of a row that is locked."""
        if row.writer is None:
            row.writer = self.transaction
            self.transaction.written.append((table, row))
        row.pending.append((self.number, values))


class Database:
    """Tables, their key columns, and the history of commits.

    `clock` reads the server's clock, in seconds. `keys` names each table's key columns. `audit` is called with each
    commit's number and changes, before anybody else can act. `spares` is asked of who closes a circle of waits: true
    leaves it waiting, and whoever answers so sees to it that another becomes the victim. `on_notify` is told the channels of
    what is committed.
    """

    def __init__(
        self, tables: Sequence[Table[Any]], keys: dict[str, frozenset[str]], clock: Callable[[], float]
    ) -> None:
        self.tables = tables
        self.keys = keys
        self.clock = clock
        self.commits = 0
        self.begun = 0
        self.audit: Callable[[int, list[Change]], object] | None = None
        self.spares: Callable[[Transaction], bool] | None = None
        self.on_notify: Callable[[str], object] | None = None

    def begin(self) -> Transaction:
        """A new transaction."""
        return Transaction(self)

    def notify(self, channel: str) -> None:
        """Say something on a channel."""
        if self.on_notify is not None:
            self.on_notify(channel)

    def strength(self, table: Table[Any], before: Any, after: Any) -> int:
        """How strong a lock a change from `before` to `after` takes."""
        changed = any(getattr(before, column) != getattr(after, column) for column in self.keys[table.name])
        return UPDATE if changed else NO_KEY_UPDATE

    def fail_over(self, commits: int) -> None:
        """Go on as a standby that had received this many commits. What is undecided is gone."""
        for table in self.tables:
            for row in table.rows.values():
                row.pending, row.writer, row.holders, row.queue = [], None, {}, []
                while row.versions and row.versions[-1][0] > commits:
                    row.versions.pop()
        self.commits = commits


def _free(row: Row[Any], transaction: Transaction, strength: int) -> bool:
    if not row.holders:
        return True
    conflicts = _CONFLICTS[strength]
    return not any(conflicts >> held & 1 and holder is not transaction for holder, held in row.holders.items())


def _grant(row: Row[Any], transaction: Transaction, strength: int) -> None:
    held = row.holders.get(transaction)
    if held is None:
        transaction.locked.append(row)
    if held is None or held < strength:
        row.holders[transaction] = strength


def _waited(row: Row[Any], transaction: Transaction, strength: int) -> Progress[None]:
    wait = transaction.waits = Wait(transaction, row, strength)
    row.queue.append(wait)
    spares = transaction.database.spares
    if circular(wait) and (spares is None or not spares(transaction)):
        row.queue.remove(wait)
        transaction.waits = None
        serve(row)
        raise Victim
    while not wait.granted:
        yield wait
    transaction.waits = None


def circular(wait: Wait) -> bool:
    """Whether this wait ends only when its own transaction does."""
    return _waits_for(wait, wait.transaction, set())


def serve(row: Row[Any]) -> None:
    """Let those in who need not wait any more."""
    for wait in list(row.queue):
        if not any(True for _ in _in_the_way(wait)):
            row.queue.remove(wait)
            wait.granted = True
            if wait.strength != _WRITER:
                _grant(row, wait.transaction, wait.strength)
            if wait.notify is not None:
                wait.notify()


def _in_the_way(wait: Wait) -> Iterator[Transaction]:
    row = wait.row
    if wait.strength == _WRITER:
        if row.writer is not None and row.writer is not wait.transaction:
            yield row.writer
        return
    conflicts = _CONFLICTS[wait.strength]
    for holder, held in row.holders.items():
        if conflicts >> held & 1 and holder is not wait.transaction:
            yield holder
    for earlier in row.queue:
        if earlier is wait:
            return
        if earlier.strength != _WRITER and conflicts >> earlier.strength & 1:
            yield earlier.transaction


def _waits_for(wait: Wait, transaction: Transaction, seen: set[Transaction]) -> bool:
    for other in _in_the_way(wait):
        if other is transaction:
            return True
        if other not in seen:
            seen.add(other)
            if other.waits is not None and not other.waits.granted and _waits_for(other.waits, transaction, seen):
                return True
    return False
