"""Room: places for so many at once."""

from __future__ import annotations

import threading

from durable._common.locks import locked


class Room:
    """Places for so many at once. Each has its own, so that giving one back twice is as good as once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._holders: set[object] = set()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)

    @property
    def left(self) -> int:
        """How many places are free."""
        return self._most - len(self._holders)

    @locked
    def enter(self, holder: object, seconds: float) -> bool:
        """Take a place; False when none came free within `seconds`."""
        if not self._changed.wait_for(lambda: self.left > 0, seconds):
            return False
        self._holders.add(holder)
        return True

    @locked
    def leave(self, holder: object) -> None:
        """Give its place back."""
        self._holders.discard(holder)
        self._changed.notify()
