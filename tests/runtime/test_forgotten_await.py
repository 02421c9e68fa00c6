"""A step of an async workflow that is called and never awaited: no run is completed without it, and the error says so."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

import durable
from durable.stores import MemoryStore, memory
from harness.support import Database

execute: Any = durable.run  # in either colour

Workflow = Callable[[Any, Any], Awaitable[Any]]


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    with memory() as store:
        yield store


async def pay() -> int:
    return 1


@durable.step
async def charge(order: str) -> str:
    return f"paid {order}"


async def forgotten(step: Any, _: Any) -> str:
    step("pay", pay)
    return "done"


async def returned(step: Any, _: Any) -> Any:
    return step("pay", pay)


async def decorated(_step: Any, _: Any) -> str:
    charge("A1")  # type: ignore[unused-coroutine] # ruff would see it, too
    return "done"


async def decorated_in_deps(_step: Any, deps: Any) -> str:
    deps.charge("A1")
    return "done"


async def mapped(step: Any, _: Any) -> str:
    step.map("pay", charge, ["A1", "A2"])
    return "done"


async def mapped_over_nothing(step: Any, _: Any) -> str:
    step.map("pay", charge, [])
    return "done"


async def slept(step: Any, _: Any) -> str:
    step.sleep("pay", 3600)
    return "done"


async def waited_for(step: Any, _: Any) -> str:
    step.wait_for("pay")
    return "done"


async def in_a_list(step: Any, _: Any) -> str:
    every = [step("pay", pay)]
    return f"done {len(every)}"


async def kept_elsewhere(step: Any, deps: Any) -> str:
    deps.kept.append(step("pay", pay))
    return "done"


async def in_an_except(step: Any, _: Any) -> str:
    try:
        await step("reserve", lambda: 1 / 0)
    except ZeroDivisionError:
        step("pay", pay)
    return "done"


async def among_others(step: Any, _: Any) -> str:
    await step("reserve", lambda: 1)
    step("pay", pay)
    await step("mail", lambda: 2)
    return "done"


async def in_a_call_that_is_not_awaited(step: Any, _: Any) -> str:
    waiting = asyncio.wait_for(step("pay", pay), 1)
    waiting.close()  # asyncio's own coroutine would say that it was never awaited
    return "done"


async def awaited_too_late(step: Any, deps: Any) -> str:
    async def later(promised: Awaitable[Any]) -> None:
        await deps.never.wait()
        await promised

    deps.kept.append(asyncio.create_task(later(step("pay", pay))))
    return "done"


FORGOTTEN = [
    forgotten,
    returned,
    decorated,
    decorated_in_deps,
    mapped,
    mapped_over_nothing,
    slept,
    waited_for,
    in_a_list,
    kept_elsewhere,
    in_an_except,
    among_others,
    in_a_call_that_is_not_awaited,
    awaited_too_late,
]


def _ran(store: MemoryStore, workflow: Workflow) -> Any:
    async def main() -> Any:
        return await execute(
            {"charge": charge, "kept": list[Any](), "never": asyncio.Event()}, workflow, id="r", store=store
        )

    return asyncio.run(main())


def _quietly(store: MemoryStore, workflow: Workflow) -> Any:
    """The same; a warning that a coroutine was never awaited is an error."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            return _ran(store, workflow)
        finally:
            gc.collect()
            assert not [str(one.message) for one in told if "never awaited" in str(one.message)]


@pytest.mark.parametrize("workflow", FORGOTTEN, ids=lambda workflow: workflow.__name__)
def test_a_run_is_not_completed_without_a_step_that_was_called(store: MemoryStore, workflow: Workflow) -> None:
    """The error names the step and the cure, and nothing else is said."""
    with pytest.raises(durable.errors.AsyncMismatch) as told:
        _quietly(store, workflow)
    named = "charge" if workflow in (decorated, decorated_in_deps) else "pay"
    assert repr(named) in str(told.value)
    assert "await" in str(told.value)
    assert "async def" not in str(told.value)
    assert store.status("r") == "failed"


def test_the_mended_workflow_goes_on(store: MemoryStore) -> None:
    """What had been recorded is not done again."""
    with pytest.raises(durable.errors.AsyncMismatch):
        _quietly(store, among_others)
    ran: list[str] = []

    async def mended(step: Any, _: Any) -> str:
        await step("reserve", lambda: ran.append("reserve"))
        await step("pay", pay)
        await step("mail", lambda: ran.append("mail"))
        return "done"

    mended.__name__, mended.__qualname__ = among_others.__name__, among_others.__qualname__
    assert _quietly(store, mended) == "done"
    assert not ran


def test_several_are_all_named(store: MemoryStore) -> None:
    async def workflow(step: Any, _: Any) -> None:
        step("pay", pay)
        step("mail", pay)

    with pytest.raises(durable.errors.AsyncMismatch, match=r"'pay', 'mail'"):
        _quietly(store, workflow)


def test_a_workflow_that_fails_says_it_in_a_note(store: MemoryStore) -> None:
    """What it failed with is the more important."""

    async def workflow(step: Any, _: Any) -> None:
        step("pay", pay)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as told:
        _quietly(store, workflow)
    assert "'pay'" in told.value.__notes__[0]
    assert "await" in told.value.__notes__[0]


def test_a_workflow_that_is_cancelled_leaves_no_warning_behind(store: MemoryStore) -> None:
    async def workflow(step: Any, _: Any) -> None:
        step("pay", pay)
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        _quietly(store, workflow)
    assert store.status("r") == "interrupted"


def test_something_else_to_await_that_is_returned_is_named(store: MemoryStore) -> None:
    async def workflow(_step: Any, _: Any) -> Any:
        return pay()

    with pytest.raises(durable.errors.AsyncMismatch, match="await it") as told:
        _quietly(store, workflow)
    assert "async def" not in str(told.value)


def task_of_a_step(step: Any, ran: list[str]) -> None:
    asyncio.create_task(step("pay", lambda: ran.append("pay")))  # noqa: RUF006 -- as people write it


def task_of_a_function(step: Any, ran: list[str]) -> None:
    async def background() -> None:
        await step("pay", lambda: ran.append("pay"))

    asyncio.create_task(background())  # noqa: RUF006


def task_of_a_task(step: Any, ran: list[str]) -> None:
    async def background() -> None:
        asyncio.create_task(step("pay", lambda: ran.append("pay")))  # noqa: RUF006

    asyncio.create_task(background())  # noqa: RUF006


def gathered(step: Any, ran: list[str]) -> None:
    asyncio.gather(step("pay", lambda: ran.append("pay")))


def gathered_in_a_task(step: Any, ran: list[str]) -> None:
    async def background() -> None:
        await asyncio.gather(step("pay", lambda: ran.append("pay")))

    asyncio.create_task(background())  # noqa: RUF006


def with_a_timeout(step: Any, ran: list[str]) -> None:
    asyncio.ensure_future(asyncio.wait_for(step("pay", lambda: ran.append("pay")), 5))  # noqa: RUF006


@pytest.mark.parametrize(
    "begin",
    [task_of_a_step, task_of_a_function, task_of_a_task, gathered, gathered_in_a_task, with_a_timeout],
    ids=lambda begin: begin.__name__,
)
def test_a_task_that_has_not_begun_its_step_is_waited_for(store: MemoryStore, begin: Callable[..., None]) -> None:
    ran: list[str] = []

    async def workflow(step: Any, _: Any) -> str:
        begin(step, ran)
        return "done"

    assert _quietly(store, workflow) == "done"
    assert ran == ["pay"]
    recorded = store.load("r")
    assert recorded is not None
    assert list(recorded.steps) == ["pay"]


def test_a_task_that_was_cancelled_before_it_began_is_not_forgotten(store: MemoryStore) -> None:
    """Its caller has decided against it."""

    async def workflow(step: Any, _: Any) -> str:
        task = asyncio.create_task(step("pay", pay))
        task.cancel()
        step("mail", pay).close()
        return "done"

    assert _quietly(store, workflow) == "done"


def test_on_postgres(database: Database) -> None:
    """The failure is in the run's record, for whoever looks at it later."""
    store = database.store()

    async def main() -> None:
        await execute(None, among_others, id="r", store=store)

    with pytest.raises(durable.errors.AsyncMismatch, match="'pay'"):
        asyncio.run(main())
    assert store.status("r") == "failed"
    with pytest.raises(durable.errors.AsyncMismatch, match="'pay'"):
        durable.result(store, "r")
