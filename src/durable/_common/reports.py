"""Log records from places that a slow or failing handler must not hold up."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from collections.abc import Callable
from typing import Any, Final

from durable._common.locks import locked

_MAX_WAITING: Final = 1000  # records that no handler has taken yet; more are dropped
_IDLE: Final = 1.0  # seconds without a record, after which the thread ends


class _Reporter:
    """Calls what is handed over, one after the other, on a thread that ends when there is nothing to call."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None

    def call(self, work: Callable[[], object]) -> None:
        """Hand work over. Never raises, and never waits for the work."""
        with contextlib.suppress(Exception):  # no thread, or no memory: then there is no record
            if self._waiting.qsize() < _MAX_WAITING:
                self._waiting.put(work)
            self._start()

    @locked
    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            thread = threading.Thread(target=self._run, name="durable-reports", daemon=True)
            thread.start()
            self._thread = thread

    def flush(self, seconds: float) -> None:
        """Wait until everything handed over so far has been called, `seconds` at most."""
        called = threading.Event()
        self.call(called.set)
        called.wait(seconds)

    def _run(self) -> None:
        while True:
            try:
                work = self._waiting.get(timeout=_IDLE)
            except queue.Empty:
                if self._is_done():
                    return
                continue
            with contextlib.suppress(BaseException):  # of a filter, a handler or a listener of the user's
                work()
            del work

    @locked
    def _is_done(self) -> bool:
        if not self._waiting.empty():
            return False
        self._thread = None
        return True


_reporter = _Reporter()


def report(log: logging.Logger, level: int, message: str, *values: Any, problem: BaseException | None = None) -> None:
    """Log on a thread of its own, where a lease or a commit depends on going on."""
    if log.isEnabledFor(level):
        info = None if problem is None else (type(problem), problem, problem.__traceback__)
        _reporter.call(lambda: log.log(level, message, *values, exc_info=info))


def say(log: logging.Logger, level: int, message: str, *values: Any) -> None:
    """Log at once, on this thread; what a filter or a handler raises is dropped."""
    with contextlib.suppress(Exception):
        log.log(level, message, *values)


def flush(seconds: float) -> None:
    """Wait until everything reported so far has been logged, `seconds` at most."""
    _reporter.flush(seconds)


def call_listener(listener: Callable[[Any], object], event: Any) -> None:
    """Call a listener with an event, on that thread too."""
    _reporter.call(lambda: listener(event))


def _renew() -> None:
    """Make a new reporter in a forked child: the thread was its parent's."""
    global _reporter  # noqa: PLW0603 -- one per process is what it is
    _reporter = _Reporter()


os.register_at_fork(after_in_child=_renew)
