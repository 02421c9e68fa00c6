"""Jobs: what each change and each question is to a writer."""

from __future__ import annotations

import random
from typing import Final, Protocol, TypeAlias, assert_never

from msgspec import Struct

from durable._engine.batches import MIN_SPEED, Patience, reply_deadline
from durable._engine.leases import Lease
from durable._engine.signals import hash_dedup
from durable.records import Record, Status
from durable.stores._postgres.claims import Claiming, Found
from durable.stores._postgres.job import Job
from durable.stores._postgres.polls import Polling
from durable.stores._postgres.schedules import plan_put, plan_tick
from durable.stores._postgres.starts import Starting, plan_start, render_first
from durable.stores._postgres.verbs import PostgresVerb, Way
from durable.stores.requests import (
    BeginChild,
    Cancel,
    Continue,
    DeleteSchedule,
    Enqueue,
    Finish,
    PauseSchedule,
    PutSchedules,
    Receive,
    Release,
    Signal,
    TickSchedule,
    Wake,
)

CLAIM: Final = PostgresVerb("claim", Patience.FROM_OUTSIDE, way=Way.OF_CLAIMS, table="leases", waits_briefly=True)
LOOK: Final = PostgresVerb("look", Patience.FROM_OUTSIDE, way=Way.OF_CLAIMS, shares_runs=True)
READ: Final = PostgresVerb("read", way=Way.OF_JOURNALS)
RENEW: Final = PostgresVerb("renew")
CHECKPOINT: Final = PostgresVerb("checkpoint", shares_runs=True, shares_commits=True, carries_value=True)
SETTLE: Final = PostgresVerb("settle", way=Way.ASIDE)
FINISH: Final = PostgresVerb("finish", shares_commits=True, carries_value=True, checks_rows=True)
REOPEN: Final = PostgresVerb(
    "reopen", way=Way.OF_STARTS, carries_value=True, checks_rows=True, waits_briefly=True
)  # a finish after which the run is open: it may want a `dedup` that a transaction holds
RELEASE: Final = PostgresVerb("release", Patience.BRIEF)  # its lease ends by itself
RETURN: Final = PostgresVerb("return")  # the same, with no caller waiting
CONTINUE: Final = PostgresVerb(
    "continue", way=Way.OF_STARTS, carries_value=True, waits_briefly=True
)  # a transaction may hold the id of its history
CANCEL: Final = PostgresVerb("cancel", Patience.FROM_OUTSIDE, way=Way.ASIDE, table="documented runs", checks_rows=True)
SIGNAL: Final = PostgresVerb("signal", Patience.FROM_OUTSIDE, carries_value=True, table="signals")
SIGNAL_ONCE: Final = PostgresVerb(
    "signal once", Patience.FROM_OUTSIDE, way=Way.OF_STARTS, carries_value=True, table="signals", waits_briefly=True
)  # whose `dedup` a transaction may hold
RECEIVE: Final = PostgresVerb("receive")
ENQUEUE: Final = PostgresVerb(
    "enqueue", Patience.FROM_OUTSIDE, way=Way.OF_STARTS, carries_value=True, table="leases", waits_briefly=True
)
BEGIN_CHILD: Final = PostgresVerb(
    "begin child", way=Way.OF_STARTS, shares_runs=True, carries_value=True, table="leases", waits_briefly=True
)
WAKE: Final = PostgresVerb("wake", Patience.BRIEF, way=Way.OF_POLLS, shares_runs=True)
POLL: Final = PostgresVerb("poll", Patience.FROM_OUTSIDE, way=Way.OF_POLLS, table="leases")

PUT_SCHEDULES: Final = PostgresVerb(
    "put schedules", Patience.FROM_OUTSIDE, way=Way.OF_STARTS, carries_value=True, table="schedules", waits_briefly=True
)
TICK: Final = PostgresVerb(
    "tick", Patience.FROM_OUTSIDE, way=Way.OF_STARTS, carries_value=True, table="schedules", waits_briefly=True
)
PAUSE_SCHEDULE: Final = PostgresVerb(
    "pause schedule", Patience.FROM_OUTSIDE, way=Way.OF_STARTS, table="schedules", waits_briefly=True
)
DELETE_SCHEDULE: Final = PostgresVerb(
    "delete schedule", Patience.FROM_OUTSIDE, way=Way.OF_STARTS, table="schedules", waits_briefly=True
)

OfOneJob: TypeAlias = (
    BeginChild
    | Cancel
    | Signal
    | Receive
    | Enqueue
    | Wake
    | PutSchedules
    | TickSchedule
    | PauseSchedule
    | DeleteSchedule
)
"""The requests that are one job, with nothing before it or after it."""

_OVERHEAD: Final = 200  # bytes that an entry takes besides its text, about


class Writing(Struct, eq=False, gc=False):
    """The payload of a checkpoint or a finish. `nonce` tells this write from any other in its place."""

    lease: Lease
    record: Record
    nonce: int
    status: Status | None = None
    due_in: float = 0.0


class Begetting(Writing):
    """The payload of a child's start: the record, and the child as a start of its own."""

    starting: Starting | None = None


class Continuing(Struct, eq=False):
    """What a run is to begin anew with."""

    lease: Lease
    record: Record
    nonce: int
    keeps: bool
    taken: list[int]
    number: int
    #: The lease's from then on.
    token: str


class SignalRow(Struct, gc=False):
    n: int
    id: str
    name: str
    payload: str  # as text: it may be JSON's null, which would become SQL's
    nonce: int
    later: bool


class Cancelling(Struct, gc=False):
    """A cancellation; `nonce` tells it from every other one, so that it may be sent twice."""

    id: str
    force: bool
    reason: str | None
    nonce: int
    #: Whether it is cancelled because the run that has started it is.
    below: bool = False


class ReceiveRow(Struct, gc=False):
    n: int
    id: str
    names: list[str]
    taken: list[int]


def signal_row(signal: Signal, row: str) -> SignalRow:
    """A signal to the run of this row, as it is sent; sent twice, it is one."""
    nonce = random.getrandbits(62) if signal.dedup is None else hash_dedup(signal.name, signal.dedup)
    return SignalRow(0, row, signal.name, signal.payload, nonce, signal.create_later)


def claim_job(payload: Claiming, deadline: float) -> Job:
    """A job that begins a run. Its answer is what it has `Found`."""
    claim = payload.claim
    size = len(claim.input or b"") + 2 * _OVERHEAD
    deadline += size / MIN_SPEED
    return Job(CLAIM, claim.run_id, size, deadline, what=f"the claim of run {claim.run_id!r}", payload=payload)


def look_job(claiming: Claiming, deadline: float) -> Job:
    """A job that looks at a run which could not be claimed, and locks nothing. Its answer is what it has `Found`."""
    run_id = claiming.claim.run_id
    return Job(LOOK, run_id, _OVERHEAD, deadline, what=f"the claim of run {run_id!r}", payload=claiming)


def read_job(found: Found, deadline: float) -> Job:
    """A job that reads more of what a claim has found, and adds it there."""
    lease, size = found.lease, found.size
    latest = deadline + size / MIN_SPEED if lease is None else reply_deadline(lease, size)
    return Job(READ, found.run_id, size, latest, lease, what="the reading of its journal", payload=found)


def renew_job(lease: Lease, deadline: float) -> Job:
    """A job that renews a lease, whose own clock may have run out: by the server's it may stand."""
    return Job(RENEW, lease.run_id, _OVERHEAD, deadline, what="the renewal of its lease", payload=lease)


def checkpoint_job(lease: Lease, record: Record) -> Job:
    """A job that appends a record."""
    size = len(record.text) + _OVERHEAD
    return Job(
        CHECKPOINT,
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
    return Job(SETTLE, lease.run_id, _OVERHEAD, reply_deadline(lease), lease, what=what, payload=payload)


def finish_job(finish: Finish) -> Job:
    """A job that ends a run, or this turn at it."""
    lease, status, record = finish.lease, finish.status, finish.record
    size = len(record.text) + _OVERHEAD
    return Job(
        REOPEN if status is Status.RUNNING else FINISH,
        lease.run_id,
        size,
        reply_deadline(lease, size),
        lease,
        what=f"the run's end ({status})",
        payload=Writing(lease, record, random.getrandbits(63), status, finish.due_in),
    )


def begin_child_job(request: BeginChild, starting: Starting) -> Job:
    """A job that appends a record and starts a child, both or neither."""
    lease, record = request.lease, request.record
    size = len(record.text) + len(request.child.input or b"") + 3 * _OVERHEAD
    return Job(
        BEGIN_CHILD,
        lease.run_id,
        size,
        reply_deadline(lease, size),
        lease,
        what=f"the start of child {request.child.run_id!r}",
        payload=Begetting(lease, record, random.getrandbits(63), starting=starting),
    )


def continue_job(asked: Continue, token: str) -> Job:
    """A job that lets a run begin anew under its lease, of this `token` then."""
    lease, record = asked.lease, asked.record
    size = len(record.text) + _OVERHEAD
    return Job(
        CONTINUE,
        lease.run_id,
        size,
        reply_deadline(lease, size),
        lease,
        what="the run's continuation",
        payload=Continuing(
            lease, record, random.getrandbits(63), asked.keep_history, list(asked.taken), asked.number, token
        ),
    )


def release_job(release: Release, deadline: float) -> Job:
    """A job that gives a lease back."""
    what = "the release of its lease"
    return Job(RELEASE, release.lease.run_id, _OVERHEAD, deadline, what=what, payload=release)


def return_job(release: Release, deadline: float) -> Job:
    """A job that gives a lease back when the database can be reached again."""
    what = "the release of its lease"
    return Job(RETURN, release.lease.run_id, _OVERHEAD, deadline, what=what, payload=release)


def poll_job(polling: Polling, deadline: float) -> Job:
    """A job that takes what is due. Its answer is what is `Due`."""
    return Job(POLL, "", _OVERHEAD, deadline, what="a worker's poll", payload=polling)


class Asked(Protocol):
    """A store, as the making of a job sees it."""

    def row(self, run_id: str) -> str:
        """The id under which a run stands in the tables; `InvalidArgument` if it can have none."""
        ...

    @property
    def prefix(self) -> str:
        """What is put before each id."""
        ...

    def answer_by(self) -> float:
        """When a caller from outside wants to be told, as a reading of the elapsed-time clock."""
        ...

    def held_here(self, lease: Lease) -> object:
        """Raise `LeaseLost` if the lease is not this process's own."""
        ...

    def refuse_own(self, row: str, what: str) -> None:
        """Raise `TransactionMisused` in the body of a transaction under this row's lease."""
        ...


def job_of(request: OfOneJob, asked: Asked) -> Job:
    """A request as the one job that it is."""
    match request:
        case Cancel():
            row = asked.row(request.run_id)
            asked.refuse_own(row, "cancels")
            cancelling = Cancelling(row, request.force, request.reason, random.getrandbits(53))
            return Job(
                CANCEL, request.run_id, _OVERHEAD, asked.answer_by(), what="the cancellation", payload=cancelling
            )
        case BeginChild():
            asked.held_here(request.lease)
            return begin_child_job(request, plan_start([request.child], asked))
        case Signal():  # sent twice, it is one
            size, signal = len(request.payload) + _OVERHEAD, signal_row(request, asked.row(request.run_id))
            what, verb = f"the signal {request.name!r}", SIGNAL if request.dedup is None else SIGNAL_ONCE
            return Job(verb, request.run_id, size, asked.answer_by(), what=what, payload=signal)
        case Receive():
            lease = request.lease
            asked.held_here(lease)
            wanted = ReceiveRow(0, lease.row, list(request.names), list(request.taken))
            what = f"the wait for {' or '.join(map(repr, request.names))}"
            return Job(RECEIVE, lease.run_id, _OVERHEAD, lease.deadline, what=what, payload=wanted)
        case Enqueue():  # sent twice, they are the same runs
            starting = plan_start(request.runs, asked)
            first, size = request.runs[0].run_id, sum(len(row.input or "") + 2 * _OVERHEAD for row in starting.rows)
            what = f"the start of run {first!r}" if len(request.runs) == 1 else f"the start of {len(request.runs)} runs"
            return Job(ENQUEUE, first, size, asked.answer_by() + size / MIN_SPEED, what=what, payload=starting)
        case Wake():
            what, payload = "the waking of workers", render_first(asked.prefix)
            return Job(WAKE, "", _OVERHEAD, asked.answer_by(), what=what, payload=payload)
        case PutSchedules():
            rows = plan_put(request.schedules, asked)
            size = sum(len(row.start["input"] or "") + 2 * _OVERHEAD for row in rows)
            return Job(PUT_SCHEDULES, "", size, asked.answer_by(), what="the schedules of a worker", payload=rows)
        case TickSchedule():  # sent twice, the second finds that the first has ticked
            ticking, name = plan_tick(request, asked), request.due.scheduled.name
            size = sum(len(row.input or "") + 2 * _OVERHEAD for row in ticking.runs) + _OVERHEAD
            return Job(TICK, name, size, asked.answer_by(), what=f"a tick of the schedule {name!r}", payload=ticking)
        case PauseSchedule():
            name, change = request.name, {"id": asked.prefix + request.name, "paused": request.paused}
            what = f"the {'pause' if request.paused else 'resumption'} of the schedule {name!r}"
            return Job(PAUSE_SCHEDULE, name, _OVERHEAD, asked.answer_by(), what=what, payload=change)
        case DeleteSchedule():
            name, gone = request.name, {"id": asked.prefix + request.name}
            what = f"the deletion of the schedule {name!r}"
            return Job(DELETE_SCHEDULE, name, _OVERHEAD, asked.answer_by(), what=what, payload=gone)
        case never:
            assert_never(never)
