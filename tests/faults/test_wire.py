"""Wires that deliver bytes one by one, slowly, and break in the midst of a message."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

import durable
from durable import AsyncStep, Step
from durable.stores._postgres.job import ABSENT
from durable.stores._postgres.jobs import CLAIM, READ
from harness.proxy import Link, Proxy
from harness.support import Database
from harness.wires import Wire
from harness.writer_spies import spy_on

LARGE = 24 * 1024 * 1024  # bytes of a value; the codec takes a little under a second for it


class Drop(Wire):
    """One byte at a time, each in a segment of its own, and now and then a pause."""

    def carry(self, way: str, arrived: bytes, sink: socket.socket) -> None:
        """Pass it on."""
        for n in range(len(arrived)):
            sink.sendall(arrived[n : n + 1])
            if n % 256 == 255:
                time.sleep(0.001)  # a slow wire


class Breaking(Wire):
    """One connection breaks, in the midst of what it carries, when so many bytes have gone one way."""

    way: ClassVar[str]
    after: ClassVar[int]
    broken: ClassVar[list[Link]]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._passed = {"to server": 0, "to client": 0}

    def carry(self, way: str, arrived: bytes, sink: socket.socket) -> None:
        """Pass it on, or break."""
        self._passed[way] += len(arrived)
        if way == self.way and self._passed[way] > self.after and not self.broken:
            self.broken.append(self)
            sink.sendall(arrived[: len(arrived) // 2])
            if way == "to server":  # with an RST, as the client is still sending
                self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self._client.close()
            self.cut()
            raise ConnectionResetError
        sink.sendall(arrived)


def in_turn(step: Step, deps: Bodies) -> list[int]:
    sizes = [len(step("body", deps.body, key, key=key)) for key in ("one", "two", "three")]
    deps.end()
    return sizes


async def async_in_turn(step: AsyncStep, deps: Bodies) -> list[int]:
    sizes = [len(await step("body", deps.body, key, key=key)) for key in ("one", "two", "three")]
    deps.end()
    return sizes


async def at_once(step: AsyncStep, deps: Bodies) -> list[int]:
    values = await asyncio.gather(*(step("body", deps.body, key, key=key) for key in ("one", "two", "three")))
    return [len(value) for value in values]


class Bodies:
    """What ran; the value of "two" is of this size."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.ran: list[str] = []
        self.end: Callable[[], object] = lambda: None

    def body(self, key: str) -> str:
        """The body of every step."""
        self.ran.append(key)
        return "x" * self.size if key == "two" else key


def run(store: Any, workflow: Callable[..., Any], deps: Bodies) -> Any:
    """Run it in its colour."""
    outcome = durable.run(deps, workflow, id="run", store=store)
    return asyncio.run(outcome) if asyncio.iscoroutine(outcome) else outcome


def stored(database: Database) -> list[tuple[str, int]]:
    """The keys, and how long their values are; that one owner has written all is checked by the way."""
    assert database.execute("SELECT owner_token FROM durable_locks") == [(None,)]
    query = "SELECT key, length(record->>'value') FROM durable_steps WHERE kind = 'step' ORDER BY key"
    return database.execute(query)


@pytest.mark.parametrize("workflow", [in_turn, async_in_turn, at_once], ids=["sync", "async", "async at once"])
def test_bytes_that_come_one_by_one(database: Database, workflow: Callable[..., Any]) -> None:
    """FAULTS 44: slowly, in both directions, and nobody minds."""
    with Proxy(database.url, Drop) as proxy:
        store, deps = database.store(proxy.url), Bodies(20_000)
        assert run(store, workflow, deps) == [3, 20_000, 5]
        store.close()
    assert sorted(deps.ran) == ["one", "three", "two"]
    assert stored(database) == [("one", 3), ("three", 5), ("two", 20_000)]


@pytest.mark.parametrize("workflow", [in_turn, async_in_turn], ids=["sync", "async"])
def test_a_reset_in_the_midst_of_a_large_record(database: Database, workflow: Callable[..., Any]) -> None:
    """FAULTS 44: it is read back, found absent, and sent again by another connection; nothing is taken for its answer."""
    Breaking.way, Breaking.after, Breaking.broken = "to server", LARGE // 2, []
    with Proxy(database.url, Breaking) as proxy:
        store, deps = database.store(proxy.url), Bodies(LARGE)
        small, large = spy_on(store), spy_on(store, large=True)
        broken: list[Any] = []
        large.before = lambda how, _: broken.append(how)
        assert run(store, workflow, deps) == [3, LARGE, 5]
        assert len(Breaking.broken) == 1, "it has not broken"
        assert broken == ["perform", "read_back", "perform"]
        assert [list(seen.answers or ()) for seen in large.seen] == [[], [ABSENT], [None]]
        assert all(seen.problem is None for seen in small.seen)
        sessions = store._held.resources.connections._idle
        assert all(session.execute(b"SELECT 'in step'").fetchone() == ("in step",) for session in sessions)
        store.close()
    assert deps.ran == ["one", "two", "three"]
    assert stored(database) == [("one", 3), ("three", 5), ("two", LARGE)]
    assert database.execute("SELECT DISTINCT epoch FROM durable_steps") == [(1,)]


@pytest.mark.parametrize("workflow", [in_turn, async_in_turn], ids=["sync", "async"])
def test_a_break_in_the_midst_of_a_large_reply(database: Database, workflow: Callable[..., Any]) -> None:
    """FAULTS 44: the journal of a run that goes on, half of it; the page is read once more, under the same lease."""
    deps = Bodies(LARGE)

    def fails() -> None:
        raise ConnectionError("once")

    deps.end = fails
    with pytest.raises(ConnectionError, match="once"):
        run(database.store(), workflow, deps)
    deps.end = lambda: None
    Breaking.way, Breaking.after, Breaking.broken = "to client", LARGE // 2, []
    with Proxy(database.url, Breaking) as proxy:
        store = database.store(proxy.url)
        spy = spy_on(store)
        assert run(store, workflow, deps) == [3, LARGE, 5]
        assert len(Breaking.broken) == 1, "it has not broken"
        assert len(spy.of("perform", CLAIM)) == 1
        assert [seen.names for seen in spy.of("perform", READ)] == [[1], [1]]
        store.close()
    assert deps.ran == ["one", "two", "three"], "an acknowledged step ran again"
    assert database.execute("SELECT epoch FROM durable_locks") == [(2,)]
