"""A database that has gone back to an earlier state: no run is completed with a hole in its journal."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeAlias

import pytest

import durable
from durable._engine.batches import MAX_SHARED_BYTES
from durable.errors import LeaseLost, RecordsLost
from durable.stores._postgres import connections
from durable.stores._postgres.session import Session
from harness.ownership_children import PATIENCE, wait_until
from harness.support import Database
from harness.writer_spies import writer_of

_OURS = "FROM pg_stat_activity WHERE application_name = 'durable' AND datname = current_database()"

Call: TypeAlias = Callable[..., Awaitable[Any]]


class Desk:
    """Three steps, told once for both colours; between the second and the third the database forgets, if it is to."""

    def __init__(
        self,
        database: Database,
        forgets: str = "",
        *,
        fails: bool = False,
        cuts: bool = False,
        transacts: bool = False,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        self.database = database
        self.forgets = forgets
        self.fails = fails
        self.cuts = cuts
        self.transacts = transacts
        self.before = before
        self.bodies: Counter[str] = Counter()

    async def works(self, call: Call) -> list[str]:
        done = [await call("first", lambda: self.body("first")), await call("second", lambda: self.body("second"))]
        self.before()
        if self.forgets:
            self.database.execute("DELETE FROM durable_steps WHERE key = %s", self.forgets)
        if self.cuts:
            self.database.execute(f"SELECT pg_terminate_backend(pid) {_OURS}")
            wait_until(lambda: not self.database.execute(f"SELECT pid {_OURS}"), "the connections to be gone")
        done.append(await call("third", lambda: self.body("third")))
        if self.fails:
            raise LookupError("its own")
        return done

    def body(self, name: str) -> str:
        self.bodies[name] += 1
        return name

    def run(self, *, asynchronous: bool, id: str = "run", **options: Any) -> Any:
        store = self.database.store()
        if asynchronous:

            async def workflow(step: durable.AsyncStep, _: None) -> list[str]:
                async def acall(name: str, body: Callable[[], str]) -> str:
                    if self.transacts and name == "third":
                        return await step.transaction(name, lambda _: body())
                    return await step(name, body)

                return await self.works(acall)

            return asyncio.run(durable.run(None, workflow, id=id, store=store, **options))

        def blocking(step: durable.Step, _: None) -> list[str]:
            async def call(name: str, body: Callable[[], str]) -> str:
                if self.transacts and name == "third":
                    return step.transaction(name, lambda _: body())
                return step(name, body)

            try:
                self.works(call).send(None)
            except StopIteration as returned:
                value: list[str] = returned.value
                return value
            raise AssertionError

        return durable.run(None, blocking, id=id, store=store, **options)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("forgotten", ["first", "second"])
def test_a_run_with_a_hole_is_not_completed(database: Database, forgotten: str, asynchronous: bool) -> None:
    """FAULTS 34: the execution lives through it, and learns of it at the end; the next one runs what is missing."""
    with pytest.raises(RecordsLost, match="gone back"):
        Desk(database, forgotten).run(asynchronous=asynchronous)
    assert database.status("run") == "running"
    assert database.execute("SELECT owner_token FROM durable_locks") == [(None,)], "the lease was not given back"

    again = Desk(database)
    assert again.run(asynchronous=asynchronous) == ["first", "second", "third"]
    assert again.bodies == {forgotten: 1}
    assert database.status("run") == "completed"


@pytest.fixture
def promotes(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From then on new connections lead to another server, as far as they say."""
    return lambda: monkeypatch.setattr(connections, "_SERVER", b"SELECT 'another'")


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("how", ["step", "transaction"])
def test_nothing_is_added_to_a_run_that_has_a_hole(
    database: Database,
    promotes: Callable[[], None],
    asynchronous: bool,
    how: str,
) -> None:
    """FAULTS 34: the connection is lost, and the next one leads to what was a standby: the first thing asked of it."""
    desk = Desk(database, "second", cuts=True, transacts=how == "transaction", before=promotes)
    with pytest.raises(RecordsLost):
        desk.run(asynchronous=asynchronous)
    keys = [key for kind, key, _ in database.journal("run") if kind == "step"]
    assert keys == ["first"], "what came after the hole is there"
    again = Desk(database)  # at once: a connection that is gone is no reason to keep the lease
    assert again.run(asynchronous=asynchronous) == ["first", "second", "third"]
    assert again.bodies == {"second": 1, "third": 1}


@pytest.mark.parametrize("how", ["step", "transaction"])
def test_a_promotion_that_loses_nothing_disturbs_nobody(
    database: Database, promotes: Callable[[], None], how: str
) -> None:
    """FAULTS 35: of a standby that had everything."""
    desk = Desk(database, cuts=True, transacts=how == "transaction", before=promotes)
    assert desk.run(asynchronous=False) == ["first", "second", "third"]
    assert desk.bodies == {"first": 1, "second": 1, "third": 1}


@pytest.mark.parametrize("how", ["step", "transaction"])
def test_what_is_recorded_while_they_are_counted(
    database: Database, promotes: Callable[[], None], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """FAULTS 34: by another branch, on a connection that cannot tell its server. What a count came too early for is not lost."""
    store, execute, counts = database.store(), Session.execute, list[bytes]()

    def counting(session: Session, query: bytes, parameters: Any = None) -> Any:
        if b"count(*)" not in query or counts:
            return execute(session, query, parameters)
        counts.append(query)
        monkeypatch.setattr(connections, "_SERVER", b"SELECT nobody_has_this()")
        if how == "transaction":  # whose snapshot is older than its count
            beside()
        counted = execute(session, query, parameters)
        if how == "step":
            beside()
        return counted

    def workflow(step: durable.Step, _: None) -> int:
        step("first", lambda: 1)
        branches.append(partial(step, "beside", lambda: "x" * 2 * MAX_SHARED_BYTES, key="beside"))
        promotes()
        idle = store._held.resources.connections._idle
        while idle:
            idle.pop().connection.close()
        monkeypatch.setattr(Session, "execute", counting)
        if how == "transaction":
            return step.transaction("second", lambda _: 2, isolation="serializable")
        return step("second", lambda: 2, key="second")

    branches = list[Callable[[], str]]()
    with ThreadPoolExecutor(1) as aside:

        def beside() -> None:
            aside.submit(branches[0]).result(PATIENCE)

        assert durable.run(None, workflow, id="run", store=store) == 2
    assert len(counts) == 1
    assert {key for kind, key, _ in database.journal("run") if kind == "step"} == {"first", "second", "beside"}


@pytest.mark.parametrize("how", ["step", "transaction"])
def test_a_run_that_somebody_has_deleted_meanwhile(database: Database, promotes: Callable[[], None], how: str) -> None:
    """FAULTS 34, 69: that its records are gone is no fail-over's doing then, and it is not to go on."""
    store = database.store()

    def workflow(step: durable.Step, _: None) -> int:
        step("first", lambda: 1)
        store.delete("run", force=True)
        promotes()
        idle = store._held.resources.connections._idle
        while idle:
            idle.pop().connection.close()
        return step.transaction("second", lambda _: 2) if how == "transaction" else step("second", lambda: 2)

    with pytest.raises(LeaseLost):
        durable.run(None, workflow, id="run", store=store)


def test_who_may_not_ask_for_the_server_counts_at_the_end(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 34: some services have no such function."""
    monkeypatch.setattr(connections, "_SERVER", b"SELECT nobody_has_this()")
    with pytest.raises(RecordsLost):
        Desk(database, "second", cuts=True).run(asynchronous=False)
    assert [key for kind, key, _ in database.journal("run") if kind == "step"] == ["first", "third"]


def test_what_an_earlier_execution_recorded_is_counted_too(database: Database) -> None:
    """FAULTS 34: the record was read when the run was resumed, and is gone when it ends."""
    with pytest.raises(LookupError):
        Desk(database, fails=True).run(asynchronous=False)
    with pytest.raises(RecordsLost):
        Desk(database, "first").run(asynchronous=False)
    again = Desk(database)
    assert again.run(asynchronous=False) == ["first", "second", "third"]
    assert again.bodies == {"first": 1}


def test_a_failure_is_recorded_all_the_same(database: Database) -> None:
    """FAULTS 34: the user's own error is not hidden; whoever runs it again goes by what is stored."""
    with pytest.raises(LookupError):
        Desk(database, "first", fails=True).run(asynchronous=False)
    assert database.status("run") == "failed"
    again = Desk(database)
    assert again.run(asynchronous=False) == ["first", "second", "third"]
    assert again.bodies == {"first": 1}


def test_one_of_those_that_end_together(database: Database) -> None:
    """FAULTS 34: the others of its batch are completed."""
    store = database.store()
    ready, go_on = asyncio.Barrier(4), asyncio.Barrier(4)

    async def workflow(step: durable.AsyncStep, _: None) -> str:
        value = await step("step", lambda: "done")
        await ready.wait()
        await go_on.wait()
        return value

    async def together() -> list[Any]:
        runs = [asyncio.create_task(durable.run(None, workflow, id=f"run-{n}", store=store)) for n in range(3)]
        await ready.wait()
        database.execute("DELETE FROM durable_steps WHERE workflow_id = 'run-1' AND key = 'step'")
        with writer_of(store)._lock:  # until all of them wait, so that they end in one batch
            await go_on.wait()
            for _ in range(10):
                await asyncio.sleep(0)
        return await asyncio.gather(*runs, return_exceptions=True)

    answers = asyncio.run(together())
    assert [type(answer) for answer in answers] == [str, RecordsLost, str]
    assert [database.status(f"run-{n}") for n in range(3)] == ["completed", "running", "completed"]
