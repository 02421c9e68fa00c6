"""Scripts: what stands in for the bodies of a step."""

from __future__ import annotations

import copy
import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any

from durable._common.checks import check_name
from durable.errors import InvalidArgument

__all__ = ["Script"]


class Script:
    """The outcomes of one step's bodies, in the order of their calls: values, and exceptions, which are raised.

    The last one stays for every later call.
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

    def of(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """What is called in the place of `fn`; of its colour, and held to its annotations."""

        def played(*_: Any, **__: Any) -> Any:
            return self._play()

        async def awaited(*_: Any, **__: Any) -> Any:
            return self._play()

        return functools.wraps(fn)(awaited if inspect.iscoroutinefunction(fn) else played)

    def _play(self) -> Any:
        with self._lock:
            outcome = self._outcomes[min(self.played, len(self._outcomes) - 1)]
            self.played += 1
        if inspect.isclass(outcome) and issubclass(outcome, BaseException):
            raise outcome
        if isinstance(outcome, BaseException):
            raise copy.copy(
                outcome
            )  # it may be raised again, and then without the traceback and the notes of this time
        return outcome
