"""Running on a store of five verbs: whole snapshots, and leases that reach no further than this process."""

from __future__ import annotations

import asyncio
import inspect
import threading
import weakref
from collections.abc import Callable, Generator
from typing import Any, Final, ParamSpec, TypeAlias, TypeVar

from durable._common.locks import hold, locked
from durable._engine.decisions import Claim, ClaimReply, Granted
from durable._engine.headers import blank_header, stamp_header
from durable._engine.leases import Lease
from durable._engine.step_kinds import Isolation
from durable.clocks import SystemClock
from durable.codecs import Codec, codec_of
from durable.errors import (
    AsyncMismatch,
    ConcurrentExecution,
    DurableError,
    InvalidArgument,
    OutcomeUnknown,
    StoreUnavailable,
    UnreadableRecord,
)
from durable.records import Header, Record, Status
from durable.snapshots import Snapshot, snapshot_of, with_run_id
from durable.stores._facades import ThreadPoolFacade
from durable.stores._memory.store import MemoryStore
from durable.stores._work import perform_work
from durable.stores.protocol import AsyncSnapshotStore, SnapshotStore, Transaction
from durable.stores.requests import (
    AnyRequest,
    Begin,
    BeginChild,
    Cancel,
    Checkpoint,
    Finish,
    OnLateReply,
    Receive,
    Release,
    Request,
    Signal,
)

P = ParamSpec("P")
T = TypeVar("T")

Work: TypeAlias = Generator[Callable[[], Any], Any, T]
"""A verb of ours, which asks for calls of the user's verbs, and is sent what they come to: blocking and awaited alike."""

_RECHECK: Final = 0.005  # seconds
_THREADS: Final = 4  # of one run: its steps are saved one after the other all the same


class SnapshotRun:
    """One run on a store of five verbs: each checkpoint saves the whole snapshot again.

    Of one id one execution at a time is let through in this process; nothing keeps another process from running it as
    well, and then the last save counts. A step costs as much as the snapshot is large.
    """

    def __init__(self, snapshots: SnapshotStore | AsyncSnapshotStore) -> None:
        self._snapshots = snapshots
        self._leases = _leases_on(snapshots)
        self._clock = SystemClock()
        self._header = blank_header()
        self._records: list[Record] = []

    @property
    def where(self) -> str:
        """The store, for people."""
        return type(self._snapshots).__name__

    @property
    def codec(self) -> Codec:
        return codec_of(self._snapshots)

    @property
    def identity(self) -> object:
        """The very object that stores."""
        return ("snapshots", id(self._snapshots))

    def lock_of(self, run_id: str) -> RunLock:
        """The lock to hold while a run is looked at and then taken, or let go of."""
        return self._leases.lock_of(run_id)

    def _begun(self, claim: Claim, alive: Callable[[], bool]) -> Work[ClaimReply]:
        if self._leases.status(claim.run_id) != "running":
            snapshot = yield from self._loaded(claim.run_id)
            if snapshot is None:
                self._leases.delete(claim.run_id)
            else:
                self._leases.keep(claim.run_id, snapshot)
        reply = self._leases.perform(Begin(claim, alive))
        if isinstance(reply, Granted):
            self._header, self._records = reply.header, list(reply.records)
            if claim.amends:
                return reply
            try:
                yield from self._saved(claim.run_id, "the claim", self._header)
            except BaseException:
                self.let_go(reply.lease)
                raise
        return reply

    def _checkpointed(self, lease: Lease, record: Record, status: Status | None = None) -> Work[None]:
        record = Record(*record[:4], self._clock.now(), lease.epoch)
        self._leases.perform(Checkpoint(lease, record))
        self._records.append(record)
        try:
            header = self._header if status is None else self._as(status)
            yield from self._saved(lease.run_id, f"the record {record.key!r}", header)
        except BaseException:
            self._records.remove(record)
            raise

    def _restored(self, lease: Lease, status: Status) -> Work[None]:
        return self._saved(lease.run_id, "the release of its lease", self._as(status))

    def _replaced(self, run_id: str, old: Snapshot, new: Snapshot) -> Work[bool]:
        if self._leases.status(run_id) == "running":
            return False
        stored = yield from self._loaded(run_id)
        if stored != old:
            return False
        yield from self._kept(run_id, "the migrated snapshot", new)
        return True

    def _loaded(self, run_id: str) -> Work[Snapshot | None]:
        try:
            snapshot = yield lambda: self._snapshots.load(run_id)
        except UnreadableRecord as problem:
            raise with_run_id(problem, run_id) from None
        except DurableError:
            raise
        except Exception as problem:
            raise StoreUnavailable(self.where, f"load raised {type(problem).__name__}") from problem
        if not isinstance(snapshot, Snapshot | None):
            raise InvalidArgument(
                f"load of {self.where} returned {type(snapshot).__name__} for {run_id!r}, and not a Snapshot or None: "
                f"Snapshot.from_json(text) makes one of what Snapshot.to_json() made"
            )
        return snapshot

    def _saved(self, run_id: str, what: str, header: Header) -> Work[None]:
        return self._kept(run_id, what, snapshot_of(header, self._records, run_id=run_id))

    def _kept(self, run_id: str, what: str, snapshot: Snapshot) -> Work[None]:
        try:
            yield lambda: self._snapshots.save(run_id, snapshot)
        except DurableError:
            raise
        except Exception as problem:
            raise OutcomeUnknown(run_id, what, f"save of {self.where} raised {type(problem).__name__}") from problem

    def let_go(self, lease: Lease) -> None:
        """Let others of this process have the run."""
        self._leases.perform(Release(lease))
        if self._leases.status(lease.run_id) != "running":  # what is stored is looked at anew by the next one
            self._leases.delete(lease.run_id)

    def _as(self, status: Status) -> Header:
        return stamp_header(self._header, status, self._clock.now(), self._records)

    def transaction(self, lease: Lease, name: str, isolation: Isolation) -> Transaction:  # noqa: ARG002
        """Not here: a snapshot is saved by the store, and not in anybody's transaction."""
        raise InvalidArgument(
            f"{self.where}, a store of five verbs, cannot perform step.transaction({name!r}): "
            f"that takes postgres(url), or embedded() for tests"
        )

    def unable(self, request: Request[Any]) -> InvalidArgument:
        """Of what no snapshot has room for, or would have to be told to another process."""
        match request:
            case Cancel():
                wish = f"cancel run {request.run_id!r}"
            case Signal():
                wish = f"send the signal {request.name!r} to run {request.run_id!r}"
            case Receive():
                wish = f"wait for the signal {' or '.join(map(repr, request.names))}"
            case BeginChild():
                wish = f"start the child {request.child.run_id!r}"
            case _:
                wish = type(request).__name__.lower()
        return InvalidArgument(
            f"{self.where}, a store of five verbs, cannot {wish}: that takes postgres(url) or memory()"
        )


class SnapshotAdapter(SnapshotRun):
    """A `RunStore` over a store whose five verbs block."""

    def __init__(self, snapshots: SnapshotStore) -> None:
        super().__init__(snapshots)
        self._saving = threading.Lock()
        self._aio: ThreadPoolFacade | None = None

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
                return self._finish(request.lease, request.status, request.record)
            case Release():
                return self._release(request.lease, request.status)
            case other:
                raise self.unable(other)

    def _begin(self, claim: Claim, alive: Callable[[], bool]) -> ClaimReply:
        return self._under_lock(claim.run_id, self._begun(claim, alive))

    def _checkpoint(self, lease: Lease, record: Record, on_late_reply: OnLateReply | None) -> None:
        try:
            self._save(self._checkpointed(lease, record))
        except DurableError:
            raise
        except BaseException as interrupt:  # what the next save writes is what will be stored
            if on_late_reply is not None:
                on_late_reply(None if record in self._records else interrupt)
            raise

    def _finish(self, lease: Lease, status: Status, record: Record) -> None:
        self._save(self._checkpointed(lease, record, status))
        self._release(lease, None)

    def _release(self, lease: Lease, status: Status | None) -> None:
        self.lock_of(lease.run_id).hold(self._give_back, lease, status)

    def _give_back(self, lease: Lease, status: Status | None) -> None:
        try:
            if status is not None:
                self._save(self._restored(lease, status))
        finally:
            self.let_go(lease)

    def load(self, id: str) -> Snapshot | None:
        """The snapshot that is stored, which an execution in this process saves at each step."""
        return self._done(self._loaded(id))

    def replace(self, run_id: str, old: Snapshot, new: Snapshot) -> bool:
        """See `RunStore.replace`; as far as this process knows."""
        return self._under_lock(run_id, self._replaced(run_id, old, new))

    def _under_lock(self, run_id: str, work: Work[T]) -> T:
        return self.lock_of(run_id).hold(self._done, work)

    def _save(self, work: Work[None]) -> None:
        hold(self._saving, self._done, work)

    @property
    def aio(self) -> ThreadPoolFacade:
        """The same store for asyncio."""
        if self._aio is None:
            self._aio = ThreadPoolFacade(self, _THREADS)
        return self._aio

    def close(self) -> None:
        """Let go of the threads; the store of snapshots is its maker's to close."""
        if self._aio is not None:
            self._aio.shut_down(wait=False)

    def _done(self, work: Work[T]) -> T:
        return perform_work(work, self._called)

    def _called(self, verb: Callable[[], Any]) -> Any:
        answer = verb()
        if inspect.isawaitable(answer):
            if inspect.iscoroutine(answer):
                answer.close()
            raise AsyncMismatch(f"a verb of {self.where} returned an awaitable: declare its verbs with `async def`")
        return answer


class RunLock:
    """A lock for threads and tasks alike. A thread that holds it already is refused (a signal handler)."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._lock = threading.Lock()
        self._thread = 0  # of its holder; 0 for a task

    def hold(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a call while this thread holds the lock."""
        if self._thread == threading.get_ident() and self._lock.locked():
            raise ConcurrentExecution(self._run_id, "this very thread")

        def held() -> T:
            self._thread = threading.get_ident()
            return call(*args, **kwargs)

        return hold(self._lock, held)

    async def __aenter__(self) -> None:
        # Its holder may be on another event loop, which cannot be awaited here. It is held for one load and one save.
        while not self._lock.acquire(blocking=False):  # noqa: ASYNC110 -- see above
            await asyncio.sleep(_RECHECK)
        self._thread = 0

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()


class _Leases(MemoryStore):
    """Who runs what on one store of snapshots."""

    def __init__(self) -> None:
        super().__init__()
        self._locks: weakref.WeakValueDictionary[str, RunLock] = weakref.WeakValueDictionary()

    def renew(self) -> None:
        super().renew()
        self._locks = weakref.WeakValueDictionary()

    def keep(self, run_id: str, snapshot: Snapshot) -> None:
        """This is what is stored of the run: queued or not, it may be executed here."""
        self._put(run_id, snapshot)

    @locked
    def lock_of(self, run_id: str) -> RunLock:
        return self._locks.setdefault(run_id, RunLock(run_id))


_known: Final[dict[int, _Leases]] = {}
_kept: Final[dict[int, object]] = {}  # stores that cannot be watched: an id is theirs for as long as they are there


def _leases_on(snapshots: SnapshotStore | AsyncSnapshotStore) -> _Leases:
    leases = _known.get(id(snapshots))
    if leases is None:
        try:
            # First: an interrupt must not leave them to another store.
            weakref.finalize(snapshots, _forget, id(snapshots))
        except TypeError:  # of a class with slots
            _kept[id(snapshots)] = snapshots
        # Without a lock, which a signal handler would wait for in vain, and a forked child might find locked.
        leases = _known.setdefault(id(snapshots), _Leases())
    return leases


def _forget(identity: int) -> None:
    leases = _known.pop(identity, None)
    if leases is not None:
        leases.close()
