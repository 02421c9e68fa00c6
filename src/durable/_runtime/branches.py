"""Whether a branch that waits is all that a workflow has at work: its other threads and tasks have ended, or wait for it."""

from __future__ import annotations

import asyncio
import gc
from asyncio import Task
from collections.abc import Callable, Container, Iterable
from contextvars import Context
from threading import Thread
from typing import Any, Final, cast

_LEAVING_GROUP: Final = asyncio.TaskGroup.__aexit__.__code__


def have_ended(branches: Iterable[object]) -> bool:
    """Whether none of these threads and tasks is at work any more."""
    return not any(branch.is_alive() if isinstance(branch, Thread) else not _is_done(branch) for branch in branches)


def is_alone(main: Task[Any], is_ours: Callable[[Context], bool], resting: Container[Task[Any]] = ()) -> bool:
    """Whether no task of a workflow is at work beside the current one.

    `main` is the one that runs the workflow function; the others have a copy of its context, by which `is_ours` tells them.
    A task is not at work that waits in a step (`resting`), or for tasks that are not, and for nothing else, such as a timer of
    its own. In a thread of its own nothing is known of that.
    """
    try:
        current = asyncio.current_task()
    except RuntimeError:  # no event loop is at work in this thread
        return False
    return all(
        _is_idle(task, current, resting)
        for task in asyncio.all_tasks()
        if task is main or (task is not current and is_ours(_context_of(task)))
    )


def _is_idle(task: Any, current: Task[Any] | None, resting: Container[Task[Any]]) -> bool:
    """Whether a task, or what else is awaited, is the current one, has ended, rests, or waits for what does."""
    if task is current or task in resting or task.done():
        return True
    children = getattr(task, "_children", None)
    if children is not None:  # asyncio.gather, and with it step.map
        return all(_is_idle(child, current, resting) for child in children)
    if not isinstance(task, Task):
        return False
    if getattr(_innermost(task.get_coro()), "cr_code", None) is _LEAVING_GROUP:
        return True  # its members are tasks of the workflow, too
    awaited = getattr(task, "_fut_waiter", None)  # pyright: ignore[reportUnknownArgumentType] # a task of anything
    return awaited is not None and _is_idle(awaited, current, resting)


def _innermost(coroutine: Any) -> Any:
    """The coroutine in which this one waits for something that is none."""
    while (inner := getattr(coroutine, "cr_await", None)) is not None and hasattr(inner, "cr_await"):
        coroutine = inner
    return coroutine


def _context_of(task: Task[Any]) -> Context:
    if (get_context := getattr(task, "get_context", None)) is not None:  # since Python 3.12
        return cast(Context, get_context())
    return next((held for held in gc.get_referents(task) if isinstance(held, Context)), Context())


def _is_done(branch: object) -> bool:
    done: Callable[[], bool] | None = getattr(branch, "done", None)
    return done is None or done()
