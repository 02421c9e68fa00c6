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

from collections.abc import Iterable
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
    "EarlierExecution",
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
    "render",
    "set_aside",
    "undecided",
]

FORMAT_VERSION: Final = 1
NO_TIME: Final = 0.0  # the very object is left out of a record: a body of less than half a millisecond costs no bytes
MAX_EARLIER: Final = 10  # executions that a header remembers besides the last


Moment: TypeAlias = Annotated[datetime, Meta(tz=True)]
Epoch: TypeAlias = Annotated[int, Meta(ge=0, lt=2**62)]  # so that PostgreSQL's bigint holds the next one too


class Status(StrEnum):
    """What a header says of its run. `running` without a live lease means interrupted."""

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
    """An exception as JSON. `type` is its class, `module:Class`, and `bases` are those that it can be caught by besides.

    `args` are its arguments and `state` is what it carries besides. Without `args` it is not rebuilt, and `state` is what of
    it is plain.

    `sealed` is all but the type as the store's codec wrote it, where that is another than JSON's; the rest is empty then.
    """

    type: str
    message: str
    args: Raw | UnsetType = UNSET
    state: Raw | UnsetType = UNSET
    bases: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    cause: ErrorRecord | None = None
    members: tuple[ErrorRecord, ...] = ()
    traceback: str = ""
    sealed: Raw | UnsetType = UNSET

    def __repr__(self) -> str:
        return f"<ErrorRecord of {self.type}>"  # its text may say as much as a value


class StepRecord(Struct, frozen=True, omit_defaults=True, gc=False):
    """How a step settled: its value's JSON when `ok`, else its error.

    `auto` says that the key was drawn from the name; `concurrent` that the step was called outside the workflow's own
    task, or beside another; `unordered` that a replay need not come by here (it was called while an exception was handled,
    or after a step that left no record); `fingerprint` is a hash of its arguments, absent for a thunk; `once` that the
    body must not be started again, however it ended; `signal` is the number of the signal that it received; `transaction`
    that its body's work was committed with this record. The `attempt`-th attempt was the last, and its body took so many
    `seconds`, to the millisecond: from `at - seconds` to `at`, but for the time of the commit. What a retry or a wait took
    before is not in it.

    `at` and `epoch` are those of its `Record`, once it is part of a document; a journal has columns for them.

    What a run did while it was failing or being left: `started` is the place of the next record when the step was called,
    absent where that is this record's own; `amid` the keys of the steps whose exceptions were in flight then; `left` the
    epoch of the lease where a cancellation was in flight, so that the record counts only if the workflow went on; `kept` the
    keys of such steps after which it did go on; `cleanup` that the step is called anew whenever the run is taken up again.
    """

    name: str
    ok: bool
    value: Raw | UnsetType = UNSET
    error: ErrorRecord | None = None
    auto: bool = False
    concurrent: bool = False
    unordered: bool = False
    fingerprint: str = ""
    once: bool = False
    signal: int | None = None
    transaction: bool = False
    started: int | None = None
    amid: tuple[str, ...] = ()
    left: int | None = None
    kept: tuple[str, ...] = ()
    cleanup: bool = False
    seconds: float = NO_TIME
    attempt: int = 1
    at: Moment | None = None
    epoch: Epoch = 0

    def __repr__(self) -> str:
        return f"<StepRecord of {self.name!r}, {'ok' if self.ok else 'failed'}>"

    @property
    def json(self) -> bytes:
        """The JSON of the value; empty for a failed step."""
        return b"" if self.value is UNSET else bytes(self.value)


class AttemptRecord(Struct, frozen=True, omit_defaults=True, gc=False):
    """What is known of a step that has not settled: its attempt `number` has failed, and the next is `due`.

    Without `due` that attempt has begun, which is recorded for at-most-once steps only. `began` is when the first attempt
    did. Moments are aware, in UTC; `at` and `epoch` as in a `StepRecord`.
    """

    name: str
    number: int
    began: datetime
    due: datetime | None = None
    error: ErrorRecord | None = None
    fingerprint: str = ""
    at: Moment | None = None
    epoch: Epoch = 0


class FailureRecord(Struct, frozen=True, omit_defaults=True):
    """How a run failed: its exception, and the `again` keys, whose recorded failures led to it and run again.

    `ambiguous` names steps that several branches called without a key: no execution may number them any more. `step` is the
    key of the step that raised the exception, or the one it came of first; `at` and `epoch` are as in a `StepRecord`.

    `undecided` are the steps that were called while the exception that ended the run was in flight: before the run is taken
    up again, `durable.retry` has to say what becomes of them. `kept` as in a `StepRecord`.
    """

    error: ErrorRecord
    again: tuple[str, ...] = ()
    ambiguous: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    step: str = ""
    at: Moment | None = None
    epoch: Epoch = 0


class AsideRecord(Struct, frozen=True, omit_defaults=True, gc=False):
    """The places of the records that count no more, and the `keys` whose records they are; `from_step` as given to `retry`."""

    seqs: tuple[int, ...]
    keys: tuple[str, ...] = ()
    from_step: str = ""


class ErrorSummary(Struct, frozen=True, omit_defaults=True, gc=False):
    """What ended a failed run, for filters: the exception's class, `module:Class`, and the key of the step that raised it.

    `step` is empty where no step did. The message is left out: it may quote a value.
    """

    type: str
    step: str = ""


class EarlierExecution(Struct, frozen=True, gc=False):
    """An execution of a run before the last one; see `Execution`."""

    epoch: Epoch
    owner: str
    began: str


class Execution(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Where a run stands, and its last execution. Moments are ISO 8601 texts by the server's clock.

    The run was claimed first at `started_at`. `epoch` counts its leases from 1: the last one was given to `owner`, a process
    as `host:pid`, when it `began`; `earlier` are the up to ten executions before that, the oldest first. `error` is there
    while the run stands as failed.
    `needs_decision` says that a failed run is not taken up again before `durable.retry` has set some steps aside.
    """

    status: str
    last_updated: str = ""
    completed_at: str | None = None
    current_step_id: str | None = None
    started_at: str = ""
    epoch: Epoch = 0
    owner: str = ""
    began: str = ""
    earlier: tuple[EarlierExecution, ...] = ()
    error: ErrorSummary | None = None
    needs_decision: bool = False


class Header(Struct, frozen=True, rename="camel"):
    """The document in the documented table.

    `metadata` holds `version`, `inputHash`, `workflowFunction` (`module:qualified.name`, absent where the workflow's name
    was given), and what the user gave.
    """

    workflow_name: str
    execution: Execution
    format_version: int = FORMAT_VERSION
    steps: dict[str, Any] = {}
    metadata: dict[str, Any] = {}


class Record(NamedTuple):
    """A line of the journal: its place, its key, its kind and its JSON text.

    `at` is when it was stored, by the store's clock, aware and in UTC; `epoch` under which lease of the run, counted from 1.
    Both are the store's to say: None and 0 in a record that is still to be written, and in one of a document that was saved
    without them.
    """

    seq: int
    key: str
    kind: str
    text: str
    at: datetime | None = None
    epoch: int = 0

    def __repr__(self) -> str:
        return f"<Record {self.seq} of {self.key!r}, {self.kind}>"


_T = TypeVar("_T")
_encoder: Final = msgspec.json.Encoder()
_decoders: Final[dict[type, msgspec.json.Decoder[Any]]] = {
    type_: msgspec.json.Decoder(type_) for type_ in (StepRecord, AttemptRecord, FailureRecord, AsideRecord, Header)
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


def set_aside(records: Iterable[Record], *, run_id: str) -> frozenset[int]:
    """The places of the records that others among them have set aside."""
    asides = [record for record in records if record.kind == Kind.ASIDE]
    return frozenset(
        seq
        for record in asides
        for seq in parse(record.text, AsideRecord, run_id=run_id, where=f"the aside record (seq {record.seq})").seqs
    )


def undecided(record: Record, *, run_id: str) -> tuple[str, ...]:
    """The steps that a run's last record leaves to be decided on; none where it is no failure."""
    if record.kind != Kind.FAILURE:
        return ()
    return parse(record.text, FailureRecord, run_id=run_id, where="the failure record").undecided


def _without_payload(problem: Exception) -> str:
    return str(problem) if isinstance(problem, msgspec.ValidationError) else "it is not the JSON of a record"
