"""The two ends of an execution: what the reply to a claim admits, and how a run is concluded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from msgspec import UNSET, Raw, json
from msgspec.structs import replace

from durable._engine.backoff import FIRST_POLL, backoff
from durable._engine.causes import origin_key, tags_of
from durable._engine.closing import Closing, refuse_undecided
from durable._engine.decisions import (
    Admission,
    Claim,
    ClaimAgain,
    ClaimReply,
    Conclusion,
    Decline,
    EndRun,
    GiveBack,
    Granted,
    Migrate,
    Proceed,
    Reading,
    Refused,
    Reraise,
    Return,
)
from durable._engine.headers import is_foreign
from durable._engine.starts import UNHASHED
from durable._engine.steps import LiveExecution
from durable.errors import (
    AmbiguousKey,
    ConcurrentExecution,
    DeadlineExceeded,
    DurableError,
    HistoryError,
    InvalidArgument,
    RunBeingStarted,
    RunCancelled,
    RunContinued,
    RunMismatch,
    RunSuspended,
    UnreadableRecord,
    Unwind,
    VersionMismatch,
    WaitTimedOut,
)
from durable.events import KeysUnused, RunCompleted, RunFailed, RunInterrupted
from durable.records import (
    FORMAT_VERSION,
    ErrorRecord,
    FailureRecord,
    Header,
    Kind,
    Record,
    Status,
    parse,
    render,
    undecided_keys,
)

_MAX_TURNS: Final = 20


def admit(
    claim: Claim,
    reply: ClaimReply,
    *,
    waits: bool,
    wait_timeout: float | None,
    waited: float,
    polls: int,
    migrates: bool = False,
) -> Admission:
    """What the store's reply to a claim means.

    `waits` is whether the caller would rather wait than get `ConcurrentExecution`, for at most `wait_timeout` seconds;
    `waited` and `polls` are how long and how often it has; `migrates` whether it has an answer to another version.
    """
    header = reply.header
    granted = reply.lease if isinstance(reply, Granted) else None
    if isinstance(reply, Granted) and reply.problem is not None:
        return Decline(reply.problem, granted)
    mismatch = None if header is None else find_mismatch(claim, header)
    if mismatch is not None and not (migrates and isinstance(mismatch, VersionMismatch)):
        return Decline(mismatch, granted)
    if mismatch is not None and granted is not None:  # another version came between two of the claim's statements
        return ClaimAgain(0.0, claim, granted)
    if isinstance(mismatch, VersionMismatch) and isinstance(reply, Refused) and reply.owner is None:
        patient = waits and (wait_timeout is None or waited < wait_timeout)
        return Migrate(mismatch) if patient or polls < _MAX_TURNS else _decline_turns(claim)
    if header is not None and _has_ended(header):
        result = _last_of(reply.records, Kind.RESULT)
        if granted is not None:  # completed between two of the claim's statements: give the lease back, ask again
            return ClaimAgain(0.0, claim, granted)
        if result is None:
            return Decline(
                UnreadableRecord(claim.run_id, "the result", "the run is completed but has no result record")
            )
        return Return(result.text.encode())
    if granted is not None and header is not None and not is_executable(claim, header):
        return ClaimAgain(0.0, claim, granted)  # stopped between two of the claim's statements, likewise
    if isinstance(reply, Granted):
        if "inputHash" in reply.header.metadata and not any(record.kind == Kind.INPUT for record in reply.records):
            problem = (
                "the header says that there is one: the journal was deleted, and store.delete(id) takes away the rest"
            )
            return Decline(UnreadableRecord(claim.run_id, "the input", problem), granted)
        return Proceed(reply)
    if reply.is_locked and not waits and (header is None or polls >= _MAX_TURNS):
        return Decline(RunBeingStarted(claim.run_id))
    if reply.owner is not None and not waits:
        return Decline(ConcurrentExecution(claim.run_id, reply.owner, reply.expires_in or 0.0))
    if waits and (reply.is_locked or reply.owner is not None):
        if wait_timeout is not None and waited >= wait_timeout:
            return Decline(WaitTimedOut(claim.run_id, waited))
        left = math.inf if wait_timeout is None else wait_timeout - waited
        is_anothers = reply.owner is not None or header is None  # whose outcome is waited for
        after_failure = claim.after_failure and not is_anothers
        return ClaimAgain(left, replace(claim, after_failure=after_failure), recheck=backoff(polls, FIRST_POLL))
    if not claim.after_failure and header is not None and header.execution.status == Status.FAILED:
        return _reraise_stored(claim, reply)
    if not claim.after_failure and header is not None and header.execution.status == Status.CANCELLED:
        return Decline(RunCancelled(claim.run_id))
    if header is not None and _is_undecided(header):
        return _decline_undecided(claim, reply)
    if header is None and not claim.create:
        problem = "its workflow takes an input, none was given, and no run of this id is stored that has one"
        return Decline(InvalidArgument(f"run {claim.run_id!r}: {problem}: pass input="))
    if polls >= _MAX_TURNS and not waits:
        return _decline_turns(claim)
    # Taken when the claim looked and free when its reply was read: nothing stands in the way of asking once more.
    return ClaimAgain(backoff(polls, FIRST_POLL), claim)


def _decline_turns(claim: Claim) -> Decline:
    return Decline(ConcurrentExecution(claim.run_id, "others, who take turns at it"))


def is_executable(claim: Claim, header: Header | None) -> bool:
    """Whether a claim may execute this run at all, be it held or free. A store asks before it grants a lease."""
    if header is None:
        return claim.create
    stopped = header.execution.status in (Status.FAILED, Status.CANCELLED) and not claim.after_failure
    undecided = _is_undecided(header) and not claim.amends
    return not (_has_ended(header) or stopped or undecided or find_mismatch(claim, header))


def _is_undecided(header: Header) -> bool:
    """Whether the run has failed, and is not taken up again before it is decided what becomes of some steps."""
    return header.execution.status == Status.FAILED and header.execution.needs_decision


def _has_ended(header: Header) -> bool:
    """Whether the run has a result. What another tool completed has none: its steps are replayed to find it."""
    return header.execution.status == Status.COMPLETED and not is_foreign(header)


def _reraise_stored(claim: Claim, reply: Refused) -> Admission:
    failure = _last_of(reply.records, Kind.FAILURE)
    if failure is None:
        return Decline(UnreadableRecord(claim.run_id, "the failure", "the run has failed but has no failure record"))
    return Reraise(parse(failure.text, FailureRecord, run_id=claim.run_id, where="the failure record").error)


def _decline_undecided(claim: Claim, reply: Refused) -> Decline:
    failure = _last_of(reply.records, Kind.FAILURE)
    keys = () if failure is None else undecided_keys(failure, run_id=claim.run_id)
    return Decline(refuse_undecided(claim.run_id, keys))


def find_mismatch(claim: Claim, header: Header) -> HistoryError | None:
    """How the stored run is not the one that the claim describes."""
    if header.format_version != FORMAT_VERSION:
        problem = f"its format is {header.format_version} and this library reads {FORMAT_VERSION}"
        return UnreadableRecord(claim.run_id, "the header", problem)
    if not is_foreign(header) and header.workflow_name != claim.workflow:
        advice = _name_advice(header.workflow_name)
        return RunMismatch(claim.run_id, "workflow", repr(header.workflow_name), repr(claim.workflow), advice)
    function = header.metadata.get("workflowFunction")
    if None not in (function, claim.function) and function != claim.function and not is_foreign(header):
        advice = _name_advice(header.workflow_name)
        return RunMismatch(claim.run_id, "function", repr(function), repr(claim.function), advice)
    stored_input = header.metadata.get("inputHash")
    if claim.input_hash is not None and stored_input not in (claim.input_hash, UNHASHED) and not is_foreign(header):
        stored = f"with hash {stored_input}" if stored_input else "of no input at all"
        return RunMismatch(claim.run_id, "input", stored, f"the one with hash {claim.input_hash}")
    version = header.metadata.get("version", claim.version)
    if version != claim.version:
        return VersionMismatch(claim.run_id, version, claim.version)
    return None


def _name_advice(name: str) -> str:
    return (
        f"If this is the same workflow, and its function was moved or renamed, give it the name that it had: "
        f"@durable.workflow(name={name!r})."
    )


def _last_of(records: Sequence[Record], kind: Kind) -> Record | None:
    return next((record for record in reversed(records) if record.kind == kind), None)


def conclude_return(execution: LiveExecution, value: bytes) -> Conclusion:
    """The workflow returned, and this is the JSON of what it returned."""
    if execution.error is not None:
        return _conclude_abort(execution, execution.error)
    return EndRun(Status.COMPLETED, Record(execution.journal.take_seq(), Kind.RESULT, Kind.RESULT, value.decode()))


def conclude_failure(
    execution: LiveExecution, exception: Exception, error: ErrorRecord, retry_in: float | None = None
) -> Conclusion:
    """The workflow raised, and this is the exception's record: the failures that led to it are to run again.

    `retry_in` is after how many seconds the run's own policy has it taken up again; a run that needs a decision is not.
    """
    if execution.error is not None:
        return _conclude_abort(execution, execution.error)
    token, journal = execution.lease.token, execution.journal
    tags = journal.with_led(tags_of(exception, token))
    origins = dict.fromkeys(journal.with_branches(sorted(tags)))
    again = tuple(key for key in origins if journal.may_run_again(key))
    undecided, kept = journal.drawn_amid(tags), journal.take_kept(at_the_end=True)
    failure = FailureRecord(error, again, step=origin_key(exception, token), undecided=undecided, kept=kept)
    finish = _finish_failed(execution, failure)
    return finish if retry_in is None or undecided else replace(finish, status=Status.QUEUED, due_in=retry_in)


def conclude_departure(execution: LiveExecution, exception: BaseException) -> Conclusion:
    """The workflow was left by control flow: ours, a cancellation, or the end of the process."""
    if execution.error is None and isinstance(exception, Unwind):
        execution.abort(exception.error)
    if execution.error is not None and isinstance(exception, Unwind | BaseExceptionGroup):
        return _conclude_abort(execution, execution.error)
    return GiveBack(None, execution.former_status())


def _conclude_abort(execution: LiveExecution, error: DurableError) -> Conclusion:
    if isinstance(error, RunCancelled):
        return GiveBack(error, Status.CANCELLED)
    if isinstance(error, RunContinued) and execution.continuation is not None:
        return execution.continuation
    if isinstance(error, RunSuspended):
        return GiveBack(error, suspension=execution.suspension)
    if execution.is_queued and isinstance(error, DeadlineExceeded):  # no call is there to be told, and none will come
        return _finish_failed(execution, FailureRecord(_record_of(error, execution.run_id)))
    if not isinstance(error, AmbiguousKey):
        return GiveBack(error, execution.former_status())
    # Remembered, since the next execution might otherwise hand one branch's value to the other before it notices.
    named = _record_of(error)
    kept = execution.journal.take_kept(at_the_end=True)
    return _finish_failed(execution, FailureRecord(named, ambiguous=(error.key,), step=error.key, kept=kept))


def _record_of(error: DurableError, *args: str) -> ErrorRecord:
    known = Raw(json.encode(args)) if args else UNSET
    return ErrorRecord(f"{type(error).__module__}:{type(error).__qualname__}", str(error), known)


def _finish_failed(execution: LiveExecution, failure: FailureRecord) -> EndRun:
    return EndRun(Status.FAILED, Record(execution.journal.take_seq(), Kind.FAILURE, Kind.FAILURE, render(failure)))


def begin_closing(execution: LiveExecution, conclusion: Conclusion) -> Closing | None:
    """What a run goes through before it ends so; None where it ends at once.

    From here on only steps of that begin. Nothing of the workflow is under way.
    """
    closing = execution.journal.begin_closing(conclusion, execution.error)
    if closing is not None:
        if isinstance(conclusion, EndRun):  # its place goes to the closing's first record
            execution.journal.next_seq = conclusion.record.seq
        execution.error, execution.is_closing, execution.closing = None, True, closing
    return closing


def end_closing(
    execution: LiveExecution, closing: Closing, to_record: Callable[[Exception], ErrorRecord]
) -> Conclusion:
    """How the run ends, or is left, after this. `to_record` makes the record of an exception."""
    if execution.error is not None:
        execution.is_closing = False
        return _conclude_abort(execution, execution.error)
    problem = closing.find_failure(execution.run_id)
    told = None if problem is None else to_record(problem)
    return closing.conclusion(execution.journal.take_seq(), problem, told)


def emit_finish(execution: LiveExecution, finish: EndRun, reading: Reading) -> None:
    """The finish is acknowledged: say so."""
    if execution.emit is None:
        return
    run_id, at = execution.run_id, reading.at
    if unused := execution.journal.unused_keys():
        execution.emit(KeysUnused(run_id, at, unused))
    if finish.status is Status.COMPLETED:
        execution.emit(RunCompleted(run_id, at, execution.workflow, finish.record.text))
    elif finish.status is Status.CANCELLED:
        execution.emit(RunInterrupted(run_id, at, execution.workflow, RunCancelled.__name__))
    else:
        failure = parse(finish.record.text, FailureRecord, run_id=run_id, where="the failure record")
        execution.emit(RunFailed(run_id, at, execution.workflow, failure.error.type, failure.again, failure))


def emit_interruption(execution: LiveExecution, reading: Reading, reason: BaseException) -> None:
    """The run was left without an outcome: say so."""
    if execution.emit is not None:
        execution.emit(RunInterrupted(execution.run_id, reading.at, execution.workflow, type(reason).__name__))
