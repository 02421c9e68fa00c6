"""Time that stands still while a run works, and jumps when all of them wait."""

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
from datetime import datetime
from typing import Final, Protocol

from durable.errors import DurableError, InvalidArgument, Unwind

_GRACE: Final = 0.001  # real seconds in which an unseen branch may come to its next step
_TURNS: Final = 5  # of an event loop, for the same

Action = Callable[[], object]


class RehearsalError(DurableError):
    """A rehearsal cannot go on: nothing that is due could wake it, or an action of the test's own failed."""

    __module__ = "durable.testing"  # as a traceback names it


class Run(Protocol):
    """What time depends on in a run."""

    #: How many of its branches wait.
    waiting: int
    #: Whether several threads or tasks call its steps.
    branched: bool

    @property
    def idle(self) -> bool:
        """Whether nothing happens in this run before time passes."""
        ...

    def describe(self) -> str:
        """The run and where it waits, for an error."""
        ...


class Waiter:
    """One branch that waits: until the moment `due`, until it is woken, or for a look around at the real time `until`."""

    __slots__ = ("_heard", "_loop", "done", "due", "run", "seconds", "until")

    def __init__(self, run: Run, seconds: float, recheck: float, loop: asyncio.AbstractEventLoop | None) -> None:
        self.run = run
        self.seconds = max(seconds, 0.0)
        self.due = math.inf
        self.until = time.monotonic() + recheck
        self.done = False
        self._heard = asyncio.Event()
        self._loop = loop

    def hear(self) -> None:
        """Something has changed."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nothing waits in it any more
                self._loop.call_soon_threadsafe(self._heard.set)

    def forget(self) -> None:
        """What has changed so far is known."""
        self._heard.clear()

    async def hears(self, seconds: float) -> bool:
        """Whether anything changes within so many real seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self._heard.wait()
        return False


class Timeline:
    """The seconds of a clock: they jump to the next moment that is waited for, once every open run is idle.

    `now` is the clock's, for messages. `patience` is how many real seconds pass before a run that waits for something
    without a moment is told that it waits in vain.
    """

    def __init__(self, now: Callable[[], datetime], patience: float) -> None:
        self.elapsed = 0.0
        self.changed = threading.Condition()
        self._now = now
        self._patience = patience
        self._open: set[Run] = set()
        self._waiters: list[Waiter] = []
        self._actions: list[tuple[float, int, Action]] = []
        self._numbers = itertools.count()
        self._acting = 0
        self._rising = 0  # branches that were woken, and have not come to know it
        self._changes = 0
        self._still_since = time.monotonic()

    def open(self, run: Run) -> None:
        """A run has begun."""
        with self.changed:
            self._open.add(run)
            self.stir()

    def close(self, run: Run) -> None:
        """A run has ended."""
        with self.changed:
            self._open.discard(run)
            self.poke()

    def schedule(self, seconds: float, action: Action) -> None:
        """Call `action()` when so many seconds have passed from now on."""
        with self.changed:
            heapq.heappush(self._actions, (self.elapsed + seconds, next(self._numbers), action))
            self.stir()

    def advance(self, seconds: float) -> None:
        """Let time pass, whether or not runs are at work."""
        until = self.elapsed + seconds
        while (action := self._advance_to(until)) is not None:
            _finish(action())

    def skip(self, until: float) -> bool:
        """Jump to what is due next, at `until` at the latest, once every open run is idle; whether there is such a moment."""
        with self.changed:
            moment = min(self._next(), until)
            if moment == math.inf or not self._is_idle():
                return False
        self.advance(max(0.0, moment - self.elapsed))
        return True

    def stir(self, *, progress: bool = True) -> None:
        """Something has changed: waiting branches look whether it concerns them."""
        with self.changed:
            self._changes += 1
            if progress:
                self._still_since = time.monotonic()
            self.changed.notify_all()
            for waiter in self._waiters:
                waiter.hear()

    def poke(self) -> None:
        """Let every waiting branch look again at what it waits for."""
        with self.changed:
            for waiter in list(self._waiters):
                self._wake(waiter)
            self.stir()

    def wait(self, waiter: Waiter) -> None:
        """Until it is woken, or has waited long enough to look around."""
        self._begin(waiter)
        try:
            while not waiter.done:
                self._act()
                with self.changed:
                    if self._may_jump():
                        changes = self._changes
                        if self._may_be_unseen():
                            self.changed.wait(_GRACE)
                        self._jump(changes)
                    elif not waiter.done and not self.changed.wait(self._seconds_to_look(waiter)):
                        return
        finally:
            self._rise(waiter)

    async def wait_async(self, waiter: Waiter) -> None:
        """The same, for a task."""
        self._begin(waiter)
        try:
            while not waiter.done:
                await self._act_async()
                with self.changed:
                    changes, may_jump, left = self._changes, self._may_jump(), self._seconds_to_look(waiter)
                    waiter.forget()
                if may_jump:
                    for _ in range(_TURNS):
                        await asyncio.sleep(0)
                    if self._may_be_unseen():
                        await asyncio.sleep(_GRACE)
                    self._jump(changes)
                elif not waiter.done and not await waiter.hears(left):
                    return
        finally:
            self._rise(waiter)

    def _begin(self, waiter: Waiter) -> None:
        with self.changed:
            waiter.due = self.elapsed + waiter.seconds
            self._waiters.append(waiter)
            waiter.run.waiting += 1
            if waiter.due <= self.elapsed:
                self._wake(waiter)
            else:
                self.stir(progress=waiter.seconds < math.inf)

    def _wake(self, waiter: Waiter) -> None:
        """It waits no more; from here on its run is at work."""
        with self.changed:
            if not waiter.done:
                waiter.done = True
                self._waiters.remove(waiter)
                waiter.run.waiting -= 1
                self._rising += 1

    def _rise(self, waiter: Waiter) -> None:
        """It knows."""
        with self.changed:
            self._wake(waiter)
            self._rising -= 1

    def _may_jump(self) -> bool:
        return self._is_idle() and self._next() < math.inf

    def _jump(self, changes: int) -> None:
        """On to what is due next, unless something has changed since so many changes."""
        with self.changed:
            if changes == self._changes and self._may_jump():
                self._set(self._next())

    def _seconds_to_look(self, waiter: Waiter) -> float:
        """Real seconds until it should look around; `RehearsalError` when that has been in vain for too long."""
        now = time.monotonic()
        if self._is_idle() and self._next() == math.inf and now - self._still_since > self._patience:
            raise Unwind(
                RehearsalError(
                    f"{waiter.run.describe()}, and nothing is due on the clock: send what it waits for before the run, "
                    f"with rehearsal.clock.after(seconds, action), or within {self._patience:g} s from another thread or task"
                )
            )
        return max(waiter.until - now, 0.0)

    def _is_idle(self) -> bool:
        return not self._acting and not self._rising and all(run.idle for run in self._open)

    def _may_be_unseen(self) -> bool:
        """Whether a branch may be at work unseen: a second one of a run, or one of a run beside it."""
        return len(self._open) > 1 or len(self._waiters) > 1 or any(run.branched for run in self._open)

    def _next(self) -> float:
        """When something is due."""
        first = self._actions[0][0] if self._actions else math.inf
        return min([first, *(waiter.due for waiter in self._waiters)])

    def _set(self, elapsed: float) -> None:
        self.elapsed = max(self.elapsed, elapsed)
        for waiter in list(self._waiters):
            if waiter.due <= self.elapsed:
                self._wake(waiter)
        self.stir()

    def _act(self) -> None:
        while (action := self._pop_due()) is not None:
            with self._acting_now():
                _finish(action())

    async def _act_async(self) -> None:
        while (action := self._pop_due()) is not None:
            with self._acting_now():
                answer = action()
                if inspect.isawaitable(answer):
                    await answer

    def _pop_due(self) -> Action | None:
        with self.changed:
            if self._actions and self._actions[0][0] <= self.elapsed:
                self._acting += 1  # time stands still meanwhile
                return heapq.heappop(self._actions)[2]
            return None

    def _advance_to(self, until: float) -> Action | None:
        """On to the next action before then, or, without one, to then."""
        with self.changed:
            action = heapq.heappop(self._actions) if self._actions and self._actions[0][0] <= until else None
            self._set(until if action is None else action[0])
            return None if action is None else action[2]

    @contextlib.contextmanager
    def _acting_now(self) -> Iterator[None]:
        """An action is called, and counted since it was popped; what it raises ends the run that is woken with it."""
        try:
            yield
        except DurableError as problem:
            raise Unwind(problem) from problem
        except Exception as problem:
            what = f"an action due at {self._now().isoformat()} raised {type(problem).__name__}: {problem}"
            raise Unwind(RehearsalError(what)) from problem
        finally:
            with self.changed:
                self._acting -= 1
                self.stir()


def _finish(answer: object) -> None:
    """Refuse what an action has returned to be awaited, where nothing can await it."""
    if inspect.isawaitable(answer):
        if inspect.iscoroutine(answer):
            answer.close()
        raise InvalidArgument("an action that is an async function needs an async workflow that waits for it")
