"""What can be asked of a store about its runs, and done to them, by id: on any store that has the five verbs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol, TypeGuard

from msgspec import UNSET

from durable._common.boundary import calls_out, public
from durable.codecs import Codec, codec_of
from durable.codecs._failures import from_record
from durable.errors import RunNotFound, RunNotOver, UnreadableRecord
from durable.records import Status, checked_name
from durable.snapshots import Snapshot, with_run_id
from durable.stores._adapters.kinds import blocking, is_awaited
from durable.stores.listing import PAGE, Listed, RunStatus
from durable.stores.protocol import AsyncSnapshotStore, SnapshotStore

__all__ = [
    "delete_state",
    "delete_state_async",
    "has_state",
    "has_state_async",
    "list_pending",
    "list_pending_async",
    "result",
    "result_async",
    "status",
    "status_async",
]


class _Leased(SnapshotStore, Protocol):
    """A store that knows who is executing what."""

    def status(self, id: str) -> str | None: ...

    def list(
        self, *, prefix: str = "", limit: int = PAGE, status: RunStatus | None = None, after: Listed | None = None
    ) -> Sequence[Listed]: ...


def _knows_leases(store: object) -> TypeGuard[_Leased]:
    return hasattr(store, "begin") and hasattr(store, "status") and not isinstance(store, type)


@public("durable.result")
def result(store: SnapshotStore, id: str) -> Any:
    """The result of a completed run, as its record gives it back. Nothing is called.

    Raises what a failed run raised; `RunNotFound` when nothing is stored under this id, `RunNotOver` while there is no
    result yet; `UnreadableRecord`, `StoreUnavailable`, `AccessDenied` and `SchemaMismatch` as every store does.
    """
    return _result_of(_loaded(blocking(store, "result"), id), id, codec_of(store))


@public("durable.aio.result")
async def result_async(store: SnapshotStore | AsyncSnapshotStore, id: str) -> Any:
    """`durable.result` for asyncio, and for a store whose verbs are coroutines."""
    return _result_of(await _loaded_async(store, id), id, codec_of(store))


@calls_out
def _result_of(snapshot: Snapshot | None, id: str, codec: Codec) -> Any:
    if snapshot is None:
        raise RunNotFound(id)
    match snapshot.execution.status:
        case Status.COMPLETED if snapshot.result is not UNSET:
            return codec.decode(bytes(snapshot.result), run_id=id, where="the result")
        case Status.FAILED if snapshot.failure is not None:
            raise from_record(snapshot.failure.error, codec, run_id=id, where="the failure")
        case stands:
            raise RunNotOver(id, stands)


@public("durable.status")
def status(store: SnapshotStore, id: str) -> str | None:
    """Where a run stands: "running", "interrupted", "completed", "failed" or "cancelled"; None when nothing is stored.

    A store of your own knows no leases: it says "running" of what may be interrupted.
    """
    if _knows_leases(store):
        return store.status(id)
    snapshot = _loaded(blocking(store, "status"), id)
    return None if snapshot is None else snapshot.execution.status


@public("durable.aio.status")
async def status_async(store: SnapshotStore | AsyncSnapshotStore, id: str) -> str | None:
    """`durable.status` for asyncio."""
    if _knows_leases(store):
        return await asyncio.to_thread(store.status, id)
    snapshot = await _loaded_async(store, id)
    return None if snapshot is None else snapshot.execution.status


@public("durable.has_state")
def has_state(store: SnapshotStore, id: str) -> bool:
    """Whether anything is stored under this id."""
    return status(blocking(store, "has_state"), id) is not None


@public("durable.aio.has_state")
async def has_state_async(store: SnapshotStore | AsyncSnapshotStore, id: str) -> bool:
    """`durable.has_state` for asyncio."""
    return await status_async(store, id) is not None


@public("durable.delete_state")
def delete_state(store: SnapshotStore, id: str) -> None:
    """Forget a run: its steps run again if the id is used again. Quiet when there is none.

    Raises `ConcurrentExecution` when somebody is executing it, where the store can know; see `PostgresStore.delete`.
    """
    blocking(store, "delete_state").delete(checked_name("a run's id", id))


@public("durable.aio.delete_state")
async def delete_state_async(store: SnapshotStore | AsyncSnapshotStore, id: str) -> None:
    """`durable.delete_state` for asyncio."""
    await _awaited(store).delete(checked_name("a run's id", id))


@public("durable.list_pending")
def list_pending(store: SnapshotStore, *, prefix: str = "", limit: int = PAGE) -> Sequence[Listed]:
    """A page of the runs that are interrupted: running, and nobody executes them. Newest first.

    A store of your own knows no leases: all its runs that are not over are told, as far as they are among its newest, and
    those that cannot be read, of which nobody knows.
    """
    if _knows_leases(store):
        return store.list(prefix=prefix, limit=limit, status="interrupted")
    lines = blocking(store, "list_pending").list(prefix=prefix, limit=limit)
    pending: list[Listed] = []
    for line in lines:
        try:
            is_pending = status(store, line.id) == Status.RUNNING
        except UnreadableRecord:
            is_pending = True
        if is_pending:
            pending.append(line)
    return pending


@public("durable.aio.list_pending")
async def list_pending_async(
    store: SnapshotStore | AsyncSnapshotStore, *, prefix: str = "", limit: int = PAGE
) -> Sequence[Listed]:
    """`durable.list_pending` for asyncio."""
    if _knows_leases(store):
        return await asyncio.to_thread(store.list, prefix=prefix, limit=limit, status="interrupted")
    lines = await _awaited(store).list(prefix=prefix, limit=limit)
    pending: list[Listed] = []
    for line in lines:
        try:
            is_pending = await status_async(store, line.id) == Status.RUNNING
        except UnreadableRecord:
            is_pending = True
        if is_pending:
            pending.append(line)
    return pending


def _loaded(store: SnapshotStore, id: str) -> Snapshot | None:
    try:
        return store.load(checked_name("a run's id", id))
    except UnreadableRecord as problem:
        raise with_run_id(problem, id) from None


async def _loaded_async(store: SnapshotStore | AsyncSnapshotStore, id: str) -> Snapshot | None:
    try:
        return await _awaited(store).load(checked_name("a run's id", id))
    except UnreadableRecord as problem:
        raise with_run_id(problem, id) from None


def _awaited(store: SnapshotStore | AsyncSnapshotStore) -> AsyncSnapshotStore:
    """The store's verbs as coroutines: its own, or each in a thread."""
    verbs: Any = store if is_awaited(store) else _Threaded(store)
    coroutines: AsyncSnapshotStore = verbs
    return coroutines


class _Threaded:
    """The verbs of a store that blocks, each in a thread of the event loop's executor."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, verb: str) -> Any:
        return partial(asyncio.to_thread, getattr(self._store, verb))
