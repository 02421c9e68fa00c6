"""The verbs over whole snapshots, on every store."""

from __future__ import annotations

import contextlib

import durable
from durable.documents import Snapshot
from durable.events import ResumeStateCollector
from support import Database


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
    assert loaded.steps == collector.resume_state().steps
    assert loaded.result == collector.resume_state().result
    ((viewed,),) = database.execute("SELECT snapshot FROM durable_runs WHERE id = 'x'")
    assert viewed == loaded.document()
    store.save("y", loaded)
    assert store.load("y") is not None
    assert [line.id for line in store.list()] == ["y", "x"]
    ((viewed,),) = database.execute("SELECT snapshot FROM durable_runs WHERE id = 'y'")
    assert viewed == loaded.document()
    assert durable.run(None, checkout, id="y", store=store) == {"b": 1, "a": 3}
    assert store.stats()[:5] == (0, 0, 2, 0, 0)
    store.delete("y")
    store.delete("y")
    assert store.load("y") is None
    assert store.purge(older_than=0) == 1
    assert store.stats()[:5] == (0, 0, 0, 0, 0)
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
