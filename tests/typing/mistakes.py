"""The natural mistakes: each line is an error to both type checkers, of the kind that stands beside it.

`make check` reads this; it is never run. A mistake that a checker does not see is an ignore that it finds unused, and an
error of that.
"""

# mypy: disable-error-code="unused-coroutine, empty-body"

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import durable
from durable import AsyncStep, Step, Workflow
from durable.stores import memory
from durable.testing import Rehearsal


@dataclass
class Deps:
    limit: int


def fetch(order_id: str) -> int:
    return len(order_id)


async def fetch_async(order_id: str) -> int:
    return len(order_id)


@durable.step
def charge(euros: int) -> str:
    return str(euros)


def workflow(step: Step, deps: Deps) -> None:
    step("fetch", fetch)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    durable.workflow(name=7)(fetch)  # type: ignore[call-overload] # pyright: ignore[reportArgumentType]
    durable.workflow(version="2")(fetch)  # type: ignore[call-overload] # pyright: ignore[reportArgumentType]
    durable.workflow(migrates={1: fetch})(fetch)  # type: ignore[dict-item] # pyright: ignore[reportArgumentType]
    step("fetch", fetch, 5)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    step("fetch", fetch, "o-1", "o-2")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    step("fetch", fetch("o-1"))  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    step(fetch, "o-1")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    step("fetch", fetch, "o-1", timeout="30s")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    step("fetch", fetch, "o-1", retry=5)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    step("fetch", fetch, order_id="o-1")  # type: ignore[call-arg, arg-type] # pyright: ignore[reportCallIssue]
    step("fetch", fetch, "o-1", timout=5)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    total: str = step("fetch", fetch, "o-1")  # type: ignore[assignment] # pyright: ignore[reportAssignmentType]
    charge("42")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    deps.limits  # type: ignore[attr-defined] # pyright: ignore[reportUnknownMemberType, reportAttributeAccessIssue]
    step.map("fetch", fetch, [1, 2])  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    step.map("fetch", fetch, ["o-1"], timout=5)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]
    step.map("fetch", fetch, ["o-1"], at_most_once=True)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]
    step.transaction("fetch", fetch, "o-1")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    step.sleep("cool down", "an hour")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    step.wait_for()  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]


async def async_workflow(step: AsyncStep, deps: Deps) -> None:
    await step("fetch", fetch_async)  # type: ignore[call-arg, arg-type] # pyright: ignore[reportCallIssue, reportArgumentType]
    await step("fetch", fetch_async, 5)  # type: ignore[arg-type] # pyright: ignore[reportCallIssue, reportArgumentType]
    await step("fetch", fetch_async("o-1"))  # type: ignore[call-overload] # pyright: ignore[reportCallIssue, reportArgumentType]
    await step("fetch", fetch_async, "o-1", timout=5)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]
    await step.map("fetch", fetch_async, ["o-1"], retries=5)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]
    total: str = await step("fetch", fetch_async, "o-1")  # type: ignore[arg-type] # pyright: ignore[reportAssignmentType]
    value: int = step("fetch", fetch_async, "o-1")  # type: ignore[assignment] # pyright: ignore[reportAssignmentType]
    await step.map("fetch", fetch_async, [1, 2])  # type: ignore[arg-type] # pyright: ignore[reportCallIssue, reportArgumentType]


def with_input(step: Step, deps: Deps, order: int) -> int:
    return order


def without_deps(step: Step) -> None: ...


async def runs(deps: Deps) -> None:
    store = memory()
    durable.run(deps, workflow)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]
    durable.run(deps, workflow, id=7)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue, reportArgumentType]
    durable.run(deps, workflow, id="1", store="postgresql://localhost/x")  # type: ignore[call-overload] # pyright: ignore[reportCallIssue, reportArgumentType]
    durable.run(deps, workflow, id="1", on_conflict="retry")  # type: ignore[call-overload] # pyright: ignore[reportCallIssue, reportArgumentType]
    durable.run(deps, workflow, id="1", stor=store)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]
    durable.run(deps, workflow, id="1", leas=5)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]
    durable.run(deps, workflow, id="1", lease="long")  # type: ignore[call-overload] # pyright: ignore[reportCallIssue, reportArgumentType]
    durable.run("deps", workflow, id="1")  # type: ignore[arg-type] # pyright: ignore[reportCallIssue, reportArgumentType]
    durable.run(deps, without_deps, id="1")  # type: ignore[arg-type] # pyright: ignore[reportCallIssue, reportArgumentType]
    durable.run(deps, with_input, id="1", input="seven")  # type: ignore[arg-type] # pyright: ignore[reportCallIssue, reportArgumentType]
    durable.run(deps, workflow(Any, deps), id="1")  # type: ignore[call-overload, func-returns-value, arg-type] # pyright: ignore[reportCallIssue, reportArgumentType]
    number: str = durable.run(deps, with_input, id="1", input=7)  # type: ignore[assignment] # pyright: ignore[reportAssignmentType]
    pending: int = durable.run(deps, async_workflow, id="1")  # type: ignore[assignment] # pyright: ignore[reportAssignmentType]
    durable.start(with_input, "seven", store=store)  # type: ignore[arg-type] # pyright: ignore[reportCallIssue, reportArgumentType]
    durable.start(with_input, 7, store=store, priorty=1)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]
    durable.signal("run-1", "approved")  # type: ignore[call-arg, arg-type] # pyright: ignore[reportCallIssue]
    durable.cancel(store)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    Workflow("checkout", deps).run(with_input, input="seven")  # type: ignore[arg-type] # pyright: ignore[reportCallIssue, reportArgumentType]
    Rehearsal(store).crash_at("in the body", "charge")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
