"""A hundred thousand runs with 1,200,000 records: how long what people look at takes, and how it is found.

.venv/bin/python benchmarks/reading.py [--url URL] [--runs 100000] [--records 12] [--only stats]

Then how long commands take to start, with their processes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import psycopg
from psycopg import sql

from durable.operate.view import view_run
from durable.stores import Filter, Listed, PostgresStore, embedded, postgres

RUNS: Final = 100_000
RECORDS: Final = 12  # of each
PAGE: Final = 50
ROUNDS: Final = 15
SCHEMA: Final = "durable_bench_reading"

# Three in a hundred have failed, one is interrupted, one in two hundred is queued; two workflows, one of them rare.
FILL: Final = """
INSERT INTO durable_snapshots (id, snapshot, updated_at)
SELECT 'run:' || n,
       jsonb_build_object('formatVersion', 1, 'steps', jsonb_build_object(),
           'workflowName', CASE WHEN n % 1000 = 0 THEN 'rare' ELSE 'checkout' END,
           'execution', jsonb_build_object(
               'status', CASE WHEN n % 33 = 0 THEN 'failed' WHEN n % 100 = 1 THEN 'running' WHEN n % 200 = 2 THEN 'queued'
                              ELSE 'completed' END,
               'lastUpdated', now(), 'startedAt', now() - make_interval(secs => n + 20), 'epoch', 1,
               'error', CASE WHEN n % 33 = 0 THEN jsonb_build_object('type', 'builtins:OSError', 'step', 'step-' || n % 9) END),
           'metadata', jsonb_build_object('version', 1, 'tenant', 't' || n % 777)),
       now() - make_interval(secs => n)
  FROM generate_series(1, {runs}) AS n;

INSERT INTO durable_steps (workflow_id, seq, key, kind, nonce, epoch, record, created_at)
SELECT 'run:' || n, seq, 'step-' || seq, 'step', 0, 1,
       json_build_object('name', 'step-' || seq, 'ok', true, 'value', repeat('x', 100), 'seconds', 0.5),
       now() - make_interval(secs => n + 20 - seq)
  FROM generate_series(1, {runs}) AS n CROSS JOIN generate_series(0, {records} - 1) AS seq;

INSERT INTO durable_locks (workflow_id, epoch, expires_at, route, priority, due_at)
SELECT 'run:' || n, 1, now(), CASE WHEN n % 200 = 2 THEN '["","orders","checkout",1]' END,
       CASE WHEN n % 200 = 2 THEN 5 END, CASE WHEN n % 200 = 2 THEN now() END
  FROM generate_series(1, {runs}) AS n;
"""


def questions(store: PostgresStore, runs: int) -> dict[str, Callable[[], Any]]:
    """What is asked, by its name."""
    middle = Listed(f"run:{runs // 2}", datetime.now(UTC) - timedelta(seconds=runs // 2))
    filters = {
        "list": Filter(),
        "status:failed": Filter(statuses=("failed",)),
        "status:completed": Filter(statuses=("completed",)),
        "status:queued": Filter(statuses=("queued",)),
        "status:interrupted": Filter(statuses=("interrupted",)),
        "workflow:checkout": Filter(workflows=("checkout",)),
        "workflow:rare": Filter(workflows=("rare",)),
        "workflow:nobody's": Filter(workflows=("nobody's",)),
        "error:OSError": Filter(errors=("OSError",)),
        "error:KeyError (none)": Filter(errors=("KeyError",)),
        "step:step-3": Filter(steps=("step-3",)),
        "meta.tenant:t7": Filter(metadata={"tenant": ("t7",)}),
        "meta.tenant:nobody": Filter(metadata={"tenant": ("nobody",)}),
        "meta.tenant:t7 status:failed": Filter(metadata={"tenant": ("t7",)}, statuses=("failed",)),
        "queue:orders": Filter(queues=("orders",)),
        "since:1h": Filter(since=datetime.now(UTC) - timedelta(hours=1)),
        "run:777 (prefix)": Filter(prefix="run:777"),
        "id:run:777": Filter(ids=("run:777",)),
    }
    asked: dict[str, Callable[[], Any]] = {
        name: partial(store.runs, wanted, limit=PAGE) for name, wanted in filters.items()
    }
    return asked | {
        "list --after the middle": lambda: store.runs(limit=PAGE, after=middle),
        "list --count": store.count_runs,
        "list --count status:failed": lambda: store.count_runs(Filter(statuses=("failed",))),
        "show": lambda: view_run(store, store.runs(Filter(ids=("run:777",)))[0], now=datetime.now(UTC)),
        "stats": store.stats,
        "workers": store.workers,
    }


def starts(url: str) -> dict[str, list[str]]:
    """What is started, by its name."""
    durable = [sys.executable, "-m", "durable"]
    return {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import durable": [sys.executable, "-c", "import durable"],
        "import durable, and its run": [sys.executable, "-c", "import durable; durable.run"],
        "durable --help": [*durable, "--help"],
        "durable list --help": [*durable, "list", "--help"],
        "durable list": [*durable, "list", "--url", url, "--schema", SCHEMA],
        "durable show run:777": [*durable, "show", "run:777", "--url", url, "--schema", SCHEMA],
    }


def timed(ask: Callable[[], object]) -> str:
    """How long it takes, of `ROUNDS` times."""
    times: list[float] = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        ask()
        times.append((time.perf_counter() - began) * 1e3)
    return f"median {statistics.median(times):8.2f} ms   best {min(times):8.2f} ms   worst {max(times):8.2f} ms"


def started(command: list[str]) -> None:
    """Run a command to its end; what is compiled for it is kept, as in an installation."""
    env = {**os.environ, "NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": ""}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=env)


def main() -> None:
    """Fill, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="by default a PostgreSQL is started here")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--records", type=int, default=RECORDS, help="of each run")
    parser.add_argument("--only", default="", help="what has this in its name")
    given = parser.parse_args()
    if given.url:
        store, url = postgres(given.url, schema=SCHEMA), given.url
    else:
        server = embedded(".durable-bench", schema=SCHEMA)
        store, url = server, server.url
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(SCHEMA)))
        store.stats()
        connection.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(SCHEMA)))
        began = time.perf_counter()
        for statement in FILL.replace("{runs}", str(given.runs)).replace("{records}", str(given.records)).split(";\n"):
            if statement.strip():
                connection.execute(statement.encode())
        connection.execute("VACUUM ANALYZE")
    print(f"filled in {time.perf_counter() - began:.1f} s: {store.stats()}")
    for name, ask in questions(store, given.runs).items():
        if given.only in name:
            print(f"{name:30} {timed(ask)}", flush=True)
    for name, command in starts(url).items():
        if given.only in name:
            print(f"{name:30} {timed(partial(started, command))}", flush=True)
    store.close()


if __name__ == "__main__":
    main()
