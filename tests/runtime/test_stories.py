"""The stories of issue 2, each told once and run five ways."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import durable
from harness.stages import Ask, Died, EngineStage, Stage, Story, Telling, Together, World, postgres_stage
from harness.support import Database


def checkout(world: World) -> Telling:
    """Five steps: explicit keys, automatic ones, a thunk."""
    user = yield Ask("fetchUser", world.do, ("fetch-user", "u-1"), key="fetch-user")
    stock = yield Ask("reserve", world.do, ("reserve", user))
    yield Ask("charge", lambda: world.do("charge"))
    order = yield Ask("order", world.do, ("order", user, stock), key="order-1")
    yield Ask("receipt", world.do, ("receipt", order))
    return {"order": order, "stock": stock}


def repeating(world: World) -> Telling:
    """One name again and again, numbered; one key again and again, remembered."""
    total = []
    for number in range(4):
        total.append((yield Ask("item", world.do, (f"item-{number}",))))
    for _ in range(3):
        total.append((yield Ask("same", world.do, ("same",), key="same")))
    return total


def catching(world: World) -> Telling:
    """A step fails, the workflow makes up for it and goes on."""
    yield Ask("book", world.do, ("book",))
    try:
        yield Ask("pay", world.do, ("pay",))
    except ValueError as problem:
        undone = yield Ask("cancel", world.do, ("cancel", str(problem)))
        return ["cancelled", undone]
    return "paid"


def together(world: World) -> Telling:
    """Three steps at once, between two."""
    yield Ask("first", world.do, ("first",))
    parts = yield Together([Ask("part", world.do, (f"part-{name}",), f"part-{name}") for name in "abc"])
    last = yield Ask("last", world.do, ("last",))
    return [parts, last]


def with_input(world: World, order: Any) -> Telling:
    """A workflow with an input."""
    return (yield Ask("take", world.do, ("take", order["id"])))


def nothing(world: World) -> Telling:
    """No step at all."""
    yield from ()
    return "nothing"


def oracle(story: Story, failing: set[str] | None = None) -> tuple[Any, Counter[str]]:
    """What an undisturbed run returns and does."""
    world = World(failing=set(failing or ()))
    result = EngineStage().run(story, world)
    return result, Counter(world.bodies)


def test_a_run_returns_and_is_remembered(stage: Stage) -> None:
    """FAULTS 9: a completed run returns its stored result and calls nothing."""
    for story in (checkout, repeating, together, nothing):
        expected, bodies = oracle(story)
        world = World()
        assert stage.run(story, world, id=story.__name__) == expected
        assert Counter(world.bodies) == bodies
        assert stage.run(story, world, id=story.__name__) == expected
        assert Counter(world.bodies) == bodies


def test_a_caught_failure_is_part_of_history(stage: Stage) -> None:
    """What the workflow caught is replayed, not repaired: it went on from there."""
    world = World(failing={"pay"})
    first = stage.run(catching, world)
    assert first[0] == "cancelled"
    world.failing.clear()
    assert stage.run(catching, world) == first
    assert world.bodies == ["book", "pay", "cancel"]


def test_a_failed_run_resumes_at_the_step_that_failed(stage: Stage) -> None:
    """Only the steps whose failure led to the run's run again."""
    world = World(failing={"charge"})
    with pytest.raises(ValueError, match="charge failed"):
        stage.run(checkout, world)
    with pytest.raises(ValueError, match="charge failed"):
        stage.run(checkout, world)
    world.failing.clear()
    assert stage.run(checkout, world) == oracle(checkout)[0]
    assert Counter(world.bodies) == {"fetch-user": 1, "reserve": 1, "charge": 3, "order": 1, "receipt": 1}


def test_a_failed_branch_runs_again_and_its_siblings_do_not(stage: Stage) -> None:
    """FAULTS 114."""
    world = World(failing={"part-a"})
    with pytest.raises(ValueError, match="part-a failed"):
        stage.run(together, world)
    assert Counter(world.bodies) == {"first": 1, "part-a": 1, "part-b": 1, "part-c": 1}
    world.failing.clear()
    assert stage.run(together, world) == oracle(together)[0]
    assert Counter(world.bodies) == {"first": 1, "part-a": 2, "part-b": 1, "part-c": 1, "last": 1}


def test_the_way_after_a_mended_failure_may_be_another(stage: Stage) -> None:
    """A failed run that had cleaned up after the failure is no drift when the mended step takes the other way."""

    def cleaning(world: World) -> Telling:
        try:
            yield Ask("pay", world.do, ("pay",))
        except ValueError:
            yield Ask("clean", world.do, ("clean",))
            raise
        yield Ask("ship", world.do, ("ship",))
        return "shipped"

    world = World(failing={"pay"})
    with pytest.raises(ValueError, match="pay failed"):
        stage.run(cleaning, world)
    world.failing.clear()
    stage.run(cleaning, World(), id="undisturbed")
    with pytest.raises(Died):
        stage.run(cleaning, world, dies_at=stage.boundaries.passed.index("before finish"))
    assert stage.run(cleaning, world) == "shipped"
    assert Counter(world.bodies) == {"pay": 2, "clean": 1, "ship": 1}


def test_an_input_is_remembered(stage: Stage) -> None:
    """FAULTS 70: omitted later, the stored one is used; another one is refused."""
    world = World()
    with pytest.raises(Died):
        stage.run(with_input, world, input={"id": 7}, dies_at=2)
    assert stage.run(with_input, world) == {"done": "take", "of": [7]}
    with pytest.raises(durable.RunMismatch, match="input"):
        stage.run(with_input, world, input={"id": 8})
    assert stage.run(with_input, world, input={"id": 7}) == {"done": "take", "of": [7]}
    assert world.bodies == ["take"]


def test_another_workflow_or_version_is_refused(stage: Stage) -> None:
    """FAULTS 70, completed or not."""
    world = World(failing={"charge"})
    with pytest.raises(ValueError, match="charge failed"):
        stage.run(checkout, world)
    bodies = list(world.bodies)
    with pytest.raises(durable.RunMismatch, match="'checkout', not 'repeating'"):
        stage.run(repeating, world)
    with pytest.raises(durable.VersionMismatch, match="version 1"):
        stage.run(checkout, world, version=2)
    assert world.bodies == bodies
    world.failing.clear()
    stage.run(checkout, world)
    with pytest.raises(durable.RunMismatch):
        stage.run(repeating, world)


def drifted(name: str, change: Callable[[World], Telling]) -> Any:
    """A changed `checkout`, under its old name."""
    change.__name__ = "checkout"
    return pytest.param(change, id=name)


def _renamed(world: World) -> Telling:
    yield Ask("getUser", world.do, ("fetch-user", "u-1"), key="fetch-user")


def _other_arguments(world: World) -> Telling:
    yield Ask("fetchUser", world.do, ("fetch-user", "u-2"), key="fetch-user")


def _inserted(world: World) -> Telling:
    yield Ask("fetchUser", world.do, ("fetch-user", "u-1"), key="fetch-user")
    yield Ask("check", world.do, ("check",))


def _swallowing(world: World) -> Telling:
    with contextlib.suppress(Exception):  # it swallows everything it can
        yield Ask("getUser", world.do, ("fetch-user", "u-1"), key="fetch-user")
    yield Ask("more", world.do, ("more",), key="more")


@pytest.mark.parametrize(
    "changed",
    [
        drifted("renamed", _renamed),
        drifted("other arguments", _other_arguments),
        drifted("inserted", _inserted),
        drifted("swallowing", _swallowing),
    ],
)
def test_changed_code_is_drift_before_any_body_starts(stage: Stage, changed: Story) -> None:
    """FAULTS 93, 94: a record that does not match is never handed out, and the run can still be finished by old code."""
    world = World()
    with pytest.raises(Died):
        stage.run(checkout, world, dies_at=12)
    done = list(world.bodies)
    assert done[:2] == ["fetch-user", "reserve"]
    with pytest.raises(durable.WorkflowDrift):
        stage.run(changed, world)
    assert world.bodies == done
    assert stage.run(checkout, world) == oracle(checkout)[0]


def test_removed_and_explicitly_added_steps_are_no_drift(stage: Stage) -> None:
    """FAULTS 93: an unused stored key is no error, and a new step with a key of its own runs."""

    def changed(world: World) -> Telling:
        yield Ask("audit", world.do, ("audit",), key="audit")
        yield Ask("reserve", world.do, ("reserve", {"done": "fetch-user", "of": ["u-1"]}))
        return "changed"

    changed.__name__ = "checkout"
    world = World()
    with pytest.raises(Died):
        stage.run(checkout, world, dies_at=12)
    assert stage.run(changed, world) == "changed"
    assert Counter(world.bodies)["reserve"] == 1
    assert Counter(world.bodies)["audit"] == 1


def test_one_key_for_two_calls_is_a_conflict(stage: Stage) -> None:
    """FAULTS 72, 95: raised at the call, where the workflow may catch it; nothing ran."""

    def conflicting(world: World) -> Telling:
        yield Ask("pay", world.do, ("pay", 1), key="k")
        seen = []
        for again in (Ask("pay", world.do, ("pay", 2), key="k"), Ask("buy", world.do, ("buy", 1), key="k")):
            try:
                yield again
            except durable.errors.KeyConflict as problem:
                seen.append(problem.key)
        return seen

    world = World()
    assert stage.run(conflicting, world) == ["k", "k"]
    assert world.bodies == ["pay"]


def test_a_result_that_could_not_come_back_is_refused_at_once(stage: Stage) -> None:
    """FAULTS 83, 84: before the step counts as done; nothing else is poisoned."""

    def unstorable(world: World) -> Telling:
        refused: list[str] = []
        for value in ((1, object()), {1: float("inf")}, float("nan"), "a\0b", "\ud800", object()):
            try:
                yield Ask("make", lambda value=value: value, key=f"make-{len(refused)}")
            except durable.UnstorableValue as problem:
                refused.append(problem.path)
        return [refused, (yield Ask("fine", world.do, ("fine",)))]

    refused, fine = stage.run(unstorable, World())
    assert refused == ["$[1]", "$[…]", "$", "$", "$", "$"]
    assert fine == {"done": "fine", "of": []}


STORIES: list[tuple[Story, set[str]]] = [
    (checkout, set()),
    (repeating, set()),
    (catching, {"pay"}),
    (together, set()),
    (nothing, set()),
]


def lives(stage: Stage, story: Story, world: World, deaths: tuple[int, ...], id: str) -> tuple[Any, int]:
    """One life for each death, and a last one that nothing disturbs. Checks what must hold after each."""
    starts: list[Counter[str]] = []
    settled: set[str] = set()
    died = 0
    for dies_at in (*deaths, None):
        before = len(world.bodies)
        try:
            result = stage.run(story, world, id=id, dies_at=dies_at)
        except Died:
            died += 1
            result = None
        begun = Counter(world.bodies[before:])
        assert not settled & set(begun), f"ran again after it was recorded: {settled & set(begun)} (deaths {deaths})"
        settled |= _recorded(stage, world.bodies[before:])
        starts.append(begun)
    return result, died


def _recorded(stage: Stage, bodies: list[str]) -> set[str]:
    """Of these bodies, in order, those whose checkpoint is certainly committed: one commit each, in sequential stories."""
    committed = Counter(stage.boundaries.passed)["checkpoint committed"]
    return set(bodies[:committed])


@pytest.mark.parametrize(("story", "failing"), STORIES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_death_at_every_boundary(stage: Stage, story: Story, failing: set[str]) -> None:
    """FAULTS 1–9: wherever a life ends, the next one finishes, with the result of an undisturbed run."""
    expected, bodies = oracle(story, failing)
    stage.run(story, World(failing=set(failing)), id="undisturbed")
    boundaries = len(stage.boundaries.passed)
    assert boundaries >= 4
    for dies_at in range(boundaries):
        world = World(failing=set(failing))
        sequential = story is not together
        if sequential:
            result, died = lives(stage, story, world, (dies_at,), id=f"dies-at-{dies_at}")
            assert died == 1
        else:
            with pytest.raises(Died):
                stage.run(story, world, id=f"dies-at-{dies_at}", dies_at=dies_at)
            result = stage.run(story, world, id=f"dies-at-{dies_at}")
        assert result == expected
        assert set(world.bodies) == set(bodies)
        assert all(count <= bodies[what] + 1 for what, count in Counter(world.bodies).items())


@pytest.mark.parametrize(("story", "failing"), STORIES, ids=lambda value: getattr(value, "__name__", ""))
def test_deaths_at_every_pair_of_boundaries(story: Story, failing: set[str]) -> None:
    """The pure engine can afford every pair: two lives end anywhere, the third finishes."""
    expected, bodies = oracle(story, failing)
    stage = EngineStage()
    stage.run(story, World(failing=set(failing)), id="undisturbed")
    boundaries = len(stage.boundaries.passed)
    for number, deaths in enumerate(itertools.product(range(boundaries), repeat=2)):
        world = World(failing=set(failing))
        if story is together:
            for dies_at in deaths:
                try:
                    stage.run(story, world, id=str(number), dies_at=dies_at)
                except Died:
                    continue
            result = stage.run(story, world, id=str(number))
        else:
            result, _ = lives(stage, story, world, deaths, id=str(number))
        assert result == expected
        assert set(world.bodies) == set(bodies)
        assert all(count <= bodies[what] + 2 for what, count in Counter(world.bodies).items())


def test_the_stages_would_notice_a_lost_checkpoint() -> None:
    """The tests above can fail: a store that acknowledges before it writes is caught."""

    class Forgetful(EngineStage):
        def _turn(self, execution: Any, call: Any, ask: Any, outcome: Any) -> Any:
            before = list(self._records[execution.run_id])
            answer = super()._turn(execution, call, ask, outcome)
            if len(before) == 2:
                self._records[execution.run_id][:] = before
            return answer

    stage, world = Forgetful(), World()
    with pytest.raises(AssertionError, match="ran again after it was recorded"):
        lives(stage, checkout, world, (18,), id="x")


def test_postgres_keeps_nothing_of_a_refused_call(database: Database) -> None:
    """A mismatch, a drift and a missing input leave every row as it was."""
    stage, world = postgres_stage(database, is_async=False), World(failing={"charge"})
    with pytest.raises(ValueError, match="charge failed"):
        stage.run(checkout, world)
    before = database.everything()
    with pytest.raises(durable.RunMismatch):
        stage.run(repeating, world)
    with pytest.raises(durable.VersionMismatch):
        stage.run(checkout, world, version=3)
    with pytest.raises(durable.InvalidArgument, match="takes an input"):
        stage.run(with_input, world, id="never-started")
    assert database.everything() == before


@pytest.mark.parametrize("is_async", [False, True])
def test_a_failed_run_that_drifted_is_still_a_failed_run(database: Database, is_async: bool) -> None:
    """Refused for what the code has become, it goes back to what it was."""
    stage, world = postgres_stage(database, is_async=is_async), World(failing={"charge"})
    with pytest.raises(ValueError, match="charge failed"):
        stage.run(checkout, world)

    _renamed.__name__ = "checkout"
    with pytest.raises(durable.WorkflowDrift):
        stage.run(_renamed, world)
    assert database.status("run-1") == "failed"
    world.failing.clear()
    assert stage.run(checkout, world) == oracle(checkout)[0]
    assert database.status("run-1") == "completed"
