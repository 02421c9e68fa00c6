"""A stored document, read as a header and the records that its journal would hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType, structs

from durable.errors import UnreadableRecord
from durable.records import (
    FORMAT_VERSION,
    MAX_EARLIER,
    AttemptRecord,
    CancelRequest,
    Epoch,
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
)
from durable.snapshots import _awaitly

_STATUSES: Final = frozenset(Status)
UNNAMED: Final = "?"  # the run of a document that is read without its id


class Document(Struct, rename="camel"):
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
    continued: Epoch | UnsetType = UNSET
    cancel: CancelRequest | UnsetType = UNSET


class _Stamp(Struct):
    """When a record was stored, and under which epoch: within the record in a document, in columns in a journal."""

    at: Moment | None = None
    epoch: Epoch = 0


_read_parts: Final = msgspec.json.Decoder(Document)
_read_stamp: Final = msgspec.json.Decoder(_Stamp)
_read_object: Final = msgspec.json.Decoder(dict[str, Raw])
_read_pairs: Final = msgspec.json.Decoder(list[tuple[str, Raw]])
_content_readers: Final[Mapping[str, msgspec.json.Decoder[Any]]] = {
    Kind.STEP: msgspec.json.Decoder(StepRecord),
    Kind.ATTEMPT: msgspec.json.Decoder(AttemptRecord),
    Kind.FAILURE: msgspec.json.Decoder(FailureRecord),
}


def header_and_records(text: str, *, run_id: str) -> tuple[Header, list[Record]]:
    """What the documented table holds of a run: its header, and the records that its document carries.

    These are numbered below zero, so that they come before the journal's. A step that cannot be read is handed on as it
    is, and refused when it is loaded. Raises `UnreadableRecord` where not even that much is known.
    """
    document = read_document(text, run_id)
    return header_in(document, run_id), list(records_in(document, run_id))


def read_document(text: str | bytes, run_id: str) -> Document:
    """The document in this text; `UnreadableRecord` for one that this version does not know."""
    try:
        document = _read_parts.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as problem:
        told = str(problem) if isinstance(problem, msgspec.ValidationError) else "it is not JSON"
        raise UnreadableRecord(run_id, "the snapshot", told) from None
    if document.format_version is None and document.kind != _awaitly.RESUME_STATE:
        raise UnreadableRecord(run_id, "the snapshot", "it says no formatVersion")
    if document.format_version not in (None, FORMAT_VERSION):
        problem_ = f"its format is {document.format_version} and this library reads {FORMAT_VERSION}"
        raise UnreadableRecord(run_id, "the snapshot", problem_)
    if document.execution is None and document.kind != _awaitly.RESUME_STATE:
        raise UnreadableRecord(run_id, "the snapshot", "it says nothing of its execution")
    return document


def header_in(document: Document, run_id: str) -> Header:
    """The run's header; `UnreadableRecord` for an unknown status."""
    execution = document.execution or Execution(Status.RUNNING)
    if execution.status not in _STATUSES:
        raise UnreadableRecord(
            run_id, "the snapshot", f"its status is {execution.status[:40]!r}, which is not known here"
        )
    metadata = document.metadata or {}
    name, continued, cancel = document.workflow_name, document.continued, document.cancel
    return Header(name, execution, metadata=metadata, continued=continued, cancel=cancel)


def records_in(document: Document, run_id: str) -> Iterator[Record]:
    """The records that a journal would hold of the run, numbered below zero."""
    lines = [
        *(
            (key, Kind.STEP, text)
            for key, raw in _steps_in(document, run_id)
            if (text := _awaitly.render_step(raw)) is not None
        ),
        *((key, Kind.ATTEMPT, bytes(raw).decode()) for key, raw in document.attempts.items()),
    ]
    if document.failure is not UNSET:
        lines.append((Kind.FAILURE, Kind.FAILURE, bytes(document.failure).decode()))
    execution, seq = document.execution or Execution(Status.RUNNING), -len(lines) - (document.result is not UNSET)
    if document.input is not UNSET:
        # The first claim has written it. Which epoch that was is known while all executions are.
        first = execution.earlier[0].epoch if execution.earlier else execution.epoch
        epoch = first if len(execution.earlier) < MAX_EARLIER else 0
        text = bytes(document.input).decode()
        yield Record(seq - 1, Kind.INPUT, Kind.INPUT, text, _parse_moment(execution.started_at), epoch)
    for key, kind, text in lines:
        yield _move_stamp_out(Record(seq, key, kind, text))
        seq += 1
    if document.result is not UNSET:
        text = bytes(document.result).decode()
        yield Record(seq, Kind.RESULT, Kind.RESULT, text, _parse_moment(execution.completed_at), execution.epoch)


def foreign_failures_in(document: Document, run_id: str) -> dict[str, StepRecord]:
    """The failed steps of another tool, by key, to be shown."""
    shown = ((key, _awaitly.show_failure(raw)) for key, raw in _steps_in(document, run_id))
    return {key: step for key, step in shown if step is not None}


def with_run_id(problem: UnreadableRecord, run_id: str) -> UnreadableRecord:
    """The same error, naming the run."""
    return UnreadableRecord(run_id, problem.where, problem.problem) if problem.run_id == UNNAMED else problem


def _steps_in(document: Document, run_id: str) -> Sequence[tuple[str, Raw]]:
    if document.steps is UNSET:
        return ()
    try:
        if bytes(document.steps).startswith(b"["):  # awaitly's resume states keep their order by being arrays
            return _read_pairs.decode(document.steps)
        return tuple(_read_object.decode(document.steps).items())
    except (msgspec.MsgspecError, UnicodeError):
        raise UnreadableRecord(run_id, "the snapshot", "its steps are not steps by key") from None


def _move_stamp_out(record: Record) -> Record:
    """A record of a document as a journal has it: its stamp in columns."""
    try:
        stamp = _read_stamp.decode(record.text)
        if stamp.at is None and not stamp.epoch:
            return record
        content = _content_readers[record.kind].decode(record.text)
    except msgspec.MsgspecError:
        return record  # its reader refuses it, and says why
    return Record(*record[:3], render(structs.replace(content, at=None, epoch=0)), stamp.at, stamp.epoch)


def step_of(record: Record, run_id: str) -> StepRecord:
    """The content of a step's record, with its stamp."""
    return _move_stamp_in(record, parse(record.text, StepRecord, run_id=run_id, where=f"the step {record.key!r}"))


def attempt_of(record: Record, run_id: str) -> AttemptRecord:
    """The content of an attempt's record, with its stamp."""
    where = f"the attempt of step {record.key!r}"
    return _move_stamp_in(record, parse(record.text, AttemptRecord, run_id=run_id, where=where))


def failure_of(record: Record, run_id: str) -> FailureRecord:
    """The content of a failure's record, with its stamp."""
    return _move_stamp_in(record, parse(record.text, FailureRecord, run_id=run_id, where="the failure"))


_C = TypeVar("_C", StepRecord, AttemptRecord, FailureRecord)


def _move_stamp_in(record: Record, content: _C) -> _C:
    """A record's content as a document has it: its stamp within."""
    if record.at is None and not record.epoch:
        return content
    return structs.replace(content, at=record.at, epoch=record.epoch)


def raw_of(record: Record | None) -> Raw | UnsetType:
    """The text of an input's or a result's record, where there is one."""
    return UNSET if record is None else Raw(record.text.encode())


def _parse_moment(text: str | None) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None
