"""Exponential backoff: how long to wait before the next try, or the next look."""

from __future__ import annotations

from typing import Final

FIRST_RETRY: Final = 0.02  # seconds, after a failure
FIRST_POLL: Final = 0.05  # … where something is not there yet
MAX_DELAY: Final = 1.0
_MAX_DOUBLINGS: Final = 10  # keeps the power from overflowing, however long it goes on


def backoff(n: int, first: float = FIRST_RETRY, longest: float = MAX_DELAY) -> float:
    """Seconds to wait after `n` failed tries: `first`, doubled each time, at most `longest`."""
    return min(longest, first * 2.0 ** min(n, _MAX_DOUBLINGS))
