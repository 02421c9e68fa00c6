"""The memory store: what every store means, without a disk."""

from __future__ import annotations

import os
import secrets
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, Final, Self, TypeVar, assert_never

from msgspec import structs

from durable._common.boundary import public_verbs
from durable._common.checks import check_name
from durable._common.durations import Duration
from durable._common.locks import hold, locked
from durable._engine.decisions import Claim, ClaimReply, Granted, Refused
from durable._engine.headers import blank_header, claim_header, is_foreign
from durable._engine.leases import Lease
from durable._engine.runs import is_executable
from durable._engine.starts import NewRun, Started
from durable._engine.step_kinds import Isolation
from durable.clocks import Clock, SystemClock
from durable.codecs import Codec, as_codec
from durable.errors import ConcurrentExecution, DurableError, InvalidArgument
from durable.records import Header, Kind, Record, Status, StepRecord
from durable.snapshots import Snapshot, foreign_failures, journal_of, snapshot_of, with_foreign_failures
from durable.stores._facades import AsyncStore
from durable.stores._heartbeat import Heartbeat
from durable.stores._memory.pages import count, find_old, find_page
from durable.stores._memory.queue import Queue
from durable.stores._memory.run import Run, fenced
from durable.stores._memory.signals import Signals
from durable.stores._owner import this_process
from durable.stores.listing import (
    FORCE_ADVICE,
    PAGE,
    Listed,
    Progress,
    RunStatus,
    Stats,
    checked_page,
    checked_purge,
    savable_snapshot,
)
from durable.stores.protocol import Listening, Transaction
from durable.stores.requests import (
    AnyRequest,
    Begin,
    Cancel,
    Checkpoint,
    Enqueue,
    Finish,
    OnLateReply,
    Poll,
    Polled,
    Receive,
    Release,
    Request,
    Signal,
)

T = TypeVar("T")


@public_verbs("store", "save", "load", "delete", "list", "purge", "stats", "status")
class MemoryStore:
    """Runs kept in this process: the model that every store is compared with."""

    def __init__(self, *, codec: Codec | Sequence[Codec] | None = None, clock: Clock | None = None) -> None:
        self.codec = as_codec(codec)
        self.clock = clock or SystemClock()
        self._lock = threading.RLock()  # a signal handler may come while it is held
        self._runs: dict[str, Run] = {}
        self._signals = Signals()
        self._queue = Queue(self._runs)
        self._aio: AsyncStore | None = None
        self._closed = False
        self._heartbeat = Heartbeat(self._renew, self._look, self.clock)
        _stores.add(self)

    def renew(self) -> None:
        """In a forked child: what was being executed is its parent's, and so are the threads that may hold a lock."""
        self._lock = threading.RLock()
        self._heartbeat.renew()
        self._aio = None
        self._runs = {name: replace(run, token=None) for name, run in self._runs.items()}
        self._queue = Queue(self._runs)

    def __repr__(self) -> str:
        return "<durable store in memory>"

    def perform(self, request: Request[T], on_late_reply: OnLateReply | None = None) -> T:
        """See `RunStore.perform`."""
        return self._answer(request, on_late_reply)  # type: ignore[arg-type, no-any-return]

    def _answer(self, request: AnyRequest, on_late_reply: OnLateReply | None) -> Any:
        match request:
            case Checkpoint():
                return self._checkpoint(request.lease, request.record, on_late_reply)
            case Begin():
                return self._begin(request.claim, request.alive)
            case Finish():
                return self._finish(request)
            case Release():
                return self._release(request)
            case Cancel():
                return self._cancel(request.run_id)
            case Signal():
                return hold(self._lock, self._signals.keep, request.run_id, request.name, request.payload)
            case Receive():
                return hold(self._lock, self._signals.find, request.lease.run_id, request.name, request.taken)
            case Enqueue():
                return self._enqueue(request.runs)
            case Poll():
                return self._poll(request)
            case never:
                assert_never(never)

    def _begin(self, claim: Claim, alive: Callable[[], bool]) -> ClaimReply:
        reply = self._claim(claim)
        if isinstance(reply, Granted):
            self._heartbeat.keep(reply.lease, alive)
        return reply

    @locked
    def _claim(self, claim: Claim) -> ClaimReply:
        if self._closed:
            raise InvalidArgument("the store is closed")
        sent = self.clock.elapsed()
        run = self._runs.get(claim.run_id) or Run()
        held = run.is_held(sent)
        if held or run.is_a_workers or not is_executable(claim, run.header):
            endings = [record for record in run.journal() if record.kind in (Kind.RESULT, Kind.FAILURE)]
            return Refused(run.header, endings, run.owner(sent), run.expires - sent if held else None)
        header = run.header or blank_header()
        records, epoch, at = run.records, run.epoch + 1, run.updated_at
        if not claim.amends:
            self._queue.check(claim.run_id, header, Status.RUNNING)
            at = self.clock.now()
            if is_foreign(header) and claim.input is not None:
                given = Record(0, Kind.INPUT, Kind.INPUT, claim.input.decode())
                records = records | {0: self._dated(given, epoch)}
            header = claim_header(header, claim, epoch=epoch, owner=this_process(), at=at)
        lease = Lease(claim.run_id, f"{epoch}:{secrets.token_hex(8)}", epoch, claim.seconds, sent)
        granted = Granted(lease, header, [records[seq] for seq in sorted(records)])
        claim.taken.append(lease)  # first, and the run in one piece: an interrupt comes where it will
        self._queue.note(claim.run_id)
        taken = Run(header, records, at, epoch, lease.token, sent + claim.seconds, foreign=run.foreign)
        self._runs[claim.run_id] = taken.routed(run, claim, self.clock.now())
        return granted

    @locked
    def _enqueue(self, runs: Sequence[NewRun]) -> list[Started]:
        at = self.clock.now()
        return [self._queue.start(run, at) for run in runs]

    def _poll(self, poll: Poll) -> Polled:
        if poll.count:
            self._heartbeat.begin()
        polled = self._take_due(poll)
        for granted in polled.granted:
            self._heartbeat.keep(granted.lease, partial(poll.alive, granted.lease))
        return polled

    @locked
    def _take_due(self, poll: Poll) -> Polled:
        if self._closed:
            raise InvalidArgument("the store is closed")
        return self._queue.take(poll, self.clock.now(), self.clock.elapsed())

    def _checkpoint(self, lease: Lease, record: Record, on_late_reply: OnLateReply | None) -> None:
        try:
            # In one line, as in `_common/locks.py`.
            with self._lock: self._write(lease, record)  # noqa: E701  # fmt: skip
        except DurableError:
            raise
        except BaseException as interrupt:
            if on_late_reply is not None:
                run = self._runs.get(lease.run_id)
                on_late_reply(None if run is not None and run.has(record) else interrupt)
            raise

    def _write(self, lease: Lease, record: Record) -> None:
        run = fenced(self._runs.get(lease.run_id), lease)
        run.records[record.seq] = self._dated(record, run.epoch)

    def _finish(self, finish: Finish) -> None:
        self._end(finish)
        self._heartbeat.drop(finish.lease)

    @locked
    def _end(self, finish: Finish) -> None:
        lease, at = finish.lease, self.clock.now()
        run = fenced(self._runs.get(lease.run_id), lease)
        self._queue.check(lease.run_id, run.header, finish.status)
        records = run.records | {finish.record.seq: self._dated(finish.record, run.epoch)}
        due_at = run.due_again(at, finish.due_in, finish.status)
        self._queue.note(lease.run_id)
        self._runs[lease.run_id] = run.stamped(finish.status, at, records=records, token=None, due_at=due_at)

    def _release(self, release: Release) -> None:
        self._heartbeat.drop(release.lease)
        self._let_go(release)

    @locked
    def _let_go(self, release: Release) -> None:
        lease, status, at = release.lease, release.status, self.clock.now()
        run = self._runs.get(lease.run_id)
        if run is not None and run.token == lease.token:
            self._queue.note(lease.run_id)
            free = replace(run, token=None, due_at=run.due_again(at, release.due_in, status))
            self._runs[lease.run_id] = free if status is None else free.stamped(status, at)

    @locked
    def _cancel(self, run_id: str) -> bool:
        run = self._runs.get(run_id)
        if run is None or run.header is None or not run.header.is_open:
            return False
        self._runs[run_id] = run.stamped(Status.CANCELLED, self.clock.now(), token=None, cancelled=True, due_at=None)
        return True

    def listen(self, worker: str, wake: Callable[[], object]) -> Listening:
        """See `QueueingStore.listen`."""
        return self._queue.listen(worker, wake)

    def transaction(self, lease: Lease, name: str, isolation: Isolation) -> Transaction:  # noqa: ARG002
        """Not here: there is no database to do anything in."""
        raise InvalidArgument(
            f"step.transaction({name!r}) needs the database that its body works in, and the store in memory has none: "
            f"embedded() starts a real PostgreSQL for tests, postgres(url) uses yours"
        )

    def save(self, id: str, snapshot: Snapshot | Mapping[str, Any], *, force: bool = False) -> None:
        """See `PostgresStore.save`."""
        check_name("a run's id", id)
        self._put(id, savable_snapshot(id, snapshot), force)

    @locked
    def _put(self, id: str, snapshot: Snapshot, force: bool = False) -> None:
        header, records = journal_of(snapshot)
        run = self._free(id, force)
        at = self.clock.now()
        if not header.execution.last_updated:
            execution = structs.replace(header.execution, last_updated=at.isoformat())
            header = structs.replace(header, execution=execution)
        by_seq = {record.seq: record for record in records}
        # Those of a run that was copied from elsewhere go on to be counted as they were there.
        epoch = max(0 if run is None else run.epoch + 1, header.execution.epoch)
        self._runs[id] = Run(header, by_seq, at, epoch, foreign=foreign_failures(snapshot))

    def load(self, id: str) -> Snapshot | None:
        """See `PostgresStore.load`."""
        check_name("a run's id", id)
        stored = self._stored(id)
        if stored is None:
            return None
        header, records, foreign = stored
        return with_foreign_failures(snapshot_of(header, records, run_id=id), foreign)

    @locked
    def replace(self, run_id: str, old: Snapshot, new: Snapshot) -> bool:
        """See `RunStore.replace`."""
        run = self._runs.get(run_id)
        if run is None or run.is_held(self.clock.elapsed()) or self.load(run_id) != old:
            return False
        self._put(run_id, new)
        saved = self._runs[run_id]
        dated = {seq: self._dated(record, saved.epoch) for seq, record in saved.records.items()}
        self._runs[run_id] = replace(saved, records=dated).rerouted(run, new.metadata.get("version"), self.clock.now())
        return True

    @locked
    def delete(self, id: str, *, force: bool = False) -> None:
        """See `PostgresStore.delete`."""
        check_name("a run's id", id)
        self._free(id, force)
        self._forget(id)

    def list(
        self, *, prefix: str = "", limit: int = PAGE, status: RunStatus | None = None, after: Listed | None = None
    ) -> Sequence[Listed]:
        """See `PostgresStore.list`."""
        page = checked_page(prefix, limit, status, after)
        return hold(self._lock, find_page, self._runs, page, self.clock.elapsed())

    def purge(
        self, *, older_than: Duration, status: RunStatus | None = "completed", progress: Progress | None = None
    ) -> int:
        """See `PostgresStore.purge`."""
        purged = self._purge(*checked_purge(older_than, status))
        if purged and progress is not None:
            progress(purged)
        return purged

    @locked
    def _purge(self, seconds: float, wanted: RunStatus | None) -> int:
        before = self.clock.now() - timedelta(seconds=seconds)
        for name in (old := find_old(self._runs, before, wanted, self.clock.elapsed())):
            self._forget(name)
        return len(old)

    @locked
    def stats(self) -> Stats:
        """See `PostgresStore.stats`."""
        return count(self._runs, self.clock.elapsed())

    @locked
    def status(self, id: str) -> RunStatus | None:
        """See `PostgresStore.status`."""
        check_name("a run's id", id)
        run = self._runs.get(id)
        return None if run is None else run.stands(self.clock.elapsed())

    @property
    def identity(self) -> object:
        """This very object."""
        return self

    @property
    @locked
    def aio(self) -> AsyncStore:
        """The same store for asyncio."""
        if self._aio is None:
            self._aio = AsyncStore(self)
        return self._aio

    def close(self) -> None:
        """End the threads, and take no more claims."""
        self._closed = True
        self._heartbeat.close()
        # In one line, as in `_common/locks.py`.
        with self._lock: aio, self._aio = self._aio, None  # noqa: E701  # fmt: skip
        if aio is not None:
            aio.shut_down()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @locked
    def _stored(self, id: str) -> tuple[Header, Sequence[Record], Mapping[str, StepRecord]] | None:
        run = self._runs.get(id)
        return None if run is None or run.header is None else (run.header, run.journal(), run.foreign)

    def _forget(self, id: str) -> None:
        self._runs.pop(id, None)
        self._signals.forget(id)

    def _free(self, id: str, force: bool) -> Run | None:
        """The run, if there is one; `ConcurrentExecution` if it is being executed."""
        run = self._runs.get(id)
        if run is not None and run.is_held(self.clock.elapsed()) and not force:
            left = run.expires - self.clock.elapsed()
            raise ConcurrentExecution(id, "this process", left, FORCE_ADVICE)
        return run

    @locked
    def _renew(self, leases: Sequence[Lease]) -> dict[str, bool]:
        standing: dict[str, bool] = {}
        for lease in leases:
            run = self._runs.get(lease.run_id)
            if run is not None and run.token == lease.token:
                run.expires = self.clock.elapsed() + lease.seconds
                if run.due_at is not None:
                    run.due_at = self.clock.now() + timedelta(seconds=lease.seconds)
                standing[lease.token] = True
            lease.cancelled = run is not None and run.cancelled
        return standing

    @locked
    def _look(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            run = self._runs.get(lease.run_id)
            lease.cancelled = run is not None and run.cancelled

    def _dated(self, record: Record, epoch: int) -> Record:
        """The record, and when and under which lease it was stored, where it does not say."""
        seq, key, kind, text, at, under = record
        return Record(seq, key, kind, text, at or self.clock.now(), under or epoch)


_stores: Final[weakref.WeakSet[MemoryStore]] = weakref.WeakSet()


def _renew_all() -> None:
    for store in list(_stores):
        store.renew()


os.register_at_fork(after_in_child=_renew_all)
