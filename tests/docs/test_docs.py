"""What the README and the pages show is run."""

from __future__ import annotations

import inspect
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

import durable
from durable import errors
from harness.machine import prepared
from harness.programs import run_program
from harness.support import Database

CONTRIBUTORS = ("docs/simulation.md",)  # what they show is run from `tests/`
PROGRAMS = (
    "docs/postgres.md",
    "docs/operations.md",
    "docs/coming-from-awaitly.md",
)  # their snippets go on from each other
STORIES = ("docs/tutorial.md", "docs/database.md")  # played by tests of their own
ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for page in (ROOT / "docs").rglob("*.md")
    if not page.is_relative_to(ROOT / "docs" / "_build")
)


def snippets(page: str) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def test_the_readmes_screen_of_code_runs_and_runs_again(tmp_path: Path) -> None:
    """As a stranger would: saved to a file, run twice. The second time nothing is called. The first page has the same."""
    (screen,) = snippets("README.md")
    assert snippets("docs/index.md") == [screen]
    assert len([line for line in screen.splitlines() if line]) <= 12
    (tmp_path / "checkout.py").write_text(screen)
    command = [sys.executable, "-W", "error", "checkout.py"]
    first, second = (run_program(command, cwd=tmp_path) for _ in range(2))
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout == "receipt: 42 euros from card-7\n42 euros from card-7\n"
    assert second.stdout == "42 euros from card-7\n"


def _snippets() -> list[Any]:
    return [
        pytest.param(text, page, id=f"{page}-{number}")
        for page in PAGES
        if page not in PROGRAMS + STORIES
        for number, text in enumerate(snippets(page), start=1)
    ]


@pytest.mark.parametrize(("snippet", "page"), _snippets())
def test_a_snippet_of_the_docs_runs(snippet: str, page: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Each by itself, copied to a file; tests are run by pytest, and a contributors' page has `tests/` on its path.
    What opens `postgres()` finds a schema of its own at $DATABASE_URL."""
    (tmp_path / "snippet.py").write_text(snippet)
    place = {}
    if "postgres()" in snippet:
        database: Database = request.getfixturevalue("database")
        database.execute(f"CREATE SCHEMA {database.schema}")
        place = {"DATABASE_URL": make_conninfo(database.url, options=f"-csearch_path={database.schema}")}
    if "embedded(" in snippet:
        prepared(tmp_path / ".durable")
    tested = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"] if "\ndef test_" in snippet else []
    command = [sys.executable, "-W", "error", *tested, "snippet.py"]
    path = {"PYTHONPATH": str(ROOT / "tests")} if page in CONTRIBUTORS else {}
    told = run_program(command, cwd=tmp_path, env=os.environ | path | place)
    assert told.returncode == 0, told.stdout + told.stderr
    for shown in re.findall(
        re.escape(f"```python\n{snippet}```") + r"\n\n```text\n(.*?)^```",
        (ROOT / page).read_text("utf-8"),
        flags=re.MULTILINE | re.DOTALL,
    ):
        said = told.stdout.splitlines()
        assert len(said) == len(shown.splitlines()), told.stdout
        for line, start in zip(said, shown.splitlines(), strict=True):
            assert line.startswith(start.removesuffix("…")), told.stdout


CHECKOUTS = [["-m", "durable.demo"], [ROOT / "examples" / "checkout.py"], [ROOT / "examples" / "checkout_async.py"]]


@pytest.mark.long(3)
@pytest.mark.parametrize("program", CHECKOUTS, ids=lambda program: Path(program[-1]).name)
def test_the_checkout_is_killed_and_tells_its_story(program: list[str], tmp_path: Path) -> None:
    """`make demo`, by both its names, and its async twin; only the first has a second act, with workers."""
    prepared(tmp_path / ".durable")
    told = run_program([sys.executable, *program], cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert told.stderr == ""
    assert re.search(r"charge card +remembered, not run again", told.stdout)
    assert re.search(r"charge card +1 x", told.stdout)
    assert "none that was recorded ran again" in told.stdout
    if "durable.demo" in program:
        assert re.search(r"kill -9 for process \d+", told.stdout)
        assert re.search(r"all 10 are completed", told.stdout)
        assert re.search(r"went on in process \d+, \d+\.\d\d s after the kill", told.stdout)
        assert re.search(r"Of 50 steps \d+ ran once", told.stdout)


@pytest.mark.long(5)
def test_the_transfers_are_killed_and_the_sum_never_changes(tmp_path: Path) -> None:
    """It looks at the accounts after each kill, and fails if they are wrong."""
    prepared(tmp_path / ".durable")
    told = run_program([sys.executable, ROOT / "examples" / "transfer.py"], cwd=tmp_path)
    assert (told.returncode, told.stderr) == (0, "")
    kills = re.search(r"300 transfers, (\d+) times kill -9: each was applied once", told.stdout)
    assert kills is not None
    assert int(kills[1]) > 0


def test_the_readmes_two_commands_are_there() -> None:
    """At the top, as targets of the Makefile."""
    readme, makefile = (ROOT / "README.md").read_text("utf-8"), (ROOT / "Makefile").read_text("utf-8")
    for command in ("make demo", "make test"):
        assert command in readme[:900]
        assert re.search(rf"^{command.split()[1]}:", makefile, flags=re.MULTILINE)


def test_the_first_command_says_what_to_install(tmp_path: Path) -> None:
    """Where there is no PostgreSQL to be started: in one line."""
    program = (
        "import runpy, sys; from durable.stores._embedded import server; server._candidates = lambda: iter(())\n"
        "sys.argv = ['demo']; runpy.run_module('durable.demo', run_name='__main__')"
    )
    told = run_program([sys.executable, "-c", program], cwd=tmp_path)
    assert (told.returncode, told.stdout) == (1, "")
    (line,) = told.stderr.splitlines()
    assert "pip install 'durable-postgres[embedded]'" in line


def test_the_simulations_page_runs() -> None:
    """Its snippet, from `tests/`, as the page says."""
    (snippet,) = snippets("docs/simulation.md")
    program = "import logging\nlogging.disable(50)\n" + snippet
    told = run_program([sys.executable, "-W", "error", "-c", program], cwd=ROOT / "tests")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith("None ")
    assert '"seed": 7' in told.stdout


@pytest.mark.parametrize("page", PROGRAMS)
def test_a_page_that_is_one_program_runs_from_top_to_bottom(page: str, database: Database, tmp_path: Path) -> None:
    """All its snippets, one after the other as one program; then its SQL, statement by statement."""
    database.execute(f"CREATE SCHEMA {database.schema}")
    url = make_conninfo(database.url, options=f"-csearch_path={database.schema}")
    program = "\n".join(snippets(page))
    for shown in ("postgresql://user:password@localhost:5432/dbname", "postgresql://localhost/mydb"):
        program = program.replace(repr(shown).replace("'", '"'), repr(url))
    program = re.sub(r"^(store|old) = ", r"opened.append(\1 := ", program, flags=re.MULTILINE)
    program = re.sub(r"(opened\.append\((?:store|old) := postgres\((?:.|\n)*?\))$", r"\1)", program, flags=re.MULTILINE)
    program = re.sub(r"^pool = ((?:.|\n)*?\))$", r"pools.append(pool := \1)", program, flags=re.MULTILINE)
    closing = "for each in [*opened, *pools]:\n    each.close()\n"
    (tmp_path / "page.py").write_text("opened, pools = [], []\n" + program + "\n" + closing)
    told = run_program([sys.executable, "-W", "error", "page.py"], cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert told.stderr == ""
    text = (ROOT / page).read_text("utf-8")
    with psycopg.connect(url, autocommit=True) as connection:
        for block in re.findall(r"^```sql\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
            for statement in filter(str.strip, block.split(";\n")):
                connection.execute(statement.encode())


def test_the_first_steps_are_as_they_are_told(tmp_path: Path) -> None:
    """The first program of getting-started.md, run as its console shows."""
    page = "docs/getting-started.md"
    (tmp_path / "checkout.py").write_text(snippets(page)[0])
    (shown,) = re.findall(
        r"^```console\n(\$ .*?)^```", (ROOT / page).read_text("utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    for part in shown.split("$ python ")[1:]:
        command, *lines = part.strip().split("\n")
        done = run_program([sys.executable, "-u", *command.split()], cwd=tmp_path)
        killed = done.returncode == -signal.SIGKILL
        assert (*done.stdout.splitlines(), *["Killed"] * killed) == tuple(lines), done.stderr


def test_each_error_has_its_way_out() -> None:
    """Every class that is not the name of a group has one row in operations.md."""
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)
    groups = {"DurableError", "DurableWarning", "HistoryError", "OwnershipError", "StoreError", "Unwind"}
    assert sorted(rows) == sorted(set(errors.__all__) - groups)


@pytest.mark.parametrize(("heading", "call"), [("`durable.run`", durable.run), ("a step", durable.Step.__call__)])
def test_the_options_are_a_table_on_the_reference_page(heading: str, call: Callable[..., Any]) -> None:
    """In their order, each of them."""
    table = (ROOT / "docs" / "api.md").read_text("utf-8").partition(f"| option of {heading} |")[2].partition("\n\n")[0]
    options = [name for name, given in inspect.signature(call).parameters.items() if given.kind is given.KEYWORD_ONLY]
    assert re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE) == options


WIDE = ("docs/reliability.md",)  # a contributors' page, which is made of figures


@pytest.mark.parametrize("page", sorted(set(PAGES) - set(WIDE)))
def test_no_line_of_code_is_cut_on_a_screen_of_1280_points(page: str) -> None:
    """Where 109 columns have room beside the table of contents; `docs/ruff.toml` keeps Python to a hundred."""
    for kind, code in re.findall(r"^```(.*)\n((?:.*\n)*?)^```$", (ROOT / page).read_text("utf-8"), flags=re.MULTILINE):
        if kind != "{eval-rst}":
            assert [line for line in code.splitlines() if len(line) > 109] == []


def test_no_page_promises_what_cannot_be_kept() -> None:
    """Nothing happens "exactly once" or "never twice" without saying what of."""
    for page in ["README.md", *PAGES]:
        for sentence in re.split(r"[.:]\s|\n\n|\|", (ROOT / page).read_text("utf-8").lower()):
            for phrase in ("exactly once", "exactly-once", "never runs twice", "zero data loss"):
                assert phrase not in sentence or "database" in sentence, (page, sentence)
