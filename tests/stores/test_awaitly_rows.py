"""Rows that awaitly's `durable.run` has written (1.35.0 and an earlier one): listed, loaded, resumed, and then ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import durable
from durable.snapshots import Snapshot
from durable.stores import memory
from harness.shelves import Shelf
from harness.support import Database

ROWS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("awaitly_rows.json").read_text("utf-8"))
TOLD = {
    "orders:thrown-1": ("TypeError", "kaput"),
    "orders/eu:declined-1": ("error", "DECLINED"),
    "orders:eu:typed-1": ("NotFound", ""),
    "thrown-2": ("RangeError", "x"),
    "string-1": ("thrown", "just text"),
}


@pytest.fixture(params=["postgres", "memory", "five verbs"])
def store(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "postgres":
        database: Database = request.getfixturevalue("database")
        kept_there = database.store()
        kept_there.list()
        for row in ROWS:
            database.execute(
                "INSERT INTO durable_snapshots VALUES (%s, %s::jsonb, now())", row["id"], json.dumps(row["snapshot"])
            )
        yield kept_there
        return
    with memory() as kept:
        store: Any = kept if request.param == "memory" else Shelf()
        for row in ROWS:
            store.save(row["id"], Snapshot.from_document(row["snapshot"]))
        yield store


def replayed(row: dict[str, Any], ran: list[str]) -> Any:
    """A workflow of the row's steps."""

    def workflow(step: durable.Step, _: None, given: int) -> list[Any]:
        def again(key: str) -> str:
            ran.append(key)
            return "again"

        return [step(key, again, key, key=key) for key in steps(row)] + [given]

    return workflow


def steps(row: dict[str, Any]) -> list[str]:
    known = row["snapshot"]["steps"]
    return [key for key, step in known.items() if step["ok"]] + [key for key, step in known.items() if not step["ok"]]


def outcome(row: dict[str, Any]) -> list[Any]:
    known = row["snapshot"]["steps"]
    return [known[key].get("value") if known[key]["ok"] else "again" for key in steps(row)] + [7]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_a_row_is_listed_loaded_and_resumed(store: Any, row: dict[str, Any]) -> None:
    """Its failed step runs, the recorded ones do not; afterwards it is a run of ours, with our result."""
    failed = [key for key, step in row["snapshot"]["steps"].items() if not step["ok"]]
    name, version, ran = row["id"], row["snapshot"]["metadata"]["version"], list[str]()
    assert name in [line.id for line in durable.list_pending(store)]
    loaded = store.load(name)
    told = [(step.error.type, step.error.message) for step in loaded.steps.values() if step.error]
    assert told == [TOLD[name]]
    workflow = replayed(row, ran)
    assert durable.run(None, workflow, id=name, store=store, input=7, version=version) == outcome(row)
    assert ran == failed
    assert durable.run(None, workflow, id=name, store=store, input=7, version=version) == outcome(row)
    assert durable.run(None, workflow, id=name, store=store, version=version) == outcome(row)
    assert ran == failed
    ours = store.load(name)
    assert (ours.workflow_name, ours.execution.status) == ("workflow", "completed")
    assert ours.metadata.get("tenant") == row["snapshot"]["metadata"].get("tenant")
    assert not {"stepOrder", "stepArgs", "lastStepKey"} & set(ours.metadata)
    with pytest.raises(durable.RunMismatch):
        durable.run(None, workflow, id=name, store=store, input=8, version=version)
    with pytest.raises(durable.VersionMismatch):
        durable.run(None, workflow, id=name, store=store, input=7, version=version + 1)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_a_workflow_of_the_same_name_runs_it_once(store: Any, row: dict[str, Any]) -> None:
    """Also where our workflow is called as their row is: what it has come to is not executed again."""
    name, ran = row["id"], list[str]()
    workflow = replayed(row, ran)
    workflow.__name__ = workflow.__qualname__ = row["snapshot"]["workflowName"]
    options = {"id": name, "store": store, "input": 7, "version": row["snapshot"]["metadata"]["version"]}
    assert durable.run(None, workflow, **options) == outcome(row)
    count = len(ran)
    assert durable.run(None, workflow, **options) == outcome(row)
    assert len(ran) == count


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_an_interrupted_resumption_goes_on(store: Any, row: dict[str, Any]) -> None:
    """The second call finds a run of ours: its input and version hold, and nothing is adopted twice. Async, this time."""
    name, version, ran = row["id"], row["snapshot"]["metadata"]["version"], list[str]()

    async def workflow(step: durable.AsyncStep, _: None, given: int) -> list[Any]:
        async def again(key: str) -> str:
            ran.append(key)
            if len(ran) == 1:
                raise KeyboardInterrupt
            return "again"

        return [await step(key, again, key, key=key) for key in steps(row)] + [given]

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(durable.run(None, workflow, id=name, store=store, input=7, version=version))
    assert store.load(name).workflow_name == "workflow"
    with pytest.raises(durable.RunMismatch):
        asyncio.run(durable.run(None, workflow, id=name, store=store, input=8, version=version))
    assert asyncio.run(durable.run(None, workflow, id=name, store=store, version=version)) == outcome(row)


def test_no_metadata_of_ours_can_look_like_theirs() -> None:
    """What tells their rows is refused in a user's metadata."""
    for word in ("stepOrder", "stepArgs", "lastStepKey"):
        with memory() as store, pytest.raises(durable.InvalidArgument, match=word):
            durable.run(None, lambda step, _: 1, id="x", store=store, metadata={word: []})


def test_a_run_whose_id_is_its_workflows_name_stays_ours(database: Database) -> None:
    """The name alone tells nothing: a completed run of ours is not executed again."""
    ran = list[int]()

    def one() -> int:
        ran.append(1)
        return 5

    def checkout(step: durable.Step, _: None) -> int:
        return step("one", one)

    with memory() as kept:
        for store in (database.store(), database.store(prefix="orders:"), kept, Shelf()):
            ran.clear()
            assert [durable.run(None, checkout, id="checkout", store=store) for _ in range(2)] == [5, 5]
            assert ran == [1]
