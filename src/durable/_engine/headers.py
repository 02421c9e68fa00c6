"""The header of a run, at each change of its state: claimed, ended, taken up again.

It is made here and nowhere else, but for the SQL that changes the header of a row where it stands (`statements.sql`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from msgspec import UNSET
from msgspec.structs import replace

from durable._engine.decisions import Claim
from durable._engine.starts import NewRun
from durable.errors import UnreadableRecord
from durable.records import (
    MAX_EARLIER,
    EarlierExecution,
    ErrorSummary,
    Execution,
    FailureRecord,
    Header,
    Kind,
    Record,
    Status,
    parse,
)

# Of awaitly's `durable.run`, in its metadata. It also writes a workflow's name, which is the run's id or its end. Ours has
# none of these: a user's metadata may not, and the first claim takes them out.
FOREIGN_METADATA: Final = ("stepOrder", "stepArgs", "lastStepKey")


def is_foreign(header: Header) -> bool:
    """Whether another tool wrote this, and no claim of ours was granted since: the first gives it a workflow and an input."""
    return not header.workflow_name or any(word in header.metadata for word in FOREIGN_METADATA)


def blank_header(workflow: str = "") -> Header:
    """The header of a run of which nothing is known but that it is not over."""
    return Header(workflow, Execution(Status.RUNNING))


def open_header(claim: Claim) -> Header:
    """The header of a run that this claim begins, before the claim is granted."""
    return replace(blank_header(claim.workflow), metadata=_metadata_of(claim))


def queue_header(run: NewRun, *, at: datetime | None = None, prefix: str = "") -> Header:
    """The header of a run that is started `at` a moment, in a store with this prefix."""
    execution = Execution(Status.QUEUED, last_updated="" if at is None else at.isoformat())
    dedup = UNSET if run.dedup is None else (prefix, run.route.queue, run.dedup)
    parent = UNSET if run.parent is None else run.parent
    return Header(run.workflow, execution, metadata=_metadata_of(run), dedup=dedup, parent=parent)


def claim_header(header: Header, claim: Claim, *, epoch: int, owner: str, at: datetime) -> Header:
    """The header once this claim is granted. The same claim again, whose reply was lost, changes nothing of it."""
    if is_foreign(header):
        known = {word: value for word, value in header.metadata.items() if word not in FOREIGN_METADATA}
        header = replace(header, workflow_name=claim.workflow, metadata={**_metadata_of(claim), **known})
    return grant_header(header, epoch=epoch, owner=owner, at=at)


def grant_header(header: Header, *, epoch: int, owner: str, at: datetime, crashes: int = 0) -> Header:
    """The header once a lease is granted; so many `crashes` in a row were before."""
    last, moment = header.execution, at.isoformat()
    earlier, began = last.earlier, moment
    if (last.epoch, last.owner) == (epoch, owner):
        began = last.began
    elif last.epoch:
        earlier = (*earlier, EarlierExecution(last.epoch, last.owner, last.began))[-MAX_EARLIER:]
    execution = Execution(
        Status.RUNNING,
        last_updated=moment,
        started_at=last.started_at or moment,
        epoch=epoch,
        owner=owner,
        began=began,
        earlier=earlier,
        crashes=crashes,
    )
    # Of a run that is open, the request that it is cancelled stands.
    return replace(header, execution=execution, cancel=header.cancel if header.is_open else UNSET)


def stamp_header(header: Header, status: str, at: datetime, records: Sequence[Record] = ()) -> Header:
    """The header with this status from the moment `at` on; of a run that has failed, `records` say why."""
    failure = _failure_in(records) if status == Status.FAILED else None
    execution = replace(
        _stamped(header.execution, status, at.isoformat()),
        error=None if failure is None else ErrorSummary(failure.error.type, failure.step),
        needs_decision=failure is not None and bool(failure.undecided),
    )
    reopens = status in (Status.QUEUED, Status.RUNNING) and not header.is_open
    return replace(header, execution=execution, cancel=UNSET if reopens else header.cancel)


def reopen(execution: Execution) -> Execution:
    """The execution, running again: what said that it was over is removed."""
    return _stamped(execution, Status.RUNNING, execution.last_updated)


def _stamped(execution: Execution, status: str, moment: str) -> Execution:
    return replace(
        execution,
        status=status,
        last_updated=moment,
        completed_at=moment if status == Status.COMPLETED else None,
        current_step_id=None,
        error=None,
        needs_decision=False,
    )


def _metadata_of(claim: Claim | NewRun) -> dict[str, Any]:
    known: dict[str, Any] = {**claim.metadata, "version": claim.version}
    if claim.function is not None:
        known["workflowFunction"] = claim.function
    return known if claim.input_hash is None else {**known, "inputHash": claim.input_hash}


def _failure_in(records: Sequence[Record]) -> FailureRecord | None:
    last = next((record for record in reversed(records) if record.kind == Kind.FAILURE), None)
    if last is None:
        return None
    try:
        return parse(last.text, FailureRecord, run_id="", where="")
    except UnreadableRecord:
        return None  # it will be refused when it is read
