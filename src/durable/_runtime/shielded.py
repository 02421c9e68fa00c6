"""Waiting that no cancellation cuts short."""

from __future__ import annotations

import asyncio
from typing import TypeVar

T = TypeVar("T")


async def wait_shielded(work: asyncio.Future[T], seconds: float) -> T:
    """Wait for `work`. A cancellation of the caller is raised once `work` is done, at most `seconds` after it came.

    However many come: a scope of anyio cancels at every suspension, and Ctrl-C is pressed again. What `work` raises goes first.
    """
    loop = asyncio.get_running_loop()
    cancelled: asyncio.CancelledError | None = None
    until: float | None = None
    while not work.done():
        left = None if until is None else until - loop.time()
        if left is not None and left <= 0:
            break
        try:
            if left is None:
                # With less ado than `asyncio.wait`. A callback of our own would be a place where an exception that a signal
                # handler raises goes to the loop, and this would wait for ever.
                await asyncio.shield(work)
            else:
                await asyncio.wait([work], timeout=left)
        except asyncio.CancelledError as error:
            if cancelled is None:
                cancelled, until = error, loop.time() + seconds
    if work.done() and not work.cancelled() and (problem := work.exception()) is not None:
        raise problem
    if cancelled is not None:
        raise cancelled
    return work.result()
