"""A journal folded into a snapshot, and unfolded again."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

from msgspec import structs

from durable.records import (
    AsideRecord,
    AttemptRecord,
    FailureRecord,
    Header,
    Kind,
    Record,
    Status,
    StepRecord,
    parse,
    places_set_aside,
)
from durable.snapshots._documents import (
    UNNAMED,
    attempt_of,
    failure_of,
    header_and_records,
    raw_of,
    read_document,
    records_in,
    step_of,
)
from durable.snapshots._snapshot import Snapshot


def snapshot_of(header: Header, records: Iterable[Record], *, run_id: str) -> Snapshot:
    """A run's header and journal as a snapshot: of each key the latest record that was not set aside."""
    records = tuple(records)
    gone = places_set_aside(records, run_id=run_id)
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
            steps[record.key] = step_of(record, run_id)
            seqs[record.key] = record.seq
            again.discard(record.key)
            mended |= failure is not None
        elif record.kind == Kind.ATTEMPT:
            steps.pop(record.key, None)
            attempts[record.key] = attempt_of(record, run_id)
            mended |= failure is not None
        elif record.kind == Kind.FAILURE:
            last = failure_of(record, run_id)
            known = failure.ambiguous if failure else ()
            # The places that it sets aside are none of a document.
            ambiguous = tuple(dict.fromkeys((*known, *last.ambiguous)))
            failure = structs.replace(last, ambiguous=ambiguous, seqs=(), keys=(), from_step="")
            mended |= bool(last.seqs)
            again |= set(last.again)
        elif record.kind == Kind.ASIDE:
            mended = True
            if failure is not None:
                decided = parse(record.text, AsideRecord, run_id=run_id, where=record.key).keys
                failure = structs.replace(failure, undecided=tuple(s for s in failure.undecided if s not in decided))
        else:
            parts[record.kind] = record
    if mended:  # earlier steps may lie on a path that is never taken again: no replay is held to their order
        steps = {key: structs.replace(step, unordered=True) for key, step in steps.items()}
    first = min((record.seq for record in records if record.kind != Kind.INPUT), default=0)
    steps = _renumber(steps, seqs, min(first, 0))
    if failure is not None:
        failure = structs.replace(failure, again=tuple(key for key in steps if key in again))
    return Snapshot(
        workflow_name=header.workflow_name,
        steps=steps,
        attempts=attempts,
        execution=header.execution,
        metadata=header.metadata,
        input=raw_of(parts.get(Kind.INPUT)),
        result=raw_of(parts.get(Kind.RESULT)),
        failure=failure if header.execution.status != Status.COMPLETED else None,
    )


def _renumber(steps: dict[str, StepRecord], seqs: dict[str, int], first: int) -> dict[str, StepRecord]:
    """The steps with `started` counted by the document's steps, and not by the `seq` of a journal.

    `first` is the first `seq` of the document that the journal began with, else 0.
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


def merge_journal(text: str, journal: Sequence[Record], *, run_id: str) -> Snapshot:
    """What the documented table holds of a run, and what its journal has added, as one snapshot."""
    document = Snapshot.from_json(text, run_id=run_id)
    if not journal:
        return document
    header, records = header_and_records(text, run_id=run_id)
    return with_foreign_failures(snapshot_of(header, [*records, *journal], run_id=run_id), foreign_failures(document))


def journal_of(snapshot: Snapshot) -> tuple[Header, list[Record]]:
    """The snapshot as a header and the records that a journal would hold, numbered below zero."""
    header = Header(snapshot.workflow_name, snapshot.execution, metadata=snapshot.metadata)
    return header, list(records_in(read_document(snapshot.to_json(), UNNAMED), UNNAMED))


def foreign_failures(snapshot: Snapshot) -> dict[str, StepRecord]:
    """The failed steps of another tool, by key: they are no records, since they run again."""
    return {key: step for key, step in snapshot.steps.items() if not (step.ok or step.name)}


def with_foreign_failures(snapshot: Snapshot, failures: Mapping[str, StepRecord]) -> Snapshot:
    """The run with the failures of another tool that nothing of ours has replaced."""
    shown = {key: step for key, step in failures.items() if key not in snapshot.attempts}
    return structs.replace(snapshot, steps=shown | snapshot.steps) if shown else snapshot
