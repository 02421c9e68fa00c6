"""An event loop of asyncio in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any, cast

from simulation.threads import Host

__all__ = ["Group", "Loop"]


class Group(asyncio.TaskGroup):
    """One that cancels its tasks in the order of their making: asyncio has them in a set, in the order of their addresses."""

    def __init__(self) -> None:
        super().__init__()
        self._tasks: Any = _Ordered()


class _Ordered(dict[object, None]):
    """What a group asks of its set."""

    def add(self, task: object) -> None:
        self[task] = None

    def discard(self, task: object) -> None:
        self.pop(task, None)


class _Handle:
    __slots__ = ("args", "callback", "cancelled_", "context", "moment")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None) -> None:
        self.callback = callback
        self.args = args
        self.context = copy_context() if context is None else context
        self.cancelled_ = False
        self.moment = 0.0

    def cancel(self) -> None:
        self.cancelled_ = True

    def cancelled(self) -> bool:
        return self.cancelled_

    def when(self) -> float:
        return self.moment

    def run(self) -> None:
        if not self.cancelled_:
            self.context.run(self.callback, *self.args)


class Loop:
    """What tasks, futures and timeouts ask of a loop; its process lets things happen."""

    def __init__(self, host: Host, time: Callable[[], float]) -> None:
        self._host = host
        self._time = time
        self._tasks: list[tuple[asyncio.Task[Any], Context]] = []

    def time(self) -> float:
        """The process's own clock."""
        return self._time()

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Any:
        """As asyncio does, in order."""
        handle = _Handle(callback, args, context)
        self._host.after(0.0, handle.run)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Any:
        """As asyncio does."""
        handle = _Handle(callback, args, context)
        handle.moment = self._time() + delay
        self._host.after(max(0.0, delay), handle.run)
        return handle

    def call_at(self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Any:
        """As asyncio does."""
        return self.call_later(when - self._time(), callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        """As asyncio does."""
        return asyncio.Future(loop=cast(Any, self))

    def create_task(
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        name: object = None,  # noqa: ARG002 -- asyncio's
        context: Context | None = None,
    ) -> asyncio.Task[Any]:
        """As asyncio does, and remembered, to be closed when the process dies."""
        context = copy_context() if context is None else context
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=cast(Any, self), name="task", context=context)
        self._tasks.append((task, context))
        return task

    def get_debug(self) -> bool:
        """No."""
        return False

    def is_closed(self) -> bool:
        """Whether its process is dead."""
        return self._host.dead

    def is_running(self) -> bool:
        """Whether its process lives."""
        return not self._host.dead

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Nobody is told of what a dead process has left."""

    def drop(self) -> None:
        """The process is dead: what its tasks hold is let go of, and nothing that they still say is heard."""
        for task, context in self._tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined] # noqa: SLF001
                coroutine: Any = task.get_coro()
                with contextlib.suppress(RuntimeError, ValueError):  # it would rather wait, or is on its way just now
                    context.run(coroutine.close)
        self._tasks.clear()
