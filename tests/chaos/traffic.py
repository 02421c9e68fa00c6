"""The workflows of an ordinary hour, told once for both colours as those of `programs` are, and what they work on."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, Final

import psycopg
import tenacity

import durable
from chaos.programs import OutOfOrder, Program
from durable.stores import PostgresStore

TILL: Final = "CREATE TABLE till (number int PRIMARY KEY, cents bigint NOT NULL) WITH (fillfactor = 50)"
DRAWERS: Final = 16  # of the till
_BIG: Final = 150 * 1024  # bytes, in hexadecimal twice as many: more than travels with others, and hard to compress
_NEWS: Final = "the room is free"
_BODY: Final = 0.005  # seconds
_RETRY: Final = tenacity.Retrying(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(0.02))


def order(step: Any, desk: Desk, n: int) -> Generator[Any, Any, Any]:
    """Ordinary steps, one of which is tried twice, and sometimes a signal to a guest who waits."""
    stock = yield step("reserve", desk.work, n, key="reserve")
    paid = yield step("charge", desk.flaky, n * 100, key="charge", retry=_RETRY)
    told = (yield step("tell", desk.tell, key="tell")) if n % 10 == 0 else ""
    return {"stock": stock, "paid": paid, "told": told}


def fan(step: Any, desk: Desk, n: int) -> Generator[Any, Any, Any]:
    """Steps at once, and now and then a large value."""
    sizes = yield step.map("measure", desk.measure, [f"item {i}" for i in range(4)], key=str, max_concurrency=2)
    pair = yield desk.together(step("left", desk.work, n, key="left"), step("right", desk.work, -n, key="right"))
    big = (yield step("big", desk.big, n, key="big")) if n % 40 == 10 else ""
    return {"sizes": sizes, "pair": list(pair), "big": len(big)}


def money(step: Any, desk: Desk, n: int) -> Generator[Any, Any, Any]:
    """Two transactions."""
    for i in range(2):
        yield step.transaction("pay in", pay_in, (n + i) % DRAWERS, n, key=f"pay-in-{i}")
    return n


def repaired(step: Any, desk: Desk, n: int) -> Generator[Any, Any, Any]:
    """A run that fails, and ends well when it is run again."""
    first = yield step("first", desk.work, n, key="first")
    return (yield step("second", desk.broken, first, key="second"))


def failed(step: Any, desk: Desk, n: int) -> Generator[Any, Any, Any]:
    """A run that fails."""
    yield step("first", desk.work, n, key="first")
    raise OutOfOrder(str(n))


def halted(step: Any, desk: Desk, n: int) -> Generator[Any, Any, Any]:
    """A run that sleeps until somebody cancels it."""
    yield step("first", desk.work, n, key="first")
    yield step.sleep("for long", 600)


def guest(step: Any, desk: Desk, n: int) -> Generator[Any, Any, Any]:
    """A run that stays: naps with a step after each, then the wait for a signal. Its lease is renewed all the while."""
    chance = random.Random(n)
    for turn in range(desk.stay.naps):
        yield step.sleep(f"nap {turn}", desk.stay.nap * chance.uniform(0.5, 1.5))
        yield step("turn", desk.work, turn, key=f"turn-{turn}")
    told = yield step.wait_for("go")
    return {"told": told}


def probe(step: Any, desk: Probe, n: int) -> Generator[Any, Any, Any]:
    """Steps that do nothing, with a pause after each: what a checkpoint costs."""
    for tick in range(n):
        began = time.perf_counter()
        yield step("tick", desk.nothing, key=f"tick-{tick}")
        desk.note(time.perf_counter() - began)
        desk.pause()


OFTEN: Final[tuple[Program, ...]] = (
    *[order] * 10, *[fan] * 4, *[money] * 2, *[repaired] * 2, failed, halted,
)  # fmt: skip
"""The kind of the short run number n is that at n modulo their number."""


def pay_in(connection: psycopg.Connection[Any], drawer: int, cents: int) -> int:
    """A transaction's body."""
    connection.execute("UPDATE till SET cents = cents + %s WHERE number = %s", (cents, drawer))
    return cents


@dataclass(frozen=True)
class Stay:
    """How long a guest stays."""

    naps: int
    nap: float  # seconds, on average


class Desk:
    """The deps of one run, whose executions share it."""

    def __init__(self, store: PostgresStore, stay: Stay, waiting: dict[str, None]) -> None:
        self.store = store
        self.stay = stay
        self._waiting = waiting  # the guests whom nobody has told yet, in the order in which they came
        self._stumbled = False
        self._failed = False

    def work(self, value: Any) -> Any:
        """An ordinary body."""
        time.sleep(_BODY)
        return value

    def flaky(self, value: Any) -> Any:
        """A body that fails once."""
        if not self._stumbled:
            self._stumbled = True
            raise ConnectionError("the line is busy")
        return value

    def broken(self, value: Any) -> Any:
        """A body that fails the run once."""
        if not self._failed:
            self._failed = True
            raise OutOfOrder("not yet")
        return value

    def measure(self, item: str) -> int:
        """An item's body."""
        return len(item)

    def big(self, n: int) -> str:
        """A body with a great deal to say."""
        return random.Random(n).randbytes(_BIG).hex()

    def tell(self) -> str:
        """A body that sends a signal to the guest who came first."""
        if other := self._first():
            durable.signal(self.store, other, "go", _NEWS, create_later=True)
            self._told(other)
        return other

    def together(self, *values: Any) -> Any:
        """What several steps gave."""
        return values

    def _first(self) -> str:
        return next(iter(list(self._waiting)), "")  # a copy: other threads come and go

    def _told(self, other: str) -> None:
        self._waiting.pop(other, None)


class AsyncDesk(Desk):
    """The same for an async run. What takes no time is not awaited."""

    async def work(self, value: Any) -> Any:
        await asyncio.sleep(_BODY)
        return value

    async def tell(self) -> str:  # type: ignore[override]
        if other := self._first():
            await durable.aio.signal(self.store, other, "go", _NEWS, create_later=True)
            self._told(other)
        return other

    async def together(self, *values: Awaitable[Any]) -> tuple[Any, ...]:
        return tuple(await asyncio.gather(*values))


@dataclass(frozen=True)
class Probe:
    """The deps of a probe: who is told how many seconds a step took, and who is waited for after it."""

    note: Callable[[float], None]
    pause: Callable[[], object]

    def nothing(self) -> None:
        """A body that does nothing."""
