"""What a run forgets when it is taken up again from an earlier step. Nothing is deleted: records are set aside."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs

from durable._engine.journal import Journal
from durable._engine.lines import Cut, read_lines
from durable.errors import InvalidArgument, RetryRefused
from durable.records import (
    AsideRecord,
    Header,
    Kind,
    Record,
    Status,
    render,
)

_MAX_TOLD = 10  # keys in a message


def cut(journal: Sequence[Record], from_step: str | None = None, *, run_id: str = "?") -> Cut:
    """What is to be set aside of a journal, so that the run goes on from there.

    With `from_step` that step, and every one that was called after its record was made: what was called before cannot have
    seen its value. Without it the steps that a run needs a decision on: see `FailureRecord.undecided`, and transactions
    and at-most-once steps that ran while the process was being left.

    Raises `InvalidArgument` where there is no record of `from_step`, and `UnreadableRecord`.
    """
    lines = read_lines(journal, run_id=run_id)
    if from_step is None:
        undecided = Journal(run_id, journal, None).undecided
        found = lines.cut(lines.with_holders(key for key in lines.keys if key in undecided))
        # A fail-over may have lost the record of one, before the failure was recorded: it runs again, as any lost one does.
        return structs.replace(found, keys=found.keys + tuple(key for key in undecided if key not in lines))
    if from_step not in lines:
        keys = lines.keys
        known = ", ".join(map(repr, keys[:_MAX_TOLD])) + (", …" if len(keys) > _MAX_TOLD else "")
        raise InvalidArgument(
            f"run {run_id!r} has no record of a step {from_step!r} to go back to; from_step names a step by its key"
            + (f": {known}" if known else ", and none is recorded")
        )
    return lines.cut(lines.after(from_step))


def cut_for_retry(
    run_id: str, header: Header, journal: Sequence[Record], from_step: str | None, *, even_effects: bool
) -> Cut:
    """The cut for `durable.retry`; `RetryRefused` for a completed run, or where effects stand in the way."""
    if header.execution.status == Status.COMPLETED:
        raise RetryRefused(run_id, (), "it is completed, and has a result: use another id to do it once more")
    found = cut(journal, from_step, run_id=run_id)
    if from_step is not None:  # else a closing that has not ended goes on
        found = _without_closing(found, journal, run_id)
    return _checked(found, run_id, even_effects=even_effects)


def cut_for_fork(run_id: str, journal: Sequence[Record], from_step: str | None, *, even_effects: bool) -> Cut:
    """The cut for `durable.fork`, of a journal without its result; `RetryRefused` where effects stand in the way."""
    found = _without_closing(cut(journal, from_step, run_id=run_id), journal, run_id)
    return _checked(found, run_id, even_effects=even_effects)


def _without_closing(found: Cut, journal: Sequence[Record], run_id: str) -> Cut:
    """The cut, and with it what is left of a closing; `RetryRefused` where that has undone something which is to stay."""
    closable = Journal(run_id, journal, None).closable
    if closable is None or not closable.keys:
        return found
    if undone := [key for key in closable.undone if key not in found.keys]:
        names = ", ".join(map(repr, undone))
        raise RetryRefused(
            run_id,
            tuple(undone),
            f"these steps were undone, and would stand as done: {names}. Go back to the first of them, or further; or let "
            f"durable.retry without from_step end the closing",
        )
    keys = [*found.keys, *(key for key in closable.keys if key not in found.keys)]
    return structs.replace(closable.lines.cut(keys), effects=found.effects)


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
