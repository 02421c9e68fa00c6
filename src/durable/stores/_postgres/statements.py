"""Performs jobs as statements: a batch in, an answer for each out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from durable._engine import batches
from durable._engine.batches import MAX_BYTES, MAX_RECORDS
from durable._engine.leases import Lease
from durable.clocks import Clock
from durable.errors import DurableError, LeaseLost, RecordsLost
from durable.records import Status
from durable.stores._postgres.claims import BEFORE_ALL, Claiming, Found, claim_row, opening_row
from durable.stores._postgres.job import ABSENT, Job
from durable.stores._postgres.jobs import (
    CANCEL,
    CHECKPOINT,
    CLAIM,
    ENQUEUE,
    FINISH,
    POLL,
    READ,
    RECEIVE,
    RELEASE,
    RENEW,
    RETURN,
    SETTLE,
    SIGNAL,
    Writing,
)
from durable.stores._postgres.lease_checks import (
    NOT_ITS_OWN,
    Standing,
    leases_missing_records,
    refused,
    unverified_leases,
)
from durable.stores._postgres.session import Session, in_transaction
from durable.stores._postgres.sql.placeholders import number_parameters
from durable.stores._postgres.verbs import PostgresVerb
from durable.stores._postgres.worker_statements import WorkerStatements
from durable.stores.requests import Release

_OVER: Final = "it had ended before the reply to its claim came"

_json: Final = msgspec.json.Encoder()


class Statements:
    """Performs batches on a session."""

    def __init__(self, sql: Mapping[str, bytes], clock: Clock) -> None:
        self._sql = sql
        self._checkpoint_one = number_parameters(sql["checkpoint"]).text
        self._clock = clock
        workers = WorkerStatements(sql, clock)
        self._verbs: dict[PostgresVerb, Callable[[Session, Sequence[Job]], Sequence[Any]]] = {
            CLAIM: self._claim,
            READ: self._read,
            RENEW: self._renew,
            CHECKPOINT: self._checkpoint,
            SETTLE: self._settle,
            FINISH: self._finish,
            RELEASE: self._release,
            RETURN: self._release,
            CANCEL: self._cancel,
            SIGNAL: self._signal,
            RECEIVE: self._receive,
            ENQUEUE: workers.enqueue,
            POLL: workers.poll,
        }

    def perform(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        """See `sender.Performer`."""
        return self._verbs[jobs[0].verb](session, jobs)

    def read_back(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        """See `sender.Performer`."""
        if jobs[0].verb not in (CHECKPOINT, FINISH):
            # Doing it again finds what was done: the lease by the claim's random, the signal by its nonce.
            return [ABSENT for _ in jobs]
        return _counted(jobs, self._fates(session, jobs, "lock_leases"))

    def _fates(self, session: Session, jobs: Sequence[Job], leases_by: str) -> Sequence[Any]:
        """None for each write that is there, `ABSENT` for one that may be sent again, else why it may not.

        `leases_by` is "lock_leases" where a write may still be under way, which the row's lock waits for.
        """
        writes: list[Writing] = [job.payload for job in jobs]
        ids, seqs = [write.lease.row for write in writes], [write.record.seq for write in writes]
        with in_transaction(session):
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
            "claims": _json.encode([claim_row(claiming) for claiming in claimings]).decode(),
            "openings": _json.encode([opening_row(claiming) for claiming in claimings]).decode(),
            "dead": [claiming.dead for claiming in claimings if claiming.dead],
            "ids": [claiming.row for claiming in claimings],
            "randoms": [claiming.random for claiming in claimings],
            "places": [BEFORE_ALL for _ in claimings],
            "most": batches.page_bytes(len(jobs)),
            "rows": MAX_RECORDS + 1,
        }
        with in_transaction(session):
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
                "most": MAX_BYTES,
                "rows": MAX_RECORDS + 1,
            }
            rows = session.execute(self._sql["read_journals"], values).fetchall()
            if not rows and found.place == BEFORE_ALL and self._stands(session, found):
                found.add(())  # there is nothing in it
                return None
            if not rows or (found.lease is not None and not rows[0][1]):
                return self._vanished(session, found)
            found.add(rows)
        return None

    def _stands(self, session: Session, found: Found) -> bool:
        row = session.execute(self._sql["read_leases"], ([found.row],)).fetchone()
        return row is not None and found.lease is not None and row[1] == found.lease.token

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
                lease.renew(sent)
        return [None if standing.get(lease.token) else LeaseLost(lease.run_id, _OVER) for lease in leases]

    def _checkpoint(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        """Nothing is added to a run that another server, which this session leads to, does not have whole."""
        if len(jobs) == 1 and jobs[0].payload.lease.server == session.server:  # as almost always
            return self._written(session, jobs)
        lost = leases_missing_records(
            session, self._sql, unverified_leases(session, (job.payload.lease for job in jobs))
        )
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
                lease.count_record()
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
        releases: list[Release] = [job.payload for job in jobs]
        columns = (
            [release.lease.row for release in releases],
            [release.lease.token for release in releases],
            [release.status for release in releases],
            [release.due_in for release in releases],
        )
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


def _counted(jobs: Sequence[Job], answers: Sequence[Any]) -> Sequence[Any]:
    if jobs[0].verb is CHECKPOINT:
        for job, answer in zip(jobs, answers, strict=True):
            if answer is None:
                job.payload.lease.count_record()
    return answers


def _end_row(write: Writing) -> _EndRow:
    # A run that fails may do so with a record missing: it is executed again from what is stored, or not at all.
    records = write.lease.records if write.status == Status.COMPLETED else 0
    return _EndRow(*_columns(write), write.status or "", records, write.record.text, write.due_in)


def _whole(job: Job, fate: Any) -> Any:
    """The fate of what was not written. Under a lease that stands, that is because the journal is not whole."""
    return RecordsLost(job.run_id) if fate is ABSENT else fate
