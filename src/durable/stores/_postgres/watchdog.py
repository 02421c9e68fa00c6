"""The watchdog: ends connections that have been silent for too long.

A query timeout is no help against a server that has stopped answering: cancelling needs the server too. Shutting the
socket down ends the wait at once, whatever the other side does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from typing import Any, Final

import psycopg

from durable._locks import locked
from durable._reports import report
from durable.clocks import Clock
from durable.stores._daemons import kept_up

_log = logging.getLogger("durable")

_LOOK: Final = 0.25  # seconds between two looks at what is being watched


class Watchdog:
    """Watches waits for replies. Its thread lives while something has been watched lately."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.RLock()  # a signal handler may come while it is held
        self._watched: dict[psycopg.Connection[Any], float] = {}
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def watch(self, connection: psycopg.Connection[Any], until: float) -> None:
        """End the connection if it is still watched at this reading of the clock."""
        self._watched[connection] = until
        if self._thread is None or not self._thread.is_alive():
            self._start()

    @locked
    def unwatch(self, connection: psycopg.Connection[Any]) -> None:
        """The reply has come."""
        self._watched.pop(connection, None)  # not while the connection is just being ended

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
        self._watched.clear()  # an interrupt may have left something

    @locked
    def _start(self) -> None:
        if (self._thread is None or not self._thread.is_alive()) and not self._closed.is_set():
            self._thread = kept_up("durable-watchdog", self._turn, self._failed)

    def _failed(self, problem: Exception) -> None:
        report(_log, logging.ERROR, "the watchdog failed, and goes on", problem=problem)

    def _turn(self) -> bool:
        if self._closed.wait(_LOOK):
            return False
        self._end_late()
        return True

    @locked
    def _end_late(self) -> None:
        """End what is late. Meanwhile no watched connection is closed, and no descriptor used anew."""
        now = self._clock.elapsed()
        for connection, end in list(self._watched.items()):
            if end <= now:
                shut_down(connection)
                del self._watched[connection]


def shut_down(connection: psycopg.Connection[Any]) -> None:
    """End a connection from any thread: whoever waits on it is told at once. It is not closed by this."""
    with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)
