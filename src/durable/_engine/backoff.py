"""How long to wait before the next try, or the next look."""

from __future__ import annotations

from typing import Final

from durable.errors import OwnershipError, RunHandedOver, StoreError

FIRST_RETRY: Final = 0.02  # seconds, after a failure
FIRST_POLL: Final = 0.05  # … where something is not there yet
MAX_DELAY: Final = 1.0
PUT_OFF: Final = 60.0  # seconds until a worker's run is due again that does not fit its workflow as it stands
_MAX_DOUBLINGS: Final = 10  # keeps the power from overflowing, however long it goes on


def backoff(n: int, first: float = FIRST_RETRY, longest: float = MAX_DELAY) -> float:
    """Seconds to wait after `n` failed tries: `first`, doubled each time, at most `longest`."""
    return min(longest, first * 2.0 ** min(n, _MAX_DOUBLINGS))


def delay_run(reason: BaseException | None) -> float:
    """Seconds until a worker's run is due again that was left for this reason, and has not ended.

    Without a pause a run that no worker can go on with would be taken again and again.
    """
    if reason is None or isinstance(reason, RunHandedOver):
        return 0.0
    passes = isinstance(reason, StoreError | OwnershipError) or not isinstance(reason, Exception)
    return MAX_DELAY if passes else PUT_OFF
