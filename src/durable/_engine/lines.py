"""Which steps started after which: what a cut takes with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from durable._engine.scopes import SLASH, holders
from durable.records import AttemptRecord, Kind, Record, StepRecord, parse, places_set_aside


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


class Lines:
    """The steps of a journal by key, each with the places of its records."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._places: dict[str, list[int]] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._lines

    @property
    def keys(self) -> list[str]:
        """The keys of the steps that have a record which was not set aside."""
        return list(self._lines)

    def note_step(self, key: str, seq: int, step: StepRecord, first: int = 0) -> None:
        """The step has settled. A document's records, whose first is `first`, count `started` from there."""
        started = seq if step.started is None else step.started + min(first, 0) if seq < 0 else step.started
        self._lines[key] = _Line(seq, started, step.once or step.transaction, step.cleanup, step.holds, step.race)
        self._note_place(key, seq)

    def note_attempt(self, key: str, seq: int, attempt: AttemptRecord) -> None:
        """The step has not settled, and something is remembered of it."""
        self._lines[key] = _Line(seq, seq, attempt.due is None)
        self._note_place(key, seq)

    def _note_place(self, key: str, seq: int) -> None:
        self._places.setdefault(key, []).append(seq)

    def after(self, key: str) -> list[str]:
        """The step, and every one that was called after its record was made: what was called before has not seen its value.

        But for the items and races in which the step was called, or another of these.
        """
        recorded = self._lines[key].seq
        later = [
            other
            for other, line in self._lines.items()
            if line.started > recorded and not line.cleanup and other != key
        ]
        return self.with_holders([key, *later, *self._of_races(key)])

    def with_holders(self, keys: Iterable[str]) -> list[str]:
        """The keys, with the items that they were called in, which saw their values, and with what items among them called."""
        found, lines = dict.fromkeys(keys), self._lines
        if not any(line.holds for line in lines.values()):
            return list(found)
        asides = tuple(f"{key}{SLASH}" for key in found if lines[key].holds)
        found |= dict.fromkeys(
            item for key in list(found) for item in holders(key) if item in lines and lines[item].holds
        )
        if asides:
            found |= dict.fromkeys(key for key in lines if key.startswith(asides))
        return list(found)

    def _of_races(self, key: str) -> list[str]:
        """The races that a step was part of, whose winners may come of it, and what was called in their branches."""
        lines = self._lines
        races, around = {key}, lines[key].race
        while around:
            races.add(around)
            around = lines[around].race if around in lines else ""
        found = [one for one in races if one in lines]
        while inside := [one for one, line in lines.items() if line.race in races and one not in races]:
            races.update(inside)
            found += inside
        return found

    def cut(self, keys: Iterable[str]) -> Cut:
        """The cut of these steps, with all their records, so that no earlier one of a key comes back to life."""
        ordered = sorted(keys, key=lambda key: self._lines[key].seq)
        seqs = sorted(seq for key in ordered for seq in self._places[key])
        return Cut(tuple(ordered), tuple(seqs), tuple(key for key in ordered if self._lines[key].has_effect))

    def places(self, key: str) -> Sequence[int]:
        """The places of a step's records."""
        return self._places.get(key, ())


def read_lines(journal: Sequence[Record], *, run_id: str) -> Lines:
    """The lines of a journal. Raises `UnreadableRecord`."""
    gone = places_set_aside(journal, run_id=run_id)
    # A document's records stand before all others, below zero; among themselves their `started` count from its first.
    first = min((record.seq for record in journal if record.kind != Kind.INPUT), default=0)
    lines = Lines()
    for record in journal:
        seq, where = record.seq, f"the {record.kind} record {record.key!r} (seq {record.seq})"
        if seq in gone:
            continue
        if record.kind == Kind.STEP:
            lines.note_step(record.key, seq, parse(record.text, StepRecord, run_id=run_id, where=where), first)
        elif record.kind == Kind.ATTEMPT:
            lines.note_attempt(record.key, seq, parse(record.text, AttemptRecord, run_id=run_id, where=where))
    return lines
