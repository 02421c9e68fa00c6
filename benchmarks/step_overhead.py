"""What a step costs beside bare prepared INSERTs on the same server, in one run.

    .venv/bin/python benchmarks/step_overhead.py [--url URL] [--rounds 5] [--steps 1000] [--only NAME]

Two limits, each a loop of prepared INSERTs in autocommit mode: one connection, and fifty at once. Rounds of all rows
alternate, so that the machine's noise hits all alike; the ratio is of medians of steps per second.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import psycopg

import durable
from durable.stores import PostgresStore, embedded, memory, postgres
from durable.stores.protocol import RunStore

VALUE = {"id": "u-123", "tier": "gold member", "email": "member@example.com", "n": [1, 2, 3, 4], "ok": True}
TEXT = '{"id":"u-123","tier":"gold member","email":"member@example.com","n":[1,2,3,4],"ok":true}'
CONNECTIONS = 50  # of the limit for concurrent rows
STEPS_EACH = 10  # of a workflow in concurrent rows


# -- the limits -----------------------------------------------------------------------------------------------------


def insert(connection: psycopg.Connection, steps: int) -> None:
    """One prepared INSERT a step."""
    run_id = str(uuid.uuid4())
    for seq in range(steps):
        connection.execute("INSERT INTO bare (id, seq, value) VALUES (%s, %s, %s)", (run_id, seq, TEXT))


@contextmanager
def bare(url: str, connections: int) -> Iterator[Callable[[int], None]]:
    """The limit: so many connections, opened beforehand, each with a thread of its own, share the INSERTs."""
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(connections))
        opened = [
            stack.enter_context(psycopg.connect(url, autocommit=True, prepare_threshold=0)) for _ in range(connections)
        ]
        opened[0].execute("CREATE TABLE IF NOT EXISTS bare (id text, seq int, value json, primary key (id, seq))")
        for connection in opened:  # prepared on each before the clock starts
            insert(connection, 1)

        def inserted(steps: int) -> None:
            list(threads.map(insert, opened, [steps // connections] * connections))

        yield inserted


# -- one workflow ---------------------------------------------------------------------------------------------------


def sequential(store: RunStore, steps: int, run_id: str = "") -> None:
    """One workflow, one step after the other."""

    def workflow(step: durable.Step, deps: dict[str, object]) -> None:
        for number in range(steps):
            step("step", lambda: VALUE, key=f"step-{number}")

    durable.run({}, workflow, id=run_id or str(uuid.uuid4()), store=store)


async def sequential_async(store: RunStore, steps: int) -> None:
    """The same, async."""

    async def body() -> dict[str, object]:
        return VALUE

    async def workflow(step: durable.AsyncStep, deps: dict[str, object]) -> None:
        for number in range(steps):
            await step("step", body, key=f"step-{number}")

    await durable.run({}, workflow, id=str(uuid.uuid4()), store=store)


def replayed(store: PostgresStore, steps: int) -> Callable[[], None]:
    """Resume a run that stopped after its last step: nothing but replay."""

    class Stop(BaseException):
        pass

    run_id = str(uuid.uuid4())

    def workflow(step: durable.Step, deps: dict[str, object]) -> None:
        for number in range(steps):
            step("step", lambda: VALUE, key=f"step-{number}")
        raise Stop

    def again() -> None:
        try:
            durable.run({}, workflow, id=run_id, store=store)
        except Stop:
            return

    again()
    return again


# -- many workflows at once -----------------------------------------------------------------------------------------


async def concurrent_async(store: RunStore, workflows: int, at_once: int) -> None:
    """Many workflows on one event loop, so many of them at once."""
    room = asyncio.Semaphore(at_once)

    async def one() -> None:
        async with room:
            await sequential_async(store, STEPS_EACH)

    async with asyncio.TaskGroup() as group:
        for _ in range(workflows):
            group.create_task(one())


def concurrent_threads(store: RunStore, workflows: int, threads: int) -> None:
    """Many blocking workflows, shared by so many threads."""
    todo = iter(range(workflows))
    taking = threading.Lock()

    def work() -> None:
        while True:
            with taking:
                if next(todo, None) is None:
                    return
            sequential(store, STEPS_EACH)

    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(work) for _ in range(threads)]:
            future.result()


# -- the table ------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """Something to be timed: what it does, how many steps that is, which row it is compared to, and the goal if any."""

    name: str
    perform: Callable[[], object]
    steps: int
    limit: str
    goal: float | None = None

    def line(self, rates: dict[str, float]) -> str:
        """What was measured, for people."""
        rate = rates[self.name]
        goal = "" if self.goal is None else f"   (goal {self.goal:.2f})"
        ratio = "" if self.limit == self.name else f"{rate / rates[self.limit]:8.2f} ×{goal}"
        return f"{self.name:36s} {rate:10,.0f} steps/s {1e6 / rate:9.1f} µs/step {ratio}"


def measure(rows: list[Row], rounds: int) -> dict[str, float]:
    """The median steps per second of each row."""
    rates: dict[str, list[float]] = {row.name: [] for row in rows}
    for _ in range(rounds):
        for row in rows:
            start = time.perf_counter()
            row.perform()
            rates[row.name].append(row.steps / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


@contextmanager
def prepared(url: str, size: int) -> Iterator[list[Row]]:
    """All rows, with what they need opened; `size` is the number of steps of the sequential ones."""
    with bare(url, 1) as bare_one, bare(url, CONNECTIONS) as bare_many, postgres(url) as store:
        ephemeral = memory()
        one, many = "bare INSERT, 1 connection", f"bare INSERT, {CONNECTIONS} connections"
        all_steps = 10 * size
        runs = all_steps // STEPS_EACH
        yield [
            Row(one, lambda: bare_one(size), size, one),
            Row("durable, sync", lambda: sequential(store, size), size, one, 0.85),
            Row("durable, async", lambda: asyncio.run(sequential_async(store, size)), size, one, 0.70),
            Row("durable, replayed", replayed(store, size), size, one),
            Row("durable, in memory", lambda: sequential(ephemeral, size), size, one),
            Row(many, lambda: bare_many(all_steps), all_steps, many),
            Row("durable, 50 async", lambda: asyncio.run(concurrent_async(store, runs, 50)), all_steps, many, 2.5),
            Row("durable, 200 async", lambda: asyncio.run(concurrent_async(store, runs, 200)), all_steps, many, 4.0),
            Row("durable, 50 threads", lambda: concurrent_threads(store, runs // 2, 50), all_steps // 2, many, 1.8),
        ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a PostgreSQL to measure on (by default an embedded one)")
    parser.add_argument(
        "--steps", type=int, default=1000, help="of the sequential rows; the concurrent ones take ten times as many"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="durable rows whose name contains this, beside the limits")
    options = parser.parse_args()
    with ExitStack() as stack:
        url = options.url or stack.enter_context(embedded(".durable-benchmarks")).url
        with psycopg.connect(url) as connection:
            version = connection.info.server_version
        print(
            f"PostgreSQL {version // 10000}.{version % 100}, Python {platform.python_version()}, {platform.machine()}"
        )
        rows = stack.enter_context(prepared(url, options.steps))
        rows = [row for row in rows if row.limit == row.name or options.only in row.name]
        rates = measure(rows, options.rounds)
        for row in rows:
            print(row.line(rates))


if __name__ == "__main__":
    main()
