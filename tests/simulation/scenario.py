"""One simulated history as data: the runs, who calls them, and what goes wrong. A seed makes one; a file keeps one."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Final

import msgspec
from msgspec import Struct

__all__ = [
    "FAULTS",
    "HOWS",
    "Fault",
    "Limits",
    "Op",
    "Run",
    "Scenario",
    "Slot",
    "Start",
    "Works",
    "draw_fault",
    "draw_op",
    "from_json",
    "generated",
    "to_json",
]


class Op(Struct, omit_defaults=True):
    """What a workflow does: a `step`, a `sleep`, a `wait` for a signal, a `gather` of branches, a `map` over items, or a
    `transaction`, which is a step that moves something between two accounts of the user's; a `guard`, which does its first
    branch, and its second one when that is left, as `how` says (see `HOWS`); or an `interruption` between two steps;
    or a `family`, which calls its one child, or starts its children and waits for all of them: what each does is a branch.

    `site` names the place in the code, whatever its key is. A step without `keyed` has an automatic key, its name. Its body
    is `given` its site as an argument, or is a thunk; it takes `ms`, and `fails` so many times in all; it is tried
    `attempts` times (0: no policy), at most `once`, and when it raises all the same the workflow has `caught` it. With a
    `timeout` (ms for each attempt; 0: none) a body that fails is one that takes too long. The items of a map are the steps
    in its branches, `at_once` so many (0: all); `keyed`, `attempts`, `timeout` and `caught` are the map's own. A step that
    is `cleanup` is declared so. A wait with a `timeout` (ms) goes on without its signal after that. The body of a step that
    `interrupts` is left by Ctrl-C so many times, as is an interruption. With a `timeout` (ms) the first child of a family is
    cancelled from outside so long after its parent's start.
    """

    kind: str
    site: int
    name: str = "s"
    keyed: bool = False
    ms: int = 5
    fails: int = 0
    attempts: int = 0
    once: bool = False
    caught: bool = False
    given: bool = False
    timeout: int = 0
    at_once: int = 0
    how: str = ""
    cleanup: bool = False
    interrupts: int = 0
    branches: list[list[Op]] = msgspec.field(default_factory=list["list[Op]"])


class Run(Struct, omit_defaults=True):
    """A workflow. `cancelled_at` seconds it is cancelled from outside; `resumed` says whether it is taken up again then.

    One that is started is tried so many `tries` by its workers when it fails (0: it has failed then).

    Where the run is refused until it is decided what becomes of some steps, they are set aside by name, or all from the step
    of the site `decided_from` on. When it has failed or was interrupted for the first time, it is retried from the step of the
    site `retried_from` (-1: neither).
    """

    ops: list[Op]
    blocking: bool = False
    cancelled_at: float = 0.0
    resumed: bool = False
    decided_from: int = -1
    retried_from: int = -1
    tries: int = 0


class Works(Struct, omit_defaults=True):
    """A worker that has the workflows of these runs, and executes so many at once; a schedule of a second, if it `ticks`."""

    runs: list[int]
    concurrency: int = 2
    grace: float = 1.0
    suspend_after: float = 1.0
    ticks: bool = False


class Limits(Struct, omit_defaults=True):
    """What the queue of all runs that are started lets be executed at once, and of one partition; 0 is any number."""

    concurrency: int = 0
    partition_concurrency: int = 0


class Start(Struct, omit_defaults=True):
    """A run that is started so many seconds after its place's start, due `delay` seconds later.

    In a transaction of its caller's that stays `open` so many seconds, if in one; and that is `undone` the first time.
    It may be one of a `partition`.
    """

    run: int
    after: float
    delay: float = 0.0
    priority: int = 5
    open: float = 0.0
    undone: bool = False
    partition: str = ""


class Slot(Struct, omit_defaults=True):
    """A place where processes live, one after the other. `calls` are (run, seconds after its start, whether it waits).

    `works` and `starts` are of histories with workers: a run is either called or started.
    """

    calls: list[tuple[int, float, bool]]
    skew: float = 0.0  # seconds that its wall clock is ahead
    drift: float = 0.0  # by which its clocks are fast
    works: Works | None = None
    starts: list[Start] = []


class Fault(Struct, omit_defaults=True):
    """Something that goes wrong, in a `slot` or (-1) at the server, at its `at`-th occasion; see `FAULTS` for the occasions.

    `how` a process dies: what it has sent arrives, or the machine `drops` it, or it `lags` behind. How a request or reply is
    lost: with its connection, or `silent`ly. With which SQLSTATE the server refuses a request for a conflict.
    """

    kind: str
    slot: int
    at: float
    amount: float = 0.0
    how: str = ""


class Scenario(Struct, omit_defaults=True):
    """A history to simulate. `seed` gives latencies and stalls; `slow` and `stalls` say how likely those are.

    Each connection carries `rate` bytes in a second (0: any number), and a byte of a record stands for `weight` of them: what
    a journal of thousands of lines is to a line of megabytes a second, that is to it one of ten.
    """

    seed: int
    runs: list[Run]
    slots: list[Slot]
    faults: list[Fault] = []
    lease: float = 2.0
    slow: float = 0.0
    stalls: float = 0.0
    rate: float = 0.0
    weight: int = 1
    deaf: float = 0.0
    limits: Limits | None = None


# When the second branch of a guard is done, and whether the workflow goes on then.
HOWS: Final = {
    "except": "where an exception came, which is raised again",
    "finally": "always; what came is raised again",
    "anyway": "where anything came, Ctrl-C and cancellations too, which is raised again",
    "fallback": "where an exception came, which is caught",
    "caught": "where a cancellation came, which is caught",
}

# Each kind of fault with the occasions that are counted (an event, a request, a body, a thread's start or turn, seconds).
FAULTS: Final = {
    "kill": "event",
    "pause": "event",
    "cancel await": "event",
    "change code": "event",
    "step clock": "event",
    "late body": "body",
    "lose request": "request",
    "lose reply": "request",
    "late request": "request",
    "half request": "request",
    "conflict": "request",
    "restart": "time",
    "fail over": "time",
    "starve": "time",
    "no thread": "thread",
    "turn fails": "turn",
    "cancel again": "event",
    "drop rows": "time",
    "set clock": "event",
    "set server back": "time",
    "drain": "event",  # SIGTERM; `how` twice
}
_LATER: Final = ("no thread", "turn fails", "cancel again", "drop rows")  # drawn apart, as failing paths are
_CLOCKS: Final = ("set clock", "set server back")  # likewise
_OF_WORKERS: Final = ("drain",)  # see `crews`

_EVENTS: Final = 90  # of a process, within which most of what matters happens
_REQUESTS: Final = 14
_BEFORE: Final = 200  # added to the site of a step that is put before another
_THREE_ROUND_TRIPS: Final = 20  # ms
_SLOW_LINES: Final = 0.06  # of all histories
_SET_CLOCKS: Final = 0.12
_SERVERS: Final = 0.25  # of the clocks that are set
_PAGE: Final = 256 * 1024  # see `batches.page_bytes`
_NAPS: Final = 400  # the site of a sleep that is added
_OTHER_CHANCE: Final = 1 << 40  # added to the seed of what was drawn before there were failing paths
_STRAIGHT: Final = 0.6  # of all histories
_GUARDED: Final = 300  # added to the sites of what is in a guard
_ITEMS: Final = 1000  # times the site of a map and one more, and then the number of an item, is the site of the item


def generated(seed: int) -> Scenario:
    """The scenario of a seed."""
    draw = Random(seed)  # noqa: S311 -- chance, not secrets
    scenario = Scenario(seed, _runs(draw), [])
    slots = draw.choice((1, 2, 2, 2, 3))
    timed = any(op.kind != "step" or op.attempts for run in scenario.runs for op in run.ops)
    for number in range(slots):
        calls = [
            (run, draw.random() * draw.choice((0.02, 0.3, 3.0)), draw.random() < 0.5)
            for run in range(len(scenario.runs))
            if number == run % slots or draw.random() < 0.4
        ]
        scenario.slots.append(Slot(calls, _skew(draw, timed=timed), draw.choice((0.0, 0.0, -5e-4, 5e-4))))
    scenario.lease = draw.choice((0.6, 2.0, 2.0, 6.0))
    if draw.random() < 0.3:
        scenario.slow = draw.choice((0.02, 0.1))
    if draw.random() < 0.4:
        scenario.stalls = draw.choice((0.03, 0.1, 0.3))
    mix = draw.sample(sorted(FAULTS.keys() - {*_LATER, *_CLOCKS, *_OF_WORKERS}), draw.choice((1, 2, 3)))
    for _ in range(draw.choice((0, 1, 1, 2, 2, 3, 4, 6))):
        scenario.faults.append(draw_fault(draw, draw.choice(mix), slots, scenario.lease))
    _add_failing_paths(Random(seed + _OTHER_CHANCE), scenario)  # noqa: S311
    _add_faults(Random(seed + 2 * _OTHER_CHANCE), scenario)  # noqa: S311
    _add_time(Random(seed + 3 * _OTHER_CHANCE), scenario)  # noqa: S311
    return scenario


def _add_time(draw: Random, scenario: Scenario) -> None:
    """Let clocks be set while runs wait, or lines be slow."""
    kind = draw.random()
    if kind < _SLOW_LINES:
        # The first page of a journal takes a quarter of the lease at the most; all of it takes longer than that.
        scenario.rate = 4 * _PAGE / scenario.lease * draw.choice((1, 1, 2))
        scenario.weight = draw.choice((300, 1000))
    elif kind < _SLOW_LINES + _SET_CLOCKS:
        for _ in range(draw.choice((1, 1, 2, 3))):
            slot = draw.randrange(len(scenario.slots))
            if draw.random() < _SERVERS:
                at = round(draw.random() * draw.choice((0.05, 0.5, 3.0)), 4)
                scenario.faults.append(Fault("set server back", -1, at, draw.choice((0.3, 1.0, 5.0))))
            else:
                far = 3600.0 if len(scenario.slots) == 1 else 60.0  # what is due by it, others wait for
                by = draw.choice((-far, -far, -3.0, 3.0, far))
                scenario.faults.append(Fault("set clock", slot, draw.randrange(1, _EVENTS), by))
        if not any(op.kind == "sleep" for run in scenario.runs for op in run.ops):
            run = draw.choice(scenario.runs)
            run.ops.insert(
                draw.randrange(len(run.ops) + 1), Op("sleep", _NAPS, f"z{_NAPS}", ms=draw.choice((300, 1500)))
            )


def _add_faults(draw: Random, scenario: Scenario) -> None:
    if draw.random() < _STRAIGHT:
        return
    for kind in draw.choices(_LATER, k=draw.choice((1, 1, 2))):
        slot = draw.randrange(len(scenario.slots))
        match kind:
            case "no thread":
                scenario.faults.append(Fault(kind, slot, draw.randrange(1, 7)))
            case "turn fails":
                scenario.faults.append(Fault(kind, slot, draw.randrange(1, 30)))
            case "cancel again":
                scenario.faults.append(Fault(kind, slot, draw.randrange(1, _EVENTS), draw.choice((1, 2, 20))))
                if draw.random() < _STRAIGHT:  # alone, so that nothing else keeps a lease
                    scenario.faults, scenario.slow, scenario.stalls = scenario.faults[-1:], 0.0, 0.0
            case _:
                at = round(draw.random() * draw.choice((0.05, 0.5, 3.0)), 4)
                scenario.faults.append(Fault(kind, -1, at, draw.choice((1, 2, 3, 6))))


def _add_failing_paths(draw: Random, scenario: Scenario) -> None:
    """Let some workflows do more while they fail or are left, and some runs be retried. The other chances stay as they are."""
    if draw.random() < _STRAIGHT:
        return
    for slot in scenario.slots:  # as where a workflow sleeps
        slot.skew = max(-1.5, min(slot.skew, 1.5))
    for run in scenario.runs:
        sites = iter(range(_GUARDED, _GUARDED + 100))
        for _ in range(draw.choice((0, 1, 1, 2))):
            run.ops.insert(draw.randrange(len(run.ops) + 1), _guard(draw, sites, blocking=run.blocking))
        if run.blocking and draw.random() < 0.3:
            interruption = Op("interruption", next(sites), interrupts=draw.choice((1, 2)))
            run.ops.insert(draw.randrange(len(run.ops) + 1), interruption)
        named = [op.site for op in _named(run.ops)]
        if named and draw.random() < 0.3:
            run.decided_from = draw.choice(named)
        if named and draw.random() < 0.3:
            run.retried_from = draw.choice(named)
        if not run.blocking and draw.random() < 0.5:
            number = draw.choice([n for n, slot in enumerate(scenario.slots) if slot.calls] or [0])
            scenario.faults.append(Fault("cancel await", number, draw.randrange(5, _EVENTS)))


def _guard(draw: Random, sites: Iterator[int], *, blocking: bool) -> Op:
    guard = Op("guard", next(sites), how=draw.choice(("except", "except", "finally", "anyway", "fallback", "caught")))
    if blocking and guard.how == "caught":
        guard.how = "finally"
    inside = [draw_op(draw, sites, 1) for _ in range(draw.choice((1, 2, 2)))]
    if draw.random() < 0.8:
        inside.append(Op("step", site := next(sites), f"s{site}", ms=draw.choice((0, 5, 400)), given=True))
        if blocking and draw.random() < 0.4:
            inside[-1].interrupts = 1
        else:
            inside[-1].fails = draw.choice((1, 1, 2))
    out = [_on_the_way_out(draw, sites) for _ in range(draw.choice((1, 1, 2)))]
    guard.branches = [inside, out]
    return guard


def _on_the_way_out(draw: Random, sites: Iterator[int]) -> Op:
    site, kind = next(sites), draw.random()
    if kind < 0.15:
        return _map(draw, site)
    if kind < 0.35:
        return Op("transaction", site, f"t{site}", draw.random() < 0.4, draw.choice((0, 5)), given=True)
    op = Op("step", site, f"s{site}", draw.random() < 0.4, draw.choice((0, 1, 5, 400)), given=True)
    op.cleanup = draw.random() < 0.25
    op.fails = int(draw.random() < 0.1)
    return op


def _named(ops: list[Op]) -> Iterator[Op]:
    """The steps whose keys are known: not those which share a name."""
    for op in ops:
        if op.kind in ("step", "transaction") and (op.keyed or op.name.endswith(str(op.site))):
            yield op
        for branch in op.branches if op.kind == "guard" else ():
            yield from _named(branch)


def _skew(draw: Random, *, timed: bool) -> float:
    # Where a workflow sleeps, another machine's hour is an hour of sleep, and of polling.
    return draw.choice((0.0, 0.0, 0.0, 1.5, -1.5) + (() if timed else (3600.0, -3600.0)))


def _runs(draw: Random) -> list[Run]:
    runs: list[Run] = []
    for _ in range(draw.choice((1, 1, 1, 2, 2, 3))):
        sites = iter(range(1000))
        ops = [draw_op(draw, sites, depth=0) for _ in range(draw.choice((1, 2, 2, 3, 3)))]
        branched = any(op.kind == "gather" for op in ops)
        for op in ops:
            if branched and op.name == "s" and draw.random() < 0.9:  # else it is refused, sooner or later
                op.given = True
        run = Run(ops, blocking=not branched and draw.random() < 0.3)
        if draw.random() < 0.06:
            run.cancelled_at = draw.random() * draw.choice((0.03, 0.3))
            run.resumed = draw.random() < 0.6
        runs.append(run)
    return runs


def draw_op(draw: Random, sites: Iterator[int], depth: int) -> Op:
    """Something that a workflow does, `depth` guards and branches deep."""
    site = next(sites)
    kind = draw.random()
    if kind < 0.14 and depth == 0:
        branches: list[list[Op]] = [
            [draw_op(draw, sites, 1) for _ in range(draw.choice((1, 1, 2)))] for _ in range(draw.choice((2, 2, 3)))
        ]
        if draw.random() < 0.25:  # a name that branches share, after something that takes its time: to be refused
            for branch in branches[:2]:
                before = Op("step", branch[0].site + _BEFORE, f"b{branch[0].site}", ms=draw.choice((0, 5, 30, 400)))
                branch[:] = [before, Op("step", branch[0].site, "shared", ms=draw.choice((1, 5, 20)))]
        return Op("gather", site, branches=branches)
    if kind < 0.2:
        return Op("sleep", site, f"z{site}", ms=draw.choice((10, 100, 1500)))
    if kind < 0.26:
        return Op("wait", site, f"w{site}", ms=draw.choice((1, 50, 700)))
    if kind < 0.31:
        return _map(draw, site)
    if kind < 0.38:
        return _transaction(draw, site, depth)
    keyed = draw.random() < 0.4
    op = Op("step", site, f"s{site}" if keyed or depth else "s", keyed, draw.choice((0, 1, 5, 30, 400)))
    op.given = draw.random() < 0.7
    trouble = draw.random()
    if trouble < 0.12:
        op.fails, op.attempts = draw.choice(((1, 0), (1, 3), (2, 2), (2, 3)))
        op.caught = draw.random() < 0.3
    elif trouble < 0.18:
        op.once = True
    if draw.random() < 0.1:
        op.timeout = _longer_than(draw, op.ms)
        op.caught |= op.once  # it is not tried again, whoever runs the run again
    return op


def _transaction(draw: Random, site: int, depth: int) -> Op:
    op = Op("transaction", site, f"t{site}", draw.random() < 0.4, draw.choice((0, 1, 5, 30, 400)))
    op.given = draw.random() < 0.7
    if draw.random() < 0.15:
        op.fails, op.attempts = draw.choice(((1, 0), (1, 2), (2, 3)))
        op.caught = draw.random() < 0.3
    if (
        depth == 0 and draw.random() < 0.15
    ):  # of two branches that want one account, one would give up, and so undo the other
        op.timeout = _longer_than(draw, op.ms) + _THREE_ROUND_TRIPS
    return op


def _map(draw: Random, site: int) -> Op:
    op = Op("map", site, f"m{site}", draw.random() < 0.5, at_once=draw.choice((0, 1, 2)))
    op.attempts, op.caught = draw.choice((0, 0, 2)), draw.random() < 0.3
    for number in range(draw.choice((1, 2, 2, 3))):
        item = Op("step", _ITEMS * (site + 1) + number, ms=draw.choice((0, 1, 5, 30, 400)))
        item.fails = int(draw.random() < 0.1)
        op.branches.append([item])
    if draw.random() < 0.2:
        op.timeout = _longer_than(draw, *(item.ms for branch in op.branches for item in branch))
    return op


def _longer_than(draw: Random, *ms: int) -> int:
    return 2 * max(ms) + draw.choice((3, 20, 200))


def draw_fault(draw: Random, kind: str, slots: int, lease: float) -> Fault:
    """A fault of this kind, somewhere."""
    slot = draw.randrange(slots)
    match FAULTS[kind]:
        case "event":
            fault = Fault(kind, slot, draw.randrange(1, _EVENTS if draw.random() < 0.7 else 3 * _EVENTS))
        case "request":
            fault = Fault(kind, slot, draw.randrange(1, _REQUESTS))
        case "body":
            fault = Fault(kind, slot, draw.randrange(1, 7))
        case _:
            fault = Fault(
                kind, slot if kind == "starve" else -1, round(draw.random() * draw.choice((0.05, 0.5, 3.0)), 4)
            )
    match kind:
        case "pause" | "late body":
            fault.amount = round(lease * draw.choice((0.2, 0.7, 1.0, 1.2, 2.0, 3.0)) + draw.random() * 0.1, 4)
        case "kill" | "change code":  # seconds until the next life
            fault.amount = draw.choice((0.0, 0.0, 0.1, 1.0, 2.0))
            fault.how = draw.choice(("", "drops", "lags"))
        case "step clock":
            fault.amount = draw.choice((-3.0, -0.5, 0.5, 3.0))
        case "lose request" | "lose reply":
            fault.how = draw.choice(("", "silent"))
        case "conflict":
            fault.how = draw.choice(("40001", "40P01"))
        case "late request" | "half request":
            fault.amount = draw.choice((0.002, 0.01, 0.05, 0.3, 3.0))
        case "fail over":  # commits that the standby lacks
            fault.amount = draw.choice((0, 1, 1, 2, 3, 5))
        case "restart":
            fault.amount = draw.choice((0.0, 0.05, 0.5, 4.0))
        case "starve":
            fault.amount = draw.choice((0.1, 1.0, 8.0))
        case _:
            pass
    return fault


def to_json(scenario: Scenario) -> str:
    """The scenario as a file keeps it."""
    return msgspec.json.format(msgspec.json.encode(scenario), indent=1).decode() + "\n"


def from_json(text: str | bytes) -> Scenario:
    """The scenario of a file."""
    return msgspec.json.decode(text, type=Scenario)
