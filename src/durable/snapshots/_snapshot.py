"""`Snapshot`: the whole stored state of a run."""

# Its annotations are classes, not texts: they would be looked up in the module that it names.

from collections.abc import Mapping
from typing import Any, Final, Self, cast

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType, structs

from durable.errors import InvalidArgument
from durable.records import FORMAT_VERSION, AttemptRecord, Execution, FailureRecord, Kind, Status, StepRecord
from durable.snapshots._documents import (
    attempt_of,
    failure_of,
    foreign_failures_in,
    header_in,
    raw_of,
    read_document,
    records_in,
    step_of,
)

_encode: Final = msgspec.json.Encoder().encode


class Snapshot(Struct, frozen=True, kw_only=True, repr_omit_defaults=True):
    """The whole stored state of a run: what it was started with, what is remembered of its steps, and how it ended.

    `workflow_name` is empty where another tool did not say it. `metadata` holds `version`, `inputHash`, `workflowFunction`
    and what the user gave. `attempts` are what is known of steps that have begun and not settled. `input` and `result` are
    JSON texts, `UNSET` where there is none; `failure` says how a run failed.
    """

    __module__ = "durable.snapshots"  # as records name it: a step may return one

    workflow_name: str = ""
    steps: dict[str, StepRecord] = {}
    attempts: dict[str, AttemptRecord] = {}
    execution: Execution = msgspec.field(default_factory=lambda: Execution(Status.RUNNING))
    metadata: dict[str, Any] = {}
    input: Raw | UnsetType = UNSET
    result: Raw | UnsetType = UNSET
    failure: FailureRecord | None = None

    def __repr__(self) -> str:
        name = f" of {self.workflow_name!r}" if self.workflow_name else ""
        return f"<Snapshot{name}, {self.execution.status}, {len(self.steps)} steps>"

    def to_json(self) -> bytes:
        """The document, as JSON in UTF-8: for a store of your own, a file, or another tool."""
        document: dict[str, Any] = {"formatVersion": FORMAT_VERSION}
        if self.workflow_name:
            document["workflowName"] = self.workflow_name
        document["steps"] = {key: _render_step(step) for key, step in self.steps.items()}
        document["execution"] = self.execution
        document["metadata"] = self.metadata
        if self.attempts:
            document["attempts"] = self.attempts
        for name in ("input", "result", "failure"):
            part = getattr(self, name)
            if part is not UNSET and part is not None:
                document[name] = part
        return _encode(document)

    def document(self) -> dict[str, Any]:
        """The document, as plain dicts and lists."""
        return cast(dict[str, Any], msgspec.json.decode(self.to_json()))

    @classmethod
    def from_json(cls, text: str | bytes, *, run_id: str = "?") -> Self:
        """The snapshot that a document describes, awaitly's included.

        Raises `UnreadableRecord`, naming `run_id` and the part, when it is none that this version knows.
        """
        document = read_document(text, run_id)
        header, records = header_in(document, run_id), list(records_in(document, run_id))
        steps = {record.key: step_of(record, run_id) for record in records if record.kind == Kind.STEP}
        parts = {record.kind: record for record in records if record.kind not in (Kind.STEP, Kind.ATTEMPT)}
        return cls(
            workflow_name=header.workflow_name,
            steps=steps | foreign_failures_in(document, run_id),
            attempts={record.key: attempt_of(record, run_id) for record in records if record.kind == Kind.ATTEMPT},
            execution=header.execution,
            metadata=header.metadata,
            input=raw_of(parts.get(Kind.INPUT)),
            result=raw_of(parts.get(Kind.RESULT)),
            failure=failure_of(parts[Kind.FAILURE], run_id) if Kind.FAILURE in parts else None,
        )

    @classmethod
    def from_document(cls, document: Mapping[str, Any], *, run_id: str = "?") -> Self:
        """The same for a document of plain dicts and lists; `InvalidArgument` when it is not JSON at all."""
        try:
            text = _encode(dict(document))
        except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as problem:
            raise InvalidArgument(
                f"a snapshot is a JSON document, and this is none ({type(problem).__name__})"
            ) from None
        return cls.from_json(text, run_id=run_id)


def _render_step(step: StepRecord) -> Any:
    """A step of a document: its record, and with a failed one the `cause` and `meta` that awaitly looks for."""
    if step.ok or step.error is None:
        return step
    cause = {"type": "error", "name": step.error.type.rpartition(":")[2], "message": step.error.message}
    # Spliced, since decoding could change the numbers of the error's arguments.
    return Raw(_encode(step)[:-1] + b',"cause":' + _encode(cause) + b',"meta":{"origin":"throw"}}')


def as_history(snapshot: Snapshot) -> Snapshot:
    """The run with everything that it did as history: clean-up, and what it did while it was being left, included."""
    steps = {
        key: structs.replace(step, left=None, cleanup=False) if step.cleanup or step.left is not None else step
        for key, step in snapshot.steps.items()
    }
    failure = snapshot.failure and structs.replace(snapshot.failure, undecided=())
    execution = structs.replace(snapshot.execution, needs_decision=False)
    return structs.replace(snapshot, steps=steps, failure=failure, execution=execution)
