"""The law W10 of workers: how often one polls to which nothing happens, by the statements that arrive at the server."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from simulation.history import Broken
from simulation.server import Server

__all__ = ["IdlePolls"]

# Seconds from one poll to the next: each worker one a second, a fleet of ten two in all, one of a hundred twenty.
_LEAST: Final = 1.0
_MOST: Final = 5.0
_OF_A_FLEET: Final = 2.0  # polls a second, of all its workers together
_COUNTED: Final = 20.0  # seconds in which a worker that was seen counts as one of the fleet
_DRIFT: Final = 1e-3  # of a rest: more than any clock is fast
_AT_MOST_OWED: Final = (
    3  # polls to which what has happened can lead: one on its way, one that takes, one that says it is idle
)


class IdlePolls:
    """Raises `Broken` when a worker polls too soon after its last poll, and nothing has led to it.

    What leads to a poll: the moment has come at which, as the last one saw it, something was due; a notification, or that some
    may have been missed; a poll that took something, or failed; the end of one of the worker's runs. A process has one worker,
    which is known by the process's mark.
    """

    def __init__(self, server: Server, broken: Callable[[str, str], Broken]) -> None:
        self._server = server
        self._broken = broken
        self._owed: Counter[str] = Counter()  # of each worker, how many polls what has happened leads to
        self._rests: dict[str, float] = {}  # … the moment until which nothing else does
        self._polls: dict[str, set[str]] = {}  # … the names of its polls, of which each may be sent more than once
        #: Whether nothing is said of it: where a queue has limits, the end of any run leads to a poll of any worker.
        self.is_off = False
        server.on_begin = self._begins

    def leads_to_polls(self, mark: str, polls: int = 1) -> None:
        """Something has, which leads to so many polls of this worker."""
        self._owed[mark] = min(_AT_MOST_OWED, self._owed[mark] + polls)

    def _begins(self, statement: str, values: Any) -> None:
        if self.is_off or statement != "poll" or values["dead"]:  # those have been found by one that is counted
            return
        name: str = values["name"]
        mark, now = name.partition(".")[0], self._server.timeline.now
        rests, polls = self._rest_after(values["routes"], values["schedules"]), self._polls.setdefault(mark, set())
        if name in polls:  # sent again: it goes on from whichever was answered
            self._rests[mark] = min(self._rests[mark], now + rests)
            return
        if now < self._rests.get(mark, -math.inf):
            if not self._owed[mark]:
                raise self._broken(
                    "W10", f"{mark} polls {self._rests[mark] - now:.3f} s too soon, and nothing has happened"
                )
            self._owed[mark] -= 1
        polls.add(name)
        self._rests[mark] = now + rests

    def _rest_after(self, routes: list[str], schedules: list[str]) -> float:
        """Seconds for which nothing leads to another poll, as the tables stand."""
        tables, clock = self._server.tables, self._server.database.clock()
        fleet = (tables.workers.committed(key) for key in list(tables.workers.rows))
        workers = sum(worker is not None and worker.seen_at > clock - _COUNTED for worker in fleet)
        leases = (tables.locks.committed(key) for key in list(tables.locks.rows))
        due = [
            lease.due_at for lease in leases if lease is not None and lease.route in routes and lease.due_at is not None
        ]
        mine = (tables.schedules.committed(key) for key in schedules if key in tables.schedules.rows)
        due += [row.due_at for row in mine if row is not None and row.due_at is not None]
        interval = min(_MOST, max(_LEAST, workers / _OF_A_FLEET))
        return min(interval, min((at - clock for at in due if at > clock), default=math.inf)) * (1.0 - _DRIFT)
