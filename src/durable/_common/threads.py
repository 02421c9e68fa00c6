"""Daemon threads, none of which keeps the interpreter from exiting, and that no fault of one turn is the end of."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeAlias, TypeVar

from durable._common.locks import locked
from durable.errors import StoreUnavailable

__all__ = ["Daemons", "fulfil", "start_daemon", "wait_for"]

T = TypeVar("T")

_LOOK = 0.05  # seconds between looks at whether a thread that is being started still lives


def start_daemon(
    name: str,
    turn: Callable[[], object],
    failed: Callable[[Exception], object],
    ended: Callable[[], object] | None = None,
) -> threading.Thread:
    """A daemon thread, started, that calls `turn` until it returns something false.

    What a turn raises (no memory, for example) goes to `failed`, and the thread goes on; when it has ended all the same,
    `ended` is called. `StoreUnavailable` where none can be started: that may be possible later.
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
                    begun.set()  # first: the starter waits for it, and may hold the lock that `failed` takes
                    failed(problem)
        finally:
            if ended is not None:
                ended()

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
    """Wait until a thread has ended, which takes this lock; whether it has.

    Not where it would wait for its own caller: in a signal handler, or a finalizer, that has struck a thread which holds the
    lock, or does `amid` something else that the other waits for; nor in that thread itself. It then ends when it can.
    """
    if thread is None:
        return True
    if not (amid or thread is threading.current_thread() or lock._is_owned()):  # noqa: SLF001 -- there is no other way to ask
        thread.join()
    return not thread.is_alive()


_Given: TypeAlias = tuple[Future[Any], Callable[[], Any]]


class Daemons:
    """At most `most` threads, which end when there is nothing to do. What is submitted beyond waits for its turn."""

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self._lock = threading.Lock()
        self._threads = 0
        self._waiting: deque[_Given] = deque()

    def submit(self, work: Callable[[], T], *, at_once: bool = False) -> Future[T]:
        """What `work` comes to. Not called if it is cancelled before its turn; `at_once` there is a thread more for it.

        `StoreUnavailable` where no thread can be started for it.
        """
        answer: Future[T] = Future()
        given: _Given = (answer, work)
        if self._add(given, at_once=at_once):
            hand = _Hand(self)
            try:
                start_daemon(self._name, hand.turn, hand.failed)
            except BaseException:
                self._withdraw(given)
                raise
        return answer

    @locked
    def _add(self, given: _Given, *, at_once: bool) -> bool:
        """Let it wait for its turn; whether there is to be a thread more."""
        if at_once:
            self._waiting.appendleft(given)
        else:
            self._waiting.append(given)
        if self._threads >= self._most and not at_once:
            return False
        self._threads += 1
        return True

    @locked
    def _withdraw(self, given: _Given) -> None:
        self._threads -= 1
        with contextlib.suppress(ValueError):  # another thread has begun with it
            self._waiting.remove(given)

    @locked
    def take(self) -> _Given | None:
        """What is next; None, and there is a thread less, when there is nothing."""
        if self._waiting:
            return self._waiting.popleft()
        self._threads -= 1
        return None


class _Hand:
    """One thread's work."""

    def __init__(self, daemons: Daemons) -> None:
        self._daemons = daemons
        self._given: _Given | None = None

    def turn(self) -> bool:
        """Do what is next, if anything is."""
        self._given = self._daemons.take()
        if self._given is None:
            return False
        fulfil(*self._given)
        self._given = None
        return True

    def failed(self, problem: Exception) -> None:
        """A fault of ours: whoever waits is told."""
        given, self._given = self._given, None
        if given is not None and not given[0].done():
            given[0].set_exception(problem)


def fulfil(answer: Future[Any], work: Callable[[], Any]) -> None:
    """Do the work, and answer with what it comes to; not if the answer was cancelled meanwhile."""
    if not answer.set_running_or_notify_cancel():
        return
    try:
        value = work()
    except BaseException as problem:
        answer.set_exception(problem)
    else:
        answer.set_result(value)
