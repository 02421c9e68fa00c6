"""What a run says while it goes: frozen events.

An event's `repr` never shows a stored value.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias

from durable.records import AttemptRecord, FailureRecord, Header, Record, StepRecord

__all__ = [
    "Event",
    "KeysUnused",
    "LeaseTaken",
    "Listener",
    "MapBegan",
    "RunBegan",
    "RunCompleted",
    "RunEvent",
    "RunFailed",
    "RunInterrupted",
    "RunReturned",
    "StepBegan",
    "StepEvent",
    "StepLeft",
    "StepRecorded",
    "StepRemembered",
    "StepReplayed",
    "StepRetrying",
    "StepStalled",
    "notify",
]


@dataclass(frozen=True, slots=True)
class RunEvent:
    """Something that happened to the run `run_id` at the moment `at` (aware UTC, by this machine's clock)."""

    run_id: str
    at: datetime


@dataclass(frozen=True, slots=True)
class LeaseTaken(RunEvent):
    """The right to write this run came from an owner found dead on this machine, before its lease had ended."""

    owner: str


@dataclass(frozen=True, slots=True)
class RunBegan(RunEvent):
    """The lease was granted. `recorded` steps were found in the journal; `epoch` counts how often it was granted.

    `header` and `records` are the run as it was found.
    """

    workflow: str
    epoch: int
    recorded: int
    header: Header | None = field(default=None, repr=False)
    records: Sequence[Record] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class RunReturned(RunEvent):
    """The run had ended before; its stored outcome was handed out and nothing was called."""

    workflow: str


@dataclass(frozen=True, slots=True)
class RunCompleted(RunEvent):
    """The workflow returned and its result, whose JSON text is `result`, is committed."""

    workflow: str
    result: str = field(default="null", repr=False)


@dataclass(frozen=True, slots=True)
class RunFailed(RunEvent):
    """The workflow raised, which is committed; the steps `again` run again at the next `durable.run` of this id."""

    workflow: str
    error: str
    again: tuple[str, ...]
    failure: FailureRecord | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class RunInterrupted(RunEvent):
    """The workflow was left without an outcome (cancelled, lease lost, drift …); the run can be resumed."""

    workflow: str
    reason: str


@dataclass(frozen=True, slots=True)
class KeysUnused(RunEvent):
    """The workflow ended without asking for these recorded steps."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MapBegan(RunEvent):
    """`step.map(name, …)` was called: its items are steps of these `keys`, recorded ones and others."""

    name: str
    keys: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class StepEvent(RunEvent):
    """Something that happened to the step `key`, called as `name`."""

    key: str
    name: str


@dataclass(frozen=True, slots=True)
class StepBegan(StepEvent):
    """The body is about to be called, for the `attempt`-th time since it last settled."""

    attempt: int = 1


@dataclass(frozen=True, slots=True)
class StepRetrying(StepEvent):
    """The `attempt`-th attempt failed with an exception of the class `error`; the next is due at `due`. This is recorded."""

    attempt: int
    error: str
    due: datetime


@dataclass(frozen=True, slots=True)
class StepRemembered(StepEvent):
    """The record of an unfinished step is committed: a failed attempt, or (at most once) its start."""

    record: AttemptRecord = field(repr=False)


@dataclass(frozen=True, slots=True)
class StepRecorded(StepEvent):
    """The checkpoint of a fresh outcome is acknowledged; from here on the body does not run again by itself."""

    record: StepRecord = field(repr=False)

    @property
    def seconds(self) -> float:
        """How long the body took in its last attempt, to the millisecond."""
        return self.record.seconds

    @property
    def attempt(self) -> int:
        """Which attempt was the last one, counted from 1 over all executions."""
        return self.record.attempt

    @property
    def ok(self) -> bool:
        """Whether the body returned (else it raised)."""
        return self.record.ok


@dataclass(frozen=True, slots=True)
class StepReplayed(StepEvent):
    """A recorded outcome was handed out instead of calling the body."""

    record: StepRecord = field(repr=False)


@dataclass(frozen=True, slots=True)
class StepStalled(StepEvent):
    """The body has been running for `seconds`, more than three leases; emitted once. The lease is renewed meanwhile.

    Emitted on the heartbeat's thread: the workflow's own may be blocked.
    """

    seconds: float


@dataclass(frozen=True, slots=True)
class StepLeft(StepEvent):
    """The body ended without an outcome that can be recorded, and runs again when it is next asked for."""

    reason: str


Event: TypeAlias = RunEvent
Listener: TypeAlias = Callable[[RunEvent], object]

_log = logging.getLogger("durable")


def notify(listener: Listener, event: RunEvent) -> None:
    """Tell a listener; what it raises is logged and disturbs nothing."""
    try:
        listener(event)
    except Exception:
        with contextlib.suppress(Exception):  # nor does what a filter or a handler raises
            _log.exception("an event listener raised on %s of run %r", type(event).__name__, event.run_id)
