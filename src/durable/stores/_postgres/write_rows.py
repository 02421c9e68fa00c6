"""What is written, as JSON rows for statements over many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Raw, Struct

from durable.records import Status
from durable.stores._postgres.job import Job
from durable.stores._postgres.jobs import Writing

_json: Final = msgspec.json.Encoder()


def number_rows(jobs: Sequence[Job]) -> str:
    """The payloads of jobs, which are rows, numbered."""
    rows: list[Struct] = []
    for n, job in enumerate(jobs):
        job.payload.n = n
        rows.append(job.payload)
    return _json.encode(rows).decode()


class _Row(Struct, gc=False):
    n: int
    id: str
    token: str
    seq: int
    key: str
    kind: str
    nonce: int
    record: Raw


class _EndRow(Struct, gc=False):
    id: str
    token: str
    seq: int
    key: str
    kind: str
    nonce: int
    status: str
    records: int
    record: str  # as text: a result may be JSON's null, which would become SQL's
    due_in: float


def _columns(write: Writing) -> tuple[str, str, int, str, str, int]:
    lease, record = write.lease, write.record
    return lease.row, lease.token, record.seq, record.key, record.kind, write.nonce


def rows_of_records(jobs: Sequence[Job]) -> str:
    """Checkpoints, as `checkpoint_batch` takes them."""
    rows = [_Row(n, *_columns(job.payload), Raw(job.payload.record.text.encode())) for n, job in enumerate(jobs)]
    return _json.encode(rows).decode()


def rows_of_ends(jobs: Sequence[Job]) -> str:
    """Ends of runs, as `finish_batch` takes them."""
    return _json.encode([_end_row(job.payload) for job in jobs]).decode()


def _end_row(write: Writing) -> _EndRow:
    # A run that fails may do so with a record missing: it is executed again from what is stored, or not at all.
    records = write.lease.records if write.status == Status.COMPLETED else 0
    return _EndRow(*_columns(write), write.status or "", records, write.record.text, write.due_in)
