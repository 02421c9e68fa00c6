"""The memory store, answering asyncio within the same turn of its loop instead of from a thread: what a driver costs alone."""

from __future__ import annotations

import asyncio
from typing import Any

from durable._engine.decisions import Claim
from durable._engine.leases import Lease
from durable.records import Record, Status
from durable.stores import MemoryStore


class Instant:
    """A store for runs whose bodies are async."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.aio = _Verbs(store)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class _Verbs:
    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def begin(self, claim: Claim, alive: Any) -> asyncio.Future[Any]:
        return _done(self._store.begin(claim, alive))

    def checkpoint(self, lease: Lease, record: Record, late: Any = None) -> asyncio.Future[None]:
        self._store.checkpoint(lease, record)
        return _done(None)

    def finish(self, lease: Lease, status: Status, record: Record) -> asyncio.Future[None]:
        self._store.finish(lease, status, record)
        return _done(None)

    def release(self, lease: Lease, status: Status | None = None) -> asyncio.Future[None]:
        self._store.release(lease, status)
        return _done(None)

    def room(self) -> None:
        return None


def _done(answer: Any) -> asyncio.Future[Any]:
    future = asyncio.get_running_loop().create_future()
    future.set_result(answer)
    return future
