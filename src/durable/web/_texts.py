"""Hostile text made harmless: what would hide, turn or command is shown as what it is; and JSON as markup."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, cast

from markupsafe import Markup, escape

from durable.operate.redact import REDACTED
from durable.operate.standing import show_about

# Controls (ANSI begins with one), what turns the direction of writing, what has no width, and halves of characters.
_HIDDEN: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
LARGE: Final = 65_536  # characters of a value, from which on only its beginning is shown
_SHOWN: Final = 4_096
_DEEP: Final = 60  # levels


class Shown(NamedTuple):
    """A value on a page."""

    markup: Markup
    #: How many characters its JSON has, where only the beginning is shown; else 0.
    size: int = 0


def visible(value: Any) -> Any:
    """What each expression of a template goes through: texts with all that hides made visible."""
    if type(value) is str:
        return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), value)
    return "" if value is None else value


def show_value(value: Any) -> Shown:
    """Plain JSON for people: coloured, or the beginning of a large one."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    if len(text) > LARGE:
        return Shown(escape(visible(text[:_SHOWN])) + Markup("\n…"), len(text))
    parts: list[Markup] = []
    _mark(value, "", 0, parts)
    return Shown(Markup("").join(parts))


def _mark(value: Any, pad: str, depth: int, parts: list[Markup]) -> None:
    """The one function that makes markup: every text in it goes through `escape`."""
    if depth > _DEEP:
        parts.append(escape(visible(json.dumps(value, ensure_ascii=False))))
    elif isinstance(value, dict) and value:
        parts.append(Markup("{\n"))
        for number, (key, item) in enumerate(cast("dict[str, Any]", value).items()):
            name = escape(visible(json.dumps(key, ensure_ascii=False)))
            parts.append(Markup('{}{}  <span class="k">{}</span>: ').format(Markup(",\n") if number else "", pad, name))
            _mark(item, pad + "  ", depth + 1, parts)
        parts.append(Markup("\n{}}}").format(pad))
    elif isinstance(value, list) and value:
        parts.append(Markup("[\n"))
        for number, item in enumerate(cast(Any, value)):
            parts.append(Markup("{}{}  ").format(Markup(",\n") if number else "", pad))
            _mark(item, pad + "  ", depth + 1, parts)
        parts.append(Markup("\n{}]").format(pad))
    elif value == REDACTED and isinstance(value, str):
        parts.append(Markup('<span class="redacted">redacted</span>'))
    else:
        kind = "s" if isinstance(value, str) else "w" if value is None or isinstance(value, bool) else "n"
        told = escape(visible(json.dumps(value, ensure_ascii=False)))
        parts.append(Markup('<span class="{}">{}</span>').format(kind, told))


def show_ago(moment: datetime | None, now: datetime) -> str:
    """So long ago, in one unit."""
    if moment is None or moment.year == 1:
        return "–"
    seconds = (now - moment).total_seconds()
    return "now" if seconds < 1 else f"{show_about(seconds)} ago"


def show_moment(moment: datetime | None) -> str:
    """A moment in UTC: `29 Nov 2026, 14:02:11`."""
    return "–" if moment is None else f"{moment.astimezone(UTC):%-d %b %Y, %H:%M:%S}"


def show_count(count: int | None) -> str:
    """A count that ends somewhere; `…` while it is not known."""
    return "…" if count is None else "–" if count < 0 else "10k+" if count > 10_000 else f"{count:,}"  # noqa: PLR2004 -- as the store counts
