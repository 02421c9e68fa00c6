"""The transactions of one process: so many at once, each on a connection that no checkpoint uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from durable._common.threads import Daemons
from durable.clocks import Clock
from durable.errors import StoreUnavailable
from durable.stores._postgres.connections import Connections
from durable.stores._postgres.job import Job
from durable.stores._postgres.room import Room
from durable.stores._postgres.session import Session, is_sound

_RESERVED: Final = 2  # connections of a user's pool that are left to checkpoints, where it has so many
_STATEMENTS_UNTIL_PREPARED: Final = 5  # of the body's own, psycopg's default


class Transactions:
    """The transactions of one process: so many at once, each on a connection that no checkpoint uses."""

    def __init__(
        self,
        connections: Connections,
        sql: Mapping[str, bytes],
        clock: Clock,
        settle: Callable[[Job], Any],
        most: int,
    ) -> None:
        self.connections = connections
        self.sql = sql
        self.clock = clock
        self.settle = settle
        size = connections.pool_size
        most = most if size is None else min(most, max(1, size - _RESERVED))
        self.room = Room(most)
        self.daemons = Daemons("durable-transaction", most)
        self._idle: list[Session] = []
        self._borrowed: set[Session] = set()  # of the writer's
        self._closed = False

    def take(self, until: float) -> tuple[Session, bool]:
        """A connection, and whether somebody else's body may have left something behind in its session."""
        connections = self.connections
        if connections.pool_size is not None:
            return connections.take(until), False
        try:
            session = self._idle.pop()
            session.is_lent = True
            return session, connections.prepares
        except IndexError:
            try:
                connection = connections.connect(until)
            except StoreUnavailable:  # too many, perhaps: then the writer's, as long as it needs none
                spare = connections.take_spare()
                if spare is None:
                    raise
                self._borrowed.add(spare)
                return spare, connections.prepares
            try:
                connection.prepare_threshold = _STATEMENTS_UNTIL_PREPARED if connections.prepares else None
                return Session(connection, {}, connections.server_of(connection)), False
            except BaseException:
                connection.close()
                raise

    def give_back(self, session: Session) -> None:
        """Take it back, whatever state it is in."""
        if self.connections.pool_size is not None:
            self.connections.give_back(session)
            return
        if session in self._borrowed:
            self._borrowed.discard(session)
            self.connections.give_back(session)
            return
        if not session.is_lent:
            return
        session.is_lent = False  # before it is another's, whatever interrupts this
        if is_sound(session.connection):
            self._idle.append(session)
        else:
            session.connection.close()
        if self._closed:
            self.close()

    def close(self) -> None:
        """Close what is at hand. A transaction under way ends by itself, and its connection with it."""
        self._closed = True
        while self._idle:
            self._idle.pop().connection.close()
