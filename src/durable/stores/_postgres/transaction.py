"""A transaction for a step: the fence, the body's SQL, the record and the COMMIT, all on one connection.

The fence comes first: the lease's row is locked FOR KEY SHARE, so that a claim that takes the run over waits for the end,
while heartbeats and checkpoints pass. The record comes last, in one round trip with the COMMIT, and only into the transaction
that was begun here: its number is compared, so that a body that has ended it and begun another one commits nothing more.

When the reply to the COMMIT is lost, the writer finds out what became of it, as it does for checkpoints. What was not committed
is not sent again, since the body's part of it is gone: the body must do it anew, which the engine decides.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final, TypeVar

import psycopg

from durable._common.boundary import calls_out
from durable._common.locks import locked
from durable._engine import batches
from durable._engine.backoff import backoff
from durable._engine.batches import Entry, Verdict, reply_deadline
from durable._engine.leases import Lease
from durable._engine.step_kinds import Isolation
from durable.errors import (
    DurableError,
    InvalidArgument,
    LeaseLost,
    OutcomeUnknown,
    RecordsLost,
    RunCancelled,
    StoreUnavailable,
    TransactionMisused,
)
from durable.records import Record
from durable.stores._postgres import nesting
from durable.stores._postgres.connections import FORCE_SYNC_COMMIT
from durable.stores._postgres.guarded import GuardedConnection, guard
from durable.stores._postgres.job import Job
from durable.stores._postgres.jobs import CHECKPOINT, checkpoint_job, settle_job
from durable.stores._postgres.lease_checks import leases_missing_records, refused, unverified_leases
from durable.stores._postgres.prepared import roll_back_prepared
from durable.stores._postgres.session import Session
from durable.stores._postgres.sqlstates import classify
from durable.stores._postgres.transaction_errors import (
    LOST,
    errors_behind,
    explain_loss,
    explain_refusal,
    is_conflict,
    is_exhausted,
)
from durable.stores._postgres.transaction_pool import TransactionPool
from durable.stores._postgres.watchdog import shut_down
from durable.stores.protocol import NotCommitted, RolledBack
from durable.stores.requests import OnLateReply

T = TypeVar("T")

# What makes a session that another body has used as new.
_RESET: Final = (
    b"RESET ALL",
    b"RESET SESSION AUTHORIZATION",
    b"DISCARD TEMP",
    b"CLOSE ALL",
    b"SELECT pg_catalog.pg_advisory_unlock_all()",
)
# What a PREPARE of the body's own has left, which psycopg does not know of. DEALLOCATE ALL would take psycopg's own as well.
_PREPARED: Final = b"SELECT FROM pg_catalog.pg_prepared_statements WHERE from_sql LIMIT 1"

_SETTINGS: Final = 5  # columns, the first of which is the transaction's number
_MAX_ROLLBACK: Final = 10.0  # seconds, after which the connection is closed, which does the same


class PostgresTransaction:
    """See `protocol.Transaction`."""

    def __init__(self, owner: TransactionPool, lease: Lease, name: str, isolation: Isolation) -> None:
        self._owner = owner
        self._lease = lease
        self._name = name
        self._begin = f"BEGIN ISOLATION LEVEL {isolation.upper()}".encode()
        self._settings: Sequence[str] = ()
        self._number = self._epoch = 0
        self._lock = threading.RLock()  # guards what follows; a signal handler may run while it is held
        self._session: Session | None = None
        self._guarded: GuardedConnection | None = None
        self._busy = 0  # the thread in `begin` or `call`; if abandoned meanwhile, it ends the transaction
        self._abandoned = False
        self._pid = os.getpid()
        self._job: Job | None = None
        self._sent = False  # the job's record and the COMMIT, perhaps

    def begin(self, seconds: float) -> bool:
        """See `protocol.Transaction`. One round trip, which also resets a session that was used before."""
        self._enter()
        try:
            if not self._owner.room.enter(self, 0.0 if nesting.is_nested() else seconds):
                if nesting.is_nested():  # the other body waits for this one, and perhaps all bodies do
                    raise InvalidArgument(
                        f"step.transaction({self._name!r}) is begun inside the body of another one, and there is room for none "
                        f"more: raise max_transactions of postgres(), or execute the inner run outside"
                    )
                return False
            self._open()
            return True
        except BaseException:
            self._end()
            raise
        finally:
            self._leave()

    def call(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """See `protocol.Transaction`."""
        self._enter()
        around = nesting.innermost.get()
        where, row = self._owner.connections.where, self._lease.row
        try:
            nesting.innermost.set(nesting.RunningBody(self._name, where, row, self._is_open, around))
            return self._call_body(fn, args)
        finally:
            nesting.innermost.set(around)
            self._leave()

    def commit(self, record: Record, on_late_reply: OnLateReply | None = None) -> None:
        """See `protocol.Transaction`. One round trip."""
        try:
            self._commit(record)
        except (DurableError, NotCommitted):
            raise
        except BaseException as interrupt:
            self._end()
            if on_late_reply is not None:
                self._report_fate(interrupt, on_late_reply)
            raise

    def _report_fate(self, interrupt: BaseException, on_late_reply: OnLateReply) -> None:
        """Find out the outcome of a commit that was interrupted, and tell `on_late_reply`."""
        try:
            if not self._sent or self._job is None:
                on_late_reply(interrupt)
                return
            self._settle(self._job, psycopg.OperationalError(type(interrupt).__name__))
        except RolledBack:
            on_late_reply(interrupt)
        except DurableError as problem:
            on_late_reply(problem)
        else:
            on_late_reply(None)

    def _commit(self, record: Record) -> None:
        owner, lease, session, written = self._owner, self._lease, self._session, None
        if session is None:
            raise RolledBack(StoreUnavailable(owner.connections.where, LOST))
        self._job = job = checkpoint_job(lease, record)
        watchdog = owner.connections.watchdog
        row = (
            lease.row,
            record.seq,
            record.key,
            record.kind,
            job.payload.nonce,
            record.text,
            self._number,
            self._epoch,
        )
        now = owner.clock.elapsed()
        watchdog.watch(session.connection, now + batches.reply_timeout(job.deadline, now), job.size)
        self._sent = True
        try:
            with session.connection.pipeline():
                session.queue(owner.sql["restore_settings"], self._settings)
                written = session.queue(owner.sql["transaction_record"], row)
                if owner.connections.pool_size is None and owner.connections.prepares:
                    # Here, since it takes effect with the commit, as the body's LISTEN does.
                    session.queue(b"UNLISTEN *")
                session.queue(b"COMMIT")
        except psycopg.Error as problem:
            failure, lost = problem, session.connection.closed
        else:
            lease.count_record()
            return
        finally:
            watchdog.unwatch(session.connection)
            self._end()  # before settling: the connection may be the only one there is, and it holds the row's lock
        classified = classify(failure.sqlstate)
        if lost or classified is Verdict.UNKNOWN:
            self._settle(job, failure)
        else:
            if classified is Verdict.UNPREPARED:
                owner.connections.prepares = False
            is_written = written is not None and written.rowcount == 1
            raise explain_refusal(failure, job, self._name, owner.connections.explain, is_written=is_written) from None

    def rollback(self) -> None:
        """See `protocol.Transaction`."""
        with self._lock: session = None if self._is_busy else self._session  # noqa: E701  # fmt: skip
        if session is None or os.getpid() != self._pid:
            return
        watchdog, clock = self._owner.connections.watchdog, self._owner.clock
        watchdog.watch(session.connection, clock.elapsed() + _MAX_ROLLBACK)
        try:
            session.rollback()
        except psycopg.Error:
            pass  # it is closed then, which does the same
        finally:
            watchdog.unwatch(session.connection)
            self._end()

    @locked
    def abandon(self) -> None:
        """See `protocol.Transaction`. The socket is shut down: the server rolls back when it sees that."""
        self._abandoned = True
        if self._guarded is not None:
            self._guarded.revoke()
        if self._session is not None and os.getpid() == self._pid:
            shut_down(self._session.connection)
        if not self._is_busy:
            self._end()
        elif self._session is not None and self._owner.connections.pool_size is None:
            # A body that goes on and on takes no room from others: its own connection is as good as closed. A pool's
            # connection is missing there until it is given back.
            self._owner.room.leave(self)

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """See `protocol.Transaction`."""
        return self._owner.daemons.submit(work, at_once=nesting.is_nested())

    def _open(self) -> None:
        """Begin the transaction under the lease, and try again while the database is out of reach."""
        connections, clock = self._owner.connections, self._owner.clock
        entry, failures = Entry(CHECKPOINT, self._lease.run_id, 0, reply_deadline(self._lease), self._lease), 0
        while True:
            try:
                self._attempt(entry.deadline)
                return
            except (psycopg.Error, StoreUnavailable) as problem:
                sent = isinstance(problem, psycopg.Error)
                verdict = classify(getattr(problem, "sqlstate", None), sent=sent)
                if verdict is Verdict.UNPREPARED:
                    connections.prepares = False
                final = verdict in (Verdict.FINAL, Verdict.REFUSED) or self._abandoned
                if final or clock.elapsed() >= entry.deadline:
                    raise (connections.explain(problem) if isinstance(problem, psycopg.Error) else problem) from None
            failures += 1
            clock.sleep(backoff(failures))

    def _attempt(self, until: float) -> None:
        owner, lease = self._owner, self._lease
        self._session, used = owner.take(until)
        session = self._session
        try:
            session.prepare = owner.connections.prepares
            now = owner.clock.elapsed()
            owner.connections.watchdog.watch(session.connection, now + batches.reply_timeout(until, now))
            strangers = unverified_leases(session, [lease])
            try:
                with session.connection.pipeline():
                    session.queue(self._begin)
                    for statement in _RESET if used else ():
                        session.queue(statement)
                    prepared = session.queue(_PREPARED) if used else None
                    if used and owner.connections.forces_sync_commit:
                        session.queue(FORCE_SYNC_COMMIT)
                    idle = (lease.seconds, f"{lease.seconds * 1000:.0f}")
                    settings = session.queue(owner.sql["transaction_settings"], idle)
                    fence = session.queue(owner.sql["transaction_fence"], (lease.row,))
                if prepared is not None and prepared.rowcount > 0:
                    session.execute(b"DEALLOCATE ALL")
                lost = leases_missing_records(session, owner.sql, strangers)
            finally:
                owner.connections.watchdog.unwatch(session.connection)
            self._number, *self._settings = next(settings)[:_SETTINGS]
            standing = fence.fetchone()
            if refusal := refused(lease, standing):
                raise refusal
            self._epoch = lease.epoch
            if lost:
                raise RecordsLost(lease.run_id)
        except BaseException:
            owner.give_back(session)
            self._session = None
            raise

    @calls_out
    def _call_body(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        connection, face = self._guard()
        try:
            value = fn(face, *args)
        except Exception as problem:
            self._refuse_child()
            misuse = self._take_away(face)
            errors = list(errors_behind(problem))
            if conflict := next(filter(is_conflict, errors), None):
                raise RolledBack(conflict) from problem
            if exhausted := next(filter(is_exhausted, errors), None):
                raise RolledBack(self._owner.connections.explain(exhausted)) from problem
            if errors and connection.closed:
                raise self._lost(errors[0]) from problem
            if misuse is not None and face.ended:
                raise misuse from problem
            raise
        self._refuse_child()
        misuse = self._take_away(face)
        if misuse is not None:  # asked first: the misuse may be what closed the connection
            raise misuse
        if connection.closed:
            raise self._lost(None)
        return value

    def _refuse_child(self) -> None:
        if os.getpid() != self._pid:
            raise LeaseLost(
                self._lease.run_id, "it belongs to the process that this one was forked from, in a step's body"
            )

    def _take_away(self, face: GuardedConnection) -> TransactionMisused | None:
        """Take the connection from the body; the misuse that forbids a commit, if there is one.

        A transaction that the body has prepared is rolled back: it would hold the lease.
        """
        misuse = face.take_away()
        session = self._session
        if misuse is None or session is None or not face.ended or session.connection.closed:
            return misuse
        return roll_back_prepared(session, self._number, self._name) or misuse

    @locked
    def _guard(self) -> tuple[psycopg.Connection[Any], GuardedConnection]:
        assert self._session is not None, "a body before its transaction"  # noqa: S101 -- a bug, not an input
        self._guarded = guard(self._session.connection, self._name)
        return self._session.connection, self._guarded

    def _settle(self, job: Job, problem: psycopg.Error) -> None:
        """Find out whether the job was committed: quiet when it was, `RolledBack` when it was not."""
        try:
            committed = self._owner.settle(settle_job(job))
        except (LeaseLost, RunCancelled):
            raise
        except DurableError:
            raise OutcomeUnknown(job.run_id, job.what, type(problem).__name__) from None
        if not committed:
            raise self._lost(problem) from None
        self._lease.count_record()

    def _lost(self, problem: psycopg.Error | None) -> RolledBack:
        return explain_loss(problem, self._owner.connections.where, self._lease)

    @locked
    def _enter(self) -> None:
        if self._abandoned:
            raise RolledBack(StoreUnavailable(self._owner.connections.where, "the transaction was abandoned"))
        self._busy = threading.get_ident()

    @property
    def _is_busy(self) -> bool:
        """Whether another thread is at work in it. This thread itself may have been interrupted there."""
        return self._busy not in (0, threading.get_ident())

    @locked
    def _leave(self) -> None:
        self._busy = 0
        if self._guarded is not None:
            self._guarded.revoke()
        if self._abandoned:
            self._end()

    @locked
    def _end(self) -> None:
        """Let go of everything. After an interrupt in the middle it is called again."""
        if os.getpid() != self._pid:  # a forked child: everything is the parent's
            return
        if self._session is not None:
            self._owner.connections.watchdog.unwatch(self._session.connection)
            self._owner.give_back(self._session)
            self._session = None
        self._owner.room.leave(self)

    def _is_open(self) -> bool:
        """Whether it was begun, and has not ended."""
        return self._session is not None
