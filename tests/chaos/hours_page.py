"""The section of docs/reliability.md on the longest hour in the figures, or the last of such."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from chaos import gauges
from chaos.figures import Part
from chaos.flatness import HOUR, MEMORY, ROOM, SHARE, Course
from chaos.hours import FREE, HELD, afterwards
from chaos.resident import pace
from chaos.traffic import OFTEN

_KIB: Final = 1024
_MIB: Final = 1024 * 1024
_COUNTS: Final = ("completed", "failed", "cancelled", "told by a signal", "leases renewed", "purged")


def section(parts: Sequence[Part]) -> str:
    """In Markdown; nothing when there is no hour yet."""
    every = sorted((hour for part in parts for hour in part.hours), key=lambda hour: float(hour["seconds"]))
    hours = {hour["name"]: hour for hour in every}
    if FREE not in hours or HELD not in hours:
        return "## An hour\n\nNone was watched yet."
    alone, beside = hours[FREE], hours[HELD]
    return "\n\n".join([_head(alone), _counts(alone, beside), _flat(alone), _held(alone, beside), _slow(alone, beside)])


def _head(alone: dict[str, Any]) -> str:
    seconds = alone["seconds"]
    pace_ = pace(seconds)
    short = (
        "\nWhat was watched for less than an hour has this room for that time, and a table of large values two of these."
        * (seconds < HOUR)
    )
    return f"""## An hour

`python -m chaos endure`: {seconds / 60:g} minutes of one process that starts {pace_.rate:g} short runs a second (blocking and async; {len(OFTEN)} in
turn: retries, signals, maps, transactions, failures, cancellations, now and then 300 KB) and has {pace_.guests} guests, who sleep and wait
for a signal for some minutes each. Leases of {pace_.lease:g} s; every {pace_.purge:g} s runs that ended {pace_.keep:g} s ago are deleted with `store.purge`. Nothing is
set on the server, autovacuum is as it comes. Twice at once, in two databases of one server: alone, and beside a transaction of
another session with a snapshot, which is open for the whole time, and then for {afterwards(seconds) / 60:g} minutes more without it.

*Flat* is what has a level in the last quarter that is at most {SHARE:.0%} above that of the second one (or {MEMORY // _MIB} MiB of a process, {ROOM // _KIB} KiB of a
table or index, half a thing), and of which the second half does not show, with 95 % confidence, that it grows by more than that in an
hour. The level is the highest value of what is in bytes, and the median of what is counted: a leak lifts that too, a rush does not.
The slope is that of a straight line through the means of ten equal parts of the second half; for a table or index it is the highest value
since the second quarter began that is drawn: a file that vacuum shortens, and that is as long again soon, has not grown.{short}"""


def _counts(alone: dict[str, Any], beside: dict[str, Any]) -> str:
    lines = ["| | alone | beside an open transaction |", "| --- | ---: | ---: |"]
    names = [*_COUNTS, *sorted({*alone["counts"], *beside["counts"]} - {*_COUNTS, "failed, run again"})]
    lines += [f"| {name} | {alone['counts'].get(name, 0):,} | {beside['counts'].get(name, 0):,} |" for name in names]
    return "\n".join(lines)


def _flat(alone: dict[str, Any]) -> str:
    lines = [
        "### Alone",
        "",
        "| | second quarter | last quarter | slope an hour (95 %) | |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for name, told in alone["courses"].items():
        through = Course(**told)
        slope = f"{_told(name, through.slope, sign='+')} ± {_told(name, through.error)}"
        verdict = "flat" if through.flat else "**grows**"
        lines.append(f"| {name} | {_told(name, through.second)} | {_told(name, through.last)} | {slope} | {verdict} |")
    return "\n".join(lines)


def _held(alone: dict[str, Any], beside: dict[str, Any]) -> str:
    process = {name: Course(**beside["courses"][name]) for name in gauges.PROCESS}
    growing = [name for name, through in process.items() if not through.flat]
    told = "flat" if not growing else f"not flat: {', '.join(growing)}"
    lines = [
        "### Beside an open transaction",
        "",
        "No version of a row that it could see can be removed, so tables must grow; afterwards the room is used again, and seldom given",
        f"back (below is the highest of the second half of those minutes). What the process holds is {told}.",
        "",
        "| | alone, last quarter | when it ended | highest afterwards | |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for name, (end, most) in beside["afterwards"].items():
        usual = Course(**alone["courses"][name]).last
        goes_on = Course(**beside["courses"][name]).goes_on(end, most, beside["seconds"])
        verdict = "**goes on growing**" if goes_on else "stands still"
        lines.append(f"| {name} | {_told(name, usual)} | {_told(name, end)} | {_told(name, most)} | {verdict} |")
    (usual, _), (during, after) = alone["dead"], beside["dead"]
    lines.append(f"| dead rows, at most | {usual:,.0f} | {during:,.0f} | {after:,.0f} | |")
    return "\n".join(lines)


def _slow(alone: dict[str, Any], beside: dict[str, Any]) -> str:
    lines = [
        "What it costs, in ms (median, 99 % within, how many), in the last quarter and in the last minutes after it. A checkpoint is a step of",
        f"a blocking run among all this; a beat renews all leases; {alone['hot']:.0f} % of the leases' updates were HOT alone, {beside['hot']:.0f} % beside it. The",
        "first two columns are of the same minutes. The third is of others, and on a machine that others may use as well.",
        "",
        "| | alone | beside it | afterwards |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name in ("checkpoint", "beat", "purge"):
        times = (alone["times"], beside["times"], beside["times_afterwards"])
        lines.append(f"| {name} | {' | '.join(_times(each.get(name)) for each in times)} |")
    return "\n".join(lines)


def _times(told: Sequence[float] | None) -> str:
    return f"{told[0]:.3g}, {told[1]:.3g}, {told[2]:,.0f}" if told else "–"


def _told(name: str, value: float, *, sign: str = "") -> str:
    """In the unit of what is called so."""
    if name != gauges.RESIDENT and not name.startswith(("table ", "index ")):
        return f"{value:{sign},.3g}" if abs(value) < 100 else f"{value:{sign},.0f}"
    if abs(value) < _MIB:
        return f"{value / _KIB:{sign},.0f} KiB"
    return f"{value / _MIB:{sign},.1f} MiB"
