"""What a run forgets when it is taken up again from an earlier step. Nothing is deleted: records are set aside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct, structs

from durable._engine.journal import Journal
from durable._engine.scopes import SLASH, holders
from durable.errors import InvalidArgument, RetryRefused
from durable.records import (
    AsideRecord,
    AttemptRecord,
    Header,
    Kind,
    Record,
    Status,
    StepRecord,
    parse,
    places_set_aside,
    render,
)

_MAX_TOLD = 10  # keys in a message


class Cut(Struct, frozen=True):
    """What is forgotten of a run."""

    #: The keys of the steps, in the order of their records.
    keys: tuple[str, ...] = ()
    #: The places of all their records.
    seqs: tuple[int, ...] = ()
    #: The keys whose effects stand all the same: transactions, and steps that run at most once.
    effects: tuple[str, ...] = ()


class _Line(Struct):
    """The latest record of a step."""

    #: Its place.
    seq: int
    #: The place of the next record when the step was called.
    started: int
    #: Whether the step is a transaction, or runs at most once.
    has_effect: bool
    #: Whether every execution does the step anew.
    cleanup: bool = False
    #: Whether its body called steps of its own.
    holds: bool = False
    #: The key of the race in a branch of which it was called.
    race: str = ""


def cut(journal: Sequence[Record], from_step: str | None = None, *, run_id: str = "?") -> Cut:
    """What is to be set aside of a journal, so that the run goes on from there.

    With `from_step` that step, and every one that was called after its record was made: what was called before cannot have
    seen its value. Without it the steps that a run needs a decision on: see `FailureRecord.undecided`, and transactions
    and at-most-once steps that ran while the process was being left.

    Raises `InvalidArgument` where there is no record of `from_step`, and `UnreadableRecord`.
    """
    lines = _lines(journal, run_id)
    if from_step is None:
        undecided = Journal(run_id, journal, None).undecided
        found = _cut(journal, lines, _with_items(lines, [key for key in lines if key in undecided]))
        # A fail-over may have lost the record of one, before the failure was recorded: it runs again, as any lost one does.
        return structs.replace(found, keys=found.keys + tuple(key for key in undecided if key not in lines))
    if from_step not in lines:
        known = ", ".join(map(repr, list(lines)[:_MAX_TOLD])) + (", …" if len(lines) > _MAX_TOLD else "")
        raise InvalidArgument(
            f"run {run_id!r} has no record of a step {from_step!r} to go back to; from_step names a step by its key"
            + (f": {known}" if known else ", and none is recorded")
        )
    recorded = lines[from_step].seq
    later = [key for key, line in lines.items() if line.started > recorded and not line.cleanup and key != from_step]
    return _cut(journal, lines, _with_items(lines, [from_step, *later, *_of_races(lines, from_step)]))


def _with_items(lines: dict[str, _Line], keys: Sequence[str]) -> list[str]:
    """The keys, with the items in whose bodies they were called, which saw their values, and with what these items called."""
    found = dict.fromkeys(keys)
    if not any(line.holds for line in lines.values()):
        return list(found)
    found |= dict.fromkeys(item for key in keys for item in holders(key) if item in lines and lines[item].holds)
    asides = tuple(f"{key}{SLASH}" for key in keys if lines[key].holds)
    if asides:
        found |= dict.fromkeys(key for key in lines if key.startswith(asides))
    return list(found)


def _of_races(lines: dict[str, _Line], key: str) -> list[str]:
    """The races that a step was part of, whose winners may come of it, and what was called in their branches."""
    races, around = {key}, lines[key].race
    while around:
        races.add(around)
        around = lines[around].race if around in lines else ""
    found = [one for one in races if one in lines]
    while inside := [one for one, line in lines.items() if line.race in races and one not in races]:
        races.update(inside)
        found += inside
    return found


def cut_for_retry(
    run_id: str, header: Header, journal: Sequence[Record], from_step: str | None, *, even_effects: bool
) -> Cut:
    """The cut for `durable.retry`; `RetryRefused` for a completed run, or where effects stand in the way."""
    if header.execution.status == Status.COMPLETED:
        raise RetryRefused(run_id, (), "it is completed, and has a result: use another id to do it once more")
    return _checked(cut(journal, from_step, run_id=run_id), run_id, even_effects=even_effects)


def cut_for_fork(run_id: str, journal: Sequence[Record], from_step: str | None, *, even_effects: bool) -> Cut:
    """The cut for `durable.fork`, of a journal without its result; `RetryRefused` where effects stand in the way."""
    return _checked(cut(journal, from_step, run_id=run_id), run_id, even_effects=even_effects)


def _checked(found: Cut, run_id: str, *, even_effects: bool) -> Cut:
    if found.effects and not even_effects:
        names = ", ".join(map(repr, found.effects))
        raise RetryRefused(
            run_id,
            found.effects,
            f"among the steps to be set aside there are transactions, or steps that run at most once: {names}. Their "
            f"effects stand, and would happen once more: pass even_effects=True if they may",
        )
    return found


def aside_record(cut: Cut, journal: Sequence[Record], from_step: str | None) -> Record:
    seq = max((record.seq for record in journal), default=-1) + 1
    text = render(AsideRecord(cut.seqs, cut.keys, from_step or ""))
    return Record(max(seq, 0), Kind.ASIDE, Kind.ASIDE, text)


def _cut(journal: Iterable[Record], lines: dict[str, _Line], keys: Sequence[str]) -> Cut:
    ordered = sorted(keys, key=lambda key: lines[key].seq)
    forgotten = set(keys)  # with all their records, so that no earlier one of a key comes back to life
    seqs = (record.seq for record in journal if record.kind in (Kind.STEP, Kind.ATTEMPT) and record.key in forgotten)
    return Cut(tuple(ordered), tuple(seqs), tuple(key for key in ordered if lines[key].has_effect))


def _lines(journal: Sequence[Record], run_id: str) -> dict[str, _Line]:
    """The steps that have a record, by key."""
    gone = places_set_aside(journal, run_id=run_id)
    # A document's records stand before all others, below zero; among themselves their `started` count from its first.
    first = min((record.seq for record in journal if record.kind != Kind.INPUT), default=0)
    lines: dict[str, _Line] = {}
    for record in journal:
        seq, where = record.seq, f"the {record.kind} record {record.key!r} (seq {record.seq})"
        if seq in gone:
            continue
        if record.kind == Kind.STEP:
            step = parse(record.text, StepRecord, run_id=run_id, where=where)
            started = seq if step.started is None else step.started + min(first, 0) if seq < 0 else step.started
            has_effect = step.once or step.transaction
            lines[record.key] = _Line(seq, started, has_effect, step.cleanup, step.holds, step.race)
        elif record.kind == Kind.ATTEMPT:
            attempt = parse(record.text, AttemptRecord, run_id=run_id, where=where)
            lines[record.key] = _Line(seq, seq, attempt.due is None)
    return lines
