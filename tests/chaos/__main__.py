"""The runner: plays rounds, plants bugs, writes the page.

python -m chaos play [PLAN …]       rounds of these plans in turns (all, if none is named), for --minutes or --rounds
python -m chaos plants [PLANT …]    each planted bug until it is caught
python -m chaos endure [LEAK]       an hour (--minutes) of a process that must not grow, with that leak planted if one is named
python -m chaos page                docs/reliability.md from docs/reliability.json

What is played is added to the file named by --figures, if one is. The exit code is 1 when a law was broken, or a planted bug
was not caught. --seed repeats chance's part; the scheduler's cannot be repeated.
"""

from __future__ import annotations

import argparse
import itertools
import secrets
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

from chaos.figures import ROOT, Part, begun, keep
from chaos.hours import lived
from chaos.leaks import LEAKS
from chaos.page import write
from chaos.plans import GROUNDS, PLANS, TRAPS
from chaos.rounds import caught, play, undisturbed
from chaos.servers import Single, single

FIGURES = ROOT / "docs" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(
        "python -m chaos", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=["play", "plants", "endure", "page"])
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"of {', '.join(PLANS)}; or of {', '.join(TRAPS)}; or of {', '.join(LEAKS)}",
    )
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=0, help="of each plan, at most")
    parser.add_argument("--runs", type=int, default=0, help="of each kind in a round, instead of the plan's number")
    parser.add_argument("--seed", default=secrets.token_hex(4))
    parser.add_argument("--record", type=Path, help="a file for all that was seen in an hour")
    parser.add_argument("--figures", type=Path, help=f"a file to add to, like {FIGURES.relative_to(ROOT)}")
    given = parser.parse_args()
    if given.what == "page":
        PAGE.write_text(write(FIGURES), "utf-8")
        return 0
    with single() as ground:
        part = begun(" ".join(["python -m chaos", *sys.argv[1:]]), given.seed, ground.admin)
        if given.what == "endure":
            _endure(part, ground, given.minutes or 60.0, "".join(given.names), given.record)
        elif given.what == "plants":
            _plant(part, given.names or list(TRAPS), given.rounds or 12)
        else:
            print(f"seed {given.seed}")
            verdict, oracle = undisturbed(given.seed, ground)
            part.add("undisturbed", verdict)
    if given.what == "play" and not part.violations:
        _play(part, given.names or list(PLANS), oracle, given)
    if given.figures:
        keep(given.figures.resolve(), part)
    for line in [*part.violations, *part.notes]:
        print(line)
    return int(bool(part.violations))


def _play(part: Part, names: list[str], oracle: dict[str, str], given: argparse.Namespace) -> None:
    """Every plan in its turn, on a ground that is made for it, until the time is over or a law is broken."""
    began, share = time.monotonic(), given.minutes * 60 / len(names)
    for place, name in enumerate(names, 1):
        ground_name, plan = PLANS[name]
        plan = replace(plan, runs_of_a_kind=given.runs or plan.runs_of_a_kind)
        try:
            with GROUNDS[ground_name]() as ground:
                for number in itertools.count(1):
                    verdict = play(plan, f"{part.seed} {number}", ground, oracle)
                    part.add(name, verdict)
                    taken = time.monotonic() - began
                    print(f"{taken:6.1f} s  {name} {number}: {verdict.counts['seconds']} s", flush=True)
                    if verdict.violations or number == given.rounds or (not given.rounds and taken > place * share):
                        break
        except PermissionError as refusal:
            part.notes.append(f"{name}: not played, {refusal}")
        if part.violations:
            return


def _plant(part: Part, names: list[str], rounds: int) -> None:
    with single() as ground:
        for name in names:
            taken, law = caught(TRAPS[name], name, part.seed, ground, rounds)
            part.caught[name] = f"{law} (round {taken})" if taken else ""
            print(f"{name}: {part.caught[name] or 'NOT CAUGHT'}", flush=True)
            if not taken:
                part.violations.append(f"the planted bug {name!r} was not caught in {rounds} rounds")


def _endure(part: Part, ground: Single, minutes: float, leak: str, record: Path | None) -> None:
    """With a leak it is well when a law is broken."""
    hours = lived(ground.admin, minutes * 60, leak=leak, record=record)
    violations = [f"{hour.name}: {violation}" for hour in hours for violation in hour.violations]
    part.counts["seconds"] += round(minutes * 60)
    if leak:
        part.notes += violations
        part.violations += [] if violations else [f"the leak {leak!r} was not found in {minutes:g} minutes"]
    else:
        part.violations += violations
        part.hours += [asdict(hour) for hour in hours]
        part.rounds.update(hour.name for hour in hours)


if __name__ == "__main__":
    sys.exit(main())
