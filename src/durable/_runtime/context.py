"""Whose code is running: the frame of a workflow or of a step's body, and the runs that it is part of."""

from __future__ import annotations

import hashlib
from contextvars import ContextVar, Token
from typing import Any, Final, Protocol

from msgspec import Struct

from durable._runtime.definitions import StepDefinition
from durable.errors import InvalidArgument

__all__ = ["Driver", "Frame", "Running", "current_frame", "enter", "idempotency_key", "leave"]


class Driver(Protocol):
    """Calls a decorated function as a step of its run."""

    def frame(self) -> Frame:
        """The frame of the workflow function."""
        ...

    def call_decorated(self, definition: StepDefinition, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The step's value, or for an async workflow its awaitable."""
        ...


class Running(Struct, eq=False):
    """A run that is being executed, as long as it is."""

    #: Of its store.
    identity: object
    id: str
    over: bool = False


class Frame(Struct, frozen=True, eq=False):
    """Where code runs."""

    driver: Driver
    #: The key of the step whose body it is; None in the workflow itself.
    inside: str | None
    #: The runs that it is part of, outermost first.
    runs: tuple[Running, ...]


current_frame: Final[ContextVar[Frame | None]] = ContextVar("durable_frame", default=None)


def enter(frame: Frame) -> Token[Frame | None]:
    """Let the code that runs from here on be in this frame."""
    return current_frame.set(frame)


def leave(token: Token[Frame | None]) -> None:
    """Return to the frame before."""
    try:  # noqa: SIM105 -- once per step: contextlib.suppress takes longer than all the rest of it
        current_frame.reset(token)
    except ValueError:  # a coroutine closed from outside its task: the context that was entered is gone with that
        pass


def idempotency_key() -> str:
    """A key for services called by a step: the same in every attempt of it, and in every resume of its run.

    32 hexadecimal digits, from the run's id and the step's key. Raises `InvalidArgument` outside a step's body.
    """
    frame = current_frame.get()
    if frame is None or frame.inside is None:
        raise InvalidArgument("idempotency_key() is for the body of a step, and this is not in one")
    run_id = frame.runs[-1].id
    return hashlib.blake2b(f"{len(run_id)}:{run_id}{frame.inside}".encode(), digest_size=16).hexdigest()
