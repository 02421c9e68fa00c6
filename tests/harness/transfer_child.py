"""Transfers that `test_transactions_killed` runs in processes of their own, and kills or stops."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final

import psycopg

import durable
from durable.events import RunEvent, StepBegan, StepRecorded
from durable.stores import postgres

NUMBERS: Final = (1, 2, 3)
END: Final = "all is transferred"


@dataclass(frozen=True)
class Life:
    """What one process is to do; `dies_at` and `waits_at` are a place and the number of a transfer."""

    url: str
    schema: str
    asynchronous: bool
    dies_at: tuple[str, int] | None = None
    waits_at: tuple[str, int] | None = None
    lease: float = 30.0


class Desk:
    """The deps."""

    def __init__(self, life: Life, meet: Callable[[], object]) -> None:
        self._life = life
        self._meet = meet

    def at(self, place: str, number: int) -> None:
        """Be killed here, or meet the test, if this is the place."""
        if self._life.dies_at == (place, number):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._life.waits_at == (place, number):
            self._meet()

    def transfer(self, connection: psycopg.Connection[Any], number: int) -> int:
        """The body: from one account to the other, with a line in the ledger for each side."""
        table = self._life.schema
        self.at("before the body", number)
        connection.execute(f"UPDATE {table}.accounts SET balance = balance - %s WHERE name = 'from'", (number,))
        connection.execute(f"INSERT INTO {table}.ledger VALUES (%s, 'from')", (f"transfer-{number}-out",))
        self.at("half", number)
        connection.execute(f"UPDATE {table}.accounts SET balance = balance + %s WHERE name = 'to'", (number,))
        connection.execute(f"INSERT INTO {table}.ledger VALUES (%s, 'to')", (f"transfer-{number}-in",))
        self.at("after the body", number)
        return number

    def listen(self, event: RunEvent) -> None:
        """Look where the run is."""
        match event:
            case StepBegan(key=key):
                self.at("before begin", int(key[-1]))
            case StepRecorded(key=key):
                self.at("acknowledged", int(key[-1]))


def transfers(step: durable.Step, desk: Desk) -> str:
    for number in NUMBERS:
        step.transaction("transfer", desk.transfer, number, key=f"record-{number}")
    return END


async def transfers_async(step: durable.AsyncStep, desk: Desk) -> str:
    for number in NUMBERS:
        await step.transaction("transfer", desk.transfer, number, key=f"record-{number}")
    return END


def live(pipe: Connection, life: Life) -> None:
    """One life of the run; says "ready" before it, what came of it after it, and "waiting" where it waits."""

    def meet() -> None:
        pipe.send("waiting")
        pipe.recv()

    desk = Desk(life, meet)
    with postgres(life.url, schema=life.schema) as store:
        pipe.send("ready")
        pipe.recv()
        try:
            if life.asynchronous:
                options: dict[str, Any] = {
                    "id": "transfers",
                    "store": store,
                    "on_event": desk.listen,
                    "lease": life.lease,
                }
                answer: Any = asyncio.run(durable.run(desk, transfers_async, **options))
            else:
                answer = durable.run(
                    desk, transfers, id="transfers", store=store, on_event=desk.listen, lease=life.lease
                )
        except BaseException as problem:
            answer = (type(problem).__name__, str(problem))
        pipe.send(answer)
