"""The PostgreSQL store: the verbs of `RunStore`, in both colours, on one writer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Self

from msgspec.structs import replace

from durable._engine.decisions import Claim, ClaimReply, Granted
from durable._engine.leases import Lease
from durable.clocks import Clock, SystemClock
from durable.codecs import Codec, as_codec
from durable.errors import DurableError, LeaseLost, OutcomeUnknown, StoreUnavailable
from durable.records import Record, Status
from durable.stores._facades import AsyncSnapshotVerbs
from durable.stores._heartbeat import OF_THE_PARENT
from durable.stores._owner import is_dead
from durable.stores._postgres import schema
from durable.stores._postgres.commits import (
    Claiming,
    Found,
    cancel_job,
    checkpoint_job,
    claim_job,
    finish_job,
    read_job,
    receive_job,
    release_job,
    renew_job,
    return_job,
    signal_job,
)
from durable.stores._postgres.connections import Connections
from durable.stores._postgres.conninfo import Pool
from durable.stores._postgres.job import Job
from durable.stores._postgres.nesting import refuse_own_run
from durable.stores._postgres.resources import Process
from durable.stores._postgres.snapshots import SnapshotVerbs
from durable.stores._postgres.sql.loader import load_statements
from durable.stores._postgres.sql.names import Names
from durable.stores._postgres.transaction import PostgresTransaction
from durable.stores.listing import checked_prefix
from durable.stores.protocol import Isolation, Late

MAX_TRANSACTIONS: Final = 8  # at once, of one process: each has a connection

_ANSWER_WITHIN: Final = 10.0  # seconds, for one who only wants to be told whether it was done
_RELEASE_WITHIN: Final = 5.0  # seconds; then the lease is left to end by itself


class PostgresStore(SnapshotVerbs):
    """Runs in the user's own PostgreSQL. Made by `postgres(url)` and `embedded()`; nothing is opened before first use."""

    def __init__(
        self,
        url: str | None,
        names: Names,
        *,
        prefix: str = "",
        create: bool = True,
        excludes: bool = True,
        pool: Pool | None = None,
        take_over_dead: bool = True,
        max_transactions: int = MAX_TRANSACTIONS,
        codec: Codec | Sequence[Codec] | None = None,
        strict: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self.codec = as_codec(codec)
        self._url = url
        self._names = names
        self._prefix = checked_prefix(prefix)
        self._create = create
        self._excludes = excludes
        self._pool = pool
        self.clock = clock or SystemClock()
        self._max_transactions = max_transactions
        self._sql = load_statements(names)
        self._take_over_dead = take_over_dead
        self._strict = strict
        self._closed = False
        self._process = self._new_process()
        self._aio = AsyncPostgresStore(self)

    def __repr__(self) -> str:
        process = getattr(self, "_process", None)
        if process is None:  # its URL could not be read, and somebody prints what there is of it
            return "<durable store in PostgreSQL, not made>"
        return f"<durable store in PostgreSQL at {process.connections.where}, {self._names.quoted['snapshots']}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Only a store that was used has something to lose; in a forked child it is the parent's to close.
        process = getattr(self, "_process", None)
        if process is not None and not self._closed and process.used and process.pid == os.getpid():
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    @property
    def identity(self) -> object:
        """The database, the table in it, and the prefix of the ids."""
        return (self._process.connections.where, self._names, self._prefix)

    @property
    def aio(self) -> AsyncPostgresStore:
        """The same verbs for asyncio."""
        return self._aio

    def begin(self, claim: Claim, alive: Callable[[], bool]) -> ClaimReply:
        """See `RunStore.begin`. One round trip; two when the last owner was found dead on this machine.

        The journal of more than a few hundred KB is read in pages, when its lease is being renewed already.
        """
        claiming = self.claiming(claim, None)
        try:
            found: Found = self._performed(claiming)
        except OutcomeUnknown:
            self.process.left(claiming.payload.random, claim.seconds)
            raise
        dead_owner = None
        if dead := self.dead_token(found):
            dead_owner = None if self.process.has_left(dead) else found.owner
            found = self._performed(self.claiming(claim, dead))
        self.keep(found, alive)
        try:
            while (job := self.reading(found, alive)) is not None:
                self._performed(job)
            return taken_from(dead_owner, found.reply())
        except BaseException:
            self.give_up(found)
            raise

    def checkpoint(self, lease: Lease, record: Record, late: Late | None = None) -> None:
        """See `RunStore.checkpoint`. One round trip, one commit, shared with whoever waits at the same time."""
        job = None
        try:
            job = checkpoint_job(lease, record)
            self.held_here(lease).perform(job)
        except DurableError:
            raise
        except BaseException as interrupt:
            if late is not None:
                late(interrupt if job is None else job.fate(interrupt))
            raise

    def finish(self, lease: Lease, status: Status, record: Record) -> None:
        """See `RunStore.finish`. One round trip, one commit, shared likewise."""
        self.held_here(lease).perform(finish_job(lease, status, record))
        self.dropped(lease)

    def release(self, lease: Lease, status: Status | None = None) -> None:
        """See `RunStore.release`. One round trip, one commit, shared likewise."""
        self.dropped(lease)
        if not self.is_held_here(lease):
            return
        if self._closed:
            self.release_at_last(lease, status)
            return
        try:
            self._performed(self.releasing(lease, status))
        except DurableError:
            self.leave(lease, status)
            raise

    def cancel(self, run_id: str) -> bool:
        """See `RunStore.cancel`. One round trip, one commit, shared likewise."""
        return bool(self._performed(self.cancelling(run_id)))

    def signal(self, run_id: str, name: str, payload: str) -> None:
        """See `RunStore.signal`. One round trip, one commit, shared likewise."""
        self._performed(self.signalling(run_id, name, payload))

    def receive(self, lease: Lease, name: str, taken: Sequence[int]) -> tuple[int, str] | None:
        """See `RunStore.receive`. One round trip, shared likewise."""
        found: tuple[int, str] | None = self.held_here(lease).perform(receive_job(lease, name, taken))
        return found

    def transaction(self, lease: Lease, name: str, isolation: Isolation) -> PostgresTransaction:
        """See `RunStore.transaction`. Two round trips around those of the body, one commit."""
        return PostgresTransaction(self.held_here(lease).transactions, lease, name, isolation)

    def close(self) -> None:
        """Commit what waits, then let go of connections and threads. Quiet when closed already."""
        self._closed = True
        self.process.close()

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    @property
    def process(self) -> Process:
        """What this process holds; a forked child begins anew."""
        process = self._process
        if process.pid != os.getpid():
            self._process = process = process.heir(self._new_process)
        return process

    def claiming(self, claim: Claim, dead: str | None) -> Job:
        """The job of a claim, over the lease of an owner that was found dead with this token."""
        owner = self.process.owner
        deadline = self.clock.elapsed() + claim.seconds
        row = self._row(claim.run_id)
        job = claim_job(Claiming(claim, row, owner.instance, owner.text, dead), deadline)
        job.on_orphan = self._give_back
        return job

    def releasing(self, lease: Lease, status: Status | None = None) -> Job:
        """The job of a release; when the lease has ended by itself there is nothing to wait for."""
        return release_job(lease, status, min(lease.deadline, self.clock.elapsed() + _RELEASE_WITHIN))

    def cancelling(self, run_id: str) -> Job:
        """The job of a cancellation."""
        self.refuse_own(run_id, "cancels")
        return cancel_job(run_id, self._row(run_id), self.clock.elapsed() + _ANSWER_WITHIN)

    def signalling(self, run_id: str, name: str, payload: str) -> Job:
        """The job of a signal."""
        return signal_job(run_id, self._row(run_id), name, payload, self.clock.elapsed() + _ANSWER_WITHIN)

    def refuse_own(self, run_id: str, what: str) -> None:
        """See `nesting.refuse_own_run`."""
        refuse_own_run(self.process.connections.where, self._row(run_id), what)

    def is_held_here(self, lease: Lease) -> bool:
        """Whether the lease is this process's own, not that of the one which forked it."""
        return self.process.mark in lease.token

    def held_here(self, lease: Lease) -> Process:
        """This process, if the lease is its own."""
        process = self.process
        if process.mark not in lease.token:
            raise LeaseLost(lease.run_id, OF_THE_PARENT)
        return process

    def dead_token(self, found: Found) -> str | None:
        """The token that stands in the way and may be taken over: its owner is dead, or nobody is kept out here."""
        if found.owner is None:
            return None
        dead = (
            not self._excludes
            or (self._take_over_dead and is_dead(found.owner, found.token))
            or self.process.has_left(found.token)
        )
        return found.token if dead else None

    def keep(self, found: Found, alive: Callable[[], bool]) -> None:
        """A lease that was granted is renewed from now on."""
        if found.lease is not None:
            self.process.heartbeat.keep(found.lease, alive)

    def reading(self, found: Found, alive: Callable[[], bool]) -> Job | None:
        """What is to be done before the reply to a claim is whole; None when it is, or when nobody waits for it any more."""
        now, lease = self.clock.elapsed(), found.lease
        if lease is not None and lease.ended(now) is not None and lease.lost is None:
            return renew_job(lease, now + lease.seconds)  # what was long in coming may be in time all the same
        if found.is_whole:
            return None
        if lease is not None and (problem := lease.ended(now)) is not None:
            raise LeaseLost(lease.run_id, problem)
        if not alive():
            raise StoreUnavailable(self.process.connections.where, "nobody waits any more for what is read")
        return read_job(found, now + _ANSWER_WITHIN)

    def give_up(self, found: Found) -> None:
        """What was claimed, and cannot be read, is given back, and nobody waits for that."""
        if found.lease is not None:
            self.dropped(found.lease)
            self.leave(found.lease)

    def leave(self, lease: Lease, status: Status | None = None) -> None:
        """Give a lease back when the database answers, and wait for nothing; until then this process may take it at once."""
        process = self.process
        process.left(lease.token.partition(":")[2], lease.seconds)
        job = return_job(lease, status, self.clock.elapsed() + lease.seconds)
        process.writer(job).post(job)

    def release_at_last(self, lease: Lease, status: Status | None = None) -> None:
        """Give back the lease of a run whose store was closed under it, on a connection for just that."""
        process = self._new_process()
        try:
            process.perform(self.releasing(lease, status))
        finally:
            process.close()

    def dropped(self, lease: Lease) -> None:
        """Renew this lease no more."""
        lease.gone = lease.gone or "it was given back"
        self.process.heartbeat.drop(lease)

    def _give_back(self, claimed: Job) -> None:
        if claimed.failure is None:
            self.give_up(claimed.answer)

    def _performed(self, job: Job) -> Any:
        return self.process.perform(job)

    def _new_process(self) -> Process:
        prepare = partial(schema.prepare, names=self._names, create=self._create)
        connections = Connections(self._url, self._pool, prepare, self.clock, strict=self._strict)
        return Process(connections, self._sql, self.clock, self._max_transactions)


class AsyncPostgresStore(AsyncSnapshotVerbs):
    """The verbs of a PostgreSQL store for asyncio."""

    def __init__(self, store: PostgresStore) -> None:
        super().__init__(store)
        self._store = store

    def begin(self, claim: Claim, alive: Callable[[], bool]) -> asyncio.Future[ClaimReply]:
        """See `PostgresStore.begin`."""
        begun = asyncio.ensure_future(self._begun(claim, alive))
        begun.add_done_callback(_has_ended)
        return begun

    def checkpoint(self, lease: Lease, record: Record, late: Late | None = None) -> asyncio.Future[None]:
        """See `PostgresStore.checkpoint` and `AsyncRunStore.checkpoint`."""
        process, job = self._store.held_here(lease), checkpoint_job(lease, record)
        if late is not None:
            job.on_orphan = lambda job: late(job.failure)
        return process.submit(job)

    def finish(self, lease: Lease, status: Status, record: Record) -> asyncio.Future[None]:
        """See `PostgresStore.finish`."""
        finished = self._store.held_here(lease).submit(finish_job(lease, status, record))
        finished.add_done_callback(lambda _: self._store.dropped(lease))
        return finished

    def release(self, lease: Lease, status: Status | None = None) -> asyncio.Future[None]:
        """See `PostgresStore.release`."""
        self._store.dropped(lease)
        if self._store.is_held_here(lease):
            if self._store.is_closed:
                loop = asyncio.get_running_loop()
                return loop.run_in_executor(None, self._store.release_at_last, lease, status)
            try:
                released: asyncio.Future[None] = self._submitted(self._store.releasing(lease, status))
            except StoreUnavailable:  # no thread can be started for it
                with contextlib.suppress(StoreUnavailable):
                    self._store.leave(lease, status)
                raise
            except RuntimeError:  # no event loop to answer on: this run's was closed under it
                self._store.leave(lease, status)
                raise
            released.add_done_callback(lambda done: self._store.leave(lease, status) if _has_failed(done) else None)
            return released
        nothing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        nothing.set_result(None)
        return nothing

    def cancel(self, run_id: str) -> asyncio.Future[bool]:
        """See `PostgresStore.cancel`."""
        return self._submitted(self._store.cancelling(run_id))

    def signal(self, run_id: str, name: str, payload: str) -> asyncio.Future[None]:
        """See `PostgresStore.signal`."""
        return self._submitted(self._store.signalling(run_id, name, payload))

    def receive(self, lease: Lease, name: str, taken: Sequence[int]) -> asyncio.Future[tuple[int, str] | None]:
        """See `PostgresStore.receive`."""
        return self._store.held_here(lease).submit(receive_job(lease, name, taken))

    def room(self) -> asyncio.Future[None] | None:
        """See `AsyncRunStore.room`."""
        return self._store.process.room()

    async def close(self) -> None:
        """See `PostgresStore.close`."""
        await asyncio.to_thread(self._store.close)

    async def _begun(self, claim: Claim, alive: Callable[[], bool]) -> ClaimReply:
        store = self._store
        claiming = store.claiming(claim, None)
        try:
            found: Found = await self._submitted(claiming)
        except OutcomeUnknown:
            store.process.left(claiming.payload.random, claim.seconds)
            raise
        dead_owner = None
        if dead := store.dead_token(found):
            dead_owner = None if store.process.has_left(dead) else found.owner
            found = await self._submitted(store.claiming(claim, dead))
        store.keep(found, alive)
        try:
            while (job := store.reading(found, alive)) is not None:
                await self._submitted(job)
            return taken_from(dead_owner, found.reply())
        except BaseException:
            store.give_up(found)
            raise

    def _submitted(self, job: Job) -> asyncio.Future[Any]:
        return self._store.process.submit(job)


def _has_failed(done: asyncio.Future[Any]) -> bool:
    return not done.cancelled() and isinstance(done.exception(), DurableError)


def _has_ended(begun: asyncio.Future[ClaimReply]) -> None:
    """Whoever was cancelled does not ask what became of it any more, and asyncio need not complain of that."""
    if not begun.cancelled():
        begun.exception()


def taken_from(dead: str | None, reply: ClaimReply) -> ClaimReply:
    """The reply to a claim over a dead owner's lease."""
    if dead is not None and isinstance(reply, Granted):
        return replace(reply, taken_from=dead)
    return reply
