"""The pages in a real Chromium: what only a browser decides. Any word on its console fails a page."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest

import durable
from durable.stores import memory
from durable.web import app
from harness.hostile import CORPUS, play_hostile
from harness.pages import checkout, play
from harness.pictures import CHROMIUM, HAS_CHROMIUM, served

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.skipif(not HAS_CHROMIUM, reason="Chromium is not installed: apt-get install chromium"),
    pytest.mark.long(30),
]


@pytest.fixture(scope="module")  # no longer: while it is open, asyncio.run is refused in this thread
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] if os.getuid() == 0 else [])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    kept = memory()
    play(kept)
    yield kept
    kept.close()


@pytest.fixture(scope="module")
def url(store: Any) -> Iterator[str]:
    with served(app(store, auth=lambda _: "write", refresh=0.1, title="shop")) as address:
        yield address


@pytest.fixture
def new_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Makes pages; none may have said anything on its console at the end."""
    said: list[str] = []
    pages: list[Any] = []

    def make(**options: Any) -> Any:
        page = chromium.new_page(**options)
        page.set_default_timeout(60_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda problem: said.append(str(problem)))
        pages.append(page)
        return page

    yield make
    for page in pages:
        page.close()
    assert said == []


def test_from_the_list_to_a_run_by_keys(url: str, new_page: Any) -> None:
    page = new_page()
    page.goto(url + "/runs?status=failed")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_url("**/run?id=shipping-1")
    assert page.get_by_role("heading", name="Timeline").is_visible()
    page.get_by_role("link", name="weigh").click()
    assert page.get_by_role("heading", name="weigh").is_visible()
    page.keyboard.press("?")
    assert page.get_by_role("dialog").is_visible()


def test_slash_searches_and_letters_in_it_are_letters(url: str, new_page: Any) -> None:
    page = new_page()
    page.goto(url + "/runs")
    page.keyboard.press("/")
    page.keyboard.type("workflow:shipping jkxr?")
    assert page.locator("#q").input_value() == "workflow:shipping jkxr?"
    page.locator("#q").fill("workflow:shipping")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=workflow*")
    assert page.locator("tbody tr").count() == 1


def test_an_action_posts_and_comes_back(url: str, store: Any, new_page: Any) -> None:
    """Chromium itself sends Origin and Sec-Fetch-Site: with another Referrer-Policy it would say null, and be refused."""
    durable.start(checkout, id="to-cancel", store=store)
    page = new_page()
    page.goto(url + "/run?id=to-cancel")
    page.get_by_role("button", name="Cancel").click()
    page.wait_for_url("**/run?id=to-cancel&done=cancel")
    assert durable.status(store, "to-cancel") == "cancelled"


def test_many_are_chosen_and_their_number_is_said(url: str, store: Any, new_page: Any) -> None:
    for number in range(3):
        durable.start(checkout, id=f"batch-{number}", store=store)
    page = new_page()
    page.goto(url + "/runs?q=batch")
    assert not page.get_by_role("button", name="Cancel").is_visible()
    for _ in range(3):
        page.keyboard.press("j")
        page.keyboard.press("x")
    assert page.get_by_text("3 runs chosen").is_visible()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Cancel 3 runs").click()
    page.wait_for_url("**/runs?q=batch&done=cancel&n=3*")
    assert page.get_by_text("3 runs were cancelled").is_visible()


def test_rows_live(url: str, store: Any, new_page: Any) -> None:
    durable.start(checkout, id="live-1", store=store)
    page = new_page()
    page.goto(url + "/runs?q=live")
    page.wait_for_selector(".live.on")
    durable.cancel(store, "live-1")
    page.wait_for_selector("tr[data-id=live-1] .s-cancelled")
    durable.start(checkout, id="live-2", store=store)
    page.wait_for_selector("#news:not([hidden])")
    page.get_by_text("1 newer run").click()
    assert page.locator("tbody tr").count() == 2


def test_a_run_lives(url: str, store: Any, new_page: Any) -> None:
    """It is watched from its first step to its end; what is selected stays."""
    page, going, steps = new_page(), threading.Semaphore(0), ("one", "two")

    def work(step: durable.Step, _: None) -> str:
        for name in steps:
            step(name, lambda: going.acquire(timeout=60))
        return "over"

    thread = threading.Thread(
        target=durable.run, args=(None, durable.workflow(name="lives")(work)), kwargs={"id": "lives", "store": store}
    )
    thread.start()
    try:
        while durable.status(store, "lives") is None:
            pass
        page.goto(url + "/run?id=lives")
        page.wait_for_selector(".live.on")
        for name in steps:
            going.release()
            page.wait_for_selector(f"ol.tl li:has-text('{name}')")
        page.wait_for_selector(".pill.s-completed")
    finally:
        going.release(2)
        thread.join()


@pytest.mark.parametrize("kind", [kind for kind in CORPUS if kind not in ("zalgo", "wide")])
def test_hostile_text_is_dead(chromium: Any, new_page: Any, kind: str) -> None:
    kept = memory()
    bad = CORPUS[kind]
    play_hostile(kept, bad, bad)
    with served(app(kept, auth=lambda _: "write", refresh=0.1)) as address:
        page = new_page(viewport={"width": 420, "height": 800})
        for path in ("/runs", f"/run?id={quote(bad, safe='')}", f"/run?id={quote(bad, safe='')}&view=json", "/"):
            page.goto(address + path)
            assert page.title() != "owned"
            assert page.evaluate("document.documentElement.scrollWidth") <= 420, path
        page.close()


PAGES = (
    "/",
    "/runs",
    "/run?id=shipping-1",
    "/run?id=checkout-1",
    "/run?id=shipping-1&view=events",
    "/run?id=shipping-1&view=json",
    "/queues",
    "/workers",
    "/run?id=none",
)


@pytest.mark.parametrize("path", PAGES)
def test_a_page_fits_420_pixels(url: str, new_page: Any, path: str) -> None:
    page = new_page(viewport={"width": 420, "height": 800})
    if "none" in path:  # the browser says 404 on its console
        return
    page.goto(url + path)
    assert page.evaluate("document.documentElement.scrollWidth") <= 420


def test_it_works_without_javascript(url: str, store: Any, chromium: Any) -> None:
    durable.start(checkout, id="plain-1", store=store)
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(url + "/runs?status=failed")
    page.locator("td.id a").first.click()
    page.get_by_role("link", name="weigh").click()
    assert page.get_by_role("heading", name="weigh").is_visible()
    page.goto(url + "/runs?q=plain")
    page.get_by_role("checkbox").first.check()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Cancel 1 run").click()
    assert "1 run was cancelled" in page.content()
    page.goto(url + "/run?id=shipping-1")
    page.locator("summary", has_text="Fork").click()
    page.get_by_label("Id of the fork").fill("fork-1")
    page.get_by_role("button", name="Fork", exact=True).click()
    assert "This is the fork" in page.content()
    context.close()


def test_dark_by_preference_and_by_choice(url: str, new_page: Any) -> None:
    page = new_page(color_scheme="dark")

    def ground() -> str:
        return str(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))

    page.goto(url + "/runs")
    dark = ground()
    page.get_by_label("Switch between").click()
    light = ground()
    assert (dark, light) == ("rgb(18, 20, 23)", "rgb(247, 247, 245)")
    page.reload()
    assert ground() == light


_CONTRAST = """() => {
  const rgb = (text) => { const c = document.createElement('canvas').getContext('2d'); c.fillStyle = text; c.fillRect(0, 0, 1, 1); return [...c.getImageData(0, 0, 1, 1).data]; };
  const lum = (c) => c.slice(0, 3).map((v) => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }).reduce((a, v, i) => a + v * [.2126, .7152, .0722][i], 0);
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, at = node.parentElement;
    if (!node.data.trim() || !at.checkVisibility({ opacityProperty: true, visibilityProperty: true }) || at.closest('.hide, option, svg')) continue;
    let ground = at; while (ground && rgb(getComputedStyle(ground).backgroundColor)[3] === 0) ground = ground.parentElement;
    const a = lum(rgb(getComputedStyle(at).color)), b = lum(rgb(getComputedStyle(ground ?? document.documentElement).backgroundColor));
    found.push([(Math.max(a, b) + .05) / (Math.min(a, b) + .05), node.data.trim().slice(0, 30), at.className]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(url: str, new_page: Any, scheme: str) -> None:
    page = new_page(color_scheme=scheme)
    for path in (
        "/",
        "/runs",
        "/run?id=shipping-1",
        "/run?id=checkout-1&step=charge",
        "/run?id=shipping-1&view=events",
        "/queues",
        "/workers",
    ):
        page.goto(url + path)
        found = page.evaluate(_CONTRAST)
        assert len(found) > 5
        assert [one for one in found if one[0] < 4.5] == [], path


def test_every_control_has_a_name(url: str, new_page: Any) -> None:
    page = new_page()
    for path in ("/runs", "/run?id=shipping-1", "/"):
        page.goto(url + path)
        nameless = page.evaluate(
            "[...document.querySelectorAll('a, button, input:not([type=hidden]), select, textarea, summary')].filter((e) => !e.hidden && "
            "!(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length)).map((e) => e.outerHTML)"
        )
        assert nameless == []
        assert page.evaluate("document.documentElement.lang") == "en"
        assert page.locator("h1").count() == 1


def test_a_frame_and_another_origin_are_kept_out(url: str, store: Any, new_page: Any, chromium: Any) -> None:
    """What another site can do to a visitor: it cannot frame the page, and its form is refused."""
    durable.start(checkout, id="attacked", store=store)

    async def evil(scope: Any, receive: Any, send: Any) -> None:
        body = f'<iframe src="{url}/runs"></iframe><form method="post" action="{url}/run/cancel?id=attacked"><button>go</button></form>'
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
        await send({"type": "http.response.body", "body": body.encode()})

    with served(evil) as other:
        context = chromium.new_context()
        context.new_page().goto(url + "/runs")  # has its cookie
        page = context.new_page()
        page.goto(other.replace("127.0.0.1", "localhost"))
        assert "shipping-1" not in next(frame for frame in page.frames if frame != page.main_frame).content()
        page.get_by_role("button", name="go").click()
        page.wait_for_load_state()
        assert re.search("another (site|origin)", page.content())
        context.close()
    assert durable.status(store, "attacked") == "queued"
