"""The runner: plays rounds, plants bugs, writes the page.

python -m chaos play [PLAN …]       rounds of these plans in turns (all, if none is named), for --minutes or --rounds
python -m chaos plants [PLANT …]    each planted bug until it is caught, and all leaks at once for ten minutes (or --minutes)
python -m chaos endure              an hour (or --minutes) of processes that must not grow
python -m chaos workers             --runs of five steps by workers that are killed each 2 s, and a restart each 10 s (times --pace)
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
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from chaos.figures import ROOT, Part, begun, keep
from chaos.fleet import storm, told
from chaos.hours import Hour, Tenant, lived
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
    parser.add_argument("what", choices=["play", "plants", "endure", "workers", "page"])
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"of {', '.join(PLANS)}; or of {', '.join(TRAPS)}; or of {', '.join(LEAKS)}",
    )
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=0, help="of each plan, at most")
    parser.add_argument("--runs", type=int, default=0, help="of each kind in a round, instead of the plan's number")
    parser.add_argument("--pace", type=float, default=1.0)
    parser.add_argument("--seed", default=secrets.token_hex(4))
    parser.add_argument("--record", type=Path, help="a file for all that was seen in an hour")
    parser.add_argument("--figures", type=Path, help=f"a file to add to, like {FIGURES.relative_to(ROOT)}")
    given = parser.parse_args()
    if given.what == "page":
        PAGE.write_text(write(FIGURES), "utf-8")
        return 0
    if given.what == "workers":
        return _workers(given)
    with single() as ground:
        part = begun(" ".join(["python -m chaos", *sys.argv[1:]]), given.seed, ground.admin)
        if given.what == "endure":
            _endure(part, lived(ground.admin, 60 * (given.minutes or 60.0), record=given.record))
        elif given.what == "plants":
            names = given.names or [*TRAPS, *LEAKS]
            _plant(part, ground, [name for name in names if name not in LEAKS], given.rounds or 12)
            _leak(part, ground, [name for name in names if name in LEAKS], given.minutes or 10.0)
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


def _workers(given: argparse.Namespace) -> int:
    print(f"seed {given.seed}")
    with single() as ground:
        said, counts = storm(ground, given.runs or 10_000, given.seed, given.pace)
    print(told(counts), *said, sep="\n")
    return int(bool(said))


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


def _plant(part: Part, ground: Single, names: list[str], rounds: int) -> None:
    for name in names:
        taken, law = caught(TRAPS[name], name, part.seed, ground, rounds)
        part.caught[name] = f"{law} (round {taken})" if taken else ""
        print(f"{name}: {part.caught[name] or 'NOT CAUGHT'}", flush=True)
        if not taken:
            part.violations.append(f"the planted bug {name!r} was not caught in {rounds} rounds")


def _leak(part: Part, ground: Single, names: list[str], minutes: float) -> None:
    """All at once, each in a process of its own."""
    if not names:
        return
    for hour in lived(ground.admin, 60 * minutes, [Tenant(name, leak=name) for name in names]):
        shows = LEAKS[hour.name](ground.url).shows
        told = [violation for violation in hour.violations if shows in violation]
        part.caught[hour.name] = f"{told[0]} ({minutes:g} minutes)" if told else ""
        print(f"{hour.name}: {part.caught[hour.name] or 'NOT CAUGHT'}", flush=True)
        if not told:
            part.violations.append(f"the leak {hour.name!r} did not show in {minutes:g} minutes")


def _endure(part: Part, hours: Sequence[Hour]) -> None:
    for hour in hours:
        part.violations += [f"{hour.name}: {violation}" for violation in hour.violations]
        part.hours.append(asdict(hour))
        part.rounds[hour.name] += 1
        part.counts["seconds"] = round(hour.seconds)


if __name__ == "__main__":
    sys.exit(main())
