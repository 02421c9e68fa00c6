"""A forked child finds no lock taken by a thread that it does not have, and what was being executed is its parent's."""

# pyright: reportUnknownLambdaType=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# (`execute` takes workflows of either colour, as Any.)

from __future__ import annotations

import asyncio
import os
import select
import signal
import threading
import time
import warnings
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

import durable
from durable.clocks import SystemClock
from durable.stores import MemoryStore, memory
from harness.blows import Dictionary
from harness.support import Database

execute: Any = durable.run  # in either colour

_PATIENCE = 20.0  # seconds, after which something hangs


def _in_child(work: Callable[[], object]) -> str:
    """What `work` comes to in a forked child, as text."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            said = repr(work())
        except BaseException as problem:
            said = f"{type(problem).__name__}: {problem}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    ready, _, _ = select.select([reading], [], [], _PATIENCE)
    said = os.read(reading, 65536).decode() if ready else "hangs"
    os.close(reading)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return said


def _one(step: Any, _: Any) -> int:
    return int(step("a", lambda: 1))


def _charge() -> int:
    return 1


async def _one_async(step: Any, _: Any) -> int:
    return int(await step("a", lambda: 1))


def _at_once(work: Callable[[int], Any], threads: int) -> list[Any]:
    """What so many threads come to that begin together."""
    barrier, came = threading.Barrier(threads), list[Any]()

    def begin(number: int) -> None:
        barrier.wait()
        try:
            came.append(work(number))
        except BaseException as problem:
            came.append(problem)

    every = [threading.Thread(target=begin, args=(number,)) for number in range(threads)]
    for thread in every:
        thread.start()
    for thread in every:
        thread.join()
    return came


def test_threads_of_a_child_that_use_the_store_first_at_once(database: Database) -> None:
    """They share what the child holds of it: one identity, one set of connections."""
    with database.store() as store:
        execute(None, _one, id="parent", store=store)
        for fork in range(3):
            came = _in_child(lambda: _at_once(lambda n: execute(None, _one, id=f"{fork} {n}", store=store), 8))  # noqa: B023
            assert came == repr([1] * 8)


class _Held(SystemClock):
    """A clock on which a thread stands still once, wherever it has asked for the moment."""

    def __init__(self) -> None:
        self.armed = False
        self.stands, self.goes_on = threading.Event(), threading.Event()

    def now(self) -> datetime:
        if self.armed:
            self.armed = False
            self.stands.set()
            self.goes_on.wait(_PATIENCE)
        return super().now()


@pytest.mark.parametrize("colour", ["blocking", "async"])
def test_a_store_in_memory_that_another_thread_is_writing_to(colour: str) -> None:
    clock = _Held()
    store = MemoryStore(clock=clock)
    asyncio.run(execute(None, _one_async, id="warm", store=store))  # its threads are the parent's
    snapshot = store.load("warm")
    assert snapshot is not None
    clock.armed = True
    writing = threading.Thread(target=lambda: store.save("other", snapshot))
    writing.start()
    clock.stands.wait(_PATIENCE)
    try:
        if colour == "blocking":
            assert _in_child(lambda: execute(None, _one, id="child", store=store)) == "1"
        else:
            assert _in_child(lambda: asyncio.run(execute(None, _one_async, id="child", store=store))) == "1"
    finally:
        clock.goes_on.set()
        writing.join()
    store.close()


@pytest.mark.parametrize("colour", ["blocking", "async"])
def test_a_run_in_memory_that_another_thread_was_executing(colour: str) -> None:
    """It is the parent's: the id is free in the child, and what was recorded is there."""
    store, begun, goes_on = memory(), threading.Event(), threading.Event()

    def body() -> int:
        begun.set()
        goes_on.wait(_PATIENCE)
        return 2

    @durable.workflow(name="two")
    def workflow(step: Any, _: Any) -> list[int]:
        return [step("a", lambda: 1), step("b", body)]

    @durable.workflow(name="two")
    async def workflow_async(step: Any, _: Any) -> list[int]:
        return [await step("a", lambda: 1), await step("b", body)]

    @durable.workflow(name="two")
    def mended(step: Any, _: Any) -> list[int]:
        return [step("a", lambda: 0), step("b", lambda: 3)]

    def run() -> Any:
        if colour == "blocking":
            return execute(None, workflow, id="r", store=store)
        return asyncio.run(execute(None, workflow_async, id="r", store=store))

    came: list[Any] = []
    running = threading.Thread(target=lambda: came.append(run()))
    running.start()
    begun.wait(_PATIENCE)
    try:
        assert _in_child(lambda: execute(None, mended, id="r", store=store)) == "[1, 3]"
    finally:
        goes_on.set()
        running.join()
    assert came == [[1, 2]]
    store.close()


def test_a_run_in_memory_that_forked_goes_on_in_its_parent_only() -> None:
    store = memory()
    reading, writing = os.pipe()

    def workflow(step: Any, _: Any) -> int:
        return int(step("forks", os.fork))

    try:
        came = execute(None, workflow, id="r", store=store)
    except durable.LeaseLost as problem:
        os.write(writing, str(problem).encode())
        os._exit(0)
    assert came
    os.waitpid(came, 0)
    assert "the process that this one was forked from" in os.read(reading, 4096).decode()
    os.close(reading)
    os.close(writing)
    store.close()


def test_a_store_of_five_verbs_that_another_thread_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within its `load`, in which nobody else begins that run."""
    store, begun, goes_on = Dictionary(), threading.Event(), threading.Event()
    load = store.load

    def slow(id: str) -> Any:
        begun.set()
        goes_on.wait(_PATIENCE)
        return load(id)

    monkeypatch.setattr(store, "load", slow)
    running = threading.Thread(target=lambda: execute(None, _one, id="r", store=store))
    running.start()
    begun.wait(_PATIENCE)
    monkeypatch.setattr(store, "load", load)
    try:
        assert _in_child(lambda: execute(None, _one, id="r", store=store)) == "1"
    finally:
        goes_on.set()
        running.join()


def test_the_first_run_without_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """While another thread is being warned of that."""
    from durable._runtime import plan as _plan  # noqa: PLC0415 -- as in a process that has just begun

    monkeypatch.setattr(_plan, "_of_this_process", {})
    warned, goes_on = threading.Event(), threading.Event()

    def warn(*_: Any, **__: Any) -> None:
        warned.set()
        goes_on.wait(_PATIENCE)

    monkeypatch.setattr(warnings, "warn", warn)  # which the child, that finds a store, does not call
    running = threading.Thread(target=lambda: execute(None, _one, id="parent"))
    running.start()
    warned.wait(_PATIENCE)
    try:
        assert _in_child(lambda: execute(None, _one, id="child")) == "1"
    finally:
        goes_on.set()
        running.join()


def test_a_class_of_dependencies_that_another_thread_is_looking_at() -> None:
    """And a signal handler that comes while its own thread is: it must not wait for itself."""
    looked, goes_on, parent = threading.Event(), threading.Event(), os.getpid()
    begun, came = list[str](), list[Any]()

    class Strange:
        def __getattr__(self, name: str) -> Any:
            if name == "__get__" and os.getpid() == parent and not begun:
                begun.append(name)
                came.append(execute(Deps(), lambda _, deps: len(deps), id="within", store=memory()))
                looked.set()
                goes_on.wait(_PATIENCE)
            raise AttributeError(name)

    class Deps:
        __strange__ = Strange()
        charge = staticmethod(durable.step(_charge))

        def __len__(self) -> int:
            return 3

    def workflow(_: Any, deps: Any) -> int:
        return len(deps)

    running = threading.Thread(target=lambda: execute(Deps(), workflow, id="r", store=memory()))
    running.start()
    try:
        assert looked.wait(_PATIENCE)
        assert _in_child(lambda: execute(Deps(), workflow, id="r", store=memory())) == "3"
    finally:
        goes_on.set()
        running.join()
    assert came == [3]


def test_children_forked_while_threads_commit() -> None:
    """At whatever line those are."""
    store, over = memory(), threading.Event()

    def commit(thread: int) -> None:
        number = 0
        while not over.is_set():
            number += 1
            execute(
                None,
                lambda step, _: [step(f"a{n}", lambda: 1) for n in range(20)],
                id=f"{thread} {number}",
                store=store,
            )

    threads = [threading.Thread(target=commit, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        for fork in range(10):
            assert _in_child(lambda: execute(None, _one, id=f"child {fork}", store=store)) == "1"  # noqa: B023
            time.sleep(0.002)  # somewhere else
    finally:
        over.set()
        for thread in threads:
            thread.join()
    store.close()
