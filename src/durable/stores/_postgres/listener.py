"""The listener of a worker: hears on a channel of its own, and a connection of its own, that something is due."""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
from collections.abc import Callable, Mapping
from typing import Final

import psycopg

from durable._common.reports import report
from durable._common.threads import start_daemon
from durable._engine.backoff import backoff
from durable.clocks import Clock
from durable.errors import DurableError, StoreUnavailable
from durable.stores._postgres.connections import Connections
from durable.stores._postgres.session import Connection

_DRAIN: Final = b"d"
_CONNECT_WITHIN: Final = 10.0  # seconds
_END_WITHIN: Final = 1.0  # seconds that the end of a worker waits for its listener

_log = logging.getLogger("durable")


class Listener:
    """Calls `wake` for each notification, and when some may have been missed: a lost one costs time, and nothing else."""

    def __init__(
        self, connections: Connections, sql: Mapping[str, bytes], clock: Clock, worker: str, wake: Callable[[], object]
    ) -> None:
        self._connections = connections
        self._sql = sql
        self._clock = clock
        self._worker = worker
        self._wake = wake
        self._connection: Connection | None = None
        self._failures = 0
        self._drains = False
        self._ending, self._end = socket.socketpair()
        self._is_over = False
        self._thread = start_daemon("durable-listener", self._turn, self._on_failure, self._ending.close)

    def drain(self) -> None:
        """The worker is leaving: what dies with it from now on has not crashed."""
        with contextlib.suppress(OSError):
            self._end.send(_DRAIN)

    def close(self) -> None:
        """Hear nothing more, and take the worker off the list."""
        self._is_over = True
        self._end.close()  # which the other end hears
        self._thread.join(_END_WITHIN)

    def _turn(self) -> bool:
        """Hear what there is to hear; False at the end."""
        if self._connection is None:
            if self._is_over:
                return False
            self._connection = connection = self._connections.connect(self._clock.elapsed() + _CONNECT_WITHIN)
            if self._connections.prepares:  # else it is a pooler's session, which is another client's a moment later
                connection.execute(b'LISTEN "durable_%s"' % self._worker.encode(), prepare=False)
            self._failures = 0
            self._wake()  # for what was started meanwhile
            if self._drains:
                self._tell(connection, "drain")
        connection = self._connection
        with selectors.DefaultSelector() as selector:
            selector.register(connection.fileno(), selectors.EVENT_READ)
            selector.register(self._ending, selectors.EVENT_READ)
            told = [key.fileobj for key, _ in selector.select()]
        if self._ending in told and self._ending.recv(1) == _DRAIN:
            self._drains = True
            self._tell(connection, "drain")
        elif self._ending in told:
            with connection:
                self._tell(connection, "leave")
            return False
        for _ in connection.notifies(timeout=0):
            self._wake()
        return True

    def _tell(self, connection: Connection, statement: str) -> None:
        connection.execute(self._sql[statement], {"worker": self._worker}, prepare=False)

    def _on_failure(self, problem: Exception) -> None:
        broken, self._connection = self._connection, None
        if broken is not None:
            with contextlib.suppress(psycopg.Error):
                broken.close()
        if not isinstance(problem, psycopg.Error | DurableError):
            report(_log, logging.ERROR, "a worker's listener failed, and goes on", problem=problem)
        elif self._failures == 0:
            report(_log, logging.WARNING, "a worker hears no notifications (%s), and polls", type(problem).__name__)
        self._failures += 1
        with selectors.DefaultSelector() as selector:
            selector.register(self._ending, selectors.EVENT_READ)
            if selector.select(backoff(self._failures)):
                self._drains |= self._ending.recv(1) == _DRAIN


class Deaf:
    """In the place of a listener for which no thread can be started: polls find what is due."""

    def drain(self) -> None:
        """See `Listener.drain`."""

    def close(self) -> None:
        """See `Listener.close`."""


def listen(
    connections: Connections, sql: Mapping[str, bytes], clock: Clock, worker: str, wake: Callable[[], object]
) -> Listener | Deaf:
    """See `QueueingStore.listen`."""
    try:
        return Listener(connections, sql, clock, worker, wake)
    except StoreUnavailable as problem:
        report(_log, logging.WARNING, "a worker hears no notifications, and polls: %s", problem)
        return Deaf()
