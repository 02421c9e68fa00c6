"""Daemon threads, which do not keep the interpreter from exiting and go on after a turn that fails."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeAlias, TypeVar

from durable._common.locks import locked
from durable.errors import StoreUnavailable

T = TypeVar("T")

_LOOK = 0.05  # seconds between looks at whether a thread that is being started still lives


def start_daemon(
    name: str,
    turn: Callable[[], object],
    on_failure: Callable[[Exception], object],
    on_end: Callable[[], object] | None = None,
) -> threading.Thread:
    """Start a daemon thread that calls `turn` until it returns something false.

    What a turn raises (a `MemoryError`, for example) goes to `on_failure`, and the thread goes on. `on_end` is called when it
    ends for any reason. Raises `StoreUnavailable` when no thread can be started: it may be possible later.
    """
    begun = threading.Event()

    def run() -> None:
        try:
            while True:
                try:
                    begun.set()
                    while turn():
                        pass
                    return
                except Exception as problem:
                    begun.set()  # first: the starter waits for it, and may hold the lock that `on_failure` takes
                    on_failure(problem)
        finally:
            if on_end is not None:
                on_end()

    thread = threading.Thread(target=run, name=name, daemon=True)
    try:
        thread.start()
    except (RuntimeError, MemoryError) as problem:
        raise StoreUnavailable("this process", f"no thread can be started for {name} ({problem})") from problem
    while not begun.wait(_LOOK):
        if not thread.is_alive():
            raise StoreUnavailable("this process", f"the thread {name} ended before it began")
    return thread


def wait_for(thread: threading.Thread | None, lock: Any, *, amid: bool = False) -> bool:
    """Wait until a thread that takes this lock has ended; whether it has.

    Returns at once where it would wait for its own caller: in a signal handler, or a finalizer, on a thread that holds the lock
    or is `amid` something else that the other one waits for, and in that thread itself. The thread then ends when it can.
    """
    if thread is None:
        return True
    if not (amid or thread is threading.current_thread() or lock._is_owned()):  # noqa: SLF001 -- there is no other way to ask
        thread.join()
    return not thread.is_alive()


_Given: TypeAlias = tuple[Future[Any], Callable[[], Any]]


class Daemons:
    """At most `limit` threads, which end when there is nothing to do. What is submitted beyond that waits for its turn.

    With `linger`, a thread ends only after so many seconds with nothing to do: starting one costs more than a short run.
    """

    def __init__(self, name: str, limit: int, linger: float = 0.0) -> None:
        self._name = name
        self._limit = limit
        self._linger = linger
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._threads = 0
        self._idle = 0
        self._waiting: deque[_Given] = deque()

    def submit(self, work: Callable[[], T], *, at_once: bool = False) -> Future[T]:
        """The future of what `work` returns; cancelled before its turn, `work` is not called. `at_once`: on one more thread.

        Raises `StoreUnavailable` when no thread can be started for it.
        """
        answer: Future[T] = Future()
        given: _Given = (answer, work)
        if self._add(given, at_once=at_once):
            worker = _Worker(self)
            try:
                start_daemon(self._name, worker.turn, worker.on_failure)
            except BaseException:
                self._withdraw(given)
                raise
        return answer

    @locked
    def _add(self, given: _Given, *, at_once: bool) -> bool:
        """Let it wait for its turn; whether to start one more thread."""
        if at_once:
            self._waiting.appendleft(given)
        else:
            self._waiting.append(given)
        if self._idle >= len(self._waiting):
            self._changed.notify()
            return False
        if self._threads >= self._limit and not at_once:
            return False
        self._threads += 1
        return True

    @locked
    def _withdraw(self, given: _Given) -> None:
        self._threads -= 1
        with contextlib.suppress(ValueError):  # another thread has taken it
            self._waiting.remove(given)

    @locked
    def take(self) -> _Given | None:
        """The next work; None when there is none, and the thread is to end."""
        if self._linger and not self._waiting:
            self._idle += 1
            self._changed.wait(self._linger)
            self._idle -= 1
        if self._waiting:
            return self._waiting.popleft()
        self._threads -= 1
        return None

    @locked
    def close(self) -> None:
        """Let the threads end that have nothing to do."""
        self._linger = 0.0
        self._changed.notify_all()


class _Worker:
    """What one thread does."""

    def __init__(self, daemons: Daemons) -> None:
        self._daemons = daemons
        self._given: _Given | None = None

    def turn(self) -> bool:
        """Do the next work, if there is any."""
        self._given = self._daemons.take()
        if self._given is None:
            return False
        fulfil(*self._given)
        self._given = None
        return True

    def on_failure(self, problem: Exception) -> None:
        """After a fault of ours: answer the waiting caller with it."""
        given, self._given = self._given, None
        if given is not None and not given[0].done():
            given[0].set_exception(problem)


def fulfil(answer: Future[Any], work: Callable[[], Any]) -> None:
    """Do the work, and set its result on the future; not if that was cancelled meanwhile."""
    if not answer.set_running_or_notify_cancel():
        return
    try:
        value = work()
    except BaseException as problem:
        answer.set_exception(problem)
    else:
        answer.set_result(value)
