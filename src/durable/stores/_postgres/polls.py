"""Polls: what is sent for one, and what it has found."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from copy import copy
from typing import Any, Final

from durable._engine.decisions import Claim
from durable.stores._owner import HOST
from durable.stores._postgres.claims import BEFORE_ALL, Claiming, Found
from durable.stores._postgres.rows import read_record
from durable.stores._postgres.schedules import read_due
from durable.stores._postgres.settings import Settings
from durable.stores._postgres.starts import queue_of, read_queue, render_queue, render_route
from durable.stores.requests import Poll

MAX_ADMITTED: Final = 2000  # runs that one statement lets wait for their turn

_polls: Final = itertools.count(1)  # of this process, whose `instance` is random


class Polling:
    """The payload of a poll. `random` makes the tokens of what it takes; it is another for each sending.

    `name` is what all its sendings have in common: what any of them has taken, and nothing else, begins with it.
    """

    __slots__ = ("_queues", "_sending", "dead", "name", "owner", "poll", "routes", "sent", "settings")

    def __init__(
        self, poll: Poll, settings: Settings, instance: str, owner: str, dead: Sequence[tuple[str, str]] = ()
    ) -> None:
        self.poll = poll
        self.settings = settings
        self._ask(poll)
        self.owner = owner
        #: The rows and tokens of leases whose owners are dead.
        self.dead = dead
        self.name = f"{instance}.p{next(_polls)}"
        self.sent = 0.0
        self._sending = 1

    def with_poll(self, poll: Poll, dead: Sequence[tuple[str, str]]) -> Polling:
        """The same with another request, which is sent in the place of this one."""
        another = copy(self)
        another.dead = dead
        another._ask(poll)  # noqa: SLF001 -- one of this class
        return another

    def _ask(self, poll: Poll) -> None:
        prefix = self.settings.prefix
        self.poll = poll
        self.routes = [render_route(route, prefix) for route in poll.routes]
        self._queues = [render_queue(route.queue, prefix) for route in poll.routes]

    @property
    def limited(self) -> list[str]:
        """The queues in which runs wait for their turn, as far as the worker knows."""
        return [render_queue(queue, self.settings.prefix) for queue in self.poll.limited]

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
            "queues": sorted(set(self._queues)),
            "route_queues": self._queues,
            "serves": [render_route(route, self.settings.prefix) for route in self.poll.serves or self.poll.routes],
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

    def values_of_queues(self, queues: Collection[str], count: int) -> dict[str, Any]:
        """The parameters of the statements for these queues, of which so many runs are asked for."""
        ways = [way for way in zip(self.routes, self._queues, strict=True) if way[1] in queues]
        return self.values() | {
            "queues": sorted(queues),
            "lines": [line for line, _ in ways],
            "line_queues": [queue for _, queue in ways],
            "count": count,
            "most": MAX_ADMITTED,
        }


class Due:
    """What a poll has found: runs that it has taken, schedules that are due, and leases here whose owners may be dead."""

    __slots__ = ("due", "floor", "found", "held", "limited", "next_in", "tick_in", "workers")

    def __init__(self, polling: Polling, rows: Sequence[Any], held: Sequence[Any], server: str) -> None:
        self.next_in: float | None = rows[0][0]
        self.workers: int = rows[0][1]
        self.floor: float | None = rows[0][2]
        #: The queues in which runs wait for their turn, by the names of their rows.
        self.limited: Sequence[str] = rows[0][3]
        self.due, self.tick_in = read_due(rows[0][4], polling.settings.prefix)
        self.held: Sequence[tuple[str, str, str]] = held
        self.found = [_found(polling, row[5:], server, polling.sent) for row in rows if row[5] is not None]

    @property
    def queues(self) -> list[str]:
        """The queues in which runs wait for their turn."""
        return sorted(map(read_queue, self.limited))

    def add(self, polling: Polling, rows: Sequence[Any], next_in: float | None, server: str, sent: float) -> None:
        """What was taken besides, as its turn came, by statements sent then; and when there may be more of that."""
        self.found += [_found(polling, row, server, sent) for row in rows]
        known = [seconds for seconds in (self.next_in, next_in) if seconds is not None]
        self.next_in = min(known, default=None)


def _found(polling: Polling, row: Sequence[Any], server: str, sent: float) -> Found:
    row_id, epoch, token, n, route, document, record, at, written_under = row
    run_id, seconds = row_id.removeprefix(polling.settings.prefix), polling.poll.seconds
    claiming = Claiming(Claim(run_id=run_id, workflow="", version=0, seconds=seconds), row_id, "", polling.owner, None)
    claiming.random, claiming.sent = f"{polling.random}.{n}", sent
    standing = (epoch, token, polling.owner, seconds, None, document is not None, document, False, False)
    found = Found(claiming, standing, server)
    found.queue = queue_of(route)
    if epoch > 1:
        found.place = BEFORE_ALL  # its last owner may have written until the lease was taken: read in a later statement
    elif record is not None:
        found.records.append(read_record(0, "input", "input", record, at, written_under))
    return found
