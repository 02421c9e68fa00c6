"""The thread that keeps leases alive while their drivers are."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from durable._engine.leases import Lease
from durable._locks import locked
from durable._reports import report
from durable.clocks import Clock
from durable.stores._daemons import kept_up

_SHORTEST_PAUSE: Final = 0.05  # seconds, after a turn that failed
_RETRY: Final = 0.1  # of the shortest lease: how soon a failed renewal is tried again

_log = logging.getLogger("durable")


class Heartbeat:
    """Renews all leases of one store together, before the first of them is due.

    `renew` is given leases and returns the tokens that still stand, each with whether it was renewed (or was out of reach
    for the moment); it is called by this thread only, so it may keep a connection of its own. When it raises, it is called
    again until the leases' deadlines have passed: one failed renewal is not a lost lease.
    """

    def __init__(self, renew: Callable[[Sequence[Lease]], Mapping[str, bool]], clock: Clock) -> None:
        self._renew = renew
        self._clock = clock
        self._kept: dict[str, tuple[Lease, Callable[[], bool]]] = {}
        self._lock = threading.RLock()  # a signal handler may come while it is held
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._closed = False
        self._pause = 0.0  # seconds, before the next turn

    @locked
    def keep(self, lease: Lease, alive: Callable[[], bool]) -> None:
        """Renew this lease from now on, for as long as `alive()` says that somebody works under it.

        `StoreUnavailable` when its thread cannot be started; the lease is not kept then.
        """
        if self._thread is None or not self._thread.is_alive():
            self._thread = kept_up("durable-heartbeat", self._turn, self._failed)
        self._kept[lease.token] = (lease, alive)
        self._changed.notify()

    @locked
    def drop(self, lease: Lease) -> None:
        """Renew it no more."""
        self._kept.pop(lease.token, None)

    def close(self) -> None:
        """End the thread, after the renewal that it may be in."""
        with self._lock:
            self._closed = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join()

    def beat(self) -> bool:
        """Renew every lease once; False when some could not be."""
        with self._lock:
            kept = list(self._kept.values())
        leases = [lease for lease, alive in kept if self._lives(lease, alive)]
        if not leases:
            return True
        sent = self._clock.elapsed()
        try:
            standing = self._renew(leases)
        except Exception as problem:
            message = "%d leases could not be renewed (%s); trying again"
            report(_log, logging.WARNING, message, len(leases), type(problem).__name__)
            return False
        for lease in leases:
            if lease.token not in standing:
                self._lost(lease)
            elif standing[lease.token]:
                lease.renewed(sent)
        return all(standing.values())

    def _lives(self, lease: Lease, alive: Callable[[], bool]) -> bool:
        try:  # not under the lock: this is the driver's own code, which may take its time
            if alive():
                return True
        except Exception as problem:  # says nothing about whether it lives, and must not cost the others their leases
            report(_log, logging.ERROR, "run %r could not be looked at", lease.run_id, problem=problem)
            return True
        with self._lock:
            if self._kept.pop(lease.token, None) is not None:
                report(_log, logging.WARNING, "the driver of run %r is gone; its lease is left to end", lease.run_id)
        return False

    def _lost(self, lease: Lease) -> None:
        with self._lock:  # unless it was given back while the renewal was under way
            if self._kept.pop(lease.token, None) is not None:
                lease.lost = "another execution has taken it over"

    def _failed(self, problem: Exception) -> None:
        report(_log, logging.ERROR, "the heartbeat failed, and goes on", problem=problem)
        self._pause = _SHORTEST_PAUSE

    def _turn(self) -> bool:
        """Wait until the first lease is due, then renew all; False at the end."""
        with self._lock:
            self._changed.wait_for(lambda: self._closed or self._kept)
            if self._closed:
                return False
            wait = max(self._pause, self._next_due() - self._clock.elapsed())
            if wait > 0:
                self._pause = 0.0
                self._changed.wait(wait)
                return True
            shortest = min(lease.seconds for lease, _ in self._kept.values())
        self._pause = 0.0 if self.beat() else shortest * _RETRY
        return True

    def _next_due(self) -> float:
        return min(lease.due() for lease, _ in self._kept.values())
