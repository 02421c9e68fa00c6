"""A run that another version of its workflow has started: refused, begun anew, or migrated; by nobody else meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from msgspec import UNSET, structs

import durable
from durable._engine.decisions import Claim, Decline, Migrate, Refused
from durable._engine.runs import admit
from durable.records import Execution, Header, Status
from durable.snapshots import Snapshot
from durable.stores import memory
from harness.stages import Ask, Died, StoreStage, Telling, World, memory_stage, postgres_stage
from harness.support import Database


def delivery(world: World) -> Telling:
    """Version 1."""
    order = yield Ask("order", world.do, ("order",))
    paid = yield Ask("pay", world.do, ("pay",))
    return [order, paid, (yield Ask("ship", world.do, ("ship",)))]


def delivery_2(world: World) -> Telling:
    """Version 2: the payment is another step, and the parcel is wrapped."""
    order = yield Ask("order", world.do, ("order",))
    charged = yield Ask("charge", world.do, ("pay",))
    yield Ask("wrap", world.do, ("wrap",))
    return [order, charged, (yield Ask("ship", world.do, ("ship",)))]


delivery_2.__name__ = "delivery"
RESULT: list[dict[str, Any]] = [{"done": name, "of": []} for name in ("order", "pay", "ship")]


def renamed(snapshot: Snapshot, stored: int) -> dict[str, Any]:
    """The old payment is the new one."""
    assert stored == snapshot.metadata["version"] == 1
    document = snapshot.document()
    steps = {"charge" if key == "pay" else key: step for key, step in document["steps"].items()}
    if "charge" in steps:
        steps["charge"]["name"] = "charge"
    return document | {"steps": steps}


@pytest.fixture(params=["memory sync", "memory async", "postgres sync", "postgres async"])
def stage(request: pytest.FixtureRequest) -> Iterator[StoreStage]:
    """One of the four ways that have a store."""
    kind, _, colour = request.param.partition(" ")
    if kind == "memory":
        memory = memory_stage(is_async=colour == "async")
        yield memory
        memory._store.close()
    else:
        yield postgres_stage(request.getfixturevalue("database"), is_async=colour == "async")


def begun(stage: StoreStage, id: str = "run-1") -> World:
    """A run of version 1 that has failed when it was to ship."""
    world = World(failing={"ship"})
    with pytest.raises(ValueError, match="ship failed"):
        stage.run(delivery, world, id=id)
    world.failing.clear()
    world.bodies.clear()
    return world


def test_what_was_migrated_goes_on(stage: StoreStage) -> None:
    """Under its new version, for good; nothing that was recorded runs again."""
    world = begun(stage)
    assert stage.run(delivery_2, world, version=2, on_version_mismatch=renamed) == RESULT
    assert world.bodies == ["wrap", "ship"]
    loaded = stage._store.load("run-1")
    assert loaded is not None
    assert (loaded.metadata["version"], list(loaded.steps)) == (2, ["order", "charge", "wrap", "ship"])
    with pytest.raises(durable.VersionMismatch):
        stage.run(delivery, world, version=1)


def test_what_was_cleared_begins_anew_with_its_input(stage: StoreStage) -> None:
    """With all steps; the input is kept, and is still compared."""

    def sending(world: World, order: Any) -> Telling:
        return (yield Ask("send", world.do, (f"send-{order}",)))

    world = World(failing={"send-7"})
    with pytest.raises(ValueError, match="send-7 failed"):
        stage.run(sending, world, input=7, metadata={"customer": "c-7"})
    world.failing.clear()
    clear: Any = {"version": 2, "on_version_mismatch": "clear"}
    with pytest.raises(durable.RunMismatch, match="input"):
        stage.run(sending, world, input=8, **clear)
    assert stage.run(sending, world, **clear) == {"done": "send-7", "of": []}
    assert stage.run(sending, world, input=7, **clear) == {"done": "send-7", "of": []}
    assert world.bodies == ["send-7", "send-7"]
    loaded = stage._store.load("run-1")
    assert loaded is not None
    assert loaded.metadata == {"customer": "c-7", "version": 2, "inputHash": loaded.metadata["inputHash"]}


def test_a_completed_run_can_be_migrated_and_runs_what_it_lacks(stage: StoreStage) -> None:
    """As it is, it returns its result; made to go on, it does."""
    world = World()
    assert stage.run(delivery, world) == RESULT
    world.bodies.clear()
    assert stage.run(delivery_2, world, version=2, on_version_mismatch=lambda old, _: old) == RESULT
    assert world.bodies == []

    def reopened(old: Snapshot, _: int) -> Snapshot:
        changed = Snapshot.from_document(renamed(structs.replace(old, metadata={"version": 1}), 1))
        return structs.replace(changed, execution=Execution(Status.RUNNING), result=UNSET)

    assert stage.run(delivery_2, world, version=3, on_version_mismatch=reopened) == RESULT
    assert world.bodies == ["wrap"]


def test_a_migrated_input_is_the_one_that_counts(stage: StoreStage) -> None:
    """It is what the workflow is called with, and what an input that is given later is compared with."""

    def sending(world: World, order: Any) -> Telling:
        yield Ask("send", world.do, (f"send-{order['id']}",))
        return order

    world = World(failing={"send-7"})
    with pytest.raises(ValueError, match="send-7 failed"):
        stage.run(sending, world, input={"id": 7})
    world.failing.clear()

    def widened(old: Snapshot, _: int) -> dict[str, Any]:
        document = old.document()
        return document | {"input": {**document["input"], "express": True}}

    wide = {"id": 7, "express": True}
    assert stage.run(sending, world, version=2, on_version_mismatch=widened) == wide
    assert stage.run(sending, world, version=2, input=wide) == wide
    with pytest.raises(durable.RunMismatch, match="input"):
        stage.run(sending, world, version=2, input={"id": 7})


def test_what_an_answer_leaves_out_stays(stage: StoreStage) -> None:
    """The input as well, with which the run is still compared."""

    def sending(world: World, order: Any) -> Telling:
        return (yield Ask("send", world.do, (f"send-{order}",)))

    world = World(failing={"send-7"})
    with pytest.raises(ValueError, match="send-7 failed"):
        stage.run(sending, world, input=7)
    world.failing.clear()
    answer: Any = {"formatVersion": 1, "steps": {}, "execution": {"status": "running"}}
    told = stage.run(sending, world, input=7, version=2, on_version_mismatch=lambda _, __: answer)
    assert told == {"done": "send-7", "of": []}


def test_a_snapshot_may_be_changed_in_place(stage: StoreStage) -> None:
    """It is the answer's own, and not what the store is compared with."""
    world = begun(stage)

    def in_place(old: Snapshot, _: int) -> Snapshot:
        old.steps.pop("pay")
        old.metadata["seen"] = True
        return old

    assert stage.run(delivery_2, world, version=2, on_version_mismatch=in_place) == RESULT
    assert world.bodies == ["pay", "wrap", "ship"]


def test_values_are_what_they_were(stage: StoreStage) -> None:
    """To their type, sign and order: the same arguments follow from them, so that nothing drifts."""
    odd = {"b": 1e16, "a": -0.0}

    def telling(world: World, given: Any) -> Telling:
        read = yield Ask("read", lambda: odd)
        yield Ask("use", lambda _: None, (read["b"],))
        yield Ask("fail", world.do, ("fail",))
        return [repr(given), repr(read)]

    world = World(failing={"fail"})
    with pytest.raises(ValueError, match="fail failed"):
        stage.run(telling, world, input=odd)
    world.failing.clear()
    told = stage.run(telling, world, version=2, on_version_mismatch=lambda old, _: old)
    assert told == [repr(odd), repr(odd)]


def test_who_has_waited_long_for_another_version_may_still_answer() -> None:
    """His polls while it was executed are no turns that others took."""
    claim = Claim(run_id="run-1", workflow="delivery", version=2, seconds=30.0)
    free = Refused(Header("delivery", Execution(Status.RUNNING), metadata={"version": 1}), [], None, None)
    wanted: Any = {"wait_timeout": 60.0, "polls": 50, "migrates": True}
    assert isinstance(admit(claim, free, waits=True, waited=40.0, **wanted), Migrate)
    assert isinstance(admit(claim, free, waits=True, waited=60.0, **wanted), Decline)
    assert isinstance(admit(claim, free, waits=False, waited=40.0, **wanted), Decline)


def test_raising_is_an_answer_and_nonsense_is_not(stage: StoreStage) -> None:
    """Both leave the run as it is."""
    world = begun(stage)
    before = stage._store.load("run-1")

    def breaks(*_: Any) -> Any:
        raise KeyError("of the user's own")

    answers: list[tuple[Any, type[Exception]]] = [
        ("raise", durable.VersionMismatch),
        (lambda *_: "raise", durable.VersionMismatch),
        (lambda *_: None, durable.VersionMismatch),
        (lambda *_: 7, durable.InvalidArgument),
        (lambda *_: {"formatVersion": 99}, durable.errors.UnreadableRecord),
        (breaks, KeyError),
        ("forget", durable.InvalidArgument),
    ]
    for answer, error in answers:
        with pytest.raises(error):
            stage.run(delivery_2, world, version=2, on_version_mismatch=answer)
    assert stage._store.load("run-1") == before
    assert world.bodies == []


def test_an_answer_to_what_has_changed_meanwhile_is_not_used(stage: StoreStage) -> None:
    """While the user thinks, somebody else goes on with the run: the answer would undo what he did. It is asked for again."""
    world = begun(stage)
    asked: list[list[str]] = []

    def slowly(old: Snapshot, stored: int) -> dict[str, Any]:
        asked.append(list(old.steps))
        if len(asked) == 1:
            elsewhere = World(failing={"extra"})
            interloper = threading.Thread(target=_going_on, args=(stage, elsewhere))
            interloper.start()
            interloper.join()
        return renamed(old, stored)

    assert stage.run(delivery_2, world, version=2, on_version_mismatch=slowly) == RESULT
    assert asked == [["order", "pay", "ship"], ["order", "pay", "ship", "extra"]]
    assert world.bodies == ["wrap"]


def _going_on(stage: StoreStage, world: World) -> None:
    def delivery(world: World) -> Telling:
        for name in ("order", "pay", "ship", "extra"):
            yield Ask(name, world.do, (name,))

    with pytest.raises(ValueError, match="extra failed"):
        stage.run(delivery, world)


def test_a_run_that_is_always_changed_meanwhile_is_given_up(stage: StoreStage) -> None:
    """Nothing is asked for ever."""
    world = begun(stage)

    def never_in_time(old: Snapshot, stored: int) -> dict[str, Any]:
        changed = structs.replace(old, metadata={**old.metadata, "seen": old.metadata.get("seen", 0) + 1})
        stage._store.save("run-1", changed)
        return renamed(old, stored)

    with pytest.raises(durable.ConcurrentExecution, match="take turns"):
        stage.run(delivery_2, world, version=2, on_version_mismatch=never_in_time)


def test_nobody_is_asked_about_a_run_that_is_being_executed(database: Database) -> None:
    """It is a conflict like any other: raised, or waited for, and then migrated."""
    store = database.store()
    inside, go_on = threading.Event(), threading.Event()

    def body() -> int:
        inside.set()
        assert go_on.wait(30)
        return 1

    def workflow(step: durable.Step, _: Any) -> list[int]:
        return [step("one", body), step("two", lambda: 2)]

    first = threading.Thread(target=durable.run, args=({}, workflow), kwargs={"id": "x", "store": store})
    first.start()
    assert inside.wait(30)
    asked: list[int] = []

    def answer(old: Snapshot, stored: int) -> Snapshot:
        asked.append(stored)
        return old

    with pytest.raises(durable.ConcurrentExecution):
        durable.run({}, workflow, id="x", store=store, version=2, on_version_mismatch=answer)
    assert asked == []
    go_on.set()
    again = durable.run(
        {}, workflow, id="x", store=store, version=2, on_version_mismatch=answer, on_conflict="wait", wait_timeout=30
    )
    first.join()
    assert (again, asked) == ([1, 2], [1])


def test_who_dies_between_any_two_boundaries_is_followed_by_another(stage: StoreStage) -> None:
    """The run is of the one version or of the other, and whole."""
    begun(stage, "undisturbed")
    stage.run(delivery_2, World(), id="undisturbed", version=2, on_version_mismatch=renamed)
    boundaries = list(stage.boundaries.passed)
    assert {"before replacing", "replaced"} <= set(boundaries)
    for dies_at in range(len(boundaries)):
        world = begun(stage, f"dies-at-{dies_at}")
        with pytest.raises(Died):
            stage.run(
                delivery_2, world, id=f"dies-at-{dies_at}", dies_at=dies_at, version=2, on_version_mismatch=renamed
            )
        again = stage.run(delivery_2, world, id=f"dies-at-{dies_at}", version=2, on_version_mismatch=renamed)
        assert again == RESULT
        assert "order" not in world.bodies
        assert "pay" not in world.bodies


@pytest.mark.parametrize("answer_is_async", [True, False])
def test_an_async_answer_is_awaited_by_an_async_workflow(answer_is_async: bool) -> None:
    """And is the wrong colour for a blocking one."""

    async def answer(old: Snapshot, _: int) -> Snapshot:
        await asyncio.sleep(0)
        return old

    async def workflow(step: durable.AsyncStep, _: Any) -> int:
        return await step("one", lambda: 1)

    def blocking(step: durable.Step, _: Any) -> int:
        return step("one", lambda: 1)

    blocking.__name__ = "workflow"
    given: Callable[..., Any] = answer if answer_is_async else lambda old, _: old
    with memory() as store:
        asyncio.run(durable.run({}, workflow, id="x", store=store))
        assert asyncio.run(durable.run({}, workflow, id="x", store=store, version=2, on_version_mismatch=given)) == 1
        if answer_is_async:
            with pytest.raises(durable.errors.AsyncMismatch, match="on_version_mismatch"):
                durable.run({}, blocking, id="x", store=store, version=3, on_version_mismatch=given)


def test_a_store_of_five_verbs_is_migrated_too() -> None:
    """The whole snapshot is put in the place of the old one."""

    class Shelf:
        def __init__(self) -> None:
            self.texts: dict[str, bytes] = {}

        def save(self, id: str, snapshot: Snapshot) -> None:
            self.texts[id] = snapshot.to_json()

        def load(self, id: str) -> Snapshot | None:
            return Snapshot.from_json(self.texts[id]) if id in self.texts else None

        def delete(self, id: str) -> None:
            self.texts.pop(id, None)

        def list(self, *, prefix: str = "", limit: int = 100) -> list[Any]:
            return []

        def close(self) -> None: ...

    shelf, world = Shelf(), World()

    def workflow(step: durable.Step, _: Any) -> list[Any]:
        return [step("one", world.do, "one"), step("two", world.do, "two")]

    first = durable.run({}, workflow, id="x", store=shelf)

    def without_two(old: Snapshot, _: int) -> dict[str, Any]:
        document = old.document()
        del document["steps"]["two"], document["result"]
        return document | {"execution": {"status": "running"}}

    assert durable.run({}, workflow, id="x", store=shelf, version=2, on_version_mismatch=without_two) == first
    assert world.bodies == ["one", "two", "two"]


def test_another_version_costs_nothing_until_it_is_met(database: Database) -> None:
    """FAULTS 93: a run of its own version never loads or replaces anything."""
    store = database.store()

    class Watched:
        def __init__(self) -> None:
            self.calls: list[str] = []

        def __getattr__(self, name: str) -> Any:
            self.calls.append(name)
            return getattr(store, name)

    watched: Any = Watched()
    durable.run({}, lambda step, _: 1, id="x", store=watched, on_version_mismatch="clear")
    assert not {"load", "replace"} & set(watched.calls)
