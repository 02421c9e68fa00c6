"""Cancellation that arrives: the owner hears, closes the run, and ends it; and what becomes of a run that has no owner."""

from __future__ import annotations

import asyncio
import itertools
import threading
from typing import Any, cast

import pytest
from msgspec import UNSET

import durable
from durable._runtime.context import current_frame
from durable._runtime.driver import Driver
from durable.stores.protocol import QueueingStore, ReadableStore

log: list[Any] = []


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    log.clear()


def reserve() -> str:
    log.append("reserve")
    return "seat"


def release(value: object) -> None:
    log.append(("release", value))


@durable.workflow
def waits(step: durable.Step, deps: object) -> str:
    """Reserves, and waits for ever."""
    step("reserve", reserve, undo=release)
    step.wait_for("go")
    step("ship", log.append, "ship")
    return "shipped"


@durable.workflow
def only_waits(step: durable.Step, deps: object) -> str:
    """Has nothing to close."""
    step("look", log.append, "look")
    step.wait_for("go")
    return "done"


def worker(store: QueueingStore) -> durable.Worker:
    return durable.Worker(store, {}, [waits, only_waits], suspend_after=0)


def begun(store: QueueingStore, workflow: Any, run_id: str, **options: Any) -> tuple[threading.Thread, list[Any]]:
    """A run in a thread, and what it comes to."""
    outcome: list[Any] = []

    def perform() -> None:
        try:
            made = durable.run({}, workflow, id=run_id, store=store, **options)
            outcome.append(asyncio.run(made) if asyncio.iscoroutine(made) else made)
        except Exception as problem:
            outcome.append(problem)

    thread = threading.Thread(target=perform)
    thread.start()
    return thread, outcome


def test_the_owner_hears_undoes_and_ends_the_run(store: QueueingStore) -> None:
    is_there = threading.Event()

    def workflow(step: durable.Step, deps: object) -> None:
        step("reserve", lambda: "seat", undo=release)
        step.on_end("bye", log.append, "bye")
        is_there.set()
        step.wait_for("go")

    thread, outcome = begun(store, workflow, "r")
    assert is_there.wait(30)
    assert durable.cancel(store, "r", reason="sold out")
    thread.join(30)
    assert [type(one) for one in outcome] == [durable.RunCancelled]
    assert outcome[0].closed
    assert "sold out" in str(outcome[0])
    assert log == [("release", "seat"), "bye"]
    assert store.status("r") == "cancelled"
    header = cast(ReadableStore, store).header("r")
    assert header is not None
    assert header.cancel is not UNSET
    assert header.cancel.reason == "sold out"
    assert not durable.cancel(store, "r")


def test_a_body_at_work_goes_on_to_its_end_and_is_undone(store: QueueingStore) -> None:
    at_work = threading.Event()

    def reserve() -> str:
        frame, heard = current_frame.get(), threading.Event()
        assert frame is not None
        lease = cast(Driver, frame.driver)._execution.lease
        lease.on_ask = heard.set
        at_work.set()
        assert heard.wait(30)  # and goes on
        return "seat"

    def workflow(step: durable.Step, deps: object) -> None:
        step("reserve", reserve, undo=release)
        step("ship", log.append, "ship")

    thread, outcome = begun(store, workflow, "r")
    assert at_work.wait(30)
    assert durable.cancel(store, "r")
    thread.join(30)
    assert isinstance(outcome[0], durable.RunCancelled)
    assert log == [("release", "seat")]


def test_a_coroutine_is_cancelled_where_its_step_says_so(store: QueueingStore) -> None:
    at_work = threading.Event()

    async def long() -> None:
        at_work.set()
        try:
            await asyncio.sleep(3600)
        finally:
            log.append("left")

    async def workflow(step: durable.AsyncStep, deps: object) -> None:
        await step("reserve", lambda: "seat", undo=release)
        await step("long", long, cancellable=True)

    thread, outcome = begun(store, workflow, "r")
    assert at_work.wait(30)
    assert durable.cancel(store, "r")
    thread.join(30)
    assert isinstance(outcome[0], durable.RunCancelled)
    assert log == ["left", ("release", "seat")]


def test_a_coroutine_that_ends_all_the_same_is_recorded(store: QueueingStore) -> None:
    at_work = threading.Event()

    async def long() -> str:
        at_work.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return "half"
        return "whole"

    async def workflow(step: durable.AsyncStep, deps: object) -> None:
        await step("long", long, cancellable=True, undo=release)
        await step("ship", lambda: log.append("ship"))

    thread, outcome = begun(store, workflow, "r")
    assert at_work.wait(30)
    assert durable.cancel(store, "r")
    thread.join(30)
    assert isinstance(outcome[0], durable.RunCancelled)
    assert log == [("release", "half")]


@pytest.mark.parametrize("how", ["a second time", "by force"])
def test_a_second_cancel_and_force_take_the_lease(store: QueueingStore, how: str) -> None:
    at_work, goes_on = threading.Event(), threading.Event()

    def stuck() -> None:
        at_work.set()
        assert goes_on.wait(30)

    def workflow(step: durable.Step, deps: object) -> None:
        step("reserve", lambda: "seat", undo=release)
        step("stuck", stuck)

    thread, outcome = begun(store, workflow, "r")
    assert at_work.wait(30)
    if how == "by force":
        assert durable.cancel(store, "r", force=True)
    else:
        assert durable.cancel(store, "r", reason="first")
        assert store.status("r") == "running"
        assert durable.cancel(store, "r")
    assert store.status("r") == "cancelled"
    goes_on.set()
    thread.join(30)
    assert isinstance(outcome[0], durable.RunCancelled)
    assert not outcome[0].closed
    assert log == []


def test_a_queued_run_is_cancelled_at_once(store: QueueingStore) -> None:
    durable.start(waits, id="r", store=store)
    assert durable.cancel(store, "r")
    assert store.status("r") == "cancelled"


def test_a_suspended_run_that_has_something_to_undo_is_closed_by_a_worker(store: QueueingStore) -> None:
    handle = durable.start(waits, id="r", store=store)
    worker(store).run_until_idle()
    assert store.status("r") == "suspended"
    assert handle.cancel(reason="too late")
    assert store.status("r") == "queued" or store.status("r") == "interrupted"
    worker(store).run_until_idle()
    assert store.status("r") == "cancelled"
    assert log == ["reserve", ("release", "seat")]
    with pytest.raises(durable.RunCancelled):
        handle.result(timeout=10)


def test_a_suspended_run_that_has_nothing_to_close_is_cancelled_at_once(store: QueueingStore) -> None:
    durable.start(only_waits, id="r", store=store)
    worker(store).run_until_idle()
    assert durable.cancel(store, "r")
    assert store.status("r") == "cancelled"


def test_a_run_of_no_worker_is_closed_by_the_next_run_of_its_id(store: QueueingStore) -> None:
    def workflow(step: durable.Step, deps: object) -> None:
        step("reserve", lambda: "seat", undo=release)
        if not log:
            log.append("left")
            raise KeyboardInterrupt
        step("ship", log.append, "ship")

    with pytest.raises(KeyboardInterrupt):
        durable.run({}, workflow, id="r", store=store)
    assert durable.cancel(store, "r")
    assert store.status("r") == "interrupted"
    with pytest.raises(durable.RunCancelled):
        durable.run({}, workflow, id="r", store=store)
    assert log == ["left", ("release", "seat")]
    durable.run({}, workflow, id="r", store=store)  # taken up again, it is not cancelled once more
    assert store.status("r") == "completed"


def test_a_cancelled_run_that_is_retried_is_not_cancelled_once_more(store: QueueingStore) -> None:
    durable.start(waits, id="r", store=store)
    worker(store).run_until_idle()
    durable.cancel(store, "r")
    worker(store).run_until_idle()
    durable.retry(store, "r")
    durable.signal(store, "r", "go")
    worker(store).run_until_idle()
    assert store.status("r") == "completed"
    assert log == ["reserve", ("release", "seat"), "reserve", "ship"]


@pytest.mark.parametrize("reason", [1, "a\0b", "\ud800", "x" * 2001])
def test_a_reason_that_cannot_be_kept_is_refused(store: QueueingStore, reason: Any) -> None:
    with pytest.raises(durable.InvalidArgument, match="reason"):
        durable.cancel(store, "r", reason=reason)


DEEDS = ("cancel", "retry", "fork", "purge", "poll")
STATES = {"queued", "suspended", "interrupted", "completed", "failed", "cancelled"}


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(DEEDS, 2)))
def test_fault_162_whatever_is_done_one_after_the_other_leaves_a_state_of_the_table(
    store: QueueingStore, first: str, second: str
) -> None:
    """FAULTS 162: cancel, retry, fork, purge and poll in all pairwise orders; then nothing is stuck: a worker ends it."""

    def do(deed: str) -> None:
        try:
            match deed:
                case "cancel":
                    durable.cancel(store, "r")
                case "retry":
                    durable.retry(store, "r")
                case "fork":
                    durable.fork(cast(ReadableStore, store), "r", new_id="f")
                case "purge":
                    store.purge(older_than=0, status=None)
                case _:
                    worker(store).run_until_idle()
        except durable.DurableError:
            pass

    durable.start(waits, id="r", store=store)
    worker(store).run_until_idle()
    for deed in (first, second):
        do(deed)
        assert store.status("r") in STATES | {None}, deed
    for run_id in ("r", "f"):
        durable.signal(store, run_id, "go")
    worker(store).run_until_idle()
    assert {store.status("r"), store.status("f")} <= {"completed", "cancelled", None}
    if store.status("r") == "cancelled" and (first, second) != ("purge", "cancel"):
        assert ("release", "seat") in log
