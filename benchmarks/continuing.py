"""What a run costs that lives for long: 1,000 times it goes on with another input, a hundred steps each.

    python benchmarks/continuing.py [--times 1000] [--steps 100]

Prints how long the first and the last of its turns take, from when a worker has taken it up to its last step, and the memory of
the process then. In each the run is suspended once, and taken up again from what is stored.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
from pathlib import Path
from typing import Any, Final

import psycopg

import durable
from durable.stores import embedded

_SCHEMA: Final = "continuing"
_SHOWN: Final = 20  # turns, of which the median is told


@durable.workflow(name="lives")
def lives(step: durable.Step, deps: Any, left: tuple[int, int]) -> int:
    """A turn of so many steps; and on with one less, after a nap for which the run is suspended."""
    turns, steps = left
    began = time.perf_counter()
    for number in range(steps):
        step("one", lambda: 1, key=str(number))
    deps.append((time.perf_counter() - began, memory()))
    step.sleep("nap", 0.001)
    if turns:
        step.continue_with((turns - 1, steps))
    return turns


def memory() -> float:
    """Of this process, in MB."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--times", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()
    seen = list[tuple[float, float]]()
    with embedded(".durable-bench", schema=_SCHEMA) as store:
        with psycopg.connect(store.url, autocommit=True) as connection:
            connection.execute(f"DROP SCHEMA IF EXISTS {_SCHEMA} CASCADE".encode())
        store.stats()
        handle = durable.start(lives, (given.times, given.steps), store=store)
        worker = durable.Worker(store, seen, [lives], suspend_after=0.0)
        while handle.status() not in ("completed", "failed"):
            worker.run_until_idle()
        print(f"{given.times:,} continuations with {given.steps} steps each: {handle.status()}")
        for name, part in (("first", seen[:_SHOWN]), ("last", seen[-_SHOWN:])):
            turn = statistics.median(seconds for seconds, _ in part)
            print(
                f"of the {name} {_SHOWN} turns: {turn * 1e3:.1f} ms of steps, {statistics.median(mb for _, mb in part):.0f} MB"
            )
        print(f"runs stored: {store.stats().completed:,}")


if __name__ == "__main__":
    main()
