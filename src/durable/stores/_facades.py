"""The asyncio face of a store whose verbs block."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from durable._common.boundary import public_verbs
from durable._common.durations import Duration
from durable._common.threads import fulfil
from durable.errors import DurableError, StoreUnavailable
from durable.records import Header, Record
from durable.snapshots import Snapshot
from durable.stores.copies import Changes, StoredRun
from durable.stores.listing import PAGE, Listed, Progress, RunStatus, Stats
from durable.stores.protocol import LeasedStore, RunStore
from durable.stores.reading import COUNTED, LINES, Filter, Health, RunLine, ScheduleLine, SentSignal, WorkerLine
from durable.stores.requests import OnLateReply, Release, Request

T = TypeVar("T")


class AsyncFacade:
    """An `AsyncRunStore`: the verbs of a store, each called in a way that goes on when its caller is cancelled."""

    def __init__(self, store: RunStore) -> None:
        self._store = store

    def submit(self, request: Request[T], on_late_reply: OnLateReply | None = None) -> asyncio.Future[T]:
        answer = self._called(self._store.perform, request)
        return answer if on_late_reply is None else _heard_late(answer, on_late_reply)

    def load(self, id: str) -> Awaitable[Snapshot | None]:
        return self._called(self._store.load, id)

    def replace(self, run_id: str, old: Snapshot, new: Snapshot) -> Awaitable[bool]:
        return self._called(self._store.replace, run_id, old, new)

    def room(self) -> asyncio.Future[None] | None:
        """There always is: a store that blocks has its own ways to make its callers wait."""
        return None

    def _called(self, verb: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        raise NotImplementedError


def _heard_late(answer: asyncio.Future[T], on_late_reply: OnLateReply) -> asyncio.Future[T]:
    """A future of the same answer, which `on_late_reply` is told where the future is cancelled before."""
    asked: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def pass_on(answer: asyncio.Future[T]) -> None:
        try:
            error = asyncio.CancelledError() if answer.cancelled() else answer.exception()
            if asked.cancelled():
                on_late_reply(error)
            elif asked.done():
                return
            elif error is not None:
                asked.set_exception(error)
            else:
                asked.set_result(answer.result())
        except BaseException:  # the loop's to report: told in its next turn
            asked.get_loop().call_soon(pass_on, answer)
            raise

    answer.add_done_callback(pass_on)
    return asked


class ThreadPoolFacade(AsyncFacade):
    """Calls each verb of a blocking store in a thread of its own pool, so that no event loop ever waits for IO."""

    def __init__(self, store: RunStore, threads: int) -> None:
        super().__init__(store)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="durable-store")
        self._is_closed = False

    def _called(self, verb: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        loop, answer = asyncio.get_running_loop(), Future[T]()
        try:
            self._pool.submit(fulfil, answer, partial(verb, *args))
        except (RuntimeError, MemoryError) as problem:
            if answer.cancel():  # else one of the threads that there are has begun with it
                why = "it is closed" if self._is_closed else f"no thread can be started for it ({problem})"
                raise StoreUnavailable("the store", why) from problem
        # Shielded: a verb that still waits for its thread would be cancelled with its future.
        return asyncio.shield(asyncio.wrap_future(answer, loop=loop))

    def submit(self, request: Request[T], on_late_reply: OnLateReply | None = None) -> asyncio.Future[T]:
        try:
            return super().submit(request, on_late_reply)
        except RuntimeError:  # no event loop to answer on: this run's was closed under it
            if isinstance(request, Release):
                # The pool may be garbage like the run that is being left, and its threads gone.
                threading.Thread(target=self._release, args=(request,), name="durable-release", daemon=True).start()
            raise

    def _release(self, request: Release) -> None:
        with contextlib.suppress(DurableError):  # no caller is left to be told
            self._store.perform(request)

    def shut_down(self, *, wait: bool = True) -> None:
        """End the threads when their work is done, and `wait` for that."""
        self._is_closed = True
        self._pool.shutdown(wait=wait)


@public_verbs("store.aio", "save", "load", "delete", "list", "purge", "stats", "status")
class AsyncSnapshotVerbs:
    """The same verbs as coroutines, each in a thread of its event loop's executor. A cancelled one goes on there."""

    def __init__(self, snapshots: LeasedStore) -> None:
        self._snapshots = snapshots

    async def save(self, id: str, snapshot: Snapshot | Mapping[str, Any], *, force: bool = False) -> None:
        """See `PostgresStore.save`."""
        await asyncio.to_thread(self._snapshots.save, id, snapshot, force=force)

    async def replace(self, run_id: str, old: Snapshot, new: Snapshot) -> bool:
        """See `PostgresStore.replace`."""
        return await asyncio.to_thread(self._snapshots.replace, run_id, old, new)

    async def load(self, id: str) -> Snapshot | None:
        """See `PostgresStore.load`."""
        return await asyncio.to_thread(self._snapshots.load, id)

    async def delete(self, id: str, *, force: bool = False) -> None:
        """See `PostgresStore.delete`."""
        await asyncio.to_thread(self._snapshots.delete, id, force=force)

    async def list(
        self, *, prefix: str = "", limit: int = PAGE, status: RunStatus | None = None, after: Listed | None = None
    ) -> Sequence[Listed]:
        """See `PostgresStore.list`."""
        return await asyncio.to_thread(self._snapshots.list, prefix=prefix, limit=limit, status=status, after=after)

    async def purge(
        self,
        *,
        older_than: Duration,
        status: RunStatus | None = "completed",
        queue: str | None = None,
        metadata: Mapping[str, str] | None = None,
        limit: int | None = None,
        progress: Progress | None = None,
    ) -> int:
        """See `PostgresStore.purge`; `progress` is called in the thread."""
        return await asyncio.to_thread(
            self._snapshots.purge,
            older_than=older_than,
            status=status,
            queue=queue,
            metadata=metadata,
            limit=limit,
            progress=progress,
        )

    async def stats(self) -> Stats:
        """See `PostgresStore.stats`."""
        return await asyncio.to_thread(self._snapshots.stats)

    async def status(self, id: str) -> RunStatus | None:
        """See `PostgresStore.status`."""
        return await asyncio.to_thread(self._snapshots.status, id)


@public_verbs(
    "store.aio",
    "runs",
    "count_runs",
    "header",
    "journal",
    "signals",
    "workers",
    "schedules",
    "health",
    "delete_many",
    "copy",
    "document",
    "restore",
)
class AsyncReadingVerbs:
    """What people and tools ask, as coroutines like the verbs above."""

    _snapshots: Any  # a `ReadableStore`

    async def runs(
        self, filter: Filter | None = None, *, limit: int = PAGE, after: RunLine | Listed | None = None
    ) -> Sequence[RunLine]:
        """See `PostgresStore.runs`."""
        return await asyncio.to_thread(self._snapshots.runs, filter, limit=limit, after=after)

    async def count_runs(self, filter: Filter | None = None, *, limit: int = COUNTED) -> int:
        """See `PostgresStore.count_runs`."""
        return await asyncio.to_thread(self._snapshots.count_runs, filter, limit=limit)

    async def header(self, id: str) -> Header | None:
        """See `PostgresStore.header`."""
        return await asyncio.to_thread(self._snapshots.header, id)

    async def journal(self, id: str, *, after: int | None = None, limit: int = LINES) -> Sequence[Record]:
        """See `PostgresStore.journal`."""
        return await asyncio.to_thread(self._snapshots.journal, id, after=after, limit=limit)

    async def signals(self, id: str) -> Sequence[SentSignal]:
        """See `PostgresStore.signals`."""
        return await asyncio.to_thread(self._snapshots.signals, id)

    async def workers(self) -> Sequence[WorkerLine]:
        """See `PostgresStore.workers`."""
        return await asyncio.to_thread(self._snapshots.workers)

    async def schedules(self) -> Sequence[ScheduleLine]:
        """See `PostgresStore.schedules`."""
        return await asyncio.to_thread(self._snapshots.schedules)

    async def health(self) -> Health:
        """See `PostgresStore.health`."""
        return await asyncio.to_thread(self._snapshots.health)

    async def delete_many(self, ids: Sequence[str]) -> Sequence[str]:
        """See `PostgresStore.delete_many`."""
        return await asyncio.to_thread(self._snapshots.delete_many, ids)

    async def copy(
        self, src: str, dst: str, *, keep: Collection[int] | None = None, changes: Changes | None = None
    ) -> None:
        """See `PostgresStore.copy`."""
        await asyncio.to_thread(self._snapshots.copy, src, dst, keep=keep, changes=changes)

    async def document(self, id: str) -> str | None:
        """See `PostgresStore.document`."""
        return await asyncio.to_thread(self._snapshots.document, id)

    async def restore(self, run: StoredRun, *, replace: bool = False) -> None:
        """See `PostgresStore.restore`."""
        await asyncio.to_thread(self._snapshots.restore, run, replace=replace)


class AsyncStore(AsyncSnapshotVerbs, ThreadPoolFacade):
    """All the verbs of a store that waits for nothing but its own lock, for asyncio: the runs' in one thread."""

    def __init__(self, store: LeasedStore) -> None:
        AsyncSnapshotVerbs.__init__(self, store)
        ThreadPoolFacade.__init__(self, store, threads=1)
        self._closes = store.close

    async def close(self) -> None:
        """See `RunStore.close`."""
        await asyncio.to_thread(self._closes)


class AsyncReadableStore(AsyncReadingVerbs, AsyncStore):
    """The same with what people and tools ask."""
