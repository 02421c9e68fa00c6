"""How PostgreSQL executes a statement of the store's, with what it reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg


def explain(connection: psycopg.Connection[Any], query: bytes, parameters: Any) -> Any:
    """The plan, from EXPLAIN ANALYZE; nothing is changed by it, since it is rolled back."""
    text = "EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) " + re.sub(r"%(?!\(|%)", "%%", query.decode())
    with connection.transaction(force_rollback=True):
        row = psycopg.ClientCursor(connection).execute(text.encode(), parameters).fetchone()
    assert row is not None
    return row[0][0]["Plan"]


def nodes(plan: Any) -> Iterator[dict[str, Any]]:
    """Each node of a plan."""
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)
