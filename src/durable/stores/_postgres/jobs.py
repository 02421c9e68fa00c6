"""Jobs: how each change and each question goes to a writer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from durable._engine.batches import MIN_SPEED, Verb, reply_deadline
from durable._engine.leases import Lease
from durable.records import Record, Status
from durable.stores._postgres.claims import Claiming, Found
from durable.stores._postgres.job import Job

_OVERHEAD: Final = 200  # bytes that an entry takes besides its text, about


class Writing(Struct, eq=False, gc=False):
    """The payload of a checkpoint or a finish. `nonce` tells this write from any other in its place."""

    lease: Lease
    record: Record
    nonce: int
    status: Status | None = None


class SignalRow(Struct, gc=False):
    n: int
    id: str
    name: str
    payload: str  # as text: it may be JSON's null, which would become SQL's
    nonce: int


class ReceiveRow(Struct, gc=False):
    n: int
    id: str
    name: str
    taken: list[int]


def claim_job(payload: Claiming, deadline: float) -> Job:
    """A job that begins a run. Its answer is what it has `Found`."""
    claim = payload.claim
    size = len(claim.input or b"") + 2 * _OVERHEAD
    deadline += size / MIN_SPEED
    return Job(Verb.CLAIM, claim.run_id, size, deadline, what=f"the claim of run {claim.run_id!r}", payload=payload)


def read_job(found: Found, deadline: float) -> Job:
    """A job that reads more of what a claim has found, and adds it there."""
    lease, size = found.lease, found.size
    latest = deadline + size / MIN_SPEED if lease is None else reply_deadline(lease, size)
    return Job(Verb.READ, found.run_id, size, latest, lease, what="the reading of its journal", payload=found)


def renew_job(lease: Lease, deadline: float) -> Job:
    """A job that renews a lease, whose own clock may have run out: by the server's it may stand."""
    return Job(Verb.RENEW, lease.run_id, _OVERHEAD, deadline, what="the renewal of its lease", payload=lease)


def checkpoint_job(lease: Lease, record: Record) -> Job:
    """A job that appends a record."""
    size = len(record.text) + _OVERHEAD
    return Job(
        Verb.CHECKPOINT,
        lease.run_id,
        size,
        reply_deadline(lease, size),
        lease,
        what=f"step {record.key!r}",
        payload=Writing(lease, record, random.getrandbits(63)),
    )


def settle_job(checkpoint: Job) -> Job:
    """A job that finds out what became of a checkpoint, and changes nothing: whether it is there."""
    lease: Lease = checkpoint.payload.lease
    what, payload = checkpoint.what, checkpoint.payload
    return Job(Verb.SETTLE, lease.run_id, _OVERHEAD, reply_deadline(lease), lease, what=what, payload=payload)


def finish_job(lease: Lease, status: Status, record: Record) -> Job:
    """A job that ends a run."""
    size = len(record.text) + _OVERHEAD
    return Job(
        Verb.FINISH,
        lease.run_id,
        size,
        reply_deadline(lease, size),
        lease,
        what=f"the run's end ({status})",
        payload=Writing(lease, record, random.getrandbits(63), status),
    )


def release_job(lease: Lease, status: Status | None, deadline: float) -> Job:
    """A job that gives a lease back."""
    payload = (lease, status)
    return Job(Verb.RELEASE, lease.run_id, _OVERHEAD, deadline, what="the release of its lease", payload=payload)


def return_job(lease: Lease, status: Status | None, deadline: float) -> Job:
    """A job that gives a lease back when the database can be reached again."""
    payload = (lease, status)
    return Job(Verb.RETURN, lease.run_id, _OVERHEAD, deadline, what="the release of its lease", payload=payload)


def cancel_job(run_id: str, row: str, deadline: float) -> Job:
    """A job that cancels a run."""
    return Job(Verb.CANCEL, run_id, _OVERHEAD, deadline, what="the cancellation", payload=row)


def signal_job(run_id: str, row: str, name: str, payload: str, deadline: float) -> Job:
    """A job that sends a signal; sent twice, it is one."""
    size, signal = len(payload) + _OVERHEAD, SignalRow(0, row, name, payload, random.getrandbits(63))
    return Job(Verb.SIGNAL, run_id, size, deadline, what=f"the signal {name!r}", payload=signal)


def receive_job(lease: Lease, name: str, taken: Sequence[int]) -> Job:
    """A job that looks for a signal."""
    row = ReceiveRow(0, lease.row, name, list(taken))
    what = f"the wait for {name!r}"
    return Job(Verb.RECEIVE, lease.run_id, _OVERHEAD, lease.deadline, what=what, payload=row)
