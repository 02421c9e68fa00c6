"""Children: runs that a run starts in its steps, and whose outcomes it records, on either store and in either form."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Final

import pytest

import durable
from durable.errors import ChildFailed, InvalidArgument, KeyConflict, RunExists, RunPoisoned
from durable.stores import memory
from durable.stores.protocol import QueueingStore
from harness.ownership_children import wait_until

WITHIN: Final = 10.0  # seconds, for what a worker does at once


@durable.workflow(name="doubles")
def doubles(step: durable.Step, deps: Any, n: int) -> int:
    return step("double", lambda: n * 2)


@durable.workflow(name="breaks")
def breaks(step: durable.Step, deps: Any, n: int) -> int:
    raise ValueError(f"no {n}")


@durable.workflow(name="waits")
def waits(step: durable.Step, deps: Any, n: int) -> int:
    return int(step.wait_for("go")) + n


@durable.workflow(name="calls")
def calls(step: durable.Step, deps: Any, n: int) -> Any:
    return [step.call(doubles, n, key="a"), step.call("doubles", n + 1, key="b")]


@durable.workflow(name="acalls")
async def acalls(step: durable.AsyncStep, deps: Any, n: int) -> Any:
    return [await step.call(doubles, n, key="a"), await step.call("doubles", n + 1, key="b")]


@durable.workflow(name="fans")
def fans(step: durable.Step, deps: Any, n: int) -> list[int]:
    handles = [step.start(doubles, i, key=f"item {i}") for i in range(n)]
    return step.wait_all(handles)


@durable.workflow(name="afans")
async def afans(step: durable.AsyncStep, deps: Any, n: int) -> list[int]:
    handles = [await step.start(doubles, i, key=f"item {i}") for i in range(n)]
    return await step.wait_all(handles)


@durable.workflow(name="gathers")
async def gathers(step: durable.AsyncStep, deps: Any, n: int) -> list[int]:
    return list(await asyncio.gather(*(step.call(doubles, i, key=f"item {i}") for i in range(n))))


@durable.workflow(name="groups")
async def groups(step: durable.AsyncStep, deps: Any, n: int) -> list[int]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(step.call(doubles, i, key=f"item {i}")) for i in range(n)]
    return [task.result() for task in tasks]


@durable.workflow(name="hopes")
def hopes(step: durable.Step, deps: Any, fn: str) -> Any:
    try:
        return step.call(fn, 1, key="child")
    except ChildFailed as problem:
        return [problem.run_id, problem.status, problem.error_type, repr(problem.__cause__)]


@durable.workflow(name="ahopes")
async def ahopes(step: durable.AsyncStep, deps: Any, fn: str) -> Any:
    try:
        return await step.call(fn, 1, key="child")
    except ChildFailed as problem:
        return [problem.run_id, problem.status, problem.error_type, repr(problem.__cause__)]


@durable.workflow(name="trusts")
def trusts(step: durable.Step, deps: Any, fn: str) -> Any:
    return step.call(fn, 1, key="child")


ALL: Final[list[Any]] = [doubles, breaks, waits, calls, acalls, fans, afans, gathers, groups, hopes, ahopes, trusts]


def worker_of(store: QueueingStore, **options: Any) -> durable.Worker:
    return durable.Worker(store, None, [*ALL, *options.pop("more", ())], **{"concurrency": 1, **options})


@pytest.mark.parametrize("workflow", [calls, acalls])
def test_a_child_is_a_run_of_its_own_whose_value_is_recorded(store: QueueingStore, workflow: Any) -> None:
    handle = durable.start(workflow, 3, id="p", store=store)
    with worker_of(store):
        assert handle.result(WITHIN) == [6, 8]
    assert [(run.id, run.status) for run in sorted(store.runs(), key=lambda run: run.id)] == [  # type: ignore[attr-defined]
        ("p", "completed"),
        ("p/a", "completed"),
        ("p/b", "completed"),
    ]


@pytest.mark.parametrize("workflow", [fans, afans, gathers, groups])
def test_many_children_and_their_parent_share_one_place(store: QueueingStore, workflow: Any) -> None:
    """FAULTS 147: the one place there is, is not held by a parent that waits for a child."""
    handle = durable.start(workflow, 5, id="p", store=store)
    with worker_of(store):
        assert handle.result(WITHIN) == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("workflow", [hopes, ahopes])
def test_the_failure_of_a_child_can_be_caught(store: QueueingStore, workflow: Any) -> None:
    handle = durable.start(workflow, "breaks", id="p", store=store)
    with worker_of(store):
        assert handle.result(WITHIN) == ["p/child", "failed", "builtins:ValueError", "ValueError('no 1')"]


def run_until_it_waits(store: QueueingStore, run_id: str, **options: Any) -> None:
    worker_of(store, suspend_after=0.05, **options).run_until_idle()
    wait_until(lambda: store.status(run_id) == "suspended", "the run waits")


@pytest.mark.parametrize("when", ["while it waits", "before it waits"])
@pytest.mark.parametrize("how", ["cancelled", "deleted", "saved over"])
@pytest.mark.parametrize("workflow", [hopes, ahopes])
def test_a_child_that_is_cancelled_or_deleted_wakes_its_parent(
    store: QueueingStore, workflow: Any, how: str, when: str
) -> None:
    """FAULTS 146."""
    handle = durable.start(workflow, "waits" if when == "while it waits" else "nobody-has-this", id="p", store=store)
    run_until_it_waits(store, "p")
    if how == "cancelled":
        assert durable.cancel(store, "p/child")
    elif how == "deleted":
        store.delete("p/child")
    else:
        durable.run(None, lambda step, deps: 1, id="other", store=store)
        document = store.load("other")
        assert document is not None
        store.save("p/child", document)
    told, stands = {"cancelled": ("cancelled",) * 2, "deleted": ("deleted", None)}.get(how, ("deleted", "completed"))
    with worker_of(store):
        assert handle.result(WITHIN) == ["p/child", told, "", "None"]
    assert store.status("p/child") == stands


@durable.workflow(name="exits", max_crashes=1)
def exits(step: durable.Step, deps: Any, n: int) -> int:
    raise SystemExit(3)


def test_a_poisoned_child_is_a_failed_one(store: QueueingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = durable.start(hopes, "exits", id="p", store=store)
    with worker_of(store, more=[exits], lease=0.5):
        told = handle.result(WITHIN)
    assert told[:3] == ["p/child", "failed", f"durable.errors:{RunPoisoned.__name__}"]


def test_a_child_that_has_ended_before_its_parent_asks_is_received_at_once(store: QueueingStore) -> None:
    go = threading.Event()

    @durable.workflow(name="late")
    def late(step: durable.Step, deps: Any, n: int) -> Any:
        handle = step.start(doubles, n, key="child")
        step("wait", lambda: bool(go.wait(WITHIN)))
        return step.wait_all([handle])

    handle = durable.start(late, 4, id="p", store=store)
    with worker_of(store, more=[late], concurrency=2):
        wait_until(lambda: store.status("p/child") == "completed", "the run gets there")
        go.set()
        assert handle.result(WITHIN) == [8]


def test_a_purged_child_harms_nothing(store: QueueingStore) -> None:
    handle = durable.start(fans, 2, id="p", store=store)
    worker = worker_of(store, suspend_after=0.0)
    worker.run_until_idle()
    if store.status("p") != "completed":
        store.purge(older_than=0.0)
    with worker_of(store):
        assert handle.result(WITHIN) == [0, 2]


def test_a_parent_that_is_run_here_waits_here(store: QueueingStore) -> None:
    with worker_of(store):
        assert durable.run(None, calls, id="p", input=3, store=store) == [6, 8]
        assert durable.run(None, calls, id="p", input=3, store=store) == [6, 8]
        assert asyncio.run(durable.run(None, acalls, id="q", input=3, store=store)) == [6, 8]


def test_a_cancellation_goes_down(store: QueueingStore) -> None:
    @durable.workflow(name="grand")
    def grand(step: durable.Step, deps: Any, n: int) -> Any:
        return step.call(hopes, "waits", key="child")

    handle = durable.start(grand, 1, id="g", store=store)
    run_until_it_waits(store, "g", more=[grand])
    wait_until(lambda: store.status("g/child/child") == "suspended", "the run gets there")
    assert handle.cancel()
    assert [store.status(one) for one in ("g", "g/child", "g/child/child")] == ["cancelled"] * 3
    # What was cancelled with its parent goes on with it.
    durable.retry(store, "g")
    run_until_it_waits(store, "g", more=[grand])
    wait_until(lambda: store.status("g/child/child") == "suspended", "the run gets there")
    durable.signal(store, "g/child/child", "go", 5)
    with worker_of(store, more=[grand]):
        assert handle.result(WITHIN) == 6


def test_a_retried_parent_retries_the_child_that_has_failed(store: QueueingStore) -> None:
    broken = [True]

    @durable.workflow(name="mends")
    def mends(step: durable.Step, deps: Any, n: int) -> int:
        if broken[0]:
            raise ValueError
        return n

    handle = durable.start(trusts, "mends", id="p", store=store)
    with worker_of(store, more=[mends]):
        with pytest.raises(ChildFailed, match="'p/child' has ended as failed"):
            handle.result(WITHIN)
        broken[0] = False
        durable.retry(store, "p")
        assert handle.result(WITHIN) == 1
    assert store.status("p/child") == "completed"


def test_a_completed_child_is_joined_by_a_parent_that_goes_back(store: QueueingStore) -> None:
    seen: list[int] = []

    @durable.workflow(name="counted")
    def counted(step: durable.Step, deps: Any, n: int) -> int:
        seen.append(n)
        return n

    @durable.workflow(name="fails-later")
    def fails_later(step: durable.Step, deps: Any, n: int) -> Any:
        value = step.call(counted, n, key="child")
        if len(seen) and not durable.current().attempt > 1 + 2 and store.status("p") == "running" and not again:  # type: ignore[union-attr]
            raise ValueError
        return value

    again: list[bool] = []
    handle = durable.start(fails_later, 7, id="p", store=store)
    with worker_of(store, more=[counted, fails_later]):
        with pytest.raises(ValueError):
            handle.result(WITHIN)
        again.append(True)
        durable.retry(store, "p", from_step="child")
        assert handle.result(WITHIN) == 7
    assert seen == [7]


def test_an_id_that_another_run_has_is_refused_and_that_is_recorded(store: QueueingStore) -> None:
    durable.start(doubles, 1, id="p/child", store=store)
    handle = durable.start(trusts, "doubles", id="p", store=store)
    with worker_of(store), pytest.raises(RunExists, match="p/child"):
        handle.result(WITHIN)


def test_a_fork_has_children_of_its_own(store: QueueingStore) -> None:
    handle = durable.start(calls, 3, id="p", store=store)
    with worker_of(store):
        handle.result(WITHIN)
        forked = handle.fork(from_step="b", new_id="q")
        assert forked.result(WITHIN) == [6, 8]
    assert (store.status("q/a"), store.status("q/b")) == (None, "completed")


def test_a_long_id_ends_in_a_hash(store: QueueingStore) -> None:
    handle = durable.start(fans, 1, id="é" * 252, store=store)
    with worker_of(store):
        assert handle.result(WITHIN) == [0]
    (child,) = [run.id for run in store.runs() if run.id != handle.id]  # type: ignore[attr-defined]
    assert len(child.encode()) <= 512


def test_a_continued_parent_has_new_children(store: QueueingStore) -> None:
    @durable.workflow(name="goes-on")
    def goes_on(step: durable.Step, deps: Any, n: int) -> int:
        value = step.call(doubles, n, key="child")
        if n < 3:
            step.continue_with(n + 1)
        return value

    handle = durable.start(goes_on, 1, id="p", store=store)
    with worker_of(store, more=[goes_on]):
        assert handle.result(WITHIN) == 6
    assert [store.status(one) for one in ("p/child", "p~1/child", "p~2/child")] == ["completed"] * 3


def test_a_child_that_goes_on_with_another_input_ends_once(store: QueueingStore) -> None:
    @durable.workflow(name="counts-up")
    def counts_up(step: durable.Step, deps: Any, n: int) -> int:
        if n < 3:
            step.continue_with(n + 1)
        return n

    handle = durable.start(hopes, "counts-up", id="p", store=store)
    with worker_of(store, more=[counts_up]):
        assert handle.result(WITHIN) == 3


def test_another_child_under_the_same_key_is_refused(store: QueueingStore) -> None:
    @durable.workflow(name="confused")
    def confused(step: durable.Step, deps: Any, n: int) -> Any:
        step.start(doubles, 1, key="child")
        with pytest.raises(KeyConflict):
            step.start(doubles, 2, key="child")
        with pytest.raises(KeyConflict):
            step.start(breaks, 1, key="child")
        with pytest.raises(InvalidArgument, match=r"step\.start returns"):
            step.wait_all([1])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        with pytest.raises(InvalidArgument, match="list"):
            step.wait_all("child")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        return step.wait_all([])

    handle = durable.start(confused, 1, id="p", store=store)
    with worker_of(store, more=[confused]):
        assert handle.result(WITHIN) == []


def test_all_are_waited_for_before_the_first_failure_is_raised(store: QueueingStore) -> None:
    @durable.workflow(name="mixed")
    def mixed(step: durable.Step, deps: Any, n: int) -> Any:
        handles = [step.start(fn, i, key=f"{i}") for i, fn in enumerate([doubles, breaks, doubles, breaks])]
        with pytest.raises(ChildFailed, match="'p/1'"):
            step.wait_all(handles)
        return [
            repr(one) if isinstance(one, Exception) else one for one in step.wait_all(handles, return_exceptions=True)
        ]

    handle = durable.start(mixed, 1, id="p", store=store)
    with worker_of(store, more=[mixed]):
        first, second, third, fourth = handle.result(WITHIN)
    assert (first, third) == (0, 4)
    assert "'p/1'" in second
    assert "'p/3'" in fourth


@pytest.mark.parametrize("kind", ["memory", "postgres"])
def test_a_child_of_a_scope_or_an_item_has_its_key_in_full(kind: str, request: pytest.FixtureRequest) -> None:
    """And is waited for from anywhere; the parent is suspended meanwhile, an item that holds it is not in the way."""
    store: Any = memory() if kind == "memory" else request.getfixturevalue("database").store()

    @durable.workflow(name="leaf")
    def leaf(step: durable.Step, deps: Any, n: int) -> int:
        return n * 10

    @durable.workflow(name="tree")
    async def tree(step: durable.AsyncStep, deps: Any) -> list[Any]:
        with step.scope("early"):
            handle = await step.start(leaf, 1, key="one")

        async def item(n: int) -> int:
            return await step.call(leaf, n, key="child")

        return [handle.id, await step.map("each", item, [2, 3]), await step.wait_all([handle])]

    with store:
        started = durable.start(tree, store=store, id="t")
        durable.Worker(store, None, [tree, leaf], concurrency=1, suspend_after=0).run_until_idle()
        assert started.result(timeout=0) == ["t/early/one", [20, 30], [10]]
