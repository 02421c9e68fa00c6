"""How long an execution may write, and when to ask for more."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Final

from durable._common.durations import show, to_seconds
from durable.errors import DurableError, InvalidArgument

RENEWALS_PER_LEASE: Final = 3  # two renewals in a row may fail before the lease is in danger
# Below this, a round trip and a pause of the garbage collector are no longer small beside a third.
MIN_LEASE: Final = 0.5
MAX_LEASE: Final = 86_400.0
MAX_WAIT: Final = 1.0  # seconds of a wait, after which the lease is looked at
# Seconds between two questions whether runs that wait were cancelled, one for all of a process.
CANCELLATION_POLL: Final = 0.5
# Seconds between two questions whether runs at work are asked to be cancelled, likewise.
ASK_POLL: Final = 1.0

# Two clocks are slewed by up to 500 ppm each (NTP), and may run apart by twice that. By so much sooner a lease ends here.
_SURE: Final = 1.0 - 0.001


class Lease:
    """The time-limited right to write one run, as its holder knows it.

    All moments are readings of the holder's own elapsed-time clock, counted from when the claim or renewal was *sent*:
    the server cannot have counted from earlier, so the holder's deadline does not lie after the server's, though one of
    the clocks may be a little fast. One thread reports renewals and others read them; each is one assignment.
    """

    __slots__ = (
        "_counter", "asked", "cancelled", "deadline", "epoch", "gone", "is_left", "lost", "on_ask", "on_wait", "reason",
        "records", "refusal", "row", "run_id", "seconds", "sent", "server", "token", "waited",
    )  # fmt: skip

    def __init__(
        self, run_id: str, token: str, epoch: int, seconds: float, sent: float, row: str | None = None
    ) -> None:
        #: The run's id.
        self.run_id = run_id
        #: The run's id in the store, which may put a prefix before it.
        self.row = run_id if row is None else row
        #: What tells this lease from every other one of the run.
        self.token = token
        #: How often a lease of the run was granted, this one included.
        self.epoch = epoch
        #: The lease's length.
        self.seconds = seconds
        #: When the claim, or the last renewal that was acknowledged, was sent.
        self.sent = sent
        #: Until when the holder may certainly write.
        self.deadline = sent + seconds * _SURE
        #: How many records of the run the holder knows to be stored, on `server`: fewer found there, and it has gone back to
        #: an earlier state. Both stay empty in a store that does not check.
        self.records = 0
        #: The server on which they were stored.
        self.server = ""
        self._counter = itertools.count(1)
        #: Why the lease is lost, once it is.
        self.lost: str | None = None
        #: The error to raise for that, where the store can say more than a reason.
        self.refusal: DurableError | None = None
        #: Why the lease's row may have gone, where this process has made it go.
        self.gone: str | None = None
        #: Whether the holder has left it to end by itself.
        self.is_left = False
        #: Whether the run was cancelled, and the lease taken.
        self.cancelled = False
        #: Whether its holder is asked to cancel it.
        self.asked = False
        #: Why, as the caller said.
        self.reason: str | None = None
        #: Called when its holder comes to be asked, on any thread.
        self.on_ask: Callable[[], object] | None = None
        #: When the holder was last seen to wait.
        self.waited = -math.inf
        #: Called when the holder begins to wait.
        self.on_wait: Callable[[], object] | None = None

    def __repr__(self) -> str:
        return f"<Lease on {self.run_id!r}, epoch {self.epoch}{', lost' if self.lost else ''}>"

    def note_stored(self, records: int, server: str) -> None:
        """So many records of the run are stored on this server."""
        self.records, self.server = records, server
        self._counter = itertools.count(records + 1)

    def count_record(self) -> None:
        """One more record is stored. From any thread, and in a signal handler: a lease may write in several ways at once.

        So without a lock. Of two at once the later may leave behind what the earlier counted, one too few until the next.
        """
        self.records = next(self._counter)

    def renew(self, sent: float) -> None:
        """A renewal that was sent at `sent` has been acknowledged."""
        self.sent = sent
        self.deadline = sent + self.seconds * _SURE

    def note_wait(self, elapsed: float) -> None:
        """The holder waits, at this reading, and will for more than a moment: a cancellation is to be heard soon."""
        begins = not self.is_waiting(elapsed)
        self.waited = elapsed
        if begins and self.on_wait is not None:
            self.on_wait()

    def ask(self, reason: str | None) -> None:
        """The run is to be cancelled, by its holder."""
        if self.asked:
            return
        self.reason, self.asked = reason, True
        if self.on_ask is not None:
            self.on_ask()

    def is_waiting(self, elapsed: float) -> bool:
        """Whether the holder waits at this reading: it has said so, as it does each time when it looks again."""
        return elapsed - self.waited < 2 * MAX_WAIT

    def renewal_due(self) -> float:
        """When the next renewal should be sent."""
        return self.sent + self.seconds / RENEWALS_PER_LEASE

    def why_ended(self, elapsed: float) -> str | None:
        """Why the lease no longer holds at this reading, or None while it certainly does."""
        if self.lost is not None:
            return self.lost
        if elapsed >= self.deadline:
            return f"it was not renewed within its {self.seconds:g} s (a long pause, or a database out of reach)"
        return None


def check_seconds(seconds: object) -> float:
    """`seconds`, when it can be the length of a lease; else `InvalidArgument`."""
    duration = to_seconds("lease", seconds)
    if not MIN_LEASE <= duration <= MAX_LEASE:  # neither is NaN
        raise InvalidArgument(
            f"lease must be between {MIN_LEASE} seconds and a day ({MAX_LEASE} seconds), not {show(seconds)}"
        )
    return duration
