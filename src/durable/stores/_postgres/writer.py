"""The writer: commits everything that waits together, whatever happens to the wire.

A lone blocking caller commits its own job, on its own thread. All other callers hand their jobs over and wait; one thread
takes what has gathered, and wakes each event loop once per batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
from typing import Any, Final

from durable._common.locks import locked
from durable._common.reports import report
from durable._common.threads import start_daemon, wait_for
from durable._engine import batches
from durable._engine.backoff import backoff
from durable._engine.batches import Backlog
from durable.clocks import Clock
from durable.errors import DurableError, InvalidArgument
from durable.stores._postgres.connections import Connections
from durable.stores._postgres.job import Job, make_latch, orphan
from durable.stores._postgres.jobs import CLAIM
from durable.stores._postgres.sender import Performer, Sender
from durable.stores._postgres.watchdog import Watchdog

_MAX_HANDOVER: Final = 5.0  # seconds; an interrupted caller waits no longer for its job's outcome

_log = logging.getLogger("durable")


class Writer:
    """One way to the database, used by one batch at a time."""

    def __init__(self, performer: Performer, connections: Connections, clock: Clock, watchdog: Watchdog) -> None:
        self._sender = Sender(performer, connections, clock, watchdog)
        self._clock = clock
        self._lock = threading.RLock()  # a signal handler may come while it is held, and must not wait for itself
        self._room = threading.Condition(self._lock)
        self._room_waiters: list[asyncio.Future[None]] = []  # of event loops; threads wait on `_room`
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._closed = False  # the same as `_closing`, and cheaper to ask for each job
        self._backlog: Backlog[Job] = Backlog()
        self._busy = 0  # the thread that is performing a batch: a caller's, or the writer's own
        self._failures = 0  # in a row; while there are some, the thread alone performs
        self._thread: threading.Thread | None = None

    def perform(self, job: Job) -> Any:
        """Commit a job and return its answer, or raise its error. Blocks."""
        thread = threading.get_ident()
        if self._is_reentrant(thread):
            return self._perform_reentrant(job)
        try:
            # In one line each, as in `_common/locks.py`.
            with self._lock: leads = self._try_to_lead(job, thread)  # noqa: E701  # fmt: skip
            while leads:
                later = self._sender.perform([job])
                with self._lock: leads = self._finish_leading(later)  # noqa: E701  # fmt: skip
                if leads:
                    self._pause(self._failures)
            if job.settled is not None:
                job.settled.acquire()
        except BaseException as interrupt:
            # A writer that stays busy would be the end of all others, and a job half done the end of its run.
            try:
                self._hand_over(job, thread)
            except BaseException:  # one more
                self._hand_over(job, thread)
                raise
            if isinstance(interrupt, Exception) and job.failure is not None:
                raise job.failure from interrupt
            raise
        return job.result()

    def _try_to_lead(self, job: Job, thread: int) -> bool:
        """Whether this thread is to perform the job itself; if not, the job waits in the backlog for its turn."""
        self._check_open()
        if not (self._busy or self._backlog or self._failures):
            self._busy = thread
            return True
        job.settled = make_latch()
        self._wait_for_room(job)
        self._check_open()
        self._add(job)
        return False

    def _hand_over(self, job: Job, thread: int) -> None:
        """Leave an interrupted caller's job to the writer's thread, and wait for a while, so that its outcome is known."""
        settled = self._requeue(job, thread)
        if settled is None:
            return
        if not settled.acquire(timeout=_MAX_HANDOVER):
            job.abandoned = True
            if settled.acquire(blocking=False):  # answered just now, perhaps before `abandoned` was set
                orphan(job)

    @locked
    def _requeue(self, job: Job, thread: int) -> threading.Lock | None:
        """Put the job back into the backlog; the latch to wait on, None when nothing was begun, or all is over."""
        if self._busy == thread:
            self._busy = 0
            self._sender.give_session_back()
            if not job.done and not self._backlog.holds(job):
                job.unknown = job.doubtful = job.added = True
                if self._begin_thread():
                    job.settled = job.settled or make_latch()
                    self._backlog.add(job)
                else:  # it would never be performed, and every later job would wait for it
                    self._failures = 0
                    self._sender.give_up([job])
        if self._backlog and self._begin_thread():
            self._wake.set()
        return job.settled if job.added and not job.done else None

    def submit(self, job: Job) -> asyncio.Future[Any]:
        """Commit a job; the future of its answer. Cancelling the future does not stop the job."""
        job.loop = loop = asyncio.get_running_loop()
        job.future = future = loop.create_future()
        self._accept(job)
        return future

    @locked
    def _accept(self, job: Job) -> None:
        self._check_open()
        self._add(job)

    def room(self) -> asyncio.Future[None] | None:
        """None while there is room for more jobs; else a future that an event loop awaits before it submits more."""
        return self._join_room_waiters() if self._backlog.full else None

    @locked
    def _join_room_waiters(self) -> asyncio.Future[None] | None:
        if not self._backlog.full or self._closed:
            return None
        self._room_waiters.append(asyncio.get_running_loop().create_future())
        return self._room_waiters[-1]

    @locked
    def post(self, job: Job) -> None:
        """Commit a job whose answer is not waited for; not if the writer is closed."""
        if not self._closed:
            self._add(job)

    def close(self) -> None:
        """Commit what waits, if the database answers, and end the thread."""
        amid = self._is_reentrant(threading.get_ident())
        wait_for(self._shut(), self._lock, amid=amid)

    @locked
    def _shut(self) -> threading.Thread | None:
        """Take no more jobs; the thread that commits the rest, if there is one."""
        self._closing.set()
        self._closed = True
        self._release_waiters()
        self._wake.set()
        return self._thread

    def _is_reentrant(self, thread: int) -> bool:
        """Whether this is a signal handler (or a finalizer) that runs in the middle of this thread's own turn at the writer."""
        return self._busy == thread or self._lock._is_owned()  # type: ignore[attr-defined] # noqa: SLF001

    def _perform_reentrant(self, job: Job) -> Any:
        """Commit a job by itself, on a connection of its own, without touching state that may be half changed."""
        failures = 0
        while self._perform_safely([job]) and job.deadline > self._clock.elapsed():
            failures += 1
            self._pause(failures)
        if not job.done:
            self._sender.give_up([job])
        return job.result()

    def _finish_leading(self, later: list[Job]) -> bool:
        """Leave what is to be tried again to the thread; where none can be started, the leader goes on itself: it is True.

        What was sent may have been committed: that no thread can be started says nothing of it.
        """
        if later and not self._begin_thread():
            if not self._closed and batches.first_deadline(later) > self._clock.elapsed():
                self._failures += 1
                return True
            self._sender.give_up(later)
            later = []
        self._finish(later)
        for job in later:
            job.settled = make_latch()
            self._add(job)
        return False

    def _pause(self, failures: int) -> None:
        """Let a caller's thread wait. Not for an event, whose lock a signal handler that closes the store would find held."""
        make_latch().acquire(timeout=backoff(failures))

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidArgument("the store is closed")

    def _add(self, job: Job) -> None:
        self._ensure_thread()
        job.added = True
        self._backlog.add(job)
        if not self._busy:
            self._wake.set()

    def _ensure_thread(self) -> None:
        """Start the thread if it does not run; if it ended in the middle of a batch, recover that first."""
        if self._thread is None or not self._thread.is_alive():
            if self._thread is not None and self._busy == self._thread.ident:
                self._recover("its thread ended")
            self._thread = start_daemon("durable-writer", self._turn, self._on_failure)

    def _begin_thread(self) -> bool:
        """Whether the thread runs."""
        try:
            self._ensure_thread()
        except DurableError:
            return False
        return True

    def _wait_for_room(self, job: Job) -> None:
        while self._backlog.full and not self._closed:
            if not self._room.wait(max(0.0, job.deadline - self._clock.elapsed())):
                return  # past its deadline: it joins the backlog, where it is answered one way or the other

    def _release_waiters(self) -> None:
        if self._backlog.full and not self._closed:
            return
        self._room.notify_all()
        waiters, self._room_waiters = self._room_waiters, []
        for waiting in waiters:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                waiting.get_loop().call_soon_threadsafe(_admit, waiting)

    @locked
    def _on_failure(self, problem: Exception) -> None:
        # Not while a caller performs its own job, which this thread must not end.
        if self._busy in (0, threading.get_ident()):
            self._recover(type(problem).__name__)

    def _recover(self, reason: str) -> None:
        """After a turn that ended in the middle: answer the jobs that it had taken, and go on with those that wait."""
        self._sender.give_session_back()
        self._busy = 0
        self._backlog.mend()
        self._sender.give_up(
            [job for job in self._backlog.taken if not job.done and not self._backlog.holds(job)], reason
        )
        self._wake.set()

    def _turn(self) -> bool:
        """Wait for jobs and perform them; False when the writer is closed and nothing is left."""
        self._wake.wait()
        batch = self._take_batch()
        if batch:
            self._perform_in_turn(batch)
        return batch is None or bool(batch) or not self._closed

    @locked
    def _take_batch(self) -> list[Job] | None:
        """The jobs to perform now; None while another thread is performing, which wakes this one afterwards."""
        self._wake.clear()
        if self._busy:
            return None
        self._sender.give_up(self._take_expired())
        batch: list[Job] = []
        if self._backlog:
            self._busy = threading.get_ident()
            batch = self._backlog.take()
        self._release_waiters()
        return batch

    def _take_expired(self) -> list[Job]:
        if not self._failures:
            return []
        return self._backlog.expired(math.inf if self._closed else self._clock.elapsed())

    def _perform_safely(self, batch: list[Job]) -> list[Job]:
        """Perform a batch; a fault of the writer's own must not end the work of the callers. Returns as `Sender.perform`."""
        try:
            return self._sender.perform(batch)
        except Exception as problem:
            # A claim may have been granted, and its lease would be known to no one: its outcome is looked up, once.
            again = [job for job in batch if not job.done and job.verb is CLAIM and not job.unknown]
            for job in again:
                job.unknown = job.doubtful = True
            report(_log, logging.ERROR, "the writer failed; the entries that it held are given up", problem=problem)
            self._sender.give_up([job for job in batch if not job.done and job not in again], type(problem).__name__)
            return again

    def _perform_in_turn(self, batch: list[Job]) -> None:
        later = self._perform_safely(batch)
        self._put_back(later)
        if later:
            self._closing.wait(backoff(self._failures + 1))
        self._finish_turn(later)

    @locked
    def _put_back(self, later: list[Job]) -> None:
        for job in later:
            self._backlog.add(job)
        self._backlog.taken = []

    @locked
    def _finish_turn(self, later: list[Job]) -> None:
        self._finish(later)

    def _finish(self, later: list[Job]) -> None:
        self._failures = self._failures + 1 if later else 0
        self._busy = 0
        if self._backlog or self._closed:
            self._wake.set()


def _admit(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
