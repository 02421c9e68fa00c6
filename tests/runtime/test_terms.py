"""The terms on which a step is executed: retried, within a time, at most once; and how a run is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import tenacity

import durable
from durable.events import RunEvent, StepBegan, StepRetrying
from durable.records import Kind
from durable.stores import memory
from harness.stages import Ask, Died, EngineStage, Stage, Together, World
from harness.support import Database

Telling = Generator[Ask | Together, Any, Any]
THREE_TIMES = tenacity.Retrying(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(0.01))


def charging(world: World) -> Telling:
    """A step between two is tried up to three times."""
    yield Ask("first", world.do, ("first",))
    charged = yield Ask("charge", world.do, ("charge",), terms={"retry": THREE_TIMES})
    yield Ask("last", world.do, ("last",))
    return charged


# -- retry ----------------------------------------------------------------------------------------------------------


def test_a_step_is_tried_again_until_it_succeeds(stage: Stage) -> None:
    world = World(failures=Counter(charge=2))
    assert stage.run(charging, world) == {"done": "charge", "of": []}
    assert world.bodies == ["first", "charge", "charge", "charge", "last"]


def test_the_last_error_is_raised_and_says_how_often_it_was_tried(stage: Stage) -> None:
    world = World(failing={"charge"})
    with pytest.raises(ValueError, match="charge failed") as live:
        stage.run(charging, world)
    assert Counter(world.bodies)["charge"] == 3
    if not isinstance(stage, EngineStage):  # a note is the drivers' doing
        assert live.value.__notes__ == ["step 'charge' failed in 3 attempts"]


def test_a_death_at_every_boundary_counts_on_and_never_starts_over(stage: Stage) -> None:
    """What was tried and recorded stays tried: two failures are two, however many lives they take."""
    stage.run(charging, World(failures=Counter(charge=2)), id="undisturbed")
    boundaries = len(stage.boundaries.passed)
    assert boundaries > 15
    for dies_at in range(boundaries):
        world = World(failures=Counter(charge=2))
        with pytest.raises(Died):
            stage.run(charging, world, id=f"dies-{dies_at}", dies_at=dies_at)
        recorded = Counter(stage.boundaries.passed)["checkpoint committed"] - 1  # without the first step's
        before = Counter(world.bodies)["charge"]
        assert stage.run(charging, world, id=f"dies-{dies_at}") == {"done": "charge", "of": []}
        after = Counter(world.bodies)["charge"] - before
        assert after <= max(0, 3 - recorded), "attempts that were recorded have been forgotten"


def test_a_back_off_goes_on_after_a_restart() -> None:
    """Of ten minutes nine have passed while nobody ran: one is left."""

    def waiting(world: World) -> Telling:
        yield Ask("charge", world.do, ("charge",), terms={"retry": tenacity.Retrying(wait=tenacity.wait_fixed(600))})

    stage, world = EngineStage(), World(failures=Counter(charge=1))
    stage.run(waiting, World(failures=Counter(charge=1)), id="undisturbed")
    with pytest.raises(Died):
        stage.run(waiting, world, dies_at=stage.boundaries.passed.index("checkpoint committed") + 1)
    stage._now += timedelta(seconds=540) - timedelta(seconds=stage.waited - 600)
    stage.waited = 0.0
    stage.run(waiting, world)
    assert stage.waited == pytest.approx(60.0)
    assert world.bodies == ["charge", "charge"]


def test_the_policy_sees_durable_time_and_the_attempts() -> None:
    seen = []

    def wait(state: tenacity.RetryCallState) -> float:
        seen.append((state.attempt_number, state.seconds_since_start, type(state.outcome.exception())))  # type: ignore[union-attr]
        return 100.0

    def slow(world: World) -> Telling:
        retry = tenacity.Retrying(wait=wait, stop=tenacity.stop_after_delay(250))
        yield Ask("charge", world.do, ("charge",), terms={"retry": retry})

    with pytest.raises(ValueError, match="charge failed"):
        EngineStage().run(slow, World(failing={"charge"}))
    assert seen == [(1, 0.0, ValueError), (2, 100.0, ValueError), (3, 200.0, ValueError), (4, 300.0, ValueError)]


def test_what_the_policy_does_not_name_is_not_tried_again(stage: Stage) -> None:
    """Nor a value that cannot be stored, nor a mistake in the call."""
    picky = tenacity.Retrying(retry=tenacity.retry_if_exception_type(OSError), stop=tenacity.stop_after_attempt(5))

    def story(world: World) -> Telling:
        caught = []
        for name, fn in (("named", world.do), ("unstorable", lambda what: (world.do(what), object())[1])):
            try:
                yield Ask(name, fn, (name,), terms={"retry": picky if name == "named" else THREE_TIMES})
            except (ValueError, durable.UnstorableValue) as problem:
                caught.append(type(problem).__name__)
        return caught

    world = World(failing={"named"})
    assert stage.run(story, world) == ["ValueError", "UnstorableValue"]
    assert Counter(world.bodies) == {"named": 1, "unstorable": 1}


def test_a_failed_run_counts_anew(stage: Stage) -> None:
    """Run again by somebody who has mended the world, the step has all its attempts."""
    world = World(failures=Counter(charge=5))
    with pytest.raises(ValueError, match="charge failed"):
        stage.run(charging, world)
    assert stage.run(charging, world) == {"done": "charge", "of": []}
    assert Counter(world.bodies)["charge"] == 6


def test_policies_are_given_to_the_decorator_the_call_and_the_run(database: Database) -> None:
    """The nearest counts."""
    tries: Counter[str] = Counter()

    def fails(what: str) -> None:
        tries[what] += 1
        raise OSError(what)

    decorated = durable.step(name="fails", retry=THREE_TIMES)(fails)
    twice = tenacity.Retrying(stop=tenacity.stop_after_attempt(2))

    def workflow(step: durable.Step, deps: Any) -> None:
        for call in (
            lambda: step("by run", fails, "run"),
            lambda: decorated("decorator"),
            lambda: deps.fails("bound"),
            lambda: step("at call", decorated, "call", retry=twice),
        ):
            with pytest.raises(OSError, match=r"."):
                call()

    once = tenacity.Retrying(stop=tenacity.stop_after_attempt(1))
    durable.run({"fails": decorated}, workflow, id="a", store=database.store(), retry=once)
    assert tries == {"run": 1, "decorator": 3, "bound": 3, "call": 2}


def test_the_attempts_are_told_and_stored(database: Database) -> None:
    events: list[RunEvent] = []
    tries = iter([OSError("down"), OSError("still down"), None])

    def fetch() -> str:
        problem = next(tries)
        if problem is not None:
            raise problem
        return "page"

    def workflow(step: durable.Step, deps: Any) -> str:
        return step("fetch", fetch, retry=THREE_TIMES)

    assert durable.run({}, workflow, id="a", store=database.store(), on_event=events.append) == "page"
    assert [event.attempt for event in events if isinstance(event, StepBegan)] == [1, 2, 3]
    assert [(event.attempt, event.error) for event in events if isinstance(event, StepRetrying)] == [
        (1, "builtins.OSError"),
        (2, "builtins.OSError"),
    ]
    query = "SELECT kind, record->>'number', record->'error'->>'message' FROM durable_steps ORDER BY seq"
    assert database.execute(query)[:3] == [
        (Kind.ATTEMPT, "1", "down"),
        (Kind.ATTEMPT, "2", "still down"),
        (Kind.STEP, None, None),
    ]


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({"retry": 3}, "retry must be a policy like"),
        ({"retry": tenacity.retry(stop=tenacity.stop_after_attempt(3))}, "retry must be a policy like"),
        (
            {"retry": tenacity.Retrying(retry=tenacity.retry_if_result(bool))},
            "a result is recorded and not tried again",
        ),
        ({"timeout": "30s"}, "timeout must be a number of seconds"),
        ({"timeout": timedelta(0)}, "positive number"),
        ({"timeout": 0}, "positive number"),
        ({"timeout": float("nan")}, "positive number"),
        ({"timeout": True}, "timeout must be a number of seconds"),
        ({"at_most_once": "yes"}, "at_most_once must be True or False"),
        ({"at_most_once": True, "retry": THREE_TIMES}, "not both"),
    ],
)
def test_terms_that_cannot_be_kept_are_refused(terms: dict[str, Any], words: str) -> None:
    """At the decorator and at the call, before anything runs."""
    with pytest.raises(durable.InvalidArgument, match=words):
        durable.step(**terms)

    def workflow(step: Any, deps: Any) -> None:
        step("a", lambda: pytest.fail("it ran"), **terms)

    with pytest.raises(durable.InvalidArgument, match=words), contextlib.closing(memory()) as store:
        durable.run({}, workflow, id="a", store=store)


def test_a_policy_that_awaits_is_refused() -> None:
    async def predicate(state: Any) -> bool:
        return True

    with pytest.raises(durable.InvalidArgument, match="awaits"):
        durable.step(retry=tenacity.AsyncRetrying(retry=predicate))


# -- timeout --------------------------------------------------------------------------------------------------------


def test_a_blocking_body_is_given_up(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """It goes on in its thread, and what comes of it is not recorded."""
    release, ended = threading.Event(), threading.Event()

    def stuck() -> str:
        release.wait()
        ended.set()
        return "too late"

    def workflow(step: durable.Step, deps: Any) -> str:
        try:
            return step("stuck", stuck, timeout=0.05)
        except durable.StepTimeout as problem:
            assert "goes on there" in str(problem)
            return step("instead", lambda: "instead")

    store = database.store()
    assert durable.run({}, workflow, id="a", store=store) == "instead"
    release.set()
    assert ended.wait(10)
    assert "was given up after its timeout of 0.05 s" in caplog.text
    assert durable.run({}, workflow, id="a", store=store) == "instead"
    assert [key for key, *_ in database.execute("SELECT key FROM durable_steps WHERE kind = 'step' ORDER BY seq")] == [
        "stuck",
        "instead",
    ]


def test_an_async_body_is_cancelled(database: Database) -> None:
    ended = []

    async def stuck() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def workflow(step: durable.AsyncStep, deps: Any) -> str:
        try:
            await step("stuck", stuck, timeout=0.05)
        except TimeoutError as problem:
            return str(problem)
        return "?"

    text = asyncio.run(durable.run({}, workflow, id="a", store=database.store()))
    assert text == "step 'stuck' took longer than its timeout of 0.05 s."
    assert ended == [True]


def test_a_blocking_body_of_an_async_workflow_has_a_thread(database: Database) -> None:
    release = threading.Event()

    def where() -> str:
        return threading.current_thread().name

    async def workflow(step: durable.AsyncStep, deps: Any) -> str:
        with pytest.raises(durable.StepTimeout, match="goes on there"):
            await step("stuck", release.wait, timeout=0.05)
        thread = await step("where", where, timeout=30)
        release.set()
        return thread

    assert asyncio.run(durable.run({}, workflow, id="a", store=database.store())) == "durable-step where"


async def one() -> int:
    return 1


THUNKS: dict[str, Callable[[], Any]] = {
    "gather": lambda: asyncio.gather(one(), one()),
    "a task": lambda: asyncio.create_task(one()),
    "a future": lambda: asyncio.get_running_loop().run_in_executor(None, sum, [1, 1]),
    "a coroutine": lambda: one(),
    "a value": lambda: len(asyncio.all_tasks()) > 0,
    "the task": lambda: asyncio.current_task() is not None,
}


@pytest.mark.parametrize("name", THUNKS)
def test_a_thunk_is_called_on_its_event_loop_with_a_timeout_as_without(database: Database, name: str) -> None:
    async def workflow(step: durable.AsyncStep, deps: Any) -> list[Any]:
        return [await step("a", THUNKS[name]), await step("b", THUNKS[name], timeout=30)]

    without, within = asyncio.run(durable.run({}, workflow, id="a", store=database.store()))
    assert without == within


def test_a_thunk_that_blocks_its_loop_for_too_long_is_told_what_to_do(database: Database) -> None:
    """It cannot be stopped; it is not taken for one that was in time."""

    async def workflow(step: durable.AsyncStep, deps: Any) -> None:
        await step("a", lambda: threading.Event().wait(0.05), timeout=0.01)

    with pytest.raises(durable.StepTimeout, match=r"blocked that until it returned.*step\(name, fn, arg\)"):
        asyncio.run(durable.run({}, workflow, id="a", store=database.store()))


def test_a_function_that_wants_the_loop_in_its_thread_is_told_what_to_do(database: Database) -> None:
    def both() -> Any:
        return asyncio.get_running_loop()

    async def workflow(step: durable.AsyncStep, deps: Any) -> None:
        await step("a", both, timeout=30)

    with pytest.raises(RuntimeError, match="no running event loop") as told:
        asyncio.run(durable.run({}, workflow, id="a", store=database.store()))
    assert "make it `async def`" in told.value.__notes__[0]


@pytest.mark.parametrize("problem", [StopIteration(3), StopAsyncIteration(), GeneratorExit(), EOFError()])
@pytest.mark.parametrize("timeout", [None, 30.0])
@pytest.mark.parametrize("is_async", [False, True])
def test_whatever_a_body_raises_is_no_timeout(
    database: Database, problem: BaseException, timeout: float | None, is_async: bool
) -> None:
    """Also what no coroutine can raise: Python makes a RuntimeError of a StopIteration there."""

    def body() -> None:
        raise problem

    def workflow(step: durable.Step, deps: Any) -> None:
        step("a", body, timeout=timeout)

    async def async_workflow(step: durable.AsyncStep, deps: Any) -> None:
        await step("a", body, timeout=timeout)

    store = database.store()
    with pytest.raises((type(problem), RuntimeError)):
        if is_async:
            asyncio.run(durable.run({}, async_workflow, id="a", store=store))
        else:
            durable.run({}, workflow, id="a", store=store)
    if isinstance(problem, Exception):
        assert store.status("a") == "failed"


@pytest.mark.parametrize("is_async", [False, True])
def test_a_body_s_own_timeout_error_is_its_own(database: Database, is_async: bool) -> None:
    def body() -> None:
        raise TimeoutError("mine")

    async def async_body() -> None:
        raise TimeoutError("mine")

    def workflow(step: durable.Step, deps: Any) -> None:
        step("a", body, timeout=30)

    async def async_workflow(step: durable.AsyncStep, deps: Any) -> None:
        await step("a", async_body, timeout=30)

    with pytest.raises(TimeoutError, match=r"^mine$") as caught:
        if is_async:
            asyncio.run(durable.run({}, async_workflow, id="a", store=database.store()))
        else:
            durable.run({}, workflow, id="a", store=database.store())
    assert not isinstance(caught.value, durable.StepTimeout)


def test_a_timeout_can_be_retried(database: Database) -> None:
    tries: list[int] = []

    async def sometimes() -> str:
        tries.append(1)
        if len(tries) < 3:
            await asyncio.Event().wait()
        return "at last"

    async def workflow(step: durable.AsyncStep, deps: Any) -> str:
        return await step("sometimes", sometimes, timeout=0.05, retry=THREE_TIMES)

    assert asyncio.run(durable.run({}, workflow, id="a", store=database.store())) == "at last"


# -- at most once ---------------------------------------------------------------------------------------------------


def once(world: World) -> Telling:
    """A step that must not run twice, and a workflow that looks into it when nobody knows."""
    try:
        return (yield Ask("pay", world.do, ("pay",), terms={"at_most_once": True}))
    except durable.StepInterrupted as problem:
        return (yield Ask("look into it", world.do, ("look", problem.key)))


def test_an_at_most_once_body_is_started_at_most_once(stage: Stage) -> None:
    """Wherever a life ends."""
    stage.run(once, World(), id="undisturbed")
    passed = list(stage.boundaries.passed)
    looked = 0
    for dies_at in range(len(passed)):
        world = World()
        with pytest.raises(Died):
            stage.run(once, world, id=f"dies-{dies_at}", dies_at=dies_at)
        result = stage.run(once, world, id=f"dies-{dies_at}")
        begun, paid = "pay" in world.bodies, result["done"] == "pay"
        assert Counter(world.bodies)["pay"] <= 1
        assert begun or not paid
        looked += not paid
        assert stage.run(once, world, id=f"dies-{dies_at}") == result
    between = passed.index("before body") - passed.index("checkpoint committed")
    assert looked >= 2
    assert between == 1, "begun is recorded before the body begins"


def test_its_recorded_failure_is_final(stage: Stage) -> None:
    """Not even a failed run that is run again starts it again."""

    def failing(world: World) -> Telling:
        return (yield Ask("pay", world.do, ("pay",), terms={"at_most_once": True}))

    world = World(failing={"pay"})
    for _ in range(2):
        with pytest.raises(ValueError, match="pay failed"):
            stage.run(failing, world)
    assert world.bodies == ["pay"]


# -- stopping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True])
def test_a_cancelled_run_stops_at_the_next_step_and_can_be_run_again(database: Database, is_async: bool) -> None:
    cancel, ran, store = threading.Event(), list[str](), database.store()

    def body(name: str) -> None:
        ran.append(name)
        if name == "b":
            cancel.set()

    def workflow(step: durable.Step, deps: Any) -> str:
        for name in "abc":
            step("do", body, name)
        return "done"

    async def async_workflow(step: durable.AsyncStep, deps: Any) -> str:
        for name in "abc":
            await step("do", body, name)
        return "done"

    def run(event: threading.Event | None) -> str:
        if is_async:
            return asyncio.run(durable.run({}, async_workflow, id="a", store=store, cancel=event))
        return durable.run({}, workflow, id="a", store=store, cancel=event)

    with pytest.raises(durable.RunCancelled):
        run(cancel)
    assert ran == ["a", "b"]
    assert database.status("a") == "cancelled"
    with pytest.raises(durable.RunCancelled):
        run(cancel)
    assert run(None) == "done"
    assert ran == ["a", "b", "c"]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_back_off_is_left_when_the_run_is_cancelled(database: Database, is_async: bool) -> None:
    cancel, retry = threading.Event(), tenacity.Retrying(wait=tenacity.wait_fixed(3600))

    def fails() -> None:
        cancel.set()
        raise OSError

    def workflow(step: durable.Step, deps: Any) -> None:
        step("fails", fails, retry=retry)

    async def async_workflow(step: durable.AsyncStep, deps: Any) -> None:
        await step("fails", fails, retry=retry)

    with pytest.raises(durable.RunCancelled):
        if is_async:
            asyncio.run(durable.run({}, async_workflow, id="a", store=database.store(), cancel=cancel))
        else:
            durable.run({}, workflow, id="a", store=database.store(), cancel=cancel)
    assert database.status("a") == "cancelled"


def test_who_waits_for_a_cancelled_run_is_told(database: Database) -> None:
    """`on_conflict="wait"` asks for the outcome; it does not take up what somebody has stopped."""
    store, began, go_on, cancel = database.store(), threading.Event(), threading.Event(), threading.Event()

    def held() -> None:
        began.set()
        assert go_on.wait(10)

    def workflow(step: durable.Step, deps: Any) -> None:
        step("a", held)
        step("b", lambda: None)

    waiting, waits_at = threading.Event(), database.store()
    perform = waits_at.perform

    def polls(*request: Any) -> Any:
        reply = perform(*request)
        waiting.set()
        return reply

    waits_at.perform = polls  # type: ignore[method-assign, assignment]

    def told(**options: Any) -> None:
        with pytest.raises(durable.RunCancelled):
            durable.run({}, workflow, id="a", **options)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(told, store=store, cancel=cancel)
        assert began.wait(10)
        second = pool.submit(told, store=waits_at, on_conflict="wait", wait_timeout=30)
        assert waiting.wait(10)
        cancel.set()
        go_on.set()
        first.result()
        second.result()


def test_after_the_deadline_no_step_begins(database: Database) -> None:
    store, ran = database.store(), list[str]()

    def workflow(step: durable.Step, deps: Any) -> str:
        step("a", ran.append, "a")
        step("late", ran.append, "late", retry=None)
        return "done"

    past = datetime.now(UTC) - timedelta(seconds=1)
    with pytest.raises(durable.DeadlineExceeded):
        durable.run({}, workflow, id="a", store=store, deadline=past)
    assert ran == []
    assert durable.run({}, workflow, id="a", store=store, deadline=3600) == "done"


def test_a_back_off_ends_at_the_deadline(database: Database) -> None:
    def fails() -> None:
        raise OSError

    def workflow(step: durable.Step, deps: Any) -> None:
        step("fails", fails, retry=tenacity.Retrying(wait=tenacity.wait_fixed(3600)))

    with pytest.raises(durable.DeadlineExceeded):
        durable.run({}, workflow, id="a", store=database.store(), deadline=0.2)
    assert database.status("a") == "running"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"deadline": "tomorrow"}, "deadline must be a number of seconds"),
        ({"deadline": -1}, "positive"),
        ({"deadline": datetime(2030, 1, 1)}, "aware datetime"),
        ({"cancel": True}, r"cancel must be a threading\.Event"),
        ({"retry": 3}, "retry must be a policy"),
    ],
)
def test_options_that_cannot_be_kept_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(durable.InvalidArgument, match=words), contextlib.closing(memory()) as store:
        durable.run({}, lambda step, deps: None, id="a", store=store, **options)
