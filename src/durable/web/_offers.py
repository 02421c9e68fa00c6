"""What may be done with a run, and where it may not, why: said on the page instead of hidden. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple

from durable.operate.standing import State

_OPEN: Final = ("queued", "delayed", "running", "waiting", "due", "interrupted")
_GOES_ON: Final = "It goes on by itself: a worker takes it when it is due."


class Offer(NamedTuple):
    """An action."""

    name: str
    #: Why it cannot be done; empty where it can.
    reason: str = ""


def offers(state: State | str, *, may_write: bool, read_only: bool, has_records: bool) -> dict[str, Offer]:
    """Each action by name."""
    is_open = state not in ("completed", "failed", "cancelled", "unreadable")
    busy = "It is being executed: cancel it first." if state == "running" else ""
    retry = {
        "completed": "It is completed. Fork it from a step to run some of it again.",
        "running": busy,
        "queued": _GOES_ON,
        "delayed": _GOES_ON,
        "due": _GOES_ON,
        "waiting": "It waits, and goes on by itself. Send it a signal, or cancel it.",
    }.get(state, "" if state in ("failed", "interrupted", "cancelled") else "It has not ended.")
    reasons = {
        "retry": retry,
        "cancel": "" if is_open else "It has ended.",
        "signal": "" if is_open else "It has ended: nothing would receive a signal.",
        "fork": "" if has_records else "Nothing is recorded yet.",
        "delete": busy,
    }
    if read_only or not may_write:
        why = "This page is read-only." if read_only else "You may look, and change nothing."
        reasons = dict.fromkeys(reasons, why)
    return {name: Offer(name, reason) for name, reason in reasons.items()}
