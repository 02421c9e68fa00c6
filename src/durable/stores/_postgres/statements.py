"""Performs jobs as statements: a batch in, an answer for each out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from durable._engine import batches
from durable._engine.batches import MAX_BYTES, MAX_RECORDS
from durable._engine.leases import Lease
from durable.clocks import Clock
from durable.errors import DurableError, LeaseLost, RecordsLost
from durable.records import Status
from durable.stores._postgres.cancel_statements import CancelStatements
from durable.stores._postgres.child_statements import ChildStatements
from durable.stores._postgres.claims import BEFORE_ALL, Claiming, Found, claim_row, opening_row, read_found
from durable.stores._postgres.job import ABSENT, Job
from durable.stores._postgres.jobs import (
    BEGIN_CHILD,
    CANCEL,
    CHECKPOINT,
    CLAIM,
    CONTINUE,
    DELETE_SCHEDULE,
    ENQUEUE,
    FINISH,
    LOOK,
    PAUSE_SCHEDULE,
    POLL,
    PUT_SCHEDULES,
    READ,
    RECEIVE,
    RELEASE,
    RENEW,
    REOPEN,
    RETURN,
    SETTLE,
    SIGNAL,
    SIGNAL_ONCE,
    TICK,
    WAKE,
    Continuing,
    Writing,
)
from durable.stores._postgres.lease_checks import (
    NOT_ITS_OWN,
    Standing,
    leases_missing_records,
    refused,
    unverified_leases,
)
from durable.stores._postgres.schedule_statements import ScheduleStatements
from durable.stores._postgres.session import Session, in_transaction
from durable.stores._postgres.signal_statements import SignalStatements
from durable.stores._postgres.sql.placeholders import number_parameters
from durable.stores._postgres.suspended import render_suspended
from durable.stores._postgres.verbs import PostgresVerb
from durable.stores._postgres.worker_statements import WorkerStatements
from durable.stores._postgres.write_rows import rows_of_ends, rows_of_records
from durable.stores.requests import Release

_OVER: Final = "it had ended before the reply to its claim came"

_json: Final = msgspec.json.Encoder()


Rows: TypeAlias = Iterable[tuple[Any, ...]]


class Statements:
    """Performs batches on a session."""

    def __init__(self, sql: Mapping[str, bytes], clock: Clock) -> None:
        self._sql = sql
        self._checkpoint_one = number_parameters(sql["checkpoint"]).text
        self._clock = clock
        workers = WorkerStatements(sql, clock)
        signals = SignalStatements(sql, workers)
        self._children = ChildStatements(sql, workers, self._fates)
        self._cancellations = CancelStatements(sql, self._children)
        schedules = ScheduleStatements(sql, workers)
        self._verbs: dict[PostgresVerb, Callable[[Session, Sequence[Job]], Sequence[Any]]] = {
            CLAIM: self._claim,
            LOOK: self._look,
            READ: self._read,
            RENEW: self._renew,
            CHECKPOINT: self._checkpoint,
            SETTLE: self._settle,
            FINISH: self._finish,
            REOPEN: self._reopen,
            RELEASE: self._release,
            RETURN: self._release,
            CONTINUE: self._continue,
            CANCEL: self._cancel,
            PUT_SCHEDULES: schedules.put,
            TICK: schedules.tick,
            PAUSE_SCHEDULE: schedules.pause,
            DELETE_SCHEDULE: schedules.delete,
            SIGNAL: signals.signal,
            SIGNAL_ONCE: signals.signal,
            RECEIVE: signals.receive,
            ENQUEUE: workers.enqueue,
            BEGIN_CHILD: self._begin_children,
            POLL: workers.poll,
            WAKE: workers.wake,
        }

    def perform(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        """See `sender.Performer`."""
        verb = jobs[0].verb
        if verb.shares_commits and not all(job.verb is verb for job in jobs):
            return self._write_together(session, jobs)
        return self._verbs[verb](session, jobs)

    def read_back(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        """See `sender.Performer`."""
        if jobs[0].verb is CONTINUE:
            return _continued(session, jobs, self._fates(session, jobs, "lock_leases"))
        if jobs[0].verb not in (CHECKPOINT, FINISH, REOPEN):
            # Doing it again finds what was done: the lease by the claim's random, the signal by its nonce.
            return [ABSENT for _ in jobs]
        return _counted(jobs, self._fates(session, jobs, "lock_leases"))

    def _fates(self, session: Session, jobs: Sequence[Job], leases_by: str) -> Sequence[Any]:
        """None for each write that is there, `ABSENT` for one that may be sent again, else why it may not.

        `leases_by` is "lock_leases" where a write may still be under way, which the row's lock waits for.
        """
        writes: list[Writing | Continuing] = [job.payload for job in jobs]
        ids, seqs = [write.lease.row for write in writes], [write.record.seq for write in writes]
        with in_transaction(session):
            leases = session.queue(self._sql[leases_by], (ids,))
            nonces = session.queue(self._sql["read_nonces"], (ids, seqs))
        owners: dict[str, Standing] = {run_id: (token, owner, epoch) for run_id, token, owner, epoch in leases}
        found = {(run_id, seq): nonce for run_id, seq, nonce in nonces}
        return [self._fate(write, owners, found) for write in writes]

    def _fate(
        self, write: Writing | Continuing, owners: Mapping[str, Standing], found: Mapping[tuple[str, int], int]
    ) -> Any:
        lease = write.lease
        nonce = found.get((lease.row, write.record.seq))
        if nonce == write.nonce:
            return None
        if refusal := refused(lease, owners.get(lease.row)):
            return refusal
        if isinstance(write, Continuing):  # in this place there is the input with which the run began before
            return ABSENT
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
        }
        with in_transaction(session, jobs[0].max_lock_wait):
            session.queue(self._sql["take_leases"], values)
            session.queue(self._sql["open_runs"], values)
            read = self._queue_reading(session, claimings)
        answers = read_found(claimings, *read, session.server)
        return [
            ABSENT if found.is_worth_another_try(claiming) else found
            for claiming, found in zip(claimings, answers, strict=True)
        ]

    def _look(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        claimings: list[Claiming] = [job.payload for job in jobs]
        with in_transaction(session):
            read = self._queue_reading(session, claimings)
        return read_found(claimings, *read, session.server)

    def _queue_reading(self, session: Session, claimings: Sequence[Claiming]) -> tuple[Rows, Rows]:
        """Within a transaction: read where these runs stand, and the first page of what may be read of each."""
        values = {
            "ids": [claiming.row for claiming in claimings],
            "randoms": [claiming.random for claiming in claimings],
            "places": [BEFORE_ALL for _ in claimings],
            "most": batches.page_bytes(len(claimings)),
            "rows": MAX_RECORDS + 1,
        }
        runs = session.queue(self._sql["read_runs"], values)
        return runs, session.queue(self._sql["read_journals"], values)

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

    def _write_together(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        """Checkpoints and ends of runs in one transaction."""
        whole, without = self._parted(session, [job for job in jobs if job.verb is CHECKPOINT])
        ends = [job for job in jobs if job.verb is FINISH]
        self._cancel_below(session, _statuses(ends))
        with in_transaction(session):
            missing = session.queue(self._sql["checkpoint_batch"], (rows_of_records(whole),)) if whole else ()
            finished = session.queue(self._sql["finish_batch"], (rows_of_ends(ends),))
        answers: dict[int, Any] = {}
        for group, told in (
            (whole, self._checkpoint_answers(session, whole, missing)),
            (without, self._without_answers(session, without)),
            (ends, self._end_answers(session, ends, finished)),
        ):
            answers.update(zip(map(id, group), told, strict=True))
        return [answers[id(job)] for job in jobs]

    def _checkpoint(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        whole, without = self._parted(session, jobs)
        if not without:  # as almost always
            return self._written(session, jobs)
        written = iter(self._written(session, whole) if whole else ())
        settled = iter(self._without_answers(session, without))
        return [next(settled if job in without else written) for job in jobs]

    def _parted(self, session: Session, jobs: Sequence[Job]) -> tuple[Sequence[Job], Sequence[Job]]:
        """Those of these checkpoints whose runs the session's server has whole, and the others, to which nothing is added."""
        if len(jobs) == 1 and jobs[0].payload.lease.server == session.server:  # as almost always
            return jobs, ()
        lost = leases_missing_records(
            session, self._sql, unverified_leases(session, (job.payload.lease for job in jobs))
        )
        if not lost:
            return jobs, ()
        whole, without = list[Job](), list[Job]()
        for job in jobs:
            (without if job.payload.lease in lost else whole).append(job)
        return whole, without

    def _without_answers(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        fates = self._fates(session, jobs, "read_leases") if jobs else ()
        return _counted(jobs, [_whole(job, fate) for job, fate in zip(jobs, fates, strict=True)])

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
        return self._checkpoint_answers(
            session, jobs, session.execute(self._sql["checkpoint_batch"], (rows_of_records(jobs),))
        )

    def _checkpoint_answers(self, session: Session, jobs: Sequence[Job], rows: Iterable[Any]) -> Sequence[Any]:
        missing: list[int] = [n for (n,) in rows]
        answers: list[Any] = [None for _ in jobs]
        if missing:
            for n, answer in zip(missing, self._fates(session, [jobs[n] for n in missing], "read_leases"), strict=True):
                answers[n] = answer
        return _counted(jobs, answers)

    def _finish(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        self._cancel_below(session, _statuses(jobs))
        return self._end_answers(session, jobs, session.execute(self._sql["finish_batch"], (rows_of_ends(jobs),)))

    def _reopen(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        with in_transaction(session, jobs[0].max_lock_wait):
            reopened = session.queue(self._sql["finish_batch"], (rows_of_ends(jobs),))
        return self._end_answers(session, jobs, reopened)

    def _end_answers(self, session: Session, jobs: Sequence[Job], rows: Iterable[Any]) -> Sequence[Any]:
        ends = [(row, parent) for row, parent in rows]
        self._children.wake_parents(session, [parent for _, parent in ends])
        finished = {row for row, _ in ends}
        refused = [job for job in jobs if job.payload.lease.row not in finished]
        fates = iter(self._fates(session, refused, "read_leases") if refused else ())
        return [None if job.payload.lease.row in finished else _whole(job, next(fates)) for job in jobs]

    def _begin_children(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        whole, without = self._parted(session, jobs)
        begun = iter(self._children.begin(session, whole) if whole else ())
        settled = iter(self._without_answers(session, without))
        return [next(settled if job in without else begun) for job in jobs]

    def _release(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        releases: list[Release] = [job.payload for job in jobs]
        columns = (
            [release.lease.row for release in releases],
            [release.lease.token for release in releases],
            [release.status for release in releases],
            [release.due_in for release in releases],
            [None if release.awaits is None else render_suspended(release.awaits) for release in releases],
            [None if not release.awaits else _json.encode(release.awaits).decode() for release in releases],
        )
        self._cancel_below(session, ((release.lease, release.status) for release in releases))
        if all(release.awaits is None for release in releases):
            told = session.execute(self._sql["release_batch"], columns).fetchall()
            self._children.wake_parents(session, [parent for _, _, parent in told])
            return [False for _ in jobs]
        with in_transaction(session):
            session.queue(self._sql["lock_leases"], (columns[0],))
            awaited = session.queue(self._sql["release_batch"], columns)
        told = awaited.fetchall()
        self._children.wake_parents(session, [parent for _, _, parent in told])
        due = {row for row, is_there, _ in told if is_there}
        return [release.lease.row in due for release in releases]

    def _continue(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        return [self._continue_one(session, job) for job in jobs]

    def _continue_one(self, session: Session, job: Job) -> Any:
        asked: Continuing = job.payload
        lease = asked.lease
        values = {
            "id": lease.row,
            "token": lease.token,
            "new_token": asked.token,
            "seconds": lease.seconds,
            "keeps": asked.keeps,
            "number": asked.number,
            "taken": asked.taken,
            "nonce": asked.nonce,
            "record": asked.record.text,
        }
        sent = self._clock.elapsed()
        with in_transaction(session, job.max_lock_wait):
            session.queue(self._sql["continue_run"], values)
            if asked.keeps:
                session.queue(self._sql["keep_header"], values)
            session.queue(self._sql["move_journal"], values)
            if asked.taken:
                session.queue(self._sql["move_signals"], values)
            begun = session.queue(self._sql["begin_anew"], values)
        fates: Sequence[Any] = (None,)
        if begun.fetchall():
            lease.renew(sent)
        else:
            fates = self._fates(session, [job], "read_leases")
        return _continued(session, [job], fates)[0]

    def _cancel(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        return self._cancellations.cancel(session, [job.payload for job in jobs])

    def _cancel_below(self, session: Session, ends: Iterable[tuple[Lease, str | None]]) -> None:
        """Of runs that their owners end as cancelled: no child of theirs goes on. Before that: it is done again if need be."""
        if cancelled := [lease.row for lease, status in ends if status == Status.CANCELLED]:
            self._cancellations.cancel_below(session, cancelled)


def _statuses(jobs: Sequence[Job]) -> Iterable[tuple[Lease, str | None]]:
    return ((job.payload.lease, job.payload.status) for job in jobs)


def _counted(jobs: Sequence[Job], answers: Sequence[Any]) -> Sequence[Any]:
    if jobs and jobs[0].verb is CHECKPOINT:
        for job, answer in zip(jobs, answers, strict=True):
            if answer is None:
                job.payload.lease.count_record()
    return answers


def _continued(session: Session, jobs: Sequence[Job], fates: Sequence[Any]) -> Sequence[Any]:
    """The fates. Of a run that has begun anew the input is stored, and nothing else."""
    for job, fate in zip(jobs, fates, strict=True):
        if fate is None:
            job.payload.lease.note_stored(1, session.server)
    return fates


def _whole(job: Job, fate: Any) -> Any:
    """The fate of what was not written. Under a lease that stands, that is because the journal is not whole."""
    return RecordsLost(job.run_id) if fate is ABSENT else fate
