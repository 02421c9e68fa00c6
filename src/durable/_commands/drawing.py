"""A timeline as lines of text: a row a step. Pure: a timeline and a width in, lines out; colours are put on by `Row.style`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from durable._commands.output import MARKS, Output, cut, pad, printable, width_of
from durable.operate.standing import show_about, show_seconds
from durable.operate.timeline import StepRow, Timeline

_GLYPHS: Final = {"ran": "█", "failed": "▓", "waiting": "╌", "back-off": "·"}
_COLORS: Final = {"failed": "red", "waiting": "magenta", "back-off": "yellow"}
_GAP: Final = "░"
_TICK: Final = "│"
_NICE: Final = (
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
)
_DAY: Final = 86_400.0
_MANY: Final = 60  # rows, above which the dull ones are left out
_SLOWEST: Final = 20
_LAST: Final = 10
_LABEL: Final = 26  # columns, of a narrow terminal
_LEAST: Final = 12  # columns of the bars


class Legend(NamedTuple):
    """What the glyphs that were used mean."""

    glyphs: frozenset[str]

    def __str__(self) -> str:
        meanings = {
            "█": "ran",
            "▓": "failed",
            "╌": "waiting",
            "·": "back-off",
            "░": "nothing recorded: between two executions",
        }
        return "  ".join(f"{glyph} {said}" for glyph, said in meanings.items() if glyph in self.glyphs)


def draw_lines(timeline: Timeline, out: Output, *, width: int, all_rows: bool = False) -> Iterator[str]:
    """The ruler, a row a step, and what the glyphs mean; no line is wider than `width` columns."""
    rows, hidden = (list(timeline.rows), 0) if all_rows else choose_rows(timeline.rows)
    if not rows:
        return
    labels = [("  " if row.item_of else "") + printable(row.key) for row in rows]
    spans = [show_seconds(row.seconds) if row.bars else "" for row in rows]
    took = max(map(len, spans))
    label = min(max(_LABEL, width // 4), max(map(width_of, labels)) + 3)
    room = width - label - took - 2
    if room < _LEAST:
        label = max(10, label - (_LEAST - room))
        room = max(1, width - label - took - 2)
    scale = _Scale(timeline.seconds, room)
    yield (" " * label + scale.ruler()).rstrip()
    used: set[str] = set()
    for row, name, said in zip(rows, labels, spans, strict=True):
        cells = scale.cells(row, timeline)
        used |= {glyph for glyph, _ in cells}
        color = MARKS[row.state][2]
        quiet = row.state in ("completed", "set aside")
        head = out.style(out.mark(row.state), color, dim=quiet) + " " + pad(cut(name, label - 3), label - 2)
        yield f"{head}{_colored(cells, out)}  {said:>{took}}".rstrip()
    if hidden:
        yield f"  … {hidden} more steps (--all)"
    if legend := str(Legend(frozenset(used))):
        yield out.style(cut(f"  {legend}", width), dim=True)


def choose_rows(rows: Sequence[StepRow]) -> tuple[list[StepRow], int]:
    """What is shown of many: what failed or has not settled, the slowest twenty, the last ten; and how many are not."""
    if len(rows) <= _MANY:
        return list(rows), 0
    slowest = sorted(rows, key=lambda row: -row.seconds)[:_SLOWEST]
    wanted = {row.key for row in (*slowest, *rows[-_LAST:])}
    odd = [row.key for row in rows if row.state in ("failed", "waiting", "begun")]
    wanted |= set(odd[:_MANY])
    kept = [row for row in rows if row.key in wanted]
    return kept, len(rows) - len(kept)


class _Scale:
    """Seconds as columns."""

    def __init__(self, seconds: float, room: int) -> None:
        self._seconds = max(seconds, 0.001)
        self._room = room
        step = next((one for one in _NICE if self._seconds / one <= max(2, min(6, room // 10))), 0.0)
        if not step:
            step = 6 * 3600.0
            while self._seconds / step > max(2, min(6, room // 10)):
                step *= 2
        self._ticks = [number * step for number in range(int(self._seconds / step + 1e-9) + 1)]

    def ruler(self) -> str:
        """The ticks' labels, as far as there is room for each."""
        line, free = [" "] * (self._room + 10), 0
        for tick in self._ticks:
            text = "0 s" if tick == 0 else _label(tick)
            at = min(self._at(tick), self._room - len(text) + 4)
            if at >= free:
                line[at : at + len(text)] = text
                free = at + len(text) + 1
        return "".join(line).rstrip()

    def cells(self, row: StepRow, timeline: Timeline) -> list[tuple[str, str | None]]:
        """Each column's glyph and colour."""
        cells: list[tuple[str, str | None]] = [(" ", None)] * self._room
        for tick in self._ticks[1:]:
            if (at := self._at(tick)) < self._room - 1:
                cells[at] = (_TICK, "dim")
        for gap in timeline.gaps:
            self._fill(cells, gap.begin, gap.end, (_GAP, "dim"))
        for bar in row.bars:
            self._fill(cells, bar.begin, bar.end, (_GLYPHS[bar.kind], _COLORS.get(bar.kind)), least=1)
        return cells

    def _fill(
        self,
        cells: list[tuple[str, str | None]],
        begin: float,
        end: float,
        cell: tuple[str, str | None],
        least: int = 0,
    ) -> None:
        first = self._at(begin)
        last = max(first + least, min(self._room, round(min(1.0, end / self._seconds) * self._room)))
        cells[first:last] = [cell] * (last - first)

    def _at(self, seconds: float) -> int:
        return min(self._room - 1, max(0, int(seconds / self._seconds * self._room)))


def _label(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return show_seconds(seconds) if seconds >= 60 else f"{seconds:g} s"  # noqa: PLR2004 -- a minute


def _colored(cells: Sequence[tuple[str, str | None]], out: Output) -> str:
    """The columns, one escape for each stretch of a colour."""
    text, at = "", 0
    while at < len(cells):
        color, end = cells[at][1], at
        while end < len(cells) and cells[end][1] == color:
            end += 1
        stretch = "".join(glyph for glyph, _ in cells[at:end])
        text += out.style(stretch, dim=True) if color == "dim" else out.style(stretch, color)
        at = end
    return text


__all__ = ["Legend", "choose_rows", "draw_lines", "show_about"]
