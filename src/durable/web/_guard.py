"""What stands before each request, and adds the headers of each answer: Host, body limit, cross-site writes, and who may."""

from __future__ import annotations

import contextvars
import inspect
import logging
import re
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from durable.web._reads import Reads
from durable.web._setup import May, Setup

LARGEST_BODY: Final = 262_144  # bytes
_DIGITS: Final = 9  # of a body's length: more are no number to be read
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    b"content-security-policy": POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    # Not "no-referrer": with that, browsers send "Origin: null" along with forms.
    b"referrer-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
}
_STATIC: Final = b"public, max-age=86400"  # what is no secret, by an address that names its content
_PORT: Final = re.compile(r":\d{1,5}")
_MAY_NOT: Final = "You may not see this page. Where durable web serves it, open the address that it has printed."
_TOO_LARGE: Final = f"A request has at most {LARGEST_BODY:,} bytes."
_OPEN: Final = ("/static/", "/healthz")  # need no permission

_log: Final = logging.getLogger("durable")


class Guard:
    """The application, guarded."""

    def __init__(self, app: ASGIApp, setup: Setup, reads: Reads) -> None:
        self._app = app
        self._setup = setup
        self._reads = reads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._guarded(scope, receive, with_headers(scope, send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # there are none here
        else:
            await self._app(scope, receive, send)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        refused = self._refusal(request)
        if refused is None and not path_of(scope).startswith(_OPEN):
            may = await self._may(request)
            if may is None:
                refused = PlainTextResponse(_MAY_NOT, 403)
            elif may == "read" and request.method not in ("GET", "HEAD"):
                refused = PlainTextResponse("You may look, and change nothing.", 403)
            scope.setdefault("state", {})["durable_may"] = may
        if refused is not None:
            await refused(scope, receive, send)
            return
        await self._app(scope, _limited(receive), send)

    def _refusal(self, request: Request) -> PlainTextResponse | None:
        host = request.headers.get("host", "")
        if len(request.headers.getlist("host")) != 1 or name_of(host) not in self._setup.hosts:
            return PlainTextResponse(
                "This page is not served under that name: hosts= of durable.web.app, or --allow-host, says its names.",
                421,
            )
        if request.method in ("GET", "HEAD"):
            return None
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > _DIGITS or int(length) > LARGEST_BODY:
            return PlainTextResponse(_TOO_LARGE, 413)
        if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return PlainTextResponse("This request comes from another site.", 403)
        origin = request.headers.get("origin")
        if origin is not None and not _is_same(origin, host):
            return PlainTextResponse("This request comes from another origin.", 403)
        return None

    async def _may(self, request: Request) -> May:
        """What the caller may do; nothing where that cannot be told."""
        try:
            auth: Any = self._setup.auth
            if inspect.iscoroutinefunction(auth):
                may: Any = await auth(request)
            else:
                context = contextvars.copy_context()
                found = await self._reads.ask(lambda: context.run(auth, request))
                may = await found if inspect.isawaitable(found) else found
        except Exception:
            _log.exception("durable.web: auth has failed, so nothing is shown")
            return None
        if may == "write":
            return "write"
        if may == "read":
            return "read"
        if may is not None:
            _log.error("durable.web: auth has returned %s instead of 'read', 'write' or None", type(may).__name__)
        return None


def with_headers(scope: Scope, send: Send) -> Send:
    """Sends what `send` does, with our headers in place of any other of their names."""
    is_static = path_of(scope).startswith("/static/")

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            ours = HEADERS | ({b"cache-control": _STATIC} if is_static and message["status"] in (200, 304) else {})
            message["headers"] = [
                *((name, value) for name, value in message.get("headers", ()) if name.lower() not in ours),
                *ours.items(),
            ]
        await send(message)

    return sent


def path_of(scope: Scope) -> str:
    """The path below the place where the page is mounted."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path.removeprefix(root) if root and (path == root or path.startswith(root + "/")) else path


def name_of(host: str) -> str:
    """The name in a Host header, without its port; empty where it is no such header."""
    name, port = host.lower(), ""
    if name.startswith("["):
        name, bracket, port = name.partition("]")
        name += bracket
    elif ":" in name:
        name, colon, rest = name.partition(":")
        port = colon + rest
    return name if not port or _PORT.fullmatch(port) else ""


def _is_same(origin: str, host: str) -> bool:
    """Whether an Origin names this host. Its scheme is not compared: behind a proxy ours is another."""
    try:
        told = urlsplit(origin)
    except ValueError:
        return False
    return told.scheme in ("http", "https") and told.netloc.lower() == host.lower()


def _limited(receive: Receive) -> Receive:
    left = LARGEST_BODY

    async def received() -> Message:
        nonlocal left
        message = await receive()
        if message["type"] == "http.request":
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, _TOO_LARGE)  # the inner application answers
        return message

    return received
