"""Charts as small SVG files: bars and lines, readable on a white and on a dark page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Final

_WIDTH: Final = 760
_LEFT: Final = 250
_RIGHT: Final = 90
_BAR: Final = 20
_STEP: Final = 30
_TOP: Final = 44
_COLOURS: Final = ("#2f6f9f", "#c2703d", "#5d8a4a", "#8a5a9a", "#8c8c8c", "#b3a23a")


def bars(title: str, rows: Sequence[tuple[str, float]], unit: str, *, highlighted: Sequence[str] = ()) -> str:
    """A horizontal bar a row, with its value at its end."""
    largest = max(value for _, value in rows)
    parts = [_text(12, 24, title, weight="bold")]
    for number, (name, value) in enumerate(rows):
        y = _TOP + number * _STEP
        width = (_WIDTH - _LEFT - _RIGHT) * value / largest
        colour = _COLOURS[0] if name in highlighted else _COLOURS[4]
        parts += [
            _text(_LEFT - 8, y + 15, name, anchor="end"),
            _rect(_LEFT, y, max(width, 1), colour),
            _text(_LEFT + width + 6, y + 15, f"{_short(value)} {unit}".strip()),
        ]
    return _svg(_TOP + len(rows) * _STEP + 8, parts)


def stacks(title: str, rows: Sequence[tuple[str, Sequence[float]]], names: Sequence[str], unit: str) -> str:
    """A horizontal bar a row, of one part a name, each with its value where there is room."""
    largest = max(sum(values) for _, values in rows)
    scale = (_WIDTH - _LEFT - _RIGHT) / largest
    parts, x = [_text(12, 24, title, weight="bold")], float(_LEFT)
    for name, colour in zip(names, _COLOURS, strict=False):
        parts += [f'<rect x="{x:.0f}" y="34" width="11" height="11" fill="{colour}"/>', _text(x + 16, 44, name)]
        x += 30 + 8 * len(name)
    for number, (row, values) in enumerate(rows):
        y, x = _TOP + 16 + number * _STEP, float(_LEFT)
        parts.append(_text(_LEFT - 8, y + 15, row, anchor="end"))
        for value, colour in zip(values, _COLOURS, strict=False):
            parts.append(_rect(x, y, max(value * scale, 0), colour))
            if value * scale > 34:
                parts.append(_text(x + 5, y + 15, _short(value), fill="#fff"))
            x += value * scale
        parts.append(_text(x + 6, y + 15, f"{_short(sum(values))} {unit}"))
    return _svg(_TOP + 16 + len(rows) * _STEP + 8, parts)


def lines(title: str, curves: dict[str, list[tuple[float, float]]], below: str, unit: str) -> str:
    """A line a name; the upper axis logarithmic, so that lines which differ tenfold can be read in one picture."""
    xs = [x for curve in curves.values() for x, _ in curve]
    ys = [y for curve in curves.values() for _, y in curve]
    low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
    height, left, right, bottom = 260, 80, 150, 40

    def place(x: float, y: float) -> str:
        across = left + (_WIDTH - left - right) * x / max(xs)
        up = (math.log10(y) - low) / max(high - low, 1)
        return f"{across:.1f},{height - bottom - (height - bottom - _TOP) * up:.1f}"

    parts = [_text(12, 24, title, weight="bold"), _text(left, height - 8, below)]
    for power in range(low, high + 1):
        _, _, y = place(0, 10.0**power).partition(",")
        parts += [
            f'<line x1="{left}" y1="{y}" x2="{_WIDTH - right}" y2="{y}" stroke="#8884"/>',
            _text(left - 8, float(y) + 4, f"{_short(10.0**power)} {unit}", anchor="end"),
        ]
    for (name, curve), colour in zip(curves.items(), _COLOURS, strict=False):
        points = " ".join(place(x, y) for x, y in curve)
        end_x, _, end_y = place(*curve[-1]).partition(",")
        parts += [
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>',
            _text(float(end_x) + 6, float(end_y) + 4, name, fill=colour),
        ]
    return _svg(height, parts)


def _rect(x: float, y: float, width: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal", fill: str = "#777") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="{fill}">{escape(text)}</text>'


def _svg(height: float, parts: list[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}" '
        f'font-family="sans-serif" font-size="13">\n{body}\n</svg>\n'
    )


def _short(value: float) -> str:
    """Two or three figures that count."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
