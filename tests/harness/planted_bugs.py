"""Bugs that the simulation must find: each is what somebody might have written instead. None of them is in the product."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch
from weakref import WeakKeyDictionary

from greenlet import GreenletExit
from msgspec.structs import replace

from durable._engine import batches, journal_writes, leases, retry_cut, runs
from durable._engine.batches import Entry
from durable._engine.causes import InFlight
from durable._engine.journal import Journal
from durable._engine.leases import Lease
from durable._engine.lines import Cut
from durable._engine.steps import LiveExecution
from durable._runtime import async_runs, async_steps
from durable._runtime.context import current_frame
from durable._runtime.mapping import MapItems, map_async
from durable.errors import StoreUnavailable
from durable.stores._postgres import statements
from durable.stores._postgres.claims import Found, claim_row
from durable.stores._postgres.jobs import Writing
from durable.stores._postgres.sender import Sender
from durable.stores._postgres.statements import Statements
from durable.stores.requests import Checkpoint
from simulation import life, threads, wire
from simulation import statements as sql
from simulation.database import POINT
from simulation.life import acting
from simulation.rows import appended
from simulation.scenario import Scenario, generated
from simulation.simulate import Conditions, Outcome, simulated
from simulation.statements import STATEMENTS
from simulation.tables import KEY_COLUMNS, Result, Step, Tables

_SOUND = Conditions()


@dataclass(frozen=True)
class Bug:
    """`budget` seeds from 0 are enough to find it; the tests look for it from the seed `first`, near one that does.

    `conditions` are the database's part of it, `patches` the product's. `draws` makes the scenario of a seed.
    """

    name: str
    budget: int
    conditions: Conditions = _SOUND
    patches: Sequence[tuple[Any, str, Any]] = field(default=())
    first: int = 0
    draws: Callable[[int], Scenario] = generated

    @property
    def file(self) -> str:
        """The name of its file in the corpus."""
        return self.name.replace(" ", "-").replace("'", "")

    @contextmanager
    def planted(self) -> Iterator[None]:
        """The product has it, until it has not."""
        with ExitStack() as stack:
            for owner, name, other in self.patches:
                stack.enter_context(patch.object(owner, name, other))
            yield

    def simulated(self, scenario: Scenario) -> Outcome:
        """What becomes of a scenario with it."""
        with self.planted():
            return simulated(scenario, self.conditions)

    def caught(self, first: int = 0) -> tuple[int, Scenario, Outcome] | None:
        """After how many seeds it is caught, and by what; None when the budget is not enough."""
        with self.planted():
            for seed in range(first, first + self.budget):
                scenario = self.draws(seed)
                outcome = simulated(scenario, self.conditions)
                if outcome.broken is not None and outcome.broken.invariant != "crash":
                    return seed + 1 - first, scenario, outcome
        return None


def _with(**statements: Any) -> Conditions:
    return Conditions(statements={**STATEMENTS, **statements})


# -- the fence ------------------------------------------------------------------------------------------------------


def _unfenced(holds: Any) -> Mapping[str, Any]:
    """A checkpoint that looks at the lease, if at all, and locks nothing."""

    def checkpoint(tables: Tables, statement: Any, values: Any) -> Any:
        seq, key, kind, nonce, record, run_id, token = values
        yield POINT
        written = False
        if holds(tables.locks.visible(run_id, statement), token, statement.now):
            step = Step(run_id, seq, key, kind, nonce, int(token.partition(":")[0]), record, statement.now)
            written = yield from appended(tables, statement, step)
        return Result([], int(written))

    def checkpoint_batch(tables: Tables, statement: Any, values: Any) -> Any:
        missing: list[Any] = []
        for row in sql._records(values[0]):
            names = ("seq", "key", "kind", "nonce", "record", "id", "token")
            result = yield from checkpoint(tables, statement, tuple(row[name] for name in names))
            if not result.rowcount:
                missing.append((row["n"],))
        return Result(missing, len(missing))

    return {"checkpoint": checkpoint, "checkpoint_batch": checkpoint_batch}


def _by_time(lease: Any, token: str, now: float) -> bool:
    return lease is not None and lease.owner_token == token and lease.expires_at > now


def _release_any(tables: Tables, statement: Any, values: Any) -> Any:
    ids, _, *others = values
    tokens = [lease and lease.owner_token for lease in (tables.locks.visible(run_id, statement) for run_id in ids)]
    return (yield from STATEMENTS["release_batch"](tables, statement, (ids, [t or "" for t in tokens], *others)))


# -- time -----------------------------------------------------------------------------------------------------------


def _until_told(lease: Lease, elapsed: float) -> str | None:
    return lease.lost


def _from_the_reply(lease: Lease, _: float) -> None:
    lease.sent = acting().clock.elapsed()
    lease.deadline = lease.sent + lease.seconds


_found = Found
_claim_row = claim_row


def _claimed_at_the_reply(claiming: Any, *args: Any) -> Any:
    claiming.sent = acting().clock.elapsed()
    return _found(claiming, *args)


def _with_own_time(claiming: Any) -> Any:
    life = acting()
    return {**_claim_row(claiming), "now": life.timeline.now + life.place.skew}


def _taken_by_own_time(tables: Tables, statement: Any, values: Any) -> Any:
    now = sql._decode(values["claims"])[0]["now"]
    statement.clock = lambda: now
    return (yield from STATEMENTS["take_leases"](tables, statement, values))


# -- order ----------------------------------------------------------------------------------------------------------


def _load_before_claim() -> Conditions:
    loaded: dict[Any, Any] = {}

    def take_leases(tables: Tables, statement: Any, values: Any) -> Any:
        rows = [
            (run_id, seq, step.key, step.kind)
            for run_id in (asked["id"] for asked in json.loads(values["claims"]))
            for seq in sorted(tables.seqs.get(run_id, ()))
            if (step := tables.steps.visible((run_id, seq), statement)) is not None
        ]
        loaded.clear()
        loaded[statement.transaction] = rows
        for _ in range(5):
            yield POINT
        return (yield from STATEMENTS["take_leases"](tables, statement, values))

    def read_journals(tables: Tables, statement: Any, values: Any) -> Any:
        result = yield from STATEMENTS["read_journals"](tables, statement, values)
        before = loaded.get(statement.transaction)
        rows = [row for row in result.rows if before is None or (row[0], *row[2:5]) in before]
        return Result(rows, len(rows))

    return _with(take_leases=take_leases, read_journals=read_journals)


# -- what is remembered -----------------------------------------------------------------------------------------------


def _never(*_: Any) -> bool:
    return False


def _fate_without_nonce(self: Statements, write: Any, owners: Any, found: Any) -> Any:
    other = Writing(write.lease, write.record, -1)  # as if each sending had drawn another
    return _fate(self, other, owners, found)


_fate = Statements._fate


# -- features of steps ------------------------------------------------------------------------------------------------


async def _mapped_as_they_end(items: MapItems, called: Any) -> list[Any]:
    outcomes: list[Any] = []

    async def ended(key: str, item: Any) -> Any:
        outcomes.append(await called(key, item))
        return outcomes[-1]

    every = await map_async(items, ended)
    return outcomes if len(outcomes) == len(every) else every


def _with_the_late_body(name: str, body: Any) -> Any:
    """A body that was given up is still waited for by the next attempt."""
    frame: Any = current_frame.get()
    late = _late.setdefault(frame.driver, {})
    if frame.inside not in late or late[frame.inside].done():
        late[frame.inside] = _call_on_thread(name, body)
    return late[frame.inside]


_late: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()
_call_on_thread = life.body_on_thread


def _unlocked(tables: Tables, statement: Any, values: Any) -> Any:
    yield POINT
    lease = tables.locks.visible(values[0], statement)
    rows: list[Any] = [] if lease is None else [(lease.owner_token, lease.owner, lease.epoch)]
    return Result(rows, len(rows))


def _committed_before_its_record(self: Any, record: Any) -> None:
    self._session.execute(b"COMMIT")
    self._end()
    acting().store.perform(Checkpoint(self._lease, record))


def _taken_for_undone(self: Any, _: Any, problem: Any) -> None:
    raise self._lost(problem)


# -- failing and being left -------------------------------------------------------------------------------------------


def _recorded_after(self: Journal, tags: frozenset[str]) -> tuple[str, ...]:
    """The steps that have a value, and were recorded after a step whose exception ended the run."""
    order = list(self._settled)
    failed = [place for place, key in enumerate(order) if key in tags]
    return tuple(key for key in order[min(failed, default=len(order)) :] if self._settled[key].ok)


_with_circumstances = journal_writes._with_circumstances
_draw = LiveExecution.draw
_retried = retry_cut.cut


def _marked_without_epoch(*args: Any) -> Any:
    return replace(_with_circumstances(*args), left=None)


def _called_all_the_same(self: LiveExecution, *args: Any, **options: Any) -> Any:
    given: list[Any] = [replace(arg, interruption=None) if isinstance(arg, InFlight) else arg for arg in args]
    return _draw(self, *given, **options)


def _cut_of_one(journal: Any, from_step: str | None = None, *, run_id: str = "?") -> Any:
    """The step itself, and nothing that started after it."""
    found = _retried(journal, from_step, run_id=run_id)
    if from_step is None:
        return found
    seqs = tuple(record.seq for record in journal if record.seq in found.seqs and record.key == from_step)
    return Cut((from_step,), seqs)


def _forgotten_but_for_clean_up(self: Journal, left: dict[str, Any]) -> None:
    kept = {key: record for key, record in self._settled.items() if record.cleanup}
    _forget(self, left)
    self._settled |= kept


_forget = Journal._forget


# -- threads, neighbours, cancellations -----------------------------------------------------------------------------------


_start_daemon = life.start_daemon
_answer = Sender._answer


def _of_one_life(name: str, turn: Any, _: Any) -> Any:
    """A thread that is ended by what one of its turns raises, and is not missed."""
    thread = _start_daemon(name, turn, _ended)
    thread.is_alive = lambda: True
    return thread


def _ended(problem: Exception) -> None:
    raise GreenletExit from problem


def _not_started(name: str, turn: Any, failed: Any) -> Any:
    """One that could not be started is taken for started."""
    try:
        return _start_daemon(name, turn, failed)
    except StoreUnavailable:
        thread = threads.Thread(acting(), turn)
        thread.is_alive = lambda: True  # type: ignore[method-assign]
        return thread


def _sent_for_ever(self: Sender, jobs: Any, answers: Any) -> Any:
    """What was dropped is sent again, however often."""
    for job in jobs:
        job.vanished = False
    return _answer(self, jobs, answers)


async def _not_seen_through(waited: Any, _: float) -> Any:
    """A second cancellation is no reason to wait on."""
    return await waited


# -- clocks that are set, lines that are slow ---------------------------------------------------------------------------


def _until_the_wall_clock_says_so(self: LiveExecution, call: Any, began: Any, until: Any, reading: Any) -> Any:
    return _rest(self, call, None, until, reading)


def _due_by_the_wall_clock(self: LiveExecution, call: Any, reading: Any) -> Any:
    if call.due is not None and call.attempt is not None and call.attempt.due is not None:
        call.due = reading.elapsed + (call.attempt.due - reading.at).total_seconds()
    return _next(self, call, reading)


def _in_one_piece(_: int) -> int:
    return 1 << 40


def _in_silence(self: Any, latency: float, octets: int) -> float:
    """No byte is noticed before the last one has come."""
    seconds = _carried(self, latency, octets)
    self._moves_until = 0.0
    return seconds


_rest = LiveExecution.rest
_next = LiveExecution._next
_carried = wire.Wire._carried


# What the simulation has found in the product: with the mend undone, their files in the corpus fail again.
MENDED = [
    Bug(
        "found a finish that was read back as absent",
        0,
        patches=[(Entry, "doubtful", property(lambda entry: entry.unknown, lambda *_: None))],
    ),
    Bug("found a body 2 ms after its lease", 0, patches=[(leases, "_SURE", 1.0)]),
]

BUGS = [
    Bug("no fence", 1000, _with(**_unfenced(lambda *_: True))),
    Bug(
        "the unique index dropped",
        6000,
        Conditions(keys={**KEY_COLUMNS, "locks": frozenset({"workflow_id"})}),
        first=8970,
    ),
    Bug("fence by time", 3000, _with(**_unfenced(_by_time)), first=2690),
    Bug("a hole that nobody notices", 1000, patches=[(statements, "leases_missing_records", lambda *_: ())], first=225),
    Bug("no local deadline", 1000, patches=[(Lease, "why_ended", _until_told)], first=40),
    Bug(
        "deadline counted from the reply",
        1000,
        patches=[(Lease, "renew", _from_the_reply), (statements, "Found", _claimed_at_the_reply)],
        first=1400,
    ),
    Bug("load before claim", 6000, _load_before_claim(), first=5330),
    Bug("acknowledge before commit", 1000, Conditions(early=True)),
    Bug(
        "expiry by the client's clock",
        1000,
        _with(take_leases=_taken_by_own_time),
        [(statements, "claim_row", _with_own_time)],
    ),
    Bug("release without token", 1000, _with(release_batch=_release_any)),
    Bug("automatic keys shared by branches", 1000, patches=[(Journal, "_is_ambiguous", _never)], first=600),
    Bug("failure replayed for ever", 1000, patches=[(Journal, "may_run_again", _never)], first=1),
    Bug("retry after a lost reply without a nonce", 1000, patches=[(Statements, "_fate", _fate_without_nonce)]),
    Bug(
        "a map in the order of completion",
        1000,
        patches=[(async_steps, "map_async", _mapped_as_they_end)],
        first=40,
    ),
    Bug("a transaction without its fence", 1000, _with(transaction_fence=_unlocked), first=570),
    Bug(
        "a transaction whose record comes after it",
        1000,
        patches=[(life.RealTransaction, "commit", _committed_before_its_record)],
    ),
    Bug(
        "a lost COMMIT taken for undone",
        1000,
        patches=[(life.RealTransaction, "_settle", _taken_for_undone)],
        first=140,
    ),
    Bug(
        "the late body of a timeout recorded",
        1000,
        patches=[(life, "body_on_thread", _with_the_late_body)],
        first=290,
    ),
    Bug("judged by journal order", 1000, patches=[(Journal, "drawn_amid", _recorded_after)], first=20),
    Bug(
        "marks without an epoch",
        3000,
        patches=[(journal_writes, "_with_circumstances", _marked_without_epoch)],
        first=125,
    ),
    Bug(
        "the flag read after the grant",
        1000,
        patches=[(sql, "_needs_decision", _never), (runs, "_is_undecided", _never)],
    ),
    Bug("steps begun amid Ctrl-C", 1000, patches=[(LiveExecution, "draw", _called_all_the_same)], first=250),
    Bug("a retry that keeps what came after", 1000, patches=[(retry_cut, "cut", _cut_of_one)], first=30),
    Bug("a thread of one life", 1000, patches=[(life, "start_daemon", _of_one_life)]),
    Bug("a thread that did not start", 1000, patches=[(life, "start_daemon", _not_started)]),
    Bug("a dropped row is sent for ever", 1000, patches=[(life._Sender, "_answer", _sent_for_ever)]),
    Bug(
        "a second cancellation keeps the lease",
        2000,
        patches=[(async_runs, "wait_shielded", _not_seen_through)],
        first=35,
    ),
    Bug(
        "sleeps until the wall clock says so",
        1000,
        patches=[(LiveExecution, "rest", _until_the_wall_clock_says_so)],
        first=55,
    ),
    Bug(
        "back-offs until the wall clock says so",
        3000,
        patches=[(LiveExecution, "_next", _due_by_the_wall_clock)],
        first=170,
    ),
    Bug("a journal in one piece", 1000, patches=[(batches, "page_bytes", _in_one_piece)], first=565),
    Bug("silence counted from the sending", 1000, patches=[(wire.Wire, "_carried", _in_silence)], first=118),
    Bug("clean-up that is kept", 1000, patches=[(Journal, "_forget", _forgotten_but_for_clean_up)]),
]
