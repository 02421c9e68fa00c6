"""How often a run has gone on with another input, and what its history is called."""

from __future__ import annotations

from msgspec import UNSET

from durable._common.checks import MAX_NAME_BYTES
from durable.errors import InvalidArgument
from durable.records import Header


def times_continued(header: Header) -> int:
    """How often the run was continued with a new input."""
    return 0 if header.continued is UNSET else header.continued


def name_history(run_id: str, number: int) -> str:
    """The id under which what a run was before this continuation of it, from 1, is kept."""
    return f"{run_id}~{number}"


def check_history(run_id: str, number: int) -> InvalidArgument | None:
    """Why what it was cannot be kept; None if it can."""
    history = name_history(run_id, number)
    if len(history.encode()) <= MAX_NAME_BYTES:
        return None
    return InvalidArgument(
        f"run {run_id[:40]!r}…: its history would be kept as …{history[-20:]!r}, which is above the {MAX_NAME_BYTES} bytes of "
        f"an id: give such runs shorter ids, or say keep_history=False"
    )
