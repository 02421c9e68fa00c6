"""docs/performance.md, written from the results: the table, how to read it, what bounds each row, and the charts."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import charts
from results import Line, Results

NAME: Final = "performance"
OTHERS: Final = "share of the processors that others took"
_COMMAND: Final = "make bench"


def table(results: Results) -> str:
    """The one table, as Markdown."""
    rows = [
        "| | what | measured | beside | middle half | goal | |",
        "| --- | --- | ---: | --- | ---: | ---: | --- |",
    ]
    rows += [_row(line) for line in results.lines]
    return "\n".join(rows)


def write(results: Results, docs: Path) -> None:
    """The page, its figures and its charts."""
    results.save(docs / f"{NAME}.json")
    results = Results.load(docs / f"{NAME}.json")  # what is shown is what was saved
    (docs / f"{NAME}.md").write_text(render(results), "utf-8")
    for name, text in drawn(results).items():
        (docs / "images").mkdir(exist_ok=True)
        (docs / "images" / name).write_text(text, "utf-8")


def render(results: Results) -> str:
    """The whole page."""
    parts = [
        _HEAD,
        ", ".join(f"{name} {value}" for name, value in results.machine.items()) + ".\n",
        _in_short(results),
        "## The table\n",
        table(results) + "\n",
        *(f"Not measured: {name}: {why}.\n" for name, why in results.missing.items()),
        _HOW_TO_READ,
        "## Counted, not timed\n",
        _counts(results),
        _COUNTS_EXPLAINED,
        "## What bounds each row\n",
        _bounds(results),
        _BOUNDS_EXPLAINED,
        "## How the cost grows\n",
        _growth(results),
        _list_missed(results),
    ]
    return "\n".join(part for part in parts if part).rstrip() + "\n"


def drawn(results: Results) -> dict[str, str]:
    """The charts, by file name; only those whose rows were measured."""
    found: dict[str, str] = {}
    for workload, title in (("W1", "One workflow, steps a second"), ("W2", "Many workflows at once, steps a second")):
        measured = [line for line in results.lines if line.workload == workload and line.rate]
        if measured:
            rows = [(line.name, line.rate or 0.0) for line in measured]
            limit = measured[0]
            rows.insert(0, (limit.of, 1e6 / limit.cpu["limit"]))
            ours = [name for name, _ in rows if name.startswith("durable")]
            found[f"{workload.lower()}.svg"] = charts.bars(title, rows, "", highlighted=ours)
    profiled = [
        line for line in results.lines if line.workload in ("W1", "W2") and line.cpu and "bare" not in line.name
    ]
    mine = [line for line in profiled if line.name.startswith("durable")]
    if mine:
        names = ("caller's CPU", "writer's CPU", "server's CPU")
        stacked = [(line.name, [line.cpu[part] for part in ("caller", "writer", "server")]) for line in mine]
        found["cpu.svg"] = charts.stacks("Microseconds of CPU a step", stacked, names, "µs")
    if results.growth:
        title = "What a step costs as the workflow grows"
        found["growth.svg"] = charts.lines(title, results.growth, "steps that are recorded already", "µs")
    return found


def _row(line: Line) -> str:
    value = f"{_number(line.value)} {line.unit}"
    if line.unit == "×" and line.rate:
        value = f"**{line.value:.2f} ×** ({_number(line.rate)}/s)"
    elif line.unit == "×":
        value = f"**{line.value:.2f} ×**"
    spread = "" if line.low is None or line.high is None else f"{_number(line.low)} – {_number(line.high)}"
    met = {None: "", True: "met", False: "**missed**"}[line.met] + ("" if line.settled else ", by less than it swings")
    return f"| {line.workload} | {line.name} | {value} | {line.of} | {spread} | {line.goal} | {met} |"


def _counts(results: Results) -> str:
    head = ["| of | round trips | statements | commits | bytes of WAL |", "| --- | ---: | ---: | ---: | ---: |"]
    return "\n".join(
        head
        + [
            f"| {name} | {cost['round_trips']:.3g} | {cost['statements']:.3g} "
            f"| {cost['commits']:.3g} | {cost['wal']:,.0f} |"
            for name, cost in results.counts.items()
        ]
    )


def _bounds(results: Results) -> str:
    head = [
        "| | row | passed | caller's CPU | writer's CPU | server's CPU | so it is bound by |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    rows = [
        f"| {line.workload} | {line.name} | {_number(line.cpu['each'])} µs | {_number(line.cpu['caller'])} "
        f"| {_number(line.cpu['writer'])} | {_number(line.cpu['server'])} | {_bound(line)} |"
        for line in results.lines
        if line.cpu
    ]
    return "\n".join(head + rows)


def _bound(line: Line) -> str:
    """A sentence from the figures: who is busy while the time passes."""
    each, python, server = line.cpu["each"], line.cpu["caller"] + line.cpu["writer"], line.cpu["server"]
    idle = each - python - server
    if python > 0.85 * each:
        return f"Python: {python / each:.0%} of the time, which the interpreter's lock gives to one thread at a time"
    if idle > 0.25 * each:
        return f"waiting, {idle / each:.0%} of the time: for the disk's flush, for waking up, for a processor that others have"
    larger, smaller = ("Python", "the server") if python > server else ("the server", "Python")
    return f"{larger} ({max(python, server) / each:.0%}), then {smaller} ({min(python, server) / each:.0%})"


def _growth(results: Results) -> str:
    lines = [line for line in results.lines if line.workload == "W3"]
    said = "; ".join(f"{line.name} costs {line.value:.2f} × {line.of}" for line in lines)
    chart = "![what a step costs as the workflow grows](images/growth.svg)\n" if results.growth else ""
    return f"{chart}\nMeasured between workflows of different lengths, in turns: {said}.\n" if said else chart


def _in_short(results: Results) -> str:
    said: list[str] = []
    for workload, name, of, sentence in _SHORT:
        for line in results.lines:
            if (line.workload, line.name) == (workload, name) and line.of == (of or line.of):
                value = f"{line.value:.2f} ×" if line.unit == "×" else f"{_number(line.value)} {line.unit}"
                text = sentence.format(rate=_number(line.rate or 0), value=value)
                said.append(f"- {text[0].upper()}{text[1:]}.")
                break
    if not said:
        return ""
    missed = sum(line.met is False for line in results.lines)
    if missed:
        said.append(
            f"- {missed} of the goals that were set for these figures were missed:"
            " [which, and what stands in the way](#goals-that-were-missed-and-what-stands-in-the-way)."
        )
    return "## In short\n\n" + "\n".join(said) + "\n" + _PICTURES


def _list_missed(results: Results) -> str:
    missed = [line for line in results.lines if line.met is False]
    if not missed:
        return ""
    said = [f"- {_reason(line)}" for line in missed]
    return "## Goals that were missed, and what stands in the way\n\n" + "\n".join(said) + "\n"


def _reason(line: Line) -> str:
    shown = f"{line.value:.2f}" if line.unit == "×" else _number(line.value)
    what = f"{line.workload}, {line.name}" + (f" beside {line.of}" if line.of else "")
    head = f"{what}: {shown} {line.unit} where {line.goal} was the goal."
    if not line.cpu:
        return f"{head} {_WHY.get(line.workload, '')}".rstrip()
    each, cpu = line.cpu["each"], line.cpu
    if line.unit != "×":
        shown = f"{_number(cpu['caller'])} are the caller's CPU, {_number(cpu['server'])} the server's"
        return f"{head} Of {_number(each)} µs, {shown}."
    bound = float(line.goal.split()[1])
    limit = line.value * each
    return (
        f"{head} The goal leaves {_number(limit / bound)} µs a step here; {_number(each)} pass, of which "
        f"{_number(cpu['caller'])} are the caller's CPU, {_number(cpu['writer'])} the writer's and {_number(cpu['server'])} "
        f"the server's. Bound by {_bound(line)}."
    )


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


_WHY: Final = {
    "W2": "It follows from the pace over the bare loop, above.",
    "W7": "All of it is Python, which waits for nothing, shown by function by `benchmarks/hot.py replay` (or `sync`).",
    "W8": "All of it is Python, which waits for nothing; see `benchmarks/codec.py`.",
    "memory": "What a step keeps is counted by line of code with tracemalloc in `tests/runtime/test_growth.py`.",
}

_HEAD = f"""<!-- Written by `{_COMMAND}` from docs/{NAME}.json; what you change here is lost. -->

# What it costs

Every figure on this page was measured in one run of one command, `{_COMMAND}`, on:
"""

_SHORT: Final = (  # what a user asks first: a row, and what it says with its rate, its value and what it is beside
    (
        "W1",
        "durable, sync",
        "",
        "one blocking workflow records {rate} steps a second, {value} the pace of a bare `INSERT` loop",
    ),
    ("W2", "durable, 50 async", "", "fifty async workflows at once record {rate} steps a second together"),
    ("W1", "durable, sync", "dbos, sync", "beside DBOS: {value} the pace in one workflow"),
    ("W2", "durable, 50 async", "dbos, 50 async", "beside DBOS: {value} the pace with fifty workflows"),
    (
        "W2",
        "durable, 50 async",
        "absurd, 10 workers",
        "beside Absurd with ten workers: {value} the pace with fifty workflows",
    ),
    ("W5", "durable, 1,000 steps", "", "a run of 1,000 steps is resumed in {value}"),
    ("counted", "a workflow of one step", "", "a workflow of one step costs {value}, and each further step one more"),
)

_PICTURES = """
![one workflow](images/w1.svg)

![many workflows at once](images/w2.svg)
"""

_HOW_TO_READ = """## How to read it

- **A ratio is a pace over another pace, measured within the same second.** The two take turns of some milliseconds; each
  turn is compared with the other's turns before and after it. Shown are the median over all turns and the middle half of them.
  Absolute figures depend on the disk and on the neighbours; ratios less so, and they do move: expect a few hundredths from
  one run to the next, and more where others took a share of the processors (see above): a benchmark needs a quiet machine.
- *by less than it swings*: the goal lies within the middle half, so another run may say otherwise.
- **The limits** are loops of prepared `INSERT`s in autocommit mode that do nothing else: on one connection, and on fifty with a
  thread each. More than 1 × is possible because what waits at the same time is committed together.
- **disks**: W1 and W2 again, with PostgreSQL's `commit_delay` set, so that every flush, also the bare loop's, takes so much
  longer. What a step adds to a bare commit is a fixed time, so on a slower disk it weighs less; the disk here is a fast one.
  With 0.22 ms more the bare loop goes about as fast as where the goals were set (1,850/s).
- **W1** is one workflow of 1,000 steps, one after the other. **W2** is workflows of 10 steps, 50 or 200 at once, their begin
  and end included. **W3** compares steps of long and short workflows, **W4** returns large values, **W5** resumes, **W7** has
  no database at all, **W8** is the codec. Every step returns 100 bytes of JSON, unless it says otherwise.
- Each contestant is in a process of its own. DBOS and Absurd come from their published packages and are used as their
  documentation has it, with the setting that was fastest here; see `benchmarks/peer_dbos.py`
  and `benchmarks/peer_absurd.py`. They have abilities that `durable` has not, queues for example, and pay for them; the
  comparison is of a step, not of all that they are.
- DBOS is resumed with `fork_workflow` after the last step, timed within the workflow; Absurd by the second attempt of a failed
  task, timed from its claim. `durable` is timed from the call of `run` to its end.
"""

_COUNTS_EXPLAINED = """
Measured by `benchmarks/run.py --only counted`, through a proxy that reads the protocol, and from the write-ahead log with
`pg_walinspect`. Full-page images are left out: PostgreSQL writes one for each page that changes first after a checkpoint,
whatever changes it. `tests/stores/test_round_trips.py` and `tests/stores/test_wal.py` hold these counts.
"""

_BOUNDS_EXPLAINED = """
![CPU a step](images/cpu.svg)

CPU microseconds a step, read from the kernel's own account of each thread and process; *passed* is what the clock says. The
caller is the program that runs the workflows, without the library's own threads; the server is all of PostgreSQL's
processes. Where the parts together are more than what passed, they worked at the same time. Where the caller's time goes by
function: `benchmarks/hot.py sync`, `async`, `many`, `resume`.
"""
