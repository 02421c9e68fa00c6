"""What both type checkers infer of a workflow, without a cast. `make check` reads this; it is never run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal, assert_type
from uuid import UUID

import psycopg
import tenacity

import durable
from durable import AsyncStep, ResumeStateCollector, Step, Workflow
from durable.stores import embedded, memory, postgres
from durable.testing import JumpingClock, Rehearsal, Replayed, replay


@dataclass
class Order:
    euros: int


@dataclass
class Receipt:
    order: Order


def fetch(order_id: str) -> Order: ...  # type: ignore[empty-body]
async def fetch_async(order_id: str) -> Order: ...  # type: ignore[empty-body]
def look(row: dict[str, Any]) -> Order | None: ...
async def look_async(row: dict[str, Any]) -> Order | None: ...
def promise(order_id: str) -> asyncio.Future[Order]: ...  # type: ignore[empty-body]
def book(connection: psycopg.Connection, order: Order) -> Receipt: ...  # type: ignore[empty-body]


def cleared(stored: durable.Snapshot) -> Literal["clear"]: ...  # type: ignore[empty-body]
async def migrated(stored: durable.Snapshot) -> dict[str, Any]: ...  # type: ignore[empty-body]


@durable.step
def charge(order: Order, times: int = 1) -> Receipt: ...  # type: ignore[empty-body]


@durable.step(name="charge", retry=tenacity.Retrying(), timeout=30)
async def charge_async(order: Order) -> Receipt: ...  # type: ignore[empty-body]


@durable.workflow(name="named")
def named(step: Step, deps: Deps, order: Order) -> Receipt: ...  # type: ignore[empty-body]


@durable.workflow(version=2, queue="mail", retry=tenacity.Retrying(), migrates={0: cleared, 1: migrated})
async def versioned(step: AsyncStep, deps: Deps) -> Receipt: ...  # type: ignore[empty-body]


@durable.workflow
async def named_async(step: AsyncStep, deps: Deps) -> Receipt: ...  # type: ignore[empty-body]


@durable.workflow("object")
class Named:
    def __call__(self, step: Step, deps: Deps) -> int: ...  # type: ignore[empty-body]


async def workflows_keep_their_types(deps: Deps) -> None:
    assert_type(durable.run(deps, named, id="n", input=Order(1)), Receipt)
    assert_type(await durable.run(deps, named_async, id="a"), Receipt)
    assert_type(await durable.run(deps, versioned, id="v"), Receipt)
    assert_type(durable.run(deps, Named(), id="o"), int)
    assert_type(durable.workflow(name="part")(partial(fetch, "o-1"))(), Order)


@dataclass
class Deps:
    """As people write them: functions, decorated ones among them, and callables that are only described."""

    charge: Callable[[Order], Receipt]
    charge_async: Callable[[Order], Coroutine[Any, Any, Receipt]]
    find: Callable[[str], Awaitable[Order]]
    limit: int


def checkout(step: Step, deps: Deps) -> Receipt:
    assert_type((step.now(), step.uuid(key="k"), step.random()), tuple[datetime, UUID, float])
    assert_type((step.run_id, step.attempt, durable.current()), tuple[str, int, durable.Current | None])
    order = assert_type(step("fetch", fetch, "o-1"), Order)
    assert_type(step("fetch", fetch, "o-1", key="again", timeout=1.5, at_most_once=True), Order)
    assert_type(step("fetch", lambda: fetch("o-1"), key="thunk"), Order)
    assert_type(step("fetch", partial(fetch, "o-1"), key="partial"), Order)
    assert_type(step("look", look, {"id": 1}), Order | None)
    assert_type(step("length", len, "abc"), int)
    assert_type(charge(order), Receipt)
    assert_type(charge(order, times=2), Receipt)
    assert_type(deps.charge(order), Receipt)
    assert_type(deps.limit, int)
    assert_type(step("charge", charge, order, 2), Receipt)
    assert_type(step.map("fetch all", fetch, ["a", "b"], key=str), list[Order])
    assert_type(step.map("measure", len, ["a", "b"], return_exceptions=True), list[int | Exception])
    assert_type(step.transaction("book", book, order), Receipt)
    step.sleep("cool down", 3600)
    step.sleep("cool down again", timedelta(hours=1))
    assert_type(step("fetch", fetch, "o-1", key="in time", timeout=timedelta(seconds=30)), Order)
    assert_type(step.wait_for("approved", timeout=60), Any)
    assert_type(step.wait_for("approved", type=Order, timeout=60), Order)
    assert_type(step.wait_for_any(["approved", "rejected"], timeout=60), tuple[str, Any])
    return step("charge", deps.charge, order)


async def checkout_async(step: AsyncStep, deps: Deps) -> Receipt:
    order = assert_type(await step("fetch", fetch_async, "o-1"), Order)
    assert_type(await step("fetch", fetch, "o-1"), Order)
    assert_type(await step("fetch", lambda: fetch_async("o-1"), key="thunk"), Order)
    assert_type(await step("fetch", lambda: fetch("o-1"), key="thunk of a value"), Order)
    assert_type(await step("find", deps.find, "o-1"), Order)
    assert_type(await step("promise", promise, "o-1"), Order)
    assert_type(await step("look", look, {"id": 1}), Order | None)
    assert_type(await step("look", look_async, {"id": 1}), Order | None)
    assert_type(await charge_async(order), Receipt)
    assert_type(await deps.charge_async(order), Receipt)
    assert_type(await step("charge", deps.charge, order, key="one", at_most_once=True), Receipt)
    assert_type(await step.map("fetch all", fetch_async, ["a", "b"], key=str), list[Order])
    assert_type(await step.map("fetch all", fetch, ["a", "b"]), list[Order])
    assert_type(await step.map("find", deps.find, ["a"], return_exceptions=True), list[Order | Exception])
    assert_type(await step.transaction("book", book, order), Receipt)
    await step.sleep("cool down", 3600)
    assert_type(await step.wait_for("approved"), Any)
    assert_type(await step.wait_for("approved", type=Order), Order)
    assert_type(await step.wait_for_any(("approved", "rejected")), tuple[str, Any])
    first, length = await asyncio.gather(step("fetch", fetch_async, "o-1", key="left"), step("length", len, "abc"))
    assert_type(first, Order)
    assert_type(length, int)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(step("fetch", fetch_async, "o-2", key="right"))
    assert_type(task.result(), Order)
    return await deps.charge_async(order)


def values_of_any(step: Step, row: Any, rows: dict[str, Any]) -> None:
    """Arguments that nothing is known of do not hide what comes back."""
    assert_type(step("fetch", fetch, row), Order)
    assert_type(step("look", look, rows), Order | None)


async def values_of_any_async(step: AsyncStep, row: Any, rows: dict[str, Any]) -> None:
    assert_type(await step("fetch", fetch_async, row), Order)
    assert_type(await step("fetch", fetch, row), Order)
    assert_type(await step("look", look_async, rows), Order | None)
    assert_type(await step("promise", promise, row), Order)


def by_input(step: Step, deps: Deps, order: Order) -> Receipt:
    return deps.charge(order)


async def by_input_async(step: AsyncStep, deps: Deps, order: Order) -> Receipt:
    return await deps.charge_async(order)


async def runs(deps: Deps) -> None:
    """Both colours of `run`, with and without an input, and what is around it."""
    store = memory()
    assert_type(durable.run(deps, checkout, id="1", store=store), Receipt)
    assert_type(durable.run(deps, by_input, id="2", input=Order(1)), Receipt)
    assert_type(await durable.run(deps, checkout_async, id="3", store=store, on_conflict="wait"), Receipt)
    assert_type(await durable.run(deps, by_input_async, id="4", input=Order(1), deadline=60), Receipt)
    assert_type(durable.run(deps, checkout, id="1", lease=timedelta(seconds=30), deadline=timedelta(hours=1)), Receipt)
    several = asyncio.gather(durable.run(deps, checkout_async, id="5"), durable.run(deps, checkout_async, id="6"))
    assert_type(await several, tuple[Receipt, Receipt])
    assert_type(durable.signal(store, "1", "approved", {"by": "ada"}), bool)
    assert_type(await durable.aio.signal(store, "1", "approved", dedup="one", create_later=True), bool)
    assert_type(durable.cancel(store, "1"), bool)
    assert_type(await durable.aio.cancel(store, "1"), bool)
    assert_type(durable.result(store, "1"), Any)
    assert_type(durable.status(store, "1"), str | None)
    with closing(store), embedded() as other, postgres("postgresql://localhost/x") as third:
        assert_type(other.load("1"), durable.Snapshot | None)
        assert_type(await third.aio.load("1"), durable.Snapshot | None)


async def workflows(deps: Deps) -> None:
    """The low-level way."""
    collector = ResumeStateCollector()
    workflow = assert_type(Workflow("checkout", deps, on_event=collector.handle_event), Workflow[Deps])
    assert_type(workflow.run(checkout), Receipt)
    assert_type(workflow.run(by_input, input=Order(1), resume_state=collector.resume_state()), Receipt)
    assert_type(await workflow.run(checkout_async), Receipt)
    assert_type(await workflow.run(by_input_async, input=Order(1)), Receipt)


async def tests(deps: Deps) -> None:
    """The test kit."""
    with Rehearsal(memory(), clock=JumpingClock(), always_replay=True) as rehearsal:
        rehearsal.script("charge", ConnectionError, Receipt(Order(1)))
        with rehearsal.crash_at("after body", "charge"):
            assert_type(durable.run(deps, checkout, id="1", store=rehearsal), Receipt)
        assert_type(durable.result(rehearsal, "1"), Any)
        assert_type(replay(deps, checkout, rehearsal.load("1") or {}), Replayed)
        assert_type(await replay(deps, by_input_async, b"{}"), Replayed)


async def handles(deps: Deps) -> None:
    """Runs that are started: a handle knows what its workflow returns."""
    store = memory()
    assert_type(durable.start(checkout, store=store).result(), Receipt)
    assert_type(durable.start(by_input, Order(1), store=store, priority=3).result(1.0), Receipt)
    assert_type(durable.start(by_input_async, Order(1), store=store).result(), Receipt)
    assert_type(await (await durable.aio.start(checkout_async, store=store)).aio.result(), Receipt)
    assert_type(durable.start("checkout@2", store=store).result(), Any)
    async with durable.Worker(store, deps, [checkout, checkout_async], concurrency=4) as worker:
        assert_type(worker, durable.Worker)
