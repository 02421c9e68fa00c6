"""Names of signals by which the library itself tells a run something: none that a user sends or waits for begins so."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any, Final

import pytest

import durable
from durable import aio
from durable.errors import InvalidArgument
from durable.operate.filters import parse_query
from durable.stores.protocol import QueueingStore

RESERVED: Final = ["durable:end:p/child", "durable:", "durable:anything"]
SAID: Final = r"must not begin with 'durable:'.*choose another name"


@durable.workflow(name="listens")
def listens(step: durable.Step, deps: Any, name: str) -> Any:
    return step.wait_for(name, timeout=0.01)


@durable.workflow(name="alistens")
async def alistens(step: durable.AsyncStep, deps: Any, name: str) -> Any:
    return await step.wait_for(name, timeout=0.01)


@durable.workflow(name="listens-for-any")
def listens_for_any(step: durable.Step, deps: Any, name: str) -> Any:
    return step.wait_for_any(["other", name], timeout=0.01)


@pytest.mark.parametrize("name", RESERVED)
def test_no_user_tells_a_parent_of_a_childs_end(store: QueueingStore, name: str) -> None:
    """An end that is made up would be recorded as the child's outcome."""
    durable.start(listens, "go", id="p", store=store)
    for later in (False, True):
        with pytest.raises(InvalidArgument, match=SAID):
            durable.signal(store, "p", name, {"status": "completed"}, create_later=later)
        with pytest.raises(InvalidArgument, match=SAID):
            asyncio.run(aio.signal(store, "p", name, create_later=later))
    with pytest.raises(InvalidArgument, match=SAID):
        durable.handle(store, "p").signal(name)
    assert durable.signal(store, "p", "durable end")


@pytest.mark.parametrize("workflow", [listens, alistens, listens_for_any])
def test_no_user_waits_for_it(store: QueueingStore, workflow: Any) -> None:
    handle = durable.start(workflow, RESERVED[0], id="p", store=store)
    with durable.Worker(store, None, [workflow]), pytest.raises(InvalidArgument, match=SAID):
        handle.result(10.0)


def test_the_children_of_a_run_are_found_by_its_id(store: QueueingStore) -> None:
    """Of two parents, and not what only begins alike."""
    for parent in ("p", "q", "p2"):
        durable.start(parents, 2, id=parent, store=store)
    durable.start(leaf, 0, id="p/none", store=store)
    durable.Worker(store, None, [parents, leaf]).run_until_idle()

    def found(text: str) -> list[str]:
        return sorted(run.id for run in store.runs(parse_query(text, now=datetime.now(UTC))))  # type: ignore[attr-defined]

    assert found("parent:p") == ["p/0", "p/1"]
    assert found("parent:p,q status:completed") == ["p/0", "p/1", "q/0", "q/1"]
    assert found("parent:p/0") == found("parent:nothing") == []


@durable.workflow(name="leaf")
def leaf(step: durable.Step, deps: Any, n: int) -> int:
    return n


@durable.workflow(name="parents")
def parents(step: durable.Step, deps: Any, n: int) -> list[int]:
    return step.wait_all([step.start(leaf, i, key=f"{i}") for i in range(n)])
