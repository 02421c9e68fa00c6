"""The workers of this process, to be woken when something is started in it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Final

__all__ = ["announce", "wake_workers", "withdraw"]

_workers: Final[weakref.WeakKeyDictionary[Any, tuple[object, Callable[[], object]]]] = weakref.WeakKeyDictionary()


def announce(worker: object, identity: object, wake: Callable[[], object]) -> None:
    """From now on, have this worker of the store with this identity woken."""
    _workers[worker] = identity, wake


def withdraw(worker: object) -> None:
    """No more."""
    _workers.pop(worker, None)


def wake_workers(identity: object) -> None:
    """Something is due in the store with this identity."""
    for of, wake in list(_workers.values()):
        if of == identity:
            wake()
