"""The limits of the queues in memory, and whose turn it is: what the SQL of `queues.sql` means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from durable._engine.queues import Queue, QueueLine, find_room, next_start, share
from durable._engine.starts import Route
from durable.stores._memory.run import Run

_Partition = tuple[Route, str | None]


@dataclass(slots=True)
class _Standing:
    """A queue's limits, and what changes with each beginning."""

    limits: Queue
    paused: bool = False
    next_at: datetime | None = None


class Limits:
    """Of a store's queues. The store's lock is held around each call."""

    def __init__(self, runs: Mapping[str, Run]) -> None:
        self._runs: dict[str, Run] = runs  # type: ignore[assignment]  # the store's own
        self._queues: dict[str, _Standing] = {}
        self._served: dict[
            _Partition, tuple[datetime, int]
        ] = {}  # when each had its turn last, and the how-manieth that was
        self._turns = 0

    def renew(self, runs: Mapping[str, Run]) -> Limits:
        """The same limits, of these runs."""
        anew = Limits(runs)
        anew._queues, anew._served, anew._turns = self._queues, self._served, self._turns
        return anew

    def write(self, limits: Queue) -> None:
        """These are the limits from now on."""
        self._queue(limits.name).limits = limits

    def pause(self, queue: str, *, paused: bool) -> None:
        """From now on none of its runs is begun, or they are again."""
        self._queue(queue).paused = paused

    def _queue(self, name: str) -> _Standing:
        return self._queues.setdefault(name, _Standing(Queue(name)))

    def has_any(self, queue: str) -> bool:
        """Whether this queue has limits, or is paused, or there are partitions in it."""
        standing = self._queues.get(queue)
        if standing is not None and (standing.paused or standing.limits.has_limits):
            return True
        return any(run.partition is not None and run.due_at is not None for run in self._of(queue))

    def holds(self, run: Run) -> bool:
        """Whether a run is begun when its turn comes, and not as soon as it is due."""
        if run.route is None or not run.route.queue:
            return False
        standing = self._queues.get(run.route.queue)
        is_limited = standing is not None and (standing.paused or standing.limits.has_limits)
        return is_limited or run.partition is not None

    def free(self, names: Iterable[str], now: float) -> None:
        """What owners hold that have died holds no place any more."""
        for name in names:
            run = self._runs[name]
            if run.token is not None and not run.is_held(now) and self.holds(run):
                self._runs[name] = replace(run, token=None, is_left=True)

    def choose(self, waiting: Mapping[str, Run], count: int, at: datetime, now: float) -> list[str]:
        """Which of these runs are begun now, of each queue as many as it has room for: the partitions take turns."""
        chosen: list[str] = []
        for queue in sorted({run.route.queue for run in waiting.values() if run.route is not None}):
            standing = self._queue(queue)
            if not standing.paused:
                room = find_room(standing.limits, count, len(self._held(queue, now)), standing.next_at, at)
                chosen += self._round(queue, waiting, room, at, now)
        return chosen[:count]

    def _round(self, queue: str, waiting: Mapping[str, Run], room: int, at: datetime, now: float) -> list[str]:
        members: dict[_Partition, list[str]] = {}
        for name, run in waiting.items():
            if run.route is not None and run.route.queue == queue and run.is_due(at, now):
                members.setdefault((run.route, run.partition), []).append(name)
        most, held = self._queue(queue).limits.partition_concurrency, self._held(queue, now)
        left = {run.partition: room if most is None else most for run in waiting.values()}
        for run in held:
            left[run.partition] = left.get(run.partition, 0) - (most is not None)
        turns = sorted(members, key=lambda one: self._turn(one, members[one]))
        turns = [one for one in turns if left[one[1]] > 0][:room]
        found: list[str] = []
        for nth in range(share(room, len(turns))):
            for one in turns:
                several = sorted(members[one], key=lambda name: (*self._runs[name].turn(), name))
                if nth < len(several) and left[one[1]] > 0:
                    left[one[1]] -= 1
                    found.append(several[nth])
        return found[:room]

    def _turn(self, one: _Partition, members: Sequence[str]) -> tuple[datetime, int, str]:
        came = min(due for name in members if (due := self._runs[name].due_at) is not None)
        served, nth = self._served.get(one, (came, 0))
        return max(came, served), nth, one[1] or ""

    def note(self, names: Iterable[str], at: datetime) -> None:
        """These are begun now."""
        begun: dict[str, int] = {}
        for name in names:
            run = self._runs[name]
            if run.route is not None:
                begun[run.route.queue] = begun.get(run.route.queue, 0) + 1
                self._turns += 1
                self._served[run.route, run.partition] = at, self._turns
        for queue, count in begun.items():
            standing = self._queue(queue)
            if (rate := standing.limits.rate) is not None:
                standing.next_at = next_start(rate, standing.next_at, at, count)

    def next_moments(self, waiting: Mapping[str, Run], at: datetime) -> list[datetime]:
        """When the rates let the next begin of queues that have runs which are due."""
        due = {run.route.queue for run in waiting.values() if run.route and run.due_at and run.due_at <= at}
        moments = [self._queue(queue).next_at for queue in due if self._queue(queue).limits.rate is not None]
        return [moment for moment in moments if moment is not None and moment > at]

    def lines(self, at: datetime, now: float) -> list[QueueLine]:
        """Each queue as it stands."""
        there = {run.route.queue for run in self._runs.values() if run.route and run.route.queue and run.due_at}
        found: list[QueueLine] = []
        for name in sorted(there | set(self._queues)):
            standing = self._queues.get(name) or _Standing(Queue(name))
            due = [run for run in self._of(name) if run.is_due(at, now)]
            partitions = len({run.partition for run in due if run.partition is not None})
            found.append(QueueLine(standing.limits, standing.paused, len(self._held(name, now)), len(due), partitions))
        return found

    def _of(self, queue: str) -> list[Run]:
        return [run for run in self._runs.values() if run.route is not None and run.route.queue == queue]

    def _held(self, queue: str, now: float) -> list[Run]:
        return [run for run in self._of(queue) if run.is_held(now)]
