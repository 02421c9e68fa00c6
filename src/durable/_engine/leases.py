"""How long an execution may write, and when to ask for more."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Final

from durable._common.durations import show, to_seconds
from durable.errors import DurableError, InvalidArgument

RENEWALS_PER_LEASE: Final = 3  # two renewals in a row may fail before the lease is in danger
SHORTEST: Final = (
    0.5  # below this, a round trip and a pause of the garbage collector are no longer small beside a third
)
LONGEST: Final = 86_400.0
LONGEST_WAIT: Final = 1.0  # seconds, after which whoever waits has a look at the lease
LOOK_EVERY: Final = 0.5  # seconds between two questions whether runs that wait were cancelled, one for all of a process

# Two clocks are slewed by up to 500 ppm each (NTP), and may run apart by twice that. By so much sooner a lease ends here.
_SURE: Final = 1.0 - 0.001


class Lease:
    """The time-limited right to write one run, as its holder knows it.

    All moments are readings of the holder's own elapsed-time clock, counted from when the claim or renewal was *sent*:
    the server cannot have counted from earlier, so the holder's deadline does not lie after the server's, though one of
    their clocks may be a little fast. Renewals are
    told by one thread and read by others; each is one assignment. `records` counts those of the run that its holder knows to
    be stored, as of a `server`: that is how he notices that it has gone back to an earlier state. Both are the store's, and
    stay empty where it does not look. `on_wait` is called when its holder begins to wait.
    """

    __slots__ = (
        "_counter", "cancelled", "deadline", "epoch", "gone", "lost", "on_wait", "records", "refusal", "row",
        "run_id", "seconds", "sent", "server", "token", "waited",
    )  # fmt: skip

    def __init__(
        self, run_id: str, token: str, epoch: int, seconds: float, sent: float, row: str | None = None
    ) -> None:
        self.run_id = run_id
        self.row = run_id if row is None else row  # the run's id in the store, which may put a prefix before it
        self.token = token
        self.epoch = epoch
        self.seconds = seconds
        self.sent = sent
        self.deadline = sent + seconds * _SURE
        self.records = 0
        self.server = ""
        self._counter = itertools.count(1)
        self.lost: str | None = None
        self.refusal: DurableError | None = None  # where the store could say more of that than a reason
        self.gone: str | None = None  # why its row may have gone, where this process has made it go
        self.cancelled = False
        self.waited = -math.inf  # when its holder was last seen to wait
        self.on_wait: Callable[[], object] | None = None

    def __repr__(self) -> str:
        return f"<Lease on {self.run_id!r}, epoch {self.epoch}{', lost' if self.lost else ''}>"

    def known(self, records: int, server: str) -> None:
        """So many records of the run are stored on this server."""
        self.records, self.server = records, server
        self._counter = itertools.count(records + 1)

    def recorded(self) -> None:
        """One more record is stored. From any thread, and in a signal handler: a lease may write in several ways at once.

        So without a lock. Of two at once the later may leave behind what the earlier counted, one too few until the next.
        """
        self.records = next(self._counter)

    def renewed(self, sent: float) -> None:
        """A renewal that was sent at `sent` has been acknowledged."""
        self.sent = sent
        self.deadline = sent + self.seconds * _SURE

    def waits(self, elapsed: float) -> None:
        """Its holder waits, at this reading, and will for more than a moment: a cancellation is to be heard soon."""
        begins = not self.is_waiting(elapsed)
        self.waited = elapsed
        if begins and self.on_wait is not None:
            self.on_wait()

    def is_waiting(self, elapsed: float) -> bool:
        """Whether its holder waits at this reading: it has said so, as it does at each of its looks."""
        return elapsed - self.waited < 2 * LONGEST_WAIT

    def due(self) -> float:
        """When the next renewal should be sent."""
        return self.sent + self.seconds / RENEWALS_PER_LEASE

    def ended(self, elapsed: float) -> str | None:
        """Why the lease no longer holds at this reading, or None while it certainly does."""
        if self.lost is not None:
            return self.lost
        if elapsed >= self.deadline:
            return f"it was not renewed within its {self.seconds:g} s (a long pause, or a database out of reach)"
        return None


def checked_seconds(seconds: object) -> float:
    """`seconds`, when it can be the length of a lease; else `InvalidArgument`."""
    duration = to_seconds("lease", seconds)
    if not SHORTEST <= duration <= LONGEST:  # neither is NaN
        raise InvalidArgument(
            f"lease must be between {SHORTEST} seconds and a day ({LONGEST} seconds), not {show(seconds)}"
        )
    return duration
