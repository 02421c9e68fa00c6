"""What a journal that was loaded says of the calls that come."""

from __future__ import annotations

from msgspec import Raw

from durable._engine.calls import Call
from durable._engine.decisions import Abort
from durable._engine.journal import Journal
from durable.records import Kind, Record, StepRecord, render


def test_a_record_that_a_fail_over_lost_is_no_drift() -> None:
    """The journal of a primary that was behind: what follows the gap says nothing about order. (Found by simulation.)"""

    def step(seq: int, key: str) -> Record:
        record = StepRecord(name=key, ok=True, value=Raw(b"1"), auto=True)
        return Record(seq, key, Kind.STEP, render(record))

    lost = Journal("a", [step(0, "first"), step(2, "third")], "main")
    lost.close(lost.draw(Call("first", "first", auto=True), "main"), recorded=True)  # handed out
    assert lost.draw(Call("second", "second", auto=True), "main").refusal is None
    whole = Journal("a", [step(0, "first"), step(1, "third")], "main")
    whole.close(whole.draw(Call("first", "first", auto=True), "main"), recorded=True)
    assert isinstance(whole.draw(Call("second", "second", auto=True), "main").refusal, Abort)
