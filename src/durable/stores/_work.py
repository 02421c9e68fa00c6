"""Work that is told once, as a generator of what it asks for, and done by callers that block or await."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

__all__ = ["await_work", "perform_work"]

Q = TypeVar("Q")
T = TypeVar("T")


def perform_work(work: Generator[Q, Any, T], ask: Callable[[Q], Any]) -> T:
    """What the work comes to, each of its questions asked, and answered or raised, before the next."""
    try:
        asked = next(work)
        while True:
            try:
                answer = ask(asked)
            except BaseException as problem:
                asked = work.throw(problem)
            else:
                asked = work.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        work.close()  # where an interrupt came between two questions: what the work holds is given back now


async def await_work(work: Generator[Q, Any, T], ask: Callable[[Q], Awaitable[Any]]) -> T:
    """The same, each of its questions awaited."""
    try:
        asked = next(work)
        while True:
            try:
                answer = await ask(asked)
            except BaseException as problem:
                asked = work.throw(problem)
            else:
                asked = work.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        work.close()  # where an interrupt came between two questions: what the work holds is given back now
