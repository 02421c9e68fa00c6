"""A watch: one run's view of a jumping clock."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterator

from durable.testing._rehearsal.clock import JumpingClock
from durable.testing._rehearsal.timeline import Waiter


class Watch:
    """A `Clock`, and what time must know of the run.

    `describe()` names the run, for an error; `on_wait` is called with the seconds that a branch is about to wait, and with
    zero when these are over.
    """

    def __init__(self, clock: JumpingClock, describe: Callable[[], str], on_wait: Callable[[float], None]) -> None:
        self.now = clock.now
        self.elapsed = clock.elapsed
        self.describe = describe
        self._timeline = clock.timeline
        self._on_wait = on_wait
        #: How many branches of the run wait.
        self.waiting = 0
        #: How many bodies and stores are at work for it.
        self.working = 0
        #: How many runs go on inside of its bodies.
        self.lent = 0
        #: Whether several threads or tasks call its steps.
        self.branched = False

    @property
    def idle(self) -> bool:
        """Whether nothing happens in this run before time passes."""
        return self.lent > 0 or (self.waiting > 0 and self.working == 0)

    def sleep(self, seconds: float, recheck: float = math.inf) -> None:
        self._on_wait(seconds)
        self._timeline.wait(Waiter(self, seconds, recheck, None))
        self._on_wait(0.0)

    async def asleep(self, seconds: float, recheck: float = math.inf) -> None:
        self._on_wait(seconds)
        await self._timeline.wait_async(Waiter(self, seconds, recheck, asyncio.get_running_loop()))
        self._on_wait(0.0)

    def begin(self) -> None:
        """The run has begun: time waits for it."""
        self._timeline.open(self)

    def end(self) -> None:
        """The run has ended."""
        self._timeline.close(self)

    @contextlib.contextmanager
    def at_work(self, *, progress: bool = True) -> Iterator[None]:
        """Time stands still meanwhile. A mere look (`progress=False`) is no sign that anything goes on."""
        with self._timeline.changed:
            self.working += 1
            self._timeline.stir(progress=progress)
        try:
            yield
        finally:
            with self._timeline.changed:
                self.working -= 1
                self._timeline.stir(progress=progress)

    def lend(self, *, back: bool = False) -> None:
        """A run goes on inside of one of this one's bodies, or has ended there."""
        with self._timeline.changed:
            self.lent += -1 if back else 1
            self._timeline.stir()
