"""What a store holds in the process that asks: a forked child has its own, and touches nothing of its parent's."""

from __future__ import annotations

import os
from collections.abc import Callable

from durable.stores._postgres.resources import Resources


class Held:
    """Made at once, and again by the first call in a forked child."""

    def __init__(self, make: Callable[[], Resources]) -> None:
        self.make = make
        self.made = make()  # this process's, or its parent's as long as nothing was asked here
        self.is_closed = False

    @property
    def resources(self) -> Resources:
        """This process's own."""
        resources = self.made
        if resources.pid != os.getpid():
            self.made = resources = resources.heir(self.make)
        return resources

    @property
    def is_left_open(self) -> bool:
        """Whether it was used here, and not closed. Unused it has nothing to lose; the parent's is the parent's to close."""
        return not self.is_closed and self.made.used and self.made.pid == os.getpid()

    def close(self) -> None:
        """Commit what waits, then let go of everything. Quiet when closed already."""
        self.is_closed = True
        self.resources.close()
