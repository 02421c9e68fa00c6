"""Runs and journals as plain JSON, for programs: what `--json` and a page's raw view show. Its keys are public."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, cast

from msgspec import UNSET

from durable.errors import UnreadableRecord
from durable.operate.redact import REDACTED, Redact, show_json, shown
from durable.operate.standing import stand
from durable.operate.timeline import StepRow, Timeline
from durable.operate.view import RunView
from durable.records import ErrorRecord, Kind, Record, StepRecord, parse
from durable.stores.listing import Stats
from durable.stores.reading import NEVER, RunLine

SEALED: Final = "[sealed: only a process that has the store's codec can read it]"


def plain_line(line: RunLine, *, now: datetime) -> dict[str, Any]:
    """A line of a list."""
    standing = stand(line, now=now)
    return {
        "id": line.id,
        "status": line.status,
        "state": standing.state,
        "workflow": line.workflow,
        "version": line.version,
        "queue": line.queue,
        "priority": line.priority,
        "startedAt": _moment(line.started_at),
        "updatedAt": _moment(line.updated_at),
        "dueAt": None if line.due_at == NEVER else _moment(line.due_at),
        "took": None if standing.took is None else round(standing.took, 3),
        "lastKey": line.last_key or None,
        "records": line.records,
        "error": {"type": line.error, "step": line.error_step or None} if line.error else None,
        "owner": line.owner or None,
        "executions": line.executions,
        "crashes": line.crashes,
        "needsDecision": line.needs_decision,
        "parent": line.parent or None,
    }


def plain_timeline(timeline: Timeline, *, redact: Redact, messages: bool = True) -> dict[str, Any]:
    """The steps of a run, without their values."""
    failure = timeline.failure
    return {
        "began": _moment(timeline.began),
        "seconds": round(timeline.seconds, 3),
        "waited": round(timeline.waited, 3),
        "executions": timeline.executions,
        "steps": [plain_step(row, redact=redact, messages=messages) for row in timeline.rows],
        "gaps": [{"begin": round(gap.begin, 3), "end": round(gap.end, 3)} for gap in timeline.gaps],
        "maps": [one._asdict() for one in timeline.maps],
        "failure": None
        if failure is None
        else {
            "error": plain_error(failure.error, redact=redact, where="failure", messages=messages),
            "step": failure.step or None,
            "again": list(failure.again),
            "undecided": list(failure.undecided),
        },
        "unreadable": list(timeline.unreadable),
    }


def plain_step(row: StepRow, *, redact: Redact, messages: bool = True) -> dict[str, Any]:
    """A step, without its value."""
    return {
        "key": row.key,
        "name": row.name,
        "state": row.state,
        "seconds": round(row.seconds, 3),
        "attempts": row.attempts,
        "due": _moment(row.due),
        "error": None
        if row.error is None
        else plain_error(row.error, redact=redact, where=f"step:{row.key}", messages=messages),
        "epoch": row.epoch,
        "child": row.child or None,
        "bars": [{"begin": round(bar.begin, 3), "end": round(bar.end, 3), "kind": bar.kind} for bar in row.bars],
    }


def plain_error(
    error: ErrorRecord, *, redact: Redact, where: str, messages: bool, full: bool = False
) -> dict[str, Any]:
    """An exception, with its message where that is shown; in `full` with its traceback, notes and cause."""
    message = error.message if error.sealed is UNSET else SEALED
    told: dict[str, Any] = {
        "type": error.type,
        "message": shown(redact, f"message:{where}", message) if messages else None,
    }
    if full:
        told |= {
            "notes": [shown(redact, f"message:{where}", note) for note in error.notes] if messages else [],
            "traceback": shown(redact, f"traceback:{where}", error.traceback) if messages else None,
            "cause": None
            if error.cause is None
            else plain_error(error.cause, redact=redact, where=where, messages=messages, full=True),
            "members": [
                plain_error(one, redact=redact, where=where, messages=messages, full=True) for one in error.members
            ],
        }
    return told


def plain_record(record: Record, *, redact: Redact, values: bool, messages: bool = True) -> dict[str, Any]:
    """A record of the journal; what a step returned only where `values` are shown."""
    told: dict[str, Any] = {
        "seq": record.seq,
        "kind": str(record.kind),
        "key": str(record.key),
        "at": _moment(record.at),
        "epoch": record.epoch,
    }
    where = f"step:{record.key}" if record.kind in (Kind.STEP, Kind.ATTEMPT) else str(record.kind)
    content = show_json(lambda _, value: value, where, record.text)
    if record.kind in (Kind.INPUT, Kind.RESULT):
        return told | ({"value": show_json(redact, where, record.text)} if values else {})
    if not isinstance(content, dict):
        return told | {"record": REDACTED}
    return told | {"record": _clean(cast("dict[str, Any]", content), redact, where, values=values, messages=messages)}


def plain_value(record: Record, *, redact: Redact, run_id: str) -> Any:
    """What a step returned, as JSON; `None` of one that has returned nothing yet."""
    try:
        step = parse(record.text, StepRecord, run_id=run_id, where=record.key)
    except UnreadableRecord:
        return None
    return show_json(redact, f"step:{record.key}", step.json) if step.ok else None


def plain_values(view: RunView, *, redact: Redact) -> dict[str, Any]:
    """What was asked for expressly: input, result, metadata, and what each step returned."""
    told: dict[str, Any] = {"input": None, "metadata": None, "result": None, "values": {}}
    if view.header is not None:
        told["metadata"] = shown(redact, "metadata", view.header.metadata)
    latest = {row.seq for row in view.timeline.rows}
    for record in view.records:
        if record.kind in (Kind.INPUT, Kind.RESULT):
            told[str(record.kind)] = show_json(redact, str(record.kind), record.text)
        elif record.kind == Kind.STEP and record.seq in latest:
            told["values"][record.key] = plain_value(record, redact=redact, run_id=view.line.id)
    return told


def plain_stats(stats: Stats) -> dict[str, Any]:
    """The counts of a store."""
    return {"runs": stats.runs, **stats._asdict(), "unserved": list(stats.unserved)}


def _clean(content: dict[str, Any], redact: Redact, where: str, *, values: bool, messages: bool) -> dict[str, Any]:
    """A record's content with what may be seen of it: values, drawn ones too, only where they are asked for."""
    told: dict[str, Any] = {}
    for name, value in content.items():
        if name in ("value", "drawn"):
            if values:
                told[name] = shown(redact, where, value)
        elif name in ("error", "cause", "members") and isinstance(value, dict | list):
            told[name] = _clean_error(value, redact, where, values=values, messages=messages)
        else:
            told[name] = value
    return told


def _clean_error(error: Any, redact: Redact, where: str, *, values: bool, messages: bool) -> Any:
    if isinstance(error, list):
        return [_clean_error(one, redact, where, values=values, messages=messages) for one in cast(Any, error)]
    if not isinstance(error, dict):
        return error
    told: dict[str, Any] = {}
    content = cast("dict[str, Any]", error)
    for name, value in content.items():
        if name in ("message", "notes", "traceback"):
            if messages:
                told[name] = shown(redact, f"message:{where}", value)
        elif name in ("args", "state", "sealed"):
            if values:
                told[name] = shown(redact, where, value)
        elif name in ("cause", "members"):
            told[name] = _clean_error(value, redact, where, values=values, messages=messages)
        else:
            told[name] = value
    return told


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat()
