"""A store of five verbs, brought along by a user: durable.run goes on with what it loads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

import durable
from durable.stores import Listed


class Shelf:
    """Five verbs over a dict of JSON texts."""

    def __init__(self) -> None:
        self.texts: dict[str, tuple[datetime, bytes]] = {}
        self.saves = 0

    def save(self, id: str, snapshot: durable.Snapshot) -> None:
        self.saves += 1
        self.texts[id] = datetime.now(UTC), snapshot.to_json()

    def load(self, id: str) -> durable.Snapshot | None:
        return durable.Snapshot.from_json(self.texts[id][1]) if id in self.texts else None

    def delete(self, id: str) -> None:
        self.texts.pop(id, None)

    def list(self, *, prefix: str = "", limit: int = 100) -> Sequence[Listed]:
        lines = [Listed(name, at) for name, (at, _) in self.texts.items() if name.startswith(prefix)]
        return sorted(lines, key=lambda line: (line.updated_at, line.id), reverse=True)[:limit]

    def close(self) -> None:
        """Nothing is open."""


def test_a_run_is_resumed_and_its_result_kept() -> None:
    shelf, called, broken = Shelf(), list[str](), [True]

    def workflow(step: durable.Step, _: None) -> list[int]:
        def first() -> int:
            called.append("one")
            return 1

        def second() -> int:
            called.append("two")
            if broken[0]:
                raise OSError("not yet")
            return 2

        return [step("one", first), step("two", second)]

    with pytest.raises(OSError, match="not yet"):
        durable.run(None, workflow, id="x", store=shelf)
    assert durable.status(shelf, "x") == "failed"
    broken[0] = False
    assert durable.run(None, workflow, id="x", store=shelf) == [1, 2]
    assert called == ["one", "two", "two"]
    assert durable.run(None, workflow, id="x", store=shelf) == [1, 2]
    assert durable.result(shelf, "x") == [1, 2]


def test_concurrent_calls_are_told_apart_and_async_runs_work() -> None:
    shelf = Shelf()

    async def workflow(step: durable.AsyncStep, _: None) -> list[int]:
        async def square(n: int) -> int:
            return n * n

        return await asyncio.gather(*(step("square", square, n, key=f"s{n}") for n in range(20)))

    async def main() -> list[list[int]]:
        return await asyncio.gather(
            *(durable.run(None, workflow, id="x", store=shelf, on_conflict="wait") for _ in range(3))
        )

    assert asyncio.run(main()) == [[n * n for n in range(20)]] * 3


def test_the_low_level_flow() -> None:
    collector, shelf, called = durable.ResumeStateCollector(), Shelf(), list[str]()

    def first() -> int:
        called.append("one")
        return 1

    def checkout(step: durable.Step, _: None) -> list[int]:
        one = step("one", first)
        if len(called) < 2:
            called.append("broken")
            raise KeyboardInterrupt
        return [one, step("two", lambda: 2)]

    workflow = durable.Workflow("checkout", None, on_event=collector.handle_event)
    with contextlib.suppress(KeyboardInterrupt):
        workflow.run(checkout)
    shelf.save("c", collector.resume_state())
    assert workflow.run(checkout, resume_state=shelf.load("c")) == [1, 2]
    shelf.save("c", collector.resume_state())
    assert called == ["one", "broken"]
    assert workflow.run(checkout, resume_state=shelf.load("c")) == [1, 2]

    async def checkout_async(step: durable.AsyncStep, _: None) -> int:
        return await step("one", lambda: 5)

    assert asyncio.run(workflow.run(checkout_async, resume_state=shelf.load("c"))) == 1
