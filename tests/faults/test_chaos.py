"""A little chaos, and the pages that are made of a great deal of it: see the package `chaos`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from chaos import cases
from chaos.__main__ import FIGURES, PAGE
from chaos.effects import Line
from chaos.figures import kept
from chaos.flatness import Course
from chaos.fleet import judge
from chaos.hours import FREE, PAIR
from chaos.leaks import LEAKS
from chaos.page import write
from chaos.plans import PLANS, TRAPS
from chaos.plants import PLANTS
from harness.programs import run_program
from harness.support import needs_pgbouncer

_HERE = Path(__file__).resolve().parents[1]
_QUICKLY_CAUGHT = ("no fence", "acknowledged before commit")


def runner(*arguments: str) -> str:
    """What the runner says in a process of its own, which must end well. It forks, so it is not run in this one."""
    done = run_program([sys.executable, "-m", "chaos", *arguments], cwd=_HERE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "plans",
    [
        pytest.param(("everything", "servers"), marks=[pytest.mark.long(18), needs_pgbouncer]),
        pytest.param(("fail-over", "forgetful fail-over", "disk"), marks=pytest.mark.long(17)),
    ],
    ids=" ".join,
)
def test_a_little_chaos(plans: tuple[str, ...]) -> None:
    """FAULTS 10, 12, 16-18, 31-35, 40, 41, 50, 60: all that strikes, and what must hold; `make nightly` has more of it.

    When it fails it says where it has left its witnesses. A small disk is a mount, which not everybody may make.
    """
    said = runner("play", *plans, "--rounds", "1", "--runs", "2")  # of each kind; `make nightly` plays 20, for an hour
    for plan in plans:
        assert re.search(rf"{plan} 1: \d+ s|{plan}: not played, mount", said), said


@pytest.mark.long(15)
def test_a_little_storm_over_workers() -> None:
    """Fault 123 of workers: they are killed and the server is restarted; `python -m chaos workers` has 10,000 runs in one."""
    assert re.search(r"^runs: 200, .*kills: [1-9]", runner("workers", "--runs", "200", "--pace", "0.1"), re.MULTILINE)


def test_a_body_that_begins_again_is_seen() -> None:
    """By a holder; what an earlier one still begins is no violation."""
    first, acknowledged = Line(1.0, 1, "begin", "r", 1, "0"), Line(2.0, 1, "acknowledged", "r", 1, "0")
    assert judge([first, acknowledged, Line(3.0, 2, "begin", "r", 2, "1")]) == []
    assert judge([first, Line(1.5, 2, "begin", "r", 2, "0"), Line(2.0, 2, "acknowledged", "r", 2, "0"), first]) == []
    assert len(judge([first, acknowledged, Line(3.0, 2, "begin", "r", 2, "0")])) == 1


@pytest.mark.long(15)
@pytest.mark.parametrize("plant", _QUICKLY_CAUGHT)
def test_planted_bugs_are_caught(plant: str) -> None:
    """By the witnesses: a run that only does not end would not do. `make nightly` plants them all."""
    assert f"{plant}: " in runner("plants", plant)


def test_every_plant_has_a_trap() -> None:
    assert PLANTS.keys() == TRAPS.keys()


def test_every_case_of_faults_is_tested_or_answered() -> None:
    """Else there is a promise that nobody keeps, or a number that means nothing."""
    named, answered = cases.named(), cases.answered()
    assert [number for number in cases.CASES if number not in named and number not in answered] == []
    assert sorted((named.keys() | answered) - cases.CASES.keys()) == []


def test_the_page_is_what_the_figures_say() -> None:
    """Made again by `cd tests && python -m chaos page`, when figures, cases or plans change."""
    assert PAGE.read_text("utf-8") == write(FIGURES)


def test_the_figures_are_of_rounds_in_which_every_law_held() -> None:
    """And every plan was played, every plant and leak caught, an hour watched in which all was flat."""
    parts = kept(FIGURES)
    assert [violation for part in parts for violation in part.violations] == []
    assert PLANS.keys() <= {name for part in parts for name in part.rounds}
    assert PLANTS.keys() | LEAKS.keys() <= {name for part in parts for name, how in part.caught.items() if how}
    hours = {hour["name"]: hour for part in parts for hour in part.hours if hour["seconds"] >= 3600}
    assert hours.keys() == {tenant.name for tenant in PAIR}
    assert [name for name, told in hours[FREE]["courses"].items() if not Course(**told).flat] == []
