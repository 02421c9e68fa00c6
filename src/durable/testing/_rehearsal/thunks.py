"""What a function carries along, by which two thunks of one line are told apart."""

from __future__ import annotations

import functools
from types import CellType, FunctionType
from typing import Any, cast


def contents(fn: object) -> tuple[object, ...]:
    """A function's code, its defaults, and what its closure or `partial` holds at this moment, for comparison."""
    if isinstance(fn, functools.partial):
        held = cast(Any, fn)
        return (*contents(held.func), *map(_Held, held.args), *map(_Held, held.keywords.values()))
    if not isinstance(fn, FunctionType):
        return (_Held(fn),)
    values = [*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values()]
    values += [cell.cell_contents for cell in fn.__closure__ or () if _is_filled(cell)]
    return (fn.__code__, *map(_Held, values))


class _Held:
    """A value as it is now: a list may change."""

    __slots__ = ("_said", "_value")

    def __init__(self, value: object) -> None:
        self._value = value
        self._said = repr(cast(object, value)) if isinstance(value, list | dict | set) else None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Held) or type(self._value) is not type(other._value):
            return False
        if self._said is not None:
            return self._said == other._said
        return self._value is other._value or bool(self._value == other._value)

    __hash__ = None  # type: ignore[assignment]


def _is_filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 -- asked for what it raises
    except ValueError:
        return False
    return True
