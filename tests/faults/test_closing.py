"""A store or an event loop that is closed in the midst: nothing waits for itself, and no lease is kept."""

# pyright: reportUnknownLambdaType=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (`execute` takes workflows of either colour, as Any.)

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

import durable
from durable.stores import memory
from durable.stores._adapters.kinds import AnyStore
from harness.blows import HANGS, Dictionary, Tally, places, within
from harness.support import Database

execute: Any = durable.run  # in either colour

_SOURCE = str(Path(durable.__file__).parent)


class _AtLine:
    """A trace function that calls something at the n-th line of the library's, as a signal handler does."""

    def __init__(self, n: int, does: Callable[[], object]) -> None:
        self._left = n
        self._does = does
        self.where = ""

    def __call__(self, frame: Any, _event: str, _: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(_SOURCE) else None

    def _line(self, frame: Any, event: str, _: Any) -> Any:
        if event == "line":
            self._left -= 1
            if not self._left:
                sys.settrace(None)
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
                self._does()
        return self._line


def _body(connection: Any) -> int:
    return int(connection.execute("SELECT 1").fetchone()[0])


@pytest.mark.filterwarnings("ignore:.*was deleted while still open", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("leaves", [True, False], ids=["and leaves", "and goes on"])
@pytest.mark.parametrize("kind", ["memory", "postgres"])
def test_a_signal_handler_that_closes_the_store(kind: str, leaves: bool, database: Database) -> None:
    """At every line: the run ends, with its value or an error that says why, and the id is free at once."""
    tally, shared, begun = Tally(), memory(), list[str]()

    @durable.workflow(name="three")
    def workflow(step: Any, _: Any) -> list[int]:
        begun.append("begun")
        second = step.transaction("t", _body) if kind == "postgres" else step("t", lambda: 1)
        return [step("a", lambda: 1), second, step("b", lambda: 2)]

    async def crowd(step: Any, _: Any) -> int:
        return int(await step("x", lambda: 1))

    def ended(store: Any, id: str, strike: _AtLine) -> Any:
        sys.settrace(strike)
        try:
            return execute(None, workflow, id=id, store=store)
        finally:
            sys.settrace(None)

    for n in places(61):
        store = shared if kind == "memory" else database.store()
        asyncio.run(
            execute(None, crowd, id=f"crowd {n}", store=store)
        )  # so that its threads are there, to be waited for

        def close(store: Any = store) -> None:
            store.close()
            if leaves:
                raise SystemExit(3)

        begun.clear()
        strike = _AtLine(n, close)
        came = within(lambda store=store, strike=strike, n=n: ended(store, f"r{n}", strike))
        if not strike.where:
            break
        at = f"{n} {strike.where}"
        tally.blows += 1
        tally.came[type(came).__name__] += 1
        if came == HANGS:
            tally.hangs.append(at)
        elif came != [1, 1, 2] and not isinstance(came, SystemExit) and "the store is closed" not in str(came):
            tally.wrong.append(f"{at}: {came!r}")
        begun_before = bool(begun)
        if kind == "memory":
            cast(Any, store)._closed = False  # it is asked again, since nothing else has its runs
        with database.store() as another:
            again = within(
                lambda n=n, store=store if kind == "memory" else another: execute(
                    None, workflow, id=f"r{n}", store=store
                )
            )
        if (
            isinstance(again, durable.ConcurrentExecution) and begun_before
        ):  # else the claim's reply found nobody to take it
            tally.leases_kept.append(f"{at}: {again!r}")
        elif again != [1, 1, 2] and begun_before:
            tally.wrong.append(f"{at}: again {again!r}")
    tally.show(f"closed by a handler, {kind}")


@pytest.mark.filterwarnings("ignore:.*was deleted while still open", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_store_that_is_closed_twice_at_once(database: Database) -> None:
    """By a signal handler, at every line of the first closing."""
    tally = Tally()
    for n in places(13):
        store = database.store()
        assert execute(None, lambda step, _: step("a", lambda: 1), id=f"r{n}", store=store) == 1
        strike = _AtLine(n, store.close)

        def closed(store: Any = store, strike: _AtLine = strike) -> str:
            sys.settrace(strike)
            try:
                store.close()
            finally:
                sys.settrace(None)
            return "closed"

        came = within(closed)
        if not strike.where:
            break
        tally.blows += 1
        if came != "closed":
            tally.hangs.append(f"{n} {strike.where}: {came!r}")
    tally.show("closed twice at once")


@durable.workflow(name="waits")
async def _waits(step: Any, begun: Any) -> list[int]:
    async def body() -> int:
        begun.set()
        await asyncio.sleep(60)
        return 2

    return [await step("a", lambda: 1), await step("b", body)]


@durable.workflow(name="waits")
async def _waits_no_more(step: Any, _: Any) -> list[int]:
    return [await step("a", lambda: 0), await step("b", lambda: 2)]


class _Awaited:
    """A store of five verbs that are coroutines."""

    def __init__(self) -> None:
        self._verbs = Dictionary()

    async def save(self, id: str, snapshot: durable.Snapshot) -> None:
        self._verbs.save(id, snapshot)

    async def load(self, id: str) -> durable.Snapshot | None:
        return self._verbs.load(id)

    async def delete(self, id: str) -> None:
        self._verbs.delete(id)

    async def list(self, *, prefix: str = "", limit: int = 100) -> Any:
        raise NotImplementedError

    async def close(self) -> None:
        """Nothing is open."""


def _close(loop: asyncio.AbstractEventLoop) -> None:
    loop.close()


def _collect(loop: asyncio.AbstractEventLoop) -> None:
    """It is forgotten, its timers with it, and never closed."""


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("end", [_close, _collect])
@pytest.mark.parametrize("kind", ["memory", "postgres", "five verbs", "five coroutines"])
def test_an_event_loop_that_ends_under_a_run(
    kind: str, end: Callable[[asyncio.AbstractEventLoop], None], database: Database
) -> None:
    store: AnyStore
    if kind == "five coroutines":
        store = _Awaited()
    else:
        store = {"memory": memory, "postgres": database.store, "five verbs": Dictionary}[kind]()  # type: ignore[operator]
    loop, begun = asyncio.new_event_loop(), asyncio.Event()
    task = loop.create_task(execute(begun, _waits, id="r", store=store))

    loop.run_until_complete(begun.wait())
    loop.run_until_complete(asyncio.sleep(0))
    end(loop)
    del task, loop, begun
    assert _free_soon(store) == [1, 2]


def _free_soon(store: AnyStore) -> Any:
    """What the run comes to once it is garbage, which a thread of ours may hold for a moment, and its lease is given back."""
    for _ in range(20):
        gc.collect()
        with contextlib.suppress(durable.WaitTimedOut):
            return asyncio.run(execute(None, _waits_no_more, id="r", store=store, on_conflict="wait", wait_timeout=0.5))
    return "its lease is kept"


def test_a_store_that_is_closed_under_an_async_run(database: Database) -> None:
    """The step after it says so, and the lease does not outlive the run."""
    store = database.store()

    @durable.workflow(name="closes")
    async def workflow(step: Any, _: Any) -> list[int]:
        first = await step("a", lambda: 1)
        store.close()
        return [first, await step("b", lambda: 2)]

    with pytest.raises(durable.InvalidArgument, match="the store is closed"):
        asyncio.run(execute(None, workflow, id="r", store=store))

    @durable.workflow(name="closes")
    async def again(step: Any, _: Any) -> list[int]:
        return [await step("a", lambda: 0), await step("b", lambda: 2)]

    with database.store() as another:
        assert asyncio.run(execute(None, again, id="r", store=another)) == [1, 2]


def test_a_finalizer_that_closes_the_store_in_its_own_threads(database: Database) -> None:
    """A garbage collection comes in any thread, also in those that closing waits for."""
    store = database.store()
    asyncio.run(execute(None, _waits_no_more, id="r", store=store))
    process, came = store._held.resources, list[Any]()

    writer = process._small
    thread, next_ = writer._thread, writer._take_batch
    assert thread is not None

    def closes() -> Any:
        if not came:
            store.close()
            came.append("closed")
        return next_()

    writer._take_batch = closes  # type: ignore[method-assign]
    writer._wake.set()
    thread.join(20)
    assert came == ["closed"]
    assert not thread.is_alive()
