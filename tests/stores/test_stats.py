"""What `stats` counts is there, and what is there it counts."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

import durable
from durable.errors import UnreadableRecord
from durable.stores import memory
from durable.stores._postgres import snapshots
from durable.stores._postgres.sql import snapshots as statements
from harness.support import Database


def work(step: durable.Step, _: None) -> int:
    return step("one", lambda: 1) + step("two", lambda: 2)


def interrupted(step: durable.Step, _: None) -> None:
    step("one", lambda: 1)
    raise KeyboardInterrupt


def filled(store: Any) -> None:
    for number in range(7):
        durable.run(None, work, id=f"done-{number}", store=store)
    for number in range(2):
        with pytest.raises(KeyboardInterrupt):
            durable.run(None, interrupted, id=f"open-{number}", store=store)


def test_records_are_counted(database: Database) -> None:
    """A fresh table, of which the planner knows nothing yet; the memory store says the same."""
    with memory() as kept:
        for store in (kept, database.store(), database.store(prefix="p:")):
            assert store.stats()[:7] == (0, 0, 0, 0, 0, 0, 0)
            filled(store)
            stats = store.stats()
            assert stats[:7] == (0, 2, 7, 0, 0, 0, 7 * 3 + 2)
            assert (stats.orphaned, stats.is_estimate) == (0, False)
            store.delete("done-0")
            assert store.stats().records == 6 * 3 + 2


@pytest.mark.parametrize("analyzed", [False, True])
def test_an_estimate_says_so(database: Database, monkeypatch: pytest.MonkeyPatch, analyzed: bool) -> None:
    """Above a size: of the right order, and never 0 where there are records, also of a prefix."""
    monkeypatch.setattr(statements, "_SMALL", 0)
    whole, few = database.store(), database.store(prefix="p:")
    assert (whole.stats().records, whole.stats().is_estimate) == (0, False)
    for _ in range(3):
        filled(whole)
    durable.run(None, work, id="x", store=few)
    if analyzed:
        database.execute("ANALYZE durable_steps")
    for store in (whole, few):
        stats = store.stats()
        assert stats.is_estimate
        assert stats.records > 0
    assert few.stats().records < whole.stats().records
    if analyzed:
        assert whole.stats().records == 7 * 3 + 2 + 3


def test_a_look_asks_few_questions(database: Database) -> None:
    """However many runs there are."""
    store = database.store()
    store.stats()
    database.execute(
        "INSERT INTO durable_snapshots SELECT 'r' || n, %s::jsonb FROM generate_series(1, 1000) AS n",
        json.dumps({"formatVersion": 1, "steps": {}, "execution": {"status": "running"}}),
    )
    asked = list[bytes]()
    lane_of = snapshots.Snapshots._once

    def noted(self: Any, work: Any) -> Any:
        def counting(session: Any) -> Any:
            class Counting:
                def execute(self, query: bytes, *args: Any) -> Any:
                    asked.append(query)
                    return session.execute(query, *args)

            return work(Counting())

        return lane_of(self, counting)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshots.Snapshots, "_once", noted)
        assert store.stats().interrupted == 1000
    assert len(asked) <= 5


@pytest.mark.parametrize("small", [True, False])
def test_a_journal_without_a_header_is_counted_refused_and_purged(
    database: Database, monkeypatch: pytest.MonkeyPatch, small: bool
) -> None:
    """Headers deleted by SQL, as awaitly does when a run of that id succeeds. Nothing is written; `delete` is the way out."""
    if not small:
        monkeypatch.setattr(statements, "_SMALL", 0)
    store, other = database.store(prefix="p:"), database.store(prefix="q:")
    for each in (store, other):
        filled(each)
    durable.signal(store, "open-0", "approved", 1)
    database.execute("DELETE FROM durable_snapshots WHERE id LIKE 'p:%%'")
    assert store.stats()[:6] == (0, 0, 0, 0, 0, 0)
    assert store.stats().orphaned == 9
    assert (other.stats().orphaned, other.stats().runs) == (0, 9)
    before = database.everything()
    for name in ("open-0", "done-0"):
        for ask in (
            lambda name=name: store.load(name),
            lambda name=name: store.status(name),
            lambda name=name: durable.has_state(store, name),
            lambda name=name: durable.result(store, name),
            lambda name=name: durable.run(None, work, id=name, store=store),
            lambda name=name: durable.run(None, work, id=name, store=store, on_conflict="wait", wait_timeout=5),
        ):
            with pytest.raises(UnreadableRecord, match=r"store\.delete\(id\)"):
                ask()
    assert database.everything() == before
    store.delete("open-0")
    assert durable.run(None, work, id="open-0", store=store) == 3
    assert store.stats().orphaned == 8
    assert store.purge(older_than=3600) == 0
    assert store.purge(older_than=0, status="failed") == 8
    assert (store.stats().orphaned, store.stats().runs) == (0, 1)
    assert (other.stats().orphaned, other.stats().runs) == (0, 9)
    assert database.execute("SELECT DISTINCT left(workflow_id, 2) FROM durable_steps ORDER BY 1") == [("p:",), ("q:",)]


def test_an_async_run_is_refused_too(database: Database) -> None:
    """The other colour, and with an input."""

    async def waits(step: durable.AsyncStep, _: None, given: int) -> int:
        return given

    store = database.store()
    assert asyncio.run(durable.run(None, waits, id="x", store=store, input=1)) == 1
    database.execute("DELETE FROM durable_snapshots")
    database.execute("DELETE FROM durable_locks")
    before = database.everything()
    with pytest.raises(UnreadableRecord, match=r"store\.delete\(id\)"):
        asyncio.run(durable.run(None, waits, id="x", store=store, input=1))
    assert database.everything() == before
    assert store.stats().orphaned == 1, "also where its lease's row is gone"
    assert store.purge(older_than=0) == 1
    assert asyncio.run(durable.run(None, waits, id="x", store=store, input=2)) == 2


def test_a_header_without_its_journal_is_not_begun_anew(database: Database) -> None:
    """Where it can be known: by an input that is said and not there, and by a result; nothing is written."""

    def takes(step: durable.Step, _: None, given: int) -> int:
        if given == 1:
            raise KeyboardInterrupt
        return step("one", lambda: given)

    store = database.store()
    with pytest.raises(KeyboardInterrupt):
        durable.run(None, takes, id="open", store=store, input=1)
    durable.run(None, takes, id="done", store=store, input=2)
    database.execute("DELETE FROM durable_steps")
    for name, given in (("open", 1), ("done", 2)):
        documents = database.header(name)
        with pytest.raises(UnreadableRecord):
            durable.run(None, takes, id=name, store=store, input=given)
        assert database.journal(name) == []
        header = database.header(name)
        assert header is not None
        assert documents is not None
        assert (header["metadata"], header["execution"]["status"]) == (
            documents["metadata"],
            documents["execution"]["status"],
        )
        store.delete(name)
        assert durable.run(None, takes, id=name, store=store, input=3) == 3


def test_a_header_deleted_under_an_execution(database: Database) -> None:
    """Its end is refused by name, and nothing of it is taken for a completed run."""
    store = database.store()

    def loses(step: durable.Step, _: None) -> int:
        value = step("one", lambda: 1)
        database.execute("DELETE FROM durable_snapshots")
        return value

    with pytest.raises(durable.errors.RecordsLost):
        durable.run(None, loses, id="x", store=store)
    with pytest.raises(UnreadableRecord, match=r"store\.delete\(id\)"):
        durable.run(None, loses, id="x", store=store)
    store.delete("x")
    assert store.stats().orphaned == 0


def test_a_lease_deleted_and_signals_left(database: Database) -> None:
    """Without its lease's row an interrupted run goes on; signals to a run that is gone are heard by the next of its id."""
    store = database.store()
    with pytest.raises(KeyboardInterrupt):
        durable.run(None, interrupted, id="x", store=store)
    database.execute("DELETE FROM durable_locks")
    assert store.status("x") == "interrupted"
    assert durable.run(None, work, id="y", store=store) == 3
    durable.signal(store, "gone", "approved", 7, create_later=True)
    assert (store.load("gone"), store.status("gone"), store.stats().orphaned) == (None, None, 0)
    assert durable.run(None, lambda step, _: step.wait_for("approved"), id="gone", store=store) == 7
