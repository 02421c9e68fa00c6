"""Time, and the only reader of it."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from functools import partial
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """What the library asks about time, so that a test can answer."""

    def now(self) -> datetime:
        """The moment, as an aware UTC `datetime`: for people and events, never for a decision."""
        ...

    def elapsed(self) -> float:
        """Seconds since some fixed point, never stepping back and counting on while the machine is suspended."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let `seconds` pass on this clock, blocking the thread."""
        ...

    async def asleep(self, seconds: float) -> None:
        """Let `seconds` pass on this clock, blocking the task only."""
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

    def sleep(self, seconds: float) -> None:
        """`time.sleep`."""
        time.sleep(seconds)

    async def asleep(self, seconds: float) -> None:
        """`asyncio.sleep`."""
        await asyncio.sleep(seconds)
