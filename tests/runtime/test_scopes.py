"""Scopes: keys of their own for helpers, loops and the items of a map."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, cast

import pytest
import tenacity

import durable
from durable.errors import AmbiguousKey, InvalidArgument, KeyConflict, NestedStep
from durable.stores import memory
from durable.testing import Rehearsal, Replayed, replay
from harness.ready import Ready

colours = pytest.mark.parametrize("is_async", [False, True], ids=["blocking", "async"])


class Died(BaseException):
    """The process did."""


class World:
    """What bodies leave behind."""

    def __init__(self) -> None:
        self.bodies: Counter[str] = Counter()
        self.dies_in = ""

    def do(self, what: str) -> str:
        if what == self.dies_in:
            self.dies_in = ""
            raise Died
        self.bodies[what] += 1
        return what


def ran(program: Callable[..., Any], store: Any, *, is_async: bool, id: str = "a", deps: Any = None) -> Any:
    """One run of a program, which is written once for both colours."""

    @durable.workflow("program")
    def workflow(step: durable.Step, deps: Any) -> Any:
        return Ready.told(program(Ready(step), deps))

    @durable.workflow("program")
    async def async_workflow(step: durable.AsyncStep, deps: Any) -> Any:
        return await program(step, deps)

    if is_async:
        return asyncio.run(durable.run(deps, async_workflow, id=id, store=store))
    return durable.run(deps, workflow, id=id, store=store)


def replayed(world: Any, workflow: Any, store: Any) -> Replayed:
    """The run replayed by this code, which fits it."""
    found: Any = replay(world, workflow, store.load("a"))
    assert isinstance(found, Replayed)
    return found.check()


def keys(store: Any, id: str = "a") -> list[str]:
    return list(store.load(id).steps)


async def helper(step: Any, world: World, what: str) -> str:
    """A helper whose steps have names that others have, too."""
    with step.scope("helper"):
        first = await step("read", world.do, f"{what}-1")
        return str(first + await step("read", world.do, f"{what}-2"))


@colours
def test_what_is_called_in_a_scope_has_keys_of_its_own(is_async: bool) -> None:
    async def program(step: Any, world: World) -> list[Any]:
        await step("read", world.do, "first")
        done = [await helper(step, world, what) for what in "ab"]
        with step.scope("outer"):
            with step.scope("inner"):
                await step("read", world.do, "in", key="mine")
            await step("read", world.do, "out")
        await step("read", world.do, "last")
        return done

    world = World()
    with closing(memory()) as store:
        for _ in range(2):
            assert ran(program, store, is_async=is_async, deps=world) == ["a-1a-2", "b-1b-2"]
        assert keys(store) == [
            "read", "helper/read", "helper/read#2", "helper#2/read", "helper#2/read#2", "outer/inner/mine", "outer/read",
            "read#2",
        ]  # fmt: skip
    assert set(world.bodies.values()) == {1}


@colours
def test_a_resumed_run_finds_them_again(is_async: bool) -> None:
    world = World()
    world.dies_in = "b-2"

    async def program(step: Any, world: World) -> list[Any]:
        return [await helper(step, world, what) for what in "abc"]

    with closing(memory()) as store:
        with pytest.raises(Died):
            ran(program, store, is_async=is_async, deps=world)
        assert ran(program, store, is_async=is_async, deps=world) == ["a-1a-2", "b-1b-2", "c-1c-2"]
    assert set(world.bodies.values()) == {1}


@colours
def test_a_scope_is_left_with_its_block(is_async: bool) -> None:
    """Also where that is left by an exception."""

    async def program(step: Any, world: World) -> None:
        with pytest.raises(ZeroDivisionError), step.scope("one"):
            raise ZeroDivisionError
        await step("read", world.do, "x")

    with closing(memory()) as store:
        ran(program, store, is_async=is_async, deps=World())
        assert keys(store) == ["read"]


def test_scopes_of_tasks_are_their_own() -> None:
    """A task is in the scope in which it was made; what another enters meanwhile is not its."""

    async def program(step: Any, world: World) -> None:
        entered = asyncio.Event()

        async def inside() -> None:
            with step.scope("inside"):
                entered.set()
                await asyncio.sleep(0)
                await step("read", world.do, "in")

        async def beside() -> None:
            await entered.wait()
            await step("read", world.do, "beside", key="beside")

        with step.scope("all"):
            tasks = [asyncio.ensure_future(inside()), asyncio.ensure_future(beside())]
        await asyncio.gather(*tasks)

    with closing(memory()) as store:
        ran(program, store, is_async=True, deps=World())
        assert sorted(keys(store)) == ["all/beside", "all/inside/read"]


def test_scopes_of_threads_are_their_own() -> None:
    """A thread that carries the context on is in the scope; another is in none."""

    def workflow(step: durable.Step, world: World) -> None:
        with step.scope("all"), ThreadPoolExecutor(1) as pool:
            carried = contextvars.copy_context()
            pool.submit(lambda: carried.run(lambda: step("read", world.do, "x"))).result()
            pool.submit(lambda: step("read", world.do, "y")).result()

    with closing(memory()) as store:
        durable.run(World(), workflow, id="a", store=store)
        assert keys(store) == ["all/read", "read"]


@durable.step
def charge(what: str) -> str:
    return what


@colours
def test_decorated_functions_and_dependencies_are_in_it(is_async: bool) -> None:
    async def acharge(what: str) -> str:
        return what

    def workflow(step: durable.Step, deps: Any) -> None:
        with step.scope("one"):
            charge("x")
            deps.charge("y")

    async def async_workflow(step: durable.AsyncStep, deps: Any) -> None:
        with step.scope("one"):
            await deps.charge("x")
            await deps.charge("y")

    with closing(memory()) as store:
        if is_async:
            asyncio.run(
                durable.run({"charge": durable.step(name="charge")(acharge)}, async_workflow, id="a", store=store)
            )
        else:
            durable.run({"charge": charge}, workflow, id="a", store=store)
        assert keys(store) == ["one/charge", "one/charge#2"]


@colours
def test_a_key_with_a_slash_is_no_other_calls(is_async: bool) -> None:
    """The one case in which two calls could have one key is an error, not a value of another's."""

    async def program(step: Any, world: World) -> None:
        await step("read", world.do, "x", key="one/read")
        with step.scope("one"), pytest.raises(KeyConflict, match="outside of any scope"):
            await step("read", world.do, "x")
        with step.scope("two"):
            await step("read", world.do, "x", key="a")
        with pytest.raises(KeyConflict, match="in the scope 'two'"):
            await step("read", world.do, "x", key="two/a")
        with step.scope("three#2"):
            pass
        with step.scope("three"):
            pass
        with pytest.raises(KeyConflict, match="three#2"), step.scope("three"):
            pass

    with closing(memory()) as store:
        ran(program, store, is_async=is_async, deps=World())


def test_branches_may_not_number_one_scope() -> None:
    async def program(step: Any, world: World) -> None:
        async def branch(what: str) -> None:
            with step.scope("one"):
                await step("read", world.do, what)

        await asyncio.gather(branch("a"), branch("b"))

    with closing(memory()) as store, pytest.raises(AmbiguousKey, match=r"a scope named 'one'.*step\.scope\(f'one-"):
        ran(program, store, is_async=True, deps=World())


@colours
@pytest.mark.parametrize("name", ["", 3, "x" * 600, "a\0"])
def test_what_is_no_name_is_refused(is_async: bool, name: Any) -> None:
    async def program(step: Any, world: World) -> None:
        with pytest.raises(InvalidArgument, match="a scope's name"), step.scope(name):
            pass
        with pytest.raises(InvalidArgument, match="a patch's name"):
            step.patched(name)

    with closing(memory()) as store:
        ran(program, store, is_async=is_async, deps=World())


@colours
def test_a_key_is_bounded_with_its_scopes(is_async: bool) -> None:
    async def program(step: Any, world: World) -> None:
        with step.scope("x" * 300), step.scope("y" * 300), pytest.raises(InvalidArgument, match="512"):
            await step("read", world.do, "x")

    with closing(memory()) as store:
        ran(program, store, is_async=is_async, deps=World())


@colours
def test_a_body_is_in_no_scope_and_enters_none(is_async: bool) -> None:
    async def program(step: Any, world: World) -> None:
        def body() -> None:
            with pytest.raises(InvalidArgument, match="body of step 'one/plain'"), step.scope("two"):
                pass
            with pytest.raises(InvalidArgument, match="body of step 'one/plain'"):
                step.patched("two")

        with step.scope("one"):
            await step("plain", body)

    with closing(memory()) as store:
        ran(program, store, is_async=is_async, deps=World())


@colours
def test_drawn_values_are_numbered_in_their_scope(is_async: bool) -> None:
    seen: list[Any] = []

    async def program(step: Any, world: World) -> None:
        drawn = [step.uuid()]
        for what in "ab":
            with step.scope(what):
                drawn += [step.uuid(), step.uuid(key="k")]
        await step("read", world.do, "x")
        seen.append(drawn)
        if len(seen) == 1:
            raise ValueError

    with closing(memory()) as store:
        with pytest.raises(ValueError):
            ran(program, store, is_async=is_async, deps=World())
        ran(program, store, is_async=is_async, deps=World())
        held = cast("Any", store).load("a").document()["steps"]["read"]["drawn"]
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == 5
    assert list(held) == ["uuid", "a/uuid", "a/uuid:k", "b/uuid", "b/uuid:k"]


# -- items with steps of their own


async def handling(step: Any, world: World) -> list[str]:
    """A map whose items have steps, of which a helper has some."""

    async def handle(item: str) -> str:
        text = await step("read", world.do, f"read-{item}")
        with step.scope("deep"):
            parsed = await step("read", world.do, f"parse-{item}")
        return str(text + parsed + await step("store", world.do, f"store-{item}"))

    return list(await step.map("handle", handle, "abc", key=str))


EXPECTED = [f"read-{item}parse-{item}store-{item}" for item in "abc"]


@colours
def test_items_have_steps_of_their_own(is_async: bool) -> None:
    world = World()
    with closing(memory()) as store:
        for _ in range(2):
            assert ran(handling, store, is_async=is_async, deps=world) == EXPECTED
        found = set(keys(store))
    assert found == {f"handle[{i}]{rest}" for i in "abc" for rest in ("", "/read", "/deep/read", "/store")}
    assert set(world.bodies.values()) == {1}


@colours
@pytest.mark.parametrize("dies_in", ["read-b", "parse-b", "store-a", "store-c"])
def test_an_item_goes_on_where_it_was(is_async: bool, dies_in: str) -> None:
    world = World()
    world.dies_in = dies_in
    with closing(memory()) as store:
        with pytest.raises(Died):
            ran(handling, store, is_async=is_async, deps=world)
        assert ran(handling, store, is_async=is_async, deps=world) == EXPECTED
    assert set(world.bodies.values()) == {1}


@colours
def test_of_a_failed_item_the_step_that_failed_runs_again(is_async: bool) -> None:
    """And the item: what it was recorded with came of that step."""
    world, failing = World(), {"b"}

    async def program(step: Any, world: World) -> list[str]:
        async def handle(item: str) -> str:
            def store() -> str:
                if item in failing:
                    raise ValueError(f"{item} failed")
                return world.do(f"store-{item}")

            return str(await step("read", world.do, f"read-{item}") + await step("store", store))

        return list(await step.map("handle", handle, "abc", key=str, max_concurrency=1))

    with closing(memory()) as store:
        for _ in range(2):
            with pytest.raises(ValueError, match="b failed"):
                ran(program, store, is_async=is_async, deps=world)
            failure = cast("Any", store).load("a").failure
            assert failure is not None
            assert set(failure.again) == {"handle[b]", "handle[b]/store"}
        failing.clear()
        assert len(ran(program, store, is_async=is_async, deps=world)) == 3
    assert set(world.bodies.values()) == {1}


@colours
def test_a_caught_failure_of_an_item_is_history(is_async: bool) -> None:
    """What the workflow has seen it sees again, though the item would now do otherwise."""
    failing = {"b"}

    async def program(step: Any, world: World) -> Any:
        async def handle(item: str) -> str:
            def body() -> str:
                if item in failing:
                    raise ValueError(f"{item} failed")
                return item

            return str(await step("read", body))

        outcomes = await step.map("handle", handle, "ab", key=str, return_exceptions=True)
        await step("next", world.do, str(outcomes))
        if failing:
            failing.clear()
            raise Died
        return [str(one) for one in outcomes]

    with closing(memory()) as store:
        with pytest.raises(Died):
            ran(program, store, is_async=is_async, deps=World())
        assert ran(program, store, is_async=is_async, deps=World()) == ["a", "b failed"]


@colours
def test_what_an_item_does_because_of_a_failure_takes_a_decision(is_async: bool) -> None:
    """As it does in the workflow itself: the run is not silently taken up again."""

    async def program(step: Any, world: World) -> None:
        async def handle(item: str) -> None:
            def fail() -> None:
                raise ValueError(item)

            try:
                await step("pay", fail)
            except ValueError:
                await step("refund", world.do, "refund")
                raise

        await step.map("handle", handle, "a")

    with closing(memory()) as store:
        with pytest.raises(ValueError):
            ran(program, store, is_async=is_async, deps=World())
        with pytest.raises(durable.RetryRefused) as refused:
            ran(program, store, is_async=is_async, deps=World())
        assert refused.value.steps == ("handle[0]/refund",)


@colours
def test_a_retry_from_a_step_of_an_item_sets_the_item_aside(is_async: bool) -> None:
    world = World()
    with closing(memory()) as store:
        assert ran(handling, store, is_async=is_async, deps=world) == EXPECTED
        forked = durable.fork(store, "a", from_step="handle[b]/deep/read", new_id="b")
        assert forked.id == "b"
        left = keys(store, "b")
        assert "handle[b]/read" in left
        assert not {"handle[b]/deep/read", "handle[b]/store", "handle[b]"} & set(left)
        world.bodies.clear()
        assert ran(handling, store, is_async=is_async, id="b", deps=world) == EXPECTED
        assert world.bodies["read-b"] == 0
        assert world.bodies["parse-b"] == world.bodies["store-b"] == 1


@colours
def test_a_retry_from_an_item_is_of_all_that_it_called(is_async: bool) -> None:
    world = World()
    with closing(memory()) as store:
        ran(handling, store, is_async=is_async, deps=world)
        durable.fork(store, "a", from_step="handle[c]", new_id="b")
        assert not [key for key in keys(store, "b") if key.startswith("handle[c]")]


@colours
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"retry": tenacity.Retrying(stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_none())},
            "give retry= to",
        ),
        ({"timeout": 60}, "give timeout= to"),
    ],
)
def test_an_item_that_is_tried_again_has_no_steps(is_async: bool, options: dict[str, Any], words: str) -> None:
    async def program(step: Any, world: World) -> None:
        async def handle(item: str) -> None:
            with pytest.raises(NestedStep, match=words):
                await step("read", world.do, item)

        def blocking(item: str) -> None:
            with pytest.raises(NestedStep, match=words):
                step.inner("read", world.do, item)

        await step.map("handle", handle if is_async else blocking, "a", **options)

    with closing(memory()) as store:
        ran(program, store, is_async=is_async, deps=World())


@colours
def test_a_body_that_is_no_item_has_no_steps(is_async: bool) -> None:
    async def program(step: Any, world: World) -> None:
        def body() -> None:
            with pytest.raises(NestedStep, match="A step is remembered as a whole"):
                (step if is_async else step.inner)("inner", world.do, "x")

        await step("outer", body)

    with closing(memory()) as store:
        ran(program, store, is_async=is_async, deps=World())


def test_an_item_that_has_ended_has_no_steps() -> None:
    """A thread that outlives it."""
    late: list[BaseException] = []
    ended, done = threading.Event(), threading.Event()

    def workflow(step: durable.Step, world: World) -> None:
        def handle(item: str) -> None:
            def work() -> None:
                ended.wait(30)
                try:
                    step("read", world.do, item)
                except NestedStep as problem:
                    late.append(problem)
                done.set()

            threading.Thread(target=contextvars.copy_context().run, args=(work,)).start()

        step.map("handle", handle, "a")
        ended.set()
        done.wait(30)

    with closing(memory()) as store:
        durable.run(World(), workflow, id="a", store=store)
    assert "the body has ended" in str(late[0])


@colours
def test_maps_lie_within_each_other(is_async: bool) -> None:
    world = World()
    world.dies_in = "a2"

    async def program(step: Any, world: World) -> Any:
        async def outer(item: str) -> Any:
            async def inner(number: int) -> str:
                return str(await step("read", world.do, f"{item}{number}"))

            return await step.map("inner", inner, range(3), max_concurrency=1)

        with step.scope("all"):
            return await step.map("outer", outer, "ab", key=str, max_concurrency=1)

    with closing(memory()) as store:
        with pytest.raises(Died):
            ran(program, store, is_async=is_async, deps=world)
        assert ran(program, store, is_async=is_async, deps=world) == [["a0", "a1", "a2"], ["b0", "b1", "b2"]]
        assert "all/outer[a]/inner[2]/read" in keys(store)
    assert set(world.bodies.values()) == {1}


@colours
def test_always_replay_finds_them_in_order(is_async: bool) -> None:
    world = World()
    with closing(memory()) as store:
        rehearsed = Rehearsal(store=store, always_replay=True)
        assert ran(handling, rehearsed, is_async=is_async, deps=world) == EXPECTED
    assert set(world.bodies.values()) == {1}


@colours
def test_a_replay_walks_into_an_item_that_was_left(is_async: bool) -> None:
    """Yesterday's run, which died in an item, with today's code."""
    world = World()
    world.dies_in = "store-b"

    async def program(step: Any, world: World) -> Any:
        async def handle(item: str) -> str:
            await step("read", world.do, f"read-{item}")
            return str(await step("store", world.do, f"store-{item}"))

        return await step.map("handle", handle, "abc", key=str, max_concurrency=1)

    @durable.workflow("program")
    def workflow(step: durable.Step, deps: Any) -> Any:
        return Ready.told(program(Ready(step), deps))

    with closing(memory()) as store:
        with pytest.raises(Died):
            ran(program, store, is_async=is_async, deps=world)
        found = replayed(world, workflow, store)
        assert found.replayed == ("handle[a]", "handle[b]/read")
        assert found.next == ("handle[b]/store",)
        assert found.unused == ()
        ran(program, store, is_async=is_async, deps=world)
        assert replayed(world, workflow, store).ended
    assert set(world.bodies.values()) == {1}


@colours
def test_a_listener_hears_whole_keys(is_async: bool) -> None:
    heard: list[Any] = []

    def workflow(step: durable.Step, deps: Any) -> None:
        with step.scope("all"):
            step.map("double", lambda item: step("one", lambda: item), "ab")

    async def async_workflow(step: durable.AsyncStep, deps: Any) -> None:
        async def double(item: str) -> Any:
            return await step("one", lambda: item)

        with step.scope("all"):
            await step.map("double", double, "ab")

    with closing(memory()) as store:
        if is_async:
            asyncio.run(durable.run({}, async_workflow, id="a", store=store, on_event=heard.append))
        else:
            durable.run({}, workflow, id="a", store=store, on_event=heard.append)
    (began,) = [event for event in heard if type(event).__name__ == "MapBegan"]
    assert (began.name, began.keys) == ("all/double", ("all/double[0]", "all/double[1]"))
    recorded = {event.key for event in heard if type(event).__name__ == "StepRecorded"}
    assert recorded == {f"all/double[{n}]{rest}" for n in "01" for rest in ("", "/one")}
    assert not [event for event in heard if type(event).__name__ == "KeysUnused"]
