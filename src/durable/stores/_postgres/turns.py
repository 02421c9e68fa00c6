"""Takes runs whose turn has come, of queues that have limits or partitions: see `queues.sql`."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

from durable.clocks import Clock
from durable.stores._postgres.polls import Polling
from durable.stores._postgres.session import Session, in_transaction

_SOON: Final = 0.02  # seconds, after which a queue is asked again under whose limits another worker is taking now
_MAX_TRIES: Final = 50
_ADMITS_FOR: Final = 2.0  # seconds in which what has become due is let wait for its turn, before anything is taken

# Its estimates speak for a plan of its own each time, and planning takes longer than executing.
_PLANNED_ONCE: Final = b"SET LOCAL plan_cache_mode = force_generic_plan"


class Taken(NamedTuple):
    """What a poll has got of these queues."""

    #: The runs, as the rows of a poll.
    rows: Sequence[Any]
    #: Seconds until there may be more; None where that is not known.
    next_in: float | None
    #: The leases of other processes here, which may be dead.
    held: Sequence[Any]
    #: When the statements were sent that have taken them, from which on their leases count.
    sent: float


class Turns:
    """Those of the statements of polls that are about turns. One round trip, but where a flood has just become due."""

    def __init__(self, sql: Mapping[str, bytes], clock: Clock) -> None:
        self._sql = sql
        self._clock = clock

    def take(self, session: Session, polling: Polling, queues: Collection[str], count: int) -> Taken:
        """Up to `count` runs of these queues."""
        values = polling.values_of_queues(queues, count)
        until = self._clock.elapsed() + _ADMITS_FOR
        for tries in itertools.count(1):
            values["is_last"] = is_last = tries == _MAX_TRIES or self._clock.elapsed() >= until
            taken, again = self._take(session, polling, values)
            if again is None:
                return taken
            if is_last:
                return taken._replace(next_in=again)
        raise AssertionError("the tries are counted")

    def _take(self, session: Session, polling: Polling, values: Mapping[str, Any]) -> tuple[Taken, float | None]:
        """What was taken, and in how many seconds to ask again where there may be more: None where there is not.

        That is so where more has become due than was let wait for its turn, and where partitions had a turn and nothing to
        give: they have lost it by that, and it is that of others.
        """
        sent = self._clock.elapsed()
        looks, held, rows, locked, lanes, next_of = polling.poll.looks_for_dead, None, None, None, None, None
        with in_transaction(session):
            session.queue(_PLANNED_ONCE)
            if looks:
                session.queue(self._sql["free_slots"], values)
                held = session.queue(self._sql["held_near_of_queues"], values)
            crowded = session.queue(self._sql["admit"], values)
            if values["count"] > 0:
                locked = session.queue(self._sql["lock_queues"], values)
                lanes = session.queue(self._sql["lock_partitions"], values)
                rows = session.queue(self._sql["take_members"], values)
                next_of = session.queue(self._sql["next_of_queues"], values)
        told: list[Any] = [] if held is None else held.fetchall()
        ((is_crowded,),) = crowded.fetchall()
        if rows is None or locked is None or lanes is None or next_of is None:
            return Taken((), None, told, sent), None
        taken = [row for row in rows.fetchall() if row[0] is not None]
        ((next_in,),), ((_, is_busy),) = next_of.fetchall(), locked.fetchall()
        if is_busy:
            next_in = _SOON if next_in is None else min(next_in, _SOON)
        ((had_turns,),) = lanes.fetchall()
        again = 0.0 if is_crowded == "true" else _SOON if had_turns != "[]" and not taken else None
        return Taken(taken, next_in, told, sent), again
