"""The runs that a worker holds: each is executed on a thread, or as a task, and says when it has ended."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import math
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, TypeAlias

from durable._common.reports import report
from durable._common.threads import Daemons, start_daemon
from durable._engine.decisions import Granted
from durable._engine.leases import Lease
from durable._engine.workers import LEAVE_TIMEOUT
from durable._runtime.async_runs import AsyncRun
from durable._runtime.context import current_frame
from durable._runtime.plan import Plan
from durable._runtime.runs import BlockingRun
from durable.records import Status
from durable.stores import requests

_log = logging.getLogger("durable")

_LINGER: Final = 5.0  # seconds that a thread waits for its next run


class HeldRun:
    """A run under its lease."""

    def __init__(self, granted: Granted, plan: Plan) -> None:
        self.lease: Final = granted.lease
        self.queue: Final = granted.queue
        self.plan: Final = plan
        self._granted: Granted | None = granted
        self.is_async: Final = plan.is_async
        if (hold := getattr(plan.store, "hold", None)) is not None:  # see durable.testing.Rehearsal
            self._run: AsyncRun | BlockingRun = hold(plan)
        else:
            self._run = AsyncRun(plan) if self.is_async else BlockingRun(plan)
        self._future: Future[Any] | asyncio.Task[Any] | None = None
        #: Of the event loop in which it is a task.
        self.loop: asyncio.AbstractEventLoop | None = None

    @property
    def has_begun(self) -> bool:
        """Whether it was executed at all."""
        return self._granted is None

    @property
    def has_failed(self) -> bool:
        """Whether it is over, and has failed."""
        return self._run.finished is not None and self._run.finished.status == Status.FAILED

    @property
    def due_in(self) -> float:
        """Seconds from its end until it is due again; infinite where it is not, or where that is not known here."""
        finish = self._run.finished
        if finish is None:
            return self._run.suspended_for
        return finish.due_in if finish.status == Status.QUEUED else math.inf

    def watch(self, on_ending: Callable[[], object]) -> None:
        """Call this, on any thread, when nothing is left to do but to record how it ended. It must not refer to this object."""
        self._run.on_ending = on_ending

    def start(self, daemons: Daemons) -> Future[Any]:
        """Begin to execute it on a thread; the future of what it comes to. `StoreUnavailable` where none can be started."""
        # A context of its own: what a run sets there is not the next one's, which the same thread executes.
        self._future = future = daemons.submit(partial(contextvars.Context().run, self._perform))
        return future

    def start_on(self, loop: asyncio.AbstractEventLoop) -> asyncio.Task[Any]:
        """Begin to execute it as a task of this loop, in its thread; the task of what it comes to."""
        # Not by `context=`, which a task factory of two parameters cannot take.
        self._future = task = contextvars.Context().run(loop.create_task, self._await())
        return task

    def is_alive(self) -> bool:
        """Whether the lease is still needed; asked by the heartbeat, perhaps when it is just being begun."""
        is_closed = self.loop is not None and self.loop.is_closed()
        return self._run.is_alive(not is_closed and (self._future is None or not self._future.done()))

    def hand_over(self) -> None:
        """Let another worker go on with it at its next step."""
        self._run.hand_over()

    def give_back(self) -> None:
        """Give its lease back at once; whatever it still does cannot be recorded."""
        self.plan.store.perform(requests.Release(self.lease, self._run.former_status()))

    def forget(self) -> None:
        """Let go of what it came to, which refers to it: else only the garbage collector would free it, and all that it had."""
        self._future = None

    def cancel(self) -> None:
        """Cancel its task, if it has one. Called in its thread."""
        if self.loop is not None and self._future is not None:
            self._future.cancel()

    def _take_grant(self) -> Granted:
        granted, self._granted = self._granted, None  # the journal need not be held twice
        assert granted is not None, "executed twice"  # noqa: S101 -- our own mistake, not an input
        return granted

    def _perform(self) -> Any:
        assert isinstance(self._run, BlockingRun)  # noqa: S101 -- as the plan says
        before = current_frame.get()
        try:
            return self._run.outcome(self._take_grant())
        finally:
            try:
                self._run.give_all_back()
            finally:
                current_frame.set(before)

    async def _await(self) -> Any:
        assert isinstance(self._run, AsyncRun)  # noqa: S101 -- as the plan says
        return await self._run.outcome(self._take_grant())


_OnEnd: TypeAlias = Callable[[HeldRun, BaseException | None], object]


class HeldRuns:
    """All of a worker. The thread of the worker adds and removes; the heartbeat's asks."""

    def __init__(self, limit: int) -> None:
        self._daemons = Daemons("durable-run", 2 * limit, _LINGER)  # what is ending has a thread as well
        self._runs: dict[Lease, HeldRun] = {}  # by the lease itself, whose token changes when a run is continued
        self._loop: asyncio.AbstractEventLoop | None = None
        self._own_loop: asyncio.AbstractEventLoop | None = None
        self._beginning: deque[tuple[HeldRun, _OnEnd]] = deque()
        self._owner: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._runs)

    def enter(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """The calling thread is the worker's; async runs are tasks of this loop, by default of one of their own."""
        self._loop, self._owner = loop, threading.current_thread()

    def is_alive(self, lease: Lease) -> bool:
        """Whether this lease is still needed: of one that is not begun yet, whether the worker is there to begin it."""
        run = self._runs.get(lease)
        return (self._owner is not None and self._owner.is_alive()) if run is None else run.is_alive()

    def start(self, run: HeldRun, on_end: _OnEnd) -> None:
        """Execute it. `on_end` is called, on any thread, with it and with what it raised."""
        self._runs[run.lease] = run  # first: it may be handed over, or have ended, before this returns
        try:
            if run.is_async:
                self._start_on_loop(run, on_end)
            else:
                run.start(self._daemons).add_done_callback(partial(_hand_on, run, on_end))
        except BaseException:
            self.remove(run)
            raise

    def _start_on_loop(self, run: HeldRun, on_end: _OnEnd) -> None:
        """The runs of one poll wake the loop once."""
        loop = run.loop = self._event_loop()
        self._beginning.append((run, on_end))
        if len(self._beginning) == 1 or loop.is_closed():
            try:
                loop.call_soon_threadsafe(self._begin_all, loop)
            except BaseException as problem:  # it is closed: nothing will begin those that wait for it
                while self._beginning:
                    other, on_its_end = self._beginning.popleft()
                    if other is not run:
                        on_its_end(other, problem)
                raise

    def _begin_all(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            while self._beginning:
                run, on_end = self._beginning[0]
                try:
                    run.start_on(loop).add_done_callback(partial(_hand_on, run, on_end))
                except Exception as problem:
                    on_end(run, problem)
                self._beginning.popleft()
        except BaseException:  # an interrupt, which the loop reports: the others are begun in its next turn
            loop.call_soon(self._begin_all, loop)
            raise

    def submit(self, work: Callable[[], object]) -> Future[object]:
        """Do this on one of their threads."""
        return self._daemons.submit(work)

    def remove(self, run: HeldRun) -> None:
        """It has ended."""
        self._runs.pop(run.lease, None)

    def hand_over(self) -> None:
        """Let other workers go on with them, each at its next step."""
        for run in list(self._runs.values()):
            run.hand_over()

    def give_back(self) -> None:
        """Give back what is still held, and cancel what can be cancelled."""
        for run in list(self._runs.values()):
            with contextlib.suppress(Exception):  # it ends by itself; the others are given back all the same
                run.give_back()
            if run.loop is not None:
                with contextlib.suppress(RuntimeError):  # it is closed
                    run.loop.call_soon_threadsafe(run.cancel)

    def close(self) -> None:
        """End the threads, and the event loop, if it is our own."""
        self._daemons.close()
        loop, self._own_loop = self._own_loop, None
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # a run has stopped it just now
                # Tasks that were cancelled may clean up.
                ended = asyncio.run_coroutine_threadsafe(_await_others(), loop)
                with contextlib.suppress(TimeoutError):
                    ended.result(LEAVE_TIMEOUT)
                loop.call_soon_threadsafe(loop.stop)

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is not None:
            return self._loop
        if self._own_loop is None:
            self._own_loop = loop = asyncio.new_event_loop()
            try:
                start_daemon("durable-worker-loop", partial(self._turn, loop), _report, loop.close)
            except BaseException:
                self._own_loop = None
                loop.close()
                raise
        return self._own_loop

    def _turn(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Run until the worker is closed: what else ends it, `sys.exit()` or `loop.stop()` in a run, is not the others'."""
        with contextlib.suppress(SystemExit, KeyboardInterrupt):
            loop.run_forever()
        return self._own_loop is loop


async def _await_others() -> None:
    if others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)


def _report(problem: Exception) -> None:
    report(_log, logging.ERROR, "the event loop of a worker failed, and goes on", problem=problem)


def _hand_on(run: HeldRun, on_end: _OnEnd, future: Future[Any] | asyncio.Task[Any]) -> None:
    on_end(run, asyncio.CancelledError() if future.cancelled() else future.exception())
