"""A clock for tests: its time stands still while anybody works, and jumps when everybody waits.

A *watch* is one run's view of it. The clock jumps to the next moment that somebody waits for once every run whose watch is
open is idle: something in it waits, and no body and no store is at work. A run is not idle while its own code computes
between two steps, nor before it has begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import inspect
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

from durable._common.durations import Duration, add_seconds, check_duration, to_seconds, to_utc
from durable.errors import DurableError, InvalidArgument, Unwind

__all__ = ["JumpingClock", "RehearsalError", "Watch"]

_START: Final = datetime(2026, 1, 1, tzinfo=UTC)
_GRACE: Final = 0.001  # real seconds in which a branch that nobody can see may come to its next step
_TURNS: Final = 5  # of an event loop, for the same

Action = Callable[[], object]


class RehearsalError(DurableError):
    """A rehearsal cannot go on: nothing that is due could wake it, or an action of the test's own failed."""


class JumpingClock:
    """Time for a test: it passes only by jumps, to the next moment that a sleep, a back-off or a time-out waits for.

    `start` is the first moment (aware; by default the beginning of 2026). A run that waits for what no time brings, like a
    signal without time-out, is given `patience` real seconds, in which the test may send it; then `RehearsalError`.
    """

    def __init__(self, start: datetime = _START, *, patience: Duration = 10.0) -> None:
        self._set_at = to_utc("start", start), 0.0  # what `now` said last by itself, and when
        self._patience = to_seconds("patience", patience)
        self._elapsed = 0.0
        self._changed = threading.Condition()
        self._open: set[Watch] = set()
        self._waiters: list[_Waiter] = []
        self._actions: list[tuple[float, int, Action]] = []
        self._numbers = itertools.count()
        self._acting = 0
        self._changes = 0
        self._still_since = time.monotonic()

    def __repr__(self) -> str:
        return f"<JumpingClock at {self.now().isoformat()}>"

    def now(self) -> datetime:
        """The moment."""
        moment, elapsed = self._set_at
        return add_seconds(moment, self._elapsed - elapsed)

    def elapsed(self) -> float:
        """Seconds that have passed on this clock since its start."""
        return self._elapsed

    def after(self, seconds: Duration, action: Action) -> None:
        """Call `action()` when so many seconds have passed from now on: a signal, a cancellation, the world's next move.

        It is called by the run that is woken with it, or by `advance`. An async function is awaited, in an async workflow.
        """
        with self._changed:
            heapq.heappush(self._actions, (self._elapsed + _checked(seconds), next(self._numbers), action))
            self.stirred()

    def set(self, moment: datetime) -> None:
        """Set the wall clock to an aware `moment`, back or forward, as NTP and people do. No time passes by that.

        With `after(seconds, lambda: clock.set(...))` it happens while a run waits.
        """
        checked = to_utc("the moment", moment)
        with self._changed:
            self._set_at = checked, self._elapsed
            self.poke()  # a sleep until a moment has to be counted anew

    def advance(self, seconds: Duration) -> None:
        """Let time pass, whoever works: what is due meanwhile is called, and who waits for it is woken."""
        until = self._elapsed + _checked(seconds)
        while (action := self._to(until)) is not None:
            _finish(action())

    def stirred(self, *, progress: bool = True) -> None:
        """Something has changed that those who wait may have waited for."""
        with self._changed:
            self._changes += 1
            if progress:
                self._still_since = time.monotonic()
            self._changed.notify_all()
            for waiter in self._waiters:
                waiter.hear()

    def poke(self) -> None:
        """Let everybody who waits look again at what he waits for."""
        with self._changed:
            for waiter in list(self._waiters):
                self.wake(waiter)
            self.stirred()

    def wake(self, waiter: _Waiter) -> None:
        """It waits no more; from here on its run is at work."""
        with self._changed:
            if not waiter.done:
                waiter.done = True
                self._waiters.remove(waiter)
                waiter.watch.waiting -= 1

    def join(self, watch: Watch) -> None:
        """A run has begun."""
        with self._changed:
            self._open.add(watch)
            self.stirred()

    def part(self, watch: Watch) -> None:
        """A run has ended."""
        with self._changed:
            self._open.discard(watch)
            self.poke()

    @property
    def lock(self) -> threading.Condition:
        """What guards the watches."""
        return self._changed

    def wait(self, waiter: _Waiter) -> None:
        """Until it is woken, or has waited long enough to look around."""
        self._begin(waiter)
        try:
            while not waiter.done:
                self._act()
                with self._changed:
                    if self._may_jump():
                        changes = self._changes
                        if self._crowded():
                            self._changed.wait(_GRACE)
                        self._jump(changes)
                    elif not waiter.done and not self._changed.wait(self._patient(waiter)):
                        return
        finally:
            self.wake(waiter)

    async def await_(self, waiter: _Waiter) -> None:
        """The same, for a task."""
        self._begin(waiter)
        try:
            while not waiter.done:
                await self._act_async()
                with self._changed:
                    changes, may_jump, left = self._changes, self._may_jump(), self._patient(waiter)
                    waiter.heard.clear()
                if may_jump:
                    for _ in range(_TURNS):
                        await asyncio.sleep(0)
                    if self._crowded():
                        await asyncio.sleep(_GRACE)
                    self._jump(changes)
                elif not waiter.done and not await waiter.hears(left):
                    return
        finally:
            self.wake(waiter)

    def _begin(self, waiter: _Waiter) -> None:
        with self._changed:
            waiter.due = self._elapsed + waiter.seconds
            self._waiters.append(waiter)
            waiter.watch.waiting += 1
            if waiter.due <= self._elapsed:
                self.wake(waiter)
            else:
                self.stirred(progress=waiter.seconds < math.inf)

    def _may_jump(self) -> bool:
        return self._quiet() and self._next() < math.inf

    def _jump(self, changes: int) -> None:
        """On to what is due next, unless something has changed since so many changes."""
        with self._changed:
            if changes == self._changes and self._may_jump():
                self._set(self._next())

    def _patient(self, waiter: _Waiter) -> float:
        """Real seconds until it should look around; `RehearsalError` when that has been in vain for too long."""
        now = time.monotonic()
        if self._quiet() and self._next() == math.inf and now - self._still_since > self._patience:
            raise Unwind(
                RehearsalError(
                    f"{waiter.watch.describe()}, and nothing is due on the clock: send what it waits for before the run, "
                    f"with rehearsal.clock.after(seconds, action), or within {self._patience:g} s from another thread or task"
                )
            )
        return max(waiter.until - now, 0.0)

    def _quiet(self) -> bool:
        return not self._acting and all(watch.idle for watch in self._open)

    def _crowded(self) -> bool:
        """Whether somebody may be at work whom nobody can see: a second branch, or a run beside this one."""
        return len(self._open) > 1 or len(self._waiters) > 1 or any(watch.branched for watch in self._open)

    def _next(self) -> float:
        """When something is due."""
        first = self._actions[0][0] if self._actions else math.inf
        return min([first, *(waiter.due for waiter in self._waiters)])

    def _set(self, elapsed: float) -> None:
        self._elapsed = max(self._elapsed, elapsed)
        for waiter in list(self._waiters):
            if waiter.due <= self._elapsed:
                self.wake(waiter)
        self.stirred()

    def _act(self) -> None:
        while (action := self._due()) is not None:
            with self._acted():
                _finish(action())

    async def _act_async(self) -> None:
        while (action := self._due()) is not None:
            with self._acted():
                answer = action()
                if inspect.isawaitable(answer):
                    await answer

    def _due(self) -> Action | None:
        with self._changed:
            if self._actions and self._actions[0][0] <= self._elapsed:
                self._acting += 1  # time stands still meanwhile
                return heapq.heappop(self._actions)[2]
            return None

    def _to(self, until: float) -> Action | None:
        """On to the next action before then, or, without one, to then."""
        with self._changed:
            action = heapq.heappop(self._actions) if self._actions and self._actions[0][0] <= until else None
            self._set(until if action is None else action[0])
            return None if action is None else action[2]

    @contextlib.contextmanager
    def _acted(self) -> Iterator[None]:
        """What an action raises ends the run that is woken with it. (It has been under way since it was taken.)"""
        try:
            yield
        except DurableError as problem:
            raise Unwind(problem) from problem
        except Exception as problem:
            what = f"an action due at {self.now().isoformat()} raised {type(problem).__name__}: {problem}"
            raise Unwind(RehearsalError(what)) from problem
        finally:
            with self._changed:
                self._acting -= 1
                self.stirred()


class Watch:
    """One run's view of a clock: a `Clock`, and what the clock must know of the run.

    `waiting` branches of it wait, `working` bodies and stores are at work; `lent` is how many runs go on inside of its
    bodies, `branched` whether several threads or tasks call its steps. `describe()` says who it is, for an error; `waits`
    is called with the seconds that are to be waited, and with none when they are over.
    """

    def __init__(self, clock: JumpingClock, describe: Callable[[], str], waits: Callable[[float], None]) -> None:
        self._clock = clock
        self.describe = describe
        self._waits = waits
        self.waiting = 0
        self.working = 0
        self.lent = 0
        self.branched = False

    @property
    def idle(self) -> bool:
        """Whether nothing happens in this run before time passes."""
        return self.lent > 0 or (self.waiting > 0 and self.working == 0)

    def now(self) -> datetime:
        """See `Clock`."""
        return self._clock.now()

    def elapsed(self) -> float:
        """See `Clock`."""
        return self._clock.elapsed()

    def sleep(self, seconds: float, look: float = math.inf) -> None:
        """See `Clock`."""
        self._waits(seconds)
        self._clock.wait(_Waiter(self, seconds, look, None))
        self._waits(0.0)

    async def asleep(self, seconds: float, look: float = math.inf) -> None:
        """See `Clock`."""
        self._waits(seconds)
        await self._clock.await_(_Waiter(self, seconds, look, asyncio.get_running_loop()))
        self._waits(0.0)

    @contextlib.contextmanager
    def at_work(self, *, progress: bool = True) -> Iterator[None]:
        """Time stands still meanwhile. A mere look (`progress=False`) is no sign that anything goes on."""
        with self._clock.lock:
            self.working += 1
            self._clock.stirred(progress=progress)
        try:
            yield
        finally:
            with self._clock.lock:
                self.working -= 1
                self._clock.stirred(progress=progress)

    def lend(self, *, back: bool = False) -> None:
        """A run goes on inside of one of this one's bodies, or has ended there."""
        with self._clock.lock:
            self.lent += -1 if back else 1
            self._clock.stirred()


class _Waiter:
    """One branch that waits: until the clock says `due`, somebody wakes it, or the real time `until` which it looks around."""

    __slots__ = ("_loop", "done", "due", "heard", "seconds", "until", "watch")

    def __init__(self, watch: Watch, seconds: float, look: float, loop: asyncio.AbstractEventLoop | None) -> None:
        self.watch = watch
        self.seconds = max(seconds, 0.0)
        self.due = math.inf
        self.until = time.monotonic() + look
        self.done = False
        self.heard = asyncio.Event()
        self._loop = loop

    async def hears(self, seconds: float) -> bool:
        """Whether anything changes within so many real seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self.heard.wait()
        return False

    def hear(self) -> None:
        """Something has changed."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits in it any more
                self._loop.call_soon_threadsafe(self.heard.set)


def _checked(seconds: Any) -> float:
    return check_duration("the time that passes", seconds, zero=True)


def _finish(answer: object) -> None:
    """What an action has answered to somebody who cannot await."""
    if inspect.isawaitable(answer):
        if inspect.iscoroutine(answer):
            answer.close()
        raise InvalidArgument("an action that is an async function needs an async workflow that waits for it")
