"""A web service over durable runs: one endpoint starts an order, one tells how it stands, one approves it.

pip install 'durable-postgres[embedded]' fastapi uvicorn
uvicorn --app-dir examples api:app

curl -X PUT  localhost:8000/orders/7 -H 'content-type: application/json' -d '{"card": "card-7", "euros": 42}'
curl -X POST localhost:8000/orders/7/approval -H 'content-type: application/json' -d '{"by": "ada"}'
curl         localhost:8000/orders/7

Kill it and start it again at any moment: each process looks for interrupted orders, and goes on with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from fastapi import FastAPI, HTTPException
from processes import open_store
from pydantic import BaseModel

import durable
from durable.events import RunBegan, RunEvent
from durable.stores import PostgresStore

log = logging.getLogger("orders")


class Order(BaseModel):
    """What is ordered."""

    card: str
    euros: int


class Approval(BaseModel):
    """Who says yes."""

    by: str


class Bank:
    """What an order needs from the world."""

    async def reserve(self, euros: int) -> dict[str, int]:
        """Put the money aside."""
        return {"reserved": euros}

    async def charge(self, card: str, euros: int) -> dict[str, Any]:
        """Take it."""
        return {"payment": "p-1", "card": card, "euros": euros}


async def place_order(step: durable.AsyncStep, bank: Bank, order: Order) -> dict[str, Any]:
    """The workflow."""
    await step("reserve", bank.reserve, order.euros)
    approval = await step.wait_for("approved")
    payment = await step("charge", bank.charge, order.card, order.euros)
    return {"approved by": approval["by"], **payment}


class Orders:
    """The runs of this process, and those that it finds without an owner."""

    def __init__(self, bank: Bank, store: PostgresStore, look_every: float) -> None:
        self.store = store
        self._bank = bank
        self._look_every = look_every
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self, run_id: str, order: Order) -> None:
        """Return as soon as the order is in the database: from then on it is not forgotten. It goes on by itself."""
        begun = asyncio.Event()

        def listen(event: RunEvent) -> None:
            if isinstance(event, RunBegan):
                begun.set()

        run = durable.run(self._bank, place_order, id=run_id, store=self.store, input=order, on_event=listen)
        task = self._keep(run)
        has_begun = asyncio.ensure_future(begun.wait())
        await asyncio.wait([task, has_begun], return_when=asyncio.FIRST_COMPLETED)
        has_begun.cancel()
        if not begun.is_set():  # it is another one, somebody is executing it, or it was done before
            task.result()

    async def recover(self) -> None:
        """Go on with what somebody has left: a process that was killed, or shut down."""
        while True:
            try:
                for line in await self.store.aio.list(prefix="order-", status="interrupted"):
                    self._keep(durable.run(self._bank, place_order, id=line.id, store=self.store))
            except durable.StoreError:
                log.exception("the database cannot be asked for interrupted orders; trying again")
            await asyncio.sleep(self._look_every)

    async def stop(self) -> None:
        """Leave everything as it is: another process, or the next one, goes on with it."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _keep(self, run: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(run)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        """A run that fails is recorded as failed, and `GET` says so; this is for whoever reads the log."""
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            log.warning("an order stopped here: %r", problem)


def create_app(open_it: Callable[[], PostgresStore] = open_store, look_every: float = 10.0) -> FastAPI:
    """The service."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with await asyncio.to_thread(open_it) as store:
            app.state.orders = orders = Orders(Bank(), store, look_every)
            recovery = asyncio.create_task(orders.recover())
            yield
            recovery.cancel()
            await orders.stop()

    app = FastAPI(lifespan=lifespan)

    @app.put("/orders/{number}", status_code=202)
    async def start(number: int, order: Order) -> dict[str, str]:
        orders: Orders = app.state.orders
        with contextlib.suppress(durable.ConcurrentExecution):  # somebody is executing it already: that will do
            try:
                await orders.start(f"order-{number}", order)
            except durable.RunMismatch as mismatch:
                raise HTTPException(409, "this order is there, and is another one") from mismatch
        return {"order": f"/orders/{number}"}

    @app.post("/orders/{number}/approval", status_code=202)
    async def approve(number: int, approval: Approval) -> None:
        orders: Orders = app.state.orders
        await durable.aio.signal(orders.store, f"order-{number}", "approved", approval.model_dump())

    @app.get("/orders/{number}")
    async def report(number: int) -> dict[str, Any]:
        orders: Orders = app.state.orders
        match status := await orders.store.aio.status(f"order-{number}"):
            case None:
                raise HTTPException(404, "there is no such order")
            case "completed":
                return {
                    "status": status,
                    "result": await asyncio.to_thread(durable.result, orders.store, f"order-{number}"),
                }
            case _:
                return {"status": status}

    return app


app = create_app()
