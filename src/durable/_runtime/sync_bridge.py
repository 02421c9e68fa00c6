"""Runs an async function without an event loop, over verbs that block: so each is written once, for both forms."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, ParamSpec, TypeVar, cast

from durable._common.boundary import calls_out
from durable.stores.protocol import RunStore
from durable.stores.requests import Request

P = ParamSpec("P")
T = TypeVar("T")


class Coroutines:
    """The verbs of a blocking store, or a clock, as coroutines. `call` makes each call: at once, or in a thread."""

    def __init__(self, store: object, call: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        self._store = store
        self._call = call

    def submit(self, request: Request[T]) -> Coroutine[Any, Any, T]:
        """See `AsyncRunStore.submit`: a store that blocks performs it."""
        return self._call(cast(RunStore, self._store).perform, request)

    def __getattr__(self, verb: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        return partial(self._call, getattr(self._store, verb))


@calls_out
async def call_now(verb: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a blocking verb, and return its result."""
    return verb(*args, **kwargs)


@calls_out
def at_once(question: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run an async function to its end. All that it awaits must block instead of waiting."""
    coroutine = question(*args, **kwargs)
    try:
        coroutine.send(None)
    except StopIteration as end:
        answer: T = end.value
        return answer
    finally:
        coroutine.close()  # interrupted before it began, it would say in a warning that it was never awaited
    raise AssertionError("an async function that was to block has waited")
