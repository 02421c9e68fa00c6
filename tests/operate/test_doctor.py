"""`durable doctor` against servers that are broken in ten ways: each is named, and so is the way out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import durable
from durable.operate import doctor
from durable.operate.doctor import Check, examine
from harness.support import Database, looking

ROLE = "durable_doctor_role"


def looked(url: str, database: Database, **names: Any) -> dict[str, Check]:
    """By name, the worst of each."""
    found: dict[str, Check] = {}
    order = {"fine": 0, "warning": 1, "error": 2}
    for check in examine(url, {"schema": database.schema, **names}, source="$DATABASE_URL"):
        if check.name not in found or order[check.level] > order[found[check.name].level]:
            found[check.name] = check
    return found


@pytest.fixture
def ready(database: Database) -> Database:
    database.store().stats()
    return database


@pytest.fixture
def role(database_url: str) -> Iterator[str]:
    """A role that may log in, and nothing else; dropped at the end."""
    name = f"{ROLE}_{conninfo_to_dict(database_url)['dbname']}"
    with looking(database_url) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'pw'").format(sql.Identifier(name)))
    yield name
    with looking(database_url) as connection:
        connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def as_role(database: Database, role: str) -> str:
    return make_conninfo(database.url, user=role, password="pw")


def test_a_healthy_server(ready: Database) -> None:
    found = looked(ready.url, ready)
    assert {check.level for check in found.values()} == {"fine"}, found
    assert set(found) >= {
        "URL",
        "server",
        "commits",
        "schema",
        "rights",
        "clock",
        "pooler",
        "connections",
        "interrupted",
    }
    assert "password" not in str(found)


def test_1_a_url_that_cannot_be_read(database: Database) -> None:
    (check,) = looked("postgresql://u:p@ss/word@h/db", database).values()
    assert (check.level, check.name) == ("error", "URL")
    assert "percent-encode" in check.said
    assert "p@ss" not in check.said


def test_2_a_server_that_is_not_there(database: Database) -> None:
    found = looked("postgresql://localhost:1/x", database)
    assert found["server"].level == "error"
    assert "not available" in found["server"].said


def test_3_a_database_that_does_not_exist(database: Database) -> None:
    found = looked(make_conninfo(database.url, dbname="no_such_database"), database)
    assert found["server"].level == "error"
    assert "no_such_database" in found["server"].said


def test_4_tables_that_are_missing(database: Database) -> None:
    found = looked(database.url, database)
    assert found["schema"].level == "error"
    assert "durable migrate" in found["schema"].said


def test_5_an_index_that_was_dropped(ready: Database) -> None:
    """Without which a stale owner could write."""
    ready.execute("ALTER TABLE durable_locks DROP CONSTRAINT durable_locks_workflow_id_owner_token_key")
    found = looked(ready.url, ready)
    assert found["schema"].level == "error"
    assert "ADD UNIQUE (workflow_id, owner_token)" in found["schema"].said


def test_6_a_role_without_rights(ready: Database, role: str) -> None:
    ready.execute(f'GRANT USAGE ON SCHEMA "{ready.schema}" TO "{role}"')
    ready.execute(f'GRANT SELECT ON ALL TABLES IN SCHEMA "{ready.schema}" TO "{role}"')
    found = looked(as_role(ready, role), ready)
    assert found["rights"].level == "error"
    assert f'GRANT SELECT, INSERT, UPDATE ON "{ready.schema}"."durable_snapshots" TO "{role}"' in found["rights"].said


def test_7_a_role_that_does_not_wait_for_commits(ready: Database, role: str) -> None:
    ready.execute(f'GRANT USAGE ON SCHEMA "{ready.schema}" TO "{role}"')
    ready.execute(f'GRANT ALL ON ALL TABLES IN SCHEMA "{ready.schema}" TO "{role}"')
    ready.execute(f'ALTER ROLE "{role}" SET synchronous_commit = off')
    found = looked(as_role(ready, role), ready)
    assert found["commits"].level == "warning"
    assert f"ALTER ROLE {role} SET synchronous_commit = on" in found["commits"].said


def test_8_sessions_that_only_read(ready: Database, role: str) -> None:
    ready.execute(f'ALTER ROLE "{role}" SET default_transaction_read_only = on')
    found = looked(as_role(ready, role), ready)
    assert found["server"].level == "error"
    assert "read-only" in found["server"].said


def test_9_rows_that_a_policy_hides(ready: Database, role: str) -> None:
    ready.execute(f'GRANT USAGE ON SCHEMA "{ready.schema}" TO "{role}"')
    ready.execute(f'GRANT ALL ON ALL TABLES IN SCHEMA "{ready.schema}" TO "{role}"')
    ready.execute("ALTER TABLE durable_steps ENABLE ROW LEVEL SECURITY")
    found = looked(as_role(ready, role), ready)
    assert found["schema"].level == "error"
    assert "row-level security" in found["schema"].said


def test_10_tables_that_a_crash_empties(ready: Database) -> None:
    ready.execute("ALTER TABLE durable_steps SET UNLOGGED")
    found = looked(ready.url, ready)
    assert found["tables"].level == "error"
    assert "UNLOGGED" in found["tables"].said


def test_11_what_waits_in_vain(ready: Database) -> None:
    """Due, with no worker; left, with no process; and a transaction that is open for hours."""

    def left(step: durable.Step, deps: Any) -> None:
        step("one", lambda: 1)
        raise KeyboardInterrupt

    with ready.store() as store:
        durable.start("orders", store=store, queue="orders")
        with contextlib.suppress(KeyboardInterrupt):
            durable.run(None, left, id="left", store=store)
    found = looked(ready.url, ready)
    assert found["unserved"] == (
        "warning",
        "unserved",
        "something is due of orders: orders@1, and no worker that was at work in the last minute executes it",
    )
    assert found["interrupted"].level == "warning"
    assert "1 run of durable.run" in found["interrupted"].said


def test_12_a_transaction_that_is_open_too_long(ready: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_OPEN", 0.0)
    with psycopg.connect(ready.url) as holder:
        holder.execute("SELECT 1")
        found = looked(ready.url, ready)
        assert found["open too long"].level == "warning"
        assert f"pid {holder.info.backend_pid} has a transaction" in found["open too long"].said
