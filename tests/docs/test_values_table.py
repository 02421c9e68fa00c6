"""docs/values.md: its table is measured here, and the test fails when the page says anything else.

To write it anew after a change: `python tests/docs/test_values_table.py`.
"""

from __future__ import annotations

import pickle
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pydantic
import pytest

import durable
from durable.codecs import JsonCodec
from harness import value_kinds
from harness.value_kinds import GROUPS, Kind, alike, made

PAGE = Path(__file__).resolve().parents[2] / "docs" / "values.md"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"
CODEC = JsonCodec()
SAME, REFUSED = "same", "refused"


def durable_way(value: Any, _: Any) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    return (
        lambda: CODEC.encode(value, what="it"),
        lambda text: CODEC.decode(text, run_id="r", where="here"),
    )


def msgspec_way(value: Any, type_: Any) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    return lambda: msgspec.json.encode(value), lambda text: msgspec.json.decode(text, type=type_)


def pydantic_way(value: Any, type_: Any) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    def adapter() -> Any:
        return pydantic.TypeAdapter(type_)

    return lambda: adapter().dump_json(value), lambda text: adapter().validate_json(text)


def pickle_way(value: Any, _: Any) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    return lambda: pickle.dumps(value), pickle.loads


WAYS = {"durable": durable_way, "msgspec": msgspec_way, "pydantic": pydantic_way, "pickle": pickle_way}


def outcome(way: Any, kind: Kind) -> str:
    """What happens to one of this kind: it comes back, is refused in time, is found out too late, or changes in silence."""
    with made(kind) as value, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write, read = way(value, kind.typed(value))
        try:
            text = write()
        except Exception:
            return REFUSED
        try:
            back = read(text)
        except Exception:
            return "**lost when read**"
        try:
            if alike(value, back):
                return SAME
            shown = "another value" if type(back) is type(value) else f"`{type(back).__name__}`"
            return f"**{shown}**"
        finally:
            if hasattr(back, "close"):
                back.close()


def table() -> str:
    """The measured part of the page."""
    lines: list[str] = []
    counts: dict[str, list[int]] = {name: [0, 0, 0] for name in WAYS}
    for group, kinds in GROUPS.items():
        lines += [f"### {group}", "", f"| kind | {' | '.join(WAYS)} |", f"| --- {'| --- ' * len(WAYS)}|"]
        for kind in kinds:
            outcomes = {name: outcome(way, kind) for name, way in WAYS.items()}
            for name, what in outcomes.items():
                counts[name][(SAME, REFUSED).index(what) if what in (SAME, REFUSED) else 2] += 1
            lines.append(f"| {kind.name} | {' | '.join(outcomes.values())} |")
        lines.append("")
    total = sum(map(len, GROUPS.values()))
    summary = [
        f"| of {total} kinds | same | refused when written | changed, or lost when read |",
        "| --- | --- | --- | --- |",
    ]
    summary += [f"| {name} | {same} | {refused} | {bad} |" for name, (same, refused, bad) in counts.items()]
    return "\n".join([*summary, "", *lines])


def page() -> str:
    """The page as it has to be."""
    text = PAGE.read_text("utf-8")
    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + rest[rest.index(END) :]


def test_the_page_says_what_is_measured() -> None:
    """Whoever changes a codec, or a version of what it is compared with, writes the table anew."""
    assert PAGE.read_text("utf-8") == page(), (
        "docs/values.md is stale: python tests/docs/test_values_table.py writes it anew"
    )


@pytest.mark.parametrize("kind", [kind for kinds in GROUPS.values() for kind in kinds], ids=lambda kind: kind.name)
def test_every_kind_comes_back_or_is_refused(kind: Kind) -> None:
    """FAULTS 83, 84, 85, 120: equal in value and type, or refused with a way out; never changed, never lost."""
    what = outcome(durable_way, kind)
    assert what in (SAME, REFUSED)
    if what is REFUSED:
        with made(kind) as value, pytest.raises(durable.UnstorableValue) as it:
            CODEC.encode(value, what="it")
        assert it.value.advice
        assert it.value.path.startswith("$")


def test_there_are_kinds_enough() -> None:
    """Each once."""
    names = [kind.name for kinds in GROUPS.values() for kind in kinds]
    assert len(names) == len(set(names))
    assert len(names) >= 85


def test_the_page_counts_every_kind() -> None:
    """The rows are all there."""
    rows = re.findall(r"^\| .*\|$", PAGE.read_text("utf-8").split(BEGIN)[1].split(END)[0], flags=re.MULTILINE)
    assert len(rows) >= 85


if __name__ == "__main__":
    sys.modules.setdefault("value_kinds", value_kinds)
    PAGE.write_text(page(), "utf-8")
