"""The two doors into a run: it is claimed and then executed, or executed under a lease that was granted before."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

import durable
from durable._engine.decisions import Granted
from durable._runtime.async_runs import AsyncRun
from durable._runtime.plan import Plan
from durable._runtime.run import run_claimed
from durable._runtime.runs import BlockingRun
from durable.stores import MemoryStore
from durable.stores.requests import Begin


class Planned(MemoryStore):
    """Gives back the plan of a call of `durable.run`, and executes nothing."""

    def rehearse(self, plan: Plan, *, is_async: bool) -> Plan:
        assert plan.is_async == is_async
        return plan


calls: list[str] = []


def call(name: str) -> str:
    calls.append(name)
    return name


def workflow(step: durable.Step, deps: dict[str, bool]) -> list[str]:
    first = step("first", call, "first")
    if deps["fails"]:
        raise ConnectionError
    return [first, step("second", call, "second")]


async def async_workflow(step: durable.AsyncStep, deps: dict[str, bool]) -> list[str]:
    first = await step("first", call, "first")
    if deps["fails"]:
        raise ConnectionError
    return [first, await step("second", call, "second")]


def planned(store: Planned, fn: Any, *, fails: bool) -> Plan:
    plan: Any = durable.run({"fails": fails}, fn, id="r", store=store)
    assert isinstance(plan, Plan)
    return plan


def execute(plan: Plan, granted: Granted) -> Any:
    """As a worker does what it has got."""
    run = AsyncRun(plan) if plan.is_async else BlockingRun(plan)
    return run.outcome(granted)


def outcome(value: Any) -> Any:
    async def awaited() -> Any:
        return await value

    return asyncio.run(awaited()) if asyncio.iscoroutine(value) else value


@pytest.mark.parametrize("fn", [workflow, async_workflow], ids=["blocking", "async"])
def test_both_doors_lead_to_the_same_end(fn: Any) -> None:
    calls.clear()
    with Planned() as store:
        with contextlib.suppress(ConnectionError):
            outcome(run_claimed(planned(store, fn, fails=True)))
        assert store.status("r") == "failed"

        plan = planned(store, fn, fails=False)
        granted = store.perform(Begin(plan.claim, lambda: True))
        assert isinstance(granted, Granted)
        assert granted.records
        assert outcome(execute(plan, granted)) == ["first", "second"]

        assert calls == ["first", "second"]
        assert not granted.records, "the texts of the journal are let go of, whatever still holds the grant"
        assert not plan.claim.taken
        assert store.status("r") == "completed"


@pytest.mark.parametrize("fn", [workflow, async_workflow], ids=["blocking", "async"])
def test_a_grant_that_cannot_be_executed_is_given_back(fn: Any) -> None:
    with Planned() as store:
        plan = planned(store, fn, fails=True)
        granted = store.perform(Begin(plan.claim, lambda: True))
        assert isinstance(granted, Granted)
        with pytest.raises(ConnectionError):
            outcome(execute(plan, granted))
        assert not plan.claim.taken
        assert store.status("r") == "failed"
