"""`step.continue_with`: a run goes on as itself, with a new input and an empty journal, on either store and in either form."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

import psycopg
import pytest

import durable
from durable.errors import InvalidArgument, NestedStep, RunMismatch, StoreError
from durable.stores._postgres.together import Together
from durable.stores.protocol import QueueingStore
from durable.testing import Rehearsal
from harness.support import Database

WITHIN: Final = 30.0  # seconds


@durable.workflow(name="counts")
def counts(step: durable.Step, deps: list[str], left: int) -> str:
    """Two steps, and on with one less."""
    done = step("work", lambda: f"done {left}")
    deps.append(step("note", lambda: f"{done}, noted"))
    if left:
        step.continue_with(left - 1, keep_history=bool(left % 2))
    return done


@durable.workflow(name="acounts")
async def acounts(step: durable.AsyncStep, deps: list[str], left: int) -> str:
    done = await step("work", lambda: f"done {left}")
    deps.append(await step("note", lambda: f"{done}, noted"))
    if left:
        step.continue_with(left - 1, keep_history=bool(left % 2))
    return done


def call(workflow: Any, deps: Any, store: Any, **options: Any) -> Any:
    """`durable.run`, of either form."""
    answer = durable.run(deps, workflow, store=store, **options)
    return asyncio.run(cast(Any, answer)) if asyncio.iscoroutine(answer) else answer


@pytest.mark.parametrize("workflow", [counts, acounts])
@pytest.mark.parametrize("by", ["run", "worker"])
def test_a_run_goes_on_as_itself_with_an_empty_journal(store: QueueingStore, workflow: Any, by: str) -> None:
    seen: list[str] = []
    if by == "run":
        assert call(workflow, seen, store, id="r", input=3) == "done 0"
    else:
        handle = durable.start(workflow, 3, store=store, id="r")
        durable.Worker(store, seen, [workflow]).run_until_idle()
        assert handle.result() == "done 0"
    assert seen == [f"done {left}, noted" for left in (3, 2, 1, 0)]
    stored = store.load("r")
    assert stored is not None
    assert [bytes(cast(Any, record.value)) for record in stored.steps.values()] == [b'"done 0"', b'"done 0, noted"']
    # Of the first and the third the history stays, as completed runs whose results are the inputs that came next.
    assert sorted(line.id for line in store.list()) == ["r", "r~1", "r~3"]
    assert [durable.result(store, f"r~{n}") for n in (1, 3)] == [2, 0]
    first = store.load("r~1")
    assert first is not None
    assert [bytes(cast(Any, record.value)) for record in first.steps.values()] == [b'"done 3"', b'"done 3, noted"']
    # It is still the run of its first input.
    assert call(workflow, seen, store, id="r", input=3) == "done 0"
    with pytest.raises(RunMismatch):
        call(workflow, seen, store, id="r", input=2)
    store.delete("r")
    assert store.status("r") is None


@durable.workflow(name="hears")
def hears(step: durable.Step, keep_history: bool, heard: list[int]) -> list[int]:
    """Three words, each heard in a journal of its own."""
    heard = [*heard, step.wait_for("word")]
    if len(heard) < 3:
        step.continue_with(heard, keep_history=keep_history)
    return heard


@pytest.mark.parametrize("keep_history", [True, False])
def test_signals_that_were_not_received_stay(store: QueueingStore, keep_history: bool) -> None:
    handle = durable.start(hears, [], store=store, id="r")
    for number in (1, 2):
        handle.signal("word", number)
    worker = durable.Worker(store, keep_history, [hears])
    worker.run_until_idle()
    assert handle.status() == "suspended"
    handle.signal("word", 3)
    worker.run_until_idle()
    assert handle.result() == [1, 2, 3]


def test_it_is_refused_where_it_cannot_be(store: QueueingStore) -> None:
    def no_input(step: durable.Step, deps: Any) -> None:
        step.continue_with(1)

    def in_a_body(step: durable.Step, deps: Any, _: int) -> None:
        step("body", lambda: step.continue_with(1))

    async def beside(step: durable.AsyncStep, deps: Any, _: int) -> None:
        other = asyncio.create_task(cast(Any, step("other", asyncio.sleep, 0.05)))
        await asyncio.sleep(0.01)
        try:
            step.continue_with(1)
        finally:
            await other

    with pytest.raises(InvalidArgument, match="takes no input"):
        call(no_input, None, store, id="a")
    with pytest.raises(NestedStep):
        call(in_a_body, None, store, id="b", input=0)

    async def in_a_thread(step: durable.AsyncStep, deps: Any, _: int) -> None:
        await asyncio.to_thread(step.continue_with, 1)

    with pytest.raises(InvalidArgument, match="other branches"):
        call(in_a_thread, None, store, id="t", input=0)
    with pytest.raises(InvalidArgument, match="other branches"):
        call(beside, None, store, id="c", input=0)
    with pytest.raises(InvalidArgument, match="keep_history"):
        call(lambda step, _, n: step.continue_with(n, keep_history="yes"), None, store, id="d", input=0)


def test_control_leaves_past_what_catches_exceptions(store: QueueingStore) -> None:
    seen: list[str] = []

    def stubborn(step: durable.Step, deps: Any, n: int) -> int:
        try:
            if n:
                step.continue_with(n - 1)
        except Exception:  # it must not come here
            seen.append("caught")
        except BaseException:  # as a user may write
            seen.append("swallowed")
        return n

    assert (call(stubborn, None, store, id="r", input=2), seen) == (0, ["swallowed"] * 2)


@pytest.mark.parametrize("keep_history", [True, False])
def test_a_dedup_is_remembered(store: QueueingStore, keep_history: bool) -> None:
    """Of one name and `dedup` a run gets one signal, also when it was received before the run was continued."""

    handle = durable.start(hears, [], store=store, id="r")
    worker = durable.Worker(store, keep_history, [hears])
    for number in (1, 2, 3):
        for _ in "ab":
            assert handle.signal("word", number, dedup=f"click {number}")
            worker.run_until_idle()
        handle.signal("word", 0, dedup="click 1")
    assert handle.result() == [1, 2, 3]
    assert [signal.name for signal in cast(Any, store).signals("r")] == ["", "", "word"]


def test_the_id_of_a_history_is_no_other_run_s(store: QueueingStore) -> None:
    def once(step: durable.Step, deps: Any, n: int) -> int:
        if n:
            step.continue_with(n - 1)
        return n

    """It gets the next number; also where a run is begun anew, or saved over, whose history is still there."""
    assert call(once, None, store, id="r~2", input=7) == 0
    durable.signal(store, "r~4", "go", create_later=True)
    for _ in "ab":
        assert call(once, None, store, id="r", input=2) == 0
        store.delete("r")
    results = {
        line.id: durable.result(store, line.id)
        for line in store.list()
        if line.id.startswith("r~") and "~" not in line.id[2:]
    }
    assert results == {"r~1": 1, "r~2": 0, "r~3": 0, "r~5": 1, "r~6": 0}
    with pytest.raises(InvalidArgument, match="keep_history=False"):
        call(once, None, store, id="r" * 511, input=1)
    assert call(once, None, store, id="r" * 510, input=1) == 0


def test_what_was_written_before_comes_too_late(database: Database) -> None:
    """A write of before the continuation, which arrives after it, finds its lease's token gone."""
    late: list[Any] = []

    def once(step: durable.Step, deps: Any, n: int) -> int:
        internal: Any = step
        lease = internal._driver._execution.lease
        if n:
            late.append(lease.token)
            step.continue_with(n - 1)
        late.append(lease.token)
        return n

    with database.store() as store:
        assert call(once, None, store, id="r", input=1) == 0
    before, after = late
    assert before != after
    assert before.partition(":")[0] == after.partition(":")[0]


@pytest.mark.parametrize("is_async", [False, True])
def test_its_lease_is_kept_through_continuations(store: QueueingStore, is_async: bool) -> None:
    """Each is renewed: none of them ends with the lease of the first."""
    beats: list[Any] = []

    def renewed(step: Any, n: int) -> None:
        lease = step._driver._execution.lease
        first = lease.sent
        while lease.sent == first:  # until a heartbeat has renewed it
            time.sleep(0.01)
        beats.append(n)

    def lasting(step: durable.Step, deps: Any, n: int) -> int:
        renewed(step, n)
        if n:
            step.continue_with(n - 1)
        return n

    async def alasting(step: durable.AsyncStep, deps: Any, n: int) -> int:
        await asyncio.to_thread(renewed, step, n)
        if n:
            step.continue_with(n - 1)
        return n

    assert call(alasting if is_async else lasting, None, store, id="r", input=2, lease=0.5) == 0
    assert beats == [2, 1, 0]


def test_one_that_fails_leaves_the_others_of_its_batch(database: Database) -> None:
    """Each is carried out once, though they are sent together and one is refused."""
    ready, begun = threading.Barrier(9), set[str]()

    @durable.workflow(name="goes_on")
    def goes_on(step: durable.Step, deps: Any, n: int) -> int:
        if step.run_id not in begun:
            begun.add(step.run_id)
            ready.wait(WITHIN)
        if n:
            step.continue_with(n - 1)
        return n

    with database.store() as store:
        store.status("none")
        database.execute("ALTER TABLE durable_snapshots ADD CHECK (id <> '3~1') NOT VALID")
        handles = [durable.start(goes_on, 1, id=str(number), store=store) for number in range(9)]
        with durable.Worker(store, None, [goes_on], concurrency=9):
            assert [handle.result(WITHIN) for handle in handles if handle.id != "3"] == [0] * 8
        assert [store.status(f"{number}~1") for number in range(9) if number != 3] == ["completed"] * 8
        assert [store.status(f"{number}~2") for number in range(9)] == [None] * 9


@contextmanager
def struck(after: Callable[[], None]) -> Iterator[None]:
    """Once, when a continuation has been committed, and its reply is to be handed on, this happens."""
    send, left = Together.send, [after]

    def sent(self: Together) -> None:
        is_continuation = any(b"'continued', (" in query for query, _, _ in self._statements)
        send(self)
        if is_continuation and left:
            left.pop()()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Together, "send", sent)
        yield
        assert not left


def lost() -> None:
    """The connection is cut."""
    raise psycopg.OperationalError("the reply is lost")


def shortens(step: durable.Step, deps: Any, n: int) -> int:
    for number in range(5 * n):
        step("one", lambda: 1, key=str(number))
    if n:
        step.continue_with(n - 1)
    return n


async def ashortens(step: durable.AsyncStep, deps: Any, n: int) -> int:
    for number in range(5 * n):
        await step("one", lambda: 1, key=str(number))
    if n:
        step.continue_with(n - 1)
    return n


@pytest.mark.parametrize("workflow", [shortens, ashortens])
def test_one_whose_reply_is_lost_was_carried_out_and_goes_on(database: Database, workflow: Any) -> None:
    """Also where the journal was longer before: none of its records are missed at the end."""
    with database.store() as store, struck(lost):
        assert call(workflow, None, store, id="r", input=1) == 0
        assert sorted(line.id for line in store.list()) == ["r", "r~1"]


def test_ctrl_c_amid_one_leaves_its_lease_to_this_process(database: Database) -> None:
    with database.store() as store:
        with struck(lambda: signal.raise_signal(signal.SIGINT)), contextlib.suppress(KeyboardInterrupt):
            call(counts, [], store, id="r", input=2, lease=3600)
        assert call(counts, [], store, id="r", input=2) == "done 0"


@pytest.mark.parametrize("always_replay", [False, True])
def test_a_rehearsal_plays_it(always_replay: bool) -> None:
    def turns(step: durable.Step, deps: list[int], n: int) -> int:
        deps.append(step("a", lambda: n))
        if n:
            step.continue_with(n - 1)
        return n

    seen: list[int] = []
    with Rehearsal(always_replay=always_replay) as rehearsal:
        assert call(turns, seen, rehearsal, id="r", input=2) == 0
    assert list(dict.fromkeys(seen)) == [2, 1, 0]


def test_a_worker_on_a_rehearsal_around_another_store_rests_where_runs_are_suspended(database: Database) -> None:
    @durable.workflow(name="naps")
    def naps(step: durable.Step, deps: Any) -> None:
        step.sleep("for long", 3600)

    with database.store() as store, Rehearsal(store) as rehearsal:
        handle = durable.start(naps, store=rehearsal)
        durable.Worker(rehearsal, None, [naps]).run_until_idle()
        assert handle.status() == "suspended"


PARTS: Final = ["continue_run", "keep_header", "move_journal", "move_signals", "begin_anew"]


@pytest.mark.parametrize("part", PARTS)
def test_a_continuation_is_whole_or_not_at_all(database: Database, part: str) -> None:
    """A statement of it fails, as where the server dies there: the run goes on from the journal that it had."""

    @durable.workflow(name="hears")
    def hears(step: durable.Step, deps: Any, n: int) -> Any:
        heard = step.wait_for("word")
        if n:
            step.continue_with(n - 1)
        return heard

    with database.store() as store:
        durable.signal(store, "r", "word", 1, create_later=True)
        internal: Any = store
        store.status("none")
        sql = internal._held.made.sql if hasattr(internal._held.made, "sql") else internal._sql
        sound = sql[part]
        sql[part] = b"SELECT 1 / 0, " + b"%(id)s"
        try:
            with pytest.raises((StoreError, durable.DurableError)):
                call(hears, None, store, id="r", input=1)
        finally:
            sql[part] = sound
        kinds = [kind for kind, *_ in database.journal("r")]
        assert (kinds, store.load("r~1")) == (["input", "step"], None)
        durable.signal(store, "r", "word", 2)
        assert call(hears, None, store, id="r", input=1) == 2
        assert [line.id for line in store.list()] == ["r", "r~1"]
