"""What a function carries along: by it two thunks of one line are told apart."""

from __future__ import annotations

import functools
from typing import Any

__all__ = ["contents"]


def contents(fn: Any) -> tuple[object, ...]:
    """Its code, its defaults, and what its closure and its `partial` hold at this moment, as far as can be compared."""
    if isinstance(fn, functools.partial):
        held = (*fn.args, *(fn.keywords or {}).values())
        return (*contents(fn.func), *map(_comparable, held))
    code = getattr(fn, "__code__", None)
    if code is None:
        return (type(fn), id(fn)) if not hasattr(fn, "__self__") else (fn.__name__, id(fn.__self__))
    cells = [cell.cell_contents for cell in fn.__closure__ or () if _is_filled(cell)]
    return (code, *map(_comparable, [*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values(), *cells]))


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 -- asked for what it raises
    except ValueError:
        return False
    return True


def _comparable(value: Any) -> object:
    """A value of JSON by what it says now; any other by which it is."""
    if isinstance(value, str | int | float | bool | None):
        return type(value), value
    if isinstance(value, list | tuple | dict):
        return repr(value)
    return id(value)
