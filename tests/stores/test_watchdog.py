"""The watchdog: what is watched no more is not ended, and nothing waits for the lock of a thread that has been interrupted."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from durable.clocks import SystemClock
from durable.stores._postgres import watchdog as watchdogs
from durable.stores._postgres.watchdog import Watchdog
from harness.ownership_children import wait_until

CONNECTION: Any = object()


def test_what_is_watched_no_more_waits_for_no_interrupted_thread() -> None:
    """A signal handler that runs a workflow may have come while its thread held the lock, and wait for a connection."""
    watchdog = Watchdog(SystemClock())
    watchdog._runs = True
    watchdog.watch(CONNECTION, 0.0)
    with watchdog._lock:  # as the interrupted thread has it
        connecting = threading.Thread(target=watchdog.unwatch, args=(CONNECTION,), daemon=True)
        connecting.start()
        connecting.join(20.0)
        assert not connecting.is_alive()
    assert not watchdog._watched


def test_what_is_being_ended_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its descriptor must not be another connection's by the time it is shut down."""
    ending, go_on, shut = threading.Event(), threading.Event(), list[object]()

    class Look:
        def __init__(self, connection: Any, watched: Any, now: float) -> None:
            self.watched = watched

        def is_over(self, now: float) -> bool:
            ending.set()
            return go_on.wait(20.0)

    monkeypatch.setattr(watchdogs, "_Look", Look)
    monkeypatch.setattr(watchdogs, "shut_down", shut.append)
    watchdog = Watchdog(SystemClock())
    watchdog._runs = True
    watchdog.watch(CONNECTION, 0.0)
    ends = threading.Thread(target=watchdog._end_late)
    ends.start()
    assert ending.wait(20.0)
    over = threading.Event()

    def unwatch() -> None:
        watchdog.unwatch(CONNECTION)
        assert shut == [CONNECTION]
        over.set()

    threading.Thread(target=unwatch).start()
    wait_until(lambda: not watchdog._watched, "the connection to be watched no more")
    assert not over.is_set()
    go_on.set()
    assert over.wait(20.0)
    ends.join()
