"""Bugs of starts and workers that the simulation must find; see `planted_bugs`."""

from __future__ import annotations

import math
from typing import Any, Final

from durable._engine import live_runs
from durable._engine.children import name_child
from durable._engine.starts import NewRun
from durable._engine.workers import Ask, WorkerState
from durable.stores._postgres.polls import Polling
from durable.stores._postgres.worker_statements import WorkerStatements
from durable.stores.requests import Enqueue
from harness.planted_bugs import Bug
from simulation import life, queue_statements, slots, worker, worker_statements
from simulation import statements as sql
from simulation.crews import crewed, kindred, limited, ticking, waiting
from simulation.database import NO_KEY_UPDATE, UPDATE
from simulation.life import acting
from simulation.rows import names_awaited
from simulation.simulate import Conditions
from simulation.statements import STATEMENTS
from simulation.tables import Lane, Lease, Result, Tables

__all__ = ["WORKER_BUGS"]


def _with(**statements: Any) -> Conditions:
    return Conditions(statements={**STATEMENTS, **statements})


# -- what is taken ----------------------------------------------------------------------------------------------------


def _due_whoever_holds_it(lease: Lease, now: float) -> bool:
    return lease.due_at is not None and (lease.owner_token is not None or lease.due_at <= now)


def _due_by_its_moment(lease: Lease, now: float) -> bool:
    return lease.due_at is not None and lease.due_at <= now


def _same_epoch(lease: Lease) -> int:
    return max(1, lease.epoch)


def _of_every_route(tables: Tables, statement: Any, values: Any) -> Any:
    leases = (tables.locks.visible(key, statement) for key in list(tables.locks.rows))
    routes = sorted({lease.route for lease in leases if lease is not None and lease.route})
    queues = ["none"] * len(routes)
    return (yield from STATEMENTS["poll"](tables, statement, {**values, "routes": routes, "route_queues": queues}))


# -- when it is due ---------------------------------------------------------------------------------------------------


def _without_a_moment(statement: Any, *_: Any, **__: Any) -> Any:
    def given_back(lease: Lease) -> Lease:
        return lease._replace(owner_token=None, owner=None, expires_at=statement.clock(), due_at=None)

    return given_back


def _only_the_lease(tables: Tables, statement: Any, values: Any) -> Any:
    """A renewal that leaves when the run is due."""
    before = {key: tables.locks.visible(key, statement) for key in values[0]}
    result = yield from STATEMENTS["renew"](tables, statement, values)
    for run_id, lease in before.items():
        row = tables.locks.row(run_id)
        if lease is not None and row.writer is statement.transaction:
            statement.write(tables.locks, row, row.pending[-1][1]._replace(due_at=lease.due_at))
    return result


def _nothing(*_: Any) -> Any:
    yield from ()
    return Result([], 0)


# -- schedules ----------------------------------------------------------------------------------------------------------


def _whatever_it_is_due(row: Any, revision: int, due_at: float | None) -> bool:
    return True


# -- limits -----------------------------------------------------------------------------------------------------------


def _not_alone(tables: Tables, statement: Any, name: str) -> Any:
    """No lock on the queue's row."""
    yield from ()
    return tables.queues.visible(name, statement)


def _counted_as_it_locks(tables: Tables, statement: Any, values: Any) -> Any:
    """What is held, as the statement sees it that locks the queue's row: a snapshot from before the lock."""
    counted = {slot: _count_held(tables, statement, slot) for slot in [f"{name[:-1]}," for name in values["queues"]]}
    statement.transaction.chosen["counted"] = counted
    return (yield from STATEMENTS["lock_queues"](tables, statement, values))


def _counted_before(tables: Tables, statement: Any, slot_begins: str) -> int:
    counted: dict[str, int] = statement.transaction.chosen["counted"]
    return counted[slot_begins] if slot_begins in counted else _count_held(tables, statement, slot_begins)


def _only_closed(tables: Tables, statement: Any, key: tuple[str, str]) -> Any:
    """`WHERE turn IS NULL`, or put off: what is being closed just now does not seem to be."""
    now = statement.clock()

    def is_closed(lane: Lane) -> bool:
        return lane.turn is None or lane.turn > now

    return (yield from statement.locked(tables.partitions, key, NO_KEY_UPDATE, is_closed))


_count_held = queue_statements._count_held


# -- children ---------------------------------------------------------------------------------------------------------


def _drawn_anew(run_id: str, times: int, key: str, **options: Any) -> str:
    """An id that says under which execution of its parent it was drawn."""
    return f"{name_child(run_id, times, key, **options)}-{acting().place.numbers}"


def _told_nothing(*_: Any) -> Any:
    yield from ()


def _none_below(*_: Any) -> set[str]:
    return set()


# -- starts and their notifications -----------------------------------------------------------------------------------


def _woken_by_the_start(tables: Tables, statement: Any, values: Any) -> Any:
    """One that takes an idle worker in its own transaction."""
    for key in list(tables.workers.rows):
        yield from statement.locked(tables.workers, key, UPDATE, lambda row: row.idle)
    return (yield from STATEMENTS["enqueue"](tables, statement, values))


def _idle_said_last(self: WorkerStatements, session: Any, job: Any) -> Any:
    poll = job.payload.poll
    job.payload.poll = _Silent(poll)
    try:
        due = _poll_one(self, session, job)
    finally:
        job.payload.poll = poll
    if poll.says_idle and not due.found:
        session.execute(b"say_idle", job.payload.values())
    return due


class _Silent:
    """A poll that does not say that its worker is idle."""

    says_idle = False

    def __init__(self, poll: Any) -> None:
        self._poll = poll

    def __getattr__(self, name: str) -> Any:
        return getattr(self._poll, name)


_poll_one = WorkerStatements._poll_one


# -- crashes ----------------------------------------------------------------------------------------------------------


def _counted_never(*_: Any) -> None:
    return None


def _counted_whatever_was_written(_: Any, __: Any, taken: Any, execution: Any) -> int | None:
    return None if taken.before.owner_token is None else (execution.get("crashes") or 0) + 1


# -- workers ----------------------------------------------------------------------------------------------------------


def _polls_on(self: WorkerState, now: float) -> Any:
    if self.is_draining and self._held < self._concurrency and self._next_poll <= now < self._leave_at:
        return Ask(1)
    return _decide(self, now)


def _alone(
    self: WorkerState, now: float, asked: Ask, granted: int, next_in: float | None, _: int = 1, **options: Any
) -> None:
    _polled(self, now, asked, granted, next_in, **options)


def _silent(self: WorkerState, now: float, asked: Ask, *args: Any, **options: Any) -> None:
    """That it is idle is forgotten by the poll after the one that said so."""
    said = self._has_said_idle
    _polled(self, now, asked, *args, **options)
    if said:
        self._has_said_idle, self._next_poll = False, now


def _kept_at_the_end(self: Any, granted: Any) -> None:
    """What comes when a worker drains is neither executed nor given back."""
    if not self._state.is_draining:
        _begin(self, granted)
    else:
        self._state.ended(self._clock.elapsed())


def _by_the_last_sending(self: Polling) -> dict[str, Any]:
    values = _values(self)
    return {**values, "name": f"{self.name}.{self._sending - 1}"}


# -- suspension -------------------------------------------------------------------------------------------------------


def _sleeps_for_ever(lease: Lease) -> bool:
    return lease.owner_token is None and lease.due_at == math.inf


def _dead_whoever_sleeps(tables: Tables, statement: Any, values: Any) -> Any:
    """Of leases near by, also those that nothing holds: what their runs are suspended for is no owner."""
    result = yield from STATEMENTS["held_near"](tables, statement, values)
    leases = (tables.locks.visible(key, statement) for key in list(tables.locks.rows))
    rows = [(one.workflow_id, None, one.owner) for one in leases if one is not None and names_awaited(one) is not None]
    return Result([*result.rows, *rows], len(rows))


def _starts_by_itself(life: Any, connection: Any, run: NewRun) -> None:
    """On a connection of the store's own."""
    life.store.perform(Enqueue([run]))


_decide, _polled = WorkerState.decide, WorkerState.polled
_begin = worker._WatchedService._begin
_values = life._Polling.values

_DRAWS: Final[dict[str, Any]] = {"draws": crewed}
_WAITING: Final[dict[str, Any]] = {"draws": waiting}

WORKER_BUGS = [
    Bug(
        "a poll that takes what is held", 300, patches=[(worker_statements, "_is_due", _due_whoever_holds_it)], **_DRAWS
    ),
    Bug(
        "a poll that does not ask when leases end",
        1000,
        patches=[(worker_statements, "_is_due", _due_by_its_moment)],
        first=1360,
        **_DRAWS,
    ),
    Bug("a poll that keeps the epoch", 300, patches=[(worker_statements, "_next_epoch", _same_epoch)], **_DRAWS),
    Bug("a poll of every route", 300, _with(poll=_of_every_route), **_DRAWS),
    Bug("a release without a moment", 300, patches=[(sql, "_given_back", _without_a_moment)], **_DRAWS),
    Bug("a renewal that does not put a run off", 300, _with(renew=_only_the_lease), **_DRAWS),
    Bug("a poll that is not recalled", 1000, _with(recall=_nothing), **_DRAWS),
    Bug(
        "a poll of which one sending is recalled",
        3000,
        patches=[(life._Polling, "values", _by_the_last_sending)],
        first=930,
        **_DRAWS,
    ),
    Bug("dead neighbours that none looks for", 2000, _with(held_near=_nothing), first=1450, **_DRAWS),
    Bug(
        "a tick without compare-and-set",
        300,
        patches=[(worker_statements, "_stands", _whatever_it_is_due)],
        draws=ticking,
    ),
    Bug(
        "no lock on the queue's row",
        300,
        patches=[(queue_statements, "_alone", _not_alone)],
        first=90,
        draws=limited,
    ),
    Bug(
        "count in the locking statement",
        3000,
        _with(lock_queues=_counted_as_it_locks),
        patches=[(queue_statements, "_count_held", _counted_before)],
        first=960,
        draws=limited,
    ),
    Bug(
        "a partition is opened only where it is closed",
        3000,
        patches=[(slots, "_closed_or_not", _only_closed)],
        first=410,
        draws=limited,
    ),
    Bug("a child that is started twice", 1000, patches=[(live_runs, "name_child", _drawn_anew)], draws=kindred),
    Bug("a parent that sleeps on", 300, patches=[(sql, "told_of_end", _told_nothing)], draws=kindred),
    Bug("a cancellation that does not go down", 1000, patches=[(sql, "_below", _none_below)], draws=kindred),
    Bug("a start that takes an idle worker", 300, _with(enqueue=_woken_by_the_start), **_DRAWS),
    Bug("idle said after the last poll", 3000, patches=[(WorkerStatements, "_poll_one", _idle_said_last)], **_DRAWS),
    Bug("deaths that are not counted", 1000, patches=[(worker_statements, "_count_crashes", _counted_never)], **_DRAWS),
    Bug(
        "deaths counted in spite of progress",
        1000,
        patches=[(worker_statements, "_count_crashes", _counted_whatever_was_written)],
        **_DRAWS,
    ),
    Bug("workers that poll as if each was alone", 300, patches=[(WorkerState, "polled", _alone)], **_DRAWS),
    Bug("a worker that forgets that it is idle", 300, patches=[(WorkerState, "polled", _silent)], **_DRAWS),
    Bug("a drained worker that polls on", 300, patches=[(WorkerState, "decide", _polls_on)], **_DRAWS),
    Bug(
        "what is granted at the end is kept",
        3000,
        patches=[(worker._WatchedService, "_begin", _kept_at_the_end)],
        first=140,
        **_DRAWS,
    ),
    # Where signals are sent in transactions of others: what is sent by itself wakes its run, too. (That a notice reads the lease
    # without its lock, few seeds show: `test_suspended_runs` plants it in all orders of the statements.)
    Bug(
        "only runs that wait for ever are woken",
        300,
        _with(wake_awaiting=_nothing),
        patches=[(worker_statements, "_is_asleep", _sleeps_for_ever)],
        **_WAITING,
    ),
    Bug(
        "a start that is not undone with its transaction",
        300,
        patches=[(life.Life, "start_within", _starts_by_itself)],
        **_WAITING,
    ),
    Bug("sleepers that are taken for dead neighbours", 300, _with(held_near=_dead_whoever_sleeps), **_WAITING),
]
