"""What runs leave behind in a process: nothing. (Ten thousand of them: benchmarks/many_runs.py.)"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
import tracemalloc
from collections import Counter
from typing import Any

import pytest

import durable
from durable._engine.calls import Call
from durable._engine.journal import Journal
from durable._engine.leases import Lease
from durable._engine.steps import LiveExecution
from durable._runtime.driver import Driver
from durable.records import Record
from durable.stores._postgres.job import Job
from harness.ownership_children import wait_until
from harness.support import Database

WRITERS = 3
OURS = (Call, Journal, Lease, LiveExecution, Driver, durable.Step, durable.AsyncStep, Job)


class Interruption(BaseException):
    """Ends an execution without an outcome, as Ctrl-C does."""


class Failing(Exception):
    """What some runs end with."""


_earlier = Counter[str]()


@pytest.fixture(autouse=True)
def earlier() -> None:
    """What other tests of this process have left, as those do whose threads are struck down."""
    _earlier.clear()
    _earlier.update(counted())


def counted() -> Counter[str]:
    gc.collect()  # does nothing, and says nothing, while another thread is collecting
    return Counter(
        type(thing).__name__ for thing in gc.get_objects() if issubclass(type(thing), OURS)
    )  # by its type: some are lazy


def left_behind() -> Counter[str]:
    """The objects of ours that are still reachable, and were not before the test."""
    for _ in range(100):
        left = counted() - _earlier
        if not left:
            break
        time.sleep(0.01)
    return left


def test_runs_leave_nothing_behind(database: Database) -> None:
    """FAULTS 91 in small: no object, thread, task or connection for a run that has ended, however it ended."""

    def connections() -> set[tuple[Any, ...]]:
        ours = "application_name = 'durable' AND datname = current_database()"
        return set(database.execute(f"SELECT pid, backend_start FROM pg_stat_activity WHERE {ours}"))

    earlier_connections = connections()
    store, others = database.store(), set(threading.enumerate())  # which may end meanwhile

    def workflow(step: durable.Step, _: Any, number: int) -> None:
        step("one", lambda: 1)
        with contextlib.suppress(ValueError):
            step("two", int, "x")
        if number % 2:
            raise Failing

    async def async_workflow(step: durable.AsyncStep, _: Any, number: int) -> None:
        await asyncio.gather(step("one", lambda: 1), step("two", lambda: 2))
        if number % 2:
            raise Failing

    async def many(first: int) -> int:
        runs = [
            durable.run({}, async_workflow, id=f"async-{n}", store=store, input=n) for n in range(first, first + 20)
        ]
        await asyncio.gather(*runs, return_exceptions=True)
        return len(asyncio.all_tasks())

    def portion(first: int) -> tuple[int, int, bool]:
        for number in range(first, first + 20):
            with contextlib.suppress(Failing):
                durable.run({}, workflow, id=f"sync-{number}", store=store, input=number)
        tasks = asyncio.run(many(first))
        # One connection for each writer at the most, as they met, and no other.
        return len(set(threading.enumerate()) - others), tasks, len(connections() - earlier_connections) <= WRITERS

    before = portion(0)
    assert before[2]
    assert left_behind() == {}
    assert [portion(first) for first in (20, 40, 60)] == [before] * 3
    assert left_behind() == {}


def test_a_long_run_keeps_its_records_and_little_else(database: Database) -> None:
    """FAULTS 90 in small: memory is linear in the steps, by what Python has allocated. (100,000 of them: make bench.)

    Of a settled step stay its record (the value of 100 bytes within), its key, and what it was drawn with: 490 bytes, and
    what dictionaries hold in reserve.
    """
    store, value, allocated = database.store(), "x" * 98, list[int]()

    def workflow(step: durable.Step, _: Any, steps: int) -> None:
        for number in range(steps):
            step("step", lambda: value, key=f"step-{number}")
            if number + 1 in (200, 600, 1000):
                gc.collect()
                allocated.append(tracemalloc.get_traced_memory()[0])

    durable.run({}, workflow, id="warm-up", store=store, input=10)
    tracemalloc.start()
    try:
        durable.run({}, workflow, id="long", store=store, input=1000)
    finally:
        tracemalloc.stop()

    first, second, third = allocated
    assert (third - first) / 800 <= 600
    assert third - second <= 1.25 * (second - first)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_resumed_run_lets_go_of_the_texts_that_it_was_loaded_from(database: Database, is_async: bool) -> None:
    """They would be half of what it holds: the journal is kept once, as it was read."""
    store, texts = database.store(), list[int]()

    def kept() -> int:
        gc.collect()
        return sum(type(thing) is Record for thing in gc.get_objects())

    before = kept()  # of other tests in this process

    def after() -> None:
        if not texts:
            texts.append(kept() - before)
            raise Interruption
        # The writer's thread may still hold the answer that it has just given.
        wait_until(lambda: kept() - before < 10, "the texts to be let go of")

    def workflow(step: durable.Step, _: Any, steps: int) -> None:
        for number in range(steps):
            step("step", lambda: 1, key=f"step-{number}")
        after()

    async def async_workflow(step: durable.AsyncStep, _: Any, steps: int) -> None:
        for number in range(steps):
            await step("step", lambda: 1, key=f"step-{number}")
        await asyncio.sleep(0)  # until its task has waited once, the loop still holds the answer that woke it
        after()

    for _ in range(2):
        with contextlib.suppress(Interruption):
            if is_async:
                asyncio.run(durable.run({}, async_workflow, id="long", store=store, input=100))
            else:
                durable.run({}, workflow, id="long", store=store, input=100)

    assert len(texts) == 1
