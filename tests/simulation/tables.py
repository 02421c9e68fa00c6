"""The tables that the model has: the store's five, and two of a user whose steps work in transactions."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, cast

from simulation.database import Database, Table

__all__ = [
    "ACCOUNTS",
    "KEY_COLUMNS",
    "Account",
    "Effect",
    "Header",
    "Lane",
    "Lease",
    "Limited",
    "Result",
    "Schedule",
    "Signal",
    "Step",
    "Tables",
    "Ticked",
    "Worker",
    "new_database",
]


class Lease(NamedTuple):
    """A row of `durable_locks`."""

    workflow_id: str
    epoch: int
    owner_token: str | None
    owner: str | None
    expires_at: float
    route: str | None = None
    priority: int | None = None
    due_at: float | None = None


class Header(NamedTuple):
    """A row of `durable_snapshots`; the document is never changed in place."""

    id: str
    snapshot: dict[str, Any]
    updated_at: float

    @property
    def status(self) -> Any:
        """`snapshot->'execution'->>'status'`."""
        execution = self.snapshot.get("execution")
        return cast(dict[str, Any], execution).get("status") if isinstance(execution, dict) else None


class Step(NamedTuple):
    """A row of `durable_steps`."""

    workflow_id: str
    seq: int
    key: str
    kind: str
    nonce: int
    epoch: int
    record: str
    created_at: float


class Signal(NamedTuple):
    """A row of `durable_signals`."""

    number: int
    workflow_id: str
    name: str
    payload: str
    nonce: int
    noticed: bool = False


class Worker(NamedTuple):
    """A row of `durable_workers`; one that was deleted has no routes, and was never seen."""

    id: str
    routes: tuple[str, ...] = ()
    idle: bool = False
    seen_at: float = -math.inf
    owner: str = ""
    leaving: bool = False


class Schedule(NamedTuple):
    """A row of `durable_schedules`; all that is put is one text, but its timetable."""

    id: str
    timetable: tuple[Any, ...]
    said: str
    revision: int = 1
    due_at: float | None = None


class Ticked(NamedTuple):
    """What a tick has begun for a moment, as rows of its own: a run's id would hide that it was begun twice."""

    id: str
    nonce: int


class Limited(NamedTuple):
    """A row of `durable_queues`, without a rate."""

    name: str
    concurrency: int | None = None
    partition_concurrency: int | None = None


class Lane(NamedTuple):
    """A row of `durable_partitions`."""

    slot: str
    line: str
    turn: float | None = None


class Account(NamedTuple):
    """A row of the user's `accounts`."""

    name: str
    balance: int


class Effect(NamedTuple):
    """A row of the user's `effects`: the execution of a body that has moved something, and where it was."""

    execution: int
    run: str
    site: int
    token: str


@dataclass(frozen=True)
class Tables:
    """The tables, and the sequence of signals."""

    locks: Table[Lease] = field(default_factory=lambda: Table("locks"))
    snapshots: Table[Header] = field(default_factory=lambda: Table("snapshots"))
    steps: Table[Step] = field(default_factory=lambda: Table("steps"))
    signals: Table[Signal] = field(default_factory=lambda: Table("signals"))
    workers: Table[Worker] = field(default_factory=lambda: Table("workers"))
    schedules: Table[Schedule] = field(default_factory=lambda: Table("schedules"))
    ticked: Table[Ticked] = field(default_factory=lambda: Table("ticked"))
    queues: Table[Limited] = field(default_factory=lambda: Table("queues"))
    partitions: Table[Lane] = field(default_factory=lambda: Table("partitions"))
    accounts: Table[Account] = field(default_factory=lambda: Table("accounts"))
    effects: Table[Effect] = field(default_factory=lambda: Table("effects"))
    seqs: dict[str, set[int]] = field(default_factory=dict[str, set[int]])  # an index: of each run, seqs ever inserted
    nonces: dict[str, list[int]] = field(default_factory=dict[str, list[int]])  # likewise of each run's signals
    numbers: list[int] = field(default_factory=lambda: [0])  # a sequence: what a rollback leaves stays used

    drops: list[int] = field(default_factory=lambda: [0])  # so many records are dropped next, as by a trigger
    weights: list[int] = field(default_factory=lambda: [1])  # bytes that one of a record stands for, where it is read
    pages: list[int] = field(default_factory=lambda: [0])  # so many followed upon the first of a journal
    dropped: Counter[tuple[str, int, int]] = field(default_factory=Counter[tuple[str, int, int]])  # run, seq, nonce
    started: list[float] = field(default_factory=lambda: [-math.inf])  # when the server was, by its clock

    def all(self) -> tuple[Table[Any], ...]:
        """The tables, in the order in which everybody locks."""
        return self.locks, self.snapshots, self.steps, self.signals, self.workers, *self._rest()

    def _rest(self) -> tuple[Table[Any], ...]:
        return self.schedules, self.ticked, self.queues, self.partitions, self.accounts, self.effects


ACCOUNTS: Final = ("a", "b")

# The columns that some unique index is over. Without the one on (workflow_id, owner_token) the fence has a hole.
KEY_COLUMNS: Final[Mapping[str, frozenset[str]]] = {
    "locks": frozenset({"workflow_id", "owner_token"}),
    "snapshots": frozenset({"id"}),
    "steps": frozenset({"workflow_id", "seq"}),
    "signals": frozenset({"number", "workflow_id", "nonce"}),
    "workers": frozenset({"id"}),
    "schedules": frozenset({"id"}),
    "ticked": frozenset({"id", "nonce"}),
    "queues": frozenset({"name"}),
    "partitions": frozenset({"slot", "line"}),
    "accounts": frozenset({"name"}),
    "effects": frozenset({"execution"}),
}


def new_database(
    clock: Callable[[], float], keys: Mapping[str, frozenset[str]] = KEY_COLUMNS
) -> tuple[Database, Tables]:
    """A database with empty tables, but for the user's two accounts."""
    tables = Tables()
    for name in ACCOUNTS:
        tables.accounts.row(name).versions.append((0, Account(name, 0)))
    return Database(tables.all(), dict(keys), clock), tables


# As a record has one, and as a record within JSON has one. They hold paths: how long they are is this checkout's affair.
_TRACEBACK: Final = re.compile(r'"traceback":"(?:[^"\\]|\\.)*"|\\"traceback\\":\\".*?(?<!\\)\\"')

_USUAL: Final = 500


def octets_of(text: str) -> int:
    """The length of a record, or of the JSON of several, about: a traceback counts as one of usual length."""
    rest, tracebacks = _TRACEBACK.subn("", text) if "traceback" in text else (text, 0)
    return len(rest) + tracebacks * _USUAL


class Result(NamedTuple):
    """What a statement answers: its rows, how many it wrote or returned, and the bytes of journals among them."""

    rows: list[tuple[Any, ...]]
    rowcount: int
    octets: int = 0
