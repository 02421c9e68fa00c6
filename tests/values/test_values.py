"""Values and exceptions that come back as they were, or are refused."""

from __future__ import annotations

from typing import Any

import pytest

import durable
from durable.codecs import JsonCodec
from durable.codecs._failures import from_record, to_record

CODEC = JsonCodec()


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -1,
        2**70,
        1.5,
        -0.0,
        1e300,
        "",
        "é\n\u2028",
        "\\u0000",
        [],
        {},
        {"b": 1, "a": [None, {"x": []}]},
        "[{" * 300,
    ],
    ids=lambda value: repr(value)[:20],
)
def test_plain_values_come_back(value: Any) -> None:
    """Equal, of the same type, in the same order."""
    text = CODEC.encode(value, what="it")
    back = CODEC.decode(text, run_id="r", where="here")
    assert repr(back) == repr(value)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"items": [1, {"price": {float("nan")}}]}, "$.items[1].price[0]"),
        (float("inf"), "$"),
        ([float("nan")], "$[0]"),
        ({"a": "\0"}, "$.a"),
        (["\ud800"], "$[0]"),
        (10**5000, "$"),
        (nested(201), "$…"),
        (nested(100_000), "$…"),
    ],
    ids=lambda value: repr(type(value)),
)
def test_other_values_are_refused_with_their_path(value: Any, path: str) -> None:
    """FAULTS 83–88: before anything is stored."""
    with pytest.raises(durable.UnstorableValue) as it:
        CODEC.encode(value, what="it")
    assert it.value.path == path


def test_a_wide_value_is_not_taken_for_a_deep_one() -> None:
    """Depth is what counts, and brackets inside strings do not."""
    value = [[{"text": "[[[" * 10}] for _ in range(1000)]
    assert CODEC.decode(CODEC.encode(value, what="it"), run_id="r", where="here") == value
    CODEC.encode(nested(199), what="it")


class Stateful(Exception):
    """An exception with more to it than its arguments."""


def round_trip(exception: Exception) -> Exception:
    """As a replay would raise it."""
    return from_record(to_record(exception, CODEC), CODEC, run_id="r", where="a step")


def test_an_exception_comes_back_as_its_class() -> None:
    """FAULTS 81: class, arguments, notes, cause and members."""
    original = ValueError("bad", 3)
    original.add_note("a note")
    original.__cause__ = KeyError("k")
    back = round_trip(original)
    assert (type(back), back.args, back.__notes__) == (ValueError, ("bad", 3), ["a note"])
    assert isinstance(back.__cause__, KeyError)
    group = round_trip(
        ExceptionGroup("several", [ValueError("a"), ExceptionGroup("inner", [OSError(2, "no", "file")])])
    )
    assert isinstance(group, ExceptionGroup)
    assert repr(group.exceptions[0]) == "ValueError('a')"
    inner = group.exceptions[1]
    assert isinstance(inner, ExceptionGroup)
    assert getattr(inner.exceptions[0], "filename", None) == "file"


@pytest.mark.parametrize("exception", [Stateful("x"), ValueError(object())])
def test_an_exception_that_would_lose_something_is_step_failed(exception: Exception) -> None:
    """Live and replayed alike, with its text and traceback; never half an exception."""
    if isinstance(exception, Stateful):
        exception.status = object()  # type: ignore[attr-defined]
    back = round_trip(exception)
    assert isinstance(back, durable.StepFailed)
    assert back.message == str(exception)


def test_no_exception_is_too_odd_to_be_recorded() -> None:
    """FAULTS 81: a run is never lost because its error could not be stored."""

    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    odd = Odd("x" * 100_000, "\0\ud800")
    odd.__notes__ = None  # type: ignore[assignment]
    odd.__cause__ = odd
    record = to_record(odd, CODEC)
    assert len(record.message) < 10_000
    assert isinstance(round_trip(odd), durable.StepFailed)


def test_nothing_is_imported_or_called_because_a_record_says_so() -> None:
    """FAULTS 104: only an `Exception` class that is imported already is ever made."""
    record = to_record(ValueError("x"), CODEC)
    for name in (
        "os:system",
        "builtins:print",
        "builtins:KeyboardInterrupt",
        "not_imported:X",
        "builtins:",
        ":",
        "a:b:c",
    ):
        changed = type(record)(type=name, message=record.message, args=record.args)
        assert isinstance(from_record(changed, CODEC, run_id="r", where="a step"), durable.StepFailed)


def test_equal_sets_have_one_text_and_one_fingerprint() -> None:
    """Whatever order they came to have: 0 and 8 share a place in a small set's table, and the first gets it."""
    one, other = {0, 8}, {8, 0}
    assert list(one) != list(other)
    assert CODEC.encode(one, what="it") == CODEC.encode(other, what="it")
    assert CODEC.fingerprint([one], what="it") == CODEC.fingerprint([other], what="it")
