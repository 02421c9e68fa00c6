"""Races where other things are: in a scope, in the items of a map, and with children in their branches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import durable
from durable.stores import memory
from durable.stores.protocol import QueueingStore


class Crash(BaseException):
    """Leaves the journal as a kill would."""


def in_a_scope(step: durable.Step, deps: Any) -> Any:
    with step.scope("leg"):
        won = step.race(
            quick=lambda: step("ask", lambda: deps["do"]("ask")), never=lambda: step.wait_for("never", timeout=1e6)
        )
        return [won, step("tell", lambda: deps["do"]("tell"))]


async def in_a_scope_async(step: durable.AsyncStep, deps: Any) -> Any:
    with step.scope("leg"):
        won = await step.race(
            quick=lambda: step("ask", lambda: deps["do"]("ask")), never=lambda: step.wait_for("never", timeout=1e6)
        )
        return [won, await step("tell", lambda: deps["do"]("tell"))]


def in_items(step: durable.Step, deps: Any) -> Any:
    def one(item: str) -> Any:
        name, value = step.race(
            quick=lambda: step("ask", lambda: deps["do"](f"ask {item}")),
            never=lambda: step.wait_for("never", timeout=1e6),
        )
        return [name, value, step("tell", lambda: deps["do"](f"tell {item}"))]

    return step.map("each", one, ["a", "b"], max_concurrency=1)


async def in_items_async(step: durable.AsyncStep, deps: Any) -> Any:
    async def one(item: str) -> Any:
        name, value = await step.race(
            quick=lambda: step("ask", lambda: deps["do"](f"ask {item}")),
            never=lambda: step.wait_for("never", timeout=1e6),
        )
        return [name, value, await step("tell", lambda: deps["do"](f"tell {item}"))]

    return await step.map("each", one, ["a", "b"], max_concurrency=1)


def run(workflow: Callable[..., Any], store: Any, do: Callable[[str], str]) -> Any:
    outcome = durable.run({"do": do}, workflow, id="r", store=store)
    return asyncio.run(outcome) if asyncio.iscoroutine(outcome) else outcome


@pytest.mark.parametrize("workflow", [in_a_scope, in_a_scope_async, in_items, in_items_async])
def test_a_race_within_is_replayed_as_it_was(workflow: Callable[..., Any]) -> None:
    """Killed in the step after it: the branches' step, whose keys are of the scope or the item, run no second time."""
    bodies: list[str] = []

    def do(what: str, *, dies: bool = False) -> str:
        if dies and what.startswith("tell"):
            raise Crash
        bodies.append(what)
        return f"{what} done"

    with memory() as store:
        with pytest.raises(BaseException) as died:
            run(workflow, store, partial(do, dies=True))
        assert isinstance(died.value, Crash)
        result = run(workflow, store, do)
        assert sorted(bodies) == sorted(set(bodies))
        assert run(workflow, store, do) == result
        snapshot = store.load("r")
        assert snapshot is not None
        keys = list(snapshot.steps)
    within = ("leg/",) if workflow in (in_a_scope, in_a_scope_async) else ("each[0]", "each[1]")
    assert all(key.startswith(within) for key in keys), keys
    assert any(key.endswith("/quick | never") for key in keys), keys


@durable.workflow(name="doubles-for-race")
def doubles(step: durable.Step, deps: Any, n: int) -> int:
    return step("double", lambda: n * 2)


@durable.workflow(name="waits-for-race")
def waits(step: durable.Step, deps: Any, n: int) -> int:
    return int(step.wait_for("go")) + n


@durable.workflow(name="races-children")
def races_children(step: durable.Step, deps: Any, n: int) -> Any:
    name, value = step.race(quick=lambda: step.call(doubles, n, key="q"), slow=lambda: step.call(waits, n, key="s"))
    return [name, value]


@durable.workflow(name="races-children-async")
async def races_children_async(step: durable.AsyncStep, deps: Any, n: int) -> Any:
    name, value = await step.race(
        quick=lambda: step.call(doubles, n, key="q"), slow=lambda: step.call(waits, n, key="s")
    )
    return [name, value]


@pytest.mark.parametrize("workflow", [races_children, races_children_async])
def test_a_child_that_has_lost_goes_on_by_itself(store: QueueingStore, workflow: Any) -> None:
    """It is a run of its own; whoever wants it gone cancels it by its id."""
    with durable.Worker(store, None, [workflow, doubles, waits], concurrency=4):
        handle = durable.start(workflow, 4, id="p", store=store)
        assert handle.result(30.0) == ["quick", 8]
        assert durable.handle(store, "p/s").status() != "cancelled"
        durable.signal(store, "p/s", "go", 3)
        assert durable.handle(store, "p/s").result(30.0) == 7
    assert handle.result(1.0) == ["quick", 8]
