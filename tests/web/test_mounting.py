"""The page in applications of other people, as the docs show it."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.routing import Mount

from durable.web import app
from harness.pages import Visitor


def _in_fastapi(page: Any) -> Any:
    application = FastAPI()
    application.mount("/durable", page)
    return application


def _in_starlette(page: Any) -> Any:
    async def passed(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    return Starlette(routes=[Mount("/durable", page)], middleware=[Middleware(BaseHTTPMiddleware, dispatch=passed)])


def _in_django(page: Any) -> Any:
    django = pytest.importorskip("django", reason="django is not installed")
    from django.conf import settings  # noqa: PLC0415
    from django.core.asgi import get_asgi_application  # noqa: PLC0415

    if not settings.configured:
        settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="s" * 50)
        django.setup()
    site = get_asgi_application()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/durable/"):
            await page({**scope, "root_path": scope.get("root_path", "") + "/durable"}, receive, send)
        else:
            await site(scope, receive, send)

    return application


urlpatterns: list[Any] = []


@pytest.mark.parametrize("where", [_in_fastapi, _in_starlette, _in_django])
def test_it_is_mounted_in(shop: Any, where: Any) -> None:
    visitor = Visitor(where(app(shop, auth=lambda _: "write")), root="/durable")
    for path in ("/", "/runs", "/run?id=shipping-1", "/queues", "/workers", "/healthz", "/static/durable.css"):
        answer = visitor.get(path)
        assert answer.status_code == 200, path
        assert answer.headers["content-security-policy"]
    assert 'href="/durable/run?id=shipping-1"' in visitor.get("/runs").text
    assert visitor.post("/run/cancel?id=checkout-2").headers["location"] == "/durable/run?id=checkout-2&done=cancel"
    assert visitor.ask("GET", "/nothing").status_code == 404
