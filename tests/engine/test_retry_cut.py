"""What a run forgets when it is taken up from an earlier step."""

from __future__ import annotations

import pytest
from msgspec import Raw

import durable
from durable._engine.retry_cut import cut
from durable.records import Record, StepRecord, render


def journal(*steps: tuple[str, int, int | None]) -> list[Record]:
    """Records as (key, place, started)."""
    return [
        Record(
            seq,
            key,
            "step",
            render(StepRecord(key, ok=True, value=Raw(b"1"), started=started, transaction=key.startswith("tx"))),
        )
        for key, seq, started in steps
    ]


def test_a_cut_takes_what_was_called_after_the_record_and_not_what_was_recorded_after() -> None:
    """`b` was called before `a` was recorded, and cannot have seen its value."""
    records = journal(("a", 0, None), ("b", 1, 0), ("c", 2, None), ("tx", 3, None))
    assert cut(records, "a").keys == ("a", "c", "tx")
    assert cut(records, "b").keys == ("b", "c", "tx")
    assert cut(records, "c") == cut(records, "c", run_id="another")
    assert (cut(records, "c").seqs, cut(records, "c").effects) == ((2, 3), ("tx",))
    assert cut(records).keys == ()
    with pytest.raises(durable.InvalidArgument, match=r"no record of a step 'x'.*'a', 'b', 'c', 'tx'"):
        cut(records, "x")


def test_a_cut_in_a_document_counts_by_its_steps() -> None:
    """Its records stand below zero, and say their starts by the places that they have among themselves."""
    records = journal(("a", -3, None), ("b", -2, 0), ("c", -1, None), ("d", 0, None))
    assert cut(records, "a").keys == ("a", "c", "d")
    assert cut(records, "d").keys == ("d",)
