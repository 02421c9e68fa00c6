"""What is simulated is all simulated: where the product calls the machine's own in a simulated world, that is raised, and the world broken."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import pytest

from harness.programs import run_program
from harness.tripwire_shapes import NOT_TOUCHED, SHAPES
from simulation.threads import rebound, with_names

TESTS = Path(__file__).resolve().parents[1]
PRODUCT = TESTS.parent / "src" / "durable"
_READ_THE_CLOCK = frozenset({"now", "utcnow", "today"})


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[str]]:
    """Of each shape: from the product in a world, from the product in none, from elsewhere in a world."""
    told: dict[str, list[str]] = json.loads(
        run_program([sys.executable, "-m", "harness.tripwire_shapes"], cwd=TESTS, check=True).stdout
    )
    return told


@pytest.mark.parametrize("shape", SHAPES)
def test_the_machines_own_is_raised_whatever_the_shape(shape: str, outcomes: dict[str, list[str]]) -> None:
    """Of the product, and only while a world goes on: comparing names would miss most of these."""
    assert outcomes[shape] == ["raised", "passed", "passed"]


@pytest.mark.parametrize("shape", NOT_TOUCHED)
def test_what_needs_no_machine_is_not_raised(shape: str, outcomes: dict[str, list[str]]) -> None:
    """Nothing is waited for, nothing read."""
    assert outcomes[shape] == ["passed"] * 3


@pytest.mark.parametrize("swallows", [False, True])
def test_a_world_that_was_touched_is_broken(swallows: bool) -> None:
    """By whatever part of the product, and also where it has caught what was raised."""
    caught = "except Exception: pass" if swallows else "finally: pass"
    program = f"""
import logging; logging.disable(50)
from simulation import generated, simulated
from durable._engine import journal
text = '''
from time import monotonic as counted
def settled(self, key, before=Journal.record_of):
    try: counted()
    {caught}
    return before(self, key)
Journal.record_of = settled
'''
before = simulated(generated(7)).broken
exec(text, vars(journal))
print(before, simulated(generated(7)).broken)
"""
    told = run_program([sys.executable, "-c", program], cwd=TESTS, check=True).stdout
    assert told == "None machine: durable._engine.journal.settled, line 4, calls time.monotonic\n"


def test_only_the_clock_reads_datetimes_clock() -> None:
    """Which no wire can see: `datetime.now`, `utcnow`, `today`, under whatever name the class was imported."""
    found: list[str] = []
    for path in sorted(PRODUCT.rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        classes = {"datetime", "date"} | {
            alias.asname
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module == "datetime"
            for alias in node.names
            if alias.asname
        }
        found += [
            f"{path.relative_to(PRODUCT)}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and node.attr in _READ_THE_CLOCK
            and ast.unparse(node.value).rpartition(".")[2] in classes
        ]
    assert [place.partition(":")[0] for place in found] == ["clocks.py"], found


class Named:
    """Of a module whose name is the product's."""

    __module__ = "durable.named"

    def act(self) -> None:
        threading.Event()  # type: ignore[name-defined] # noqa: F821 -- a name of its module


def test_another_meaning_for_a_name_that_is_used_nowhere_is_refused() -> None:
    """It was renamed in the product, and would have its old meaning again."""
    rebound(Named, {"threading": object()})
    with pytest.raises(LookupError, match=r"durable\.named\.Named has no use of thread$"):
        rebound(Named, {"threading": object(), "thread": object()})
    with pytest.raises(LookupError, match=r"Named\.act has no use of secrets"):
        with_names(Named.act, {"secrets": object()})  # type: ignore[arg-type]
