"""Whether there is room on the stack for what must not fail half-way."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Final

_FRAMES: Final = 50  # a step takes some 20 of them; an exception's traceback, or what a codec does, as many again


def _nested(levels: int) -> Any:
    types: Any = int
    for _ in range(levels):
        types = (types,)
    return types


_TYPES: Final = _nested(_FRAMES)


def _count_frames() -> None:  # pyright: ignore[reportUnusedFunction] -- by the version
    try:
        sys._getframe(  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001 -- the one way to count them
            max(sys.getrecursionlimit() - _FRAMES, 1)
        )
    except ValueError:  # there are not so many
        return
    raise RecursionError("maximum recursion depth exceeded: too few frames are left for a step")


require_stack: Final[Callable[[], object]] = (
    # From 3.12 on the limit is one of Python's frames, and they can be counted. Before, calls from C count as well: this
    # goes so deep, in C.
    _count_frames if sys.version_info >= (3, 12) else partial(isinstance, None, _TYPES)
)
"""Raises `RecursionError` where nothing has begun yet, rather than a few calls later, in the midst of it."""
