"""The watchdog: ends connections that have been silent for too long.

A query timeout is no help against a server that has stopped answering: cancelling needs the server too. Shutting the
socket down ends the wait at once, whatever the other side does.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import Any, Final

import psycopg

from durable.clocks import Clock

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
        if self._thread is None:
            self._start()

    def unwatch(self, connection: psycopg.Connection[Any]) -> None:
        """The reply has come."""
        with self._lock:  # not while the connection is just being ended
            self._watched.pop(connection, None)

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._run, name="durable-watchdog", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._closed.wait(_LOOK):
            now = self._clock.elapsed()
            with self._lock:  # while it is held, no watched connection is closed and no descriptor used anew
                for connection, end in list(self._watched.items()):
                    if end <= now:
                        del self._watched[connection]
                        shut_down(connection)


def shut_down(connection: psycopg.Connection[Any]) -> None:
    """End a connection from any thread: whoever waits on it is told at once. It is not closed by this."""
    with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)
