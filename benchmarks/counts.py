"""What a step and a workflow cost, counted and not timed: round trips, statements, commits, bytes of WAL."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self

import psycopg

from harness.proxy import Proxy
from lanes import Lane, ServerCpu


@dataclass(frozen=True)
class Costs:
    """Apiece. `full_pages`: bytes of full-page images, which come on top of `wal` where a checkpoint was not long ago."""

    round_trips: float
    statements: float
    commits: float
    wal: float
    full_pages: float


# Autovacuum works in between. What it changes are system tables, whose numbers are below 16384, or it has no transaction.
_WRITTEN: Final = """
WITH record AS MATERIALIZED (SELECT * FROM pg_get_wal_records_info(%s, %s))
SELECT coalesce(sum(record_length - fpi_length), 0),
       coalesce(sum(fpi_length), 0),
       count(*) FILTER (WHERE record_type LIKE 'COMMIT%%')
  FROM record
 WHERE xid IN (SELECT other.xid
                 FROM record AS other
                CROSS JOIN LATERAL regexp_matches(other.block_ref, 'rel [0-9]+/[0-9]+/([0-9]+)', 'g') AS relation
                WHERE other.xid::text <> '0' AND relation[1]::bigint >= 16384)
"""


class Written(NamedTuple):
    """Bytes of records, bytes of full-page images beside them, and commits."""

    plain: float
    full_pages: float
    commits: float


class Wal:
    """How much was written ahead, without full-page images, which are of the checkpoint's making and not of the writer's."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)
        self._connection.execute("CREATE EXTENSION IF NOT EXISTS pg_walinspect")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def now(self) -> str:
        """Where the log ends."""
        return str(self._one("SELECT pg_current_wal_insert_lsn()"))

    def since(self, start: str) -> Written:
        """What transactions that changed a user's table have written since then: be the only user of the server."""
        self._one("SELECT txid_current()")  # a commit, which writes what is still in memory
        row = self._connection.execute(_WRITTEN, (start, self._one("SELECT pg_current_wal_flush_lsn()"))).fetchone()
        assert row is not None  # noqa: S101 -- an aggregate
        return Written(*map(float, row))

    def _one(self, query: str) -> Any:
        row = self._connection.execute(query.encode()).fetchone()
        assert row is not None  # noqa: S101 -- a function's answer
        return row[0]


def count(server: ServerCpu, url: str, size: int, work: Callable[..., object], *arguments: Any) -> Costs:
    """A turn of this size, through a proxy that counts."""
    with ExitStack() as stack:
        proxy = stack.enter_context(Proxy(url))
        wal = stack.enter_context(Wal(url))
        lane = stack.enter_context(Lane(server, work, proxy.url, *arguments))
        for _ in range(2):  # statements are prepared, and the pages at hand have had their images written
            lane.turn(size)
        before, start = proxy.count(), wal.now()
        lane.turn(size)
        count, written = proxy.count().since(before), wal.since(start)
    return Costs(
        round_trips=count.round_trips / size,
        statements=count.statements / size,
        commits=written.commits / size,
        wal=written.plain / size,
        full_pages=written.full_pages / size,
    )
