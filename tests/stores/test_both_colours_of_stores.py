"""What a store can do, it can do for asyncio too: the same verbs, the same answers."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

import durable
from durable.stores import memory
from durable.stores.protocol import RunStore
from durable.testing import Rehearsal

# What is no verb, or has its own colour: a transaction's body blocks, in a thread.
NOT_AWAITED = {"aio", "identity", "codec", "clock", "transaction"}
# What a user calls; what else the store has is for `durable.run` (its two protocols are compared elsewhere), or a test's own words.
VERBS = {"save", "load", "delete", "list", "purge", "stats", "status", "close"}


@pytest.fixture(params=["memory", "a rehearsal", "PostgreSQL"])
def store(request: pytest.FixtureRequest) -> Iterator[Any]:
    made: dict[str, Callable[[], Any]] = {
        "memory": memory,
        "a rehearsal": Rehearsal,
        "PostgreSQL": lambda: request.getfixturevalue("database").store(),
    }
    with closing(made[request.param]()) as store:
        yield store


def test_each_verb_is_there_in_both_colours(store: Any) -> None:
    """With the same arguments, and as a coroutine."""
    for verb in VERBS:
        blocking, awaited = getattr(store, verb), getattr(store.aio, verb)
        assert inspect.iscoroutinefunction(awaited), verb
        told, asked = (
            [(p.name, p.kind, p.default) for p in inspect.signature(one).parameters.values()]
            for one in (blocking, awaited)
        )
        assert told == asked, verb


def test_what_durable_run_asks_is_there_in_both_colours(store: Any) -> None:
    """All of `RunStore`; what is performed there is submitted here."""
    asked = {name for name in vars(RunStore) if not name.startswith("_")} - NOT_AWAITED
    assert "perform" in asked
    assert {name for name in asked - {"perform"} | {"submit"} if not hasattr(store.aio, name)} == set()


def test_the_verbs_answer_alike(store: Any) -> None:
    """List by page and status, counts, save, delete and purge: what one colour did, the other sees."""

    def workflow(step: durable.Step, deps: Any) -> int:
        return step("one", lambda: 1)

    async def look() -> None:
        assert await store.aio.list() == store.list()
        first = (await store.aio.list(limit=1, prefix="job:", status="completed"))[0]
        assert [line.id for line in await store.aio.list(after=first)] == ["job:a"]
        assert await store.aio.stats() == store.stats()
        assert await store.aio.status("job:a") == store.status("job:a") == "completed"
        snapshot = await store.aio.load("job:a")
        assert snapshot == store.load("job:a")
        await store.aio.save("job:c", snapshot, force=True)
        assert store.load("job:c") is not None
        await store.aio.delete("job:c", force=True)
        assert store.load("job:c") is None
        counted: list[int] = []
        assert await store.aio.purge(older_than=0, status="failed", progress=counted.append) == 0
        assert await store.aio.purge(older_than=0, progress=counted.append) == 2
        assert sum(counted) == 2
        assert list(store.list()) == []
        await store.aio.close()

    for name in ("job:a", "job:b"):
        durable.run({}, workflow, id=name, store=store)
    asyncio.run(look())
