"""The moments, UUIDs and random numbers that a workflow has drawn, and the records that hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from durable.records import AsideRecord, AttemptRecord, Drawable, FailureRecord, Kind, Record, StepRecord, parse

_FIELD: Final = '"drawn":'
_CARRIERS: Final[Mapping[str, type[StepRecord | AttemptRecord]]] = {Kind.STEP: StepRecord, Kind.ATTEMPT: AttemptRecord}
_SETTING_ASIDE: Final[Mapping[str, type[AsideRecord | FailureRecord]]] = {
    Kind.ASIDE: AsideRecord,
    Kind.FAILURE: FailureRecord,
}


class Drawn:
    """The values by name.

    A value has no record of its own. Every record that is written before one with it is acknowledged carries it: so
    whatever the store has kept of a run, it has the values that this could depend on. Of a key only the last record counts
    in a snapshot, so that carries what the earlier ones did.
    """

    def __init__(self) -> None:
        self._values: dict[str, Drawable] = {}
        #: What the last record of a step's key holds.
        self._held: dict[str, Mapping[str, Drawable]] = {}
        #: What no record that counts is known to hold.
        self._unheld: dict[str, Drawable] = {}

    @property
    def has_unheld(self) -> bool:
        """Whether there are values that another execution would draw anew."""
        return bool(self._unheld)

    def take(self, name: str, fresh: Drawable) -> Drawable:
        """The value of this name, which is `fresh` if it is drawn for the first time."""
        value = self._values.get(name)
        if value is None:
            value = self._values[name] = self._unheld[name] = fresh
        return value

    def for_record(self, key: str) -> Mapping[str, Drawable] | None:
        """What the next record of this step is to hold."""
        return {**self._held.get(key, {}), **self._unheld} or None

    def note(self, key: str, held: Mapping[str, Drawable]) -> None:
        """A record of this step that holds these is committed."""
        self._held[key] = held
        for name in held:
            self._unheld.pop(name, None)

    def load(self, key: str, held: Mapping[str, Drawable], *, counts: bool) -> None:
        """Such a record is found; one that was set aside does not count, but its values were drawn before all that was."""
        self._values.update(held)
        if counts:
            self.note(key, held)
        else:
            self._unheld.update(held)


def load_drawn(records: Sequence[Record], gone: frozenset[int], *, run_id: str) -> Drawn | None:
    """What these records hold; None where that is nothing. `gone` are the places of those that were set aside."""
    carriers = [record for record in records if _FIELD in record.text and record.kind in _CARRIERS]
    if not carriers:
        return None
    drawn, forgotten = Drawn(), _forgotten(records, run_id)
    for seq, key, kind, text, *_ in carriers:
        held = parse(text, _CARRIERS[kind], run_id=run_id, where=f"the {kind} record {key!r} (seq {seq})").drawn
        if held is not None and not any(seq in places for places in forgotten):
            drawn.load(key, held, counts=seq not in gone)
    return drawn


def _forgotten(records: Sequence[Record], run_id: str) -> list[range]:
    """The places at which all that was drawn is to be drawn anew.

    A record's values were drawn before its place was given. Where a run went back to a step, those that came with the step's
    own record stand, as the calls do that were made before it; what was drawn later may come of its value.
    """
    keys = {record.seq: record.key for record in records}
    forgotten: list[range] = []
    for record in records:
        if record.kind in _SETTING_ASIDE:
            where = f"the {record.kind} record (seq {record.seq})"
            aside = parse(record.text, _SETTING_ASIDE[record.kind], run_id=run_id, where=where)
            places = [seq for seq in aside.seqs if keys.get(seq) == aside.from_step]
            if aside.from_step and places:
                forgotten.append(range(max(places) + 1, record.seq))
    return forgotten
