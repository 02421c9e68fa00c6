"""Daemon threads: for work that blocks, so many at once, none of which keeps the interpreter from exiting."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from durable.errors import StoreUnavailable

__all__ = ["Daemons", "started"]

T = TypeVar("T")


def started(name: str, target: Callable[..., object], *args: Any) -> threading.Thread:
    """A daemon thread, started. Where none can be, `StoreUnavailable`: it may be possible later."""
    thread = threading.Thread(target=target, name=name, args=args, daemon=True)
    try:
        thread.start()
    except (RuntimeError, MemoryError) as problem:
        raise StoreUnavailable("this process", f"no thread can be started for {name} ({problem})") from problem
    return thread


class Daemons:
    """At most `most` threads, which end when there is nothing to do. What is submitted beyond waits for its turn."""

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self._lock = threading.Lock()
        self._threads = 0
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()

    def submit(self, work: Callable[[], T], *, at_once: bool = False) -> Future[T]:
        """What `work` comes to. Not called if it is cancelled before its turn; `at_once` there is a thread more for it."""
        answer: Future[T] = Future()
        given = (answer, work)
        with self._lock:
            if at_once:
                self._waiting.appendleft(given)
            else:
                self._waiting.append(given)
            full = self._threads >= self._most and not at_once
            if not full:
                self._threads += 1
        if not full:
            try:
                started(self._name, self._run)
            except BaseException:
                with self._lock:
                    self._threads -= 1
                    with contextlib.suppress(ValueError):  # another thread has begun with it
                        self._waiting.remove(given)
                raise
        return answer

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        finally:
            with self._lock:
                self._threads -= 1
                # One that was ended in the midst of its work is replaced; where that cannot be, by the next that is submitted.
                replaced = bool(self._waiting) and self._threads < self._most
                self._threads += replaced
            if replaced:
                try:
                    started(self._name, self._run)
                except StoreUnavailable:
                    with self._lock:
                        self._threads -= 1

    def _turn(self) -> bool:
        with self._lock:
            if not self._waiting:
                return False
            answer, work = self._waiting.popleft()
        try:
            if answer.set_running_or_notify_cancel():
                _work(answer, work)
        except BaseException as problem:
            if not answer.done():
                answer.set_exception(problem)
        return True


def _work(answer: Future[Any], work: Callable[[], Any]) -> None:
    try:
        value = work()
    except BaseException as problem:
        answer.set_exception(problem)
    else:
        answer.set_result(value)
