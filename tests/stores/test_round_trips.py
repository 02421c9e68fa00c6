"""What a step costs, counted on the wire and not timed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest

import durable
from durable import AsyncStep, Step
from durable._engine.starts import Route
from durable.stores import PostgresStore
from durable.stores.requests import Poll
from harness.proxy import Count, Proxy
from harness.support import Database

Workflow: TypeAlias = Callable[..., Any]

LEASE = 600.0  # seconds: no renewal falls into a test, however slow the machine
ONE_COMMIT = Count(round_trips=1, turns=1, commits=1, statements=1)
A_BEGIN = Count(
    round_trips=1, turns=1, commits=1, statements=7
)  # four, and what begins and ends a transaction and sets how long it waits for locks
NOTHING = Count()


class Interruption(BaseException):
    """Ends an execution without an outcome, as Ctrl-C does."""


class Counted:
    """The deps of the workflows below: takes a count after each step."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._last = Count()
        self.interrupted_at: int | None = None
        self.bodies = 0
        self.begun = Count()
        self.steps: list[Count] = []

    def begin(self) -> None:
        """The workflow function begins."""
        self.begun = self._lap()
        self.steps.clear()

    def body(self, index: int) -> dict[str, int]:
        """The body of every step."""
        if index == self.interrupted_at:
            raise Interruption
        self.bodies += 1
        return {"index": index}

    def step_done(self) -> None:
        """A step was handed out."""
        self.steps.append(self._lap())

    def ended(self) -> Count:
        """What has been counted since the last step."""
        return self._lap()

    def _lap(self) -> Count:
        now = self._proxy.count()
        lap, self._last = now.since(self._last), now
        return lap


def blocking(step: Step, deps: Counted, steps: int) -> int:
    deps.begin()
    for index in range(steps):
        step("body", deps.body, index)
        deps.step_done()
    return steps


async def asynchronous(step: AsyncStep, deps: Counted, steps: int) -> int:
    deps.begin()
    for index in range(steps):
        await step("body", deps.body, index)
        deps.step_done()
    return steps


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    with Proxy(database.url) as proxy:
        yield proxy


@pytest.fixture(params=[blocking, asynchronous], ids=["sync", "async"])
def workflow(request: pytest.FixtureRequest) -> Workflow:
    chosen: Workflow = request.param
    return chosen


@pytest.fixture
def store(database: Database, proxy: Proxy, workflow: Workflow) -> Iterator[PostgresStore]:
    """A store that has done everything once: its connection is open, its schema checked, its statements prepared."""
    with database.store(proxy.url) as store:
        deps = Counted(proxy)
        deps.interrupted_at = 1
        with pytest.raises(Interruption):
            run(store, workflow, deps, "warm-up", 2)
        deps.interrupted_at = None
        run(store, workflow, deps, "warm-up", 2)
        yield store


def run(store: PostgresStore, workflow: Workflow, deps: Counted, run_id: str, steps: int) -> int:
    """Run it in its colour."""
    deps.ended()
    outcome: Any = durable.run(deps, workflow, id=run_id, store=store, input=steps, lease=LEASE)
    result: int = asyncio.run(outcome) if workflow is asynchronous else outcome
    return result


def test_a_fresh_step_costs_one_round_trip_and_one_commit(
    database: Database, proxy: Proxy, store: PostgresStore, workflow: Workflow
) -> None:
    deps = Counted(proxy)

    assert run(store, workflow, deps, "fresh", 5) == 5

    assert deps.steps == [ONE_COMMIT] * 5
    assert len(database.journal("fresh")) == 1 + 5 + 1  # so it was the steps that were committed


def test_a_replayed_step_costs_nothing(proxy: Proxy, store: PostgresStore, workflow: Workflow) -> None:
    deps = Counted(proxy)
    deps.interrupted_at = 5
    with pytest.raises(Interruption):
        run(store, workflow, deps, "replayed", 8)
    deps.interrupted_at, deps.bodies = None, 0

    assert run(store, workflow, deps, "replayed", 8) == 8

    assert deps.steps == [NOTHING] * 5 + [ONE_COMMIT] * 3
    assert deps.bodies == 3


def test_a_run_costs_two_round_trips_and_two_commits_beside_its_steps(
    proxy: Proxy, store: PostgresStore, workflow: Workflow
) -> None:
    deps = Counted(proxy)

    run(store, workflow, deps, "no-steps", 0)

    assert deps.begun == A_BEGIN
    assert deps.ended() == ONE_COMMIT


@pytest.mark.parametrize(("steps", "round_trips"), [(0, 2), (1, 3), (10, 12)])
def test_a_workflow_costs_two_round_trips_and_one_a_step(
    proxy: Proxy, store: PostgresStore, workflow: Workflow, steps: int, round_trips: int
) -> None:
    deps = Counted(proxy)
    before = proxy.count()

    run(store, workflow, deps, "whole", steps)

    spent = proxy.count().since(before)
    assert spent == Count(round_trips, turns=round_trips, commits=round_trips, statements=round_trips + 6)


def test_a_resumed_run_begins_with_one_round_trip(proxy: Proxy, store: PostgresStore, workflow: Workflow) -> None:
    deps = Counted(proxy)
    deps.interrupted_at = 2
    with pytest.raises(Interruption):
        run(store, workflow, deps, "resumed", 3)
    assert deps.ended() == ONE_COMMIT  # the lease is given back

    deps.interrupted_at = None
    run(store, workflow, deps, "resumed", 3)

    assert deps.begun == A_BEGIN
    assert deps.ended() == ONE_COMMIT


def test_a_completed_run_asked_again_costs_one_round_trip(
    proxy: Proxy, store: PostgresStore, workflow: Workflow
) -> None:
    deps = Counted(proxy)
    run(store, workflow, deps, "completed", 3)
    deps.bodies = 0

    assert run(store, workflow, deps, "completed", 3) == 3

    asked = deps.ended()
    assert (asked.round_trips, asked.turns) == (1, 1)
    assert deps.bodies == 0


def test_what_an_idle_worker_asks_is_one_transaction(proxy: Proxy, store: PostgresStore, workflow: Workflow) -> None:
    """Which looks for dead owners and for signals, too; a hundred of them ask twenty times a second."""
    poll = Poll([Route("default", "none", 1)], 1, LEASE, lambda _: True, looks_for_dead=True, worker="w1")
    store.perform(poll)  # which opens its connection
    before = proxy.count()
    assert store.perform(poll).granted == []
    asked = Count(
        round_trips=1, turns=1, commits=1, statements=9
    )  # the proxy's commits are of statements that write, and not of all
    assert proxy.count().since(before) == asked
