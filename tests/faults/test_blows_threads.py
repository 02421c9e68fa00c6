"""FAULTS 170: a fault at every line of each thread of ours, a thread that cannot be started, and log handlers that raise or take long."""

# pyright: reportUnknownLambdaType=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# (`execute` takes workflows of either colour, as Any.)

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psycopg
import pytest

import durable
from durable.stores import PostgresStore
from durable.stores._postgres.connections import Connections
from harness.blows import Tally, places
from harness.support import Database

execute: Any = durable.run  # in either colour

_SOURCE = str(Path(durable.__file__).parent)
_PATIENCE = 20.0  # seconds, after which something hangs
_THREADS = ("durable-writer", "durable-heartbeat", "durable-watchdog", "durable-transaction", "durable-connecting")


def _body(connection: Any) -> int:
    return int(connection.execute("SELECT 1").fetchone()[0])


async def _workflow(step: Any, deps: Any) -> list[int]:
    first = await step("a", lambda: 1)
    second = await step.transaction("t", _body)
    await asyncio.sleep(deps.nap)
    return [first, second, await step("b", lambda: 2)]


_RESULT = [1, 1, 2]


def _ran(store: PostgresStore, id: str, nap: float = 0.0, lease: float = 30.0) -> Any:
    """What a run comes to on a thread of its own."""
    came: list[Any] = []

    def work() -> None:
        try:
            came.append(asyncio.run(execute({"nap": nap}, _workflow, id=id, store=store, lease=lease)))
        except BaseException as problem:
            came.append(problem)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return came[0] if came else "hangs"


class _Fault:
    """A trace function for threads that raises MemoryError at the n-th line of the victim's."""

    def __init__(self, victim: str) -> None:
        self._victim = victim
        self._left = 0
        self.where = ""

    def arm(self, n: int) -> None:
        self._left, self.where = n, ""

    def __call__(self, frame: Any, _event: str, _: Any) -> Any:
        ours = threading.current_thread().name == self._victim and frame.f_code.co_filename.startswith(_SOURCE)
        return self._line if ours else None

    def _line(self, frame: Any, event: str, _: Any) -> Any:
        if event == "line" and self._left:
            self._left -= 1
            if not self._left:
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
                raise MemoryError
        return self._line


@pytest.fixture
def quiet() -> Iterator[None]:
    """Threads that end with an exception say nothing."""
    before, threading.excepthook = threading.excepthook, lambda _: None
    yield
    threading.excepthook = before
    threading.settrace(None)


@pytest.mark.usefixtures("quiet")
@pytest.mark.filterwarnings("ignore:.*was deleted while still open", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "victim",
    [pytest.param(name, marks=pytest.mark.long(20 if name == "durable-heartbeat" else 2)) for name in _THREADS],
)
def test_a_fault_at_every_line(victim: str, database: Database) -> None:
    """The run ends with its value or an error, and runs that come later on the same store have theirs."""
    nap, lease = (0.5, 0.5) if victim == "durable-heartbeat" else (0.0, 30.0)
    numbers = places(41 if victim != "durable-heartbeat" else 23)
    _strike(victim, numbers, database, nap, lease).show(f"a fault at every line of {victim}")


@pytest.mark.usefixtures("quiet")
@pytest.mark.filterwarnings("ignore:.*was deleted while still open", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("victim", _THREADS)
def test_a_fault_as_a_thread_begins(victim: str, database: Database) -> None:
    """Whoever starts it holds a lock, and waits until it has begun. What is done once is not done again and again."""
    _strike(victim, range(1, 9), database, 0.0, 30.0).show(f"a fault at the first lines of {victim}")
    for thread in threading.enumerate():
        if thread.name == "durable-connecting":
            thread.join(_PATIENCE)
            assert not thread.is_alive(), "it makes one connection after the other"


def _strike(victim: str, numbers: Iterable[int], database: Database, nap: float, lease: float) -> Tally:
    tally, fault = Tally(), _Fault(victim)
    database.store().status("warm")
    for n in numbers:
        store = database.store()
        fault.arm(n)
        threading.settrace(fault)
        came = _ran(store, f"r{n}", nap, lease)
        threading.settrace(None)
        if not fault.where:
            break
        at = f"{n} {fault.where}"
        tally.blows += 1
        tally.came[type(came).__name__] += 1
        if came == "hangs":
            tally.hangs.append(at)
            break
        if came != _RESULT and not isinstance(came, durable.StoreError | MemoryError):
            tally.wrong.append(f"{at}: {came!r}")
        if (later := [_ran(store, f"later {n} {i}", nap, lease) for i in range(2)]) != [_RESULT] * 2:
            tally.stores_lost.append(f"{at}: {later!r}")
        if isinstance(again := _ran(store, f"r{n}"), durable.ConcurrentExecution):
            tally.leases_kept.append(at)
        elif again != _RESULT:
            tally.wrong.append(f"{at}: again {again!r}")
        store.close()
    gc.collect()  # connections of threads that were struck down: here, where nothing is said of them
    return tally


@pytest.mark.parametrize("victim", _THREADS)
def test_a_thread_that_cannot_be_started(victim: str, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its caller gets an error that says so, or it was started for the next; and all goes on."""
    start, failed = threading.Thread.start, list[str]()

    def fails_once(thread: threading.Thread) -> None:
        if thread.name == victim and not failed:
            failed.append(victim)
            raise RuntimeError("can't start new thread")
        start(thread)

    store = database.store()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fails_once)
        came = _ran(store, "r")
    assert failed
    assert came == _RESULT or (isinstance(came, durable.StoreUnavailable) and "thread" in str(came))
    assert _ran(store, "r") == _RESULT
    assert _ran(store, "another") == _RESULT


@pytest.mark.parametrize("when", ["before it answers", "when it has answered"])
@pytest.mark.parametrize("answer", ["a connection", "an error"])
def test_a_fault_of_a_connecting_thread_makes_no_second_connection(
    when: str, answer: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread comes to an end: else it would make one connection after the other, until the server had none left."""
    tried, connected = list[threading.Thread](), Connections._connect_somewhere

    class Struck(Future[Any]):
        def set_result(self, result: Any) -> None:
            self._struck(super().set_result, result)

        def set_exception(self, exception: BaseException | None) -> None:
            self._struck(super().set_exception, exception)

        def _struck(self, told: Callable[[Any], None], value: Any) -> None:
            if when == "when it has answered":
                told(value)
                raise MemoryError
            if not isinstance(value, MemoryError):
                raise MemoryError
            told(value)

    def counted(connections: Connections, seconds: int) -> Any:
        tried.append(threading.current_thread())
        if len(tried) > 1:
            threading.Event().wait()  # where it comes again, it shall not do so for ever
        if answer == "an error":
            raise psycopg.OperationalError("no connection")
        return connected(connections, seconds)

    store = database.store()
    with monkeypatch.context() as patch:
        patch.setattr(Connections, "_connect_somewhere", counted)
        patch.setattr("durable.stores._postgres.connections.Future", Struck)
        is_told = (when, answer) == ("when it has answered", "a connection")
        with nullcontext() if is_told else pytest.raises((durable.StoreUnavailable, MemoryError)):
            store._held.resources.connections.connect(store.clock.elapsed() + _PATIENCE).close()
        tried[0].join(_PATIENCE)
        assert not tried[0].is_alive()
    assert len(tried) == 1
    assert _ran(store, "r") == _RESULT


def test_a_lease_that_no_thread_can_give_back(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the run has come to is told, and not that; its process may take it up again at once. (Found by the simulation.)"""
    lives: list[str] = []

    def refuses(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def workflow(_step: Any, deps: Any) -> str:
        lives.append("begun")
        if len(lives) == 1:  # nothing was recorded: the writer of small records has no thread yet
            deps.patch.setattr(threading.Thread, "start", refuses)
            raise asyncio.CancelledError
        return "done"

    with database.store() as store:
        with monkeypatch.context() as patch, pytest.raises(asyncio.CancelledError):
            asyncio.run(execute({"patch": patch}, workflow, id="r", store=store))
        assert asyncio.run(execute({}, workflow, id="r", store=store)) == "done"


class _Handler(logging.Handler):
    def __init__(self, does: Callable[[logging.LogRecord], object]) -> None:
        super().__init__()
        self.emit = does  # type: ignore[method-assign, assignment]


def _raises(_: logging.LogRecord) -> None:
    raise ValueError("a handler with a bug")


@pytest.mark.parametrize("how", ["a filter that raises", "a handler that raises", "a handler that takes long"])
def test_a_log_handler_costs_no_lease(how: str, database: Database) -> None:
    """A body that stalls is reported by the heartbeat's thread, which all leases of the process depend on."""
    log, store, release = logging.getLogger("durable"), database.store(), threading.Event()
    handler = _Handler(_raises if "raises" in how else lambda _: release.wait(_PATIENCE))
    if "filter" in how:
        log.addFilter(_raises)  # type: ignore[arg-type]
    log.addHandler(handler)

    def stalls(step: Any, _: Any) -> str:
        reported = step("stalls", lambda: release.wait(3.0) or "not ended")
        return str(reported)

    def innocent(step: Any, _: Any) -> int:
        step("works", lambda: release.wait(3.0) or 1)
        return int(step("b", lambda: 2))

    came: dict[str, Any] = {}

    def work(id: str, workflow: Callable[[Any, Any], Any]) -> None:
        try:
            came[id] = execute(None, workflow, id=id, store=store, lease=0.7)
        except BaseException as problem:
            came[id] = problem

    try:
        threads = [threading.Thread(target=work, args=given) for given in (("stalls", stalls), ("innocent", innocent))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(_PATIENCE)
    finally:
        release.set()
        log.removeHandler(handler)
        log.removeFilter(_raises)  # type: ignore[arg-type]
    assert came == {"stalls": "not ended", "innocent": 2}
