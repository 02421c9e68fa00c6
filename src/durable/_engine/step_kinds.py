"""The kinds of steps: what a call is, besides its name, its arguments and its options."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from msgspec import Struct

from durable._engine.starts import NewRun

Isolation: TypeAlias = Literal["read committed", "repeatable read", "serializable"]


class Plain(Struct, frozen=True, gc=False):
    """Call the body, and record its outcome."""


class Item(Struct, frozen=True, gc=False):
    """As `Plain`; the body may call steps of its own, whose keys begin with this step's key and a slash."""


class Sleep(Struct, frozen=True, gc=False):
    """Record the moment of waking, which is all that the body says; then let the time pass, as `LiveExecution.rest` tells."""


class Listen(Struct, frozen=True, gc=False):
    """Record the payload of a signal of the step's name, or, of several, its name and payload.

    The body is called if none comes in time, and raises.
    """

    #: Seconds from the first call until then; None waits for ever.
    timeout: float | None
    #: The names of the signals, of which any will do; none where it is the step's own.
    names: tuple[str, ...] = ()


class Transact(Struct, frozen=True, gc=False):
    """Call the body in a transaction of the store, and commit that together with the record."""

    #: The transaction's isolation level.
    isolation: Isolation


class Race(Struct, frozen=True, gc=False):
    """Let the branches run beside each other, and record the name and the value of the one that returns first."""

    #: The names of the branches.
    names: tuple[str, ...]


class StartChild(Struct, frozen=True):
    """Start a child, and go on. The step is begun by that, and settled by an `AwaitChild` of the same key."""

    #: What is started.
    child: NewRun


class AwaitChild(Struct, frozen=True):
    """Record the outcome of the child that the step of the same key has started, when it has ended."""

    #: What was started.
    child: NewRun


StepKind: TypeAlias = Plain | Item | Sleep | Listen | Transact | Race | StartChild | AwaitChild
PLAIN: Final = Plain()
ITEM: Final = Item()
