"""A lock around a method, that no interrupt leaves locked."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

__all__ = ["locked"]

P = ParamSpec("P")
R = TypeVar("R")


class _HasLock(Protocol):
    _lock: Any


S = TypeVar("S", bound=_HasLock)


def locked(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """The method under its object's `_lock`, a lock of C's (a Condition's `__enter__` can be interrupted half-way).

    All in one line: a trace function, and what it raises, comes between two lines, also where a block is being left.
    """

    @functools.wraps(method)
    def under_lock(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._lock: return method(self, *args, **kwargs)  # noqa: E701  # pyright: ignore[reportPrivateUsage]  # fmt: skip

    return under_lock
