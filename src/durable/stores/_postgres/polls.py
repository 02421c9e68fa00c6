"""Polls: what is sent for one, and what it has found."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from copy import copy
from typing import Any, Final

from durable._engine.decisions import Claim
from durable.stores._owner import HOST
from durable.stores._postgres.claims import BEFORE_ALL, Claiming, Found
from durable.stores._postgres.rows import read_record
from durable.stores._postgres.schedules import read_due
from durable.stores._postgres.settings import Settings
from durable.stores._postgres.starts import render_route
from durable.stores.requests import Poll

_polls: Final = itertools.count(1)  # of this process, whose `instance` is random


class Polling:
    """The payload of a poll. `random` makes the tokens of what it takes; it is another for each sending.

    `name` is what all its sendings have in common: what any of them has taken, and nothing else, begins with it.
    """

    __slots__ = ("_sending", "dead", "name", "owner", "poll", "routes", "sent", "settings")

    def __init__(
        self, poll: Poll, settings: Settings, instance: str, owner: str, dead: Sequence[tuple[str, str]] = ()
    ) -> None:
        self.poll = poll
        self.settings = settings
        self.routes = [render_route(route, settings.prefix) for route in poll.routes]
        self.owner = owner
        #: The rows and tokens of leases whose owners are dead.
        self.dead = dead
        self.name = f"{instance}.p{next(_polls)}"
        self.sent = 0.0
        self._sending = 1

    def with_poll(self, poll: Poll, dead: Sequence[tuple[str, str]]) -> Polling:
        """The same with another request, which is sent in the place of this one."""
        another = copy(self)
        another.poll, another.dead = poll, dead
        another.routes = [render_route(route, self.settings.prefix) for route in poll.routes]
        return another

    @property
    def random(self) -> str:
        """What the tokens of this sending have behind the epoch, before their number."""
        return f"{self.name}.{self._sending}"

    def send_again(self) -> None:
        """Begin another sending."""
        self._sending += 1

    def values(self) -> dict[str, Any]:
        """The parameters of its statements."""
        return {
            "routes": self.routes,
            "worker": self.poll.worker,
            "count": self.poll.count,
            "name": self.name,
            "random": self.random,
            "sending": self._sending,
            "owner": self.owner,
            "seconds": self.poll.seconds,
            "floor": self.poll.floor,
            "asks_floor": self.poll.looks_for_dead,
            "host": HOST,
            "dead_ids": [row for row, _ in self.dead],
            "dead": [token for _, token in self.dead],
            "schedules": [self.settings.prefix + name for name in self.poll.schedules],
        }


class Due:
    """What a poll has found: runs that it has taken, schedules that are due, and leases here whose owners may be dead."""

    __slots__ = ("due", "floor", "found", "held", "next_in", "tick_in", "workers")

    def __init__(self, polling: Polling, rows: Sequence[Any], held: Sequence[Any], server: str) -> None:
        self.next_in: float | None = rows[0][0]
        self.workers: int = rows[0][1]
        self.floor: float | None = rows[0][2]
        self.due, self.tick_in = read_due(rows[0][3], polling.settings.prefix)
        self.held: Sequence[tuple[str, str, str]] = held
        self.found = [_found(polling, row[4:], server) for row in rows if row[4] is not None]


def _found(polling: Polling, row: Sequence[Any], server: str) -> Found:
    row_id, epoch, token, n, document, record, at, written_under = row
    run_id, seconds = row_id.removeprefix(polling.settings.prefix), polling.poll.seconds
    claiming = Claiming(Claim(run_id=run_id, workflow="", version=0, seconds=seconds), row_id, "", polling.owner, None)
    claiming.random, claiming.sent = f"{polling.random}.{n}", polling.sent
    standing = (epoch, token, polling.owner, seconds, None, document is not None, document, False, False)
    found = Found(claiming, standing, server)
    if epoch > 1:
        found.place = BEFORE_ALL  # its last owner may have written until the lease was taken: read in a later statement
    elif record is not None:
        found.records.append(read_record(0, "input", "input", record, at, written_under))
    return found
