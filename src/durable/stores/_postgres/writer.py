"""The writer: commits everything that waits together, whatever happens to the wire.

A lone blocking caller commits its own entry, on its own thread. Everybody else hands an entry over and waits; a thread
takes what has gathered, and wakes each event loop once per batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import psycopg

from durable._engine import batches
from durable._engine.batches import Backlog, Entry, Verb, Verdict
from durable.clocks import Clock
from durable.errors import (
    DurableError,
    InvalidArgument,
    OutcomeUnknown,
    SchemaMismatch,
    StoreUnavailable,
    UnstorableValue,
)
from durable.stores._postgres.connections import Connections, Lane
from durable.stores._postgres.watchdog import Watchdog

ABSENT: Final = object()
_WITH_VALUES: Final = (Verb.CHECKPOINT, Verb.FINISH, Verb.SIGNAL)
_OF_DATA: Final = ("22", "54")  # classes of SQLSTATE: of a claim, it is its input
DROPPED: Final = "22012"  # SQLSTATE of division by zero, by which a statement of ours says that a row was not written

_log = logging.getLogger("durable")


class Job(Entry, eq=False):
    """An entry with its payload, and somebody who waits for its answer."""

    what: str = ""
    payload: Any = None
    answer: Any = None
    done: bool = False
    vanished: bool = False  # once it was performed without an error, and not there afterwards
    trouble: DurableError | None = None
    orphaned: Callable[[Job], object] | None = None  # called when the answer finds nobody to take it
    failure: DurableError | None = None
    settled: threading.Lock | None = None  # held until the answer is there
    future: asyncio.Future[Any] | None = None
    loop: asyncio.AbstractEventLoop | None = None

    def result(self) -> Any:
        """The answer, or its error raised."""
        if self.failure is not None:
            raise self.failure
        return self.answer


class Performer(Protocol):
    """Turns batches into statements. Both verbs give an answer for each job: a value, or an error *as a value*."""

    def perform(self, lane: Lane, jobs: Sequence[Job]) -> Sequence[Any]:
        """Commit a batch of one verb."""
        ...

    def read_back(self, lane: Lane, jobs: Sequence[Job]) -> Sequence[Any]:
        """Say what became of jobs whose reply was lost; `ABSENT` for one that was not committed."""
        ...


class Writer:
    """One way to the database, used by one batch at a time."""

    def __init__(self, performer: Performer, connections: Connections, clock: Clock, watchdog: Watchdog) -> None:
        self._performer = performer
        self._connections = connections
        self._clock = clock
        self._watchdog = watchdog
        self._lock = threading.RLock()  # a signal handler may come while it is held, and must not wait for itself
        self._room = threading.Condition(self._lock)
        self._crowd: list[asyncio.Future[None]] = []  # the same, of event loops
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._closed = False  # the same, for a look at each job
        self._backlog: Backlog[Job] = Backlog()
        self._busy = False  # somebody, a caller or the thread, is performing a batch
        self._leader = 0  # the thread of that caller
        self._failures = 0  # in a row; while there are some, the thread alone performs
        self._thread: threading.Thread | None = None

    def perform(self, job: Job) -> Any:
        """Commit a job and return its answer, or raise its error. Blocks."""
        thread = threading.get_ident()
        if self._interrupted(thread):
            return self._performed_aside(job)
        leads, later = False, list[Job]()
        try:
            with self._lock:
                self._check_open()
                leads = not (self._busy or self._backlog or self._failures)
                if leads:
                    self._busy = True
                    self._leader = thread
                else:
                    job.settled = _unsettled()
                    self._wait_for_room(job)
                    self._check_open()
                    self._add(job)
            if leads:
                later = self._worked([job])
        finally:  # also when an interrupt comes: a writer that stays busy would be the end of everybody
            if leads:
                try:
                    self._led(later)
                except BaseException:  # one more interrupt
                    self._led([])
                    raise
        if job.settled is not None:
            job.settled.acquire()
        return job.result()

    def submit(self, job: Job) -> asyncio.Future[Any]:
        """Commit a job; the future of its answer. The job goes its way if the future is cancelled."""
        job.loop = loop = asyncio.get_running_loop()
        job.future = future = loop.create_future()
        with self._lock:
            self._check_open()
            self._add(job)
        return future

    def room(self) -> asyncio.Future[None] | None:
        """None while there is room for more; else what an event loop waits for before it starts more."""
        if not self._backlog.full:
            return None
        with self._lock:
            if not self._backlog.full or self._closed:
                return None
            self._crowd.append(asyncio.get_running_loop().create_future())
            return self._crowd[-1]

    def post(self, job: Job) -> None:
        """Commit a job that nobody waits for, unless it is too late for that."""
        with self._lock:
            if not self._closed:
                self._add(job)

    def close(self) -> None:
        """Commit what waits, if the database answers, and end the thread."""
        with self._lock:
            self._closing.set()
            self._closed = True
            self._let_in()
            self._wake.set()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _interrupted(self, thread: int) -> bool:
        """Whether this is a signal handler (or a finalizer) in the midst of this thread's own turn at the writer."""
        return self._leader == thread or self._lock._is_owned()  # type: ignore[attr-defined] # noqa: SLF001

    def _performed_aside(self, job: Job) -> Any:
        """Commit a job by itself, on a connection of its own, and touch nothing that may be half changed."""
        failures = 0
        while self._worked([job]) and job.deadline > self._clock.elapsed():
            failures += 1
            self._closing.wait(batches.pause(failures))
        if not job.done:
            self._give_up([job])
        return job.result()

    def _led(self, later: list[Job]) -> None:
        with self._lock:
            for job in later:  # to be tried again, which is the thread's business
                job.settled = _unsettled()
                self._add(job)
            self._leader = 0
            self._free(later)

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidArgument("the store is closed")

    def _add(self, job: Job) -> None:
        self._backlog.add(job)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="durable-writer", daemon=True)
            self._thread.start()
        if not self._busy:
            self._wake.set()

    def _wait_for_room(self, job: Job) -> None:
        while self._backlog.full and not self._closed:
            if not self._room.wait(max(0.0, job.deadline - self._clock.elapsed())):
                return  # too late to wait any more: among the others it is answered, one way or the other

    def _let_in(self) -> None:
        if self._backlog.full and not self._closed:
            return
        self._room.notify_all()
        crowd, self._crowd = self._crowd, []
        for waiting in crowd:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                waiting.get_loop().call_soon_threadsafe(_enter, waiting)

    def _run(self) -> None:
        while self._turn():
            pass

    def _turn(self) -> bool:
        """Wait for something to do, and do it; False when that was the last time."""
        self._wake.wait()
        batch: list[Job] = []
        with self._lock:
            self._wake.clear()
            if self._busy:
                return True  # whoever is performing wakes this thread when it is done
            late = self._late()
            if self._backlog:
                batch = self._backlog.take()
                self._busy = True
            self._let_in()
        self._give_up(late)
        if batch:
            self._work(batch)
        return bool(batch) or not self._closed

    def _late(self) -> list[Job]:
        if not self._failures:
            return []
        return self._backlog.expired(math.inf if self._closed else self._clock.elapsed())

    def _worked(self, batch: list[Job]) -> list[Job]:
        """Settle a batch; a fault of the writer's own must not be the end of anybody else's work."""
        try:
            return self._settled(batch)
        except Exception as problem:
            _log.exception("the writer failed; the entries that it held are given up")
            self._give_up([job for job in batch if not job.done], type(problem).__name__)
            return []

    def _work(self, batch: list[Job]) -> None:
        later = self._worked(batch)
        with self._lock:
            for job in later:
                self._backlog.add(job)
            failures = self._failures + 1 if later else 0
        if later:
            self._closing.wait(batches.pause(failures))
        with self._lock:
            self._free(later)

    def _free(self, later: list[Job]) -> None:
        self._busy = False
        self._failures = self._failures + 1 if later else 0
        if self._backlog or self._closed:
            self._wake.set()

    def _settled(self, batch: list[Job]) -> list[Job]:
        """Perform a batch and answer its jobs; those that must be tried again after a pause are returned."""
        portions, later = [batch], list[Job]()
        while portions:
            portion = portions.pop()
            try:
                answers = self._attempted(portion)
            except (psycopg.Error, DurableError) as problem:
                sent = isinstance(problem, psycopg.Error)
                verdict = batches.verdict(getattr(problem, "sqlstate", None), sent=sent)
                if verdict is Verdict.UNPREPARED:
                    self._connections.prepares = False
                follow = batches.followed(portion, verdict)
                meaning = self._connections.meaning(problem) if isinstance(problem, psycopg.Error) else problem
                for job in portion:
                    job.trouble = meaning
                if verdict is Verdict.REFUSED:
                    self._refuse(follow.failed, problem)
                else:
                    self._give_up(follow.failed)
                portions += follow.at_once
                later += follow.later
            else:
                portions += self._answered(portion, answers)
        return later

    def _attempted(self, jobs: list[Job]) -> Sequence[Any]:
        deadline = batches.deadline(jobs)
        lane = self._connections.take(deadline)
        now = self._clock.elapsed()
        size = jobs[0].size if len(jobs) == 1 else sum(job.size for job in jobs)
        self._watchdog.watch(lane.connection, now + batches.silence(deadline, now), size / batches.SLOWEST)
        try:
            if jobs[0].unknown:
                return self._performer.read_back(lane, jobs)
            return self._performer.perform(lane, jobs)
        finally:
            self._watchdog.unwatch(lane.connection)
            self._connections.give_back(lane)

    def _answered(self, jobs: list[Job], answers: Sequence[Any]) -> list[list[Job]]:
        """Answer the jobs that have an answer; those found absent are to be sent again, at once."""
        if not any(answers):  # all done, and nothing to say
            for job, answer in zip(jobs, answers, strict=True):
                job.answer = answer
            tell(jobs)
            return []
        absent: list[Job] = []
        for job, answer in zip(jobs, answers, strict=True):
            if answer is ABSENT and job.vanished and not job.unknown:
                job.failure = dropped("leases" if job.verb is Verb.CLAIM else "journal")
            elif answer is ABSENT:
                job.vanished |= not job.unknown
                job.unknown = False
                absent.append(job)
            elif isinstance(answer, DurableError):
                job.failure = answer
            else:
                job.answer = answer
        if absent:
            tell([job for job in jobs if job not in absent])
            return [absent]
        tell(jobs)
        return []

    def _refuse(self, jobs: list[Job], problem: Exception) -> None:
        # By its SQLSTATE only: the server's own words may quote the value.
        state = getattr(problem, "sqlstate", None)
        refusal = f"PostgreSQL refused it with SQLSTATE {state} ({type(problem).__name__})"
        for job in jobs:
            if state == DROPPED and job.verb is Verb.FINISH:
                job.failure = dropped("journal")
            elif job.verb in _WITH_VALUES or (state or "").startswith(_OF_DATA):
                job.failure = UnstorableValue(job.what, "$", refusal)
            else:
                job.failure = job.trouble
        tell(jobs)

    def _give_up(self, jobs: list[Job], reason: str = "") -> None:
        for job in jobs:
            if job.doubtful or reason:
                why = reason or (type(job.trouble).__name__ if job.trouble else "no reply")
                job.failure = OutcomeUnknown(job.run_id, job.what, why)
            else:
                job.failure = job.trouble or StoreUnavailable(self._connections.where, "it did not answer in time")
        tell(jobs)


def dropped(table: str) -> SchemaMismatch:
    """The error of a row that PostgreSQL takes, and that is not there: nothing can be kept, and asking again is in vain."""
    return SchemaMismatch(
        f"of the {table}",
        "PostgreSQL took a row and it is not there: a trigger or a rule drops it, or row-level security hides it",
        "Nothing was recorded. Look at the triggers, rules and policies of the tables of durable: none may keep rows out.",
    )


def _unsettled() -> threading.Lock:
    """Something to wait for; a lock, since an `Event` makes three and many threads wait here."""
    lock = threading.Lock()
    lock.acquire()
    return lock


def tell(jobs: Sequence[Job]) -> None:
    """Give everybody who waits the answer: a thread by its event, and each event loop by one call for all its tasks."""
    if len(jobs) == 1 and jobs[0].settled is None and jobs[0].loop is None:  # a lone caller, who leads
        jobs[0].done = True
        return
    by_loop: dict[asyncio.AbstractEventLoop, list[Job]] = {}
    for job in jobs:
        job.done = True
        if job.settled is not None:
            job.settled.release()
        elif job.loop is not None:
            by_loop.setdefault(job.loop, []).append(job)
    for loop, waiting in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, waiting)
        except RuntimeError:  # closed meanwhile
            for job in waiting:
                _orphan(job)


def _resolve(jobs: Sequence[Job]) -> None:
    for job in jobs:
        if job.future is None or job.future.done():  # cancelled: its task has gone
            _orphan(job)
        elif job.failure is not None:
            job.future.set_exception(job.failure)
        else:
            job.future.set_result(job.answer)


def _enter(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


def _orphan(job: Job) -> None:
    if job.orphaned is not None:
        try:
            job.orphaned(job)
        except Exception as problem:  # for example of a loop that is closed: no reason to leave the others unanswered
            _log.debug("nobody could be told what became of %s (%s)", job.what, type(problem).__name__)
