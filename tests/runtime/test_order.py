"""What a journal says about order: no false alarm that would leave a run unfinished for ever, and no swapped value."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any

import psycopg
import pytest
from msgspec.structs import replace

import durable
from durable._engine import runs
from durable._engine.decisions import Claim, ClaimAgain, Granted, Proceed
from durable._engine.leases import Lease
from durable.events import RunEvent, StepStalled
from durable.records import Execution as Standing
from durable.records import Header, Status
from durable.stores import MemoryStore, memory
from durable.stores._postgres.sql.loader import load_statements
from durable.stores._postgres.sql.names import Names
from durable.stores.requests import Checkpoint
from harness.support import Database


class Crash(BaseException):
    """Leaves the journal as a kill would: what is recorded stays, and nothing is said."""


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    store = memory()
    yield store
    store.close()


def run(store: MemoryStore, workflow: Callable[..., Any]) -> Any:
    """One life of the run `r`, whatever the function is called."""
    workflow.__name__ = "workflow"
    result = durable.run({}, workflow, id="r", store=store)
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


def crash(store: MemoryStore, workflow: Callable[..., Any]) -> None:
    """A life that ends with a crash."""
    with pytest.raises(Crash):
        run(store, workflow)


def test_a_step_that_was_timed_out_and_tried_again_is_no_drift(store: MemoryStore) -> None:
    """The first try left no record, the second did: the resumed run asks for the first again."""

    def workflow(crashes: bool) -> Callable[..., Any]:
        async def fetch() -> str:
            return "page"

        async def slow() -> str:
            await asyncio.Event().wait()
            return "never"

        async def retrying(step: durable.AsyncStep, _: Any) -> str:
            try:
                async with asyncio.timeout(0.01 if crashes else None):
                    await step("fetch", slow if crashes else fetch)
            except TimeoutError:
                pass
            page = await step("fetch", fetch)
            if crashes:
                raise Crash
            return page

        return retrying

    crash(store, workflow(crashes=True))
    assert run(store, workflow(crashes=False)) == "page"


@pytest.mark.parametrize("trouble", ["unstorable", "interrupted", "a fault of the workflow's own"])
def test_a_cleanup_on_the_way_out_is_no_drift_for_mended_code(store: MemoryStore, trouble: str) -> None:
    """A step in `finally:` is on a way that mended code never takes."""

    def interrupted() -> None:
        raise Crash

    def workflow(*, mended: bool) -> Callable[..., Any]:
        def cleaning(step: durable.Step, _: Any) -> str:
            try:
                if not mended and trouble == "unstorable":
                    step("make", lambda: object())
                elif not mended and trouble == "interrupted":
                    step("make", interrupted)
                elif not mended:
                    raise KeyError
                else:
                    step("make", lambda: "made")
            finally:
                if not mended:
                    step("cleanup", lambda: "clean")
            step("more", lambda: "more")
            return "done"

        return cleaning

    with pytest.raises((Crash, KeyError, durable.UnstorableValue)):
        run(store, workflow(mended=False))
    if trouble != "interrupted":  # the run has failed, and cleaned up for that: it takes a decision
        with pytest.raises(durable.RetryRefused, match="'cleanup'"):
            run(store, workflow(mended=True))
        assert durable.retry(store, "r") == ["cleanup"]
    assert run(store, workflow(mended=True)) == "done"


def test_a_step_that_failed_and_was_mended_keeps_its_place(store: MemoryStore) -> None:
    """Found by the simulation: once it had failed, a new step before it was no drift any more, however it ended later."""
    fails = True

    def charge() -> str:
        if fails:
            raise ValueError("declined")
        return "charged"

    def workflow(*steps: tuple[str, Callable[[], str]], crashes: bool = False) -> Callable[..., Any]:
        def charging(step: durable.Step, _: Any) -> list[str]:
            done = [step(name, body) for name, body in steps]
            if crashes:
                raise Crash
            return done

        return charging

    with pytest.raises(ValueError, match="declined"):
        run(store, workflow(("charge", charge)))
    fails = False
    crash(store, workflow(("charge", charge), crashes=True))
    with pytest.raises(durable.WorkflowDrift, match=r"'new'.*'charge'"):
        run(store, workflow(("new", lambda: "before"), ("charge", charge)))
    assert run(store, workflow(("charge", charge), ("new", lambda: "after"))) == ["charged", "after"]


def test_a_step_begun_beside_an_unfinished_one_is_no_drift(store: MemoryStore) -> None:
    """Order is told by draws: one that was drawn before and recorded later was beside the others."""

    def workflow(crashes: bool) -> Callable[..., Any]:
        async def background(step: durable.AsyncStep, _: Any) -> str:
            async def body() -> str:
                if crashes:
                    await asyncio.Event().wait()
                return "bg"

            task = asyncio.create_task(step("bg", body))
            await step("x", lambda: 1)
            if crashes:
                task.cancel()
                raise Crash
            return await task

        return background

    crash(store, workflow(crashes=True))
    assert run(store, workflow(crashes=False)) == "bg"


def test_a_thunk_repeated_in_the_order_of_completion_is_refused(store: MemoryStore) -> None:
    """FAULTS 113 for one branch: numbering would follow the race, and a replay would swap."""
    first_done = threading.Event()

    def workflow(step: durable.Step, _: Any) -> list[Any]:
        def late() -> str:
            assert first_done.wait(10)
            return "late"

        out: list[Any] = []
        with ThreadPoolExecutor(2) as pool:
            ask: Any = step
            gets = [pool.submit(ask, "get", late, key="a"), pool.submit(ask, "get", lambda: "soon", key="b")]
            for get in as_completed(gets):
                value = get.result()
                out.append(step("use", partial("used {}".format, value)))
                first_done.set()
        return out

    bodies: list[str] = []
    with pytest.raises(durable.errors.AmbiguousKey, match="'use'"):
        run(store, workflow)
    assert bodies == []


async def gathered(step: Any, body: Any) -> list[str]:
    return list(await asyncio.gather(*(step("one", body, n, key=f"one-{n}") for n in range(3))))


async def mapped(step: Any, body: Any) -> list[str]:
    return list(await step.map("one", body, range(3)))


async def in_a_task_group(step: Any, body: Any) -> list[str]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(step("one", body, n, key=f"one-{n}")) for n in range(3)]
    return [task.result() for task in tasks]


async def by_key_as_they_end(step: Any, body: Any) -> list[str]:
    async def keyed(n: int) -> tuple[int, str]:
        return n, await step("one", body, n, key=f"one-{n}")

    ended = [await one for one in asyncio.as_completed([keyed(n) for n in range(3)])]
    return [value for _, value in sorted(ended)]


def mapped_in_threads(step: Any, body: Any) -> list[str]:
    return list(step.map("one", body, range(3)))


@pytest.mark.parametrize("workflow", [gathered, mapped, in_a_task_group, by_key_as_they_end, mapped_in_threads])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_each_branch_has_its_own_value_in_whatever_order_they_end(workflow: Any, order: tuple[int, ...]) -> None:
    """FAULTS 182: live, and replayed after a crash at the end. (What the *first* to end is, is decided anew: docs/steps.md.)"""
    turns = [threading.Event() for _ in range(4)]
    turns[0].set()

    def body(n: int) -> str:
        place = order.index(n)
        assert turns[place].wait(10)
        turns[place + 1].set()
        return f"value {n}"

    async def async_body(n: int) -> str:
        return await asyncio.to_thread(body, n)

    def crashes(value: list[str], *, dies: bool) -> list[str]:
        if dies:
            raise Crash
        return value

    def life(*, dies: bool) -> Any:
        if workflow is mapped_in_threads:
            return lambda step, _: crashes(workflow(step, body), dies=dies)

        async def awaited(step: durable.AsyncStep, _: Any) -> list[str]:
            return crashes(await workflow(step, async_body), dies=dies)

        return awaited

    expected = [f"value {n}" for n in range(3)]
    with contextlib.closing(memory()) as store:
        crash(store, life(dies=True))
        assert run(store, life(dies=False)) == expected
        assert run(store, life(dies=False)) == expected
    assert turns[3].is_set()


def test_an_ambiguity_is_remembered(store: MemoryStore) -> None:
    """FAULTS 113 over two lives: whichever branch comes first then, it is not given the other's value."""
    log: list[str] = []

    def workflow(first: str, second: str) -> Callable[..., Any]:
        async def branching(step: durable.AsyncStep, _: Any) -> None:
            async def branch(name: str) -> None:
                account = await step("account", lambda: f"account of {name}")
                await step("pay", lambda: log.append(f"{name} pays from {account}"), key=f"pay-{name}")

            one = asyncio.create_task(branch(first))
            await asyncio.sleep(0)
            await asyncio.gather(one, asyncio.create_task(branch(second)))

        return branching

    with pytest.raises(durable.errors.AmbiguousKey):
        run(store, workflow("T1", "T2"))
    with pytest.raises(durable.errors.AmbiguousKey):
        run(store, workflow("T2", "T1"))
    assert all(line in ("T1 pays from account of T1", "T2 pays from account of T2") for line in log)

    async def keyed(step: durable.AsyncStep, _: Any) -> str:
        return await step("account", lambda: "mine", key="account-T1")

    assert run(store, keyed) == "mine"


def test_an_explicit_key_that_an_automatic_one_has_is_a_conflict(store: MemoryStore) -> None:
    """Two different calls, one key: never one value for both."""

    def workflow(step: durable.Step, _: Any) -> list[Any]:
        seen: list[Any] = [step("charge", lambda: "A", key="charge")]
        try:
            seen.append(step("charge", lambda: "B"))
        except durable.errors.KeyConflict as problem:
            seen.append(type(problem).__name__)
        return seen

    assert run(store, workflow) == ["A", "KeyConflict"]


def test_a_step_cancelled_in_the_turn_in_which_its_answer_comes(store: MemoryStore) -> None:
    """FAULTS 76: acknowledged is acknowledged, whichever of the two the task hears of."""
    bodies: list[str] = []

    class Answering:
        """A store that has the task cancelled as soon as the answer is there."""

        identity = store.identity
        perform, room = store.perform, store.aio.room
        task: asyncio.Task[str]

        @property
        def aio(self) -> Any:
            return self

        def submit(self, request: Any, on_late_reply: Any = None) -> asyncio.Future[Any]:
            if not isinstance(request, Checkpoint):
                return store.aio.submit(request, on_late_reply)
            answer = asyncio.get_running_loop().create_future()

            def answered() -> None:
                store.perform(request)
                answer.set_result(None)
                self.task.cancel()

            asyncio.get_running_loop().call_soon(answered)
            return answer

    async def workflow(step: durable.AsyncStep, _: Any) -> str:
        answering.task = asyncio.ensure_future(step("pay", lambda: bodies.append("pay")))
        with contextlib.suppress(asyncio.CancelledError):
            await answering.task
        return "done"

    answering: Any = Answering()
    assert asyncio.run(durable.run({}, workflow, id="r", store=answering)) == "done"
    assert bodies == ["pay"]
    assert [record.key for record in store._runs["r"].records.values()] == ["pay", "result"]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_body_that_is_silent_for_three_leases_is_named(store: MemoryStore, is_async: bool) -> None:
    """FAULTS 21: it keeps its lease, also while it blocks the event loop; an event says which step it is, once."""
    said = threading.Event()
    told: list[RunEvent] = []

    def listen(event: RunEvent) -> None:
        told.append(event)
        if isinstance(event, StepStalled):
            said.set()

    def body() -> str:
        assert said.wait(20)
        return "done"

    def workflow(step: durable.Step, _: Any) -> str:
        return step("long", body)

    async def async_workflow(step: durable.AsyncStep, _: Any) -> str:
        return await step("long", body)

    if is_async:
        result = asyncio.run(durable.run({}, async_workflow, id="r", store=store, lease=0.5, on_event=listen))
    else:
        result = durable.run({}, workflow, id="r", store=store, lease=0.5, on_event=listen)
    assert result == "done"
    assert [(e.key, e.seconds >= 1.5) for e in told if isinstance(e, StepStalled)] == [("long", True)]


def test_a_recorded_input_comes_before_a_default(store: MemoryStore) -> None:
    """Omitting `input` uses the stored one, also where the workflow would do without."""

    def workflow(step: durable.Step, _: Any, input: str = "default") -> str:
        if not started:
            started.append(True)
            raise Crash
        return input

    started: list[bool] = []
    with pytest.raises(Crash):
        durable.run({}, workflow, id="r", store=store, input="given")
    assert durable.run({}, workflow, id="r", store=store) == "given"


def test_a_decorated_method_is_a_step_without_its_self(store: MemoryStore) -> None:
    """`self.charge(order)` inside the dependencies, and `deps.charge(order)` outside, are the same kind of call."""

    class Deps:
        @durable.step
        def charge(self, order: int) -> str:
            return f"charged {order}"

        def both(self) -> list[str]:
            return [self.charge(1), self.charge(2)]

    def workflow(step: durable.Step, deps: Deps) -> list[str]:
        return [*deps.both(), deps.charge(3)]

    assert durable.run(Deps(), workflow, id="r", store=store) == ["charged 1", "charged 2", "charged 3"]
    assert [r.key for r in store._runs["r"].records.values()] == ["charge", "charge#2", "charge#3", "result"]


def test_whoever_only_waited_never_takes_up_what_stopped_meanwhile(database: Database) -> None:
    """Failed between two of the claim's statements: the lease is given back, and the failure asked for. (Found by simulation.)"""
    waited = Claim(run_id="a", workflow="w", version=1, seconds=30.0, after_failure=False)
    lease = Lease("a", "1:x", 1, 30.0, 0.0)
    for status in (Status.FAILED, Status.CANCELLED):
        reply = Granted(lease, Header("w", Standing(status)), [])
        admission = runs.admit(waited, reply, waits=True, wait_timeout=None, waited=0.0, polls=1)
        assert admission == ClaimAgain(0.0, waited, lease)
    again = runs.admit(replace(waited, after_failure=True), reply, waits=True, wait_timeout=None, waited=0, polls=1)
    assert isinstance(again, Proceed)

    store = database.store()

    def workflow(step: durable.Step, deps: Any) -> None:
        raise ValueError("failed")

    with pytest.raises(ValueError, match="failed"):
        durable.run({}, workflow, id="a", store=store)
    before = database.everything()
    # As if it had been running at the first look: the lease is taken, and the header is met as it ended.
    database.execute(
        "UPDATE durable_locks SET epoch = 2, owner_token = '2:mine', expires_at = now() + interval '1 minute'"
    )
    claims = '[{"id": "a", "random": "mine", "header": {"execution": {}}, "input": null, "after_failure": false}]'
    names = load_statements(Names(schema=database.schema))
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute(names["open_runs"], {"openings": claims})
    assert database.everything()[0] == before[0]
    assert database.status("a") == "failed"


def test_a_step_that_a_fail_over_lost_and_that_now_returns_something_else_is_drift(database: Database) -> None:
    """FAULTS 34: where a later one, which is still recorded, was given the old value. (Found by chaos.)"""
    store, drawn = database.store(), itertools.count(1)

    def workflow(step: durable.Step, _: Any) -> int:
        number = step("draw", lambda: next(drawn))
        used = step("use", lambda given: given, number)
        if number == 1:
            raise KeyboardInterrupt
        return used

    with pytest.raises(KeyboardInterrupt):
        durable.run({}, workflow, id="a", store=store)
    database.execute("DELETE FROM durable_steps WHERE key = 'draw'")
    for _ in range(2):
        with pytest.raises(durable.WorkflowDrift, match=r"'use' .* recorded with other arguments"):
            durable.run({}, workflow, id="a", store=store)
    assert database.status("a") == "running"
