"""docs/reliability.md, made of the figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from chaos import cases, hours_page
from chaos.figures import Part, kept, summed
from chaos.plans import PLANS

_NEVER: Final = (
    ("acknowledged steps", "acknowledged steps lost", "acknowledged steps lost or changed"),
    (
        "acknowledged steps",
        "acknowledged bodies run again by a lease holder",
        "their bodies run again by a lease holder",
    ),
    ("at-most-once steps", "at-most-once bodies run again", "at-most-once bodies begun twice"),
    ("transactional steps", "transactional effects doubled", "transactional effects doubled or missing"),
    ("audited writes", "writes under a stale lease", "records written under a lease that was not their writer's"),
    ("replays", "replays unlike the record", "replayed values unlike the recorded one"),
    ("results", "results unlike the oracle's", "results unlike those of a run without faults"),
    ("runs", "runs not ended", "runs not ended a minute after the last fault"),
)


def write(path: Path) -> str:
    """The page."""
    parts = kept(path)
    counts, tables = summed(parts)
    sections = [
        _HEAD,
        _never(counts),
        _simulated(counts, tables),
        _sometimes(counts, tables),
        _faults(counts, tables),
        _commits(counts, tables),
        _recoveries(tables),
        _plants(parts),
        hours_page.section(parts),
        _parts(parts),
        f"## Cases\n\n{_CASES}\n\n{cases.table(neighbours=False)}",
        f"### Neighbours\n\n{_NEIGHBOURS}\n\n{cases.table(neighbours=True)}",
    ]
    return "\n\n".join(sections) + "\n"


_HEAD: Final = """\
# What was broken, and what held

Made by `python -m chaos page` (in `tests/`) from [reliability.json](reliability.json), to which every call of the runner that
is listed [below](#what-was-played) has added what it counted. Nothing here is estimated.

Processes run workflows of eight kinds, blocking and async, with every feature: retries, maps, transactions, sleeps, signals,
cancellations, migrations, at-most-once steps, values above 256 KiB. Meanwhile they are killed and stopped, their connections
cut, and their PostgreSQL is killed, restarted, filled up or replaced by its standby; a dead process is replaced by a new one
until all runs have ended. Three witnesses are asked afterwards: a log of effects outside the database, a second database
that copies what transactions said, and a trigger in the store, which writes down with every record whose lease it was
written under at the moment of its commit. The last one is needed: without it, a store that lets anybody write passes.

What can be modelled is [simulated](simulation.md), a seed at a time."""

_CASES: Final = """\
The list of faults and abuse that this library is tested against, and the test files that name each. Where there is none,
[guarantees.md](guarantees.md#cases-that-no-test-covers) says why."""

_NEIGHBOURS: Final = """\
What else uses the same database, the same server or the same machine: roles, triggers, policies, other stores, other accounts."""


def _never(counts: Counter[str]) -> str:
    lines = ["## What must never happen", "", "| of so many | so often | what | rate, with 95 % confidence |"]
    lines += ["| ---: | ---: | --- | --- |"]
    for whole, part, what in _NEVER:
        rate = f"below 1 in {counts[whole] // 3:,}" if counts[whole] >= 3 and not counts[part] else "–"
        lines.append(f"| {counts[whole]:,} | {counts[part]:,} | {what} | {rate} |")
    lines += [
        "",
        "The last column is the rule of three: what was not seen in *n* independent trials happens, with a confidence of 95 %, less",
        "often than 3 in *n*. It speaks of trials like these, under these faults on this machine, and of nothing else.",
    ]
    return "\n".join(lines)


def _simulated(counts: Counter[str], tables: Mapping[str, Counter[str]]) -> str:
    seeds, hours, faults = (
        counts["seeds"],
        counts["simulated seconds"] / 3600,
        tables.get("simulated faults", Counter()),
    )
    return f"""## Simulated

{seeds:,} seeds of the [simulation](simulation.md), {hours:,.0f} simulated hours with {faults.total():,} faults: {_listed(faults)}.
What a broken invariant would be is said there; a seed that had found one would be listed under *what was played*."""


def _sometimes(counts: Counter[str], tables: Mapping[str, Counter[str]]) -> str:
    again, steps = counts["ordinary steps whose body ran more than once"], counts["ordinary steps"]
    late, stops = counts["acknowledged bodies begun late by a zombie"], counts["SIGSTOP"]
    kinds = tables.get("ordinary bodies that ran more than once, by the kind of run", Counter())
    forgotten = counts["acknowledged before a fail-over without a synchronous standby"]
    lost = counts["of these lost with it"]
    return f"""## What does happen

- **{again:,} of {steps:,} ordinary steps ran their body more than once.** It was running, or had ended and was not recorded yet, when its
  process was killed, its lease ended, or its run was cancelled. That is the promise: at least once until it is acknowledged.
  By kind of run: {_listed(kinds)}. Transactional steps are not among them: theirs are rolled back.
- {late:,} bodies of steps that another process had recorded meanwhile were begun by a process that had been stopped ({stops:,} times SIGSTOP) between
  its last look at the lease and the body's first line; what they returned was rejected.
- {counts["zombies rejected"]:,} times a process that had been stopped for longer than its lease was told `LeaseLost`.
- {lost:,} of {forgotten:,} steps that had been acknowledged in rounds with promotions of a standby which was *not* synchronous, and was held
  up for up to half a second, had no such record at the end (one that was lost and made again with the same value is not counted).
  {counts["holes noticed"]:,} times an execution that had lived through it was told `RecordsLost`, and the run went on from what was stored; no
  run was completed without the effects of its transactions.
  With a synchronous standby none was lost: those are counted in the table above."""


def _faults(counts: Counter[str], tables: Mapping[str, Counter[str]]) -> str:
    lines = ["## Faults", "", "| fault | times |", "| --- | ---: |"]
    kills = tables.get("SIGKILL", Counter())
    lines.append(f"| **SIGKILL** | **{kills.total():,}** |")
    lines += [f"| – {place} | {n:,} |" for place, n in kills.most_common()]
    lines.append(
        f"| **SIGSTOP, and SIGCONT after 1.1 to 1.8 leases, unless killed before** | **{counts['SIGSTOP']:,}** |"
    )
    lines.append(f"| **backends terminated** | **{counts['backends terminated']:,}** |")
    servers = tables.get("servers ended", Counter())
    lines.append(f"| **servers ended and started again** | **{servers.total():,}** |")
    lines += [f"| – {_HOWS[how]} | {n:,} |" for how, n in servers.most_common()]
    lines.append(f"| **writes cut off on the wire** | **{counts['commits cut off']:,}** |")
    lines.append(f"| **claims cut off on the wire** | **{counts['claims cut off']:,}** |")
    promotions = tables.get("promotions", Counter())
    lines.append(f"| **primaries killed, standbys promoted** | **{promotions.total():,}** |")
    lines += [f"| – {kind} | {n:,} |" for kind, n in promotions.most_common()]
    lines.append(f"| **disks full** | **{counts['disks full']:,}** |")
    return "\n".join(lines)


_HOWS: Final = {
    "SIGKILL": "kill -9 of all its processes",
    "SIGQUIT": "immediate shutdown",
    "SIGINT": "fast shutdown",
}


def _commits(counts: Counter[str], tables: Mapping[str, Counter[str]]) -> str:
    cut = {name: _told(table) for name, table in tables.items() if name.startswith(("write cut off", "claim cut off"))}
    outcomes = sorted({outcome for table in cut.values() for outcome in table})
    lines = [
        "## Ambiguous commits, by outcome",
        "",
        "What a process heard in the end of a write whose connection was cut; a batch counts once for each run in it.",
        "`durable` reads back what became of it, so most are acknowledged in the end whichever side of the commit the cut was.",
        "",
        f"| | {' | '.join(outcomes)} |",
        f"| --- |{' ---: |' * len(outcomes)}",
    ]
    lines += [f"| {name} | {' | '.join(f'{cut[name][o]:,}' for o in outcomes)} |" for name in sorted(cut, reverse=True)]
    told = tables.get("told to callers", Counter())
    return "\n".join([*lines, "", f"All errors that came out of `durable.run`: {_listed(told)}."])


def _told(table: Counter[str]) -> Counter[str]:
    """What came out of the run is told by its acknowledged end: its result, or the workflow's own failure."""
    told: Counter[str] = Counter()
    for outcome, n in table.items():
        told["acknowledged" if outcome in ("result returned", "OutOfOrder") else outcome] += n
    return told


def _recoveries(tables: Mapping[str, Counter[str]]) -> str:
    lines = [
        "## Recovery",
        "",
        "From the fault to the moment when the run is executed again (processes), or the next step is acknowledged (servers;",
        "how long they stay down is part of it). One SIGKILL counts for every run that it has interrupted, and nothing else waits meanwhile: what",
        "is interrupted again counts from the first time. The leases of these processes are 1 s and 2 s long, and free workers look for work every 50 ms.",
        "",
        "| after | times | median | 95 % within | longest |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name in sorted(name for name in tables if name.startswith("recovery after ")):
        times = sorted((float(told), n) for told, n in tables[name].items())
        middle, late = (_quantile(times, share) for share in (0.5, 0.95))
        total = tables[name].total()
        lines.append(
            f"| {name.removeprefix('recovery after ')} | {total:,} | {middle} | {late} | {_seconds(times[-1][0])} |"
        )
    return "\n".join(lines)


def _quantile(times: list[tuple[float, int]], share: float) -> str:
    left = share * sum(n for _, n in times)
    for milliseconds, n in times:
        left -= n
        if left <= 0:
            return _seconds(milliseconds)
    return "–"


def _seconds(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.2g} s"


def _plants(parts: list[Part]) -> str:
    caught: dict[str, str] = {}
    for part in parts:
        caught |= part.caught
    lines = [
        "## Planted bugs",
        "",
        f"{sum(map(bool, caught.values()))} of {len(caught)} were caught, by this law and in this time:",
        "",
        *(f"- {name}: {how or 'NOT CAUGHT'}" for name, how in caught.items()),
    ]
    return "\n".join(lines)


def _parts(parts: list[Part]) -> str:
    lines = ["## What was played", ""]
    for part in parts:
        versions = ", ".join(f"{name} {version}" for name, version in part.versions.items())
        rounds = f"rounds: {_listed(part.rounds)}" if part.rounds else f"{len(part.caught)} planted bugs"
        if part.counts["seeds"]:
            rounds = f"{part.counts['seeds']:,} seeds, {rounds}"
        broken = f" **Laws broken: {len(part.violations)}.**" if part.violations else ""
        notes = " ".join(["", *part.notes])
        lines.append(
            f"- `{part.command}`, seed {part.seed}, commit {part.commit}; {versions}; {part.machine}; "
            f"{part.counts['seconds']:,} s; {rounds}.{broken}{notes}"
        )
    lines += [
        "",
        "The rounds (rates are per second; `deadly`, `cuts`, `wire_kills` and `slow` are chances; see `chaos/faults.py`):",
        "",
    ]
    for name, (ground, plan) in PLANS.items():
        told = ", ".join(
            f"{kind} {rate:g}" for kind, rate in vars(plan.weather).items() if isinstance(rate, float | int) and rate
        )
        lines.append(f"- {name}: on {ground}; leases of {plan.lease:g} s; {told}")
    return "\n".join(lines)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in sorted(counts.items(), key=lambda each: -each[1])) or "none"
