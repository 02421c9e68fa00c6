"""How long to wait before something is tried, or looked at, again."""

from __future__ import annotations

from typing import Final

FIRST_RETRY: Final = 0.02  # seconds, of what has failed
FIRST_POLL: Final = 0.05  # … of what is not there yet
MAX_DELAY: Final = 1.0
_MAX_DOUBLINGS: Final = 10  # keeps the power from overflowing, however long it goes on


def backoff(n: int, first: float = FIRST_RETRY, longest: float = MAX_DELAY) -> float:
    """Seconds to wait after `n` tries in vain: `first`, doubled with each of them, up to `longest`."""
    return min(longest, first * 2.0 ** min(n, _MAX_DOUBLINGS))
