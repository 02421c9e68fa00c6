"""The state of a run, by id: read, found and deleted on any store that has the five verbs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from msgspec import UNSET

from durable._common.boundary import calls_out, public
from durable._common.checks import check_name
from durable._runtime.sync_bridge import Coroutines, at_once, call_now
from durable.codecs import Codec, codec_of
from durable.codecs._failures import from_record
from durable.errors import RunNotFound, RunNotOver, UnreadableRecord
from durable.records import Status
from durable.snapshots import Snapshot, with_run_id
from durable.stores._adapters.kinds import blocking, is_awaited
from durable.stores.listing import PAGE, Listed
from durable.stores.protocol import AsyncSnapshotStore, SnapshotStore


@public("durable.result")
def result(store: SnapshotStore, id: str) -> Any:
    """The result of a completed run, as its record gives it back. Nothing is called.

    Raises what a failed run raised; `RunNotFound` when nothing is stored under this id, `RunNotOver` while there is no
    result yet; `UnreadableRecord`, `StoreUnavailable`, `AccessDenied` and `SchemaMismatch` as every store does.
    """
    return _result_of(at_once(_load, _blocking(store, "result"), id), id, codec_of(store))


@public("durable.aio.result")
async def result_async(store: SnapshotStore | AsyncSnapshotStore, id: str) -> Any:
    """`durable.result` for asyncio, and for a store whose verbs are coroutines."""
    return _result_of(await _load(_awaited(store), id), id, codec_of(store))


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
    """Where a run stands: "queued", "running", "suspended", "interrupted", "completed", "failed" or "cancelled".

    None when nothing is stored. A store of your own knows no leases: it says "running" of what may be interrupted.
    """
    return at_once(_status, _blocking(store, "status"), id)


@public("durable.aio.status")
async def status_async(store: SnapshotStore | AsyncSnapshotStore, id: str) -> str | None:
    """`durable.status` for asyncio."""
    return await _status(_awaited(store), id)


@public("durable.has_state")
def has_state(store: SnapshotStore, id: str) -> bool:
    """Whether anything is stored under this id."""
    return at_once(_status, _blocking(store, "has_state"), id) is not None


@public("durable.aio.has_state")
async def has_state_async(store: SnapshotStore | AsyncSnapshotStore, id: str) -> bool:
    """`durable.has_state` for asyncio."""
    return await _status(_awaited(store), id) is not None


@public("durable.delete_state")
def delete_state(store: SnapshotStore, id: str) -> None:
    """Forget a run: its steps run again if the id is used again. Quiet when there is none.

    Raises `ConcurrentExecution` while the run is being executed, where the store can know; see `PostgresStore.delete`.
    """
    blocking(store, "delete_state").delete(check_name("a run's id", id))


@public("durable.aio.delete_state")
async def delete_state_async(store: SnapshotStore | AsyncSnapshotStore, id: str) -> None:
    """`durable.delete_state` for asyncio."""
    await _awaited(store).delete(check_name("a run's id", id))


@public("durable.list_pending")
def list_pending(store: SnapshotStore, *, prefix: str = "", limit: int = PAGE) -> Sequence[Listed]:
    """A page of the interrupted runs, newest first: those that were begun, have not ended, and no process is executing.

    What is queued for a worker is not among them: `store.list(status="queued")`.

    A store of your own knows no leases: of its newest runs, all that have not ended are listed, and all that cannot be read.
    """
    return at_once(_pending, _blocking(store, "list_pending"), prefix, limit)


@public("durable.aio.list_pending")
async def list_pending_async(
    store: SnapshotStore | AsyncSnapshotStore, *, prefix: str = "", limit: int = PAGE
) -> Sequence[Listed]:
    """`durable.list_pending` for asyncio."""
    return await _pending(_awaited(store), prefix, limit)


async def _load(store: Any, id: str) -> Snapshot | None:
    try:
        snapshot: Snapshot | None = await store.load(check_name("a run's id", id))
    except UnreadableRecord as problem:
        raise with_run_id(problem, id) from None
    return snapshot


async def _status(store: Any, id: str) -> str | None:
    if _knows_leases(store):
        standing: str | None = await store.status(id)
        return standing
    snapshot = await _load(store, id)
    return None if snapshot is None else snapshot.execution.status


async def _pending(store: Any, prefix: str, limit: int) -> Sequence[Listed]:
    if _knows_leases(store):
        interrupted: Sequence[Listed] = await store.list(prefix=prefix, limit=limit, status="interrupted")
        return interrupted
    pending: list[Listed] = []
    for line in await store.list(prefix=prefix, limit=limit):
        try:
            is_pending = await _status(store, line.id) == Status.RUNNING
        except UnreadableRecord:
            is_pending = True
        if is_pending:
            pending.append(line)
    return pending


def _blocking(store: SnapshotStore, function: str) -> Any:
    return Coroutines(store if _knows_leases(store) else blocking(store, function), call_now)


def _awaited(store: SnapshotStore | AsyncSnapshotStore) -> Any:
    """The store's verbs as coroutines: its own, or each in a thread of the event loop's executor."""
    return Coroutines(store, asyncio.to_thread) if _knows_leases(store) or not is_awaited(store) else store


def _knows_leases(store: object) -> bool:
    """Whether the store, or the one whose verbs these are, knows who is executing what."""
    return hasattr(store, "perform") and hasattr(store, "status") and not isinstance(store, type)
