"""Checks of arguments: names, counts and flags."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from durable.errors import InvalidArgument

MAX_NAME_BYTES: Final = 512  # an id or key above this could break its btree index; the limit must be ours


def _advise(name: object) -> str:
    """What to write instead of a value that is meant to be a name."""
    if isinstance(name, int | UUID) and not isinstance(name, bool):
        return f": write str(…) around it, so that it is the same text wherever this name is given ({str(name)[:40]!r})"
    if isinstance(name, bytes):
        return ": decode it"
    if callable(name):
        function = getattr(name, "__name__", "fn")
        return f": it comes first, then the function and its arguments, like step({function!r}, {function}, …)"
    return ""


def check_name(what: str, name: object) -> str:
    """The name, when it can be an id, a key or a step's name; else `InvalidArgument` about `what`."""
    if type(name) is str and name.isascii() and 0 < len(name) <= MAX_NAME_BYTES and "\0" not in name:
        return name  # almost always; this is asked twice a step
    if not isinstance(name, str):
        raise InvalidArgument(f"{what} must be a string, not {type(name).__name__}{_advise(name)}")
    if not name:
        raise InvalidArgument(f"{what} must not be empty")
    if "\0" in name:
        raise InvalidArgument(f"{what} {name[:40]!r} contains a NUL character, which PostgreSQL cannot store")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(f"{what} {name[:40]!r} contains a lone surrogate, which is not text") from None
    if size > MAX_NAME_BYTES:
        raise InvalidArgument(f"{what} {name[:40]!r}… has {size} bytes of UTF-8; at most {MAX_NAME_BYTES} are allowed")
    return name


def check_count(what: str, given: object) -> int:
    """The number, when it is an int of at least 1; else `InvalidArgument` about `what`."""
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise InvalidArgument(f"{what} must be a number of at least 1, not {given!r}")
    return given


def check_flag(what: str, given: object) -> bool:
    """The flag, when it is True or False; else `InvalidArgument` about `what`."""
    if not isinstance(given, bool):
        raise InvalidArgument(f"{what} must be True or False, not {type(given).__name__}")
    return given
