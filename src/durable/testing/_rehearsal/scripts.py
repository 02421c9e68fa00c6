"""Scripts: outcomes in the place of a step's bodies."""

from __future__ import annotations

import copy
import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any

from durable._common.checks import check_name
from durable.errors import InvalidArgument


class Script:
    """The outcomes of one step's bodies, in the order of their calls: values, and exceptions, which are raised.

    The last one serves every later call.
    """

    def __init__(self, step: str, outcomes: tuple[Any, ...]) -> None:
        if not outcomes:
            raise InvalidArgument(f"the script of step {step!r} says nothing: give it values, and exceptions to raise")
        self.step = check_name("a step's name or key", step)
        self.played = 0
        self._outcomes = outcomes
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Script of step {self.step!r}, {len(self._outcomes)} outcomes>"

    def in_place_of(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """A function to call in the place of `fn`: async where that is, and held to its annotations."""

        def play(*_: Any, **__: Any) -> Any:
            return self._play()

        async def play_async(*_: Any, **__: Any) -> Any:
            return self._play()

        return functools.wraps(fn)(play_async if inspect.iscoroutinefunction(fn) else play)

    def _play(self) -> Any:
        with self._lock:
            outcome = self._outcomes[min(self.played, len(self._outcomes) - 1)]
            self.played += 1
        if inspect.isclass(outcome) and issubclass(outcome, BaseException):
            raise outcome
        if isinstance(outcome, BaseException):
            raise copy.copy(outcome)  # raised again, it has neither the traceback nor the notes of this time
        return outcome
