"""The same checkout, async.

python examples/checkout_async.py          kills it in the middle, and starts it again
python examples/checkout_async.py once     runs it to its end
"""

from __future__ import annotations

import asyncio
from typing import Any

from demo import narrate, play, setting
from shop import AsyncShop

import durable
from durable.stores import embedded


async def checkout(step: durable.AsyncStep, shop: AsyncShop) -> dict[str, Any]:
    """The same five steps; two of them at the same time."""
    user = await step("fetch user", shop.fetch_user, "u-1")
    reservation, payment = await asyncio.gather(
        step("reserve stock", shop.reserve_stock, ["mug", "tea"]),
        step("charge card", shop.charge_card, user["card"], 42),
    )
    order: dict[str, Any] = await step("create order", shop.create_order, user["id"], reservation, payment)
    await step("send receipt", shop.send_receipt, user["email"], order)
    return order


def once() -> None:
    """Run the checkout, or go on with it where it stopped: it is the same call."""
    run_id, log = setting()
    with embedded(".durable") as store:
        asyncio.run(durable.run(AsyncShop(log), checkout, id=run_id, store=store, on_event=narrate))


if __name__ == "__main__":
    play(__file__, once)
