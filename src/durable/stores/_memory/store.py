"""The memory store: what every store means, without a disk."""

from __future__ import annotations

import itertools
import os
import secrets
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, Self, TypeVar, assert_never

from msgspec import UNSET, structs

from durable._common.locks import hold, locked
from durable._engine.children import refuse_child
from durable._engine.continuations import name_history
from durable._engine.decisions import Begun, Claim, ClaimReply, Granted, Refused
from durable._engine.headers import blank_header, claim_header, is_foreign
from durable._engine.leases import Lease
from durable._engine.queues import Queue as Limits
from durable._engine.queues import QueueLine
from durable._engine.runs import is_executable
from durable._engine.starts import NewRun, Started
from durable.clocks import Clock, SystemClock
from durable.codecs import Codec, as_codec
from durable.errors import DurableError, InvalidArgument
from durable.records import CancelRequest, Kind, Record, Status
from durable.stores._facades import AsyncReadableStore
from durable.stores._heartbeat import Heartbeat
from durable.stores._memory.children import Children
from durable.stores._memory.copying import CopyingVerbs
from durable.stores._memory.queue import Queue
from durable.stores._memory.reading import ReadingVerbs
from durable.stores._memory.refusals import NoDatabase
from durable.stores._memory.run import Run, fenced
from durable.stores._memory.schedules import Schedules
from durable.stores._memory.signals import Signals
from durable.stores._owner import this_process
from durable.stores.protocol import Listening
from durable.stores.requests import (
    AnyRequest,
    Begin,
    BeginChild,
    Cancel,
    Checkpoint,
    Continue,
    DeleteSchedule,
    Enqueue,
    Finish,
    OnLateReply,
    PauseSchedule,
    Poll,
    Polled,
    PutSchedules,
    Receive,
    Release,
    Request,
    Signal,
    TickSchedule,
    Wake,
)

T = TypeVar("T")


class MemoryStore(ReadingVerbs, CopyingVerbs, NoDatabase):
    """Runs kept in this process: the model that every store is compared with."""

    def __init__(self, *, codec: Codec | Sequence[Codec] | None = None, clock: Clock | None = None) -> None:
        self.codec = as_codec(codec)
        self.clock = clock or SystemClock()
        self._lock = threading.RLock()  # a signal handler may come while it is held
        self._runs: dict[str, Run] = {}
        self._signals = Signals()
        self._queue = Queue(self._runs)
        self._children = Children(self._runs, self._queue, self._signals)
        self._schedules = Schedules(self._runs)
        self._aio: AsyncReadableStore | None = None
        self._closed = False
        self._heartbeat = Heartbeat(self._renew, self._look, self.clock)
        _stores.add(self)

    def renew(self) -> None:
        """In a forked child: what was being executed is its parent's, and so are the threads that may hold a lock."""
        self._lock = threading.RLock()
        self._heartbeat.renew()
        self._aio = None
        self._runs = {name: replace(run, token=None) for name, run in self._runs.items()}
        self._queue = self._queue.renew(self._runs)
        self._children = Children(self._runs, self._queue, self._signals)
        self._schedules.runs = self._runs

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
            case Continue():
                return self._continue(request)
            case Cancel():
                return self._cancel(request)
            case Signal():
                return self._signal(request)
            case BeginChild():
                return self._begin_child(request)
            case Receive():
                return hold(self._lock, self._signals.find, request.lease.run_id, request.names, request.taken)
            case Enqueue():
                return self._enqueue(request.runs)
            case Wake():
                return hold(self._lock, self._queue.wake)
            case Poll():
                return self._poll(request)
            case PutSchedules():
                return hold(self._lock, self._schedules.put, request.schedules)
            case TickSchedule():
                return self._tick(request)
            case PauseSchedule():
                return self._pause(request)
            case DeleteSchedule():
                return hold(self._lock, self._schedules.delete, request.name)
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
        polled = self._queue.take(poll, at := self.clock.now(), self.clock.elapsed())
        due, tick_in = self._schedules.find_due(poll.schedules, at)
        return structs.replace(polled, due=due, tick_in=tick_in)

    @locked
    def _tick(self, tick: TickSchedule) -> bool:
        at = self.clock.now()
        return self._schedules.tick(tick, lambda run: self._queue.start(run, at))

    @locked
    def _pause(self, request: PauseSchedule) -> bool:
        return self._schedules.pause(request.name, paused=request.paused)

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
        due_at = run.due_again(at, 0.0 if run.is_asked else finish.due_in, finish.status)
        self._queue.note(lease.run_id)
        self._runs[lease.run_id] = ended = run.stamped(finish.status, at, records=records, token=None, due_at=due_at)
        self._tell_parent(ended, at)
        if finish.status is Status.CANCELLED:
            self._cancel_below(lease.run_id, at)

    def _release(self, release: Release) -> bool:
        self._heartbeat.drop(release.lease)
        return self._let_go(release)

    @locked
    def _let_go(self, release: Release) -> bool:
        lease, status, at = release.lease, release.status, self.clock.now()
        run = self._runs.get(lease.run_id)
        if run is None or run.token != lease.token:
            return False
        awaits = None if release.awaits is None else tuple(release.awaits)
        is_there = run.is_asked or any(self._signals.find(lease.run_id, (one.name,), one.taken) for one in awaits or ())
        due_at = run.due_again(at, 0.0 if is_there else release.due_in, status)
        self._queue.note(lease.run_id)
        free = replace(run, token=None, due_at=due_at, awaits=None if is_there else awaits)
        self._runs[lease.run_id] = free if status is None else free.stamped(status, at)
        return is_there

    @locked
    def _continue(self, request: Continue) -> None:
        lease, at = request.lease, self.clock.now()
        run = fenced(self._runs.get(lease.run_id), lease)
        names = ((number, name_history(lease.run_id, number)) for number in itertools.count(request.number))
        number, name = next(
            (number, name) for number, name in names if not (request.keep_history and self._is_known(name))
        )
        anew, history = run.continued_with(self._dated(request.record, run.epoch), number, at)
        if request.keep_history:
            self._runs[name] = history
        self._signals.hand_over(lease.run_id, request.taken, name if request.keep_history else None, at)
        self._runs[lease.run_id] = anew

    def _is_known(self, run_id: str) -> bool:
        return run_id in self._runs or bool(self._signals.sent_to(run_id))

    @locked
    def _signal(self, signal: Signal) -> bool:
        return self._send(signal, self.clock.now())

    def _send(self, signal: Signal, at: datetime) -> bool:
        run = self._runs.get(signal.run_id)
        is_there = run is not None and run.header is not None
        self._signals.send(signal, at, is_there=is_there)
        if run is not None and run.is_awaiting(signal.name):
            self._runs[signal.run_id] = replace(run, due_at=at, awaits=None)
            self._queue.wake()
        return is_there

    @locked
    def _begin_child(self, request: BeginChild) -> Begun:
        lease, child, at = request.lease, request.child, self.clock.now()
        fenced(self._runs.get(lease.run_id), lease)
        begun = self._children.begin(child, at)
        if refuse_child(child, begun) is None:
            self._write(lease, request.record)
        return begun

    def _tell_parent(self, run: Run, at: datetime) -> None:
        """Of a child that has ended; it is written with that."""
        if (signal := self._children.told_of(run)) is not None:
            self._send(signal, at)

    @locked
    def _cancel(self, request: Cancel) -> bool:
        at, run_id = self.clock.now(), request.run_id
        run = self._runs.get(run_id)
        is_open = run is not None and run.header is not None and run.header.is_open
        for below in self._children.below(run_id):  # first: they are told of as what ends with its parent
            self._cancel_one(below, request, at, with_parent=True)
        if is_open:
            self._cancel_one(run_id, request, at, with_parent=False)
        return is_open

    def _cancel_one(self, run_id: str, request: Cancel, at: datetime, *, with_parent: bool) -> None:
        run = self._runs[run_id]
        is_held = run.is_held(self.clock.elapsed())
        ends = request.force or run.is_asked or not (is_held or run.has_closing())
        if not ends or request.reason is not None:
            run = run.asked(CancelRequest(at.isoformat(), request.reason, with_parent=with_parent))
        if ends:
            run = run.stamped(Status.CANCELLED, at, token=None, cancelled=True, due_at=None, awaits=None)
        elif not is_held and run.due_at is not None:
            self._queue.note(run_id)
            run = replace(run, due_at=at, awaits=None)
            self._queue.wake()
        self._runs[run_id] = run
        if (signal := self._children.told_of(run, with_parent=with_parent)) is not None:
            self._send(signal, at)

    def _cancel_below(self, run_id: str, at: datetime) -> None:
        """A run has been cancelled by its owner: those that it had started since it was asked to be are asked, too."""
        for below in self._children.below(run_id):
            if not self._runs[below].is_asked:
                self._cancel_one(below, Cancel(run_id), at, with_parent=True)

    @locked
    def queues(self) -> Sequence[QueueLine]:
        """See `PostgresStore.queues`."""
        return self._queue.lines(self.clock.now(), self.clock.elapsed())

    @locked
    def write_queue(self, queue: Limits) -> None:
        """See `PostgresStore.write_queue`."""
        self._queue.write(queue)

    @locked
    def pause_queue(self, name: str, *, paused: bool = True) -> None:
        """See `PostgresStore.pause_queue`."""
        self._queue.pause(name, paused=paused)

    def listen(self, worker: str, wake: Callable[[], object]) -> Listening:
        """See `QueueingStore.listen`."""
        return self._queue.listen(worker, wake)

    @property
    def identity(self) -> object:
        """This very object."""
        return self

    @property
    @locked
    def aio(self) -> AsyncReadableStore:
        """The same store for asyncio."""
        if self._aio is None:
            self._aio = AsyncReadableStore(self)
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
    def _renew(self, leases: Sequence[Lease]) -> dict[str, bool]:
        standing: dict[str, bool] = {}
        for lease in leases:
            run = self._runs.get(lease.run_id)
            if run is not None and run.token == lease.token:
                run.expires = self.clock.elapsed() + lease.seconds
                if run.due_at is not None:
                    run.due_at = self.clock.now() + timedelta(seconds=lease.seconds)
                standing[lease.token] = True
            self._tell(lease, run)
        return standing

    @locked
    def _look(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            self._tell(lease, self._runs.get(lease.run_id))

    def _tell(self, lease: Lease, run: Run | None) -> None:
        """Note on a lease what is asked of its run."""
        lease.cancelled = run is not None and run.cancelled
        if run is not None and run.header is not None and run.is_asked:
            lease.ask(None if run.header.cancel is UNSET else run.header.cancel.reason)

    def _dated(self, record: Record, epoch: int) -> Record:
        """The record, and when and under which lease it was stored, where it does not say."""
        seq, key, kind, text, at, under = record
        return Record(seq, key, kind, text, at or self.clock.now(), under or epoch)


_stores: Final[weakref.WeakSet[MemoryStore]] = weakref.WeakSet()


def _renew_all() -> None:
    for store in list(_stores):
        store.renew()


os.register_at_fork(after_in_child=_renew_all)
