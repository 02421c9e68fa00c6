"""The PostgreSQL store: the verbs of `RunStore`, in both colours, on one writer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import warnings
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, Final, Self, TypeAlias, TypeVar, assert_never

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
from durable.stores._postgres.claims import Claiming, Found
from durable.stores._postgres.connections import Connections
from durable.stores._postgres.conninfo import Pool
from durable.stores._postgres.job import Job
from durable.stores._postgres.jobs import (
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
from durable.stores._postgres.nesting import refuse_own_run
from durable.stores._postgres.resources import Process
from durable.stores._postgres.snapshots import SnapshotVerbs
from durable.stores._postgres.sql.loader import load_statements
from durable.stores._postgres.sql.names import Names
from durable.stores._postgres.transaction import PostgresTransaction
from durable.stores.listing import checked_prefix
from durable.stores.protocol import Isolation
from durable.stores.requests import (
    AnyRequest,
    Begin,
    Cancel,
    Checkpoint,
    Finish,
    OnLateReply,
    Receive,
    Release,
    Request,
    Signal,
)

T = TypeVar("T")

Work: TypeAlias = Generator[Job, Any, T]
"""What a request comes to: jobs, one after the other, each sent the answer of the one before. Blocking and awaited alike."""

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
        """The same store for asyncio."""
        return self._aio

    def perform(self, request: Request[T], on_late_reply: OnLateReply | None = None) -> T:
        """See `RunStore.perform`. One round trip, one commit, shared with what waits at the same time.

        A `Begin` takes two when the last owner was found dead on this machine, and more where the journal has more than a few
        hundred KB: that is read in pages, when the lease is being renewed already.
        """
        return self._perform(request, on_late_reply)  # type: ignore[arg-type, no-any-return]

    def _perform(self, request: AnyRequest, on_late_reply: OnLateReply | None) -> Any:
        match request:
            case Checkpoint():
                return self._checkpoint(request.lease, request.record, on_late_reply)
            case Begin() | Finish() | Release():
                return self._driven(self.work(request))
            case _:
                return self.process.perform(self.job(request))

    def _checkpoint(self, lease: Lease, record: Record, on_late_reply: OnLateReply | None) -> Any:
        job = None
        try:
            job = checkpoint_job(lease, record)
            return self.held_here(lease).perform(job)
        except DurableError:
            raise
        except BaseException as interrupt:
            if on_late_reply is not None:
                on_late_reply(interrupt if job is None else job.fate(interrupt))
            raise

    def work(self, request: Begin | Finish | Release) -> Work[Any]:
        """What is asked, as jobs, and what follows on their answers."""
        match request:
            case Begin():
                return self._begin(request.claim, request.alive)
            case Finish():
                return self._finish(request.lease, request.status, request.record)
            case Release():
                return self._release(request.lease, request.status)
            case never:
                assert_never(never)

    def _begin(self, claim: Claim, alive: Callable[[], bool]) -> Work[ClaimReply]:
        claiming = self.claiming(claim, None)
        try:
            found: Found = yield claiming
        except OutcomeUnknown:
            self.process.left(claiming.payload.random, claim.seconds)
            raise
        dead_owner = None
        if dead := self.dead_token(found):
            dead_owner = None if self.process.has_left(dead) else found.owner
            found = yield self.claiming(claim, dead)
        self.keep(found, alive)
        try:
            while (job := self.reading(found, alive)) is not None:
                yield job
            return taken_from(dead_owner, found.reply())
        except BaseException:
            self.give_up(found)
            raise

    def _finish(self, lease: Lease, status: Status, record: Record) -> Work[None]:
        self.held_here(lease)
        try:
            yield finish_job(lease, status, record)
        finally:
            self.dropped(lease)

    def _release(self, lease: Lease, status: Status | None) -> Work[None]:
        self.dropped(lease)
        if not self.is_held_here(lease):
            return
        if self._closed:
            self.release_at_last(lease, status)
            return
        try:
            yield self.releasing(lease, status)
        except (
            DurableError,
            RuntimeError,
        ):  # such as: no event loop to answer on, since this run's was closed under it
            with contextlib.suppress(StoreUnavailable):  # no thread can be started for it
                self.leave(lease, status)
            raise

    def job(self, request: Cancel | Signal | Receive) -> Job:
        """What is asked, as the one job that it is."""
        match request:
            case Cancel():
                self.refuse_own(request.run_id, "cancels")
                return cancel_job(request.run_id, self._row(request.run_id), self._answer_by())
            case Signal():
                return signal_job(
                    request.run_id, self._row(request.run_id), request.name, request.payload, self._answer_by()
                )
            case Receive():
                self.held_here(request.lease)
                return receive_job(request.lease, request.name, request.taken)
            case never:
                assert_never(never)

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

    def _answer_by(self) -> float:
        return self.clock.elapsed() + _ANSWER_WITHIN

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
        if lease is not None and lease.why_ended(now) is not None and lease.lost is None:
            return renew_job(lease, now + lease.seconds)  # what was long in coming may be in time all the same
        if found.is_whole:
            return None
        if lease is not None and (problem := lease.why_ended(now)) is not None:
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

    def _driven(self, work: Work[Any]) -> Any:
        process = self.process
        try:
            job = next(work)
            while True:
                try:
                    answer = process.perform(job)
                except BaseException as problem:
                    job = work.throw(problem)
                else:
                    job = work.send(answer)
        except StopIteration as end:
            return end.value

    def _new_process(self) -> Process:
        prepare = partial(schema.prepare, names=self._names, create=self._create)
        connections = Connections(self._url, self._pool, prepare, self.clock, strict=self._strict)
        return Process(connections, self._sql, self.clock, self._max_transactions)


class AsyncPostgresStore(AsyncSnapshotVerbs):
    """The verbs of a PostgreSQL store for asyncio."""

    def __init__(self, store: PostgresStore) -> None:
        super().__init__(store)
        self._store = store

    def submit(self, request: Request[T], on_late_reply: OnLateReply | None = None) -> asyncio.Future[T]:
        """See `AsyncRunStore.submit` and `PostgresStore.perform`."""
        return self._submit(request, on_late_reply)  # type: ignore[arg-type]

    def _submit(self, request: AnyRequest, on_late_reply: OnLateReply | None) -> asyncio.Future[Any]:
        store = self._store
        match request:
            case Checkpoint():
                resources, job = store.held_here(request.lease), checkpoint_job(request.lease, request.record)
                if on_late_reply is not None:
                    job.on_orphan = lambda job: on_late_reply(job.failure)
                return resources.submit(job)
            case Begin():  # of several jobs: a task
                begun = asyncio.ensure_future(self._awaited(store.work(request)))
                begun.add_done_callback(_has_ended)
                return begun
            case Release() if store.is_closed:
                return asyncio.get_running_loop().run_in_executor(None, store.perform, request)
            case Finish() | Release():
                return self._submitted(store.work(request))
            case _:
                return store.process.submit(store.job(request))

    def room(self) -> asyncio.Future[None] | None:
        """See `AsyncRunStore.room`."""
        return self._store.process.room()

    async def close(self) -> None:
        """See `PostgresStore.close`."""
        await asyncio.to_thread(self._store.close)

    async def _awaited(self, work: Work[Any]) -> Any:
        process = self._store.process
        try:
            job = next(work)
            while True:
                try:
                    answer = await process.submit(job)
                except BaseException as problem:
                    job = work.throw(problem)
                else:
                    job = work.send(answer)
        except StopIteration as end:
            return end.value

    def _submitted(self, work: Work[Any]) -> asyncio.Future[Any]:
        """The future of work that is one job, or none: that job's own."""
        try:
            job = next(work)
        except StopIteration as end:
            nothing = asyncio.get_running_loop().create_future()
            nothing.set_result(end.value)
            return nothing
        try:
            answer = self._store.process.submit(job)
        except Exception as problem:
            work.throw(problem)
            raise
        answer.add_done_callback(partial(_go_on, work))
        return answer


def _go_on(work: Work[Any], answer: asyncio.Future[Any]) -> None:
    """Whatever follows on an answer."""
    problem = None if answer.cancelled() else answer.exception()
    try:
        if answer.cancelled():
            work.close()
        elif problem is not None:
            work.throw(problem)
        else:
            work.send(answer.result())
    except StopIteration:
        return
    except BaseException as raised:
        if raised is not problem:
            raise


def _has_ended(begun: asyncio.Future[ClaimReply]) -> None:
    """Whoever was cancelled does not ask what became of it any more, and asyncio need not complain of that."""
    if not begun.cancelled():
        begun.exception()


def taken_from(dead: str | None, reply: ClaimReply) -> ClaimReply:
    """The reply to a claim over a dead owner's lease."""
    if dead is not None and isinstance(reply, Granted):
        return replace(reply, taken_from=dead)
    return reply
