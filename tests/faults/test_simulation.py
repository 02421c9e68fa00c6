"""The simulation: many seeds, those that once failed, and the bugs that it must find. See docs/simulation.md."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from harness.planted_bugs import BUGS, MENDED, Bug
from harness.planted_worker_bugs import WORKER_BUGS
from harness.programs import run_program
from simulation import Fault, Op, Run, Scenario, Slot, crewed, from_json, generated, shrunk, simulated, to_json
from simulation.crews import kindred, limited, ticking, waiting

# Repetitions of one kind: `make nightly` has a million seeds, these among them (tests/simulation/__main__.py). Ten thousand were here, a
# quarter of what all tests computed, of which five hundred are left; the planted bugs, each near its seed, and the corpus say that the simulation finds what it should.
SEEDS = int(os.environ.get("DURABLE_SEEDS", "500"))
PARTS = 10
CORPUS = sorted((Path(__file__).parents[1] / "corpus").glob("*.json"))
CAUGHT = {bug.name: [file for file in CORPUS if file.stem == bug.file] for bug in [*BUGS, *WORKER_BUGS, *MENDED]}


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Renewals that fail are told to the log, by the thousand."""
    caplog.set_level(100, "durable")


@pytest.mark.long(1)
@pytest.mark.parametrize("part", range(PARTS))
def test_no_seed_breaks_an_invariant(part: int) -> None:
    """I1–I9 under FAULTS 1–8, 12, 16–18, 20, 23, 25–27, 30–34, 40–43, 45, 48, 61, 68, 71–77, 93, 113, 114, 117, 121, 122, 170–173, 175 of kind S."""
    for seed in range(part * SEEDS // PARTS, (part + 1) * SEEDS // PARTS):
        assert simulated(generated(seed)).broken is None, f"seed {seed}: see docs/simulation.md"


@pytest.mark.long(1)
@pytest.mark.parametrize("part", range(PARTS // 2))
def test_no_seed_with_workers_breaks_a_law(part: int) -> None:
    """W1, W2, W4, W6, W7, W9–W11 under FAULTS 123, 137, 139, 140, 142–144 of WORKERS.md, of kind S."""
    for seed in range(part * SEEDS // PARTS, (part + 1) * SEEDS // PARTS):
        assert simulated(crewed(seed)).broken is None, f"crew of seed {seed}: see docs/simulation.md"


@pytest.mark.long(1)
@pytest.mark.parametrize("part", range(PARTS // 2))
def test_no_seed_whose_runs_wait_breaks_a_law(part: int) -> None:
    """W2 and W8 besides, under FAULTS 145 and 148 of WORKERS.md, and starts in callers' transactions."""
    for seed in range(part * SEEDS // PARTS, (part + 1) * SEEDS // PARTS):
        assert simulated(waiting(seed)).broken is None, f"waiting crew of seed {seed}: see docs/simulation.md"


@pytest.mark.long(1)
@pytest.mark.parametrize("part", range(PARTS // 2))
def test_no_seed_with_a_schedule_breaks_a_law(part: int) -> None:
    """W5 besides, under FAULTS 150 of WORKERS.md."""
    for seed in range(part * SEEDS // PARTS, (part + 1) * SEEDS // PARTS):
        assert simulated(ticking(seed)).broken is None, f"ticking crew of seed {seed}: see docs/simulation.md"


@pytest.mark.long(1)
@pytest.mark.parametrize("part", range(PARTS // 2))
def test_no_seed_with_limits_breaks_a_law(part: int) -> None:
    """W3, and what W2 says of partitions, under FAULTS 124-128 of WORKERS.md, of kind S."""
    for seed in range(part * SEEDS // PARTS, (part + 1) * SEEDS // PARTS):
        assert simulated(limited(seed)).broken is None, f"limited crew of seed {seed}: see docs/simulation.md"


@pytest.mark.long(1)
@pytest.mark.parametrize("part", range(PARTS // 2))
def test_no_seed_with_children_breaks_a_law(part: int) -> None:
    """C1 to C4 besides, under FAULTS 146 and 147 of WORKERS.md: children that fail, are cancelled, or whose parents are."""
    for seed in range(part * SEEDS // PARTS, (part + 1) * SEEDS // PARTS):
        assert simulated(kindred(seed)).broken is None, f"kindred crew of seed {seed}: see docs/simulation.md"


@pytest.mark.parametrize("file", CORPUS, ids=lambda file: file.stem)
def test_what_once_failed_holds(file: Path) -> None:
    """The corpus: each led to a fault of our own, or is the smallest that shows a planted one."""
    assert simulated(from_json(file.read_bytes())).broken is None


@pytest.mark.parametrize("bug", [*BUGS, *WORKER_BUGS], ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: Bug) -> None:
    """Within its budget of seeds; and by its file in the corpus, which was shrunk from such a seed."""
    assert bug.caught(bug.first) is not None, f"{bug.name} was not found by {bug.budget} seeds"
    (smallest,) = CAUGHT[bug.name]
    broken = bug.simulated(from_json(smallest.read_bytes())).broken
    assert broken is not None
    assert broken.invariant != "crash"


@pytest.mark.parametrize("bug", MENDED, ids=lambda bug: bug.name)
def test_a_mended_bug_is_found_again(bug: Bug) -> None:
    """By the file that is kept of it, when its mend is undone."""
    (file,) = CAUGHT[bug.name]
    assert bug.simulated(from_json(file.read_bytes())).broken is not None


def test_the_same_seed_is_the_same_history() -> None:
    """Also in another process, where strings hash otherwise."""
    seeds = range(100, 120)  # of a million in `make nightly`, whose figures must repeat
    here = [str(tell(seed)) for seed in seeds]
    assert here == [str(tell(seed)) for seed in seeds]
    program = f"import logging; logging.disable(50); from faults import test_simulation as t\nfor s in {seeds!r}: print(t.tell(s))"
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parents[1])}
    there = run_program([sys.executable, "-c", program], env=env, check=True)
    assert there.stdout.splitlines() == here


def tell(seed: int) -> tuple[object, ...]:
    """What came of a seed, in full."""
    told: list[object] = []
    for draw in (generated, crewed):
        outcome = simulated(draw(seed))
        told += [outcome.seconds, sorted(outcome.seen.items()), sorted(outcome.faults.items()), str(outcome.broken)]
    return tuple(told)


def test_a_scenario_survives_its_file() -> None:
    """What is kept is what happened."""
    for seed in range(30):
        for scenario in (generated(seed), crewed(seed), limited(seed)):
            assert from_json(to_json(scenario)) == scenario


@pytest.mark.long(4)
def test_a_failing_scenario_is_made_small() -> None:
    """Down to what the failure needs, and it still fails."""
    bug = next(bug for bug in BUGS if bug.name == "a map in the order of completion")
    found = bug.caught(bug.first)
    assert found is not None
    with bug.planted():
        small = shrunk(found[1], lambda scenario: simulated(scenario).broken is not None)
        assert simulated(small).broken is not None
    assert len(to_json(small)) < len(to_json(found[1]))
    assert (len(small.slots), small.faults) == (1, [])


@pytest.mark.parametrize("ms", range(5994, 6004))
def test_a_slow_clock_begins_no_body_when_its_lease_is_over(ms: int) -> None:
    """FAULTS 23: the server is out of reach, a sleep ends as the lease does, and the next body needs no round trip to begin."""
    run = Run([Op("sleep", 0, "z", ms=ms), Op("step", 1, ms=1)])
    away = Fault("restart", -1, 0.1, 12.0)
    assert simulated(Scenario(1, [run], [Slot([(0, 0.0, False)], drift=-5e-4)], [away], lease=6.0)).broken is None
