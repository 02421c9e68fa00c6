"""Two contestants side by side: how many times the limit's pace the other one goes."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from lanes import Lane, Lap

_MICRO: Final = 1e6


@dataclass(frozen=True)
class Compared:
    """What came of it. Times are microseconds apiece, `ratio` is the pace over the limit's: more than one is faster.

    `low` and `high`: between them lies the middle half of the pairs. `caller`, `writer`, `server`: CPU microseconds apiece, of
    the process without the library's own threads, of those, and of all processes of the server.
    """

    each: float
    ratio: float
    low: float
    high: float
    pairs: int
    caller: float
    writer: float
    server: float
    limit_each: float
    limit_server: float
    laps: list[Lap]
    ratios: list[float]


def compare(limit: Lane, lane: Lane, sizes: tuple[int, int], pairs: int, warm: int = 2) -> Compared:
    """Let them take turns of these sizes. Each turn is compared with the limit's turns before and after it."""
    for _ in range(warm):
        limit.turn(sizes[0])
        lane.turn(sizes[1])
    limits, laps = [limit.turn(sizes[0])], list[Lap]()
    for _ in range(pairs):
        laps.append(lane.turn(sizes[1]))
        limits.append(limit.turn(sizes[0]))
    ratios = [
        (before.each + after.each) / 2 / lap.each for lap, (before, after) in zip(laps, pairwise(limits), strict=True)
    ]
    low, middle, high = quartiles(ratios)
    return Compared(
        each=_MICRO * statistics.median(lap.each for lap in laps),
        ratio=middle,
        low=low,
        high=high,
        pairs=pairs,
        caller=_mean([lap.caller for lap in laps], laps),
        writer=_mean([lap.writer for lap in laps], laps),
        server=_mean([lap.server for lap in laps], laps),
        limit_each=_MICRO * statistics.median(lap.each for lap in limits),
        limit_server=_mean([lap.server for lap in limits], limits),
        laps=laps,
        ratios=ratios,
    )


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper one."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def _mean(seconds: list[float], laps: list[Lap]) -> float:
    return _MICRO * sum(seconds) / sum(lap.size for lap in laps)
