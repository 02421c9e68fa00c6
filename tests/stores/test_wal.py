"""How much the database writes ahead for a step and for a run, read from its log."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import durable
from durable.stores import PostgresStore
from harness.support import Database

ID = "checkout-0123456789a"
VALUE = "x" * 98  # a hundred bytes of JSON
STEPS = 400  # so many that the pages they fill are in the average

# What was measured, and a tenth. The log's records are of the same sizes each time.
A_STEP = 550
A_STEP_OF_A_BATCH = 470
BEGIN_AND_END = 3_546

# Of these transactions, without the images of whole pages that the first change after a checkpoint brings with it.
WRITTEN = """
SELECT sum(record_length - fpi_length)::float8
  FROM pg_get_wal_records_info(%s::pg_lsn, %s::pg_lsn)
 WHERE xid::text = ANY (%s)
"""


class Log:
    """The write-ahead log from here on."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.execute("CREATE EXTENSION IF NOT EXISTS pg_walinspect")
        self._start = self._now()

    def written(self, kinds: tuple[str, ...]) -> float:
        """Bytes in the log of the transactions that wrote the run's records of these kinds."""
        rows = self._database.execute(
            "SELECT DISTINCT xmin::text FROM durable_steps WHERE kind = ANY (%s) AND workflow_id <> 'warm-up'",
            list(kinds),
        )
        transactions = [xid for (xid,) in rows]
        assert transactions
        ((written,),) = self._database.execute(WRITTEN, self._start, self._now(), transactions)
        return float(written)

    def _now(self) -> str:
        ((place,),) = self._database.execute("SELECT pg_current_wal_flush_lsn()")
        return str(place)


@pytest.fixture
def store(database: Database) -> PostgresStore:
    """The tables are there, and their first pages are on."""
    ((version,),) = database.execute("SELECT current_setting('server_version_num')::int")
    if version < 150000:  # the server that comes along is newer
        pytest.skip("pg_walinspect came with PostgreSQL 15")
    store = database.store()
    durable.run({}, workflow, id="warm-up", store=store, input=3)
    return store


def workflow(step: durable.Step, _: Any, steps: int) -> None:
    for number in range(steps):
        step("step", lambda: VALUE, key=f"step-{number}")


async def async_workflow(step: durable.AsyncStep, _: Any, steps: int) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(steps):
            group.create_task(step("step", lambda: VALUE, key=f"step-{number}"))


def test_a_step_of_a_hundred_bytes_writes_five_hundred(database: Database, store: PostgresStore) -> None:
    assert len(ID) == 20
    log = Log(database)

    durable.run({}, workflow, id=ID, store=store, input=STEPS)

    assert 100 < log.written(("step",)) / STEPS <= A_STEP


def test_steps_in_a_batch_write_less_than_alone(database: Database, store: PostgresStore) -> None:
    log = Log(database)

    asyncio.run(durable.run({}, async_workflow, id=ID, store=store, input=STEPS))

    assert 100 < log.written(("step",)) / STEPS <= A_STEP_OF_A_BATCH


def test_a_step_writes_as_much_late_in_a_long_run(database: Database, store: PostgresStore) -> None:
    """FAULTS 90: the run's document is not written again with each step."""
    log, written = Log(database), list[float]()
    for number, steps in enumerate((STEPS, 3 * STEPS)):
        durable.run({}, workflow, id=f"{ID[:-1]}{number}", store=store, input=steps)
        written.append(log.written(("step",)))

    first, both = written
    assert (both - first) / (3 * STEPS) <= 1.05 * first / STEPS


def test_the_begin_and_the_end_of_a_run_write_what_a_few_steps_do(database: Database, store: PostgresStore) -> None:
    log = Log(database)

    for number in range(50):
        durable.run({}, workflow, id=f"{ID[:-2]}{number:02}", store=store, input=0)

    assert log.written(("input", "result")) / 50 <= BEGIN_AND_END
