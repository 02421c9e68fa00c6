"""The records that a call adds to the journal: its attempts, and its outcome."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from msgspec import Raw, UnsetType, json
from msgspec.structs import replace

from durable._engine.calls import Call, Phase
from durable._engine.decisions import Received, Won
from durable._engine.journal import Journal
from durable._engine.step_kinds import Listen, Race, StepKind, Transact
from durable.records import NO_TIME, AttemptRecord, Drawable, ErrorRecord, Kind, Record, StepRecord, render

_ATTEMPT: Final = Kind.ATTEMPT.value
_STEP: Final = Kind.STEP.value
_MIN_SECONDS: Final = 0.0005  # of a body: anything shorter is not recorded


def write_attempt(
    call: Call,
    journal: Journal,
    number: int,
    began: datetime,
    due: datetime | None = None,
    error: ErrorRecord | None = None,
    *,
    child: str = "",
) -> Record:
    """The record of an attempt that has failed, of one that is about to begin (not `due`), of a wait, or of a child's start."""
    drawn = journal.drawn_for(call.key)
    attempt = AttemptRecord(call.name, number, began, due, error, call.fingerprint, drawn, child=child)
    call.stored, call.attempt, call.record, call.phase = False, attempt, None, Phase.SENDING
    seq = _take_place(call, journal)
    if journal.closable is not None:
        journal.closable.lines.note_attempt(call.key, seq, attempt)
    return Record(seq, call.key, _ATTEMPT, render(attempt))


def write_outcome(
    call: Call,
    journal: Journal,
    epoch: int,
    seconds: float,
    *,
    ok: bool,
    value: Raw | UnsetType,
    error: ErrorRecord | None,
) -> Record:
    """The record of how the step has settled, under the lease of this `epoch`, after so many `seconds` in its body."""
    seq = journal.take_seq() if call.seq is None else _take_place(call, journal)
    transacts = type(call.kind) is Transact  # isinstance takes five times as long where a Struct is not the one
    outcome = StepRecord(
        call.name,
        ok,
        value,
        error,
        call.auto,
        call.concurrent,
        call.unordered,
        call.fingerprint,
        call.at_most_once,
        call.signal,
        seconds=NO_TIME if seconds < _MIN_SECONDS else int(seconds * 1000 + 0.5) / 1000,
        attempt=call.attempts or 1,  # a signal has none
        child=call.child,
    )
    if call.holds:
        outcome = replace(outcome, holds=True, led=call.led)
    is_plain = seq == call.started and not (call.unordered or transacts or call.cleanup or call.race is not None)
    if not is_plain or journal.kept or journal.drawn is not None:
        call.kept += journal.take_kept()
        outcome = _with_circumstances(outcome, call, seq, epoch, journal.drawn_for(call.key))
    if call.at_end or journal.closable is not None or call.closing is not None:
        outcome = _with_closing(outcome, call)
        journal.note_closable(call.key, seq, outcome)
    call.stored, call.record, call.phase, call.place = False, outcome, Phase.SENDING, seq
    if transacts and ok:
        call.seq = seq  # until it is known to be filled
    return Record(seq, call.key, _STEP, render(outcome))


def value_of_first(kind: StepKind, first: Received | Won) -> Raw:
    """What is recorded of the first that came: of a signal its payload, and with it the name where there were several."""
    text = first.payload if isinstance(first, Received) else first.value
    if isinstance(kind, Race) or (isinstance(kind, Listen) and kind.names):
        return Raw(json.encode((first.name, Raw(text))))
    return Raw(text)


def _with_circumstances(
    outcome: StepRecord, call: Call, seq: int, epoch: int, drawn: Mapping[str, Drawable] | None
) -> StepRecord:
    """The outcome with what few have to say: what the call was made amid, and what becomes of it in another execution."""
    return replace(
        outcome,
        transaction=isinstance(call.kind, Transact),
        started=None if call.started == seq else call.started,
        amid=call.amid,
        left=epoch if call.left and not call.cleanup else None,
        kept=call.kept,
        cleanup=call.cleanup,
        drawn=drawn,
        race="" if call.race is None else call.race.key,
    )


def _with_closing(outcome: StepRecord, call: Call) -> StepRecord:
    """The outcome with what it has to do with the end of the run."""
    step = call.closing
    if step is None:
        return replace(outcome, at_end=call.at_end if outcome.ok else "")
    return replace(outcome, closes=step.closes, ending=step.ending)


def _take_place(call: Call, journal: Journal) -> int:
    """The place of the call's next record: one that was given and not filled, else a new one."""
    seq, call.seq = call.seq, None
    return journal.take_seq() if seq is None else seq
