"""Virtual time: events in their order, and the one source of chance."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Final

__all__ = ["Timeline"]

_MASK: Final = (1 << 64) - 1


class Timeline:
    """What happens next, and what the time is, in seconds. The same seed gives the same chances for the same questions."""

    __slots__ = ("_count", "_events", "_seed", "ends", "now")

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.ends = False  # set by whoever has seen enough
        self._seed = seed * 0x9E3779B97F4A7C15 & _MASK
        self._events: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._count = 0

    def after(self, seconds: float, act: Callable[..., object], *args: Any) -> None:
        """Let this happen `seconds` from now; what is for the same moment happens in the order in which it was asked for."""
        self._count += 1
        heappush(self._events, (self.now + seconds, self._count, act, args))

    def run(self, until: float) -> None:
        """Let things happen until nothing is left, `until` is reached, or somebody says that it `ends`."""
        events = self._events
        while events and not self.ends and events[0][0] <= until:
            self.now, _, act, args = heappop(events)
            act(*args)

    def chance(self, *of: int) -> float:
        """A number in [0, 1) that depends on nothing but the seed and what it is asked for.

        So removing one fault from a scenario changes no other chance in it.
        """
        mixed = self._seed
        for part in of:
            mixed = (mixed ^ part) * 0xBF58476D1CE4E5B9 & _MASK
            mixed ^= mixed >> 29
        mixed = mixed * 0x94D049BB133111EB & _MASK
        return (mixed >> 11) / (1 << 53)
