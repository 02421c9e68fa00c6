"""What is shown of values: nothing unless it is asked for, and never what a name says is secret."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias, cast

import msgspec

from durable.errors import InvalidArgument

Redact: TypeAlias = Callable[[str, Any], Any]
"""Gets where a value stands (`input`, `result`, `step:charge`, `metadata`, `message` …) and it; returns what may be seen."""

REDACTED: Final = "[redacted]"
_SECRET: Final = re.compile(r"password|passwd|token|secret|authorization|cookie|card|api_?key", re.IGNORECASE)
_DEEP: Final = 100  # levels; what lies deeper is not looked at, and not shown


def redact_by_name(where: str, value: Any) -> Any:
    """The value without what stands under a key like `password`, `token`, `secret`, `authorization`, `cookie` or `card`."""
    return REDACTED if _SECRET.search(where.partition(":")[2]) else _redacted(value, 0)


def show_json(redact: Redact, where: str, text: str | bytes) -> Any:
    """What may be seen of a JSON text: plain dicts, lists and scalars. Where `redact` fails, nothing."""
    try:
        return shown(redact, where, msgspec.json.decode(text))
    except Exception:
        return REDACTED


def shown(redact: Redact, where: str, value: Any) -> Any:
    """What may be seen of a value. Where `redact` fails, or returns what is no JSON, nothing."""
    try:
        found = redact(where, value)
        msgspec.json.encode(found)
    except Exception:  # it fails closed: nothing is shown that it has not passed
        return REDACTED
    return found


def load_redact(target: str) -> Redact:
    """The function `MODULE:NAME`; `InvalidArgument` where there is none."""
    module, _, name = target.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as problem:
        raise InvalidArgument(
            f"redact = {target!r} cannot be loaded ({type(problem).__name__}): say MODULE:NAME"
        ) from None
    if not callable(found):
        raise InvalidArgument(f"redact = {target!r} is no function of where and value")
    return cast(Redact, found)


def _redacted(value: Any, depth: int) -> Any:
    if depth > _DEEP:
        return REDACTED
    if isinstance(value, Mapping):
        told = cast(Any, value)
        return {key: REDACTED if _SECRET.search(str(key)) else _redacted(of, depth + 1) for key, of in told.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_redacted(item, depth + 1) for item in cast(Any, value)]
    return value
