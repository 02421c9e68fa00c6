"""What 10,000 runs in one process leave behind: threads, tasks, connections, memory, and how they grow.

    .venv/bin/python benchmarks/many_runs.py [--runs 10000]

Half of the runs are blocking, half async at 50 at a time; every fifth of them fails. The slope is that of a straight line
through the second half of the samples, when caches are warm.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import statistics
import threading
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

import durable
from durable.stores import PostgresStore, embedded, postgres


class Sample(NamedTuple):
    """What the process holds after so many runs."""

    runs: int
    threads: int
    tasks: int
    descriptors: int
    connections: int
    objects: int
    rss_kib: int


class Failing(Exception):
    """What every fifth run ends with."""


def blocking(store: PostgresStore, number: int) -> None:
    """A run of three steps."""

    def workflow(step: durable.Step, deps: Any) -> int:
        total = sum(step("add", lambda value: value, value, key=f"add-{value}") for value in range(3))
        if number % 5 == 0:
            raise Failing
        return total

    with contextlib.suppress(Failing):
        durable.run({}, workflow, id=str(uuid.uuid4()), store=store)


async def await_runs(store: PostgresStore, count: int) -> None:
    """As many async runs, fifty at a time."""
    gate = asyncio.Semaphore(50)

    async def body(value: int) -> int:
        return value

    async def one(number: int) -> None:
        async def workflow(step: durable.AsyncStep, deps: Any) -> int:
            values = await asyncio.gather(*(step("add", body, value, key=f"add-{value}") for value in range(3)))
            if number % 5 == 0:
                raise Failing
            return sum(values)

        async with gate:
            with contextlib.suppress(Failing):
                await durable.run({}, workflow, id=str(uuid.uuid4()), store=store)

    await asyncio.gather(*(one(number) for number in range(count)))


async def sample(runs: int, url: str) -> Sample:
    """Count, after a collection of garbage."""
    gc.collect()
    with psycopg.connect(url) as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'durable'"
        (connections,) = connection.execute(query).fetchone() or (0,)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Sample(
        runs=runs,
        threads=threading.active_count(),
        tasks=len(asyncio.all_tasks()) - 1,
        descriptors=len(list(Path("/proc/self/fd").iterdir())),
        connections=connections,
        objects=len(gc.get_objects()),
        rss_kib=pages * os.sysconf("SC_PAGE_SIZE") // 1024,
    )


async def main() -> None:
    """Print the samples and their slopes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    options = parser.parse_args()
    portion = max(options.runs // 20, 2)
    with embedded(".durable-benchmarks") as server, postgres(server.url) as store:
        samples: list[Sample] = []
        print("  ".join(f"{name:>11s}" for name in Sample._fields))
        for done in range(portion, options.runs + 1, portion):
            for number in range(portion // 2):
                blocking(store, number)
            await await_runs(store, portion - portion // 2)
            samples.append(await sample(done, server.url))
            print("  ".join(f"{value:11,d}" for value in samples[-1]), flush=True)
        half = samples[len(samples) // 2 :]
        for name in Sample._fields[1:]:
            slope = statistics.linear_regression([s.runs for s in half], [getattr(s, name) for s in half]).slope
            print(f"{name:>11s}: {slope * 1000:+9.2f} per 1,000 runs")


if __name__ == "__main__":
    asyncio.run(main())
