"""Whether there is room on the stack for what must not fail half-way."""

from __future__ import annotations

import sys
from typing import Any, Final

__all__ = ["require_stack"]

_FRAMES: Final = 80  # a step takes some 20 of them; a log record, or an exception's traceback, as many again


def _nested(levels: int) -> Any:
    types: Any = int
    for _ in range(levels):
        types = (types,)
    return types


_TYPES: Final = _nested(_FRAMES)


def require_stack() -> None:
    """Raise `RecursionError` here, where nothing has begun yet, rather than a few calls later, in the midst of it."""
    if sys.version_info >= (3, 12):  # the limit is one of Python's frames, and they can be counted
        try:
            sys._getframe(max(sys.getrecursionlimit() - _FRAMES, 1))  # noqa: SLF001 -- the one way to count them
        except ValueError:  # there are not so many
            return
        raise RecursionError("maximum recursion depth exceeded: too few frames are left for a step")
    isinstance(None, _TYPES)  # goes so deep, in C, where calls from C count as well
