"""The items of `step.map`: so many at once, their outcomes in order, none begun after one has failed."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

from durable._common.boundary import calls_out, public
from durable._common.checks import check_count, check_name
from durable._common.locks import locked
from durable._engine.steps import LiveExecution
from durable.clocks import Clock
from durable.errors import InvalidArgument
from durable.events import MapBegan

_MAX_AT_ONCE: Final = 32  # threads or tasks, unless max_concurrency= is given


class MapOptions(NamedTuple):
    """What a call of `step.map` was given besides the options of its steps; see there."""

    key: Callable[[Any], object] | None = None
    max_concurrency: int | None = None
    return_exceptions: bool = False


class MapItems:
    """The items of one call, with a key and an outcome for each.

    Raises `InvalidArgument` for keys that are not names or occur twice, and for a number that cannot be.
    """

    @calls_out
    def __init__(self, name: str, items: Iterable[Any], how: MapOptions, scope: str = "") -> None:
        self.name = name
        self._scope = scope
        self.items = list(items)
        self.keys = _keys(name, self.items, how.key)
        self.at_once = min(_checked(how.max_concurrency), len(self.items))
        self.outcomes: list[Any] = [None] * len(self.items)
        self._return_exceptions = how.return_exceptions
        self._next = 0
        self._settled = 0
        self._lock = threading.Lock()
        self._failure: BaseException | None = None

    def tell(self, execution: LiveExecution, clock: Clock) -> None:
        """Say to a listener which steps there will be: nothing that is stored says how many."""
        if execution.emit is not None and not execution.is_over:
            execution.emit(MapBegan(execution.run_id, clock.now(), self._scope + self.name, self._keys_in_full))

    @property
    def _keys_in_full(self) -> tuple[str, ...]:
        return tuple(self._scope + key for key in self.keys)

    @locked
    def take(self) -> int | None:
        """The index of the next item to begin, or None."""
        if self._failure is not None or self._next == len(self.items):
            return None
        self._next += 1
        return self._next - 1

    @locked
    def settle(self) -> None:
        """An item that was taken has an outcome, or has none."""
        self._settled += 1

    @property
    def is_last(self) -> bool:
        """Whether an item that is being called is the only one, and no other is begun before it has settled."""
        return self.at_once == 1 or self._settled == len(self.items) - 1

    def fail(self, index: int, problem: BaseException) -> None:
        """Take an item's failure: as its outcome, or as the end of the call."""
        if self._return_exceptions and isinstance(problem, Exception):
            self.outcomes[index] = problem
            return
        self._end(problem)

    @locked
    def _end(self, problem: BaseException) -> None:
        self._failure = self._failure or problem

    def result(self) -> list[Any]:
        """The outcomes in the order of the items, or the first failure, raised."""
        if self._failure is not None:
            raise self._failure
        return self.outcomes


def map_blocking(items: MapItems, called: Callable[[str, Any], Any]) -> list[Any]:
    """`called(key, item)` for each item, on threads. Each has the context of the caller."""

    def work() -> None:
        while (index := items.take()) is not None:
            try:
                items.outcomes[index] = called(items.keys[index], items.items[index])
            except BaseException as problem:
                items.fail(index, problem)
            finally:
                items.settle()

    if items.at_once:
        with ThreadPoolExecutor(items.at_once, thread_name_prefix="durable-map") as pool:
            for number in range(items.at_once):
                try:
                    pool.submit(contextvars.copy_context().run, work)
                except (RuntimeError, MemoryError):  # no thread more: those that there are do it all, or this one
                    if not number:
                        work()
                    break
    return items.result()


@public("step.map")
async def map_async(items: MapItems, called: Callable[[str, Any], Coroutine[Any, Any, Any]]) -> list[Any]:
    """The same, in tasks. One that fails lets the others end the item that they are at; a cancellation is passed on."""

    async def work() -> None:
        while (index := items.take()) is not None:
            try:
                items.outcomes[index] = await called(items.keys[index], items.items[index])
            except asyncio.CancelledError:
                raise
            except BaseException as problem:
                items.fail(index, problem)

    workers = [asyncio.ensure_future(work()) for _ in range(items.at_once)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
    return items.result()


@calls_out
def _keys(name: str, items: Sequence[Any], key: Callable[[Any], object] | None) -> list[str]:
    check_name("a step's name", name)
    parts = range(len(items)) if key is None else [key(item) for item in items]
    keys = [check_name("the key of an item", f"{name}[{part}]") for part in parts]
    if len(set(keys)) < len(keys):
        twice = next(one for number, one in enumerate(keys) if one in keys[:number])
        raise InvalidArgument(f"step.map({name!r}): two items have the key {twice!r}: let key= tell them apart")
    return keys


def _checked(max_concurrency: object) -> int:
    return _MAX_AT_ONCE if max_concurrency is None else check_count("max_concurrency", max_concurrency)
