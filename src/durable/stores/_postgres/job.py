"""A job: an entry of a batch, with its payload and what waits for its answer."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from durable._common.reports import report
from durable._engine.batches import Entry
from durable.errors import DurableError, OutcomeUnknown

_log = logging.getLogger("durable")

ABSENT: Final = object()


class Job(Entry, eq=False):
    """An entry with its payload, and somebody who waits for its answer."""

    what: str = ""
    payload: Any = None
    answer: Any = None
    done: bool = False
    vanished: bool = False  # once it was performed without an error, and not there afterwards
    trouble: DurableError | None = None
    on_orphan: Callable[[Job], object] | None = None  # called when the answer finds nobody to take it
    failure: DurableError | None = None
    settled: threading.Lock | None = None  # held until the answer is there
    added: bool = False  # to the backlog
    abandoned: bool = False  # its thread was interrupted, and does not wait any more
    future: asyncio.Future[Any] | None = None
    loop: asyncio.AbstractEventLoop | None = None

    def fate(self, interrupt: BaseException) -> BaseException | None:
        """What has become of it, for a caller who was interrupted: None, its error, or the interrupt if it was not begun."""
        if self.done:
            return self.failure
        return OutcomeUnknown(self.run_id, self.what, type(interrupt).__name__) if self.added else interrupt

    def result(self) -> Any:
        """The answer, or its error raised."""
        if self.failure is not None:
            raise self.failure
        return self.answer


def make_latch() -> threading.Lock:
    """Something to wait for; a lock, since an `Event` makes three and many threads wait here."""
    lock = threading.Lock()
    lock.acquire()
    return lock


def deliver(jobs: Sequence[Job]) -> None:
    """Give everybody who waits the answer: a thread by its event, and each event loop by one call for all its tasks."""
    if len(jobs) == 1 and jobs[0].settled is None and jobs[0].loop is None:  # a lone caller, who leads
        jobs[0].done = True
        return
    by_loop: dict[asyncio.AbstractEventLoop, list[Job]] = {}
    for job in jobs:
        if job.done:
            continue
        if job.loop is not None:
            by_loop.setdefault(job.loop, []).append(job)
            continue
        # Done only when its caller is awake: what ends this turn in between is followed by another that tells it.
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
    """In their event loop. What strikes here is the loop's to report: the rest are told in its next turn."""
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
    if job.on_orphan is not None:
        try:
            job.on_orphan(job)
        except Exception as problem:  # for example of a loop that is closed: no reason to leave the others unanswered
            report(_log, logging.DEBUG, "nobody could be told what became of %s (%s)", job.what, type(problem).__name__)
