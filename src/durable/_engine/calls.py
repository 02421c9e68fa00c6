"""A call of a step, from the moment when its key is drawn until its last record is acknowledged."""

from __future__ import annotations

from enum import Enum

from msgspec import Struct

from durable._engine.closing import ClosingStep
from durable._engine.decisions import Abort, Leave, Raise
from durable._engine.step_kinds import PLAIN, StepKind
from durable.records import AttemptRecord, StepRecord


class Phase(Enum):
    """Where a call stands."""

    DRAWN = "its key is drawn"
    WAITING = "it is running, and its next attempt is not due"
    BODY = "its body is running"
    SENDING = "a record of it is on its way"
    RACING = "its branches are at work"


class Call(Struct, eq=False):
    """One use of `step(...)`: what was asked for, and what has become of it. Times are readings of the elapsed-time clock."""

    # -- what was asked for

    #: The key under which the outcome is recorded; the name, until one is drawn from that.
    key: str
    #: The step's name.
    name: str
    #: A hash of the arguments; empty for a thunk.
    fingerprint: str = ""
    #: Whether the key is drawn from the name.
    auto: bool = False
    #: What the step does, besides calling its body.
    kind: StepKind = PLAIN
    #: Whether the body must never be started again once it has begun.
    at_most_once: bool = False
    #: Whether every execution does the step anew.
    cleanup: bool = False
    #: What the key begins with: the scope in which the call was made, with its slash; see `scopes`.
    scope: str = ""
    #: The key of the item of a map in whose body the call was made.
    within: str | None = None
    #: As in a `StepRecord`.
    at_end: str = ""
    #: What it does of the run's closing; None for a step of the workflow.
    closing: ClosingStep | None = None

    # -- the circumstances in which it was asked for

    #: Whether the call was made outside the workflow's own task or thread, or beside another call.
    concurrent: bool = False
    #: The race in a branch of which the call was made.
    race: Call | None = None
    #: Whether it was made while its branch was being cancelled.
    amid_cancellation: bool = False
    #: The place of the next record when the call was made.
    started: int = 0
    #: Whether a replay need not come by here.
    unordered: bool = False
    #: The keys of the steps whose exceptions were in flight.
    amid: tuple[str, ...] = ()
    #: Whether a cancellation was in flight: then the record counts only if the workflow went on.
    left: bool = False
    #: The keys of the steps called while a cancellation was in flight, after which the workflow did go on.
    kept: tuple[str, ...] = ()
    #: What stands in the way of this call from the start.
    refusal: Raise | Abort | Leave | None = None

    # -- what has become of it

    #: Where the call stands.
    phase: Phase = Phase.DRAWN
    #: Whether the journal counts the call among those that are running.
    opened: bool = False
    #: Whether its body has called steps of its own.
    holds: bool = False
    #: The keys of those whose failures led to its own.
    led: tuple[str, ...] = ()
    #: Whether the body has been reported as silent for too long.
    stalled: bool = False
    #: How many attempts have begun.
    attempts: int = 0
    #: When the first attempt began, perhaps before this process did.
    first: float | None = None
    #: When the last attempt began.
    began: float = 0.0
    #: When the next attempt is due, or the patience of a call that listens is at its end.
    due: float | None = None
    #: How often a call that listens has looked for its signal in vain.
    polls: int = 0
    #: The number of the signal that it received.
    signal: int | None = None
    #: The id of the child that it has started, or whose end it has heard of.
    child: str = ""
    #: How often the transaction of this attempt was the victim of a conflict.
    conflicts: int = 0
    #: How often the database was lost under the transaction of this attempt.
    lost: int = 0
    #: The place given to a record that was to be committed with a transaction, until it is known to be filled.
    seq: int | None = None
    #: The place of the record of its outcome, once that is on its way.
    place: int = -1
    #: What the driver knows of the record on its way, where an interrupt may leave no chance to report it:
    #: True once it is acknowledged, None while that is not known.
    stored: bool | None = False
    #: The attempt that was recorded last, or is being recorded.
    attempt: AttemptRecord | None = None
    #: The outcome that is being recorded.
    record: StepRecord | None = None
    #: The live exception of the body, for the traceback of the one that is rebuilt from the record.
    original: BaseException | None = None
