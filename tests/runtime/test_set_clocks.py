"""The wall clock is set while a run sleeps, backs off or waits (FAULTS 175, 23): what passes is counted, whatever the clock on the wall says."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
from collections.abc import Callable, Iterator
from contextvars import Context
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
import tenacity

import durable
from durable.clocks import SystemClock
from durable.events import StepRecorded, StepRemembered
from durable.stores import memory
from durable.testing import JumpingClock, Rehearsal

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
START = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = [-HOUR, 7.0, DAY]


class HandClock(SystemClock):
    """Goes on when it is waited on, and is set by hand."""

    def __init__(self) -> None:
        self._elapsed = 1000.0
        self._shift = 0.0
        self._actions: list[tuple[float, Callable[[], object]]] = []

    def now(self) -> datetime:
        return START + timedelta(seconds=self._elapsed + self._shift)

    def elapsed(self) -> float:
        return self._elapsed

    def set(self, moment: datetime) -> None:
        """The wall clock says this from here on."""
        self._shift += (moment - self.now()).total_seconds()

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        """Call it when so much has passed."""
        self._actions.append((self._elapsed + seconds, action))

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._elapsed += seconds
        due = [action for at, action in self._actions if at <= self._elapsed]
        self._actions = [(at, action) for at, action in self._actions if at > self._elapsed]
        for action in due:
            action()

    def sleep(self, seconds: float, recheck: float = math.inf) -> None:
        self.advance(min(seconds, recheck))

    async def asleep(self, seconds: float, recheck: float = math.inf) -> None:
        self.advance(min(seconds, recheck))
        await asyncio.sleep(0)


class Scene:
    """A store by a clock that can be set, and workflows of one call in one of the two colours."""

    def __init__(self, store: Any, clock: Any, *, is_async: bool) -> None:
        self.store = store
        self.clock = clock
        self.is_async = is_async

    def set_after(self, seconds: float, by: float) -> None:
        """In so many seconds the wall clock is set by so many."""
        self.clock.after(seconds, lambda: self.set(by))

    def set(self, by: float) -> None:
        """Set the wall clock by so many seconds."""
        self.clock.set(self.clock.now() + timedelta(seconds=by))

    def run(self, call: Callable[[Any], Any], **options: Any) -> tuple[Any, Any]:
        """What a workflow that makes this call comes to, and the seconds that pass meanwhile."""

        def blocking(step: durable.Step, deps: Any) -> Any:
            return call(step)

        async def awaited(step: durable.AsyncStep, deps: Any) -> Any:
            return await call(step)

        before = self.clock.elapsed()
        options = {"id": "run-1", "lease": DAY, **options}
        outcome: Any = durable.run({}, awaited if self.is_async else blocking, store=self.store, **options)
        if inspect.iscoroutine(outcome):
            outcome = asyncio.run(outcome)
        return outcome, self.clock.elapsed() - before


@pytest.fixture(params=["memory", "postgres", "rehearsal"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[False, True], ids=["blocking", "async"])
def scene(request: pytest.FixtureRequest, kind: str) -> Iterator[Scene]:
    if kind == "rehearsal":
        with Rehearsal(clock=JumpingClock(START)) as rehearsal:
            yield Scene(rehearsal, rehearsal.clock, is_async=request.param)
        return
    with memory() if kind == "memory" else request.getfixturevalue("database").store() as store:
        store.clock = clock = HandClock()
        yield Scene(store, clock, is_async=request.param)


class Failing:
    """A body that fails so many times, and lets so many seconds pass each time."""

    def __init__(self, scene: Scene, times: float, seconds: float = 0.0, *, sets: float = 0.0, at: int = 0) -> None:
        self._scene = scene
        self._times = times
        self._seconds = seconds
        self._sets = sets
        self._at = at
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        self._scene.clock.advance(self._seconds)
        if self.calls == self._at:
            self._scene.set(self._sets)
        if self.calls <= self._times:
            raise OSError(self.calls)
        return "done"


# -- within one life ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", SETTINGS)
def test_a_sleep_lasts_its_seconds(scene: Scene, by: float) -> None:
    scene.set_after(20.0, by)
    assert scene.run(lambda step: step.sleep("nap", MINUTE)) == (None, pytest.approx(MINUTE))


def test_a_sleep_lasts_its_seconds_however_often_the_clock_is_set(scene: Scene) -> None:
    for number, by in enumerate([-30 * DAY, -HOUR, -7.0, 7.0, HOUR, 30 * DAY] * 3):
        scene.set_after(2.0 + 3.0 * number, by)
    assert scene.run(lambda step: step.sleep("nap", timedelta(minutes=1))) == (None, pytest.approx(MINUTE))


def test_a_sleep_that_is_over_is_over(scene: Scene) -> None:
    """Its key again, in the same life, when the clock has been set back: nothing is waited for."""

    def twice(step: durable.Step) -> None:
        for _ in range(3):
            step.sleep("nap", MINUTE, key="nap")
            scene.set(-HOUR)

    async def twice_awaited(step: durable.AsyncStep) -> None:
        for _ in range(3):
            await step.sleep("nap", MINUTE, key="nap")
            scene.set(-HOUR)

    assert scene.run(twice_awaited if scene.is_async else twice) == (None, pytest.approx(MINUTE))


@pytest.mark.parametrize("by", [-HOUR, HOUR])
def test_a_sleep_until_a_moment_goes_by_the_wall_clock(scene: Scene, by: float) -> None:
    """As an alarm clock does: what was asked for is a moment, and the clock knows better now when that is."""
    moment = scene.clock.now() + timedelta(hours=2)
    scene.set_after(MINUTE, by)
    slept = scene.run(lambda step: step.sleep("nap", moment))[1]
    assert slept == pytest.approx(2 * HOUR - by)
    assert scene.clock.now() >= moment


def test_a_sleep_until_a_moment_that_the_clock_is_set_beyond_is_over(scene: Scene) -> None:
    moment = scene.clock.now() + timedelta(hours=2)
    scene.set_after(MINUTE, DAY)
    assert scene.run(lambda step: step.sleep("nap", moment))[1] == pytest.approx(MINUTE, abs=1.0)


@pytest.mark.parametrize("by", SETTINGS)
def test_a_back_off_lasts_its_seconds(scene: Scene, by: float) -> None:
    policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(MINUTE))
    body = Failing(scene, 2)
    scene.set_after(20.0, by)
    scene.set_after(90.0, -3 * by)
    assert scene.run(lambda step: step("fetch", body, retry=policy)) == ("done", pytest.approx(2 * MINUTE))


@pytest.mark.parametrize("by", [-HOUR, HOUR])
def test_a_back_off_that_grows_lasts_its_seconds(scene: Scene, by: float) -> None:
    policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(5), wait=tenacity.wait_exponential(10.0))
    body = Failing(scene, 4, sets=by, at=2)
    assert scene.run(lambda step: step("fetch", body, retry=policy)) == ("done", pytest.approx(150.0))


@pytest.mark.parametrize("by", SETTINGS)
def test_a_wait_for_a_signal_gives_up_after_its_seconds(scene: Scene, by: float) -> None:
    scene.set_after(20.0, by)
    before = scene.clock.elapsed()
    with pytest.raises(durable.SignalTimedOut):
        scene.run(lambda step: step.wait_for("approved", timeout=MINUTE))
    assert scene.clock.elapsed() - before == pytest.approx(MINUTE)


@pytest.mark.parametrize("by", [-HOUR, HOUR])
@pytest.mark.parametrize(
    "stop", [tenacity.stop_after_delay(25.0), tenacity.stop_before_delay(28.0)], ids=["after", "before"]
)
def test_a_policy_is_told_the_seconds_that_have_passed(scene: Scene, by: float, stop: Any) -> None:
    """Attempts of five seconds, with two between them: the fourth ends 26 s after the first began."""
    body = Failing(scene, math.inf, 5.0, sets=by, at=2)
    with pytest.raises(OSError, match="4"):
        scene.run(lambda step: step("fetch", body, retry=tenacity.Retrying(stop=stop, wait=tenacity.wait_fixed(2.0))))
    assert body.calls == 4


def test_a_policy_is_never_told_less_than_nothing(scene: Scene) -> None:
    told: list[float] = []

    def stop(state: tenacity.RetryCallState) -> bool:
        assert state.seconds_since_start is not None
        told.append(state.seconds_since_start)
        return len(told) == 4

    body = Failing(scene, math.inf, 5.0, sets=-HOUR, at=2)
    with pytest.raises(OSError, match="4"):
        scene.run(lambda step: step("fetch", body, retry=tenacity.Retrying(stop=stop, wait=tenacity.wait_fixed(2.0))))
    assert told == pytest.approx([5.0, 12.0, 19.0, 26.0])


@pytest.mark.parametrize("by", [-HOUR, HOUR])
def test_a_deadline_is_counted_from_the_call(scene: Scene, by: float) -> None:
    """One that is a moment too."""
    for run_id in ("seconds", "moment"):
        before = scene.clock.elapsed()
        scene.set_after(20.0, by)
        deadline = MINUTE if run_id == "seconds" else scene.clock.now() + timedelta(minutes=1)
        with pytest.raises(durable.DeadlineExceeded):
            scene.run(lambda step: step.sleep("nap", DAY), id=run_id, deadline=deadline)
        assert scene.clock.elapsed() - before == pytest.approx(MINUTE)


def test_what_is_recorded_of_attempts_is_of_one_clock(scene: Scene) -> None:
    """When the first began and when the next is due are as far apart as they are, by the clock as it stands when that is recorded."""
    heard: list[Any] = []
    body = Failing(scene, 2, 5.0, sets=-HOUR, at=2)
    policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(10.0))
    scene.run(lambda step: step("fetch", body, retry=policy), on_event=heard.append)
    spans = [(event.record.began, event.record.due) for event in heard if isinstance(event, StepRemembered)]
    (began, due), (began_again, due_again) = cast(list[tuple[datetime, datetime]], spans)
    assert (due - began).total_seconds() == pytest.approx(15.0)
    assert (due_again - began_again).total_seconds() == pytest.approx(30.0)
    assert (due_again - due).total_seconds() == pytest.approx(15.0 - HOUR)
    (record,) = (event.record for event in heard if isinstance(event, StepRecorded))
    assert record.seconds == pytest.approx(5.0)


def test_a_body_took_no_less_than_no_time(scene: Scene) -> None:
    heard: list[Any] = []
    body = Failing(scene, 0, 5.0, sets=-HOUR, at=1)
    scene.run(lambda step: step("fetch", body), on_event=heard.append)
    (record,) = (event.record for event in heard if isinstance(event, StepRecorded))
    assert record.seconds == pytest.approx(5.0)


def test_a_back_off_that_another_call_of_the_key_takes_up_lasts_its_seconds(scene: Scene) -> None:
    """The first one was cancelled in it; the record of the attempt is of this same life."""
    policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(MINUTE))
    body = Failing(scene, 1)

    async def taken_up(step: durable.AsyncStep, deps: Any) -> str:
        first = asyncio.ensure_future(step("fetch", body, key="fetch", retry=policy))
        scene.clock.after(20.0, first.cancel)
        scene.set_after(20.0, -HOUR)
        with contextlib.suppress(asyncio.CancelledError):
            await first
        return await step("fetch", body, key="fetch", retry=policy)

    before = scene.clock.elapsed()
    assert asyncio.run(durable.run({}, taken_up, id="run-1", store=scene.store, lease=DAY)) == "done"
    assert scene.clock.elapsed() - before == pytest.approx(MINUTE)


# -- from one life to the next --------------------------------------------------------------------------------------


class Gone(BaseException):
    """The process is left."""


def left(scene: Scene, seconds: float) -> None:
    """The life that waits ends after so many seconds."""

    def leave() -> None:
        raise Gone

    scene.clock.after(seconds, leave)


@pytest.mark.parametrize(("by", "rest"), [(-HOUR, MINUTE), (-7.0, 47.0), (HOUR, 0.0)])
def test_a_resumed_sleep_lasts_what_is_left_and_never_more_than_all_of_it(scene: Scene, by: float, rest: float) -> None:
    """Only the clock on the wall spans two lives. What it says may be wrong, but no more is left than there was."""
    left(scene, 20.0)
    with pytest.raises(Gone):
        scene.run(lambda step: step.sleep("nap", MINUTE))
    scene.set(by)
    scene.set_after(5.0, -by)
    assert scene.run(lambda step: step.sleep("nap", MINUTE)) == (None, pytest.approx(rest))


@pytest.mark.parametrize(("by", "rest"), [(-HOUR, MINUTE), (-7.0, 47.0), (HOUR, 0.0)])
def test_a_resumed_back_off_lasts_what_is_left_and_never_more_than_all_of_it(
    scene: Scene, by: float, rest: float
) -> None:
    policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(MINUTE))
    body = Failing(scene, 1)
    left(scene, 20.0)
    with pytest.raises(Gone):
        scene.run(lambda step: step("fetch", body, retry=policy))
    scene.set(by)
    scene.set_after(5.0, -by)
    assert scene.run(lambda step: step("fetch", body, retry=policy)) == ("done", pytest.approx(rest))


@pytest.mark.parametrize(("by", "rest"), [(-HOUR, MINUTE), (-7.0, 47.0), (HOUR, 0.0)])
def test_a_resumed_wait_for_a_signal_lasts_what_is_left_and_never_more_than_all_of_it(
    scene: Scene, by: float, rest: float
) -> None:
    left(scene, 20.0)
    with pytest.raises(Gone):
        scene.run(lambda step: step.wait_for("approved", timeout=MINUTE))
    scene.set(by)
    scene.set_after(5.0, -by)
    before = scene.clock.elapsed()
    with pytest.raises(durable.SignalTimedOut):
        scene.run(lambda step: step.wait_for("approved", timeout=MINUTE))
    assert scene.clock.elapsed() - before == pytest.approx(rest, abs=1.0)  # it looks once a second


@pytest.mark.parametrize("by", [-DAY])
def test_a_resumed_policy_counts_on_from_what_had_passed(scene: Scene, by: float) -> None:
    """Of a clock that was set back between two lives it is at least what the first one knew of."""
    told: list[float] = []

    def stop(state: tenacity.RetryCallState) -> bool:
        assert state.seconds_since_start is not None
        told.append(state.seconds_since_start)
        return False

    body = Failing(scene, 2, 5.0)
    policy = tenacity.Retrying(stop=stop, wait=tenacity.wait_fixed(MINUTE))
    left(scene, 20.0)
    with pytest.raises(Gone):
        scene.run(lambda step: step("fetch", body, retry=policy))
    scene.set(by)
    assert scene.run(lambda step: step("fetch", body, retry=policy))[0] == "done"
    assert told == pytest.approx([5.0, 70.0])


# -- the store's own ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "postgres"])
@pytest.mark.parametrize("by", [-HOUR, HOUR])
def test_no_lease_goes_by_the_wall_clock_of_a_client(scene: Scene, by: float) -> None:
    """Neither that of who holds it, nor that of who waits for it (FAULTS 23)."""
    waited: list[float] = []

    def hold(step: Any) -> Any:
        if not waited:
            scene.set(by)
            before = scene.clock.elapsed()
            with pytest.raises(durable.WaitTimedOut):  # as another process would
                Context().run(another.run, hold, on_conflict="wait", wait_timeout=MINUTE)
            waited.append(scene.clock.elapsed() - before)
        return step("after", lambda: "held")

    another = Scene(scene.store, scene.clock, is_async=False)
    assert another.run(hold)[0] == "held"
    assert waited == [pytest.approx(MINUTE, abs=1.0)]
