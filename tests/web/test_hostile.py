"""A corpus of hostile text in every place where text is stored: it is shown as what it is, and nothing is made of it."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote, unquote

import pytest

import durable
from durable.stores import memory
from durable.web._texts import visible
from harness.hostile import CORPUS, play_hostile
from harness.pages import visit


class _Tags(HTMLParser):
    """Whether a page is well formed, what it is made of, and whether anything in it would be executed."""

    VOID = ("meta", "link", "input", "br", "use", "path", "circle", "rect", "line", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.bad: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        names = [name for name, _ in attrs]
        if len(names) != len(set(names)):
            self.bad.append(f"<{tag}> twice {names}")
        for name, value in attrs:
            if name.startswith("on") or name in ("style", "srcdoc", "autofocus"):
                self.bad.append(f"<{tag} {name}>")
            if name in ("href", "src", "action", "formaction") and not re.match(r"[/#?]|run\?", value or "/"):
                self.bad.append(f"<{tag} {name}={value}>")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.bad.append(f"</{tag}>")


def judge(text: str) -> list[str]:
    tags = _Tags()
    tags.feed(text)
    return tags.bad + tags.open


@pytest.mark.parametrize("kind", CORPUS)
def test_hostile_text_is_shown_and_nothing_more(kind: str) -> None:
    bad = CORPUS[kind]
    run_id = bad.replace("\0", "")
    store = memory()
    play_hostile(store, bad, run_id)
    visitor = visit(store, title=bad)
    here = quote(run_id, safe="")
    pages = [f"/run?id={here}", f"/run?id={here}&step={here}", f"/run?id={here}&view=events", f"/run?id={here}&view=json",
             f"/run?id={here}&only=failed&name={here}", "/runs", f"/runs?q={here}&status=failed", f"/runs?q=id:{here}", f"/runs?since={here}", "/", "/queues", "/workers"]  # fmt: skip
    for page in pages:
        answer = visitor.get(page)
        assert answer.status_code in (200, 400), page
        assert judge(answer.text) == [], page
        # A search goes back as it came; whatever else is sent back is quoted.
        body = re.sub(r'(?s)<(?:input id="q"|option) .*?>', "", answer.text)
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\ufeff]", body), page
    assert html.escape(visible(run_id), quote=False)[:20] in visitor.get("/runs").text.replace("&#34;", '"').replace(
        "&#39;", "'"
    )
    # What the page shows leads back to the very run, and its forms name it.
    (link,) = set(re.findall(r'<td class="id"><a href="/(run\?id=[^"]+)"', visitor.get("/runs").text))
    page = visitor.get("/" + link).text
    (action,) = re.findall(r'action="/(run/delete\?id=[^"]+)"', page)
    step = re.findall(r'name="step" value="([^"]*)"', page)
    assert [unquote(one) for one in step] == ["fail " + bad]
    assert visitor.post("/" + action, {"typed": visible(run_id)}).status_code == 303
    assert durable.status(store, run_id) is None


def test_a_value_of_ten_megabytes_is_a_download(shop: Any) -> None:
    large = {"text": "x" * 10_000_000, "password": "hidden-one"}
    durable.run(
        None, durable.workflow(name="large")(lambda step, _: step("make", lambda: large)), id="large", store=shop
    )
    visitor = visit(shop)
    page = visitor.get("/run?id=large")
    assert len(page.text) < 60_000
    assert "Download all" in page.text
    raw = visitor.get("/value?id=large&what=step&step=make")
    assert len(raw.text) > 10_000_000
    assert "hidden-one" not in raw.text
    assert raw.headers["content-type"] == "text/plain; charset=utf-8"
    assert raw.headers["content-disposition"] == "attachment; filename*=UTF-8''large-step-make.json.txt"
    assert len(visitor.get("/run?id=large&view=json").text) < 60_000


def test_a_value_that_is_deep_is_shown(shop: Any) -> None:
    deep: Any = 1
    for _ in range(150):
        deep = [deep]
    durable.run(None, durable.workflow(name="deep")(lambda step, _: step("make", lambda: deep)), id="deep", store=shop)
    answer = visit(shop).get("/run?id=deep")
    assert answer.status_code == 200
    assert judge(answer.text) == []


@pytest.mark.parametrize("query", ["id=", "id=%00", "id=%ED%A0%80", "id=" + "x" * 5000, "id=shipping-1&view=%3Cb%3E", "id=shipping-1&first=-1",
                                   "id=shipping-1&first=99999999999999999999", "id=shipping-1&first=%C2%B2", "id=shipping-1&step=%00", "", "id=shipping-1&id=checkout-1",
                                   "id=shipping-1&done=%3Cb%3E&n=x&refused=9999999999"])  # fmt: skip
def test_an_address_may_be_nonsense(played: Any, query: str) -> None:
    for path in ("/run", "/value"):
        answer = visit(played).get(f"{path}?{query}")
        assert answer.status_code in (200, 204, 404)


@pytest.mark.parametrize("query", ["after=x", "after=x&at=x", "after=x&at=2026-11-29", "status=x", "since=x", "q=%00", "q=" + "x" * 2000, "q=%ED%A0%80",
                                   "status=failed&q=status:completed", "at=2026-11-29T10:00:00%2B00:00&after=x", "since=1h&q=since:2h", "q=since:9999999d", "since=99999999999w"])  # fmt: skip
def test_a_search_may_be_nonsense(played: Any, query: str) -> None:
    answer = visit(played).get(f"/runs?{query}")
    assert answer.status_code in (200, 400)
    assert judge(answer.text) == []
