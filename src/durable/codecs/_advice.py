"""What to do instead of returning a value that cannot come back."""

# Everything here is of types that only their owners know.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import io
import types
from collections.abc import Awaitable, Iterator
from typing import Any, Final

DATA_CLASSES: Final = "a dataclass, an attrs class, a NamedTuple, a msgspec.Struct or a pydantic model"

_HANDLES: Final = ("_io", "io", "socket", "ssl", "_thread", "threading", "asyncio", "psycopg", "sqlite3", "sqlalchemy")
# Methods that give plain data by custom: of Stripe's and Google's clients, attrs-like classes, cursors' rows, pydantic 1.
_TO_PLAIN: Final = ("to_dict", "model_dump", "_asdict", "asdict", "as_dict", "dict")
_ARRAYS: Final = ("numpy", "pandas", "torch", "polars", "pyarrow")


def advice_for(class_: type) -> str:
    """What to return instead of an instance of this class, as a sentence."""
    package = class_.__module__.partition(".")[0]
    if issubclass(class_, Awaitable):
        return "Await it, and return what it gives."
    if issubclass(class_, BaseException):
        return "Raise it: exceptions are remembered too."
    if package == "pydantic" and class_.__qualname__.startswith("Secret"):
        return (
            "It keeps its value out of logs, and a record would show it: return where to find it; or store it on purpose, "
            "with durable.stored_as, in a store whose codec encrypts."
        )
    if package in _ARRAYS:
        return "Convert it first, for example with .item(), .tolist() or .to_dict()."
    if hasattr(class_, "raise_for_status"):  # of httpx, requests, aiohttp, …
        return "Return what you need of it: its JSON, text or content, its status code, some of its headers."
    if hasattr(class_, "_sa_class_manager"):
        return "It belongs to its session: return its columns, as a dict or a data class, or its primary key."
    if hasattr(class_, "keys") and hasattr(class_, "__getitem__") and not issubclass(class_, dict):  # sqlite3.Row, …
        return "Return dict(...) of it."
    if issubclass(class_, io.IOBase):
        return "Return what it holds, such as .read() gives, or what opens it again, such as a path."
    if package in _HANDLES:
        return "Return the data that it leads to, or what opens it again, such as a path."
    if issubclass(class_, Iterator):
        return "Return list(...) of it: what it yields, not the iterator."
    if issubclass(class_, type | types.FunctionType | types.ModuleType | types.MethodType | types.BuiltinFunctionType):
        return "Return a name for it, and look it up where it is used."
    for method in _TO_PLAIN:
        if callable(getattr(class_, method, None)):
            return f"Return what its .{method}() gives."
    for plain in (str, int, float, dict, list, tuple, set, frozenset, bytes):
        if issubclass(class_, plain):
            return f"Return a plain {plain.__name__} made from it, or a data class, or teach it with durable.stored_as."
    return f"Return plain data, make its class {DATA_CLASSES}, or teach it with durable.stored_as."


def its_type(value: Any) -> str:
    """The type of a value, for a message: never the value."""
    class_ = type(value)
    return class_.__qualname__ if class_.__module__ == "builtins" else f"{class_.__module__}.{class_.__qualname__}"


def advice_after_body(value: Any, advice: str) -> str:
    """The advice for a value that a step's body returned; it says first what has happened."""
    return (
        f"The body did run and its effects stand; it returned a value of type {its_type(value)}, and nothing was recorded, "
        f"so it would run again. {advice or f'Return plain data, or {DATA_CLASSES}.'}"
    )
