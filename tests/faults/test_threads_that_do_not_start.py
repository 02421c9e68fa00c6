"""A thread that cannot be started, for whatever it is: an error that says so, nothing recorded that was not, no lease kept."""

# pyright: reportUnknownLambdaType=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# (`execute` takes workflows of either colour, as Any.)

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
import pytest

import durable
from durable.stores import PostgresStore, memory
from durable.stores._adapters.kinds import AnyStore
from durable.stores._postgres import hosts
from durable.stores._postgres.job import Job
from durable.stores._postgres.jobs import CANCEL, CHECKPOINT, ENQUEUE, FINISH, POLL, SIGNAL
from durable.stores._postgres.sender import Performer
from durable.stores._postgres.session import Session
from durable.stores._postgres.verbs import PostgresVerb
from harness.blows import Dictionary
from harness.ownership_children import wait_until
from harness.support import Database

execute: Any = durable.run  # in either colour


class _Refuses:
    """In place of `Thread.start`: the first so many threads of this name are not started."""

    def __init__(self, name: str, problem: type[Exception], after: int = 0) -> None:
        self._name = name
        self._problem = problem
        self._after = after
        self._start: Any = threading.Thread.start
        self.refused = 0

    def __get__(self, thread: Any, _: Any) -> Callable[[], None]:
        return lambda: self.start(thread)

    def start(self, thread: threading.Thread) -> None:
        if thread.name.startswith(self._name) and not self.refused:
            if not self._after:
                self.refused += 1
                raise self._problem("can't start new thread")
            self._after -= 1
        self._start(thread)


def _body(connection: Any) -> int:
    return int(connection.execute("SELECT 1").fetchone()[0])


def _called() -> int:
    return 2


class _Workflow:
    """Of either colour, with each kind of step that has a thread, and catches what a step raises."""

    def __init__(self, *, transacts: bool) -> None:
        self._transacts = transacts
        self.caught: list[Exception] = []

    def blocking(self, step: Any, _: Any) -> list[Any]:
        came: list[Any] = [step("a", lambda: 1)]
        try:
            came += [step("timeout", _called, timeout=20), step.map("m", int, [3, 4])]
            if self._transacts:
                came += [step.transaction("t", _body), step.transaction("t with timeout", _body, timeout=20)]
        except Exception as problem:
            self.caught.append(problem)
        return came

    async def awaited(self, step: Any, _: Any) -> list[Any]:
        came: list[Any] = [await step("a", lambda: 1)]
        try:
            came += [await step("timeout", _called, timeout=20), await step.map("m", int, [3, 4])]
            if self._transacts:
                came += [
                    await step.transaction("t", _body),
                    await step.transaction("t with timeout", _body, timeout=20),
                ]
        except Exception as problem:
            self.caught.append(problem)
        return came


def _store(kind: str, database: Database) -> AnyStore:
    if kind == "postgres":
        return database.store()
    return memory() if kind == "memory" else Dictionary()


@pytest.mark.parametrize("problem", [RuntimeError, MemoryError])
@pytest.mark.parametrize(
    "victim",
    ["durable-step timeout", "durable-step t", "durable-map_0", "durable-map_1", "durable-store_0", "durable-store_1"],
)
@pytest.mark.parametrize("colour", ["blocking", "awaited"])
@pytest.mark.parametrize("kind", ["memory", "postgres", "five verbs"])
def test_a_thread_that_cannot_be_started(
    kind: str, colour: str, victim: str, problem: type[Exception], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is left with `StoreUnavailable`, which no workflow catches as a failure of its step; or it had no need of it."""
    store, workflow = _store(kind, database), _Workflow(transacts=kind == "postgres")

    def run() -> Any:
        if colour == "blocking":
            return execute(None, workflow.blocking, id="r", store=store)
        return asyncio.run(execute(None, workflow.awaited, id="r", store=store))

    result = [1, 2, [3, 4]] + ([1, 1] if kind == "postgres" else [])
    refuses = _Refuses(victim, problem)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuses)
        try:
            came = run()
        except durable.StoreUnavailable as unavailable:
            assert "no thread can be started" in str(unavailable)
        else:
            assert came == result
    assert workflow.caught == []
    assert run() == result


@durable.workflow
def one(_step: durable.Step, _: None) -> int:
    """What the worker below is there for."""
    return 1


def test_a_worker_that_no_thread_can_be_started_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so, is not at work, and works when it is entered again."""
    store = memory()
    worker = durable.Worker(store, None, [one])

    def enter() -> int:
        with worker:
            return durable.start(one, store=store).result(timeout=60)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", _Refuses("durable-worker", RuntimeError))
        with pytest.raises(durable.StoreUnavailable, match="no thread can be started"):
            enter()
    assert enter() == 1


def test_a_host_that_no_thread_can_be_started_for() -> None:
    """The others are asked all the same."""

    def connect(host: hosts.Host) -> Any:
        return f"connected to {host.host}"

    order = [hosts.Host("one", "", "1"), hosts.Host("two", "", "2")]
    refuses = _Refuses("durable-connecting", RuntimeError)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuses)
        came: Any = hosts.connect_first(order, connect, 5.0)
    assert came == (order[1], "connected to two")
    assert refuses.refused == 1


class _Raises(logging.Handler):
    """Counts what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.given.append(record.getMessage())
        raise ValueError("a handler with a bug")


@pytest.fixture
def raises() -> Any:
    log, handler = logging.getLogger("durable"), _Raises()
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)


@pytest.mark.parametrize("colour", ["blocking", "awaited"])
def test_a_handler_that_raises_where_a_timeout_is_logged(colour: str, raises: _Raises) -> None:
    ends = threading.Event()

    def blocking(step: Any, _: Any) -> Any:
        return step("slow", ends.wait, timeout=0.05)

    async def awaited(step: Any, _: Any) -> Any:
        return await step("slow", ends.wait, timeout=0.05)

    with memory() as store, pytest.raises(durable.StepTimeout):
        if colour == "blocking":
            execute(None, blocking, id="r", store=store)
        else:
            asyncio.run(execute(None, awaited, id="r", store=store))
    ends.set()
    assert any("timeout" in message for message in raises.given)


def test_a_handler_that_raises_where_a_doubt_is_logged(database: Database, raises: _Raises) -> None:
    database.store().status("makes the tables")
    database.execute("ALTER TABLE durable_signals SET UNLOGGED")
    assert execute(None, lambda step, _: step("a", lambda: 1), id="r", store=database.store()) == 1
    assert any("UNLOGGED" in message for message in raises.given)


def test_a_handler_that_raises_where_a_listener_is_logged(raises: _Raises) -> None:
    def listens(_: Any) -> None:
        raise KeyError("a listener with a bug")

    with memory() as store:
        assert execute(None, lambda step, _: step("a", lambda: 1), id="r", store=store, on_event=listens) == 1
    assert any("listener" in message for message in raises.given)


class _NeverStarts(_Refuses):
    """No thread of this name is started until it is told otherwise."""

    def start(self, thread: threading.Thread) -> None:
        if thread.name.startswith(self._name):
            self.refused += 1
            raise self._problem("can't start new thread")
        self._start(thread)


class _Loses:
    """In place of what performs batches: the reply to the first of this verb is lost."""

    def __init__(self, store: PostgresStore, verb: PostgresVerb, *, arrived: bool) -> None:
        self.watches = self.for_ever = False
        self.lost = 0
        self._verb = verb
        self._arrived = arrived
        resources: Any = store._held.resources
        self._real: Performer = resources._small._sender._performer
        for way in ("_small", "_large", "_claims", "_long", "_polls", "_starts"):
            getattr(resources, way)._sender._performer = self

    def perform(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        """See `sender.Performer`."""
        if not self.watches or jobs[0].verb is not self._verb or (self.lost and not self.for_ever):
            return self._real.perform(session, jobs)
        self.lost += 1
        if self._arrived:
            self._real.perform(session, jobs)
            if self._verb is CHECKPOINT:  # no reply has come that it could be counted by
                lease = jobs[0].payload.lease
                lease.note_stored(lease.records - 1, lease.server)
        raise psycopg.OperationalError("the connection is lost")

    def read_back(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        """See `sender.Performer`."""
        return self._real.read_back(session, jobs)


@durable.workflow(name="marked")
def _marked(step: durable.Step, _: Any) -> Any:
    return step("a", lambda: 1)


def _interrupted(step: durable.Step, _: Any) -> None:
    step("a", lambda: 1)
    raise KeyboardInterrupt


@pytest.mark.parametrize("arrived", [True, False], ids=["committed", "lost on its way"])
@pytest.mark.parametrize("verb", [SIGNAL, CHECKPOINT, FINISH, POLL, ENQUEUE, CANCEL], ids=str)
def test_a_lost_reply_where_no_writer_can_be_started(
    database: Database, monkeypatch: pytest.MonkeyPatch, verb: PostgresVerb, arrived: bool
) -> None:
    """The caller that has sent it finds out itself what became of it: nothing is done twice, and no lease is left behind."""
    store = database.store()
    performer = _Loses(store, verb, arrived=arrived)

    def workflow(step: durable.Step, _: Any) -> Any:
        return step("a", lambda: 1)

    def act() -> Any:
        if verb is SIGNAL:
            return durable.signal(store, "x", "approved", 7, create_later=True)
        if verb is ENQUEUE:
            return durable.start(_marked, id="started", store=store).id
        if verb is CANCEL:
            return durable.cancel(store, "interrupted")
        if verb is POLL:
            return durable.Worker(store, None, [_marked]).run_until_idle()
        return execute(None, workflow, id="x", store=store)

    if verb is CANCEL:
        with pytest.raises(KeyboardInterrupt):
            durable.run(None, _interrupted, id="interrupted", store=store)
    if verb is POLL:
        durable.start(_marked, id="started", store=store)

    monkeypatch.setattr(threading.Thread, "start", refuses := _NeverStarts("durable-writer", RuntimeError))
    performer.watches = True
    came = act()
    assert (performer.lost, bool(refuses.refused)) == (1, True)
    if verb is SIGNAL:
        assert database.execute("SELECT count(*) FROM durable_signals") == [(1,)]
    elif verb is CANCEL:
        assert store.status("interrupted") == "cancelled"
    elif verb is ENQUEUE:
        assert store.status("started") == "queued"
    elif verb is POLL:
        assert store.status("started") == "completed"
    else:
        assert (came, [key for _, key, _ in database.journal("x")]) == (1, ["a", "result"])


@pytest.mark.parametrize("kind", ["memory", "postgres"])
def test_a_worker_takes_nothing_that_it_cannot_keep(
    database: Database, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Neither a heartbeat nor a writer can be started: no lease is left to end by itself, which would count as a death."""
    with memory() as kept:
        store = kept if kind == "memory" else database.store()
        handle = durable.start(_marked, id="x", store=store)
        worker = durable.Worker(store, None, [_marked], lease=0.5)
        with monkeypatch.context() as patch:
            refuses = _NeverStarts(("durable-heartbeat", "durable-writer"), RuntimeError)  # type: ignore[arg-type]
            patch.setattr(threading.Thread, "start", refuses)
            working = threading.Thread(target=worker.run)
            working.start()
            wait_until(lambda: refuses.refused >= 3, "the third try to poll")
            worker.drain()
            working.join()
        stored = store.load("x")
        assert stored is not None
        assert (handle.status(), stored.execution.epoch) == ("queued", 0)
        durable.Worker(store, None, [_marked]).run_until_idle()
        assert handle.result(0) == 1


def test_an_interrupted_caller_is_in_nobodys_way(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reply is lost again and again, no writer can be started, and Ctrl-C comes: the next caller is served."""
    store = database.store()
    durable.signal(store, "x", "warm", 1, create_later=True)
    performer = _Loses(store, SIGNAL, arrived=False)
    performer.for_ever = performer.watches = True
    monkeypatch.setattr(threading.Thread, "start", _NeverStarts("durable-writer", RuntimeError))

    def interrupts(_signal: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupts)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            durable.signal(store, "x", "lost", 1, create_later=True)
    finally:
        signal.signal(signal.SIGALRM, before)
    performer.watches = False
    durable.signal(store, "x", "next", 1, create_later=True)
    assert [name for (name,) in database.execute("SELECT name FROM durable_signals ORDER BY number")] == [
        "warm",
        "next",
    ]


@pytest.mark.parametrize("kind", ["memory", "postgres"])
def test_a_worker_gives_back_what_it_holds_at_the_end(
    database: Database, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """No thread can be started for that: it does so itself."""
    begun, go_on = threading.Event(), threading.Event()

    @durable.workflow(name="long")
    def long(step: durable.Step, _: Any) -> None:
        begun.set()
        step("body", lambda: go_on.wait(60.0))

    with memory() as kept:
        store = kept if kind == "memory" else database.store()
        handle = durable.start(long, store=store)
        worker = durable.Worker(store, None, [long], grace=0)
        monkeypatch.setattr(
            threading.Thread, "start", refuses := _NeverStarts("durable-worker-gives-back", RuntimeError)
        )
        working = threading.Thread(target=worker.run)
        working.start()
        assert begun.wait(30.0)
        worker.drain()
        working.join()
        assert (handle.status(), bool(refuses.refused)) == ("interrupted", True)
        go_on.set()
