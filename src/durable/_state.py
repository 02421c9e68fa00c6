"""What can be asked of a store about its runs, and done to them, by id: on any store that has the five verbs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeGuard

from msgspec import UNSET

from durable.codecs import codec_of
from durable.errors import RunNotFound, RunNotOver
from durable.failures import from_record
from durable.snapshot import Status
from durable.stores.listing import PAGE, Listed, RunStatus
from durable.stores.protocol import SnapshotStore

__all__ = ["delete_state", "has_state", "list_pending", "result", "status"]


class _Leased(SnapshotStore, Protocol):
    """A store that knows who is executing what."""

    def status(self, id: str) -> str | None: ...

    def list(
        self, *, prefix: str = "", limit: int = PAGE, status: RunStatus | None = None, after: Listed | None = None
    ) -> Sequence[Listed]: ...


def _knows_leases(store: SnapshotStore) -> TypeGuard[_Leased]:
    return hasattr(store, "begin") and hasattr(store, "status")


def result(store: SnapshotStore, id: str) -> Any:
    """The result of a completed run, as its record gives it back. Nothing is called.

    Raises what a failed run raised; `RunNotFound` when nothing is stored under this id, `RunNotOver` while there is no
    result yet; `UnreadableRecord`, `StoreUnavailable`, `AccessDenied` and `SchemaMismatch` as every store does.
    """
    snapshot = store.load(id)
    if snapshot is None:
        raise RunNotFound(id)
    codec = codec_of(store)
    match snapshot.execution.status:
        case Status.COMPLETED if snapshot.result is not UNSET:
            return codec.decode(bytes(snapshot.result), run_id=id, where="the result")
        case Status.FAILED if snapshot.failure is not None:
            raise from_record(snapshot.failure.error, codec, run_id=id, where="the failure")
        case stands:
            raise RunNotOver(id, stands)


def status(store: SnapshotStore, id: str) -> str | None:
    """Where a run stands: "running", "interrupted", "completed", "failed" or "cancelled"; None when nothing is stored.

    A store of your own knows no leases: it says "running" of what may be interrupted.
    """
    if _knows_leases(store):
        return store.status(id)
    snapshot = store.load(id)
    return None if snapshot is None else snapshot.execution.status


def has_state(store: SnapshotStore, id: str) -> bool:
    """Whether anything is stored under this id."""
    return status(store, id) is not None


def delete_state(store: SnapshotStore, id: str) -> None:
    """Forget a run: its steps run again if the id is used again. Quiet when there is none.

    Raises `ConcurrentExecution` when somebody is executing it, where the store can know; see `PostgresStore.delete`.
    """
    store.delete(id)


def list_pending(store: SnapshotStore, *, prefix: str = "", limit: int = PAGE) -> Sequence[Listed]:
    """A page of the runs that are interrupted: running, and nobody executes them. Newest first.

    A store of your own knows no leases: all its runs that are not over are told, as far as they are among its newest.
    """
    if _knows_leases(store):
        return store.list(prefix=prefix, limit=limit, status="interrupted")
    lines = store.list(prefix=prefix, limit=limit)
    return [line for line in lines if status(store, line.id) == Status.RUNNING]
