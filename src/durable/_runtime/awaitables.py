"""Values that are to be awaited: telling them, and the errors where nothing awaits them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from types import CoroutineType
from typing import Any, Final

from durable.errors import AsyncMismatch

_NEVER_AWAITED: Final = frozenset({type(None), bool, int, float, str, bytes, list, dict, tuple})


def is_awaitable(value: object) -> bool:
    """Whether a body returned something to await. (`inspect` takes a while to say that a dict is not.)"""
    kind = type(value)
    return kind is CoroutineType or (kind not in _NEVER_AWAITED and inspect.isawaitable(value))


def is_async_function(fn: object) -> bool:
    """Whether a call of this gives something to await: it is an async function, or an object whose `__call__` is one."""
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004


def vain_awaitable_error(name: str, value: Any, why: str) -> AsyncMismatch:
    """The error for a body that returned something to await where nothing awaits it."""
    if inspect.iscoroutine(value):
        value.close()  # it will never be awaited, and says so here rather than in a warning
    return AsyncMismatch(f"step {name!r} returned something to await, {why}")


def explain_early_call(value: Any) -> str:
    """The message about a step that was given this value in place of its function."""
    what = f"{type(value).__name__} is not a function. Pass the function without calling it, and then its arguments"
    if inspect.iscoroutine(value):
        value.close()  # it will never be awaited, and says so here rather than in a warning
        function = value.__name__
        return f"{what}: step(name, {function}, arg) instead of step(name, {function}(arg))"
    return f"{what}, step(name, fn, arg), or a thunk, step(name, lambda: fn(arg))"


def explain_unawaited(names: Sequence[str]) -> str:
    """The message about steps that an async workflow called and nothing awaited."""
    if len(names) == 1:
        return f"step {names[0]!r} was called and never awaited, so it did not run: await it, as in `await step(...)`"
    several = ", ".join(map(repr, names))
    return f"steps {several} were called and never awaited, so they did not run: await them, as in `await step(...)`"
