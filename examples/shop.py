"""A shop whose every deed leaves a line in a log: the side effects that the checkout examples can be judged by."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Shop:
    """What a checkout needs from the world. `log` lies outside the database, and is only ever appended to."""

    log: Path
    seconds: float = 0.15

    def fetch_user(self, user_id: str) -> dict[str, Any]:
        """Look a customer up."""
        self._did("fetch user")
        return {"id": user_id, "card": "card-7", "email": "customer@example.com"}

    def reserve_stock(self, items: list[str]) -> dict[str, Any]:
        """Put the goods aside."""
        self._did("reserve stock")
        return {"reservation": "r-1", "items": items}

    def charge_card(self, card: str, euros: int) -> dict[str, Any]:
        """Take the money: what nobody wants to happen twice."""
        self._did("charge card")
        return {"payment": "p-1", "card": card, "euros": euros}

    def create_order(self, user_id: str, reservation: dict[str, Any], payment: dict[str, Any]) -> dict[str, Any]:
        """Write the order."""
        self._did("create order")
        return {"order": "o-1", "user": user_id, "items": reservation["items"], "payment": payment["payment"]}

    def send_receipt(self, email: str, order: dict[str, Any]) -> str:
        """Tell the customer."""
        self._did("send receipt")
        return f"receipt for {order['order']} sent to {email}"

    def _did(self, what: str) -> None:
        file = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{what}\n".encode())
        os.close(file)
        time.sleep(self.seconds)  # the world is slow; this is when the demo strikes


class AsyncShop:
    """The same shop for async workflows: each deed is done in a thread, so that the event loop is free meanwhile."""

    def __init__(self, log: Path) -> None:
        self._shop = Shop(log)

    async def fetch_user(self, user_id: str) -> dict[str, Any]:
        """See `Shop.fetch_user`."""
        return await asyncio.to_thread(self._shop.fetch_user, user_id)

    async def reserve_stock(self, items: list[str]) -> dict[str, Any]:
        """See `Shop.reserve_stock`."""
        return await asyncio.to_thread(self._shop.reserve_stock, items)

    async def charge_card(self, card: str, euros: int) -> dict[str, Any]:
        """See `Shop.charge_card`."""
        return await asyncio.to_thread(self._shop.charge_card, card, euros)

    async def create_order(self, user_id: str, reservation: dict[str, Any], payment: dict[str, Any]) -> dict[str, Any]:
        """See `Shop.create_order`."""
        return await asyncio.to_thread(self._shop.create_order, user_id, reservation, payment)

    async def send_receipt(self, email: str, order: dict[str, Any]) -> str:
        """See `Shop.send_receipt`."""
        return await asyncio.to_thread(self._shop.send_receipt, email, order)
