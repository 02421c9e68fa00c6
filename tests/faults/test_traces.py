"""What is seen of seeds 0 to 200 is what `tests/golden/traces.txt` has: a change that is to change nothing leaves them equal."""

from __future__ import annotations

import sys
from pathlib import Path

from harness.programs import run_program
from simulation import Conditions
from simulation.traces import SEEDS, golden, trace

TESTS = Path(__file__).resolve().parents[1]
_DIFFERING = """
import logging; logging.disable(50)
from simulation import tripwire, traces
assert tripwire.is_laid
print(traces.differing(traces.SEEDS))
"""


def test_the_traces_are_the_golden_ones() -> None:
    """In a process in which a world may touch nothing of the machine."""
    told = run_program([sys.executable, "-c", _DIFFERING], cwd=TESTS, check=True).stdout.strip()
    assert told == "[]", (
        f"the traces of these seeds have changed: {told}. `cd tests && python -m simulation --trace SEED` on both commits shows how; "
        f"if that is meant: `cd tests && python -m simulation --renew-traces`"
    )


def test_each_seed_has_a_trace() -> None:
    """And no two have the same."""
    assert list(golden()) == list(SEEDS)
    assert len(set(golden().values())) == len(SEEDS)


def test_a_trace_shows_what_has_changed() -> None:
    """A server that replies before it commits, and a path through the code that depends on the process, for example."""
    early = Conditions(early=True)
    assert all(trace(seed) != trace(seed, early) for seed in range(5))
    assert all(trace(seed) == trace(seed) for seed in range(5))


def test_a_trace_tells_nothing_of_where_it_was_made() -> None:
    """No path, no address, no line of the code."""
    for seed in range(20):
        text = "\n".join(trace(seed))
        assert all(part not in text for part in (str(TESTS.parent), " object at 0x", '"traceback"'))
        assert "request" in text
        assert "commit steps" in text
        assert "StepRecorded(" in text
