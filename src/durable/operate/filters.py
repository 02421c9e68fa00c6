"""What people type to find runs: `status:failed workflow:checkout since:2h`, as a filter."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final, get_args

from durable._common.durations import MAX_SECONDS, show
from durable.errors import InvalidArgument
from durable.stores.listing import RunStatus
from durable.stores.reading import Filter

QUALIFIERS: Final = ("id", "parent", "workflow", "status", "error", "step", "queue", "meta.KEY", "since", "before")
_FIELDS: Final = {
    "id": "ids",
    "parent": "parents",
    "workflow": "workflows",
    "status": "statuses",
    "error": "errors",
    "step": "steps",
    "queue": "queues",
}
_SECONDS: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_AGE: Final = re.compile(r"(\d+(?:\.\d+)?)(s|m|min|h|d|w)")
_META: Final = "meta."


def parse_query(text: str, *, now: datetime) -> Filter:
    """The filter that `text` means; relative times count back from `now`.

    Words with a qualifier narrow it, each further: of several values (`status:failed,interrupted`, or the qualifier twice)
    any one may hold. A word without one is what ids begin with. `"…"` keeps what has blanks, commas or colons together.

    Raises `InvalidArgument`, which names the known qualifiers.
    """
    prefix = ""
    lists: dict[str, list[str]] = {}
    metadata: dict[str, list[str]] = {}
    moments: dict[str, datetime] = {}
    for qualifier, values in _terms(text):
        if qualifier is None:
            if prefix:
                raise InvalidArgument(
                    f"two words without a qualifier, {prefix!r} and {values[0]!r}: only one can be what ids begin with. "
                    f"{_known()}"
                )
            prefix = values[0]
        elif qualifier in _FIELDS:
            lists.setdefault(_FIELDS[qualifier], []).extend(values)
        elif qualifier.startswith(_META) and len(qualifier) > len(_META):
            metadata.setdefault(qualifier.removeprefix(_META), []).extend(values)
        elif qualifier in ("since", "before"):
            moments[qualifier] = parse_moment(values[0], now=now, what=qualifier)
        else:
            raise InvalidArgument(f"unknown qualifier {qualifier!r}{_like(qualifier)}. {_known()}")
    for status in lists.get("statuses", ()):
        if status not in get_args(RunStatus):
            raise InvalidArgument(f"unknown status {status!r}: one of {', '.join(get_args(RunStatus))}")
    given: dict[str, Any] = {**moments, **{name: tuple(dict.fromkeys(values)) for name, values in lists.items()}}
    kept = {key: tuple(dict.fromkeys(values)) for key, values in metadata.items()}
    return Filter(prefix=prefix, metadata=kept, **given)


def parse_moment(text: str, *, now: datetime, what: str = "the moment") -> datetime:
    """A moment: so long ago (`90s`, `10m`, `2h`, `3d`), or in ISO 8601, in local time where it has no offset.

    Raises `InvalidArgument` for anything else, and for what is more than a hundred years ago.
    """
    if _AGE.fullmatch(text) is not None:
        return now - timedelta(seconds=parse_seconds(text, what=what))
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError, OSError):  # the last are a platform's, of a local time that it cannot count
        raise InvalidArgument(
            f"{what} is so long ago, like 90s, 10m, 2h or 3d, or a moment, like 2026-11-29T10:00, not {show(text)}"
        ) from None


def parse_seconds(text: str, *, what: str = "the time") -> float:
    """A length of time in seconds: a number of them, or `90s`, `10m`, `2h`, `30d`; a hundred years at most.

    Raises `InvalidArgument` for anything else.
    """
    age = _AGE.fullmatch(text)
    try:
        seconds = float(text) if age is None else float(age[1]) * _SECONDS[age[2]]
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= MAX_SECONDS:  # NaN is neither
        raise InvalidArgument(
            f"{what} is a number of seconds, or like 90s, 10m, 2h or 30d, at most a hundred years, not {show(text)}"
        )
    return seconds


def _terms(text: str) -> Iterator[tuple[str | None, list[str]]]:
    """Each word's qualifier, None without one, and its values."""
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        word, at = _read(text, at, lambda letter: letter == ":" or letter.isspace())
        if at < len(text) and text[at] == ":" and not word[1]:
            values, at = _read_values(text, at + 1)
            if not all(values):
                raise InvalidArgument(f"nothing follows {word[0] + ':'!r}. {_known()}")
            yield word[0], values
        else:
            rest, at = _read(text, at, str.isspace)
            yield None, [word[0] + rest[0]]


def _read_values(text: str, at: int) -> tuple[list[str], int]:
    values: list[str] = []
    while True:
        (value, _), at = _read(text, at, lambda letter: letter == "," or letter.isspace())
        values.append(value)
        if at >= len(text) or text[at] != ",":
            return values, at
        at += 1


def _read(text: str, at: int, ends: Callable[[str], bool]) -> tuple[tuple[str, bool], int]:
    """What stands there up to the end, and whether some of it was quoted; where it ends."""
    found, quoted = "", False
    while at < len(text) and not ends(text[at]):
        if text[at] == '"':
            end = text.find('"', at + 1)
            if end < 0:
                raise InvalidArgument(f"a quotation begins and does not end: {text[at : at + 40]!r}")
            found, quoted, at = found + text[at + 1 : end], True, end + 1
        else:
            found, at = found + text[at], at + 1
    return (found, quoted), at


def _known() -> str:
    return f"Qualifiers are {', '.join(f'{one}:' for one in QUALIFIERS)}; a word without one is what ids begin with."


def _like(word: str) -> str:
    close = difflib.get_close_matches(word, [*_FIELDS, "since", "before"], n=1)
    return f": did you mean {close[0]}:?" if close else ""
