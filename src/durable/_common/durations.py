"""Durations (seconds, or a `timedelta`) and moments: read, checked and shown."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

from durable.errors import InvalidArgument

Duration: TypeAlias = float | timedelta
"""Seconds, or a `timedelta`."""

MAX_SECONDS: Final = 100 * 366 * 24 * 3600.0
"""A hundred years, the longest wait. Threads, event loops and dates all count further than that."""

_SHOWN: Final = 80  # characters
_LAST: Final = datetime.max.replace(tzinfo=UTC)
_EXAMPLE: Final = "like datetime.now(UTC) + timedelta(hours=1)"


def to_seconds(what: str, given: object) -> float:
    """Convert a duration to seconds, or raise `InvalidArgument`. The caller checks its range."""
    if isinstance(given, timedelta):
        return given.total_seconds()
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise InvalidArgument(
            f"{what} must be a number of seconds, like 30 or 0.5, or a timedelta, not {type(given).__name__}"
        )
    try:
        return float(given)
    except OverflowError:
        raise InvalidArgument(f"{what} must be a number of seconds that fits into a float, not one so large") from None


def check_duration(what: str, given: object, *, zero: bool = False) -> float:
    """A duration in seconds, positive (or zero, if `zero`) and at most a hundred years; else `InvalidArgument` about `what`."""
    seconds = to_seconds(what, given)
    if not (seconds > 0 or (zero and seconds == 0)):  # NaN is neither
        wanted = "a number of seconds, zero or more" if zero else "a positive number of seconds"
        raise InvalidArgument(f"{what} must be {wanted}, not {show(given)}")
    if seconds > MAX_SECONDS:
        raise InvalidArgument(
            f"{what} must be a number of seconds, at most {MAX_SECONDS:.0f} (a hundred years), not {show(given)}"
        )
    return seconds


def to_utc(what: str, moment: datetime) -> datetime:
    """The moment in UTC; an `InvalidArgument` about `what` when it has no offset, or lies beyond the years 1 to 9999."""
    try:
        if moment.utcoffset() is None:
            raise InvalidArgument(
                f"{what} must be an aware datetime, {_EXAMPLE}; {show(moment)} has no offset from UTC"
            )
        return moment.astimezone(UTC)
    except OverflowError:
        raise InvalidArgument(
            f"{what} must lie within the years 1 to 9999 of UTC, and {show(moment)} does not"
        ) from None
    except InvalidArgument:
        raise
    except Exception as problem:
        zone = type(moment.tzinfo).__name__
        raise InvalidArgument(f"{what} must be an aware datetime, {_EXAMPLE}; its {zone} says: {problem}") from problem


def add_seconds(moment: datetime, seconds: float) -> datetime:
    """The moment so many seconds later, or the last moment that there is."""
    try:
        return moment + timedelta(seconds=seconds)
    except OverflowError:
        return _LAST


def show(value: object) -> str:
    """A value as text for a message. (Python does not write out an int of thousands of digits.)"""
    try:
        text = repr(value)
    except Exception:  # a user's own may do anything
        return f"{type(value).__name__} that cannot be shown"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
