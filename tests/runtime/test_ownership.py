"""Who may write a run: two processes, stopped processes, take-overs in every order, lost leases, dead owners."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import msgspec
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

import durable
from durable._engine.decisions import Claim, Granted, Refused
from durable._engine.leases import Lease
from durable.events import LeaseTaken, RunBegan, RunEvent, StepRecorded
from durable.records import Kind, Record, Status, StepRecord, render
from durable.stores import PostgresStore, memory
from durable.stores._postgres.sql.loader import load_statements
from durable.stores._postgres.sql.names import Names
from durable.stores.requests import Begin, Checkpoint, Finish, Release, Request
from harness.ownership_children import (
    PATIENCE,
    Child,
    Orders,
    Scene,
    execute,
    process_of,
    run_as_ordered,
    traces,
    wait_until,
)
from harness.support import Database

Colour = Literal["sync", "async"]


@pytest.fixture
def orders(database: Database, tmp_path: Path) -> Orders:
    """A run for two."""
    return Orders(database.url, database.schema, str(tmp_path / "effects"))


@pytest.fixture
def send() -> Iterator[Callable[[Orders], Child]]:
    """Send a process into the field."""
    children: list[Child] = []

    def sent(orders: Orders) -> Child:
        children.append(Child(run_as_ordered, orders))
        return children[-1]

    yield sent
    for child in children:
        child.end()


@pytest.fixture
def aside() -> Iterator[ThreadPoolExecutor]:
    """Threads for what has to wait."""
    with ThreadPoolExecutor(4) as pool:
        yield pool


def epochs(database: Database, run_id: str = "contested") -> list[tuple[str, int]]:
    """The journal as (key, epoch under which it was written)."""
    query = "SELECT key, epoch FROM durable_steps WHERE workflow_id = %s ORDER BY seq"
    return [(key, epoch) for key, epoch in database.execute(query, run_id)]


def lease_row(database: Database, run_id: str = "contested") -> tuple[Any, ...]:
    """The lease with its times."""
    query = "SELECT epoch, owner_token, owner, expires_at FROM durable_locks WHERE workflow_id = %s"
    return database.execute(query, run_id)[0]


# -- two at once ----------------------------------------------------------------------------------------------------


def test_of_two_processes_one_runs_and_the_other_is_told(orders: Orders, send: Callable[[Orders], Child]) -> None:
    """FAULTS 62, in small."""
    first = send(orders.by("first", waits_in="body"))
    assert first.hear() == "body"
    second = send(orders.by("second"))
    error, text = second.hear()
    assert error == "ConcurrentExecution"
    assert f":{first.process.pid} " in text
    assert 'on_conflict="wait"' in text
    first.say()
    assert first.hear() == ("returned", ["one by first", "two by first", "three by first"])
    assert traces(orders.effects) == ["one by first", "two by first", "three by first"]


def test_a_process_that_waits_gets_the_stored_result(orders: Orders, send: Callable[[Orders], Child]) -> None:
    """FAULTS 62, in small: it is let wait before the owner may go on, and runs no body."""
    first = send(orders.by("first", waits_in="body"))
    assert first.hear() == "body"
    second = send(orders.by("second", on_conflict="wait"))
    assert second.hear() == "refused"
    first.say()
    result = ("returned", ["one by first", "two by first", "three by first"])
    assert first.hear() == result
    assert second.hear() == result
    assert traces(orders.effects) == ["one by first", "two by first", "three by first"]


def test_a_process_that_waits_gets_the_stored_failure(
    database: Database, orders: Orders, send: Callable[[Orders], Child]
) -> None:
    """FAULTS 61: a stored failure is raised to the one who waited, and not run again by it."""
    first = send(orders.by("first", waits_in="body", fails=True))
    assert first.hear() == "body"
    second = send(orders.by("second", on_conflict="wait"))
    assert second.hear() == "refused"
    first.say()
    assert first.hear() == ("ValueError", "two is out of order")
    assert second.hear() == ("ValueError", "two is out of order")
    assert traces(orders.effects) == ["one by first", "two by first"]
    assert lease_row(database)[0] == 1, "the waiting process took the lease"


def test_waiting_has_an_end(orders: Orders, send: Callable[[Orders], Child]) -> None:
    """FAULTS 61: `wait_timeout`, while the owner goes on unharmed."""
    first = send(orders.by("first", waits_in="body"))
    assert first.hear() == "body"
    second = send(orders.by("second", on_conflict="wait", wait_timeout=0.05))
    assert second.hear() == "refused"
    error, text = second.hear()
    assert error == "WaitTimedOut"
    assert "'contested'" in text
    first.say()
    assert first.hear()[0] == "returned"
    assert traces(orders.effects) == ["one by first", "two by first", "three by first"]


class Crowd:
    """Many callers of one id in one process: the first body waits until each of the others has been refused."""

    def __init__(self, store: PostgresStore, size: int) -> None:
        self.bodies: list[str] = []
        self._refused: set[object] = set()
        self._size = size
        self._all_refused = threading.Event()
        self._perform, self._submit = store.perform, store.aio.submit
        store.perform = self._watched  # type: ignore[method-assign]
        store.aio.submit = self._async_watched  # type: ignore[method-assign]

    def workflow(self, step: durable.Step, _: None) -> list[str]:
        """Two steps, one of which lasts."""
        return [step("one", self._body, "one"), step("two", self._body, "two")]

    async def async_workflow(self, step: durable.AsyncStep, _: None) -> list[str]:
        """The same for tasks: the wait is in a thread, the others need the loop."""
        return [await step("one", self._async_body, "one"), await step("two", self._async_body, "two")]

    def _body(self, key: str) -> str:
        self.bodies.append(key)
        assert self._all_refused.wait(PATIENCE)
        return key

    async def _async_body(self, key: str) -> str:
        return await asyncio.to_thread(self._body, key)

    def _watched(self, request: Request[Any], on_late_reply: Any = None) -> Any:
        reply = self._perform(request, on_late_reply)
        self._note(reply, threading.get_ident())
        return reply

    def _async_watched(self, request: Request[Any], on_late_reply: Any = None) -> Any:
        caller, reply = asyncio.current_task(), self._submit(request, on_late_reply)
        reply.add_done_callback(lambda reply: self._note(reply.result(), caller))
        return reply

    def _note(self, reply: object, caller: object) -> None:
        if isinstance(reply, Refused):
            self._refused.add(caller)
            if len(self._refused) == self._size - 1:
                self._all_refused.set()


def test_eight_threads_of_one_process(database: Database, aside: ThreadPoolExecutor) -> None:
    """FAULTS 61, in small."""
    store = database.store()
    crowd, barrier = Crowd(store, 8), threading.Barrier(8)

    def call() -> list[str]:
        barrier.wait(PATIENCE)
        return durable.run(None, crowd.workflow, id="contested", store=store, on_conflict="wait")

    with ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(call) for _ in range(8)]
    assert [call.result() for call in calls] == [["one", "two"]] * 8
    assert crowd.bodies == ["one", "two"]
    assert epochs(database) == [("one", 1), ("two", 1), ("result", 1)]


def test_twenty_tasks_of_one_process(database: Database) -> None:
    """FAULTS 61 and 63, in small."""
    store = database.store()
    crowd = Crowd(store, 20)

    async def all_at_once() -> list[list[str]]:
        async def call() -> list[str]:
            return await durable.run(None, crowd.async_workflow, id="contested", store=store, on_conflict="wait")

        return await asyncio.gather(*(call() for _ in range(20)))

    assert asyncio.run(all_at_once()) == [["one", "two"]] * 20
    assert crowd.bodies == ["one", "two"]
    assert epochs(database) == [("one", 1), ("two", 1), ("result", 1)]


# -- a stopped process ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["body", "checkpoint"])
@pytest.mark.parametrize("new_owner", ["has ended", "is in the same body"])
def test_a_process_that_was_stopped_writes_nothing(
    database: Database,
    orders: Orders,
    send: Callable[[Orders], Child],
    aside: ThreadPoolExecutor,
    where: str,
    new_owner: str,
) -> None:
    """FAULTS 16, 17 and 20: SIGSTOP for twice the lease, take-over, SIGCONT; the workflow catches every `Exception`.

    While the new owner is still in the same body the place in the journal is free: only the fence is in the way.
    """
    old = send(orders.by("old", waits_in=where, lease=0.5))
    assert old.hear() == where
    amid, goes_on = threading.Event(), threading.Event()
    new_orders = orders.by("new", waits_in="body" if new_owner == "is in the same body" else "")

    def meet(_: str) -> None:
        amid.set()
        assert goes_on.wait(PATIENCE)

    try:
        with old.stopped():
            twice = "SELECT expires_at + interval '0.5 seconds' < clock_timestamp() FROM durable_locks"
            wait_until(lambda: database.execute(twice)[0][0], "twice the lease to pass")
            new = aside.submit(execute, new_orders, database.store(), Scene(new_orders, meet))
            if new_orders.waits_in:
                assert amid.wait(PATIENCE)
            else:
                new.result(PATIENCE)
            before = database.everything()
            old.say()
        error, text = old.hear()
        assert error == "LeaseLost"
        assert "'contested'" in text
        assert database.everything() == before
    finally:  # whatever was seen, nobody is left waiting
        goes_on.set()
    assert new.result(PATIENCE) == ["one by old", "two by new", "three by new"]
    assert traces(orders.effects) == ["one by old", "two by old", "two by new", "three by new"]
    assert epochs(database) == [("one", 1), ("two", 2), ("three", 2), ("result", 2)]


def test_what_a_former_owner_still_tries_changes_no_row(database: Database) -> None:
    """FAULTS 20: checkpoint, renew, release and finish, after a take-over."""
    store = database.store()
    zombie = granted(store)
    database.end_lease("contested")
    owner = granted(database.store())
    before, lease_before = database.everything(), lease_row(database)
    with pytest.raises(durable.LeaseLost):
        store.perform(Checkpoint(zombie, record(0, "late")))
    with pytest.raises(durable.LeaseLost):
        store.perform(Finish(zombie, Status.COMPLETED, Record(0, Kind.RESULT, Kind.RESULT, "1")))
    assert process_of(store).heartbeat._renew([zombie]) == {}
    store.perform(Release(zombie))
    assert database.everything() == before
    assert lease_row(database) == lease_before
    assert owner.epoch == zombie.epoch + 1


# -- take-over against a checkpoint in flight ------------------------------------------------------------------------


def claim(run_id: str = "contested", **options: Any) -> Claim:
    """A claim to a run without input."""
    return Claim(**{"run_id": run_id, "workflow": "contest", "version": 1, "seconds": 60.0, **options})


def granted(store: PostgresStore, run_id: str = "contested") -> Lease:
    """Begin the run as its owner."""
    reply = store.perform(Begin(claim(run_id), lambda: True))
    assert isinstance(reply, Granted)
    return reply.lease


def record(seq: int, key: str) -> Record:
    """A step's record."""
    return Record(seq, key, Kind.STEP, render(StepRecord(name=key, ok=True, value=msgspec.Raw(b"1"))))


def statement(database: Database, name: str) -> bytes:
    """A statement of the store, for this test's schema."""
    return load_statements(Names(schema=database.schema))[name]


def checkpoint(
    connection: psycopg.Connection[Any], database: Database, lease: Lease, of: Record, form: str = "checkpoint"
) -> int:
    """The store's checkpoint, on a connection whose transaction the test holds open; how many rows it wrote."""
    if form == "checkpoint":
        row = (of.seq, of.key, of.kind, 1, of.text, lease.run_id, lease.token)
        return connection.execute(statement(database, form), row).rowcount
    columns = {"id": lease.run_id, "token": lease.token, "seq": of.seq, "key": of.key, "kind": of.kind}
    batch = json.dumps([{"n": 0, **columns, "nonce": 1, "record": json.loads(of.text)}])
    return 1 - len(
        connection.execute(statement(database, form), (batch,)).fetchall()
    )  # it answers what it did not write


def backend_of(connection: psycopg.Connection[Any]) -> int:
    """Its process in the server."""
    return connection.info.backend_pid


def waiting_for(database: Database, blocker: psycopg.Connection[Any]) -> int:
    """The backend that waits for a lock that this connection holds."""
    query = "SELECT pid FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
    return int(database.execute(query, backend_of(blocker))[0][0])


def waits_for(database: Database, blocker: int) -> bool:
    """Whether some backend waits for a lock that this backend holds."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND %s = ANY (pg_blocking_pids(pid))"
    return bool(database.execute(query, blocker)[0][0])


def wait_for_block(database: Database, by: psycopg.Connection[Any], of: Future[Any]) -> None:
    """Look until somebody waits for this connection, or the one who should wait has gone through."""
    wait_until(lambda: of.done() or waits_for(database, backend_of(by)), "a wait for a lock")
    assert not of.done(), f"it did not wait: {of.exception() or of.result()}"


@pytest.fixture(params=["by role", "by database", "by URL"])
def inherits(request: pytest.FixtureRequest, database: Database) -> Iterator[Callable[[str], str]]:
    """A URL under which every transaction that does not say otherwise is of this isolation."""
    undo: list[sql.Composed] = []

    def url(level: str) -> str:
        if request.param == "by URL":
            escaped = level.replace(" ", "\\ ")
            return make_conninfo(database.url, options=f"-c default_transaction_isolation={escaped}")
        if request.param == "by database":
            name = sql.Identifier(psycopg.conninfo.conninfo_to_dict(database.url)["dbname"])  # type: ignore[arg-type]
            change(database, sql.SQL("ALTER DATABASE {} SET default_transaction_isolation = {}").format(name, level))
            undo.append(sql.SQL("ALTER DATABASE {} RESET default_transaction_isolation").format(name))
            return database.url
        role, password = f"{database.schema}_role", "of no importance"
        name = sql.Identifier(role)
        change(database, sql.SQL("CREATE ROLE {} LOGIN SUPERUSER PASSWORD {}").format(name, password))
        change(database, sql.SQL("ALTER ROLE {} SET default_transaction_isolation = {}").format(name, level))
        undo.append(sql.SQL("DROP OWNED BY {0} CASCADE").format(name))
        undo.append(sql.SQL("DROP ROLE {}").format(name))
        return make_conninfo(database.url, user=role, password=password)

    yield url
    for query in undo:
        change(database, query)


def change(database: Database, query: sql.SQL | sql.Composed) -> None:
    """Change something outside the schema."""
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute(query)


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_new_owner_sees_the_record_it_waited_for(
    database: Database, inherits: Callable[[str], str], aside: ThreadPoolExecutor, level: str
) -> None:
    """FAULTS 111: the checkpoint is open when the claim comes; a snapshot taken before the wait would miss it."""
    url = inherits(level)
    lease = granted(database.store(url))
    with psycopg.connect(url) as zombie:
        assert zombie.execute("SHOW transaction_isolation").fetchone() == (level,)
        assert checkpoint(zombie, database, lease, record(0, "last")) == 1
        database.end_lease("contested")
        taking_over = aside.submit(database.store(url).perform, Begin(claim(), lambda: True))
        wait_for_block(database, zombie, taking_over)
        zombie.commit()
        reply = taking_over.result(PATIENCE)
    assert isinstance(reply, Granted)
    assert reply.lease.epoch == 2
    assert [(of.seq, of.key) for of in reply.records] == [(0, "last")]


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_checkpoint_that_waited_for_a_claim_is_rejected(
    database: Database, inherits: Callable[[str], str], aside: ThreadPoolExecutor, level: str
) -> None:
    """FAULTS 111, the other way round: the claim is open when the checkpoint comes, which must look again."""
    url = inherits(level)
    store = database.store(url)
    lease = granted(store)
    database.end_lease("contested")
    with inside(database) as reader:
        reader.execute("SELECT FROM durable_snapshots FOR UPDATE")  # the claim takes the lease, then wants the header
        claiming = aside.submit(database.store(url).perform, Begin(claim(), lambda: True))
        wait_for_block(database, reader, claiming)
        writing = aside.submit(store.perform, Checkpoint(lease, record(0, "late")))
        wait_until(lambda: writing.done() or waits_for(database, waiting_for(database, reader)), "two waits in a row")
        assert not writing.done(), "it did not wait for the claim"
    assert isinstance(claiming.result(PATIENCE), Granted)
    assert isinstance(writing.exception(PATIENCE), durable.LeaseLost)
    assert database.journal("contested") == []


TAKE_OVERS = {
    "update": ["UPDATE durable_locks SET epoch = 2, owner_token = '2:new' WHERE workflow_id = 'contested'"],
    "upsert": [
        (
            "INSERT INTO durable_locks AS lease (workflow_id, epoch, owner_token, expires_at)"
            " VALUES ('contested', 2, '2:new', now() + interval '1 minute')"
            " ON CONFLICT (workflow_id) DO UPDATE SET epoch = excluded.epoch, owner_token = excluded.owner_token"
        )
    ],
    "delete and insert": [
        "DELETE FROM durable_locks WHERE workflow_id = 'contested'",
        (
            "INSERT INTO durable_locks (workflow_id, epoch, owner_token, expires_at)"
            " VALUES ('contested', 2, '2:new', now() + interval '1 minute')"
        ),
    ],
}


def taken_over(connection: psycopg.Connection[Any], how: str) -> list[str]:
    """Take the lease over, and read the journal in a later statement of the transaction, which stays open."""
    for query in TAKE_OVERS[how]:
        assert connection.execute(query).rowcount == 1
    return [key for (key,) in connection.execute("SELECT key FROM durable_steps WHERE workflow_id = 'contested'")]


@contextlib.contextmanager
def inside(database: Database) -> Iterator[psycopg.Connection[Any]]:
    """A connection whose transaction the test holds open."""
    path = f"-c search_path={database.schema} -c default_transaction_isolation=read\\ committed"
    with psycopg.connect(database.url, options=path) as connection:
        yield connection


FORMS = ["checkpoint", "checkpoint_batch"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", TAKE_OVERS)
def test_a_take_over_by_any_statement_waits_for_the_checkpoint(
    database: Database, aside: ThreadPoolExecutor, how: str, form: str
) -> None:
    """FAULTS 112: then it sees the record, and whatever the old owner writes later is rejected."""
    store = database.store()
    lease = granted(store)
    with inside(database) as zombie, inside(database) as new:
        assert checkpoint(zombie, database, lease, record(0, "last"), form) == 1
        taking_over = aside.submit(taken_over, new, how)
        wait_for_block(database, zombie, taking_over)
        zombie.commit()
        assert taking_over.result(PATIENCE) == ["last"]
        new.commit()
        assert checkpoint(zombie, database, lease, record(1, "late"), form) == 0
    with pytest.raises(durable.LeaseLost):
        store.perform(Checkpoint(lease, record(1, "late")))
    assert epochs(database) == [("last", 1)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", TAKE_OVERS)
def test_a_checkpoint_waits_for_a_take_over_by_any_statement(
    database: Database, aside: ThreadPoolExecutor, how: str, form: str
) -> None:
    """FAULTS 112, the other way round."""
    lease = granted(database.store())
    with inside(database) as new, inside(database) as zombie:
        taken_over(new, how)
        writing = aside.submit(checkpoint, zombie, database, lease, record(0, "late"), form)
        wait_for_block(database, new, writing)
        new.commit()
        assert writing.result(PATIENCE) == 0
        zombie.commit()
    assert epochs(database) == []


def drop_fence(database: Database) -> None:
    """Take the unique constraint over (workflow_id, owner_token) away."""
    query = (
        "SELECT conname FROM pg_constraint WHERE conrelid = %s::regclass AND contype = 'u'"  # the primary key is 'p'
    )
    for (name,) in database.execute(query, "durable_locks"):
        with inside(database) as connection:
            connection.execute(sql.SQL("ALTER TABLE durable_locks DROP CONSTRAINT {}").format(sql.Identifier(name)))


def test_a_store_without_the_fence_is_refused(database: Database) -> None:
    """FAULTS 112: the schema check names the index, and the statement that restores it works."""
    granted(database.store())
    drop_fence(database)
    before = database.everything()
    with pytest.raises(
        durable.SchemaMismatch, match=r"unique index over \(workflow_id, owner_token\) is missing"
    ) as it:
        database.store().perform(Begin(claim(), lambda: True))
    assert "durable_locks" in it.value.table
    assert database.everything() == before
    advice = it.value.advice.removeprefix("Restore it: ").removesuffix(".")
    with inside(database) as connection:
        connection.execute(advice)
    assert isinstance(database.store().perform(Begin(claim(), lambda: True)), Refused)


@pytest.mark.parametrize("how", ["update", "upsert"])
def test_without_the_fence_the_hole_is_real(database: Database, how: str) -> None:
    """FAULTS 112, the planted bug: nothing waits, the new owner reads an empty journal, and the zombie commits.

    This is what the tests above would see if the index did not hold the take-over back.
    """
    lease = granted(database.store())
    drop_fence(database)
    with inside(database) as zombie, inside(database) as new:
        assert checkpoint(zombie, database, lease, record(0, "last")) == 1
        new.execute("SET LOCAL lock_timeout = '10s'")  # an error instead of a hang, should it wait after all
        assert taken_over(new, how) == []
        new.commit()
        zombie.commit()
    assert epochs(database) == [("last", 1)]
    assert lease_row(database)[0] == 2


# -- keys in branches -----------------------------------------------------------------------------------------------


def test_two_tasks_that_repeat_an_automatic_key_are_refused() -> None:
    """FAULTS 113: before the second body starts, and nothing is handed out that a replay could swap."""
    bodies: list[str] = []
    store = memory()

    async def body(name: str) -> str:
        bodies.append(name)
        await asyncio.sleep(0)
        return name

    async def branch(step: durable.AsyncStep, name: str) -> list[str]:
        return [await step("notify", body, name), await step("notify", body, name)]

    async def workflow(step: durable.AsyncStep, _: None) -> Any:
        return await asyncio.gather(branch(step, "left"), branch(step, "right"))

    with pytest.raises(durable.errors.AmbiguousKey, match=r"pass key=") as it:
        asyncio.run(durable.run(None, workflow, id="branches", store=store))
    assert it.value.key == "notify"
    assert bodies in ([], ["left"])
    store.close()


def test_two_threads_that_repeat_an_automatic_key_are_refused() -> None:
    """FAULTS 113, with threads."""
    bodies: list[str] = []
    in_body, goes_on = threading.Event(), threading.Event()
    store = memory()

    def body(name: str) -> str:
        bodies.append(name)
        in_body.set()
        assert goes_on.wait(PATIENCE)
        return name

    def workflow(step: durable.Step, _: None) -> Any:
        with ThreadPoolExecutor(2) as threads:
            left = threads.submit(step, "notify", body, "left")
            assert in_body.wait(PATIENCE)
            right = threads.submit(step, "notify", body, "right")
            problem = right.exception(PATIENCE)
            goes_on.set()
            assert problem is not None
            assert left.exception(PATIENCE) is not None, "its value was handed out although the run must not go on"
            raise ValueError("the workflow goes on regardless") from problem

    with pytest.raises(durable.errors.AmbiguousKey):
        durable.run(None, workflow, id="branches", store=store)
    assert bodies == ["left"]
    store.close()


class Repairable:
    """A fails until it is repaired; B succeeds, but only after A's failure has been recorded."""

    def __init__(self) -> None:
        self.bodies: list[str] = []
        self.broken = True
        self.a_has_failed = threading.Event()

    def a(self) -> str:
        self.bodies.append("A")
        if self.broken:
            raise ConnectionError("A is out of reach")
        return "A"

    def b(self) -> str:
        self.bodies.append("B")
        assert self.a_has_failed.wait(PATIENCE)
        return "B"

    async def async_a(self) -> str:
        return self.a()

    async def async_b(self) -> str:
        return await asyncio.to_thread(self.b)

    def note(self, event: RunEvent) -> None:
        if isinstance(event, StepRecorded) and event.key == "A":
            self.a_has_failed.set()


async def both_tasks(step: durable.AsyncStep, world: Repairable) -> list[str]:
    return list(await asyncio.gather(step("A", world.async_a), step("B", world.async_b)))


def both_threads(step: durable.Step, world: Repairable) -> list[str]:
    with ThreadPoolExecutor(2) as threads:
        branches = [threads.submit(step, "A", world.a), threads.submit(step, "B", world.b)]
    return [branch.result() for branch in branches]


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_of_a_gather_only_what_failed_runs_again(database: Database, colour: Colour) -> None:
    """FAULTS 114: A fails, B succeeds later; repaired, and run by another store."""
    world = Repairable()

    def call() -> list[str]:
        options: dict[str, Any] = {"id": "gather", "store": database.store(), "on_event": world.note}
        if colour == "async":
            return asyncio.run(durable.run(world, both_tasks, **options))
        return durable.run(world, both_threads, **options)

    with pytest.raises(ConnectionError, match="A is out of reach"):
        call()
    assert sorted(world.bodies) == ["A", "B"]
    assert database.status("gather") == "failed"
    assert [key for _, key, _ in database.journal("gather")] == ["A", "B", "failure"]
    world.broken = False
    assert call() == ["A", "B"]
    assert sorted(world.bodies) == ["A", "A", "B"]


# -- dead owners ----------------------------------------------------------------------------------------------------


def owner_file(database: Database) -> Path:
    """The file that the lease names."""
    return Path(lease_row(database)[2].partition(" ")[2])


def test_an_owner_killed_on_this_machine_is_followed_at_once(
    database: Database, orders: Orders, send: Callable[[Orders], Child]
) -> None:
    """FAULTS 121: its lease would last a minute yet."""
    old = send(orders.by("old", waits_in="body"))
    assert old.hear() == "body"
    owner = lease_row(database)[2]
    old.kill()
    events: list[RunEvent] = []
    new = orders.by("new")
    result = execute(new, database.store(), Scene(new), on_event=events.append)
    assert result == ["one by old", "two by new", "three by new"]
    assert isinstance(events[0], LeaseTaken)
    assert events[0].owner == owner
    assert isinstance(events[1], RunBegan)
    assert events[1].epoch == 2
    assert traces(orders.effects) == ["one by old", "two by old", "two by new", "three by new"]


def test_a_dead_owner_is_waited_for_if_so_wished(
    database: Database, orders: Orders, send: Callable[[Orders], Child]
) -> None:
    """FAULTS 121: `take_over_dead=False`."""
    old = send(orders.by("old", waits_in="body"))
    assert old.hear() == "body"
    old.kill()
    new = orders.by("new")
    store = database.store(take_over_dead=False)
    with pytest.raises(durable.ConcurrentExecution):
        execute(new, store, Scene(new))
    database.end_lease("contested")
    assert execute(new, store, Scene(new)) == ["one by old", "two by new", "three by new"]


def hide(file: Path) -> None:
    file.unlink()


def rename(file: Path) -> None:
    file.rename(file.with_suffix(".moved"))


def rewrite(file: Path) -> None:
    """Another file in its place, which nobody has locked, of another owner."""
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:-5] + b"0000\n")


def cut_short(file: Path) -> None:
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:-1])


def of_another_boot(file: Path) -> None:
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(b"00000000" + content[8:])


def make_unreadable(file: Path) -> None:
    """A symbolic link is not followed, wherever it leads: for root a file's mode stands in nobody's way."""
    moved = file.with_suffix(".moved")
    file.rename(moved)
    file.symlink_to(moved)


def make_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.fixture
def owner_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Owner files of this test alone."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.mark.usefixtures("owner_files")
@pytest.mark.parametrize(
    "disguise", [hide, rename, rewrite, cut_short, of_another_boot, make_unreadable, make_directory]
)
@pytest.mark.parametrize("fate", ["alive", "dead"])
def test_an_owner_not_proven_dead_keeps_its_lease(
    database: Database, orders: Orders, disguise: Callable[[Path], None], fate: str
) -> None:
    """FAULTS 121: not before the lease's end; the dead ones show that it is the proof which is missing, not the lock."""
    owner = database.store()
    lease = granted(owner)
    file = owner_file(database)
    assert file.is_file()
    if fate == "dead":  # as the kernel does it: the lock goes, the file stays
        _unlock(owner)
    disguise(file)
    events: list[RunEvent] = []
    before = database.everything()
    with pytest.raises(durable.ConcurrentExecution, match="'contested'"):
        durable.run(None, contest, id="contested", store=database.store(), on_event=events.append)
    assert database.everything() == before
    owner.perform(Checkpoint(lease, record(0, "one")))
    database.end_lease("contested")
    assert durable.run(None, contest, id="contested", store=database.store(), on_event=events.append) == "one"
    assert not any(isinstance(event, LeaseTaken) for event in events)


def contest(step: durable.Step, _: None) -> str:
    """The workflow of the claims made by hand."""
    return str(step("one", lambda: "one", key="one") and "one")


@pytest.mark.usefixtures("owner_files")
def _unlock(store: PostgresStore) -> None:
    """As the end of its process does: nothing refers to the open file any more."""
    owner = process_of(store).owner
    assert owner._lock is not None
    if owner._kept is not None:
        owner._kept.close()
    os.close(owner._lock)
    owner._kept = owner._lock = None


def test_an_owner_whose_file_is_as_it_was_and_unlocked_is_dead(database: Database) -> None:
    """FAULTS 121: without any of the disguises, so that the test above could fail."""
    owner = database.store()
    granted(owner)
    with pytest.raises(durable.ConcurrentExecution):
        durable.run(None, contest, id="contested", store=database.store())
    _unlock(owner)
    assert durable.run(None, contest, id="contested", store=database.store()) == "one"


def test_an_owner_file_that_never_opens_holds_nobody_up(
    database: Database, tmp_path: Path, aside: ThreadPoolExecutor
) -> None:
    """FAULTS 121: the path stands in the database, so anything may be there; a FIFO would be waited for, for ever."""
    granted(database.store())
    fifo = tmp_path / "owner"
    os.mkfifo(fifo)
    database.execute("UPDATE durable_locks SET owner = %s", f"elsewhere:1 {fifo}")
    asking = aside.submit(database.store().perform, Begin(claim(), lambda: True))
    try:
        assert isinstance(asking.result(5.0), Refused)
    finally:
        with contextlib.suppress(OSError):  # let go whoever waits in there
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))


# -- lost leases ----------------------------------------------------------------------------------------------------


class Thief:
    """Dependencies whose first body loses the lease: by the time it returns, somebody else has it."""

    def __init__(self, database: Database) -> None:
        self.bodies: list[str] = []
        self.caught: list[BaseException] = []
        self._database = database

    def robbed(self) -> str:
        self.bodies.append("robbed")
        self._database.execute(
            "UPDATE durable_locks SET epoch = epoch + 1, owner_token = 'thief', owner = 'thief',"
            " expires_at = now() + interval '1 minute'"
        )
        return "robbed"

    def later(self) -> str:
        self.bodies.append("later")
        return "later"

    async def async_robbed(self) -> str:
        return self.robbed()

    async def async_later(self) -> str:
        return self.later()


def catches_base_exception(step: durable.Step, deps: Thief) -> str:
    try:
        return step("robbed", deps.robbed)
    except BaseException as error:
        deps.caught.append(error)
    return step("later", deps.later)


def catches_everything(step: durable.Step, deps: Thief) -> str:
    try:
        return step("robbed", deps.robbed)
    except:  # noqa: E722
        deps.caught.append(ValueError())
    try:
        return step("later", deps.later)
    except:  # noqa: E722
        return "it went well"


def tidies_up(step: durable.Step, deps: Thief) -> str:
    try:
        return step("robbed", deps.robbed)
    finally:
        step("later", deps.later)


def raises_instead(step: durable.Step, deps: Thief) -> str:
    try:
        return step("robbed", deps.robbed)
    except BaseException as error:
        raise ValueError("something else altogether") from error


def asks_threads(step: durable.Step, deps: Thief) -> str:
    with ThreadPoolExecutor(1) as threads:
        robbed = threads.submit(step, "robbed", deps.robbed).exception(PATIENCE)
        later = threads.submit(step, "later", deps.later).exception(PATIENCE)
    return f"{robbed!r} {later!r}"


async def async_catches_base_exception(step: durable.AsyncStep, deps: Thief) -> str:
    try:
        return await step("robbed", deps.async_robbed)
    except BaseException as error:
        deps.caught.append(error)
    return await step("later", deps.async_later)


async def async_catches_everything(step: durable.AsyncStep, deps: Thief) -> str:
    try:
        return await step("robbed", deps.async_robbed)
    except:  # noqa: E722
        deps.caught.append(ValueError())
    try:
        return await step("later", deps.async_later)
    except:  # noqa: E722
        return "it went well"


async def async_tidies_up(step: durable.AsyncStep, deps: Thief) -> str:
    try:
        return await step("robbed", deps.async_robbed)
    finally:
        await step("later", deps.async_later)


async def in_a_task_group(step: durable.AsyncStep, deps: Thief) -> str:
    async with asyncio.TaskGroup() as group:
        group.create_task(step("robbed", deps.async_robbed))
    return await step("later", deps.async_later)


async def in_a_task_group_with_company(step: durable.AsyncStep, deps: Thief) -> str:
    async def patient() -> str:
        deps.bodies.append("patient")
        await asyncio.wait_for(asyncio.Event().wait(), PATIENCE)
        return "never"

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(step("patient", patient))
            group.create_task(step("robbed", deps.async_robbed))
    except BaseException as error:
        deps.caught.append(error)
    return await step("later", deps.async_later)


async def gathers_exceptions(step: durable.AsyncStep, deps: Thief) -> str:
    caught = await asyncio.gather(step("robbed", deps.async_robbed), return_exceptions=True)
    deps.caught += [error for error in caught if isinstance(error, BaseException)]
    again = await asyncio.gather(step("later", deps.async_later), return_exceptions=True)
    return repr(again)


@pytest.mark.parametrize(
    "workflow",
    [
        catches_base_exception,
        catches_everything,
        tidies_up,
        raises_instead,
        asks_threads,
        async_catches_base_exception,
        async_catches_everything,
        async_tidies_up,
        in_a_task_group,
        in_a_task_group_with_company,
        gathers_exceptions,
    ],
)
def test_no_workflow_gets_past_a_lost_lease(database: Database, workflow: Callable[..., Any]) -> None:
    """FAULTS 122: whatever it catches, no further body starts, and `run` raises `LeaseLost`."""
    deps = Thief(database)
    with pytest.raises(durable.LeaseLost, match="'robbery'"):
        outcome = durable.run(deps, workflow, id="robbery", store=database.store())
        if asyncio.iscoroutine(outcome):
            asyncio.run(outcome)
    assert "later" not in deps.bodies
    assert database.journal("robbery") == []
    assert database.status("robbery") == "running"
    assert database.execute("SELECT owner_token FROM durable_locks") == [("thief",)]


# -- renewals that fail ---------------------------------------------------------------------------------------------


class Heart:
    """Renewals that fail for as long as the test likes."""

    def __init__(self, store: PostgresStore) -> None:
        self.sick = True
        self.failures = 0
        self.successes = 0
        self._renew = process_of(store).heartbeat._renew
        process_of(store).heartbeat._renew = self._watched

    def _watched(self, leases: Any) -> Any:
        if self.sick:
            self.failures += 1
            raise psycopg.OperationalError("the network is down")
        standing = self._renew(leases)
        self.successes += 1
        return standing


def test_renewals_that_fail_for_less_than_the_lease_are_forgiven(database: Database) -> None:
    """FAULTS 27: several fail, one succeeds before the lease is over, and the run has noticed nothing."""
    store = database.store()
    heart = Heart(store)
    bodies: list[str] = []

    def weathered() -> str:
        bodies.append("weathered")
        wait_until(lambda: heart.failures >= 2, "two failed renewals")
        heart.sick = False
        expires = lease_row(database, "storm")[3]
        wait_until(lambda: lease_row(database, "storm")[3] > expires, "a renewal in the database")
        return "weathered"

    def workflow(step: durable.Step, _: None) -> list[str]:
        return [step("storm", weathered), step("calm", lambda: "calm")]

    # The lease is long beside two failures: they are a third of it and a tenth apart.
    assert durable.run(None, workflow, id="storm", store=store, lease=1.5) == ["weathered", "calm"]
    assert heart.failures >= 2
    assert bodies == ["weathered"]
    assert lease_row(database, "storm")[0] == 1


def test_renewals_that_fail_for_longer_than_the_lease_stop_the_run(database: Database) -> None:
    """FAULTS 27: before another body, by the local deadline alone, for nobody has taken the lease over."""
    store = database.store()
    heart = Heart(store)
    bodies: list[str] = []

    def weathered() -> str:
        bodies.append("weathered")
        over = "SELECT expires_at < clock_timestamp() FROM durable_locks"
        wait_until(lambda: database.execute(over)[0][0], "the lease to end")
        return "weathered"

    def workflow(step: durable.Step, _: None) -> list[str]:
        return [step("storm", weathered), step("calm", lambda: bodies.append("calm"))]  # type: ignore[list-item]

    with pytest.raises(durable.LeaseLost, match=r"not renewed within its 0\.5 s"):
        durable.run(None, workflow, id="storm", store=store, lease=0.5)
    assert heart.failures >= 1
    assert bodies == ["weathered"]
    assert [key for _, key, _ in database.journal("storm")] == ["storm"], (
        "its token still stood: the work is not wasted"
    )
    assert database.status("storm") == "running"


# -- the wrong run --------------------------------------------------------------------------------------------------


def order(step: durable.Step, _: object, number: int) -> int:
    """A workflow with an input."""
    return step("order", lambda: number)


def order_that_fails(step: durable.Step, _: object, number: int) -> int:
    raise ValueError(number)


def refund(step: durable.Step, _: object, number: int) -> int:
    """Another one."""
    return step("refund", lambda: -number)


@pytest.mark.parametrize("state", ["completed", "interrupted", "being executed"])
@pytest.mark.parametrize("on_conflict", ["raise", "wait"])
@pytest.mark.parametrize("difference", ["workflow", "input"])
def test_an_id_is_of_one_workflow_and_one_input(
    database: Database, state: str, on_conflict: Literal["raise", "wait"], difference: str
) -> None:
    """FAULTS 70: completed or not, and whether somebody executes it or not."""
    store = database.store()
    assert durable.run(None, order, id="order-1", store=store, input=1) == 1
    if state != "completed":
        database.execute(
            """UPDATE durable_snapshots SET snapshot = jsonb_set(snapshot, '{execution}', '{"status": "running"}')"""
        )
        database.execute("DELETE FROM durable_steps WHERE kind = 'result'")
    if state == "being executed":
        database.execute(
            "UPDATE durable_locks SET owner_token = '1:x', owner = 'x', expires_at = now() + interval '1 minute'"
        )
    before, lease_before = database.everything(), lease_row(database, "order-1")
    fn, number = (refund, 1) if difference == "workflow" else (order, 2)
    with pytest.raises(durable.RunMismatch) as it:
        durable.run(None, fn, id="order-1", store=store, input=number, on_conflict=on_conflict)
    assert "'order-1'" in str(it.value)
    assert it.value.what == difference
    if difference == "workflow":
        assert (it.value.stored, it.value.given) == ("'order'", "'refund'")
    assert database.everything() == before
    assert lease_row(database, "order-1") == lease_before


@pytest.mark.parametrize("on_conflict", ["raise", "wait"])
@pytest.mark.parametrize("where", ["workflow", "body"])
@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize("through", ["the same store", "another store"])
def test_a_run_that_starts_itself_is_told_so(
    database: Database, on_conflict: Literal["raise", "wait"], where: str, colour: Colour, through: str
) -> None:
    """FAULTS 73: at once, whether it would wait or not; with a limit here, so that a self-deadlock ends."""
    store = database.store()
    other = store if through == "the same store" else database.store()
    options: Any = {"id": "snake", "store": other, "on_conflict": on_conflict, "wait_timeout": 0.3}

    def bite(step: durable.Step, _: None) -> str:
        def inner() -> str:
            return str(durable.run(None, bite, **options))

        return inner() if where == "workflow" else step("bite", inner)

    async def async_bite(step: durable.AsyncStep, _: None) -> str:
        async def inner() -> str:
            return str(await durable.run(None, async_bite, **options))

        return await inner() if where == "workflow" else await step("bite", inner)

    with pytest.raises(durable.ConcurrentExecution, match="'snake'"):
        if colour == "sync":
            durable.run(None, bite, id="snake", store=store)
        else:
            asyncio.run(durable.run(None, async_bite, id="snake", store=store))
    assert database.status("snake") == "failed"
    assert lease_row(database, "snake")[0] == 1


def test_the_advice_to_a_run_that_starts_itself() -> None:
    """FAULTS 73: waiting for oneself is no way out, and infinity is no number of seconds for people."""
    store = memory()

    def bite(step: durable.Step, _: None) -> str:
        return str(durable.run(None, bite, id="snake", store=store))

    with pytest.raises(durable.ConcurrentExecution) as it:
        durable.run(None, bite, id="snake", store=store)
    assert 'on_conflict="wait"' not in str(it.value)
    assert " inf " not in str(it.value)
    store.close()


# -- ends that are no failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("how", ["sync", "async", "in a task"])
def test_what_is_no_exception_is_not_recorded(database: Database, end: type[BaseException], how: str) -> None:
    """FAULTS 74: the lease is given back, and the next run calls the body again."""
    store = database.store()
    bodies: list[str] = []

    def body() -> str:
        bodies.append("body")
        if len(bodies) == 1:
            raise end
        return "done"

    async def async_body() -> str:
        return body()

    def workflow(step: durable.Step, _: None) -> list[str]:
        return [step("before", lambda: "before"), step("cut", body)]

    async def async_workflow(step: durable.AsyncStep, _: None) -> list[str]:
        before = await step("before", lambda: "before")
        if how == "async":
            return [before, await step("cut", async_body)]
        return [before, await asyncio.create_task(step("cut", async_body))]

    def call() -> list[str]:
        if how == "sync":
            return durable.run(None, workflow, id="cut", store=store)
        return asyncio.run(durable.run(None, async_workflow, id="cut", store=store))

    with pytest.raises(end):
        call()
    assert [key for _, key, _ in database.journal("cut")] == ["before"]
    assert database.status("cut") == "running"
    wait_until(
        lambda: lease_row(database, "cut")[1] is None, "the lease to be given back"
    )  # a closed coroutine cannot wait for that
    assert call() == ["before", "done"]
    assert bodies == ["body", "body"]


def test_a_task_cancelled_inside_a_body(database: Database) -> None:
    """FAULTS 75: the body's own `finally` runs, nothing is recorded, the lease is given back."""
    store = database.store()
    bodies: list[str] = []

    async def body(in_body: asyncio.Event | None) -> str:
        bodies.append("began")
        if in_body is None:
            return "done"
        try:
            in_body.set()
            await asyncio.Event().wait()
        finally:
            bodies.append("tidied up")
        return "never"

    def workflow(in_body: asyncio.Event | None) -> Callable[..., Coroutine[Any, Any, str]]:
        async def cancelled(step: durable.AsyncStep, _: None) -> str:
            await step("before", lambda: "before")
            return await step("long", lambda: body(in_body))

        return cancelled

    async def cancel() -> None:
        in_body = asyncio.Event()
        task = asyncio.create_task(durable.run(None, workflow(in_body), id="cancelled", store=store))
        await in_body.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert bodies == ["began", "tidied up"]
    assert [key for _, key, _ in database.journal("cancelled")] == ["before"]
    assert lease_row(database, "cancelled")[1] is None, "the lease was not given back"
    assert asyncio.run(durable.run(None, workflow(None), id="cancelled", store=store)) == "done"
    assert bodies == ["began", "tidied up", "began"]


def test_a_coroutine_that_is_closed_in_a_body(database: Database) -> None:
    """FAULTS 77: its loop is gone, so nothing can be awaited any more; closing it is quiet, and the lease can end."""
    store = database.store()
    in_body = asyncio.Event()

    async def body() -> str:
        in_body.set()
        return str(await asyncio.Event().wait())

    async def workflow(step: durable.AsyncStep, _: None) -> str:
        return await step("long", body)

    async def begin() -> asyncio.Task[str]:
        task = asyncio.create_task(durable.run(None, workflow, id="abandoned", store=store))
        await in_body.wait()
        return task

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # asyncio's own word about a task that was destroyed
    task = loop.run_until_complete(begin())
    loop.close()
    coroutine = task.get_coro()
    assert coroutine is not None
    coroutine.close()
    process_of(store).heartbeat.beat()
    assert process_of(store).heartbeat._kept == {}, "the lease of an abandoned run is renewed on"


class Counted:
    """Dependencies that count their bodies; the first may do something on the side."""

    def __init__(self, aside: Callable[[], object] = lambda: None) -> None:
        self.bodies: list[str] = []
        self.aside = aside

    async def body(self, key: str) -> str:
        self.bodies.append(key)
        if key == "one":
            self.aside()
        return key


async def checkpointed(step: durable.AsyncStep, deps: Counted) -> list[str]:
    """Two steps whose bodies are counted."""
    return [await step("one", deps.body, "one"), await step("two", deps.body, "two")]


def cancel_while_it_waits(database: Database, blocker: psycopg.Connection[Any], running: Any) -> None:
    """Cancel a run when what it has sent waits for this connection, which then lets it go on."""

    async def cancel() -> None:
        task = asyncio.create_task(running)
        await asyncio.to_thread(wait_until, lambda: waits_for(database, backend_of(blocker)), "a wait for a lock")
        task.cancel()
        asyncio.get_running_loop().call_later(0.02, blocker.commit)  # by then it has heard of its cancellation
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    blocker.commit()


def test_a_task_cancelled_inside_a_checkpoint(database: Database) -> None:
    """FAULTS 76: what was on its way is settled before `CancelledError` comes out, and never runs again."""
    store = database.store()
    granted(store, "another")  # so that there are tables to be locked
    with inside(database) as blocker:
        deps = Counted(lambda: blocker.execute("LOCK TABLE durable_steps IN SHARE MODE"))
        cancel_while_it_waits(database, blocker, durable.run(deps, checkpointed, id="cancelled", store=store))
        assert [key for _, key, _ in database.journal("cancelled")] == ["one"]
        assert lease_row(database, "cancelled")[1] is None, "the lease was not given back"
        assert asyncio.run(durable.run(deps, checkpointed, id="cancelled", store=store)) == ["one", "two"]
    assert deps.bodies == ["one", "two"]


def test_a_task_cancelled_while_it_asks_for_the_lease(database: Database) -> None:
    """FAULTS 75 and 76: granted all the same, the lease is given back, also when the loop ends with the task."""
    store, deps = database.store(), Counted()
    granted(store, "another")
    with inside(database) as blocker:
        blocker.execute("LOCK TABLE durable_locks IN SHARE MODE")
        cancel_while_it_waits(database, blocker, durable.run(deps, checkpointed, id="cancelled", store=store))
    assert deps.bodies == []
    assert asyncio.run(durable.run(deps, checkpointed, id="cancelled", store=store)) == ["one", "two"]
    assert deps.bodies == ["one", "two"]


def test_a_task_cancelled_at_any_turn_of_the_loop(database: Database) -> None:
    """FAULTS 76, in small: after every number of turns there is one record of a key or none, and the run goes on."""
    store = database.store()
    cancelled = 0

    async def cancel_after(turns: int, run_id: str, deps: Counted) -> bool:
        began = asyncio.Event()

        def note(event: RunEvent) -> None:
            if isinstance(event, RunBegan):
                began.set()

        task = asyncio.create_task(durable.run(deps, checkpointed, id=run_id, store=store, on_event=note))
        await began.wait()
        await asyncio.sleep(turns * 0.0004)  # a fraction of a commit; what matters is that the instants differ
        task.cancel()
        try:
            assert await task == ["one", "two"]
        except asyncio.CancelledError:
            return True
        return False

    for turns in range(16):
        run_id, deps = f"cancelled-{turns}", Counted()
        cancelled += asyncio.run(cancel_after(turns, run_id, deps))
        known = [key for kind, key, _ in database.journal(run_id) if kind == "step"]
        assert known in ([], ["one"], ["one", "two"])
        again = durable.run(
            deps, checkpointed, id=run_id, store=store, on_conflict="wait"
        )  # a thread gives the lease back
        assert asyncio.run(again) == ["one", "two"]
        assert [key for _, key, _ in database.journal(run_id)] == ["one", "two", "result"]
        assert all(deps.bodies.count(key) <= 2 - (key in known) for key in ("one", "two"))
    assert cancelled, "no run was cancelled in time: the test saw nothing"
