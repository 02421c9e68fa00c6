"""Running on a store of five verbs: whole snapshots, and leases that reach no further than this process."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final

from msgspec import structs

from durable._engine.decisions import Claim, ClaimReply, Granted
from durable._engine.leases import Lease
from durable.clocks import SystemClock
from durable.codecs import Codec, codec_of
from durable.documents import Snapshot, snapshot_of
from durable.errors import DurableError, InvalidArgument, OutcomeUnknown, StoreUnavailable
from durable.snapshot import Execution, Header, Record, Status
from durable.stores._memory import MemoryStore
from durable.stores._threads import ThreadedStore
from durable.stores.protocol import RunStore, SnapshotStore

_VERBS: Final = ("save", "load", "delete", "list", "close")
_THREADS: Final = 4  # of one run: its steps are saved one after the other all the same


def run_store(store: RunStore | SnapshotStore) -> RunStore:
    """The store itself, if it can be run on, or a way to run on its five verbs; `InvalidArgument` if it has not even these."""
    if isinstance(store, str | type) or not (hasattr(store, "begin") or all(hasattr(store, verb) for verb in _VERBS)):
        raise InvalidArgument(
            f"store must be a store, like postgres(url) or embedded(), or an object with the verbs "
            f"{', '.join(_VERBS)}, not {store if isinstance(store, type) else type(store).__name__}"
        )
    given: Any = store  # the verbs have been looked for, and structural types cannot be told apart
    runs: RunStore = given if hasattr(store, "begin") else WholeSnapshots(given)
    return runs


class WholeSnapshots:
    """One run on a `SnapshotStore`: each checkpoint saves the whole snapshot again.

    Of one id one execution at a time is let through in this process; nothing keeps another process from running it as
    well, and then the last save counts. A step costs as much as the snapshot is large.
    """

    def __init__(self, snapshots: SnapshotStore) -> None:
        self._snapshots = snapshots
        self._leases = _leases_on(snapshots)
        self._clock = SystemClock()
        self._saving = threading.Lock()
        self._header = Header("", Execution(Status.RUNNING))
        self._records: list[Record] = []
        self._aio: ThreadedStore | None = None

    def begin(self, claim: Claim, alive: Callable[[], bool]) -> ClaimReply:
        """See `RunStore.begin`."""
        with self._leases.beginning:
            if self._leases.status(claim.run_id) != "running":
                self._look(claim.run_id)
            reply = self._leases.begin(claim, alive)
        if isinstance(reply, Granted):
            self._header, self._records = reply.header, list(reply.records)
            try:
                self._save(claim.run_id, "the claim", self._header)
            except BaseException:
                self.release(reply.lease)
                raise
        return reply

    def checkpoint(self, lease: Lease, record: Record) -> None:
        """See `RunStore.checkpoint`."""
        with self._saving:
            self._leases.checkpoint(lease, record)
            self._appended(lease, record, self._header)

    def finish(self, lease: Lease, status: Status, record: Record) -> None:
        """See `RunStore.finish`."""
        with self._saving:
            self._leases.checkpoint(lease, record)
            self._appended(lease, record, self._as(status))
        self.release(lease)

    def release(self, lease: Lease, status: Status | None = None) -> None:
        """See `RunStore.release`."""
        try:
            if status is not None:
                with self._saving:
                    self._save(lease.run_id, "the release of its lease", self._as(status))
        finally:
            with self._leases.beginning:
                self._leases.release(lease)
                if self._leases.status(lease.run_id) != "running":  # what is stored is looked at anew by the next one
                    self._leases.delete(lease.run_id)

    def cancel(self, run_id: str) -> bool:
        """Not here: another process could not be told."""
        raise self._unable(f"cancel run {run_id!r}")

    def signal(self, run_id: str, name: str, payload: str) -> None:  # noqa: ARG002
        """Not here: a snapshot has no room for what its owner does not write."""
        raise self._unable(f"send the signal {name!r} to run {run_id!r}")

    def receive(self, lease: Lease, name: str, taken: Sequence[int]) -> tuple[int, str] | None:  # noqa: ARG002
        """Not here, as for `signal`."""
        raise self._unable(f"wait for the signal {name!r}")

    def load(self, id: str) -> Snapshot | None:
        """The snapshot that is stored, which an execution in this process saves at each step."""
        return self._loaded(id)

    def replace(self, run_id: str, old: Snapshot, new: Snapshot) -> bool:
        """See `RunStore.replace`; as far as this process knows."""
        with self._leases.beginning:
            if self._leases.status(run_id) == "running" or self._loaded(run_id) != old:
                return False
            self._kept(run_id, "the migrated snapshot", new)
            return True

    def _unable(self, what: str) -> InvalidArgument:
        return InvalidArgument(
            f"{self._where}, a store of five verbs, cannot {what}: that takes postgres(url) or memory()"
        )

    @property
    def codec(self) -> Codec:
        """The codec of the store of snapshots."""
        return codec_of(self._snapshots)

    @property
    def identity(self) -> object:
        """The very object that stores."""
        return ("snapshots", id(self._snapshots))

    @property
    def aio(self) -> ThreadedStore:
        """The same verbs for asyncio."""
        if self._aio is None:
            self._aio = ThreadedStore(self, _THREADS)
        return self._aio

    def close(self) -> None:
        """Let go of the threads; the store of snapshots is its maker's to close."""
        if self._aio is not None:
            self._aio.close(wait=False)

    def _look(self, run_id: str) -> None:
        snapshot = self._loaded(run_id)
        if snapshot is None:
            self._leases.delete(run_id)
        else:
            self._leases.save(run_id, snapshot)

    def _loaded(self, run_id: str) -> Snapshot | None:
        try:
            snapshot = self._snapshots.load(run_id)
        except DurableError:
            raise
        except Exception as problem:
            raise StoreUnavailable(self._where, f"load raised {type(problem).__name__}") from problem
        if not isinstance(snapshot, Snapshot | None):
            raise InvalidArgument(
                f"load of {self._where} returned {type(snapshot).__name__} for {run_id!r}, and not a Snapshot or None: "
                f"Snapshot.from_json(text) makes one of what Snapshot.to_json() made"
            )
        return snapshot

    def _appended(self, lease: Lease, record: Record, header: Header) -> None:
        self._records.append(record)
        try:
            self._save(lease.run_id, f"the record {record.key!r}", header)
        except BaseException:
            self._records.remove(record)
            raise

    def _save(self, run_id: str, what: str, header: Header) -> None:
        self._kept(run_id, what, snapshot_of(header, self._records, run_id=run_id))

    def _kept(self, run_id: str, what: str, snapshot: Snapshot) -> None:
        try:
            self._snapshots.save(run_id, snapshot)
        except DurableError:
            raise
        except Exception as problem:
            raise OutcomeUnknown(run_id, what, f"save of {self._where} raised {type(problem).__name__}") from problem

    def _as(self, status: Status) -> Header:
        moment = self._clock.now().isoformat()
        completed_at = moment if status is Status.COMPLETED else None
        execution = Execution(status, last_updated=moment, completed_at=completed_at)
        return structs.replace(self._header, execution=execution)

    @property
    def _where(self) -> str:
        return type(self._snapshots).__name__


class _Leases(MemoryStore):
    """Who runs what on one store of snapshots. `beginning` is held from looking at what is stored to being granted it."""

    def __init__(self) -> None:
        super().__init__()
        self.beginning = threading.Lock()


_known: Final[dict[int, _Leases]] = {}
_knowing: Final = threading.Lock()


def _leases_on(snapshots: SnapshotStore) -> _Leases:
    with _knowing:
        leases = _known.get(id(snapshots))
        if leases is None:
            leases = _known[id(snapshots)] = _Leases()
            weakref.finalize(snapshots, _forget, id(snapshots))
    return leases


def _forget(identity: int) -> None:
    leases = _known.pop(identity, None)
    if leases is not None:
        leases.close()
