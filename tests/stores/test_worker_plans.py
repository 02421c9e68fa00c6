"""What workers ask for all the time comes by index, however many runs have ended, and however many are due later."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

import psycopg
import pytest

import durable
from durable._engine.starts import Route
from durable.stores import PostgresStore
from durable.stores._postgres.session import Session
from durable.stores.requests import Poll, Polled
from harness.support import Database, looking

ENDED: Final = 200_000
SLEEPING: Final = 100_000
FEW: Final = 600  # of rows and pages: each run, and each way to one, takes a handful of pages
ROUTE: Final = '["","default","job",1]'

_FILL: Final = """
    INSERT INTO durable_locks (workflow_id, epoch, expires_at, route, priority, due_at)
    SELECT {name} || i, 1, now(), %s, {priority}, {due_at} FROM generate_series(1, {runs}) AS i;
    INSERT INTO durable_snapshots (id, snapshot, updated_at)
    SELECT {name} || i,
           json_build_object('formatVersion', '1', 'workflowName', 'job', 'metadata', '{{}}'::json, 'dedup', {name} || i,
                             'execution', json_build_object('status', {status}))::jsonb,
           now()
      FROM generate_series(1, {runs}) AS i;
    INSERT INTO durable_steps (workflow_id, seq, key, kind, nonce, epoch, record)
    SELECT {name} || i, 0, 'input', 'input', 0, 1, '1' FROM generate_series(1, {runs}) AS i;
"""


@durable.workflow(name="job")
def job(step: durable.Step, deps: Any) -> None:
    """One of many."""


@pytest.fixture
def store(database: Database) -> Iterator[PostgresStore]:
    """With 200,000 runs that have ended, and 100,000 that are due tomorrow, more urgent than all others."""
    with database.store() as store:
        durable.start(job, store=store, id="first")
        ended = _FILL.format(name="'e'", priority=5, due_at="NULL", runs=ENDED, status="'completed'")
        asleep = _FILL.format(
            name="'s'", priority=0, due_at="now() + interval '1 day'", runs=SLEEPING, status="'queued'"
        )
        for fill in (ended, asleep):
            for statement in filter(str.strip, fill.split(";\n")):
                database.execute(statement, *[ROUTE] * statement.count("%s"))
        yield store


def poll(store: PostgresStore, *, floor: float | None = None) -> Polled:
    """What a worker asks, with all that it may ask for; from a floor, only what is due."""
    routes = [Route("default", "job", 1), Route("default", "other", 1)]
    is_full = floor is None
    return store.perform(Poll(routes, 10, 30.0, lambda lease: True, is_full, "w", is_full, floor))


class Asked:
    """The statements that are asked within it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.statements: list[tuple[bytes, Any]] = []
        for name in ("execute", "queue"):
            monkeypatch.setattr(Session, name, self._noted(getattr(Session, name)))

    def _noted(self, ask: Any) -> Any:
        def noted(session: Session, query: bytes, parameters: Any = None) -> Any:
            self.statements.append((query, parameters))
            return ask(session, query, parameters)

        return noted

    def explain(self, database: Database, mode: str) -> dict[str, str]:
        """How each is executed, planned for its values or for any; nothing is changed by it."""
        plans: dict[str, str] = {}
        with looking(database.url) as connection, connection.transaction(force_rollback=True):
            connection.execute(f"SET LOCAL plan_cache_mode = {mode}".encode())
            connection.execute(f"SET LOCAL search_path TO {database.schema}".encode())
            for number, (query, parameters) in enumerate(self.statements):
                if query.startswith(b"SET LOCAL enable"):
                    connection.execute(query)
                elif query == b"COMMIT":
                    connection.execute("SET LOCAL enable_seqscan = on")
                elif parameters is not None or b"noticed" in query:
                    plans[query.decode()] = _explain(connection, number, query, parameters)
        return plans


def _explain(connection: psycopg.Connection[Any], number: int, query: bytes, parameters: Any) -> str:
    """By a prepared statement, which alone can be planned for any values; no rollback ends one."""
    names: list[str] = []

    def place(found: re.Match[str]) -> str:
        name = found[1]
        if name is None:
            return "%"
        if name not in names:
            names.append(name)
        return f"${names.index(name) + 1}"

    text = re.sub(r"%\((\w+)\)s|%%", place, query.decode())
    values = ", ".join(f"%({name})s" for name in names)
    connection.execute(f"PREPARE asked_{number} AS {text}".encode(), prepare=False)
    given = f"({values})" if values else ""
    explain = f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) EXECUTE asked_{number} {given}"
    cursor = psycopg.ClientCursor(connection)
    (plan,) = cursor.execute(explain.encode(), parameters).fetchone() or ("",)
    connection.execute(f"DEALLOCATE asked_{number}".encode())
    return json.dumps(plan)


def nodes(plan: Any) -> Iterator[dict[str, Any]]:
    """Each node of a plan."""
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


def touched(plan: str) -> list[str]:
    """What of this plan reads more than a few rows, or pages."""
    (told,) = json.loads(plan)
    pages = told["Plan"]["Shared Hit Blocks"] + told["Plan"]["Shared Read Blocks"]
    much = [f"{pages} pages"] if pages > FEW else []
    for node in nodes(told["Plan"]):
        table = node.get("Relation Name", "durable_workers")
        removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        rows = (removed + node["Actual Rows"]) * node["Actual Loops"]
        if not node["Actual Loops"]:  # until PostgreSQL 14 a plan shows the alternative that was not taken, too
            continue
        if rows > FEW or (node["Node Type"] == "Seq Scan" and table != "durable_workers"):
            much.append(f"{node['Node Type']} of {rows} rows of {table}")
    return much


@pytest.mark.long(20)
def test_what_workers_ask_reads_few_rows(
    store: PostgresStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS 131 and 132: by index, and a handful of pages, whether a statement is planned for its values or for any."""
    durable.start(job, store=store, id="nine", priority=9)
    asked = Asked(monkeypatch)
    granted = poll(store).granted
    assert {one.lease.run_id for one in granted} == {"first", "nine"}
    durable.start(job, store=store, id="ten", priority=9)
    durable.start(job, store=store, id="eleven", dedup="only")
    for analyze in ("", "ANALYZE"):  # before there are any statistics, and after
        for table in ("durable_locks", "durable_snapshots", "durable_steps"):
            database.execute(f"VACUUM {analyze} {table}")
        for mode in ("force_generic_plan", "force_custom_plan"):
            plans = asked.explain(database, mode)
            assert len(plans) == 8  # say idle, notice, wake the suspended, poll, held near; start, read started, wake
            assert {query: touched(plan) for query, plan in plans.items() if touched(plan)} == {}
    # The detector detects: without the index of what is due, the poll reads it all.
    database.execute("DROP INDEX durable_locks_due_idx")
    assert any(map(touched, asked.explain(database, "force_generic_plan").values()))


def test_polls_are_planned_once(database: Database) -> None:
    """Left to itself the server plans each poll anew, since it takes one for any number of runs to be dear."""
    if not database.execute("SELECT 1 FROM pg_attribute WHERE attname = 'custom_plans'"):
        pytest.skip("how often a statement was planned is told since PostgreSQL 14: the embedded server is newer")
    with database.store() as store:
        durable.start(job, store=store)
        for _ in range(20):
            poll(store)
        sessions = list(store._held.made.connections._idle)  # each knows only what is prepared on it
        asked = "SELECT custom_plans FROM pg_prepared_statements WHERE statement LIKE 'WITH due%%'"
        planned = [count for session in sessions for (count,) in session.connection.execute(asked.encode()).fetchall()]
        assert planned == [0]


def test_an_open_transaction_does_not_make_polls_slower_with_each_run(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS 132: what has ended under it stays in the index; a poll begins where the last full one has found something."""
    with database.store() as store, psycopg.connect(database.url) as open_one:
        first = durable.start(job, store=store)
        open_one.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        open_one.execute("SELECT 1")
        database.execute(
            "INSERT INTO durable_locks (workflow_id, epoch, expires_at, route, priority, due_at)"
            " SELECT 'o' || i, 0, now(), %s, 5, now() - interval '5 s' FROM generate_series(1, 20000) AS i",
            ROUTE,
        )
        database.execute("UPDATE durable_locks SET due_at = NULL WHERE workflow_id LIKE 'o%%'")
        full = poll(store)
        assert [one.lease.run_id for one in full.granted] == [first.id]
        second = durable.start(job, store=store)
        asked = Asked(monkeypatch)
        from_floor = poll(store, floor=full.floor)
        assert [one.lease.run_id for one in from_floor.granted] == [second.id]
        assert from_floor.floor is None  # only a full poll has seen what is below
        durable.start(job, store=store)
        plans = asked.explain(database, "force_generic_plan")
        assert {query: touched(plan) for query, plan in plans.items() if touched(plan)} == {}
        # The detector detects.
        asked.statements.clear()
        poll(store)
        assert any(map(touched, asked.explain(database, "force_generic_plan").values()))


def test_signals_that_are_not_noticed_do_not_make_polls_slower(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS 145: whether they are of an open transaction, or were noticed under one; only a full poll passes over them."""
    with database.store() as store, psycopg.connect(database.url) as open_one:
        first = durable.start(job, store=store)
        full = poll(store)
        database.execute(
            "INSERT INTO durable_locks (workflow_id, epoch, expires_at, route, priority)"
            " SELECT 'o' || i, 0, now(), %s, 5 FROM generate_series(1, 20000) AS i",
            ROUTE,
        )
        sends = (
            "INSERT INTO {}.durable_signals (workflow_id, name, payload, nonce)"
            " SELECT 'x' || i, 's', '1', {} FROM generate_series(1, 20000) AS i"
        )
        open_one.execute(sends.format(database.schema, 1).encode())
        database.execute(sends.format(database.schema, 2))
        for _ in range(3):
            poll(store)  # notices a thousand or two of the others
        second = durable.start(job, store=store)
        asked = Asked(monkeypatch)
        from_floor = poll(store, floor=full.floor)
        assert [one.lease.run_id for one in (*full.granted, *from_floor.granted)] == [first.id, second.id]
        plans = asked.explain(database, "force_generic_plan")
        assert plans
        assert {query: touched(plan) for query, plan in plans.items() if touched(plan)} == {}
        asked.statements.clear()
        poll(store)  # the detector detects
        assert any(map(touched, asked.explain(database, "force_generic_plan").values()))


def test_what_is_committed_below_the_floor_is_found_by_the_next_full_poll(database: Database) -> None:
    """FAULTS 132: the transaction of its start was open for a while."""
    with database.store() as store:
        earlier = durable.start(job, store=store, delay=3600)
        floor = poll(store).floor
        database.execute("UPDATE durable_locks SET due_at = now() - interval '1 s' WHERE workflow_id = %s", earlier.id)
        assert [one.lease.run_id for one in poll(store, floor=floor).granted] == [
            earlier.id
        ]  # two seconds are for starts
        late = durable.start(job, store=store)
        database.execute("UPDATE durable_locks SET due_at = now() - interval '1 minute'")
        assert not poll(store, floor=floor).granted
        assert [one.lease.run_id for one in poll(store).granted] == [late.id]
