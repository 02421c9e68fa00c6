"""What the simulation does: its rate, the faults and situations, the planted bugs and what it takes to find them.

    cd tests && python -m simulation [--seeds 10000] [--first 0] [--processes 2] [--bugs] [--nightly] [--figures FILE]
    cd tests && python -m simulation --trace 7 | --renew-traces

`--bugs` looks for each planted bug and shrinks what finds it; `--corpus` writes that into tests/corpus. `--nightly` looks for
them too, and fails when a situation of `SOMETIMES` has not occurred. The exit status is 1 when anything is not as it
must be; a failing seed is shrunk and printed as the file that the corpus would keep. What was counted is added to the file of
`--figures`, like docs/reliability.json. `--trace` prints what is seen of a seed's history, and `--renew-traces` writes
tests/golden/traces.txt anew (`traces.py`).
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from chaos.figures import Part, begun, keep
from harness.planted_bugs import BUGS
from harness.planted_worker_bugs import WORKER_BUGS
from simulation import (
    SOMETIMES,
    Scenario,
    crewed,
    generated,
    kindred,
    limited,
    shrunk,
    simulated,
    ticking,
    to_json,
    traces,
    tripwire,
    waiting,
)

_CORPUS = Path(__file__).parent.parent / "corpus"
_PORTION = 500
_DRAWS = {
    "seed": generated,
    "crew of seed": crewed,
    "waiting crew of seed": waiting,
    "ticking crew of seed": ticking,
    "limited crew of seed": limited,
    "kindred crew of seed": kindred,
}
_CREWS = 4  # each fourth seed makes a history with workers, too


@dataclass
class Count:
    """What some seeds came to: situations, faults, what was broken by which; CPU seconds, and simulated ones."""

    seeds: int = 0
    seen: Counter[str] = field(default_factory=Counter[str])
    faults: Counter[str] = field(default_factory=Counter[str])
    broken: list[tuple[str, int, str]] = field(default_factory=list[tuple[str, int, str]])
    seconds: float = 0.0
    simulated: float = 0.0

    def add(self, other: Count) -> None:
        """Those of others too."""
        self.seeds += other.seeds
        self.seen += other.seen
        self.faults += other.faults
        self.broken += other.broken
        self.seconds += other.seconds
        self.simulated += other.simulated


def _portion(first: int, last: int) -> Count:
    logging.disable(logging.CRITICAL)
    count, began = Count(last - first), time.process_time()
    for seed in range(first, last):
        for kind, draw in _DRAWS.items():
            if draw is not generated and seed % _CREWS:
                continue
            outcome = simulated(draw(seed))
            count.seen += outcome.seen
            count.faults += outcome.faults
            count.simulated += outcome.seconds
            if outcome.broken is not None:
                count.broken.append((kind, seed, str(outcome.broken)))
    count.seconds = time.process_time() - began
    return count


def _smallest(kind: str, seed: int) -> Scenario:
    scenario = _DRAWS[kind](seed)
    first = simulated(scenario).broken

    def fails(candidate: Scenario) -> bool:
        broken = simulated(candidate).broken
        return first is not None and broken is not None and broken.invariant == first.invariant

    return shrunk(scenario, fails)


def _seeds(options: argparse.Namespace, part: Part) -> bool:
    count = Count()
    firsts = range(options.first, options.first + options.seeds, _PORTION)
    lasts = [min(first + _PORTION, options.first + options.seeds) for first in firsts]
    with ProcessPoolExecutor(options.processes) as pool:
        for portion in pool.map(_portion, firsts, lasts):
            count.add(portion)
    pace = count.seeds / count.seconds * 60
    print(f"{count.seeds} seeds from {options.first}: {pace:.0f} per core-minute, {len(count.broken)} broken")
    part.counts["seeds"] += count.seeds
    part.counts["seconds"] += round(count.seconds)
    part.counts["simulated seconds"] += round(count.simulated)
    part.tables["simulated faults"] = count.faults
    part.violations += [f"{kind} {seed}: {what}" for kind, seed, what in count.broken]
    for title, counts in (("faults", count.faults), ("situations", count.seen)):
        print(f"\n{title}")
        for name, times in sorted(counts.items()):
            print(f"{times:10}  {name}")
    for kind, seed, what in count.broken[:5]:
        print(f"\n{kind} {seed}: {what}\n{to_json(_smallest(kind, seed))}")
    never = [name for name in SOMETIMES if not count.seen[name]] if options.nightly else []
    if never:
        print(f"\nnever seen: {never}")
    return not count.broken and not never


def _bugs(part: Part, *, corpus: bool) -> bool:
    print("\nplanted bugs: the seeds until each is found, and what it takes in the end")
    missed = False
    for bug in [*BUGS, *WORKER_BUGS]:
        found = bug.caught()
        if found is None:
            missed = True
            part.caught[f"{bug.name} (simulated)"] = ""
            print(f"{'NOT FOUND':>10}  {bug.name} ({bug.budget} seeds)")
            continue
        count, scenario, outcome = found
        first = outcome.broken
        part.caught[f"{bug.name} (simulated)"] = f"{first}; after {count:,} seeds"
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
    parser = argparse.ArgumentParser("python -m simulation", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--bugs", action="store_true")
    parser.add_argument("--corpus", action="store_true")
    parser.add_argument("--nightly", action="store_true")
    parser.add_argument("--figures", type=Path)
    parser.add_argument("--trace", type=int, metavar="SEED")
    parser.add_argument("--renew-traces", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    assert tripwire.is_laid, "the product was imported before the wires were laid"
    if options.renew_traces:
        traces.renew()
        return 0
    if options.trace is not None:
        print("\n".join(traces.trace(options.trace)))
        return 0
    part = begun(" ".join(["python -m simulation", *sys.argv[1:]]), f"from {options.first}")
    fine = not options.seeds or _seeds(options, part)
    if options.bugs or options.corpus or options.nightly:
        fine = _bugs(part, corpus=options.corpus) and fine
    if options.figures:
        keep(options.figures, part)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
