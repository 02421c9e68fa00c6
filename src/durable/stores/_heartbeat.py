"""The thread that keeps leases alive while their drivers are."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from durable._common.locks import locked
from durable._common.reports import report
from durable._common.threads import start_daemon, wait_for
from durable._engine.leases import ASK_POLL, CANCELLATION_POLL, Lease
from durable.clocks import Clock

_MIN_PAUSE: Final = 0.05  # seconds, after a turn that failed
_RETRY: Final = 0.1  # of the shortest lease: how soon a failed renewal is tried again

OF_THE_PARENT: Final = "it belongs to the process that this one was forked from"

_log = logging.getLogger("durable")


class Heartbeat:
    """Renews all leases of one store together, before the first of them is due.

    `renew` is given leases and returns the tokens that still stand, each with whether it was renewed (or was out of reach
    for the moment); it is called by this thread only, so it may keep a connection of its own. When it raises, it is called
    again until the leases' deadlines have passed: one failed renewal is not a lost lease.

    `look` is given the leases whose holders wait, twice a second while there are some, and all of them once a second. It notes
    on them that their runs were cancelled, or are asked to be. One question for all of them: it costs the same for one run and
    for a thousand. When it raises, there is a pause of ten looks: that a run was cancelled is heard with the next renewal at
    the latest.
    """

    def __init__(
        self,
        renew: Callable[[Sequence[Lease]], Mapping[str, bool]],
        look: Callable[[Sequence[Lease]], object],
        clock: Clock,
    ) -> None:
        self._renew = renew
        self._look = look
        self._next_look = 0.0
        self._next_look_at_all = 0.0
        self._pid = os.getpid()
        self._clock = clock
        self._kept: dict[str, tuple[Lease, Callable[[], bool]]] = {}
        self._lock = threading.RLock()  # a signal handler may run while it is held
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._closed = False
        self._pause = 0.0  # seconds, before the next turn

    def renew(self) -> None:
        """In a forked child that goes on using the store."""
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._thread, self._pid = None, os.getpid()
        kept, self._kept = self._kept, {}
        for lease, _ in kept.values():
            lease.gone = OF_THE_PARENT

    @locked
    def keep(self, lease: Lease, alive: Callable[[], bool]) -> None:
        """Renew this lease from now on, for as long as `alive()` says that its driver is at work.

        `StoreUnavailable` when its thread cannot be started; the lease is not kept then.
        """
        self.begin()
        if not self._kept:
            self._next_look_at_all = self._clock.elapsed() + ASK_POLL
        self._kept[lease.token] = (lease, alive)
        lease.on_wait = self._wake
        self._changed.notify()

    @locked
    def begin(self) -> None:
        """See that its thread runs, before anything is taken that it is to keep. `StoreUnavailable` when it cannot begin."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = start_daemon("durable-heartbeat", self._turn, self._on_failure)

    @locked
    def drop(self, lease: Lease) -> tuple[Lease, Callable[[], bool]] | None:
        """Renew it no more. With what is returned it may be kept again."""
        return self._kept.pop(lease.token, None)

    @locked
    def mark_deleted(self, rows: Sequence[str]) -> None:
        """Note that the runs of these rows are deleted here: the database has not lost them."""
        for lease, _ in self._kept.values():
            if lease.row in rows:
                lease.gone = "the run was deleted"

    def close(self) -> bool:
        """End the thread, after a renewal under way; whether it has ended."""
        return wait_for(self._shut(), self._lock)

    @locked
    def _shut(self) -> threading.Thread | None:
        self._closed = True
        self._changed.notify()
        return self._thread

    def beat(self) -> bool:
        """Renew every lease once; False when some could not be."""
        kept = self._list_kept()
        leases = [lease for lease, alive in kept if self._is_alive(lease, alive)]
        if not leases:
            return True
        # A renewal is as good as a look.
        self._next_look = max(self._next_look, self._clock.elapsed() + CANCELLATION_POLL)
        sent, asked = self._clock.elapsed(), [(lease, lease.token) for lease in leases]
        try:
            standing = self._renew(leases)
        except Exception as problem:
            message = "%d leases could not be renewed (%s); trying again"
            report(_log, logging.WARNING, message, len(leases), type(problem).__name__)
            return False
        for lease, token in asked:
            if token not in standing:
                if self._drop_if_kept(token):  # unless it was given back while the renewal was under way
                    lease.lost = "another execution has taken it over"
            elif standing[token]:
                lease.renew(sent)
        return all(standing.values())

    def _is_alive(self, lease: Lease, alive: Callable[[], bool]) -> bool:
        try:  # not under the lock: this is the driver's own code, and may be slow
            if not lease.is_left and alive():
                return True
        except Exception as problem:  # this does not say whether it is alive, and must not cost the others their leases
            report(_log, logging.ERROR, "run %r could not be looked at", lease.run_id, problem=problem)
            return True
        if self._drop_if_kept(lease.token):
            report(_log, logging.WARNING, "the driver of run %r is gone; its lease is left to end", lease.run_id)
        return False

    @locked
    def _list_kept(self) -> list[tuple[Lease, Callable[[], bool]]]:
        return list(self._kept.values())

    @locked
    def _drop_if_kept(self, token: str) -> bool:
        return self._kept.pop(token, None) is not None

    def _wake(self) -> None:
        if os.getpid() != self._pid:  # in the child, of a run under way at a fork: the lock may be held for ever there
            return
        self._notify()

    @locked
    def _notify(self) -> None:
        self._changed.notify()

    def _look_at_waiting(self) -> None:
        """Ask which of the waiting runs were cancelled, or are asked to be; now and then, of those at work, too."""
        now = self._clock.elapsed()
        every = now >= self._next_look_at_all
        waiting = [lease for lease, _ in self._list_kept() if (every or lease.is_waiting(now)) and not lease.cancelled]
        if every:
            self._next_look_at_all = now + ASK_POLL
        self._next_look = now + CANCELLATION_POLL
        try:
            if waiting:
                self._look(waiting)
        except Exception as problem:
            kind = type(problem).__name__
            report(_log, logging.DEBUG, "%d runs that wait could not be looked at (%s)", len(waiting), kind)
            self._next_look = self._next_look_at_all = now + 10 * CANCELLATION_POLL

    def _on_failure(self, problem: Exception) -> None:
        report(_log, logging.ERROR, "the heartbeat failed, and goes on", problem=problem)
        self._pause = _MIN_PAUSE

    def _turn(self) -> bool:
        """Wait until leases are due, or waiting runs are to be looked at, and do that; False when closed."""
        next_ = self._choose_next()
        if next_ is not None:
            next_()
        return next_ is not None or not self._closed

    @locked
    def _choose_next(self) -> Callable[[], object] | None:
        """What is to be done now; None after a wait, since something else may be due by then."""
        self._changed.wait_for(lambda: self._closed or self._kept)
        if self._closed:
            return None
        now = self._clock.elapsed()
        wait = max(self._pause, min(lease.renewal_due() for lease, _ in self._kept.values()) - now)
        is_waited = any(lease.is_waiting(now) and not lease.cancelled for lease, _ in self._kept.values())
        looks_in = max(0.0, min(self._next_look if is_waited else math.inf, self._next_look_at_all) - now)
        if all(lease.cancelled for lease, _ in self._kept.values()):
            looks_in = math.inf
        if wait <= 0:
            return self._beat_and_pause
        if looks_in <= 0:
            return self._look_at_waiting
        self._changed.wait(min(wait, looks_in))
        self._pause = max(0.0, self._pause - (self._clock.elapsed() - now))
        return None

    def _beat_and_pause(self) -> None:
        shortest = min((lease.seconds for lease, _ in self._list_kept()), default=0.0)
        self._pause = 0.0 if self.beat() else shortest * _RETRY
