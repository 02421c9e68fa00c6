"""What the README shows is run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from support import Database

ROOT = Path(__file__).resolve().parent.parent


def snippets(page: str) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def test_the_readmes_screen_of_code_runs_and_runs_again(tmp_path: Path) -> None:
    """As a stranger would: saved to a file, run twice. The second time nothing is called."""
    (screen,) = snippets("README.md")
    (tmp_path / "checkout.py").write_text(screen)
    command = [sys.executable, "-W", "error", "checkout.py"]
    first, second = (
        subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False) for _ in range(2)
    )
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout == "paid {'payment': 'p-1', 'card': 'card-7', 'euros': 42}\np-1\n"
    assert second.stdout == "p-1\n"


def _snippets() -> list[Any]:
    one_program = "docs/postgres.md"  # whose snippets go on from each other
    pages = sorted({page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").glob("*.md")} - {one_program})
    return [
        pytest.param(text, id=f"{page}-{number}")
        for page in pages
        for number, text in enumerate(snippets(page), start=1)
    ]


@pytest.mark.parametrize("snippet", _snippets())
def test_a_snippet_of_the_docs_runs(snippet: str, tmp_path: Path) -> None:
    """Each by itself, as somebody would who copies it."""
    (tmp_path / "snippet.py").write_text(snippet)
    command = [sys.executable, "-W", "error", "snippet.py"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr


@pytest.mark.parametrize("example", ["checkout.py", "checkout_async.py"])
def test_the_checkout_is_killed_and_tells_its_story(example: str, tmp_path: Path) -> None:
    """`make demo`, and its async twin."""
    told = subprocess.run(
        [sys.executable, ROOT / "examples" / example], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    assert told.stderr == ""
    assert re.search(r"charge card +remembered, not run again", told.stdout)
    assert re.search(r"charge card +1 x", told.stdout)
    assert "none that was recorded ran again" in told.stdout


def test_the_readmes_two_commands_are_there() -> None:
    """At the top, as targets of the Makefile."""
    readme, makefile = (ROOT / "README.md").read_text("utf-8"), (ROOT / "Makefile").read_text("utf-8")
    for command in ("make demo", "make test"):
        assert command in readme[:900]
        assert re.search(rf"^{command.split()[1]}:", makefile, flags=re.MULTILINE)


def test_the_simulations_page_runs(tmp_path: Path) -> None:
    """Its snippet, and the commands are there."""
    (snippet,) = snippets("docs/simulation.md")
    program = "import logging\nlogging.disable(50)\n" + snippet
    told = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith("None ")
    assert '"seed": 7' in told.stdout


def test_the_postgres_page_runs_from_top_to_bottom(database: Database, tmp_path: Path) -> None:
    """All its snippets, one after the other as one program; then its SQL, statement by statement."""
    database.execute(f"CREATE SCHEMA {database.schema}")
    url = make_conninfo(database.url, options=f"-csearch_path={database.schema}")
    program = "\n".join(snippets("docs/postgres.md"))
    for shown in ("postgresql://user:password@localhost:5432/dbname", "postgresql://localhost/mydb"):
        program = program.replace(repr(shown).replace("'", '"'), repr(url))
    program = re.sub(r"^(store|old) = ", r"opened.append(\1 := ", program, flags=re.MULTILINE)
    program = re.sub(r"(opened\.append\((?:store|old) := postgres\((?:.|\n)*?\))$", r"\1)", program, flags=re.MULTILINE)
    program = re.sub(r"^pool = (.*)$", r"pools.append(pool := \1)", program, flags=re.MULTILINE)
    closing = "for each in [*opened, *pools]:\n    each.close()\n"
    (tmp_path / "page.py").write_text("opened, pools = [], []\n" + program + "\n" + closing)
    told = subprocess.run(
        [sys.executable, "-W", "error", "page.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    assert told.stderr == ""
    page = (ROOT / "docs" / "postgres.md").read_text("utf-8")
    with psycopg.connect(url, autocommit=True) as connection:
        for block in re.findall(r"^```sql\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL):
            for statement in filter(str.strip, block.split(";\n")):
                connection.execute(statement.encode())
