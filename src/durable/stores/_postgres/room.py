"""A semaphore that knows its holders."""

from __future__ import annotations

import threading

from durable._common.locks import locked


class Room:
    """A semaphore of `limit` places that knows its holders: leaving twice frees one place."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._holders: set[object] = set()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)

    @property
    def left(self) -> int:
        """The number of free places."""
        return self._limit - len(self._holders)

    @locked
    def enter(self, holder: object, seconds: float) -> bool:
        """Take a place; False when none came free within `seconds`."""
        if not self._changed.wait_for(lambda: self.left > 0, seconds):
            return False
        self._holders.add(holder)
        return True

    @locked
    def leave(self, holder: object) -> None:
        """Give the holder's place back, if it has one."""
        self._holders.discard(holder)
        self._changed.notify()
