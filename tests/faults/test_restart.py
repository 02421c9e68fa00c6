"""PostgreSQL killed and restarted under running workflows: a server of this file's own, in a directory of its own."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

import durable
from durable import AsyncStep, Step
from harness.machine import Machine
from harness.ownership_children import PATIENCE, remove_server
from harness.support import Database


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    directory = Path(tempfile.mkdtemp(prefix="durable-test-"))
    machine = Machine(directory / "durable")
    yield machine
    machine.close()
    remove_server(directory / "durable")
    shutil.rmtree(directory)


@pytest.fixture
def own_database(machine: Machine) -> Iterator[Database]:
    database = Database(machine.url, f"t_{secrets.token_hex(6)}")
    yield database
    machine.ensure_up()
    database.drop()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGQUIT], ids=["kill -9", "fast", "immediate"])
def test_a_restart_is_not_noticed(machine: Machine, own_database: Database, how: signal.Signals) -> None:
    """FAULTS 31, 32: by a blocking run, and by ten async ones that commit all the while; nothing acknowledged is lost."""
    store, over, bodies = own_database.store(), threading.Event(), list[str]()
    busy = threading.Event()

    def body(key: str) -> str:
        bodies.append(key)
        if key == "blocking/two":
            assert busy.wait(PATIENCE)
            machine.down(how)
            machine.up()
            over.set()
        return key

    def blocking(step: Step, _: None) -> list[str]:
        return [step("body", body, f"blocking/{key}", key=key) for key in ("one", "two", "three")]

    async def walking(step: AsyncStep, _: None, run_id: str) -> list[str]:
        values, left = list[str](), 3
        while left:  # until the server is there again, and then a little
            key = f"{run_id}/{len(values)}"
            values.append(await step("body", body, key, key=key))
            left -= over.is_set()
            if len(bodies) > 50:
                busy.set()
            await asyncio.sleep(0.001)
        return values

    async def crowd() -> list[list[str]]:
        ids = [f"run-{number}" for number in range(10)]
        return await asyncio.gather(
            *(durable.run(None, walking, id=run_id, store=store, input=run_id) for run_id in ids)
        )

    with ThreadPoolExecutor(1) as aside:
        others = aside.submit(lambda: asyncio.run(crowd()))
        values = [durable.run(None, blocking, id="blocking", store=store), *others.result(PATIENCE)]

    assert values[0] == ["blocking/one", "blocking/two", "blocking/three"]
    expected = sorted(key for run in values for key in run)
    assert sorted(bodies) == expected, "a body ran twice"
    stored = own_database.execute("SELECT record->>'value' FROM durable_steps WHERE kind = 'step'")
    assert sorted(value for (value,) in stored) == expected
    assert own_database.execute("SELECT DISTINCT epoch, owner_token FROM durable_locks") == [(1, None)]
    assert own_database.execute("SELECT DISTINCT snapshot->'execution'->>'status' FROM durable_snapshots") == [
        ("completed",)
    ]


def test_an_outage_longer_than_the_lease_stops_the_run_and_the_next_goes_on(
    machine: Machine, own_database: Database
) -> None:
    """FAULTS 31: no further body starts, in either colour, and nothing that was acknowledged is lost."""
    store, bodies, down = own_database.store(), list[str](), threading.Event()
    ready = threading.Barrier(2)

    def body(key: str) -> str:
        bodies.append(key)
        if key.endswith("two") and not down.is_set():
            if ready.wait(PATIENCE) == 0:
                machine.down(signal.SIGKILL)
                down.set()
            assert down.wait(PATIENCE)
        return key

    def blocking(step: Step, _: None) -> list[str]:
        return [step("body", body, f"blocking/{key}", key=key) for key in ("one", "two", "three")]

    async def walking(step: AsyncStep, _: None) -> list[str]:
        return [await step("body", body, f"walking/{key}", key=key) for key in ("one", "two", "three")]

    def run(workflow: Any, **options: Any) -> Any:
        outcome = durable.run(None, workflow, id=workflow.__name__, store=store, **options)
        return asyncio.run(outcome) if asyncio.iscoroutine(outcome) else outcome

    # Sent to a dead connection: unknown. Waiting behind that and never sent: a definite failure.
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(run, workflow, lease=0.8) for workflow in (blocking, walking)]
        problems = [one.exception(PATIENCE) for one in runs]
    assert all(
        isinstance(problem, durable.OutcomeUnknown | durable.LeaseLost | durable.StoreUnavailable)
        for problem in problems
    )
    assert sorted(bodies) == ["blocking/one", "blocking/two", "walking/one", "walking/two"]
    with pytest.raises(durable.StoreUnavailable):  # who only asks to begin is told at once
        run(blocking)

    machine.up()
    bodies.clear()
    for workflow in (blocking, walking):
        name = workflow.__name__
        assert run(workflow, on_conflict="wait") == [f"{name}/one", f"{name}/two", f"{name}/three"]
    assert sorted(bodies) == ["blocking/three", "blocking/two", "walking/three", "walking/two"]


@pytest.mark.parametrize(
    "words",
    [
        "could not write init file: No space left on device",
        "could not fork new process for connection: Cannot allocate memory",
        "out of memory",
        "the database system is starting up",
    ],
)
def test_a_server_that_cannot_let_anybody_in_now_is_no_refusal(database: Database, words: str) -> None:
    """FAULTS 50: with its disk full it cannot even write the file that each new session reads. (Found by chaos.)"""
    said = f'connection failed: connection to server at "127.0.0.1", port 5432 failed: FATAL:  {words}'
    meaning = database.store()._held.resources.connections.explain(psycopg.OperationalError(said))
    assert type(meaning) is durable.StoreUnavailable
