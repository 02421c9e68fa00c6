"""A run that is executed: whether it may go on, and what it is left with."""

from __future__ import annotations

import math
from collections.abc import Callable

from durable import events
from durable._common.checks import MAX_NAME_BYTES
from durable._common.durations import add_seconds
from durable._engine.calls import Call
from durable._engine.children import name_child, name_end
from durable._engine.closing import Closing, is_closing_error
from durable._engine.continuations import check_history
from durable._engine.decisions import Abort, Awaited, ContinueRun, Raise, Reading, Suspension, Wait
from durable._engine.journal import Journal
from durable._engine.leases import MAX_WAIT, Lease
from durable._engine.waits import Waits
from durable.errors import (
    DeadlineExceeded,
    DurableError,
    InvalidArgument,
    LeaseLost,
    RunCancelled,
    RunClosing,
    RunContinued,
    RunHandedOver,
    RunOver,
    RunSuspended,
)
from durable.records import Kind, Record, Status


class LiveRun:
    """What is known of a run while it is executed, and may end its execution at any step."""

    def __init__(
        self,
        workflow: str,
        journal: Journal,
        lease: Lease,
        emit: Callable[[events.RunEvent], object] | None,
        deadline: float | None = None,
        *,
        is_queued: bool = False,
        failures: int = 0,
        times_continued: int = 0,
        suspend_after: float = math.inf,
    ) -> None:
        self.run_id = journal.run_id
        self.workflow = workflow
        self.journal = journal
        self.lease = lease
        #: Takes the events; None where there is no listener, and none are made.
        self.emit = emit
        #: A reading of the elapsed-time clock after which no body starts.
        self.deadline = deadline
        #: What the run was aborted with, once it was.
        self.error: DurableError | None = None
        #: Whether the workflow has ended, so that nothing new may begin.
        self.is_over = False
        #: Whether only what is done at a run's end may still begin: it is being cancelled, or closed.
        self.is_closing = False
        #: What it goes through between the end of its workflow and its own, once it does.
        self.closing: Closing | None = None
        #: Whether another worker is to go on with the run at its next step.
        self.is_leaving = False
        #: Whether the run is a worker's: taken up again by itself where it is left.
        self.is_queued = is_queued
        #: How many executions of the run have failed before this one.
        self.failures = failures
        #: How often the run has gone on with another input before this execution.
        self.times_continued = times_continued
        #: What the run waits for, once it is suspended for that.
        self.suspension: Suspension | None = None
        #: With what the run goes on anew, once it is to.
        self.continuation: ContinueRun | None = None
        #: Whether no other branch of the workflow is at work between two steps. Its driver knows.
        self.is_alone: Callable[[], bool] = lambda: True
        self._suspend_after = suspend_after
        self._running: dict[str, Call] = {}
        # The calls that wait, by key, as when they looked last: until when, and for which signals.
        self._resting: dict[str, tuple[float, tuple[Awaited, ...]]] = {}
        # The keys of the children that this execution has started, and that were not there before: none of them has ended yet.
        self._new_children: set[str] = set()
        self._waits = Waits()

    def continue_with(self, text: bytes, reading: Reading, *, keep_history: bool) -> Abort | Raise:
        """The workflow is to begin anew, with the input of this JSON."""
        if (stopped := self.abort_if_stopped(reading)) is not None:
            return stopped
        if self.is_over:
            return Abort(RunOver(self.run_id, "continue_with"))
        if self._running or not self.is_alone():
            advice = (
                "steps of other branches are under way: await them, or join their threads, before step.continue_with"
            )
            return Raise(InvalidArgument(f"run {self.run_id!r}: {advice}"))
        record, number = Record(0, Kind.INPUT, Kind.INPUT, text.decode()), self.times_continued + 1
        if keep_history and (problem := check_history(self.run_id, number)) is not None:
            return Raise(problem)
        self.continuation = ContinueRun(record, keep_history, tuple(self.journal.taken_signals), number)
        return self.abort(RunContinued(self.run_id))

    def name_child(self, key: str) -> tuple[str, tuple[str, str]]:
        """The id of the child that the step of this key starts, and its parent; see `NewRun`."""
        row = self.lease.row
        room = MAX_NAME_BYTES - (len(row.encode()) - len(self.run_id.encode()))  # less the store's prefix
        child = name_child(self.run_id, self.times_continued, key, room=room)
        return child, (row, name_end(child))

    def abort(self, error: DurableError) -> Abort:
        """The run must not go on; the first reason stays the reason, but for what ends its closing, too."""
        if self.error is None or (self.is_closing and not is_closing_error(error)):
            self.error, self.is_closing = error, is_closing_error(error)
        return Abort(self.error)

    def abort_if_stopped(self, reading: Reading) -> Abort | None:
        """Why nothing more may be begun."""
        problem = self.find_obstacle(reading)
        return None if problem is None else self.abort(problem)

    def find_obstacle(self, reading: Reading, closes: bool = False) -> DurableError | None:
        """The same, changing nothing: any thread may ask. `closes`: whether what is to begin is done at a run's end."""
        if self.error is not None and not (closes and self.is_closing):
            return self.error
        if self.lease.cancelled:
            return RunCancelled(self.run_id, self.lease.reason)
        if reason := self.lease.why_ended(reading.elapsed):
            return self.lease.refusal or LeaseLost(self.run_id, reason)
        may_end = self.journal.closable is not None or reading.cancelled or self.lease.asked
        if may_end and not closes and (ending := self.find_ending(reading)) is not None:
            return ending
        if self.deadline is not None and reading.elapsed >= self.deadline and not self.is_closing:
            return DeadlineExceeded(self.run_id)
        if self.is_leaving:
            return RunHandedOver(self.run_id)
        return None

    def find_ending(self, reading: Reading) -> RunCancelled | RunClosing | None:
        """Why nothing may begin any more but what is done at a run's end: it is asked to be cancelled, or is being closed.

        Here, and nowhere else, a run learns that it is to be cancelled.
        """
        closable = self.journal.closable
        if closable is not None and closable.ending is not None:
            ending = closable.ending
            if ending.status == Status.CANCELLED:
                return RunCancelled(self.run_id, ending.reason, closed=True)
            return RunClosing(self.run_id)
        if reading.cancelled or self.lease.asked:
            return RunCancelled(self.run_id, self.lease.reason, closed=True)
        return None

    def former_status(self) -> Status | None:
        """What the run goes back to when it is left now; None leaves it running."""
        status = self.journal.former_status()
        return Status.QUEUED if self.is_queued and status is not None else status

    def _rest(
        self,
        call: Call,
        seconds: float,
        reading: Reading,
        recheck: float = MAX_WAIT,
        awaits: tuple[Awaited, ...] = (),
    ) -> Wait | Abort:
        """Let a call wait, or suspend the run where nothing of it is in flight but calls that wait."""
        if self.deadline is not None and not self.is_closing:
            seconds = min(seconds, self.deadline - reading.elapsed)
        self._resting[call.key] = reading.elapsed + seconds, awaits
        if seconds > self._suspend_after and self._is_at_rest() and self.is_alone():
            return self._suspend(reading, recheck)
        return self._wait(seconds, reading, recheck)

    def _is_at_rest(self) -> bool:
        """Whether each call that runs waits, or is an item of a map in whose body a call waits."""
        resting = set(self._resting)
        for key in self._resting:
            call = self._running.get(key)
            while call is not None and call.within is not None:
                resting.add(call.within)
                call = self._running.get(call.within)
        return self._running.keys() <= resting

    def _suspend(self, reading: Reading, recheck: float) -> Wait | Abort:
        until = min(until for until, _ in self._resting.values())
        if until - reading.elapsed <= self._suspend_after:  # another call has not so long to wait
            return self._wait(max(0.0, until - reading.elapsed), reading, recheck)
        every = {awaited.name: awaited for _, awaits in self._resting.values() for awaited in awaits}
        self.suspension = Suspension(until, tuple(every.values()))
        moment = None if until == math.inf else add_seconds(reading.at, until - reading.elapsed)
        return self.abort(RunSuspended(self.run_id, moment, tuple(every)))

    def _wait(self, seconds: float, reading: Reading, recheck: float = MAX_WAIT) -> Wait:
        if self.deadline is not None and not self.is_closing:
            seconds = min(seconds, self.deadline - reading.elapsed)
        if seconds > MAX_WAIT:
            self.lease.note_wait(reading.elapsed)
        return Wait(seconds, recheck)
