"""`durable.fork`: which of a run's records another run begins with, on both stores, in both colours, and what it refuses."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import durable
from durable._runtime import forks
from durable.errors import InvalidArgument, RetryRefused, RunExists, RunNotFound, UnstorableValue
from durable.stores import memory
from durable.stores._postgres.copying import Copying
from harness.proxy import Link, Moment, Proxy
from harness.shelves import Shelf
from harness.support import Database

Fork = Callable[..., durable.RunHandle[Any]]


@pytest.fixture(params=["memory", "postgres"])
def store(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "postgres":
        yield request.getfixturevalue("database").store()
        return
    with memory() as store:
        yield store


@pytest.fixture(params=["blocking", "awaited"])
def fork(request: pytest.FixtureRequest) -> Fork:
    """`durable.fork`, or `durable.aio.fork`."""
    if request.param == "blocking":
        return durable.fork
    return lambda *args, **options: asyncio.run(durable.aio.fork(*args, **options))


class Shop:
    """Four steps in a row, of which `charge` fails as long as it is told to; each says how often it has run."""

    def __init__(self) -> None:
        self.fails = False
        self.bodies: Counter[str] = Counter()
        self.inputs: list[Any] = []

    def do(self, what: str) -> dict[str, Any]:
        self.bodies[what] += 1
        if what == "charge" and self.fails:
            raise OSError("no line")
        return {"z": what, "a": self.bodies[what], "f": 1e16}  # through jsonb neither order nor number would survive

    def order(self, step: durable.Step, _: Any, given: Any) -> list[Any]:
        self.inputs.append(given)
        return [step(name, self.do, name)["a"] for name in ("reserve", "charge", "ship", "mail")]

    def run(self, store: Any, id: str = "o", **options: Any) -> Any:
        return durable.run(None, self.order, id=id, store=store, **options)


def lines(store: Any, id: str) -> list[Any]:
    """A journal with every byte of it, and every moment."""
    return [tuple(record) for record in store.journal(id)]


def kinds(store: Any, id: str) -> list[tuple[str, str]]:
    return [(str(record.kind), str(record.key)) for record in store.journal(id)]


def whole(store: Any) -> Any:
    """All that is stored."""
    return [(line, store.document(line.id), lines(store, line.id)) for line in store.runs()]


def test_the_fork_of_a_completed_run_runs_what_lies_after_the_cut_and_nothing_else(store: Any, fork: Fork) -> None:
    """The step itself, and what started after its record; the run itself stays as it is, to the byte."""
    shop = Shop()
    assert shop.run(store, input={"for": 7}) == [1, 1, 1, 1]
    before = lines(store, "o"), store.document("o")
    made = fork(store, "o", from_step="ship", new_id="o2")
    assert (made.id, made.status()) == ("o2", "interrupted")
    assert durable.status(store, "o") == "completed"
    assert shop.bodies == Counter(reserve=1, charge=1, ship=1, mail=1)
    assert shop.run(store, "o2") == [1, 1, 2, 2]
    assert shop.bodies == Counter(reserve=1, charge=1, ship=2, mail=2)
    assert shop.inputs == [{"for": 7}, {"for": 7}]
    assert made.result() == [1, 1, 2, 2]
    assert (lines(store, "o"), store.document("o")) == before


def test_what_is_copied_is_copied_to_the_byte(store: Any, fork: Fork) -> None:
    """Text, moment and epoch of each record; the result is not copied, and what is cut is copied and set aside."""
    Shop().run(store, input={"z": 1, "a": 1e16}, metadata={"tenant": "t7"})
    fork(store, "o", from_step="ship", new_id="o2")
    original, copied = lines(store, "o"), lines(store, "o2")
    assert copied[:-1] == original[:-1]
    assert kinds(store, "o2")[-1] == ("aside", "aside")
    assert kinds(store, "o")[-1] == ("result", "result")
    assert '{"z":1,"a":1e16}' in [text for _, _, _, text, *_ in copied]
    header = store.header("o2")
    assert (header.workflow_name, header.metadata["tenant"]) == ("order", "t7")
    assert (header.execution.completed_at, header.execution.error) == (None, None)


def test_without_a_step_a_failed_run_goes_on_where_a_retry_would(store: Any, fork: Fork) -> None:
    """What has failed runs again; the run that has failed is still failed."""
    shop = Shop()
    shop.fails = True
    with pytest.raises(OSError, match="no line"):
        shop.run(store, input=1)
    shop.fails = False
    fork(store, "o", new_id="o2")
    assert shop.run(store, "o2") == [1, 2, 1, 1]
    assert shop.bodies == Counter(reserve=1, charge=2, ship=1, mail=1)
    assert durable.status(store, "o") == "failed"


def test_another_input_takes_the_place_of_the_old_one(store: Any, fork: Fork) -> None:
    """It is what the workflow is called with, and what a call with the old one is refused for."""
    shop = Shop()
    shop.run(store, input={"amount": 1})
    fork(store, "o", from_step="charge", input={"amount": 2}, new_id="o2")
    with pytest.raises(durable.RunMismatch):
        shop.run(store, "o2", input={"amount": 1})
    assert shop.run(store, "o2", input={"amount": 2}) == [1, 2, 2, 2]
    assert shop.inputs == [{"amount": 1}, {"amount": 2}]
    assert store.journal("o")[0].text == '{"amount":1}'


def test_a_fork_without_a_name_gets_one_that_says_where_it_comes_from(store: Any, fork: Fork) -> None:
    """Two of one run are two runs."""
    Shop().run(store, input=1)
    first, second = (fork(store, "o", from_step="mail").id for _ in range(2))
    assert first != second
    assert first.startswith("o-")
    assert second.startswith("o-")


def test_the_fork_of_a_workers_run_is_queued_where_the_run_was(store: Any, fork: Fork) -> None:
    """And executed by the next worker of that queue."""
    bodies: Counter[str] = Counter()

    def count(what: str) -> int:
        bodies[what] += 1
        return bodies[what]

    @durable.workflow(name="orders", queue="orders")
    def orders(step: durable.Step, deps: Any, number: int) -> list[int]:
        return [number, step("one", count, "one"), step("two", count, "two")]

    durable.start(orders, 5, store=store, id="s", priority=2, dedup="once")
    worker = durable.Worker(store, None, [orders])
    worker.run_until_idle()
    fork(store, "s", from_step="two", new_id="s2")
    (line,) = store.runs(durable.stores.Filter(ids=("s2",)))
    assert (line.status, line.queue, line.priority) == ("queued", "orders", 2)
    durable.Worker(store, None, [orders]).run_until_idle()
    assert durable.result(store, "s2") == [5, 1, 2]
    assert durable.result(store, "s") == [5, 1, 1]
    assert bodies == Counter(one=1, two=2)
    durable.start(orders, 6, store=store, id="s3", dedup="once")  # the fork has not taken its word
    assert durable.status(store, "s3") == "queued"


def test_the_fork_of_a_fork_and_of_a_retried_run(store: Any, fork: Fork) -> None:
    """What was set aside before does not come back to life."""
    shop = Shop()
    shop.run(store, input=1)
    fork(store, "o", from_step="charge", new_id="o2")
    assert shop.run(store, "o2") == [1, 2, 2, 2]
    fork(store, "o2", from_step="mail", new_id="o3")
    assert shop.run(store, "o3") == [1, 2, 2, 3]


def test_what_the_run_is_doing_meanwhile_is_not_the_forks(store: Any, fork: Fork) -> None:
    """A run can be forked while it is executed: the fork has what was recorded by then, and goes its own way."""
    bodies: Counter[str] = Counter()

    def first() -> int:
        bodies["first"] += 1
        return bodies["first"]

    def second() -> int:
        bodies["second"] += 1
        if bodies["second"] == 1:
            fork(store, "live", new_id="live2")
        return bodies["second"]

    def workflow(step: durable.Step, _: Any) -> list[int]:
        return [step("first", first), step("second", second)]

    assert durable.run(None, workflow, id="live", store=store) == [1, 1]
    assert kinds(store, "live2") == [("step", "first")]
    assert durable.run(None, workflow, id="live2", store=store) == [1, 2]


def test_a_received_signal_is_kept_and_one_that_came_later_is_not_the_forks(store: Any, fork: Fork) -> None:
    """What was received stands in the journal; what waits for the run waits for that run."""

    def workflow(step: durable.Step, stops: bool) -> list[Any]:
        got = [step.wait_for("approved")]
        if stops:
            raise KeyboardInterrupt
        return [*got, step.wait_for("approved", timeout=10, key="again")]

    for payload in ("one", "two"):
        durable.signal(store, "w", "approved", payload, create_later=True)
    with pytest.raises(KeyboardInterrupt):
        durable.run(True, workflow, id="w", store=store)
    fork(store, "w", new_id="w2")
    durable.signal(store, "w2", "approved", "mine")
    assert durable.run(False, workflow, id="w2", store=store) == ["one", "mine"]
    assert durable.run(False, workflow, id="w", store=store) == ["one", "two"]


def test_a_transaction_happens_once_more_only_where_it_may(database: Database, fork: Fork) -> None:
    """`even_effects=True` says so; refused, nothing is there."""
    store = database.store()
    durable.run(None, lambda step, _: None, id="first", store=store)  # which makes the schema
    database.execute("CREATE TABLE booked (what text)")

    def book(connection: Any) -> None:
        connection.execute(f"INSERT INTO {database.schema}.booked VALUES ('x')")

    def workflow(step: durable.Step, _: Any) -> None:
        step("before", lambda: 1)
        step.transaction("book", book)

    durable.run(None, workflow, id="t", store=store)
    with pytest.raises(RetryRefused, match=r"transactions.*'book'"):
        fork(store, "t", from_step="before", new_id="t2")
    assert durable.status(store, "t2") is None
    fork(store, "t", from_step="before", new_id="t2", even_effects=True)
    durable.run(None, workflow, id="t2", store=store)
    assert database.execute("SELECT count(*) FROM booked") == [(2,)]


REFUSALS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"id": "nothing", "new_id": "x"}, RunNotFound, "'nothing'"),
    ({"from_step": "mail", "new_id": "there"}, RunExists, "'there' is there already"),
    ({"from_step": "mail", "new_id": "o"}, RunExists, "'o' is there already"),
    ({"from_step": "nothing"}, InvalidArgument, "no record of a step 'nothing'.*'reserve', 'charge', 'ship', 'mail'"),
    ({}, InvalidArgument, "is completed: from_step= says from which step"),
    ({"id": "there", "from_step": "one", "input": 1}, InvalidArgument, "started without an input"),
    ({"from_step": "mail", "input": object()}, UnstorableValue, "the input"),
    ({"id": ""}, InvalidArgument, "must not be empty"),
    ({"id": 7}, InvalidArgument, "a run's id must be a string"),
    ({"from_step": 7}, InvalidArgument, "from_step must be a string"),
    ({"from_step": "mail", "new_id": ""}, InvalidArgument, "new_id must not be empty"),
    ({"from_step": "mail", "new_id": "a\0"}, InvalidArgument, "new_id"),
    ({"from_step": "mail", "new_id": "\ud800"}, InvalidArgument, "new_id"),
    ({"from_step": "mail", "even_effects": "yes"}, InvalidArgument, "even_effects must be"),
]


@pytest.mark.parametrize(("given", "kind", "said"), REFUSALS, ids=[said for _, _, said in REFUSALS])
def test_what_cannot_be_is_refused_and_leaves_nothing(
    store: Any, fork: Fork, given: dict[str, Any], kind: type[Exception], said: str
) -> None:
    """By name, with the way out; the store is to the byte what it was."""
    Shop().run(store, input=1)
    durable.run(None, lambda step, _: step("one", lambda: 1), id="there", store=store)
    before = whole(store)
    with pytest.raises(kind, match=said):
        fork(store, **{"id": "o", **given})
    assert whole(store) == before


def test_a_store_of_five_verbs_is_refused(fork: Fork) -> None:
    with pytest.raises(InvalidArgument, match=r"durable\.fork"):
        fork(Shelf(), "o")


class Dies(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("place", ["_write_records", "_statement"])
def test_a_process_that_dies_between_leaves_nothing(
    database: Database, fork: Fork, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """The copy is one transaction: what was written of it is gone with it, and the same fork is made later."""
    store, shop = database.store(), Shop()
    shop.run(store, input=1)
    before = database.everything()

    statement = Copying._statement

    def dies(copying: Any, name: Any, *_: Any) -> Any:
        if place == "_write_records" or name == "copy_journal":  # at its end, or with a header and no journal
            raise Dies
        return statement(copying, name)

    monkeypatch.setattr(Copying, place, dies)
    with pytest.raises(Dies):
        fork(store, "o", from_step="ship", new_id="o2")
    monkeypatch.undo()
    assert database.everything() == before
    fork(store, "o", from_step="ship", new_id="o2")
    assert shop.run(store, "o2") == [1, 1, 2, 2]


@pytest.mark.parametrize("moment", [Moment.SENT, Moment.FORWARDED, Moment.ANSWERED])
@pytest.mark.parametrize("marker", ["copy_header", "copy_journal", "COMMIT"])
def test_a_connection_that_is_cut_costs_nothing_and_makes_one_fork(
    database: Database, fork: Fork, moment: Moment, marker: str
) -> None:
    """Asked again, the copy is not taken for another's: it knows its own nonce."""
    Shop().run(database.store(), input=1)
    markers = {"copy_header": "jsonb_strip_nulls", "copy_journal": "SELECT %(to)s", "COMMIT": "COMMIT"}
    with Proxy(database.url) as proxy, database.store(proxy.url) as store:
        store.runs()  # connected
        trap = proxy.trap(moment, markers[marker].replace("%(to)s", "$1"), Link.cut)
        made = fork(store, "o", from_step="ship", new_id="o2")
        assert trap.sprung.is_set()
        assert made.id == "o2"
    assert database.execute("SELECT count(*) FROM durable_snapshots WHERE id = 'o2'") == [(1,)]
    looked = database.store()
    assert lines(looked, "o2")[:-1] == lines(looked, "o")[:-1]
    assert kinds(looked, "o2")[-1][0] == "aside"


def test_two_that_make_the_same_fork_make_one(database: Database) -> None:
    """The second waits for the first, and is told that it is there."""
    Shop().run(database.store(), input=1)

    async def both() -> Any:
        store = database.store()
        made = (durable.aio.fork(store, "o", from_step=key, new_id="o2") for key in ("ship", "mail"))
        return await asyncio.gather(*made, return_exceptions=True)

    outcomes = asyncio.run(both())
    assert sorted(type(one).__name__ for one in outcomes) == ["RunExists", "RunHandle"]


def test_cancelled_it_goes_on_by_itself(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The awaiting task is cancelled while the copy is on its way."""
    shop = Shop()
    shop.run(store, input=1)

    async def cancelled() -> None:
        reading = asyncio.Event()
        journal = type(store.aio).journal

        async def slow(aio: Any, *args: Any, **options: Any) -> Any:
            reading.set()
            await asyncio.sleep(0)
            return await journal(aio, *args, **options)

        monkeypatch.setattr(type(store.aio), "journal", slow)
        task = asyncio.create_task(durable.aio.fork(store, "o", from_step="ship", new_id="o2"))
        await reading.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        monkeypatch.undo()
        await asyncio.gather(*forks._forking)

    asyncio.run(asyncio.wait_for(cancelled(), 60))
    assert shop.run(store, "o2") == [1, 1, 2, 2]


def test_a_journal_longer_than_a_page_is_copied_whole(store: Any, fork: Fork, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read page by page."""
    monkeypatch.setattr("durable._runtime.forks.LINES", 3)
    journal = type(store).journal

    def paged(store: Any, id: str, *, after: int | None = None, **_: Any) -> Any:
        return journal(store, id, after=after, limit=3)

    monkeypatch.setattr(type(store), "journal", paged)

    def workflow(step: durable.Step, _: Any) -> list[int]:
        return step.map("item", lambda n: n, list(range(10)), max_concurrency=1)

    durable.run(None, workflow, id="long", store=store)
    fork(store, "long", from_step="item[9]", new_id="long2")
    monkeypatch.undo()
    assert kinds(store, "long2")[:-1] == kinds(store, "long")[:-1]
    assert json.loads(store.journal("long2")[-1].text)["keys"] == ["item[9]"]


def test_handles_fork_as_the_function_does(store: Any) -> None:
    shop = Shop()
    shop.run(store, input=1)
    made = durable.handle(store, "o").fork(from_step="mail", new_id="o2")
    also = asyncio.run(durable.handle(store, "o").aio.fork(from_step="mail", new_id="o3"))
    assert (made.id, also.id) == ("o2", "o3")
    assert [shop.run(store, run_id) for run_id in ("o2", "o3")] == [[1, 1, 1, 2], [1, 1, 1, 3]]
