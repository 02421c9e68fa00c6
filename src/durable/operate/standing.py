"""Where a run stands, in words: what a line of a list says of it."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, NamedTuple, TypeAlias

from durable._engine.children import END
from durable.stores.reading import NEVER, RunLine

State: TypeAlias = Literal[
    "queued", "delayed", "running", "waiting", "due", "interrupted", "completed", "failed", "cancelled", "unreadable"
]
"""Where a run stands to people: its status; and whether a worker's is due, or waits (`delayed` before its beginning)."""


class Standing(NamedTuple):
    """What a line of a list says."""

    #: In one word.
    state: State
    #: What there is to say about it; empty where it went well.
    where: str
    #: How long it has taken, or takes until now, in seconds; None of what has not begun.
    took: float | None


def stand(line: RunLine, *, now: datetime) -> Standing:
    """Where a run stands at the moment `now`."""
    state = state_of(line, now=now)
    return Standing(state, _where(line, state, now), _took(line, state, now))


def state_of(line: RunLine, *, now: datetime) -> State:
    """The word for it."""
    is_due = line.due_at is None or line.due_at <= now
    if line.status == "queued":
        return "queued" if is_due else "delayed"
    if line.status == "suspended" or (line.status == "interrupted" and line.due_at is not None):
        return "due" if is_due else "waiting"
    return line.status


def name_error(type_: str) -> str:
    """An exception's class for people: `OSError`, `httpx.ReadTimeout`."""
    module, _, name = type_.rpartition(":")
    return name if module in ("", "builtins", "__main__") else f"{module.partition('.')[0]}.{name}"


def show_seconds(seconds: float) -> str:
    """A length of time for people: `480 ms`, `2.75 s`, `13.6 s`, `4 min 10 s`, `2 h 10 min`, `3 d 4 h`."""
    if seconds < 0.9995:  # noqa: PLR2004 -- what is shown of it is less than a second
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    if seconds < 9.995:  # noqa: PLR2004 -- two digits
        return f"{seconds:.2f} s"
    if seconds < 59.95:  # noqa: PLR2004 -- a minute
        return f"{seconds:.1f} s"
    for unit, part, size, of in (("min", "s", 60, 3600), ("h", "min", 3600, 86_400), ("d", "h", 86_400, float("inf"))):
        if round(seconds) < of:
            whole, rest = divmod(round(seconds), size)
            rest //= 1 if size == 60 else 60 if size == 3600 else 3600  # noqa: PLR2004 -- seconds of a minute, of an hour
            return f"{whole} {unit} {rest} {part}" if rest else f"{whole} {unit}"
    raise AssertionError(seconds)


def show_about(seconds: float) -> str:
    """The same in one unit: `480 ms`, `4 min`, `2 h`."""
    if seconds < 0.9995:  # noqa: PLR2004 -- as above
        return show_seconds(seconds)
    for unit, size, of in (("s", 1, 60), ("min", 60, 3600), ("h", 3600, 86_400), ("d", 86_400, float("inf"))):
        if round(seconds / size) * size < of:
            return f"{round(seconds / size)} {unit}"
    raise AssertionError(seconds)


def _where(line: RunLine, state: State, now: datetime) -> str:
    after = f"after {line.last_key}" if line.last_key else "no step recorded yet"
    queue = f"queue {line.queue}" if line.queue else ""
    due_in = 0.0 if line.due_at is None or line.due_at == NEVER else (line.due_at - now).total_seconds()
    match state:
        case "queued":
            said = f"due for {show_about(-due_in)}" if line.due_at is not None else "no worker will take it"
            return _joined(said, queue)
        case "delayed":
            return _joined("until it is woken" if line.due_at == NEVER else f"due in {show_about(due_in)}", queue)
        case "waiting":
            children = [name.removeprefix(END) for name in line.awaits if name.startswith(END)]
            names = [name for name in line.awaits if not name.startswith(END)]
            signals = " or ".join(
                filter(
                    None,
                    (
                        f"for the signal {' or '.join(names)}" if names else "",
                        f"for the child {' or '.join(children)}" if children else "",
                    ),
                )
            )
            until = (
                ""
                if line.due_at == NEVER
                else f"until {show_about(due_in)} from now"
                if signals
                else f"for {show_about(due_in)} more"
            )
            return _joined(_crashes(line), _joined(signals, until) or "until it is woken", after)
        case "due":
            return _joined(_crashes(line), f"due for {show_about(-due_in)}", after)
        case "running" | "interrupted":
            return _joined(_crashes(line), after)
        case "failed":
            told = name_error(line.error) if line.error else "failed"
            step = f" in {line.error_step}" if line.error_step else ""
            return _joined(f"{told}{step}", "needs a decision" if line.needs_decision else "")
        case "cancelled":
            return after if line.last_key else "before its first step"
        case "unreadable":
            return "its status is not known here"
        case "completed":
            return ""


def _crashes(line: RunLine) -> str:
    return f"{line.crashes} {'worker' if line.crashes == 1 else 'workers'} died under it" if line.crashes else ""


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _took(line: RunLine, state: State, now: datetime) -> float | None:
    if line.started_at is None:
        return None
    until = now if state in ("running", "waiting", "due") else line.updated_at
    return max(0.0, (until - line.started_at).total_seconds())
