"""The checkout that `test_kill` runs in processes of its own, and kills.

Imported by the fork server before it forks, so that a child costs a fork and not an import.
"""

from __future__ import annotations

import asyncio
import enum
import os
import signal
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple

import durable
from durable import AsyncStep, Step
from durable.events import RunBegan, RunCompleted, RunEvent, StepRecorded, StepReplayed
from durable.stores import PostgresStore, postgres
from durable.stores._postgres.sql.loader import load_migrations, load_statements
from durable.stores._postgres.sql.names import Names

load_migrations(Names())  # read before the fork, and not by each child
load_statements(Names())
KEYS: Final = ("fetch-user", "reserve-stock", "charge-card", "create-order", "send-receipt")
END: Final = "the checkout is over"  # in the result and nowhere else: by it a proxy knows the finish
RESULT: Final = {
    "user": {"id": "123", "name": "Ada"},
    "order": {"user": "123", "items": {"tea": 2, "cup": 1}, "paid": 1250},
    "receipt": "Ada paid 1250",
    "said": END,
}


class Place(enum.Enum):
    """Where in its life a process can kill itself. The wire's boundaries are the proxy's to find."""

    BEFORE_BODY = "before the body"
    AFTER_BODY = "after the body"
    ACKNOWLEDGED = "acknowledged"
    RETURNED = "before the finish"
    COMPLETED = "after the finish"


class Death(NamedTuple):
    """Where a life ends by its own hand."""

    place: Place
    key: str = ""


@dataclass(frozen=True)
class Life:
    """What one process is to do.

    `log` is its effect log, `owners` the directory where it proves that it lives; `opened` says that it is to use its
    store before it begins, so that connections and the schema's check are behind it.
    """

    url: str
    schema: str
    run_id: str
    asynchronous: bool
    log: str
    owners: str
    death: Death | None
    opened: bool


class Log:
    """Lines that outlive whoever wrote them: each is one append to a file outside the database."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def append(self, word: str, of: object) -> None:
        """Write one line."""
        os.write(self._file, f"{word} {of}\n".encode())

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


class Shop:
    """The deps: each body leaves a line, which is its effect."""

    def __init__(self, log: Log, death: Death | None) -> None:
        self._log = log
        self._death = death

    def die_at(self, place: Place, key: str = "") -> None:
        """Be killed here, if this is the place."""
        if self._death == Death(place, key):
            os.kill(os.getpid(), signal.SIGKILL)

    def fetch_user(self, user_id: str) -> dict[str, str]:
        self._effect("fetch-user")
        return {"id": user_id, "name": "Ada"}

    def reserve_stock(self, items: Sequence[str]) -> dict[str, int]:
        self._effect("reserve-stock")
        return {item: items.count(item) for item in items}

    def charge_card(self, user: dict[str, str], cents: int) -> dict[str, Any]:
        self._effect("charge-card")
        return {"by": user["name"], "cents": cents}

    def create_order(self, user: dict[str, str], stock: dict[str, int], payment: dict[str, Any]) -> dict[str, Any]:
        self._effect("create-order")
        return {"user": user["id"], "items": stock, "paid": payment["cents"]}

    def send_receipt(self, user: dict[str, str], order: dict[str, Any]) -> str:
        self._effect("send-receipt")
        return f"{user['name']} paid {order['paid']}"

    def listen(self, event: RunEvent) -> None:
        """Log what the run was told by its store."""
        match event:
            case RunBegan(epoch=epoch):
                self._log.append("began", epoch)
            case StepRecorded(key=key):
                self._log.append("ack", key)
                self.die_at(Place.ACKNOWLEDGED, key)
            case StepReplayed(key=key):
                self._log.append("replay", key)
            case RunCompleted():
                self._log.append("completed", "")
                self.die_at(Place.COMPLETED)

    def _effect(self, key: str) -> None:
        self.die_at(Place.BEFORE_BODY, key)
        self._log.append("body", key)
        self.die_at(Place.AFTER_BODY, key)


ITEMS: Final = ["tea", "cup", "tea"]


def checkout(step: Step, shop: Shop) -> dict[str, Any]:
    user = step("fetch user", shop.fetch_user, "123", key="fetch-user")
    stock = step("reserve stock", shop.reserve_stock, ITEMS, key="reserve-stock")
    payment = step("charge", shop.charge_card, user, 1250, key="charge-card")
    order = step("create order", shop.create_order, user, stock, payment, key="create-order")
    receipt = step("send receipt", shop.send_receipt, user, order, key="send-receipt")
    shop.die_at(Place.RETURNED)
    return {"user": user, "order": order, "receipt": receipt, "said": END}


async def checkout_async(step: AsyncStep, shop: Shop) -> dict[str, Any]:
    user = await step("fetch user", shop.fetch_user, "123", key="fetch-user")
    stock = await step("reserve stock", shop.reserve_stock, ITEMS, key="reserve-stock")
    payment = await step("charge", shop.charge_card, user, 1250, key="charge-card")
    order = await step("create order", shop.create_order, user, stock, payment, key="create-order")
    receipt = await step("send receipt", shop.send_receipt, user, order, key="send-receipt")
    shop.die_at(Place.RETURNED)
    return {"user": user, "order": order, "receipt": receipt, "said": END}


def opening(step: Step, shop: None) -> None:
    """A run of nothing."""


def live(life: Life, parent: Connection) -> None:
    """One life of the run: in a process of its own, from the first connection to the result.

    Says "ready", waits for the word to go, and answers ("returned", result) or ("raised", traceback).
    """
    os.environ["XDG_RUNTIME_DIR"] = life.owners
    log = Log(life.log)
    shop = Shop(log, life.death)
    with postgres(life.url, schema=life.schema) as store:
        if life.opened:
            durable.run(None, opening, id=f"opening {os.getpid()} {time.time_ns()}", store=store)
        parent.send("ready")
        parent.recv()
        try:
            answer: tuple[str, Any] = ("returned", _executed(life, shop, store))
        except BaseException:
            answer = ("raised", traceback.format_exc())
        parent.send(answer)
    log.close()


def _executed(life: Life, shop: Shop, store: PostgresStore) -> dict[str, Any]:
    if life.asynchronous:
        return asyncio.run(durable.run(shop, checkout_async, id=life.run_id, store=store, on_event=shop.listen))
    return durable.run(shop, checkout, id=life.run_id, store=store, on_event=shop.listen)
