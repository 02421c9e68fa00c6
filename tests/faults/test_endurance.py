"""A moment of the hour that `make nightly` watches, and what that hour goes by: see `chaos.hours`."""

from __future__ import annotations

import random

import pytest

from chaos import gauges
from chaos.flatness import HOUR, MEMORY, ROOM, course
from chaos.hours import CONNECTIONS, FREE, HELD, Tenant, lived
from chaos.leaks import LEAKS

_SECONDS = 3.0
_TIMES = [10.0 * n for n in range(360)]
_PAGE = 8192.0
_SHORT = 600.0
_CHANCE = random.Random(57)
_NOISE = [_CHANCE.gauss(0, 1) for _ in _TIMES]


@pytest.mark.long(8)
def test_a_moment_of_the_hour(server_url: str) -> None:
    """FAULTS 57, 91 in small: everything happens in it, both ways, and nothing is left. How it grows, an hour tells."""
    hours = lived(server_url, _SECONDS)

    assert [hour.name for hour in hours] == [FREE, HELD]
    for hour in hours:
        assert hour.violations == []
        assert hour.courses["connections"].second == CONNECTIONS, "not all were opened before it began"
        happened = (
            "completed",
            "failed",
            "failed, run again",
            "cancelled",
            "told by a signal",
            "leases renewed",
            "purged",
        )
        assert [what for what in happened if not hour.counts.get(what)] == []
        assert {*gauges.PROCESS, "table durable_steps", "table durable_steps, large values"} < hour.courses.keys()
        assert hour.afterwards.keys() == hour.courses.keys() - {*gauges.PROCESS}


@pytest.mark.long(5)
@pytest.mark.parametrize("leak", ["a connection a run", "no purge"])
def test_leaks_that_a_moment_shows(server_url: str, leak: str) -> None:
    """By a law that holds at any length. The others are found by how they grow, which takes minutes."""
    (hour,) = lived(server_url, _SECONDS, [Tenant(leak, leak=leak)])
    assert hour.violations
    assert all(LEAKS[leak]("").shows in violation for violation in hour.violations)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([4.0] * 360, id="always the same"),
        pytest.param([40 + noise for noise in _NOISE], id="noise"),
        pytest.param([40 + 300 * (n % 100 == 99) for n in range(360)], id="a rush now and then"),
        pytest.param([10 + min(n, 80) for n in range(360)], id="a beginning"),
    ],
)
def test_flat(values: list[float]) -> None:
    assert course(_TIMES, values).flat


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([4.0 + (n > 200) for n in range(360)], id="one connection more"),
        pytest.param([40 + noise + n / 50 for n, noise in enumerate(_NOISE)], id="seven tasks an hour"),
        pytest.param([40.0 + max(0, n - 300) for n in range(360)], id="the end of it"),
    ],
)
def test_not_flat(values: list[float]) -> None:
    assert not course(_TIMES, values).flat


def test_bytes_go_by_their_highest_value() -> None:
    """What was taken is not given back: a table that has grown for a moment has grown."""
    rush = [100 * ROOM * (1 + (n in (300, 301))) for n in range(360)]
    assert not course(_TIMES, rush, room=ROOM, file=True).flat
    assert course(_TIMES, [float(60 * MEMORY + n * MEMORY // 720) for n in range(360)], room=MEMORY).flat


def test_what_is_given_back_and_taken_again_has_not_grown() -> None:
    """As vacuum does, which shortens a file whose end is empty: the first hour that was watched had one."""
    cut = [ROOM * (40.0 - 8 * (n >= 180) + min(6.0, (n - 180) / 20) * (n >= 180)) for n in range(360)]
    assert course(_TIMES, cut, room=ROOM, file=True).flat
    assert not course(_TIMES, [value + ROOM * n / 40 for n, value in enumerate(cut)], room=ROOM, file=True).flat


@pytest.mark.parametrize(
    ("seconds", "index"),
    [
        pytest.param(_SHORT, [8 + (n >= 38) + (n >= 47) for n in range(60)], id="two pages in ten minutes"),
        pytest.param(_SHORT, [40 + (n >= 55) * 10 for n in range(60)], id="ten pages at once"),
        pytest.param(HOUR, [40 + n // 30 for n in range(360)], id="a page every five minutes"),
    ],
)
def test_an_index_that_has_not_grown(seconds: float, index: list[int]) -> None:
    """The first is what ten minutes on a quiet machine had of `durable_locks_pkey`, which an hour has flat."""
    pages = [_PAGE * size for size in index]
    assert course(_TIMES[: len(pages)], pages, room=ROOM, file=True, seconds=seconds).flat


@pytest.mark.parametrize(
    ("seconds", "index"),
    [
        pytest.param(_SHORT, [8 + n // 2 for n in range(60)], id="a page every 20 seconds, in ten minutes"),
        pytest.param(HOUR, [8 + n // 20 for n in range(360)], id="a page every 200 seconds, in an hour"),
        pytest.param(_SHORT, [8 + (n >= 50) * 17 for n in range(60)], id="17 pages at once"),
    ],
)
def test_an_index_that_has_grown(seconds: float, index: list[int]) -> None:
    pages = [_PAGE * size for size in index]
    assert not course(_TIMES[: len(pages)], pages, room=ROOM, file=True, seconds=seconds).flat


@pytest.mark.parametrize(
    "room", [pytest.param(ROOM, id="the highest, of a file"), pytest.param(0.0, id="numbers of things")]
)
def test_noise_does_not_grow(room: float) -> None:
    """Ten minutes of it rise by as much as an hour of it, which six times as much would be taken for growth."""
    chance, flat = random.Random(61), {_SHORT: 0, HOUR: 0}
    unit, middle, spread = (_PAGE, 30, 4) if room else (1.0, 60, 2)
    for seconds in flat:
        times = _TIMES[: round(seconds / 10)]
        for _ in range(100):
            values = [unit * max(1, round(chance.gauss(middle, spread))) for _ in times]
            flat[seconds] += course(times, values, room=room, file=bool(room), seconds=seconds).flat
    assert min(flat.values()) >= 95


@pytest.mark.parametrize("often", [pytest.param(10, id="every hundred seconds"), pytest.param(1, id="every ten runs")])
def test_a_leak_of_tasks_shows_in_ten_minutes(often: int) -> None:
    tasks = [40 + noise + n / often for n, noise in enumerate(_NOISE[:60])]
    assert not course(_TIMES[:60], tasks, seconds=_SHORT).flat


@pytest.mark.parametrize(
    ("seconds", "most", "goes_on"),
    [
        pytest.param(_SHORT, 38_797_312, False, id="for a quarter of a minute, until vacuum came"),
        pytest.param(_SHORT, 37_847_040 + 60 * 63_000, False, id="until it came after a minute"),
        pytest.param(_SHORT, 37_847_040 + 90 * 63_000, True, id="as if it had not come"),
        pytest.param(HOUR, 37_847_040 + 60 * 63_000, True, id="an hour has its room and no more"),
    ],
)
def test_what_grows_when_the_transaction_has_ended(seconds: float, most: float, goes_on: bool) -> None:
    """The first is what ten minutes on a quiet machine had of large values, 63 KB more a second."""
    large = [63_000.0 * 10 * n for n in range(1, 61)]
    through = course(_TIMES[:60], large, room=ROOM, file=True, seconds=seconds)
    assert through.goes_on(37_847_040, most, seconds) == goes_on


def test_a_slope_is_told_with_its_uncertainty() -> None:
    """19 of 20 intervals have the slope in them, for noise that remembers its neighbour too (fewer then, not few)."""
    chance, within = random.Random(9), 0
    for _ in range(200):
        values, noise = list[float](), 0.0
        for time in _TIMES:
            noise = 0.7 * noise + chance.gauss(0, 1)
            values.append(time / 100 + noise)
        through = course(_TIMES, values)
        within += abs(through.slope - 36) <= through.error
    assert 180 <= within <= 198
