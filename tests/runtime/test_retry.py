"""`durable.retry`: which steps it sets aside, on every store, in both colours, and what it refuses without a trace."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import durable
from durable.snapshots import Snapshot
from durable.stores import MemoryStore, PostgresStore, memory
from durable.stores.requests import Begin, Finish, Release
from harness.shelves import AsyncShelf, Shelf
from harness.support import Database

Retry = Callable[..., list[str]]


@pytest.fixture(params=["memory", "postgres", "shelf"])
def store(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A store with all verbs, or with five."""
    if request.param == "postgres":
        yield request.getfixturevalue("database").store()
    elif request.param == "shelf":
        yield Shelf()
    else:
        with memory() as store:
            yield store


@pytest.fixture(params=["blocking", "awaited"])
def retry(request: pytest.FixtureRequest) -> Retry:
    """`durable.retry`, or `durable.aio.retry`."""
    if request.param == "blocking":
        return durable.retry
    return lambda *args, **options: asyncio.run(durable.aio.retry(*args, **options))


class Orders:
    """A workflow of four steps, of which `work` fails as long as it is told to, and `refund` comes then."""

    def __init__(self) -> None:
        self.fails = True
        self.bodies: Counter[str] = Counter()
        self.dies: BaseException | None = None

    def do(self, what: str) -> str:
        self.bodies[what] += 1
        if what == "work" and self.fails:
            raise OSError("no work")
        return f"{what} {self.bodies[what]}"

    def order(self, step: durable.Step, _: Any) -> list[str]:
        done = [step(name, self.do, name) for name in ("reserve", "charge")]
        try:
            done.append(step("work", self.do, "work"))
        except OSError:
            step("refund", self.do, "refund")
            raise
        if self.dies is not None:
            raise self.dies
        return [*done, step("ship", self.do, "ship")]

    def run(self, store: Any) -> Any:
        return durable.run({}, self.order, id="r", store=store)

    def failed(self, store: Any) -> None:
        with pytest.raises(OSError, match="no work"):
            self.run(store)
        self.fails = False


class Stop(BaseException):
    """Leaves a run unfinished."""


def test_what_a_refused_run_names_is_set_aside(store: Any, retry: Retry) -> None:
    """And nothing else: what was recorded before is replayed, what failed runs again."""
    orders = Orders()
    orders.failed(store)
    with pytest.raises(durable.RetryRefused, match="'refund'"):
        orders.run(store)
    assert durable.status(store, "r") == "failed"
    assert retry(store, "r", dry_run=True) == ["refund"]
    with pytest.raises(durable.RetryRefused, match="'refund'"):
        orders.run(store)
    assert retry(store, "r") == ["refund"]
    assert durable.status(store, "r") == ("interrupted" if hasattr(store, "perform") else "running")
    assert orders.run(store) == ["reserve 1", "charge 1", "work 2", "ship 1"]


def test_from_a_step_on_everything_that_started_later_is_set_aside(store: Any, retry: Retry) -> None:
    """Also of a run that has failed, was interrupted, or was never refused."""
    orders = Orders()
    orders.failed(store)
    assert retry(store, "r", from_step="charge", dry_run=True) == ["charge", "work", "refund"]
    assert retry(store, "r", from_step="charge") == ["charge", "work", "refund"]
    orders.dies = Stop()
    with pytest.raises(Stop):
        orders.run(store)
    assert retry(store, "r", from_step="work") == ["work"]
    orders.dies = None
    assert orders.run(store) == ["reserve 1", "charge 2", "work 3", "ship 1"]
    assert orders.bodies == {"reserve": 1, "charge": 2, "work": 3, "refund": 1, "ship": 1}


def test_what_a_person_has_not_decided_on_still_waits_for_that(store: Any, retry: Retry) -> None:
    """A cut from a later step leaves the steps before it undecided: never refunded and shipped."""
    bodies: list[str] = []
    fails = [True]

    def do(what: str) -> str:
        bodies.append(what)
        if what == "work" and fails[0]:
            raise OSError("no work")
        return what

    def order(step: durable.Step, _: Any) -> None:
        try:
            step("work", do, "work")
        except OSError:
            step.map("refund", do, ["a", "b"], key=str, max_concurrency=1)
            step("tell", do, "tell")
            raise
        step("ship", do, "ship")

    def run() -> None:
        durable.run({}, order, id="r", store=store)

    with pytest.raises(OSError, match="no work"):
        run()
    fails[0] = False
    asked = [("tell", ("refund[a]", "refund[b]")), ("refund[b]", ("refund[a]",))]
    for from_step, left in asked:
        assert from_step in retry(store, "r", from_step=from_step)
        with pytest.raises(durable.RetryRefused) as refused:
            run()
        assert refused.value.steps == left
    assert retry(store, "r") == ["refund[a]"]
    run()
    assert bodies[-2:] == ["work", "ship"]


def test_a_step_whose_record_was_lost_is_decided_on_like_any_other(database: Database, retry: Retry) -> None:
    """A fail-over lost it before the failure was recorded, which names it: else the run would be refused for ever."""
    orders, store = Orders(), database.store()
    orders.failed(store)
    database.execute("DELETE FROM durable_steps WHERE key = 'refund'")
    with pytest.raises(durable.RetryRefused, match="'refund'"):
        orders.run(store)
    assert retry(store, "r", dry_run=True) == ["refund"]
    assert retry(store, "r") == ["refund"]
    assert orders.run(store) == ["reserve 1", "charge 1", "work 2", "ship 1"]


def test_a_failure_on_the_way_out_again_takes_a_decision_again(store: Any, retry: Retry) -> None:
    """A retried run that fails in the same way has refunded once more."""
    orders = Orders()
    orders.failed(store)
    orders.fails = True
    assert retry(store, "r") == ["refund"]
    orders.failed(store)
    with pytest.raises(durable.RetryRefused, match="'refund'"):
        orders.run(store)
    assert orders.bodies["refund"] == 2
    assert retry(store, "r") == ["refund"]
    assert orders.run(store)[-1] == "ship 1"


def test_nothing_is_set_aside_where_nothing_has_to_be(store: Any, retry: Retry) -> None:
    """A failed run without such steps, and one that is interrupted, can be taken up as it is."""

    def workflow(step: durable.Step, _: Any) -> str:
        step("first", lambda: 1)
        if problems:
            raise problems.pop()
        return "done"

    problems: list[BaseException] = [Stop(), ValueError()]
    with pytest.raises(ValueError):
        durable.run({}, workflow, id="r", store=store)
    assert retry(store, "r") == []
    with pytest.raises(Stop):
        durable.run({}, workflow, id="r", store=store)
    assert retry(store, "r") == []
    assert durable.run({}, workflow, id="r", store=store) == "done"


def test_a_completed_or_unknown_run_is_refused(store: Any, retry: Retry) -> None:
    """By name, and so is a key that is not there."""
    orders = Orders()
    orders.fails = False
    orders.run(store)
    with pytest.raises(durable.RetryRefused, match="completed"):
        retry(store, "r")
    with pytest.raises(durable.RetryRefused, match="completed"):
        retry(store, "r", from_step="charge")
    with pytest.raises(durable.RunNotFound, match="'q'"):
        retry(store, "q")
    for options in ({"from_step": ""}, {"from_step": 7}, {"even_effects": 1}, {"dry_run": "no"}):
        with pytest.raises(durable.InvalidArgument):
            retry(store, "r", **options)


def test_a_key_without_a_record_is_refused(store: Any, retry: Retry) -> None:
    """The message says which there are."""
    Orders().failed(store)
    with pytest.raises(durable.InvalidArgument, match=r"'ship'.*'reserve', 'charge', 'work', 'refund'"):
        retry(store, "r", from_step="ship")


def test_a_run_that_is_being_executed_is_refused(store: Any, retry: Retry) -> None:
    """Also by a dry run: what it said would not be so."""
    begun, goes_on = threading.Event(), threading.Event()

    def workflow(step: durable.Step, _: Any) -> None:
        step("first", lambda: 1)
        begun.set()
        assert goes_on.wait(20)

    thread = threading.Thread(target=lambda: durable.run({}, workflow, id="r", store=store))
    thread.start()
    try:
        assert begun.wait(20)
        for options in ({}, {"from_step": "first"}, {"dry_run": True}):
            with pytest.raises(durable.ConcurrentExecution, match=r"durable\.cancel"):
                retry(store, "r", **options)
    finally:
        goes_on.set()
        thread.join()
    assert durable.status(store, "r") == "completed"


def test_a_cancelled_run_can_be_taken_back_a_step(database: Database, retry: Retry) -> None:
    """`durable.cancel`, then from a step on."""
    store, orders = database.store(), Orders()
    orders.fails, orders.dies = False, Stop()
    with pytest.raises(Stop):
        orders.run(store)
    assert durable.cancel(store, "r")
    assert retry(store, "r", from_step="work") == ["work"]
    assert store.status("r") == "interrupted"
    orders.dies = None
    assert orders.run(store) == ["reserve 1", "charge 1", "work 2", "ship 1"]


def test_a_step_that_was_interrupted_at_most_once_can_be_run_again_by_hand(store: Any, retry: Retry) -> None:
    """Whether it had its effect is not known: a person who has found out says so."""
    life: list[int] = []

    def call() -> str:
        if not life:
            raise Stop
        return "called"

    def workflow(step: durable.Step, _: Any) -> str:
        return step("call", call, at_most_once=True)

    with pytest.raises(Stop):
        durable.run({}, workflow, id="r", store=store)
    life.append(1)
    with pytest.raises(durable.StepInterrupted):
        durable.run({}, workflow, id="r", store=store)
    with pytest.raises(durable.RetryRefused, match="even_effects=True"):
        retry(store, "r", from_step="call")
    assert retry(store, "r", from_step="call", even_effects=True) == ["call"]
    assert durable.run({}, workflow, id="r", store=store) == "called"


def test_concurrent_steps_are_cut_by_their_start(store: Any, retry: Retry) -> None:
    """What was called before a step was recorded cannot have seen its value, wherever its record stands."""
    bodies: Counter[str] = Counter()
    recorded: dict[str, threading.Event] = {"fast": threading.Event()}

    def body(what: str) -> str:
        bodies[what] += 1
        if what == "slow":
            assert recorded["fast"].wait(20)
        return what

    def workflow(step: durable.Step, _: Any) -> str:
        started = threading.Event()

        def slowly() -> None:
            ask: Any = step
            started.set()
            ask("slow", body, "slow", key="slow")

        thread = threading.Thread(target=slowly)
        thread.start()
        assert started.wait(20)
        while not bodies["slow"]:
            threading.Event().wait(0.001)
        step("fast", body, "fast", key="fast")
        recorded["fast"].set()
        thread.join()
        step("last", body, "last", key="last")
        if bodies["last"] == 1:
            raise Stop
        return "done"

    with pytest.raises(Stop):
        durable.run({}, workflow, id="r", store=store)
    assert retry(store, "r", from_step="fast") == ["fast", "last"]
    assert durable.run({}, workflow, id="r", store=store) == "done"
    assert bodies == {"fast": 2, "slow": 1, "last": 2}


def test_a_signal_that_was_set_aside_is_received_again(database: Database, retry: Retry) -> None:
    """It is still there: what counts no more is that it was received."""
    store, life = database.store(), list[int]()

    def workflow(step: durable.Step, _: Any) -> str:
        answer: str = step.wait_for("answer")
        if not life:
            raise Stop
        return answer

    durable.signal(store, "r", "answer", "yes", create_later=True)
    with pytest.raises(Stop):
        durable.run({}, workflow, id="r", store=store)
    assert retry(store, "r", from_step="answer") == ["answer"]
    life.append(1)
    assert durable.run({}, workflow, id="r", store=store) == "yes"


def test_an_awaited_store_of_five_verbs_is_retried_by_awaiting() -> None:
    """`durable.retry` says so."""
    shelf, life = AsyncShelf(), list[int]()

    async def workflow(step: durable.AsyncStep, _: Any) -> str:
        try:
            await step("work", lambda: 1 / len(life))
        finally:
            await step("log", lambda: None)
        return "done"

    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await durable.run({}, workflow, id="r", store=shelf)
        with pytest.raises(durable.RetryRefused):
            await durable.run({}, workflow, id="r", store=shelf)
        with pytest.raises(durable.errors.AsyncMismatch):
            durable.retry(shelf, "r")
        assert await durable.aio.retry(shelf, "r") == ["log"]
        life.append(1)
        assert await durable.run({}, workflow, id="r", store=shelf) == "done"

    asyncio.run(main())


def test_a_refusal_leaves_every_row_as_it_was(database: Database) -> None:
    """Of `run`, of `retry`, and a dry run too; and what was set aside stays in the journal."""
    store, orders = database.store(), Orders()
    orders.failed(store)
    before = database.everything()
    with pytest.raises(durable.RetryRefused):
        orders.run(store)
    with pytest.raises(durable.RetryRefused):
        orders.run(store)
    with pytest.raises(durable.InvalidArgument):
        durable.retry(store, "r", from_step="ship")
    durable.retry(store, "r", dry_run=True)
    assert database.everything() == before
    header = database.header("r")
    assert header is not None
    assert (header["execution"]["status"], header["execution"]["needsDecision"]) == ("failed", True)

    journal = database.journal("r")
    durable.retry(store, "r")
    assert database.journal("r")[:-1] == journal
    seq = [key for _, key, _ in journal].index("refund")
    assert database.journal("r")[-1] == ("aside", "aside", {"seqs": [seq], "keys": ["refund"]})
    header = database.header("r")
    assert header is not None
    assert header["execution"]["status"] == "running"
    assert not {"needsDecision", "error"} & set(header["execution"])


def test_the_document_and_the_view_show_what_counts(database: Database) -> None:
    """A step that was set aside is not among them."""
    store, orders = database.store(), Orders()
    orders.failed(store)
    durable.retry(store, "r", from_step="charge")
    ((document,),) = database.execute("SELECT snapshot::text FROM durable_runs WHERE id = 'r'")
    snapshot = store.load("r")
    assert snapshot is not None
    assert list(json.loads(document)["steps"]) == list(snapshot.steps) == ["reserve"]


def test_an_aside_is_kept_by_a_copy(database: Database) -> None:
    """A document of the run says the same as its journal: what was set aside, and what needs a decision."""
    store, orders = database.store(), Orders()
    orders.failed(store)
    refused = store.load("r")
    assert refused is not None
    durable.retry(store, "r", from_step="charge")
    decided = store.load("r")
    assert decided is not None
    for copy in (memory(), database.store(table="copies")):
        with copy:
            copy.save("r", Snapshot.from_json(refused.to_json()))
            with pytest.raises(durable.RetryRefused, match="'refund'"):
                orders.run(copy)
            copy.save("r", Snapshot.from_json(decided.to_json()))
            orders.bodies.clear()
            orders.run(copy)
            assert orders.bodies == {"charge": 1, "work": 1, "ship": 1}


def test_the_low_level_way_keeps_the_contract() -> None:
    """A collector's state is refused, retried, and gone on with like any other."""
    orders = Orders()
    collector = durable.ResumeStateCollector()
    workflow = durable.Workflow("order", None, on_event=collector.handle_event)
    with pytest.raises(OSError, match="no work"):
        workflow.run(orders.order)
    orders.fails = False
    with pytest.raises(durable.RetryRefused, match="'refund'"):
        workflow.run(orders.order, resume_state=collector.resume_state())
    with memory() as store:
        store.save("order", collector.resume_state())
        durable.retry(store, "order")
        assert workflow.run(orders.order, resume_state=store.load("order"))[-1] == "ship 1"


def test_two_retries_at_once_are_one(database: Database) -> None:
    """Under the lease the second finds what the first has left; neither loses a record."""
    store, orders = database.store(), Orders()
    orders.failed(store)
    answers: list[Any] = []

    def call() -> None:
        try:
            answers.append(durable.retry(store, "r", from_step="charge"))
        except (durable.ConcurrentExecution, durable.InvalidArgument) as problem:
            answers.append(type(problem))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ["charge", "work", "refund"] in answers
    assert all(
        answer in (durable.ConcurrentExecution, durable.InvalidArgument)
        for answer in answers
        if isinstance(answer, type)
    )
    assert orders.run(store)[1:] == ["charge 2", "work 2", "ship 1"]


class Dying(MemoryStore):
    """A store whose process dies as a retry is about to be written."""

    def perform(self, request: Any, on_late_reply: Any = None) -> Any:
        match request:
            case Finish(lease, _, record) if record.kind == "aside":
                self._runs[lease.run_id].expires = 0.0
                raise Stop
            case Release(lease) if not self._runs[lease.run_id].expires:
                return None
            case _:
                return super().perform(request, on_late_reply)


def test_a_retry_that_dies_half_way_has_decided_nothing() -> None:
    """Record and status come in one commit."""
    with Dying() as store:
        orders = Orders()
        orders.failed(store)
        with pytest.raises(Stop):
            durable.retry(store, "r")
        assert store.status("r") == "failed"
        with pytest.raises(durable.RetryRefused, match="'refund'"):
            orders.run(store)


def test_a_cancelled_retry_goes_on_by_itself(database: Database) -> None:
    """Its lease is not left behind."""
    store, orders = database.store(), Orders()
    orders.failed(store)

    async def main() -> None:
        task = asyncio.create_task(durable.aio.retry(store, "r"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while store.status("r") != "interrupted":  # noqa: ASYNC110 -- the other task cannot be asked
            await asyncio.sleep(0.01)

    asyncio.run(main())
    assert orders.run(store)[-1] == "ship 1"
    assert isinstance(store, PostgresStore)


class Struck(MemoryStore):
    """A store in which Ctrl-C comes when a lease has been granted, and before its caller hears of it."""

    goes_on: Callable[[], bool]

    def perform(self, request: Any, on_late_reply: Any = None) -> Any:
        reply = super().perform(request, on_late_reply)
        if isinstance(request, Begin) and request.claim.amends:
            self.goes_on = request.alive
            raise KeyboardInterrupt
        return reply


def test_a_lease_that_its_caller_never_heard_of_is_not_renewed(retry: Retry) -> None:
    """It ends by itself, however long the process lives."""
    with Struck() as store:
        Orders().failed(store)
        with pytest.raises(KeyboardInterrupt):
            retry(store, "r")
        assert store.goes_on() is False
        assert store.status("r") == "failed"
