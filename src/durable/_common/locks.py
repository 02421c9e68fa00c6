"""A lock around a method, which no interrupt leaves locked."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")


class _HasLock(Protocol):
    _lock: Any


S = TypeVar("S", bound=_HasLock)


def locked(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """The method under its object's `_lock`, a lock made in C (a Condition's `__enter__` can be interrupted half-way).

    All in one line: a trace function, and what it raises, runs between two lines, also where a block is being left.
    """

    def under_lock(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._lock: return method(self, *args, **kwargs)  # noqa: E701  # pyright: ignore[reportPrivateUsage]  # fmt: skip

    # For methods with one and two arguments, which are called several times a step: packing arguments would double the cost.
    def of_one(self: Any, one: Any, /) -> Any:
        with self._lock: return call(self, one)  # noqa: E701  # fmt: skip

    def of_two(self: Any, one: Any, two: Any, /) -> Any:
        with self._lock: return call(self, one, two)  # noqa: E701  # fmt: skip

    call: Any = method
    wrappers: dict[int, Any] = {2: of_one, 3: of_two}
    code, optional = call.__code__, call.__defaults__ or call.__code__.co_kwonlyargcount
    wrapper = under_lock if optional else wrappers.get(code.co_argcount, under_lock)
    return cast(Callable[Concatenate[S, P], R], functools.wraps(method)(wrapper))


def hold(lock: AbstractContextManager[Any], call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What the call comes to under this lock, likewise in one line."""
    with lock: return call(*args, **kwargs)  # noqa: E701  # fmt: skip
