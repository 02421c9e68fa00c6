"""Many at once: first starts, claims of the same few runs, a long queue, a hundred steps of one run."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import durable
from durable import AsyncStep, Step
from durable.errors import ConcurrentExecution
from durable.stores import PostgresStore
from harness.support import Database


def all_at_once(number: int, work: Callable[[int], Any]) -> list[Any]:
    """What `work(n)` returned in as many threads, which begin together."""
    together = threading.Barrier(number)

    def begun(n: int) -> Any:
        together.wait()
        return work(n)

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(begun, range(number)))


def one(step: Step, _: None) -> str:
    return step("one", lambda: "done")


def started(stores: list[PostgresStore]) -> Callable[[int], Any]:
    """What the n-th does: a run of its own, in a store of its own."""
    return lambda n: durable.run(None, one, id=f"run {n}", store=stores[n])


def test_eight_first_starts_on_an_empty_database(database: Database) -> None:
    """FAULTS 66: five times over; each has connections of its own, and all make the tables."""
    for _ in range(5):
        stores = [database.store() for _ in range(8)]
        assert all_at_once(8, started(stores)) == ["done"] * 8
        database.drop()


def test_ten_runs_that_everybody_claims(database: Database) -> None:
    """FAULTS 65: no deadlock, no epoch given twice, nobody left waiting."""
    stores = [database.store() for _ in range(4)]
    began: list[tuple[str, int]] = []

    def claiming(n: int) -> int:
        refused, chance = 0, random.Random(n)
        for _ in range(60):
            run_id = f"run {chance.randrange(10)}"
            try:
                durable.run(None, loops, id=run_id, store=stores[n % 4], on_event=noting)
            except ConcurrentExecution:
                refused += 1
            except OverflowError:
                continue
        return refused

    def loops(step: Step, _: None) -> None:
        step("one", lambda: 1)
        raise OverflowError  # so that the run can be claimed again

    def noting(event: durable.events.RunEvent) -> None:
        if isinstance(event, durable.events.RunBegan):
            began.append((event.run_id, event.epoch))

    assert sum(all_at_once(8, claiming)) > 0
    assert max(Counter(began).values()) == 1
    leases = database.execute("SELECT workflow_id, epoch, owner_token FROM durable_locks")
    assert {(run_id, epoch) for run_id, epoch, _ in leases} == {
        max(each for each in began if each[0] == run_id) for run_id, _ in began
    }
    assert {token for *_, token in leases} == {None}


def test_a_queue_that_eight_workers_share(database: Database) -> None:
    """FAULTS 64, in small: each run is executed once, all end, and nobody gets another's."""
    ids = [f"run {n}" for n in range(200)]
    stores = [database.store() for _ in range(4)]
    bodies: Counter[str] = Counter()

    def worker(n: int) -> None:
        mine = random.Random(n).sample(ids, len(ids))
        for run_id in mine:
            try:
                assert durable.run(None, named, id=run_id, store=stores[n % 4], input=run_id) == run_id
            except ConcurrentExecution:
                continue

    def named(step: Step, _: None, run_id: str) -> str:
        return step("name", counted, run_id)

    def counted(run_id: str) -> str:
        bodies[run_id] += 1
        return run_id

    all_at_once(8, worker)
    assert bodies == Counter(ids)
    assert {database.status(run_id) for run_id in ids} == {"completed"}


def test_a_hundred_steps_at_once_of_which_one_is_cancelled(database: Database) -> None:
    """FAULTS 71: the others are acknowledged; by their keys, not by their order, they are replayed."""
    store = database.store()
    bodies: Counter[int] = Counter()

    async def body(n: int) -> int:
        bodies[n] += 1
        if n == 50:
            await asyncio.Event().wait()
        return n

    async def crowd(step: AsyncStep, order: list[int]) -> list[int]:
        tasks = {n: asyncio.create_task(step("body", body, n, key=f"body {n}")) for n in order}
        await asyncio.wait([task for n, task in tasks.items() if n != 50])
        tasks[50].cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        raise OverflowError

    async def run(order: list[int]) -> None:
        with pytest.raises(OverflowError):
            await durable.run(order, crowd, id="crowd", store=store)

    asyncio.run(run(list(range(100))))
    asyncio.run(run(list(reversed(range(100)))))
    assert {key for kind, key, _ in database.journal("crowd") if kind == "step"} == {
        f"body {n}" for n in range(100) if n != 50
    }
    assert bodies == Counter(range(100)) + Counter([50])


def test_deleting_what_somebody_executes(database: Database) -> None:
    """FAULTS 69: refused; by force, the owner can write nothing more, and nothing rises again."""
    store, other = database.store(), database.store()

    def deleted(step: Step, _: None) -> None:
        step("one", lambda: 1)
        with pytest.raises(ConcurrentExecution):
            other.delete("doomed")
        assert other.purge(older_than=0, status=None) == 0
        other.delete("doomed", force=True)
        step("two", lambda: 2)

    with pytest.raises(durable.errors.RecordsLost, match="deleted with force=True, or the database has gone back"):
        durable.run(None, deleted, id="doomed", store=store)
    assert database.header("doomed") is None
    assert database.journal("doomed") == []
