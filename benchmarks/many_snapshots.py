"""A hundred thousand snapshots with a million records: how long a page of a hundred and a document take.

.venv/bin/python benchmarks/many_snapshots.py [--url URL]
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import psycopg
from psycopg import sql

from durable.stores import Listed, PostgresStore, embedded, postgres
from durable.stores._postgres.session import Session

SNAPSHOTS: Final = 100_000
RECORDS: Final = 10  # of each
PAGE: Final = 100
ROUNDS: Final = 50
SCHEMA: Final = "durable_bench_snapshots"

# One in a hundred is interrupted, one in a hundred failed, a few are running; the ids say whose they are.
FILL: Final = """
INSERT INTO durable_snapshots (id, snapshot, updated_at)
SELECT CASE WHEN n % 1000 = 0 THEN 'rare:' ELSE 'orders:' END || n,
       jsonb_build_object('formatVersion', 1, 'workflowName', 'checkout', 'steps', jsonb_build_object(),
           'execution', jsonb_build_object(
               'status', CASE n % 100 WHEN 0 THEN 'running' WHEN 1 THEN 'failed' ELSE 'completed' END,
               'lastUpdated', now()),
           'metadata', jsonb_build_object('version', 1, 'customer', 'c-' || n % 777)),
       now() - make_interval(secs => n)
  FROM generate_series(1, %(snapshots)s) AS n;

INSERT INTO durable_steps (workflow_id, seq, key, kind, nonce, epoch, record)
SELECT run.id, seq, 'step-' || seq, 'step', 0, 1,
       json_build_object('name', 'step-' || seq, 'ok', true, 'value', repeat('x', 100))
  FROM durable_snapshots AS run
 CROSS JOIN generate_series(1, %(records)s) AS seq;

INSERT INTO durable_locks (workflow_id, epoch, owner_token, owner, expires_at)
SELECT id, 1, CASE WHEN snapshot->'execution'->>'status' = 'running' AND right(id, 4) = '0000' THEN '1:bench' END,
       NULL, now() + interval '1 day'
  FROM durable_snapshots;

ANALYZE durable_snapshots, durable_steps, durable_locks;
"""


def fill(store: PostgresStore, url: str, schema: str, *, snapshots: int = SNAPSHOTS, records: int = RECORDS) -> None:
    """Make the store's tables, and put all that into them."""
    store.stats()
    script = FILL.replace("%(snapshots)s", str(snapshots)).replace("%(records)s", str(records))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(schema)))
        for statement in script.split(";\n"):
            if statement.strip():
                connection.execute(statement.encode())
        connection.execute("VACUUM durable_snapshots")


def questions(store: PostgresStore) -> dict[str, Callable[[], Any]]:
    """What is asked, by its name."""
    middle = store.list(limit=50_000)[-1] if store.stats().runs > 50_000 else store.list(limit=100)[-1]
    rare = Listed("rare:1000", middle.updated_at)
    return {
        "a page": lambda: store.list(limit=PAGE),
        "a page from the middle": lambda: store.list(limit=PAGE, after=middle),
        "interrupted": lambda: store.list(limit=PAGE, status="interrupted"),
        "failed": lambda: store.list(limit=PAGE, status="failed"),
        "completed": lambda: store.list(limit=PAGE, status="completed"),
        "a common prefix": lambda: store.list(limit=PAGE, prefix="orders:"),
        "a rare prefix (1 in 1,000)": lambda: store.list(limit=PAGE, prefix="rare:"),
        "a rare prefix from the middle": lambda: store.list(limit=PAGE, prefix="rare:", after=rare),
        "load": lambda: store.load("orders:54321"),
        "status": lambda: store.status("orders:54321"),
    }


def plan(url: str, ask: Callable[[], Any]) -> str:
    """How PostgreSQL means to answer this question: EXPLAIN of each statement that it asks."""
    asked: list[tuple[bytes, Any]] = []
    execute = Session.execute

    def execute_noted(session: Session, query: bytes, parameters: Any = None) -> psycopg.Cursor[Any]:
        asked.append((query, parameters))
        return execute(session, query, parameters)

    Session.execute = execute_noted  # type: ignore[assignment, method-assign]
    try:
        ask()
    finally:
        Session.execute = execute  # type: ignore[method-assign]
    with psycopg.connect(url, autocommit=True) as connection:
        explained = [connection.execute(b"EXPLAIN " + query, parameters).fetchall() for query, parameters in asked]
    return "\n".join(line for lines in explained for (line,) in lines)


def main() -> None:
    """Fill, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="by default a PostgreSQL is started here")
    given = parser.parse_args().url
    if given:
        store, url = postgres(given, schema=SCHEMA), given
    else:
        store = embedded(".durable-bench", schema=SCHEMA)
        url = store.url
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(SCHEMA)))
    began = time.perf_counter()
    fill(store, url, SCHEMA)
    print(f"filled in {time.perf_counter() - began:.1f} s: {store.stats()}")
    for name, ask in questions(store).items():
        times = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            ask()
            times.append((time.perf_counter() - began) * 1e3)
        scans = ", ".join(
            dict.fromkeys(re.findall(r"(?:Seq Scan|using) .*?(?= on| \(|$)", plan(url, ask), re.MULTILINE))
        )
        print(f"{name:30} median {statistics.median(times):6.2f} ms   worst {max(times):6.2f} ms   {scans}")
    store.close()


if __name__ == "__main__":
    main()
