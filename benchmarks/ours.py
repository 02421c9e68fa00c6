"""The workflows that are measured, on `durable`."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import durable
from durable.stores import memory, postgres
from durable.stores.protocol import RunStore
from instant import Instant
from lanes import Turns
from limits import VALUE, new_id

STEPS_EACH: Final = 10  # of a workflow, where there are many


class Stop(BaseException):
    """Ends an execution without an outcome, as Ctrl-C does."""


def body() -> dict[str, object]:
    """What every step does."""
    return VALUE


async def async_body() -> dict[str, object]:
    """The same, async."""
    return VALUE


# -- one workflow ---------------------------------------------------------------------------------------------------


def one_workflow(turns: Turns, url: str | None, turns_each: int, begin_with: int = 0, text: str = "") -> None:
    """A blocking workflow, one step after the other; a new one every so many turns.

    `url`: None for the memory store. `begin_with`: so many steps come before its first turn. `text`: what each step returns
    instead of the hundred bytes.
    """

    def return_it() -> Any:
        return text or VALUE

    def workflow(step: durable.Step, _: Any) -> None:
        number = 0
        for number in range(begin_with):
            step("step", return_it, key=f"step-{number}")
        for size in turns.few(turns_each):
            for _ in range(size):
                number += 1
                step("step", return_it, key=f"step-{number}")

    with _store(url) as store:
        while not turns.over:
            durable.run({}, workflow, id=new_id(), store=store)


def one_async_workflow(turns: Turns, url: str | None, turns_each: int) -> None:
    """The same, async. (Nothing else is on its loop, so that it may be blocked between the turns.)"""

    async def workflow(step: durable.AsyncStep, _: Any) -> None:
        number = 0
        for size in turns.few(turns_each):
            for _ in range(size):
                number += 1
                await step("step", async_body, key=f"step-{number}")

    async def main(store: Any) -> None:
        while not turns.over:
            await durable.run({}, workflow, id=new_id(), store=store)

    with _store(url) as store:
        asyncio.run(main(store))


def short_workflows(turns: Turns, url: str, steps: int) -> None:
    """Blocking workflows of so few steps, one after the other; a turn's size is in workflows."""

    def workflow(step: durable.Step, _: Any) -> None:
        for number in range(steps):
            step("step", body, key=f"step-{number}")

    with postgres(url) as store:
        for size in turns:
            for _ in range(size):
                durable.run({}, workflow, id=new_id(), store=store)


def instant_async_workflow(turns: Turns, turns_each: int) -> None:
    """An async workflow on a store in memory that answers within the same turn of the loop."""

    async def workflow(step: durable.AsyncStep, _: Any) -> None:
        number = 0
        for size in turns.few(turns_each):
            for _ in range(size):
                number += 1
                await step("step", async_body, key=f"step-{number}")

    async def main(store: Any) -> None:
        while not turns.over:
            await durable.run({}, workflow, id=new_id(), store=store)

    with memory() as kept:
        asyncio.run(main(Instant(kept)))


# -- many workflows at once -----------------------------------------------------------------------------------------


def many_async_workflows(turns: Turns, url: str, at_once: int) -> None:
    """Workflows of ten steps on one event loop, so many of them at once; a turn's size is in steps."""

    async def workflow(step: durable.AsyncStep, _: Any) -> None:
        for number in range(STEPS_EACH):
            await step("step", async_body, key=f"step-{number}")

    async def some(store: RunStore, count: int) -> None:
        todo = iter(range(count))

        async def work() -> None:
            for _ in todo:
                await durable.run({}, workflow, id=new_id(), store=store)

        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(work())

    with postgres(url) as store, asyncio.Runner() as runner:
        runner.run(some(store, at_once))
        for size in turns:
            runner.run(some(store, size // STEPS_EACH))


def many_blocking_workflows(turns: Turns, url: str, threads: int) -> None:
    """The same, shared by so many threads."""

    def workflow(step: durable.Step, _: Any) -> None:
        for number in range(STEPS_EACH):
            step("step", body, key=f"step-{number}")

    with postgres(url) as store, ThreadPoolExecutor(threads) as pool:
        taking = threading.Lock()

        def work(todo: Any) -> None:
            while True:
                with taking:
                    if next(todo, None) is None:
                        return
                durable.run({}, workflow, id=new_id(), store=store)

        def some(count: int) -> None:
            todo = iter(range(count))
            for future in [pool.submit(work, todo) for _ in range(threads)]:
                future.result()

        some(threads)
        for size in turns:
            some(size // STEPS_EACH)


def mapped_items(turns: Turns, url: str, at_once: int) -> None:
    """A workflow that maps over items, so many of them at once; a turn's size is in items, each turn is a run."""

    async def item(_: int) -> dict[str, object]:
        return VALUE

    async def workflow(step: durable.AsyncStep, _: Any, items: int) -> None:
        await step.map("item", item, range(items), max_concurrency=at_once)

    with postgres(url) as store, asyncio.Runner() as runner:
        for size in turns:
            runner.run(durable.run({}, workflow, id=new_id(), input=size, store=store))


# -- resuming -------------------------------------------------------------------------------------------------------


def resume(turns: Turns, url: str | None, steps: int) -> None:
    """A run that stopped after so many steps is taken up again: claim, journal, replay of all, lease given back."""

    def workflow(step: durable.Step, _: Any) -> None:
        for number in range(steps):
            step("step", body, key=f"step-{number}")
        raise Stop

    with _store(url) as store:
        run_id = new_id()

        def again() -> None:
            with contextlib.suppress(Stop):
                durable.run({}, workflow, id=run_id, store=store)

        _time(turns, again)


def replayed_alone(turns: Turns, steps: int) -> None:
    """Only the replay of a run in memory, from the workflow's first line to its last."""
    laps: Any = (steps,)

    def workflow(step: durable.Step, _: Any) -> None:
        for size in laps:
            for number in range(size):
                step("step", body, key=f"step-{number}")
        raise Stop

    with memory() as store:
        run_id = new_id()
        while not turns.over:
            with contextlib.suppress(Stop):
                durable.run({}, workflow, id=run_id, store=store)
            laps = turns.few(1)


def _time(turns: Turns, act: Callable[[], None]) -> None:
    act()  # the run, for the first time
    act()
    for size in turns:
        for _ in range(size):
            act()


def _store(url: str | None) -> Any:
    return memory() if url is None else postgres(url)
