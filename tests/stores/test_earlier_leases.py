"""What stands in a lease's row says why its holder may write no more: taken over, deleted, or of an earlier state.

FAULTS 9: a database that went back to before the claim must not be told as a neighbour's doing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

import durable
from durable._engine.decisions import Granted
from durable.errors import LeaseLost, RecordsLost, RunCancelled
from durable.records import Kind, Record, Status
from durable.stores import PostgresStore, memory
from durable.stores.requests import Begin, Checkpoint, Finish
from durable.testing._suites.run_stores import a_claim, a_step
from harness.support import Database

SET = "UPDATE durable_locks SET "
STATES = {
    "a lower epoch": (SET + "epoch = epoch - 1, owner_token = '0:other'", RecordsLost, "gone back"),
    "a lower epoch that was given back": (
        SET + "epoch = epoch - 1, owner_token = NULL, owner = NULL",
        RecordsLost,
        "gone back",
    ),
    "a lower epoch that was cancelled": (
        SET + "epoch = epoch - 1, owner_token = NULL, owner = 'cancelled'",
        RecordsLost,
        "gone back",
    ),
    "the same epoch, another token": (SET + "owner_token = '1:other'", RecordsLost, "gone back"),
    "none": ("DELETE FROM durable_locks", RecordsLost, "deleted with force=True, or the database has gone back"),
    "a higher epoch": (SET + "epoch = epoch + 1, owner_token = '2:other'", LeaseLost, "taken it over"),
    "a higher epoch that was given back": (SET + "epoch = epoch + 1, owner_token = NULL", LeaseLost, "taken it over"),
    "the same epoch, given back": (SET + "owner_token = NULL, owner = NULL", LeaseLost, "given back"),
    "cancelled": (SET + "owner_token = NULL, owner = 'cancelled'", RunCancelled, "cancelled"),
}


def moves(database: Database, statement: str) -> Callable[[], object]:
    return lambda: database.execute(statement) and None


def writes(step: durable.Step, deps: Any) -> None:
    step("one", deps.act)
    step("two", lambda: 2)


def moves_and_returns(_: durable.Step, deps: Any) -> None:
    deps.act()


def transacts(step: durable.Step, deps: Any) -> None:
    deps.act()
    step.transaction("one", lambda connection: connection.execute("SELECT 1").fetchone())


def naps(step: durable.Step, deps: Any) -> None:
    deps.act()
    step.sleep("nap", 3600.0)


async def writes_async(step: durable.AsyncStep, deps: Any) -> None:
    async def one() -> None:
        deps.act()

    await step("one", one)


async def writes_many_async(step: durable.AsyncStep, deps: Any) -> None:
    async def one() -> None:
        await asyncio.sleep(0.05)

    deps.act()
    await asyncio.gather(*(step("one", one) for _ in range(5)))


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("workflow", [writes, moves_and_returns, transacts, naps, writes_async, writes_many_async])
def test_the_row_tells(database: Database, state: str, workflow: Callable[..., Any]) -> None:
    """Whether a checkpoint, the end, a transaction or the heartbeat comes upon it; nothing more is written."""
    statement, error, words = STATES[state]
    store = database.store()
    lease = 1.0 if workflow is naps else 30.0
    with pytest.raises(error, match=words):
        outcome = durable.run({"act": moves(database, statement)}, workflow, id="x", store=store, lease=lease)
        if hasattr(outcome, "__await__"):

            async def awaited() -> None:
                await outcome

            asyncio.run(awaited())
    assert database.journal("x") == []


@pytest.mark.parametrize("verb", ["delete", "save"])
def test_who_has_deleted_it_knows(database: Database, verb: str) -> None:
    """The same store, and another one: `LeaseLost` for the first, both ways out in the message for the other."""
    mine, other = database.store(), database.store()

    def change(store: Any) -> None:
        if verb == "delete":
            store.delete("x", force=True)
        else:
            store.save("x", {"kind": "ResumeState", "steps": []}, force=True)

    with memory() as kept:
        for runner, changer in ((mine, mine), (kept, kept)):
            with pytest.raises(LeaseLost, match=r"deleted|taken it over"):
                durable.run({"act": lambda store=changer: change(store)}, writes, id="x", store=runner)
    mine.delete("x")
    with pytest.raises(RecordsLost if verb == "delete" else LeaseLost, match=r"deleted|taken it over"):
        durable.run({"act": lambda: change(other)}, writes, id="x", store=mine)


def held(store: PostgresStore) -> Any:
    reply = store.perform(Begin(a_claim(seconds=1.0), lambda: True))
    assert isinstance(reply, Granted)
    return reply.lease


def test_a_lease_given_back_and_deleted_is_no_lost_record(database: Database) -> None:
    """A stale holder of this process, whose run was purged since."""
    store = database.store()
    lease = held(store)
    store.perform(Finish(lease, Status.COMPLETED, Record(9, Kind.RESULT, Kind.RESULT, "1")))
    assert store.purge(older_than=0) == 1
    with pytest.raises(LeaseLost, match="given back"):
        store.perform(Checkpoint(lease, a_step(1, "late")))


def test_a_run_begun_anew_after_a_deletion_elsewhere(database: Database) -> None:
    """Its epoch counts from one again: the message names the deletion."""
    mine, other = database.store(), database.store()
    lease = held(mine)
    other.delete("run", force=True)
    assert held(other).epoch == lease.epoch
    with pytest.raises(RecordsLost, match="deleted with force=True"):
        mine.perform(Checkpoint(lease, a_step(1, "late")))
    until = time.monotonic() + 20.0
    while lease.lost is None:  # the heartbeat says the same
        assert time.monotonic() < until
        time.sleep(0.05)
    assert isinstance(lease.refusal, RecordsLost)
