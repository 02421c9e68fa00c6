"""What runs cost that wait: 100,000 of them suspended in one process, some woken at once, some at work beside them.

    python benchmarks/suspended.py [--runs 100000] [--woken 1000] [--sleeping 10000]

Prints what the process has more than before (memory, threads, tasks, connections), how long it takes from a signal to the step
after its wait, and how long the steps of ten runs take alone and beside those that sleep.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import statistics
import threading
import time
from pathlib import Path
from typing import Any, Final

import psycopg

import durable
from durable.stores import embedded

_SCHEMA: Final = "suspended"
_BATCH: Final = 1000
_PATIENCE: Final = 1800.0  # seconds
_STEPS: Final = 200  # of each run at work
_ROUNDS: Final = 5  # of these

_woken: dict[str, float] = {}


@durable.workflow(name="waits")
async def waits(step: durable.AsyncStep, deps: Any) -> None:
    """Wait for a signal, and note when the next step begins."""
    await step("before", lambda: 1)
    await step.wait_for("go")
    await step("after", _note, step.run_id)


@durable.workflow(name="works")
def works(step: durable.Step, deps: list[list[float]]) -> None:
    """Steps, one after the other, and how long each takes."""
    times: list[float] = []
    for number in range(_STEPS):
        began = time.perf_counter()
        step("one", lambda: 1, key=str(number))
        times.append(time.perf_counter() - began)
    deps.append(times)


def _note(run_id: str) -> None:
    _woken[run_id] = time.perf_counter()


class Process:
    """What the process has: memory in MB, threads, tasks, connections."""

    def __init__(self, connection: psycopg.Connection[Any], loop: asyncio.AbstractEventLoop) -> None:
        gc.collect()
        self.memory = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        self.threads = threading.active_count()
        self.tasks = len(asyncio.all_tasks(loop))
        asked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        ((self.connections,),) = connection.execute(asked).fetchall()

    def less(self, before: Process) -> str:
        """How much more that is than before."""
        return (
            f"{self.memory - before.memory:+.0f} MB, {self.threads - before.threads:+d} threads, "
            f"{self.tasks - before.tasks:+d} tasks, {self.connections - before.connections:+d} connections"
        )


def until(condition: Any) -> None:
    """Wait."""
    end = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.2)


def start(store: Any, first: int, count: int) -> None:
    """So many runs that wait."""
    for number in range(first, first + count, _BATCH):
        last = min(number + _BATCH, first + count)
        durable.start_many(waits, [durable.Start(id=f"w{n}") for n in range(number, last)], store=store)


def suspended(connection: psycopg.Connection[Any]) -> int:
    """How many are suspended."""
    asked = f"SELECT count(*) FROM {_SCHEMA}.durable_locks WHERE owner_token IS NULL AND owner LIKE 'suspended %%'"  # noqa: S608 -- a name of ours
    ((count,),) = connection.execute(asked.encode()).fetchall()
    return int(count)


def steps_of_ten(store: Any, found: list[list[float]]) -> list[float]:
    """Seconds of each step of ten runs at once."""
    found.clear()
    handles = durable.start_many(works, [durable.Start() for _ in range(10)], store=store)
    for handle in handles:
        handle.result(_PATIENCE)
    return sorted(seconds for times in found for seconds in times)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--woken", type=int, default=1000)
    parser.add_argument("--sleeping", type=int, default=10_000)
    given = parser.parse_args()
    store, found = embedded(".durable-bench", schema=_SCHEMA), list[list[float]]()
    with psycopg.connect(store.url, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {_SCHEMA} CASCADE".encode())
        store.stats()
        worker = durable.Worker(store, {waits: None, works: found}, [waits, works], concurrency=100)
        with worker:
            steps_of_ten(store, found)  # all is warm
            alone = [steps_of_ten(store, found) for _ in range(_ROUNDS)]
            start(store, 0, 100)
            until(lambda: suspended(connection) == 100)
            loop = worker._service._runs._event_loop()  # type: ignore[union-attr] # noqa: SLF001
            before = Process(connection, loop)
            start(store, 100, given.sleeping - 100)
            until(lambda: suspended(connection) == given.sleeping)
            time.sleep(20.0)  # the server has vacuumed what their beginnings have left
            beside = [steps_of_ten(store, found) for _ in range(_ROUNDS)]
            for name, times in (("alone", alone), (f"beside {given.sleeping:,} that sleep", beside)):
                rounds = " | ".join(f"{statistics.median(one) * 1e3:.2f}" for one in times)
                worst = statistics.median(one[int(len(one) * 0.99)] for one in times)
                print(f"10 at work {name}: a step takes {rounds} ms (p99 {worst * 1e3:.2f})", flush=True)
            start(store, given.sleeping, given.runs - given.sleeping)
            until(lambda: suspended(connection) == given.runs)
            time.sleep(6.0)  # threads that wait for their next run have ended
            print(f"{given.runs:,} suspended: {Process(connection, loop).less(before)}", flush=True)
            sent: dict[str, float] = {}
            for number in range(given.woken):
                sent[f"w{number}"] = time.perf_counter()
                durable.signal(store, f"w{number}", "go", number)
            until(lambda: len(_woken) == given.woken)
            took = sorted(_woken[run] - moment for run, moment in sent.items())
            print(
                f"{given.woken:,} woken one after the other: next step after {statistics.median(took) * 1e3:.0f} ms "
                f"(p99 {took[int(len(took) * 0.99)] * 1e3:.0f})"
            )
    store.close()


if __name__ == "__main__":
    main()
