"""Children, waits and schedules in queues with limits: what waits holds no slot and is no member of a partition."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

import durable
from durable._engine.starts import Route
from durable.stores.protocol import ReadableStore
from durable.stores.requests import Poll
from harness.ownership_children import wait_until

WITHIN: Final = 10.0  # seconds, for what a worker does at once


class _Busy:
    """How many bodies are at work, and the most there were."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = self.most = 0

    def work(self, n: int) -> int:
        """The body."""
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        threading.Event().wait(0.01)  # so that another one would come
        with self._lock:
            self._now -= 1
        return n * 2


@durable.workflow(name="doubles", queue="q")
def doubles(step: durable.Step, busy: _Busy, n: int) -> int:
    return step("double", busy.work, n)


@durable.workflow(name="calls", queue="q")
def calls(step: durable.Step, busy: _Busy, n: int) -> list[int]:
    return [step.call(doubles, i, key=f"item {i}", partition="family") for i in range(n)]


@durable.workflow(name="fans", queue="q")
def fans(step: durable.Step, busy: _Busy, n: int) -> list[int]:
    return step.wait_all([step.start(doubles, i, key=f"item {i}", partition="family") for i in range(n)])


@durable.workflow(name="afans", queue="q")
async def afans(step: durable.AsyncStep, busy: _Busy, n: int) -> list[int]:
    return await step.wait_all([await step.start(doubles, i, key=f"item {i}", partition="family") for i in range(n)])


@durable.workflow(name="waits", queue="q")
def waits(step: durable.Step, busy: _Busy, n: int) -> int:
    return int(step.wait_for("go")) + n


@durable.workflow(name="ticks", queue="q")
def ticks(step: durable.Step, busy: _Busy) -> None:
    step("work", busy.work, 1)


ALL: Final[list[Any]] = [doubles, calls, fans, afans, waits, ticks]


def worker_of(store: ReadableStore, busy: _Busy, queue: durable.Queue, **options: Any) -> durable.Worker:
    return durable.Worker(store, busy, ALL, queues=[queue], **{"concurrency": 8, "suspend_after": 0.0, **options})


@pytest.mark.parametrize("workflow", [calls, fans, afans])
def test_147_a_parent_that_waits_holds_no_slot(store: ReadableStore, workflow: Any) -> None:
    """Parent and children are of one partition of one, in a queue of one: each child has its turn, one after the other."""
    busy, queue = _Busy(), durable.Queue("q", concurrency=1, partition_concurrency=1)
    handle = durable.start(workflow, 4, id="p", store=store, partition="family")
    with worker_of(store, busy, queue):
        assert handle.result(WITHIN) == [0, 2, 4, 6]
    assert busy.most == 1
    assert [line for line in store.queues() if line.held or line.due] == []


@pytest.mark.parametrize("partition", [None, "family"])
def test_147_children_in_a_queue_of_two_are_two_at_once(store: ReadableStore, partition: str | None) -> None:
    """From a parent in a queue without limits, into one with them."""
    busy, limits = _Busy(), durable.Queue("q", concurrency=2)
    handle = durable.start(fans, 6, id="p", store=store, queue="free", partition=partition)
    durable_worker = durable.Worker(store, busy, ALL, queues=[limits, "free"], concurrency=8, suspend_after=0.0)
    with durable_worker:
        assert handle.result(WITHIN) == [0, 2, 4, 6, 8, 10]
    assert busy.most == 2


def test_a_run_that_waits_is_held_by_none_and_due_for_none(store: ReadableStore) -> None:
    """As the list of queues has it, and as the others see it which go past it; its signal makes it a member again."""
    busy, queue = _Busy(), durable.Queue("q", concurrency=1, partition_concurrency=1)
    first = durable.start(waits, 1, id="first", store=store, partition="a")
    worker_of(store, busy, queue).run_until_idle()
    wait_until(lambda: store.status("first") == "suspended", "the run waits")
    (line,) = store.queues()
    assert (line.held, line.due, line.partitions) == (0, 0, 0)
    for _ in range(20):
        assert not store.perform(Poll([Route("q", "waits", 1)], 5, 30.0, lambda _: True, True)).granted
    second = durable.start(doubles, 4, store=store, partition="a")
    worker_of(store, busy, queue).run_until_idle()
    assert second.result(WITHIN) == 8
    first.signal("go", 6)
    worker_of(store, busy, queue).run_until_idle()
    assert first.result(WITHIN) == 7


def test_a_schedule_that_queues_its_runs_has_them_in_a_queue_with_limits(store: ReadableStore) -> None:
    """What waits for the run before waits for that run's turn, too; of several schedules one run at a time is executed."""
    busy, queue = _Busy(), durable.Queue("q", concurrency=1)
    minute = (datetime.now(UTC) - timedelta(minutes=2)).minute
    schedules = [
        durable.Schedule(name, f"{minute} * * * *", ticks, overlap="queue", missed="all") for name in ("a", "b")
    ]
    worker = worker_of(store, busy, queue, schedules=schedules)
    worker.run_until_idle()  # finds out when they are due
    for schedule in schedules:
        durable.schedule(store, schedule.name).backfill(datetime.now(UTC) - timedelta(hours=3), datetime.now(UTC))
    assert next(line.due for line in store.queues()) == 6
    worker_of(store, busy, queue, schedules=schedules).run_until_idle()
    assert [run.status for run in store.runs()] == ["completed"] * 6
    assert busy.most == 1


def test_a_child_that_is_retried_waits_for_its_turn_again(store: ReadableStore) -> None:
    """A cancelled child whose parent goes back to it: due, in its partition, and no member before."""
    busy, queue = _Busy(), durable.Queue("q", partition_concurrency=1)
    handle = durable.start(calls, 2, id="p", store=store, partition="parents")
    durable.pause(store, "q")
    assert not store.perform(Poll([Route("q", "calls", 1)], 5, 30.0, lambda _: True, True)).granted
    durable.unpause(store, "q")
    with durable.Worker(store, busy, [calls], queues=[queue], suspend_after=0.0):
        wait_until(lambda: store.status("p") == "suspended", "the parent waits")
    durable.cancel(store, "p/item 0")
    with durable.Worker(store, busy, [calls], queues=[queue], suspend_after=0.0):
        wait_until(lambda: store.status("p") == "failed", "the parent has failed")
    durable.retry(store, "p")
    with worker_of(store, busy, queue):
        assert handle.result(WITHIN) == [0, 2]
