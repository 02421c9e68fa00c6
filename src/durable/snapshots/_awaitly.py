"""Steps as awaitly writes them: without a `name`, in snapshots and in resume states.

A resume state is `{"kind": "ResumeState", "steps": [[key, step], …]}`; a snapshot has as `workflowName` nothing or the run's id
(`runs.is_foreign`). In awaitly a recorded failure is a step that ran; here the step runs again, so it is shown and not
replayed.
"""

from __future__ import annotations

from typing import Any, Final, cast

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from durable.records import ErrorRecord, StepRecord, render

RESUME_STATE: Final = "ResumeState"


class _Step(Struct):
    """The parts of a step that matter here."""

    ok: bool
    name: str = ""
    value: Raw | UnsetType = UNSET
    error: Any = None
    cause: Any = None


_read_step: Final = msgspec.json.Decoder(_Step)


def render_step(raw: Raw) -> str | None:
    """A step of a document, ours or awaitly's, as a journal has it; None for one that is to run again."""
    text = bytes(raw).decode()
    try:
        step = _read_step.decode(raw)
    except msgspec.MsgspecError:
        return text  # not a step's record: its reader says so
    if step.name:
        return text
    return render(StepRecord("", ok=True, value=_or_null(step.value), unordered=True)) if step.ok else None


def show_failure(raw: Raw) -> StepRecord | None:
    """A failed step of awaitly's, to be shown; None for any other step."""
    try:
        step = _read_step.decode(raw)
    except msgspec.MsgspecError:
        return None
    if step.ok or step.name:
        return None
    said, error = _words(step.cause), step.error
    if said.get("originalType") == "undefined" or not said:  # nothing was thrown: the step returned this error
        told = _words(error)
        kind, message = told.get("type", "error"), told.get("message", error if isinstance(error, str) else "")
    else:
        kind, message = said.get("name", "thrown"), said.get("message", said.get("stringRepresentation", ""))
    return StepRecord("", ok=False, error=ErrorRecord(str(kind), str(message)))


def _words(part: object) -> dict[str, Any]:
    return cast(dict[str, Any], part) if isinstance(part, dict) else {}


def _or_null(value: Raw | UnsetType) -> Raw:
    return Raw(b"null") if value is UNSET else value  # JavaScript's undefined leaves no trace in JSON
