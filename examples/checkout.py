"""A checkout that survives kill -9.

python examples/checkout.py          kills it in the middle, and starts it again: this is `make demo`
python examples/checkout.py once     runs it to its end
"""

from __future__ import annotations

from typing import Any

from demo import narrate, play, setting
from shop import Shop

import durable
from durable.stores import embedded


def checkout(step: durable.Step, shop: Shop) -> dict[str, Any]:
    """Five steps, in plain Python. Each is recorded in PostgreSQL as soon as it has returned."""
    user = step("fetch user", shop.fetch_user, "u-1")
    reservation = step("reserve stock", shop.reserve_stock, ["mug", "tea"])
    payment = step("charge card", shop.charge_card, user["card"], 42)
    order = step("create order", shop.create_order, user["id"], reservation, payment)
    step("send receipt", shop.send_receipt, user["email"], order)
    return order


def once() -> None:
    """Run the checkout, or go on with it where it stopped: it is the same call."""
    run_id, log = setting()
    with embedded(".durable") as store:
        durable.run(Shop(log), checkout, id=run_id, store=store, on_event=narrate)


if __name__ == "__main__":
    play(__file__, once)
