"""What people and tools ask of the runs in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from msgspec import UNSET, to_builtins

from durable._common.boundary import public_verbs
from durable._common.checks import check_name
from durable._common.locks import locked
from durable.clocks import Clock
from durable.records import Header, Kind, Record, Status
from durable.stores._memory.queue import Queue
from durable.stores._memory.run import Run
from durable.stores._memory.schedules import Schedules
from durable.stores._memory.signals import Signals
from durable.stores._owner import this_process
from durable.stores.listing import PAGE, Listed
from durable.stores.reading import (
    COUNTED,
    LINES,
    EndedRuns,
    Filter,
    Health,
    LeaseFacts,
    RunLine,
    ScheduleLine,
    SentSignal,
    WorkerLine,
    checked_filter,
    checked_journal,
    checked_lines,
    matches_text,
    names_of_error,
    names_of_step,
    read_line,
)

_DAY: Final = 86_400.0  # seconds


@public_verbs("store", "runs", "count_runs", "header", "journal", "signals", "workers", "schedules", "health")
class ReadingVerbs:
    """The verbs of the store in memory that only read."""

    clock: Clock
    _lock: Any
    _runs: dict[str, Run]
    _signals: Signals
    _queue: Queue
    _schedules: Schedules

    @locked
    def runs(
        self, filter: Filter | None = None, *, limit: int = PAGE, after: RunLine | Listed | None = None
    ) -> Sequence[RunLine]:
        """See `PostgresStore.runs`."""
        limit, last = checked_lines(limit, after)
        return find_lines(self._runs, checked_filter(filter), limit, last, self.clock.elapsed())

    @locked
    def count_runs(self, filter: Filter | None = None, *, limit: int = COUNTED) -> int:
        """See `PostgresStore.count_runs`."""
        limit, _ = checked_lines(limit, None, COUNTED)
        return count_lines(self._runs, checked_filter(filter), limit, self.clock.elapsed())

    @locked
    def header(self, id: str) -> Header | None:
        """See `PostgresStore.header`."""
        run = self._runs.get(check_name("a run's id", id))
        return None if run is None else run.header

    @locked
    def journal(self, id: str, *, after: int | None = None, limit: int = LINES) -> Sequence[Record]:
        """See `PostgresStore.journal`."""
        since, run = checked_journal(id, after, limit), self._runs.get(id)
        return [] if run is None else [record for record in run.journal() if record.seq > since][:limit]

    @locked
    def workers(self) -> Sequence[WorkerLine]:
        """See `PostgresStore.workers`: those of this process."""
        held = sum(run.is_held(self.clock.elapsed()) and run.due_at is not None for run in self._runs.values())
        at = self.clock.now()
        return [WorkerLine(worker, this_process(), (), False, False, at, held) for worker in self._queue.workers()]

    @locked
    def schedules(self) -> Sequence[ScheduleLine]:
        """See `PostgresStore.schedules`."""
        return self._schedules.lines()

    @locked
    def health(self) -> Health:
        """See `PostgresStore.health`; of the server it says nothing, since there is none."""
        return health_of(self._runs.values(), self.clock.now(), self.clock.elapsed())

    @locked
    def signals(self, id: str) -> Sequence[SentSignal]:
        """See `PostgresStore.signals`."""
        return self._signals.sent_to(check_name("a run's id", id))


def health_of(runs: Iterable[Run], at: datetime, now: float) -> Health:
    """How these runs stand at this moment, and at this reading."""
    hours: dict[int, list[int]] = {}
    due, stuck = list[float](), list[float]()
    for run in runs:
        status = "running" if run.header is None else run.header.execution.status
        if (age := (at - run.updated_at).total_seconds()) < _DAY:
            counts = hours.setdefault(max(0, int(age // 3600)), [0, 0])
            counts[0] += status == Status.COMPLETED
            counts[1] += status == Status.FAILED
        if run.is_due(at, now) and run.due_at is not None and run.route is not None:
            waited = (at - run.due_at).total_seconds()
            due.append(waited if run.token is None else min(waited, now - run.expires))
        if status == Status.RUNNING and run.due_at is None and not run.is_held(now):
            stuck.append(age)
    return Health(
        ended=tuple(EndedRuns(ago, *hours[ago]) for ago in sorted(hours)),
        due_for=max(due, default=None),
        stuck=min(len(stuck), COUNTED),
        stuck_for=max(stuck, default=None),
    )


def find_lines(
    runs: Mapping[str, Run], wanted: Filter, limit: int, after: Listed | None, now: float
) -> Sequence[RunLine]:
    """See `PostgresStore.runs`; `now` is the reading."""
    lines = sorted(_matching(runs, wanted, now), key=_newest_last, reverse=True)
    last = None if after is None else (after.updated_at, after.id)
    return [line for line in lines if last is None or _newest_last(line) < last][:limit]


def count_lines(runs: Mapping[str, Run], wanted: Filter, limit: int, now: float) -> int:
    """See `PostgresStore.count_runs`."""
    return min(limit, sum(1 for _ in _matching(runs, wanted, now)))


def _matching(runs: Mapping[str, Run], wanted: Filter, now: float) -> Iterator[RunLine]:
    for name, run in runs.items():
        line = _line(name, run, now)
        if _fits(line, run, wanted):
            yield line


def _line(name: str, run: Run, now: float) -> RunLine:
    steps = [record for record in run.journal() if record.kind in (Kind.STEP, Kind.ATTEMPT)]
    header = run.header
    queue = None if run.route is None else run.route.queue
    priority = None if run.route is None else run.priority
    awaits = None if run.awaits is None else tuple(awaited.name for awaited in run.awaits)
    return read_line(
        name,
        run.updated_at,
        "" if header is None else header.workflow_name,
        None if header is None else header.metadata.get("version"),
        {} if header is None else to_builtins(header.execution),
        LeaseFacts(run.is_held(now), awaits, queue, run.due_at, priority, run.partition),
        (steps[-1].key, steps[-1].seq) if steps else (None, None),
        "" if header is None or header.parent is UNSET else header.parent[0],
    )


def _fits(line: RunLine, run: Run, wanted: Filter) -> bool:
    metadata = {} if run.header is None else run.header.metadata
    return (
        line.id.startswith(wanted.prefix)
        and (not wanted.ids or line.id in wanted.ids)
        and (not wanted.parents or (line.parent != "" and line.parent in wanted.parents))
        and (not wanted.workflows or line.workflow in wanted.workflows)
        and (not wanted.statuses or line.status in wanted.statuses)
        and (not wanted.queues or (line.queue is not None and line.queue in wanted.queues))
        and (not wanted.errors or _is_one(names_of_error(line.error), wanted.errors, line))
        and (not wanted.steps or _is_one(names_of_step(line.error_step), wanted.steps, line))
        and all(matches_text(metadata.get(key), values) for key, values in wanted.metadata.items())
        and (wanted.since is None or line.updated_at >= wanted.since)
        and (wanted.before is None or line.updated_at < wanted.before)
    )


def _is_one(names: tuple[str, str], wanted: tuple[str, ...], line: RunLine) -> bool:
    return line.status == "failed" and any(name in wanted for name in names)


def _newest_last(line: RunLine) -> tuple[datetime, str]:
    return line.updated_at, line.id
