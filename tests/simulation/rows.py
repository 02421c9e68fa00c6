"""What several statements of the model do to rows: append to a journal, take up a run, name a moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from durable.records import MAX_EARLIER, Status
from simulation.database import Progress, Statement
from simulation.tables import Lease, Signal, Step, Tables

__all__ = [
    "appended",
    "is_awaited",
    "iso",
    "names_awaited",
    "owned_by",
    "sent_to",
    "taken_up",
    "told_of_end",
    "visible_steps",
]

_decode: Final = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.Encoder().encode


def appended(tables: Tables, statement: Statement, step: Step, *, ignores: bool = True) -> Progress[bool]:
    """`INSERT INTO steps`: whether the record is there now, and was not before."""
    key = step.workflow_id, step.seq
    if tables.drops[0]:  # by a trigger, say: the statement succeeds, and the row is not there
        tables.drops[0] -= 1
        tables.dropped[*key, step.nonce] += 1
        return False
    inserted: bool = yield from statement.insert(tables.steps, key, step, ignores=ignores)
    if inserted:
        tables.seqs.setdefault(step.workflow_id, set()).add(step.seq)
    return inserted


def visible_steps(tables: Tables, statement: Statement, run_id: str) -> list[Step]:
    """The journal of a run, as a statement sees it."""
    steps = (tables.steps.visible((run_id, seq), statement) for seq in sorted(tables.seqs.get(run_id, ())))
    return list(filter(None, steps))


def taken_up(execution: dict[str, Any], epoch: int, owner: str, moment: str) -> dict[str, Any]:
    """The execution of a header, once its run is claimed."""
    taken: dict[str, Any] = {"status": Status.RUNNING.value, "lastUpdated": moment}
    taken |= {"startedAt": execution.get("startedAt") or moment, "epoch": epoch, "owner": owner, "began": moment}
    earlier: list[Any] = execution.get("earlier") or []
    if (execution.get("epoch"), execution.get("owner")) == (epoch, owner):
        taken["began"] = execution["began"]
    elif "epoch" in execution:
        last = {name: execution.get(name, "") for name in ("epoch", "owner", "began")}
        earlier = [*earlier, last][-MAX_EARLIER:]
    return {**taken, "earlier": earlier} if earlier else taken


def owned_by(token: str) -> Callable[[Lease], bool]:
    """Whether a lease has this token."""

    def owned(lease: Lease) -> bool:
        return lease.owner_token == token

    return owned


def sent_to(tables: Tables, statement: Statement, run_id: str) -> list[Signal]:
    """The signals of a run, as a statement sees them."""
    sent = (
        tables.signals.visible((run_id, nonce), statement) for nonce in dict.fromkeys(tables.nonces.get(run_id, ()))
    )
    return list(filter(None, sent))


def told_of_end(tables: Tables, statement: Statement, parent: Sequence[str], end: dict[str, Any]) -> Progress[None]:
    """The signal to the parent of a run that has ended, where one is there."""
    run_id, name = parent
    if tables.snapshots.visible(run_id, statement) is None:
        return
    tables.numbers[0] += 1
    number = tables.numbers[0]
    signal = Signal(number, run_id, name, _encode(end).decode(), -number)
    if (yield from statement.insert(tables.signals, (run_id, -number), signal)):
        tables.nonces.setdefault(run_id, []).append(-number)


def is_awaited(tables: Tables, statement: Statement, run_id: str, awaits: Sequence[dict[str, Any]]) -> bool:
    """Whether a signal is there that one of these waits for, and that was not received."""
    sent = sent_to(tables, statement, run_id)
    return any(one["name"] == signal.name and signal.number not in one["taken"] for one in awaits for signal in sent)


def names_awaited(lease: Lease) -> list[str] | None:
    """The names of the signals that a run is suspended for; None of a lease whose run is not suspended."""
    if lease.owner_token is not None or not (lease.owner or "").startswith("suspended "):
        return None
    names: list[str] = _decode(str(lease.owner).removeprefix("suspended "))
    return names


def iso(seconds: float) -> str:
    """A moment as a header has it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()
