"""What leases are counted in, in the model: slots of partitions, in queues that have limits."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from simulation.database import NO_KEY_UPDATE, Progress, Statement
from simulation.tables import Lane, Lease, Tables

__all__ = [
    "due_moment",
    "has_become_due",
    "is_held",
    "is_limited",
    "leases",
    "limited_queues",
    "of_queue",
    "reopened",
    "slot_of",
]


def due_moment(lease: Lease) -> float:
    """When a lease is due, which may be never."""
    return math.inf if lease.due_at is None else lease.due_at


def slot_of(lease: Lease) -> str:
    """What a lease is counted in; empty of one without."""
    return (lease.route or "").replace("\t", "\n").partition("\n")[2]


def leases(tables: Tables, statement: Statement) -> list[Lease]:
    """The rows of the table of locks, as a statement sees them."""
    seen = (tables.locks.visible(key, statement) for key in list(tables.locks.rows))
    return [lease for lease in seen if lease is not None]


def is_held(lease: Lease, slot_begins: str) -> bool:
    """Whether a lease is counted in what begins so."""
    return (
        lease.owner_token is not None
        and lease.due_at is not None
        and "\n" in (lease.route or "")
        and bool(slot := slot_of(lease))
        and slot.startswith(slot_begins)
    )


def of_queue(queue: str) -> str:
    """How the slots of a queue begin."""
    return queue[:-1] + ","


def limited_queues(tables: Tables, statement: Statement, values: Any, now: float) -> list[str]:
    """The queues of which a poll takes nothing."""
    found: set[str] = set()
    for line, queue in zip(values["routes"], values["route_queues"], strict=True):
        lanes = (tables.partitions.visible(key, statement) for key in list(tables.partitions.rows))
        waits = any(lane is not None and lane.line == line and lane.turn is not None for lane in lanes)
        own = any(has_become_due(lease, line, now) for lease in leases(tables, statement))
        if is_limited(tables, statement, queue) or waits or own:
            found.add(queue)
    return sorted(found)


def is_limited(tables: Tables, statement: Statement, queue: str) -> bool:
    """Whether a queue has limits."""
    return tables.queues.visible(queue, statement) is not None


def has_become_due(lease: Lease, line: str, now: float) -> bool:
    """Whether a run with a slot waits to be admitted."""
    before, newline, _ = (lease.route or "").partition("\n")
    return bool(newline) and before == line and due_moment(lease) <= now


def reopened(tables: Tables, statement: Statement, slots: Collection[str]) -> Progress[None]:
    """What was given back lets its partitions have a turn again, whatever they seem to have."""
    locked: list[tuple[str, str]] = []
    for slot in sorted(set(slots) - {""}):
        for key in sorted(key for key in tables.partitions.rows if key[0] == slot):
            if (yield from _closed_or_not(tables, statement, key)) is not None:
                locked.append(key)  # noqa: PERF401 -- a comprehension cannot yield
    for key in locked:
        yield from statement.update(
            tables.partitions,
            key,
            None,
            lambda lane: lane._replace(turn=min(statement.clock(), math.inf if lane.turn is None else lane.turn)),
        )


def _closed_or_not(tables: Tables, statement: Statement, key: tuple[str, str]) -> Progress[Lane | None]:
    return (yield from statement.locked(tables.partitions, key, NO_KEY_UPDATE))
