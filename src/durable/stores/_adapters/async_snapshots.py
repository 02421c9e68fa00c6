"""Running on a store whose five verbs are coroutines: what `snapshots` does, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from durable._engine.decisions import Claim, ClaimReply
from durable._engine.leases import Lease
from durable.errors import AsyncMismatch, DurableError
from durable.records import Record, Status
from durable.snapshots import Snapshot
from durable.stores._adapters.snapshots import SnapshotRun, Work
from durable.stores._facades import AsyncFacade
from durable.stores._work import await_work
from durable.stores.protocol import AsyncSnapshotStore
from durable.stores.requests import AnyRequest, Begin, Checkpoint, Finish, OnLateReply, Release, Request

T = TypeVar("T")


class AsyncSnapshotAdapter(SnapshotRun):
    """One run on an `AsyncSnapshotStore`, of an async workflow."""

    def __init__(self, snapshots: AsyncSnapshotStore) -> None:
        super().__init__(snapshots)
        self.aio = _TaskFacade(_AsyncVerbs(snapshots))

    def perform(self, request: Request[T], on_late_reply: OnLateReply | None = None) -> T:  # noqa: ARG002
        """Not for a blocking workflow."""
        match request:
            case Begin():
                self._refuse(f"run {request.claim.run_id!r}")
            case Checkpoint() | Finish() | Release():
                self._refuse(f"run {request.lease.run_id!r}")
            case _:
                raise self.unable(request)

    def load(self, id: str) -> Snapshot | None:
        """Not for a blocking workflow."""
        self._refuse(f"run {id!r}")

    def replace(self, run_id: str, old: Snapshot, new: Snapshot) -> bool:  # noqa: ARG002
        """Not for a blocking workflow."""
        self._refuse(f"run {run_id!r}")

    def close(self) -> None:
        """Nothing is open; the store of snapshots is its maker's to close."""

    def _refuse(self, what: str) -> NoReturn:
        raise AsyncMismatch(
            f"{what}: the verbs of {self.where} are coroutines, and the workflow is a blocking function. Make it "
            f"`async def` and await durable.run, or pass a store whose verbs block."
        )


class _AsyncVerbs(SnapshotRun):
    """A run's requests, performed by coroutines: what `SnapshotAdapter` does, awaited."""

    def __init__(self, snapshots: AsyncSnapshotStore) -> None:
        super().__init__(snapshots)
        self._saving = asyncio.Lock()

    async def perform(self, request: Request[T], on_late_reply: OnLateReply | None = None) -> T:
        """See `RunStore.perform`."""
        return await self._answer(request, on_late_reply)  # type: ignore[arg-type, no-any-return]

    async def _answer(self, request: AnyRequest, on_late_reply: OnLateReply | None) -> Any:
        match request:
            case Checkpoint():
                return await self._checkpoint(request.lease, request.record, on_late_reply)
            case Begin():
                return await self._begin(request.claim, request.alive)
            case Finish():
                return await self._finish(request.lease, request.status, request.record)
            case Release():
                return await self._release(request.lease, request.status)
            case other:
                raise self.unable(other)

    async def _begin(self, claim: Claim, alive: Callable[[], bool]) -> ClaimReply:
        return await self._under_lock(claim.run_id, self._begun(claim, alive))

    async def _checkpoint(self, lease: Lease, record: Record, on_late_reply: OnLateReply | None) -> None:
        try:
            await self._save(self._checkpointed(lease, record))
        except DurableError:
            raise
        except BaseException as interrupt:  # what the next save writes is what will be stored
            if on_late_reply is not None:
                on_late_reply(None if record in self._records else interrupt)
            raise

    async def _finish(self, lease: Lease, status: Status, record: Record) -> None:
        await self._save(self._checkpointed(lease, record, status))
        await self._release(lease, None)

    async def _release(self, lease: Lease, status: Status | None) -> None:
        async with self.lock_of(lease.run_id):
            await self._give_back(lease, status)

    async def _give_back(self, lease: Lease, status: Status | None) -> None:
        try:
            if status is not None:
                await self._save(self._restored(lease, status))
        finally:
            self.let_go(lease)

    async def load(self, id: str) -> Snapshot | None:
        """See `SnapshotAdapter.load`."""
        return await self._done(self._loaded(id))

    async def replace(self, run_id: str, old: Snapshot, new: Snapshot) -> bool:
        """See `SnapshotAdapter.replace`."""
        return await self._under_lock(run_id, self._replaced(run_id, old, new))

    async def _under_lock(self, run_id: str, work: Work[T]) -> T:
        async with self.lock_of(run_id):
            return await self._done(work)

    async def _save(self, work: Work[None]) -> None:
        async with self._saving:
            await self._done(work)

    async def _done(self, work: Work[T]) -> T:
        return await await_work(work, self._called)

    async def _called(self, verb: Callable[[], Any]) -> Any:
        return await verb()


class _TaskFacade(AsyncFacade):
    """Each verb is a task of its own, so that it goes on when its caller is cancelled."""

    def __init__(self, verbs: Any) -> None:
        super().__init__(verbs)
        self._verbs = verbs
        self._tasks: set[asyncio.Task[Any]] = set()  # an event loop holds its tasks weakly

    def submit(self, request: Request[T], on_late_reply: OnLateReply | None = None) -> asyncio.Future[T]:
        try:
            return super().submit(request, on_late_reply)
        except RuntimeError:  # no event loop to call the user's verbs on: this run's was closed under it
            if isinstance(request, Release):
                self._verbs.let_go(request.lease)
            raise

    def _called(self, verb: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        task = asyncio.get_running_loop().create_task(verb(*args))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return asyncio.shield(task)
