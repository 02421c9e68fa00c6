"""The runs in memory that wait for workers: started, taken when they are due, and due again."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from msgspec import UNSET

from durable._engine.decisions import Granted
from durable._engine.headers import blank_header, grant_header, queue_header
from durable._engine.leases import Lease
from durable._engine.queues import Queue as QueueLimits
from durable._engine.queues import QueueLine
from durable._engine.starts import NewRun, Started
from durable.errors import DuplicateRun
from durable.records import Header, Kind, Record, Status
from durable.stores._memory.limits import Limits
from durable.stores._memory.run import NEVER, Run
from durable.stores._owner import this_process
from durable.stores.requests import Poll, Polled


class Queue:
    """Which of a store's runs may be due, and who is to be told of it. The store's lock is held around each call.

    It knows of every run that is due, and perhaps of some that are not: an interrupt between two lines loses none.
    """

    def __init__(self, runs: dict[str, Run]) -> None:
        self._runs = runs
        self._waiting: dict[str, None] = dict.fromkeys(runs)
        self._dedups: dict[tuple[str, str, str], str] = {}
        self._listeners: dict[str, Callable[[], object]] = {}
        self._limits = Limits(runs)

    def renew(self, runs: dict[str, Run]) -> Queue:
        """The same of a forked child: with the limits, and without those who listen."""
        anew = Queue(runs)
        anew._limits = self._limits.renew(runs)
        return anew

    def listen(self, worker: str, wake: Callable[[], object]) -> _Listening:
        """See `QueueingStore.listen`."""
        self._listeners[worker] = wake
        return _Listening(self._listeners, worker)

    def workers(self) -> list[str]:
        """The workers that are at work."""
        return list(self._listeners)

    def wake(self) -> None:
        """See `Wake`."""
        for wake in list(self._listeners.values()):
            wake()

    def note(self, name: str) -> None:
        """This run may be due from now on."""
        self._waiting[name] = None

    def start(self, new: NewRun, at: datetime) -> Started:
        """See `Enqueue`."""
        header = queue_header(new, at=at)
        if (there := self._find(new.run_id, header)) is not None:
            return there
        records: dict[int, Record] = {}
        if new.input is not None:
            records[0] = Record(0, Kind.INPUT, Kind.INPUT, new.input.decode(), at)
        due_at = at + timedelta(seconds=new.delay) if new.at is None else new.at
        self.note(new.run_id)
        if header.dedup is not UNSET:
            self._dedups[header.dedup] = new.run_id
        run = Run(header, records, at, route=new.route, priority=new.priority, due_at=due_at, partition=new.partition)
        self._runs[new.run_id] = run
        self.wake()
        return Started(new.run_id, True, new.workflow, new.input_hash, Status.QUEUED)

    def check(self, name: str, header: Header | None, status: str) -> None:
        """`DuplicateRun` where a run that is over may not be open again: another one of its `dedup` has not ended."""
        opens = status in (Status.QUEUED, Status.RUNNING)
        if opens and header is not None and header.dedup is not UNSET and not header.is_open:
            other = self._dedups.get(header.dedup, name)
            run = self._runs.get(other)
            if other != name and run is not None and run.header is not None and run.header.is_open:
                raise DuplicateRun(name)
            self._dedups[header.dedup] = name

    def _find(self, name: str, header: Header) -> Started | None:
        """The run that stands for a new one: of the same id, or of the same `dedup` and not over."""
        run = self._runs.get(name)
        if (run is None or run.header is None) and header.dedup is not UNSET:
            name = self._dedups.get(header.dedup, name)
            run = self._runs.get(name)
            is_over = run is None or run.header is None or run.header.dedup != header.dedup or not run.header.is_open
            run = None if is_over else run
        if run is None or run.header is None:
            return None
        stored = run.header
        return Started(name, False, stored.workflow_name, stored.metadata.get("inputHash"), stored.execution.status)

    def take(self, poll: Poll, at: datetime, now: float) -> Polled:
        """See `Poll`; `at` is the moment, and `now` the reading."""
        for name in list(self._waiting):
            if (run := self._runs.get(name)) is None or run.due_at is None:
                del self._waiting[name]
        self._limits.free(self._waiting, now)
        mine = {name: run for name in self._waiting if (run := self._runs[name]).route in poll.routes}
        limited = {name: run for name, run in mine.items() if self._limits.holds(run)}
        due = [(*run.turn(), name) for name, run in mine.items() if name not in limited and run.is_due(at, now)]
        names = [name for *_, name in sorted(due)[: poll.count]]
        under = self._limits.choose(limited, poll.count, at, now)
        if {route.queue for route in poll.routes[:1]} & {run.route.queue for run in limited.values() if run.route}:
            names = under + names[: poll.count - len(under)]  # the routes take turns at being the first
        else:
            names += under[: poll.count - len(names)]
        self._limits.note([name for name in names if name in limited], at)
        granted = [self._grant(name, mine[name], poll.seconds, at, now) for name in names]
        later = [run.due_at for run in mine.values() if run.due_at is not None and at < run.due_at < NEVER]
        later += self._limits.next_moments(limited, at)
        next_in = (min(later) - at).total_seconds() if later else None
        queues = tuple(sorted({route.queue for route in poll.routes if self._limits.has_any(route.queue)}))
        return Polled(granted, next_in, max(1, len(self._listeners)), limited=queues)

    def write(self, limits: QueueLimits) -> None:
        """See `QueueingStore.write_queue`."""
        self._limits.write(limits)
        self.wake()

    def pause(self, queue: str, *, paused: bool) -> None:
        """See `QueueingStore.pause_queue`."""
        self._limits.pause(queue, paused=paused)
        self.wake()

    def lines(self, at: datetime, now: float) -> list[QueueLine]:
        """See `PostgresStore.queues`."""
        return self._limits.lines(at, now)

    def _grant(self, name: str, run: Run, seconds: float, at: datetime, now: float) -> Granted:
        header, epoch, crashes = run.header or blank_header(), run.epoch + 1, 0
        if not any(record.epoch == run.epoch for record in run.records.values()):  # progress ends a row of crashes
            crashes = header.execution.crashes + (run.token is not None or run.is_left)
        header = grant_header(header, epoch=epoch, owner=this_process(), at=at, crashes=crashes)
        lease = Lease(name, f"{epoch}:{secrets.token_hex(8)}", epoch, seconds, now)
        self._runs[name] = replace(
            run,
            header=header,
            updated_at=at,
            epoch=epoch,
            token=lease.token,
            expires=now + seconds,
            due_at=at + timedelta(seconds=seconds),
            awaits=None,
            is_left=False,
        )
        return Granted(lease, header, run.journal(), queue="" if run.route is None else run.route.queue)


class _Listening:
    """A worker that is told when something may be due."""

    def __init__(self, listeners: dict[str, Callable[[], object]], worker: str) -> None:
        self._listeners = listeners
        self._worker = worker

    def drain(self) -> None:
        """See `Listening`: the store dies with its workers."""

    def close(self) -> None:
        """See `Listening`."""
        self._listeners.pop(self._worker, None)
