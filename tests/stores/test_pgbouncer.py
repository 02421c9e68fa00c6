"""Everything goes through PgBouncer, the real one, in transaction mode: FAULTS 53.

Between any two transactions the session behind a connection may be another one, so prepared statements break – or, with
two clients that number theirs alike, mean something else.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg_pool import ConnectionPool

import durable
from durable.errors import ConcurrentExecution, DurableError
from durable.stores import PostgresStore
from harness.ownership_children import Child, Orders, Scene, execute, process_of, run_as_ordered, traces, wait_until
from harness.pgbouncer import Bouncer, bouncer
from harness.support import Database, needs_pgbouncer

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


class Murderer:
    """Holds up whatever touches a table, and ends the backends that wait there, time and again."""

    def __init__(self, database: Database, lock: str, rounds: int) -> None:
        self._database = database
        self._lock = lock
        self._rounds = rounds
        self._thread = ThreadPoolExecutor(1)
        self._working: Future[None] | None = None
        self.ended = 0

    def strike(self) -> None:
        """From here on, once; the statements that come next are those that it is about."""
        if self._working is None:
            locked = threading.Event()
            self._working = self._thread.submit(self._strike, locked)
            assert locked.wait(10)

    def done(self) -> None:
        """Wait for its end."""
        assert self._working is not None
        self._working.result()

    def _strike(self, locked: threading.Event) -> None:
        with psycopg.connect(self._database.url) as connection:
            connection.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(self._database.schema)))
            connection.execute(self._lock.encode())
            locked.set()
            for _ in range(self._rounds):
                wait_until(self._end_waiting, "something that waits in the server")

    def _end_waiting(self) -> int:
        query = """
            SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity
             WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE %s"""
        ((count,),) = self._database.execute(query, f"%{self._database.schema}%")
        self.ended += count
        return int(count)


LEASES = "SELECT FROM durable_locks FOR UPDATE"
JOURNALS = "LOCK TABLE durable_steps IN SHARE MODE"


@pytest.mark.parametrize("lock", [LEASES, JOURNALS], ids=["leases", "journals"])
@pytest.mark.parametrize("way", ["single", "batch", "transaction", "last", "signal"])
def test_an_ended_backend_is_not_noticed(store: PostgresStore, database: Database, way: str, lock: str) -> None:
    """FAULTS 33, 183: PgBouncer answers one statement with two errors, the server's last word and its own."""
    murderer, bodies = Murderer(database, lock, rounds=3), list[int]()

    def body(number: int) -> int:
        bodies.append(number)
        murderer.strike()
        return number

    async def body_async(number: int) -> int:
        return body(number)

    def booked(connection: psycopg.Connection[Any], number: int) -> int:
        connection.execute(f"INSERT INTO {database.schema}.booked VALUES (%s)", [number])
        murderer.strike()  # before the record is written
        return number

    def one_by_one(step: durable.Step, _: None) -> list[int]:
        return [step("n", body, number, key=str(number)) for number in range(3)]

    def in_transactions(step: durable.Step, _: None) -> list[int]:
        if lock == LEASES:
            murderer.strike()  # before the fence
        return [step.transaction("n", booked, number, key=str(number)) for number in range(3)]

    def at_the_end(step: durable.Step, _: None) -> list[int]:
        murderer.strike()
        return [0, 1, 2]

    def signalled(step: durable.Step, _: None) -> list[int]:
        murderer.strike()
        durable.signal(store, "run", "go", [0, 1, 2])
        value: list[int] = step.wait_for("go", timeout=20)
        return value

    async def all_at_once(step: durable.AsyncStep, _: None) -> list[int]:
        await step("first", body_async, -1)
        return await asyncio.gather(*(step("n", body_async, n, key=str(n)) for n in range(3)))

    durable.run(None, squares, id="tables", store=store, input=1)
    database.execute("CREATE TABLE booked (number integer PRIMARY KEY)")
    blocking = {"single": one_by_one, "transaction": in_transactions, "last": at_the_end, "signal": signalled}
    if way == "batch":
        assert asyncio.run(durable.run(None, all_at_once, id="run", store=store)) == [0, 1, 2]
    else:
        assert durable.run(None, blocking[way], id="run", store=store) == [0, 1, 2]
    murderer.done()
    assert murderer.ended >= 3
    assert len(bodies) == len(set(bodies)), "a body ran twice"
    assert database.status("run") == "completed"
    if way == "transaction":
        assert sorted(database.execute("SELECT number FROM booked")) == [(0,), (1,), (2,)]
