"""Everything goes through PgBouncer, the real one, in transaction mode: FAULTS 53.

Between any two transactions the session behind a connection may be another one, so prepared statements break – or, with
two clients that number theirs alike, mean something else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from psycopg_pool import ConnectionPool

import durable
from durable.errors import ConcurrentExecution, DurableError
from durable.stores import PostgresStore
from ownership_children import Child, Orders, Scene, execute, process_of, run_as_ordered, traces
from pgbouncer import Bouncer, bouncer
from support import Database, needs_pgbouncer

pytestmark = needs_pgbouncer

RESULT = ["one by new", "two by new", "three by new"]


@pytest.fixture
def through(database: Database) -> Iterator[Bouncer]:
    """PgBouncer before the test's database, in transaction mode."""
    with bouncer(database.url, keeps=0) as started:
        yield started


@pytest.fixture
def store(through: Bouncer, database: Database) -> Iterator[PostgresStore]:
    """A store behind it, closed before it is."""
    with database.store(through.url) as store:
        yield store


@pytest.fixture
def orders(through: Bouncer, database: Database, tmp_path: Path) -> Orders:
    """A run for two."""
    return Orders(through.url, database.schema, str(tmp_path / "effects"))


@pytest.fixture
def send(through: Bouncer) -> Iterator[Callable[[Orders], Child]]:
    """Send a process into the field."""
    children: list[Child] = []

    def sent(orders: Orders) -> Child:
        children.append(Child(run_as_ordered, orders))
        return children[-1]

    yield sent
    for child in children:
        child.end()


def squares(step: durable.Step, _: None, count: int) -> list[int]:
    """A blocking workflow."""
    return [step("square", lambda n: n * n, number, key=f"square-{number}") for number in range(count)]


async def squares_async(step: durable.AsyncStep, _: None, count: int) -> list[int]:
    """The same, all at once."""

    async def square(number: int) -> int:
        return number * number

    return await asyncio.gather(*(step("square", square, number, key=f"square-{number}") for number in range(count)))


def keys(database: Database, run_id: str) -> set[str]:
    return {key for kind, key, _ in database.journal(run_id) if kind == "step"}


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_run(store: PostgresStore, database: Database, colour: str) -> None:
    """FAULTS 53: from the first table to the stored result, whichever session each transaction gets."""
    for _ in range(2):  # run, and handed out
        if colour == "sync":
            values = durable.run(None, squares, id="squares", store=store, input=12)
        else:
            values = asyncio.run(durable.run(None, squares_async, id="squares", store=store, input=12))
        assert values == [number * number for number in range(12)]
    assert database.status("squares") == "completed"
    assert keys(database, "squares") == {f"square-{number}" for number in range(12)}


def test_prepared_statements_are_given_up(store: PostgresStore) -> None:
    """FAULTS 53: the store finds out by itself that they do not last here."""
    durable.run(None, squares, id="squares", store=store, input=12)
    assert process_of(store).connections.prepares is False


def test_an_interrupted_run_is_resumed(store: PostgresStore, database: Database) -> None:
    """FAULTS 53: what was acknowledged is replayed, and nothing else."""

    class Pulled(BaseException):
        pass

    bodies: list[str] = []

    def workflow(step: durable.Step, _: None) -> list[str]:
        def body(key: str) -> str:
            bodies.append(key)
            if key == "three" and bodies.count(key) == 1:
                raise Pulled
            return key

        return [step(key, body, key, key=key) for key in ("one", "two", "three")]

    with pytest.raises(Pulled):
        durable.run(None, workflow, id="pulled", store=store)
    assert durable.run(None, workflow, id="pulled", store=store) == ["one", "two", "three"]
    assert bodies == ["one", "two", "three", "three"]
    assert database.status("pulled") == "completed"


def test_a_killed_process_is_succeeded(store: PostgresStore, orders: Orders, send: Callable[[Orders], Child]) -> None:
    """FAULTS 53, with kill -9: its lease is known to be nobody's, and its steps are not run again."""
    old = send(orders.by("old", waits_in="body"))
    assert old.hear() == "body"
    old.kill()
    new = orders.by("new")
    assert execute(new, store, Scene(new)) == ["one by old", "two by new", "three by new"]
    assert traces(orders.effects) == ["one by old", "two by old", "two by new", "three by new"]


def test_one_runs_and_the_other_is_told(store: PostgresStore, orders: Orders, send: Callable[[Orders], Child]) -> None:
    """FAULTS 53: `ConcurrentExecution`, and the owner unharmed."""
    old = send(orders.by("old", waits_in="body"))
    assert old.hear() == "body"
    new = orders.by("new")
    with pytest.raises(ConcurrentExecution):
        execute(new, store, Scene(new))
    old.say()
    result = ["one by old", "two by old", "three by old"]
    assert old.hear() == ("returned", result)
    assert execute(new, store, Scene(new)) == result


def test_a_lease_that_ended_is_taken_over(
    store: PostgresStore, database: Database, orders: Orders, send: Callable[[Orders], Child]
) -> None:
    """FAULTS 53: the old owner, back between body and checkpoint, is fenced off."""
    old = send(orders.by("old", waits_in="checkpoint"))
    assert old.hear() == "checkpoint"
    database.end_lease("contested")
    new = orders.by("new")
    result = ["one by old", "two by new", "three by new"]
    assert execute(new, store, Scene(new)) == result
    old.say()
    error, _ = old.hear()
    assert error == "LeaseLost"
    assert [record["value"] for kind, _, record in database.journal("contested") if kind == "step"] == result


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_fifty_at_once(store: PostgresStore, database: Database, colour: str) -> None:
    """FAULTS 53: batches of all verbs, on sessions in turns."""
    ids = [f"run-{number}" for number in range(50)]

    async def all_async() -> list[list[int]]:
        runs = (durable.run(None, squares_async, id=run_id, store=store, input=10) for run_id in ids)
        return await asyncio.gather(*runs)

    if colour == "sync":
        with ThreadPoolExecutor(len(ids)) as threads:
            results = list(
                threads.map(lambda run_id: durable.run(None, squares, id=run_id, store=store, input=10), ids)
            )
    else:
        results = asyncio.run(all_async())
    assert results == [[number * number for number in range(10)]] * 50
    assert {database.status(run_id) for run_id in ids} == {"completed"}
    (counted,) = database.execute("SELECT count(*) FROM durable_steps WHERE kind = 'step'")
    assert counted == (500,)


def test_leases_are_renewed(store: PostgresStore, database: Database) -> None:
    """FAULTS 53: the heartbeat finds out, too, that its statement does not last."""

    def workflow(step: durable.Step, _: None) -> list[bool]:
        return step("beat", lambda: [process_of(store).heartbeat.beat() for _ in range(9)])

    beats = durable.run(None, workflow, id="beating", store=store)
    assert beats.count(False) <= 1, beats


def test_a_pool_of_the_users(through: Bouncer, database: Database) -> None:
    """FAULTS 53: a borrowed pool whose connections lead through PgBouncer."""
    with (
        ConnectionPool(through.url, min_size=1, max_size=2, open=True) as pool,
        durable.stores.postgres(pool=pool, schema=database.schema) as store,
    ):
        assert durable.run(None, squares, id="squares", store=store, input=12) == [
            number * number for number in range(12)
        ]
        assert asyncio.run(durable.run(None, squares_async, id="async", store=store, input=12))


def test_a_statement_is_never_taken_for_another_ones(through: Bouncer, database: Database) -> None:
    """FAULTS 53: two clients have numbered their prepared statements alike, and then meet on one session.

    Were they to prepare any, the end of a run would have the number that a batch of checkpoints has in the other
    client. What the two have in common is one parameter of JSON, so that the server has no reason to object.
    """

    def one(step: durable.Step, _: None) -> int:
        return step("one", lambda: 1)

    async def many(step: durable.AsyncStep, _: None, count: int) -> list[int]:
        async def itself(number: int) -> int:
            return number

        await step("first", itself, -1)
        return await asyncio.gather(*(step("number", itself, n, key=f"number-{n}") for n in range(count)))

    first, second, third = (database.store(through.url) for _ in range(3))
    with first, second, third, through.held() as sessions:
        with sessions.only(0):
            durable.run(None, one, id="tables", store=third)
            assert durable.run(None, one, id="one", store=first) == 1
        for number in (1, 0):
            with sessions.only(number):
                run = durable.run(None, many, id=f"many-{number}", store=second, input=20)
                assert asyncio.run(run) == list(range(20))
        with sessions.only(1):
            assert durable.run(None, one, id="two", store=first) == 1
    assert {database.status(run_id) for run_id in ("one", "two", "many-0", "many-1")} == {"completed"}


def test_statement_mode_is_refused(database: Database) -> None:
    """FAULTS 53: where a transaction cannot be had, the first use says so, in PgBouncer's words."""
    with (
        bouncer(database.url, mode="statement") as started,
        database.store(started.url) as store,
        pytest.raises(DurableError, match="statement pooling mode"),
    ):
        durable.run(None, squares, id="refused", store=store, input=1)
    assert database.execute("SELECT to_regclass('durable_snapshots')") == [(None,)]
