"""A worker at work, from its start to its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final, assert_never

from msgspec import structs

from durable._common.reports import report
from durable._common.threads import start_daemon
from durable._engine.backoff import MAX_DELAY, delay_run
from durable._engine.decisions import Granted, Migrate
from durable._engine.leases import Lease
from durable._engine.schedules import DueSchedule
from durable._engine.workers import (
    LEAVE_TIMEOUT,
    Ask,
    Bury,
    Execute,
    Leave,
    PutOff,
    Rest,
    ReturnRuns,
    WorkerState,
)
from durable._runtime.held_runs import HeldRun, HeldRuns
from durable._runtime.retention import apply_retention
from durable._runtime.worker_setup import WorkerSetup
from durable.clocks import clock_of, pace_of
from durable.codecs import codec_of
from durable.codecs._failures import to_record
from durable.errors import DurableError, RunHandedOver, RunSuspended
from durable.records import FailureRecord, Kind, Record, Status, render
from durable.stores.protocol import Listening, QueueingStore
from durable.stores.requests import Finish, PutSchedules, Release

_PAUSE: Final = 1.0  # seconds, after a fault of ours
_MAX_REST: Final = 3600.0  # seconds, for a lock's time-out

_log = logging.getLogger("durable")


class WorkerService:
    """A worker at work, from its start to its end. One thread performs what its state decides."""

    def __init__(
        self, setup: WorkerSetup, loop: asyncio.AbstractEventLoop | None, concurrency: int, state: WorkerState
    ) -> None:
        #: What ended it, if it was not asked to leave.
        self.error: DurableError | None = None
        self._thread: threading.Thread | None = None
        self._setup = setup
        self._loop = loop
        self._store = setup.store
        self._clock = pace_of(setup.store)
        self._state = state
        self._runs = HeldRuns(concurrency)
        self._ending: set[Lease] = set()  # of those that are executed no more
        self._id = uuid.uuid4().hex
        self._turn = 0
        self._has_written = False  # the limits of its queues
        self._listening: Listening | None = None
        self._is_cut_off = False  # the last poll has failed
        self._floor: float | None = None
        self._limited: Sequence[str] = ()  # those of its queues in which runs wait for their turn
        self._has_put = not setup.schedules  # whether its schedules are stored as it has them
        self._unknown: set[str] = (
            set()
        )  # schedules whose timetables this machine does not know, of which it has said so
        # On a rehearsal, whose time jumps to what is waited for: the runs that this worker has suspended, and until when.
        self._skip: Callable[[float], bool] | None = getattr(setup.store, "skip", None)
        self._suspended: dict[str, float] = {}
        # What other threads and signal handlers have to say, and a latch that they release: an Event's lock may be held by
        # the very thread that a signal handler interrupts.
        self._told: deque[Callable[[], object]] = deque()
        self._latch = threading.Lock()
        self._latch.acquire()

    def start(self) -> None:
        """Work on a thread of its own. Raises `StoreUnavailable` where none can be started."""
        self._thread = start_daemon("durable-worker", self._serve_alone, self._on_failure)

    def end(self) -> None:
        """Leave, and wait until that is done."""
        self.drain()
        if self._thread is not None:
            self._thread.join()

    def serve(self) -> None:
        """Work until it is time to leave."""
        self._runs.enter(self._loop)
        try:
            while self._step_safely():
                pass
        finally:
            self._runs.close()
            if self._listening is not None:
                self._listening.close()

    def wake(self) -> None:
        """Something may be due."""
        self._tell(lambda: self._state.wake(self._clock.elapsed()))

    def drain(self) -> None:
        """Take no new runs, and leave."""
        now = self._clock.elapsed()
        self._runs.hand_over()
        self._tell(lambda: self._drain(now))

    def hurry(self) -> None:
        """Leave at once."""
        now = self._clock.elapsed()
        self._tell(lambda: self._state.hurry(now))

    def _step_safely(self) -> bool:
        try:
            if self._listening is None:
                self._listening = self._store.listen(self._id, self.wake)
            return self._step()
        except Exception as problem:
            self._on_failure(problem)
            self._latch.acquire(timeout=_PAUSE)
            self._hear()  # it may be time to leave
            return not (self._state.is_draining and not len(self._runs))

    def _serve_alone(self) -> None:
        self.serve()
        if self.error is not None:  # at once: the thread that began it may not look for hours
            report(_log, logging.ERROR, "the worker has ended: %s", self.error)

    def _on_failure(self, problem: Exception) -> None:
        report(_log, logging.ERROR, "the worker failed, and goes on", problem=problem)

    def _tell(self, what: Callable[[], object]) -> None:
        self._told.append(what)
        with contextlib.suppress(RuntimeError):  # released already
            self._latch.release()

    def _drain(self, now: float) -> None:
        self._state.drain(now)
        self._runs.hand_over()
        if self._listening is not None:
            self._listening.drain()

    def _step(self) -> bool:
        self._hear()
        match self._state.decide(self._clock.elapsed()):
            case Ask() as ask:
                self._poll(ask)
            case Rest() | Leave(error=None) if self._skips():
                self._state.wake(self._clock.elapsed())
            case Rest(seconds=seconds):
                self._latch.acquire(timeout=min(seconds, _MAX_REST))
            case ReturnRuns():
                self._give_back()
            case Leave(error=error):
                self.error = error
                return False
            case never:
                assert_never(never)
        return True

    def _skips(self) -> bool:
        """Whether time has jumped to what a suspended run waits for."""
        if self._skip is None or not self._suspended or len(self._runs) or self._state.is_draining:
            return False
        return self._skip(min(self._suspended.values()))

    def _hear(self) -> None:
        while self._told:
            self._told.popleft()()

    def _poll(self, ask: Ask) -> None:
        self._turn += 1
        try:
            if not self._has_put:
                self._store.perform(PutSchedules(list(self._setup.schedules.values())))
                self._has_put = True
                return  # that may have taken its time: what was told meanwhile comes before the first poll
            floor = None if ask.looks_for_dead else self._floor
            if not self._has_written:
                self._setup.write_queues()
                self._has_written = True
                return  # likewise
            poll = self._setup.poll(ask, self._id, self._turn, self._runs.is_alive, floor)
            polled = self._store.perform(structs.replace(poll, limited=self._limited))
        except DurableError as problem:
            self._state.failed(self._clock.elapsed(), problem)
            if self._state.is_draining:
                self._runs.hand_over()
            elif not self._is_cut_off:  # said once, however long it takes
                report(_log, logging.WARNING, "the worker cannot poll, and tries again: %s", problem)
            self._is_cut_off = True
            return
        if self._is_cut_off:
            self._is_cut_off = False
            report(_log, logging.INFO, "the worker polls again")
        self._floor = self._floor if polled.floor is None else polled.floor
        self._limited = polled.limited
        now, granted, tick_in = self._clock.elapsed(), len(polled.granted), polled.tick_in
        is_limited, queues = bool(polled.limited), [one.queue for one in polled.granted]
        self._state.polled(
            now, ask, granted, polled.next_in, polled.workers, tick_in, is_limited=is_limited, queues=queues
        )
        self._hear()  # it may be time to leave
        for run in polled.granted:
            self._begin(run)
        for due in polled.due:
            self._tick(due, is_full=not ask.count)

    def _tick(self, due: DueSchedule, *, is_full: bool) -> None:
        if self._state.is_draining:
            return
        name = due.scheduled.name
        try:
            tick = self._setup.tick(due, is_full=is_full)
            has_ticked = self._store.perform(tick)
        except Exception as problem:  # the others tick all the same; said once, however long it takes
            if name not in self._unknown:
                report(
                    _log,
                    logging.ERROR,
                    "the schedule %r does not tick on this worker, which tries again: %s",
                    name,
                    problem,
                )
            self._unknown.add(name)
            return
        self._unknown.discard(name)
        if has_ticked:
            self._state.ticked(self._clock.elapsed(), (tick.due_at - due.now).total_seconds(), len(tick.runs))
            if not name and due.due_at is not None:
                self._delete_old()

    def _delete_old(self) -> None:
        """On a thread of its own: it may take its time."""
        try:
            start_daemon(
                "durable-retention", lambda: apply_retention(self._store, self._setup.retention), self._on_failure
            )
        except DurableError as unable:
            report(_log, logging.ERROR, "what has ended long ago could not be deleted (%s)", unable)

    def _begin(self, granted: Granted) -> None:
        lease = granted.lease
        self._suspended.pop(lease.run_id, None)
        try:
            match self._setup.judge(granted, is_draining=self._state.is_draining):
                case Execute(claim=claim):
                    run = self._setup.hold(granted, claim)
                    run.watch(partial(self._on_ending, lease, granted.queue))
                    self._runs.start(run, self._on_end)
                    return
                case Migrate(error=mismatch):
                    migrated = self._runs.submit(lambda: self._setup.migrate(granted, mismatch))
                    migrated.add_done_callback(lambda future: self._tell(lambda: self._end_migration(granted, future)))
                    return
                case Bury(error=error):
                    record = _failure(granted, error, self._store)
                    self._store.perform(Finish(lease, Status.FAILED, record))
                    self._report_failure(lease.run_id, error)
                case PutOff(error=error, seconds=seconds):
                    if error is not None:
                        report(_log, logging.ERROR, "run %r cannot be executed as it stands: %s", lease.run_id, error)
                    self._store.perform(Release(lease, due_in=seconds))
                case never:
                    assert_never(never)
        except Exception as problem:  # such as: no thread can be started
            self._return(lease, problem)
        self._state.ended(self._clock.elapsed(), queue=granted.queue)

    def _return(self, lease: Lease, problem: BaseException) -> None:
        # What is no error of ours, such as an event loop that is closed, is this worker's: another one may begin the run.
        due_in = delay_run(problem) if isinstance(problem, DurableError) else MAX_DELAY
        report(_log, logging.ERROR, "run %r could not be begun, and is given back", lease.run_id, problem=problem)
        with contextlib.suppress(DurableError):
            self._store.perform(Release(lease, due_in=due_in))

    def _end_migration(self, granted: Granted, migrated: Future[object]) -> None:
        self._state.ended(self._clock.elapsed(), 0.0, queue=granted.queue)
        if (problem := migrated.exception()) is not None:
            report(_log, logging.ERROR, "run %r could not be migrated", granted.lease.run_id, problem=problem)

    def _on_end(self, run: HeldRun, problem: BaseException | None) -> None:
        self._tell(lambda: self._end(run, problem))

    def _on_ending(self, lease: Lease, queue: str) -> None:
        self._tell(lambda: self._note_ending(lease, queue))

    def _note_ending(self, lease: Lease, queue: str) -> None:
        self._ending.add(lease)
        self._state.ending(self._clock.elapsed(), queue)

    def _end(self, run: HeldRun, problem: BaseException | None) -> None:
        self._runs.remove(run)
        run.forget()
        was_ending = run.lease in self._ending
        self._ending.discard(run.lease)
        self._state.ended(self._clock.elapsed(), run.due_in, was_ending=was_ending, queue=run.queue)
        run_id = run.lease.run_id
        if self._skip is not None and isinstance(problem, RunSuspended):
            self._suspended[run_id] = clock_of(self._store).elapsed() + run.due_in
        if problem is not None and not run.has_begun:
            self._return(run.lease, problem)
        elif problem is not None and run.has_failed:
            report(_log, logging.ERROR, "run %r has failed", run_id, problem=problem)
            self._report_failure(run_id, problem)
        elif problem is not None and not isinstance(problem, RunHandedOver | RunSuspended):
            report(_log, logging.WARNING, "run %r was left (%s)", run_id, type(problem).__name__)

    def _report_failure(self, run_id: str, problem: BaseException) -> None:
        """On a thread of its own: what it calls is the user's, and may take its time."""
        try:
            start_daemon("durable-on-failed", lambda: self._setup.report_failure(run_id, problem), self._on_failure)
        except DurableError as unable:
            report(_log, logging.ERROR, "on_failed could not be called for run %r (%s)", run_id, unable)

    def _give_back(self) -> None:
        try:
            start_daemon("durable-worker-gives-back", self._runs.give_back, self._on_failure).join(LEAVE_TIMEOUT)
        except DurableError:  # no thread can be started: here, however long it takes
            self._runs.give_back()


def _failure(granted: Granted, error: DurableError, store: QueueingStore) -> Record:
    place = max((record.seq for record in granted.records), default=-1) + 1
    failure = FailureRecord(to_record(error, codec_of(store)))
    return Record(place, Kind.FAILURE, Kind.FAILURE, render(failure))
