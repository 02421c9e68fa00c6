"""How long something is to take: seconds, or a `timedelta`, wherever a time is asked for."""

from __future__ import annotations

from datetime import timedelta
from typing import TypeAlias

from durable.errors import InvalidArgument

__all__ = ["Duration", "in_seconds"]

Duration: TypeAlias = float | timedelta
"""Seconds, or a `timedelta`."""


def in_seconds(what: str, given: object) -> float:
    """A duration in seconds; `InvalidArgument` for what is none. Which durations will do is for the caller to say."""
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
