"""What a resident and its database hold at one moment, in numbers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import psycopg

from chaos.resident import NAME, Report

PAGE: Final = os.sysconf("SC_PAGE_SIZE")  # bytes
DEAD: Final = "dead rows"  # of all tables, as the server estimates them
UPDATES: Final = "updates of leases"
HOT: Final = "of these HOT"
PROCESS: Final = ("resident set", "threads", "tasks", "file descriptors", "connections", "Python objects")
RESIDENT: Final = "resident set"  # in bytes; the others are numbers of things

_OURS: Final = "relname LIKE 'durable%' AND relname NOT LIKE '%migrations'"  # one row a version
_SIZES: Final = f"""
    WITH ours AS (
        SELECT oid, relname::text AS name, reltoastrelid FROM pg_class WHERE {_OURS} AND relkind = 'r'
    ), tables AS (
        SELECT oid, name FROM ours UNION ALL SELECT reltoastrelid, name || ', large values' FROM ours WHERE reltoastrelid <> 0
    )
    SELECT 'table ' || name, pg_relation_size(oid) FROM tables
    UNION ALL
    SELECT 'index ' || CASE WHEN name LIKE '%large values' THEN name ELSE indexrelid::regclass::text END,
           pg_relation_size(indexrelid)
      FROM tables JOIN pg_index ON indrelid = oid
     ORDER BY 1
"""
_TABLES: Final = f"SELECT relname FROM pg_class WHERE {_OURS} AND relkind = 'r'"
_CONNECTIONS: Final = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s
"""
_ACTIVITY: Final = """
    SELECT sum(n_dead_tup), sum(n_tup_upd) FILTER (WHERE relname = 'durable_locks'),
           sum(n_tup_hot_upd) FILTER (WHERE relname = 'durable_locks')
      FROM pg_stat_user_tables WHERE relname LIKE 'durable%'
"""


def held(pid: int, url: str, report: Report) -> dict[str, float]:
    """By the process, and by the database."""
    process = Path(f"/proc/{pid}")
    with psycopg.connect(url, autocommit=True) as connection:
        sizes = {name: float(size) for name, size in connection.execute(_SIZES.encode())}
        (connections,) = connection.execute(_CONNECTIONS, (NAME,)).fetchone() or (0,)
        activity = connection.execute(_ACTIVITY).fetchone() or (0, 0, 0)
    return {
        "resident set": float(int((process / "statm").read_text().split()[1]) * PAGE),
        "threads": float(len(list((process / "task").iterdir()))),
        "tasks": float(report.tasks),
        "file descriptors": float(len(list((process / "fd").iterdir()))),
        "connections": float(connections),
        "Python objects": float(report.objects),
        **sizes,
        **dict(zip((DEAD, UPDATES, HOT), (float(number or 0) for number in activity), strict=True)),
    }


def left(url: str) -> dict[str, int]:
    """How many rows each table of `durable` has."""
    with psycopg.connect(url) as connection:
        names = [name for (name,) in connection.execute(_TABLES.encode())]
        return {
            name: (connection.execute(f"SELECT count(*) FROM {name}".encode()).fetchone() or (0,))[0] for name in names
        }
