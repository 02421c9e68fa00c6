"""How long others take to begin while a transaction is open that starts two runs, and batches of claims want these, too.

    python benchmarks/open_starts.py [--seconds 8] [--runs 200]

Prints the median and the longest time of a run from its call to its first step, with the transaction and without.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from typing import Any, Final

import psycopg

import durable
from durable.errors import RunBeingStarted
from durable.stores import PostgresStore, embedded

_SCHEMA: Final = "open_starts"
_HELD: Final = ("x", "y")


@durable.workflow(name="begins")
async def begins(step: durable.AsyncStep, deps: list[float]) -> None:
    """Note when the first body begins."""
    await step("one", lambda: deps.append(time.perf_counter()))


async def call(store: PostgresStore, name: str) -> float | None:
    """Seconds from the call to the first body; None where the run is being started elsewhere."""
    called, began = time.perf_counter(), list[float]()
    try:
        await durable.run(began, begins, id=name, store=store)
    except RunBeingStarted:
        return None
    return began[0] - called


async def burst(store: PostgresStore, name: str, runs: int, seconds: float) -> tuple[list[float], int]:
    """Runs that begin one after the other over so many seconds, every tenth of them one that is held."""
    calls: list[asyncio.Task[float | None]] = []
    for number in range(runs):
        wanted = _HELD[number // 10 % 2] if number % 10 == 5 and name == "with" else f"{name}-{number}"
        calls.append(asyncio.ensure_future(call(store, wanted)))
        await asyncio.sleep(seconds / runs)
    took = await asyncio.gather(*calls)
    return sorted(one for one in took if one is not None), sum(one is None for one in took)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--runs", type=int, default=200)
    given = parser.parse_args()
    with embedded(".durable-bench", schema=_SCHEMA) as store:
        with psycopg.connect(store.url, autocommit=True) as connection:
            connection.execute(f"DROP SCHEMA IF EXISTS {_SCHEMA} CASCADE".encode())
        store.stats()
        told: dict[str, tuple[Any, int]] = {}
        with psycopg.connect(store.url) as user:
            for name in _HELD:
                durable.start(begins, id=name, store=store, connection=user)
            told[f"with a transaction open for {given.seconds:g} s"] = asyncio.run(
                burst(store, "with", given.runs, given.seconds)
            )
            user.rollback()
        told["without"] = asyncio.run(burst(store, "without", given.runs, given.seconds))
        for name, (took, refused) in told.items():
            print(
                f"{name}: median {statistics.median(took) * 1e3:.1f} ms, longest {took[-1] * 1e3:.0f} ms, {refused} refused"
            )


if __name__ == "__main__":
    main()
