"""Calling a step's body within its timeout."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Final

from durable._common.boundary import calls_out
from durable._common.reports import say
from durable._common.threads import fulfil
from durable._runtime.awaitables import is_awaitable
from durable.errors import StepTimeout, StoreUnavailable

_ABANDONED: Final = "A thread cannot be stopped: the body goes on there, and what becomes of it is not recorded."
_HELD_THE_LOOP: Final = (
    "It was called on the event loop, as a thunk is, and blocked that until it returned. Pass the function and its arguments, "
    "step(name, fn, arg), and it has a thread."
)

_log = logging.getLogger("durable")


def call_within(seconds: float, name: str, body: Callable[[], Any]) -> Any:
    """What the body returns or raises, or `StepTimeout`: it is then left to itself, on a thread of its own."""
    answer = call_on_thread(name, body)
    try:
        return answer.result(seconds)
    except TimeoutError:
        if answer.done():  # in the last moment, or it is the body's own
            return answer.result()
    raise _give_up(name, seconds, _ABANDONED)


def needs_thread(fn: object) -> bool:
    """Whether a function with a timeout is called in a thread of its own, in an async workflow: unless it is async, or a thunk.

    `lambda: client.get(url)` makes something to await, on its event loop; whether a thunk blocks cannot be told.
    """
    return not (inspect.iscoroutinefunction(fn) or getattr(fn, "__name__", "") == "<lambda>")


@calls_out
async def await_within(seconds: float, name: str, body: Callable[[], Any], *, blocks: bool) -> Any:
    """The same for asyncio: what can be awaited is cancelled; a body that blocks has a thread, and is left to itself."""
    advice, limit = _ABANDONED if blocks else "", asyncio.timeout(seconds)
    loop, latest = asyncio.get_running_loop(), asyncio.get_running_loop().time() + seconds
    try:
        async with limit:
            value = await _await_on_thread(name, body) if blocks else body()
            if is_awaitable(value):
                advice = ""
                value = await value
            elif not blocks and loop.time() > latest:
                raise StepTimeout(name, seconds, _HELD_THE_LOOP)
            return value
    except TimeoutError:
        if not limit.expired():  # the body's own, or of one that never let go of the loop
            raise
    raise _give_up(name, seconds, advice)


async def _await_on_thread(name: str, body: Callable[[], Any]) -> Any:
    # What came of it is handed over as a value: asyncio's futures take no StopIteration, and would never be done.
    answer: Future[Future[Any]] = call_on_thread(name, lambda: _call_into_future(body))
    settled = await asyncio.wrap_future(answer)
    problem = settled.exception()
    if isinstance(problem, RuntimeError) and "event loop" in str(problem):
        BaseException.add_note(
            problem,
            f"step {name!r} has a timeout, so that its function was called in a thread: make it `async def` for the event loop",
        )
    return settled.result()


def _call_into_future(body: Callable[[], Any]) -> Future[Any]:
    answer: Future[Any] = Future()
    fulfil(answer, body)
    return answer


def _give_up(name: str, seconds: float, advice: str) -> StepTimeout:
    if advice:
        message = "step %r: the body was given up after its timeout of %g s, and its thread goes on"
        say(_log, logging.WARNING, message, name, seconds)
    return StepTimeout(name, seconds, advice)


class NotBegun(Exception):
    """No thread could be started for a body, which is no failure of the body's."""

    def __init__(self, error: StoreUnavailable) -> None:
        super().__init__(str(error))
        self.error = error


def call_on_thread(name: str, body: Callable[[], Any]) -> Future[Any]:
    """Call the body on a daemon thread, which the exiting interpreter does not wait for. Raises `NotBegun`."""
    answer: Future[Any] = Future()
    work = partial(contextvars.copy_context().run, body)
    try:
        threading.Thread(target=fulfil, args=(answer, work), name=f"durable-step {name}", daemon=True).start()
    except (RuntimeError, MemoryError) as problem:
        raise NotBegun(
            StoreUnavailable("this process", f"no thread can be started for step {name!r} ({problem})")
        ) from problem
    return answer
