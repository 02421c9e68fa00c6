"""`durable.pause` and `durable.unpause`: whether the runs of a queue are begun."""

from __future__ import annotations

import asyncio

from durable._common.boundary import public
from durable._common.checks import check_name
from durable.stores._adapters.kinds import queueing_store
from durable.stores.protocol import QueueingStore


@public("durable.pause")
def pause(store: QueueingStore, queue: str) -> None:
    """Begin none of this queue's runs from now on, on any worker.

    What is being executed goes on, and what waits keeps its place.

    Raises `InvalidArgument`, and the store's errors.
    """
    _set(store, queue, paused=True, function="durable.pause")


@public("durable.unpause")
def unpause(store: QueueingStore, queue: str) -> None:
    """Begin the runs of this queue again, where they were left. Raises what `pause` raises."""
    _set(store, queue, paused=False, function="durable.unpause")


@public("durable.aio.pause")
async def pause_async(store: QueueingStore, queue: str) -> None:
    """`durable.pause` for asyncio."""
    await asyncio.to_thread(_set, store, queue, paused=True, function="durable.aio.pause")


@public("durable.aio.unpause")
async def unpause_async(store: QueueingStore, queue: str) -> None:
    """`durable.unpause` for asyncio."""
    await asyncio.to_thread(_set, store, queue, paused=False, function="durable.aio.unpause")


def _set(store: QueueingStore, queue: str, *, paused: bool, function: str) -> None:
    queueing_store(store, function).pause_queue(check_name("a queue's name", queue), paused=paused)
