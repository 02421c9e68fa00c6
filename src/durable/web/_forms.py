"""Forms that only this page can have sent: a token in each, bound to a signed cookie of our own and to who is asking."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

FIELD: Final = "form_token"
_BYTES: Final = 18


class Forms:
    """Tokens, signed with a secret of this process or of several."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        # Cookies know no ports: two pages on one machine must not take each other's.
        self.cookie = f"durable_form_{self._sign('name')[:8]}"

    def token(self, request: Request) -> tuple[str, str | None]:
        """What a form carries; and the cookie that is to be set, None where the browser has one."""
        nonce = self._nonce(request)
        cookie = None
        if nonce is None:
            nonce = secrets.token_urlsafe(_BYTES)
            cookie = f"{nonce}.{self._sign('cookie', nonce)}"
        return self._sign("form", nonce, who(request)), cookie

    def is_ours(self, request: Request, given: object) -> bool:
        """Whether a form's token fits the request's cookie, and who is asking."""
        nonce = self._nonce(request)
        if nonce is None or not isinstance(given, str) or not given.isascii():
            return False
        return hmac.compare_digest(given, self._sign("form", nonce, who(request)))

    def _nonce(self, request: Request) -> str | None:
        nonce, dot, signature = request.cookies.get(self.cookie, "").partition(".")
        if not dot or not signature.isascii():
            return None
        return nonce if hmac.compare_digest(signature, self._sign("cookie", nonce)) else None

    def _sign(self, *parts: str) -> str:
        text = "\0".join(parts).encode("utf-8", "surrogatepass")
        return hmac.new(self._secret, text, hashlib.sha256).hexdigest()


def set_cookie(request: Request, response: Response, name: str, value: str) -> None:
    """A cookie that scripts cannot read, that no other site's request carries, and that goes with the browser."""
    response.set_cookie(
        name,
        value,
        path=str(request.scope.get("root_path", "")) or "/",
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )


def who(request: Request) -> str:
    """Who is asking, for the audit line: what `auth` has left in `request.state.durable_user`."""
    return str(getattr(request.state, "durable_user", "") or "")
