"""Every example is executed, as its first lines say; each judges its own story and ends with 0 if it went as promised."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from order_service import create_app
from psycopg.conninfo import make_conninfo

from durable.stores import postgres
from harness.ownership_children import PATIENCE
from harness.programs import run_program
from harness.support import Database

EXAMPLES: Final = Path(__file__).resolve().parents[2] / "examples"
PAGES: Final = EXAMPLES.parent / "docs" / "examples"


@pytest.fixture
def url(database: Database) -> str:
    """A URL that leads into the test's own schema."""
    database.execute(f"CREATE SCHEMA {database.schema}")
    return make_conninfo(database.url, options=f"-csearch_path={database.schema}")


@pytest.mark.long(4)
@pytest.mark.parametrize(
    ("example", "says"),
    [
        ("approval.py", "Each charge once"),
        ("children.py", "none that had ended was started again"),
        ("fan_out.py", "none that was recorded was sent again"),
        ("noisy_tenant.py", "no tenant waited for the noisy one"),
        ("agent.py", "No call to the model was paid for twice"),
        ("order_service.py", "Nothing that was recorded was done again"),
    ],
)
def test_an_example_tells_its_story(example: str, says: str, url: str, tmp_path: Path) -> None:
    """With a kill -9 in the middle."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / example)]
    environment = {**os.environ, "DATABASE_URL": url}
    told = run_program(command, cwd=tmp_path, env=environment)
    assert (told.returncode, told.stderr) == (0, "")
    assert "kill -9" in told.stdout
    assert says in told.stdout
    assert shown(example) == comparable(told.stdout)


def shown(example: str) -> list[str]:
    """What the example's page says that it prints."""
    page = (PAGES / f"{Path(example).stem.replace('_', '-')}.md").read_text("utf-8")
    (text,) = re.findall(r"^```text\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    return comparable(text)


def comparable(text: str) -> list[str]:
    """Without numbers that differ, where files lie, and what is left out; columns count for nothing."""
    text = re.sub(r" /\S+/(bank|world|mail)\b", r" \1", text.strip())
    text = re.sub(r"(agent|order|invoices|reports?)-\d+(-\d+)?", r"\1-…", text)
    text = re.sub(r"'card'.*\}\}|…\}\}", "…}}", text)
    return [" ".join(re.sub(r"\d+", "N", line).split()) for line in text.splitlines()]


@pytest.mark.parametrize("program", sorted(EXAMPLES.glob("*.py")), ids=lambda program: program.stem)
def test_each_example_has_its_place_in_the_pages(program: Path) -> None:
    """Its code is included there, and no line of that is cut."""
    pages = [page.read_text("utf-8") for page in sorted(PAGES.glob("*.md"))]
    if program.stem != "checkout":  # which leads to the package's own, on the same page
        assert any(f"{{literalinclude}} ../../examples/{program.name}" in page for page in pages)
    for line in program.read_text("utf-8").splitlines():
        assert len(line) <= 109, line


def test_each_page_of_an_example_is_in_the_table_of_contents() -> None:
    index = (PAGES.parent / "index.md").read_text("utf-8").splitlines()
    for page in PAGES.glob("*.md"):
        assert f"examples/{page.stem}" in index


def test_three_weeks_pass_at_once(tmp_path: Path) -> None:
    """On a clock that jumps; the run is suspended, woken, and continued."""
    told = run_program([sys.executable, "-W", "error", str(EXAMPLES / "onboarding.py")], cwd=tmp_path)
    assert (told.returncode, told.stderr) == (0, "")
    assert "In 20 days" in told.stdout
    assert "Each letter once" in told.stdout
    assert shown("onboarding.py") == comparable(told.stdout)


ORDER: Final = {"number": 7, "card": "card-7", "euros": 42}


@contextlib.asynccontextmanager
async def service(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """One life of the order service, from start to shutdown; to the next one it is another process."""
    app = create_app(lambda: postgres(url))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://shop") as client,
    ):
        yield client


async def reported(client: httpx.AsyncClient, order: str, status: str) -> Any:
    """The report of an order, once it has come so far."""
    async with asyncio.timeout(PATIENCE):
        while (report := (await client.get(order)).json())["status"] != status:  # noqa: ASYNC110 -- as a browser would
            await asyncio.sleep(0.005)
    return report


def test_an_order_is_started_approved_and_reported(url: str) -> None:
    """And asked for again, with the same and with another input."""

    async def story() -> None:
        async with service(url) as client:
            assert (await client.get("/orders/7")).status_code == 404
            assert (await client.post("/orders", json=ORDER)).json() == {"order": "/orders/7"}
            await reported(client, "/orders/7", "suspended")
            assert (await client.post("/orders", json=ORDER)).status_code == 202
            assert (await client.post("/orders", json={**ORDER, "euros": 43})).status_code == 409
            assert (await client.post("/orders/7/approval", json={"by": "ada"})).status_code == 202
            report = await reported(client, "/orders/7", "completed")
            assert report["result"] == {"approved by": "ada", "payment": "p-1", "card": "card-7", "euros": 42}
            assert (await client.post("/orders", json=ORDER)).status_code == 202

    asyncio.run(story())


def test_the_next_process_goes_on_with_what_the_last_one_left(url: str, database: Database) -> None:
    """An order that waits for its approval ends no shutdown, and what was done is not done again."""

    async def story() -> None:
        async with service(url) as client:
            await client.post("/orders", json=ORDER)
            await reported(client, "/orders/7", "suspended")
        assert database.status("order-7") == "running"
        async with service(url) as client:
            await client.post("/orders/7/approval", json={"by": "grace"})
            assert (await reported(client, "/orders/7", "completed"))["result"]["approved by"] == "grace"

    asyncio.run(story())
    assert [key for kind, key, _ in database.journal("order-7") if kind == "step"] == ["reserve", "approved", "charge"]


@pytest.mark.long(4)
def test_a_saga_that_is_killed_while_it_gives_back_gives_back_the_rest(url: str, tmp_path: Path) -> None:
    """And reserves anew when it is taken up again."""
    told = run_program(
        [sys.executable, "-W", "error", str(EXAMPLES / "saga.py")],
        cwd=tmp_path,
        env={**os.environ, "DATABASE_URL": url},
    )
    assert (told.returncode, told.stderr) == (0, "")
    assert "Each was undone once, and reserved anew." in told.stdout
