"""Control flow leaves a workflow past `except Exception`, and what escapes of it is an ordinary error, wherever it was kept."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

import durable
from durable.errors import Unwind
from durable.stores import MemoryStore, memory


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    with memory() as store:
        yield store


ENDS = {"lease": durable.LeaseLost, "cancelled": durable.RunCancelled, "drift": durable.WorkflowDrift}


class End:
    """A way in which a run is ended under its workflow."""

    def __init__(self, how: str, store: MemoryStore) -> None:
        self.error, self._how, self._store, self._event = ENDS[how], how, store, threading.Event()
        self.options: dict[str, Any] = {"cancel": self._event} if how == "cancelled" else {}
        if how == "drift":

            def before(step: durable.Step, _: object) -> None:
                step("end", len, "other", key="end")
                raise KeyError

            with pytest.raises(KeyError):
                durable.run({}, self.named(before), id="r", store=store)

    @staticmethod
    def named(fn: Any) -> Any:
        fn.__name__ = fn.__qualname__ = "workflow"
        return fn

    def come(self, step: Any) -> Any:
        """The step after, or at, which the run must not go on."""
        if self._how == "lease":
            return step("end", lambda: self._store.delete("r", force=True), key="end")
        if self._how == "cancelled":
            return step("end", self._event.set, key="end")
        return step("end", len, "x", key="end")

    def run(self, fn: Any) -> None:
        with pytest.raises(self.error):
            durable.run({}, self.named(fn), id="r", store=self._store, **self.options)

    async def run_async(self, fn: Any) -> None:
        with pytest.raises(self.error):
            await durable.run({}, self.named(fn), id="r", store=self._store, **self.options)


@pytest.fixture(params=ENDS)
def end(request: pytest.FixtureRequest, store: MemoryStore) -> End:
    return End(request.param, store)


def ordinary(problem: BaseException | None, error: type[durable.DurableError]) -> None:
    """It is that error, as if it had been raised as such."""
    assert type(problem) is error
    assert isinstance(problem, Exception)
    assert problem.run_id == "r"  # type: ignore[attr-defined]
    assert "run 'r'" in str(problem)
    assert str(pickle.loads(pickle.dumps(problem))) == str(problem)
    assert not hasattr(problem, "error")
    with pytest.raises(error):
        raise problem


def test_what_except_base_exception_has_kept(end: End) -> None:
    kept: list[BaseException] = []

    def workflow(step: durable.Step, _: object) -> str:
        try:
            end.come(step)
            step("two", lambda: 2)
        except BaseException as problem:
            kept.append(problem)
        try:
            step("three", lambda: 3)
        except Exception:  # must not be able to swallow it
            return "swallowed"
        return "went on"

    end.run(workflow)
    ordinary(kept[0], end.error)


def test_a_future_of_a_thread(end: End) -> None:
    """Looked at after the run, as people gather results at the end."""
    futures: list[Future[Any]] = []
    with ThreadPoolExecutor(2) as pool:

        def workflow(step: durable.Step, _: object) -> None:
            end.come(step)
            futures.extend(pool.submit(lambda key: step("two", lambda: 2, key=key), f"two-{n}") for n in range(2))
            for future in futures:
                future.exception()

        end.run(workflow)
        for future in futures:
            ordinary(future.exception(), end.error)
            with pytest.raises(end.error):
                future.result()


def test_a_thread_that_goes_on_after_the_run(end: End, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hook of threads is told of ordinary errors, each with a trace of its own."""
    told: list[tuple[Any, Any]] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append((args.exc_type, args.exc_value)))
    over, steps = threading.Event(), list[Any]()

    def late() -> None:
        over.wait(30)
        steps[0]("late", lambda: 1)

    thread = threading.Thread(target=late)

    def workflow(step: durable.Step, _: object) -> None:
        steps.append(step)
        thread.start()
        end.come(step)
        step("two", lambda: 2)

    end.run(workflow)
    over.set()
    thread.join(30)
    ((kind, value),) = told
    assert kind is end.error
    assert type(value) is end.error


def test_a_generator_that_is_used_after_the_run(end: End) -> None:
    generators: list[Iterator[int]] = []

    def workflow(step: durable.Step, _: object) -> None:
        def numbers() -> Iterator[int]:
            for number in range(9):
                yield step("number", lambda: number, key=f"n-{number}")  # noqa: B023

        generators.append(numbers())
        end.come(step)
        step("two", lambda: 2)

    end.run(workflow)
    with pytest.raises(end.error):
        next(generators[0])


LATE: list[Callable[[Any], Any]] = [
    lambda step: step("late", lambda: 1),
    lambda step: step.map("each", len, ["x"]),
    lambda step: step.wait_for("signal"),
    lambda step: step.sleep("nap", 1),
]


def test_a_step_after_a_run_that_completed(store: MemoryStore) -> None:
    """`RunOver`, in either colour, from any thread."""
    steps: list[Any] = []

    def workflow(step: durable.Step, _: object) -> None:
        steps.append(step)

    async def async_workflow(step: durable.AsyncStep, _: object) -> None:
        steps.append(step)

    durable.run({}, workflow, id="b", store=store)
    (step,) = steps
    for call in LATE:
        with pytest.raises(durable.errors.RunOver):
            call(step)

    async def awaited() -> None:
        await durable.run({}, async_workflow, id="a", store=store)
        step = steps[1]
        for call in LATE:
            with pytest.raises(durable.errors.RunOver):
                await call(step)
        results = await asyncio.gather(step("again", lambda: 1), return_exceptions=True)
        assert [type(result) for result in results] == [durable.errors.RunOver]

    asyncio.run(awaited())


@pytest.mark.parametrize("left_by", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_a_step_after_a_run_that_was_left(store: MemoryStore, left_by: type[BaseException]) -> None:
    """By what is no error: no body begins any more."""
    steps, bodies = list[Any](), list[int]()

    def workflow(step: durable.Step, _: object) -> None:
        steps.append(step)
        raise left_by

    with pytest.raises(left_by):
        durable.run({}, workflow, id="r", store=store)
    with pytest.raises(durable.DurableError):
        steps[0]("late", lambda: bodies.append(1))
    assert bodies == []


def test_a_callback_of_a_future(end: End, caplog: pytest.LogCaptureFixture) -> None:
    """Called after the run: `concurrent.futures` can log it, as it does of exceptions."""
    future: Future[int] = Future()

    def workflow(step: durable.Step, _: object) -> None:
        future.add_done_callback(lambda _: step("late", lambda: 1))
        end.come(step)
        step("two", lambda: 2)

    end.run(workflow)
    future.set_result(1)  # raises nothing
    assert end.error.__name__ in caplog.text
    assert "Unwind" not in caplog.text


def test_the_results_of_a_gather(end: End) -> None:
    """`return_exceptions=True`: what the workflow was handed, once it is out."""
    results: list[Any] = []

    async def workflow(step: durable.AsyncStep, _: object) -> str:
        two = (step("two", lambda: 2, key=f"two-{n}") for n in range(2))
        results.extend(await asyncio.gather(end.come(step), *two, return_exceptions=True))
        return "went on"

    asyncio.run(end.run_async(workflow))
    assert len(results) == 3
    for result in results[1:]:
        ordinary(result, end.error)


def test_a_task_that_is_gathered_after_the_run(end: End) -> None:
    tasks: list[asyncio.Task[Any]] = []

    async def branch(step: durable.AsyncStep, number: int) -> int:
        return await step("two", lambda: 2, key=f"two-{number}")

    async def workflow(step: durable.AsyncStep, _: object) -> None:
        await end.come(step)
        tasks.extend(asyncio.ensure_future(branch(step, number)) for number in range(2))
        await asyncio.wait(tasks)

    async def main() -> None:
        await end.run_async(workflow)
        for task in tasks:
            ordinary(task.exception(), end.error)
            with pytest.raises(end.error):
                await task

    asyncio.run(main())


def test_a_task_group(end: End) -> None:
    """Its group does not escape, and what was kept of it holds ordinary errors."""
    kept: list[BaseException] = []

    async def workflow(step: durable.AsyncStep, _: object) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(end.come(step))
                group.create_task(step("two", lambda: 2, key="a"))
                group.create_task(step("two", lambda: 2, key="b"))
        except BaseExceptionGroup as problem:
            kept.append(problem)
            raise

    asyncio.run(end.run_async(workflow))
    (group,) = kept
    assert isinstance(group, BaseExceptionGroup)
    for member in group.exceptions:
        ordinary(member, end.error)


def test_within_the_run_it_is_control_flow_as_ever(end: End) -> None:
    """Neither the workflow nor a branch of it can swallow it with `except Exception`."""
    swallowed: list[str] = []

    async def branch(step: durable.AsyncStep) -> None:
        try:
            await step("two", lambda: 2, key="a")
        except Exception:
            swallowed.append("branch")

    async def workflow(step: durable.AsyncStep, _: object) -> None:
        try:
            await end.come(step)
            await asyncio.gather(branch(step))
        except Exception:
            swallowed.append("workflow")

    asyncio.run(end.run_async(workflow))
    assert swallowed == []


def test_a_cause_that_was_control_flow(end: End) -> None:
    """Chained by the user: what is printed with it is ordinary as well."""

    class Mine(Exception):
        """The user's."""

    kept: list[BaseException] = []

    def workflow(step: durable.Step, _: object) -> None:
        try:
            end.come(step)
            step("two", lambda: 2)
        except BaseException as problem:
            mine = Mine("in my words")
            mine.__cause__ = problem
            kept.append(mine)
            raise mine from problem

    end.run(workflow)
    ordinary(kept[0].__cause__, end.error)


def test_nothing_is_kept_of_what_the_user_does_not_keep(end: End) -> None:
    """Neither the exceptions nor their frames."""
    seen: list[weakref.ref[BaseException]] = []

    def workflow(step: durable.Step, _: object) -> None:
        try:
            end.come(step)
            step("two", lambda: 2)
        except BaseException as problem:
            seen.append(weakref.ref(problem))
            raise

    end.run(workflow)
    gc.collect()
    assert [kept() for kept in seen] == [None]


def test_an_error_of_another_layout_stays_what_it_is() -> None:
    """A store may bring an error of its own that cannot take the place of another object."""

    class Wide(durable.StoreError, OSError):
        """Of a store of the user's."""

    error = Wide(5, "everywhere")
    unwind = Unwind(error)
    Unwind.settle(error)
    assert unwind.error is error
