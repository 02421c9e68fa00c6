"""Time, and the only reader of it."""

from __future__ import annotations

import asyncio
import math
import time
from datetime import UTC, datetime
from functools import partial
from typing import Protocol

__all__ = ["Clock", "SystemClock", "clock_of"]


class Clock(Protocol):
    """What the library asks about time, so that a test can answer."""

    def now(self) -> datetime:
        """The moment, as an aware UTC `datetime`: for people, and for what outlives the process.

        It may be set back or forward at any time. What passes in a process is counted in `elapsed` seconds.
        """
        ...

    def elapsed(self) -> float:
        """Seconds since some fixed point, never stepping back and counting on while the machine is suspended."""
        ...

    def sleep(self, seconds: float, recheck: float = ...) -> None:
        """Let `seconds` pass on this clock, or less of them, blocking the thread.

        The caller has other things to watch, and sees after `recheck` real seconds at the latest whether it still must.
        `seconds` is infinite where no time brings what is waited for.
        """
        ...

    async def asleep(self, seconds: float, recheck: float = ...) -> None:
        """The same, blocking the task only."""
        ...


class SystemClock:
    """The machine's own time."""

    # Read several times a step: as C functions they take no frame of Python's.
    now = staticmethod(partial(datetime.now, UTC))
    # `CLOCK_BOOTTIME`: `time.monotonic()` stands still while a Linux machine is suspended, a lease does not. It counts
    # through suspend on macOS and Windows.
    elapsed = staticmethod(
        partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
    )

    def sleep(self, seconds: float, recheck: float = math.inf) -> None:
        """`time.sleep`."""
        time.sleep(min(seconds, recheck))

    async def asleep(self, seconds: float, recheck: float = math.inf) -> None:
        """`asyncio.sleep`."""
        await asyncio.sleep(min(seconds, recheck))


def pace_of(store: object) -> Clock:
    """The clock by which workers and handles wait on a store: its own, but for one that stands still unless a run waits."""
    return getattr(store, "pace", None) or clock_of(store)


def clock_of(store: object) -> Clock:
    """The clock that a store goes by, and with it the runs in it; of one that has none, the machine's."""
    return getattr(store, "clock", None) or SystemClock()
