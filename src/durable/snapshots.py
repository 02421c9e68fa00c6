"""A run as one document: the `Snapshot` that `save` and `load` speak of, and its translation to a journal and back.

The document is the wire format of the documented table, and readable by any tool:

```json
{"formatVersion": 1, "workflowName": "checkout",
 "steps": {"charge": {"name": "charge", "ok": true, "value": {"payment": "p-1"},
                      "at": "2026-01-15T10:29:58.125000Z", "epoch": 1},
           "ship": {"name": "ship", "ok": false, "error": {"type": "builtins:OSError", "message": "no ship"},
                    "cause": {"type": "error", "name": "OSError", "message": "no ship"}}},
 "execution": {"status": "failed", "lastUpdated": "2026-01-15T10:30:00+00:00"},
 "metadata": {"version": 1}, "input": {"order": 7}, "failure": {"error": {"type": "…"}, "again": ["ship"]}}
```

What awaitly wrote is read as well: its snapshots, which know no step's `name`, and say as `workflowName` nothing or the run's
id (`runs.is_foreign` tells them); and its resume states, `{"kind": "ResumeState", "steps": [[key, step], …]}`. In its format a
recorded failure is a step that ran; here it runs again, so it is shown and not replayed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Self, TypeVar, cast

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType, structs

from durable.errors import InvalidArgument, UnreadableRecord
from durable.records import (
    FORMAT_VERSION,
    MAX_EARLIER,
    AsideRecord,
    AttemptRecord,
    Epoch,
    ErrorRecord,
    Execution,
    FailureRecord,
    Header,
    Kind,
    Moment,
    Record,
    Status,
    StepRecord,
    parse,
    render,
    set_aside,
)

__all__ = ["Snapshot", "as_history", "header_and_records", "journal_of", "named", "snapshot_of", "whole"]

_RESUME_STATE: Final = "ResumeState"
_SOMEBODYS: Final = "?"


class Snapshot(Struct, frozen=True, kw_only=True, repr_omit_defaults=True):
    """The whole stored state of a run: what it was started with, what is remembered of its steps, and how it ended.

    `workflow_name` is empty where another tool did not say it. `metadata` holds `version`, `inputHash`, `workflowFunction`
    and what the user gave. `attempts` are what is known of steps that have begun and not settled. `input` and `result` are
    JSON texts, absent where there is none; `failure` says how a run failed.
    """

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
        document["steps"] = {key: _shown(step) for key, step in self.steps.items()}
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
        stored = _stored(text, run_id)
        header, records = _header(stored, run_id), list(_records(stored, run_id))
        named = {record.key: _step(record, run_id) for record in records if record.kind == Kind.STEP}
        foreign = {key: step for key, raw in _steps(stored, run_id) if (step := _foreign_failure(raw)) is not None}
        parts = {record.kind: record for record in records if record.kind not in (Kind.STEP, Kind.ATTEMPT)}
        return cls(
            workflow_name=header.workflow_name,
            steps=named | foreign,
            attempts={record.key: _attempt(record, run_id) for record in records if record.kind == Kind.ATTEMPT},
            execution=header.execution,
            metadata=header.metadata,
            input=_raw(parts.get(Kind.INPUT)),
            result=_raw(parts.get(Kind.RESULT)),
            failure=_failure(parts[Kind.FAILURE], run_id) if Kind.FAILURE in parts else None,
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


def snapshot_of(header: Header, records: Iterable[Record], *, run_id: str) -> Snapshot:
    """A run's header and journal as one document: of a key the latest record that was not set aside."""
    records = tuple(records)
    gone = set_aside(records, run_id=run_id)
    seqs: dict[str, int] = {}
    steps: dict[str, StepRecord] = {}
    attempts: dict[str, AttemptRecord] = {}
    parts: dict[str, Record] = {}
    failure: FailureRecord | None = None
    again: set[str] = set()
    mended = False
    for record in records:
        if record.seq in gone:
            mended |= failure is not None
        elif record.kind == Kind.STEP:
            steps.pop(record.key, None)
            attempts.pop(record.key, None)
            steps[record.key] = _step(record, run_id)
            seqs[record.key] = record.seq
            again.discard(record.key)
            mended |= failure is not None
        elif record.kind == Kind.ATTEMPT:
            steps.pop(record.key, None)
            attempts[record.key] = _attempt(record, run_id)
            mended |= failure is not None
        elif record.kind == Kind.FAILURE:
            last = _failure(record, run_id)
            known = failure.ambiguous if failure else ()
            failure = structs.replace(last, ambiguous=tuple(dict.fromkeys((*known, *last.ambiguous))))
            again |= set(last.again)
        elif record.kind == Kind.ASIDE:
            mended = True
            if failure is not None:
                decided = parse(record.text, AsideRecord, run_id=run_id, where=record.key).keys
                failure = structs.replace(failure, undecided=tuple(s for s in failure.undecided if s not in decided))
        else:
            parts[record.kind] = record
    if mended:  # what came before may lie on a path that is never taken again: no replay is held to its order
        steps = {key: structs.replace(step, unordered=True) for key, step in steps.items()}
    first = min((record.seq for record in records if record.kind != Kind.INPUT), default=0)
    steps = _renumbered(steps, seqs, min(first, 0))
    if failure is not None:
        failure = structs.replace(failure, again=tuple(key for key in steps if key in again))
    return Snapshot(
        workflow_name=header.workflow_name,
        steps=steps,
        attempts=attempts,
        execution=header.execution,
        metadata=header.metadata,
        input=_raw(parts.get(Kind.INPUT)),
        result=_raw(parts.get(Kind.RESULT)),
        failure=failure if header.execution.status != Status.COMPLETED else None,
    )


def _renumbered(steps: dict[str, StepRecord], seqs: dict[str, int], first: int) -> dict[str, StepRecord]:
    """The steps as a document has them: where one `started` is counted by its steps, and not by the places of a journal.

    `first` is the place of the journal's own document, if it began with one.
    """
    if all(step.started is None for step in steps.values()):
        return steps
    places = [seqs[key] for key in steps]
    renumbered: dict[str, StepRecord] = {}
    for place, (key, step) in enumerate(steps.items()):
        started = None
        if step.started is not None:
            seq = step.started + first if places[place] < 0 else step.started
            started = bisect_left(places, seq)
        renumbered[key] = structs.replace(step, started=None if started == place else started)
    return renumbered


def as_history(snapshot: Snapshot) -> Snapshot:
    """The run with all that it did for history, also what it did while it was being left, and its clean-up."""
    steps = {
        key: structs.replace(step, left=None, cleanup=False) if step.cleanup or step.left is not None else step
        for key, step in snapshot.steps.items()
    }
    failure = snapshot.failure and structs.replace(snapshot.failure, undecided=())
    execution = structs.replace(snapshot.execution, needs_decision=False)
    return structs.replace(snapshot, steps=steps, failure=failure, execution=execution)


def named(problem: UnreadableRecord, run_id: str) -> UnreadableRecord:
    """The problem of a document that was read without being told whose it is."""
    return UnreadableRecord(run_id, problem.where, problem.problem) if problem.run_id == _SOMEBODYS else problem


def whole(text: str, journal: Sequence[Record], *, run_id: str) -> Snapshot:
    """What the documented table holds of a run, and what its journal has added, as one document."""
    document = Snapshot.from_json(text, run_id=run_id)
    if not journal:
        return document
    header, records = header_and_records(text, run_id=run_id)
    return with_foreign_failures(snapshot_of(header, [*records, *journal], run_id=run_id), foreign_failures(document))


def foreign_failures(snapshot: Snapshot) -> dict[str, StepRecord]:
    """The failed steps of another tool, by key: they are no records, since they run again."""
    return {key: step for key, step in snapshot.steps.items() if not (step.ok or step.name)}


def with_foreign_failures(snapshot: Snapshot, failures: Mapping[str, StepRecord]) -> Snapshot:
    """The run with those that a reader should see: where nothing has come in their place."""
    shown = {key: step for key, step in failures.items() if key not in snapshot.attempts}
    return structs.replace(snapshot, steps=shown | snapshot.steps) if shown else snapshot


def journal_of(snapshot: Snapshot) -> tuple[Header, list[Record]]:
    """The snapshot as a header and the records that a journal would have held, before any that is still to come."""
    header = Header(snapshot.workflow_name, snapshot.execution, metadata=snapshot.metadata)
    return header, list(_records(_stored(snapshot.to_json(), _SOMEBODYS), _SOMEBODYS))


def header_and_records(text: str, *, run_id: str) -> tuple[Header, list[Record]]:
    """What the documented table holds of a run: its header, and the records that its document carries.

    These are numbered below zero, so that they come before the journal's. A step that cannot be read is handed on as it
    is: whoever loads it refuses it. Raises `UnreadableRecord` where not even that much is known.
    """
    stored = _stored(text, run_id)
    return _header(stored, run_id), list(_records(stored, run_id))


class _Stored(Struct, rename="camel"):
    """A document with its parts unread."""

    format_version: int | None = None
    kind: str | None = None
    workflow_name: str = ""
    steps: Raw | UnsetType = UNSET
    execution: Execution | None = None
    metadata: dict[str, Any] | None = None
    attempts: dict[str, Raw] = {}
    input: Raw | UnsetType = UNSET
    result: Raw | UnsetType = UNSET
    failure: Raw | UnsetType = UNSET


class _Stamp(Struct):
    """What a document says of a record, and a journal has columns for."""

    at: Moment | None = None
    epoch: Epoch = 0


class _ForeignStep(Struct):
    """A step as awaitly writes it."""

    ok: bool
    name: str = ""
    value: Raw | UnsetType = UNSET
    error: Any = None
    cause: Any = None


_encode: Final = msgspec.json.Encoder().encode
_read_stored: Final = msgspec.json.Decoder(_Stored)
_read_stamp: Final = msgspec.json.Decoder(_Stamp)
_read_foreign: Final = msgspec.json.Decoder(_ForeignStep)
_read_object: Final = msgspec.json.Decoder(dict[str, Raw])
_readers: Final[Mapping[str, msgspec.json.Decoder[Any]]] = {
    Kind.STEP: msgspec.json.Decoder(StepRecord),
    Kind.ATTEMPT: msgspec.json.Decoder(AttemptRecord),
    Kind.FAILURE: msgspec.json.Decoder(FailureRecord),
}
_read_pairs: Final = msgspec.json.Decoder(list[tuple[str, Raw]])


def _stored(text: str | bytes, run_id: str) -> _Stored:
    try:
        stored = _read_stored.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as problem:
        told = str(problem) if isinstance(problem, msgspec.ValidationError) else "it is not JSON"
        raise UnreadableRecord(run_id, "the snapshot", told) from None
    if stored.format_version is None and stored.kind != _RESUME_STATE:
        raise UnreadableRecord(run_id, "the snapshot", "it says no formatVersion")
    if stored.format_version not in (None, FORMAT_VERSION):
        problem_ = f"its format is {stored.format_version} and this library reads {FORMAT_VERSION}"
        raise UnreadableRecord(run_id, "the snapshot", problem_)
    if stored.execution is None and stored.kind != _RESUME_STATE:
        raise UnreadableRecord(run_id, "the snapshot", "it says nothing of its execution")
    return stored


def _header(stored: _Stored, run_id: str) -> Header:
    execution = stored.execution or Execution(Status.RUNNING)
    if execution.status not in set(Status):
        raise UnreadableRecord(
            run_id, "the snapshot", f"its status is {execution.status[:40]!r}, which is not known here"
        )
    return Header(stored.workflow_name, execution, metadata=stored.metadata or {})


def _steps(stored: _Stored, run_id: str) -> Sequence[tuple[str, Raw]]:
    if stored.steps is UNSET:
        return ()
    try:
        if bytes(stored.steps).startswith(b"["):  # awaitly's resume states keep their order by being arrays
            return _read_pairs.decode(stored.steps)
        return tuple(_read_object.decode(stored.steps).items())
    except (msgspec.MsgspecError, UnicodeError):
        raise UnreadableRecord(run_id, "the snapshot", "its steps are not steps by key") from None


def _records(stored: _Stored, run_id: str) -> Iterator[Record]:
    lines = [
        *((key, Kind.STEP, text) for key, raw in _steps(stored, run_id) if (text := _step_text(raw)) is not None),
        *((key, Kind.ATTEMPT, bytes(raw).decode()) for key, raw in stored.attempts.items()),
    ]
    if stored.failure is not UNSET:
        lines.append((Kind.FAILURE, Kind.FAILURE, bytes(stored.failure).decode()))
    execution, seq = stored.execution or Execution(Status.RUNNING), -len(lines) - (stored.result is not UNSET)
    if stored.input is not UNSET:
        # The first claim has written it. Which epoch that was is known while all executions are.
        first = execution.earlier[0].epoch if execution.earlier else execution.epoch
        epoch = first if len(execution.earlier) < MAX_EARLIER else 0
        text = bytes(stored.input).decode()
        yield Record(seq - 1, Kind.INPUT, Kind.INPUT, text, _moment(execution.started_at), epoch)
    for key, kind, text in lines:
        yield _stamped(Record(seq, key, kind, text))
        seq += 1
    if stored.result is not UNSET:
        text = bytes(stored.result).decode()
        yield Record(seq, Kind.RESULT, Kind.RESULT, text, _moment(execution.completed_at), execution.epoch)


def _stamped(record: Record) -> Record:
    """A record of a document as a journal has it, which says in columns when it was stored."""
    try:
        stamp = _read_stamp.decode(record.text)
        if stamp.at is None and not stamp.epoch:
            return record
        content = _readers[record.kind].decode(record.text)
    except msgspec.MsgspecError:
        return record  # none that its reader will take, who says so
    return Record(*record[:3], render(structs.replace(content, at=None, epoch=0)), stamp.at, stamp.epoch)


def _moment(text: str | None) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


def _step_text(raw: Raw) -> str | None:
    """A step of a document as a journal has it; None for one that is to run again."""
    text = bytes(raw).decode()
    try:
        step = _read_foreign.decode(raw)
    except msgspec.MsgspecError:
        return text  # not a step's record, which its reader will say
    if step.name:
        return text
    return render(StepRecord("", ok=True, value=_or_null(step.value), unordered=True)) if step.ok else None


def _foreign_failure(raw: Raw) -> StepRecord | None:
    """A failed step of awaitly's, to be shown."""
    try:
        step = _read_foreign.decode(raw)
    except msgspec.MsgspecError:
        return None
    if step.ok or step.name:
        return None
    said, error = _words(step.cause), step.error
    if said.get("originalType") == "undefined" or not said:  # nothing was thrown: the step returned this error
        told = _words(error)
        kind, message = told.get("type", "error"), told.get("message", error if isinstance(error, str) else "")
    else:
        kind, message = said.get("name", "thrown"), said.get("message", said.get("stringRepresentation", ""))
    return StepRecord("", ok=False, error=ErrorRecord(str(kind), str(message)))


def _words(part: object) -> dict[str, Any]:
    return cast(dict[str, Any], part) if isinstance(part, dict) else {}


def _or_null(value: Raw | UnsetType) -> Raw:
    return Raw(b"null") if value is UNSET else value  # JavaScript's undefined leaves no trace in JSON


def _shown(step: StepRecord) -> Any:
    """A step of a document: a journal's record, and for a failed one what other tools look for."""
    if step.ok or step.error is None:
        return step
    cause = {"type": "error", "name": step.error.type.rpartition(":")[2], "message": step.error.message}
    # Spliced, since decoding could change the numbers of the error's arguments.
    return Raw(_encode(step)[:-1] + b',"cause":' + _encode(cause) + b',"meta":{"origin":"throw"}}')


def _step(record: Record, run_id: str) -> StepRecord:
    return _dated(record, parse(record.text, StepRecord, run_id=run_id, where=f"the step {record.key!r}"))


def _attempt(record: Record, run_id: str) -> AttemptRecord:
    where = f"the attempt of step {record.key!r}"
    return _dated(record, parse(record.text, AttemptRecord, run_id=run_id, where=where))


def _failure(record: Record, run_id: str) -> FailureRecord:
    return _dated(record, parse(record.text, FailureRecord, run_id=run_id, where="the failure"))


_C = TypeVar("_C", StepRecord, AttemptRecord, FailureRecord)


def _dated(record: Record, content: _C) -> _C:
    """A record's content as a document has it, which says within it when it was stored."""
    if record.at is None and not record.epoch:
        return content
    return structs.replace(content, at=record.at, epoch=record.epoch)


def _raw(record: Record | None) -> Raw | UnsetType:
    return UNSET if record is None else Raw(record.text.encode())
