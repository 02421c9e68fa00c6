"""A timeline as marks on a scale from 0 to 100, and a long one folded by name. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from durable.operate.standing import show_seconds
from durable.operate.timeline import Bar, StepRow, Timeline

LONG: Final = 200  # rows: more are folded by name, or shown page by page
_NARROWEST: Final = 0.35  # percent
_MOST: Final = 100  # marks in a row
_TICKS: Final = 5
_STEPS: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400)
# Of marks that fall together, which is seen.
_RANK: Final = {"failed": 3, "ran": 2, "waiting": 1, "back-off": 0}


class Mark(NamedTuple):
    """A stretch, in percent."""

    x: float
    w: float
    kind: str


class Column(NamedTuple):
    """An hour, or a minute: where it stands, in percent, and how high it is, in pixels."""

    x: float
    height: float
    #: As much of it as has failed.
    failed_height: float
    #: How many hours ago, or minutes.
    ago: int
    ended: int
    failed: int


class Tick(NamedTuple):
    """A line of the scale."""

    x: float
    label: str


class Row(NamedTuple):
    """A step, or all steps of a name."""

    key: str
    state: str
    marks: tuple[Mark, ...]
    took: str
    is_item: bool = False
    #: Of a folded row, how many steps it stands for; else 0.
    steps: int = 0
    #: How many of them have failed.
    failed: int = 0


class Chart(NamedTuple):
    """A timeline, drawn."""

    rows: tuple[Row, ...]
    ticks: tuple[Tick, ...]
    gaps: tuple[Mark, ...]
    #: The kinds of marks that occur.
    kinds: tuple[str, ...]
    is_folded: bool = False
    #: How many rows there are in all.
    total: int = 0
    #: The first of those that are shown.
    first: int = 0
    failed: int = 0


def chart(timeline: Timeline, *, only: str = "", name: str = "", first: int = 0) -> Chart:
    """The marks of a timeline: of all its steps, of those that have failed (`only="failed"`), or of one name's.

    More than 200 are folded by name; those of one name, and the failed ones, come 200 at a time, from `first`.
    """
    whole = max(timeline.seconds, 0.001)
    wanted = [row for row in timeline.rows if (not name or row.name == name) and (only != "failed" or _has_failed(row))]
    is_folded = len(wanted) > LONG and not name and only != "failed"
    first = max(0, first) if first < len(wanted) else 0
    rows = tuple(_fold(timeline.rows, whole)) if is_folded else ()
    is_folded = is_folded and len(rows) < len(wanted)
    if not is_folded:
        rows = tuple(_row(row, whole) for row in wanted[first : first + LONG])
    gaps = tuple(_mark(Bar(gap.begin, gap.end, "waiting"), whole) for gap in timeline.gaps)
    seen = {mark.kind for row in rows for mark in row.marks}
    return Chart(
        rows=rows,
        ticks=tuple(_ticks(whole)),
        gaps=gaps,
        kinds=tuple(kind for kind in ("ran", "failed", "waiting", "back-off") if kind in seen),
        is_folded=is_folded,
        total=len(rows) if is_folded else len(wanted),
        first=0 if is_folded else first,
        failed=sum(map(_has_failed, timeline.rows)),
    )


def columns(counts: Sequence[int], failed: Sequence[int], *, height: float = 56.0) -> list[Column]:
    """Columns of a chart by the hour, or by the minute, the last one at its right end."""
    most = max(counts, default=0) or 1

    def high(count: int) -> float:
        return round(max(2.0, height * count / most), 2) if count else 0.0

    return [
        Column(
            round(100 * number / len(counts), 3),
            high(count),
            min(high(bad), high(count)),
            len(counts) - 1 - number,
            count,
            bad,
        )
        for number, (count, bad) in enumerate(zip(counts, failed, strict=True))
    ]


def _has_failed(row: StepRow) -> bool:
    return row.error is not None or any(bar.kind == "failed" for bar in row.bars)


def _row(row: StepRow, whole: float) -> Row:
    return Row(row.key, row.state, _marks(row.bars, whole), show_seconds(row.seconds), row.item_of is not None)


def _fold(rows: Iterable[StepRow], whole: float) -> Iterable[Row]:
    named: dict[str, list[StepRow]] = {}
    for row in rows:
        named.setdefault(row.name, []).append(row)
    for name, group in named.items():
        if len(group) == 1:
            yield _row(group[0], whole)
            continue
        states = [row.state for row in group]
        state = next((one for one in ("failed", "waiting", "begun") if one in states), states[-1])
        bars = [bar for row in group for bar in row.bars]
        took = max((bar.end for bar in bars), default=0.0) - min((bar.begin for bar in bars), default=0.0)
        failed = sum(map(_has_failed, group))
        yield Row(name, state, _marks(bars, whole), show_seconds(took), steps=len(group), failed=failed)


def _marks(bars: Sequence[Bar], whole: float) -> tuple[Mark, ...]:
    if len(bars) <= _MOST:
        return tuple(_mark(bar, whole) for bar in bars)
    kinds: dict[int, str] = {}  # of each stretch of the scale, the kind that is seen
    for bar in bars:
        for place in range(int(_MOST * bar.begin / whole), min(_MOST - 1, int(_MOST * bar.end / whole)) + 1):
            if place not in kinds or _RANK[bar.kind] > _RANK[kinds[place]]:
                kinds[place] = bar.kind
    marks: list[Mark] = []
    for place in sorted(kinds):
        if marks and marks[-1].kind == kinds[place] and marks[-1].x + marks[-1].w == place:
            marks[-1] = marks[-1]._replace(w=marks[-1].w + 1)
        else:
            marks.append(Mark(place, 1, kinds[place]))
    return tuple(marks)


def _mark(bar: Bar, whole: float) -> Mark:
    begin, end = (min(100.0, max(0.0, 100 * at / whole)) for at in (bar.begin, bar.end))
    width = max(_NARROWEST, end - begin)
    return Mark(round(min(begin, 100 - width), 2), round(width, 2), bar.kind)


def _ticks(whole: float) -> Iterable[Tick]:
    size = float(next((one for one in _STEPS if whole / one <= _TICKS), 0))
    if whole < _TICKS:  # below its first step: 1, 2 or 5 of some power of ten
        power = 10.0 ** math.floor(math.log10(whole / _TICKS))
        size = next(one * power for one in (1, 2, 5, 10) if whole / (one * power) <= _TICKS)
    elif not size:
        size = 86_400 * math.ceil(whole / 86_400 / _TICKS)
    for number in range(int(whole / size) + 1):
        yield Tick(round(100 * number * size / whole, 2), "0" if number == 0 else _label(number * size))


def _label(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.4g} ms"
    if seconds < 120:  # noqa: PLR2004 -- minutes are the better unit from here
        return f"{seconds:g} s"
    return show_seconds(seconds)
