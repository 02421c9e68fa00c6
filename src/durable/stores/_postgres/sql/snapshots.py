"""The statements about whole snapshots: what may stand in their open places."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Final

from durable.stores._postgres.sql.loader import load_statements
from durable.stores._postgres.sql.names import Names
from durable.stores.listing import PurgeQuery

# In bytes, of the journals' table, above which counting them takes longer than a look may.
_SMALL: Final = 128 * 1024 * 1024
_HELD: Final = (
    "EXISTS (SELECT FROM {locks} AS lease WHERE lease.workflow_id = run.id "
    "AND lease.owner_token IS NOT NULL AND lease.expires_at > clock_timestamp())"
)
# Of a row that has no token; by its owner, see `suspended`.
_IS_SUSPENDED: Final = "lease.owner_token IS NULL AND starts_with(lease.owner, 'suspended ')"
_SUSPENDED: Final = (
    f"EXISTS (SELECT FROM {{locks}} AS lease WHERE lease.workflow_id = run.id AND {_IS_SUSPENDED} OFFSET 0)"
)
_STATUS: Final = "COALESCE(run.snapshot->'execution'->>'status', 'running')"
# For a page: leases whose owner may be dead are told, so that they can be looked at. Of these no more are asked for than there
# are owners on this machine, for those that were looked at are `known`.
BY_LEASE: Final[Mapping[str | None, str]] = {
    "running": f"{_STATUS} = 'running' "
    "AND lease.owner_token IS NOT NULL AND (lease.owner = ANY (%(dead)s::text[])) IS NOT TRUE",
    "interrupted": f"{_STATUS} = 'running' "
    "AND (lease.owner_token IS NULL OR lease.is_doubtful OR lease.owner = ANY (%(dead)s::text[])) "
    f"AND NOT {_SUSPENDED}",
}
STATUSES: Final[Mapping[str | None, str]] = {
    None: "true",
    "running": f"{_STATUS} = 'running' AND {_HELD}",
    "interrupted": f"{_STATUS} = 'running' AND NOT {_HELD} AND NOT {_SUSPENDED}",
    "suspended": f"{_STATUS} = 'running' AND {_SUSPENDED}",
    "queued": f"{_STATUS} = 'queued'",
    "completed": f"{_STATUS} = 'completed'",
    "failed": f"{_STATUS} = 'failed'",
    "cancelled": f"{_STATUS} = 'cancelled'",
}
# Rows without a moment, which other tools may write, come first, as in the index.
AFTER: Final[Mapping[str, str]] = {
    "nothing": "true",
    "a moment": "(run.updated_at, run.id) < (%(moment)s, %(id)s)",
    "no moment": "(run.updated_at IS NOT NULL OR run.id < %(id)s)",
}
# Neither held nor a worker's to take.
IDLE: Final = (
    f"NOT {_HELD} AND NOT EXISTS "
    "(SELECT FROM {locks} AS lease WHERE lease.workflow_id = run.id AND lease.due_at IS NOT NULL)"
)


# Of what was started in a queue, and of whose metadata each of these texts is one.
_LINE: Final = "pg_catalog.split_part(pg_catalog.split_part(lease.route, E'\\n', 1), E'\\t', 1)"  # before its slot
_IN_QUEUE: Final = (
    "EXISTS (SELECT FROM {locks} AS lease WHERE lease.workflow_id = run.id "
    "AND CASE WHEN pg_catalog.starts_with(lease.route, '[') "
    f"THEN ({_LINE}::json OPERATOR(pg_catalog.->>) 1) END = %(queue)s)"
)
_HAS_METADATA: Final = (
    "NOT EXISTS (SELECT FROM unnest(%(keys)s::text[], %(texts)s::text[]) AS wanted (key, text) "
    "WHERE ((run.snapshot OPERATOR(pg_catalog.->) 'metadata') OPERATOR(pg_catalog.->>) wanted.key) "
    "IS DISTINCT FROM wanted.text)"
)


def narrow_purge(wanted: PurgeQuery) -> str:
    """The condition of the runs among those that are old, of which a purge is."""
    conditions = [_IN_QUEUE] * (wanted.queue is not None) + [_HAS_METADATA] * bool(wanted.metadata)
    return " AND ".join(conditions) or "true"


@cache
def statement(names: Names, name: str, parts: tuple[tuple[str, str], ...]) -> bytes:
    """A statement of `snapshots.sql` for these tables, each of its parts in its place."""
    conditions = {"held": _HELD, **dict(parts)}
    text = load_statements(names, "snapshots.sql")[name].decode()
    for part, condition in conditions.items():
        text = text.replace(f"{{{part}}}", names.fill(condition))
    return text.encode()


def ids_of_journals(size: int) -> str:
    """Where the ids of journals are looked for, whose table has this size. Each run has one lease, and many records."""
    return f"SELECT {'DISTINCT workflow_id FROM {steps}' if is_small(size) else 'workflow_id FROM {locks}'}"  # noqa: S608 -- two texts


def is_small(size: int) -> bool:
    """Whether the journals' table is so small, in bytes, that its rows can be counted."""
    return size <= _SMALL
