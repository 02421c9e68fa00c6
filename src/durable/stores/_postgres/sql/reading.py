"""The statements of people and tools: a filter as conditions and their parameters."""

from __future__ import annotations

from functools import cache
from typing import Any, Final, NamedTuple

from durable.stores._postgres.sql.loader import load_statements, qualify
from durable.stores._postgres.sql.names import Names
from durable.stores._postgres.sql.snapshots import AFTER, BY_LEASE, STATUSES
from durable.stores.listing import NO_MOMENT, Listed
from durable.stores.reading import Filter

_STATUS: Final = "COALESCE(run.snapshot->'execution'->>'status', 'running')"
_OF_RUNNING: Final = {"running", "suspended", "interrupted"}  # which the lease tells apart
_LINE: Final = "split_part(split_part(lease.route, E'\\n', 1), E'\\t', 1)"  # of a route that has a slot behind it
_ERROR: Final = "run.snapshot->'execution'->'error'"
_LEASE: Final = (
    "LEFT JOIN LATERAL (SELECT CASE WHEN held THEN owner END AS owner, CASE WHEN held THEN owner_token END AS owner_token, "
    "route, held AND starts_with(owner, %(host)s) AND owner <> ALL (%(known)s::text[]) AS is_doubtful "
    "FROM (SELECT *, owner_token IS NOT NULL AND expires_at > clock_timestamp() AS held "
    "FROM {locks} WHERE workflow_id = run.id) AS every OFFSET 0) AS lease ON true"
)


class Question(NamedTuple):
    """A statement's parts, and its values."""

    parts: tuple[tuple[str, str], ...]
    values: dict[str, Any]
    #: Whether it asks which leases last, whose owners may be dead.
    by_lease: bool


def ask(wanted: Filter, prefix: str, limit: int, after: Listed | None) -> Question:
    """The question for the runs of a store with this prefix."""
    values: dict[str, Any] = {"limit": limit}
    conditions: list[str] = []

    def add(condition: str, **given: Any) -> None:
        conditions.append(condition)
        values.update(given)

    if prefix or wanted.prefix:
        add("starts_with(run.id, %(prefix)s)", prefix=prefix + wanted.prefix)
    if wanted.ids:
        add("run.id = ANY (%(ids)s::text[])", ids=[prefix + one for one in wanted.ids])
    if wanted.parents:
        add(
            "run.snapshot->'parent'->>0 = ANY (%(parents)s::text[]) AND run.snapshot->'parent' IS NOT NULL",
            parents=[prefix + one for one in wanted.parents],
        )
    if len(wanted.workflows) == 1:  # by the index, in its order
        add("run.snapshot->>'workflowName' = %(workflow)s", workflow=wanted.workflows[0])
    elif wanted.workflows:
        add("run.snapshot->>'workflowName' = ANY (%(workflows)s::text[])", workflows=list(wanted.workflows))
    if wanted.queues:
        add(
            f"({_LINE}::json->>1) = ANY (%(queues)s::text[]) AND {_LINE}::json->>1 <> ''",
            queues=list(wanted.queues),
        )
    if wanted.errors:
        name = f"regexp_replace({_ERROR}->>'type', '^.*[:.]', '')"
        add(
            f"{_STATUS} = 'failed' AND ({_ERROR}->>'type' = ANY (%(errors)s::text[]) OR {name} = ANY (%(errors)s::text[]))",
            errors=list(wanted.errors),
        )
    if wanted.steps:
        name = rf"regexp_replace({_ERROR}->>'step', '(#[0-9]+|\[.*\])$', '')"
        add(
            f"{_STATUS} = 'failed' AND ({_ERROR}->>'step' = ANY (%(steps)s::text[]) OR {name} = ANY (%(steps)s::text[]))",
            steps=list(wanted.steps),
        )
    for number, (key, texts) in enumerate(wanted.metadata.items()):
        add(
            f"run.snapshot->'metadata'->>%(meta_{number})s::text = ANY (%(meta_{number}_values)s::text[])",
            **{f"meta_{number}": key, f"meta_{number}_values": list(texts)},
        )
    if wanted.since is not None:
        add("run.updated_at >= %(since)s", since=wanted.since)
    if wanted.before is not None:
        add("run.updated_at < %(before)s", before=wanted.before)
    if after is not None:
        values |= {"moment": after.updated_at, "id": prefix + after.id}
    status, by_lease = _status(wanted)
    after_what = "nothing" if after is None else "no moment" if after.updated_at == NO_MOMENT else "a moment"
    parts = (
        ("status", status),
        ("wanted", " AND ".join(conditions) or "true"),
        ("after", AFTER[after_what]),
        ("joined", _LEASE if by_lease or wanted.queues else ""),
    )
    return Question(parts, values, by_lease)


def _status(wanted: Filter) -> tuple[str, bool]:
    """The condition of where runs stand; and whether leases that last are asked for."""
    statuses = set(wanted.statuses)
    plain = sorted(statuses - _OF_RUNNING)
    found = [f"{_STATUS} = '{status}'" for status in plain]  # words that were checked
    if all_of_them := statuses >= _OF_RUNNING:
        found.append(f"{_STATUS} = 'running'")
    else:
        found += [BY_LEASE.get(status, STATUSES[status]) for status in sorted(statuses & _OF_RUNNING)]
    by_lease = not all_of_them and bool(statuses & BY_LEASE.keys())
    return f"({' OR '.join(f'({one})' for one in found)})" if found else "true", by_lease


@cache
def statement(names: Names, name: str, parts: tuple[tuple[str, str], ...] = (), file: str = "reading.sql") -> bytes:
    """A statement of a file for these tables, each of its parts in its place."""
    text = load_statements(names, file)[name].decode()
    for part, meaning in parts:
        text = text.replace(f"{{{part}}}", names.fill(qualify(meaning)))
    return text.encode()
