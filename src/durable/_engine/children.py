"""Children: the runs that a run starts in its steps, what they are called, and how their ends are told."""

from __future__ import annotations

import hashlib
from typing import Final

from msgspec import UNSET, DecodeError, Raw, Struct, UnsetType, json

from durable._common.checks import MAX_NAME_BYTES
from durable._engine.continuations import name_history
from durable._engine.decisions import Begun, Received, RecordError
from durable._engine.starts import NewRun, refuse_start
from durable.errors import ChildFailed, DurableError, RunExists, UnreadableRecord
from durable.records import ErrorRecord, FailureRecord, Status, parse

END: Final = "durable:end:"  # how the names of signals begin that tell of a child's end; the SQL has it, too
DELETED: Final = "deleted"  # what is told of a child that was deleted before it ended
_DIGEST: Final = 32  # hexadecimal digits in the place of what is too long


def name_child(run_id: str, times_continued: int, key: str, *, room: int = MAX_NAME_BYTES) -> str:
    """The id of the child that the step of this key starts; `room` in bytes of UTF-8.

    What a run starts after it has gone on with another input are other children than those that it started before.
    """
    parent = run_id if not times_continued else name_history(run_id, times_continued)
    name = f"{parent}/{key}"
    if len(name.encode()) <= room:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:_DIGEST]
    head = name.encode()[: room - _DIGEST - 1].decode(errors="ignore")
    return f"{head}/{digest}"


def name_end(child_id: str) -> str:
    """The name of the signal by which a parent is told of the end of this child."""
    return f"{END}{child_id}"


class ChildEnd(Struct, frozen=True, omit_defaults=True):
    """The payload of such a signal."""

    #: The child's status; or `deleted`.
    status: str
    #: Its last record: the result, or a `FailureRecord`.
    record: Raw | UnsetType = UNSET
    #: Whether it was cancelled because its parent was.
    with_parent: bool = False


_ends: Final = json.Decoder(ChildEnd)


def render_end(end: ChildEnd) -> str:
    """The payload's JSON."""
    return json.encode(end).decode()


def read_end(run_id: str, received: Received) -> ChildEnd:
    """What a signal says of a child's end; `UnreadableRecord` where it says nothing."""
    try:
        end = _ends.decode(received.payload)
    except DecodeError:
        raise UnreadableRecord(run_id, f"the signal {received.name!r}", "it is no end of a child") from None
    if end.status in (Status.COMPLETED, Status.FAILED) and end.record is UNSET:
        raise UnreadableRecord(run_id, f"the signal {received.name!r}", "it has no outcome")
    return end


def failure_of(run_id: str, child_id: str, end: ChildEnd) -> RecordError | None:
    """The error that a child's end is to its parent, caused by the child's own; None where it is completed."""
    if end.status == Status.COMPLETED:
        return None
    cause: ErrorRecord | None = None
    if end.status == Status.FAILED and end.record is not UNSET:
        where = f"the failure of child {child_id!r}"
        cause = parse(bytes(end.record).decode(), FailureRecord, run_id=run_id, where=where).error
    return RecordError(ChildFailed(child_id, end.status, "" if cause is None else cause.type), cause)


def refuse_child(child: NewRun, begun: Begun) -> DurableError | None:
    """Why what the start of a child has led to cannot be this child; None where it can."""
    found = begun.started
    if not (begun.is_own or found.is_new):
        return RunExists(found.run_id, found.status)
    return refuse_start(child, found, joins=True)
