"""The limits of a queue, and what they leave room for."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple, get_type_hints

from msgspec import Struct

from durable._common.checks import check_count, check_name
from durable._common.durations import Duration, check_duration
from durable.errors import InvalidArgument

MAX_LIMIT: Final = 1_000_000_000  # of a count in a queue's row, which has 31 bits


class Rate(Struct, frozen=True):
    """At most `limit` runs begin in `per` seconds, and up to `burst` of them at once.

    They begin `per / limit` seconds apart; what was not used is made up for, as far as `burst`. So in no stretch of `per`
    seconds do more than `limit + burst - 1` begin, by the server's clock.
    """

    #: How many may begin in `per` seconds.
    limit: int
    #: Seconds, or a `timedelta`.
    per: Duration
    #: How many may begin at once.
    burst: int = 1

    def __post_init__(self) -> None:
        for what in ("limit", "burst"):
            _check_limit(f"{what} of a rate", getattr(self, what))
        check_duration("per", self.per)

    @property
    def seconds(self) -> float:
        """`per`, as seconds."""
        return check_duration("per", self.per)

    @property
    def interval(self) -> float:
        """Seconds from one beginning to the next."""
        return self.seconds / self.limit


class Queue(Struct, frozen=True):
    """A queue and its limits, on which all workers of a store agree: `Worker(store, deps, [...], queues=[queue])` writes them.

    - `concurrency`: so many of its runs are executed at once, by all workers together.
    - `partition_concurrency`: so many of one partition (`durable.start(..., partition=tenant)`) at once.
    - `rate`: how often one begins: `durable.Rate(600, per=60, burst=20)`.

    Without any it is limited by its workers alone. A run that waits (for a signal, a sleep, a retry) takes up no room. The
    worker that has started last has the say. Raises `InvalidArgument`.
    """

    #: The queue's name.
    name: str
    concurrency: int | None = None
    partition_concurrency: int | None = None
    rate: Rate | None = None

    def __post_init__(self) -> None:
        check_name("a queue's name", self.name)
        for what in ("concurrency", "partition_concurrency"):
            if (given := getattr(self, what)) is not None:
                _check_limit(what, given)
        rate: Any = self.rate
        if rate is not None and not isinstance(rate, Rate):
            raise InvalidArgument(f"rate must be a durable.Rate, like Rate(600, per=60), not {type(rate).__name__}")

    @property
    def has_limits(self) -> bool:
        """Whether there is one."""
        return (self.concurrency, self.partition_concurrency, self.rate) != (None, None, None)


class QueueLine(NamedTuple):
    """A queue as it stands: of the store's list of those that have limits, are paused, or have runs."""

    #: Its name and its limits.
    queue: Queue
    #: Whether none of its runs is begun.
    paused: bool
    #: How many of its runs are being executed.
    held: int
    #: How many are due, and wait for a worker.
    due: int
    #: How many partitions have something due.
    partitions: int


# A step may return one, so its record names a module that stays. Their annotations were read as texts in the one they are in.
Rate.__annotations__, Queue.__annotations__ = get_type_hints(Rate), get_type_hints(Queue)
Rate.__module__ = Queue.__module__ = "durable"


def _check_limit(what: str, given: object) -> None:
    if check_count(what, given) > MAX_LIMIT:
        raise InvalidArgument(f"{what} must be at most {MAX_LIMIT}")


def find_room(queue: Queue, count: int, held: int, next_at: datetime | None, now: datetime) -> int:
    """How many of up to `count` runs the queue lets begin now, of which `held` are being executed.

    `next_at` is what `next_start` said last.
    """
    room = count if queue.concurrency is None else min(count, queue.concurrency - held)
    if queue.rate is not None:
        allowed = _allowed_since(queue.rate, next_at, now)
        room = min(room, 1 + int((now - allowed).total_seconds() / queue.rate.interval) if allowed <= now else 0)
    return max(0, room)


def next_start(rate: Rate, next_at: datetime | None, now: datetime, begun: int) -> datetime:
    """When the next may begin, when so many have begun now."""
    return _allowed_since(rate, next_at, now) + timedelta(seconds=begun * rate.interval)


def _allowed_since(rate: Rate, next_at: datetime | None, now: datetime) -> datetime:
    """Since when one could have begun; what was not used is forgotten, but for a burst."""
    earliest = now - timedelta(seconds=(rate.burst - 1) * rate.interval)
    return earliest if next_at is None else max(next_at, earliest)


def share(room: int, partitions: int) -> int:
    """How many of one partition are taken at the most, where so many have their turn: one, unless these are few."""
    return -(-room // max(1, partitions))
