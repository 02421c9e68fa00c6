"""What the simulation does: its rate, the faults and situations, the planted bugs and what it takes to find them.

    python benchmarks/simulation.py [--seeds 10000] [--first 0] [--processes 2] [--bugs] [--nightly]

`--bugs` looks for each planted bug and shrinks what finds it; `--corpus` writes that into tests/corpus. `--nightly` looks for
them too, and fails when a situation of `SOMETIMES` has not occurred. The exit status is 1 when anything is not as it
must be; a failing seed is shrunk and printed as the file that the corpus would keep.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from durable.testing.simulation import SOMETIMES, Scenario, generated, shrunk, simulated, to_json
from planted_bugs import BUGS

_CORPUS = Path(__file__).parent.parent / "tests" / "corpus"
_PORTION = 500


def _portion(first: int, last: int) -> tuple[Counter[str], Counter[str], list[tuple[int, str]], float]:
    logging.disable(logging.CRITICAL)
    seen, faults, broken = Counter[str](), Counter[str](), list[tuple[int, str]]()
    began = time.process_time()
    for seed in range(first, last):
        outcome = simulated(generated(seed))
        seen += outcome.seen
        faults += outcome.faults
        if outcome.broken is not None:
            broken.append((seed, str(outcome.broken)))
    return seen, faults, broken, time.process_time() - began


def _smallest(seed: int) -> Scenario:
    scenario = generated(seed)
    first = simulated(scenario).broken

    def fails(candidate: Scenario) -> bool:
        broken = simulated(candidate).broken
        return first is not None and broken is not None and broken.invariant == first.invariant

    return shrunk(scenario, fails)


def _seeds(options: argparse.Namespace) -> bool:
    seen, faults, broken, seconds = Counter[str](), Counter[str](), list[tuple[int, str]](), 0.0
    firsts = range(options.first, options.first + options.seeds, _PORTION)
    lasts = [min(first + _PORTION, options.first + options.seeds) for first in firsts]
    with ProcessPoolExecutor(options.processes) as pool:
        for portion in pool.map(_portion, firsts, lasts):
            seen += portion[0]
            faults += portion[1]
            broken += portion[2]
            seconds += portion[3]
    print(
        f"{options.seeds} seeds from {options.first}: {options.seeds / seconds * 60:.0f} per core-minute, {len(broken)} broken"
    )
    for title, counts in (("faults", faults), ("situations", seen)):
        print(f"\n{title}")
        for name, count in sorted(counts.items()):
            print(f"{count:10}  {name}")
    for seed, what in broken[:5]:
        print(f"\nseed {seed}: {what}\n{to_json(_smallest(seed))}")
    never = [name for name in SOMETIMES if not seen[name]] if options.nightly else []
    if never:
        print(f"\nnever seen: {never}")
    return not broken and not never


def _bugs(*, corpus: bool) -> bool:
    print("\nplanted bugs: the seeds until each is found, and what it takes in the end")
    missed = False
    for bug in BUGS:
        found = bug.caught()
        if found is None:
            missed = True
            print(f"{'NOT FOUND':>10}  {bug.name} ({bug.budget} seeds)")
            continue
        count, scenario, outcome = found
        first = outcome.broken
        with bug.planted():

            def fails(candidate: Scenario, bug: object = bug, first: object = first) -> bool:
                broken = simulated(candidate, bug.conditions).broken  # type: ignore[attr-defined]
                return broken is not None and broken.invariant == first.invariant  # type: ignore[attr-defined]

            small = shrunk(scenario, fails)
        runs = sorted({call[0] for slot in small.slots for call in slot.calls})
        steps = [[op.kind for op in small.runs[run].ops] for run in runs]
        told = [f"{fault.how} {fault.kind} at {fault.at:g}".strip() for fault in small.faults]
        print(f"{count:10}  {bug.name}: {first}\n{'':12}{len(small.slots)} processes, runs {steps}, faults {told}")
        if corpus:
            (_CORPUS / f"{bug.file}.json").write_text(to_json(small))
    return not missed


def main() -> int:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--bugs", action="store_true")
    parser.add_argument("--corpus", action="store_true")
    parser.add_argument("--nightly", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    fine = not options.seeds or _seeds(options)
    if options.bugs or options.corpus or options.nightly:
        fine = _bugs(corpus=options.corpus) and fine
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
