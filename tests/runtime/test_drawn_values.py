"""Moments, UUIDs and random numbers that a workflow draws are the same in every execution of its run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias
from uuid import UUID

import pytest
import tenacity

import durable
from durable.errors import AmbiguousKey, AsyncMismatch, UnreadableRecord
from durable.stores import memory
from durable.testing import Rehearsal, replay
from harness.support import Database

Program: TypeAlias = Callable[[Any], Awaitable[Any]]


class Died(BaseException):
    """The process did."""


class Ready:
    """A blocking `step` to be awaited."""

    def __init__(self, step: durable.Step) -> None:
        self.inner = step

    async def __call__(self, *args: Any, **options: Any) -> Any:
        return self.inner(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


Run: TypeAlias = Callable[..., Any]


@pytest.fixture(params=["blocking", "async"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a program, which is written once for both colours."""

    def blocking(program: Program, **options: Any) -> Any:
        return durable.run(None, workflow_of(program), **options)

    def awaiting(program: Program, **options: Any) -> Any:
        return asyncio.run(durable.run(None, async_workflow_of(program), **options))

    return blocking if request.param == "blocking" else awaiting


def workflow_of(program: Program) -> Any:
    """The program as a blocking workflow."""

    @durable.workflow("program")
    def workflow(step: durable.Step, _: None) -> Any:
        coroutine: Any = program(Ready(step))
        try:
            coroutine.send(None)
        except StopIteration as end:
            return end.value

    return workflow


def async_workflow_of(program: Program) -> Any:
    """The program as an async workflow."""

    @durable.workflow("program")
    async def workflow(step: durable.AsyncStep, _: None) -> Any:
        return await program(step)

    return workflow


@pytest.fixture
def store() -> Iterator[Any]:
    with memory() as store:
        yield store


def listed(value: object) -> str:
    return str(value)


def test_they_are_what_they_are_called(store: Any, run: Run) -> None:
    async def program(step: Any) -> None:
        before = datetime.now(UTC)
        now, uuid, number = step.now(), step.uuid(), step.random()
        assert before <= now <= datetime.now(UTC)
        assert now.utcoffset() == timedelta(0)
        assert type(uuid) is UUID
        assert uuid.version == 4
        assert type(number) is float
        assert 0 <= number < 1
        assert len({uuid, step.uuid(), step.uuid()}) == 3
        assert step.uuid(key="mine") == step.uuid(key="mine") != step.uuid(key="yours")

    run(program, id="x", store=store)


@pytest.mark.parametrize("where", ["memory", "postgres"])
def test_a_resumed_run_draws_what_it_had_drawn(
    store: Any, run: Run, where: str, request: pytest.FixtureRequest
) -> None:
    seen: list[Any] = []
    if where == "postgres":
        database: Database = request.getfixturevalue("database")
        store = database.store()

    async def program(step: Any) -> Any:
        first = step.now(), step.uuid(), step.random()
        await step("a", listed, *map(str, first[:1]))
        second = step.now(key="k"), step.uuid(), step.random()
        await step("b", listed, str(second[1]))
        seen.append((first, second))
        if len(seen) == 1:
            raise ValueError
        return str(second)

    with pytest.raises(ValueError):
        run(program, id="x", store=store)
    assert run(program, id="x", store=store) == str(seen[1][1])
    assert seen[0] == seen[1]
    assert replay(None, workflow_of(program), store.load("x")).check().ended
    assert seen[2] == seen[0]


def test_they_cost_no_record_and_others_no_bytes(store: Any, run: Run) -> None:
    async def program(step: Any) -> None:
        await step("plain", listed, "a")
        step.now()
        await step("holding", listed, "b")
        await step("plain too", listed, "c")

    run(program, id="x", store=store)
    steps = store.load("x").document()["steps"]
    assert {key: list(step.get("drawn", ())) for key, step in steps.items()} == {
        "plain": [], "holding": ["now"], "plain too": [],
    }  # fmt: skip


def test_who_dies_before_the_next_record_draws_anew(store: Any, run: Run) -> None:
    """Nothing that depends on the value was recorded; a body that had begun is called with the new one."""
    given: list[str] = []

    def body(uuid: str) -> str:
        given.append(uuid)
        if len(given) == 1:
            raise Died
        return uuid

    async def program(step: Any) -> Any:
        return await step("pay", body, str(step.uuid()))

    with pytest.raises(Died):
        run(program, id="x", store=store)
    assert run(program, id="x", store=store) == given[1] != given[0]


@pytest.mark.parametrize("once", [False, True])
def test_who_dies_after_an_attempts_record_goes_on_with_its_values(store: Any, run: Run, once: bool) -> None:
    """The record has a fingerprint of the arguments, and holds what they were made of."""
    given: list[str] = []
    dies = [True]

    def body(uuid: str) -> str:
        given.append(uuid)
        if len(given) == 1:
            raise Died if once else OSError
        return uuid

    async def program(step: Any) -> Any:
        uuid, policy = str(step.uuid()), tenacity.Retrying(stop=tenacity.stop_after_attempt(5), wait=wait)
        return await step("pay", body, uuid, **({"at_most_once": True} if once else {"retry": policy}))

    def wait(state: tenacity.RetryCallState) -> float:
        return 0.0

    def listen(event: Any) -> None:
        if dies[0] and type(event).__name__ == "StepRemembered" and not once:
            dies[0] = False
            raise Died

    with pytest.raises(Died):
        run(program, id="x", store=store, on_event=listen)
    if once:
        with pytest.raises(durable.StepInterrupted):  # and no drift
            run(program, id="x", store=store)
        return
    assert run(program, id="x", store=store) == given[0] == given[1]
    assert list(store.load("x").steps["pay"].drawn) == ["uuid"]  # of the key's records this is the one in a document


def test_a_retry_from_a_step_draws_anew_what_came_after_it(store: Any, run: Run) -> None:
    seen: list[list[UUID]] = []

    async def program(step: Any) -> None:
        drawn = [step.uuid()]
        await step("first", listed, str(drawn[0]))
        drawn.append(step.uuid())
        await step("second", listed, str(drawn[1]))
        drawn.append(step.uuid())
        await step("third", listed, str(drawn[2]))
        seen.append(drawn)
        if len(seen) == 1:
            raise ValueError

    with pytest.raises(ValueError):
        run(program, id="x", store=store)
    assert durable.retry(store, "x", from_step="second") == ["second", "third"]
    run(program, id="x", store=store)
    assert seen[1][:2] == seen[0][:2]
    assert seen[1][2] != seen[0][2]
    assert replay(None, workflow_of(program), store.load("x")).check().ended
    assert seen[2] == seen[1]


def test_the_end_of_a_completed_run_is_not_compared_where_it_was_drawn_last(store: Any, run: Run) -> None:
    """After the last record nothing holds it. Elsewhere another result is drift, as ever."""
    results = iter("ab")

    async def late(step: Any) -> str:
        await step("one", listed, 1)
        return str(step.now())

    async def early(step: Any) -> str:
        step.now()
        await step("one", listed, 1)
        return next(results)

    run(late, id="late", store=store)
    run(early, id="early", store=store)
    assert replay(None, workflow_of(late), store.load("late")).drift is None
    assert replay(None, workflow_of(early), store.load("early")).drift is not None


def test_a_workflow_that_draws_does_not_notice_that_everything_is_replayed(run: Run) -> None:
    async def program(step: Any) -> Any:
        drawn = [str(step.now())]
        for name in ("a", "b", "c"):
            drawn.append(str(step.uuid()))
            await step(name, listed, drawn[-1])
        return drawn

    with Rehearsal(always_replay=True) as rehearsal:
        assert len(set(run(program, id="x", store=rehearsal))) == 4


def test_branches_draw_by_key(store: Any) -> None:
    """Without one their numbers would depend on who comes first."""

    async def branch(step: Any, name: str, *, key: bool) -> str:
        await asyncio.sleep(0)
        drawn = str(step.uuid(key=name if key else None))
        return str(await step("keep", listed, drawn, key=name))

    def gathered(*, key: bool) -> Any:
        async def program(step: Any) -> Any:
            return await asyncio.gather(*(branch(step, name, key=key) for name in "ab"))

        return async_workflow_of(program)

    with pytest.raises(AmbiguousKey, match=r"step.uuid\(key="):
        asyncio.run(durable.run(None, gathered(key=False), id="no keys", store=store))
    first = asyncio.run(durable.run(None, gathered(key=True), id="keys", store=store))
    assert asyncio.run(replay(None, gathered(key=True), store.load("keys"))).check().result == first


def test_threads_draw_by_key(store: Any) -> None:
    def workflow(step: durable.Step, _: None) -> None:
        problems: list[BaseException] = []

        def branch() -> None:
            step.uuid(key="mine")
            try:
                step.uuid()
            except BaseException as problem:
                problems.append(problem)

        step.uuid()
        thread = threading.Thread(target=branch)
        thread.start()
        thread.join()
        assert not isinstance(problems[0], Exception)  # control leaves the workflow
        raise problems[0]

    with pytest.raises(AmbiguousKey):
        durable.run(None, workflow, id="x", store=store)


@pytest.mark.parametrize("method", ["now", "uuid", "random"])
def test_a_body_draws_nothing(store: Any, run: Run, method: str) -> None:
    async def program(step: Any) -> None:
        await step("pay", lambda: getattr(step, method)())

    with pytest.raises(durable.InvalidArgument, match=rf"step\.{method}\(\) is for the workflow.*body of step 'pay'"):
        run(program, id="x", store=store)


def test_an_async_workflow_draws_on_its_loop(store: Any) -> None:
    async def program(step: Any) -> None:
        await asyncio.to_thread(step.now)

    with pytest.raises(AsyncMismatch, match=r"step\.now\(\) belongs to an async workflow"):
        asyncio.run(durable.run(None, async_workflow_of(program), id="x", store=store))


def test_a_key_that_cannot_be_one_and_a_record_that_says_nothing(store: Any, run: Run) -> None:
    async def program(step: Any) -> None:
        with pytest.raises(durable.InvalidArgument, match=r"the key of step\.now\(\)"):
            step.now(key="")
        step.now()
        await step("one", listed, 1)

    run(program, id="x", store=store)
    document = store.load("x").document()
    document["steps"]["one"]["drawn"]["now"] = "yesterday"
    del document["result"]
    store.save("y", document | {"execution": {"status": "running"}})
    with pytest.raises(UnreadableRecord, match="yesterday"):
        run(program, id="y", store=store)


def test_a_run_that_must_not_go_on_draws_nothing(store: Any, run: Run) -> None:
    stop, seen = threading.Event(), list[str]()

    async def program(step: Any) -> None:
        stop.set()
        try:
            await step("one", listed, 1)
        finally:
            try:
                step.now()
            except BaseException as problem:
                seen.append(type(problem).__name__)

    with pytest.raises(durable.RunCancelled):
        run(program, id="x", store=store, cancel=stop)
    assert seen == ["Unwind"]
