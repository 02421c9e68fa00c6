"""`step.patched`: the new way for runs that had not come there, the old one for those that had passed."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any, cast

import pytest

import durable
from durable.stores import memory
from durable.testing import Rehearsal, replay
from harness.ready import Ready
from harness.support import Database

colours = pytest.mark.parametrize("is_async", [False, True], ids=["blocking", "async"])


class Died(BaseException):
    """The process did."""


class World:
    """What bodies leave behind; it dies in the body `dies_in`, or fails in those `failing`."""

    def __init__(self, dies_in: str = "", failing: str = "") -> None:
        self.bodies: Counter[str] = Counter()
        self.dies_in = dies_in
        self.failing = failing
        self.answers: list[bool] = []

    def do(self, what: str) -> str:
        if what == self.dies_in:
            raise Died
        if what == self.failing:
            raise ValueError(what)
        self.bodies[what] += 1
        return what


def ran(program: Callable[..., Any], store: Any, world: World, *, is_async: bool, id: str = "a", **options: Any) -> Any:
    """One run of a program in one of both colours."""

    @durable.workflow("program")
    def workflow(step: durable.Step, world: Any, *given: Any) -> Any:
        return Ready.told(program(Ready(step), world))

    @durable.workflow("program")
    async def async_workflow(step: durable.AsyncStep, world: Any, *given: Any) -> Any:
        return await program(step, world)

    if is_async:
        return asyncio.run(durable.run(world, async_workflow, id=id, store=store, **options))
    return durable.run(world, workflow, id=id, store=store, **options)


async def old(step: Any, world: World) -> list[str]:
    """Before the change."""
    return [await step(what, world.do, what) for what in ("first", "old", "last")]


async def new(step: Any, world: World) -> list[str]:
    """After it."""
    done = [await step("first", world.do, "first")]
    world.answers.append(step.patched("way"))
    way = "new" if world.answers[-1] else "old"
    return [*done, await step(way, world.do, way), await step("last", world.do, "last")]


NEW, OLD = ["first", "new", "last"], ["first", "old", "last"]


@colours
def test_a_run_that_begins_takes_the_new_way(is_async: bool) -> None:
    with closing(memory()) as store:
        for _ in range(2):
            assert ran(new, store, World(), is_async=is_async) == NEW
        assert cast("Any", store).load("a").document()["steps"]["new"]["drawn"] == {"patched:way": True}


@colours
@pytest.mark.parametrize(
    ("dies_in", "expected"), [("first", NEW), ("old", NEW), ("last", OLD)], ids=["before", "there", "after"]
)
def test_a_run_in_flight_goes_its_way(is_async: bool, dies_in: str, expected: list[str]) -> None:
    """Where it died there, nothing of the old way is recorded: it takes the new one."""
    with closing(memory()) as store:
        with pytest.raises(Died):
            ran(old, store, World(dies_in), is_async=is_async)
        for dies in ("last", ""):  # whatever becomes of the first execution with the new code
            world = World(dies)
            try:
                assert ran(new, store, world, is_async=is_async) == expected
            except Died:
                assert dies
            assert world.answers == [expected is NEW]


@colours
@pytest.mark.parametrize("store_of", ["memory", "postgres"])
@pytest.mark.parametrize("begun_with", [old, new], ids=["old", "new"])
def test_whatever_dies_the_answer_is_one(
    is_async: bool, store_of: str, begun_with: Any, request: pytest.FixtureRequest
) -> None:
    """Killed in each body, twice: never is one way recorded, and then the other taken."""
    database: Database | None = request.getfixturevalue("database") if store_of == "postgres" else None
    store = memory() if database is None else database.store()
    bodies = ("first", "old", "new", "last", "")
    for number, deaths in enumerate(itertools.product(bodies, bodies)):
        way, worlds = begun_with, [World(dies_in) for dies_in in (*deaths, "")]
        for world in worlds:
            try:
                done = ran(way, store, world, is_async=is_async, id=f"run-{number}")
            except Died:
                if database is not None:
                    database.end_lease(f"run-{number}")
            way = new
        assert done in (OLD, NEW)
        found = store.load(f"run-{number}")
        assert found is not None
        assert not {"old", "new"} <= found.steps.keys()
        assert max(sum((world.bodies for world in worlds), Counter()).values()) == 1
    store.close()


@colours
def test_an_answer_holds_for_every_place_of_its_name(is_async: bool) -> None:
    async def program(step: Any, world: World) -> list[bool]:
        with step.scope("one"):
            first = step.patched("way")
        await step("first", world.do, "first")
        return [first, step.patched("way"), step.patched("other")]

    with closing(memory()) as store:
        assert ran(program, store, World(), is_async=is_async) == [True, True, True]


@colours
def test_a_step_that_was_removed_is_nothing_that_comes_later(is_async: bool) -> None:
    """Where calls come one after another, the last record says how far the run had come."""

    async def before(step: Any, world: World) -> None:
        for what in ("gone", "first", "old"):
            await step(what, world.do, what, key="gone" if what == "gone" else None)

    with closing(memory()) as store:
        with pytest.raises(Died):
            ran(before, store, World("old"), is_async=is_async)
        assert ran(new, store, World(), is_async=is_async) == NEW


@colours
def test_an_attempt_is_a_record(is_async: bool) -> None:
    """A step of the old way that has begun at most once is not forgotten for the new one."""

    async def before(step: Any, world: World) -> None:
        await step("first", world.do, "first")
        await step("old", world.do, "old", at_most_once=True)

    with closing(memory()) as store:
        with pytest.raises(Died):
            ran(before, store, World("old"), is_async=is_async)
        world = World()
        with pytest.raises(durable.StepInterrupted):
            ran(new, store, world, is_async=is_async)
        assert world.answers == [False]


@colours
def test_a_failed_run_is_mended_by_the_new_way(is_async: bool) -> None:
    """What failed runs again: that is the place to which it had come."""
    with closing(memory()) as store:
        with pytest.raises(ValueError, match="old"):
            ran(old, store, World(failing="old"), is_async=is_async)
        assert ran(new, store, World(), is_async=is_async) == NEW


@colours
def test_a_failure_that_was_caught_is_history(is_async: bool) -> None:
    async def before(step: Any, world: World) -> None:
        await step("first", world.do, "first")
        with pytest.raises(ValueError):
            await step("old", world.do, "old")
        await step("last", world.do, "last")

    with closing(memory()) as store:
        with pytest.raises(Died):
            ran(before, store, World("last", "old"), is_async=is_async)
        world = World()
        with pytest.raises(ValueError):
            ran(new, store, world, is_async=is_async)
        assert world.answers == [False]


@colours
def test_a_fork_from_before_decides_anew(is_async: bool) -> None:
    """And one from after does not."""
    with closing(memory()) as store:
        assert ran(old, store, World(), is_async=is_async) == OLD
        durable.fork(store, "a", from_step="old", new_id="b")
        durable.fork(store, "a", from_step="last", new_id="c")
        assert ran(new, store, World(), is_async=is_async, id="b") == NEW
        assert ran(new, store, World(), is_async=is_async, id="c") == OLD


@colours
def test_a_continued_run_takes_the_new_way(is_async: bool) -> None:
    rounds: list[bool] = []

    async def before(step: Any, world: World) -> None:
        await step("old", world.do, "old")
        await step("last", world.do, "last")

    async def after(step: Any, world: World) -> None:
        rounds.append(step.patched("way"))
        if rounds[-1]:
            return
        await step("old", world.do, "old")
        await step("last", world.do, "last")
        step.continue_with(2)

    with closing(memory()) as store:
        with pytest.raises(Died):
            ran(before, store, World("last"), is_async=is_async, input=1)
        ran(after, store, World(), is_async=is_async, input=1)
    assert rounds == [False, True]


@colours
def test_items_of_one_run_go_one_way(is_async: bool) -> None:
    """As long as anything recorded may be another item's, it is the old one."""

    def program(*, patched: bool) -> Any:
        async def workflow(step: Any, world: World) -> list[str]:
            async def handle(item: str) -> str:
                await step("read", world.do, f"read-{item}")
                way = "new" if patched and step.patched("way") else "old"
                return str(await step(way, world.do, f"{way}-{item}"))

            return list(await step.map("handle", handle, "abcd", key=str, max_concurrency=1))

        return workflow

    with closing(memory()) as store:
        with pytest.raises(Died):
            ran(program(patched=False), store, World("old-b"), is_async=is_async)
        # Nothing is recorded that comes after b's place: it had not passed there, and neither had those after it.
        done = ran(program(patched=True), store, World(), is_async=is_async)
        assert done == ["old-a", "new-b", "new-c", "new-d"]
    with closing(memory()) as store:
        before = World("read-d")

        async def beside(step: Any, world: World) -> None:
            async def handle(item: str) -> str:
                await step("read", world.do, f"read-{item}")
                return str(await step("old", world.do, f"old-{item}"))

            await step.map("handle", handle, ["c", "d"], key=str, max_concurrency=1)

        with pytest.raises(Died):
            ran(beside, store, before, is_async=is_async)
        done = ran(program(patched=True), store, World(), is_async=is_async)
        assert done == ["old-a", "old-b", "old-c", "old-d"]


@colours
def test_always_replay_is_told_one_answer(is_async: bool) -> None:
    with closing(memory()) as store:
        world = World()
        assert ran(new, Rehearsal(store=store, always_replay=True), world, is_async=is_async) == NEW
        assert set(world.answers) == {True}


@pytest.mark.parametrize("dies_in", ["old", "last", ""])
def test_a_replay_of_yesterdays_run_fits(dies_in: str) -> None:
    """Also where the place is the last thing in it: a completed run has passed all of them."""

    async def ends(step: Any, world: World) -> list[str]:
        done = await new(step, world)
        if step.patched("end"):
            await step("end", world.do, "end")
        return done

    @durable.workflow("program")
    def workflow(step: durable.Step, deps: Any) -> Any:
        return Ready.told(ends(Ready(step), deps))

    with closing(memory()) as store:
        with suppress(Died):
            ran(old, store, World(dies_in), is_async=False)
        found: Any = replay(World(), workflow, cast("Any", store).load("a"))
        assert found.check().ended is not bool(dies_in)
