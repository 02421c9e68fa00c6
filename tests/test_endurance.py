"""A moment of the hour that `make nightly` watches, and what that hour goes by: see `chaos.hours`."""

from __future__ import annotations

import random

import pytest

from chaos import gauges
from chaos.flatness import MEMORY, ROOM, course
from chaos.hours import CONNECTIONS, FREE, HELD, Tenant, lived
from chaos.leaks import LEAKS

_SECONDS = 3.0
_TIMES = [10.0 * n for n in range(360)]
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
