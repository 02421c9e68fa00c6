"""What a run says while it goes: frozen events, and the resume-state collector that listens to them.

An event's `repr` never shows a stored value.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias

from durable.snapshot import StepRecord

__all__ = [
    "Event",
    "KeysUnused",
    "LeaseTaken",
    "Listener",
    "ResumeState",
    "ResumeStateCollector",
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
    "StepReplayed",
    "StepRetrying",
    "StepStalled",
    "safely",
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
    """The lease was granted. `recorded` steps were found in the journal; `epoch` counts how often it was granted."""

    workflow: str
    epoch: int
    recorded: int


@dataclass(frozen=True, slots=True)
class RunReturned(RunEvent):
    """The run had ended before; its stored outcome was handed out and nothing was called."""

    workflow: str


@dataclass(frozen=True, slots=True)
class RunCompleted(RunEvent):
    """The workflow returned and its result is committed."""

    workflow: str


@dataclass(frozen=True, slots=True)
class RunFailed(RunEvent):
    """The workflow raised, which is committed; the steps `again` run again at the next `durable.run` of this id."""

    workflow: str
    error: str
    again: tuple[str, ...]


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
class StepRecorded(StepEvent):
    """The checkpoint of a fresh outcome is acknowledged; from here on the body never runs again."""

    record: StepRecord = field(repr=False)
    seconds: float = 0.0

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
    """The body has been running for `seconds`, more than three leases; it is said once. The lease is renewed meanwhile.

    Told by the heartbeat's thread, since the workflow's own may be blocked.
    """

    seconds: float


@dataclass(frozen=True, slots=True)
class StepLeft(StepEvent):
    """The body ended without an outcome that can be recorded, and runs again when it is next asked for."""

    reason: str


Event: TypeAlias = RunEvent
Listener: TypeAlias = Callable[[RunEvent], object]

_log = logging.getLogger("durable")


def safely(listener: Listener, event: RunEvent) -> None:
    """Tell a listener; what it raises is logged and disturbs nothing."""
    try:
        listener(event)
    except Exception:
        _log.exception("an event listener raised on %s of run %r", type(event).__name__, event.run_id)


@dataclass(frozen=True, slots=True)
class ResumeState:
    """What a run needs to go on: its settled steps by key."""

    steps: dict[str, StepRecord] = field(default_factory=dict[str, StepRecord], repr=False)


class ResumeStateCollector:
    """Collects the settled steps of a run from its events, replayed ones included.

    Pass `collector.handle_event` as `on_event`; `resume_state()` is then the whole state at any moment, also of a run
    that was itself resumed. (The idea and the name are awaitly's `createResumeStateCollector`.)
    """

    def __init__(self) -> None:
        self._steps: dict[str, StepRecord] = {}

    def handle_event(self, event: RunEvent) -> None:
        """Take note of one event."""
        if isinstance(event, StepRecorded | StepReplayed):
            self._steps[event.key] = event.record

    def resume_state(self) -> ResumeState:
        """The steps settled so far, in the order in which they first settled here."""
        return ResumeState(dict(self._steps))
