"""How often a page asks the database, counted on the wire: on a busy day it is what the page costs others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from durable.web import _reads
from durable.web._answers import Answers
from durable.web._forms import Forms
from durable.web._links import TABS
from durable.web._live import Live
from durable.web._reads import Reads
from durable.web._setup import checked_setup
from harness.pages import Visitor, play, visit
from harness.proxy import Proxy
from harness.support import Database

# Statements. A question of runs is four in one round trip: BEGIN, how long it may take, itself, and COMMIT; header, journal and
# signals are one each.
COSTS = {"/runs": 4, "/runs?q=workflow:checkout": 4, "/run?id=shipping-1": 7, "/run?id=nothing": 4, "/healthz": 0}
COUNTS = 4 * len(TABS)  # a question of each status, kept for two seconds


@pytest.fixture
def wire(database: Database) -> Iterator[tuple[Visitor, Proxy, Any]]:
    play(database.store())
    with Proxy(database.url) as proxy:
        store = database.store(proxy.url)
        visitor = visit(store)
        visitor.get("/run?id=nothing")  # connected
        yield visitor, proxy, store


@pytest.mark.parametrize("page", COSTS)
def test_a_page_asks_no_oftener(wire: tuple[Visitor, Proxy, Any], page: str) -> None:
    visitor, proxy, _ = wire
    before = proxy.count()
    assert visitor.get(page).status_code in (200, 404)
    asked = proxy.count().since(before)
    counts = COUNTS if page.startswith("/runs") else 0
    assert COSTS[page] <= asked.statements <= COSTS[page] + counts


def test_an_overview_asks_once_and_then_of_what_has_changed(
    wire: tuple[Visitor, Proxy, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts, the last hour, sizes and health are kept for seconds; only what failed last is asked for each time."""
    visitor, proxy, store = wire
    now = [1000.0]
    monkeypatch.setattr(_reads, "_PATIENCE", 60.0)  # else a page comes without what is not known at once
    monkeypatch.setattr(_reads, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def asked(ask: Callable[[], object]) -> int:
        before = proxy.count()
        ask()
        return proxy.count().since(before).statements

    stats, health = asked(store.stats), asked(store.health)
    assert health == 3 + 5  # one each for: what ended, what is due, what was left, connections, open transactions
    whole = COUNTS + 4 + stats + health + 4
    assert whole <= asked(lambda: visitor.get("/")) <= whole + 4  # a connection more is asked what it leads to
    assert asked(lambda: visitor.get("/")) == 4
    now[0] += 9
    assert asked(lambda: visitor.get("/")) == COUNTS + 4
    now[0] += 16
    assert whole <= asked(lambda: visitor.get("/")) <= whole + 4


def test_an_overview_does_not_wait_for_what_takes_long(
    wire: tuple[Visitor, Proxy, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is held up by a lock is left out, and what is known is shown."""
    visitor, _, store = wire
    going = threading.Event()
    health = store.health
    monkeypatch.setattr(_reads, "_PATIENCE", 0.0)
    monkeypatch.setattr(type(store), "health", lambda _: (going.wait(60), health())[1])
    try:
        text = visitor.get("/").text
        assert "Being counted: look again in a moment." in text
        assert "shipping-1" in text
    finally:
        going.set()


def test_fifty_viewers_cost_what_one_does(wire: tuple[Visitor, Proxy, Any]) -> None:
    """Whatever they look at: two questions each time that anything is asked."""
    _, proxy, store = wire
    setup = checked_setup(store, lambda _: "write", (), None, None, "", 3600, read_only=False)
    reads = Reads(store)
    live = Live(setup, reads, Answers(setup, Forms(b"s" * 32)))
    for number in range(50):
        live._shown[number] = frozenset({"shipping-1", f"run-{number}"})

    async def look() -> None:
        await asyncio.gather(*(live._look() for _ in range(50)))

    before = proxy.count()
    asyncio.run(look())
    assert proxy.count().since(before).round_trips == 2
    assert set(live._lines) == {"shipping-1"}
