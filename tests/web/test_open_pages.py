"""A page that is open for an hour holds nothing more at its end: its time jumps, and what there is is counted."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, Final

import pytest
from msgspec import structs
from starlette.requests import Request

from durable.operate.transfer import export_run, read_runs
from durable.stores import PostgresStore
from durable.web import _live
from durable.web._answers import Answers
from durable.web._forms import Forms
from durable.web._live import LONGEST, Live
from durable.web._reads import _THREADS, Reads
from durable.web._setup import checked_setup
from harness.support import looking

LOOKS: Final = {"memory": 3600, "postgres": 900}  # an hour of one a second; a quarter of one
CHANGES: Final = 10  # looks, after which a run has changed


class Hour:
    """A time that goes on when a stream sleeps, and what two open pages were told in it."""

    def __init__(self, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = store
        self.now = 0.0
        self.events = self.sleeps = 0
        self.streams = 0
        self.loop = asyncio.Runner()
        sleep = asyncio.sleep

        async def jump(seconds: float) -> None:
            self.now += seconds / 2  # two pages sleep side by side
            self.sleeps += 1
            if self.sleeps % (2 * CHANGES) == 0:
                self.change()
            await sleep(0)

        monkeypatch.setattr(_live, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(_live, "asyncio", SimpleNamespace(sleep=jump, Lock=asyncio.Lock))
        setup = checked_setup(store, lambda _: "write", (), None, None, "", 1.0, read_only=False)
        self.reads = Reads(store)
        ready = threading.Barrier(_THREADS)  # all the threads that it may have, and not one more now and then
        list(self.reads.threads.map(lambda _: ready.wait(60), range(_THREADS)))
        self.live = Live(setup, self.reads, Answers(setup, Forms(b"s" * 32)))
        (self.run,) = read_runs(list(export_run(store, "shipping-1")))

    async def opened(self, query: str, until: float) -> None:
        """A page that is open until then, whose browser comes back when its stream has ended."""
        while self.now < until:
            scope = {"type": "http", "method": "GET", "path": "/live", "query_string": query.encode(), "headers": []}
            answer: Any = await self.live.stream(Request(scope))
            assert answer.status_code == 200
            self.streams += 1
            async for text in answer.body_iterator:
                self.events += text.startswith("event:")
                if self.now >= until:
                    break
            await answer.body_iterator.aclose()

    def change(self) -> None:
        at = self.run.updated_at
        assert at is not None
        self.run = structs.replace(self.run, updated_at=at + timedelta(milliseconds=1))
        self.store.restore(self.run, replace=True)

    def pass_by(self, seconds: float) -> None:
        async def both() -> None:
            until = self.now + seconds
            await asyncio.gather(self.opened("", until), self.opened("id=shipping-1", until))

        self.loop.run(both())

    def held(self) -> dict[str, int]:
        """What there is."""
        for _ in range(3):
            gc.collect()
        counted = {"streams": self.live.streams, "threads": threading.active_count(), "tasks": len(self.reads._asking)}
        if isinstance(self.store, PostgresStore):
            with looking(str(self.store._url)) as connection:
                query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                counted["connections"] = connection.execute(query).fetchone()[0]  # type: ignore[index]
        return counted | {"objects": len(gc.get_objects())}


@pytest.fixture
def hour(played: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hour]:
    made = Hour(played, monkeypatch)
    yield made
    made.loop.close()
    made.reads.threads.shutdown()


@pytest.mark.long(10)
def test_a_page_that_is_open_for_an_hour_holds_nothing_more(hour: Hour) -> None:
    """Thousands of looks, hundreds of changes, several streams one after the other: then as much is held as after the first."""
    looks = LOOKS["postgres" if isinstance(hour.store, PostgresStore) else "memory"]
    hour.pass_by(LONGEST + 30)  # the first stream has ended, and the second has begun
    before, events, streams = hour.held(), hour.events, hour.streams
    hour.pass_by(looks)
    after = hour.held()
    assert hour.events - events >= looks / CHANGES / 2
    assert hour.streams - streams >= 2 * looks / (LONGEST + 60)
    grown = after.pop("objects") - before.pop("objects")
    assert after == before
    assert before["streams"] == 0
    assert grown < looks / 20, f"{grown} objects in {looks} looks"
