"""The step machine: one execution of one run, from the first call of a step to the last."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Final, TypeVar, assert_never

from msgspec import UNSET, Raw, UnsetType

from durable import events
from durable._common.durations import MAX_SECONDS
from durable._engine.backoff import FIRST_POLL, backoff
from durable._engine.batches import MAX_CONFLICTS
from durable._engine.calls import Call, Phase
from durable._engine.causes import InFlight
from durable._engine.children import failure_of, name_end, read_end, refuse_child
from durable._engine.closing import ClosingStep
from durable._engine.decisions import (
    Abort,
    Acknowledged,
    Asked,
    Attempt,
    AttemptInTransaction,
    Awaited,
    BeginChild,
    Begun,
    CalledOff,
    CallOff,
    Commit,
    Interrupted,
    Join,
    Leave,
    PollSignal,
    Raise,
    Raised,
    Reading,
    Received,
    RecordError,
    Rejected,
    Replay,
    Returned,
    RunBranches,
    ShowChild,
    Silent,
    StepDecision,
    StepOutcome,
    TakeTurn,
    TurnCome,
    Undone,
    Unstorable,
    Wait,
    Won,
    WriteRecord,
)
from durable._engine.journal_writes import value_of_first, write_attempt, write_outcome
from durable._engine.leases import MAX_WAIT
from durable._engine.live_runs import LiveRun
from durable._engine.starts import NewRun
from durable._engine.step_kinds import AwaitChild, Item, Listen, Plain, Race, Sleep, StartChild, StepKind, Transact
from durable._engine.waits import RESOLUTION
from durable.errors import (
    DurableError,
    NestedStep,
    OutcomeUnknown,
    RaceLost,
    RunOver,
    StepInterrupted,
    UnstorableValue,
)
from durable.records import Drawable, ErrorRecord, StepRecord

MAX_LOSSES: Final = 5  # of the database under the transaction of one attempt, whose body could be the cause
_Attempt = TypeVar("_Attempt", Attempt, AttemptInTransaction, RunBranches)


class LiveExecution(LiveRun):
    """Decides, for each step of one execution, what its driver does next.

    Not safe for threads: a driver with threads holds a lock around each call.
    """

    # -- what a driver asks ---------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether no step is running."""
        return not self._running

    @property
    def running(self) -> tuple[Call, ...]:
        """The calls of the steps that are running. Any thread may ask."""
        return tuple(self._running.values())

    @property
    def is_committing(self) -> bool:
        """Whether a checkpoint is on its way."""
        return any(call.phase is Phase.SENDING for call in self._running.values())

    def is_running(self, call: Call) -> bool:
        """Whether a step of this key is running, which `Join` waits for."""
        return call.key in self._running

    def draw(self, call: Call, branch: object, amid: InFlight | None = None) -> Call:
        """Draw the key of a call: see `Journal.draw`. What is wrong with it comes as the first decision.

        An interruption in flight begins nothing: no key is drawn.
        """
        if amid is not None and amid.interruption is not None:
            call.refusal = Leave(amid.interruption)
            return call
        if call.within is not None and not self._enters(call.within):
            call.refusal = Raise(NestedStep(call.name, call.within, "the body has ended"))
            return call
        self.journal.draw(call, branch, amid)
        if call.refusal is not None and isinstance(call.refusal, Abort):
            self.abort(call.refusal.error)
        return call

    def _enters(self, item: str) -> bool:
        """Whether the body of this item is running, and note that it calls steps of its own."""
        holder = self._running.get(item)
        if holder is None or holder.phase is not Phase.BODY:
            return False
        holder.holds = True
        return True

    def closing_call(self, step: ClosingStep, kind: StepKind, *, at_most_once: bool) -> Call:
        """The call of a step of the closing."""
        call = Call(step.key, step.name, kind=kind, at_most_once=at_most_once, closing=step)
        call.started = self.journal.next_seq
        return call

    def draw_value(
        self, kind: str, key: str | None, fresh: Drawable, branch: object, scope: str = ""
    ) -> Drawable | Abort:
        """What the workflow draws there; see `Journal.draw_value`."""
        value = self.journal.draw_value(kind, key, fresh, branch, scope) if self.error is None else Abort(self.error)
        return self.abort(value.error) if isinstance(value, Abort) else value

    def draw_scope(self, outer: str, name: str, branch: object) -> str | Raise | Abort:
        """The scope that the workflow enters there; see `Journal.draw_scope`."""
        scope = self.journal.draw_scope(outer, name, branch) if self.error is None else Abort(self.error)
        return self.abort(scope.error) if isinstance(scope, Abort) else scope

    def take_patch(self, name: str) -> bool | Abort:
        """Whether the workflow takes the new way there; see `Journal.take_patch`."""
        return self.journal.take_patch(name) if self.error is None else Abort(self.error)

    def advance(self, call: Call, outcome: StepOutcome, reading: Reading) -> StepDecision:
        """What to do next for this call, after `outcome`, at this reading of the clock."""
        match outcome:
            case Returned(value=value, elapsed=elapsed):
                return self._record_outcome(call, reading, ok=True, value=Raw(value), elapsed=elapsed)
            case Acknowledged():
                return self._on_acknowledged(call, reading)
            case Asked():
                return self._on_asked(call, reading)
            case TurnCome():
                return self._on_turn(call, reading)
            case Raised(error=error, retry_in=retry_in, led=led):
                if retry_in is None:
                    call.led = led
                    return self._record_outcome(call, reading, ok=False, error=error)
                return self._retry_later(call, reading, error, retry_in)
            case Received():
                return self._on_received(call, reading, outcome)
            case Won():
                return self._record_outcome(call, reading, ok=True, value=value_of_first(call.kind, outcome))
            case CalledOff():
                return self._on_called_off(call)
            case Silent():
                return self._on_silent(call, reading)
            case Begun():
                return self._on_begun(call, outcome, reading)
            case Rejected(error=error):
                self._leave(call, reading, type(error).__name__)
                if isinstance(error, UnstorableValue):  # refused for what it is: its own fault, and only its own
                    return Raise(error)
                return self.abort(error)
            case Undone(otherwise=otherwise):
                return self._on_undone(call, otherwise, reading)
            case Unstorable(error=error):
                self._leave(call, reading, type(error).__name__)
                return Raise(error)
            case Interrupted(reason=reason):
                return self._on_interrupted(call, reading, reason)

    def has_lost(self, call: Call) -> bool:
        """Whether a race is decided, in a branch of which this call was made, so that it goes no further.

        What is called in a branch that is being cancelled still goes on: that is clean-up.
        """
        while (race := call.race) is not None and not call.amid_cancellation:
            if self._running.get(race.key) is not race:
                return True
            call = race
        return False

    def rest(self, call: Call, began: datetime | None, until: datetime, reading: Reading) -> Wait | Abort | None:
        """What a workflow that sleeps until then does next; None when it has slept enough. See `Waits.left_of_sleep`."""
        self._resting.pop(call.key, None)
        if call.race is not None and self.has_lost(call):
            return self._lose(call, reading)
        left = self._waits.left_of_sleep(call, began, until, reading)
        return self.abort_if_stopped(reading) or (self._rest(call, left, reading) if left > RESOLUTION else None)

    # -- beginning ------------------------------------------------------------------------------------------------

    def _on_asked(self, call: Call, reading: Reading) -> StepDecision:
        if self._resting:
            self._resting.pop(call.key, None)
        if self.error is not None and not (self.is_closing and _closes(call)):
            if isinstance(call.refusal, Leave):  # what ends the process is not to become an error of ours
                return call.refusal
            return self._abort(call, reading, self.error)
        if call.refusal is not None:
            return call.refusal
        if call.race is not None and self.has_lost(call):
            return self._lose(call, reading)
        record = self.journal.record_of(call.key)
        if record is not None:
            if record.concurrent or call.concurrent:
                return TakeTurn(self.journal.place_of(call.key))
            return self._replay(call, record, reading)
        running = self._running.get(call.key)
        if running is None:
            if self.is_over and call.closing is None:
                return Abort(RunOver(self.run_id, call.name))
            return self._start(call, reading)
        if running is not call:
            return Join()
        if call.phase is Phase.BODY:  # it could not begin: no free connection
            call.phase, call.attempts = Phase.WAITING, call.attempts - 1
        return self._next(call, reading)

    def _replay(self, call: Call, record: StepRecord, reading: Reading) -> Replay:
        self.journal.close(call, recorded=True)
        if self.emit is not None:
            self.emit(events.StepReplayed(self.run_id, reading.at, call.key, call.name, record))
        return Replay(record)

    def _on_turn(self, call: Call, reading: Reading) -> StepDecision:
        """A call beside others, whose outcome is recorded, and which has waited for its turn."""
        record = self.journal.record_of(call.key)
        if self.error is not None or record is None:
            return self._abort(call, reading, self.error or RunOver(self.run_id, call.name))
        if call.record is None:  # found; what this call has recorded was told when it was
            return self._replay(call, record, reading)
        self.journal.close(call, recorded=True)
        return Replay(record)

    def _start(self, call: Call, reading: Reading) -> StepDecision:
        earlier = self.journal.attempt_of(call.key)
        if earlier is not None and earlier.child:
            call.child = earlier.child
            if isinstance(call.kind, StartChild):
                self.journal.close(call, recorded=True)
                return ShowChild()
        elif earlier is not None:
            if earlier.due is None:
                self.journal.close(call, recorded=True)
                return Raise(StepInterrupted(self.run_id, call.key))
            call.attempts = earlier.number
            self._waits.resume(call, earlier.began, earlier.due, reading)
        self._running[call.key] = call
        return self._next(call, reading)

    def _next(self, call: Call, reading: Reading) -> StepDecision:
        """The next thing to do for a running call: wait, say that it begins, or begin."""
        if (problem := self.find_obstacle(reading, call.cleanup or call.closing is not None)) is not None:
            return self._abort(call, reading, problem)
        match call.kind:
            case Plain() | Item() | Sleep():
                return self._attempt(call, Attempt, reading)
            case Transact():
                return self._attempt(call, AttemptInTransaction, reading)
            case Listen():
                return self._listen(call, call.kind, reading)
            case StartChild(child=child):
                return self._begin_child(call, child, reading)
            case AwaitChild(child=child):
                return self._await_child(call, child, reading)
            case Race():
                began = self._begin(call, RunBranches, reading)
                call.phase = Phase.RACING
                return began
            case never:
                assert_never(never)

    def _attempt(self, call: Call, decision: type[_Attempt], reading: Reading) -> StepDecision:
        if call.due is not None and (left := call.due - reading.elapsed) > RESOLUTION:
            call.phase = Phase.WAITING
            return self._wait_for(call, left, reading)
        if call.at_most_once and call.first is None:
            call.first = reading.elapsed
            return WriteRecord(write_attempt(call, self.journal, 1, reading.at))
        return self._begin(call, decision, reading)

    def _begin(self, call: Call, decision: type[_Attempt], reading: Reading) -> _Attempt:
        if call.first is None:
            call.first = reading.elapsed
        call.phase, call.began, call.stalled = Phase.BODY, reading.elapsed, False
        call.attempts += 1
        if self.emit is not None:
            self.emit(events.StepBegan(self.run_id, reading.at, call.key, call.name, call.attempts))
        return decision(call.attempts, call.first)

    def _listen(self, call: Call, kind: Listen, reading: Reading) -> StepDecision:
        if kind.timeout is not None and call.due is None:
            began, due = self._waits.begin(call, reading.elapsed, kind.timeout, reading)
            return WriteRecord(write_attempt(call, self.journal, call.attempts, began, due))
        call.phase = Phase.WAITING
        # A copy: another branch may receive one before this answer is used.
        return PollSignal(_names_of(call), tuple(self.journal.taken_signals))

    def _begin_child(self, call: Call, child: NewRun, reading: Reading) -> BeginChild:
        call.child = child.run_id
        record = write_attempt(call, self.journal, 1, reading.at, reading.at, child=call.child)
        call.seq = record.seq  # until it is known to be filled
        return BeginChild(record, child)

    def _on_begun(self, call: Call, begun: Begun, reading: Reading) -> StepDecision:
        kind, attempt = call.kind, call.attempt
        assert isinstance(kind, StartChild | AwaitChild), "a child was begun by another step"  # noqa: S101 -- a bug
        assert attempt is not None, "begun before it was sent"  # noqa: S101 -- likewise
        if (problem := refuse_child(kind.child, begun)) is not None:
            call.child, call.phase, call.began = "", Phase.WAITING, reading.elapsed
            return RecordError(problem)
        self.journal.note_attempt(call.key, attempt)
        call.phase, call.attempt, call.seq = Phase.WAITING, None, None
        if self.emit is not None:
            self.emit(events.StepRemembered(self.run_id, reading.at, call.key, call.name, attempt))
        if begun.started.is_new:
            self._new_children.add(call.key)
        if isinstance(kind, AwaitChild):  # it was cancelled with this run, and runs again
            return Wait(0.0)
        del self._running[call.key]
        self.journal.close(call, recorded=True)
        return ShowChild()

    def _await_child(self, call: Call, child: NewRun, reading: Reading) -> StepDecision:
        if not call.child:  # it was set aside meanwhile, or the run has lost it
            return self._begin_child(call, child, reading)
        call.phase = Phase.WAITING
        if call.key in self._new_children:  # what was begun just now has not ended: to ask would be in vain
            self._new_children.discard(call.key)
            return self._on_silent(call, reading)
        return PollSignal(_names_of(call), tuple(self.journal.taken_signals))

    def _on_end_of_child(self, call: Call, child: NewRun, received: Received, reading: Reading) -> StepDecision:
        end = read_end(self.run_id, received)
        if end.with_parent:  # this run was cancelled, and its children with it; it goes on, and so do they
            return self._begin_child(call, child, reading)
        self.journal.taken_signals.append(received.number)
        call.signal, call.began = received.number, reading.elapsed
        failure = failure_of(self.run_id, call.child, end)
        return failure or self._record_outcome(call, reading, ok=True, value=end.record)

    def _on_received(self, call: Call, reading: Reading, received: Received) -> StepDecision:
        if call.race is not None and self.has_lost(call):
            return self._lose(call, reading)  # another may have the signal
        if received.number in self.journal.taken_signals:  # another branch received it first
            return Wait(0.0)
        if isinstance(call.kind, AwaitChild):
            return self._on_end_of_child(call, call.kind.child, received, reading)
        self.journal.taken_signals.append(received.number)
        call.signal, call.began = received.number, reading.elapsed
        return self._record_outcome(call, reading, ok=True, value=value_of_first(call.kind, received))

    def _on_silent(self, call: Call, reading: Reading) -> StepDecision:
        if (problem := self.find_obstacle(reading)) is not None:
            return self._abort(call, reading, problem)
        left = math.inf if call.due is None else call.due - reading.elapsed
        if left <= RESOLUTION:
            return self._begin(call, Attempt, reading)  # whose body says that it took too long
        call.polls += 1
        taken = tuple(self.journal.taken_signals)
        awaits = tuple(Awaited(name, taken) for name in _names_of(call))
        return self._wait_for(call, left, reading, backoff(call.polls - 1, FIRST_POLL), awaits)

    def _on_undone(self, call: Call, otherwise: Raised | Unstorable | Rejected, reading: Reading) -> StepDecision:
        if isinstance(otherwise, Rejected):
            call.lost += 1
        else:
            call.conflicts += 1
        if call.conflicts >= MAX_CONFLICTS or call.lost >= MAX_LOSSES:
            return self.advance(call, otherwise, reading)
        call.phase, call.attempts, call.record = Phase.WAITING, call.attempts - 1, None
        return self._wait(backoff(call.conflicts + call.lost), reading)

    def _wait_for(
        self, call: Call, seconds: float, reading: Reading, recheck: float = MAX_WAIT, awaits: tuple[Awaited, ...] = ()
    ) -> StepDecision:
        """What a running call does that has so many seconds to wait, and perhaps for one of these signals."""
        decision = self._rest(call, seconds, reading, recheck, awaits)
        if isinstance(decision, Abort):
            self._leave(call, reading, type(decision.error).__name__)
        return decision

    # -- recording ------------------------------------------------------------------------------------------------

    def _retry_later(self, call: Call, reading: Reading, error: ErrorRecord, retry_in: float) -> StepDecision:
        if self.error is not None and not (self.is_closing and _closes(call)):
            return self._abort(call, reading, self.error)
        assert call.first is not None, "failed before it began"  # noqa: S101 -- a driver's bug, not an input
        began, due = self._waits.begin(call, call.first, min(retry_in, MAX_SECONDS), reading)
        if self.emit is not None:
            kind = error.type.replace(":", ".")
            self.emit(events.StepRetrying(self.run_id, reading.at, call.key, call.name, call.attempts, kind, due))
        return WriteRecord(write_attempt(call, self.journal, call.attempts, began, due, error))

    def _record_outcome(
        self,
        call: Call,
        reading: Reading,
        *,
        ok: bool,
        value: Raw | UnsetType = UNSET,
        error: ErrorRecord | None = None,
        elapsed: float | None = None,
    ) -> StepDecision:
        if self.error is not None and not self.is_closing:
            return self._abort(call, reading, self.error)
        seconds = (reading.elapsed if elapsed is None else elapsed) - call.began
        record = write_outcome(call, self.journal, self.lease.epoch, seconds, ok=ok, value=value, error=error)
        return WriteRecord(record) if call.seq is None else Commit(record)  # which fills the place that it was given

    def _on_acknowledged(self, call: Call, reading: Reading) -> StepDecision:
        if call.record is None:
            assert call.attempt is not None, "acknowledged before it was sent"  # noqa: S101 -- a driver's bug, not an input
            self.journal.note_attempt(call.key, call.attempt)
            if self.emit is not None:
                self.emit(events.StepRemembered(self.run_id, reading.at, call.key, call.name, call.attempt))
            call.phase, call.conflicts, call.lost = Phase.WAITING, 0, 0
            return Wait(0.0)
        self.journal.add_outcome(call.key, call.record)  # first: an interrupt may come, and this be reported again
        del self._running[call.key]
        if self.emit is not None:
            self.emit(events.StepRecorded(self.run_id, reading.at, call.key, call.name, call.record))
        if type(call.kind) is Race:
            self.journal.pass_branches(call.key)
            return CallOff()
        if call.concurrent:
            return TakeTurn(call.place)
        self.journal.close(call, recorded=True)
        return Replay(call.record)

    def _on_called_off(self, call: Call) -> StepDecision:
        """The race is recorded, and its other branches go no further."""
        assert call.record is not None, "called off before it was recorded"  # noqa: S101 -- a driver's bug, not an input
        if call.concurrent:
            return TakeTurn(call.place)
        self.journal.close(call, recorded=True)
        return Replay(call.record)

    # -- leaving --------------------------------------------------------------------------------------------------

    def _on_interrupted(self, call: Call, reading: Reading, reason: str) -> Abort:
        if self._running.get(call.key) is call and call.phase is Phase.SENDING:
            if call.stored:
                self._on_acknowledged(call, reading)
            elif call.stored is None:
                # It was on its way. Whether it arrived is for the next execution to read, not for us to guess.
                self.abort(OutcomeUnknown(self.run_id, f"step {call.key!r}", f"{reason} came before the reply"))
        self._leave(call, reading, reason)
        return Abort(self.error or RunOver(self.run_id, call.name))

    def _abort(self, call: Call, reading: Reading, error: DurableError) -> Abort:
        self._leave(call, reading, type(error).__name__)
        return self.abort(error)

    def _lose(self, call: Call, reading: Reading) -> Abort:
        """The call goes no further, and the run goes on."""
        self._leave(call, reading, RaceLost.__name__)
        return Abort(RaceLost(self.run_id, call.name))

    def _leave(self, call: Call, reading: Reading, reason: str) -> None:
        if self._running.get(call.key) is not call:
            if call.opened and self.journal.record_of(call.key) is not None:  # it did not get what is recorded
                self.journal.close(call, recorded=True)
            return
        del self._running[call.key]
        self._resting.pop(call.key, None)
        self.journal.close(call, recorded=False)
        if self.emit is not None:
            self.emit(events.StepLeft(self.run_id, reading.at, call.key, call.name, reason))


def _closes(call: Call) -> bool:
    """Whether a step is done at the end of a run: of its closing, or clean-up."""
    return call.cleanup or call.closing is not None


def _names_of(call: Call) -> tuple[str, ...]:
    """The names of the signals that a call waits for."""
    if isinstance(call.kind, AwaitChild):
        return (name_end(call.child),)
    return (call.kind.names if isinstance(call.kind, Listen) else ()) or (call.name,)
