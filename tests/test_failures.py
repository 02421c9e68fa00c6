"""Exceptions as records: the same live and replayed, and no run is lost because its error could not be stored."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import pytest

import durable
from durable.codecs import JsonCodec
from durable.failures import from_record, to_record
from durable.snapshot import FailureRecord, render
from durable.stores import memory
from support import Database
from value_kinds import Colour, Line, Plain

CODEC = JsonCodec()


class Typed(Exception):
    """Its arguments are values of every kind."""


class Coded(Exception):
    """It rebuilds from its arguments, and makes its text of them."""

    def __init__(self, code: int, at: dt.date) -> None:
        super().__init__(code, at)
        self.code = code

    def __reduce__(self) -> Any:
        return type(self), self.args

    def __str__(self) -> str:
        return f"code {self.code}"


class Silent(Exception):
    """`__str__` raises."""

    def __str__(self) -> str:
        raise RuntimeError("pl4nted")


class Picky(Exception):
    """It does not rebuild: its constructor takes something else."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


def through(exception: BaseException) -> Exception:
    """As a replay would raise it."""
    return from_record(to_record(exception, CODEC), CODEC, run_id="r", where="a step")


def caused(depth: int) -> Exception:
    top = ValueError("0")
    link: Exception = top
    for number in range(1, depth):
        link.__cause__ = ValueError(str(number))
        link = link.__cause__
    return top


def cyclic() -> Exception:
    first, second = ValueError("first"), KeyError("second")
    first.__cause__, second.__cause__ = second, first
    return first


def odd_notes() -> Exception:
    problem = ValueError("x")
    problem.__notes__ = ["fine", 3, "\0\ud800", "x" * 100_000]  # type: ignore[list-item]
    return problem


SAME_CLASS: dict[str, Exception] = {
    "a message": ValueError("bad"),
    "nothing": ValueError(),
    "typed arguments": Typed(Decimal("1.5"), dt.date(2031, 5, 1), (1, {2}), Colour.RED, Line("tea", Decimal(3))),
    "a text made of arguments": Coded(3, dt.date(2031, 5, 1)),
    "an OSError's parts": OSError(2, "no", "file"),
    "a message of 10 MB": ValueError("x" * 10_000_000),
    "a key of 10 MB": KeyError("x" * 10_000_000),
    "a message with NUL and a surrogate": ValueError("a\0b\ud800"),
    "a group": ExceptionGroup("g", [ValueError("a"), ExceptionGroup("h", [KeyError("k")])]),
    "a cyclic cause": cyclic(),
    "a cause of a cause of …": caused(1000),
    "notes that are none": odd_notes(),
    "a group of 10,000": ExceptionGroup("g", [ValueError("x" * 10_000)] * 10_000),
}
STEP_FAILED: dict[str, Exception] = {
    "an argument that cannot come back": ValueError(Plain()),
    "a picky one": Picky(code=3),
    "a class of a function": type("Local", (Exception,), {"__qualname__": "f.<locals>.Local"})("x"),
    "no module": type("Odd", (Exception,), {"__module__": "not.there"})("x"),
}


@pytest.mark.parametrize("name", SAME_CLASS)
def test_it_comes_back_as_its_class(name: str) -> None:
    """FAULTS 81: live as on every replay, of bounded size."""
    exception = SAME_CLASS[name]
    record = to_record(exception, CODEC)
    assert len(render(FailureRecord(record))) < 2_000_000
    once, twice = (from_record(record, CODEC, run_id="r", where="a step") for _ in range(2))
    assert type(once) is type(twice) is type(exception)
    assert repr(once) == repr(twice)
    # What was recorded of it once, is recorded of it again: a second execution of the workflow sees no other exception.
    assert to_record(once, CODEC).args == record.args or len(str(exception)) > 8000


@pytest.mark.parametrize("name", STEP_FAILED)
def test_otherwise_it_is_step_failed(name: str) -> None:
    """FAULTS 81: with its class's name, its text where it has one, and its traceback."""
    exception = STEP_FAILED[name]
    back = through(exception)
    assert isinstance(back, durable.StepFailed)
    assert type(exception).__name__ in back.type


def test_one_whose_text_cannot_be_made_is_its_class_too() -> None:
    """FAULTS 81: `__str__` raises, live and replayed."""
    record = to_record(Silent("x"), CODEC)
    back = from_record(record, CODEC, run_id="r", where="a step")
    assert (type(back), back.args) == (Silent, ("x",))
    assert "pl4nted" not in record.message


def test_what_a_short_one_says_is_whole() -> None:
    """Arguments of every type, notes, cause and members, all the way down."""
    original = SAME_CLASS["typed arguments"]
    back = through(original)
    assert repr(back.args) == repr(original.args)
    assert str(through(SAME_CLASS["a text made of arguments"])) == "code 3"
    group = through(SAME_CLASS["a group of 10,000"])
    assert isinstance(group, ExceptionGroup)
    assert 50 < len(group.exceptions) <= 100
    assert "more of its 10,000 exceptions were not stored" in group.__notes__[-1]
    long = through(SAME_CLASS["a message of 10 MB"])
    assert len(str(long)) < 10_000
    assert str(long).endswith("…")


@pytest.mark.parametrize("exceptions", [SAME_CLASS, STEP_FAILED], ids=["same class", "StepFailed"])
def test_live_and_replayed_are_alike_in_a_run(database: Database, exceptions: dict[str, Exception]) -> None:
    """FAULTS 81: through PostgreSQL; the workflow catches, and goes on."""

    class Stop(BaseException):
        pass

    seen: list[list[str]] = []

    def workflow(step: durable.Step, _: Any) -> None:
        seen.append([])
        for name, exception in exceptions.items():
            try:
                step("fails", raising(exception), key=name)
            except Exception as problem:
                seen[-1] += [type(problem).__name__, str(problem), repr(problem.__cause__)]
        raise Stop

    store = database.store()
    for _ in range(2):
        with pytest.raises(Stop):
            durable.run(None, workflow, id="r", store=store)
    live, replayed = seen
    assert live == replayed
    assert len(live) == 3 * len(exceptions)


def raising(exception: Exception) -> Any:
    def body() -> None:
        raise exception

    return body


def test_the_run_itself_may_fail_with_any_of_them() -> None:
    """FAULTS 81: its failure is recorded, and the caller gets the exception itself."""
    store = memory()
    for name, exception in (SAME_CLASS | STEP_FAILED).items():
        with pytest.raises(type(exception)) as it:
            durable.run(None, failing(exception), id=name, store=store)
        assert it.value is exception
    store.close()


def failing(exception: Exception) -> Any:
    def workflow(step: durable.Step, _: Any) -> None:
        raise exception

    return workflow
