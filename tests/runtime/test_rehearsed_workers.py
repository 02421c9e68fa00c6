"""Workers on a rehearsal: what is delayed comes due when its clock is moved, and what waits takes no time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final

import pytest
import tenacity

import durable
from durable.errors import RunPoisoned
from durable.testing import Rehearsal

HOUR: Final = 3600.0
WITHIN: Final = 20.0  # real seconds
RETRY: Final[Any] = tenacity.Retrying(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(HOUR))


@pytest.fixture
def rehearsal() -> Iterator[Rehearsal]:
    with Rehearsal() as rehearsal:
        yield rehearsal


@durable.workflow(name="one")
def one(step: durable.Step, deps: Any) -> int:
    return step("one", lambda: 1)


@durable.workflow(name="sleepy")
def sleepy(step: durable.Step, deps: Any) -> str:
    step.sleep("nap", 24 * HOUR)
    return step("wake", lambda: "up")


@durable.workflow(name="sleepy", version=2)
async def asleep(step: durable.AsyncStep, deps: Any) -> str:
    await step.sleep("nap", 24 * HOUR)
    return await step("wake", lambda: "up")


@durable.workflow(name="unsteady", retry=RETRY)
def unsteady(step: durable.Step, deps: Any) -> str:
    return step("fetch", lambda: "fetched")


def test_a_run_comes_due_when_the_clock_is_moved(rehearsal: Rehearsal) -> None:
    worker, clock = durable.Worker(rehearsal, None, [one]), rehearsal.clock
    delayed = durable.start(one, store=rehearsal, delay=HOUR)
    tomorrow = durable.start(one, store=rehearsal, at=clock.now() + timedelta(days=1))
    worker.run_until_idle()
    assert (delayed.status(), tomorrow.status()) == ("queued", "queued")
    clock.advance(HOUR - 1)
    worker.run_until_idle()
    assert (delayed.status(), tomorrow.status()) == ("queued", "queued")
    clock.advance(1)
    worker.run_until_idle()
    assert (delayed.result(), tomorrow.status()) == (1, "queued")
    clock.advance(23 * HOUR)
    worker.run_until_idle()
    assert tomorrow.result() == 1
    assert rehearsal.bodies == ["one", "one"]


def test_a_failed_run_is_due_again_when_its_policy_says(rehearsal: Rehearsal) -> None:
    worker = durable.Worker(rehearsal, None, [unsteady])
    rehearsal.script("fetch", OSError("down"), OSError("down"), "fetched")
    run = durable.start(unsteady, store=rehearsal)
    for tries in (1, 2):
        worker.run_until_idle()
        worker.run_until_idle()
        assert (run.status(), len(rehearsal.bodies)) == ("queued", tries)
        rehearsal.clock.advance(HOUR)
    worker.run_until_idle()
    assert run.result() == "fetched"


@pytest.mark.parametrize("workflow", [sleepy, asleep])
def test_what_waits_takes_no_time(rehearsal: Rehearsal, workflow: Any) -> None:
    worker, before = durable.Worker(rehearsal, None, [workflow]), rehearsal.clock.elapsed()
    run = durable.start(workflow, store=rehearsal)
    worker.run_until_idle()
    assert (run.result(), rehearsal.clock.elapsed() - before) == ("up", 24 * HOUR)
    more = [durable.start(workflow, store=rehearsal) for _ in range(3)]
    worker.run_until_idle()
    assert [run.result() for run in more] == ["up"] * 3


def test_a_worker_beside_the_test_sees_the_clock_move(rehearsal: Rehearsal) -> None:
    with durable.Worker(rehearsal, None, [one]):
        run = durable.start(one, store=rehearsal, delay=HOUR)
        rehearsal.clock.advance(HOUR)
        assert run.result(timeout=WITHIN) == 1


def test_a_run_that_dies_is_gone_on_with(rehearsal: Rehearsal) -> None:
    worker, run = durable.Worker(rehearsal, None, [sleepy]), durable.start(sleepy, store=rehearsal)
    with rehearsal.crash_at("after body", "wake"):
        worker.run_until_idle()
    assert run.result() == "up"
    assert rehearsal.bodies.count("wake") == 2


def test_a_run_that_exits_is_poison_in_the_end(rehearsal: Rehearsal) -> None:
    @durable.workflow(name="exits", max_crashes=1)
    def exits(step: durable.Step, deps: Any) -> None:
        sys.exit()

    with durable.Worker(rehearsal, None, [exits], lease=0.5), pytest.raises(RunPoisoned):
        durable.start(exits, store=rehearsal).result(timeout=WITHIN)
