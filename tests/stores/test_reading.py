"""What people and tools ask of a store: memory is the model, and PostgreSQL says the same, in both colours."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg
import pytest
from msgspec import structs

import durable
from durable.errors import InvalidArgument, RunExists, RunNotFound
from durable.operate.transfer import export_run, read_runs
from durable.records import Kind, Record
from durable.stores import Filter, MemoryStore, PostgresStore, RunLine, memory
from durable.stores._postgres import reading
from durable.stores._postgres.session import Session
from durable.stores.copies import Changes
from durable.stores.reading import NEVER
from harness.support import Database

STATUSES: Final = ("queued", "running", "interrupted", "completed", "failed", "cancelled")


class Late(Exception):
    """Of a courier."""


@durable.workflow(name="orders", queue="orders")
def orders(step: durable.Step, deps: Any, number: int) -> int:
    return step("double", lambda: number * 2)


def report(step: durable.Step, deps: Any) -> list[Any]:
    return step.map("collect", lambda n: {"n": n, "f": 1e16}, [1, 2, 3], max_concurrency=1)


def courier(step: durable.Step, deps: Any) -> None:
    step("pack", lambda: 1)

    def book() -> None:
        raise Late("not today")

    step("book", book, key="book[dhl]")


def charge(step: durable.Step, deps: Any) -> None:
    def pay() -> None:
        raise OSError("no line")

    step("charge", lambda: 1)
    step("charge", pay)


def left(step: durable.Step, deps: Any) -> None:
    step("one", lambda: 1)
    raise KeyboardInterrupt


@durable.workflow(name="left")
def left_to_workers(step: durable.Step, deps: Any) -> None:
    left(step, deps)


def filled(store: Any) -> None:
    """Runs of every kind, made by the library itself; each pair of neighbours lies at least a microsecond apart."""
    for number in range(3):
        durable.run(None, report, id=f"report-{number}", store=store, metadata={"tenant": f"t{number % 2}", "ok": True})
    with contextlib.suppress(Late):
        durable.run(None, courier, id="courier-1", store=store, metadata={"tenant": "t1", "order": 7})
    with contextlib.suppress(OSError):
        durable.run(None, charge, id="charge-1", store=store)
    with contextlib.suppress(KeyboardInterrupt):
        durable.run(None, left, id="left-1", store=store, metadata={"tenant": 't"quoted"'})
    with contextlib.suppress(KeyboardInterrupt):
        durable.run(None, left_to_workers, id="left-2", store=store, recover="workers")
    durable.start(orders, 1, store=store, id="order-1", metadata={"tenant": "t1"})
    durable.start(orders, 2, store=store, id="order-2", delay=timedelta(hours=1), priority=2)
    durable.start(orders, 3, store=store, id="order-3", queue="other")
    durable.start(orders, 4, store=store, id="order-4")
    durable.cancel(store, "order-4")
    durable.start(orders, 5, store=store, id="order-5", queue="now")
    durable.Worker(store, None, [orders], queues=["now"]).run_until_idle()
    durable.signal(store, "left-1", "approved", {"by": 1e16})
    durable.signal(store, "left-1", "approved", None)
    durable.signal(store, "nothing", "early", "kept", create_later=True)


FILTERS: Final = [
    None,
    Filter(),
    *(Filter(statuses=(status,)) for status in STATUSES),
    Filter(statuses=("failed", "interrupted")),
    Filter(statuses=("running", "interrupted")),
    Filter(statuses=("running", "failed", "queued")),
    Filter(prefix="order-"),
    Filter(prefix="order-%"),
    Filter(ids=("left-1", "report-2", "nothing")),
    Filter(workflows=("orders",)),
    Filter(workflows=("report", "charge")),
    Filter(workflows=("nobody's",)),
    Filter(queues=("orders",)),
    Filter(queues=("other", "now")),
    Filter(queues=("",)),
    Filter(errors=("OSError",)),
    Filter(errors=("builtins:OSError", "Late")),
    Filter(steps=("book",)),
    Filter(steps=("book[dhl]",)),
    Filter(steps=("charge",)),
    Filter(steps=("charge#2", "nothing")),
    Filter(metadata={"tenant": ("t1",)}),
    Filter(metadata={"tenant": ("t0", 't"quoted"')}),
    Filter(metadata={"order": ("7",), "tenant": ("t1",)}),
    Filter(metadata={"ok": ("true",)}),
    Filter(metadata={"nothing'; --": ("x",)}),
    Filter(prefix="report", statuses=("completed",), workflows=("report",), metadata={"tenant": ("t0",)}),
    Filter(before=datetime(2001, 1, 1, tzinfo=UTC)),
    Filter(since=datetime(2001, 1, 1, tzinfo=UTC)),
]


def shape(line: RunLine) -> Any:
    """A line without what differs from life to life: moments, and processes."""
    due = None if line.due_at is None else "later" if line.due_at > datetime.now(UTC) + timedelta(minutes=5) else "soon"
    fixed = line._replace(updated_at=datetime.min, started_at=None, due_at=None, owner="", executions=0)
    return fixed, due, line.started_at is None, bool(line.owner), line.executions


@pytest.fixture(params=["memory", "postgres", "postgres under a prefix"])
def store(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "memory":
        with memory() as made:
            yield made
        return
    database: Database = request.getfixturevalue("database")
    if request.param == "postgres":
        yield database.store()
        return
    for other in ("q:", ""):
        with contextlib.suppress(KeyboardInterrupt):
            durable.run(None, left, id="order-9", store=database.store(prefix=other), metadata={"tenant": "t1"})
    yield database.store(prefix="p:")


def blocking(store: Any, verb: str, *args: Any, **kwargs: Any) -> Any:
    return getattr(store, verb)(*args, **kwargs)


def awaited(store: Any, verb: str, *args: Any, **kwargs: Any) -> Any:
    async def ask() -> Any:
        return await getattr(store.aio, verb)(*args, **kwargs)

    return asyncio.run(ask())


@pytest.fixture(params=[blocking, awaited])
def ask(request: pytest.FixtureRequest) -> Callable[..., Any]:
    asked: Callable[..., Any] = request.param
    return asked


@pytest.mark.long(6)
def test_every_filter_finds_in_postgres_what_it_finds_in_memory(store: Any, ask: Callable[..., Any]) -> None:
    """The same runs in the same order, the same lines, the same counts: the model says which."""
    with memory() as model:
        filled(model)
        filled(store)
        for wanted in FILTERS:
            expected = [shape(line) for line in model.runs(wanted)]
            assert [shape(line) for line in ask(store, "runs", wanted)] == expected, wanted
            assert ask(store, "count_runs", wanted) == len(expected), wanted
            assert ask(store, "count_runs", wanted, limit=2) == min(2, len(expected)), wanted
        assert len(model.runs()) == 12
        found = [len(model.runs(wanted)) for wanted in FILTERS]
        assert sum(count > 0 for count in found) >= len(FILTERS) - 6  # few of the filters find nothing


def test_random_filters_agree(database: Database) -> None:
    """Fifty of several conditions at once."""
    rng = random.Random(7)
    with memory() as model, database.store() as store:
        filled(model)
        filled(store)
        given: list[Filter] = [one for one in FILTERS if one is not None]
        for _ in range(50):
            first, second = rng.sample(given, 2)
            changes = {name: getattr(second, name) for name in second.__struct_fields__ if getattr(second, name)}
            wanted = structs.replace(first, **changes)
            assert [shape(a) for a in store.runs(wanted)] == [shape(a) for a in model.runs(wanted)], wanted


def test_pages_follow_each_other(store: Any, ask: Callable[..., Any]) -> None:
    """Each run is on one of them, and in one place, by lines as by what `list` says of them; what came meanwhile is newer."""
    filled(store)
    whole = ask(store, "runs")
    for size in (1, 5, len(whole)):
        pages, after = [], None
        while page := ask(store, "runs", limit=size, after=after):
            pages += page
            after = page[-1]
        assert pages == list(whole)
    listed = store.list(limit=3)[-1]
    assert ask(store, "runs", after=listed) == whole[3:]


def test_each_page_is_one_statement(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a transaction that only reads, and is over after three seconds."""
    with database.store() as store:
        filled(store)
        asked: list[bytes] = []
        queue = Session.queue

        def noted(session: Session, query: bytes, parameters: Any = None) -> Any:
            asked.append(query)
            return queue(session, query, parameters)

        monkeypatch.setattr(Session, "queue", noted)
        store.runs(Filter(statuses=("failed",)))
        assert [query.split()[0] for query in asked] == [b"BEGIN", b"SELECT", b"SELECT", b"COMMIT"]
        assert b"READ ONLY" in asked[0]


def test_a_question_that_takes_too_long_is_given_up(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says what would be quicker; the store is of use afterwards."""
    with database.store() as store:
        filled(store)
        monkeypatch.setattr(reading, "_PATIENCE", 1)
        lock = "LOCK TABLE durable_snapshots IN ACCESS EXCLUSIVE MODE"
        with psycopg.connect(database.url) as holder:
            holder.execute(f'SET search_path TO "{database.schema}"'.encode())
            holder.execute(lock.encode())
            with pytest.raises(InvalidArgument, match=r"takes more than 0\.001 s\. Ask for less"):
                store.runs()
        monkeypatch.undo()
        assert len(store.runs()) == 12


def test_a_journal_is_read_raw_and_followed(store: Any, ask: Callable[..., Any]) -> None:
    """Every record with its moment and its epoch, and only what came after a place; a page has an end."""
    filled(store)
    records = ask(store, "journal", "courier-1")
    assert [(record.seq, str(record.kind), str(record.key)) for record in records] == [
        (0, "step", "pack"),
        (1, "step", "book[dhl]"),
        (2, "failure", "failure"),
    ]
    assert all(record.at is not None and record.epoch == 1 for record in records)
    assert ask(store, "journal", "courier-1", after=0) == records[1:]
    assert ask(store, "journal", "courier-1", after=1, limit=1) == records[2:]
    assert ask(store, "journal", "courier-1", limit=1) == records[:1]
    assert ask(store, "journal", "courier-1", after=10**12) == ask(store, "journal", "no such run") == []
    assert ask(store, "journal", "order-1")[0].text == "1"  # the input stands at 0


def test_signals_are_listed_received_or_not(store: Any, ask: Callable[..., Any]) -> None:
    """In their order, byte by byte, also of a run that is not there yet."""
    filled(store)
    first, second = ask(store, "signals", "left-1")
    assert (first.name, first.payload, second.payload) == ("approved", '{"by":1e16}', "null")
    assert first.number < second.number
    assert first.at.tzinfo is not None
    assert [signal.payload for signal in ask(store, "signals", "nothing")] == ['"kept"']
    assert ask(store, "signals", "report-1") == []


def test_a_header_is_read_alone(store: Any, ask: Callable[..., Any]) -> None:
    filled(store)
    header = ask(store, "header", "courier-1")
    assert (header.workflow_name, header.execution.error.step, header.metadata["order"]) == ("courier", "book[dhl]", 7)
    assert ask(store, "header", "nobody") is None


def test_nonsense_is_refused(store: Any, ask: Callable[..., Any]) -> None:
    """Before anything is asked, naming what is wrong."""
    line = ("id", datetime.now(UTC))
    mistakes: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
        ("runs", ("status:failed",), {}, "must be a durable.stores.Filter"),
        ("runs", (Filter(statuses=("done",)),), {}, "a status is one of queued, running"),  # type: ignore[arg-type]
        ("runs", (Filter(ids="left-1"),), {}, "ids must be a tuple of texts"),  # type: ignore[arg-type]
        ("runs", (Filter(workflows=(7,)),), {}, "workflows has texts"),  # type: ignore[arg-type]
        ("runs", (Filter(prefix="a\0"),), {}, "prefix has texts without NUL"),
        ("runs", (Filter(errors=("\ud800",)),), {}, "lone surrogate"),
        ("runs", (Filter(since=datetime(2026, 1, 1)),), {}, "since must be an aware datetime"),
        ("runs", (Filter(before="now"),), {}, "before must be an aware datetime"),  # type: ignore[arg-type]
        ("runs", (), {"limit": 0}, "limit must be a number of runs"),
        ("runs", (), {"limit": 1001}, "from 1 to 1,000"),
        ("runs", (), {"after": line}, "after must be the last line"),
        ("count_runs", (), {"limit": 20_000}, "from 1 to 10,001"),
        ("journal", ("id",), {"after": "0"}, "after must be the seq of a record"),
        ("journal", ("id",), {"limit": True}, "limit must be a number of records"),
        ("journal", ("",), {}, "must not be empty"),
        ("signals", (7,), {}, "must be a string"),
        ("copy", ("a", ""), {}, "the id of a copy must not be empty"),
        ("copy", ("a", "b"), {"keep": "123"}, "keep must be the seqs"),
        ("copy", ("a", "b"), {"keep": [1, "2"]}, "which are ints"),
        ("delete_many", ("one",), {}, "ids must be a list of ids"),
        ("delete_many", (["x"] * 1001,), {}, "1,001 runs are too many"),
    ]
    for verb, args, kwargs, said in mistakes:
        with pytest.raises(InvalidArgument, match=said):
            ask(store, verb, *args, **kwargs)


def test_a_copy_is_the_run_to_the_byte(store: Any, ask: Callable[..., Any]) -> None:
    """Every record with its text, its moment and its epoch; the copy goes on by itself, and the run stays as it was."""
    filled(store)
    before = store.journal("report-0"), store.document("report-0")
    ask(store, "copy", "report-0", "copied")
    assert store.journal("copied") == before[0]
    assert (store.journal("report-0"), store.document("report-0")) == before
    header = store.header("copied")
    assert header.execution.completed_at is None
    assert store.status("copied") == "interrupted"  # of durable.run: left for its next call
    ask(
        store,
        "copy",
        "report-0",
        "some",
        keep=[0, 2],
        changes=Changes((Record(7, "aside", Kind.ASIDE, '{"seqs":[0]}'),), {"x": 1}),
    )
    assert [record.seq for record in store.journal("some")] == [0, 2, 7]
    assert store.header("some").metadata["x"] == 1
    ask(store, "copy", "order-5", "order-5b", keep=[0])
    (line,) = store.runs(Filter(ids=("order-5b",)))
    assert (line.status, line.queue, line.priority) == ("queued", "now", 5)
    durable.Worker(store, None, [orders], queues=["now"]).run_until_idle()
    assert durable.result(store, "order-5b") == 10


def test_a_copy_is_refused_where_something_is(store: Any, ask: Callable[..., Any]) -> None:
    filled(store)
    everything = [(line, store.journal(line.id)) for line in store.runs()]
    with pytest.raises(RunExists, match="'left-1' is there already"):
        ask(store, "copy", "report-0", "left-1")
    with pytest.raises(RunNotFound, match="'nobody'"):
        ask(store, "copy", "nobody", "new")
    assert [(line, store.journal(line.id)) for line in store.runs()] == everything


def test_what_is_exported_is_imported_to_the_byte(store: Any, ask: Callable[..., Any], database: Database) -> None:
    """Header, records, signals that were not received, and where it waits: exported again it is the same."""
    filled(store)
    for target in (memory(), database.store(table="elsewhere")):
        for line in store.runs():
            exported = list(export_run(store, line.id))
            (run,) = read_runs(exported)
            ask(target, "restore", run)
            assert list(export_run(target, line.id)) == exported
            with pytest.raises(RunExists):
                ask(target, "restore", run)
            ask(target, "restore", run, replace=True)
            assert list(export_run(target, line.id)) == exported
        # So they stand in the order in which they changed, with the time that each has taken.
        assert [(line.id, line.updated_at) for line in target.runs()] == [
            (line.id, line.updated_at) for line in store.runs()
        ]


def receives_two(step: durable.Step, stop: bool) -> list[Any]:
    first = step.wait_for("approved")
    if stop:
        raise KeyboardInterrupt
    return [first, step.wait_for("approved")]


def receives_three(step: durable.Step, stop: bool) -> list[Any]:
    heard = [step.wait_for("approved") for _ in "ab"]
    if stop:
        raise KeyboardInterrupt
    return [*heard, step.wait_for("approved")]


@pytest.mark.parametrize("source_is_memory", [True, False])
@pytest.mark.parametrize("target_is_memory", [True, False])
def test_signals_that_were_received_are_not_received_again_elsewhere(
    database: Database, source_is_memory: bool, target_is_memory: bool
) -> None:
    """Neither the second one, nor what is sent there later, has a number that the run has received."""
    source: Any = memory() if source_is_memory else database.store()
    target: Any = memory() if target_is_memory else database.store(table="elsewhere")
    for payload in (1, 2):
        durable.signal(source, "r", "approved", payload, create_later=True)
    with contextlib.suppress(KeyboardInterrupt):
        durable.run(True, receives_two, id="r", store=source)
    (run,) = read_runs(list(export_run(source, "r")))
    assert len(run.signals) == 1
    target.restore(run)
    (signal,) = target.signals("r")
    assert (signal.name, signal.payload) == ("approved", "2")
    assert durable.run(False, receives_two, id="r", store=target) == [1, 2]
    # Of one that has received, and waits, the next signal there is heard, whatever number it gets.
    for payload in (1, 2):
        durable.signal(source, "s", "approved", payload, create_later=True)
    with contextlib.suppress(KeyboardInterrupt):
        durable.run(True, receives_three, id="s", store=source)
    lines = list(export_run(source, "s"))
    (run,) = read_runs(lines)
    fresh: Any = memory() if target_is_memory else database.store(table="fresh")
    fresh.restore(run)
    assert list(export_run(fresh, "s")) == lines
    durable.signal(fresh, "s", "approved", 3)
    assert durable.run(False, receives_three, id="s", store=fresh) == [1, 2, 3]


def test_what_is_executed_is_not_deleted_with_the_others(store: Any, ask: Callable[..., Any]) -> None:
    filled(store)

    def holding(step: durable.Step, deps: Any) -> Any:
        return step("delete", lambda: list(ask(store, "delete_many", ["held", "left-1", "report-1", "nobody"])))

    gone = durable.run(None, holding, id="held", store=store)
    assert {"left-1", "report-1"} <= set(gone)
    assert "held" not in gone
    assert store.status("left-1") is None
    assert store.signals("left-1") == []
    assert store.status("held") == "completed"


def test_workers_are_listed_with_what_they_hold(store: Any, ask: Callable[..., Any]) -> None:
    seen: list[Any] = []

    def look() -> int:
        seen.extend(ask(store, "workers"))
        return len(seen)

    @durable.workflow(name="looks", queue="orders")
    def looks(step: durable.Step, deps: Any) -> int:
        return step("look", look)

    assert list(ask(store, "workers")) == []
    durable.start(looks, store=store, id="one")
    durable.Worker(store, None, [looks]).run_until_idle()
    (worker,) = seen
    assert (worker.held, worker.leaving) == (1, False)
    if isinstance(store, PostgresStore):
        assert "orders: looks@1" in worker.routes


def test_health_says_what_ended_what_waits_and_for_how_long(store: Any, ask: Callable[..., Any]) -> None:
    """The hours of a day, the last first; the oldest that is due, and the oldest that was left."""
    empty = ask(store, "health")
    assert (empty.ended, empty.counted_since, empty.due_for, empty.stuck, empty.stuck_for)[1:] == (None, None, 0, None)
    if "prefix" not in repr(empty) and not isinstance(store, MemoryStore):
        assert empty.connections is not None
    filled(store)
    for hours, name in ((30, "report-0"), (5, "report-1"), (5, "courier-1"), (2, "charge-1"), (3, "left-1")):
        (run,) = read_runs(list(export_run(store, name)))
        store.restore(
            structs.replace(run, updated_at=datetime.now(UTC) - timedelta(hours=hours, minutes=1)), replace=True
        )
    (run,) = read_runs(list(export_run(store, "order-3")))
    store.restore(structs.replace(run, due_at=datetime.now(UTC) - timedelta(minutes=10)), replace=True)
    told = ask(store, "health")
    # Of the last hour: report-2 and order-5 are completed, order-4 cancelled.
    assert [tuple(hour) for hour in told.ended] == [(0, 2, 0), (2, 0, 1), (3, 0, 0), (5, 1, 1)]
    assert told.counted_since is None
    assert 600 <= told.due_for < 900
    assert told.stuck == 1  # left-2 is a worker's
    assert 3 * 3600 <= told.stuck_for < 3.5 * 3600
    if not isinstance(store, MemoryStore):
        used, most = told.connections
        assert 0 < used <= most


def test_a_run_that_a_worker_has_lost_is_due_since_its_lease_ended(database: Database) -> None:
    with database.store() as store:
        durable.start(orders, 1, store=store, id="one")
        database.execute(
            "UPDATE durable_locks SET due_at = now() - interval '1 hour', owner_token = 'x', expires_at = now() - interval '5 s'"
        )
        assert 5 <= (store.health().due_for or 0.0) < 600
        database.execute("UPDATE durable_locks SET expires_at = now() + interval '1 hour'")
        assert store.health().due_for is None


def test_a_day_with_more_than_is_counted_says_since_when(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with database.store() as store:
        filled(store)
        monkeypatch.setattr(reading, "DAY", 5)
        told, newest = store.health(), store.runs(limit=5)
        assert told.counted_since == newest[-1].updated_at
        assert sum(hour.completed + hour.failed for hour in told.ended) <= 5


def test_a_wait_for_ever_is_said_as_such(store: Any, database: Database) -> None:
    """A run that is due at no moment: what wakes it is not the clock."""
    durable.start(orders, 1, store=store, id="asleep")
    if isinstance(store, MemoryStore):
        store._runs["asleep"].due_at = NEVER
    else:
        database.execute("UPDATE durable_locks SET due_at = 'infinity'")
    assert {line.due_at for line in store.runs(Filter(ids=("asleep",)))} == {NEVER}
