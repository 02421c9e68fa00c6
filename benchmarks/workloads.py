"""The workloads, each a function that adds its lines to the results."""

from __future__ import annotations

import importlib
import secrets
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import codec
import counts
import disks
import limits
import memory
import ours
from harness.pgbouncer import bouncer, program
from lanes import Lane, ServerCpu
from pairs import Compared, compare, quartiles
from results import Line, Results


def _optional(module: str) -> tuple[Any, str]:
    """A module whose package may be absent: the module and nothing, or None and why."""
    try:
        return importlib.import_module(module), ""
    except ImportError as problem:
        return None, str(problem)


peer_dbos, _WHY_NO_DBOS = _optional("peer_dbos")
peer_absurd, _WHY_NO_ABSURD = _optional("peer_absurd")

ONE: Final = "bare INSERT, 1 connection"
MANY: Final = "bare INSERT, 50 connections"
BLOCK: Final = 20  # steps of a turn where one workflow is measured
MANY_BLOCK: Final = 5000  # where many are
MANY_ITEMS: Final = 10_000  # of one map
DELAYS: Final = (220, 1000)  # microseconds that a flush takes longer on slower disks
GOALS_AT: Final = 220  # with which a bare commit takes about as long as where the goals were set, 540 µs


@dataclass
class Bench:
    """Where to measure, how long, and what has been measured so far. `effort`: 1 is the whole, less is faster."""

    url: str
    server: ServerCpu
    results: Results
    effort: float = 1.0
    peers: bool = True
    own_server: bool = True
    ratios: dict[str, float] = field(default_factory=dict[str, float])

    def pairs(self, whole: int) -> int:
        """How many pairs."""
        return max(int(whole * self.effort), 2)

    def lane(self, work: Callable[..., object], *arguments: Any) -> Lane:
        """A contestant on this server."""
        return Lane(self.server, work, self.url, *arguments)

    def add(self, workload: str, name: str, found: Compared, of: str, goal: str = "") -> None:
        """A line of a pace over a limit's."""
        self.ratios[f"{workload} {name}"] = found.ratio
        self.results.lines.append(
            Line(
                workload,
                name,
                found.ratio,
                "×",
                of=of,
                low=found.low,
                high=found.high,
                goal=goal,
                rate=1e6 / found.each,
                cpu={
                    "each": found.each,
                    "caller": found.caller,
                    "writer": found.writer,
                    "server": found.server,
                    "limit": found.limit_each,
                    "limit server": found.limit_server,
                },
            )
        )

    def beside(self, workload: str, ours: str, theirs: str, goal: str) -> None:
        """A line of the ratio between two that were measured against one limit."""
        mine, other = (self.ratios.get(f"{workload} {name}") for name in (ours, theirs))
        if mine is not None and other is not None:
            self.results.lines.append(Line(workload, ours, mine / other, "×", of=theirs, goal=goal))


def w1(bench: Bench) -> None:
    """One workflow of 1,000 steps, over and over."""
    each = 1000 // BLOCK
    rows: list[tuple[str, Callable[..., object], int, str]] = [
        ("durable, sync", ours.one_workflow, 150, "≥ 0.85"),
        ("durable, async", ours.one_async_workflow, 150, "≥ 0.75"),
    ]
    if bench.peers and peer_dbos is not None:
        rows.append(("dbos, sync", peer_dbos.one_workflow, 50, ""))
    if bench.peers and peer_absurd is not None:
        rows.append(("absurd, sync", peer_absurd.one_workflow, 50, ""))
    with bench.lane(limits.one_connection) as limit:
        for name, work, pairs, goal in rows:
            with bench.lane(work, each) as lane:
                found = compare(limit, lane, (BLOCK, BLOCK), bench.pairs(pairs), warm=each)
            bench.add("W1", name, found, ONE, goal)
            bench.results.growth[name] = _growth(found, each)
        with through_pgbouncer(bench) as url:
            if url is not None:
                with Lane(bench.server, ours.one_workflow, url, each) as lane:
                    found = compare(limit, lane, (BLOCK, BLOCK), bench.pairs(150))
                bench.add("W1", "durable, sync, behind PgBouncer", found, ONE, "≥ 0.6")
    for name in ("durable, sync", "durable, async"):
        bench.beside("W1", name, "dbos, sync", "≥ 5")


def slower_disks(bench: Bench) -> None:
    """W1 and W2 again where a commit takes longer, as on most disks."""
    if not bench.own_server:
        bench.results.missing["slower disks"] = "the server is not the benchmark's own, whose settings it may change"
        return
    one: list[tuple[str, Callable[..., object], str]] = [
        ("sync", ours.one_workflow, "≥ 0.85"),
        ("async", ours.one_async_workflow, "≥ 0.75"),
    ]
    many: list[tuple[int, str, Callable[..., object], str]] = [
        (50, "async", ours.many_async_workflows, "≥ 3.5"),
        (200, "async", ours.many_async_workflows, "≥ 6"),
        (50, "threads", ours.many_blocking_workflows, "≥ 1.8"),
    ]
    for delay in DELAYS:
        added, counts_here = f", + {delay / 1000:g} ms a commit", delay == GOALS_AT
        with disks.slower(bench.url, delay):
            with bench.lane(limits.one_connection) as limit:
                for name, work, goal in one:
                    with bench.lane(work, 1000 // BLOCK) as lane:
                        found = compare(limit, lane, (BLOCK, BLOCK), bench.pairs(60))
                    bench.add("disks", f"durable, {name}{added}", found, ONE, goal if counts_here else "")
            with bench.lane(limits.many_connections, 50) as limit:
                for at_once, name, work, goal in many:
                    with bench.lane(work, at_once) as lane:
                        found = compare(limit, lane, (2000, MANY_BLOCK), bench.pairs(6), warm=1)
                    bench.add("disks", f"durable, {at_once} {name}{added}", found, MANY, goal if counts_here else "")


def w2(bench: Bench) -> None:
    """Workflows of 10 steps, many at once."""
    rows: list[tuple[str, Callable[..., object], int, int, int, str]] = [
        ("durable, 50 async", ours.many_async_workflows, 50, MANY_BLOCK, 12, "≥ 3.5"),
        ("durable, 200 async", ours.many_async_workflows, 200, MANY_BLOCK, 12, "≥ 6"),
        ("durable, 50 threads", ours.many_blocking_workflows, 50, MANY_BLOCK, 12, "≥ 1.8"),
    ]
    if bench.peers and peer_dbos is not None:
        rows.append(("dbos, 50 async", peer_dbos.many_async_workflows, 50, 500, 4, ""))
    if bench.peers and peer_absurd is not None:
        rows.append(("absurd, 10 workers", peer_absurd.many_workflows, 10, 2000, 4, ""))
    with bench.lane(limits.many_connections, 50) as limit:
        with bench.lane(limits.batches) as lane:
            bench.add("W2", "bare batches of 100, 1 connection", compare(limit, lane, (2000, 20_000), 4), MANY)
        for name, work, at_once, size, pairs, goal in rows:
            with bench.lane(work, at_once) as lane:
                found = compare(limit, lane, (2000, size), bench.pairs(pairs), warm=1)
            bench.add("W2", name, found, MANY, goal)
    with (
        bench.lane(ours.many_async_workflows, 200) as limit,
        bench.lane(ours.mapped_items, 200) as lane,
    ):
        found = compare(limit, lane, (MANY_BLOCK, MANY_ITEMS), bench.pairs(6), warm=1)
        bench.add("W2", "step.map over 10,000 items, 200 at once", found, "durable, 200 async", "≥ 0.6")
    for name in ("durable, 50 async", "durable, 200 async"):
        bench.beside("W2", name, "dbos, 50 async", "≥ 80")
        bench.beside("W2", name, "absurd, 10 workers", "≥ 15")


def w3(bench: Bench) -> None:
    """What a step costs when there are 1,000 and 10,000 already, beside one of the first few hundred."""
    with bench.lane(ours.one_workflow, 5, 100) as limit:
        for steps, goal in ((1000, ""), (10_000, "≤ 1.1")):
            with bench.lane(ours.one_workflow, 10_000, steps) as lane:
                found = compare(limit, lane, (BLOCK, BLOCK), bench.pairs(80))
            costs = [1 / ratio for ratio in found.ratios]
            low, middle, high = quartiles(costs)
            name = f"a step after {steps:,}"
            line = Line("W3", name, middle, "×", "a step after 100", low, high, goal, 1e6 / found.each)
            bench.results.lines.append(line)


def w4(bench: Bench) -> None:
    """Large results."""
    for name, size, pairs in (("20 steps of 100 KiB", 100 << 10, 20), ("5 steps of 5 MiB", 5 << 20, 5)):
        text = secrets.token_hex(size // 2)
        with (
            bench.lane(limits.one_connection, f'"{text}"') as limit,
            bench.lane(ours.one_workflow, pairs + 2, 0, text) as lane,
        ):
            bench.add("W4", name, compare(limit, lane, (1, 1), bench.pairs(pairs)), "the same by a bare INSERT")


def w5(bench: Bench) -> None:
    """A run is resumed: milliseconds until all that is recorded has been replayed."""
    for steps, times, goal in ((1000, 40, "≤ 15"), (10_000, 10, "≤ 150")):
        with bench.lane(limits.reading, steps) as limit, bench.lane(ours.resume, steps) as lane:
            found = compare(limit, lane, (1, 1), bench.pairs(times))
        _milliseconds(bench, f"durable, {steps:,} steps", found, goal)
        name = f"SELECT of {steps:,} rows"
        bench.results.lines.append(Line("W5", name, found.limit_each / 1000, "ms"))
    if bench.peers:
        with bench.lane(limits.reading, 1000) as limit:
            if peer_dbos is not None:
                with bench.lane(peer_dbos.resume, 1000) as lane:
                    _milliseconds(bench, "dbos, 1,000 steps", compare(limit, lane, (1, 1), 3, warm=1))
            if peer_absurd is not None:
                with bench.lane(peer_absurd.resume, 1000) as lane:
                    _milliseconds(bench, "absurd, 1,000 steps", compare(limit, lane, (1, 1), bench.pairs(10)))


def w7(bench: Bench) -> None:
    """The engine and its drivers alone, with the memory store."""
    rows: list[tuple[str, Callable[..., object], tuple[Any, ...], int, str]] = [
        ("a fresh step, sync", ours.one_workflow, (None, 10), 100, "≤ 20"),
        ("a fresh step, async, a store that answers at once", ours.instant_async_workflow, (10,), 100, ""),
        ("a replayed step", ours.replayed_alone, (1000,), 1000, "≤ 5"),
    ]
    for name, work, arguments, size, goal in rows:
        with Lane(bench.server, work, *arguments) as lane:
            for _ in range(5):
                lane.turn(size)
            times = [lane.turn(size).each * 1e6 for _ in range(bench.pairs(100))]
        low, middle, high = quartiles(times)
        bench.results.lines.append(Line("W7", name, middle, "µs", "", low, high, goal))


def w8(bench: Bench) -> None:
    """The codec, beside others, by type and size."""
    for case in codec.CASES:
        figures = codec.measure(case, bench.pairs(20))
        goal = f"≤ {case.goal:g}" if case.goal < 1e9 else ""
        for name, value in figures.items():
            line = Line("W8", f"{case.name}, {name}", value, "µs", goal=goal if name == "durable" else "")
            bench.results.lines.append(line)


def long_run(bench: Bench) -> None:
    """What 100,000 steps keep in memory."""
    steps = max(int(100_000 * bench.effort), 1000)
    allowed = (2 * memory.PAYLOAD * steps + 50e6) / 1e6
    with bench.lane(memory.one_long_run) as lane:
        for name in ("executed", "resumed"):
            lap = lane.turn(steps)
            line = Line("memory", f"{steps:,} steps {name}", lap.notes["grown"] / 1e6, "MB", goal=f"≤ {allowed:.0f}")
            line.rate = 1 / lap.each
            bench.results.lines.append(line)


def counting(bench: Bench) -> None:
    """What can be counted."""
    rows: list[tuple[str, int, Callable[..., object], tuple[Any, ...]]] = [
        ("bare INSERT", 100, limits.one_connection, ()),
        ("a step, sync", 100, ours.one_workflow, (10,)),
        ("a step, async", 100, ours.one_async_workflow, (10,)),
        ("a step of 50 workflows at once, their begin and end included", 5000, ours.many_async_workflows, (50,)),
        ("a workflow without steps", 100, ours.short_workflows, (0,)),
        ("a workflow of one step", 100, ours.short_workflows, (1,)),
    ]
    if bench.peers and peer_dbos is not None:
        rows.append(("dbos: a step", 100, peer_dbos.one_workflow, (10,)))
    if bench.peers and peer_absurd is not None:
        rows.append(("absurd: a step", 100, peer_absurd.one_workflow, (10,)))
    for name, size, work, arguments in rows:
        bench.results.counts[name] = vars(counts.count(bench.server, bench.url, size, work, *arguments))
    for name, goal in (("a workflow without steps", "≤ 2"), ("a workflow of one step", "≤ 3")):
        found = bench.results.counts[name]["round_trips"]
        bench.results.lines.append(Line("counted", name, found, "round trips", goal=goal))
    wal = bench.results.counts["a step, sync"]["wal"]
    bench.results.lines.append(Line("counted", "WAL of a step of 100 bytes", wal, "bytes", goal="≤ 700"))


ALL: Final = {
    "W1": w1, "W2": w2, "disks": slower_disks, "W3": w3, "W4": w4, "W5": w5, "W7": w7, "W8": w8, "counted": counting,
    "memory": long_run,
}  # fmt: skip


@contextmanager
def through_pgbouncer(bench: Bench) -> Iterator[str | None]:
    """A url through a PgBouncer in transaction mode; None, and a word in the results, where there is none."""
    if program() is None:
        bench.results.missing["behind PgBouncer"] = "PgBouncer is not installed (apt-get install pgbouncer)"
        yield None
        return
    with bouncer(bench.url) as started:
        yield started.url


def missing_peers(bench: Bench) -> None:
    """Say which are not here."""
    if peer_dbos is None:
        bench.results.missing["dbos"] = _WHY_NO_DBOS
    if peer_absurd is None:
        bench.results.missing["absurd"] = _WHY_NO_ABSURD
    if bench.peers and peer_absurd is not None:
        peer_absurd.install(bench.url)


def _milliseconds(bench: Bench, name: str, found: Compared, goal: str = "") -> None:
    times = [lap.each * 1000 for lap in found.laps]
    low, middle, high = quartiles(times)
    cpu = {"each": found.each, "caller": found.caller, "writer": found.writer, "server": found.server}
    bench.results.lines.append(Line("W5", name, middle, "ms", "", low, high, goal, cpu=cpu))


def _growth(found: Compared, each: int, points: int = 10) -> list[tuple[float, float]]:
    """Microseconds a step by how many steps there are, from what was measured over whole workflows: medians of each tenth."""
    width = each // points
    curve: list[tuple[float, float]] = []
    for point in range(points):
        places = range(point * width, (point + 1) * width)
        times = [lap.each * 1e6 for number, lap in enumerate(found.laps) if number % each in places]
        if times:
            curve.append(((point + 0.5) * width * BLOCK, statistics.median(times)))
    return curve
