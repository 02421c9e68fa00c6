"""The closing of a run: what is done between the end of its workflow and its own, under the lease that it has.

A run that has failed, or was cancelled, undoes the steps that have an `undo`, the last one recorded first; then, as one that is
completed does, it performs what `step.on_end` was given. The first record of a closing says how the run ends after it: from
then on the workflow is executed only to find these functions again, and no step begins but those of the closing.
"""

from __future__ import annotations

from typing import Final

from msgspec import UNSET, Raw, Struct, structs

from durable._engine.decisions import Conclusion, EndRun, GiveBack
from durable._engine.lines import Cut, Lines
from durable.errors import ClosingFailed, DurableError, RetryRefused, RunCancelled, RunClosing
from durable.records import (
    AsideRecord,
    Ending,
    ErrorRecord,
    FailureRecord,
    Kind,
    Record,
    Status,
    StepRecord,
    parse,
    render,
)

MARK: Final = "closing"  # the key of the record with which a closing begins
UNDO: Final = "undo"  # what is to be done at the end about a step: this,
ON_END: Final = "call"  # or, of a `step.on_end`, this


class ClosingStep(Struct, frozen=True, gc=False):
    """A step of a closing."""

    #: Its key.
    key: str
    #: Its name.
    name: str
    #: The key of what it undoes, or of the `step.on_end` that it performs; empty for the one that begins the closing.
    closes: str
    #: The record of that step.
    record: StepRecord | None = None
    #: How the run ends, as the one that begins the closing says.
    ending: Ending | None = None


class Closable:
    """What a journal has to close, and how far a closing has come; a journal that has nothing to close has none of these."""

    def __init__(self, lines: Lines) -> None:
        self.lines = lines
        #: How the run ends, once its closing has begun.
        self.ending: Ending | None = None
        #: The steps of the closing that have settled, by the keys of what they close.
        self.closed: dict[str, StepRecord] = {}
        #: The places of the records of steps that have something to be done at the end, by key.
        self.seqs: dict[str, int] = {}
        #: Of these, the keys of the steps that have an `undo`.
        self.undoable: set[str] = set()
        #: The keys of the closing's own records.
        self.keys: list[str] = []

    def note(self, key: str, seq: int, record: StepRecord) -> bool:
        """A step has settled; whether it is one of a closing."""
        self.lines.note_step(key, seq, record)
        return self.sort(key, seq, record)

    def sort(self, key: str, seq: int, record: StepRecord) -> bool:
        """The same, where the lines have it already."""
        if record.at_end and record.ok:
            self.seqs[key] = seq
            if record.at_end == UNDO:
                self.undoable.add(key)
        if record.ending is not None:
            self.ending = record.ending
        elif not record.closes:
            return False
        else:
            self.closed[record.closes] = record
        self.keys.append(key)
        return True

    @property
    def undone(self) -> list[str]:
        """The keys of the steps that were undone."""
        return [key for key, record in self.closed.items() if record.ok and key in self.undoable]


class Closing:
    """One closing, as its driver goes through it."""

    def __init__(
        self,
        closable: Closable,
        settled: dict[str, StepRecord],
        ending: Ending,
        drawn: frozenset[str],
        error: DurableError | None,
    ) -> None:
        self._closable = closable
        self._settled = settled
        self._drawn = drawn
        self.ending = ending
        #: What the workflow was left with, if that is an error of ours.
        self.error = error
        #: Whether it has begun in an execution before this one.
        self.is_resumed = self._has_begun = closable.ending is not None
        #: Why steps of it have failed, by the keys of what they close: the error's record.
        self.failures: dict[str, ErrorRecord] = {}
        steps = self._open_keys()
        undoing = [key for key in steps if not self._is_on_end(key)] if ending.status != Status.COMPLETED else []
        self._undone = tuple(undoing)
        ends = [key for key in steps if self._is_on_end(key)]
        self._left = [*undoing, *ends]
        self._todo = list(self._left)

    def _open_keys(self) -> list[str]:
        """What is to be closed, the last one recorded first."""
        seqs = self._closable.seqs
        known = [key for key in seqs if key in self._settled and self._settled[key].at_end]
        return sorted(known, key=lambda key: seqs[key], reverse=True)

    def _is_on_end(self, key: str) -> bool:
        return self._settled[key].at_end == ON_END

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to do."""
        return self._has_begun or bool(self._todo)

    def next_step(self) -> ClosingStep | None:
        """What is to be done next; None at the end."""
        if not self._has_begun:
            self._has_begun = True
            return ClosingStep(self._key(MARK), MARK, "", None, self.ending)
        while self._todo:
            key = self._todo.pop(0)
            record, done = self._settled[key], self._closable.closed.get(key)
            if done is None:
                word = "end" if self._is_on_end(key) else "undo"
                return ClosingStep(self._key(f"{word}:{key}"), f"{word}:{record.name}", key, record)
            if not done.ok and done.error is not None:
                self.failures[key] = done.error
        return None

    def _key(self, wanted: str) -> str:
        """A key that no step of the workflow has."""
        key, number = wanted, 1
        while key in self._settled or key in self._drawn:
            number += 1
            key = f"{wanted}#{number}"
        return key

    def note_failure(self, step: ClosingStep, error: ErrorRecord) -> None:
        """It has failed, and was not recorded or will not be tried again by itself."""
        self.failures[step.closes] = error

    def failed_keys(self) -> tuple[str, ...]:
        """The keys of the steps of the closing that have failed."""
        return tuple(
            self._key(f"{'end' if self._is_on_end(key) else 'undo'}:{key}")
            for key in self._left
            if key in self.failures
        )

    def find_failure(self, run_id: str) -> ClosingFailed | None:
        """What is wrong with the closing, once it has come to its end: some of it has failed."""
        if not self.failures:
            return None
        kinds = tuple(self.failures[key].type.rpartition(":")[2] for key in self._left if key in self.failures)
        return ClosingFailed(run_id, self.failed_keys(), kinds, self.ending.status)

    def conclusion(self, seq: int, problem: ClosingFailed | None, told: ErrorRecord | None) -> Conclusion:
        """How the run ends now, with a record in this place; `problem` is what `find_failure` says, and `told` its record."""
        ending = self.ending
        if problem is not None and told is not None:
            failure, undecided = ending.failure, problem.steps
            if failure is None:
                return _failed(seq, FailureRecord(told, undecided=undecided))
            error = structs.replace(failure.error, notes=(*failure.error.notes, problem.note))
            return _failed(seq, FailureRecord(error, step=failure.step, undecided=undecided))
        if ending.result is not UNSET:
            return EndRun(Status.COMPLETED, Record(seq, Kind.RESULT, Kind.RESULT, bytes(ending.result).decode()))
        gone, stand, first = self._cut()
        if ending.failure is not None:
            failure = ending.failure
            undecided_keys = tuple(dict.fromkeys((*(key for key in failure.undecided if key not in gone.keys), *stand)))
            return _failed(
                seq,
                structs.replace(failure, seqs=gone.seqs, keys=gone.keys, undecided=undecided_keys, from_step=first),
            )
        text = render(AsideRecord(gone.seqs, gone.keys, first, stand))
        return EndRun(Status.CANCELLED, Record(seq, Kind.ASIDE, Kind.ASIDE, text))

    def _cut(self) -> tuple[Cut, tuple[str, ...], str]:
        """What is set aside, what stands all the same and has to be decided on, and from which step on that is."""
        lines, own = self._closable.lines, self._closable.keys
        keys = {key: None for undone in self._undone for key in lines.after(undone)}
        found = lines.cut(key for key in keys if key not in own)
        stand = tuple(key for key in found.effects if key not in self._undone)
        gone = lines.cut(key for key in found.keys if key not in stand)
        places = sorted({*gone.seqs, *(seq for key in own for seq in lines.places(key))})
        first = self._undone[-1] if self._undone else ""
        return structs.replace(gone, seqs=tuple(places), keys=(*gone.keys, *own)), stand, first


def begin_closing(
    closable: Closable | None,
    settled: dict[str, StepRecord],
    drawn: frozenset[str],
    conclusion: Conclusion,
    error: DurableError | None,
) -> Closing | None:
    """The closing of a run that is to end so; None where there is nothing to close, or the run does not end."""
    if closable is None:
        return None
    ending = closable.ending or _ending_of(conclusion)
    if ending is None or not _may_close(conclusion, error, has_begun=closable.ending is not None):
        return None
    closing = Closing(closable, settled, ending, drawn, error)
    return closing if closing.is_needed else None


def refuse_undecided(run_id: str, keys: tuple[str, ...]) -> RetryRefused:
    """Why a run with these undecided steps is not taken up again; of a closing that has failed, what lets it go on."""
    if not keys or not all(key.startswith((f"{UNDO}:", "end:")) for key in keys):
        return RetryRefused(run_id, keys)
    names = ", ".join(map(repr, keys))
    return RetryRefused(
        run_id,
        keys,
        f"of what it does at its end this has failed: {names}. Mend it: durable.retry(store, {run_id!r}) has it done again; "
        f"then the run ends as it was to",
    )


def is_closing_error(error: DurableError | None) -> bool:
    """Whether the workflow is left with this because nothing but a closing is to begin."""
    return isinstance(error, RunClosing) or (isinstance(error, RunCancelled) and error.closed)


def _may_close(conclusion: Conclusion, error: DurableError | None, *, has_begun: bool) -> bool:
    if isinstance(conclusion, EndRun):
        return conclusion.status != Status.QUEUED or has_begun
    if not isinstance(conclusion, GiveBack):
        return False
    return is_closing_error(error)


def _ending_of(conclusion: Conclusion) -> Ending | None:
    match conclusion:
        case EndRun(status=Status.COMPLETED, record=record):
            return Ending(Status.COMPLETED, result=Raw(record.text.encode()))
        case EndRun(status=Status.FAILED, record=record):
            return Ending(Status.FAILED, parse(record.text, FailureRecord, run_id="?", where="the failure"))
        case GiveBack(status=Status.CANCELLED, error=RunCancelled(reason=reason)):
            return Ending(Status.CANCELLED, reason=reason)
        case _:
            return None


def _failed(seq: int, failure: FailureRecord) -> EndRun:
    return EndRun(Status.FAILED, Record(seq, Kind.FAILURE, Kind.FAILURE, render(failure)))
