"""What the page hides of values: the seventh line of security."""

from __future__ import annotations

import re
from typing import Any

import pytest

from harness.pages import visit


def test_secrets_are_hidden_wherever_a_value_stands(shop: Any) -> None:
    visitor = visit(shop)
    for page in ("/run?id=checkout-1&step=charge", "/run?id=checkout-1&step=fetch%20cart", "/run?id=checkout-1&view=json",
                 "/run?id=checkout-1&view=events", "/value?id=checkout-1&what=json", "/value?id=checkout-1&what=step&step=charge"):  # fmt: skip
        text = visitor.get(page).text
        assert "tok-secret-7" not in text
        assert "4111" not in text
    assert "p-31c9" in visitor.get("/run?id=checkout-1&step=charge").text


def test_a_redaction_of_ones_own_sees_everything(shop: Any) -> None:
    seen: set[str] = set()

    def redact(where: str, value: Any) -> Any:
        seen.add(where.partition(":")[0])
        return "nothing"

    visitor = visit(shop, redact=redact)
    pages = [
        visitor.get(f"/run?id={run_id}&view={view}").text
        for run_id in ("checkout-1", "shipping-1")
        for view in ("timeline", "events", "json")
    ]
    assert seen >= {"step", "message", "traceback", "result", "metadata"}
    for secret in ("p-31c9", "no courier", "o-7", "tea-04"):
        assert not any(secret in page for page in pages)


@pytest.mark.parametrize("fails", ["raises", "returns no JSON"])
def test_a_redaction_that_fails_shows_nothing(shop: Any, fails: str) -> None:
    def redact(_: str, value: Any) -> Any:
        if fails == "raises":
            raise ValueError(value)
        return object()

    visitor = visit(shop, redact=redact)
    for page in (
        "/run?id=checkout-1&step=charge",
        "/run?id=shipping-1",
        "/run?id=shipping-1&view=json",
        "/value?id=checkout-1&what=result",
    ):
        answer = visitor.get(page)
        assert answer.status_code == 200
        assert not re.search("p-31c9|no courier|o-7", answer.text)
