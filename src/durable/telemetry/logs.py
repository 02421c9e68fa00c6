"""A listener that writes a line for each event, with structlog."""

from __future__ import annotations

from typing import Any, Final

import structlog

from durable.events import (
    KeysUnused,
    LeaseTaken,
    Listener,
    MapBegan,
    RunBegan,
    RunCompleted,
    RunEvent,
    RunFailed,
    RunInterrupted,
    RunReturned,
    StepBegan,
    StepEvent,
    StepLeft,
    StepRecorded,
    StepReplayed,
    StepRetrying,
    StepStalled,
    notify,
)
from durable.records import StepRecord

_DIGITS: Final = 6  # of a second, as a clock has them


def log_events(logger: Any = None, *, payloads: bool = False) -> Listener:
    """A listener for `on_event=` that writes one line for each event to a structlog logger (by default `get_logger()`).

    Each line has the `run_id`, that of a step its `key` (and its `name` where that is another), the `attempt`, and the
    `duration` of the body in seconds. Beginnings and replays are at level debug; records and ends of runs at info; retries
    and whatever needs a look at warning; failures at error.

    No line has a value, an argument, or an exception's message, which may quote them, unless `payloads` is true: then a
    step's line has the JSON of its value as `value`, or its error's message as `message`.
    """
    log = structlog.get_logger() if logger is None else logger

    def listener(event: RunEvent) -> None:
        level, line, fields = _line(event)
        if payloads and isinstance(event, StepRecorded | StepReplayed):
            fields |= _payload(event.record)
        getattr(log, level)(
            line, run_id=event.run_id, **(_step(event) if isinstance(event, StepEvent) else {}), **fields
        )

    return listener


def all_of(*listeners: Listener) -> Listener:
    """One listener that calls each of these in order; an exception of one is logged, and the others are still called."""

    def listener(event: RunEvent) -> None:
        for each in listeners:
            notify(each, event)

    return listener


def _line(event: RunEvent) -> tuple[str, str, dict[str, Any]]:
    """The level, what has happened, and the fields that tell more."""
    match event:
        case RunBegan(workflow=workflow, epoch=epoch, recorded=recorded):
            return "info", "run began", {"workflow": workflow, "epoch": epoch, "recorded": recorded}
        case RunReturned(workflow=workflow):
            return "debug", "run had ended before", {"workflow": workflow}
        case RunCompleted(workflow=workflow):
            return "info", "run completed", {"workflow": workflow}
        case RunFailed(workflow=workflow, error=error, again=again):
            return "error", "run failed", {"workflow": workflow, "error": _name(error), "again": list(again)}
        case RunInterrupted(workflow=workflow, reason="RunSuspended"):
            return "info", "run suspended", {"workflow": workflow}
        case RunInterrupted(workflow=workflow, reason="RunContinued"):
            return "info", "run goes on with another input", {"workflow": workflow}
        case RunInterrupted(workflow=workflow, reason=reason):
            return "warning", "run interrupted", {"workflow": workflow, "reason": reason}
        case KeysUnused(keys=keys):
            return "warning", "recorded steps not asked for", {"keys": list(keys)}
        case LeaseTaken(owner=owner):
            return "warning", "lease taken from a dead owner", {"owner": owner}
        case MapBegan(name=name, keys=keys):
            return "debug", "map began", {"name": name, "items": len(keys)}
        case StepBegan(attempt=attempt):
            return "debug", "step began", {"attempt": attempt}
        case StepReplayed():
            return "debug", "step replayed", {}
        case StepRetrying(attempt=attempt, error=error, due=due):
            return "warning", "step is retried", {"attempt": attempt, "error": _name(error), "due": due.isoformat()}
        case StepRecorded(attempt=attempt, record=record, seconds=seconds):
            done = {"attempt": attempt, "duration": round(seconds, _DIGITS)}
            if record.error is None:
                return "info", "step recorded", done
            return "error", "step failed", done | {"error": _name(record.error.type)}
        case StepStalled(seconds=seconds):
            return "warning", "step is still running", {"duration": round(seconds, _DIGITS)}
        case StepLeft(reason="RunSuspended"):
            return "debug", "step waits", {}
        case StepLeft(reason=reason):
            return "warning", "step left without an outcome", {"reason": reason}
        case _:  # an event of a later version, or of the user's own
            return "info", type(event).__name__, {}


def _step(event: StepEvent) -> dict[str, str]:
    return {"key": event.key} if event.name == event.key else {"key": event.key, "name": event.name}


def _payload(record: StepRecord) -> dict[str, str]:
    return {"value": record.json.decode()} if record.error is None else {"message": record.error.message}


def _name(error: str) -> str:
    return error.replace(":", ".")
