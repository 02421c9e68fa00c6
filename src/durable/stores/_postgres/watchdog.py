"""The watchdog: ends connections that have been silent for too long.

A query timeout is no help against a server that has stopped answering: cancelling needs the server too. Shutting the
socket down ends the wait at once, whatever the other side does.

Silence is counted from the last byte that came, or that the other side acknowledged, since much data on a slow line takes
longer than any permitted silence. The kernel counts those bytes, so looking costs nothing except for a wait that has lasted
a while. Where it does not count them (a Unix socket; another system than Linux), a wait is given the time that a slow line
would take for so many bytes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import threading
from typing import Any, Final

import psycopg

from durable._common.locks import locked
from durable._common.reports import report
from durable._common.threads import start_daemon, wait_for
from durable._engine.batches import MIN_SPEED
from durable.clocks import Clock

_log = logging.getLogger("durable")

_LOOK: Final = 0.25  # seconds between two looks at the watched connections
_TCP_INFO: Final = getattr(socket, "TCP_INFO", None)
# Linux's layout, since 4.1: bytes that were acknowledged, bytes that came.
_COUNTERS: Final = struct.Struct("=120xQQ")


class Watchdog:
    """Watches waits for replies. Its thread lives while something has been watched lately."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.RLock()  # a signal handler may run while it is held
        self._watched: dict[psycopg.Connection[Any], tuple[float, int]] = {}
        # At waits that have lasted a while; the thread's own.
        self._looks: dict[psycopg.Connection[Any], _Look] = {}
        self._thread: threading.Thread | None = None
        self._runs = False  # asked with each statement: `is_alive` takes five times as long
        self._closed = threading.Event()
        self._is_ending = False  # by its thread, under the lock

    def watch(self, connection: psycopg.Connection[Any], until: float, size: int = 0) -> None:
        """End the connection if it is still watched at this reading of the clock, and nothing came or went meanwhile.

        `size`: bytes that a slow line may take its time for, where the system cannot tell whether any come or go.
        """
        self._watched[connection] = (until, size)
        if not self._runs:
            self._start()

    def unwatch(self, connection: psycopg.Connection[Any]) -> None:
        """Stop watching: the reply has come."""
        self._watched.pop(connection, None)
        # Not while connections are being ended. Else the lock may be held by a thread whose signal handler waits for this one.
        if self._is_ending:
            with self._lock: pass  # noqa: E701  # fmt: skip

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        wait_for(self._thread, self._lock)
        self._watched.clear()  # an interrupt may have left something

    @locked
    def _start(self) -> None:
        if (self._thread is None or not self._thread.is_alive()) and not self._closed.is_set():
            self._runs = True  # before the start: the thread may end at once
            try:
                self._thread = start_daemon("durable-watchdog", self._turn, self._on_failure, self._on_end)
            except BaseException:
                self._runs = False
                raise

    def _on_end(self) -> None:
        self._runs = False

    def _on_failure(self, problem: Exception) -> None:
        report(_log, logging.ERROR, "the watchdog failed, and goes on", problem=problem)

    def _turn(self) -> bool:
        if self._closed.wait(_LOOK):
            return False
        self._end_late()
        return True

    @locked
    def _end_late(self) -> None:
        """End what is late. Under the lock no watched connection is closed, and no descriptor is reused."""
        now = self._clock.elapsed()
        looks, self._looks = self._looks, {}
        self._is_ending = True  # before it looks: what was not watched any more by then is not met
        try:
            for connection, watched in list(self._watched.items()):
                look = looks.get(connection)
                if look is None or look.watched is not watched:
                    look = _Look(connection, watched, now)
                if look.is_over(now):
                    shut_down(connection)
                    self._watched.pop(connection, None)
                else:
                    self._looks[connection] = look
        finally:
            self._is_ending = False


class _Look:
    """One wait, as seen from the first look at it."""

    def __init__(self, connection: psycopg.Connection[Any], watched: tuple[float, int], now: float) -> None:
        until, size = watched
        self.watched = watched
        self._connection = connection
        self._moved = _count_bytes(connection)
        if self._moved is None:
            self._patience, self._until = 0.0, until + size / MIN_SPEED
        else:  # bytes may have come unseen before this look: until the next one it has the benefit of the doubt
            self._patience = max(until - now, _LOOK)
            self._until = now + self._patience

    def is_over(self, now: float) -> bool:
        if self._moved is not None and (moved := _count_bytes(self._connection)) != self._moved:
            self._moved, self._until = moved, now + self._patience
        return self._until <= now


def _count_bytes(connection: psycopg.Connection[Any]) -> tuple[int, int] | None:
    """How many bytes were acknowledged, and have come, on a connection; None where they are not counted."""
    if _TCP_INFO is None:
        return None
    try:
        with socket.socket(fileno=os.dup(connection.fileno())) as duplicate:
            counters = duplicate.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _COUNTERS.size)
        gone, come = _COUNTERS.unpack(counters)
    except (OSError, psycopg.Error, struct.error):
        return None
    return gone, come


def shut_down(connection: psycopg.Connection[Any]) -> None:
    """Shut a connection's socket down, from any thread: a wait on it ends at once. This does not close it."""
    with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)
