"""`with step.scope(name):` as an object."""

from __future__ import annotations

from contextvars import Token
from types import TracebackType
from typing import Any, Protocol

from durable._common.boundary import public
from durable._runtime.context import Frame, leave


class _Driver(Protocol):
    def enter_scope(self, name: str) -> Token[Frame | None]: ...


class Scope:
    """In here the keys of steps begin with the scope's name. Its number is drawn when it is entered."""

    __slots__ = ("_driver", "_name", "_tokens")

    def __init__(self, driver: _Driver, name: str) -> None:
        self._driver = driver
        self._name = name
        self._tokens: list[Token[Any]] = []

    @public("step.scope")
    def __enter__(self) -> None:
        self._tokens.append(self._driver.enter_scope(self._name))

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, at: TracebackType | None
    ) -> None:
        leave(self._tokens.pop())
