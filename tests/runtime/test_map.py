"""`step.map`: an item is a step of its own."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import pytest

import durable
from durable.records import Kind
from durable.stores import memory
from harness.support import Database


def run(database: Database, fn: Callable[[Any], Any], items: Sequence[Any], *, is_async: bool, **options: Any) -> Any:
    """One run that maps."""

    def workflow(step: durable.Step, deps: Any) -> Any:
        return step.map("item", fn, items, **options)

    async def async_workflow(step: durable.AsyncStep, deps: Any) -> Any:
        return await step.map("item", fn, items, **options)

    if is_async:
        return asyncio.run(durable.run({}, async_workflow, id="a", store=database.store()))
    return durable.run({}, workflow, id="a", store=database.store())


colours = pytest.mark.parametrize("is_async", [False, True], ids=["blocking", "async"])


@colours
def test_results_come_in_order_and_each_item_is_recorded(database: Database, is_async: bool) -> None:
    doubled = run(database, lambda item: item * 2, range(100), is_async=is_async, max_concurrency=7)
    assert doubled == [2 * n for n in range(100)]
    keys = {key for kind, key, _ in database.journal("a") if kind == Kind.STEP}
    assert keys == {f"item[{number}]" for number in range(100)}


@colours
def test_only_the_missing_items_run_again(database: Database, is_async: bool) -> None:
    """Killed half-way: what was acknowledged does not run again."""
    ran: Counter[int] = Counter()

    class Killed(BaseException):
        pass

    def body(item: int) -> int:
        ran[item] += 1
        if sum(ran.values()) == 20:
            raise Killed
        return item

    with pytest.raises(Killed):
        run(database, body, range(40), is_async=is_async, max_concurrency=4)
    recorded = len(database.journal("a"))
    assert 16 <= recorded <= 23
    assert run(database, body, range(40), is_async=is_async, max_concurrency=4) == list(range(40))
    assert sum(ran.values()) == 40 + 1
    assert set(ran) == set(range(40))


@colours
def test_a_failing_item_ends_it_and_alone_runs_again(database: Database, is_async: bool) -> None:
    failing, ran = {3}, list[int]()

    def body(item: int) -> int:
        ran.append(item)
        if item in failing:
            raise ValueError(f"{item} failed")
        return item

    with pytest.raises(ValueError, match="3 failed"):
        run(database, body, range(100), is_async=is_async, max_concurrency=1)
    assert ran == [0, 1, 2, 3]
    failing.clear()
    assert run(database, body, range(100), is_async=is_async, max_concurrency=1) == list(range(100))
    assert Counter(ran) == Counter({n: 2 if n == 3 else 1 for n in range(100)})


@colours
def test_failures_can_be_outcomes(database: Database, is_async: bool) -> None:
    def body(item: int) -> int:
        if item % 2:
            raise ValueError(item)
        return item

    def described(outcomes: Sequence[Any]) -> list[str]:
        return [repr(one) for one in outcomes]

    def workflow(step: durable.Step, deps: Any) -> Any:
        return described(step.map("item", body, range(4), return_exceptions=True))

    async def async_workflow(step: durable.AsyncStep, deps: Any) -> Any:
        return described(await step.map("item", body, range(4), return_exceptions=True))

    store = database.store()
    for _ in range(2):
        if is_async:
            outcomes = asyncio.run(durable.run({}, async_workflow, id="a", store=store))
        else:
            outcomes = durable.run({}, workflow, id="a", store=store)
        assert outcomes == ["0", "ValueError(1)", "2", "ValueError(3)"]


def test_items_run_at_the_same_time(database: Database) -> None:
    """As many as were asked for, and no more."""
    barrier, most, lock = threading.Barrier(5), list[int](), threading.Lock()
    running = 0

    def body(item: int) -> int:
        nonlocal running
        with lock:
            running += 1
            most.append(running)
        barrier.wait(10)
        with lock:
            running -= 1
        return item

    assert run(database, body, range(20), is_async=False, max_concurrency=5) == list(range(20))
    assert max(most) == 5


@colours
def test_a_key_follows_its_item(database: Database, is_async: bool) -> None:
    """In another order the same items get their own records."""
    ran: list[str] = []

    def body(item: str) -> str:
        ran.append(item)
        if item == "stop" and ran.count("stop") == 1:
            raise OSError("stopped")
        return item.upper()

    with pytest.raises(OSError, match="stopped"):
        run(database, body, ["a", "b", "stop"], is_async=is_async, key=str, max_concurrency=1)
    again = run(database, body, ["stop", "b", "a"], is_async=is_async, key=str, max_concurrency=1)
    assert again == ["STOP", "B", "A"]
    assert Counter(ran) == {"a": 1, "b": 1, "stop": 2}


@colours
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_concurrency": 0}, "at least 1"),
        ({"max_concurrency": "4"}, "at least 1"),
        ({"key": lambda _: "same"}, r"two items have the key 'item\[same\]'"),
        ({"key": lambda _: "x" * 600}, "bytes of UTF-8"),
        ({"retry": 3}, "retry must be a policy"),
    ],
)
def test_what_cannot_be_is_refused(is_async: bool, options: dict[str, Any], words: str) -> None:
    def workflow(step: durable.Step, deps: Any) -> None:
        step.map("item", lambda _: pytest.fail("it ran"), [1, 2], **options)

    async def async_workflow(step: durable.AsyncStep, deps: Any) -> None:
        await step.map("item", lambda _: pytest.fail("it ran"), [1, 2], **options)

    with pytest.raises(durable.InvalidArgument, match=words), closing(memory()) as store:
        if is_async:
            asyncio.run(durable.run({}, async_workflow, id="a", store=store))
        else:
            durable.run({}, workflow, id="a", store=store)


@colours
def test_of_nothing_comes_nothing(database: Database, is_async: bool) -> None:
    assert run(database, lambda item: item, [], is_async=is_async) == []


@colours
def test_a_lost_lease_ends_it(database: Database, is_async: bool) -> None:
    """FAULTS 122: whatever stands in the list, no further item begins."""
    ran: list[int] = []

    def body(item: int) -> int:
        ran.append(item)
        if item == 2:
            database.execute("UPDATE durable_locks SET epoch = epoch + 1, owner_token = 'thief'")
        return item

    with pytest.raises(durable.LeaseLost):
        run(database, body, range(50), is_async=is_async, max_concurrency=1, return_exceptions=True)
    assert ran == [0, 1, 2]
