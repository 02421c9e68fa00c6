"""Suspension: a worker's run that waits holds nothing, and goes on when its wait is over, on either store and in either form."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
import tenacity

import durable
from durable._engine import workers
from durable.errors import ConcurrentExecution, SignalTimedOut, StepFailed
from durable.stores import memory
from durable.stores.protocol import QueueingStore
from durable.stores.requests import Signal
from harness.ownership_children import wait_until
from harness.support import Database

WITHIN: Final = 30.0  # seconds, for what a worker does at once
LATER: Final[Any] = tenacity.Retrying(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(3600))
SOON: Final[Any] = tenacity.Retrying(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(1.5))


@durable.workflow(name="naps")
def naps(step: durable.Step, deps: list[str]) -> str:
    deps.append("begun")
    step("before", lambda: deps.append("before"))
    step.sleep("nap", 1.2)
    return step("after", lambda: "up")


@durable.workflow(name="anaps")
async def anaps(step: durable.AsyncStep, deps: list[str]) -> str:
    deps.append("begun")
    await step("before", lambda: deps.append("before"))
    await step.sleep("nap", 1.2)
    return await step("after", lambda: "up")


@pytest.mark.parametrize("workflow", [naps, anaps])
def test_a_sleeping_run_leaves_its_place_and_goes_on_when_it_is_due(store: QueueingStore, workflow: Any) -> None:
    seen: list[str] = []
    handle = durable.start(workflow, store=store)
    worker = durable.Worker(store, seen, [workflow], suspend_after=0.1)
    worker.run_until_idle()
    assert (handle.status(), seen) == ("suspended", ["begun", "before"])
    with worker:
        assert handle.result(WITHIN) == "up"
    assert seen == ["begun", "before", "begun"]


@durable.workflow(name="waits")
def waits(step: durable.Step, deps: list[str], timeout: float | None) -> Any:
    deps.append("begun")
    return step.wait_for("go", timeout=timeout)


@durable.workflow(name="awaits")
async def awaits(step: durable.AsyncStep, deps: list[str], within: float | None) -> Any:
    deps.append("begun")
    return await step.wait_for("go", timeout=within)


@pytest.mark.parametrize("timeout", [None, 3600.0])
@pytest.mark.parametrize("workflow", [waits, awaits])
def test_a_signal_brings_a_suspended_run_on(store: QueueingStore, workflow: Any, timeout: float | None) -> None:
    seen: list[str] = []
    handle = durable.start(workflow, timeout, store=store, id="r")
    worker = durable.Worker(store, seen, [workflow])
    worker.run_until_idle()
    assert (handle.status(), seen) == ("suspended", ["begun"])
    durable.signal(store, "r", "another", 1)
    worker.run_until_idle()
    assert (handle.status(), seen) == ("suspended", ["begun"])
    durable.signal(store, "r", "go", 7)
    worker.run_until_idle()
    assert (handle.status(), seen, handle.result()) == ("completed", ["begun", "begun"], 7)


def test_a_signal_wakes_an_idle_worker_at_once(store: QueueingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not at its next poll, which would come too late here."""
    monkeypatch.setattr(workers, "MIN_INTERVAL", 3600.0)
    monkeypatch.setattr(workers, "MAX_INTERVAL", 3600.0)
    with durable.Worker(store, [], [waits]):
        handle = durable.start(waits, None, store=store)
        wait_until(lambda: handle.status() == "suspended", "the run is suspended")
        handle.signal("go", "now")
        assert handle.result(WITHIN) == "now"


def test_a_wait_ends_at_its_first_moment_however_often_the_run_is_taken(store: QueueingStore) -> None:
    seen: list[str] = []
    handle = durable.start(waits, 2.0, store=store, id="r")
    worker = durable.Worker(store, seen, [waits], suspend_after=0.1)
    worker.run_until_idle()
    began = store.load("r")
    assert began is not None
    due = began.attempts["go"].due
    with worker, pytest.raises(SignalTimedOut):
        handle.result(WITHIN)
    ended = store.load("r")
    assert ended is not None and ended.execution.completed_at is None
    assert due is not None and datetime.fromisoformat(ended.execution.last_updated) >= due
    assert seen == ["begun"] * 2


@durable.workflow(name="rests")
def rests(step: durable.Step, deps: list[str], until: datetime) -> str:
    deps.append("begun")
    step.sleep("rest", until)
    return "rested"


def test_a_moment_at_either_end_of_time(store: QueueingStore) -> None:
    """FAULTS 148: what is past is not waited for, and what comes in a hundred years costs nothing, and can be cancelled."""
    seen: list[str] = []
    past, far = (
        durable.start(rests, datetime.now(UTC) + timedelta(days=days), store=store) for days in (-36_000, 36_000)
    )
    worker = durable.Worker(store, seen, [rests])
    worker.run_until_idle()
    assert (past.result(), far.status(), seen) == ("rested", "suspended", ["begun"] * 2)
    worker.run_until_idle()
    assert seen == ["begun"] * 2
    assert far.cancel()
    assert far.status() == "cancelled"


def test_a_server_s_clock_that_is_set_wakes_nothing_early_and_loses_nothing(database: Database) -> None:
    """FAULTS 148: as if it had been set by an hour in either direction: a run that wakes early looks, and is suspended again."""
    seen: list[str] = []
    with database.store() as store:
        handle = durable.start(rests, datetime.now(UTC) + timedelta(minutes=30), store=store, id="r")
        worker = durable.Worker(store, seen, [rests])
        worker.run_until_idle()
        assert handle.status() == "suspended"
        database.execute("UPDATE durable_locks SET due_at = due_at - interval '1 hour'")
        worker.run_until_idle()
        assert (handle.status(), seen) == ("suspended", ["begun"] * 2)
        ((left,),) = database.execute("SELECT extract(epoch FROM due_at - now())::int FROM durable_locks")
        assert 1700 < left <= 1800
        database.execute("UPDATE durable_locks SET due_at = due_at + interval '1 hour'")
        handle.cancel()


# -- what else of the run is in flight


@durable.workflow(name="maps")
def maps(step: durable.Step, deps: Any) -> Any:
    return step.map("item", deps.item, [0, 1, 2], max_concurrency=2, retry=LATER)


@durable.workflow(name="amaps")
async def amaps(step: durable.AsyncStep, deps: Any) -> Any:
    return await step.map("item", deps.item, [0, 1, 2], max_concurrency=2, retry=LATER)


@durable.workflow(name="gathers")
async def gathers(step: durable.AsyncStep, deps: Any) -> Any:
    return await asyncio.gather(step("item", deps.item, 0, retry=LATER), step("other", deps.other), deps.plain())


@durable.workflow(name="groups")
async def groups(step: durable.AsyncStep, deps: Any) -> Any:
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(step("item", deps.item, 0, retry=LATER)),
            group.create_task(step("other", deps.other)),
            group.create_task(deps.plain()),
        ]
    return [task.result() for task in tasks]


class Branches:
    """Bodies of which the first fails at first; the others end only once a test lets them."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.failed = threading.Event()
        self.tries = 0

    def item(self, n: int) -> int:
        if n == 0:
            self.tries += 1
            if self.tries == 1:
                self.failed.set()
                raise OSError("not yet")
        else:
            assert self.go.wait(WITHIN)
        return n

    async def other(self) -> int:
        await asyncio.to_thread(self.go.wait, WITHIN)
        return 1

    async def plain(self) -> int:
        """A branch that is in no step."""
        return await self.other() + 1


@pytest.mark.parametrize("workflow", [maps, amaps, gathers, groups])
def test_what_has_other_branches_at_work_is_suspended_once_they_have_ended(store: QueueingStore, workflow: Any) -> None:
    branches = Branches()
    handle = durable.start(workflow, store=store, id="r")
    with durable.Worker(store, branches, [workflow], suspend_after=0.2):
        assert branches.failed.wait(WITHIN)
        wait_until(lambda: (found := store.load("r")) is not None and found.attempts, "the attempt is recorded")
        assert handle.status() == "running"
        branches.go.set()
        wait_until(lambda: handle.status() == "suspended", "the run is suspended")
        store.perform(Signal("r", "another", "1"))
        assert handle.status() == "suspended"
        assert branches.tries == 1
        durable.cancel(store, "r")
        assert handle.status() == "cancelled"


@durable.workflow(name="beside")
async def beside(step: durable.AsyncStep, deps: Any) -> Any:
    """Its own task waits in a step, while another one is at work in none."""
    task = asyncio.create_task(deps.plain())
    heard = await step.wait_for("go")
    return [heard, await task]


@durable.workflow(name="threads")
def threads(step: durable.Step, deps: Any) -> Any:
    """Likewise, in threads: one is known once it has called a step."""

    def work() -> None:
        step("first", lambda: 1)
        begun.set()
        deps.item(1)
        step("second", lambda: 2)

    begun = threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    begun.wait(WITHIN)
    deps.failed.set()
    heard = step.wait_for("go")
    thread.join()
    return heard


@pytest.mark.parametrize("workflow", [beside, threads])
def test_a_branch_that_is_between_two_steps_keeps_its_run(workflow: Any) -> None:
    """Else it would begin anew with each execution, and come to its next step in none."""
    branches = Branches()
    with memory() as store, durable.Worker(store, branches, [workflow]):
        handle = durable.start(workflow, store=store, id="r")
        wait_until(lambda: handle.status() == "running", "it has begun")
        for _ in range(200):
            time.sleep(0.005)
            assert handle.status() == "running"
        branches.go.set()
        handle.signal("go", 1)
        handle.result(WITHIN)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_long_back_off_is_spent_suspended(store: QueueingStore, is_async: bool) -> None:
    @durable.workflow(name="retries")
    def retries(step: durable.Step, deps: Branches) -> int:
        return step("item", deps.item, 0, retry=SOON)

    @durable.workflow(name="aretries")
    async def aretries(step: durable.AsyncStep, deps: Branches) -> int:
        return await step("item", deps.item, 0, retry=SOON)

    workflow: Any = aretries if is_async else retries
    branches = Branches()
    handle = durable.start(workflow, store=store)
    worker = durable.Worker(store, branches, [workflow], suspend_after=0.1)
    worker.run_until_idle()
    assert (handle.status(), branches.tries) == ("suspended", 1)
    with worker:
        assert (handle.result(WITHIN), branches.tries) == (0, 2)


# -- how a workflow is left


@pytest.mark.parametrize("is_async", [False, True])
def test_what_a_workflow_leaves_open_sees_its_suspension_and_can_begin_no_step(
    store: QueueingStore, is_async: bool
) -> None:
    seen: list[str] = []

    def note(problem: BaseException) -> None:
        seen.append(type(problem).__name__)

    @durable.workflow(name="swallows")
    def swallows(step: durable.Step, deps: Any) -> str:
        for name in ("first", "second"):
            try:
                step.wait_for(name)
            except Exception:
                seen.append("swallowed")
            except BaseException as problem:
                note(problem)
        return "wrong"

    @durable.workflow(name="aswallows")
    async def aswallows(step: durable.AsyncStep, deps: Any) -> str:
        for name in ("first", "second"):
            try:
                await step.wait_for(name)
            except Exception:
                seen.append("swallowed")
            except BaseException as problem:
                note(problem)
        return "wrong"

    workflow: Any = aswallows if is_async else swallows
    handle = durable.start(workflow, store=store)
    durable.Worker(store, None, [workflow]).run_until_idle()
    assert (handle.status(), seen) == ("suspended", ["Unwind", "Unwind"])


def test_a_suspended_run_is_its_workers(store: QueueingStore) -> None:
    """FAULTS 135: a call of the same id is refused by name, and one that waits gets the outcome."""
    handle = durable.start(waits, None, store=store, id="r")
    durable.Worker(store, [], [waits]).run_until_idle()
    assert handle.status() == "suspended"
    with pytest.raises(ConcurrentExecution, match="default"):
        durable.run([], waits, id="r", store=store)
    with pytest.raises(ConcurrentExecution):
        durable.retry(store, "r")
    assert durable.start(waits, None, store=store, id="r").status() == "suspended"
    assert store.purge(older_than=0, status=None) == 0
    counts = store.stats()
    assert (counts.suspended, counts.interrupted, counts.running, counts.runs, counts.unserved) == (1, 0, 0, 1, ())
    assert [[line.id for line in store.list(status=status)] for status in ("suspended", "interrupted", "running")] == [
        ["r"],
        [],
        [],
    ]
    document = store.load("r")
    assert document is not None and document.execution.status == "running"
    with durable.Worker(store, [], [waits]):
        handle.signal("go", 5)
        assert durable.run([], waits, id="r", store=store, on_conflict="wait") == 5


def test_a_suspended_run_can_be_cancelled_and_deleted(store: QueueingStore) -> None:
    worker = durable.Worker(store, [], [waits])
    first, second = (durable.start(waits, None, store=store, id=name) for name in "ab")
    worker.run_until_idle()
    assert (first.cancel(), first.status()) == (True, "cancelled")
    store.delete("b")
    assert second.status() is None
    for name in "ab":
        durable.signal(store, name, "go", 1)
    worker.run_until_idle()
    assert (first.status(), second.status()) == ("cancelled", None)


def test_a_deadline_passes_while_the_run_is_suspended(store: QueueingStore) -> None:
    handle = durable.start(waits, None, store=store, deadline=1.5)
    worker = durable.Worker(store, [], [waits], suspend_after=0.1)
    worker.run_until_idle()
    assert handle.status() == "suspended"
    with worker, pytest.raises(StepFailed, match="DeadlineExceeded"):
        handle.result(WITHIN)


def test_suspensions_are_no_deaths(store: QueueingStore) -> None:
    @durable.workflow(name="often", max_crashes=1)
    def often(step: durable.Step, deps: Any) -> int:
        return sum(step.wait_for("go", key=f"go {n}") for n in range(5))

    handle = durable.start(often, store=store, id="r")
    worker = durable.Worker(store, None, [often])
    for n in range(5):
        worker.run_until_idle()
        assert handle.status() == "suspended"
        durable.signal(store, "r", "go", n)
    worker.run_until_idle()
    stored = store.load("r")
    assert (handle.result(), stored is not None and stored.execution.crashes) == (10, 0)


def test_a_call_of_run_is_never_suspended(store: QueueingStore) -> None:
    seen: list[str] = []
    sender = threading.Timer(1.5, lambda: durable.signal(store, "r", "go", 3))
    sender.start()
    assert durable.run(seen, waits, id="r", store=store, input=None) == 3
    assert seen == ["begun"]
