"""A job: an entry of a batch, with its payload and what waits for its answer."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from durable._common.reports import report
from durable._engine.batches import MAX_LOCK_WAIT, MAX_LONE_LOCK_WAIT, Entry
from durable.errors import DurableError, OutcomeUnknown
from durable.stores._postgres.verbs import PostgresVerb

_log = logging.getLogger("durable")

#: The answer for a write that is not there.
ABSENT: Final = object()


class Job(Entry[PostgresVerb], eq=False):
    """An entry with its payload, and the thread or the task that waits for its answer."""

    #: For error messages: "step 'charge'".
    what: str = ""
    payload: Any = None
    answer: Any = None
    #: The answer, or the failure, is final.
    done: bool = False
    #: It was once performed without an error, and was not there afterwards.
    vanished: bool = False
    #: The error of the last attempt.
    trouble: DurableError | None = None
    #: Called when the answer comes after its caller has gone.
    on_orphan: Callable[[Job], object] | None = None
    #: The error that its caller is to get.
    failure: DurableError | None = None
    #: A latch, held until the answer is there; None for a caller that performs the job itself.
    settled: threading.Lock | None = None
    #: It is, or was, in the backlog: it may be performed.
    added: bool = False
    #: Its thread was interrupted, and waits no longer.
    abandoned: bool = False
    future: asyncio.Future[Any] | None = None
    loop: asyncio.AbstractEventLoop | None = None

    @property
    def max_lock_wait(self) -> float:
        """How long, in seconds, it may wait for a lock that a transaction of the user's may hold."""
        return MAX_LONE_LOCK_WAIT if self.locked_out else MAX_LOCK_WAIT

    def fate(self, interrupt: BaseException) -> BaseException | None:
        """The outcome, for an interrupted caller: None when committed, its error, or the interrupt if it was not begun."""
        if self.done:
            return self.failure
        return OutcomeUnknown(self.run_id, self.what, type(interrupt).__name__) if self.added else interrupt

    def result(self) -> Any:
        """The answer, or its error raised."""
        if self.failure is not None:
            raise self.failure
        return self.answer


def make_latch() -> threading.Lock:
    """A latch to wait on: a lock that is held. An `Event` would make three locks, and many threads wait here."""
    lock = threading.Lock()
    lock.acquire()
    return lock


def deliver(jobs: Sequence[Job]) -> None:
    """Give each waiting caller its answer: a thread by its latch, the tasks of an event loop by one call for all of them."""
    if len(jobs) == 1 and jobs[0].settled is None and jobs[0].loop is None:  # a lone caller, which performs it itself
        jobs[0].done = True
        return
    by_loop: dict[asyncio.AbstractEventLoop, list[Job]] = {}
    for job in jobs:
        if job.done:
            continue
        if job.loop is not None:
            by_loop.setdefault(job.loop, []).append(job)
            continue
        # Done only after its latch is released: if this turn is ended in between, the next one releases it.
        if job.settled is not None and job.settled.locked():
            job.settled.release()
        job.done = True
        if job.settled is not None and job.abandoned:
            orphan(job)
    for loop, waiting in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, waiting)
        except RuntimeError:  # closed meanwhile
            for job in waiting:
                orphan(job)
        for job in waiting:
            job.done = True


def _resolve(jobs: Sequence[Job]) -> None:
    """Set the futures, in their event loop. After an interrupt, which the loop reports, the rest are set in its next turn."""
    try:
        for job in jobs:
            if job.future is None or job.future.cancelled():  # its task has gone
                orphan(job)
            elif job.future.done():
                continue
            elif job.failure is not None:
                job.future.set_exception(job.failure)
            else:
                job.future.set_result(job.answer)
    except BaseException:
        asyncio.get_running_loop().call_soon(_resolve, jobs)
        raise


def orphan(job: Job) -> None:
    """Say that the answer has come, and its caller has gone."""
    if job.on_orphan is not None:
        try:
            job.on_orphan(job)
        except Exception as problem:  # of a closed loop, for example; the other jobs are answered all the same
            report(
                _log, logging.DEBUG, "the outcome of %s could not be reported (%s)", job.what, type(problem).__name__
            )
