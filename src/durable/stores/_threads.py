"""The asyncio face of a store whose verbs block."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from durable._engine.decisions import Claim, ClaimReply
from durable._engine.leases import Lease
from durable.snapshot import Record, Status
from durable.stores.protocol import RunStore


class ThreadedStore:
    """Calls each verb of a blocking store in a thread of its own pool, so that no event loop ever waits for IO."""

    def __init__(self, store: RunStore, threads: int) -> None:
        self._store = store
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="durable-store")

    def begin(self, claim: Claim, alive: Callable[[], bool]) -> asyncio.Future[ClaimReply]:
        """See `RunStore.begin`."""
        return asyncio.get_running_loop().run_in_executor(self._pool, self._store.begin, claim, alive)

    def checkpoint(self, lease: Lease, record: Record) -> asyncio.Future[None]:
        """See `RunStore.checkpoint`."""
        return asyncio.get_running_loop().run_in_executor(self._pool, self._store.checkpoint, lease, record)

    def finish(self, lease: Lease, status: Status, record: Record) -> asyncio.Future[None]:
        """See `RunStore.finish`."""
        return asyncio.get_running_loop().run_in_executor(self._pool, self._store.finish, lease, status, record)

    def release(self, lease: Lease) -> asyncio.Future[None]:
        """See `RunStore.release`."""
        return asyncio.get_running_loop().run_in_executor(self._pool, self._store.release, lease)

    def close(self) -> None:
        """End the threads when their work is done."""
        self._pool.shutdown(wait=True)
