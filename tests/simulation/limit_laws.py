"""The law W3, and what W2 says of partitions: of a queue with limits, after every commit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from durable.stores._postgres.starts import render_queue
from simulation.database import Transaction
from simulation.history import Broken
from simulation.scenario import Limits
from simulation.slots import slot_of
from simulation.tables import Lease, Limited, Tables

__all__ = ["LimitLaws"]

_CLOCKS: Final = 1e-6  # seconds: what adding and subtracting moments costs
_QUEUE: Final = render_queue("default", "")


class LimitLaws:
    """Raises `Broken` when more is held than the limits let, or a partition has something due that none will ever take."""

    def __init__(self, tables: Tables, limits: Limits, broken: Callable[[str, str], Broken]) -> None:
        self._tables = tables
        self._limits = Limited(_QUEUE, limits.concurrency or None, limits.partition_concurrency or None)
        self._broken = broken
        self._seen_by_end: dict[
            str, int
        ] = {}  # of each slot, the commits that the last statement saw that gave it back
        tables.queues.row(_QUEUE).versions.append((0, self._limits))

    def executed(self, transaction: Transaction) -> None:
        """A statement has come to its end: which slots it has given back."""
        for table, row in transaction.written:
            before, after = row.committed(), row.pending[-1][1]
            if table is self._tables.locks and before is not None and before.owner_token != after.owner_token is None:
                self._seen_by_end[slot_of(before)] = transaction.snapshot

    def audit(self, now: float, seen: Counter[str]) -> None:
        """As the tables stand: a commit has changed leases or turns."""
        self._seen = seen
        rows = map(self._tables.locks.committed, list(self._tables.locks.rows))
        leases = [lease for lease in rows if lease is not None and lease.route and lease.due_at is not None]
        held = Counter(slot_of(lease) for lease in leases if lease.owner_token is not None)
        most, most_own = self._limits.concurrency, self._limits.partition_concurrency
        if most is not None and held.total() > most:
            raise self._broken("W3", f"{held.total()} are held of a queue of {most}: {dict(held)}")
        for slot, count in held.items():
            if most_own is not None and count > most_own:
                raise self._broken("W3", f"{count} are held of {slot}, which has {most_own}")
        seen["a queue that is full"] += held.total() == most
        seen["a partition that is full"] += most_own is not None and most_own in held.values()
        for lease in leases:
            if "\t" in str(lease.route):
                self._audit_member(lease, held, now)

    def _audit_member(self, lease: Lease, held: Counter[str], now: float) -> None:
        """Its partition has a turn, or is full. Else it was put off for another workflow while what was held ended unseen."""
        line, _, slot = str(lease.route).partition("\t")
        row, most_own = self._tables.partitions.row((slot, line)), self._limits.partition_concurrency
        lane = row.committed()
        if lane is None or lane.turn is None:
            raise self._broken("W2", f"{lease} waits for its turn, and {lane} has none, with {held[slot]} held")
        if lane.turn <= now + _CLOCKS or (most_own is not None and held[slot] >= most_own):
            return
        if row.versions[0][0] <= self._seen_by_end.get(slot, row.versions[0][0]):
            raise self._broken("W2", f"{lease} waits, and {lane} was put off, with {held[slot]} held")
        self._seen["a partition that was put off unseen"] += 1
