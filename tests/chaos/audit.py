"""The witness inside the store: what it says of every write, installed by chaos and by nobody else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString, NamedTuple

import psycopg
from psycopg import sql
from psycopg.rows import namedtuple_row

from durable.snapshots import Snapshot
from durable.stores import postgres


class Transfer(NamedTuple):
    """A line of the ledger."""

    run: str
    key: str
    number: int
    cents: int


@dataclass(frozen=True)
class Findings:
    """Everything that the store has to say when a round is over."""

    writes: Sequence[Any]
    leases: Sequence[Any]
    headers: Sequence[Any]
    ledger: Sequence[Transfer]
    balances: dict[str, int]
    snapshots: dict[str, Snapshot]


def install(url: str, schema: str) -> None:
    """Make the tables of `durable` and, beside them, the audit's."""
    with postgres(url, schema=schema) as store:
        store.status("nobody")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(schema)))
        connection.execute(Path(__file__).with_name("audit.sql").read_bytes())


def drop_index(url: str, schema: str) -> None:
    """Take away what makes a take-over wait: a planted bug's half that is in the database."""
    _locks(url, schema, "DROP CONSTRAINT durable_locks_workflow_id_owner_token_key")


def restore_index(url: str, schema: str) -> None:
    """Put it back, so that a store can be used again."""
    _locks(url, schema, "ADD UNIQUE (workflow_id, owner_token)")


def _locks(url: str, schema: str, change: LiteralString) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("ALTER TABLE {} " + change).format(sql.Identifier(schema, "durable_locks")))


def findings(url: str, schema: str, runs: Sequence[str]) -> Findings:
    """Ask it."""
    with postgres(url, schema=schema) as store:
        snapshots = {run: snapshot for run in runs if (snapshot := store.load(run)) is not None}
    with psycopg.connect(url, autocommit=True, row_factory=namedtuple_row) as connection:
        connection.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(schema)))
        return Findings(
            connection.execute("SELECT * FROM audit_writes ORDER BY at").fetchall(),
            connection.execute("SELECT * FROM audit_leases ORDER BY at").fetchall(),
            connection.execute("SELECT * FROM audit_headers").fetchall(),
            [Transfer(*row) for row in connection.execute("SELECT run, key, number, cents FROM ledger")],
            {row[0]: row[1] for row in connection.execute("SELECT name, cents FROM accounts")},
            snapshots,
        )


def remove(url: str, schema: str) -> None:
    """Drop everything of a round."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
