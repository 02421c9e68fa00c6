"""What a step costs beside a bare prepared INSERT on the same server, in one run.

    .venv/bin/python benchmarks/step_overhead.py [--url URL] [--steps 1000] [--rounds 5]

Rounds of the rows alternate, so that the machine's noise hits all alike; the ratio is of medians.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import statistics
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack

import psycopg

import durable
from durable.stores import PostgresStore, embedded, memory, postgres
from durable.stores.protocol import RunStore

VALUE = {"id": "u-123", "tier": "gold member", "email": "member@example.com", "n": [1, 2, 3, 4], "ok": True}
TEXT = '{"id":"u-123","tier":"gold member","email":"member@example.com","n":[1,2,3,4],"ok":true}'


def bare(url: str, steps: int) -> None:
    """The limit: one prepared INSERT a step, in autocommit mode."""
    with psycopg.connect(url, autocommit=True, prepare_threshold=0) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS bare (id text, seq int, value json, primary key (id, seq))")
        run_id = str(uuid.uuid4())
        for seq in range(steps):
            connection.execute("INSERT INTO bare (id, seq, value) VALUES (%s, %s, %s)", (run_id, seq, TEXT))


def sequential(store: RunStore, steps: int, run_id: str = "") -> str:
    """One workflow, one step after the other."""

    def workflow(step: durable.Step, deps: dict[str, object]) -> None:
        for number in range(steps):
            step("step", lambda: VALUE, key=f"step-{number}")

    run_id = run_id or str(uuid.uuid4())
    durable.run({}, workflow, id=run_id, store=store)
    return run_id


def sequential_async(store: RunStore, steps: int) -> None:
    """The same, async."""

    async def body() -> dict[str, object]:
        return VALUE

    async def workflow(step: durable.AsyncStep, deps: dict[str, object]) -> None:
        for number in range(steps):
            await step("step", body, key=f"step-{number}")

    asyncio.run(durable.run({}, workflow, id=str(uuid.uuid4()), store=store))


def replayed(store: PostgresStore, steps: int) -> Callable[[], None]:
    """Resume a run that stopped after its last step: nothing but replay."""

    class Stop(BaseException):
        pass

    run_id = str(uuid.uuid4())
    stopped = False

    def workflow(step: durable.Step, deps: dict[str, object]) -> None:
        for number in range(steps):
            step("step", lambda: VALUE, key=f"step-{number}")
        raise Stop

    def again() -> None:
        nonlocal stopped
        try:
            durable.run({}, workflow, id=run_id, store=store)
        except Stop:
            stopped = True

    again()
    return again


def measure(rows: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median seconds of each row."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, row in rows.items():
            start = time.perf_counter()
            row()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with ExitStack() as stack:
        url = options.url or stack.enter_context(embedded(".durable-benchmarks")).url
        with postgres(url) as store, psycopg.connect(url) as connection:
            version = connection.info.server_version
            print(
                f"PostgreSQL {version // 10000}.{version % 100}, Python {platform.python_version()}, {platform.machine()}"
            )
            bare(url, 10)
            ephemeral = memory()
            rows: dict[str, Callable[[], object]] = {
                "bare prepared INSERT": lambda: bare(url, options.steps),
                "durable, sync": lambda: sequential(store, options.steps),
                "durable, async": lambda: sequential_async(store, options.steps),
                "durable, replayed": replayed(store, options.steps),
                "durable, in memory": lambda: sequential(ephemeral, options.steps),
            }
            medians = measure(rows, options.rounds)
            limit = medians["bare prepared INSERT"]
            for name, seconds in medians.items():
                each = seconds / options.steps
                print(f"{name:22s} {1 / each:10,.0f} steps/s {each * 1e6:9.1f} µs/step  {limit / seconds:8.2f} × bare")


if __name__ == "__main__":
    main()
