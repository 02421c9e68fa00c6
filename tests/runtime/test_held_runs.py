"""The async runs of a worker begin together, whatever becomes of one of them, and of their event loop."""

from __future__ import annotations

import asyncio
import gc
from types import SimpleNamespace
from typing import Any

import pytest

import durable
from durable._engine.leases import Lease
from durable._engine.steps import LiveExecution
from durable._runtime.held_runs import HeldRun, HeldRuns
from durable._runtime.run_base import _is_death
from durable.stores import memory
from harness.support import Database


class Run:
    """An async run, as those that hold it see it."""

    is_async = True

    def __init__(self, number: int, *, problem: BaseException | None = None) -> None:
        self.lease = Lease("run", str(number), 1, 60.0, 0.0)
        self.loop: asyncio.AbstractEventLoop | None = None
        self._problem = problem

    def start_on(self, loop: asyncio.AbstractEventLoop) -> asyncio.Task[Any]:
        problem, self._problem = self._problem, None
        if problem is not None:
            raise problem
        return loop.create_task(asyncio.sleep(0))


class Loop(asyncio.SelectorEventLoop):
    """Counts how often another thread wakes it."""

    woken = 0

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        self.woken += 1
        return super().call_soon_threadsafe(callback, *args, context=context)


@pytest.fixture
def held() -> Any:
    loop, ended = Loop(), list[tuple[str, BaseException | None]]()
    held = HeldRuns(32)
    held.enter(loop)

    def start(*runs: Run) -> None:
        for run in runs:
            held.start(run, lambda run, problem: ended.append((run.lease.token, problem)))  # type: ignore[arg-type]

    def turn() -> None:
        loop.call_later(0.01, loop.stop)
        loop.run_forever()

    yield SimpleNamespace(loop=loop, ended=ended, start=start, turn=turn)
    loop.close()


def test_a_poll_wakes_the_loop_once(held: Any) -> None:
    """However many runs it brings; and the next poll once more."""
    held.start(Run(1), Run(2), Run(3))
    assert held.loop.woken == 1
    held.turn()
    assert held.ended == [("1", None), ("2", None), ("3", None)]
    held.start(Run(4))
    assert held.loop.woken == 2
    held.turn()
    assert held.ended[3:] == [("4", None)]


def test_one_that_cannot_begin_holds_up_no_other(held: Any) -> None:
    """No memory for a task: the run has ended with that, and the others begin."""
    problem = MemoryError()
    held.start(Run(1), Run(2, problem=problem), Run(3))
    held.turn()
    assert held.ended == [("2", problem), ("1", None), ("3", None)]


def test_an_interrupt_in_the_midst_loses_none(held: Any) -> None:
    """Ctrl-C while they begin: the loop ends by it, and begins the rest where it is run again."""
    held.start(Run(1), Run(2, problem=KeyboardInterrupt()), Run(3))
    with pytest.raises(KeyboardInterrupt):
        held.turn()
    held.turn()
    assert sorted(held.ended) == [("1", None), ("2", None), ("3", None)]


def test_a_loop_that_is_closed_before_they_begin(held: Any) -> None:
    """Those that waited for it have ended, and the next one is refused at once."""
    held.start(Run(1), Run(2))
    held.loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        held.start(Run(3))
    assert [token for token, _ in held.ended] == ["1", "2"]
    assert all(isinstance(problem, RuntimeError) for _, problem in held.ended)


async def _stops_its_loop(_step: durable.AsyncStep, _: Any) -> int:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0)
    return 1


async def _returns(_step: durable.AsyncStep, _: Any) -> int:
    return 2


def test_a_run_that_stops_the_workers_loop_stops_no_other() -> None:
    """Old code calls `loop.stop()`."""
    stops, returns = durable.workflow(name="stops")(_stops_its_loop), durable.workflow(name="returns")(_returns)
    with memory() as store, durable.Worker(store, None, [stops, returns]):
        assert durable.start(stops, store=store).result(20) == 1
        assert durable.start(returns, store=store).result(20) == 2


def test_a_task_factory_of_two_parameters() -> None:
    """As many libraries have one: it knows nothing of `context=`."""
    returns = durable.workflow(name="returns")(_returns)

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(lambda loop, coroutine: asyncio.Task(coroutine, loop=loop))
        with memory() as store:
            async with durable.Worker(store, None, [returns]):
                handle = durable.start(returns, store=store)
                assert await asyncio.to_thread(handle.result, 20) == 2

    asyncio.run(main())


@pytest.mark.parametrize(
    ("reason", "counts"),
    [
        (SystemExit(1), True),
        (BaseExceptionGroup("", [asyncio.CancelledError(), SystemExit(1)]), True),
        (BaseExceptionGroup("", [asyncio.CancelledError(), ValueError()]), False),
        (asyncio.CancelledError(), False),
        (KeyboardInterrupt(), False),
        (ValueError(), False),
    ],
)
def test_what_counts_as_a_death(reason: BaseException, counts: bool) -> None:
    assert _is_death(reason) is counts


def test_what_this_worker_cannot_begin_is_put_off_for_a_moment() -> None:
    """Its event loop is at fault, and not the run: not for a minute, as what no worker can execute."""
    returns, refused = durable.workflow(name="returns")(_returns), list[int]()

    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any) -> asyncio.Task[Any]:
        if "HeldRun" in coroutine.__qualname__ and not refused:
            refused.append(1)
            coroutine.close()
            raise RuntimeError("no task")
        return asyncio.Task(coroutine, loop=loop)

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(factory)
        with memory() as store:
            async with durable.Worker(store, None, [returns]):
                assert await asyncio.to_thread(durable.start(returns, store=store).result, 20) == 2
        assert refused

    asyncio.run(main())


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_what_a_run_had_is_freed_at_its_end_without_the_garbage_collector(database: Database, is_async: bool) -> None:
    """Which else would take an eighth of a worker's time."""

    @durable.workflow("freed")
    def blocking(step: durable.Step, _: None) -> int:
        return step("one", lambda: 1)

    @durable.workflow("freed_async")
    async def awaiting(step: durable.AsyncStep, _: None) -> int:
        return await step("one", lambda: 1)

    workflow: Any = awaiting if is_async else blocking

    def ours() -> list[object]:
        return [thing for thing in gc.get_objects() if issubclass(type(thing), HeldRun | LiveExecution)]

    gc.collect()
    gc.disable()
    try:
        others = ours()  # what other tests of this process have left
        with database.store() as store:
            for _ in range(3):
                durable.start(workflow, store=store)
            durable.Worker(store, None, [workflow]).run_until_idle()
            assert not [thing for thing in ours() if all(thing is not other for other in others)]
    finally:
        gc.enable()
