"""Histories in which runs are started, and workers execute them: a seed makes one."""

from __future__ import annotations

from random import Random
from typing import Final

from simulation.scenario import Limits, Op, Run, Scenario, Slot, Start, Works, draw_fault, draw_op

__all__ = ["crewed", "kindred", "limited", "ticking", "waiting"]

_CHANCE: Final = 5 << 40  # added to the seed: these histories have nothing to do with the others of their seeds
_WAITS: Final = 7 << 40  # … of those whose runs wait
_TICKS: Final = 9 << 40  # … of those with a schedule
_LIMITS: Final = 11 << 40  # … of those with limits
_FAMILIES: Final = 12 << 40  # … of those whose runs have children
_CHILDREN: Final = 700  # from which on families are numbered, and a thousand times that the steps of their children
_SITES: Final = 500  # from which on what was added to a run is numbered
_CALM: Final = 0.25  # of all histories: nothing goes wrong, and no start is missed
_FAULTS: Final = (
    "drain",
    "drain",
    "drain",
    "kill",
    "kill",
    "kill",
    "pause",
    "late body",
    "lose request",
    "lose reply",
    "lose reply",
    "late request",
    "half request",
    "conflict",
    "restart",
    "starve",
    "no thread",
    "turn fails",
)
_EVENTS: Final = 160  # of a process, within which a fault comes
_REQUESTS: Final = 20


def crewed(seed: int) -> Scenario:
    """The scenario of a seed."""
    draw = Random(seed + _CHANCE)  # noqa: S311 -- chance, not secrets
    runs = [_run(draw) for _ in range(draw.choice((1, 2, 2, 3, 4, 6)))]
    slots = [Slot([], draw.choice((0.0, 0.0, 1.5, -1.5)), draw.choice((0.0, 0.0, -5e-4, 5e-4)))]
    slots += [Slot([]) for _ in range(draw.choice((0, 1, 1, 2)))]
    scenario = Scenario(seed, runs, slots, lease=draw.choice((0.6, 2.0, 2.0, 6.0)))
    calm = draw.random() < _CALM
    workers = slots if len(slots) == 1 or draw.random() < 0.7 else slots[1:]
    for slot in workers:
        concurrency = len(runs) + 1 if calm else draw.choice((1, 1, 2, 4))
        mine = [run for run in range(len(runs)) if calm or draw.random() < 0.8]
        slot.works = Works(mine, concurrency, draw.choice((0.0, 0.3, 3.0)))
    burst = (
        draw.random() * 3.0 if calm and draw.random() < 0.7 else None
    )  # starts that come while others are being taken
    for run in range(len(runs)):
        if not any(slot.works and run in slot.works.runs for slot in slots):
            works = draw.choice(workers).works
            assert works is not None
            works.runs.append(run)
        after, delay = draw.random() * draw.choice((0.02, 0.3, 3.0)), draw.choice((0.0, 0.0, 0.0, 0.3, 2.0))
        if burst is not None:
            after, delay = burst + draw.random() * 0.008, 0.0
        draw.choice(slots).starts.append(Start(run, after, delay, draw.choice((0, 5, 5, 9))))
    for slot in workers:
        if slot.works is not None and not slot.works.runs:
            slot.works = None
    if not calm:
        _add_trouble(draw, scenario)
    return scenario


def waiting(seed: int) -> Scenario:
    """The same, whose runs also sleep, back off, wait for signals, and are suspended; some start in callers' transactions."""
    draw = Random(seed + _WAITS)  # noqa: S311 -- likewise
    scenario = crewed(seed)
    for slot in scenario.slots:
        if slot.works is not None:
            slot.works.suspend_after = draw.choice((0.0, 0.02, 0.02, 0.2, 1.0))
    for start in (start for slot in scenario.slots for start in slot.starts):
        if draw.random() < 0.3:
            start.open, start.undone = draw.choice((0.01, 0.3, 2.0)), draw.random() < 0.4
    for run in scenario.runs:
        for site in range(_SITES, _SITES + draw.choice((1, 1, 2, 3))):
            run.ops.insert(draw.randrange(len(run.ops) + 1), _wait(draw, site))
    return scenario


def ticking(seed: int) -> Scenario:
    """The same as `crewed`, whose workers have one schedule of a second."""
    draw = Random(seed + _TICKS)  # noqa: S311 -- likewise
    scenario = crewed(seed)
    workers = [slot.works for slot in scenario.slots if slot.works is not None]
    for works in workers:
        works.ticks = draw.random() < 0.8 or len(workers) == 1
    for start in (start for slot in scenario.slots for start in slot.starts):
        start.delay += draw.choice((0.0, 2.0, 5.0))  # so that there are some seconds
    return scenario


def limited(seed: int) -> Scenario:
    """The same as `crewed` or `waiting`, whose runs are in a queue with limits, and some of them in partitions."""
    draw = Random(seed + _LIMITS)  # noqa: S311 -- likewise
    scenario = draw.choice((crewed, crewed, waiting))(seed)
    starts = [start for slot in scenario.slots for start in slot.starts]
    names = draw.choice((("",), ("a",), ("a", "b"), ("a", "b", "")))
    for start in starts:
        start.partition = draw.choice(names)
        if draw.random() < 0.5:  # so that several are there at once
            start.after, start.delay = draw.random() * 0.02, 0.0
    scenario.limits = draw.choice((Limits(1), Limits(2), Limits(0, 1), Limits(0, 2), Limits(2, 1), Limits(3, 2)))
    return scenario


def kindred(seed: int) -> Scenario:
    """The same as `crewed`, whose runs have children: called, or started together; some fail, are cancelled, or have a
    parent that is.
    """
    draw = Random(seed + _FAMILIES)  # noqa: S311 -- likewise
    scenario = crewed(seed)
    for slot in scenario.slots:
        if slot.works is not None:
            slot.works.suspend_after = draw.choice((0.0, 0.02, 0.2, 1.0))
    for run in scenario.runs:
        for site in range(_CHILDREN, _CHILDREN + draw.choice((1, 1, 2))):
            run.ops.insert(draw.randrange(len(run.ops) + 1), _family(draw, site))
        if draw.random() < 0.15:
            run.cancelled_at = draw.random() * draw.choice((0.05, 0.5, 3.0))
    return scenario


def _family(draw: Random, site: int) -> Op:
    family = Op("family", site, caught=draw.random() < 0.5)
    for number in range(draw.choice((1, 1, 2, 3))):
        step = Op("step", 1000 * site + 10 * number, ms=draw.choice((0, 5, 30, 400)))
        step.fails = draw.choice((0, 0, 0, 1, 1, 3))
        family.branches.append([step])
    if draw.random() < 0.15:
        family.timeout = draw.choice((10, 50, 300, 2000))
    return family


def _wait(draw: Random, site: int) -> Op:
    if draw.random() < 0.3:
        return Op("sleep", site, f"z{site}", ms=draw.choice((30, 300, 1500, 4000)))
    return Op(
        "wait", site, f"w{site}", ms=draw.choice((1, 20, 50, 700, 2500)), timeout=draw.choice((0, 0, 1000, 20_000))
    )


def _run(draw: Random) -> Run:
    sites = iter(range(1000))
    ops = [_op(draw, next(sites)) for _ in range(draw.choice((1, 1, 2, 3)))]
    run = Run(ops, blocking=draw.random() < 0.5, tries=draw.choice((0, 0, 2, 4)))
    if draw.random() < 0.05:
        run.cancelled_at = draw.random() * draw.choice((0.03, 0.3))
    return run


def _op(draw: Random, site: int) -> Op:
    """What works in a run that nobody signals: all that holds a lease."""
    op = draw_op(draw, iter([site]), depth=1)
    while op.kind == "wait":
        op = draw_op(draw, iter([site]), depth=1)
    return op


def _add_trouble(draw: Random, scenario: Scenario) -> None:
    if draw.random() < 0.25:
        scenario.slow = draw.choice((0.02, 0.1))
    if draw.random() < 0.3:
        scenario.stalls = draw.choice((0.03, 0.1, 0.3))
    if draw.random() < 0.5:
        scenario.deaf = draw.choice((0.1, 0.5, 1.0))
    mix = draw.sample(_FAULTS, draw.choice((1, 2, 3)))
    for _ in range(draw.choice((0, 1, 1, 2, 2, 3, 4, 6))):
        fault = draw_fault(draw, draw.choice(mix), len(scenario.slots), scenario.lease)
        match fault.kind:
            case "drain":
                fault.at, fault.amount = draw.randrange(1, _EVENTS), draw.choice((0.0, 0.1, 1.0))
                fault.how = draw.choice(("", "", "twice"))
            case "kill" | "pause":
                fault.at = draw.randrange(1, _EVENTS)
            case "no thread":
                fault.slot, fault.at = draw.randrange(len(scenario.slots)), draw.randrange(1, 9)
            case "turn fails":
                fault.slot, fault.at = draw.randrange(len(scenario.slots)), draw.randrange(1, 40)
            case "lose request" | "lose reply" | "late request" | "half request" | "conflict":
                fault.at = draw.randrange(1, _REQUESTS)
            case _:
                pass
        scenario.faults.append(fault)
