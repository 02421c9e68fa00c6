"""Daemon threads: for work that blocks, so many at once, none of which keeps the interpreter from exiting."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

__all__ = ["Daemons"]

T = TypeVar("T")


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
        with self._lock:
            if at_once:
                self._waiting.appendleft((answer, work))
            else:
                self._waiting.append((answer, work))
            full = self._threads >= self._most and not at_once
            if not full:
                self._threads += 1
        if not full:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        return answer

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                answer, work = self._waiting.popleft()
            if answer.set_running_or_notify_cancel():
                _work(answer, work)
            del answer, work  # a result must not live until the next one


def _work(answer: Future[Any], work: Callable[[], Any]) -> None:
    try:
        value = work()
    except BaseException as problem:
        answer.set_exception(problem)
    else:
        answer.set_result(value)
