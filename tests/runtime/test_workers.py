"""Workers: what is started is executed, on either store, with none of its runs lost or left behind."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

import pytest
import tenacity
from psycopg.conninfo import make_conninfo

import durable
from durable._engine.decisions import Claim, Granted
from durable._engine.leases import Lease
from durable._engine.starts import Route
from durable.errors import DuplicateRun, InvalidArgument, RunExists, RunMismatch, RunPoisoned
from durable.records import Kind, Record, Status
from durable.stores.protocol import QueueingStore
from durable.stores.requests import Begin, Finish, Poll, Release
from harness.ownership_children import wait_until
from harness.support import Database

WITHIN: Final = 30.0  # seconds, for what a worker does at once


@durable.workflow(name="checkout")
def checkout(step: durable.Step, deps: Any, order: dict[str, int]) -> int:
    total = step("total", lambda: order["n"] + 1)
    return step("twice", lambda: 2 * total)


@durable.workflow(name="remind")
async def remind(step: durable.AsyncStep, deps: Any) -> str:
    return await step("remind", deps.text)


@durable.workflow(name="bare", queue="mail")
def bare(step: durable.Step, deps: Any) -> str:
    return "bare"


class Deps:
    """What `remind` needs."""

    def text(self) -> str:
        return "do not forget"


def test_a_started_run_is_executed_and_its_handle_has_the_result(store: QueueingStore) -> None:
    handle = durable.start(checkout, {"n": 3}, store=store, id="order-3")
    assert (handle.id, handle.status()) == ("order-3", "queued")
    with durable.Worker(store, None, [checkout]):
        assert handle.result(WITHIN) == 8
    assert handle.status() == "completed"
    assert durable.handle(store, "order-3", checkout).result() == 8


def test_blocking_and_async_workflows_have_one_worker(store: QueueingStore) -> None:
    with durable.Worker(store, Deps(), [checkout, remind]):
        blocking, awaited = durable.start(checkout, {"n": 1}, store=store), durable.start(remind, store=store)
        assert (blocking.result(WITHIN), awaited.result(WITHIN)) == (4, "do not forget")


def test_a_worker_lives_in_an_event_loop_whose_tasks_its_async_runs_are(store: QueueingStore) -> None:
    seen: list[object] = []

    @durable.workflow(name="where")
    async def where(step: durable.AsyncStep, deps: Any) -> None:
        seen.append(asyncio.get_running_loop())

    async def main() -> None:
        async with durable.Worker(store, None, [where]):
            handle = await durable.aio.start(where, store=store)
            await handle.aio.result(WITHIN)
        assert seen == [asyncio.get_running_loop()]

    asyncio.run(main())


def test_run_until_idle_returns_when_nothing_is_due(store: QueueingStore) -> None:
    for number in range(5):
        durable.start(checkout, {"n": number}, store=store, id=f"r{number}")
    later = durable.start(checkout, {"n": 9}, store=store, delay=3600)
    durable.Worker(store, None, [checkout], concurrency=2).run_until_idle()
    assert [durable.handle(store, f"r{number}").status() for number in range(5)] == ["completed"] * 5
    assert later.status() == "queued"


def test_a_document_of_a_queued_run_is_not_saved(store: QueueingStore) -> None:
    """It does not say where and when the run is due: saved, the run would be no worker's, and wait for ever."""
    handle = durable.start(checkout, {"n": 1}, store=store, id="r")
    document = store.load("r")
    assert document is not None
    for name in ("r", "copy"):
        with pytest.raises(InvalidArgument, match=r"queued.*durable\.start"):
            store.save(name, document, force=True)
    with pytest.raises(InvalidArgument, match="queued"):
        store.save("copy", document.document())
    assert (handle.status(), durable.handle(store, "copy").status()) == ("queued", None)
    durable.Worker(store, None, [checkout]).run_until_idle()
    assert handle.result() == 4
    ended = store.load("r")
    assert ended is not None
    store.save("copy", ended)
    assert durable.handle(store, "copy").result() == 4


def test_the_most_urgent_comes_first(store: QueueingStore) -> None:
    order: list[int] = []

    @durable.workflow(name="note")
    def note(step: durable.Step, deps: Any, n: int) -> None:
        order.append(n)

    for priority in (7, 0, 9, 3):
        durable.start(note, priority, store=store, priority=priority)
    durable.Worker(store, None, [note], concurrency=1).run_until_idle()
    assert order == [0, 3, 7, 9]


# -- FAULTS 135: the table of answers to the same id -----------------------------------------------------------------------


def test_the_same_start_again_is_the_same_run(store: QueueingStore) -> None:
    first = durable.start(checkout, {"n": 3}, store=store, id="order")
    again = durable.start(checkout, {"n": 3}, store=store, id="order")
    assert first.id == again.id
    assert store.stats().queued == 1
    durable.Worker(store, None, [checkout]).run_until_idle()
    assert durable.start(checkout, {"n": 3}, store=store, id="order").result(WITHIN) == 8


@pytest.mark.parametrize("ended", [False, True])
def test_a_start_that_does_not_fit_is_refused(store: QueueingStore, ended: bool) -> None:
    durable.start(checkout, {"n": 3}, store=store, id="order")
    if ended:
        durable.Worker(store, None, [checkout]).run_until_idle()
    with pytest.raises(RunMismatch, match="input"):
        durable.start(checkout, {"n": 4}, store=store, id="order")
    with pytest.raises(RunMismatch, match="workflow"):
        durable.start(bare, store=store, id="order")
    with pytest.raises(RunExists, match="completed" if ended else "queued"):
        durable.start(checkout, {"n": 3}, store=store, id="order", on_conflict="raise")


def test_what_was_started_is_not_executed_by_run(store: QueueingStore) -> None:
    durable.start(checkout, {"n": 3}, store=store, id="order")
    with pytest.raises(durable.ConcurrentExecution, match="workers of the queue 'default'"):
        durable.run(None, checkout, id="order", store=store)
    with durable.Worker(store, None, [checkout]):
        assert durable.run(None, checkout, id="order", store=store, on_conflict="wait", wait_timeout=WITHIN) == 8


def test_what_run_began_is_not_started_again(store: QueueingStore) -> None:
    assert durable.run(None, checkout, id="order", store=store, input={"n": 3}) == 8
    assert durable.start(checkout, {"n": 3}, store=store, id="order").result(WITHIN) == 8


# -- FAULTS 136: dedup -----------------------------------------------------------------------------------------------------


def test_of_one_dedup_one_run_has_not_ended(store: QueueingStore) -> None:
    barrier, ids = threading.Barrier(20), list[str]()

    def starts() -> None:
        barrier.wait(WITHIN)
        ids.append(durable.start(bare, store=store, dedup="only").id)

    threads = [threading.Thread(target=starts) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WITHIN)
    assert len(ids) == 20
    assert len(set(ids)) == 1
    elsewhere = durable.start(bare, store=store, queue="other", dedup="only")
    assert elsewhere.id not in ids
    durable.Worker(store, None, [bare]).run_until_idle()
    assert durable.start(bare, store=store, dedup="only").id not in ids


def test_start_many_starts_each_once(store: QueueingStore) -> None:
    orders = [durable.Start({"n": number}, id=f"r{number % 1500}", dedup=None) for number in range(1500)]
    handles = durable.start_many(checkout, orders, store=store)
    assert [handle.id for handle in handles] == [f"r{number}" for number in range(1500)]
    assert durable.start_many(checkout, orders[:3], store=store)[2].id == "r2"
    assert store.stats().queued == 1500


# -- FAULTS 140: who has what ------------------------------------------------------------------------------------------------


def test_a_worker_takes_only_what_it_has(store: QueueingStore) -> None:
    """Law W6: another queue, name or version is not seen, and holds nothing up."""

    @durable.workflow(name="checkout", version=2)
    def newer(step: durable.Step, deps: Any, order: dict[str, int]) -> int:
        return -1

    strange = [
        durable.start(newer, {"n": 1}, store=store, priority=0),
        durable.start("unheard-of", store=store, priority=0),
        durable.start(checkout, {"n": 1}, store=store, queue="elsewhere", priority=0),
    ]
    mine = durable.start(checkout, {"n": 1}, store=store, priority=9)
    durable.Worker(store, None, [checkout], concurrency=1).run_until_idle()
    assert mine.status() == "completed"
    assert [handle.status() for handle in strange] == ["queued"] * 3
    durable.Worker(store, None, [newer, checkout], queues=["default", "elsewhere"]).run_until_idle()
    assert [handle.status() for handle in strange] == ["completed", "queued", "completed"]


# -- ends ---------------------------------------------------------------------------------------------------------------------


class Boom(Exception):
    """Of the workflow's own."""


def test_a_failed_run_is_told(store: QueueingStore) -> None:
    @durable.workflow(name="fails")
    def fails(step: durable.Step, deps: Any) -> None:
        raise Boom("boom")

    told: list[tuple[str, str]] = []
    worker = durable.Worker(store, None, [fails], on_failed=lambda run, error: told.append((run.id, repr(error))))
    handle = durable.start(fails, store=store, id="f")
    worker.run_until_idle()
    assert told == [("f", "Boom('boom')")]
    with pytest.raises(Boom):
        handle.result(WITHIN)


def test_a_run_is_tried_again_by_its_own_policy(store: QueueingStore) -> None:
    calls: list[int] = []

    @durable.workflow(
        name="flaky", retry=tenacity.Retrying(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_none())
    )
    def flaky(step: durable.Step, deps: Any) -> int:
        step("once", lambda: calls.append(0))
        step("thrice", lambda: calls.append(1))
        if calls.count(2) < 2:
            calls.append(2)
            raise Boom(str(len(calls)))
        return len(calls)

    told: list[str] = []
    handle = durable.start(flaky, store=store)
    durable.Worker(store, None, [flaky], on_failed=lambda run, _: told.append(run.id)).run_until_idle()
    assert handle.result(WITHIN) == 4
    assert calls == [0, 1, 2, 2]
    assert not told


def test_a_policy_that_gives_up_leaves_the_run_failed(store: QueueingStore) -> None:
    @durable.workflow(
        name="hopeless", retry=tenacity.Retrying(stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_none())
    )
    def hopeless(step: durable.Step, deps: Any) -> None:
        raise Boom("no")

    told: list[str] = []
    handle = durable.start(hopeless, store=store)
    durable.Worker(store, None, [hopeless], on_failed=lambda run, _: told.append(run.id)).run_until_idle()
    assert handle.status() == "failed"
    assert told == [handle.id]


def fails_while_broken() -> tuple[list[bool], Callable[[durable.Step, Any], str]]:
    """A workflow that fails until the list beside it is cleared."""
    broken = [True]

    @durable.workflow(name="fails while broken")
    def fails(step: durable.Step, deps: Any) -> str:
        if broken:
            raise Boom("broken")
        return "well"

    return broken, fails


def test_retry_makes_a_failed_run_due_again(store: QueueingStore) -> None:
    broken, mended = fails_while_broken()
    handle = durable.start(mended, store=store)
    durable.Worker(store, None, [mended]).run_until_idle()
    assert handle.status() == "failed"
    broken.clear()
    handle.retry()
    durable.Worker(store, None, [mended]).run_until_idle()
    assert handle.result(WITHIN) == "well"


def test_a_queued_run_is_cancelled_before_it_begins(store: QueueingStore) -> None:
    handle = durable.start(checkout, {"n": 1}, store=store)
    assert handle.cancel()
    assert not handle.cancel()
    durable.Worker(store, None, [checkout]).run_until_idle()
    assert handle.status() == "cancelled"
    with pytest.raises(durable.RunCancelled):
        handle.result(WITHIN)


def test_a_deadline_is_stored(store: QueueingStore) -> None:
    handle = durable.start(checkout, {"n": 1}, store=store, deadline=datetime.now(UTC) - timedelta(seconds=1))
    durable.Worker(store, None, [checkout], on_failed=print).run_until_idle()
    assert handle.status() != "completed"


# -- drain ----------------------------------------------------------------------------------------------------------------


def test_a_drained_run_goes_on_with_another_worker_at_its_next_step(store: QueueingStore) -> None:
    """FAULTS 143: in a body. What the body returned is recorded, and the next step is another worker's."""
    inside, goes_on, bodies = threading.Event(), threading.Event(), list[str]()

    @durable.workflow(name="two")
    def two(step: durable.Step, deps: Any) -> str:
        def first() -> str:
            bodies.append("first")
            inside.set()
            assert goes_on.wait(WITHIN)
            return "1"

        def second() -> str:
            bodies.append("second")
            return "2"

        return step("first", first) + step("second", second)

    handle = durable.start(two, store=store)
    with durable.Worker(store, None, [two]) as worker:
        assert inside.wait(WITHIN)
        worker.drain()
        goes_on.set()
    assert bodies == ["first"]
    durable.Worker(store, None, [two]).run_until_idle()
    assert handle.result(WITHIN) == "12"
    assert bodies == ["first", "second"]


def test_what_is_left_when_the_grace_is_over_is_given_back(store: QueueingStore) -> None:
    inside, goes_on, bodies = threading.Event(), threading.Event(), list[int]()

    @durable.workflow(name="long")
    def long(step: durable.Step, deps: Any) -> int:
        def body() -> int:
            bodies.append(1)
            inside.set()
            if len(bodies) == 1:
                assert goes_on.wait(WITHIN)
            return len(bodies)

        return step("body", body)

    handle = durable.start(long, store=store)
    with durable.Worker(store, None, [long], grace=0):
        assert inside.wait(WITHIN)
    durable.Worker(store, None, [long]).run_until_idle()
    goes_on.set()
    assert handle.result(WITHIN) == 2


# -- mistakes -----------------------------------------------------------------------------------------------------------------


def plain(step: durable.Step, deps: Any) -> None:
    """No workflow."""


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        (lambda store: durable.start(plain, store=store), "not marked as a workflow"),
        (lambda store: durable.start(cast(Any, checkout), store=store), "must be callable as"),
        (lambda store: durable.start(cast(Any, bare), 1, store=store), "must be callable as"),
        (lambda store: durable.start(bare, store=store, priority=10), "priority"),
        (lambda store: durable.start(bare, store=store, at=datetime(2030, 1, 1)), "at"),
        (lambda store: durable.start(bare, store=store, at=datetime.now(UTC), delay=1), "give one of them"),
        (lambda store: durable.start(bare, store=store, delay=-1), "delay"),
        (lambda store: durable.start(bare, store=store, queue=""), "queue"),
        (lambda store: durable.start(bare, store=store, metadata={"deadline": 1}), "metadata"),
        (lambda store: durable.start(bare, store=store, on_conflict=cast(Any, "wait")), "on_conflict"),
        (lambda store: durable.start(cast(Any, 7), store=store), "can be started"),
        (lambda store: durable.Worker(store, None, cast(Any, checkout)), "a list"),
        (lambda store: durable.Worker(store, None, []), "needs workflows"),
        (lambda store: durable.Worker(store, None, [plain]), "not marked"),
        (lambda store: durable.Worker(store, None, [tenacity]), "no function"),
        (lambda store: durable.Worker(store, None, [bare], queues="mail"), "list of names"),
        (lambda store: durable.Worker(store, None, [bare], queues=[]), "no name"),
        (lambda store: durable.Worker(store, None, [bare], concurrency=0), "concurrency"),
        (lambda store: durable.Worker(store, Deps(), [bare], deps_factory=Deps), "deps_factory"),
        (lambda store: durable.Worker(store, {remind: Deps()}, [bare, remind]), "bare has none"),
        (lambda store: durable.Worker(cast(Any, object()), None, [bare]), "store"),
    ],
)
def test_a_mistake_is_named_before_anything_is_stored(
    store: QueueingStore, mistake: Callable[[QueueingStore], Any], says: str
) -> None:
    with pytest.raises(InvalidArgument, match=says):
        mistake(store)
    assert store.stats().runs == 0


def test_dependencies_are_made_once_and_may_be_given_by_workflow(store: QueueingStore) -> None:
    made: list[int] = []

    def make() -> dict[Any, Any]:
        made.append(1)
        return {remind: Deps(), bare: None}

    worker = durable.Worker(store, None, [remind, bare], deps_factory=make)
    for _ in range(2):
        handle = durable.start(remind, store=store)
        worker.run_until_idle()
        assert handle.result(WITHIN) == "do not forget"
    assert made == [1]


def test_a_factory_that_fails_takes_nothing(store: QueueingStore) -> None:
    """FAULTS 165."""

    def make() -> Deps:
        raise Boom("no database for them")

    handle = durable.start(bare, store=store)
    with pytest.raises(Boom):
        durable.Worker(store, None, [bare], deps_factory=make).run()
    assert handle.status() == "queued"


def test_a_store_that_cannot_serve_ends_the_worker_at_its_start(database: Database) -> None:
    """Of a mistake in the set-up no other poll comes to anything else."""
    worker = durable.Worker(database.store(auto_create_table=False), None, [bare])
    with pytest.raises(durable.SchemaMismatch):
        worker.run()
    with pytest.raises(durable.SchemaMismatch):
        worker.run_until_idle()  # it is at work no more
    refused = database.store(make_conninfo(database.url, dbname="nowhere"))
    with pytest.raises(durable.AccessDenied):
        durable.Worker(refused, None, [bare]).run()


def test_a_worker_beside_other_work_says_at_its_end_what_ended_it(
    store: QueueingStore, caplog: pytest.LogCaptureFixture
) -> None:
    """And at once in the log; what the block itself raises comes first."""

    def has_ended() -> bool:
        return "the worker has ended: the store is closed" in caplog.text

    async def beside() -> None:
        async with durable.Worker(store, None, [bare]):
            store.close()
            await asyncio.to_thread(wait_until, has_ended, "the end of the worker")

    with pytest.raises(InvalidArgument, match="closed"):
        asyncio.run(beside())
    caplog.clear()
    with pytest.raises(Boom), durable.Worker(store, None, [bare]):
        wait_until(has_ended, "the end of the worker")
        raise Boom("first")


# -- other processes ----------------------------------------------------------------------------------------------------------

PROGRAM: Final = """
    import os, sys, durable
    from durable.stores import postgres

    store = postgres(sys.argv[1], schema=sys.argv[2])

    @durable.workflow(name="job")
    def job(step, deps, path):
        def body():
            print("begun", flush=True)
            if not os.path.exists(path):
                sys.stdin.read()
            return "done"
        step("before", lambda: None)
        return step("body", body)

    @durable.workflow(name="poison")
    def poison(step, deps):
        step("kills", lambda: os.kill(os.getpid(), 9))

    durable.Worker(store, None, [job, poison], grace=5).run()
"""


class Process:
    """A worker in a process of its own."""

    def __init__(self, database: Database) -> None:
        command = [sys.executable, "-c", textwrap.dedent(PROGRAM), database.url, database.schema]
        self.popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def wait_until_begun(self) -> None:
        """Until a body says so."""
        assert self.popen.stdout is not None
        assert self.popen.stdout.readline() == "begun\n"

    def end(self) -> None:
        """Whatever it does."""
        self.popen.kill()
        self.popen.communicate()


def never() -> None:
    """A body that is acknowledged."""
    raise AssertionError("begun again")


@durable.workflow(name="job")
def job(step: durable.Step, deps: Any, path: str) -> str:
    """The same in this process."""
    step("before", never)
    return step("body", lambda: "done")


def test_the_runs_of_a_worker_that_was_killed_go_on_at_once(database: Database) -> None:
    """Law W7, FAULTS 123: on the same machine nobody waits for the lease."""
    with database.store() as store:
        handle = durable.start(job, "/nowhere", store=store, id="j")
        process = Process(database)
        process.wait_until_begun()
        process.end()
        with durable.Worker(store, None, [job]):
            assert handle.result(15) == "done"  # its lease lasts for 30 s
        header = store.load("j")
        assert header is not None
        assert header.execution.crashes == 0  # "before" was recorded under the dead owner's lease


def test_a_run_that_kills_its_workers_is_buried(database: Database) -> None:
    """FAULTS 142."""

    @durable.workflow(name="poison")
    def poison(step: durable.Step, deps: Any) -> None:
        pytest.fail("it would kill this one too")

    with database.store() as store:
        handle = durable.start(poison, store=store, id="p")
        for _ in range(3):
            process = Process(database)
            assert process.popen.wait(WITHIN) == -signal.SIGKILL
            process.end()
        told: list[BaseException] = []
        worker = durable.Worker(store, None, [poison], on_failed=lambda _, error: told.append(error))
        with worker, pytest.raises(RunPoisoned) as caught:
            handle.result(WITHIN)
        assert caught.value.crashes == 3
        assert [type(error) for error in told] == [RunPoisoned]


def test_sigterm_drains_and_the_process_ends_well(database: Database) -> None:
    """FAULTS 143."""
    with database.store() as store:
        handle = durable.start(job, "/nowhere", store=store, id="j")
        process = Process(database)
        process.wait_until_begun()
        process.popen.send_signal(signal.SIGTERM)
        assert process.popen.stdin is not None
        process.popen.stdin.close()  # the body returns
        process.popen.stdin = None
        assert process.popen.wait(WITHIN) == 0
        assert handle.result(WITHIN) == "done"
        process.end()


RECOVERED: Final = """
    import os, sys, durable
    from durable.stores import postgres

    store = postgres(sys.argv[1], schema=sys.argv[2])

    @durable.workflow(name="job")
    def job(step, deps, path):
        step("before", lambda: None)
        step("body", lambda: os.kill(os.getpid(), 9))

    durable.run(None, job, id="j", store=store, input="/nowhere", recover="workers" if sys.argv[3] == "yes" else None)
"""


@pytest.mark.parametrize("recovers", [True, False])
def test_what_run_began_is_recovered_by_workers_only_where_the_call_said_so(database: Database, recovers: bool) -> None:
    program = [
        sys.executable,
        "-c",
        textwrap.dedent(RECOVERED),
        database.url,
        database.schema,
        "yes" if recovers else "no",
    ]
    assert subprocess.run(program, check=False).returncode == -signal.SIGKILL
    with database.store() as store:
        durable.Worker(store, None, [job]).run_until_idle()
        assert durable.status(store, "j") == ("completed" if recovers else "interrupted")
        assert durable.run(None, job, id="j", store=store) == "done"


def test_a_run_that_is_to_be_recovered_is_taken_up_again_by_run_too(store: QueueingStore) -> None:
    calls: list[int] = []

    @durable.workflow(name="interrupted")
    def interrupted(step: durable.Step, deps: Any) -> int:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return len(calls)

    with pytest.raises(KeyboardInterrupt):
        durable.run(None, interrupted, id="i", store=store, recover="workers")
    assert durable.run(None, interrupted, id="i", store=store) == 2
    durable.Worker(store, None, [interrupted]).run_until_idle()
    assert len(calls) == 2


def test_recover_needs_a_workflow_that_workers_can_find(store: QueueingStore) -> None:
    with pytest.raises(InvalidArgument, match="not marked"):
        durable.run(None, plain, id="p", store=store, recover="workers")
    with pytest.raises(InvalidArgument, match="recover"):
        durable.run(None, bare, id="p", store=store, recover=cast(Any, "always"))


def test_a_run_of_an_earlier_version_is_migrated_by_a_worker_that_can(store: QueueingStore) -> None:
    """FAULTS 141: old and new at once; what only the new one can take is left to it."""
    seen: list[int] = []

    @durable.workflow(name="grown")
    def old(step: durable.Step, deps: Any, order: dict[str, int]) -> int:
        return 1

    def to_2(stored: durable.Snapshot) -> durable.Snapshot:
        seen.append(len(stored.steps))
        return stored

    @durable.workflow(name="grown", version=2, migrates={1: to_2})
    def new(step: durable.Step, deps: Any, order: dict[str, int]) -> int:
        return step("n", lambda: order["n"])

    first, second = durable.start(old, {"n": 7}, store=store), durable.start(new, {"n": 8}, store=store)
    durable.Worker(store, None, [old]).run_until_idle()
    assert (first.result(WITHIN), second.status()) == (1, "queued")
    third = durable.start(old, {"n": 9}, store=store)
    with durable.Worker(store, None, [new]):
        assert (second.result(WITHIN), third.result(WITHIN)) == (8, 9)
    assert seen == [0]
    snapshot = store.load(third.id)
    assert snapshot is not None
    assert snapshot.metadata["version"] == 2


def test_a_migration_that_fails_puts_the_run_off(store: QueueingStore, caplog: pytest.LogCaptureFixture) -> None:
    def to_2(stored: durable.Snapshot) -> durable.Snapshot:
        raise Boom("not yet")

    @durable.workflow(name="grown", version=2, migrates={1: to_2})
    def new(step: durable.Step, deps: Any, order: dict[str, int]) -> int:
        return 2

    handle = durable.start("grown", {"n": 7}, store=store)
    durable.Worker(store, None, [new]).run_until_idle()
    assert handle.status() in ("interrupted", "queued")


def test_a_death_after_sigterm_is_no_crash(database: Database) -> None:
    """FAULTS 142: three deploys during a long body are no poison."""
    with database.store() as store:
        durable.start(job, "/nowhere", store=store, id="j")
        for number in range(3):
            process = Process(database)
            process.wait_until_begun()
            process.popen.send_signal(signal.SIGTERM)
            query = "SELECT count(*) FROM durable_workers WHERE leaving"
            wait_until(lambda: database.execute(query) == [(number + 1,)], "the worker says that it is leaving")  # noqa: B023
            process.end()
            database.execute("UPDATE durable_steps SET epoch = 0")  # as if it had recorded nothing
            snapshot = store.load("j")
            assert snapshot is not None
            assert (snapshot.execution.epoch, snapshot.execution.crashes) == (number + 1, 0)


def test_stats_say_what_no_worker_has(database: Database) -> None:
    store = database.store()
    durable.start(bare, store=store)
    durable.start(checkout, {"n": 1}, store=store)
    assert store.stats().unserved == ("default: checkout@1", "mail: bare@1")
    with durable.Worker(store, None, [checkout]) as worker:
        durable.start(checkout, {"n": 2}, store=store).result(WITHIN)
        assert store.stats().unserved == ("mail: bare@1",)
        worker.drain()


def test_a_thread_executes_one_run_after_the_other(store: QueueingStore) -> None:
    """Starting one for each would cost more than a short run, and the worker would wait for it; they end with the worker.

    There may be a second one, for what is executed while the end of another run is being recorded, and a third where that is recorded
    and its thread is not yet back.
    """
    threads: list[threading.Thread] = []

    @durable.workflow(name="where")
    def where(step: durable.Step, deps: Any) -> None:
        threads.append(threading.current_thread())

    durable.start_many(where, [durable.Start() for _ in range(10)], store=store)
    durable.Worker(store, None, [where], concurrency=1).run_until_idle()
    assert len(threads) == 10
    assert len(set(threads)) <= 3
    threads[0].join(WITHIN)
    assert not threads[0].is_alive()


def test_what_was_begun_goes_on_before_what_waits(store: QueueingStore) -> None:
    """Law W7: else a deploy, or a death, would put what is under way behind a backlog of hours. A retry waits in its turn."""
    begun, waiting = durable.start(bare, store=store), durable.start(bare, store=store)

    def taken(expected: durable.RunHandle[Any]) -> Lease:
        (granted,) = store.perform(Poll([Route("mail", "bare", 1)], 1, 30.0, lambda lease: True)).granted
        assert granted.lease.run_id == expected.id
        return granted.lease

    lease = taken(begun)
    urgent = durable.start(bare, store=store, priority=0)
    store.perform(Release(lease))
    lease = taken(begun)
    failure = Record(1, Kind.FAILURE, Kind.FAILURE, '{"error": {"type": "Boom", "message": "no"}}')
    store.perform(Finish(lease, Status.QUEUED, failure))
    lease = taken(urgent)
    taken(waiting)
    store.perform(Release(lease))
    taken(urgent)
    taken(begun)


# -- what an adversary found --------------------------------------------------------------------------------------------------


def test_a_run_that_is_over_is_not_due_again_because_its_lease_was_looked_at(store: QueueingStore) -> None:
    """A claim that only amends, and one that comes too late, are given back without a status."""

    @durable.workflow(name="fails")
    def fails(step: durable.Step, deps: Any) -> None:
        raise Boom("once")

    told: list[str] = []
    worker = durable.Worker(store, None, [fails], on_failed=lambda run, _: told.append(run.id))
    run = durable.start(fails, store=store)
    worker.run_until_idle()
    claim = Claim(run_id=run.id, workflow="fails", version=1, seconds=30.0, create=False, amends=True)
    granted = store.perform(Begin(claim, lambda: True))
    assert isinstance(granted, Granted)
    store.perform(Release(granted.lease))
    worker.run_until_idle()
    wait_until(lambda: told, "it is told")
    assert (run.status(), told) == ("failed", [run.id])


def test_a_run_whose_dedup_another_has_is_not_taken_up_again(store: QueueingStore) -> None:
    """FAULTS 136: refused by name, and no poll ever meets it."""
    broken, fails = fails_while_broken()
    first = durable.start(fails, store=store, dedup="d")
    durable.Worker(store, None, [fails]).run_until_idle()
    broken.clear()
    second = durable.start(fails, store=store, dedup="d")
    with pytest.raises(DuplicateRun):
        first.retry()
    with pytest.raises(DuplicateRun):
        durable.run(None, fails, id=first.id, store=store)
    durable.Worker(store, None, [fails]).run_until_idle()
    assert (first.status(), second.result(WITHIN)) == ("failed", "well")
    first.retry()
    durable.Worker(store, None, [fails]).run_until_idle()
    assert first.result(WITHIN) == "well"


def test_no_start_is_dropped_for_one_of_its_batch_that_is_there_already(store: QueueingStore) -> None:
    old = durable.start(bare, store=store, id="old", dedup="d")
    durable.Worker(store, None, [bare]).run_until_idle()
    again, new = durable.start_many(bare, [durable.Start(id="old", dedup="d"), durable.Start(dedup="d")], store=store)
    assert (again.id, again.status()) == (old.id, "completed")
    assert (new.id != old.id, new.status()) == (True, "queued")


def test_a_migration_keeps_the_dedup(store: QueueingStore) -> None:
    @durable.workflow(name="bare", version=2, queue="mail", migrates={1: lambda stored: stored})
    def newer(step: durable.Step, deps: Any) -> str:
        step.wait_for("go")
        return "newer"

    run = durable.start(bare, store=store, dedup="d")
    with durable.Worker(store, None, [newer]):
        wait_until(lambda: (found := store.load(run.id)) and found.metadata["version"] == 2, "it is migrated")
        assert durable.start(newer, store=store, dedup="d").id == run.id
        run.signal("go")
        assert run.result(WITHIN) == "newer"


def test_what_one_run_sets_is_not_seen_by_the_next_on_its_thread(store: QueueingStore) -> None:
    tenant: ContextVar[str] = ContextVar("tenant", default="nobody's")
    seen: list[str] = []

    @durable.workflow(name="tenants")
    def tenants(step: durable.Step, deps: Any) -> None:
        seen.append(tenant.get())
        tenant.set("the first one's")

    durable.start_many(tenants, [durable.Start(), durable.Start()], store=store)
    durable.Worker(store, None, [tenants], concurrency=1).run_until_idle()
    assert seen == ["nobody's", "nobody's"]


def test_a_callback_that_hangs_holds_nothing_up(store: QueueingStore) -> None:
    goes_on, begun = threading.Event(), threading.Event()

    @durable.workflow(name="fails")
    def fails(step: durable.Step, deps: Any) -> None:
        raise Boom("no")

    def hangs(run: object, error: BaseException) -> None:
        begun.set()
        goes_on.wait(WITHIN)

    with durable.Worker(store, None, [fails, bare], on_failed=hangs, grace=0):
        durable.start(fails, store=store)
        assert begun.wait(WITHIN)
        assert durable.start(bare, store=store).result(WITHIN) == "bare"
    goes_on.set()


# -- runs that end their process -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", ["blocking", "async", "a task of its own"])
def test_a_run_that_exits_counts_as_a_death_and_is_poison_in_the_end(store: QueueingStore, colour: str) -> None:
    """It is left as by `durable.run`, and is not begun again before its lease has ended. The others go on."""
    begun: list[int] = []

    def exits() -> None:
        begun.append(1)
        sys.exit(3)

    @durable.workflow(name="exits", max_crashes=2)
    def blocking(step: durable.Step, deps: Any) -> None:
        step("exits", exits)

    @durable.workflow(name="exits", max_crashes=2)
    async def awaited(step: durable.AsyncStep, deps: Any) -> None:
        async def body() -> None:
            exits()

        if colour == "async":
            await step("exits", body)
        else:
            await asyncio.gather(step("exits", body), asyncio.sleep(0))

    workflow: Any = blocking if colour == "blocking" else awaited
    worker = durable.Worker(store, Deps(), [workflow, checkout, remind], lease=0.5)
    with worker:
        poison = durable.start(workflow, store=store)
        with pytest.raises(RunPoisoned, match="2 workers"):
            poison.result(WITHIN)
        assert durable.start(checkout, {"n": 3}, store=store).result(WITHIN) == 8
        assert durable.start(remind, store=store).result(WITHIN) == "do not forget"
    assert len(begun) == 2


def test_a_run_that_exits_after_it_has_recorded_something_is_no_poison(store: QueueingStore) -> None:
    ran: list[int] = []

    @durable.workflow(name="steady", max_crashes=1)
    def steady(step: durable.Step, deps: Any) -> str:
        for number in range(3):
            first = len(ran) == number
            step(f"s{number}", ran.append, number)
            if first:
                sys.exit()
        return "done"

    with durable.Worker(store, None, [steady], lease=0.5):
        assert durable.start(steady, store=store).result(WITHIN) == "done"
    assert ran == [0, 1, 2]
