"""Whatever is typed for a length of time, a moment or a number: an error of ours, or click's, and never another's."""

from __future__ import annotations

import contextlib
import math
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from durable._common.durations import MAX_SECONDS
from durable.errors import InvalidArgument
from durable.operate.filters import parse_moment, parse_query, parse_seconds
from durable.stores import Filter, memory
from harness.commands import CommandLine, fill, still_store
from harness.pages import play, visit

NOON: Final = datetime(2026, 11, 30, 12, tzinfo=UTC)
UNITS: Final = ("s", "m", "min", "h", "d", "w", "y", "")

numbers = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.integers(1, 5_000).map(lambda count: "9" * count),
    st.sampled_from(["nan", "inf", "-inf", "1e400", "-0", "0", "1_000", "٣", "²", "0x10", " 7 ", "+7", ".5", "5."]),
)
times = st.one_of(
    st.builds(str.__add__, numbers, st.sampled_from(UNITS)),
    st.datetimes().map(datetime.isoformat),
    st.datetimes(timezones=st.timezones()).map(datetime.isoformat),
    st.builds("{}T00:00{}".format, st.sampled_from(["0001-01-01", "9999-12-31"]), st.sampled_from(["+23:59", "-23:59", "Z", ""])),
    st.text(max_size=40),
)  # fmt: skip
QUALIFIERS: Final = (
    "id",
    "workflow",
    "status",
    "error",
    "step",
    "queue",
    "meta.a",
    "meta.",
    "since",
    "before",
    "x",
    "",
)
queries = st.lists(
    st.one_of(
        st.builds("{}:{}".format, st.sampled_from(QUALIFIERS), times), st.text(max_size=10), st.sampled_from('":,')
    ),
    max_size=4,
).map(" ".join)
# A command line, and an address, carry no NUL; argv has what is no UTF-8 as lone surrogates.
typed = st.one_of(times, numbers, queries).map(lambda text: text.replace("\0", ""))


@given(times)
@example("9999999d")
@example("1e400")
@example("9" * 400 + "w")
@example("0001-01-01T00:00+14:00")
def test_a_moment_is_one_of_utc_or_refused(text: str) -> None:
    try:
        moment = parse_moment(text, now=NOON, what="since")
    except InvalidArgument as problem:
        assert str(problem).startswith("since is so long ago") or str(problem).startswith(
            "since is a number of seconds"
        )
        assert len(str(problem)) < 300
    else:
        assert moment.tzinfo is UTC


@given(st.one_of(times, numbers))
@example("nan")
@example("inf")
@example("-1")
@example("99999999999999d")
def test_a_length_of_time_is_some_seconds_of_a_hundred_years_or_refused(text: str) -> None:
    try:
        seconds = parse_seconds(text, what="--delay")
    except InvalidArgument as problem:
        assert str(problem).startswith("--delay is a number of seconds")
        assert len(str(problem)) < 300
    else:
        assert 0 <= seconds <= MAX_SECONDS
        assert not math.isnan(seconds)


@given(queries)
def test_a_query_is_a_filter_that_a_store_takes_or_refused(text: str) -> None:
    with memory() as store:
        try:
            wanted = parse_query(text, now=NOON)
            store.runs(wanted)
        except InvalidArgument:
            return
        assert isinstance(wanted, Filter)


COMMANDS: Final = [
    ("list", "--limit", "{}"),
    ("list", "--since", "{}"),
    ("list", "--after", "{}"),
    ("list", "--count", "{}"),
    ("list", "--columns", "{}"),
    ("show", "ok-1", "--width", "{}"),
    ("show", "ok-1", "--step", "{}"),
    ("wait", "checkout-7f3a", "--timeout", "{}"),
    ("watch", "checkout-7f3a", "--timeout", "{}"),
    ("watch", "checkout-7f3a", "--interval", "{}"),
    ("purge", "--dry-run", "--older-than", "{}"),
    ("start", "report", "--id", "ok-1", "--delay", "{}"),
    ("start", "report", "--id", "ok-1", "--at", "{}"),
    ("start", "report", "--id", "ok-1", "--priority", "{}"),
    ("start", "report", "--id", "ok-1", "--input", "{}"),
    ("cancel", "--dry-run", "--where", "{}"),
    ("signal", "left-1", "go", "{}"),
    ("schema", "--since", "{}"),
    ("worker", "a:b", "--processes", "{}"),
    ("worker", "a:b", "--grace", "{}"),
]


@pytest.fixture(scope="module")
def line() -> CommandLine:
    store = still_store()
    fill(store)
    return CommandLine(store)


@pytest.mark.parametrize("command", COMMANDS, ids=[" ".join(command[:-1]) for command in COMMANDS])
@settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@example(text="9999999d")
@example(text="nan")
@example(text="[" * 100_000)
@example(text="@\0")
@given(text=typed)
def test_a_command_says_what_is_wrong_in_one_line(line: CommandLine, command: tuple[str, ...], text: str) -> None:
    """Exit status 2, 3 or 4, or it is done: 1 with a class before the message is an exception that nothing was made of."""
    if "--processes" in command:
        with contextlib.suppress(ValueError):
            text = str(-abs(int(text)))  # so many it would start
    said = line(*(text if word == "{}" else word for word in command))
    bad_news = (1,) if command[0] in ("wait", "watch", "show") else ()
    assert said.status in (0, 2, 3, 4, *bad_news), said
    if said.status == 2:
        assert said.err
    assert "Traceback" not in said.err
    first = said.err.removeprefix("durable: ").partition(":")[0]
    assert not first.endswith(("Error", "Exception")), said.err


ADDRESSES: Final = (
    "/runs?q={}", "/runs?since={}", "/runs?status={}", "/runs?after=x&at={}", "/runs?done=retry&n={}&refused={}",
    "/run?id={}", "/run?id=checkout-1&first={}", "/run?id=checkout-1&step={}", "/run?id=checkout-1&view={}",
    "/run?id=checkout-1&name={}&only={}", "/value?id=checkout-1&what={}", "/value?id=checkout-1&what=step&step={}",
)  # fmt: skip


@pytest.fixture(scope="module")
def visitor() -> Any:
    store = memory()
    play(store)
    yield visit(store)
    store.close()


@pytest.mark.parametrize("address", ADDRESSES)
@settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@example(text="9999999d")
@example(text="0001-01-01T00:00+14:00")
@example(text="9" * 5000)
@given(text=typed)
def test_a_page_says_what_is_wrong(visitor: Any, address: str, text: str) -> None:
    """With a status of its own, and never 500."""
    answer = visitor.get(address.replace("{}", quote(text, safe="", errors="surrogateescape")))
    assert answer.status_code in (200, 400, 404), answer.text


@pytest.mark.parametrize("field", ["payload", "name", "step", "new_id"])
@settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@example(text="[" * 100_000)
@example(text="9" * 5000)
@example(text="NaN")
@given(text=typed)
def test_a_form_says_what_is_wrong(visitor: Any, field: str, text: str) -> None:
    action = "fork" if field in ("step", "new_id") else "signal"
    address = f"/run/{action}?id=checkout-1" if action == "fork" else "/run/signal?id=import-1"
    text = text.encode("utf-8", "replace").decode()
    told = {"name": "go", "payload": "1", "step": "charge", "new_id": ""} | {field: text}
    answer = visitor.post(address, told)
    assert answer.status_code in (303, 400, 404, 409, 413), answer.text
