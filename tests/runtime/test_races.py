"""Races: the winner is a record; a replay returns it and begins no branch; and what plain asyncio decides, it decides again."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import pytest

import durable
from durable.events import KeysUnused, RunEvent, StepReplayed
from durable.stores import memory
from durable.testing import Rehearsal
from harness.stages import Ask, Died, EngineStage, Race, Stage, Story, WaitFor, World


class Crash(BaseException):
    """Leaves the journal as a kill would."""


def first_answer(world: World) -> Generator[Any, Any, Any]:
    """One branch waits for what never comes."""
    asked = yield Ask("ask", world.do, ("ask",))
    won = yield Race({"quick": Ask("quick", world.do, ("quick",)), "never": WaitFor("never", 1e6)})
    told = yield Ask("tell", world.do, ("tell", *won))
    return [asked, won, told]


def two_answers(world: World) -> Generator[Any, Any, Any]:
    """Either may win."""
    won = yield Race({"north": Ask("north", world.do, ("north",)), "south": Ask("south", world.do, ("south",))})
    told = yield Ask("tell", world.do, ("tell", won[0]))
    return [won, told]


def one_fails(world: World) -> Generator[Any, Any, Any]:
    """What fails is out of it."""
    won = yield Race({"bad": Ask("bad", world.do, ("bad",)), "good": Ask("good", world.do, ("good",))}, "the-race")
    return won


STORIES: list[tuple[Story, set[str]]] = [(first_answer, set()), (two_answers, set()), (one_fails, {"bad"})]


def check_lives(stage: Stage, story: Story, failing: set[str], dies_at: tuple[int, ...], id: str) -> None:
    """Lives that end there, one that does not, and one more of the completed run: the decision stays."""
    world = World(failing=set(failing))
    for at in dies_at:
        try:
            stage.run(story, world, id=id, dies_at=at)
        except (Died, durable.errors.OutcomeUnknown):  # the death of one branch, as the other has won
            assert stage.boundaries.dead
    result = stage.run(story, world, id=id)
    won = result[-2] if isinstance(result, list) else result
    assert next(iter(won)) in {"quick", "north", "south", "good"}
    assert stage.run(story, world, id=id) == result
    assert world.bodies.count("tell") <= 1 + len(dies_at)


@pytest.mark.parametrize(("story", "failing"), STORIES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_death_at_every_boundary(stage: Stage, story: Story, failing: set[str]) -> None:
    stage.run(story, World(failing=set(failing)), id="undisturbed")
    boundaries = len(stage.boundaries.passed)
    assert boundaries >= 4
    for at in range(boundaries):
        check_lives(stage, story, failing, (at,), f"dies-at-{at}")


@pytest.mark.parametrize(("story", "failing"), STORIES, ids=lambda value: getattr(value, "__name__", ""))
def test_deaths_at_every_pair_of_boundaries(story: Story, failing: set[str]) -> None:
    stage = EngineStage()
    stage.run(story, World(failing=set(failing)), id="undisturbed")
    boundaries = len(stage.boundaries.passed)
    for first in range(boundaries):
        for second in range(boundaries):
            check_lives(stage, story, failing, (first, second), f"{first}-{second}")


def test_a_decided_race_is_not_run_again(stage: Stage) -> None:
    """The life dies after the race; the next one begins no branch, and has the same winner."""
    world = World(failing={"tell"})
    with pytest.raises(ValueError, match="tell failed"):
        stage.run(two_answers, world, id="r")
    before = world.bodies.copy()
    world.failing.clear()
    won, _ = stage.run(two_answers, world, id="r")
    assert world.bodies[len(before) :] == ["tell"]
    assert won[1]["done"] == won[0]


def test_where_all_fail_the_race_fails_and_a_retried_run_races_anew(stage: Stage) -> None:
    world = World(failing={"north", "south"})
    with pytest.raises(ExceptionGroup) as failed:
        stage.run(two_answers, world, id="r")
    assert sorted(str(problem) for problem in failed.value.exceptions) == ["north failed", "south failed"]
    world.failing = {"north"}
    won, _ = stage.run(two_answers, world, id="r")
    assert won[0] == "south"
    assert world.bodies.count("south") == 2


# -- both colours, on one store ---------------------------------------------------------------------------------------


def run(workflow: Callable[..., Any], store: Any, **options: Any) -> Any:
    """One life of the run `r`."""
    result = durable.run({}, workflow, id="r", store=store, **options)
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


def _races(branches: dict[str, Any], step: durable.Step, _: Any) -> Any:
    return step.race(**branches)


def test_what_a_race_refuses() -> None:
    with memory() as store:
        for branches in ({}, {"a": 3}):
            with pytest.raises(durable.InvalidArgument):
                durable.run({}, partial(_races, branches), id="r", store=store)

        async def early(step: durable.AsyncStep, _: Any) -> Any:
            return await step.race(a=step("a", lambda: 1))  # type: ignore[call-overload]

        with pytest.raises(durable.InvalidArgument, match="without calling it"):
            asyncio.run(durable.run({}, early, id="e", store=store))

        def unstorable(step: durable.Step, _: Any) -> Any:
            return step.race(a=lambda: object())

        with pytest.raises(durable.UnstorableValue, match="branch 'a'"):
            durable.run({}, unstorable, id="u", store=store)


def test_a_value_comes_back_as_what_its_branch_promises() -> None:
    def answer() -> tuple[int, ...]:
        return (1, 2)

    def workflow(step: durable.Step, _: Any) -> Any:
        return step.race(a=answer)

    with memory() as store:
        assert run(workflow, store) == ("a", (1, 2)) == run(workflow, store)


def test_a_sleep_as_a_branch_is_a_timeout() -> None:
    def blocking(step: durable.Step, _: Any) -> Any:
        return step.race(answer=lambda: step.wait_for("answer"), timer=lambda: step.sleep("patience", 3600))

    async def awaiting(step: durable.AsyncStep, _: Any) -> Any:
        return await step.race(answer=lambda: step.wait_for("answer"), timer=lambda: step.sleep("patience", 3600))

    for workflow in (blocking, awaiting):
        rehearsal = Rehearsal()
        assert run(workflow, rehearsal) == ("timer", None)
        assert rehearsal.clock.elapsed() == 3600
        rehearsal = Rehearsal()
        rehearsal.clock.after(60, partial(durable.signal, rehearsal, "r", "answer", 42))
        assert run(workflow, rehearsal) == ("answer", 42)
        assert rehearsal.clock.elapsed() == 60


def test_a_blocking_loser_begins_no_step_and_its_body_goes_on() -> None:
    """The race returns while the loser's body still runs; the run ends when that has."""
    go_on, bodies = threading.Event(), list[str]()

    def long() -> str:
        bodies.append("long")
        assert go_on.wait(10)
        return "long"

    def workflow(step: durable.Step, _: Any) -> Any:
        def loser() -> str:
            step("long", long)
            bodies.append("after")
            step("later", lambda: bodies.append("later"))
            return "loser"

        won = step.race(winner=lambda: step("short", lambda: "short"), loser=loser)
        go_on.set()
        return won, step("next", lambda: "next")

    with memory() as store:
        events: list[RunEvent] = []
        assert run(workflow, store) == (("winner", "short"), "next")
        assert "later" not in bodies
        bodies.clear()
        assert run(workflow, store, on_event=events.append) == (("winner", "short"), "next")
        assert bodies == []


def test_an_async_loser_is_cancelled_and_its_clean_up_is_awaited() -> None:
    done: list[str] = []

    async def never() -> None:
        await asyncio.Event().wait()

    async def workflow(step: durable.AsyncStep, deps: dict[str, Any]) -> Any:
        async def loser() -> None:
            try:
                await step("never", never)
            finally:
                await step("release", lambda: done.append("released"))

        won = await step.race(winner=lambda: step("short", lambda: "short"), loser=loser)
        done.append("decided")
        value = await step("next", lambda: "next")
        if deps.get("dies"):
            raise Crash
        return won, value

    with memory() as store:
        with pytest.raises(Crash):
            asyncio.run(durable.run({"dies": True}, workflow, id="r", store=store))
        assert done == ["released", "decided"]
        events: list[RunEvent] = []
        assert run(workflow, store, on_event=events.append) == (("winner", "short"), "next")
        assert done == ["released", "decided", "decided"]
        assert [event.key for event in events if isinstance(event, StepReplayed)] == ["winner | loser", "next"]
        assert not any(isinstance(event, KeysUnused) for event in events)


def test_a_race_within_a_race_ends_with_it() -> None:
    def blocking(step: durable.Step, _: Any) -> Any:
        return step.race(
            inner=lambda: step.race(a=lambda: step.wait_for("a"), b=lambda: step.sleep("b", 3600)),
            outer=lambda: step("outer", lambda: "outer"),
        )

    async def awaiting(step: durable.AsyncStep, _: Any) -> Any:
        return await step.race(
            inner=lambda: step.race(a=lambda: step.wait_for("a"), b=lambda: step.sleep("b", 3600)),
            outer=lambda: step("outer", lambda: "outer"),
        )

    for workflow in (blocking, awaiting):
        with memory() as store:
            assert run(workflow, store) == ("outer", "outer") == run(workflow, store)


def test_one_run_in_many_races_goes_on_in_order() -> None:
    """What goes on within a race is not beside what comes after: drift is found as in any sequential run."""

    def workflow(step: durable.Step, deps: dict[str, Any]) -> Any:
        if deps.get("changed"):
            step("new", lambda: 1)
        won = step.race(only=lambda: step("a", lambda: 1))
        step("after", lambda: 2)
        if not deps.get("changed"):
            raise Crash
        return won

    with memory() as store:
        with pytest.raises(Crash):
            durable.run({}, workflow, id="r", store=store)
        with pytest.raises(durable.WorkflowDrift):
            durable.run({"changed": True}, workflow, id="r", store=store)


def test_going_back_to_a_race_sets_its_branches_aside() -> None:
    bodies: list[str] = []

    def workflow(step: durable.Step, _: Any) -> Any:
        won = step.race(key="race", a=lambda: step("a", lambda: bodies.append("a")))
        step("after", lambda: 1 / 0)
        return won

    with memory() as store:
        with pytest.raises(ZeroDivisionError):
            durable.run({}, workflow, id="r", store=store)
        assert durable.retry(store, "r", from_step="race") == ["a", "race", "after"]
        with pytest.raises(ZeroDivisionError):
            durable.run({}, workflow, id="r", store=store)
        assert bodies == ["a", "a"]
        assert durable.retry(store, "r", from_step="a") == ["a", "race", "after"]


def test_always_replay_has_the_same_winner() -> None:
    async def answer(of: str) -> str:
        await asyncio.sleep(0.001 if of == "quick" else 0.01)
        return of

    async def workflow(step: durable.AsyncStep, _: Any) -> Any:
        won = await step.race(slow=lambda: step("slow", answer, "slow"), quick=lambda: step("quick", answer, "quick"))
        return won, await step("next", answer, "quick")

    assert run(workflow, Rehearsal(always_replay=True)) == (("quick", "quick"), "quick")


# -- plain asyncio ----------------------------------------------------------------------------------------------------

LIVES = int(
    os.environ.get("DURABLE_LIVES", "50")
)  # of each, resumed, and as many replayed at each step; `make nightly`: 300


async def _takes(what: str, seconds: float) -> str:
    await asyncio.sleep(seconds)
    return what


async def as_they_come(step: durable.AsyncStep, deps: dict[str, Any]) -> list[str]:
    """The first program of `race_repeat.py`."""
    calls = [step("slow", _takes, "slow", 0.004), step("quick", _takes, "quick", 0.001)]
    decided = [await one for one in asyncio.as_completed(calls)]
    deps["decided"].append(decided)
    if deps["dies"]:
        raise Crash
    return decided


async def the_first(step: durable.AsyncStep, deps: dict[str, Any]) -> list[str]:
    """The second."""
    slow = asyncio.ensure_future(step("slow", _takes, "slow", 0.004))
    quick = asyncio.ensure_future(step("quick", _takes, "quick", 0.001))
    done, _ = await asyncio.wait([slow, quick], return_when=asyncio.FIRST_COMPLETED)
    decided = sorted(task.result() for task in done)
    deps["decided"].append(decided)
    await asyncio.wait([slow, quick])
    if deps["dies"]:
        raise Crash
    return decided


async def drawn_in_tasks(step: durable.AsyncStep, deps: dict[str, Any]) -> list[str]:
    """The keys are drawn in the tasks, the slower after some turns of the loop."""

    async def late() -> str:
        for _ in range(3):
            await asyncio.sleep(0)
        return await step("late", _takes, "late", 0.001)

    async def early() -> str:
        return await step("early", _takes, "early", 0.004)

    decided = [await one for one in asyncio.as_completed([early(), late()])]
    deps["decided"].append(decided)
    if deps["dies"]:
        raise Crash
    return decided


@pytest.mark.parametrize("workflow", [as_they_come, the_first, drawn_in_tasks])
def test_what_asyncio_decided_it_decides_again(workflow: Callable[..., Any]) -> None:
    """None decides otherwise when it is resumed, nor within `always_replay`."""

    async def lives() -> None:
        for number in range(2 * LIVES):
            store = memory() if number % 2 else Rehearsal(always_replay=True)
            decided: list[list[str]] = []
            if number % 2:
                with pytest.raises(Crash):
                    await durable.run({"dies": True, "decided": decided}, workflow, id="r", store=store)
            await durable.run({"dies": False, "decided": decided}, workflow, id="r", store=store)
            # A rehearsal goes back before the last of them is decided: it would raise WorkflowDrift.
            assert len(decided) >= 1 + number % 2, "it was decided once, and not again"
            assert all(one == decided[0] for one in decided), decided

    asyncio.run(lives())
