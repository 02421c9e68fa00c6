"""Runs of every kind, real ones, for the pages to show; and a way to ask for pages without a browser."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Any

import httpx
import tenacity

import durable
from durable.web import app

FORM = "application/x-www-form-urlencoded"


class OutOfStock(Exception):
    pass


@durable.workflow(name="checkout")
def checkout(step: durable.Step, _: None) -> dict[str, Any]:
    step("fetch cart", lambda: {"lines": [{"sku": "tea-04", "n": 2}], "card": "4111 1111 1111 1111", "euros": 42.5})
    step("reserve stock", lambda: True)
    step.map("quote", lambda firm: {"firm": firm, "euros": len(firm)}, ["dhl", "ups", "gls"])
    step("charge", lambda: {"payment": "p-31c9", "token": "tok-secret-7", "captured": True})
    return {"order": "o-7", "parcel": None}


@durable.workflow(name="shipping")
def shipping(step: durable.Step, _: None) -> None:
    step("weigh", lambda: 3.25)

    def book() -> None:
        raise OutOfStock("no courier for parcel 17")

    step(
        "book courier",
        book,
        retry=tenacity.Retrying(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(0.05), reraise=True),
    )


def play(store: Any) -> None:
    """A completed run, a failed one, an interrupted one, a queued one and a cancelled one."""
    durable.run(None, checkout, id="checkout-1", store=store)
    with contextlib.suppress(OutOfStock):
        durable.run(None, shipping, id="shipping-1", store=store)
    with contextlib.suppress(KeyboardInterrupt):
        durable.run(None, broken_off, id="import-1", store=store)
    durable.start(checkout, id="checkout-2", store=store, queue="orders")
    durable.start(checkout, id="checkout-3", store=store, queue="orders")
    durable.cancel(store, "checkout-3")


@durable.workflow(name="import")
def broken_off(step: durable.Step, _: None) -> None:
    step("read", lambda: [1, 2, 3])

    def stop() -> None:
        raise KeyboardInterrupt

    step("write", stop)


class Visitor:
    """Asks for pages, keeps cookies, and sends forms as a browser does."""

    def __init__(self, asgi: Any, *, base: str = "http://127.0.0.1:8787", root: str = "") -> None:
        self.asgi = asgi
        self.base = base
        self.root = root
        self.cookies = httpx.Cookies()

    def ask(self, method: str, path: str, **told: Any) -> httpx.Response:
        async def asked() -> httpx.Response:
            transport = httpx.ASGITransport(self.asgi, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url=self.base, cookies=self.cookies) as client:
                answer = await client.request(method, self.root + path, **told)
                self.cookies = client.cookies
                return answer

        return asyncio.run(asked())

    def get(self, path: str, **told: Any) -> httpx.Response:
        return self.ask("GET", path, **told)

    def token(self, path: str = "/runs") -> str:
        """What a form of this page carries."""
        return str(re.findall(r'name="form_token" value="([0-9a-f]+)"', self.get(path).text)[0])

    def post(
        self, path: str, fields: dict[str, Any] | None = None, *, token: str | None = None, **told: Any
    ) -> httpx.Response:
        given = {"form_token": self.token() if token is None else token} | (fields or {})
        return self.ask("POST", path, data=given, **told)


def visit(store: Any, may: Any = "write", **options: Any) -> Visitor:
    """A visitor of a new page on this store."""
    auth = options.pop("auth", lambda _: may)
    return Visitor(app(store, auth=auth, **options))
