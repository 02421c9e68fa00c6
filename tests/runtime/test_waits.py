"""Sleeps, signals and cancellation from outside: what a run waits for."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import durable
from durable.stores import memory
from durable.stores.requests import Receive
from harness.stages import Ask, Demand, Died, EngineStage, Sleep, Stage, WaitFor, World
from harness.support import Database

Telling = Generator[Demand, Any, Any]


def napping(world: World) -> Telling:
    """A nap between two steps."""
    yield Ask("before", world.do, ("before",))
    yield Sleep("nap", 0.01)
    return (yield Ask("after", world.do, ("after",)))


def approved_twice(world: World) -> Telling:
    """Two stages of approval, then a charge."""
    first = yield WaitFor("approved")
    second = yield WaitFor("approved")
    yield Ask("charge", world.do, ("charge",))
    return [first, second]


# -- sleep ----------------------------------------------------------------------------------------------------------


def test_a_death_at_every_boundary_of_a_nap(stage: Stage) -> None:
    stage.run(napping, World(), id="undisturbed")
    for dies_at in range(len(stage.boundaries.passed)):
        world = World()
        with pytest.raises(Died):
            stage.run(napping, world, id=f"dies-{dies_at}", dies_at=dies_at)
        assert stage.run(napping, world, id=f"dies-{dies_at}") == {"done": "after", "of": []}
        assert set(world.bodies) == {"before", "after"}


def test_a_resumed_sleep_lasts_only_as_long_as_is_left() -> None:
    """Eight hours, of which six passed while nobody ran."""

    def night(world: World) -> Telling:
        yield Sleep("night", 8 * 3600)
        yield Ask("wake", world.do, ("wake",))

    stage, world = EngineStage(), World()
    with pytest.raises(Died):
        stage.run(night, world, dies_at=5)
    stage._now += timedelta(hours=6) - timedelta(seconds=stage.waited)
    stage.waited = 0.0
    stage.run(night, world)
    assert stage.waited == pytest.approx(2 * 3600)
    stage._now += timedelta(days=365)
    stage.waited = 0.0
    stage.run(night, world)
    assert stage.waited == 0.0


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "5", True, None, datetime(2030, 1, 1)])
def test_a_sleep_that_cannot_be_is_refused(seconds: Any) -> None:
    def workflow(step: durable.Step, deps: Any) -> None:
        step.sleep("nap", seconds)

    with pytest.raises(durable.InvalidArgument, match="sleep"), closing(memory()) as store:
        durable.run({}, workflow, id="a", store=store)


def test_sleep_until_a_moment(database: Database) -> None:
    moment = datetime.now(UTC) + timedelta(seconds=0.05)

    def workflow(step: durable.Step, deps: Any) -> bool:
        step.sleep("nap", moment)
        return datetime.now(UTC) >= moment

    assert durable.run({}, workflow, id="a", store=database.store()) is True
    assert database.execute("SELECT record->>'value' FROM durable_steps WHERE key = 'nap'") == [(moment.isoformat(),)]


# -- signals --------------------------------------------------------------------------------------------------------


def test_signals_are_received_in_order_also_when_sent_before(stage: Stage) -> None:
    """The run need not be there yet. Two stages of approval charge nobody twice."""
    for payload in ({"by": "first"}, None, "left over"):
        stage.signal("run-1", "approved", payload)
    stage.signal("another", "approved", "not for us")
    world = World()
    assert stage.run(approved_twice, world) == [{"by": "first"}, None]
    assert stage.run(approved_twice, world) == [{"by": "first"}, None]
    assert world.bodies == ["charge"]


def test_a_death_at_every_boundary_loses_and_doubles_no_signal(stage: Stage) -> None:
    for payload in (1, 2, 3):
        stage.signal("undisturbed", "approved", payload)
    stage.run(approved_twice, World(), id="undisturbed")
    for dies_at in range(len(stage.boundaries.passed)):
        run_id, world = f"dies-{dies_at}", World()
        for payload in (1, 2, 3):
            stage.signal(run_id, "approved", payload)
        with pytest.raises(Died):
            stage.run(approved_twice, world, id=run_id, dies_at=dies_at)
        assert stage.run(approved_twice, world, id=run_id) == [1, 2]


def test_a_wait_that_was_in_vain_is_recorded(stage: Stage) -> None:
    """A signal that comes too late finds the decision made; a failed run waits again."""

    def patient(world: World) -> Telling:
        try:
            return (yield WaitFor("approved", timeout=0.05))
        except durable.SignalTimedOut as problem:
            return (yield Ask("remind", world.do, ("remind", problem.name)))

    def failing(world: World) -> Telling:
        return (yield WaitFor("approved", timeout=0.05))

    world = World()
    reminded = {"done": "remind", "of": ["approved"]}
    with pytest.raises(Died):
        stage.run(
            patient, world, dies_at="before body"
        )  # of the reminder: how often it looked before is the clock's affair
    stage.signal("run-1", "approved", "late")
    assert stage.run(patient, world) == reminded

    with pytest.raises(TimeoutError, match=r"no signal 'approved' came within 0\.05 s"):
        stage.run(failing, world, id="failing")
    stage.signal("failing", "approved", "now")
    assert stage.run(failing, world, id="failing") == "now"


def test_the_patience_goes_on_after_a_restart() -> None:
    """Of ten minutes nine have passed while nobody ran."""

    def patient(world: World) -> Telling:
        try:
            yield WaitFor("approved", timeout=600)
        except durable.SignalTimedOut:
            return "in vain"

    stage, world = EngineStage(), World()
    with pytest.raises(Died):
        stage.run(patient, world, dies_at=4)
    stage._now += timedelta(seconds=540) - timedelta(seconds=stage.waited)
    stage.waited = 0.0
    assert stage.run(patient, world) == "in vain"
    assert stage.waited == pytest.approx(60, abs=1.0)


def test_a_signal_has_one_receiver(database: Database) -> None:
    """Ten branches of one run wait for ten signals of one name, which come in any order."""
    store = database.store()

    async def workflow(step: durable.AsyncStep, deps: Any) -> Any:
        return await asyncio.gather(*(step.wait_for("part", key=f"part-{n}") for n in range(10)))

    async def both() -> Any:
        running = asyncio.ensure_future(durable.run({}, workflow, id="a", store=store))
        await asyncio.gather(*(durable.aio.signal(store, "a", "part", n, create_later=True) for n in range(10)))
        return await running

    assert sorted(asyncio.run(both())) == list(range(10))


def test_a_waiting_run_in_another_thread_hears_it(database: Database) -> None:
    store, waits = database.store(), threading.Event()
    perform = store.perform

    def looks(request: Any, *more: Any) -> Any:
        found = perform(request, *more)
        if isinstance(request, Receive):
            waits.set()
        return found

    store.perform = looks  # type: ignore[method-assign, assignment]

    def workflow(step: durable.Step, deps: Any) -> Any:
        return step.wait_for("approved")

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: durable.run({}, workflow, id="a", store=store))
        assert waits.wait(10)
        durable.signal(database.store(), "a", "approved", {"by": "somebody"})
        assert running.result(10) == {"by": "somebody"}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("", "approved"), durable.InvalidArgument),
        (("a", ""), durable.InvalidArgument),
        (("a", "appr\0ved"), durable.InvalidArgument),
        (("a", "approved", object()), durable.UnstorableValue),
    ],
)
def test_a_signal_that_cannot_be_sent_is_refused(arguments: Any, error: type[Exception], database: Database) -> None:
    store = database.store()
    with pytest.raises(error):
        durable.signal(store, *arguments)
    with pytest.raises(error):
        asyncio.run(durable.aio.signal(store, *arguments))


# -- cancellation from outside --------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True])
def test_a_cancelled_owner_records_nothing_more(database: Database, is_async: bool) -> None:
    """FAULTS 68: cancelled in a body, by somebody else. Its result is rejected; run again, it goes on."""
    store, ran = database.store(), list[str]()

    def body(name: str) -> None:
        ran.append(name)
        if name == "b" and ran.count("b") == 1:
            assert durable.cancel(database.store(), "a", force=True) is True

    def workflow(step: durable.Step, deps: Any) -> str:
        for name in "abc":
            step("do", body, name)
        return "done"

    async def async_workflow(step: durable.AsyncStep, deps: Any) -> str:
        for name in "abc":
            await step("do", body, name)
        return "done"

    def run() -> str:
        if is_async:
            return asyncio.run(durable.run({}, async_workflow, id="a", store=store))
        return durable.run({}, workflow, id="a", store=store)

    with pytest.raises(durable.RunCancelled):
        run()
    assert ran == ["a", "b"]
    assert database.status("a") == "cancelled"
    assert [key for _, key, _ in database.journal("a")] == ["do"]
    assert run() == "done"
    assert ran == ["a", "b", "b", "c"]
    assert durable.cancel(store, "a") is False
    assert database.status("a") == "completed"


def test_a_run_that_waits_hears_of_its_cancellation(database: Database) -> None:
    """By its heartbeat: it makes no write of its own."""
    store, began = database.store(), threading.Event()

    def workflow(step: durable.Step, deps: Any) -> None:
        step("begin", began.set)
        step.sleep("long", 3600)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: durable.run({}, workflow, id="a", store=store, lease=0.6))
        assert began.wait(10)
        assert asyncio.run(durable.aio.cancel(store, "a")) is True
        with pytest.raises(durable.RunCancelled):
            running.result(30)
    assert database.status("a") == "cancelled"


def test_a_finish_that_comes_after_the_cancellation_is_rejected(database: Database) -> None:
    store = database.store()

    def workflow(step: durable.Step, deps: Any) -> str:
        step("a", lambda: None)
        durable.cancel(store, "a", force=True)
        return "done"

    with pytest.raises(durable.RunCancelled):
        durable.run({}, workflow, id="a", store=store)
    assert database.status("a") == "cancelled"


def test_the_memory_store_cancels_alike() -> None:
    with closing(memory()) as store:

        def workflow(step: durable.Step, deps: Any) -> str:
            step("a", lambda: durable.cancel(store, "a", force=True))
            return "done"

        with pytest.raises(durable.RunCancelled):
            durable.run({}, workflow, id="a", store=store)
        assert durable.cancel(store, "a") is False
        assert durable.cancel(store, "nobody") is False


def test_there_is_nothing_to_cancel(database: Database) -> None:
    assert durable.cancel(database.store(), "nobody") is False


# -- idempotency keys -----------------------------------------------------------------------------------------------


def test_an_idempotency_key_is_stable_and_its_own(database: Database) -> None:
    """Over attempts and resumes; another step, another run: another key."""
    seen: list[tuple[str, str]] = []

    def body(what: str) -> None:
        seen.append((what, durable.idempotency_key()))
        if Counter(name for name, _ in seen)[what] == 1:
            raise OSError

    def workflow(step: durable.Step, deps: Any) -> None:
        step("a", body, "a", key="pay-1")
        step("b", body, "b", key="pay-2")

    store = database.store()
    for _ in range(2):
        with contextlib.suppress(OSError):
            durable.run({}, workflow, id="run", store=store)
    durable.run({}, workflow, id="run", store=store)
    keys = {what: {key for name, key in seen if name == what} for what in "ab"}
    assert [len(keys[what]) for what in "ab"] == [1, 1]
    assert keys["a"] != keys["b"]
    with pytest.raises(durable.InvalidArgument, match="body of a step"):
        durable.idempotency_key()
