"""A database that has gone back to an earlier state: no run is completed with a hole in its journal."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest

import durable
from durable.errors import RecordsLost
from support import Database
from writer_spies import writer_of

Call: TypeAlias = Callable[..., Awaitable[Any]]


class Desk:
    """Three steps, told once for both colours; between the second and the third the database forgets, if it is to."""

    def __init__(self, database: Database, forgets: str = "", fails: bool = False) -> None:
        self.database = database
        self.forgets = forgets
        self.fails = fails
        self.bodies: Counter[str] = Counter()

    async def works(self, call: Call) -> list[str]:
        done = [await call("first", lambda: self.body("first")), await call("second", lambda: self.body("second"))]
        if self.forgets:
            self.database.execute("DELETE FROM durable_steps WHERE key = %s", self.forgets)
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
                return await self.works(step)

            return asyncio.run(durable.run(None, workflow, id=id, store=store, **options))

        def blocking(step: durable.Step, _: None) -> list[str]:
            async def call(name: str, body: Callable[[], str]) -> str:
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
