"""`durable web`: a token a start, loopback alone, and no way in beside it."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from durable._commands.app import durable_command
from durable.web import app
from durable.web._door import MOST, Door
from durable.web._setup import LOOPBACK
from harness.pages import Visitor, play
from harness.programs import HEEDING_CTRL_C
from harness.support import Database

TOKEN = "t" * 40


def _visitor(store: Any) -> Visitor:
    door = Door(TOKEN, user="lena@here")
    return Visitor(door.before(app(store, auth=door.auth), frozenset(LOOPBACK)))


def test_the_token_becomes_a_cookie_and_leaves_the_address(shop: Any) -> None:
    visitor = _visitor(shop)
    assert visitor.get("/runs").status_code == 403
    answer = visitor.get(f"/runs?status=failed&token={TOKEN}&q=a%26b")
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs?status=failed&q=a%26b")
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert TOKEN not in cookie
    assert answer.headers["content-security-policy"]
    assert visitor.get("/runs").status_code == 200
    assert visitor.post("/run/cancel?id=checkout-2").status_code == 303


@pytest.mark.parametrize("wrong", ["", "t" * 39, "é", "%FF", "t" * 40 + " "])
def test_a_wrong_token_opens_nothing(shop: Any, wrong: str) -> None:
    visitor = _visitor(shop)
    answer = visitor.get(f"/runs?token={wrong}")
    assert (answer.status_code, "set-cookie" in answer.headers) == (403, False)
    assert visitor.get("/runs").status_code == 403


def test_tokens_are_not_guessed_at_will(shop: Any) -> None:
    visitor = _visitor(shop)
    assert [visitor.get("/?token=wrong").status_code for _ in range(MOST + 1)] == [403] * MOST + [429]
    answer = visitor.get(f"/?token={TOKEN}")  # nor is it told that this one was right
    assert (answer.status_code, int(answer.headers["retry-after"]) <= 61) == (429, True)


def test_who_is_in_stays_in_meanwhile(shop: Any) -> None:
    visitor = _visitor(shop)
    visitor.get(f"/?token={TOKEN}")
    for _ in range(MOST + 1):
        visitor.get("/?token=wrong")
    assert visitor.get("/runs").status_code == 200


def test_the_token_is_not_looked_at_under_another_name(shop: Any) -> None:
    answer = _visitor(shop).get(f"/?token={TOKEN}", headers={"host": "evil.example"})
    assert (answer.status_code, "set-cookie" in answer.headers) == (421, False)


def test_the_redirect_stays_here(shop: Any) -> None:
    for path in ("//evil.example/", "/\\evil.example/", "///evil.example"):
        answer = _visitor(shop).get(f"{path}?token={TOKEN}")
        location = answer.headers.get("location", "/")
        assert re.match(r"/(?![/\\])", location)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--host", "0.0.0.0"], "--token-file"),
        (["--host", "0.0.0.0", "--allow-host", "ops.example.com"], "--token-file"),
        (["--host", "10.0.0.7", "--token-file", "long"], "--allow-host"),
        (["--token-file", "short"], "at least 32"),
        (["--token-file", "missing"], "cannot be read"),
        (["--port", "70000"], "70000"),
    ],
)
def test_what_would_let_others_in_is_refused(given: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "short").write_text("x" * 31)
    (tmp_path / "long").write_text("x" * 32)
    files = [str(tmp_path / one) if one in ("short", "long", "missing") else one for one in given]
    result = CliRunner().invoke(durable_command, ["web", *files])
    assert result.exit_code == 2
    assert said in result.output


@pytest.mark.long(4)
def test_it_serves_until_ctrl_c(database: Database) -> None:
    """The real command, in a process of its own; a stream that is open does not hold its end up."""
    play(database.store())
    durable = [sys.executable, "-W", "error", "-m", "durable"]
    command = [*HEEDING_CTRL_C, *durable, "web", "--port", "0", "--schema", database.schema]
    as_anyone = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=as_anyone | {"DURABLE_URL": database.url},
    )
    try:
        assert child.stdout is not None
        assert select.select([child.stdout], [], [], 120)[0]
        address = child.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{43}", address), child.communicate(timeout=60)
        with httpx.Client(follow_redirects=True, timeout=60) as client:
            assert client.get(address.partition("?")[0] + "runs").status_code == 403
            page = client.get(address)
            assert "token" not in str(page.url)
            assert "Overview" in page.text
            assert "shipping-1" in client.get(str(page.url) + "runs").text
            with client.stream("GET", str(page.url) + "live") as stream:
                assert next(stream.iter_lines()) == "retry: 3000"
                child.send_signal(signal.SIGINT)
                assert child.wait(timeout=60) in (0, 130)
    finally:
        if child.poll() is None:
            child.kill()
        told = child.communicate(timeout=60)
    assert "token=" not in told[1]
    assert "Traceback" not in told[1]
