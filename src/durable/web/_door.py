"""The door of `durable web`: a token in the printed address opens it, and a cookie keeps it open."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import deque
from typing import Final
from urllib.parse import parse_qsl, urlencode

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from durable.web._forms import set_cookie
from durable.web._guard import name_of, with_headers
from durable.web._setup import May

FIELD: Final = "token"
MOST: Final = 10  # wrong tokens in a minute, after which no token is looked at
_MINUTE: Final = 60.0


class Door:
    """Lets in who has the token. `user` is who that is, for the audit line."""

    def __init__(self, token: str, *, user: str) -> None:
        self._token = token.encode()
        self._user = user
        self._cookie = f"durable_door_{self._sign('name')[:8]}"  # cookies know no ports
        self._wrong: deque[float] = deque(maxlen=MOST)

    def auth(self, request: Request) -> May:
        """What the page asks: whether there is the cookie."""
        given = request.cookies.get(self._cookie, "")
        if not given.isascii() or not hmac.compare_digest(given, self._sign("cookie")):
            return None
        request.state.durable_user = self._user
        return "write"

    def before(self, page: ASGIApp, hosts: frozenset[str]) -> ASGIApp:
        """The page behind this door."""

        async def entered(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["method"] == "GET":
                request = Request(scope, receive)
                if FIELD in request.query_params and name_of(request.headers.get("host", "")) in hosts:
                    await self._open(request)(scope, receive, with_headers(scope, send))
                    return
            await page(scope, receive, send)

        return entered

    def _open(self, request: Request) -> Response:
        now = time.monotonic()
        if len(self._wrong) == MOST and now - self._wrong[0] < _MINUTE:
            told = {"retry-after": str(int(_MINUTE - (now - self._wrong[0])) + 1)}
            return PlainTextResponse("Too many wrong tokens: wait a minute.", 429, headers=told)
        given = request.query_params.getlist(FIELD)[-1]
        if not hmac.compare_digest(given.encode("utf-8", "surrogatepass"), self._token):
            self._wrong.append(now)
            return PlainTextResponse("This is not the token: durable web makes another at each start.", 403)
        left = [(name, value) for name, value in parse_qsl(request.url.query, keep_blank_values=True) if name != FIELD]
        path = "/" + request.url.path.lstrip("/\\")  # never another site's, as //evil.example would be
        answer = RedirectResponse(path + ("?" + urlencode(left) if left else ""), 303)
        set_cookie(request, answer, self._cookie, self._sign("cookie"))
        return answer

    def _sign(self, what: str) -> str:
        """What follows from the token, and says nothing of it."""
        return hmac.new(self._token, f"durable web {what}".encode(), hashlib.sha256).hexdigest()
