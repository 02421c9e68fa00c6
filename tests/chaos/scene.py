"""What the workflows work on: bodies that leave a line in the log of effects, and places where a process can be killed."""

from __future__ import annotations

import asyncio
import enum
import os
import random
import signal
import time
import zlib
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import sql

import durable
from chaos import bank
from chaos.effects import Log
from chaos.programs import BIG, OutOfOrder
from durable.events import LeaseTaken, RunBegan, RunCompleted, RunEvent, StepRecorded, StepRemembered, StepReplayed
from durable.stores import PostgresStore

LONGEST_BODY: Final = 0.02  # seconds
LONG_BODY: Final = (0.3, 0.9)  # seconds, for one that is slow


class Place(enum.Enum):
    """Where a process can kill itself."""

    BEGAN = "claim granted, nothing done"
    BEFORE_BODY = "before the body"
    IN_BODY = "in the body"
    AFTER_BODY = "body ended, not recorded"
    IN_TRANSACTION = "in a transaction's body"
    REMEMBERED = "failed attempt or beginning recorded"
    ACKNOWLEDGED = "checkpoint acknowledged"
    RETURNED = "workflow returned, not finished"
    COMPLETED = "finish acknowledged"


@dataclass(frozen=True)
class World:
    """What all runs of a process have in common. `deadly`: the chance of being killed at each
    place; `slow`: of a body to take long."""

    log: Log
    store: PostgresStore
    directory: Path
    schema: str
    version: int
    chance: random.Random
    deadly: float
    slow: float

    def at(self, place: Place, run: str, epoch: int) -> None:
        """Be killed here, if it is to be."""
        if self.chance.random() < self.deadly:
            self.log.append("kill", run, epoch, more=place.value)
            os.kill(os.getpid(), signal.SIGKILL)


class Scene:
    """The deps of one execution of a blocking run."""

    def __init__(self, world: World, run: str) -> None:
        self.world = world
        self.run = run
        self.number = int(run.rpartition("-")[2])
        self.version = world.version
        self.epoch = 0

    # -- what it is told ------------------------------------------------------------------------------------------------

    def listen(self, event: RunEvent) -> None:
        """Write down what the store has acknowledged."""
        match event:
            case RunBegan(epoch=epoch):
                self.epoch = epoch
                self._says("began")
                self._at(Place.BEGAN)
            case LeaseTaken(owner=owner):
                self._says("taken", more=owner)
            case StepRecorded(key=key, record=record):
                self._says("ack" if record.ok else "failed", key, digest(record.json))
                self._at(Place.ACKNOWLEDGED)
            case StepReplayed(key=key, record=record) if record.ok:
                self._says("replay", key, digest(record.json))
            case StepRemembered():
                self._at(Place.REMEMBERED)
            case RunCompleted():
                self._says("completed")
                self._at(Place.COMPLETED)

    # -- bodies ---------------------------------------------------------------------------------------------------------

    def work(self, effect: str, value: Any) -> Any:
        """An ordinary body."""
        self.begins(effect)
        time.sleep(self.pause())
        self.ends()
        return value

    def flaky(self, effect: str, value: Any) -> Any:
        """A body that fails every other time."""
        self.work(effect, None)
        return self.flipped(value)

    def broken(self, effect: str, value: Any) -> Any:
        """A body that fails until the world is repaired."""
        self.work(effect, None)
        return self.repaired(value)

    def measure(self, item: str) -> int:
        """An item's body."""
        return int(self.work(f"measure[{item}]", len(item)))

    def big(self, effect: str, n: int) -> str:
        """A body with a great deal to say."""
        self.work(effect, None)
        return f"{n} " * (BIG // 2)

    def copy(self, effect: str, key: str, number: int) -> int:
        """The bank's copy of a transaction."""
        self.work(effect, None)
        bank.copy(self.world.directory / "bank", self.run, key, number)
        return 0

    def tell(self, effect: str, other: str, value: Any) -> str:
        """A body that sends a signal to another run."""
        self.work(effect, None)
        durable.signal(self.world.store, other, "go", value, create_later=True)
        return other

    def halt(self, effect: str, other: str) -> str:
        """A body that cancels another run."""
        self.work(effect, None)
        durable.cancel(self.world.store, other)
        return other

    def together(self, *values: Any) -> tuple[Any, ...]:
        """What several steps gave."""
        return values

    def transfer(self, connection: psycopg.Connection[Any], i: int, cents: int) -> int:
        """A transaction's body: a line in the ledger, and money that moves; the transaction's number is the value."""
        schema, key = sql.Identifier(self.world.schema), f"transfer-{i}"
        self.begins(key)
        row = connection.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()
        move = sql.SQL("UPDATE {}.accounts SET cents = cents + %s WHERE name = %s").format(schema)
        payer, payee = f"{self.number % 3} a", f"{self.number % 3} b"
        connection.execute(move, (-cents, payer))
        self._at(Place.IN_TRANSACTION)
        time.sleep(self.pause())
        connection.execute(move, (cents, payee))
        ledger = sql.SQL("INSERT INTO {}.ledger VALUES (%s, %s, %s, %s)").format(schema)
        number = int(row[0]) if row else 0
        connection.execute(ledger, (self.run, key, number, cents))
        self.ends()
        return number

    # -- their parts ----------------------------------------------------------------------------------------------------

    def begins(self, effect: str) -> None:
        """The body has begun: this line is its effect."""
        self._at(Place.BEFORE_BODY)
        self._says("body", effect)
        self._at(Place.IN_BODY)

    def ends(self) -> None:
        """The body is about to return."""
        self._at(Place.AFTER_BODY)

    def returned(self) -> None:
        """The workflow is about to return."""
        self._at(Place.RETURNED)

    def pause(self) -> float:
        """How long a body takes, in seconds."""
        chance = self.world.chance
        return chance.uniform(*LONG_BODY) if chance.random() < self.world.slow else chance.uniform(0, LONGEST_BODY)

    def flipped(self, value: Any) -> Any:
        if self.world.chance.random() < 0.5:
            raise ConnectionError("the line is busy")
        return value

    def repaired(self, value: Any) -> Any:
        mark = self.world.directory / f"repaired {self.run}"
        if mark.exists():
            return value
        mark.touch()
        raise OutOfOrder(self.run)

    def _says(self, word: str, key: str = "", more: str = "") -> None:
        self.world.log.append(word, self.run, self.epoch, key, more)

    def _at(self, place: Place) -> None:
        self.world.at(place, self.run, self.epoch)


class AsyncScene(Scene):
    """The deps of one execution of an async run: the same bodies, awaited. A transaction's is blocking in both colours."""

    async def work(self, effect: str, value: Any) -> Any:
        self.begins(effect)
        await asyncio.sleep(self.pause())
        self.ends()
        return value

    async def flaky(self, effect: str, value: Any) -> Any:
        await self.work(effect, None)
        return self.flipped(value)

    async def broken(self, effect: str, value: Any) -> Any:
        await self.work(effect, None)
        return self.repaired(value)

    async def measure(self, item: str) -> int:  # type: ignore[override]
        return int(await self.work(f"measure[{item}]", len(item)))

    async def big(self, effect: str, n: int) -> str:  # type: ignore[override]
        await self.work(effect, None)
        return f"{n} " * (BIG // 2)

    async def copy(self, effect: str, key: str, number: int) -> int:  # type: ignore[override]
        await self.work(effect, None)
        bank.copy(self.world.directory / "bank", self.run, key, number)
        return 0

    async def tell(self, effect: str, other: str, value: Any) -> str:  # type: ignore[override]
        await self.work(effect, None)
        await durable.aio.signal(self.world.store, other, "go", value, create_later=True)
        return other

    async def halt(self, effect: str, other: str) -> str:  # type: ignore[override]
        await self.work(effect, None)
        await durable.aio.cancel(self.world.store, other)
        return other

    async def together(self, *values: Awaitable[Any]) -> tuple[Any, ...]:  # type: ignore[override]
        return tuple(await asyncio.gather(*values))


def digest(json: bytes) -> str:
    """What tells one value from another."""
    return f"{len(json)}:{zlib.crc32(json):08x}"
