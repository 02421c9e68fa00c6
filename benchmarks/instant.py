"""The memory store, answering asyncio within the same turn of its loop instead of from a thread: what a driver costs alone."""

from __future__ import annotations

import asyncio
from typing import Any

from durable.stores import MemoryStore
from durable.stores.requests import Request


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

    def submit(self, request: Request[Any], on_late_reply: Any = None) -> asyncio.Future[Any]:
        answer = asyncio.get_running_loop().create_future()
        answer.set_result(self._store.perform(request))
        return answer

    def room(self) -> None:
        return None
