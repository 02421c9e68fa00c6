"""Who is woken: as many workers as there are runs due, whatever way the planner takes."""

from __future__ import annotations

import re
from importlib import resources

import psycopg
import pytest

import durable
from durable.stores._postgres.sql.loader import load_statements
from durable.stores._postgres.sql.names import Names
from harness.support import Database

LOOPS = ("hashjoin", "material", "hashagg", "sort")  # what the planner must not do to loop over a subquery
FILES = sorted(
    file.name for file in resources.files("durable.stores._postgres.sql").iterdir() if file.name.endswith(".sql")
)


@pytest.mark.parametrize("without", [LOOPS, ()], ids=["looping", "as it likes"])
def test_a_start_wakes_one_worker_however_the_planner_joins(database: Database, without: tuple[str, ...]) -> None:
    with database.store() as store, psycopg.connect(database.url) as connection:
        durable.run(None, lambda step, deps: None, id="first", store=store)  # which makes the tables
        connection.execute(f"SET search_path TO {database.schema}")
        connection.execute(
            "INSERT INTO durable_workers (id, routes, owner, idle, seen_at)"
            " SELECT 'w' || i, '{r}', 'me', true, now() FROM generate_series(1, 9) AS i"
        )
        for join in without:
            connection.execute(f"SET LOCAL enable_{join} = off")
        wake = load_statements(Names())["wake"]
        woken = connection.execute(wake, {"routes": ["r"], "count": 2}).fetchall()
        idle = connection.execute("SELECT count(*) FROM durable_workers WHERE idle").fetchall()
    assert (len(woken), idle) == (2, [(7,)])


@pytest.mark.parametrize("file", FILES)
def test_no_statement_locks_rows_in_a_subquery_that_may_be_asked_again(file: str) -> None:
    """`IN (SELECT … FOR UPDATE)` is asked once for each row where the planner loops, and with LIMIT locks others each time."""
    for name, statement in load_statements(Names(), file).items():
        for found in re.finditer(r"\bIN \(\s*SELECT\b", statement.decode()):
            assert not re.search(r"\bFOR (NO KEY )?UPDATE\b", _inside(statement.decode(), found.end())), (file, name)


def _inside(text: str, start: int) -> str:
    depth = 1
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return text[start:place]
    raise AssertionError(text)
