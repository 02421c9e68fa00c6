"""Moments near the end of the calendar, and seconds that no calendar holds: kept as they are, or refused by name before anything happens."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import tenacity

import durable
from durable._common.durations import MAX_SECONDS
from durable.stores import memory
from durable.testing import JumpingClock, Rehearsal
from harness.support import Database

WEST, EAST = timezone(timedelta(hours=-5)), timezone(timedelta(hours=5))
MANY_DIGITS = 10**5000  # whose digits Python does not even write


class Nowhere(tzinfo):
    """Says of no moment how far from UTC it is, which makes it a naive one."""

    def utcoffset(self, _: datetime | None) -> None:
        return None

    def dst(self, _: datetime | None) -> None:
        return None

    def tzname(self, _: datetime | None) -> str:
        return "nowhere"


class Broken(Nowhere):
    """A zone with a mistake in it."""

    def utcoffset(self, _: datetime | None) -> None:
        raise LookupError("no such zone")


class Astray(Nowhere):
    """A zone that says nonsense."""

    def utcoffset(self, _: datetime | None) -> Any:
        return timedelta(days=3)


BEYOND: dict[str, datetime] = {
    "the last moment, west": datetime.max.replace(tzinfo=WEST),
    "an hour before the end, west": datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-2))),
    "the last moment of a named zone": datetime.max.replace(tzinfo=ZoneInfo("America/New_York")),
    "the first moment, east": datetime.min.replace(tzinfo=EAST),
    "the first moment of a named zone": datetime.min.replace(tzinfo=ZoneInfo("Asia/Tokyo")),
}
NO_MOMENTS: dict[str, datetime] = {
    "naive": datetime(2030, 1, 1),
    "the naive end": datetime.max,
    "without an offset": datetime(2030, 1, 1, tzinfo=Nowhere()),
    "a zone that raises": datetime(2030, 1, 1, tzinfo=Broken()),
    "an offset that is none": datetime(2030, 1, 1, tzinfo=Astray()),
}
NO_SECONDS: dict[str, Any] = {
    "a hundred years and more": MAX_SECONDS * 1.01,
    "a large float": 1e300,
    "a large int": 10**400,
    "an int of many digits": MANY_DIGITS,
    "its negative": -MANY_DIGITS,
    "infinity": math.inf,
    "no number": math.nan,
    "a timedelta": timedelta.max,
    "negative": -1,
}


def refused(workflow: Callable[[Any, Any], Any], **options: Any) -> str:
    """The workflow's run is refused with this text, and nothing is recorded of it but that it ended."""
    with closing(memory()) as store:
        with pytest.raises(durable.InvalidArgument) as told:
            durable.run({}, workflow, id="a", store=store, **options)
        snapshot = store.load("a")
        assert snapshot is None or not snapshot.steps
    assert len(str(told.value)) < 300
    return str(told.value)


# -- sleep ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", [*BEYOND, *NO_MOMENTS, "the last moment of UTC", "a bit more than 100 years ahead"])
@pytest.mark.parametrize("colour", ["blocking", "async"])
def test_a_sleep_until_a_moment_that_cannot_be_kept_is_refused(what: str, colour: str) -> None:
    """At the call, and no step fails for it: the same call with a better moment goes on."""
    further = {
        "the last moment of UTC": datetime.max.replace(tzinfo=UTC),
        "a bit more than 100 years ahead": datetime.now(UTC) + timedelta(seconds=MAX_SECONDS + 100),
    }
    moment = {**BEYOND, **NO_MOMENTS, **further}[what]

    async def workflow(step: durable.AsyncStep, deps: Any) -> None:
        await step.sleep("nap", moment)

    if colour == "blocking":
        assert "sleep" in refused(lambda step, deps: step.sleep("nap", moment))
    else:
        with closing(memory()) as store, pytest.raises(durable.InvalidArgument, match="sleep"):
            asyncio.run(durable.run({}, workflow, id="a", store=store))


@pytest.mark.parametrize("what", NO_SECONDS)
def test_a_sleep_for_seconds_that_cannot_be_counted_is_refused(what: str) -> None:
    assert "sleep" in refused(lambda step, deps: step.sleep("nap", NO_SECONDS[what]))


@pytest.mark.parametrize(
    "moment",
    [
        datetime.min.replace(tzinfo=UTC),
        datetime.min.replace(tzinfo=WEST),
        datetime(1, 1, 1, 5, tzinfo=EAST),
        datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    ],
)
def test_a_moment_long_past_is_no_wait(database: Database, moment: datetime) -> None:
    def workflow(step: durable.Step, deps: Any) -> str:
        step.sleep("nap", moment)
        return "awake"

    for _ in range(2):
        assert durable.run({}, workflow, id="a", store=database.store()) == "awake"


def test_a_sleep_of_99_years_is_kept() -> None:
    rehearsal = Rehearsal(clock=JumpingClock(datetime(2026, 1, 1, tzinfo=UTC)))
    until = datetime(2125, 1, 1, tzinfo=WEST)

    def workflow(step: durable.Step, deps: Any) -> None:
        step.sleep("nap", until)

    durable.run({}, workflow, id="a", store=rehearsal)
    assert rehearsal.clock.now() == until


def test_a_recorded_moment_that_cannot_be_read_is_said_by_name(database: Database) -> None:
    """Somebody has edited it, or a far later version has written it."""

    def workflow(step: durable.Step, deps: Any) -> None:
        step.sleep("nap", 0.0)
        step("fails", lambda: 1 / 0)

    store = database.store()
    with pytest.raises(ZeroDivisionError):
        durable.run({}, workflow, id="a", store=store)
    for nonsense in ("-0044-03-15T12:00:00+00:00", "+12026-01-01T00:00:00+00:00", "2026-01-01T00:00:00", "soon"):
        database.execute(
            "UPDATE durable_steps SET record = jsonb_set(record::jsonb, '{value}', to_jsonb(%s::text))::json "
            "WHERE key = 'nap'",
            (nonsense,),
        )
        with pytest.raises(durable.errors.UnreadableRecord, match=r"step 'nap'.*moment"):
            durable.run({}, workflow, id="a", store=store)


# -- time-outs, deadlines -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", [what for what in NO_SECONDS if what != "negative"])
@pytest.mark.parametrize("place", ["step", "decorator", "wait_for", "transaction", "map"])
def test_a_timeout_that_cannot_be_counted_is_refused(what: str, place: str) -> None:
    seconds = NO_SECONDS[what]

    def decorated(step: durable.Step, deps: Any) -> None:
        durable.step(timeout=seconds)

    calls: dict[str, Callable[[Any, Any], Any]] = {
        "step": lambda step, deps: step("a", lambda: pytest.fail("it ran"), timeout=seconds),
        "decorator": decorated,
        "wait_for": lambda step, deps: step.wait_for("a", timeout=seconds),
        "transaction": lambda step, deps: step.transaction("a", lambda _: pytest.fail("it ran"), timeout=seconds),
        "map": lambda step, deps: step.map("a", lambda _: pytest.fail("it ran"), [1], timeout=seconds),
    }
    assert "timeout" in refused(calls[place])


@pytest.mark.parametrize("what", NO_SECONDS)
def test_a_deadline_that_cannot_be_counted_is_refused(what: str) -> None:
    assert "deadline" in refused(lambda step, deps: pytest.fail("it ran"), deadline=NO_SECONDS[what])


@pytest.mark.parametrize("what", NO_MOMENTS)
def test_a_deadline_that_is_no_moment_is_refused(what: str) -> None:
    assert "deadline" in refused(lambda step, deps: pytest.fail("it ran"), deadline=NO_MOMENTS[what])


@pytest.mark.parametrize("moment", [datetime.max.replace(tzinfo=UTC), datetime.max.replace(tzinfo=EAST)])
def test_a_deadline_at_the_end_of_time_is_none(moment: datetime) -> None:
    with closing(memory()) as store:
        assert durable.run({}, lambda step, deps: step("a", lambda: 1), id="a", store=store, deadline=moment) == 1


def test_a_deadline_at_the_beginning_of_time_is_past() -> None:
    with closing(memory()) as store, pytest.raises(durable.DeadlineExceeded):
        first = datetime.min.replace(tzinfo=UTC)
        durable.run({}, lambda step, deps: step("a", lambda: 1), id="a", store=store, deadline=first)


@pytest.mark.parametrize("what", BEYOND)
def test_a_deadline_beyond_utc_is_refused(what: str) -> None:
    assert "deadline" in refused(lambda step, deps: pytest.fail("it ran"), deadline=BEYOND[what])


@pytest.mark.parametrize("what", NO_SECONDS)
@pytest.mark.parametrize("option", ["wait_timeout", "lease"])
def test_other_seconds_of_a_run_are_refused_by_name(option: str, what: str) -> None:
    assert option in refused(lambda step, deps: pytest.fail("it ran"), **{option: NO_SECONDS[what]})


@pytest.mark.parametrize("what", NO_SECONDS)
def test_an_age_that_cannot_be_counted_is_refused(database: Database, what: str) -> None:
    bad = NO_SECONDS[what]
    with pytest.raises(durable.InvalidArgument, match="older_than"):
        database.store().purge(older_than=bad)
    with closing(memory()) as store, pytest.raises(durable.InvalidArgument, match="older_than"):
        store.purge(older_than=bad)


def test_the_oldest_age_that_can_be_counted(database: Database) -> None:
    with closing(memory()) as short_lived:
        for store in (short_lived, database.store()):
            durable.run({}, lambda step, deps: 1, id="a", store=store)
            assert store.purge(older_than=MAX_SECONDS) == 0


def test_a_signal_is_waited_for_as_long_as_was_said() -> None:
    """Years: no shorter limit is set in silence."""
    rehearsal = Rehearsal(clock=JumpingClock(datetime(2026, 1, 1, tzinfo=UTC)))
    patience = 20 * 365 * 86_400.0

    def workflow(step: durable.Step, deps: Any) -> str:
        try:
            return str(step.wait_for("approved", timeout=patience))
        except durable.SignalTimedOut:
            return "nobody"

    assert durable.run({}, workflow, id="a", store=rehearsal) == "nobody"
    assert rehearsal.clock.elapsed() == pytest.approx(patience, rel=1e-6)


def test_a_back_off_is_as_long_as_was_said(database: Database) -> None:
    """Years; what tenacity's own powers of two come to is a hundred of them."""
    for seconds, expected in ((3 * 365 * 86_400.0, 3 * 365 * 86_400.0), (4.6e18, MAX_SECONDS)):
        rehearsal = Rehearsal(clock=JumpingClock(datetime(2026, 1, 1, tzinfo=UTC)))
        tries: list[int] = []

        def fails_once(tries: list[int] = tries) -> str:
            tries.append(1)
            if len(tries) == 1:
                raise OSError
            return "done"

        policy = tenacity.Retrying(wait=tenacity.wait_fixed(seconds))

        def workflow(step: durable.Step, deps: Any, fn: Any = fails_once, policy: Any = policy) -> Any:
            return step("fetch", fn, retry=policy)

        assert durable.run({}, workflow, id="a", store=rehearsal) == "done"
        assert rehearsal.clock.elapsed() == pytest.approx(expected, rel=1e-6)


# -- the clock of a rehearsal ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", [*BEYOND, *NO_MOMENTS])
def test_a_clock_that_starts_at_no_moment_is_refused(what: str) -> None:
    with pytest.raises(durable.InvalidArgument, match="start"):
        JumpingClock({**BEYOND, **NO_MOMENTS}[what])


@pytest.mark.parametrize("what", NO_SECONDS)
def test_a_clock_is_not_moved_by_what_cannot_be_counted(what: str) -> None:
    with pytest.raises(durable.InvalidArgument, match="the time that passes must be"):
        JumpingClock().advance(NO_SECONDS[what])


def test_at_the_end_of_time_the_clock_stands_still() -> None:
    clock = JumpingClock(datetime(9999, 12, 31, tzinfo=UTC))
    clock.advance(MAX_SECONDS / 2)
    assert clock.now() == datetime.max.replace(tzinfo=UTC)
    assert clock.elapsed() == MAX_SECONDS / 2


def test_a_back_off_into_the_end_of_time_ends() -> None:
    rehearsal = Rehearsal(clock=JumpingClock(datetime(9999, 12, 31, 23, tzinfo=UTC)))
    policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(86_400))

    def workflow(step: durable.Step, deps: Any) -> None:
        step("fetch", lambda: 1 / 0, retry=policy)

    with pytest.raises(ZeroDivisionError):
        durable.run({}, workflow, id="a", store=rehearsal)


# -- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", BEYOND)
def test_a_moment_beyond_utc_is_stored_as_it_is(database: Database, what: str) -> None:
    """As a value, an argument and an input; nothing computes with it."""
    moment = BEYOND[what]

    def workflow(step: durable.Step, deps: Any, given: datetime) -> list[Any]:
        return [step("result", lambda: moment), step("argument", lambda at: [at], moment), given]

    store = database.store()
    for _ in range(2):
        first, second, third = durable.run({}, workflow, id="a", store=store, input=moment)
        for got in (first, *second, third):
            assert got.replace(tzinfo=None) == moment.replace(tzinfo=None)
            assert got.utcoffset() == moment.utcoffset()
