"""`durable.cancel` is heard within two seconds by a run that waits, from another process too, and costs next to nothing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import pytest
import tenacity

import durable
from durable._common.threads import Daemons
from durable._engine.leases import MAX_WAIT, Lease
from durable.clocks import SystemClock
from durable.stores import memory
from durable.stores._heartbeat import Heartbeat
from durable.stores._postgres.resources import Resources
from harness.support import Database

T = TypeVar("T")

HEARD_WITHIN = 2.0  # seconds: the promise
LEASE = 60.0  # seconds: a third of it, when it is renewed, is far off
SOON = 0.3  # seconds, after which a run surely waits


def sleeps(step: durable.Step, _: Any) -> None:
    step.sleep("nap", 3600.0)


def waits_for(step: durable.Step, _: Any) -> None:
    step.wait_for("approved")


def waits_for_a_while(step: durable.Step, _: Any) -> None:
    step.wait_for("approved", timeout=3600.0)


def backs_off(step: durable.Step, _: Any) -> None:
    step("fails", lambda: 1 // 0, retry=tenacity.Retrying(wait=tenacity.wait_fixed(3600.0)))


async def sleeps_async(step: durable.AsyncStep, _: Any) -> None:
    await step.sleep("nap", 3600.0)


async def waits_for_async(step: durable.AsyncStep, _: Any) -> None:
    await step.wait_for("approved")


async def backs_off_async(step: durable.AsyncStep, _: Any) -> None:
    async def fails() -> None:
        raise OSError

    await step("fails", fails, retry=tenacity.Retrying(wait=tenacity.wait_fixed(3600.0)))


async def two_wait_async(step: durable.AsyncStep, _: Any) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(step.wait_for("approved"))
        group.create_task(step.wait_for("denied"))


WAITS = [
    sleeps,
    waits_for,
    waits_for_a_while,
    backs_off,
    sleeps_async,
    waits_for_async,
    backs_off_async,
    two_wait_async,
]


class Aside:
    """Threads for runs, which nothing waits for: a run that is not cancelled, since a test has failed, sleeps for an hour."""

    def __init__(self) -> None:
        self._daemons = Daemons("aside", 8)

    def submit(self, call: Callable[..., T], *arguments: Any, **options: Any) -> Future[T]:
        return self._daemons.submit(partial(call, *arguments, **options))


@pytest.fixture
def aside() -> Aside:
    """Threads for runs."""
    return Aside()


def execute(workflow: Callable[..., Any], store: Any, name: str = "x", **options: Any) -> float:
    """When the run was left, which was cancelled."""
    with pytest.raises(durable.RunCancelled):
        outcome = durable.run(None, workflow, id=name, store=store, lease=LEASE, **options)
        if asyncio.iscoroutine(outcome) or hasattr(outcome, "__await__"):

            async def awaited() -> None:
                await outcome

            asyncio.run(awaited())
    return time.monotonic()


def begun(store: Any, name: str = "x") -> None:
    until = time.monotonic() + 30.0
    while store.status(name) != "running":
        assert time.monotonic() < until
        time.sleep(0.01)
    time.sleep(SOON)


@pytest.mark.parametrize("workflow", WAITS, ids=lambda workflow: workflow.__name__)
@pytest.mark.parametrize("kind", ["postgres", "memory"])
def test_a_wait_hears_of_its_end(database: Database, aside: Aside, kind: str, workflow: Callable[..., Any]) -> None:
    """Cancelled by another store, as by another process."""
    with memory() as kept:
        ours, theirs = (kept, kept) if kind == "memory" else (database.store(), database.store())
        left = aside.submit(execute, workflow, ours)
        begun(theirs)
        cancelled = time.monotonic()
        assert durable.cancel(theirs, "x")
        assert left.result(30.0) - cancelled < HEARD_WITHIN
        assert theirs.status("x") == "cancelled"


def test_whoever_waits_for_a_run_hears_of_it_too(database: Database, aside: Aside) -> None:
    """`on_conflict="wait"`."""
    left = aside.submit(execute, sleeps, database.store())
    begun(database.store())
    waits_at, refused = database.store(), threading.Event()
    perform = waits_at.perform

    def begun_and_told(*request: Any) -> Any:  # one whose first claim came after the cancellation would take the run up
        reply = perform(*request)
        refused.set()
        return reply

    waits_at.perform = begun_and_told  # type: ignore[method-assign,assignment]
    waiting = aside.submit(execute, sleeps, waits_at, on_conflict="wait")
    assert refused.wait(30.0)
    cancelled = time.monotonic()
    assert durable.cancel(database.store(), "x")
    assert waiting.result(30.0) - cancelled < HEARD_WITHIN
    assert left.result(30.0) - cancelled < HEARD_WITHIN


def test_a_later_wait_of_a_run_that_has_long_been_busy_hears_too(database: Database, aside: Aside) -> None:
    """The heartbeat sleeps until its renewal: a wait that begins wakes it."""
    first, go = threading.Event(), threading.Event()

    def works() -> bool:
        first.set()
        return go.wait(30.0)

    def works_and_sleeps(step: durable.Step, _: Any) -> None:
        step("works", works)
        step.sleep("nap", 3600.0)

    left = aside.submit(execute, works_and_sleeps, database.store())
    assert first.wait(30.0)
    time.sleep(1.0)
    go.set()
    time.sleep(SOON)
    cancelled = time.monotonic()
    assert durable.cancel(database.store(), "x")
    assert left.result(30.0) - cancelled < HEARD_WITHIN


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many statements heartbeats have asked, by name."""
    asked = Counter[str]()
    heard = Resources._heard

    def counting(resources: Resources, patience: float) -> Any:
        @contextmanager
        def counted() -> Iterator[Any]:
            with heard(resources, patience) as ask:

                def noted(name: str, values: Any) -> Any:
                    asked[name] += 1
                    return ask(name, values)

                yield noted

        return counted()

    monkeypatch.setattr(Resources, "_heard", counting)
    return asked


def test_looks_do_not_grow_with_the_runs_that_wait(database: Database, aside: Aside, statements: Counter[str]) -> None:
    """One statement twice a second, for six runs as for one."""
    store = database.store()
    lefts = [aside.submit(execute, sleeps, store, f"x{n}") for n in range(6)]
    for n in range(6):
        begun(store, f"x{n}")
    statements.clear()
    began = time.monotonic()
    time.sleep(2.0)
    asked, seconds = statements.copy(), time.monotonic() - began
    assert 1 <= asked["cancelled"] <= 2 * seconds + 1
    assert asked["renew"] == 0
    for n in range(6):
        assert durable.cancel(store, f"x{n}")
    for left in lefts:
        left.result(30.0)
    statements.clear()
    time.sleep(1.2)
    assert statements == {}, "nobody waits any more"


def test_a_run_that_does_not_wait_asks_once_a_second(
    database: Database, aside: Aside, statements: Counter[str]
) -> None:
    """Steps, bodies that take their time, back-offs of less than a moment, and a signal that is there: by that it hears that
    it is to end.
    """
    store = database.store()
    durable.signal(store, "x", "approved", 7, create_later=True)

    def busy(step: durable.Step, _: Any) -> int:
        failures = list[int]()

        def once() -> None:
            failures.append(1)
            if len(failures) == 1:
                raise OSError

        for n in range(20):
            step(f"step-{n}", lambda: 1)
        step("slow", lambda: time.sleep(1.2))
        step(
            "fails",
            once,
            retry=tenacity.Retrying(wait=tenacity.wait_fixed(0.2)),
        )
        step.sleep("nap", 0.5)
        return int(step.wait_for("approved"))

    began = time.monotonic()
    assert durable.run(None, busy, id="x", store=store, lease=LEASE) == 7
    assert statements.keys() <= {"cancelled"}
    assert statements["cancelled"] <= time.monotonic() - began


def test_a_look_that_fails_costs_no_lease(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks raise all the time; renewals come as ever, and looks are not asked without a pause."""
    looks = list[float]()

    def refuses(_resources: Resources, _leases: Any) -> None:
        looks.append(time.monotonic())
        raise OSError("no look")

    monkeypatch.setattr(Resources, "_look", refuses)

    def naps(step: durable.Step, _: Any) -> str:
        step.sleep("nap", 3.0)
        return step("late", lambda: "done")

    assert durable.run(None, naps, id="x", store=database.store(), lease=1.0) == "done"
    assert 1 <= len(looks) <= 2


def test_a_heartbeat_is_woken_once_for_a_wait() -> None:
    """Not at each of its looks, and not in a child of a fork."""
    lease, woken = Lease("x", "1:a", 1, LEASE, 0.0), list[int]()
    lease.on_wait = lambda: woken.append(1)
    for look in range(10):
        lease.note_wait(100.0 + look * MAX_WAIT)
    assert woken == [1]
    lease.note_wait(300.0)
    assert woken == [1, 1]
    heartbeat = Heartbeat(lambda _: {}, lambda _: None, SystemClock())
    heartbeat._pid = -1
    heartbeat._changed.acquire()  # as a fork may leave it
    thread = threading.Thread(target=heartbeat._wake)
    thread.start()
    thread.join(5.0)
    assert not thread.is_alive()
