"""The wire format: what a run looks like in the store, and its validation.

A run is stored as one header document and a journal of records. Column by column a journal record is

| kind | key | record |
| --- | --- | --- |
| `input` | `input` | the input's JSON |
| `attempt` | the step's key | an `AttemptRecord`: what a step remembers on its way |
| `step` | the step's key | a `StepRecord` |
| `result` | `result` | the result's JSON |
| `failure` | `failure` | a `FailureRecord` |
| `aside` | `aside` | an `AsideRecord`: earlier records that count no more |

`seq` is given by the lease holder and grows; where a key occurs twice the greater `seq` counts. Everything here is plain
JSON that SQL can read: `record->'value'->>'total'`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final, NamedTuple, TypeAlias, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from durable.errors import UnreadableRecord

__all__ = [
    "FORMAT_VERSION",
    "MAX_EARLIER",
    "NO_TIME",
    "AsideRecord",
    "AttemptRecord",
    "CancelRequest",
    "Drawable",
    "EarlierExecution",
    "Ending",
    "Epoch",
    "ErrorRecord",
    "ErrorSummary",
    "Execution",
    "FailureRecord",
    "Header",
    "Kind",
    "Moment",
    "Record",
    "Status",
    "StepRecord",
    "parse",
    "places_set_aside",
    "render",
    "undecided_keys",
]

FORMAT_VERSION: Final = 1
NO_TIME: Final = 0.0  # the very object is left out of a record: a body of less than half a millisecond costs no bytes
MAX_EARLIER: Final = 10  # executions that a header remembers besides the last


Moment: TypeAlias = Annotated[datetime, Meta(tz=True)]
Drawable: TypeAlias = str | float | bool  # a moment or a UUID as its text, a number, or whether a patch is taken
Epoch: TypeAlias = Annotated[int, Meta(ge=0, lt=2**62)]  # so that PostgreSQL's bigint holds the next one too


class Status(StrEnum):
    """What a header says of its run. `running` without a live lease means interrupted; `queued` waits for a worker."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Kind(StrEnum):
    """What a journal record remembers."""

    INPUT = "input"
    ATTEMPT = "attempt"
    STEP = "step"
    RESULT = "result"
    FAILURE = "failure"
    ASIDE = "aside"


class ErrorRecord(Struct, frozen=True, omit_defaults=True, gc=False):
    """An exception as JSON."""

    #: Its class, as `module:Class`.
    type: str
    #: What `str` says of it.
    message: str
    #: Its arguments. An exception whose arguments are not recorded is not rebuilt.
    args: Raw | UnsetType = UNSET
    #: What it carries besides; without `args`, what of that is plain.
    state: Raw | UnsetType = UNSET
    #: The classes by which it can be caught besides its own.
    bases: tuple[str, ...] = ()
    #: Its notes.
    notes: tuple[str, ...] = ()
    #: The exception that it was raised from.
    cause: ErrorRecord | None = None
    #: The members of a group.
    members: tuple[ErrorRecord, ...] = ()
    #: The text of its traceback.
    traceback: str = ""
    #: All but the type, as the store's codec wrote it where that is another than JSON's; the rest is empty then.
    sealed: Raw | UnsetType = UNSET

    def __repr__(self) -> str:
        return f"<ErrorRecord of {self.type}>"  # its text may say as much as a value


class Ending(Struct, frozen=True, omit_defaults=True, gc=False):
    """How a run is to end, once its closing has."""

    #: A `Status`.
    status: str
    #: How it has failed, if it has.
    failure: FailureRecord | None = None
    #: The JSON of its result, if it has one.
    result: Raw | UnsetType = UNSET
    #: Why it was cancelled, as the caller said.
    reason: str | None = None


class StepRecord(Struct, frozen=True, omit_defaults=True, gc=False):
    """How a step settled."""

    #: The step's name.
    name: str
    #: Whether the body returned; else it raised.
    ok: bool
    #: The JSON of what it returned.
    value: Raw | UnsetType = UNSET
    #: What it raised.
    error: ErrorRecord | None = None
    #: Whether the key was drawn from the name.
    auto: bool = False
    #: Whether the step was called outside the workflow's own task or thread, or beside another.
    concurrent: bool = False
    #: Whether a replay need not come by here: it was called while an exception was handled, or after a step without a record.
    unordered: bool = False
    #: A hash of the arguments; empty for a thunk.
    fingerprint: str = ""
    #: Whether the body must not be started again, however it ended.
    once: bool = False
    #: The number of the signal that it received.
    signal: int | None = None
    #: Whether the body's work was committed with this record.
    transaction: bool = False
    #: The place of the next record when the step was called; None where that is this record's own.
    started: int | None = None
    #: The keys of the steps whose exceptions were in flight then.
    amid: tuple[str, ...] = ()
    #: The epoch of the lease, where a cancellation was in flight: the record counts only if the workflow went on.
    left: int | None = None
    #: The keys of such steps after which it did go on.
    kept: tuple[str, ...] = ()
    #: Whether the step is called anew whenever the run is taken up again.
    cleanup: bool = False
    #: Whether the body called steps of its own, whose keys begin with this step's key and a slash.
    holds: bool = False
    #: The keys of those whose failures led to this one.
    led: tuple[str, ...] = ()
    #: How long the body took in its last attempt, to the millisecond: from `at - seconds` to `at`, but for the commit.
    seconds: float = NO_TIME
    #: Which attempt was the last one.
    attempt: int = 1
    #: What the workflow had drawn with `step.now()`, `step.uuid()` and `step.random()`, and been told by
    #: `step.patched()`, before this was recorded, and not before another record that is known to be stored. By name: `now`,
    #: `now#2`; `now:KEY` where a key was given; `patched:NAME`; within a scope `SCOPE/now`.
    drawn: Mapping[str, Drawable] | None = None
    #: The key of the race in a branch of which the step was called; empty where that is none.
    race: str = ""
    #: What is to be done about it when the run ends: "undo", or "call" for a `step.on_end`; empty for nothing.
    at_end: str = ""
    #: Of a step of the run's closing, the key of the one that it undoes, or of the `step.on_end` that it performs.
    closes: str = ""
    #: Of the first record of a closing, how the run ends after it.
    ending: Ending | None = None
    #: When it was stored. In a document only, like `epoch`: a journal has columns for both.
    at: Moment | None = None
    #: Under which lease of the run it was stored.
    epoch: Epoch = 0
    #: The id of the child of which this is the outcome.
    child: str = ""

    def __repr__(self) -> str:
        return f"<StepRecord of {self.name!r}, {'ok' if self.ok else 'failed'}>"

    @property
    def json(self) -> bytes:
        """The JSON of the value; empty for a failed step."""
        return b"" if self.value is UNSET else bytes(self.value)


class AttemptRecord(Struct, frozen=True, omit_defaults=True, gc=False):
    """An unfinished step: its attempts so far, or that it has begun. Moments are aware, in UTC."""

    #: The step's name.
    name: str
    #: Which attempt this is.
    number: int
    #: When the first attempt began.
    began: datetime
    #: When the next attempt is due, this one having failed. None: this one has begun, as is recorded for at-most-once steps.
    due: datetime | None = None
    #: What the body raised.
    error: ErrorRecord | None = None
    #: As in a `StepRecord`.
    fingerprint: str = ""
    #: As in a `StepRecord`.
    drawn: Mapping[str, Drawable] | None = None
    #: As in a `StepRecord`.
    at: Moment | None = None
    #: As in a `StepRecord`.
    epoch: Epoch = 0
    #: The id of the child that was started with this record; `due` is `began` then.
    child: str = ""


class FailureRecord(Struct, frozen=True, omit_defaults=True):
    """How a run failed."""

    #: The exception that ended it.
    error: ErrorRecord
    #: The keys of the steps whose recorded failures led to it, and that run again.
    again: tuple[str, ...] = ()
    #: The names of steps that several branches called without a key: no execution may number them any more.
    ambiguous: tuple[str, ...] = ()
    #: The keys of the steps that were called while that exception was in flight: before the run is taken up again,
    #: `durable.retry` has to say what becomes of them.
    undecided: tuple[str, ...] = ()
    #: As in a `StepRecord`.
    kept: tuple[str, ...] = ()
    #: The key of the step that raised the exception, or of the one it came of first; empty where there is none.
    step: str = ""
    #: The places of the records that count no more, once the closing of the run has ended: what it has undone, with all that
    #: started after that, and the closing itself.
    seqs: tuple[int, ...] = ()
    #: The keys of the steps whose records they are.
    keys: tuple[str, ...] = ()
    #: The key of the first one that was undone.
    from_step: str = ""
    #: As in a `StepRecord`.
    at: Moment | None = None
    #: As in a `StepRecord`.
    epoch: Epoch = 0


class AsideRecord(Struct, frozen=True, omit_defaults=True, gc=False):
    """Which records count no more."""

    #: Their places.
    seqs: tuple[int, ...]
    #: The keys of the steps whose records they are.
    keys: tuple[str, ...] = ()
    #: As given to `durable.retry`.
    from_step: str = ""
    #: As in a `FailureRecord`, of a run that was cancelled.
    undecided: tuple[str, ...] = ()


class ErrorSummary(Struct, frozen=True, omit_defaults=True, gc=False):
    """What ended a failed run, for filters. The message is left out: it may quote a value."""

    #: The exception's class, as `module:Class`.
    type: str
    #: The key of the step that raised it; empty where no step did.
    step: str = ""


class EarlierExecution(Struct, frozen=True, gc=False):
    """An execution of a run before the last one."""

    #: As in an `Execution`.
    epoch: Epoch
    #: As in an `Execution`.
    owner: str
    #: As in an `Execution`.
    began: str


class Execution(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Where a run stands, and its last execution. Moments are ISO 8601 texts by the server's clock."""

    #: A `Status`.
    status: str
    #: When the header was changed last.
    last_updated: str = ""
    #: When the run was completed.
    completed_at: str | None = None
    #: Never written here; other tools name the step that is running.
    current_step_id: str | None = None
    #: When the run was claimed first.
    started_at: str = ""
    #: How many leases of the run were granted.
    epoch: Epoch = 0
    #: The process that got the last one, as `host:pid`.
    owner: str = ""
    #: When it got it.
    began: str = ""
    #: Up to ten executions before that, the oldest first.
    earlier: tuple[EarlierExecution, ...] = ()
    #: What ended the run, while it stands as failed.
    error: ErrorSummary | None = None
    #: Whether the failed run is not taken up again before `durable.retry` has set some steps aside.
    needs_decision: bool = False
    #: How many workers in a row have died under it without recording anything.
    crashes: int = 0


class CancelRequest(Struct, frozen=True, omit_defaults=True, gc=False):
    """That a run was asked to be cancelled: it closes, and is cancelled then."""

    #: When, as an ISO 8601 text by the server's clock.
    at: str = ""
    #: Why, as the caller said.
    reason: str | None = None
    #: What tells this request from every other one.
    nonce: int = 0
    #: Whether it is cancelled because the run that has started it is.
    with_parent: bool = False


class Header(Struct, frozen=True, rename="camel"):
    """The document in the documented table."""

    #: The workflow's name.
    workflow_name: str
    #: Where the run stands.
    execution: Execution
    #: The format in which this is written.
    format_version: int = FORMAT_VERSION
    #: Empty here: the steps are in the journal.
    steps: dict[str, Any] = {}
    #: `version`, `inputHash`, `workflowFunction` (`module:qualified.name`, absent where the workflow was named), `deadline` (a
    #: moment; of a run that was started), and what the user gave.
    metadata: dict[str, Any] = {}
    #: The store's prefix, the queue, and the text that no other run there has which has not ended.
    dedup: tuple[str, str, str] | UnsetType = UNSET
    #: Of a run that was started without an input, whose record would have it: what tells this start from any other.
    nonce: int | UnsetType = UNSET
    #: How often the run was continued with a new input.
    continued: int | UnsetType = UNSET
    #: Of a child, the id under which the run that has started it stands in the table, and the name of the signal by which
    #: that is told of its end.
    parent: tuple[str, str] | UnsetType = UNSET
    #: Who has asked last that it is cancelled. It counts while the run is open.
    cancel: CancelRequest | UnsetType = UNSET

    @property
    def is_open(self) -> bool:
        """Whether the run is not over."""
        return self.execution.status in (Status.QUEUED, Status.RUNNING)


class Record(NamedTuple):
    """A line of the journal."""

    #: Its place.
    seq: int
    #: The step's key, or what else it is about.
    key: str
    #: A `Kind`.
    kind: str
    #: Its JSON.
    text: str
    #: When it was stored, by the store's clock, aware and in UTC. The store's to say, like `epoch`: None in a record that is
    #: still to be written, and in one of a document that was saved without it.
    at: datetime | None = None
    #: Under which lease of the run it was stored, counted from 1; 0 where `at` is None.
    epoch: int = 0

    def __repr__(self) -> str:
        return f"<Record {self.seq} of {self.key!r}, {self.kind}>"


class _Places(Struct, frozen=True, gc=False):
    """What a record says of the places that it sets aside."""

    seqs: tuple[int, ...] = ()


_T = TypeVar("_T")
_SETTING_ASIDE: Final = (Kind.ASIDE, Kind.FAILURE)
_encoder: Final = msgspec.json.Encoder()
_decoders: Final[dict[type, msgspec.json.Decoder[Any]]] = {
    type_: msgspec.json.Decoder(type_)
    for type_ in (StepRecord, AttemptRecord, FailureRecord, AsideRecord, Header, _Places)
}


def render(content: StepRecord | AttemptRecord | FailureRecord | AsideRecord) -> str:
    """The JSON text of a record."""
    return _encoder.encode(content).decode()


def parse(text: str, type_: type[_T], *, run_id: str, where: str) -> _T:
    """What a stored text says; `UnreadableRecord` when it says nothing that this version knows."""
    try:
        content: _T = _decoders[type_].decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as problem:
        raise UnreadableRecord(run_id, where, _without_payload(problem)) from None
    return content


def places_set_aside(records: Iterable[Record], *, run_id: str) -> frozenset[int]:
    """The places of the records that others among them have set aside."""
    asides = [record for record in records if record.kind in _SETTING_ASIDE]
    return frozenset(
        seq
        for record in asides
        for seq in parse(record.text, _Places, run_id=run_id, where=f"the {record.kind} record (seq {record.seq})").seqs
    )


def undecided_keys(record: Record, *, run_id: str) -> tuple[str, ...]:
    """The steps that a run's last record leaves to be decided on; none where it is no failure."""
    if record.kind != Kind.FAILURE:
        return ()
    return parse(record.text, FailureRecord, run_id=run_id, where="the failure record").undecided


def _without_payload(problem: Exception) -> str:
    return str(problem) if isinstance(problem, msgspec.ValidationError) else "it is not the JSON of a record"
