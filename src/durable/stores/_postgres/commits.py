"""The verbs as statements: a batch of jobs in, an answer for each out."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import msgspec
from msgspec import Raw, Struct

from durable._engine import batches
from durable._engine.batches import MOST_BYTES, MOST_RECORDS, SLOWEST, Verb, latest_under
from durable._engine.decisions import Claim, ClaimReply, Granted, Refused
from durable._engine.headers import blank_header, open_header
from durable._engine.leases import Lease
from durable._engine.runs import executable
from durable.clocks import Clock
from durable.errors import DurableError, LeaseLost, RecordsLost, RunCancelled
from durable.records import Kind, Record, Status
from durable.snapshots import header_and_records
from durable.stores._postgres.dropped import dropped_rows
from durable.stores._postgres.job import ABSENT, Job
from durable.stores._postgres.requirements import hidden_rows
from durable.stores._postgres.rows import read_record
from durable.stores._postgres.session import Session
from durable.stores._postgres.sql.loader import number_parameters
from durable.stores.listing import headless

_OVERHEAD = 200  # bytes that an entry takes besides its text, about
_BEFORE_ALL = -(2**31)  # the place of no record
_OVER = "it had ended before the reply to its claim came"
_TAKEN = "another execution has taken it over"
_RETURNED = "it was given back"
_NEVER = -1
NOT_ITS_OWN = "a record that is not its own stands in its place"

_json = msgspec.json.Encoder()
_claims = itertools.count(1)  # of this process, whose `instance` is random


class Claiming:
    """The payload of a claim. `random` makes its token, and no other claim's; sent twice, it is the same claim."""

    __slots__ = ("claim", "dead", "free_at", "owner", "random", "row", "sent")

    def __init__(self, claim: Claim, row: str, instance: str, owner: str, dead: str | None) -> None:
        self.claim = claim
        self.row = row
        self.random = f"{instance}.{next(_claims)}"
        self.owner = owner
        self.dead = dead
        self.sent: float | None = None
        self.free_at = _NEVER  # the epoch of the lease that was refused, and free; 0 where there was none


class Writing(Struct, eq=False, gc=False):
    """The payload of a checkpoint or a finish. `nonce` tells this write from any other in its place."""

    lease: Lease
    record: Record
    nonce: int
    status: Status | None = None


class Found:
    """What a claim has found, as far as it is read: a short journal at once, the rest of a longer one page by page.

    `lease` is the claim's own, if it was granted. `place` is where the next page begins, None when all is read; `is_long`
    says the same of the document.
    """

    __slots__ = (
        "_free_at", "_standing",
        "document", "is_long", "lease", "mine", "place", "problem", "random", "records", "row", "run_id", "server", "size",
        "token", "workflow",
    )  # fmt: skip

    def __init__(self, claiming: Claiming, standing: Sequence[Any], server: str) -> None:
        claim = claiming.claim
        epoch, token, owner, expires_in, exists, document, is_headless, is_hidden = standing
        is_mine = token == f"{epoch}:{claiming.random}"
        self.problem: DurableError | None = None
        if is_hidden:
            self.problem = hidden_rows()
        elif is_headless:
            self.problem = headless(claim.run_id)
        elif is_mine and not exists:
            self.problem = dropped_rows("documented runs")
        self.run_id, self.row, self.workflow = claim.run_id, claiming.row, claim.workflow
        self.random = claiming.random
        self.token: str | None = token
        self.document: str | None = document
        self.is_long = exists and document is None
        self.records: list[Record] = []
        self.place: int | None = None
        self.size = MOST_BYTES  # of the next page, about
        self.server = server
        self.lease: Lease | None = None
        self._standing = (owner, expires_in) if token is not None and expires_in > 0 else (None, None)
        # The epoch of a lease that is free; 0 where there is none.
        self._free_at = epoch or 0 if self._standing == (None, None) else None
        if is_mine and token is not None and claiming.sent is not None:
            self.lease = Lease(claim.run_id, token, epoch, claim.seconds, claiming.sent, claiming.row)
            claim.taken.append(self.lease)

    @property
    def owner(self) -> str | None:
        """Who holds the lease, if somebody else does."""
        return None if self.lease is not None else self._standing[0]

    @property
    def is_whole(self) -> bool:
        """Whether everything is read."""
        return self.place is None and not self.is_long

    def add(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """One more page, as rows of `read_journals`."""
        self.place = None
        for number, (_, _, seq, key, kind, text, at, epoch, size) in enumerate(rows):
            if text is None or number == MOST_RECORDS:
                self.place, self.size = seq, max(MOST_BYTES, size)
                return
            self.records.append(read_record(seq, key, kind, text, at, epoch))

    def is_worth_another_try(self, claiming: Claiming) -> bool:
        """Whether the lease is free and was not given all the same: another has just given it back.

        Twice under one epoch it was free all the time: what takes it is dropped, which the writer says of a second `ABSENT`.
        """
        if self._free_at is None or self.lease is not None or self.problem is not None or self.is_long:
            return False
        try:
            header = None if self.document is None else header_and_records(self.document, run_id=self.run_id)[0]
        except DurableError:
            return False
        seen, claiming.free_at = claiming.free_at, self._free_at
        return seen in (_NEVER, self._free_at) and executable(claiming.claim, header)

    def reply(self) -> ClaimReply:
        """The reply to the claim, or its error raised."""
        header, told, problem = None, list[Record](), self.problem
        if self.document is not None:
            try:
                header, told = header_and_records(self.document, run_id=self.run_id)
            except DurableError as unreadable:
                problem = problem or unreadable
        if self.lease is not None:
            known = header or blank_header(self.workflow)
            self.lease.known(len(self.records), self.server)
            return Granted(self.lease, known, told + self.records, problem=problem)
        if problem is not None:
            raise problem
        ends = [record for record in told if record.kind in (Kind.RESULT, Kind.FAILURE)]
        return Refused(header, ends + self.records, *self._standing)


def claim_job(payload: Claiming, deadline: float) -> Job:
    """A job that begins a run. Its answer is what it has `Found`."""
    claim = payload.claim
    size = len(claim.input or b"") + 2 * _OVERHEAD
    deadline += size / SLOWEST
    return Job(Verb.CLAIM, claim.run_id, size, deadline, what=f"the claim of run {claim.run_id!r}", payload=payload)


def read_job(found: Found, deadline: float) -> Job:
    """A job that reads more of what a claim has found, and adds it there."""
    lease, size = found.lease, found.size
    latest = deadline + size / SLOWEST if lease is None else latest_under(lease, size)
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
        latest_under(lease, size),
        lease,
        what=f"step {record.key!r}",
        payload=Writing(lease, record, random.getrandbits(63)),
    )


def settle_job(checkpoint: Job) -> Job:
    """A job that finds out what became of a checkpoint, and changes nothing: whether it is there."""
    lease: Lease = checkpoint.payload.lease
    what, payload = checkpoint.what, checkpoint.payload
    return Job(Verb.SETTLE, lease.run_id, _OVERHEAD, latest_under(lease), lease, what=what, payload=payload)


def finish_job(lease: Lease, status: Status, record: Record) -> Job:
    """A job that ends a run."""
    size = len(record.text) + _OVERHEAD
    return Job(
        Verb.FINISH,
        lease.run_id,
        size,
        latest_under(lease, size),
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
    size, signal = len(payload) + _OVERHEAD, _SignalRow(0, row, name, payload, random.getrandbits(63))
    return Job(Verb.SIGNAL, run_id, size, deadline, what=f"the signal {name!r}", payload=signal)


def receive_job(lease: Lease, name: str, taken: Sequence[int]) -> Job:
    """A job that looks for a signal."""
    row = _AskedRow(0, lease.row, name, list(taken))
    what = f"the wait for {name!r}"
    return Job(Verb.RECEIVE, lease.run_id, _OVERHEAD, lease.deadline, what=what, payload=row)


Standing: TypeAlias = tuple[str | None, str | None, int]
"""What stands in a lease's row: token, owner, epoch."""


def refused(lease: Lease, standing: Standing | None) -> DurableError | None:
    """Why this lease may write no more, by what stands in its row, if there is one; None when it may.

    An epoch only rises. One that is lower, or another's under the same, is of a time before this claim, or of a row that was
    made anew after the run had been deleted; so is none at all. Which of the two, only who has seen the deletion can tell.
    """
    token, owner, epoch = standing or (None, None, -1)
    if token == lease.token:
        return None
    if epoch > lease.epoch or (epoch == lease.epoch and token is None):
        if token is None and owner == "cancelled":
            return RunCancelled(lease.run_id)
        return LeaseLost(lease.run_id, _TAKEN if epoch > lease.epoch else _RETURNED)
    if lease.gone is not None:
        return LeaseLost(lease.run_id, lease.gone)
    return RecordsLost(
        lease.run_id, "its lease is not there any more" if standing is None else "its lease is an earlier one"
    )


def strange(session: Session, leases: Iterable[Lease]) -> Sequence[tuple[Lease, int]]:
    """The leases that are not known on the session's server, each with how many records of its run were acknowledged.

    To be asked before the snapshot in which they are counted: more may be recorded meanwhile, in another way.
    """
    return [(lease, lease.records) for lease in leases if lease.server != session.server]


def without_records(
    session: Session, sql: Mapping[str, bytes], strange: Sequence[tuple[Lease, int]]
) -> Sequence[Lease]:
    """Those of the strange leases whose run has fewer records here than that; the others are known here now."""
    if not strange:
        return ()
    counts: dict[str, int] = dict(session.execute(sql["count_records"], ([lease.row for lease, _ in strange],)))
    lost: list[Lease] = []
    for lease, records in strange:
        if counts[lease.row] < records:
            lost.append(lease)
        else:
            lease.server = session.server
    return lost


class Statements:
    """Performs batches on a session."""

    def __init__(self, sql: Mapping[str, bytes], clock: Clock) -> None:
        self._sql = sql
        self._checkpoint_one = number_parameters(sql["checkpoint"])
        self._clock = clock
        self._verbs: dict[Verb, Callable[[Session, Sequence[Job]], Sequence[Any]]] = {
            Verb.CLAIM: self._claim,
            Verb.READ: self._read,
            Verb.RENEW: self._renew,
            Verb.CHECKPOINT: self._checkpoint,
            Verb.SETTLE: self._settle,
            Verb.FINISH: self._finish,
            Verb.RELEASE: self._release,
            Verb.RETURN: self._release,
            Verb.CANCEL: self._cancel,
            Verb.SIGNAL: self._signal,
            Verb.RECEIVE: self._receive,
        }

    def perform(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        """See `writer.Performer`."""
        return self._verbs[jobs[0].verb](session, jobs)

    def read_back(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        """See `writer.Performer`."""
        if jobs[0].verb not in (Verb.CHECKPOINT, Verb.FINISH):
            # Doing it again finds what was done: the lease by the claim's random, the signal by its nonce.
            return [ABSENT for _ in jobs]
        return _counted(jobs, self._fates(session, jobs, "lock_leases"))

    def _fates(self, session: Session, jobs: Sequence[Job], leases_by: str) -> Sequence[Any]:
        """None for each write that is there, `ABSENT` for one that may be sent again, else why it may not.

        `leases_by` is "lock_leases" where a write may still be under way, which the row's lock waits for.
        """
        writes: list[Writing] = [job.payload for job in jobs]
        ids, seqs = [write.lease.row for write in writes], [write.record.seq for write in writes]
        with _transaction(session):
            leases = session.queue(self._sql[leases_by], (ids,))
            nonces = session.queue(self._sql["read_nonces"], (ids, seqs))
        owners: dict[str, Standing] = {run_id: (token, owner, epoch) for run_id, token, owner, epoch in leases}
        found = {(run_id, seq): nonce for run_id, seq, nonce in nonces}
        return [self._fate(write, owners, found) for write in writes]

    def _fate(self, write: Writing, owners: Mapping[str, Standing], found: Mapping[tuple[str, int], int]) -> Any:
        lease = write.lease
        nonce = found.get((lease.row, write.record.seq))
        if nonce == write.nonce:
            return None
        if refusal := refused(lease, owners.get(lease.row)):
            return refusal
        return ABSENT if nonce is None else LeaseLost(lease.run_id, NOT_ITS_OWN)

    def _settle(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        fates = self._fates(session, jobs, "lock_leases")
        return [fate if isinstance(fate, DurableError) else fate is None for fate in fates]

    def _claim(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        claimings: list[Claiming] = [job.payload for job in jobs]
        sent = self._clock.elapsed()
        for claiming in claimings:
            claiming.sent = sent if claiming.sent is None else claiming.sent
        values = {
            "claims": _json.encode([_claim_row(claiming) for claiming in claimings]).decode(),
            "openings": _json.encode([_opening_row(claiming) for claiming in claimings]).decode(),
            "dead": [claiming.dead for claiming in claimings if claiming.dead],
            "ids": [claiming.row for claiming in claimings],
            "randoms": [claiming.random for claiming in claimings],
            "places": [_BEFORE_ALL for _ in claimings],
            "most": batches.page(len(jobs)),
            "rows": MOST_RECORDS + 1,
        }
        with _transaction(session):
            session.queue(self._sql["take_leases"], values)
            session.queue(self._sql["open_runs"], values)
            runs = session.queue(self._sql["read_runs"], values)
            journals = session.queue(self._sql["read_journals"], values)
        pages = _by_run(journals)
        standing = {row[0]: row[1:] for row in runs}
        answers = [Found(claiming, standing[claiming.row], session.server) for claiming in claimings]
        for found in answers:
            found.add(pages.get(found.row, ()))
        return [
            ABSENT if found.is_worth_another_try(claiming) else found
            for claiming, found in zip(claimings, answers, strict=True)
        ]

    def _read(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        return [self._read_one(session, job.payload) for job in jobs]

    def _read_one(self, session: Session, found: Found) -> DurableError | None:
        """One page more, or the document. A lease is looked at in the very snapshot in which its journal is read."""
        if found.is_long:
            row = session.execute(self._sql["read_document"], (found.row,)).fetchone()
            if row is None:
                return self._vanished(session, found)
            found.document, found.is_long = row[0], False
        elif found.place is not None:
            values = {
                "ids": [found.row],
                "randoms": [found.random],
                "places": [found.place],
                "most": MOST_BYTES,
                "rows": MOST_RECORDS + 1,
            }
            rows = session.execute(self._sql["read_journals"], values).fetchall()
            if not rows or (found.lease is not None and not rows[0][1]):
                return self._vanished(session, found)
            found.add(rows)
        return None

    def _vanished(self, session: Session, found: Found) -> DurableError:
        """Why what was just there is there no more."""
        if found.lease is None:
            return LeaseLost(found.run_id, "it was deleted, or begun anew, while how it had ended was read")
        row = session.execute(self._sql["read_leases"], ([found.row],)).fetchone()
        return refused(found.lease, row[1:] if row else None) or RecordsLost(found.run_id)

    def _renew(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        leases: list[Lease] = [job.payload for job in jobs]
        sent = self._clock.elapsed()
        columns = (
            [lease.row for lease in leases],
            [lease.token for lease in leases],
            [lease.seconds for lease in leases],
        )
        standing: dict[str, bool] = dict(session.execute(self._sql["renew"], columns).fetchall())
        for lease in leases:
            if standing.get(lease.token):
                lease.renewed(sent)
        return [None if standing.get(lease.token) else LeaseLost(lease.run_id, _OVER) for lease in leases]

    def _checkpoint(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        """Nothing is added to a run that another server, which this session leads to, does not have whole."""
        if len(jobs) == 1 and jobs[0].payload.lease.server == session.server:  # as almost always
            return self._written(session, jobs)
        lost = without_records(session, self._sql, strange(session, (job.payload.lease for job in jobs)))
        if not lost:
            return self._written(session, jobs)
        whole, without = list[Job](), list[Job]()
        for job in jobs:
            (without if job.payload.lease in lost else whole).append(job)
        written = iter(self._written(session, whole) if whole else ())
        fates = self._fates(session, without, "read_leases")
        settled = iter(_counted(without, [_whole(job, fate) for job, fate in zip(without, fates, strict=True)]))
        return [next(settled) if job.payload.lease in lost else next(written) for job in jobs]

    def _written(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        if len(jobs) == 1:
            write: Writing = jobs[0].payload
            lease, record = write.lease, write.record
            row = (
                b"%d" % record.seq,
                record.key.encode(),
                record.kind.encode(),
                b"%d" % write.nonce,
                record.text.encode(),
                lease.row.encode(),
                lease.token.encode(),
            )
            if session.execute_write(self._checkpoint_one, row) == 1:
                lease.recorded()
                return (None,)
            return _counted(jobs, self._fates(session, jobs, "read_leases"))
        rows = [_Row(n, *_columns(job.payload), Raw(job.payload.record.text.encode())) for n, job in enumerate(jobs)]
        text = _json.encode(rows).decode()
        missing: list[int] = [n for (n,) in session.execute(self._sql["checkpoint_batch"], (text,))]
        answers: list[Any] = [None for _ in jobs]
        if missing:
            for n, answer in zip(missing, self._fates(session, [jobs[n] for n in missing], "read_leases"), strict=True):
                answers[n] = answer
        return _counted(jobs, answers)

    def _finish(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        rows = [_end_row(job.payload) for job in jobs]
        text = _json.encode(rows).decode()
        finished = {row for (row,) in session.execute(self._sql["finish_batch"], (text,))}
        refused = [job for job in jobs if job.payload.lease.row not in finished]
        fates = iter(self._fates(session, refused, "read_leases") if refused else ())
        return [None if job.payload.lease.row in finished else _whole(job, next(fates)) for job in jobs]

    def _release(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        leases, statuses = zip(*(job.payload for job in jobs), strict=True)
        columns = ([lease.row for lease in leases], [lease.token for lease in leases], list(statuses))
        session.execute(self._sql["release_batch"], columns)
        return [None for _ in jobs]

    def _cancel(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        rows = [job.payload for job in jobs]
        were_cancelled: dict[str, bool] = dict(session.execute(self._sql["cancel_batch"], (rows,)))
        return [were_cancelled.get(row, False) or (ABSENT if row in were_cancelled else False) for row in rows]

    def _signal(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        missing = {n for (n,) in session.execute(self._sql["signal_batch"], (_numbered(jobs),))}
        return [ABSENT if n in missing else None for n in range(len(jobs))]

    def _receive(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        found = {
            n: (number, payload)
            for n, number, payload in session.execute(self._sql["receive_batch"], (_numbered(jobs),))
        }
        return [found.get(n) for n in range(len(jobs))]


def _by_run(rows: Iterable[tuple[Any, ...]]) -> dict[str, list[tuple[Any, ...]]]:
    pages: dict[str, list[tuple[Any, ...]]] = {}
    for row in rows:
        pages.setdefault(row[0], []).append(row)
    return pages


def _numbered(jobs: Sequence[Job]) -> str:
    rows: list[Struct] = []
    for n, job in enumerate(jobs):
        job.payload.n = n
        rows.append(job.payload)
    return _json.encode(rows).decode()


class _SignalRow(Struct, gc=False):
    n: int
    id: str
    name: str
    payload: str  # as text: it may be JSON's null, which would become SQL's
    nonce: int


class _AskedRow(Struct, gc=False):
    n: int
    id: str
    name: str
    taken: list[int]


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


def _columns(write: Writing) -> tuple[str, str, int, str, str, int]:
    lease, record = write.lease, write.record
    return lease.row, lease.token, record.seq, record.key, record.kind, write.nonce


def _counted(jobs: Sequence[Job], answers: Sequence[Any]) -> Sequence[Any]:
    if jobs[0].verb is Verb.CHECKPOINT:
        for job, answer in zip(jobs, answers, strict=True):
            if answer is None:
                job.payload.lease.recorded()
    return answers


def _end_row(write: Writing) -> _EndRow:
    # A run that fails may do so with a record missing: it is executed again from what is stored, or not at all.
    records = write.lease.records if write.status == Status.COMPLETED else 0
    return _EndRow(*_columns(write), write.status or "", records, write.record.text)


def _whole(job: Job, fate: Any) -> Any:
    """The fate of what was not written. Under a lease that stands, that is because the journal is not whole."""
    return RecordsLost(job.run_id) if fate is ABSENT else fate


def _claim_row(claiming: Claiming) -> dict[str, Any]:
    claim = claiming.claim
    return {
        "id": claiming.row,
        "random": claiming.random,
        "owner": claiming.owner,
        "seconds": claim.seconds,
        "dead": claiming.dead,
        "workflow": claim.workflow,
        "function": claim.function,
        "version": claim.version,
        "input_hash": claim.input_hash,
        "after_failure": claim.after_failure,
        "may_create": claim.create,
        "amends": claim.amends,
    }


def _opening_row(claiming: Claiming) -> dict[str, Any]:
    claim = claiming.claim
    return {
        "id": claiming.row,
        "random": claiming.random,
        "after_failure": claim.after_failure,
        "amends": claim.amends,
        "header": open_header(claim),
        "input": None if claim.input is None else claim.input.decode(),
    }


@contextmanager
def _transaction(session: Session) -> Iterator[None]:
    """Several statements in one transaction and one round trip, under the isolation that they are written for."""
    with session.connection.pipeline():
        session.queue(b"BEGIN ISOLATION LEVEL READ COMMITTED")
        yield
        session.queue(b"COMMIT")
