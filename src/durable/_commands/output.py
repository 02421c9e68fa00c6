"""What is written: tables for people, tabs for programs, JSON for both; colours only where they help."""

from __future__ import annotations

import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import click

from durable._commands.shared import Given

# Of each state its mark, the same in ASCII, and its colour.
MARKS: Final[dict[str, tuple[str, str, str | None]]] = {
    "queued": ("○", "o", "cyan"),
    "delayed": ("◔", "d", "cyan"),
    "running": ("●", "*", "blue"),
    "waiting": ("◐", "w", "magenta"),
    "due": ("◌", "o", "yellow"),
    "interrupted": ("!", "!", "yellow"),
    "completed": ("✓", "v", None),
    "failed": ("✕", "x", "red"),
    "cancelled": ("⊘", "-", None),
    "unreadable": ("?", "?", "red"),
    "begun": ("●", "*", "blue"),
    "set aside": ("⊖", "-", None),
}
_QUIET: Final = ("completed", "cancelled", "set aside")  # what went well needs no look


class Output:
    """How this command writes."""

    def __init__(self, given: Given) -> None:
        self.is_json = given.json
        self.is_tty = sys.stdout.isatty()
        self.is_quiet = given.quiet
        self.has_color = _has_color(given, is_tty=self.is_tty)
        encoding = (sys.stdout.encoding or "ascii").lower().replace("-", "").replace("_", "")
        self.is_ascii = encoding not in ("utf8", "utf16", "utf32")
        self.width = shutil.get_terminal_size((100, 24)).columns

    def style(self, text: str, color: str | None = None, *, bold: bool = False, dim: bool = False) -> str:
        """The text in a colour, if there are any."""
        if not self.has_color or not (color or bold or dim):
            return text
        return click.style(text, fg=color, bold=bold or None, dim=dim or None)

    def mark(self, state: str) -> str:
        """The mark of a state."""
        mark, plain, _ = MARKS[state]
        return plain if self.is_ascii else mark

    def show_state(self, state: str) -> str:
        """A state with its mark."""
        text = f"{self.mark(state)} {state}"
        return self.style(text, MARKS[state][2], dim=state in _QUIET)

    def line(self, text: str = "") -> None:
        """A line of data."""
        sys.stdout.write(self.plain(text) + "\n")

    def plain(self, text: str) -> str:
        """The text as this terminal can show it."""
        if not self.is_ascii:
            return text
        return text.translate(_ASCII).encode("ascii", "replace").decode()

    def note(self, text: str) -> None:
        """A line about the data, for people."""
        if not self.is_quiet:
            sys.stderr.write(text + "\n")

    def document(self, value: Any) -> None:
        """JSON, in one line."""
        sys.stdout.write(json.dumps(value, ensure_ascii=self.is_ascii, default=_render) + "\n")

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]], *, shrinks: Sequence[int] = ()) -> None:
        """Rows in columns, as wide as the terminal at most: the columns `shrinks` are cut, the first of them first.

        What is no terminal gets tabs, and nothing is cut.
        """
        if not self.is_tty:
            for row in [heads, *rows]:
                sys.stdout.write(self.plain("\t".join(_one_line(click.unstyle(cell)) for cell in row)) + "\n")
            return
        for text in self.format_table(heads, rows, shrinks=shrinks):
            self.line(text)

    def format_table(
        self, heads: Sequence[str], rows: Sequence[Sequence[str]], *, shrinks: Sequence[int] = ()
    ) -> list[str]:
        """The lines of a table for people."""
        cells = [[_one_line(cell) for cell in row] for row in rows]
        widths = [max(map(width_of, [head, *(row[n] for row in cells)])) for n, head in enumerate(heads)]
        for column in shrinks:
            over = sum(widths) + 2 * (len(widths) - 1) - self.width
            if over > 0:
                widths[column] = max(len(heads[column]), 8, widths[column] - over)
        lines = [self.style(_joined(heads, widths), bold=True)]
        return lines + [_joined([cut(cell, widths[n]) for n, cell in enumerate(row)], widths) for row in cells]

    def say(self, told: Any, text: str) -> None:
        """What a command has done: as JSON, or as a line."""
        if self.is_json:
            self.document(told)
        else:
            self.line(text)

    def when(self, moment: datetime | None, now: datetime) -> str:
        """A moment: relative for people, else ISO 8601 in UTC."""
        if moment is None:
            return "" if not self.is_tty else "–"
        if not self.is_tty:
            return moment.astimezone(UTC).isoformat()
        from durable.operate.standing import show_about  # noqa: PLC0415 -- help needs none of it

        seconds = (now - moment).total_seconds()
        return f"{show_about(seconds)} ago" if seconds >= 0 else f"in {show_about(-seconds)}"


def cut(text: str, width: int) -> str:
    """The text in so many columns at most, with `…` where it is cut; colours are kept whole."""
    if width_of(text) <= width:
        return text
    plain = click.unstyle(text)
    kept, used = "", 0
    for letter in plain:
        if used + _columns(letter) > width - 1:
            break
        kept, used = kept + letter, used + _columns(letter)
    return text.replace(plain, kept + "…") if plain in text else kept + "…"


def width_of(text: str) -> int:
    """How many columns a terminal needs for it."""
    return sum(map(_columns, click.unstyle(text)))


def pad(text: str, width: int) -> str:
    """The text, with blanks up to this width."""
    return text + " " * max(0, width - width_of(text))


def printable(text: str) -> str:
    """The text without what a terminal would obey: it may come from anywhere."""
    return "".join(letter if letter.isprintable() else _escape(letter) for letter in text)


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ")


def _columns(letter: str) -> int:
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def _joined(cells: Iterable[str], widths: Sequence[int]) -> str:
    return "  ".join(pad(cell, width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _has_color(given: Given, *, is_tty: bool) -> bool:
    if given.no_color or os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return is_tty and os.environ.get("TERM") != "dumb"


def _render(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    raise TypeError(f"no JSON: {type(value).__name__}")


_ASCII: Final = str.maketrans("○◔●◐◌✓✕⊘⊖█▓╌░│…–“”·", "od*wovx--#%-:|~-''.")
