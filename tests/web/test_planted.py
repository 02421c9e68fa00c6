"""Each mistake that would open the page is planted, and the tests of security catch it."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any

import jinja2
import markupsafe
import pytest
from starlette.requests import Request

from durable.web import _answers, _guard, _setup, _texts
from web import test_hidden_values, test_security


def _plant(monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    match mistake:
        case "no Host check":
            monkeypatch.setattr(_guard, "name_of", lambda _: "localhost")
        case "no token":
            monkeypatch.setattr(hmac, "compare_digest", lambda *_: True)
        case "no Origin":
            monkeypatch.setattr(_guard, "_is_same", lambda *_: True)
        case "no Sec-Fetch-Site":
            get = Request.headers.fget  # type: ignore[attr-defined]
            monkeypatch.setattr(Request, "headers", property(lambda self: _Without(get(self))))
        case "no autoescape":
            make = jinja2.Environment
            monkeypatch.setattr(_answers, "Environment", lambda **told: make(**(told | {"autoescape": False})))
        case "unsafe-inline":
            policy = _guard.POLICY.replace("script-src 'self'", "script-src 'self' 'unsafe-inline'")
            monkeypatch.setitem(_guard.HEADERS, b"content-security-policy", policy.encode())
        case "no-referrer":
            monkeypatch.setitem(_guard.HEADERS, b"referrer-policy", b"no-referrer")
        case "no body limit":
            monkeypatch.setattr(_guard, "LARGEST_BODY", 10**9)
        case "auth that fails lets in":
            monkeypatch.setattr(_guard.Guard, "_may", _lets_in)
        case "no redaction":
            monkeypatch.setattr(_setup, "redact_by_name", lambda _, value: value)
        case "a wildcard host":
            monkeypatch.setattr(_setup, "_HOST", _Anything())
        case "JSON that is not escaped":
            monkeypatch.setattr(_texts, "escape", markupsafe.Markup)
        case _:
            raise AssertionError(mistake)


class _Without:
    def __init__(self, headers: Any) -> None:
        self._headers = headers

    def get(self, name: str, default: Any = None) -> Any:
        return default if name == "sec-fetch-site" else self._headers.get(name, default)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._headers, name)


class _Anything:
    def fullmatch(self, _: str) -> bool:
        return True


async def _lets_in(self: Any, request: Any) -> Any:
    try:
        return self._setup.auth(request)
    except Exception:
        return "write"


CAUGHT: dict[str, Callable[[Any], None]] = {
    "no Host check": lambda shop: test_security.test_a_rebound_name_is_refused(shop, "evil.example"),
    "no token": lambda shop: test_security.test_a_form_needs_the_token_of_its_visitor(shop, "0" * 64),
    "no Origin": lambda shop: test_security.test_a_form_of_another_site_is_refused(
        shop, {"origin": "https://evil.example"}
    ),
    "no Sec-Fetch-Site": lambda shop: test_security.test_a_form_of_another_site_is_refused(
        shop, {"sec-fetch-site": "cross-site"}
    ),
    "no autoescape": test_security.test_what_is_stored_is_escaped,
    "unsafe-inline": test_security.test_the_policy_has_nothing_unsafe,
    "no-referrer": test_security.test_the_policy_has_nothing_unsafe,
    "no body limit": test_security.test_a_large_body_is_refused_with_and_without_its_length,
    "auth that fails lets in": lambda shop: test_security.test_auth_that_fails_lets_none_in(shop, "raises"),
    "no redaction": test_hidden_values.test_secrets_are_hidden_wherever_a_value_stands,
    "a wildcard host": test_security.test_other_names_are_said,
    "JSON that is not escaped": test_security.test_what_is_stored_is_escaped,
}


@pytest.mark.parametrize("mistake", CAUGHT)
def test_a_planted_mistake_is_caught(shop: Any, monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    _plant(monkeypatch, mistake)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        CAUGHT[mistake](shop)
