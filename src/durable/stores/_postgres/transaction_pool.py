"""The transactions of one process, limited in number, and the sessions that they use."""

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

_RESERVED: Final = 2  # connections of a user's pool, left to checkpoints where the pool has that many
_STATEMENTS_UNTIL_PREPARED: Final = 5  # of the body's own; psycopg's default


class TransactionPool:
    """The transactions of one process: at most `limit` at once, each on a connection that no checkpoint uses."""

    def __init__(
        self, connections: Connections, sql: Mapping[str, bytes], clock: Clock, settle: Callable[[Job], Any], limit: int
    ) -> None:
        self.connections = connections
        self.sql = sql
        self.clock = clock
        self.settle = settle
        size = connections.pool_size
        limit = limit if size is None else min(limit, max(1, size - _RESERVED))
        self.room = Room(limit)
        self.daemons = Daemons("durable-transaction", limit)
        self._idle: list[Session] = []
        self._borrowed: set[Session] = set()  # from the writers
        self._closed = False

    def take(self, until: float) -> tuple[Session, bool]:
        """A session, and whether it must be reset, since another body may have left something behind in it."""
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
            except StoreUnavailable:  # too many connections, perhaps: then one that the writers leave idle
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
        """Take a session back, whatever its state."""
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
        """Close the idle sessions. A transaction under way ends by itself, and its connection with it."""
        self._closed = True
        while self._idle:
            self._idle.pop().connection.close()
