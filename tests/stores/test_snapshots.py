"""The verbs over whole snapshots, on every store."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from msgspec import structs

import durable
from durable.resume import ResumeStateCollector
from durable.snapshots import Snapshot
from durable.stores import memory
from harness.shelves import Shelf
from harness.support import Database


def checkout(step: durable.Step, _: None) -> dict[str, int]:
    one = step("one", lambda: 1)
    with contextlib.suppress(ZeroDivisionError):
        step("two", lambda: 1 // 0)
    return {"b": one, "a": step("three", lambda: 3)}


def test_what_a_run_leaves_is_loaded_as_one_document(database: Database) -> None:
    store = database.store()
    collector = ResumeStateCollector()
    durable.run(None, checkout, id="x", store=store, on_event=collector.handle_event)
    loaded = store.load("x")
    assert loaded is not None
    collected = collector.resume_state().steps
    assert list(collected) == list(loaded.steps)
    for key, step in loaded.steps.items():  # dated by the server's clock, and by this process's
        assert structs.replace(step, at=collected[key].at) == collected[key]
        assert None not in (step.at, collected[key].at)
        assert step.epoch == 1
    assert loaded.result == collector.resume_state().result
    ((viewed,),) = database.execute("SELECT snapshot FROM durable_runs WHERE id = 'x'")
    assert viewed == loaded.document()
    store.save("y", loaded)
    assert store.load("y") is not None
    assert [line.id for line in store.list()] == ["y", "x"]
    ((viewed,),) = database.execute("SELECT snapshot FROM durable_runs WHERE id = 'y'")
    assert viewed == loaded.document()
    assert durable.run(None, checkout, id="y", store=store) == {"b": 1, "a": 3}
    assert store.stats()[:6] == (0, 0, 2, 0, 0, 0)
    store.delete("y")
    store.delete("y")
    assert store.load("y") is None
    assert store.purge(older_than=0) == 1
    assert store.stats().runs == 0
    assert database.execute("SELECT * FROM durable_locks") == []
    assert database.execute("SELECT * FROM durable_steps") == []


def test_awaitlys_documents_are_run_on(database: Database) -> None:
    store = database.store(prefix="p_")
    failed = {"ok": False, "error": "E", "cause": {"type": "error", "name": "Error", "message": "m"}}
    document = {
        "formatVersion": 1,
        "steps": {"fetch-user": {"ok": True, "value": {"id": 1}}, "charge": failed},
        "execution": {"status": "failed", "lastUpdated": "2024-01-01T00:00:00Z"},
    }
    store.save("a", document)
    store.save("b", {"kind": "ResumeState", "steps": [["charge", {"ok": True, "value": 7}]]})

    def workflow(step: durable.Step, _: None, n: int) -> list[object]:
        return [step("fetchUser", lambda: 5, key="fetch-user"), step("x", lambda: 6, key="charge"), n]

    assert durable.run(None, workflow, id="a", store=store, input=2) == [{"id": 1}, 6, 2]
    assert durable.run(None, workflow, id="b", store=store, input=3) == [5, 7, 3]
    assert durable.run(None, workflow, id="b", store=store) == [5, 7, 3]
    assert {line.id for line in store.list()} == {"a", "b"}
    assert {row for (row,) in database.execute("SELECT id FROM durable_snapshots")} == {"p_a", "p_b"}
    assert {row for (row,) in database.execute("SELECT workflow_id FROM durable_locks")} == {"p_a", "p_b"}
    loaded = store.load("b")
    assert isinstance(loaded, Snapshot)


@durable.step(at_most_once=True)
def pay() -> str:
    """A body that nobody may start again."""
    raise KeyboardInterrupt


def paying(step: durable.Step, _: None) -> str:
    step("one", lambda: 1)
    return pay()


def test_what_is_known_of_a_step_that_has_not_settled_is_not_lost(database: Database) -> None:
    """A step that began and must not begin again: not through load and save, and not through a collector."""
    store, collector = database.store(), ResumeStateCollector()
    with pytest.raises(KeyboardInterrupt):
        durable.run(None, paying, id="x", store=store, on_event=collector.handle_event)
    loaded = store.load("x")
    assert loaded is not None
    assert set(loaded.attempts) == {"pay"}
    ((viewed,),) = database.execute("SELECT snapshot FROM durable_runs WHERE id = 'x'")
    assert viewed == loaded.document()
    store.save("loaded", loaded)
    store.save("collected", collector.resume_state())
    with memory() as other:
        other.save("loaded", loaded)
        for each, name in ((store, "loaded"), (store, "collected"), (store, "x"), (other, "loaded")):
            with pytest.raises(durable.StepInterrupted):
                durable.run(None, paying, id=name, store=each)


def test_signals_and_cancellations_carry_the_prefix(database: Database) -> None:
    """Equal ids under two prefixes: each hears its own, and what is deleted hears nothing."""
    one, two = database.store(prefix="a_"), database.store(prefix="b_")

    def hearing(step: durable.Step, _: None) -> Any:
        return step.wait_for("approved", timeout=0.01)

    durable.signal(one, "x", "approved", "one", create_later=True)
    durable.signal(two, "x", "approved", "two", create_later=True)
    assert durable.run(None, hearing, id="x", store=two) == "two"
    assert durable.run(None, hearing, id="x", store=one) == "one"
    one.delete("x")
    with pytest.raises(durable.SignalTimedOut):
        durable.run(None, hearing, id="x", store=one)

    def cancelled(step: durable.Step, _: None) -> None:
        assert durable.cancel(one, "y", force=True)
        step("late", lambda: None)

    with pytest.raises(durable.RunCancelled):
        durable.run(None, cancelled, id="y", store=one)
    assert (durable.status(one, "y"), durable.status(two, "y")) == ("cancelled", None)
    assert [line.id for line in one.list(status="cancelled")] == ["y"]
    assert one.stats().cancelled == 1


def test_a_store_of_five_verbs_says_what_it_cannot(database: Database) -> None:
    """Signals and cancellations need more than snapshots."""
    shelf = Shelf()
    with pytest.raises(durable.InvalidArgument, match="Shelf"):
        durable.signal(shelf, "x", "approved")
    with pytest.raises(durable.InvalidArgument, match="Shelf"):
        durable.cancel(shelf, "x")
    with pytest.raises(durable.InvalidArgument, match="Shelf"):
        durable.run(None, lambda step, _: step.wait_for("approved"), id="x", store=shelf)
