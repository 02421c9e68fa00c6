"""Schedules, decided without a clock: which moments begin a run, which is next; and the tables of what clocks that are moved do."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import durable
from durable._engine.schedules import (
    LAST,
    LATE,
    MAX_TICKS,
    DueSchedule,
    Question,
    Scheduled,
    decide_ticks,
    find_multiples,
    tick_id,
)
from durable._engine.starts import Route
from durable._runtime.schedules import find_ticks
from durable._runtime.timetables import find_moments, moments_after
from durable.errors import InvalidArgument

NOW = datetime(2026, 12, 1, 14, 30, tzinfo=UTC)
HOURLY = Scheduled(name="h", cron="0 * * * *", route=Route("default", "report", 1))
PAGE = Path(__file__).parents[2] / "docs" / "schedules.md"


def due(scheduled: Scheduled, due_at: datetime | None, now: datetime = NOW, *, is_open: bool = False) -> DueSchedule:
    return DueSchedule(scheduled, 1, due_at, now, is_open)


def hour(n: int) -> datetime:
    return NOW.replace(hour=n, minute=0)


@pytest.mark.parametrize(
    ("missed", "begun"), [("latest", [14]), ("skip", []), ("all", [12, 13, 14])], ids=["latest", "skip", "all"]
)
@pytest.mark.parametrize("kind", [{"cron": "0 * * * *"}, {"cron": None, "every": 3600.0}], ids=["cron", "every"])
def test_152_three_hours_down(missed: str, begun: list[int], kind: dict[str, Any]) -> None:
    """FAULTS 152: `latest` begins one run, `skip` none, `all` each; the next moment is that after now, whatever was missed."""
    ticks = find_ticks(due(replace(HOURLY, missed=missed, **kind), hour(12)))
    assert [at.hour for at in ticks.begun] == begun
    assert ticks.due_at == hour(15)


def test_152_all_that_was_missed_is_made_up_for_a_hundred_at_a_time() -> None:
    """FAULTS 152: a schedule of a second, three hours down."""
    scheduled = Scheduled(name="s", every=1.0, missed="all", route=Route("default", "report", 1))
    since, begun = NOW - timedelta(hours=3), list[datetime]()
    next_at = since
    while next_at <= NOW:
        ticks = find_ticks(due(scheduled, next_at))
        assert len(ticks.begun) <= MAX_TICKS
        begun += ticks.begun
        next_at = ticks.due_at
    assert begun == [since + timedelta(seconds=n) for n in range(3 * 3600 + 1)]


def test_skip_begins_what_is_late_by_less_than_a_minute() -> None:
    scheduled = replace(HOURLY, missed="skip")
    for late, count in ((0.0, 1), (LATE, 1), (LATE + 0.001, 0)):
        ticks = find_ticks(due(scheduled, hour(14), hour(14) + timedelta(seconds=late)))
        assert (len(ticks.begun), ticks.due_at) == (count, hour(15))


def test_153_what_is_new_or_changed_begins_nothing_of_the_past() -> None:
    """FAULTS 153: there is no moment to make up for, only the next one."""
    for missed in ("latest", "all", "skip"):
        ticks = find_ticks(due(replace(HOURLY, missed=missed), None))
        assert (list(ticks.begun), ticks.due_at) == ([], hour(15))


@pytest.mark.parametrize(
    ("overlap", "missed", "is_open", "begun", "next_hour"),
    [
        ("allow", "all", True, [12, 13, 14], 15),
        ("skip", "all", False, [12], 15),
        ("skip", "all", True, [], 15),
        ("skip", "latest", True, [], 15),
        ("queue", "all", False, [12], 13),  # the rest waits for that one
        ("queue", "latest", False, [14], 15),
    ],
)
def test_what_meets_a_run_that_has_not_ended(
    overlap: str, missed: str, is_open: bool, begun: list[int], next_hour: int
) -> None:
    ticks = find_ticks(due(replace(HOURLY, overlap=overlap, missed=missed), hour(12), is_open=is_open))
    assert ([at.hour for at in ticks.begun], ticks.due_at) == (begun, hour(next_hour))


def test_a_timetable_without_a_moment_to_come_rests() -> None:
    assert decide_ticks(due(HOURLY, None), find_moments(HOURLY, Question(None, LAST, None))).due_at == LAST


@given(
    st.integers(1_000_000, 10**13),
    st.datetimes(datetime(1960, 1, 1), datetime(2100, 1, 1)),
    st.integers(0, 10**12),
)
@settings(max_examples=100, deadline=None)
def test_multiples_are_the_same_whoever_looks_when(step: int, at: datetime, span: int) -> None:
    """`every` has one moment for each multiple, without a hole, from wherever it is asked."""
    every, until = step / 1_000_000, at.replace(tzinfo=UTC)
    first = find_multiples(every, Question(None, until, None)).following
    assert first is not None
    assert until < first <= until + timedelta(microseconds=step + 1)
    later = first + timedelta(microseconds=span)
    moments = find_multiples(every, Question(first, later, 5))
    assert moments.found[0] == first
    (last,) = find_multiples(every, Question(first, later, None)).found
    assert first <= last <= later
    assert find_multiples(every, Question(None, last - timedelta(microseconds=1), None)).following == last


CRONS = ("30 2 * * *", "*/30 * * * *", "15,45 2,3 * * *", "0 * * * *", "0 12 * * 1", "30 1 * * *", "45 1 * * *")


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Antarctica/Troll", "Australia/Lord_Howe", "UTC"])
@pytest.mark.parametrize("cron", CRONS)
def test_151_moments_are_the_same_from_wherever_they_are_asked(cron: str, zone: str) -> None:
    """FAULTS 151: none comes twice and none is lost, where a poll looks between any two of them, near each change of the clocks."""
    info = ZoneInfo(zone)
    for day in (datetime(2026, 3, 27), datetime(2026, 4, 3), datetime(2026, 10, 2), datetime(2026, 10, 23)):
        begin = day.replace(tzinfo=UTC)
        whole = [at for at in islice(moments_after(cron, info, begin), 300) if at < begin + timedelta(days=4)]
        assert whole == sorted(set(whole))
        for minutes in range(0, 4 * 24 * 60, 55):
            at = begin + timedelta(minutes=minutes, seconds=7)
            expected = next((one for one in whole if one > at), None)
            if expected is not None:
                assert next(moments_after(cron, info, at)) == expected
        scheduled = Scheduled(name="s", cron=cron, zone=zone, route=Route("q", "w", 1))
        if whole:
            until = begin + timedelta(days=4, microseconds=-1)
            assert list(find_moments(scheduled, Question(whole[0], until, None)).found) == whole[-1:]
            assert list(find_moments(scheduled, Question(whole[0], until, 400)).found) == whole


def test_151_the_table_of_the_page() -> None:
    """FAULTS 151: what docs/schedules.md says of nights in which clocks are moved is what happens."""
    rows = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \| (\S+) \| ([^|]+) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(rows) >= 8
    for cron, zone, day, told in rows:
        info = ZoneInfo(zone)
        begin = datetime.fromisoformat(day).replace(tzinfo=info)
        end = (datetime.fromisoformat(day) + timedelta(days=1)).replace(tzinfo=info).astimezone(UTC)
        since = begin.astimezone(UTC) - timedelta(seconds=1)
        moments = [at.astimezone(info) for at in islice(moments_after(cron, info, since), 60) if at < end]
        shown = [f"{at:%H:%M}{at.isoformat()[-6:]}" for at in moments if 0 <= at.hour <= 3]
        assert told.strip().replace("`", "").split(", ") == shown, (cron, zone, day)


def test_151_a_zone_that_is_not_known_here_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 151: at the schedule where it is written wrongly, and at the tick where tzdata has lost it since."""
    with pytest.raises(InvalidArgument, match=r"'Europe/Berln' is not known here.*pip install tzdata"):
        durable.Schedule("s", "0 * * * *", "report", zone="Europe/Berln")
    for zone in ("", "../etc/passwd", "Europe", "a\0b"):
        with pytest.raises(InvalidArgument):
            durable.Schedule("s", "0 * * * *", "report", zone=zone)
    gone = replace(HOURLY, zone="Europe/Gone")
    with pytest.raises(InvalidArgument, match="'Europe/Gone'"):
        find_ticks(due(gone, hour(12)))


@pytest.mark.parametrize(
    "cron",
    ["", "x", "* * * *", "* * * * * *", "60 * * * *", "0 0 30 2 *", "0 0 * * 8", "@never", "\0", "0 0 31 2,4,6,9,11 *"],
)
def test_what_is_no_timetable_is_refused(cron: str) -> None:
    with pytest.raises(InvalidArgument, match="cron"):
        durable.Schedule("s", cron, "report")


@pytest.mark.parametrize("every", [0, -1, 0.5, float("nan"), float("inf"), "10", None, True])
def test_what_is_no_interval_is_refused(every: Any) -> None:
    with pytest.raises(InvalidArgument, match="every"):
        durable.Schedule("s", workflow="report", every=every)


@pytest.mark.parametrize(
    "options",
    [
        {"missed": "never"},
        {"overlap": "x"},
        {"missed": ["all"]},
        {"zone": 3},
        {"workflow": None},
        {"workflow": 3},
        {"name": ""},
        {"name": "x" * 401},
        {"every": 10},
        {"cron": None, "every": 10, "zone": "Europe/Berlin"},
    ],
    ids=str,
)
def test_nonsense_is_refused_with_an_error_of_ours(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        durable.Schedule(**{"name": "s", "cron": "0 * * * *", "workflow": "report", **options})


def test_an_input_that_the_workflow_does_not_take_is_refused() -> None:
    @durable.workflow
    def bare(step: durable.Step, deps: Any) -> None:
        """Takes no input."""

    assert durable.Schedule("s", every=10, workflow=bare)
    with pytest.raises(InvalidArgument, match="since an input was given"):
        durable.Schedule("s", every=10, workflow=bare, input=1)


def test_the_id_of_a_tick_tells_equal_hours_apart() -> None:
    zone = ZoneInfo("Europe/Berlin")
    first, second = datetime(2026, 10, 25, 0, 30, tzinfo=UTC), datetime(2026, 10, 25, 1, 30, tzinfo=UTC)
    ids = [tick_id("n", at.astimezone(zone)) for at in (first, second)]
    assert ids == ["n/2026-10-25T02:30:00+02:00", "n/2026-10-25T02:30:00+01:00"]
