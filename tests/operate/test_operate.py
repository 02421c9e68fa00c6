"""The room that command line and page share: what people type, what is drawn, and what is hidden."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog

import durable
from durable.errors import ConcurrentExecution, InvalidArgument
from durable.operate.actions import Actions
from durable.operate.filters import parse_moment, parse_query, parse_seconds
from durable.operate.redact import REDACTED, redact_by_name, show_json, shown
from durable.operate.standing import name_error, show_about, show_seconds, stand
from durable.operate.timeline import StepRow, Timeline
from durable.operate.view import view_run
from durable.stores import Filter, MemoryStore
from harness.commands import NOW, CommandLine, Told, checkout, fill, moment, raised, still_store

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", Filter()),
        ("order-7", Filter(prefix="order-7")),
        ("id:a id:b,c", Filter(ids=("a", "b", "c"))),
        ("status:failed,interrupted", Filter(statuses=("failed", "interrupted"))),
        ('workflow:"my flow" queue:q', Filter(workflows=("my flow",), queues=("q",))),
        ('step:"quote[a,b]"', Filter(steps=("quote[a,b]",))),
        ("error:httpx:ReadTimeout", Filter(errors=("httpx:ReadTimeout",))),
        ("meta.tenant:t7 meta.tenant:t8", Filter(metadata={"tenant": ("t7", "t8")})),
        ('"a:b"', Filter(prefix="a:b")),
        ("since:2h", Filter(since=NOON - timedelta(hours=2))),
        (
            "since:1.5d before:2026-11-29T10:00Z",
            Filter(since=NOON - timedelta(hours=36), before=datetime(2026, 11, 29, 10, tzinfo=UTC)),
        ),
    ],
)
def test_a_query_is_read(text: str, wanted: Filter) -> None:
    assert parse_query(text, now=NOON) == wanted


def test_times_are_read_and_shown() -> None:
    assert [parse_seconds(text) for text in ("90", "90s", "10m", "2h", "30d", "1w")] == [
        90,
        90,
        600,
        7200,
        2_592_000,
        604_800,
    ]
    assert parse_moment("2026-11-29T10:00+02:00", now=NOON) == datetime(2026, 11, 29, 8, tzinfo=UTC)
    for text in ("soon", "-5", "1y", ""):
        with pytest.raises(InvalidArgument):
            parse_moment(text, now=NOON)
    shown_as = {
        0.0004: "0 ms",
        0.48: "480 ms",
        0.9996: "1.00 s",
        2.75: "2.75 s",
        13.6: "13.6 s",
        59.97: "1 min",
        250: "4 min 10 s",
        3599.7: "1 h",
        7800: "2 h 10 min",
        86_399.9: "1 d",
        273_600: "3 d 4 h",
    }
    assert {seconds: show_seconds(seconds) for seconds in shown_as} == shown_as
    about = {0.2: "200 ms", 4.6: "5 s", 59.6: "1 min", 288: "5 min", 3590: "1 h", 86_000: "1 d"}
    assert {seconds: show_about(seconds) for seconds in about} == about
    assert [name_error(one) for one in ("builtins:OSError", "httpx._exceptions:ReadTimeout", "", "X")] == [
        "OSError",
        "httpx.ReadTimeout",
        "",
        "X",
    ]


def drawn(told: Told, *, now: datetime = NOW) -> Timeline:
    store = still_store()
    told.into(store)
    (line,) = store.runs()
    return view_run(store, line, now=now).timeline


def bars_of(row: StepRow) -> list[tuple[float, float, str]]:
    """To the millisecond."""
    return [(round(bar.begin, 3), round(bar.end, 3), bar.kind) for bar in row.bars]


def test_a_timeline_says_what_ran_what_waited_and_where_nothing_is_recorded() -> None:
    """By the records' own moments: nothing is drawn between two executions."""
    timeline = drawn(checkout())
    rows = {row.key: row for row in timeline.rows}
    assert bars_of(rows["quote[gls]"]) == [
        (3.5, 5.2, "failed"),
        (5.2, 6.2, "back-off"),
        (6.2, 8.02, "ran"),
    ]
    assert bars_of(rows["approved"]) == [(6.1, 17.6, "waiting")]
    assert bars_of(rows["cool down"]) == [(29.0, 34.0, "waiting")]
    assert [bar.kind for bar in rows["book courier"].bars] == ["failed", "back-off", "failed", "back-off", "failed"]
    ((begin, end),) = (tuple(gap) for gap in timeline.gaps)
    assert begin == 17.6
    assert end == pytest.approx(25.3)
    assert (timeline.seconds, timeline.executions, rows["book courier"].attempts) == (47.9, 2, 3)
    assert [tuple(one) for one in timeline.maps] == [("quote", 3, 0, 0)]
    for row in timeline.rows:
        assert all(0 <= bar.begin <= bar.end <= timeline.seconds for bar in row.bars)


def test_a_wait_that_goes_on_ends_at_the_look() -> None:
    """A sleep, and a step that is put off: each says until when."""
    asleep = drawn(
        Told("r").step("one", 0.0, 1.0).sleep("nap", 1.0, 3600.0).waits("q", moment(3600.0)), now=moment(100.0)
    )
    assert bars_of(asleep.rows[1]) == [(1.0, 100.0, "waiting")]
    assert (asleep.rows[1].state, asleep.rows[1].due) == ("waiting", moment(3600.0))
    put_off = drawn(
        Told("r").attempt("pay", 1, 0.0, 2.0, 500.0, raised("builtins:OSError", "no")).waits("q", moment(500.0)),
        now=moment(100.0),
    )
    assert bars_of(put_off.rows[0]) == [(0.0, 2.0, "failed"), (2.0, 100.0, "back-off")]
    assert put_off.rows[0].due == moment(500.0)


def test_a_gap_that_a_wait_fills_is_none() -> None:
    """The run was left because it waited: nothing is missing there."""
    told = Told("r").step("one", 0.0, 1.0).sleep("nap", 1.0, 60.0).again(60.0).step("two", 60.1, 61.0)
    assert drawn(told).gaps == ()


def test_what_cannot_be_read_is_told_and_the_rest_is_drawn() -> None:
    told = Told("r").step("one", 0.0, 1.0)
    told._add(2.0, "step", "broken", '{"nonsense": 1}')
    timeline = drawn(told.step("two", 2.0, 3.0))
    assert timeline.unreadable == (1,)
    assert [row.key for row in timeline.rows] == ["one", "two"]


def test_secrets_are_hidden_by_name_at_any_depth() -> None:
    value = {"user": {"Password": "x", "tokens": [1], "name": "n"}, "list": [{"api_key": 1}], "cardinal": 5}
    assert redact_by_name("input", value) == {
        "user": {"Password": REDACTED, "tokens": REDACTED, "name": "n"},
        "list": [{"api_key": REDACTED}],
        "cardinal": REDACTED,
    }
    assert redact_by_name("step:fetch token", "abc") == REDACTED
    assert redact_by_name("step:fetch", "abc") == "abc"
    deep: Any = 1
    for _ in range(500):
        deep = [deep]
    assert REDACTED in str(redact_by_name("input", deep))


@pytest.mark.parametrize("outcome", [ZeroDivisionError(), KeyboardInterrupt, object(), {1: object()}])
def test_redaction_fails_closed(outcome: Any) -> None:
    """What raises, or returns what is no JSON, shows nothing."""

    def broken(where: str, value: Any) -> Any:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome if outcome is not KeyboardInterrupt else {"x": object}

    assert shown(broken, "input", {"secret": 1}) == REDACTED
    assert show_json(broken, "input", '{"a": 1}') == REDACTED
    assert show_json(redact_by_name, "input", b"{broken") == REDACTED


def test_every_action_writes_one_line() -> None:
    """Who did what, to which run, by which tool, and whether it was refused; no value is in it."""
    store = still_store()
    fill(store)
    with structlog.testing.capture_logs() as lines:
        actions = Actions(store, who="ann@desk", via="web", log=structlog.get_logger())
        actions.signal("left-1", "approved", {"card": "4111"})
        actions.retry("checkout-7e91")
        actions.retry("checkout-7e91", dry_run=True)
        actions.fork("checkout-7f3a", new_id="again")
        actions.cancel("order-1", reason="by mistake")
        actions.delete("ok-1")
        with pytest.raises(durable.RunExists):
            actions.fork("checkout-7f3a", new_id="again")
        list(actions.bulk("cancel", Filter(ids=("order-2",))))
        actions.purge(older_than=0.0, status="cancelled")
    told = [(line["action"], line["run_id"], line["outcome"]) for line in lines]
    assert told == [
        ("signal", "left-1", "done"),
        ("retry", "checkout-7e91", "done"),
        ("fork", "checkout-7f3a", "done"),
        ("cancel", "order-1", "done"),
        ("delete", "ok-1", "done"),
        ("fork", "checkout-7f3a", "refused"),
        ("cancel", "order-2", "done"),
        ("purge", "*", "done"),
    ]
    assert all((line["who"], line["via"]) == ("ann@desk", "web") for line in lines)
    assert "4111" not in str(lines)


def test_bulk_actions_go_in_thousands_and_can_be_called_again() -> None:
    """Interrupted after the first thousand, the second call does the rest; what cannot be done is told, and stops nothing."""
    store = still_store()
    durable.start_many("many", [durable.Start(id=f"m-{n:04}") for n in range(2500)], store=store)
    actions = Actions(store, log=structlog.wrap_logger(structlog.ReturnLogger()))
    wanted = Filter(workflows=("many",), statuses=("queued",))
    assert [len(batch) for batch in actions.bulk("cancel", wanted, dry_run=True)] == [1000, 1000, 500]
    first = next(iter(actions.bulk("cancel", wanted)))
    assert len(first) == 1000
    assert [len(batch) for batch in actions.bulk("cancel", wanted)] == [1000, 500]
    assert store.count_runs(Filter(statuses=("cancelled",))) == 2500

    def holding(step: durable.Step, deps: Any) -> None:
        step("delete", lambda: outcomes.extend(actions.bulk("delete", Filter(prefix="m-"))))

    outcomes: list[Any] = []
    durable.run(None, holding, id="m-held", store=store)
    refused = [outcome for batch in outcomes for outcome in batch if outcome.problem is not None]
    assert [(one.run_id, type(one.problem)) for one in refused] == [("m-held", ConcurrentExecution)]
    assert store.count_runs() == 1


def test_what_a_terminal_cannot_show_is_written_in_ascii() -> None:
    store = still_store()
    fill(store)
    out = CommandLine(store)("show", "checkout-7f3a", width=100, encoding="ascii").out
    assert out.isascii()
    assert "x book courier" in out
    assert "# ran" in out


def test_colours_are_there_where_they_are_wanted() -> None:
    store: MemoryStore = still_store()
    fill(store)
    line = CommandLine(store)
    colored = line("list", width=100, color=True).out
    assert "\x1b[31m✕ failed" in colored
    assert "\x1b" not in line("list", "--no-color", width=100, color=True).out
    assert "\x1b" not in line("list", color=True).out  # no terminal
    assert stand(store.runs()[0], now=NOW).state == "waiting"
