"""Whose code is running: the frame of a workflow or of a step's body, and the runs that it is part of."""

from __future__ import annotations

import hashlib
from contextvars import ContextVar, Token
from typing import Any, Final, Protocol

from msgspec import Struct

from durable._engine.calls import Call
from durable._engine.causes import InFlight
from durable._runtime.definitions import StepDefinition
from durable.errors import InvalidArgument


class Driver(Protocol):
    """Calls a decorated function as a step of its run."""

    @property
    def epoch(self) -> int:
        """Which execution of its run this is."""
        ...

    @property
    def is_replaying(self) -> bool:
        """Whether steps are recorded that the workflow has not come to."""
        ...

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
    workflow: str
    version: int
    over: bool = False


class Frame(Struct, frozen=True, eq=False):
    """Where code runs."""

    driver: Driver
    #: The key of the step whose body it is; None in the workflow itself.
    inside: str | None
    #: The runs that it is part of, outermost first.
    runs: tuple[Running, ...]
    #: Which attempt of the step's body it is; 0 in the workflow itself.
    attempt: int = 0
    #: What the keys of steps called here begin with; empty outside of any scope.
    scope: str = ""
    #: Why no step may be called in this body; empty where one may, and in the workflow itself.
    problem: str = ""
    #: What was in flight where the map was called that has this item.
    amid: InFlight | None = None
    #: The frame of the call of the step whose body it is.
    outer: Frame | None = None
    #: The race in a branch of which it runs.
    race: Call | None = None


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


class Current(Struct, frozen=True):
    """Where the code that asks is running."""

    __module__ = "durable"  # a step may return one

    #: The run's id.
    id: str
    #: The workflow's name.
    workflow: str
    #: The version of the workflow's code.
    version: int
    #: The key of the step whose body it is; None in the workflow itself.
    step: str | None
    #: Which attempt of the step's body this is, counted from 1 over all executions; in the workflow itself `epoch`.
    attempt: int
    #: Which execution of the run this is: the number of its lease, counted from 1, of which `durable.retry` takes one too.
    epoch: int
    #: Whether the workflow is still going through recorded steps: some have not been asked for, and none was recorded since.
    is_replaying: bool


def current() -> Current | None:
    """The run, the step and the attempt that the calling code is part of; None outside of a run.

    For logs, metrics and traces. Known in the workflow function and in the bodies of its steps, in tasks and threads that
    carry their context on; a thread that you start yourself has none, unless by `contextvars.copy_context().run`.
    """
    frame = current_frame.get()
    if frame is None:
        return None
    run, epoch = frame.runs[-1], frame.driver.epoch
    return Current(
        run.id, run.workflow, run.version, frame.inside, frame.attempt or epoch, epoch, frame.driver.is_replaying
    )


def idempotency_key() -> str:
    """A key for services called by a step: the same in every attempt of it, and in every resume of its run.

    32 hexadecimal digits, from the run's id and the step's key. Raises `InvalidArgument` outside a step's body.
    """
    frame = current_frame.get()
    if frame is None or frame.inside is None:
        raise InvalidArgument("idempotency_key() is for the body of a step, and this is not in one")
    run_id = frame.runs[-1].id
    return hashlib.blake2b(f"{len(run_id)}:{run_id}{frame.inside}".encode(), digest_size=16).hexdigest()
