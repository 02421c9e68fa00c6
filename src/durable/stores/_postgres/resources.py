"""What one process holds of a store: its connections, its threads, and its identity as an owner of leases."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import psycopg
from psycopg.rows import tuple_row

from durable._common.locks import hold
from durable._engine.batches import MAX_SHARED_BYTES
from durable._engine.leases import RENEWALS_PER_LEASE, Lease
from durable.clocks import Clock
from durable.errors import DurableError, RunCancelled
from durable.stores._heartbeat import Heartbeat
from durable.stores._owner import Owner
from durable.stores._postgres.connections import Connections
from durable.stores._postgres.job import Job
from durable.stores._postgres.lease_checks import Standing, refused
from durable.stores._postgres.session import Connection
from durable.stores._postgres.statements import Statements
from durable.stores._postgres.transaction_pool import TransactionPool
from durable.stores._postgres.verbs import Way
from durable.stores._postgres.watchdog import shut_down
from durable.stores._postgres.writer import Writer

_LOOKS_WITHIN: Final = 2.0  # seconds, or less than a renewal may take: it must not wait behind a look


class Resources:
    """Made anew in a forked child, which touches nothing of its parent's."""

    def __init__(self, connections: Connections, sql: Mapping[str, bytes], clock: Clock, max_transactions: int) -> None:
        self.pid = os.getpid()
        self.owner = Owner()
        self.mark = f":{self.owner.instance}."  # in the token of every lease that this process holds
        self.connections = connections
        self._sql = sql
        self._clock = clock
        self.watchdog = connections.watchdog
        statements = Statements(sql, clock)
        self._small = Writer(statements, connections, clock, self.watchdog)
        self._large = Writer(statements, connections, clock, self.watchdog)
        self._claims = Writer(statements, connections, clock, self.watchdog)
        self._long = Writer(statements, connections, clock, self.watchdog)
        self._starts = Writer(statements, connections, clock, self.watchdog)
        self._polls = Writer(statements, connections, clock, self.watchdog)
        self.transactions = TransactionPool(connections, sql, clock, self.perform, max_transactions)
        self.heartbeat = Heartbeat(self._renew, self._look, clock)
        self._heartbeat_connection: Connection | None = None
        self._closing = threading.RLock()  # a signal handler may close what is just being closed
        self._unreturned: dict[str, float] = {}  # the claims whose lease may stand there still, and until when
        self._heirs: dict[int, Resources] = {}  # of each forked child, in that child

    def heir(self, make: Callable[[], Resources]) -> Resources:
        """What a forked child has in place of this one: one for all its threads, whichever of them asks first."""
        made = make()
        heir = self._heirs.setdefault(made.pid, made)  # without a lock, which a child of this child might find locked
        if heir is not made:
            made.owner.close()
        return heir

    @property
    def used(self) -> bool:
        """Whether anything was ever opened."""
        return self.connections.ready

    def writer(self, job: Job) -> Writer:
        """The way for this job.

        Small writes never queue behind large ones, and neither queues behind a claim: a claim may block until another owner's
        open transaction ends. So claims wait for claims only. And these not for what of a claim is long: an input that it
        brings, a journal that it finds.
        """
        way, is_large = job.verb.way, job.size > MAX_SHARED_BYTES
        if way is Way.BY_SIZE:  # as almost always
            return self._large if is_large else self._small
        if way is Way.ASIDE:
            return self._large
        if way is Way.OF_POLLS:
            return self._polls
        if way is Way.OF_STARTS:
            return self._starts
        return self._long if is_large or way is Way.OF_JOURNALS else self._claims

    def left(self, claim: str, seconds: float) -> None:
        """The lease of this claim of ours could not be given back: no run works under it, and it may stand so long."""
        now = self._clock.elapsed()
        self._unreturned = {name: end for name, end in self._unreturned.items() if end > now}
        self._unreturned[claim] = now + seconds

    def has_left(self, token: str | None) -> bool:
        """Whether this token is of a lease that could not be given back."""
        end = self._unreturned.get((token or "").partition(":")[2])
        return end is not None and end > self._clock.elapsed()

    def perform(self, job: Job) -> Any:
        """Commit a job and return its answer, or raise its error. Blocks."""
        return self.writer(job).perform(job)

    def submit(self, job: Job) -> asyncio.Future[Any]:
        """Commit a job; the future of its answer."""
        return self.writer(job).submit(job)

    def room(self) -> asyncio.Future[None] | None:
        """None while there is room for more in both ways; else what to wait for."""
        return self._small.room() or self._large.room()

    def close(self) -> None:
        """Commit what waits, then let go of everything. Quiet when closed already."""
        hold(self._closing, self._close)

    def _close(self) -> None:
        for writer in (self._polls, self._starts, self._claims, self._long, self._small, self._large):
            writer.close()  # a lease that was claimed and not taken is given back
        has_ended = self.heartbeat.close()
        self.watchdog.close()
        if self._heartbeat_connection is not None:
            if not has_ended:  # it is told so, and closes it itself
                shut_down(self._heartbeat_connection)
            else:
                self._heartbeat_connection.close()
        self.transactions.close()
        self.connections.close()
        self.owner.close()

    def _renew(self, leases: Sequence[Lease]) -> dict[str, bool]:
        """Renew leases; of those that do not stand any more, note which were cancelled."""
        ids, tokens = [lease.row for lease in leases], [lease.token for lease in leases]
        columns = (ids, tokens, [lease.seconds for lease in leases])
        patience = min(lease.seconds for lease in leases) / RENEWALS_PER_LEASE
        with self._heard(patience) as ask:
            standing: dict[str, bool] = dict(ask("renew", columns))
            if lost := [lease for lease in leases if lease.token not in standing]:
                rows: dict[str, Standing] = {
                    row: (token, owner, epoch)
                    for row, token, owner, epoch in ask("read_leases", ([lease.row for lease in lost],))
                }
                for lease in lost:
                    lease.refusal = refused(lease, rows.get(lease.row))
                    lease.cancelled = isinstance(lease.refusal, RunCancelled)
            return standing

    def _look(self, leases: Sequence[Lease]) -> None:
        """Note which of these were cancelled, and which are asked to be."""
        patience = min(lease.seconds for lease in leases) / RENEWALS_PER_LEASE
        with self._heard(min(_LOOKS_WITHIN, patience)) as ask:
            told = {
                row: (is_taken, reason)
                for row, is_taken, reason in ask("cancelled", ([lease.row for lease in leases],))
            }
        for lease in leases:
            is_taken, reason = told.get(lease.row, (False, None))
            lease.cancelled = is_taken
            if lease.row in told:
                lease.ask(reason)

    @contextlib.contextmanager
    def _heard(self, patience: float) -> Iterator[Callable[[str, Any], list[Any]]]:
        """Asks statements on the heartbeat's own connection, which is given up when it is silent for too long."""
        try:
            if self._heartbeat_connection is None:
                self._heartbeat_connection = self.connections.connect(self._clock.elapsed() + patience)
            connection = self._heartbeat_connection
            prepare = None if self.connections.prepares else False
            self.watchdog.watch(connection, self._clock.elapsed() + patience)
            try:
                cursor = connection.cursor(row_factory=tuple_row)
                yield lambda name, values: cursor.execute(self._sql[name], values, prepare=prepare).fetchall()
            finally:
                self.watchdog.unwatch(connection)
        except (psycopg.Error, DurableError):
            silent, self._heartbeat_connection = self._heartbeat_connection, None
            if silent is not None:
                with contextlib.suppress(psycopg.Error):
                    silent.close()
            raise
