"""What people look at comes by index: a page of a hundred thousand runs reads a few hundred rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import pytest

from durable.stores import Filter, Listed, PostgresStore
from durable.stores._postgres.session import Session
from harness.plans import explain, nodes
from harness.support import Database, looking

RUNS: Final = 20_000
PAGE: Final = 50
FEW: Final = 800  # rows of a page's plan: what is shown, and what is looked up for each

FILL: Final = """
INSERT INTO durable_snapshots (id, snapshot, updated_at)
SELECT 'run:' || n,
       jsonb_build_object('formatVersion', 1, 'steps', '{{}}'::jsonb,
           'workflowName', CASE WHEN n %% 1000 = 0 THEN 'rare' ELSE 'checkout' END,
           'execution', jsonb_build_object('status', CASE WHEN n %% 50 = 0 THEN 'failed' WHEN n %% 51 = 0 THEN 'running'
                                                          WHEN n %% 52 = 0 THEN 'queued' ELSE 'completed' END,
               'error', CASE WHEN n %% 50 = 0 THEN jsonb_build_object('type', 'builtins:OSError', 'step', 'charge') END),
           'metadata', jsonb_build_object('version', 1, 'tenant', 't' || n %% 7)),
       now() - make_interval(secs => n)
  FROM generate_series(1, {runs}) AS n;
INSERT INTO durable_steps (workflow_id, seq, key, kind, nonce, epoch, record)
SELECT 'run:' || n, seq, 'step-' || seq, 'step', 0, 1, '{{"name": "x", "ok": true, "value": 1}}'
  FROM generate_series(1, {runs}) AS n CROSS JOIN generate_series(0, 11) AS seq;
INSERT INTO durable_locks (workflow_id, epoch, expires_at, route, priority, due_at)
SELECT 'run:' || n, 1, now(), CASE WHEN n %% 52 = 0 THEN '["","orders","checkout",1]' END, 5, CASE WHEN n %% 52 = 0 THEN now() END
  FROM generate_series(1, {runs}) AS n
"""


@pytest.fixture
def store(database: Database) -> Iterator[PostgresStore]:
    with database.store() as store:
        store.stats()
        for statement in FILL.format(runs=RUNS).split(";\n"):
            database.execute(statement)
        for table in ("durable_snapshots", "durable_steps", "durable_locks"):
            database.execute(f"VACUUM ANALYZE {table}")
        yield store


def questions(store: PostgresStore) -> dict[str, Callable[[], Any]]:
    """What people ask most."""
    middle = Listed("run:10000", datetime.now(UTC) - timedelta(seconds=10_000))
    filters = {
        "all": Filter(),
        "failed": Filter(statuses=("failed",)),
        "completed": Filter(statuses=("completed",)),
        "queued": Filter(statuses=("queued",)),
        "interrupted": Filter(statuses=("interrupted",)),
        "a workflow": Filter(workflows=("checkout",)),
        "a rare workflow": Filter(workflows=("rare",)),
        "no workflow": Filter(workflows=("nobody's",)),
        "an error": Filter(errors=("OSError",)),
        "a failed step": Filter(steps=("charge",)),
        "since": Filter(since=datetime.now(UTC) - timedelta(seconds=300)),
        "metadata of failed ones": Filter(statuses=("failed",), metadata={"tenant": ("t3",)}),
        "a wide prefix": Filter(prefix="run:"),
        "one id": Filter(ids=("run:777",)),
    }
    asked: dict[str, Callable[[], Any]] = {
        name: partial(store.runs, wanted, limit=PAGE) for name, wanted in filters.items()
    }
    asked["from the middle"] = lambda: store.runs(limit=PAGE, after=middle)
    asked["a journal"] = lambda: store.journal("run:777")
    asked["signals"] = lambda: store.signals("run:777")
    asked["a header"] = lambda: store.header("run:777")
    return asked


def plans(database: Database, ask: Callable[[], Any]) -> list[Any]:
    """How each statement of it is executed, with what it reads."""
    asked: list[tuple[bytes, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        for verb in ("execute", "queue"):
            original = getattr(Session, verb)

            def noted(session: Session, query: bytes, parameters: Any = None, original: Any = original) -> Any:
                asked.append((query, parameters))
                return original(session, query, parameters)

            patch.setattr(Session, verb, noted)
        ask()
    with looking(database.url) as connection:
        return [explain(connection, query, values) for query, values in asked if values and b"patience" not in query]


def read(plan: Any) -> int:
    """How many rows it reads, those included that a filter removes."""
    return sum(
        int((node.get("Actual Rows", 0) + node.get("Rows Removed by Filter", 0)) * node.get("Actual Loops", 1))
        for node in nodes(plan)
        if "Scan" in node["Node Type"] and "Relation Name" in node
    )


@pytest.mark.long(20)
def test_pages_read_what_they_show(store: PostgresStore, database: Database) -> None:
    """By index, whatever is stored beside it: no table is read as a whole, and nothing is sorted but a page."""
    for name, ask in questions(store).items():
        for plan in plans(database, ask):
            kinds = {node["Node Type"] for node in nodes(plan)}
            assert "Seq Scan" not in kinds, (name, plan)
            assert read(plan) <= FEW, (name, read(plan), plan)
    # The detector detects: without its index, a workflow that nobody has is looked for in all of them.
    database.execute("DROP INDEX durable_snapshots_workflow_idx")
    (plan,) = plans(database, questions(store)["no workflow"])
    assert read(plan) > FEW


def test_what_has_no_index_is_read_once(store: PostgresStore, database: Database) -> None:
    """A queue's runs are looked for from the newest on until the page is full; metadata or a prefix alone read each header, once."""
    wanted_and_most = (
        (Filter(queues=("orders",)), 2 * 52 * PAGE),
        (Filter(statuses=("failed",), queues=("orders",)), 2 * RUNS // 50),
        (Filter(metadata={"tenant": ("t3",)}), RUNS),
        (
            Filter(prefix="run:777"),
            RUNS,
        ),  # by the primary key where the server can (since PostgreSQL 13, in a C collation)
    )
    for wanted, most in wanted_and_most:
        for plan in plans(database, lambda wanted=wanted: store.runs(wanted, limit=PAGE)):  # type: ignore[misc]
            assert read(plan) <= most + FEW, (wanted, read(plan), plan)


def test_counts_end(store: PostgresStore, database: Database) -> None:
    """As soon as they have counted far enough."""
    for wanted in (Filter(), Filter(statuses=("completed",)), Filter(workflows=("checkout",))):
        assert store.count_runs(wanted, limit=100) == 100
        for plan in plans(database, lambda wanted=wanted: store.count_runs(wanted, limit=100)):  # type: ignore[misc]
            assert read(plan) <= FEW, (wanted, plan)
