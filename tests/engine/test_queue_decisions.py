"""What a queue's limits leave room for, and how many runs a worker asks for where each queue has a number of its own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

import durable
from durable._engine.queues import find_room, next_start, share
from durable._engine.workers import GATHER, Ask, Rest, WorkerState

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)


def later(seconds: float) -> datetime:
    """So long after noon."""
    return NOON + timedelta(seconds=seconds)


def test_concurrency_leaves_what_is_not_held() -> None:
    """And nothing where more is held than the limit says, since it was lowered."""
    queue = durable.Queue("mail", concurrency=3)
    assert [find_room(queue, 10, held, None, NOON) for held in (0, 2, 3, 7)] == [3, 1, 0, 0]
    assert find_room(durable.Queue("mail"), 10, 99, None, NOON) == 10


def test_no_window_has_more_than_the_rate_and_its_burst() -> None:
    """Whatever is asked when: in no stretch of `per` seconds more than limit + burst - 1 begin."""
    rate = durable.Rate(10, per=5.0, burst=3)
    queue, next_at, begun = durable.Queue("mail", rate=rate), None, list[float]()
    for tick in range(600):
        at = tick * 0.05 + (tick % 7) * 0.01
        if tick % 50 < 20:
            continue  # nothing is due for a second
        room = find_room(queue, 1 + tick % 4, 0, next_at, later(at))
        if room:
            next_at = next_start(rate, next_at, later(at), room)
            begun += [at] * room
    most = max(sum(first <= at < first + 5.0 for at in begun) for first in begun)
    assert most == 12
    assert len(begun) > 40


def test_a_partition_gives_one_unless_they_are_few() -> None:
    """The room, divided among those that there are."""
    assert [share(10, lanes) for lanes in (0, 1, 3, 10, 99)] == [10, 10, 4, 1, 1]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: durable.Queue("mail", concurrency=0), "concurrency must be a number of at least 1, not 0"),
        (lambda: durable.Queue("mail", partition_concurrency=True), "partition_concurrency must be a number"),
        (lambda: durable.Queue("mail", concurrency=10**12), "concurrency must be at most"),
        (lambda: durable.Queue(""), "a queue's name must not be empty"),
        (lambda: durable.Queue("mail", rate=cast(Any, 600)), "rate must be a durable.Rate"),
        (lambda: durable.Rate(0, per=60), "limit of a rate must be"),
        (lambda: durable.Rate(1, per=0), "per must be a positive number of seconds"),
        (lambda: durable.Rate(1, per=60, burst=0), "burst of a rate must be"),
    ],
)
def test_bad_limits_are_refused_by_name(made: object, said: str) -> None:
    """Before anything is stored."""
    with pytest.raises(durable.InvalidArgument, match=said):
        made()  # type: ignore[operator]


def test_each_queue_has_its_number() -> None:
    """A poll asks for queues that have room, and for no more than the least of them has."""
    state = WorkerState({"mail": 1, "orders": 3}, 20.0)
    assert state.decide(0.0) == Ask(1, True, True, frozenset({"mail", "orders"}))
    state.polled(0.0, Ask(1), 1, None, queues=["mail"])
    assert state.decide(0.0) == Ask(3, True, False, frozenset({"orders"}))
    state.polled(0.0, Ask(3), 3, None, queues=["orders"] * 3)
    assert isinstance(state.decide(0.0), Rest)
    state.ended(1.0, queue="mail")
    asked = state.decide(1.0 + GATHER)
    assert isinstance(asked, Ask)
    assert (asked.count, asked.queues) == (1, frozenset({"mail"}))


def test_the_end_of_a_run_may_make_room_under_a_limit() -> None:
    """A poll that got less than it asked for: the limit may have kept it back, and the next comes when a run has ended."""
    state = WorkerState(4, 20.0)
    state.polled(0.0, Ask(4, says_idle=True), 1, None, is_limited=True)
    state.polled(0.0, Ask(3, says_idle=True), 0, None, is_limited=True)
    assert isinstance(state.decide(0.5), Rest)
    state.ended(0.5)
    assert isinstance(state.decide(0.5 + GATHER), Ask)
