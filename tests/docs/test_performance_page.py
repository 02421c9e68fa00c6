"""docs/performance.md is what the benchmark wrote, and says so where a goal was missed."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import page  # noqa: E402
from results import Line, Results  # noqa: E402


def stored() -> Results:
    return Results.load(ROOT / "docs" / "performance.json")


def test_the_page_is_written_from_its_figures() -> None:
    """Nobody has improved it by hand."""
    assert (ROOT / "docs" / "performance.md").read_text("utf-8") == page.render(stored())


def test_the_charts_are_drawn_from_the_same_figures() -> None:
    for name, text in page.drawn(stored()).items():
        assert (ROOT / "docs" / "images" / name).read_text("utf-8") == text
        assert ET.fromstring(text).tag.endswith("svg")


def test_a_goal_that_was_missed_is_named_with_what_stands_in_the_way() -> None:
    cpu = {"each": 300.0, "caller": 90.0, "writer": 0.0, "server": 100.0, "limit": 200.0, "limit server": 90.0}
    line = Line("W1", "durable, sync", 0.7, "×", of="bare", low=0.6, high=0.8, goal="≥ 0.85", rate=3000.0, cpu=cpu)
    text = page.render(Results({}, [line]))

    assert "**missed**" in text
    assert "The goal leaves 247 µs a step here" in text


def test_a_goal_that_was_met_is_not_among_the_missed() -> None:
    text = page.render(Results({}, [Line("W5", "durable, 1,000 steps", 9.0, "ms", goal="≤ 15")]))

    assert "| met |" in text
    assert "missed" not in text


def test_a_goal_within_the_noise_is_not_claimed() -> None:
    line = Line("W1", "durable, sync", 0.9, "×", of="bare", low=0.7, high=1.1, goal="≥ 0.85")

    assert "met, by less than it swings" in page.table(Results({}, [line]))
