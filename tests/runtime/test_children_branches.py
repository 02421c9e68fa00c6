"""A run whose branches all wait is suspended, for whichever of them comes first."""

from __future__ import annotations

import asyncio
from typing import Any

import durable
from durable.stores.protocol import QueueingStore
from harness.ownership_children import wait_until

WITHIN = 30.0  # seconds


@durable.workflow(name="naps-beside")
async def naps_beside(step: durable.AsyncStep, deps: list[str], seconds: float) -> Any:
    async def nap() -> str:
        await step.sleep("nap", seconds)
        return await step("woke", lambda: "woke")

    return await asyncio.gather(nap(), step.wait_for("go", timeout=2 * seconds + 5))


def test_a_branch_that_sleeps_is_not_forgotten_where_another_waits(store: QueueingStore) -> None:
    handle = durable.start(naps_beside, 1.0, id="p", store=store)
    worker = durable.Worker(store, [], [naps_beside], suspend_after=0.1)
    worker.run_until_idle()
    assert handle.status() == "suspended"
    with worker:
        wait_until(lambda: len(store.journal("p")) >= 4, "the branch that slept")  # type: ignore[attr-defined]
        handle.signal("go", "gone")
        assert handle.result(WITHIN) == ["woke", "gone"]


def test_a_short_sleep_keeps_the_run_in_its_process(store: QueueingStore) -> None:
    handle = durable.start(naps_beside, 0.5, id="p", store=store)
    handle.signal("go", "gone")
    with durable.Worker(store, [], [naps_beside], suspend_after=3600.0):
        assert handle.result(WITHIN) == ["woke", "gone"]
