"""What was acknowledged can be resumed, however slow the line: FAULTS 89, 171.

Silence is counted from the last byte. The sizes and the lease are to each other as 60 MB and 30 s are over 1 MB/s; the law itself is
measured by `benchmarks/slow_line.py`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest

import durable
from durable._engine import batches
from durable._engine.batches import MAX_BYTES, MAX_SHARED_BYTES, MIN_SPEED
from durable._engine.decisions import Claim, Granted
from durable.errors import LeaseLost
from durable.snapshots import Snapshot
from durable.stores import PostgresStore
from durable.stores._postgres import claims, statements, watchdog
from durable.stores._postgres.jobs import CLAIM, READ
from durable.stores.requests import Begin, Release
from harness.proxy import Proxy
from harness.support import Database
from harness.wires import Wire
from harness.writer_spies import spy_on

LEASE = 4.0  # seconds: long for a busy machine
RATE = 2_500_000  # bytes a second
LONG = 12_000_000  # bytes: more than a lease, and than the kernel holds on its way


class Slow(Wire):
    """So many bytes a second, each way."""

    rate: ClassVar[float] = RATE

    def carry(self, way: str, arrived: bytes, sink: socket.socket) -> None:
        sink.sendall(arrived)
        if len(arrived) > 1000:
            time.sleep(len(arrived) / self.rate)


class Stuck(Wire):
    """Stands still where much comes in one direction, until it is let go."""

    way: ClassVar[str]
    free: ClassVar[threading.Event]
    stands: ClassVar[threading.Event]
    carried = 0

    def carry(self, way: str, arrived: bytes, sink: socket.socket) -> None:
        self.carried += len(arrived) if way == self.way else 0
        if self.carried > MAX_SHARED_BYTES * 3 and not self.free.is_set():
            self.stands.set()
            self.free.wait(20)
        sink.sendall(arrived)


@pytest.fixture
def slow(database: Database) -> Iterator[PostgresStore]:
    """A store at the end of a slow line, whose tables are there."""
    durable.run(None, lambda _step, _: None, id="tables", store=database.store())
    with Proxy(database.url, Slow) as proxy, database.store(proxy.url) as store:
        yield store


def long(length: int = LONG) -> str:
    """Text that is not to be compressed."""
    return os.urandom(length // 2).hex()


class Interrupted(BaseException):
    pass


def interrupted(store: PostgresStore, sizes: list[int]) -> list[str]:
    """A run that is left with values of these sizes in its journal; the values."""
    values = [long(size) for size in sizes]

    @durable.workflow(name="workflow")
    def workflow(step: durable.Step, _: None) -> None:
        for number, value in enumerate(values):
            step("value", lambda value=value: value, key=str(number))  # type: ignore[misc]
        raise Interrupted

    with pytest.raises(Interrupted):
        durable.run(None, workflow, id="run", store=store)
    return values


def bodies(count: int) -> tuple[list[int], Callable[..., list[str]], Callable[..., Any]]:
    """The numbers of the bodies that run, and the same workflow in two colours, which goes on to its end."""
    ran: list[int] = []

    def body(number: int) -> str:
        ran.append(number)
        return ""

    @durable.workflow(name="workflow")
    def workflow(step: durable.Step, _: None) -> list[str]:
        return [step("value", lambda number=number: body(number), key=str(number)) for number in range(count)]  # type: ignore[misc]

    @durable.workflow(name="workflow")
    async def workflow_async(step: durable.AsyncStep, _: None) -> list[str]:
        async def body_async(number: int) -> str:
            return body(number)

        return [
            await step("value", lambda number=number: body_async(number), key=str(number))  # type: ignore[misc, call-arg]
            for number in range(count)
        ]

    return ran, workflow, workflow_async


@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize(
    "sizes",
    [[LONG], [LONG // 30] * 30, [1000, 900_000, 5, MAX_SHARED_BYTES, LONG // 2, 7]],
    ids=["one", "many", "mixed"],
)
def test_a_long_journal_is_resumed(slow: PostgresStore, database: Database, sizes: list[int], colour: str) -> None:
    """A-c04: in pages, under a lease that is renewed meanwhile; nothing is read twice, and no body runs again."""
    values, spy = interrupted(database.store(), sizes), spy_on(slow)
    ran, workflow, workflow_async = bodies(len(sizes))
    if colour == "sync":
        result = durable.run(None, workflow, id="run", store=slow, lease=LEASE)
    else:
        result = asyncio.run(durable.run(None, workflow_async, id="run", store=slow, lease=LEASE))
    assert result == values
    assert ran == []
    assert len(spy.of("perform", CLAIM)) == 1
    pages = [seen.names for seen in spy.of("perform", READ)]
    assert 1 <= len(pages) <= 2 + sum(sizes) // MAX_BYTES + sum(size > MAX_SHARED_BYTES for size in sizes)
    assert len(pages) == len({str(page) for page in pages})
    assert all(seen.problem is None for seen in spy.seen)
    assert database.execute("SELECT epoch FROM durable_locks WHERE workflow_id = 'run'") == [(2,)]


@pytest.mark.parametrize("way", ["step", "transaction", "result", "input", "async"])
def test_a_long_value_is_recorded_once(slow: PostgresStore, database: Database, way: str) -> None:
    """A-c19: its body runs once, and whoever asks for the run again over the same line is told."""
    value, ran = long(), list[int]()

    def body(*_: Any) -> str:
        ran.append(1)
        return value

    async def body_async() -> str:
        return body()

    async def workflow_async(step: durable.AsyncStep, _: None) -> int:
        return len(await step("long", body_async))

    def workflow(step: durable.Step, _: None, given: str = "") -> Any:
        match way:
            case "step":
                return len(step("long", body))
            case "transaction":
                return len(step.transaction("long", body))
            case "result":
                return body()
            case _:
                body()
                return len(given)

    given: dict[str, Any] = {"input": value} if way == "input" else {}
    for _ in range(2):
        if way == "async":
            result = asyncio.run(durable.run(None, workflow_async, id="run", store=slow, lease=LEASE))
        else:
            result = durable.run(None, workflow, id="run", store=slow, lease=LEASE, **given)
        assert result == (value if way == "result" else LONG)
    assert ran == [1]
    assert database.status("run") == "completed"


def test_a_long_document_is_resumed(slow: PostgresStore) -> None:
    """A snapshot that was saved as a whole, and carries its steps in itself."""
    value = long()
    saved = Snapshot.from_json(
        f'{{"formatVersion": 1, "workflowName": "workflow", "steps": {{"0": {{"ok": true, "value": "{value}"}}}}, '
        '"execution": {"status": "running", "lastUpdated": "2026-01-01T00:00:00Z"}, "metadata": {"version": 1}}'
    )
    slow.save("run", saved)
    ran, workflow, _ = bodies(1)
    assert durable.run(None, workflow, id="run", store=slow, lease=2 * LEASE) == [value]
    assert ran == []


@pytest.mark.parametrize("what", ["journal", "value", "result", "input"])
def test_others_do_not_wait_for_what_is_long(database: Database, what: str) -> None:
    """While one run's journal, value, result or input stands still on the line, others begin and end on the same store."""
    value = long()
    if what == "journal":
        interrupted(database.store(), [LONG])
    elif what == "result":

        @durable.workflow(name="workflow")
        def ended(_step: durable.Step, _: None) -> str:
            return value

        durable.run(None, ended, id="run", store=database.store())
    else:
        durable.run(None, lambda _step, _: None, id="tables", store=database.store())
    Stuck.way = "to client" if what in ("journal", "result") else "to server"
    Stuck.free, Stuck.stands = threading.Event(), threading.Event()

    @durable.workflow(name="workflow")
    def workflow(step: durable.Step, _: None, given: str = "") -> int:
        if what == "value":
            step("long", lambda: value)
        return len(given)

    given: dict[str, Any] = {"input": value} if what == "input" else {}
    with Proxy(database.url, Stuck) as proxy, database.store(proxy.url) as store, ThreadPoolExecutor(1) as aside:
        held = aside.submit(
            lambda: durable.run(None, bodies(1)[1] if what == "journal" else workflow, id="run", store=store, **given)
        )
        try:
            assert Stuck.stands.wait(20)
            for number in range(3):
                assert durable.run(None, lambda step, _: step("one", lambda: 1), id=f"other-{number}", store=store) == 1
            assert not held.done()
        finally:
            Stuck.free.set()
        held.result()


def test_a_short_journal_comes_with_its_claim(database: Database) -> None:
    """Nothing more is asked for until a journal has some hundred KB, or many thousand records."""
    store = database.store()
    interrupted(store, [100] * 1000)
    spy = spy_on(store)
    ran, workflow, _ = bodies(1000)
    durable.run(None, workflow, id="run", store=store)
    assert ran == []
    assert spy.of("perform", READ) == []


def test_a_journal_of_many_records_is_whole(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page ends also where it has many records: none is missing, none comes twice, wherever it ends."""
    store = database.store()
    interrupted(store, [10] * 20)
    expected = [record[1] for record in database.journal("run")]
    for rows in (1, 2, 3, 19, 20, 21, 22):
        for module in (claims, statements):
            monkeypatch.setattr(module, "MAX_RECORDS", rows)
        reply = store.perform(Begin(claim(), lambda: True))
        assert isinstance(reply, Granted)
        assert [record.key for record in reply.records] == expected, rows
        store.perform(Release(reply.lease))


@pytest.mark.parametrize("most", [0, 1, 30, 100, 1000])
def test_a_page_may_end_anywhere(database: Database, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """After any number of bytes."""
    store = database.store()
    interrupted(store, [10, 500, 1, 3000, 3000, 2, 100_000, 4, 4])
    expected = [record[1] for record in database.journal("run")]
    monkeypatch.setattr(batches, "page_bytes", lambda _: most)
    for module in (claims, statements):
        monkeypatch.setattr(module, "MAX_BYTES", most)
    reply = store.perform(Begin(claim(), lambda: True))
    assert isinstance(reply, Granted)
    assert [record.key for record in reply.records] == expected


def test_a_lease_that_is_lost_while_its_journal_is_read(database: Database) -> None:
    """The rest is not read under another's lease: no journal with a hole."""
    store = database.store()
    interrupted(store, [LONG // 3] * 3)
    spy = spy_on(store)

    def before(how: str, jobs: Any) -> None:
        if jobs[0].verb is READ:
            database.execute("UPDATE durable_locks SET owner_token = '9:other.1', epoch = 9")

    spy.before = before
    with pytest.raises(LeaseLost):
        durable.run(None, bodies(3)[1], id="run", store=store)


def test_what_is_silent_is_ended_all_the_same() -> None:
    """The bytes that count are those that come or go; where nobody counts them, a slow line's time."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        server, _ = listening.accept()
    one, other = socket.socketpair()
    tcp, unix = Fake(client), Fake(one)
    looks = {connection: watchdog._Look(connection, (10.0, 5 * MIN_SPEED), 0.0) for connection in (tcp, unix)}  # type: ignore[arg-type]
    for moment, sent in ((5.0, b"x"), (14.0, b"y"), (23.0, b"")):
        if sent:
            server.sendall(sent)
            client.recv(1)
        assert not looks[tcp].is_over(moment)
    assert not looks[tcp].is_over(23.9)
    assert looks[tcp].is_over(24.1)
    assert not looks[unix].is_over(14.9)
    assert looks[unix].is_over(15.1)
    for end in (client, server, one, other):
        end.close()


class Fake:
    """A connection of which only the socket is looked at."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def fileno(self) -> int:
        return self._end.fileno()


def claim() -> Any:
    return Claim(run_id="run", workflow="workflow", version=1, seconds=30.0)
