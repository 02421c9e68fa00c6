"""What a run does at its end: the undos of what was done, and what `step.on_end` was given."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from functools import partial
from typing import Any, cast

import pytest
import tenacity

import durable
from durable.stores import memory
from durable.stores.protocol import QueueingStore, ReadableStore
from durable.testing import Rehearsal
from harness.stages import Ask, Died, EngineStage, OnEnd, Stage, Story, Telling, World


def saga(world: World) -> Telling:
    """Three steps, two of which can be undone, a fourth that fails, and something to be done in any case."""
    yield OnEnd("goodbye", world.do, ("goodbye",))
    first = yield Ask("look", world.do, ("look",))
    yield Ask("reserve", world.do, ("reserve", first), terms={"undo": partial(world.do, "release")})
    yield Ask("note", world.do, ("note",))
    yield Ask("pay", world.do, ("pay",), terms={"undo": partial(world.do, "refund")})
    yield Ask("ship", world.do, ("ship",))
    return "shipped"


UNDONE = ["look", "reserve", "note", "pay", "ship", "refund", "release", "goodbye"]


def ended(stage: Stage, story: Story, world: World, **options: Any) -> Any:
    """What a life comes to: a value, or the class of what it raises."""
    try:
        return stage.run(story, world, **options)
    except (Exception, Died) as problem:
        return type(problem)


def test_a_failed_run_undoes_what_was_done_the_last_first(stage: Stage) -> None:
    world = World(failing={"ship"})
    assert ended(stage, saga, world) is ValueError
    assert world.bodies == UNDONE


def test_a_run_that_is_taken_up_again_does_anew_what_was_undone(stage: Stage) -> None:
    """And all that started after it: it may have seen its value."""
    world = World(failing={"ship"})
    ended(stage, saga, world)
    world.failing.clear()
    world.bodies.clear()
    assert ended(stage, saga, world) == "shipped"
    assert world.bodies == ["reserve", "note", "pay", "ship", "goodbye"]


def test_a_completed_run_undoes_nothing_and_says_goodbye(stage: Stage) -> None:
    world = World()
    assert ended(stage, saga, world) == "shipped"
    assert world.bodies == ["look", "reserve", "note", "pay", "ship", "goodbye"]
    assert ended(stage, saga, world) == "shipped"
    assert len(world.bodies) == 6


def test_a_cancelled_run_undoes_what_was_done(stage: Stage) -> None:
    """The body in which it is asked goes on to its end, is recorded, and is undone; no further step begins."""
    world = World(cancelling={"pay"})
    assert ended(stage, saga, world, cancel=world.cancel) is durable.RunCancelled
    assert world.bodies == ["look", "reserve", "note", "pay", "refund", "release", "goodbye"]
    world.bodies.clear()
    world.cancelling.clear()
    world.cancel.clear()
    assert ended(stage, saga, world) == "shipped"
    assert world.bodies == ["reserve", "note", "pay", "ship", "goodbye"]


@pytest.mark.parametrize("how", ["fails", "is cancelled", "completes"])
def test_killed_at_every_boundary_it_closes_as_if_it_had_not_been(stage: Stage, how: str) -> None:
    """Each undo is done in its order, and none is done again once it is recorded; what is retried then does all anew."""

    def world_of() -> World:
        world = World()
        world.failing |= {"ship"} if how == "fails" else set()
        world.cancelling |= {"pay"} if how == "is cancelled" else set()
        return world

    undisturbed = world_of()
    outcome = ended(stage, saga, undisturbed, id="undisturbed", cancel=undisturbed.cancel)
    boundaries = list(stage.boundaries.passed)
    for dies_at in range(len(boundaries)):
        world, run_id = world_of(), f"dies-at-{dies_at}"
        first = ended(stage, saga, world, id=run_id, dies_at=dies_at, cancel=world.cancel)
        before = len(world.bodies)
        assert first is Died, dies_at
        if stage.boundaries.died_at == "finish committed" and how != "completes":
            continue  # it has ended: what comes next is a retry
        assert ended(stage, saga, world, id=run_id, cancel=world.cancel) == outcome, dies_at
        counted, usual = Counter(world.bodies), Counter(undisturbed.bodies)
        assert all(counted[what] <= usual[what] + 1 for what in counted), (dies_at, world.bodies)
        assert sum(counted.values()) <= sum(usual.values()) + (2 if how == "fails" else 1), (dies_at, world.bodies)
        undone = [what for what in world.bodies if what in ("refund", "release", "goodbye")]
        assert list(dict.fromkeys(undone)) == [what for what in undisturbed.bodies if what in undone], dies_at
        if how == "completes":
            continue
        if "release" in undone:  # from the first undo on, nothing forward
            last = world.bodies.index("refund" if "refund" in undone else "release")
            assert not {"look", "reserve", "note", "pay"} & set(world.bodies[max(before, last) :]), (
                dies_at,
                world.bodies,
            )
        world.failing.clear()
        world.cancelling.clear()
        world.cancel.clear()
        world.bodies.clear()
        assert ended(stage, saga, world, id=run_id) == "shipped"
        assert world.bodies == ["reserve", "note", "pay", "ship", "goodbye"], (dies_at, world.bodies)


def test_a_failed_undo_is_loud_and_can_be_retried(stage: Stage) -> None:
    world = World(failing={"ship", "refund"})
    with pytest.raises(ValueError, match="ship failed") as failed:
        stage.run(saga, world)
    if not isinstance(stage, EngineStage):
        assert "undo:pay" in failed.value.__notes__[-1]
    assert world.bodies == UNDONE  # the others are done all the same
    with pytest.raises(durable.RetryRefused, match=r"undo:pay.*has it done again"):
        stage.run(saga, world)
    world.bodies.clear()
    world.failing.remove("refund")
    assert stage.retry("run-1") == ["undo:pay"]
    assert ended(stage, saga, world) is ValueError  # the closing has ended now, and the run as it was to
    assert world.bodies == ["refund"]
    world.failing.clear()
    world.bodies.clear()
    assert ended(stage, saga, world) == "shipped"
    assert world.bodies == ["reserve", "note", "pay", "ship", "goodbye"]


def test_of_a_cancelled_run_a_failed_undo_fails_it(stage: Stage) -> None:
    world = World(cancelling={"pay"}, failing={"release"})
    with pytest.raises(durable.ClosingFailed, match=r"cancelled.*undo:reserve"):
        stage.run(saga, world, cancel=world.cancel)
    world.failing.clear()
    assert stage.retry("run-1") == ["undo:reserve"]
    world.bodies.clear()
    assert ended(stage, saga, world) is durable.RunCancelled
    assert world.bodies == ["release"]


def test_of_a_completed_run_a_failed_end_fails_it_and_its_result_is_kept(stage: Stage) -> None:
    world = World(failing={"goodbye"})
    with pytest.raises(durable.ClosingFailed, match=r"completed.*end:goodbye"):
        stage.run(saga, world)
    world.failing.clear()
    assert stage.retry("run-1") == ["end:goodbye"]
    world.bodies.clear()
    assert ended(stage, saga, world) == "shipped"
    assert world.bodies == ["goodbye"]


def test_an_undo_is_retried_by_the_policy_of_its_step(stage: Stage) -> None:
    policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_none(), reraise=True)

    def retried(world: World) -> Telling:
        yield Ask("pay", world.do, ("pay",), terms={"undo": partial(world.do, "refund"), "retry": policy})
        yield Ask("ship", world.do, ("ship",))

    world = World(failing={"ship"}, failures=Counter({"refund": 2}))
    assert ended(stage, retried, world) is ValueError
    assert world.bodies == ["pay", "ship", "refund", "refund", "refund"]


def test_a_step_that_failed_is_not_undone_and_one_that_was_caught_is_not_either(stage: Stage) -> None:
    def caught(world: World) -> Telling:
        yield Ask("a", world.do, ("a",), terms={"undo": partial(world.do, "undo a")})
        with contextlib.suppress(ValueError):
            yield Ask("b", world.do, ("b",), terms={"undo": partial(world.do, "undo b")})
        yield Ask("c", world.do, ("c",))

    world = World(failing={"b", "c"})
    assert ended(stage, caught, world) is ValueError
    assert world.bodies == ["a", "b", "c", "undo a"]


# -- what only the real drivers know ------------------------------------------------------------------------------


def test_mended_code_does_not_go_on_once_its_closing_has_begun(store: QueueingStore) -> None:
    """A failure of the workflow's own is not recorded as a step: what was undone is not to pass for done."""
    log: list[str] = []
    broken = [True]

    def undo(_: object) -> None:
        log.append("undo")
        if broken[0]:
            raise KeyboardInterrupt

    def workflow(step: durable.Step, deps: object) -> str:
        step("reserve", log.append, "reserve", undo=undo)
        if broken[0]:
            raise RuntimeError("a mistake in the code")
        step("ship", log.append, "ship")
        return "shipped"

    with pytest.raises(KeyboardInterrupt):
        durable.run({}, workflow, id="r", store=store)
    broken[0] = False
    with pytest.raises(RuntimeError, match="a mistake in the code"):
        durable.run({}, workflow, id="r", store=store)
    assert log == ["reserve", "undo", "undo"]
    assert durable.run({}, workflow, id="r", store=store) == "shipped"
    assert log[3:] == ["reserve", "ship"]


def test_an_undo_that_the_code_no_longer_has_is_loud(store: QueueingStore) -> None:
    has = [True]

    def undo(_: object) -> None:
        raise KeyboardInterrupt

    def workflow(step: durable.Step, deps: object) -> None:
        if has[0]:
            step("reserve", lambda: 1, key="reserve", undo=undo)
        raise RuntimeError

    with pytest.raises(KeyboardInterrupt):
        durable.run({}, workflow, id="r", store=store)
    has[0] = False
    with pytest.raises(RuntimeError) as failed:
        durable.run({}, workflow, id="r", store=store)
    assert "undo:reserve (WorkflowDrift)" in failed.value.__notes__[-1]
    assert store.status("r") == "failed"


def test_a_decorated_step_says_its_undo_and_the_undo_its_options(store: QueueingStore) -> None:
    log: list[Any] = []
    policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_none(), reraise=True)

    @durable.step(retry=policy)
    def release(seat: str) -> None:
        log.append(seat)
        if len(log) == 1:
            raise ValueError

    @durable.step(undo=release)
    def reserve() -> str:
        return "seat-1"

    def workflow(step: durable.Step, deps: object) -> None:
        reserve()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        durable.run({}, workflow, id="r", store=store)
    assert log == ["seat-1", "seat-1"]


def test_each_item_of_a_map_is_undone(store: QueueingStore) -> None:
    log: list[int] = []

    def workflow(step: durable.Step, deps: object) -> None:
        step.map("book", lambda item: item * 10, [1, 2, 3], undo=log.append, max_concurrency=1)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        durable.run({}, workflow, id="r", store=store)
    assert log == [30, 20, 10]


def test_an_async_undo_is_awaited(store: QueueingStore) -> None:
    log: list[Any] = []

    async def release(seat: str) -> None:
        await asyncio.sleep(0)
        log.append(seat)

    async def workflow(step: durable.AsyncStep, deps: object) -> None:
        await step.on_end("bye", log.append, "bye")
        await asyncio.gather(*(step("reserve", partial(int, n), key=f"r{n}", undo=release) for n in range(3)))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        asyncio.run(durable.run({}, workflow, id="r", store=store))
    assert sorted(log[:3]) == [0, 1, 2]
    assert log[3:] == ["bye"]


def test_a_step_of_the_workflow_may_have_the_key_that_an_undo_would_have(store: QueueingStore) -> None:
    log: list[Any] = []

    def workflow(step: durable.Step, deps: object) -> None:
        step("reserve", lambda: 1, undo=log.append)
        step("undo:reserve", lambda: 2)
        step("closing", lambda: 3)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        durable.run({}, workflow, id="r", store=store)
    assert log == [1]
    assert {record.key for record in cast(ReadableStore, store).journal("r")} >= {
        "undo:reserve",
        "undo:reserve#2",
        "closing",
        "closing#2",
    }


def test_a_run_that_is_to_be_tried_again_by_itself_is_not_undone_yet(store: QueueingStore) -> None:
    """It has not ended. Only the last failure ends it."""
    log: list[str] = []
    policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_none())

    @durable.workflow(retry=policy)
    def workflow(step: durable.Step, deps: object) -> None:
        step("reserve", log.append, "reserve", undo=lambda _: log.append("release"))
        step("ship", ship)

    def ship() -> None:
        log.append("ship")
        raise ZeroDivisionError

    durable.start(workflow, id="r", store=store)
    durable.Worker(store, {}, [workflow]).run_until_idle()
    assert log == ["reserve", "ship", "ship", "release"]
    assert store.status("r") == "failed"


@pytest.mark.parametrize("given", [1, "release"])
def test_an_undo_that_is_no_function_is_refused(store: QueueingStore, given: Any) -> None:
    def workflow(step: durable.Step, deps: object) -> None:
        step("a", lambda: 1, undo=given)

    with pytest.raises(durable.InvalidArgument, match="undo="):
        durable.run({}, workflow, id="r", store=store)


def test_an_undo_may_not_call_steps(store: QueueingStore) -> None:
    def workflow(step: durable.Step, deps: object) -> None:
        step("a", lambda: 1, undo=lambda _: step("b", lambda: 2))
        raise RuntimeError

    with pytest.raises(RuntimeError) as failed:
        durable.run({}, workflow, id="r", store=store)
    assert "NestedStep" in failed.value.__notes__[-1]


def test_what_stands_beside_an_undone_step_is_decided_on(store: QueueingStore) -> None:
    """A step that runs at most once, and started after what was undone, has no undo: its effect would happen once more."""
    log: list[str] = []

    def workflow(step: durable.Step, deps: object) -> None:
        step("reserve", log.append, "reserve", undo=lambda _: log.append("release"))
        step("mail", log.append, "mail", at_most_once=True)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        durable.run({}, workflow, id="r", store=store)
    with pytest.raises(durable.RetryRefused, match="mail"):
        durable.run({}, workflow, id="r", store=store)
    with pytest.raises(durable.RetryRefused, match="even_effects"):
        durable.retry(store, "r")
    assert durable.retry(store, "r", even_effects=True) == ["mail"]
    with pytest.raises(RuntimeError):
        durable.run({}, workflow, id="r", store=store)
    assert log == ["reserve", "mail", "release"] * 2


def test_a_saved_snapshot_goes_on_closing(store: QueueingStore) -> None:
    """A document has all of it: for a store of one's own, and for the run that another version goes on with."""
    log: list[str] = []
    broken = [True]

    def undo(_: object) -> None:
        log.append("undo")
        if broken[0]:
            raise ValueError

    def workflow(step: durable.Step, deps: object) -> str:
        step("reserve", log.append, "reserve", undo=undo)
        step("pay", log.append, "pay", undo=lambda _: log.append("refund"))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        durable.run({}, workflow, id="r", store=store)
    durable.retry(store, "r")
    with memory() as other:
        snapshot = store.load("r")
        assert snapshot is not None
        other.save("r", snapshot)
        broken[0] = False
        with pytest.raises(RuntimeError):
            durable.run({}, workflow, id="r", store=other)
        assert log == ["reserve", "pay", "refund", "undo", "undo"]
        with pytest.raises(RuntimeError):
            durable.run({}, workflow, id="r", store=other)
        assert log[5:] == ["reserve", "pay", "refund", "undo"]


def test_the_saga_of_the_reports_reserves_anew_and_ships_once(store: QueueingStore) -> None:
    """`test_a_run_that_was_compensated_does_not_ship_what_it_gave_back`, with `undo=`: retried, it reserves anew."""
    log: list[str] = []
    charged = [False]

    def reserve() -> str:
        log.append("reserve")
        return "seat-1"

    def charge() -> None:
        if not charged[0]:
            raise ZeroDivisionError

    def workflow(step: durable.Step, deps: object) -> str:
        seat = step("reserve", reserve, undo=lambda _: log.append("cancel"))
        step("charge", charge)
        step("ship", lambda: log.append("ship"))
        return seat

    with pytest.raises(ZeroDivisionError):
        durable.run({}, workflow, id="r", store=store)
    assert log == ["reserve", "cancel"]
    charged[0] = True
    for _ in range(2):
        assert durable.run({}, workflow, id="r", store=store) == "seat-1"
        assert log == ["reserve", "cancel", "reserve", "ship"]


@pytest.mark.parametrize("always_replay", [False, True])
def test_a_rehearsal_closes_alike(always_replay: bool) -> None:
    log: list[str] = []

    def workflow(step: durable.Step, deps: object) -> None:
        step.on_end("tell", log.append, "told")
        for name in "ab":
            step("do", do, name, key=name, undo=undo)
        step("fail", lambda: 1 / 0)

    def do(name: str) -> str:
        log.append(name)
        return name

    def undo(name: str) -> None:
        log.append(f"undo {name}")

    rehearsal = Rehearsal(always_replay=always_replay)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            durable.run({}, workflow, id="r", store=rehearsal)
    assert log == ["a", "b", "undo b", "undo a", "told"] * 2
