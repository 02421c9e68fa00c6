"""Signals as callers see them: typed, answered, deduplicated, of several names, and in a transaction of the caller's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypedDict

import psycopg
import pydantic
import pytest

import durable
from durable.errors import InvalidArgument, RunBeingStarted, SignalMismatch, SignalTimedOut, UnsuitableConnection
from durable.stores import PostgresStore, memory
from durable.stores.protocol import QueueingStore
from durable.testing import Rehearsal
from harness.support import Database


@dataclass
class Approval:
    """What an editor sends."""

    by: str
    stars: int = 0


class Plain(TypedDict):
    """The same, of plain parts."""

    by: str


class Model(pydantic.BaseModel):
    """The same, of pydantic's."""

    by: str
    at: datetime


@pytest.fixture(params=["memory", "postgres", "rehearsal"])
def store(request: pytest.FixtureRequest) -> Iterator[QueueingStore]:
    """Each kind of store that has signals."""
    if request.param == "memory":
        with memory() as made:
            yield made
    elif request.param == "rehearsal":
        with Rehearsal() as rehearsal:
            yield rehearsal
    else:
        with request.getfixturevalue("database").store() as made:
            yield made


Send = Callable[..., bool]


@pytest.fixture(params=["blocking", "async"])
def is_async(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "async")


@pytest.fixture
def send(is_async: bool) -> Send:
    """`durable.signal` in either colour."""
    return (lambda *a, **k: asyncio.run(durable.aio.signal(*a, **k))) if is_async else durable.signal


@pytest.fixture
def wait(is_async: bool, store: QueueingStore) -> Callable[..., Any]:
    """The outcome of a run that waits, in either colour: of `verb(*args, **options)` of its step."""

    def run(id: str, verb: str, *args: Any, **options: Any) -> Any:
        def blocking(step: durable.Step, deps: Any) -> Any:
            return (getattr(step, verb)(*args, **options), "")[0]

        async def awaited(step: durable.AsyncStep, deps: Any) -> Any:
            return await getattr(step, verb)(*args, **options)

        workflow = durable.workflow(name="waits")(awaited if is_async else blocking)
        outcome = durable.run(None, workflow, id=id, store=store)
        return asyncio.run(outcome) if is_async else outcome

    return run


def test_a_signal_says_whether_there_is_such_a_run(store: QueueingStore, send: Send, wait: Callable[..., Any]) -> None:
    assert send(store, "r", "go", "lost") is False
    assert send(store, "r", "go", "kept", create_later=True) is False
    assert wait("r", "wait_for", "go") == "kept"
    assert send(store, "r", "go") is True  # it has ended, and is there
    handle = durable.handle(store, "s")
    assert handle.signal("go", 1) is False
    assert asyncio.run(handle.aio.signal("go", 2, create_later=True)) is False
    assert wait("s", "wait_for", "go") == 2


def test_of_one_dedup_a_run_gets_one(store: QueueingStore, send: Send) -> None:
    def waits(step: durable.Step, deps: Any) -> list[Any]:
        return [step.wait_for("go"), step.wait_for("stop"), step.wait_for("go")]

    for payload in (1, 2):
        send(store, "r", "go", payload, dedup="click", create_later=True)
    send(store, "r", "stop", 3, dedup="click", create_later=True)  # another name's
    send(store, "q", "go", 4, dedup="click", create_later=True)  # another run's
    send(store, "r", "go", 5, dedup="another click", create_later=True)
    assert durable.run(None, waits, id="r", store=store) == [1, 3, 5]
    assert send(store, "r", "go", 6, dedup="click") is True  # also of what was received


def test_any_of_several_names(store: QueueingStore, send: Send, wait: Callable[..., Any]) -> None:
    send(store, "r", "rejected", {"why": [1]}, create_later=True)
    send(store, "r", "approved", "late", create_later=True)
    assert wait("r", "wait_for_any", ["approved", "rejected"]) == ("rejected", {"why": [1]})
    assert wait("r", "wait_for_any", ["approved", "rejected"]) == ("rejected", {"why": [1]})  # replayed
    with pytest.raises(SignalTimedOut, match=r"approved \| rejected"):
        wait("s", "wait_for_any", ("approved", "rejected"), timeout=0.05)


def test_what_any_has_taken_no_other_wait_gets(store: QueueingStore) -> None:
    def waits(step: durable.Step, deps: Any) -> list[Any]:
        got: list[Any] = [step.wait_for_any(["a", "b"]), step.wait_for("a"), step.wait_for_any(["b", "a"])]
        if dies.pop():
            raise KeyboardInterrupt
        return [*got, step.wait_for("b")]

    dies = [False, True]
    for n, name in enumerate("aabb"):
        durable.signal(store, "r", name, n, create_later=True)
    with pytest.raises(KeyboardInterrupt):
        durable.run(None, waits, id="r", store=store)
    assert durable.run(None, waits, id="r", store=store) == [("a", 0), 1, ("b", 2), 3]


@pytest.mark.parametrize("names", ["approved", 7, [], [""], [7], None])
def test_names_that_cannot_be_are_refused(names: Any) -> None:
    with memory() as store, pytest.raises(InvalidArgument, match="name"):
        durable.run(None, lambda step, _: step.wait_for_any(names), id="r", store=store)


@pytest.mark.parametrize(
    ("type_", "sent", "got"),
    [
        (Approval, Approval("ada", 3), Approval("ada", 3)),
        (Approval, {"by": "ada"}, Approval("ada")),
        (Model, {"by": "ada", "at": "2031-05-01T12:00:00Z"}, Model(by="ada", at=datetime(2031, 5, 1, 12, tzinfo=UTC))),
        (datetime, "2031-05-01T12:00:00Z", datetime(2031, 5, 1, 12, tzinfo=UTC)),
        (Plain, {"by": "ada"}, {"by": "ada"}),
        (list[Approval], [{"by": "ada", "stars": 1}], [Approval("ada", 1)]),
        (int, 7, 7),
        (float, 7, 7),
        (str | None, None, None),
        (Any, {"by": 1}, {"by": 1}),
    ],
)
def test_a_payload_is_what_is_waited_for(type_: Any, sent: Any, got: Any) -> None:
    with memory() as store:
        durable.signal(store, "r", "go", sent, create_later=True)
        for _ in "live", "replayed":
            value: Any = durable.run(None, lambda step, _: [step.wait_for("go", type=type_)], id="r", store=store)
            assert value == [got]

    with memory() as store:
        durable.signal(store, "r", "go", sent, create_later=True)

        def workflow(step: durable.Step, deps: Any) -> str:
            return type(step.wait_for("go", type=type_)).__name__

        assert durable.run(None, workflow, id="r", store=store) == type(got).__name__


@pytest.mark.parametrize(
    ("type_", "sent"),
    [
        (Approval, {"by": 7}),
        (Approval, {"stars": 1}),
        (Approval, "ada"),
        (int, "7"),
        (Model, {"by": "ada"}),
        (str, None),
    ],
)
def test_a_payload_that_is_none_is_an_error_by_name_and_the_next_one_is_waited_for(
    store: QueueingStore, send: Send, type_: Any, sent: Any
) -> None:
    problems: list[SignalMismatch] = []

    def workflow(step: durable.Step, deps: Any) -> Any:
        try:
            step.wait_for("go", type=type_)
        except SignalMismatch as problem:
            problems.append(problem)
        return step.wait_for("go")

    send(store, "r", "go", sent, create_later=True)
    send(store, "r", "go", "next", create_later=True)
    assert durable.run(None, workflow, id="r", store=store) == "next"
    assert durable.run(None, workflow, id="r", store=store) == "next"
    assert "the payload of signal 'go' is not of the type that is waited for: " in str(problems[0])
    assert "ada" not in str(problems[0])


# -- in a transaction of the caller's


@pytest.fixture
def real(database: Database) -> Iterator[PostgresStore]:
    with database.store() as made:
        made.stats()
        yield made


@durable.workflow(name="approval")
def approval(step: durable.Step, deps: Any) -> str:
    return step.wait_for("go", type=str)


def test_a_signal_is_there_with_the_commit_and_gone_with_the_rollback(real: PostgresStore, database: Database) -> None:
    handle = durable.start(approval, id="r", store=real)
    with psycopg.connect(database.url) as connection:
        assert handle.signal("go", "rolled back", connection=connection) is True
        connection.rollback()
        assert durable.signal(real, "none", "go", connection=connection) is False
        assert handle.signal("go", "żółw", connection=connection) is True
        connection.commit()
    durable.Worker(real, None, [approval]).run_until_idle()
    assert handle.result() == "żółw"


def test_a_run_that_the_same_transaction_starts_is_there(real: PostgresStore, database: Database) -> None:
    with psycopg.connect(database.url) as connection:
        handle = durable.start(approval, id="r", store=real, connection=connection)
        assert durable.signal(real, "r", "go", "at once") is False
        assert durable.signal(real, "r", "go", "at once", connection=connection) is True
        connection.commit()
    durable.Worker(real, None, [approval]).run_until_idle()
    assert handle.result() == "at once"


def test_an_async_connection_carries_signals(real: PostgresStore, database: Database) -> None:
    handle = durable.start(approval, id="r", store=real)

    async def sent() -> None:
        async with await psycopg.AsyncConnection.connect(database.url) as connection:
            assert await durable.aio.signal(real, "r", "go", "gone", connection=connection)
            await connection.rollback()
            assert await handle.aio.signal("go", "here", connection=connection)

    asyncio.run(sent())
    durable.Worker(real, None, [approval]).run_until_idle()
    assert handle.result() == "here"


def test_a_dedup_that_a_transaction_holds_holds_up_no_checkpoint(real: PostgresStore, database: Database) -> None:
    durable.start(approval, id="r", store=real)
    with psycopg.connect(database.url) as connection:
        durable.signal(real, "r", "go", 1, dedup="click", connection=connection)
        with pytest.raises(RunBeingStarted):
            durable.signal(real, "r", "go", 2, dedup="click")
        assert durable.run(None, lambda step, _: step("one", lambda: 1), id="other", store=real) == 1
    assert durable.signal(real, "r", "go", 2, dedup="click") is True
    assert database.execute("SELECT payload::text FROM durable_signals") == [("1",)]


def test_the_store_in_memory_refuses_a_connection() -> None:
    with memory() as store, pytest.raises(UnsuitableConnection, match=r"durable.signal\(connection=…\)"):
        durable.signal(store, "r", "go", connection=7)
