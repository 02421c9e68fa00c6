"""An order service: FastAPI starts the orders, and a worker in its lifespan executes them.

pip install 'durable-postgres[embedded]' fastapi uvicorn

python examples/order_service.py                       plays it all: an order, a kill -9, the approval
uvicorn --app-dir examples order_service:app           serves it

curl --json '{"number": 7, "card": "card-7", "euros": 42}' localhost:8000/orders
curl --json '{"by": "ada"}' localhost:8000/orders/7/approval
curl localhost:8000/orders/7
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from processes import Ledger, finish, kill, open_store, recorded_steps, start, wait_until
from pydantic import BaseModel

import durable
from durable.stores import PostgresStore


class Order(BaseModel):
    """What is ordered."""

    number: int
    card: str
    euros: int


class Approval(BaseModel):
    """Who says yes."""

    by: str


class Bank:
    """What an order needs from the world. It writes in its ledger what it did."""

    def __init__(self, ledger: Ledger | None) -> None:
        self._ledger = ledger

    async def reserve(self, euros: int) -> dict[str, int]:
        """Put the money aside."""
        self._note(f"reserve {euros} euros")
        return {"reserved": euros}

    async def charge(self, card: str, euros: int) -> dict[str, Any]:
        """Take it."""
        self._note(f"charge {euros} euros")
        return {"payment": "p-1", "card": card, "euros": euros}

    def _note(self, deed: str) -> None:
        if self._ledger is not None:
            self._ledger.write(deed)


@durable.workflow(name="place-order", queue="orders")
async def place_order(step: durable.AsyncStep, bank: Bank, order: Order) -> dict[str, Any]:
    """Reserve, wait for a person, charge."""
    await step("reserve", bank.reserve, order.euros)
    approval = await step.wait_for("approved")
    payment = await step("charge", bank.charge, order.card, order.euros)
    return {"approved by": approval["by"], **payment}


def create_app(
    open_it: Callable[[], PostgresStore] = open_store, ledger: Ledger | None = None
) -> FastAPI:
    """The service. Any process of it executes the orders, also those that another one has left."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with await asyncio.to_thread(open_it) as store:
            app.state.store = store
            async with durable.Worker(store, Bank(ledger), [place_order]):
                yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/orders", status_code=202)
    async def begin(request: Request, order: Order) -> dict[str, str]:
        """Answers when the order is in the database: from then on it is not forgotten."""
        try:
            await durable.aio.start(
                place_order, order, id=f"order-{order.number}", store=request.app.state.store
            )
        except durable.RunMismatch as mismatch:
            raise HTTPException(409, "this order is there, and is another one") from mismatch
        return {"order": f"/orders/{order.number}"}

    @app.post("/orders/{number}/approval", status_code=202)
    async def approve(request: Request, number: int, approval: Approval) -> None:
        await find(request, number).aio.signal("approved", approval.model_dump())

    @app.get("/orders/{number}")
    async def report(request: Request, number: int) -> dict[str, Any]:
        order = find(request, number).aio
        match status := await order.status():
            case None:
                raise HTTPException(404, "there is no such order")
            case "completed":
                return {"status": status, "result": await order.result()}
            case _:
                return {"status": status}

    return app


def find(request: Request, number: int) -> durable.RunHandle[dict[str, Any]]:
    """The handle of an order."""
    return durable.handle(request.app.state.store, f"order-{number}", place_order)


app = create_app()


def serve(port: int, ledger: Path) -> None:
    """One life of the service."""
    uvicorn.run(create_app(ledger=Ledger(ledger)), port=port, log_level="warning")


def play() -> None:
    """The whole story."""
    with (
        tempfile.TemporaryDirectory() as directory,
        open_store() as store,
        socket.create_server(("127.0.0.1", 0)) as free,
    ):
        ledger, port, number = Ledger(Path(directory) / "bank"), free.getsockname()[1], os.getpid()
        free.close()
        print(
            "An order is posted to a service, whose process gets kill -9; the next one goes on with it.\n",
            flush=True,
        )
        first = start(__file__, "serve", str(port), str(ledger.path))
        wait_until(lambda: is_there(port), "the service", first)
        order = {"number": number, "card": "card-7", "euros": 42}
        print("    POST /orders           ", ask(port, "/orders", order), flush=True)
        wait_until(
            lambda: "reserve" in recorded_steps(store, f"order-{number}"), "the first step", first
        )
        kill(first, "while the order waits for its approval")
        second = start(__file__, "serve", str(port), str(ledger.path))
        wait_until(lambda: is_there(port), "the service", second)
        ask(port, f"/orders/{number}/approval", {"by": "ada"})
        print("    POST /orders/…/approval", {"by": "ada"}, flush=True)
        wait_until(
            lambda: ask(port, f"/orders/{number}")["status"] == "completed", "the end", second
        )
        print("    GET  /orders/…         ", ask(port, f"/orders/{number}"), flush=True)
        second.send_signal(signal.SIGINT)  # as Ctrl-C: the worker drains, and the service ends
        finish(second)
        print("\n  The bank's own ledger, outside the database:")
        for deed, times in ledger.counts().items():
            print(f"    {deed:<20} {times} x")
        if ledger.deeds() != ["reserve 42 euros", "charge 42 euros"]:
            sys.exit("  That is not as promised!")
        print("\n  Nothing that was recorded was done again.")


def ask(port: int, path: str, body: object = None) -> Any:
    """The answer of the service: to a POST, if there is a body."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def is_there(port: int) -> bool:
    """Whether the service answers."""
    try:
        ask(port, "/openapi.json")
    except urllib.error.URLError:
        return False
    return True


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            play()
        case ["serve", port, ledger]:
            serve(int(port), Path(ledger))
        case _:
            sys.exit(__doc__)
