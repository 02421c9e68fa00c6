"""The page of mistakes: each is made, and says what the page quotes."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
import warnings
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pytest
import tenacity

import durable
from durable._runtime import plan
from durable.stores import MemoryStore, memory, postgres

PAGE: Final = (Path(__file__).resolve().parents[2] / "docs" / "mistakes.md").read_text("utf-8")
ROWS: Final = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith(("| ---", "| the mistake"))
]


def same(value: Any = 1) -> Any:
    return value


def pay(euros: int) -> int:
    return euros


async def later(value: Any = 1) -> Any:
    return value


def checkout(step: Any, deps: Any) -> Any:
    return step("charge", same)


def with_input(step: Any, deps: Any, order: Any) -> Any:
    return step("charge", same, order)


def run(fn: Any, store: Any, **options: Any) -> Any:
    return durable.run({}, fn, **{"id": "r", "store": store, **options})


def step_of(*call: Any, **options: Any) -> Callable[[Any], Any]:
    """The mistake is in one call of a step."""
    return lambda store: run(lambda step, deps: step(*call, **options), store)


def one_parameter(store: Any) -> None:
    run(lambda step: 1, store)


def the_other_way_round(store: Any) -> None:
    durable.run(checkout, {}, id="r", store=store)  # type: ignore[call-overload]


def no_database(_: Any) -> None:
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("DATABASE_URL", raising=False)
        postgres()


def no_store(_: Any) -> None:
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as process:
        process.setattr(plan, "_of_this_process", {})  # as in a new one: it is said once in each
        warnings.simplefilter("error", durable.DurableWarning)
        durable.run({}, checkout, id=f"mistake-{uuid.uuid4()}")


def another_workflow(store: Any) -> None:
    run(checkout, store)
    run(with_input, store, input=1)


def another_input(store: Any) -> None:
    for order in (1, 2):
        run(with_input, store, input=order)


def changed_code(store: Any) -> None:
    results = iter(["then", "now"])

    def workflow(step: Any, deps: Any) -> Any:
        return next(results)

    assert [run(workflow, store) for _ in range(2)] == ["then", "then"]


def forgotten_await(store: Any) -> None:
    async def workflow(step: Any, deps: Any) -> None:
        step("charge", later)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        asyncio.run(run(workflow, store))


def nested(store: Any) -> None:
    run(lambda step, deps: step("outer", lambda: step("inner", same)), store)


def generated(store: Any) -> None:
    def workflow(step: Any, deps: Any) -> Any:
        yield 1

    run(workflow, store)


def to_no_run(store: Any) -> None:
    assert durable.signal(store, "not-there", "approved") is False


def clock_as_an_argument(store: Any) -> None:
    def workflow(step: Any, deps: Any) -> Any:
        step("charge", same, time.perf_counter_ns())
        raise ConnectionError

    with pytest.raises(ConnectionError):
        run(workflow, store)
    run(workflow, store)


def branches(store: Any) -> None:
    async def branch(step: Any, number: int) -> Any:
        await asyncio.sleep(0)
        return await step("price", later, number)

    async def workflow(step: Any, deps: Any) -> Any:
        return await asyncio.gather(*(branch(step, number) for number in range(2)))

    asyncio.run(run(workflow, store))


def first_of_two(store: Any) -> None:
    async def branch(step: Any, name: str, turns: int) -> str:
        await step(name, later)
        for _ in range(turns):
            await asyncio.sleep(0)
        return name

    async def workflow(step: Any, deps: Any) -> str:
        tasks = [asyncio.ensure_future(branch(step, name, turns)) for name, turns in (("a", 50), ("b", 0))]
        done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait(others)
        return min(task.result() for task in done)

    asyncio.run(run(workflow, store))


def one_key(store: Any) -> None:
    run(lambda step, deps: [step("price", same, item, key="price") for item in range(3)], store)


def one_key_and_thunks(store: Any) -> None:
    assert run(lambda step, deps: [step("p", lambda n=n: n, key="p") for n in range(3)], store) == [0, 0, 0]


def after_the_end(store: Any) -> None:
    kept: list[Any] = []
    run(lambda step, deps: kept.append(step), store)
    kept[0]("charge", same)


MISTAKES: Final[dict[str, Callable[[Any], Any]]] = {
    "`def checkout(step)`": one_parameter,
    "`durable.run(checkout, {}, …)`": the_other_way_round,
    "no `id=`": lambda store: durable.run({}, checkout, store=store),  # type: ignore[call-overload]
    "`id=uuid4()`": lambda store: run(checkout, store, id=uuid.uuid4()),
    "`input=` is forgotten": lambda store: run(with_input, store),
    '`store="postgresql://…"`': lambda _: run(checkout, "postgresql://localhost/shop"),
    '`postgres("postgresql+psycopg://…")`': lambda _: postgres("postgresql+psycopg://localhost/shop"),
    "`postgres()`, and no `$DATABASE_URL`": no_database,
    "no `store=`": no_store,
    "another workflow under the same id": another_workflow,
    "another input under the same id": another_input,
    "the same id again, after the code was changed": changed_code,
    "`durable.start` of a function without a mark": lambda store: durable.start(checkout, store=store),
    "`step(charge, order)`": step_of(same, 1),
    '`step("charge", charge(order))`': step_of("charge", same(1)),
    '`step("charge", charge, euros=42)`': step_of("charge", pay, euros=42),
    "`time_out=3`": step_of("charge", same, time_out=3),
    "`retry=3`": step_of("charge", same, retry=3),
    "`retry=tenacity.Retrying()`": step_of("charge", same, retry=tenacity.Retrying()),
    "`await` is forgotten": forgotten_await,
    "an `async def` in a blocking workflow": step_of("charge", later),
    "a step inside a step's body": nested,
    "an object that cannot be stored is returned": step_of("find", lambda: {"a": [object()]}),
    "a connection or client as a step's argument": step_of("save", same, object()),
    "a workflow with `yield`": generated,
    "`step.sleep` until a naive `datetime`": lambda store: run(
        lambda step, deps: step.sleep("wait", datetime(2031, 5, 1)), store
    ),
    "`durable.signal` to a run that is not there": to_no_run,
    "`time.time()`, chance or a global as an argument": clock_as_an_argument,
    "concurrent branches of one name without `key=`": branches,
    "one constant `key=` in a loop": one_key,
    "the same with a thunk": one_key_and_thunks,
    "`asyncio.wait(…, FIRST_COMPLETED)` where the branches await other things between their steps": first_of_two,
    "a task or thread calls a step when the run is over": after_the_end,
}


def test_each_mistake_of_the_page_is_made_here() -> None:
    assert [row[0] for row in ROWS] == list(MISTAKES)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_mistake_says_what_the_page_quotes(row: list[str]) -> None:
    mistake, seen, _ = row
    with memory() as store:
        assert isinstance(store, MemoryStore)
        told = re.fullmatch(r"`(\w+)`: “(.+)”", seen)
        if told is None:
            assert seen.startswith("nothing")
            MISTAKES[mistake](store)
            return
        name, text = told.groups()
        with pytest.raises((durable.DurableError, durable.DurableWarning)) as raised:
            MISTAKES[mistake](store)
    assert (type(raised.value).__name__, text in str(raised.value)) == (name, True), str(raised.value)
