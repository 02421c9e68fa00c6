"""Code of a workflow, and of its steps' bodies, can tell which run, step and attempt it is part of."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import tenacity

import durable
from durable.stores import memory

RETRY: Any = tenacity.Retrying(stop=tenacity.stop_after_attempt(3))


@pytest.fixture
def store() -> Iterator[Any]:
    with memory() as store:
        yield store


def where() -> durable.Current:
    found = durable.current()
    assert found is not None
    return found


def third_time(seen: list[int]) -> int:
    seen.append(where().attempt)
    if len(seen) < 3:
        raise OSError
    return seen[-1]


@durable.workflow("delivery", version=3)
def blocking(step: durable.Step, fails: list[bool]) -> Any:
    """Says where it was."""
    began, body = where(), step("here", lambda: told(where()))
    attempts: list[int] = []
    step("thrice", third_time, attempts, retry=RETRY, key="k")
    thread = step("in time", lambda: told(where()), timeout=5)
    assert (step.run_id, step.attempt) == (began.id, began.attempt)
    if fails.pop():
        raise ValueError
    return [told(began), body, attempts, thread, told(where())]


@durable.workflow("delivery", version=3)
async def awaiting(step: durable.AsyncStep, fails: list[bool]) -> Any:
    """The same."""

    async def here() -> Any:
        await asyncio.sleep(0)
        return told(await asyncio.create_task(later()))

    async def later() -> durable.Current:
        return where()

    began, body = where(), await step("here", here)
    attempts: list[int] = []
    await step("thrice", third_time, attempts, retry=RETRY, key="k")
    thread = await step("in time", lambda: told(where()), timeout=5)
    assert (step.run_id, step.attempt) == (began.id, began.attempt)
    if fails.pop():
        raise ValueError
    return [told(began), body, attempts, thread, told(where())]


def told(current: durable.Current) -> list[Any]:
    """It, as a value."""
    assert (current.id, current.workflow, current.version) == ("x", "delivery", 3)
    return [current.step, current.attempt, current.epoch, current.is_replaying]


@pytest.mark.parametrize("workflow", [blocking, awaiting])
def test_a_run_says_where_its_code_is(store: Any, workflow: Any) -> None:
    def run(fails: list[bool]) -> Any:
        outcome = durable.run(fails, workflow, id="x", store=store)
        return asyncio.run(outcome) if asyncio.iscoroutine(outcome) else outcome

    first = run([False])
    body = [["here", 1, 1, False], ["in time", 1, 1, False]]
    assert first == [[None, 1, 1, False], body[0], [1, 2, 3], body[1], [None, 1, 1, False]]
    store.delete("x")
    with pytest.raises(ValueError):
        run([True])
    # The second execution replays: the bodies' values are the recorded ones.
    assert run([False]) == [[None, 2, 2, True], body[0], [], body[1], [None, 2, 2, False]]


def test_an_inner_run_is_told_from_the_outer_one(store: Any) -> None:
    def inner(step: durable.Step, _: None) -> list[Any]:
        current = where()
        return [current.id, current.step]

    def body() -> list[Any]:
        found: list[Any] = durable.run(None, inner, id="inner", store=store)
        current = where()
        return [*found, current.id, current.step]

    def outer(step: durable.Step, _: None) -> Any:
        return step("call", body)

    assert durable.run(None, outer, id="outer", store=store) == ["inner", None, "outer", "call"]


def test_items_on_threads_are_told_apart(store: Any) -> None:
    def workflow(step: durable.Step, _: None) -> Any:
        return step.map("item", lambda _: where().step, range(3))

    assert durable.run(None, workflow, id="x", store=store) == ["item[0]", "item[1]", "item[2]"]


def test_outside_of_a_run_there_is_none(store: Any) -> None:
    """A logging filter asks for every line, wherever it is logged."""
    assert durable.current() is None

    def workflow(step: durable.Step, _: None) -> list[str | None]:
        found: list[durable.Current | None] = []

        def look() -> None:
            found.append(durable.current())

        for target in (look, partial(contextvars.copy_context().run, look)):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
        return [None if current is None else current.id for current in found]

    assert durable.run(None, workflow, id="x", store=store) == [None, "x"]
    assert durable.current() is None
    with pytest.raises(AttributeError):
        durable.Current("x", "w", 1, None, 1, 1, False).id = "y"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
