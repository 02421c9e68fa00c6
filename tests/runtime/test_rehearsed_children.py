"""Children on a rehearsal: also where the parent is executed anew after each step."""

from __future__ import annotations

from typing import Any

import pytest

import durable
from durable.testing import Rehearsal


@durable.workflow(name="adds")
def adds(step: durable.Step, deps: Any, n: int) -> int:
    return step("add", lambda: n + 1)


@durable.workflow(name="asks")
def asks(step: durable.Step, deps: Any, n: int) -> list[int]:
    first = step.call(adds, n, key="first")
    return [first, *step.wait_all([step.start(adds, first + i, key=f"{i}") for i in range(2)])]


@durable.workflow(name="aasks")
async def aasks(step: durable.AsyncStep, deps: Any, n: int) -> list[int]:
    first = await step.call(adds, n, key="first")
    return [first, *await step.wait_all([await step.start(adds, first + i, key=f"{i}") for i in range(2)])]


@pytest.mark.parametrize("workflow", [asks, aasks])
@pytest.mark.parametrize("always_replay", [False, True])
def test_children_on_a_rehearsal(workflow: Any, always_replay: bool) -> None:
    with Rehearsal(always_replay=always_replay) as rehearsal:
        handle = durable.start(workflow, 1, store=rehearsal)
        durable.Worker(rehearsal, None, [workflow, adds], concurrency=1).run_until_idle()
        assert handle.result(20.0) == [2, 3, 4]
