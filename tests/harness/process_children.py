"""What the tests of a store in its process send into processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import warnings
from multiprocessing.connection import Connection
from typing import Any

import durable
from durable.stores import PostgresStore, postgres
from harness.ownership_children import process_of, wait_until


def fork_in_a_body(pipe: Connection, url: str, schema: str) -> None:
    """Run a workflow that forks in its second body; the forked child uses the store, and carries the run on."""
    unraisable: list[str] = []
    warnings.simplefilter("error")
    sys.unraisablehook = lambda problem: unraisable.append(repr(problem.exc_value))
    store = postgres(url, schema=schema)
    reading, writing = os.pipe()
    forked: dict[str, Any] = {}

    def one() -> str:
        return "one"

    def two() -> str:
        forked["before"] = connections_of(store)
        if os.fork():
            os.close(writing)
            with os.fdopen(reading) as report:
                forked["child"] = json.loads(report.read() or "null")  # read to the end: the child has gone
            os.wait()
            renewed = process_of(store).heartbeat._kept
            (lease, _), *_ = renewed.values()
            sent = lease.sent
            wait_until(lambda: lease.sent > sent or lease.lost, "the heartbeat of the parent")
            return "two by the parent"
        forked["is child"] = True
        forked["own"] = [durable.run(None, greet, id="own", store=store), asyncio.run(agreet_run(store))]
        return "two by the child"

    def workflow(step: durable.Step, _: None) -> list[str]:
        return [step("one", one), step("two", two), step("three", lambda: "three")]

    try:
        outcome: Any = durable.run(None, workflow, id="forked", store=store, lease=1.0)
    except BaseException as error:
        outcome = f"{type(error).__name__}: {error}"
    if "is child" in forked:
        store.close()
        report = {"own": forked["own"], "outcome": outcome, "unraisable": unraisable}
        os.write(writing, json.dumps(report).encode())
        os._exit(0)
    after = connections_of(store)
    pipe.send({"child": forked.get("child"), "outcome": outcome, "same": after == forked["before"]})
    store.close()


def connections_of(store: PostgresStore) -> list[int]:
    """The backends that this process's idle connections lead to, asked by them."""
    sessions = process_of(store).connections._idle
    return sorted(session.connection.execute("SELECT pg_backend_pid()").fetchone()[0] for session in sessions)


def greet(step: durable.Step, _: None) -> str:
    return step("greet", lambda: "hello")


async def agreet(step: durable.AsyncStep, _: None) -> list[str]:
    return await asyncio.gather(*(step("greet", lambda: "hello", key=str(number)) for number in range(5)))


async def agreet_run(store: PostgresStore) -> list[str]:
    return await durable.run(None, agreet, id="own-async", store=store)
