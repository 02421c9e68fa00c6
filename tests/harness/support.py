"""What the tests share: a database to look into."""

from __future__ import annotations

import contextlib
import json
import select
import threading
from collections.abc import Iterator
from typing import Any, Final

import psycopg
import pytest
from psycopg import sql
from psycopg.pq import TransactionStatus

from durable.stores import PostgresStore, postgres
from harness.pgbouncer import program

needs_pgbouncer = pytest.mark.skipif(program() is None, reason="PgBouncer is not installed: apt-get install pgbouncer")

POISONS = (
    "{}", "[]", "7", '"text"', "null", '{"formatVersion": 2, "steps": {}, "execution": {"status": "running"}}',
    '{"formatVersion": 1, "steps": {}}', '{"formatVersion": 1, "steps": {}, "execution": {"status": 7}}',
    '{"formatVersion": 1, "steps": [1], "execution": {"status": "running"}}',
    '{"formatVersion": 1, "steps": {"fetch-user": {"value": 1}}, "execution": {"status": "running"}}',
    '{"formatVersion": 1, "steps": {"fetch-user": 1}, "execution": {"status": "running"}}',
    '{"formatVersion": 1, "steps": {}, "execution": {"status": "running"}, "metadata": [1]}',
    '{"formatVersion": 1, "workflowName": "checkout", "steps": {}, "execution": {"status": "completed"}}',
)  # fmt: skip
"""FAULTS 97: JSON that is no snapshot of a run of `checkout`, and must never be taken for none."""


_LOOKS: Final[dict[str, psycopg.Connection[Any]]] = {}  # by URL; of the main thread
_TRIES: Final = 5


@contextlib.contextmanager
def looking(url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to look behind the stores with, in autocommit.

    The main thread's is kept from test to test, since a new one costs more than most queries. A thread gets one for this once: it may be
    meant to wait.
    """
    if threading.current_thread() is not threading.main_thread():
        with psycopg.connect(url, autocommit=True) as connection:
            yield connection
        return
    kept = _LOOKS.pop(url) if url in _LOOKS else None  # it is not for a look within a look
    if kept is not None and select.select([kept.fileno()], [], [], 0)[0]:
        kept.close()  # nothing was asked: what the server has to say is that it has ended this session
        kept = None
    connection = kept or psycopg.connect(url, autocommit=True, prepare_threshold=None)
    try:
        connection.execute("RESET ALL; RESET SESSION AUTHORIZATION")
        yield connection
    finally:
        if connection.info.transaction_status is TransactionStatus.IDLE and url not in _LOOKS:
            _LOOKS[url] = connection
        else:
            connection.close()


def end_looking() -> None:
    """Close what `looking` has kept."""
    while _LOOKS:
        _LOOKS.popitem()[1].close()


class Database:
    """One schema in a real PostgreSQL: stores in it, and a look behind them."""

    def __init__(self, url: str, schema: str) -> None:
        self.url = url
        self.schema = schema
        self._stores: list[PostgresStore] = []

    def store(self, url: str | None = None, **options: Any) -> PostgresStore:
        """A new store on this schema (through `url`, if it is reached by another way)."""
        store = postgres(url or self.url, schema=self.schema, **options)
        self._stores.append(store)
        return store

    def execute(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Rows of a query with this schema on its search path."""
        with looking(self.url) as connection:
            connection.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(self.schema)))
            cursor = connection.execute(query, parameters)
            return cursor.fetchall() if cursor.description else []

    def header(self, run_id: str) -> dict[str, Any] | None:
        """The stored document of a run."""
        rows = self.execute("SELECT snapshot FROM durable_snapshots WHERE id = %s", run_id)
        return rows[0][0] if rows else None

    def status(self, run_id: str) -> str | None:
        """The stored status of a run."""
        header = self.header(run_id)
        return None if header is None else header["execution"]["status"]

    def journal(self, run_id: str) -> list[tuple[str, str, Any]]:
        """The journal as (kind, key, record), in order."""
        query = "SELECT kind, key, record::text FROM durable_steps WHERE workflow_id = %s ORDER BY seq"
        return [(kind, key, json.loads(text)) for kind, key, text in self.execute(query, run_id)]

    def everything(self) -> list[Any]:
        """All that is stored but the leases' times: to compare before and after."""
        tables = {
            "durable_snapshots": "*",
            "durable_steps": "workflow_id, seq, key, kind, nonce, epoch, record::text, created_at",
            "durable_locks": "workflow_id, epoch, owner_token",
        }
        return [sorted(self.execute(f"SELECT {columns} FROM {table}"), key=str) for table, columns in tables.items()]

    def end_lease(self, run_id: str) -> None:
        """Let the lease of a run be over, as if its time had passed."""
        self.execute("UPDATE durable_locks SET expires_at = now() - interval '1 second' WHERE workflow_id = %s", run_id)

    def drop(self) -> None:
        """Close what is open, and remove the schema."""
        for store in self._stores:
            store.close()
        dropping = sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(self.schema))
        with looking(self.url) as connection:
            for _ in range(_TRIES):
                try:
                    connection.execute(dropping)
                except (
                    psycopg.errors.DeadlockDetected
                ):  # a question that was under way when its process was struck down
                    continue
                return
            connection.execute(dropping)


def needs(database: Database, setting: str, since: int) -> None:
    """Skip a test where the server has no such setting: the embedded one has it, and `make matrix` has both kinds."""
    if not database.execute("SELECT 1 FROM pg_settings WHERE name = %s", setting):
        pytest.skip(f"{setting} came with PostgreSQL {since}")
