"""Rehearsals: time that jumps, scripted bodies, deaths at a place, and replays of everything, in both colours."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import random
import threading
import time
import typing
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import psycopg
import pytest
import tenacity
from psycopg import sql

import durable
from durable.testing import Crashed, JumpingClock, Place, Rehearsal, RehearsalError
from harness.support import Database

HOUR, DAY = 3600.0, 24 * 3600.0


@pytest.fixture
def rehearsal() -> Iterator[Rehearsal]:
    with Rehearsal() as rehearsal:
        yield rehearsal


def performed(workflow: Callable[..., Any], rehearsal: Rehearsal, **options: Any) -> Any:
    """The outcome of a run of a workflow of either colour."""
    options = {"id": "run-1", **options}
    outcome: Any = durable.run({}, workflow, store=rehearsal, **options)
    return asyncio.run(outcome) if inspect.iscoroutine(outcome) else outcome


def blocking_sleeper(step: durable.Step, deps: Any) -> str:
    step.sleep("a month", 30 * DAY)
    return step("wake up", lambda: "awake")


async def async_sleeper(step: durable.AsyncStep, deps: Any) -> str:
    await step.sleep("a month", 30 * DAY)
    return await step("wake up", lambda: "awake")


@pytest.mark.parametrize("workflow", [blocking_sleeper, async_sleeper])
def test_a_sleep_takes_no_time(workflow: Any, rehearsal: Rehearsal) -> None:
    """It takes its time on the clock, to the second, and the lease of thirty seconds does not end."""
    began = rehearsal.clock.now()
    assert performed(workflow, rehearsal) == "awake"
    assert rehearsal.clock.now() - began == timedelta(days=30)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_back_off_takes_no_time(rehearsal: Rehearsal, is_async: bool) -> None:
    """With the outcomes of a script: two failures, then a value."""
    policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(5), wait=tenacity.wait_fixed(HOUR))
    rehearsal.script("charge", ConnectionError("no route"), ConnectionError, "receipt")

    def checkout(step: durable.Step, deps: Any) -> Any:
        return step("charge", lambda: "for real", retry=policy)

    async def checkout_async(step: durable.AsyncStep, deps: Any) -> Any:
        return await step("charge", lambda: "for real", retry=policy)

    assert performed(checkout_async if is_async else checkout, rehearsal) == "receipt"
    assert rehearsal.clock.elapsed() == 2 * HOUR
    assert rehearsal.bodies == ["charge"] * 3


@pytest.mark.parametrize("is_async", [False, True])
def test_a_signal_comes_at_its_time(rehearsal: Rehearsal, is_async: bool) -> None:
    """What the test does after a day happens after a day, and before the time-out of two."""

    def approval(step: durable.Step, deps: Any) -> Any:
        return step.wait_for("approved", timeout=2 * DAY)

    async def approval_async(step: durable.AsyncStep, deps: Any) -> Any:
        return await step.wait_for("approved", timeout=2 * DAY)

    send: Any = lambda: durable.signal(rehearsal, "run-1", "approved", "by ada")  # noqa: E731
    if is_async:
        send = lambda: durable.aio.signal(rehearsal, "run-1", "approved", "by ada")  # noqa: E731
    rehearsal.clock.after(DAY, send)
    assert performed(approval_async if is_async else approval, rehearsal) == "by ada"
    assert rehearsal.clock.elapsed() == DAY


@pytest.mark.parametrize("is_async", [False, True])
def test_a_signal_that_nobody_sends_times_out(rehearsal: Rehearsal, is_async: bool) -> None:
    """After its time on the clock."""

    def approval(step: durable.Step, deps: Any) -> Any:
        return step.wait_for("approved", timeout=2 * DAY)

    async def approval_async(step: durable.AsyncStep, deps: Any) -> Any:
        return await step.wait_for("approved", timeout=2 * DAY)

    with pytest.raises(durable.SignalTimedOut):
        performed(approval_async if is_async else approval, rehearsal)
    assert rehearsal.clock.elapsed() == 2 * DAY


@pytest.mark.parametrize("is_async", [False, True])
def test_a_wait_that_nothing_can_end_is_said(is_async: bool) -> None:
    """With the run and the step, and the way out; not a hanging test."""

    def approval(step: durable.Step, deps: Any) -> Any:
        return step.wait_for("approved")

    async def approval_async(step: durable.AsyncStep, deps: Any) -> Any:
        return await step.wait_for("approved")

    with (
        Rehearsal(clock=JumpingClock(patience=0.2)) as rehearsal,
        pytest.raises(RehearsalError, match=r"run 'run-1' waits in step 'approved'.*clock\.after"),
    ):
        performed(approval_async if is_async else approval, rehearsal)


def test_a_signal_from_another_thread_is_heard(rehearsal: Rehearsal) -> None:
    """Without a time-out time stands still until it comes."""
    waits = threading.Event()

    def approval(step: durable.Step, deps: Any) -> Any:
        waits.set()
        return step.wait_for("approved")

    with ThreadPoolExecutor(1) as pool:
        outcome = pool.submit(performed, approval, rehearsal)
        waits.wait()
        durable.signal(rehearsal, "run-1", "approved", 7)
        assert outcome.result() == 7
    assert rehearsal.clock.elapsed() == 0


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "1", True])
def test_time_passes_in_seconds(rehearsal: Rehearsal, seconds: Any) -> None:
    """Or a `timedelta`, and in nothing else."""
    for pass_by in (rehearsal.clock.advance, lambda it: rehearsal.clock.after(it, lambda: None)):
        with pytest.raises(durable.InvalidArgument, match="the time that passes must be"):
            pass_by(seconds)


def test_time_can_be_moved_by_hand(rehearsal: Rehearsal) -> None:
    """What is due meanwhile is done at its moment."""
    moments: list[float] = []
    for hours in (3, 1, 5):
        rehearsal.clock.after(hours * HOUR, lambda: moments.append(rehearsal.clock.elapsed()))
    rehearsal.clock.advance(4 * HOUR)
    assert moments == [HOUR, 3 * HOUR]
    assert rehearsal.clock.elapsed() == 4 * HOUR
    assert rehearsal.clock.now() == datetime(2026, 1, 1, 4, tzinfo=UTC)


def test_what_a_test_does_may_fail(rehearsal: Rehearsal) -> None:
    """And ends the run that was woken with it, saying so."""

    def broken() -> None:
        raise ValueError("broken")

    rehearsal.clock.after(1, broken)
    with pytest.raises(RehearsalError, match="raised ValueError: broken"):
        performed(blocking_sleeper, rehearsal)


def test_runs_in_threads_wake_in_the_order_of_their_times(rehearsal: Rehearsal) -> None:
    """Time does not pass before the last of them has come to its wait, however long its body takes."""
    woken: list[tuple[float, float]] = []
    together = threading.Barrier(4)

    def workflow(step: durable.Step, deps: Any, hours: int) -> None:
        step("together", together.wait)
        step("work", lambda: time.sleep(0.01 * hours))
        for _ in range(3):
            step.sleep("sleep", hours * HOUR)
            woken.append((rehearsal.clock.elapsed() / HOUR, hours))

    with ThreadPoolExecutor(4) as pool:
        outcomes = [
            pool.submit(durable.run, {}, workflow, id=f"run-{hours}", store=rehearsal, input=hours)
            for hours in (2, 3, 5, 7)
        ]
        for outcome in outcomes:
            outcome.result()
    expected = sorted((turn * hours, hours) for hours in (2, 3, 5, 7) for turn in (1, 2, 3))
    assert sorted(woken) == expected
    assert [moment for moment, _ in woken] == [moment for moment, _ in expected]


def test_runs_in_tasks_wake_in_the_order_of_their_times(rehearsal: Rehearsal) -> None:
    """The same for asyncio, with the sleeps of one run side by side."""
    woken: list[float] = []

    async def nap(step: durable.AsyncStep, hours: float) -> None:
        await step("work", lambda: asyncio.sleep(0.01), key=f"work {hours}")
        await step.sleep("nap", hours * HOUR, key=f"nap {hours}")
        woken.append(rehearsal.clock.elapsed() / HOUR)

    async def workflow(step: durable.AsyncStep, deps: Any, hours: list[float]) -> None:
        await asyncio.gather(*(nap(step, some) for some in hours))

    async def main() -> None:
        await asyncio.gather(
            durable.run({}, workflow, id="odd", store=rehearsal, input=[7.0, 3.0, 5.0]),
            durable.run({}, workflow, id="even", store=rehearsal, input=[2.0, 6.0, 4.0]),
        )

    asyncio.run(main())
    assert woken == [2, 3, 4, 5, 6, 7]


def test_a_run_inside_a_body_has_its_time_too(rehearsal: Rehearsal) -> None:
    """Its outer run is at work, and waits for it."""

    def outer(step: durable.Step, deps: Any) -> Any:
        return step("inner", lambda: performed(blocking_sleeper, rehearsal, id="inner"))

    assert performed(outer, rehearsal) == "awake"
    assert rehearsal.clock.elapsed() == 30 * DAY


def test_one_run_waits_for_another_without_looking_every_second(rehearsal: Rehearsal) -> None:
    """`on_conflict="wait"` is woken when the other one has ended."""
    begun = threading.Event()

    def slow(step: durable.Step, deps: Any) -> str:
        begun.set()
        step.sleep("a year", 365 * DAY)
        return "late"

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(performed, slow, rehearsal)
        begun.wait()
        assert performed(slow, rehearsal, on_conflict="wait") == "late"
        assert first.result() == "late"


def test_the_deadline_of_a_run_is_on_the_clock(rehearsal: Rehearsal) -> None:
    """In seconds, and as a moment of it."""
    with pytest.raises(durable.DeadlineExceeded):
        performed(blocking_sleeper, rehearsal, deadline=DAY)
    assert rehearsal.clock.elapsed() == DAY
    with pytest.raises(durable.DeadlineExceeded):
        performed(blocking_sleeper, rehearsal, deadline=rehearsal.clock.now() + timedelta(days=2))
    assert rehearsal.clock.elapsed() == 3 * DAY
    assert performed(blocking_sleeper, rehearsal) == "awake"
    assert rehearsal.clock.elapsed() == 30 * DAY


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("kind", ["a duration", "a moment", "a wait"])
def test_what_the_library_calls_itself_takes_no_script(kind: str, rehearsal: Rehearsal, is_async: bool) -> None:
    """A sleep of either kind and a wait: their outcomes are the clock's and the sender's, and the script says it was not played."""
    moment = rehearsal.clock.now() + timedelta(days=1)
    script = rehearsal.script("rest", "scripted", "scripted")

    def call(step: Any) -> Any:
        if kind == "a wait":
            return step.wait_for("rest", timeout=DAY)
        return step.sleep("rest", moment if kind == "a moment" else DAY)

    def blocking(step: durable.Step, deps: Any) -> str:
        call(step)
        return "awake"

    async def awaiting(step: durable.AsyncStep, deps: Any) -> str:
        await call(step)
        return "awake"

    with pytest.raises(durable.SignalTimedOut) if kind == "a wait" else nullcontext():
        assert performed(awaiting if is_async else blocking, rehearsal) == "awake"
    assert rehearsal.clock.elapsed() == DAY
    assert not script.played
    assert rehearsal.unplayed() == ("rest",)


@pytest.mark.parametrize("workflow", [blocking_sleeper, async_sleeper])
def test_a_run_is_cancelled_while_it_waits(workflow: Any, rehearsal: Rehearsal) -> None:
    """From outside, at a moment of the clock."""
    rehearsal.clock.after(DAY, lambda: durable.cancel(rehearsal, "run-1"))
    with pytest.raises(durable.RunCancelled):
        performed(workflow, rehearsal)
    assert rehearsal.clock.elapsed() == DAY
    assert rehearsal.status("run-1") == "cancelled"


# -- deaths ----------------------------------------------------------------------------------------------------------


def blocking_order(step: durable.Step, deps: Any) -> list[str]:
    first = step("reserve", lambda: "reserved")
    step.sleep("cool down", HOUR)
    return [first, step("charge", lambda: "charged")]


async def async_order(step: durable.AsyncStep, deps: Any) -> list[str]:
    first = await step("reserve", lambda: "reserved")
    await step.sleep("cool down", HOUR)
    return [first, await step("charge", lambda: "charged")]


_AGAIN = {"before body": 1, "after body": 2, "checkpoint sent": 1, "acknowledged": 1}


@pytest.mark.parametrize("workflow", [blocking_order, async_order])
@pytest.mark.parametrize("place", get_args(Place))
@pytest.mark.parametrize("kind", ["memory", "postgres"])
def test_a_run_dies_at_every_place_and_is_resumed(
    kind: str, place: Place, workflow: Any, request: pytest.FixtureRequest
) -> None:
    """What was recorded is not run again; what was not is. (FAULTS 3–9, in one process.)"""
    store = None if kind == "memory" else request.getfixturevalue("database").store()
    with Rehearsal(store) as rehearsal:
        step = {"waiting": "cool down", "before finish": None, "after finish": None}.get(place, "charge")
        with rehearsal.crash_at(place, step):
            performed(workflow, rehearsal)
        assert rehearsal.status("run-1") == ("completed" if place == "after finish" else "interrupted")
        assert performed(workflow, rehearsal) == ["reserved", "charged"]
        assert rehearsal.bodies.count("reserve") == 1
        assert rehearsal.bodies.count("charge") == _AGAIN.get(place, 1)
        assert rehearsal.clock.elapsed() == HOUR
        assert rehearsal.status("run-1") == "completed"


@pytest.mark.parametrize("workflow", [blocking_order, async_order])
def test_what_a_dead_run_still_does_reaches_nobody(workflow: Any, rehearsal: Rehearsal) -> None:
    """A workflow that swallows everything goes on, and can call no further step."""
    swallowed: list[BaseException] = []

    def stubborn(step: durable.Step, deps: Any) -> str:
        for name in ("one", "two", "three"):
            try:
                step(name, lambda: None)
            except BaseException as death:
                swallowed.append(death)
        return "done"

    with rehearsal.crash_at("after body", "one"):
        performed(stubborn, rehearsal)
    assert len(swallowed) == 3
    assert rehearsal.bodies == ["one"]


def test_the_lease_of_a_dead_machine_lasts(rehearsal: Rehearsal) -> None:
    """Until it ends in real time: nobody renews it."""
    with rehearsal.crash_at("before body", "charge", keeps_lease=True):
        performed(blocking_order, rehearsal, lease=0.5)
    assert rehearsal.status("run-1") == "running"
    with pytest.raises(durable.ConcurrentExecution):
        performed(blocking_order, rehearsal)
    assert performed(blocking_order, rehearsal, on_conflict="wait") == ["reserved", "charged"]


def test_items_die_together(rehearsal: Rehearsal) -> None:
    """A killed process takes its other threads along; what they had recorded stays."""

    def report(step: durable.Step, deps: Any) -> list[int]:
        return step.map("measure", len, ["", "a", "bb", "ccc", "dddd"], max_concurrency=2)

    with rehearsal.crash_at("after body", "measure[3]"):
        performed(report, rehearsal)
    assert performed(report, rehearsal) == [0, 1, 2, 3, 4]
    assert rehearsal.bodies.count("measure[0]") == 1
    assert rehearsal.bodies.count("measure[3]") == 2


def test_branches_die_together_in_a_task_group(rehearsal: Rehearsal) -> None:
    """And `Crashed` comes out of it by itself, not in a group."""

    async def both(step: durable.AsyncStep, deps: Any) -> str:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(step(name, lambda: asyncio.sleep(0, "x"))) for name in "ab"]
        return "".join(task.result() for task in tasks)

    with rehearsal.crash_at("after body", "b"):
        performed(both, rehearsal)
    assert performed(both, rehearsal) == "xx"


def test_a_death_between_two_attempts_does_not_begin_the_back_off_anew(rehearsal: Rehearsal) -> None:
    """It is recorded when the next one is due."""
    policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(HOUR))
    rehearsal.script("charge", ConnectionError(), "receipt")

    def checkout(step: durable.Step, deps: Any) -> Any:
        return step("charge", lambda: None, retry=policy)

    with rehearsal.crash_at("waiting", "charge"):
        performed(checkout, rehearsal)
    rehearsal.clock.advance(HOUR / 2)
    assert performed(checkout, rehearsal) == "receipt"
    assert rehearsal.clock.elapsed() == HOUR


def test_an_at_most_once_step_that_died_is_not_begun_again(rehearsal: Rehearsal) -> None:
    """As after a kill in its body."""

    def checkout(step: durable.Step, deps: Any) -> str:
        try:
            return step("pay", lambda: "paid", at_most_once=True)
        except durable.StepInterrupted:
            return "unknown"

    with rehearsal.crash_at("after body", "pay"):
        performed(checkout, rehearsal)
    assert performed(checkout, rehearsal) == "unknown"
    assert rehearsal.bodies == ["pay"]


def test_a_crash_that_nobody_came_to_is_said(rehearsal: Rehearsal) -> None:
    """A misspelt step is no passed test; and a crash outlives its block in no way."""
    with (
        pytest.raises(AssertionError, match="no run died after body, in step 'chrage'"),
        rehearsal.crash_at("after body", "chrage"),
    ):
        performed(blocking_order, rehearsal)
    with pytest.raises(ZeroDivisionError), rehearsal.crash_at("before body", "reserve"):
        _ = 1 / 0
    assert performed(blocking_order, rehearsal, id="run-2") == ["reserved", "charged"]


def test_one_crash_strikes_one_run(rehearsal: Rehearsal) -> None:
    """The others of the block go on."""

    async def main() -> list[Any]:
        with rehearsal.crash_at("before body", "charge") as crash:
            outcomes = await asyncio.gather(
                *(durable.run({}, async_order, id=f"run-{number}", store=rehearsal) for number in range(3)),
                return_exceptions=True,
            )
        assert crash.error in outcomes
        return outcomes

    outcomes = asyncio.run(main())
    assert sum(isinstance(outcome, Crashed) for outcome in outcomes) == 1
    assert outcomes.count(["reserved", "charged"]) == 2


@pytest.mark.parametrize(
    ("place", "step", "says"),
    [("in the body", None, "not at 'in the body'"), ("before finish", "x", "leave the step out")],
)
def test_a_place_that_there_is_not_is_refused(rehearsal: Rehearsal, place: Any, step: Any, says: str) -> None:
    """At once, by its name."""
    with pytest.raises(durable.InvalidArgument, match=says):
        rehearsal.crash_at(place, step)


# -- scripts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True])
def test_a_script_stands_in_for_bodies_by_key_or_name(rehearsal: Rehearsal, is_async: bool) -> None:
    """The key counts before the name; whatever has none is called."""

    async def body(value: int) -> int:
        return value

    def blocking(step: durable.Step, deps: Any) -> list[int]:
        return [*step.map("square", lambda n: n * n, [1, 2, 3]), step("other", int, "5")]

    async def awaiting(step: durable.AsyncStep, deps: Any) -> list[int]:
        return [*await step.map("square", body, [1, 2, 3]), await step("other", int, "5")]

    rehearsal.script("square", 0)
    rehearsal.script("square[1]", 400)
    rehearsal.script("never", 1)
    assert performed(awaiting if is_async else blocking, rehearsal) == [0, 400, 0, 5]
    assert rehearsal.unplayed() == ("never",)


def test_a_script_is_held_to_the_annotations_of_its_body(rehearsal: Rehearsal) -> None:
    """What the body could not return, its script cannot either."""

    def charge() -> int:
        return 1

    def checkout(step: durable.Step, deps: Any) -> int:
        return step("charge", charge)

    rehearsal.script("charge", "not a number")
    with pytest.raises(durable.UnstorableValue):
        performed(checkout, rehearsal)


def test_a_script_that_says_nothing_is_refused(rehearsal: Rehearsal) -> None:
    """At once."""
    with pytest.raises(durable.InvalidArgument, match="says nothing"):
        rehearsal.script("charge")


def test_a_scripted_failure_is_new_each_time(rehearsal: Rehearsal) -> None:
    """The notes of one run are not those of the next."""
    policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_fixed(1))
    rehearsal.script("charge", ValueError("declined"))

    def checkout(step: durable.Step, deps: Any) -> Any:
        return step("charge", lambda: None, retry=policy)

    for _ in range(2):
        with pytest.raises(ValueError, match="declined") as raised:
            performed(checkout, rehearsal)
        assert len(raised.value.__notes__) == 1


# -- everything is replayed ------------------------------------------------------------------------------------------


@pytest.fixture
def replaying() -> Iterator[Rehearsal]:
    with Rehearsal(always_replay=True) as rehearsal:
        yield rehearsal


@pytest.mark.parametrize("workflow", [blocking_order, async_order])
def test_a_deterministic_workflow_does_not_notice(workflow: Any, replaying: Rehearsal) -> None:
    """Its bodies are called once each, its time passes once."""
    assert performed(workflow, replaying) == ["reserved", "charged"]
    assert replaying.bodies == ["reserve", "cool down", "charge"]
    assert replaying.clock.elapsed() == HOUR


@pytest.mark.parametrize("workflow", [blocking_order, async_order])
def test_it_is_executed_from_its_journal_after_each_step(workflow: Any, replaying: Rehearsal) -> None:
    """Three steps, four executions."""
    began: list[Any] = []
    performed(workflow, replaying, on_event=lambda event: began.append(event) if _is_begin(event) else None)
    assert [event.recorded for event in began] == [0, 1, 2, 3]


def _is_begin(event: Any) -> bool:
    return type(event).__name__ == "RunBegan"


def _chance(step: durable.Step, deps: Any) -> None:
    step("roll", lambda number: number, random.random())
    step("go on", lambda: None)


def _clock(step: durable.Step, deps: Any) -> None:
    step("stamp", str, time.perf_counter_ns())
    step("go on", lambda: None)


def _new_keys(step: durable.Step, deps: Any) -> None:
    step("one", lambda: None, key=str(uuid.uuid4()))
    step("two", lambda: None)


_turns = itertools.count()


def _order(step: durable.Step, deps: Any) -> None:
    names = ["a", "b"] if next(_turns) % 2 else ["b", "a"]
    for name in names:
        step(name, lambda: None)


def _order_of_explicit_keys(step: durable.Step, deps: Any) -> None:
    names = ["a", "b"] if next(_turns) % 2 else ["b", "a"]
    for name in names:
        step(name, lambda: None, key=name)


def _one_key_for_all(step: durable.Step, deps: Any) -> list[str]:
    return [step("greet", lambda: f"hello {name}", key="greet") for name in ("ada", "bob")]  # noqa: B023 -- the mistake


def _fewer_each_time(step: durable.Step, deps: Any) -> None:
    if next(_turns) % 2 == 0:
        step("sometimes", lambda: None, key="sometimes")


@pytest.mark.parametrize(
    "workflow", [_chance, _clock, _new_keys, _order, _order_of_explicit_keys, _one_key_for_all, _fewer_each_time]
)
def test_code_that_does_not_do_the_same_again_drifts(workflow: Any, replaying: Rehearsal) -> None:
    """Without a crash, and in an ordinary test. (FAULTS 94, 95)"""
    global _turns
    _turns = itertools.count()
    with pytest.raises(durable.WorkflowDrift):
        performed(workflow, replaying)


async def _new_keys_side_by_side(step: durable.AsyncStep, deps: Any) -> None:
    await asyncio.gather(*(step("one", lambda: None, key=str(uuid.uuid4())) for _ in range(2)))


def test_branches_that_never_come_by_again_drift(replaying: Rehearsal) -> None:
    """Side by side as well, and not for ever."""
    with pytest.raises(durable.WorkflowDrift):
        performed(_new_keys_side_by_side, replaying)


@pytest.mark.parametrize("is_async", [False, True])
def test_steps_side_by_side_are_called_once_under_always_replay(replaying: Rehearsal, is_async: bool) -> None:
    """It begins again when nothing else is running."""

    def blocking(step: durable.Step, deps: Any) -> list[int]:
        return step.map("measure", len, ["a", "bb", "ccc"]) + step.map("again", len, ["a", "bb", "ccc"])

    async def awaiting(step: durable.AsyncStep, deps: Any) -> list[int]:
        async def measure(word: str) -> int:
            await asyncio.sleep(0)
            return len(word)

        first = await asyncio.gather(*(step("measure", measure, word, key=word) for word in ("a", "bb", "ccc")))
        return [*first, *await step.map("again", measure, ["a", "bb", "ccc"])]

    assert performed(awaiting if is_async else blocking, replaying) == [1, 2, 3, 1, 2, 3]
    assert len(replaying.bodies) == len(set(replaying.bodies)) == 6


def test_a_failure_is_replayed_too(replaying: Rehearsal) -> None:
    """A workflow that catches it takes the same way each time, and one that does not fails with it."""

    def careful(step: durable.Step, deps: Any) -> str:
        try:
            step("charge", int, "no number")
        except ValueError:
            step("apologise", lambda: None)
            raise
        return "charged"

    with pytest.raises(ValueError, match="invalid literal"):
        performed(careful, replaying)
    assert replaying.bodies == ["charge", "apologise"]
    assert replaying.status("run-1") == "failed"
    replaying.script("charge", 5)
    with pytest.raises(durable.RetryRefused, match="'apologise'"):
        performed(careful, replaying)
    assert durable.retry(replaying, "run-1") == ["apologise"]
    assert performed(careful, replaying) == "charged"


def test_the_same_thunk_may_be_asked_for_again(replaying: Rehearsal) -> None:
    """A key is there to be remembered by."""

    def workflow(step: durable.Step, deps: Any) -> list[str]:
        return [step("token", lambda: "t-1", key="token") for _ in range(3)]

    assert performed(workflow, replaying) == ["t-1"] * 3


def test_a_death_under_always_replay(replaying: Rehearsal) -> None:
    """They go together."""
    with replaying.crash_at("checkpoint sent", "charge"):
        performed(blocking_order, replaying)
    assert performed(blocking_order, replaying) == ["reserved", "charged"]
    assert replaying.bodies.count("charge") == 1


# -- the store -------------------------------------------------------------------------------------------------------


def test_a_rehearsal_on_postgres_is_the_same_run_elsewhere(database: Database) -> None:
    """What was rehearsed there can be asked of the store, and goes on without a rehearsal."""
    store = database.store()
    with Rehearsal(store) as rehearsal:
        with rehearsal.crash_at("before body", "charge"):
            performed(async_order, rehearsal)
        assert asyncio.run(durable.run({}, async_order, id="run-1", store=store)) == ["reserved", "charged"]
        assert durable.result(rehearsal, "run-1") == ["reserved", "charged"]


def blocking_booking(step: durable.Step, deps: Any) -> str:
    return step.transaction("book", _booking, deps["schema"], 42)


async def async_booking(step: durable.AsyncStep, deps: Any) -> str:
    return await step.transaction("book", _booking, deps["schema"], 42)


def _booking(connection: psycopg.Connection[Any], schema: str, euros: int) -> str:
    connection.execute(sql.SQL("INSERT INTO {} VALUES (%s)").format(sql.Identifier(schema, "bookings")), (euros,))
    return "booked"


@pytest.mark.parametrize("workflow", [blocking_booking, async_booking])
@pytest.mark.parametrize("place", ["before body", "after body", "checkpoint sent", "acknowledged"])
def test_a_run_dies_around_a_transaction(place: Place, workflow: Any, database: Database) -> None:
    """What its SQL did is there once, with its record, wherever it died."""
    store = database.store()
    store.list()  # makes the schema
    database.execute("CREATE TABLE bookings (euros int)")
    with Rehearsal(store) as rehearsal:

        def executed(run_id: str = "run-1") -> Any:
            outcome: Any = durable.run({"schema": database.schema}, workflow, id=run_id, store=rehearsal)
            return asyncio.run(outcome) if inspect.iscoroutine(outcome) else outcome

        with rehearsal.crash_at(place, "book"):
            executed()
        recorded = place in ("checkpoint sent", "acknowledged")
        assert database.execute("SELECT count(*) FROM bookings") == [(int(recorded),)]
        assert executed() == "booked"
        assert database.execute("SELECT euros FROM bookings") == [(42,)]
        rehearsal.script("book", "nothing")
        assert executed("run-2") == "nothing"
        assert database.execute("SELECT euros FROM bookings") == [(42,)]


def test_a_rehearsal_is_around_a_store_that_knows_leases() -> None:
    """Not around a URL."""
    store = typing.cast(Any, "postgresql://localhost/x")
    with pytest.raises(durable.InvalidArgument, match="not str"):
        Rehearsal(store)
