"""Which records hold what a workflow has drawn, and what is left of it in the next execution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Raw

from durable._engine.calls import Call
from durable._engine.decisions import Abort
from durable._engine.journal import Journal
from durable.errors import AmbiguousKey
from durable.records import AsideRecord, AttemptRecord, Kind, Record, StepRecord, render

MAIN = "main"


def step(seq: int, key: str, **more: Any) -> Record:
    """A record of a step."""
    return Record(seq, key, Kind.STEP, render(StepRecord(key, ok=True, value=Raw(b"1"), **more)))


def aside(seq: int, seqs: tuple[int, ...], from_step: str) -> Record:
    """A record of `durable.retry`."""
    return Record(seq, Kind.ASIDE, Kind.ASIDE, render(AsideRecord(seqs, (), from_step)))


def drawn(records: Sequence[Record], count: int) -> list[Any]:
    """The first values that an execution after these draws; "new" where none is known."""
    journal = Journal("r", records, MAIN)
    return [journal.draw_value("uuid", None, "new", MAIN) for _ in range(count)]


def test_every_record_holds_it_until_one_is_acknowledged() -> None:
    """Of two that are on their way only the second may arrive, and what it tells may depend on the value."""
    journal = Journal("r", [], MAIN)
    assert journal.drawn_for("one") is None
    journal.draw_value("uuid", None, "a", MAIN)
    first, second = journal.drawn_for("one"), journal.drawn_for("two")
    assert first == second == {"uuid": "a"}
    journal.add_outcome("two", StepRecord("two", ok=True, value=Raw(b"1"), drawn=second))
    assert journal.drawn_for("three") is None
    journal.draw_value("uuid", None, "b", MAIN)
    assert journal.drawn_for("three") == {"uuid#2": "b"}


def test_the_last_record_of_a_key_holds_what_the_earlier_ones_did() -> None:
    """In a document they are one."""
    journal = Journal("r", [], MAIN)
    journal.draw_value("random", None, 0.5, MAIN)
    attempt: Any = AttemptRecord("one", 1, None, None, None, "", journal.drawn_for("one"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    journal.note_attempt("one", attempt)
    assert journal.drawn_for("one") == {"random": 0.5}
    assert journal.drawn_for("two") is None
    again = Journal("r", [step(0, "one", drawn={"uuid": "a"})], MAIN)
    assert again.drawn_for("one") == {"uuid": "a"}


def test_each_kind_is_numbered_by_itself_and_a_key_is_no_number() -> None:
    journal = Journal("r", [], MAIN)
    for kind, key in (("uuid", None), ("random", None), ("uuid", None), ("uuid", "2"), ("uuid", "2")):
        journal.draw_value(kind, key, f"{kind} {key}", MAIN)
    assert journal.drawn_for("x") == {
        "uuid": "uuid None", "random": "random None", "uuid#2": "uuid None", "uuid:2": "uuid 2",
    }  # fmt: skip


def test_going_back_to_a_step_keeps_what_was_drawn_before_its_record() -> None:
    """A branch that was called before the record was made may have seen that, and what it has recorded stands."""
    before = [
        step(0, "one", drawn={"uuid": "a"}),
        step(1, "pay", drawn={"uuid#2": "b"}),
        step(2, "beside", started=1, drawn={"uuid#3": "c"}),
        step(3, "tell", drawn={"uuid#4": "d"}),
    ]
    assert drawn(before, 5) == ["a", "b", "c", "d", "new"]
    back = [*before, aside(4, (1, 3), "pay")]
    assert drawn(back, 4) == ["a", "b", "new", "new"]
    assert Journal("r", back, MAIN).drawn_for("next") == {"uuid#2": "b"}  # it has to stand in a record that counts
    assert drawn([*back, step(5, "pay", drawn={"uuid#2": "b", "uuid#3": "e"})], 4) == ["a", "b", "e", "new"]


def test_steps_that_were_decided_on_take_nothing_with_them() -> None:
    """What came after them stands, and so do the values."""
    records = [step(0, "once", drawn={"uuid": "a"}), step(1, "next", drawn={"uuid#2": "b"}), aside(2, (0,), "")]
    assert drawn(records, 3) == ["a", "b", "new"]


def test_two_branches_draw_by_key() -> None:
    journal = Journal("r", [], MAIN)
    assert journal.draw_value("now", None, "a", MAIN) == "a"
    refused = journal.draw_value("now", None, "b", "other")
    assert isinstance(refused, Abort)
    assert isinstance(refused.error, AmbiguousKey)
    assert "call step.now() without a key" in str(refused.error)
    assert "step.now(key=item.id)" in str(refused.error)
    assert journal.draw_value("now", "mine", "c", "other") == "c"


def test_a_repeated_draw_where_calls_overlap_has_no_order() -> None:
    """As with steps whose arguments are unknown."""
    journal = Journal("r", [], MAIN)
    journal.draw(Call("a", "fetch"), "one")
    assert journal.draw_value("now", None, "a", MAIN) == "a"
    assert isinstance(journal.draw_value("now", None, "b", MAIN), Abort)


def test_replaying_ends_with_the_last_recorded_step_or_the_first_new_one() -> None:
    journal = Journal("r", [step(0, "one", auto=True), step(1, "two", auto=True)], MAIN)
    found = [journal.is_replaying]
    for key in ("two", "one"):
        journal.draw(Call(key, key, auto=True), MAIN)
        found.append(journal.is_replaying)
    assert found == [True, True, False]
    assert not Journal("r", [], MAIN).is_replaying
    mended = Journal("r", [step(0, "one"), step(1, "off the path")], MAIN)
    assert [mended.is_replaying, mended.take_seq(), mended.is_replaying] == [True, 2, False]
