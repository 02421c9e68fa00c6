"""The page on what stands in the database: its program is run, its SELECTs say what it shows, and its sizes are so."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

import durable
from harness.programs import run_program
from harness.support import Database

PAGE: Final = (Path(__file__).resolve().parents[2] / "docs" / "database.md").read_text("utf-8")


def test_each_select_says_what_the_page_shows(database: Database, tmp_path: Path) -> None:
    """Row by row."""
    database.execute(f"CREATE SCHEMA {database.schema}")
    url = make_conninfo(database.url, options=f"-csearch_path={database.schema}")
    (program,) = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "page.py").write_text(program.replace('"postgresql://localhost/mydb"', repr(url)) + "\nstore.close()\n")
    told = run_program([sys.executable, "-W", "error", "page.py"], cwd=tmp_path)
    assert (told.returncode, told.stderr) == (0, "")
    shown = re.findall(r"^```sql\n(.*?)^```\n\n```text\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert len(shown) == PAGE.count("```sql")
    with psycopg.connect(url, autocommit=True) as connection:
        for query, rows in shown:
            found = connection.execute(query.encode()).fetchall()
            assert [" | ".join(map(str, row)) for row in found] == rows.splitlines(), query


RUNS: Final = 500


@pytest.mark.long(5)
def test_a_run_takes_as_much_room_as_the_page_says(database: Database) -> None:
    """Within a quarter."""

    def result(number: int) -> dict[str, Any]:
        return {"number": number, "text": "x" * 75}

    def ten_steps(step: durable.Step, deps: Any) -> None:
        for number in range(10):
            step("step", result, number, key=f"step-{number}")

    store = database.store()
    for number in range(RUNS):
        durable.run({}, ten_steps, id=f"run-{number}", store=store)
    tables = "('durable_snapshots', 'durable_steps', 'durable_locks', 'durable_signals')"
    database.execute("VACUUM durable_snapshots, durable_steps, durable_locks")
    sizes = dict(
        database.execute(
            f"SELECT relname, pg_total_relation_size(oid) FROM pg_class WHERE relname IN {tables}"
            f" AND relnamespace = '{database.schema}'::regnamespace"
        )
    )
    run, step, million = (
        int(number.replace(",", ""))
        for number in re.findall(r"^\| .* \| ([\d,]+)(?: GB)? \|$", PAGE, flags=re.MULTILINE)
    )
    assert sum(sizes.values()) / RUNS == pytest.approx(run, rel=0.25)
    assert sizes["durable_steps"] / RUNS / 11 == pytest.approx(step, rel=0.25)
    assert million * 1e9 == pytest.approx(run * 1e6, rel=0.1)
