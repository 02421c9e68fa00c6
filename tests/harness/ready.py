"""A blocking `step` to be awaited, so that a program is written once for both colours."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import durable


class Ready:
    """What it gives is there at once."""

    def __init__(self, step: durable.Step) -> None:
        self.inner = step

    async def __call__(self, *args: Any, **options: Any) -> Any:
        return self.inner(*args, **options)

    async def map(self, name: str, fn: Callable[[Any], Any], items: Iterable[Any], **options: Any) -> list[Any]:
        def at_once(item: Any) -> Any:
            return self.told(fn(item))

        return self.inner.map(name, at_once if inspect.iscoroutinefunction(fn) else fn, items, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @staticmethod
    def told(coroutine: Coroutine[Any, Any, Any]) -> Any:
        """What a coroutine returns that waits for nothing."""
        try:
            coroutine.send(None)
        except StopIteration as end:
            return end.value
        raise AssertionError("it waits for something")
