"""What a forked child makes anew: its parent's other threads are gone, and cannot give back the locks that they held."""

from __future__ import annotations

import os
import weakref
from typing import Final, Protocol


class Renewable(Protocol):
    """Something with locks of its own."""

    def renew(self) -> None:
        """Make new locks and forget the threads, in a forked child."""
        ...


_known: Final[weakref.WeakSet[Renewable]] = weakref.WeakSet()


def renew_in_children(thing: Renewable) -> None:
    """Have this thing renewed in every forked child."""
    _known.add(thing)


def _renew() -> None:
    for thing in list(_known):
        thing.renew()


os.register_at_fork(after_in_child=_renew)
