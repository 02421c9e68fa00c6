"""The memory store against PostgreSQL: the same verbs in the same order answer the same, and leave the same documents."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec
import pytest
from msgspec import structs

from durable._engine.decisions import Claim, ClaimReply, Granted
from durable._engine.leases import Lease
from durable.errors import DurableError
from durable.snapshot import Execution, Kind, Record, Status
from durable.stores import MemoryStore, PostgresStore, memory
from durable.testing.run_stores import alive, granted
from support import Database

HISTORIES: Final = int(os.environ.get("DURABLE_DIFFERENTIAL", "150")) // 5
MOST: Final = 10  # times as many, until everything has occurred
IDS: Final = ("a", "b")
MOMENTS: Final = frozenset({"lastUpdated", "completedAt", "last_updated", "completed_at"})

DOCUMENTS: Final[tuple[dict[str, Any], ...]] = (
    {"formatVersion": 1, "steps": {}, "execution": {"status": "running"}},
    {"formatVersion": 1, "workflowName": "", "steps": {}, "execution": {"status": "completed"}},
    {"formatVersion": 1, "workflowName": "w", "steps": {}, "execution": {"status": "failed"}},
    {
        "formatVersion": 1,
        "workflowName": "w",
        "steps": {},
        "execution": {"status": "running"},
        "metadata": {"version": 2},
    },
)

OCCURS: Final = frozenset(
    [f"{verb}: {error}" for verb in ("checkpoint", "finish") for error in ("LeaseLost", "RunCancelled", "None")]
    + [f"{verb}: ConcurrentExecution" for verb in ("save", "delete")]
    + [f"{verb}: {answer}" for verb in ("cancel", "replace") for answer in (True, False)]
    + [f"begin: refused, {why}" for why in ("held", "completed", "running", "failed", "cancelled", "not there")]
    + ["begin: granted, anew", "begin: granted, again", "receive: something", "receive: nothing", "save: None"]
    + ["delete: None", "release: None", "signal: None", "load: something", "load: nothing", "end_lease: None"]
)


class Pair(NamedTuple):
    """One lease, as each store has granted it."""

    memory: Lease
    postgres: Lease


class Verbs:
    """A history by chance, performed by both stores."""

    def __init__(self, database: Database, stores: tuple[MemoryStore, PostgresStore], seen: Counter[str]) -> None:
        self.database = database
        self.memory, self.postgres = stores
        self.seen = seen
        self.history: list[str] = []

    def perform(self, seed: int, verbs: int) -> None:
        """So many verbs upon runs that neither has seen, and then what they have left."""
        self.chance = random.Random(seed)
        self.ids = [f"{seed}-{run_id}" for run_id in IDS]
        self.leases: list[Pair] = []
        self.seq, self.sent = 0, 0
        self.loaded: dict[str, Any] = {}
        self.history = [f"seed {seed}"]
        for _ in range(verbs):
            run_id = self.chance.choice(self.ids)
            verb = self.chance.choice((*OF_RUNS, *(OF_LEASES if self.leases else ())))
            verb(self, run_id)
        for run_id in self.ids:
            self.load(run_id)
            self.memory.delete(run_id, force=True)  # for both would be called the newest, and be renewed
            self.postgres.delete(run_id, force=True)

    def begin(self, run_id: str) -> None:
        chance = self.chance
        claim = Claim(
            run_id=run_id,
            workflow=chance.choice(("w", "w", "w", "other")),
            version=chance.choice((1, 1, 1, 2)),
            seconds=1000.0,
            input=chance.choice((None, b'{"b": 1, "a": 2}')),
            input_hash=chance.choice((None, None, "h")),
            after_failure=chance.random() < 0.7,
            create=chance.random() < 0.8,
        )
        mine, its = self._both("begin", claim, lambda store, _: store.begin(claim, alive))
        self._same("begin", reply(mine), reply(its))
        if isinstance(mine, Granted) and isinstance(its, Granted):
            self.leases.append(Pair(mine.lease, its.lease))
            self.seen["begin: granted, " + ("anew" if its.lease.epoch == 1 else "again")] += 1
        else:
            status = "not there" if mine.header is None else str(mine.header.execution.status)
            self.seen["begin: refused, " + ("held" if mine.owner else status)] += 1

    def checkpoint(self, _: str) -> None:
        pair, record = self._lease(), self._record(Kind.STEP)
        self._told("checkpoint", (pair.memory, record), lambda store, n: store.checkpoint(pair[n], record))

    def finish(self, _: str) -> None:
        pair, status = self._lease(), self.chance.choice((Status.COMPLETED, Status.FAILED))
        record = self._record(Kind.RESULT if status is Status.COMPLETED else Kind.FAILURE)
        self._told("finish", (pair.memory, status), lambda store, n: store.finish(pair[n], status, record))

    def release(self, _: str) -> None:
        pair, status = self._lease(), self.chance.choice((None, Status.FAILED))
        self._told("release", (pair.memory, status), lambda store, n: store.release(pair[n], status))

    def cancel(self, run_id: str) -> None:
        self._told("cancel", run_id, lambda store, _: store.cancel(run_id))

    def signal(self, run_id: str) -> None:
        self.sent += 1
        payload, name = str(self.sent), self.chance.choice("st")
        self._told("signal", (run_id, name, payload), lambda store, _: store.signal(run_id, name, payload))

    def receive(self, _: str) -> None:
        """The numbers are each store's own; the payloads tell the signals apart."""
        pair, name = self._lease(), self.chance.choice("st")
        taken: tuple[list[int], list[int]] = ([], [])
        for _n in range(self.chance.choice((1, 2, 3))):
            mine, its = self._both("receive", name, lambda store, n: store.receive(pair[n], name, taken[n]))
            self._same("receive", mine and mine[1], its and its[1])
            self.seen["receive: " + ("something" if mine else "nothing")] += 1
            if mine and its:
                taken[0].append(mine[0])
                taken[1].append(its[0])

    def load(self, run_id: str) -> None:
        mine, its = self._both("load", run_id, lambda store, _: store.load(run_id))
        self._same("load", plain(mine), plain(its))
        self.seen["load: " + ("something" if mine else "nothing")] += 1
        if mine:
            self.loaded[run_id] = mine, its

    def replace(self, run_id: str) -> None:
        """What was loaded, perhaps long ago."""
        if run_id in self.loaded:
            old = self.loaded[run_id]
            new = msgspec.convert(self.chance.choice(DOCUMENTS), type(old[0]))
            self._told("replace", run_id, lambda store, n: store.replace(run_id, old[n], new))

    def save(self, run_id: str) -> None:
        document = self.chance.choice(DOCUMENTS)
        self._told("save", (run_id, document), lambda store, _: store.save(run_id, document))

    def delete(self, run_id: str) -> None:
        self._told("delete", run_id, lambda store, _: store.delete(run_id))

    def end_lease(self, run_id: str) -> None:
        """As if its time had passed."""
        self.history.append(f"end_lease {run_id}")
        self.seen["end_lease: None"] += 1
        self.database.end_lease(run_id)
        if run := self.memory._runs.get(run_id):
            run.expires = -1.0

    def _lease(self) -> Pair:
        return self.chance.choice(self.leases[-3:])

    def _record(self, kind: Kind) -> Record:
        """In a place of its own, as the engine's are: an occupied one is the PostgreSQL store's to refuse."""
        self.seq += 1
        if kind is Kind.STEP:
            return Record(self.seq, f"k{self.seq}", kind, '{"name":"x","ok":true,"value":[1.0,1e3]}')
        error = '{"error":{"type":"builtins:ValueError","message":"no"}}'
        return Record(self.seq, kind, kind, '"done"' if kind is Kind.RESULT else error)

    def _both(self, verb: str, what: object, call: Callable[[Any, int], Any]) -> tuple[Any, Any]:
        self.history.append(f"{verb} {what}")
        return called(call, self.memory, 0), called(call, self.postgres, 1)

    def _told(self, verb: str, what: object, call: Callable[[Any, int], Any]) -> None:
        mine, its = self._both(verb, what, call)
        self._same(verb, mine, its)
        self.seen[f"{verb}: {mine}"] += 1

    def _same(self, verb: str, mine: object, its: object) -> None:
        assert mine == its, "\n".join([*self.history, f"{verb}: in memory {mine}", f"PostgreSQL {its}"])


OF_RUNS: Final = (
    Verbs.begin,
    Verbs.begin,
    Verbs.begin,
    Verbs.cancel,
    Verbs.signal,
    Verbs.load,
    Verbs.replace,
    Verbs.save,
    Verbs.delete,
    Verbs.end_lease,
)
OF_LEASES: Final = (
    Verbs.checkpoint,
    Verbs.checkpoint,
    Verbs.checkpoint,
    Verbs.finish,
    Verbs.finish,
    Verbs.release,
    Verbs.receive,
    Verbs.receive,
)


def test_memory_and_postgresql_answer_and_leave_the_same(database: Database) -> None:
    """Until each verb has answered in each of its ways, and each error has been raised."""
    seen: Counter[str] = Counter()
    with memory() as in_memory, database.store() as postgres:
        verbs = Verbs(database, (in_memory, postgres), seen)
        for seed in range(HISTORIES * MOST):
            if seed >= HISTORIES and not OCCURS - seen.keys():
                break
            verbs.perform(seed, 40)
    assert not OCCURS - seen.keys(), (OCCURS - seen.keys(), seen)


@pytest.mark.parametrize("kind", ["memory", "postgres"])
def test_what_takes_a_runs_place_says_when(database: Database, kind: str) -> None:
    """A document without a moment gets one, whether it was saved or replaces another."""
    with memory() if kind == "memory" else database.store() as store:
        store.save("run", DOCUMENTS[0])
        old = store.load("run")
        assert old is not None
        assert old.execution.last_updated
        new = structs.replace(old, execution=Execution(Status.RUNNING), metadata={"version": 2})
        assert store.replace("run", old, new)
        replaced = store.load("run")
        assert replaced is not None
        assert replaced.execution.last_updated


@pytest.mark.parametrize("kind", ["memory", "postgres"])
def test_what_is_deleted_has_no_signals_whether_it_was_there_or_not(database: Database, kind: str) -> None:
    """Else a run that is begun under this id would receive what was sent to another."""
    with memory() if kind == "memory" else database.store() as store:
        store.signal("run", "s", "1")
        store.delete("run")
        claim = Claim(run_id="run", workflow="w", version=1, seconds=30.0)
        assert store.receive(granted(store.begin(claim, alive)).lease, "s", []) is None


def called(call: Callable[[Any, int], Any], store: object, number: int) -> Any:
    """The reply, or the name of the error."""
    try:
        return call(store, number)
    except DurableError as problem:
        return type(problem).__name__


def reply(answer: ClaimReply) -> Any:
    """A claim's reply without token, owner, time and epoch, which are each store's own (in memory a save counts as one)."""
    records = [(record.seq, record.key, record.kind, json.loads(record.text)) for record in answer.records]
    if isinstance(answer, Granted):
        return "granted", plain(answer.header), records
    return "refused", answer.owner is not None, answer.expires_in is not None, plain(answer.header), records


def plain(value: Any) -> Any:
    """Its content, with moments as there or not."""
    return without_moments(msgspec.json.decode(msgspec.json.encode(value)))


def without_moments(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: name in MOMENTS or without_moments(part) for name, part in value.items()}
    return value
