"""The lines of security, each a test (the seventh is in test_hidden_values.py): what is refused, and what each answer carries."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any
from urllib.parse import quote

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

import durable
from durable.errors import InvalidArgument
from durable.stores import memory
from durable.web import app
from durable.web._guard import HEADERS, LARGEST_BODY
from harness.pages import FORM, Visitor, play, visit
from harness.support import Database

PAGES = ("/", "/runs", "/runs?q=no:such", "/run?id=shipping-1", "/run?id=shipping-1&view=events", "/run?id=shipping-1&view=json",
         "/queues", "/workers", "/value?id=checkout-1&what=result", "/run?id=none", "/no-such-page")  # fmt: skip


# 1. auth


def test_auth_cannot_be_left_out() -> None:
    with pytest.raises(InvalidArgument, match="auth"):
        app(memory())  # type: ignore[call-arg]
    with pytest.raises(InvalidArgument, match="never guessed"):
        app(memory(), auth=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_shown_to_those_who_may_not(shop: Any, page: str) -> None:
    answer = visit(shop, may=None).get(page)
    assert answer.status_code == 403
    assert "shipping" not in answer.text
    assert "checkout" not in answer.text


@pytest.mark.parametrize("broken", ["raises", "raises async", "says yes", "a name"])
def test_auth_that_fails_lets_none_in(shop: Any, broken: str) -> None:
    async def raises(_: Any) -> Any:
        raise KeyError("session")

    ways: dict[str, Any] = {
        "raises": lambda request: request.session["user"],
        "raises async": raises,
        "says yes": lambda _: True,
        "a name": lambda _: "admin",
    }
    assert visit(shop, auth=ways[broken]).get("/runs").status_code == 403


def test_a_loopback_address_opens_nothing(shop: Any) -> None:
    """Behind a proxy every peer has one."""
    asked: list[Any] = []
    visitor = visit(shop, auth=lambda request: asked.append(request.client))
    assert visitor.get("/runs").status_code == 403
    assert asked


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_who_may_read_changes_nothing(shop: Any, colour: str) -> None:
    async def may(_: Any) -> Any:
        return "read"

    reader = visit(shop, auth=(lambda _: "read") if colour == "sync" else may)
    assert "form_token" not in reader.get("/run?id=shipping-1").text
    assert reader.post("/run/delete?id=shipping-1", {"typed": "shipping-1"}, token="x").status_code == 403
    assert durable.status(shop, "shipping-1") == "failed"


# 3. Host


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8787", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example@127.0.0.1",
     "127.0.0.1:8787.evil.example", "[::1", "[::1].evil.example", "localhost:80:80", "", "localhost:http", "127.0.0.1/", "*"],
)  # fmt: skip
def test_a_rebound_name_is_refused(shop: Any, host: str) -> None:
    for path in ("/runs", "/healthz", "/static/durable.css"):
        assert visit(shop).get(path, headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8787", "localhost:1", "LOCALHOST", "[::1]", "[::1]:8787"])
def test_loopback_names_are_known(shop: Any, host: str) -> None:
    assert visit(shop).get("/healthz", headers={"host": host}).status_code == 200


def test_other_names_are_said(shop: Any) -> None:
    visitor = visit(shop, hosts=("Ops.Example.com",))
    assert visitor.get("/runs", headers={"host": "ops.example.com:443"}).status_code == 200
    assert visitor.get("/runs", headers={"host": "x.ops.example.com"}).status_code == 421
    for bad in ("*", "*.example.com", "https://ops.example.com", "ops.example.com:443", ""):
        with pytest.raises(InvalidArgument):
            app(shop, auth=lambda _: None, hosts=(bad,))
    with pytest.raises(InvalidArgument):
        app(shop, auth=lambda _: None, hosts="ops.example.com")


# 4. writes


def test_a_form_of_the_page_is_taken(shop: Any) -> None:
    answer = visit(shop).post(
        "/run/cancel?id=checkout-2", headers={"origin": "http://127.0.0.1:8787", "sec-fetch-site": "same-origin"}
    )
    assert (answer.status_code, answer.headers["location"]) == (303, "/run?id=checkout-2&done=cancel")
    assert durable.status(shop, "checkout-2") == "cancelled"


@pytest.mark.parametrize(
    "headers",
    [{"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}, {"sec-fetch-site": "none"},
     {"origin": "https://evil.example"}, {"origin": "null"}, {"origin": "http://127.0.0.1:9999"}, {"origin": "http://127.0.0.1"},
     {"origin": "file://127.0.0.1:8787"}, {"origin": "http://127.0.0.1:8787.evil.example"}, {"origin": "http://[::1"}],
)  # fmt: skip
def test_a_form_of_another_site_is_refused(shop: Any, headers: dict[str, str]) -> None:
    assert visit(shop).post("/run/cancel?id=checkout-2", headers=headers).status_code == 403
    assert durable.status(shop, "checkout-2") == "queued"


@pytest.mark.parametrize("token", ["", "0" * 64, "é", "another visitor's", "another user's"])
def test_a_form_needs_the_token_of_its_visitor(shop: Any, token: str) -> None:
    def auth(request: Any) -> Any:
        request.state.durable_user = request.headers.get("x-user", "lena")
        return "write"

    visitor = visit(shop, auth=auth)
    visitor.token()
    headers = {}
    if token == "another visitor's":
        token = Visitor(visitor.asgi).token()
    elif token == "another user's":
        token, headers = visitor.token(), {"x-user": "max"}
    answer = visitor.post("/run/cancel?id=checkout-2", token=token, headers=headers)
    assert answer.status_code == 403
    assert durable.status(shop, "checkout-2") == "queued"


def test_a_cookie_that_was_made_up_is_no_session(shop: Any) -> None:
    visitor = visit(shop)
    token = visitor.token()
    for cookie in ("", "x", "x.y", f"{'a' * 24}.{'0' * 64}"):
        (name,) = {one.name for one in visitor.cookies.jar}
        visitor.cookies.clear()
        visitor.cookies.set(name, cookie)
        assert visitor.post("/run/cancel?id=checkout-2", token=token).status_code == 403


def test_the_cookie_is_ours_alone(shop: Any) -> None:
    cookie = visit(shop).get("/runs").headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert "Secure" in visit_https(shop).get("/runs").headers["set-cookie"]


def visit_https(store: Any) -> Visitor:
    return Visitor(app(store, auth=lambda _: "write"), base="https://127.0.0.1:8787")


def test_nothing_is_changed_by_get(played: Any) -> None:
    visitor = visit(played)
    visitor.token()
    for path in (
        "/run/cancel?id=checkout-2",
        "/run/delete?id=checkout-1&typed=checkout-1",
        "/runs/delete?id=checkout-1&sure=yes",
    ):
        for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"):
            assert visitor.ask(method, path).status_code in (404, 405)
    assert {line.id for line in played.runs()} >= {"checkout-1", "checkout-2"}
    assert durable.status(played, "checkout-2") == "queued"


def test_only_forms_are_read(shop: Any) -> None:
    visitor = visit(shop)
    token = visitor.token()
    for kind, body in (("application/json", json.dumps({"form_token": token})), ("text/plain", f"form_token={token}"),
                       ("multipart/form-data; boundary=x", f'--x\r\nContent-Disposition: form-data; name="form_token"\r\n\r\n{token}\r\n--x--')):  # fmt: skip
        answer = visitor.ask("POST", "/run/cancel?id=checkout-2", content=body, headers={"content-type": kind})
        assert answer.status_code == 415
    assert durable.status(shop, "checkout-2") == "queued"


# 5. headers


@pytest.mark.parametrize("may", ["write", "read", None])
def test_every_answer_carries_the_headers(shop: Any, may: Any) -> None:
    visitor = visit(shop, may=may)
    answers = [visitor.get(page) for page in (*PAGES, "/healthz")]
    answers += [
        visitor.get("/runs", headers={"host": "evil.example"}),
        visitor.ask("POST", "/run/cancel?id=checkout-2"),
    ]
    answers += [visitor.ask("PUT", "/runs"), visitor.ask("TRACE", "/runs")]
    for answer in answers:
        for name, value in HEADERS.items():
            assert answer.headers.get_list(name.decode()) == [value.decode()]
        assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_the_policy_has_nothing_unsafe(shop: Any) -> None:
    told = visit(shop).get("/runs").headers
    assert "unsafe" not in told["content-security-policy"]
    assert told["content-security-policy"].startswith("default-src 'none'")
    assert told["referrer-policy"] == "same-origin"  # with "no-referrer" Chromium sends Origin: null


def test_a_failure_of_ours_carries_them_too(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    visitor = visit(shop)

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("secret-in-an-error")

    monkeypatch.setattr(shop, "runs", broken)
    answer = visitor.get("/runs")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.headers["content-security-policy"]


def test_no_page_has_a_script_or_a_style_in_it(shop: Any) -> None:
    for page in PAGES:
        text = visit(shop).get(page).text
        assert not re.search(
            r"<script(?![^>]* src=)|<style|\sstyle=|\son[a-z]+=|javascript:|https?://(?!www\.w3\.org)", text
        )


# 6. hostile text: see also test_hostile.py


def test_what_is_stored_is_escaped(shop: Any) -> None:
    bad = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'"
    durable.run(None, durable.workflow(name=bad)(lambda step, _: step(bad, lambda: {bad: bad})), id=bad, store=shop)
    for page in ("/runs", "/", f"/run?id={quote(bad, safe='')}", f"/run?id={quote(bad, safe='')}&view=events",
                 f"/run?id={quote(bad, safe='')}&view=json", f"/runs?q={quote(bad, safe='')}&status={quote(bad, safe='')}"):  # fmt: skip
        text = visit(shop).get(page).text
        assert "<script>alert" not in text
        assert "<img" not in text
    assert "&lt;script&gt;" in visit(shop).get("/runs").text


# 8. SQL, and reading


@pytest.mark.parametrize(
    "text", ["'; DROP TABLE durable_snapshots; --", "%", "_", "\\", "' OR '1'='1", "%s", "%(x)s", "$1", "{snapshots}"]
)
def test_a_search_is_a_parameter(played: Any, text: str) -> None:
    visitor = visit(played)
    for query in (text, f'workflow:"{text}"', f'meta."{text}":"{text}"', f'id:"{text}"', f'step:"{text}"'):
        answer = visitor.get(f"/runs?q={quote(query, safe='')}")
        assert answer.status_code in (200, 400)
        assert "<tr data-id" not in answer.text
    assert "checkout-1" in visitor.get("/runs").text


def test_looking_writes_nothing(database: Database) -> None:
    play(database.store())
    before = database.everything()
    database.execute("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''it writes''; END'")
    for (table,) in database.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema"):
        database.execute(
            f"CREATE TRIGGER refuse BEFORE INSERT OR UPDATE OR DELETE ON {table} EXECUTE FUNCTION refuse()"
        )
    visitor = visit(database.store(auto_create_table=False))
    for page in PAGES:
        assert visitor.get(page).status_code in (200, 400, 404)
    assert database.everything() == before


def test_a_read_only_page_has_nothing_that_writes(shop: Any) -> None:
    visitor = visit(shop, read_only=True)
    assert "form_token" not in visitor.get("/run?id=shipping-1").text
    for path in ("/run/delete?id=shipping-1", "/runs/delete"):
        assert visitor.post(path, {"typed": "shipping-1"}, token="x").status_code == 404


# 9. limits


def test_a_large_body_is_refused_with_and_without_its_length(shop: Any) -> None:
    visitor = visit(shop)
    token = visitor.token()
    body = f"form_token={token}&payload={'x' * LARGEST_BODY}".encode()

    async def parts() -> Any:
        for at in range(0, len(body), 10_000):
            yield body[at : at + 10_000]

    for content in (body, parts()):
        answer = visitor.ask("POST", "/run/signal?id=checkout-2", content=content, headers={"content-type": FORM})
        assert answer.status_code == 413
    answer = visitor.ask(
        "POST", "/run/signal?id=checkout-2", content=b"", headers={"content-type": FORM, "content-length": "-1"}
    )
    assert answer.status_code == 413


@pytest.mark.parametrize(
    "link",
    [
        "javascript:alert({id})",
        "data:text/html,{id}",
        "//evil/{id}",
        "https://{id}/",
        "https://x/",
        "https://x/{run}",
        7,
    ],
)
def test_a_link_to_a_trace_is_a_link(link: Any) -> None:
    with pytest.raises(InvalidArgument, match="trace_url"):
        app(memory(), auth=lambda _: None, trace_url=link)


def test_a_trace_is_linked_and_never_fetched(shop: Any) -> None:
    text = visit(shop, trace_url="https://traces.example/?q={id}").get("/run?id=shipping-1").text
    assert '<a class="link" href="https://traces.example/?q=shipping-1" rel="noreferrer noopener"' in text
    assert (
        "traces.example" not in visit(shop, trace_url="https://traces.example/{trace}").get("/run?id=shipping-1").text
    )


def test_a_websocket_is_closed(shop: Any) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    page: Any = app(shop, auth=lambda _: "write")
    asyncio.run(page({"type": "websocket", "path": "/live", "headers": []}, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_all_of_it_holds_where_the_page_is_mounted(shop: Any) -> None:
    visitor = Visitor(Starlette(routes=[Mount("/ops", app(shop, auth=lambda _: "write"))]), root="/ops")
    answer = visitor.get("/runs")
    assert answer.headers["content-security-policy"]
    assert "Path=/ops" in answer.headers["set-cookie"]
    assert 'action="/ops/runs/retry' in answer.text
    assert visitor.get("/static/durable.css").headers["cache-control"].startswith("public")
    assert visitor.post("/run/cancel?id=checkout-2").headers["location"] == "/ops/run?id=checkout-2&done=cancel"
    assert visitor.get("/runs", headers={"host": "evil.example"}).status_code == 421
    assert visitor.get("/healthz").text == "ok"
