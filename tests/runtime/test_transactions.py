"""`step.transaction`: what a body does to the database and the step's record are there together, or not at all.

The stories are told once, in the stages that have a database or can pretend to; the table `booked` is the witness.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator
from typing import Any, assert_type

import psycopg
import pytest
import tenacity

import durable
from harness.stages import Ask, Died, EngineStage, Stage, Together, Transfer, World, postgres_stage

Telling = Generator[Ask | Together | Transfer, Any, Any]
TWICE = tenacity.Retrying(stop=tenacity.stop_after_attempt(2))


@pytest.fixture(params=["engine", "postgres sync", "postgres async"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Those of the five ways that have transactions."""
    kind, _, colour = request.param.partition(" ")
    if kind == "engine":
        yield EngineStage()
    else:
        yield postgres_stage(request.getfixturevalue("database"), is_async=colour == "async")


def paying(world: World) -> Telling:
    """Two transactions between plain steps."""
    user = yield Ask("user", world.do, ("user",))
    paid = yield Transfer("pay", world.book, ("pay", user))
    yield Transfer("book", world.book, ("book",), key="book-1")
    yield Ask("receipt", world.do, ("receipt", paid))
    return paid


def at_once(world: World) -> Telling:
    """Transactions and a plain step beside each other."""
    asks: list[Ask | Transfer] = [Transfer("part", world.book, (f"part-{n}",), f"part-{n}") for n in range(3)]
    done = yield Together([*asks, Ask("plain", world.do, ("plain",))])
    return [one["done"] for one in done]


def booked(*whats: str) -> Counter[str]:
    return Counter(f"{what} {side}" for what in whats for side in ("from", "to"))


def test_what_is_booked_is_there_once(stage: Stage) -> None:
    """The value comes back, live and replayed, and the body ran once."""
    world = World()
    first = stage.run(paying, world)
    assert first == {"done": "pay", "of": [{"done": "user", "of": []}]}
    assert Counter(stage.booked) == booked("pay", "book")
    assert stage.run(paying, world) == first
    assert Counter(stage.booked) == booked("pay", "book")
    assert Counter(world.bodies) == {"user": 1, "pay": 1, "book": 1, "receipt": 1}


def test_a_body_that_raises_leaves_nothing_behind(stage: Stage) -> None:
    """Its failure is recorded like any other, and it runs again when the failed run does."""
    world = World(failing={"pay"})
    with pytest.raises(ValueError, match="pay failed"):
        stage.run(paying, world)
    assert stage.booked == []
    world.failing.clear()
    stage.run(paying, world)
    assert Counter(stage.booked) == booked("pay", "book")
    assert Counter(world.bodies) == {"user": 1, "pay": 2, "book": 1, "receipt": 1}


def test_a_failure_that_was_caught_is_replayed_and_books_nothing(stage: Stage) -> None:
    def story(world: World) -> Telling:
        try:
            yield Transfer("pay", world.book, ("pay",))
        except ValueError:
            yield Transfer("refund", world.book, ("refund",))
        yield Ask("last", world.do, ("last",))

    world = World(failing={"pay", "last"})
    for _ in range(2):
        with pytest.raises(ValueError, match="last failed"):
            stage.run(story, world)
    assert Counter(stage.booked) == booked("refund")
    assert Counter(world.bodies) == {"pay": 1, "refund": 1, "last": 2}


def test_it_is_retried_like_any_step(stage: Stage) -> None:
    """What a failed attempt did is undone; the attempts are counted through restarts."""

    def story(world: World) -> Telling:
        return (yield Transfer("pay", world.book, ("pay",), terms={"retry": TWICE}))

    world = World(failures=Counter(pay=1))
    stage.run(story, world)
    assert world.bodies == ["pay", "pay"]
    assert Counter(stage.booked) == booked("pay")


def test_a_value_that_cannot_be_stored_is_rolled_back(stage: Stage) -> None:
    def story(world: World) -> Telling:
        def body(connection: Any) -> object:
            world.book(connection, "pay")
            return object()

        try:
            yield Transfer("pay", body)
        except durable.UnstorableValue:
            return "refused"

    assert stage.run(story, World()) == "refused"
    assert stage.booked == []


def count(connection: psycopg.Connection[Any], table: str, at_least: int) -> list[int]:
    return [at_least, len(table)]


def test_values_and_arguments_are_inferred() -> None:
    """For the type checkers: in both colours, without a cast; what does not fit the function is an error."""

    def typed(step: durable.Step, _: None) -> None:
        assert_type(step.transaction("count", count, "a table", 3, isolation="serializable"), list[int])
        step.transaction("count", count, "a table")  # type: ignore[arg-type]
        step.transaction("count", count, 3, "a table")  # type: ignore[arg-type]
        step.transaction("count", count, "a table", 3, isolation="chaos")  # type: ignore[arg-type]

    async def typed_async(step: durable.AsyncStep, _: None) -> None:
        assert_type(await step.transaction("count", count, "a table", 3, key="one"), list[int])
        await step.transaction("count", count, "a table")  # type: ignore[arg-type]

    assert callable(typed)
    assert callable(typed_async)


@pytest.mark.long(3)
def test_a_death_at_every_boundary_books_once(stage: Stage) -> None:
    """Never doubled, never missing, never half; what was acknowledged is not even tried again."""
    for story, whole in ((paying, booked("pay", "book")), (at_once, booked("part-0", "part-1", "part-2"))):
        before = Counter(stage.booked)
        stage.run(story, World(), id=f"{story.__name__} undisturbed")
        assert Counter(stage.booked) - before == whole
        boundaries = len(stage.boundaries.passed)
        assert boundaries > 12
        for dies_at in range(boundaries):
            before, run_id = Counter(stage.booked), f"{story.__name__} dies at {dies_at}"
            world = World()
            with pytest.raises(Died):
                stage.run(story, world, id=run_id, dies_at=dies_at)
            left = Counter(stage.booked) - before
            assert all(count == 1 for count in left.values())
            assert {what for what, _, side in (line.partition(" ") for line in left) if side == "to"} == {
                what for what, _, side in (line.partition(" ") for line in left) if side == "from"
            }, "half a transaction"
            again = World()
            stage.run(story, again, id=run_id)
            assert Counter(stage.booked) - before == whole
            there = {line.partition(" ")[0] for line in left}
            assert not there & set(again.bodies), "committed, and done again"
