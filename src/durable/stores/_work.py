"""Work that is written once, as a generator of calls, for callers that block and callers that await."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

Q = TypeVar("Q")
T = TypeVar("T")


def perform_work(work: Generator[Q, Any, T], ask: Callable[[Q], Any]) -> T:
    """Run the work to its end: `ask` each question that it yields, and send the answer, or throw the error, into it."""
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
    """As `perform_work`, awaiting each answer."""
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
