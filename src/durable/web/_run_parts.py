"""Parts of a run's page: facts, the panel of a step, events."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final, NamedTuple

from durable.errors import UnreadableRecord
from durable.operate.plain import plain_error, plain_value
from durable.operate.redact import Redact, show_json
from durable.operate.standing import name_error, show_seconds, stand
from durable.operate.timeline import StepRow
from durable.records import AsideRecord, AttemptRecord, FailureRecord, Kind, Record, StepRecord, parse
from durable.stores.reading import NEVER
from durable.web._links import Search, run_address, term
from durable.web._reads import Seen
from durable.web._texts import Shown, show_moment, show_value

_ATTEMPTS: Final = 50


class Attempt(NamedTuple):
    """An attempt of a step."""

    number: int
    error: str
    message: str
    took: str


class Panel(NamedTuple):
    """A step, looked at closely."""

    row: StepRow
    attempts: list[Attempt]
    traceback: list[str]
    value: Shown | None
    facts: list[Fact]


class Event(NamedTuple):
    """Something that is recorded of a run."""

    at: datetime | None
    kind: str
    what: str
    #: The step that it is about; empty where there is none.
    key: str
    #: What is said of it.
    said: str


class Fact(NamedTuple):
    """What is said of a run or a step, and where more is said of that; empty where nothing is."""

    name: str
    said: str
    address: str = ""


def facts_of(seen: Seen) -> list[Fact]:
    """What stands in a run's head."""
    line, timeline = seen.view.line, seen.view.timeline
    standing = stand(line, now=seen.now)
    facts = [Fact("Started", show_moment(line.started_at) + " UTC" if line.started_at else "not yet")]
    if standing.took is not None:
        waited = f", {show_seconds(timeline.waited)} waiting" if timeline.waited >= 0.01 else ""  # noqa: PLR2004
        facts.append(Fact("Took" if line.status in _ENDED else "For", show_seconds(standing.took) + waited))
    if line.workflow:
        facts.append(
            Fact("Workflow", line.workflow + (f", version {line.version}" if line.version is not None else ""))
        )
    died = (
        f", {line.crashes} workers died in a row"
        if line.crashes > 1
        else ", the last worker died"
        if line.crashes
        else ""
    )
    facts.append(Fact("Executions", f"{line.executions}{died}"))
    if line.owner:
        facts.append(Fact("Executed by" if line.status == "running" else "Executed last by", line.owner))
    if line.queue:
        facts.append(Fact("Queue", line.queue + (f", priority {line.priority}" if line.priority is not None else "")))
    if line.due_at is not None and line.status not in _ENDED:
        facts.append(
            Fact("Due", "when something wakes it" if line.due_at == NEVER else show_moment(line.due_at) + " UTC")
        )
    if line.parent:
        facts.append(Fact("Child of", line.parent, run_address(line.parent)))
    if children := sum(bool(row.child) for row in seen.view.timeline.rows):
        facts.append(Fact("Children", str(children), "runs" + Search(term("parent", line.id)).address()))
    return facts


_ENDED: Final = ("completed", "failed", "cancelled")


def panel_of(seen: Seen, key: str, redact: Redact) -> Panel | None:
    """The step that was asked for; else the one that failed the run, or the last one."""
    rows = {row.key: row for row in seen.view.timeline.rows}
    failure = seen.view.timeline.failure
    row = rows.get(key) or rows.get(failure.step if failure is not None else "") or next(reversed(rows.values()), None)
    if row is None:
        return None
    mine = [
        record for record in seen.view.records if record.key == row.key and record.kind in (Kind.ATTEMPT, Kind.STEP)
    ]
    last = next((record for record in reversed(mine) if record.seq == row.seq), None)
    told: dict[str, Any] = {}
    if row.error is not None:
        told = plain_error(row.error, redact=redact, where=f"step:{row.key}", messages=True, full=True)
    value = None
    if last is not None and last.kind == Kind.STEP and row.error is None:
        value = show_value(plain_value(last, redact=redact, run_id=seen.view.line.id))
    traceback = str(told.get("traceback") or "").rstrip().split("\n") if told.get("traceback") else []
    return Panel(
        row, list(_attempts(seen, row, mine, redact))[-_ATTEMPTS:], traceback, value, _facts(seen, row, last, len(mine))
    )


def _attempts(seen: Seen, row: StepRow, mine: list[Record], redact: Redact) -> Iterator[Attempt]:
    lengths = [show_seconds(bar.end - bar.begin) for bar in row.bars if bar.kind in ("ran", "failed")]
    at = 0
    for record in mine:
        told = _read(record, AttemptRecord if record.kind == Kind.ATTEMPT else StepRecord, seen)
        error, number = getattr(told, "error", None), getattr(told, "number", getattr(told, "attempt", 0))
        if told is None or (error is None and record.kind == Kind.ATTEMPT) or getattr(told, "signal", None) is not None:
            continue
        took, at = (lengths[at] if at < len(lengths) else ""), at + 1
        if error is None:
            yield Attempt(number, "", "", took)
        else:
            said = plain_error(error, redact=redact, where=f"step:{row.key}", messages=True)["message"]
            yield Attempt(number, name_error(error.type), str(said or ""), took)


def _facts(seen: Seen, row: StepRow, last: Record | None, count: int) -> list[Fact]:
    facts: list[Fact] = []
    if row.child:
        facts.append(Fact("Child", row.child, run_address(row.child)))
    if row.due is not None and row.state == "waiting":
        facts.append(Fact("Waits until", "it is woken" if row.due == NEVER else f"{show_moment(row.due)} UTC"))
    if last is not None and last.at is not None:
        facts.append(Fact("Recorded", f"{show_moment(last.at)} UTC"))
    step = _read(last, StepRecord, seen) if last is not None and last.kind == Kind.STEP else None
    if isinstance(step, StepRecord):
        if step.fingerprint:
            facts.append(Fact("Arguments", f"fingerprint {step.fingerprint[:16]}"))
        kinds = [
            (step.transaction, "committed with its record"),
            (step.once, "at most once"),
            (step.cleanup, "clean-up"),
        ]
        if told := ", ".join(name for is_so, name in kinds if is_so):
            facts.append(Fact("Kind", told))
    if row.epoch:
        facts.append(Fact("Execution", f"{row.epoch}{_owner(seen, row.epoch)}"))
    if row.state == "set aside":
        facts.append(Fact("Set aside", "its records count no more"))
    if count > 1:
        facts.append(Fact("Records", str(count)))
    return facts


def _owner(seen: Seen, epoch: int) -> str:
    if seen.view.header is None:
        return ""
    execution = seen.view.header.execution
    owners = {one.epoch: one.owner for one in execution.earlier} | {execution.epoch: execution.owner}
    return f", by {owners[epoch]}" if owners.get(epoch) else ""


def value_of(seen: Seen, key: str, redact: Redact) -> Any:
    """What a step returned, by the record that counts."""
    row = next((one for one in seen.view.timeline.rows if one.key == key), None)
    record = None if row is None else next((one for one in seen.view.records if one.seq == row.seq), None)
    return None if record is None else plain_value(record, redact=redact, run_id=seen.view.line.id)


def events_of(seen: Seen, redact: Redact) -> list[Event]:
    """All that is recorded, in the order of its moments."""
    events: list[Event] = []
    header = seen.view.header
    if header is not None:
        execution = header.execution
        begun = [(one.epoch, one.owner, one.began) for one in execution.earlier]
        begun += [(execution.epoch, execution.owner, execution.began)] if execution.epoch else []
        events += [Event(_moment(at), "running", f"execution {epoch} began", "", owner) for epoch, owner, at in begun]
    for signal in seen.signals:
        said = str(show_json(redact, f"signal:{signal.name}", signal.payload))
        events.append(Event(signal.at, "waiting", f"signal “{signal.name}” was sent, not received yet", "", said[:200]))
    events += [_event(record, seen, redact) for record in seen.view.records]
    first = min((event.at for event in events if event.at is not None), default=seen.now)
    return sorted(events, key=lambda event: event.at or first)


def _event(record: Record, seen: Seen, redact: Redact) -> Event:
    where = f"seq {record.seq}"
    if record.kind == Kind.STEP and isinstance(step := _read(record, StepRecord, seen), StepRecord):
        if step.error is not None:
            said = plain_error(step.error, redact=redact, where=f"step:{record.key}", messages=True)
            told = f"{name_error(step.error.type)}: {said['message'] or ''}"
            return Event(record.at, "failed", "step failed", record.key, told)
        took = f"took {show_seconds(step.seconds)}" if step.seconds else ""
        received = f"received signal {step.signal}" if step.signal is not None else "step completed"
        return Event(record.at, "completed", received, record.key, took)
    if record.kind == Kind.ATTEMPT and isinstance(attempt := _read(record, AttemptRecord, seen), AttemptRecord):
        if attempt.error is None:
            return Event(
                record.at, "waiting", "waits" if attempt.due else "attempt began", record.key, _until(attempt.due)
            )
        told = f"{name_error(attempt.error.type)}, {_until(attempt.due)}"
        return Event(record.at, "failed", f"attempt {attempt.number} failed", record.key, told)
    if record.kind == Kind.FAILURE and isinstance(failure := _read(record, FailureRecord, seen), FailureRecord):
        return Event(record.at, "failed", "the run failed", failure.step, name_error(failure.error.type))
    if record.kind == Kind.ASIDE and isinstance(aside := _read(record, AsideRecord, seen), AsideRecord):
        return Event(
            record.at, "cancelled", f"{len(aside.seqs)} records were set aside", "", ", ".join(aside.keys)[:200]
        )
    if record.kind == Kind.RESULT:
        return Event(record.at, "completed", "the run returned", "", where)
    if record.kind == Kind.INPUT:
        return Event(record.at, "queued", "the input was stored", "", where)
    return Event(record.at, "interrupted", "a record that this version cannot read", record.key, where)


def _until(moment: datetime | None) -> str:
    return "" if moment is None else "until it is woken" if moment == NEVER else f"until {show_moment(moment)}"


def _read(record: Record, type_: type[Any], seen: Seen) -> Any:
    try:
        return parse(record.text, type_, run_id=seen.view.line.id, where=record.key)
    except UnreadableRecord:
        return None


def _moment(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.utcoffset() is not None else None
