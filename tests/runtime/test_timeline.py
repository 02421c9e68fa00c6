"""What a run's stored form says of time: when each record was stored, how long its body took, and who executed the run when."""

from __future__ import annotations

import asyncio
import json
import math
import os
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import tenacity
from msgspec import structs

import durable
from durable._engine.decisions import Claim, Granted
from durable.clocks import SystemClock
from durable.events import StepRecorded
from durable.records import EarlierExecution, ErrorSummary, Status
from durable.snapshots import journal_of
from durable.stores import MemoryStore, PostgresStore, memory
from durable.stores.requests import Cancel, Release
from harness.shelves import Shelf
from harness.support import Database

ME = f"{socket.gethostname()}:{os.getpid()}"
KINDS = ("memory", "postgres", "five verbs")


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest) -> Any:
    """A store of each kind."""
    return new_store(request.param, request.getfixturevalue("database"))


def new_store(kind: str, database: Database, **options: Any) -> Any:
    """Another one of this kind."""
    return memory() if kind == "memory" else database.store(**options) if kind == "postgres" else Shelf()


class HandClock(SystemClock):
    """Goes on by hand, and when it is waited on."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def now(self) -> datetime:
        return datetime(2031, 5, 1, tzinfo=UTC) + timedelta(seconds=self._seconds)

    def elapsed(self) -> float:
        return self._seconds

    def advance(self, seconds: float) -> None:
        """So many seconds have gone by."""
        self._seconds += seconds

    def sleep(self, seconds: float, recheck: float = math.inf) -> None:
        self.advance(min(seconds, recheck))

    async def asleep(self, seconds: float, recheck: float = math.inf) -> None:
        self.advance(min(seconds, recheck))


class Stop(BaseException):
    """Leaves a run as it is."""


def loaded(store: Any, run_id: str = "run") -> durable.Snapshot:
    """What is stored of it."""
    snapshot = store.load(run_id)
    assert snapshot is not None
    return snapshot  # type: ignore[no-any-return]


def moments(snapshot: durable.Snapshot) -> dict[tuple[str, str], tuple[datetime | None, int]]:
    """When each record was stored, and under which lease."""
    return {(record.kind, record.key): (record.at, record.epoch) for record in journal_of(snapshot)[1]}


# -- Duration and attempt -----------------------------------------------------------------------------------------------


def executed(clock: HandClock, workflow: Callable[..., Any]) -> tuple[dict[str, Any], list[StepRecorded]]:
    """The steps as they are stored, and as they were told."""
    told: list[StepRecorded] = []

    def listener(event: object) -> None:
        if isinstance(event, StepRecorded):
            told.append(event)

    with MemoryStore(clock=clock) as store:
        result = durable.run(None, workflow, id="run", store=store, on_event=listener, lease=80_000)
        if asyncio.iscoroutine(result):
            asyncio.run(result)
        return {r.key: json.loads(r.text) for r in store._runs["run"].records.values() if r.kind == "step"}, told


@pytest.mark.parametrize("is_async", [False, True], ids=["blocking", "async"])
def test_a_step_says_how_long_its_body_took_to_the_millisecond(is_async: bool) -> None:
    """As short as JSON can say it; and nothing at all where that is none."""
    clock = HandClock()
    takes = {"tenth": 0.1, "odd": 0.123456, "little": 0.0004, "none": 0.0, "long": 3600.0, "rounded": 0.0016}

    def plain(step: Any, _: None) -> None:
        for name, seconds in takes.items():
            step(name, clock.advance, seconds)

    async def awaited(step: Any, _: None) -> None:
        for name, seconds in takes.items():
            await step(name, clock.advance, seconds)

    stored, told = executed(clock, awaited if is_async else plain)
    said = {key: step.get("seconds") for key, step in stored.items()}
    assert said == {"tenth": 0.1, "odd": 0.123, "little": None, "none": None, "long": 3600.0, "rounded": 0.002}
    assert {event.key: event.seconds or None for event in told} == said
    assert not any("attempt" in step for step in stored.values())
    assert {type(event.seconds) for event in told} == {float}


def test_of_a_retried_step_the_last_attempt_counts() -> None:
    """Not the ones before it, nor what it waited; over all executions; and of a failure as of a value."""
    clock = HandClock()
    twice = tenacity.Retrying(stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_fixed(60))
    lengths = iter([5.0, 0.25, 7.0, 0.5])

    def body(*, works: bool) -> None:
        seconds = next(lengths)
        clock.advance(seconds)
        if seconds > 1 or not works:
            raise ConnectionError

    def workflow(step: durable.Step, _: None) -> None:
        step("works", lambda: body(works=True), retry=twice)
        try:
            step("fails", lambda: body(works=False), retry=twice)
        except ConnectionError:
            return

    stored, told = executed(clock, workflow)
    assert [(step["ok"], step["seconds"], step["attempt"]) for step in stored.values()] == [
        (True, 0.25, 2),
        (False, 0.5, 2),
    ]
    assert [(event.seconds, event.attempt) for event in told] == [(0.25, 2), (0.5, 2)]


def test_attempts_are_counted_over_executions(store: Any) -> None:
    """What interrupts the run between two attempts does not begin them anew."""
    policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(5), wait=tenacity.wait_none())
    calls = list[int]()

    def body() -> int:
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionError
        if len(calls) == 3:
            raise Stop
        return len(calls)

    def workflow(step: durable.Step, _: None) -> Any:
        return step("flaky", body, retry=policy)

    with pytest.raises(Stop):
        durable.run(None, workflow, id="run", store=store)
    assert durable.run(None, workflow, id="run", store=store) == 4
    assert loaded(store).steps["flaky"].attempt == 3  # the one that was left does not count


def test_a_record_is_dated_after_its_body_by_the_servers_clock(database: Database) -> None:
    """A transaction's as well, whose `now()` is before the body: a bar from `at - seconds` to `at` is the body's."""
    store = database.store()

    def clock(connection: psycopg.Connection[Any]) -> str:
        row = connection.execute("SELECT clock_timestamp() FROM pg_sleep(0.02)").fetchone()
        assert row is not None
        return row[0].astimezone(UTC).isoformat()  # type: ignore[no-any-return]

    def aside() -> str:
        with psycopg.connect(database.url) as connection:
            return clock(connection)

    def workflow(step: durable.Step, _: None) -> None:
        step("plain", aside)
        step.transaction("transaction", clock)

    durable.run(None, workflow, id="run", store=store)
    for step in loaded(store).steps.values():
        assert step.at is not None
        assert datetime.fromisoformat(json.loads(step.json)) < step.at
        assert step.seconds >= 0.02


# -- Moments survive ----------------------------------------------------------------------------------------------------


def left_twice(store: Any) -> None:
    """A run that has failed in two executions: an input, steps, a failure."""

    @durable.workflow(name="workflow")
    def workflow(step: durable.Step, _: None, order: int) -> None:
        step("one", lambda: order)
        step("two", lambda: {"b": 1e16, "a": -0.0})
        step("three", lambda: 1 // 0)

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            durable.run(None, workflow, id="run", store=store, input=7)


def test_every_record_of_a_document_says_when(store: Any) -> None:
    """Also the input's and the failure's, after the document was written and read."""
    left_twice(store)
    snapshot = loaded(store)
    known = moments(snapshot)
    assert {key: epoch for (_, key), (_, epoch) in known.items()} == {
        "input": known["input", "input"][1],
        "one": known["step", "one"][1],
        "two": known["step", "two"][1],
        "three": known["step", "three"][1],
        "failure": known["failure", "failure"][1],
    }
    first, last = known["step", "one"][1], known["failure", "failure"][1]
    assert 0 < first == known["input", "input"][1] == known["step", "two"][1]
    assert first < known["step", "three"][1] == last
    in_order = [known[place][0] for place in known]
    assert None not in in_order
    assert in_order == sorted(at for at in in_order if at is not None)
    assert moments(durable.Snapshot.from_json(snapshot.to_json())) == known


@pytest.mark.parametrize("of", KINDS)
@pytest.mark.parametrize("to", KINDS)
def test_a_copy_keeps_its_timeline(database: Database, of: str, to: str) -> None:
    """From any store into any, and what comes after it is counted on from there."""
    source, target = new_store(of, database), new_store(to, database, prefix="copy:")
    left_twice(source)
    snapshot = loaded(source)
    target.save("run", snapshot)
    copied = loaded(target)
    assert moments(copied) == moments(snapshot)
    assert copied.execution == snapshot.execution

    def left_twice_(step: durable.Step, _: None, order: int) -> int:
        step("one", lambda: order)
        step("two", lambda: None)
        return step("three", lambda: order)

    left_twice_.__name__ = "workflow"
    assert durable.run(None, left_twice_, id="run", store=target) == 7
    ended = loaded(target)
    assert ended.execution.epoch > snapshot.execution.epoch
    assert ended.execution.earlier == (*snapshot.execution.earlier, _last(snapshot))
    before, after = moments(snapshot), moments(ended)
    for place in (("input", "input"), ("step", "one"), ("step", "two")):
        assert after[place] == before[place]
    assert after["step", "three"][1] == after["result", "result"][1] == ended.execution.epoch


def _last(snapshot: durable.Snapshot) -> EarlierExecution:
    execution = snapshot.execution
    return EarlierExecution(execution.epoch, execution.owner, execution.began)


@pytest.mark.parametrize("answer", ["snapshot", "document", "renamed", "clear"])
def test_a_migrated_run_keeps_its_timeline(store: Any, answer: str) -> None:
    """P2. By whatever the answer is made of, and under whatever keys the steps go on."""
    left_twice(store)
    before = loaded(store)

    def migrated(snapshot: durable.Snapshot, _: int) -> Any:
        if answer == "snapshot":
            return structs.replace(snapshot, metadata={"why": "a test"})
        document = snapshot.document()
        document.pop("failure")
        if answer == "renamed":
            document["steps"]["uno"] = document["steps"].pop("one")
            document["execution"] = {"status": "running"}
        return document

    @durable.workflow(name="workflow")
    def workflow(step: durable.Step, _: None, __: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        durable.run(
            None, workflow, id="run", store=store, version=2,
            on_version_mismatch="clear" if answer == "clear" else migrated,
        )  # fmt: skip
    after = loaded(store)
    known = moments(before)
    if answer == "clear":
        assert after.steps == {}
    else:
        known["step", "uno"] = known["step", "one"]
        kept = {place: moment for place, moment in moments(after).items() if place[0] in ("step", "input")}
        assert len(kept) == 4
        assert all(known[place] == moment for place, moment in kept.items())
    assert moments(after)["input", "input"] == known["input", "input"]
    assert after.execution.started_at == before.execution.started_at
    assert after.execution.earlier == (*before.execution.earlier, _last(before))
    assert after.execution.epoch > before.execution.epoch


def test_what_replaces_a_run_without_saying_when_was_stored_now(database: Database) -> None:
    """As a store cannot know better; and by the lease that it has then."""
    for kind in ("memory", "postgres"):
        store = new_store(kind, database)
        left_twice(store)
        old = loaded(store)
        document = old.document()
        document["steps"]["new"] = {"name": "new", "ok": True, "value": 1}
        assert store.replace("run", old, durable.Snapshot.from_document(document))
        step = loaded(store).steps["new"]
        assert step.at is not None
        assert abs(step.at - datetime.now(UTC)) < timedelta(minutes=5)
        assert step.epoch > old.execution.epoch


@pytest.mark.parametrize(
    "stamp", ['"at": 7', '"at": "then"', '"at": "2026-01-15T10:30:00"', '"epoch": -1', '"epoch": 1e30']
)
def test_a_moment_that_is_none_is_refused_by_the_steps_name(stamp: str) -> None:
    """As any other part of a step that cannot be read."""
    text = f'{{"formatVersion": 1, "steps": {{"pay": {{"name": "pay", "ok": true, "value": 1, {stamp}}}}}'
    with pytest.raises(durable.errors.UnreadableRecord, match="pay"):
        durable.Snapshot.from_json(text + ', "execution": {"status": "running"}}')


# -- The header ---------------------------------------------------------------------------------------------------------


def test_a_header_says_who_executed_the_run_since_when(store: Any) -> None:
    """The first claim stays the start; of the executions before the last the header keeps ten."""

    def workflow(step: durable.Step, _: None) -> None:
        step("step", lambda: 1)
        raise Stop

    seen = list[Any]()
    for _ in range(13):
        with pytest.raises(Stop):
            durable.run(None, workflow, id="run", store=store)
        seen.append(loaded(store).execution)
    first, last = seen[0], seen[-1]
    assert (first.earlier, first.owner, first.error, first.completed_at) == ((), ME, None, None)
    assert first.started_at == first.began
    assert {execution.started_at for execution in seen} == {first.started_at}
    began = [datetime.fromisoformat(execution.began) for execution in seen]
    assert began == sorted(set(began))
    epochs = [execution.epoch for execution in seen]
    assert epochs == sorted(set(epochs))
    assert last.earlier == tuple(EarlierExecution(of.epoch, of.owner, of.began) for of in seen[2:-1])
    assert durable.run(None, _done, id="run", store=store) == 1
    end = loaded(store).execution
    assert (end.status, end.started_at, len(end.earlier), end.error) == ("completed", first.started_at, 10, None)
    assert end.completed_at == end.last_updated


def _done(step: durable.Step, _: None) -> Any:
    return step("step", lambda: 1)


_done.__name__ = "workflow"


def raises_itself(step: durable.Step, _: None) -> None:
    step("fine", lambda: 1)
    raise ValueError("card 4111")


def _refuse() -> None:
    raise PermissionError("card 4111")


def fails_in_a_step(step: durable.Step, _: None) -> None:
    step("charge", _refuse)


def wraps(step: durable.Step, _: None) -> None:
    try:
        step("charge", _refuse)
    except PermissionError as problem:
        raise LookupError("card 4111") from problem


def fails_while_it_cleans_up(step: durable.Step, _: None) -> None:
    try:
        step("a charge", _refuse)
    except PermissionError:
        step("refund", _refuse)


def fails_at_most_once(step: durable.Step, _: None) -> None:
    durable.step(at_most_once=True)(_refuse_once)()


def _refuse_once() -> None:
    raise PermissionError("card 4111")


def fails_twice(step: durable.Step, _: None) -> None:
    problems = list[Exception]()
    for key in ("b", "a"):
        try:
            step(key, _refuse)
        except PermissionError as problem:
            problems.append(problem)
    raise ExceptionGroup("both", problems)


@pytest.mark.parametrize(
    ("workflow", "summary"),
    [
        (raises_itself, ErrorSummary("builtins:ValueError")),
        (fails_in_a_step, ErrorSummary("builtins:PermissionError", "charge")),
        (wraps, ErrorSummary("builtins:LookupError", "charge")),
        (fails_while_it_cleans_up, ErrorSummary("builtins:PermissionError", "refund")),
        (fails_at_most_once, ErrorSummary("builtins:PermissionError", "_refuse_once")),
        (fails_twice, ErrorSummary("builtins:ExceptionGroup", "b")),
    ],
    ids=lambda of: getattr(of, "__name__", ""),
)
def test_a_failed_run_says_what_ended_it_but_no_message(
    store: Any, database: Database, workflow: Callable[..., Any], summary: ErrorSummary
) -> None:
    """The class, and the key of the step that raised it or that it came of first; gone once the run is taken up again."""
    with pytest.raises(Exception, match=r"card 4111|both"):
        durable.run(None, workflow, id="run", store=store)
    assert loaded(store).execution.error == summary
    if isinstance(store, PostgresStore):
        assert "card" not in json.dumps(database.header("run"))

    def goes_on(step: durable.Step, _: None) -> None:
        step("another", lambda: 1)
        raise Stop

    goes_on.__name__ = workflow.__name__
    with pytest.raises((Stop, durable.WorkflowDrift)):
        durable.run(None, goes_on, id="run", store=store)
    execution = loaded(store).execution
    assert (execution.status, execution.error) in (("running", None), ("failed", summary))


def test_a_run_that_goes_back_to_having_failed_says_again_why(store: Any) -> None:
    """It was taken up again, and left before anything was written."""

    def workflow(step: durable.Step, _: None) -> None:
        if broken:
            step("charge", _refuse)
        raise Stop

    broken = True
    with pytest.raises(PermissionError):
        durable.run(None, workflow, id="run", store=store)
    failed = loaded(store).execution
    broken = False
    for times in (1, 2):
        with pytest.raises(Stop):
            durable.run(None, workflow, id="run", store=store)
        back = loaded(store).execution
        assert (back.status, back.error) == ("failed", failed.error)
        assert len(back.earlier) == times
        assert back.started_at == failed.started_at


@pytest.mark.parametrize("kind", ["memory", "postgres"])
def test_a_cancelled_run_keeps_what_its_header_says(database: Database, kind: str) -> None:
    """Whoever cancels it; and it is no failure."""
    store = new_store(kind, database)

    def workflow(step: durable.Step, _: None) -> None:
        step("one", lambda: store.perform(Cancel("run", force=True)))
        step("two", lambda: 1)

    with pytest.raises(durable.RunCancelled):
        durable.run(None, workflow, id="run", store=store)
    execution = loaded(store).execution
    assert (execution.status, execution.owner, execution.error) == ("cancelled", ME, None)
    assert execution.epoch == 1
    assert execution.started_at == execution.began


def test_an_error_whose_class_has_a_name_that_no_json_takes_still_ends_its_run(store: Any) -> None:
    """FAULTS 89: the class's name goes through PostgreSQL's text, where the header quotes it."""
    strange = type("Strange", (Exception,), {})
    strange.__qualname__ = "Str\0nge\ud800"

    def workflow(step: durable.Step, _: None) -> None:
        raise strange("no")

    with pytest.raises(strange):
        durable.run(None, workflow, id="run", store=store)
    snapshot = loaded(store)
    assert snapshot.execution.error is not None
    assert snapshot.failure is not None
    assert snapshot.execution.error.type == snapshot.failure.error.type
    assert snapshot.execution.error.type.endswith("Str\\x00nge\\ud800")


def a_claim(run_id: str = "run", **of: Any) -> Claim:
    return Claim(run_id=run_id, workflow="w", version=1, seconds=30.0, **of)


def test_a_claim_that_comes_twice_is_one_execution(database: Database) -> None:
    """FAULTS 43: the reply to the first was lost."""
    store = database.store()
    for times in range(3):
        first, again = store._requests._claiming(a_claim(), None), store._requests._claiming(a_claim(), None)
        again.payload = first.payload
        reply = store._held.resources.perform(first).reply()
        before = loaded(store).execution
        same = store._held.resources.perform(again).reply()
        after = loaded(store).execution
        assert isinstance(reply, Granted)
        assert isinstance(same, Granted)
        assert structs.replace(after, last_updated=before.last_updated) == before
        assert len(after.earlier) == times
        store.perform(Release(reply.lease))


AWAITLYS: list[dict[str, Any]] = [
    {
        "formatVersion": 1,
        "steps": {"one": {"ok": True, "value": 1}, "two": {"ok": False, "error": "E", "cause": {"type": "error"}}},
        "execution": {"status": "failed", "lastUpdated": "2024-01-01T00:00:00Z", "currentStepId": "two"},
        "metadata": {"of": "theirs"},
    },
    {
        "formatVersion": 1,
        "steps": {"one": {"ok": True, "value": 1}},
        "execution": {"status": "completed", "completedAt": "x"},
    },
    {"kind": "ResumeState", "steps": [["one", {"ok": True, "value": 1}]]},
]


@pytest.mark.parametrize("document", AWAITLYS, ids=["failed", "completed", "resume state"])
def test_what_another_tool_wrote_gets_a_start_of_its_own(store: Any, document: dict[str, Any]) -> None:
    """Nothing is known of its moments, and nothing is invented; the first claim here is where it begins."""
    store.save("run", durable.Snapshot.from_document(document))
    assert {moment for moment, _ in moments(loaded(store)).values()} <= {None}

    def workflow(step: durable.Step, _: None) -> Any:
        return [step("one", lambda: 0), step("two", lambda: 2)]

    assert durable.run(None, workflow, id="run", store=store) == [1, 2]
    snapshot = loaded(store)
    assert (snapshot.steps["one"].at, snapshot.steps["one"].epoch) == (None, 0)
    assert snapshot.steps["two"].at is not None
    assert snapshot.execution.status == Status.COMPLETED
    assert snapshot.execution.started_at == snapshot.execution.began
    assert snapshot.execution.earlier == ()
