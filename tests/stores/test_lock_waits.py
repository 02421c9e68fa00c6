"""Transactions of the user's that stay open: nothing of ours waits for them, and none of theirs fails because of us."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from typing import Any, Final

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

import durable
from durable.errors import ConcurrentExecution, RunBeingStarted, WaitTimedOut
from durable.stores import PostgresStore
from durable.stores._postgres.connections import Connections
from durable.stores._postgres.job import Job
from harness.ownership_children import wait_until
from harness.support import Database

ROUNDS: Final = int(os.environ.get("DURABLE_ROUNDS", "10"))  # of starts in one transaction against batches of claims
_ALLOWED: Final = "250ms"  # of a wait for a lock


@durable.workflow(name="bare")
def bare(step: durable.Step, deps: Any) -> str:
    return step("one", lambda: "bare")


@durable.workflow(name="awaited")
async def awaited(step: durable.AsyncStep, deps: Any) -> str:
    return await step("one", lambda: "awaited")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the server has to say of waits of the stores' connections that took longer than allowed."""
    said: list[str] = []
    ready = Connections._make_ready

    def make_ready(self: Connections, connection: psycopg.Connection[Any]) -> None:
        connection.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))
        ready(self, connection)

    monkeypatch.setattr(Connections, "_make_ready", make_ready)
    return said


@pytest.fixture
def store(database: Database, waits: list[str]) -> Iterator[PostgresStore]:
    options = f"-c deadlock_timeout={_ALLOWED} -c log_lock_waits=on -c client_min_messages=log"
    with database.store(make_conninfo(database.url, options=options)) as made:
        made.stats()
        yield made
    assert [wait for wait in waits if "waiting for" in wait] == []


@pytest.fixture
def user(database: Database) -> Iterator[psycopg.Connection[Any]]:
    """The user's connection."""
    with psycopg.connect(database.url) as made:
        yield made


def test_a_claim_of_what_is_being_started_is_refused_by_name(
    store: PostgresStore, user: psycopg.Connection[Any]
) -> None:
    durable.start(bare, id="x", store=store, connection=user)
    with pytest.raises(RunBeingStarted, match="run 'x' is being started, or held, by a transaction that has not ended"):
        durable.run(None, bare, id="x", store=store)
    assert issubclass(RunBeingStarted, ConcurrentExecution)
    user.rollback()
    assert durable.run(None, bare, id="x", store=store) == "bare"


def test_who_waits_gets_the_outcome_of_the_workers(store: PostgresStore, user: psycopg.Connection[Any]) -> None:
    durable.start(bare, id="x", store=store, connection=user)
    with pytest.raises(WaitTimedOut):
        durable.run(None, bare, id="x", store=store, on_conflict="wait", wait_timeout=0.3)
    got: list[str] = []
    waiting = threading.Thread(
        target=lambda: got.append(durable.run(None, bare, id="x", store=store, on_conflict="wait"))
    )
    waiting.start()
    user.commit()
    with durable.Worker(store, None, [bare]):
        waiting.join(30)
    assert got == ["bare"]


def test_who_waits_for_what_is_rolled_back_begins_it(store: PostgresStore, user: psycopg.Connection[Any]) -> None:
    durable.start(bare, id="x", store=store, connection=user)
    got: list[str] = []
    waiting = threading.Thread(
        target=lambda: got.append(durable.run(None, bare, id="x", store=store, on_conflict="wait"))
    )
    waiting.start()
    user.rollback()
    waiting.join(30)
    assert got == ["bare"]


def test_an_open_start_holds_up_no_other_run(store: PostgresStore, user: psycopg.Connection[Any]) -> None:
    """FAULTS 133. The transaction is open until the others have ended: were one to wait for it, it would for ever."""
    for name in ("x", "y"):
        durable.start(awaited, id=name, store=store, connection=user)

    async def all_of_them() -> list[Any]:
        ids = [f"o{n}" for n in range(20)] + ["x", "y"] + [f"p{n}" for n in range(20)]
        runs = [durable.run(None, awaited, id=name, store=store) for name in ids]
        return await asyncio.wait_for(asyncio.gather(*runs, return_exceptions=True), 60)

    outcomes = asyncio.run(all_of_them())
    assert [outcome for outcome in outcomes if outcome != "awaited"] == outcomes[20:22]
    assert [type(outcome) for outcome in outcomes[20:22]] == [RunBeingStarted, RunBeingStarted]
    user.commit()
    assert store.status("x") == "queued"


def test_a_waiting_one_that_is_cancelled_leaves(store: PostgresStore, user: psycopg.Connection[Any]) -> None:
    durable.start(awaited, id="x", store=store, connection=user)

    async def cancelled() -> None:
        waiting = asyncio.ensure_future(durable.run(None, awaited, id="x", store=store, on_conflict="wait"))
        await durable.run(None, awaited, id="o", store=store)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(waiting, 30)

    asyncio.run(cancelled())  # while the transaction is open
    user.rollback()


@pytest.mark.parametrize("what", ["id", "dedup"])
def test_a_start_of_what_is_being_started_is_refused_by_name(
    store: PostgresStore, user: psycopg.Connection[Any], what: str
) -> None:
    durable.start(bare, id="x", dedup="one", store=store, connection=user)
    name = "x" if what == "id" else "z"
    with pytest.raises(RunBeingStarted, match=f"run '{name}'"):
        durable.start(bare, id=name, dedup="two" if what == "id" else "one", store=store)
    runs = [durable.Start(id=f"o{n}") for n in range(3)]
    assert len(durable.start_many(bare, runs, store=store)) == 3
    user.rollback()
    assert durable.start(bare, id=name, dedup="one", store=store).id == name


def test_a_start_joins_what_is_committed_meanwhile(store: PostgresStore, user: psycopg.Connection[Any]) -> None:
    durable.start(bare, id="x", dedup="one", store=store, connection=user)
    with pytest.raises(RunBeingStarted):
        durable.start(bare, id="z", dedup="one", store=store)
    user.commit()
    assert durable.start(bare, id="z", dedup="one", store=store).id == "x"


def test_a_document_of_what_is_being_started_is_refused_by_name(
    store: PostgresStore, user: psycopg.Connection[Any]
) -> None:
    durable.run(None, bare, id="done", store=store)
    document = store.load("done")
    assert document is not None
    durable.start(bare, id="x", store=store, connection=user)
    with pytest.raises(RunBeingStarted):
        store.save("x", document)
    with pytest.raises(RunBeingStarted):
        store.delete("x")
    with pytest.raises(RunBeingStarted):
        store.delete("x", force=True)
    assert store.replace("x", document, document) is False
    user.commit()
    assert store.status("x") == "queued"
    store.delete("x")
    assert store.status("x") is None


def test_a_retry_that_wants_a_dedup_that_is_held_holds_up_no_checkpoint(
    store: PostgresStore, user: psycopg.Connection[Any]
) -> None:
    failing = [True]

    @durable.workflow(name="fails")
    def fails(step: durable.Step, deps: Any) -> str:
        if failing:
            step("fail", lambda: 1 / 0)
        return "mended"

    handle = durable.start(fails, id="f", dedup="one", store=store)
    durable.Worker(store, None, [fails]).run_until_idle()
    assert handle.status() == "failed"
    durable.start(bare, id="x", dedup="one", store=store, connection=user)
    refusals: list[BaseException] = []
    begun = threading.Event()

    def retried() -> None:
        begun.wait(30)
        try:
            handle.retry(from_step="fail")
        except BaseException as problem:
            refusals.append(problem)

    def slow(step: durable.Step, deps: Any) -> int:
        step("first", lambda: 1)
        begun.set()
        retrying.join(30)  # begun meanwhile, and over before the next checkpoint
        return step("second", lambda: 2)

    retrying = threading.Thread(target=retried)
    retrying.start()
    assert durable.run(None, slow, id="s", store=store) == 2
    retrying.join(30)
    assert [type(problem) for problem in refusals] == [RunBeingStarted]
    failing.clear()
    user.rollback()
    assert handle.retry(from_step="fail") == ["fail"]
    durable.Worker(store, None, [fails]).run_until_idle()
    assert handle.result() == "mended"


@pytest.mark.long(20)
def test_two_starts_in_one_transaction_never_fail_because_of_claims(
    store: PostgresStore, database: Database, waits: list[str]
) -> None:
    """FAULTS 134. In either order of the ids, while batches of claims want both: the users' transactions commit."""
    errors: list[BaseException] = []
    stop = threading.Event()

    async def claims(number: int) -> None:
        names = [f"{number}-{letter}" for letter in "abcdef"]
        runs = [durable.run(None, awaited, id=name, store=store) for name in names]
        outcomes = await asyncio.gather(*runs, return_exceptions=True)
        for outcome in outcomes:
            if outcome != "awaited" and not isinstance(outcome, ConcurrentExecution):
                errors.append(outcome if isinstance(outcome, BaseException) else AssertionError(outcome))

    def starts(number: int, letters: str) -> None:
        try:
            with psycopg.connect(database.url) as connection:
                for letter in letters:
                    durable.start(awaited, id=f"{number}-{letter}", store=store, connection=connection)
                connection.commit()
        except BaseException as problem:
            errors.append(problem)

    try:
        for number in range(ROUNDS):
            user = threading.Thread(target=starts, args=(number, "fedcba" if number % 2 else "fbdace"))
            user.start()
            asyncio.run(claims(number))
            user.join(60)
    finally:
        stop.set()
    assert errors == []
    assert [wait for wait in waits if "deadlock" in wait] == []
    wait_until(lambda: store.stats().running == 0, "the runs to end")


def test_the_server_tells_of_a_wait_that_is_too_long(
    database: Database, waits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: a claim that waits for a lock for a second is seen by what the tests above look at."""
    monkeypatch.setattr(Job, "max_lock_wait", 1.0)
    options = f"-c deadlock_timeout={_ALLOWED} -c log_lock_waits=on -c client_min_messages=log"
    with (
        database.store(make_conninfo(database.url, options=options)) as store,
        psycopg.connect(database.url) as user,
    ):
        store.stats()
        durable.start(bare, id="x", store=store, connection=user)
        with pytest.raises(RunBeingStarted):
            durable.run(None, bare, id="x", store=store)
        user.rollback()
    assert any("waiting for" in wait for wait in waits)
