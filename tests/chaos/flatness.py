"""What counts as flat."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, TypeVar

T = TypeVar("T")

SHARE: Final = 0.05  # by which something may grow, for all that an hour can tell
ROOM: Final = 128 * 1024  # bytes; small tables grow by the page
VALUES: Final = 640 * 1024  # bytes; a table of large values, when it is small, by the value: as many as two
MEMORY: Final = 1024 * 1024  # bytes of a process; the allocator takes them by the arena
_BLOCKS: Final = 10
_STUDENT: Final = 2.306  # 97.5 % of Student's t with two degrees of freedom less than there are blocks
HOUR: Final = 3600.0  # seconds
_VACUUM: Final = 75.0  # seconds until it has come: every minute, as servers are set, and what it takes


@dataclass(frozen=True)
class Course:
    """How something went through an hour.

    `second` and `last` are its levels in the second and the last quarter: the highest value of what does not shrink by itself
    (bytes), the median of what comes and goes (numbers of things), since a leak lifts that too and a rush does not.
    `slope` is that of a straight line through the second half, an hour, and `error` half of its 95 % interval: through the
    means of ten equal parts, since neighbouring values are not independent. For a file it is that of the highest value since
    the second quarter began: one that vacuum shortens, and that is as long again soon, has not grown. `room` is by how much
    it may grow `within` so many seconds.

    What was watched for less than an hour has its room for that time. The highest of what only comes and goes rises with the
    logarithm of time: from the middle to the end as much in ten minutes as in an hour, a page or two. A line through it says
    so of ten minutes, and six times as much of an hour, which nobody has seen. And of what is uncertain by more than its room
    in an hour, as all noise is in ten minutes, one in forty would be taken for growth: that is what 95 % means.
    """

    second: float
    last: float
    slope: float
    error: float
    room: float
    within: float = HOUR

    @property
    def flat(self) -> bool:
        """It has not risen by more than its room from one quarter to the other, nor been shown to do so in the time for it."""
        shown = (self.slope - self.error) * self.within / HOUR
        return self.last - self.second <= self.room and shown <= self.room

    def goes_on(self, end: float, most: float, seconds: float) -> bool:
        """Whether a file, whose course so many seconds beside an open transaction was, grows when that has ended: from `end` to
        `most`. Until vacuum comes there is no room to use again, and it grows as before: an hour's room is enough for that.
        """
        before = (self.last - self.second) / (seconds / 2)
        return most - end > max(self.room, before * _VACUUM if seconds < HOUR else 0.0)


def course(
    times: Sequence[float], values: Sequence[float], *, room: float = 0.0, file: bool = False, seconds: float = HOUR
) -> Course:
    """Of values at these times, in seconds, of so many. `room` for what is in bytes; 0 for numbers of things, which may grow
    by a half or by `SHARE`: a leak of one would show."""
    level = max if room else statistics.median
    second, last = (float(level(quarter(values, number))) for number in (1, 3))
    if file:
        first = len(quarter(values, 0))
        values = [*values[:first], *accumulate(values[first:], max)]
    half = len(values) // 2
    slope, error = line(times[half:], values[half:])
    room = max(SHARE * second, room or 0.5)
    return Course(second, last, slope * HOUR, error * HOUR, room, min(HOUR, seconds))


def quarter(values: Sequence[T], number: int) -> Sequence[T]:
    """That of the four, counted from 0."""
    return values[number * len(values) // 4 : (number + 1) * len(values) // 4]


def line(times: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """The slope of a straight line through the means of ten equal parts, and half of its 95 % interval."""
    parts = [slice(n * len(times) // _BLOCKS, (n + 1) * len(times) // _BLOCKS) for n in range(_BLOCKS)]
    x, y = ([statistics.fmean(given[part]) for part in parts] for given in (times, values))
    slope, intercept = statistics.linear_regression(x, y)
    rest = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True)) / (_BLOCKS - 2)
    middle = statistics.fmean(x)
    return slope, _STUDENT * (rest / sum((a - middle) ** 2 for a in x)) ** 0.5
