"""The checkout of `durable.demo`, async.

python examples/checkout_async.py          kills it in the middle, and starts it again
python examples/checkout_async.py once     runs it to its end
"""

from __future__ import annotations

import asyncio
from typing import Any

import durable
from durable.demo import DIRECTORY, Shop, narrate, play, read_setting
from durable.stores import embedded


class AsyncShop:
    """The same shop for async workflows. Each deed is done in a thread: the event loop is free."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop

    async def fetch_user(self, user_id: str) -> dict[str, Any]:
        """See `Shop.fetch_user`."""
        return await asyncio.to_thread(self._shop.fetch_user, user_id)

    async def reserve_stock(self, items: list[str]) -> dict[str, Any]:
        """See `Shop.reserve_stock`."""
        return await asyncio.to_thread(self._shop.reserve_stock, items)

    async def charge_card(self, card: str, euros: int) -> dict[str, Any]:
        """See `Shop.charge_card`."""
        return await asyncio.to_thread(self._shop.charge_card, card, euros)

    async def create_order(
        self, user_id: str, reservation: dict[str, Any], payment: dict[str, Any]
    ) -> dict[str, Any]:
        """See `Shop.create_order`."""
        return await asyncio.to_thread(self._shop.create_order, user_id, reservation, payment)

    async def send_receipt(self, email: str, order: dict[str, Any]) -> str:
        """See `Shop.send_receipt`."""
        return await asyncio.to_thread(self._shop.send_receipt, email, order)


async def checkout(step: durable.AsyncStep, shop: AsyncShop) -> dict[str, Any]:
    """The same five steps; two of them at the same time."""
    user = await step("fetch user", shop.fetch_user, "u-1")
    reservation, payment = await asyncio.gather(
        step("reserve stock", shop.reserve_stock, ["mug", "tea"]),
        step("charge card", shop.charge_card, user["card"], 42),
    )
    order: dict[str, Any] = await step(
        "create order", shop.create_order, user["id"], reservation, payment
    )
    await step("send receipt", shop.send_receipt, user["email"], order)
    return order


def once() -> None:
    """Run the checkout, or go on with it where it stopped: it is the same call."""
    given = read_setting()
    shop = AsyncShop(Shop(given.log, given.stuck))
    with embedded(DIRECTORY) as store:
        asyncio.run(durable.run(shop, checkout, id=given.run_id, store=store, on_event=narrate))


if __name__ == "__main__":
    play([__file__], once)
