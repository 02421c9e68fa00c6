"""One life of a process: its clocks, threads, event loop and store, until it is killed."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, Protocol, cast

from greenlet import greenlet

from durable._common.threads import Daemons
from durable._engine.starts import NewRun
from durable._runtime import run as run_module
from durable._runtime import timeouts
from durable._runtime.async_runs import AsyncRun
from durable._runtime.async_steps import AsyncDriver
from durable._runtime.mapping import MapItems, map_blocking
from durable._runtime.runs import BlockingRun
from durable._runtime.steps import BlockingDriver
from durable.errors import StoreUnavailable
from durable.records import Record
from durable.stores._heartbeat import Heartbeat
from durable.stores._postgres import jobs, schedules, starts
from durable.stores._postgres.async_requests import AsyncRequests
from durable.stores._postgres.callers_transactions import CallersTransactions
from durable.stores._postgres.job import deliver, make_latch
from durable.stores._postgres.polls import Polling
from durable.stores._postgres.requests import Requests
from durable.stores._postgres.resources import Resources
from durable.stores._postgres.room import Room
from durable.stores._postgres.sender import Sender
from durable.stores._postgres.snapshots import Snapshots
from durable.stores._postgres.sql.names import Names
from durable.stores._postgres.store import AsyncPostgresStore, PostgresStore
from durable.stores._postgres.transaction import PostgresTransaction
from durable.stores._postgres.transaction_pool import TransactionPool
from durable.stores._postgres.writer import Writer
from durable.stores._work import perform_work
from durable.stores.protocol import Listening
from durable.stores.requests import Enqueue
from simulation import threads
from simulation.history import History
from simulation.loop import Loop
from simulation.server import Server
from simulation.statements import STATEMENTS
from simulation.timeline import Timeline
from simulation.wire import Connections, Fate, GuardedConnection, Session, Wire, is_sound

__all__ = ["Life", "Place", "RealTransaction", "acting", "is_behind", "nobody_acts", "run_here", "start_daemon"]

_EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
_SQL: Final = {name: name.encode() for name in STATEMENTS}
_NAMES: Final = Names()
_QUICK: Final = 0.0003  # seconds
_SLOW_LEASES: Final = 1.5
_PATIENCE: Final = 10.0  # seconds, of a user for a transaction
_MOST_TRANSACTIONS: Final = 2  # at once, so that more wait for room


class Place(Protocol):
    """Where processes live one after the other; it outlives them."""

    number: int
    timeline: Timeline
    server: Server
    history: History
    slow: float
    lease: float
    skew: float
    drift: float
    starved_until: float
    rate: float
    requests: int
    messages: int
    numbers: int

    def happened(self, life: Life) -> None:
        """An event of the life is over."""
        ...

    def fate(self) -> Fate | None:
        """Of the request that is sent now."""
        ...

    def lacks_thread(self) -> bool:
        """Whether the thread that is wanted now cannot be started."""
        ...

    def turn_fails(self) -> bool:
        """Whether the turn of a thread that begins now fails."""
        ...

    def listen(self, life: Life, worker: str, wake: Callable[[], object]) -> Listening:
        """Wake a worker of this life when something is said on its channel; what ends that."""
        ...


class Clock:
    """A machine's clocks: one that people read, which may be wrong and step, and one that counts through everything."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._place = life.place
        self._timeline = life.place.timeline
        self._rate = 1.0 + life.place.drift

    def now(self) -> datetime:
        """See `clocks.Clock`."""
        return _EPOCH + timedelta(seconds=self._timeline.now + self._place.skew)

    def elapsed(self) -> float:
        """See `clocks.Clock`."""
        return self._timeline.now * self._rate

    def sleep(self, seconds: float, recheck: float = math.inf) -> None:
        """See `clocks.Clock`."""
        threads.wait(self._life, min(seconds, recheck) / self._rate, lambda _: None)

    async def asleep(self, seconds: float, recheck: float = math.inf) -> None:
        """See `clocks.Clock`."""
        future = self._life.loop.create_future()
        self._life.after(min(seconds, recheck) / self._rate, _wake, future)
        await future


class Owner:
    """See `stores._owner`."""

    def __init__(self) -> None:
        life = acting()
        self.instance = f"p{life.place.number}l{life.number}"
        self.text = self.instance

    def close(self) -> None:
        """Nothing is held."""


class Life:
    """A process. While it acts, `threading` and asyncio's running loop are its own."""

    def __init__(self, place: Place, number: int) -> None:
        self.place = place
        self.number = number
        self.dead = False
        self.threads: list[greenlet] = []
        self.paused_until = 0.0
        self.timeline = place.timeline
        self.clock = Clock(self)
        self.loop = Loop(self, self.clock.elapsed)
        self.connections = Connections(cast(Any, self), place.server)
        self._enter()
        self.store = _Store(self)
        self.mark = self.store._held.resources.owner.instance  # noqa: SLF001 -- who this is

    @property
    def starved_until(self) -> float:
        """See `wire.Host`."""
        return self.place.starved_until

    @property
    def rate(self) -> float:
        """See `wire.Host`."""
        return self.place.rate

    def after(self, seconds: float, act: Callable[..., object], *args: Any) -> None:
        """See `threads.Host`."""
        if not self.dead:
            self.timeline.after(seconds, self._act, act, args)

    def fate(self) -> Fate | None:
        """See `wire.Host`."""
        return self.place.fate()

    def latency(self) -> float:
        """See `wire.Host`."""
        place = self.place
        place.messages += 1
        chance = self.timeline.chance(0, place.number, place.messages)
        if place.slow and self.timeline.chance(2, place.number, place.messages) < place.slow:
            return chance * chance * place.lease * _SLOW_LEASES
        return _QUICK + chance * chance * 0.002

    def kill(self, how: str = "") -> None:
        """Nothing of it happens any more. What it has sent arrives all the same, unless the machine `drops` it, or `lags`."""
        self.dead = True
        self.place.history.died(self.mark)
        for wire in self.connections.wires:
            wire.die(how)
        for thread in self.threads:
            if not thread.dead:
                thread.throw()
        self.loop.drop()

    @contextmanager
    def callers_connection(self) -> Iterator[Wire]:
        """A connection of the user's own, whose silence is borne for ten seconds. The server hears of its end."""
        connection = self.connections.connect(math.inf)
        self.connections.watch(connection, self.clock.elapsed() + _PATIENCE)
        try:
            yield connection
        finally:
            connection.close()
            connection.hang_up()

    def start_within(self, connection: Wire, run: NewRun) -> None:
        """Start it in the transaction of this connection, as `connection=` does."""
        callers = _CallersTransactions(self.store)
        perform_work(
            callers._enqueue(Enqueue([run])),  # noqa: SLF001 -- past the checks of a real connection
            lambda statement: list(connection.execute(statement.text, statement.values)),
        )

    def _act(self, act: Callable[..., object], args: tuple[Any, ...]) -> None:
        if self.dead:
            return
        if self.paused_until > self.timeline.now:
            self.timeline.after(self.paused_until - self.timeline.now, self._act, act, args)
            return
        if _threading.host is not self:
            self._enter()
        act(*args)
        self.place.happened(self)

    def _enter(self) -> None:
        _threading.host = self
        asyncio._set_running_loop(cast(Any, self.loop))  # noqa: SLF001 -- what a loop is to call


def _wake(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_result(None)


_threading: Final = threads.Threading()


def nobody_acts() -> None:
    """The simulation is over."""
    _threading.host = None
    asyncio._set_running_loop(None)  # noqa: SLF001 -- what a loop is to call


def acting() -> Life:
    """The process that acts just now."""
    host = _threading.host
    assert isinstance(host, Life)
    return host


def _deliver(jobs: Any) -> None:
    acting().place.history.answered(jobs)
    deliver(jobs)


def _is_dead(owner: str | None, _: str | None) -> bool:
    """See `stores._owner`: every second machine is shared, and shows who is dead on it."""
    return acting().place.server_shows_dead(owner)  # type: ignore[attr-defined,no-any-return]


_behind: Final[ContextVar[bool]] = ContextVar("durable_simulated_behind", default=False)


def is_behind() -> bool:
    """Whether the process was stopped between the start of this body's thread and the body."""
    return _behind.get()


def body_on_thread(name: str, body: Callable[[], Any]) -> Any:
    """See `timeouts.call_on_thread`."""
    asked = acting().timeline.now

    def begun() -> Any:
        _behind.set(acting().timeline.now > asked)
        return body()

    return _call_on_thread(name, begun)


def _body_on_thread(name: str, body: Callable[[], Any]) -> Any:
    return body_on_thread(name, body)  # whatever stands there: planted bugs do


def start_daemon(name: str, turn: Callable[[], object], on_failure: Callable[[Exception], object]) -> Any:
    """See `_common.threads`: nothing may wait here until a thread has begun."""
    place = acting().place
    if not acting().dead and place.lacks_thread():
        raise StoreUnavailable("this process", f"no thread can be started for {name}")

    def run() -> None:
        while True:
            try:
                while not _fails(place) and turn():
                    pass
                return
            except Exception as problem:
                on_failure(problem)

    thread = _threading.Thread(run)
    thread.start()
    return thread


def _fails(place: Place) -> bool:
    if place.turn_fails():
        raise MemoryError
    return False


def _start_daemon(name: str, turn: Callable[[], object], on_failure: Callable[[Exception], object]) -> Any:
    return start_daemon(name, turn, on_failure)  # whatever stands there: planted bugs do


class _Chance:
    """What stands for `random`: numbers that no two askers share, and the same ones for the same seed."""

    def getrandbits(self, bits: int) -> int:
        """See `random.getrandbits`."""
        place = acting().place
        place.numbers += 1
        return int(place.timeline.chance(5, place.number, place.numbers) * (1 << bits))


class _Polls:
    """What stands for the number of a process's polls."""

    def __next__(self) -> int:
        place = acting().place
        place.numbers += 1
        return place.numbers


OURS: Final = {"threading": _threading}
_RANDOM: Final = {"random": _Chance()}
_CHECKPOINT: Final = {"checkpoint_job": threads.with_names(cast(Any, jobs.checkpoint_job), _RANDOM)}
_RECORDS: Final = {**_CHECKPOINT, "finish_job": threads.with_names(cast(Any, jobs.finish_job), _RANDOM)}
_plan_start: Final = threads.with_names(
    cast(Any, starts.plan_start),
    {"_row": threads.with_names(cast(Any, starts)._row, _RANDOM)},  # noqa: SLF001 -- likewise
)
_plan_tick: Final = threads.with_names(cast(Any, schedules.plan_tick), {"plan_start": _plan_start})
_signal_row: Final = threads.with_names(cast(Any, jobs.signal_row), _RANDOM)
_OF_ONE_JOB: Final = {
    "job_of": threads.with_names(
        cast(Any, jobs.job_of),
        {
            **_RANDOM,
            "signal_row": _signal_row,
            "plan_start": _plan_start,
            "plan_tick": _plan_tick,
            "begin_child_job": threads.with_names(cast(Any, jobs.begin_child_job), _RANDOM),
        },
    )
}
_RealCallersTransactions: Final[Any] = threads.rebound(CallersTransactions, {"plan_start": _plan_start})


class _CallersTransactions(_RealCallersTransactions):  # type: ignore[misc]
    """Those of the model, which has one database."""

    def __init__(self, store: Any) -> None:
        self._rows = store._requests  # noqa: SLF001 -- by which a run's row is named
        self._sql = _SQL


_STARTED: Final = {**OURS, "start_daemon": _start_daemon}
_make_latch: Final = threads.with_names(cast(Any, make_latch), OURS)
_Sender: Final[Any] = threads.rebound(Sender, {"deliver": _deliver})
_Writer: Final[Any] = threads.rebound(Writer, {**_STARTED, "Sender": _Sender, "make_latch": _make_latch})
_Heartbeat: Final[Any] = threads.rebound(Heartbeat, _STARTED)
DaemonsHere: Final[Any] = threads.rebound(Daemons, {**_STARTED, "Future": _threading.Future})
_Room: Final[Any] = threads.rebound(Room, OURS)
_TransactionPool: Final[Any] = threads.rebound(
    TransactionPool, {"Session": Session, "Daemons": DaemonsHere, "Room": _Room, "is_sound": is_sound}
)
_Resources: Final[Any] = threads.rebound(
    Resources,
    {**OURS, "Writer": _Writer, "Heartbeat": _Heartbeat, "Owner": Owner, "TransactionPool": _TransactionPool},
)


class _OwnResources(_Resources):  # type: ignore[misc]
    """One of which the history is told what it leaves to be taken again."""

    def left(self, claim: str, seconds: float) -> None:
        """See `Resources.left`."""
        acting().place.history.left(claim)
        cast(Any, super()).left(claim, seconds)


RealTransaction: Final[Any] = threads.rebound(
    PostgresTransaction, {**OURS, **_CHECKPOINT, "guard": GuardedConnection, "shut_down": Wire.close}
)


class _Transaction(RealTransaction):  # type: ignore[misc]
    """One whose end the history is told."""

    def commit(self, record: Record, late: Any = None) -> None:
        """See `protocol.Transaction`."""
        history = acting().place.history
        try:
            cast(Any, super()).commit(record, late)
        except Exception as problem:
            history.committed(self._lease, record, problem)
            raise
        history.committed(self._lease, record, None)


_call_on_thread: Any = threads.with_names(cast(Any, timeouts.call_on_thread), {**OURS, "Future": _threading.Future})
_CALLED: Final = {
    "call_within": threads.with_names(cast(Any, timeouts.call_within), {"call_on_thread": _body_on_thread}),
}
_from_a_thread: Final = cast(Any, timeouts)._await_on_thread  # noqa: SLF001 -- likewise
_AWAITED: Final = {
    **_CALLED,
    "await_within": threads.with_names(
        cast(Any, timeouts.await_within),
        {"_await_on_thread": threads.with_names(_from_a_thread, {"call_on_thread": _body_on_thread})},
    ),
    "call_on_thread": _call_on_thread,
}
_ITEMS: Final = {
    "MapItems": threads.rebound(MapItems, OURS),
    "map_blocking": threads.with_names(cast(Any, map_blocking), {"ThreadPoolExecutor": _threading.ThreadPoolExecutor}),
}
BlockingDriverHere: Final[Any] = threads.rebound(BlockingDriver, {**OURS, **_CALLED, **_ITEMS})
AsyncDriverHere: Final[Any] = threads.rebound(AsyncDriver, _AWAITED)
BlockingRunHere: Final[Any] = threads.rebound(BlockingRun, OURS)
_run_claimed: Final = threads.with_names(
    cast(Any, run_module).run_claimed,
    {
        "BlockingRun": partial(BlockingRunHere, new_driver=BlockingDriverHere),
        "AsyncRun": partial(AsyncRun, new_driver=AsyncDriverHere),
    },
)
run_here: Final[Any] = threads.with_names(cast(Any, run_module).run, {"run_claimed": _run_claimed})
_RealSnapshots: Final[Any] = threads.rebound(Snapshots, {"is_dead": _is_dead})


class _Snapshots(_RealSnapshots):  # type: ignore[misc]
    """Those of the model, which knows statements by their names."""

    def _query(self, name: str, **_: str) -> bytes:
        return name.encode()


_Polling: Final[Any] = threads.rebound(
    Polling, {"HOST": "", "_polls": _Polls()}
)  # every machine is looked at: which are shared is `_is_dead`'s
_RealStore: Final[Any] = threads.rebound(
    PostgresStore,
    {
        "Requests": threads.rebound(Requests, {**_RECORDS, **_OF_ONE_JOB, "is_dead": _is_dead, "Polling": _Polling}),
        "Snapshots": _Snapshots,
        "PostgresTransaction": _Transaction,
        "AsyncPostgresStore": threads.rebound(
            AsyncPostgresStore, {"AsyncRequests": threads.rebound(AsyncRequests, {**_CHECKPOINT, **_OF_ONE_JOB})}
        ),
    },
)


class _Store(_RealStore):  # type: ignore[misc]
    """The store itself, on connections to the model."""

    def __init__(self, life: Life) -> None:
        self._life = life
        cast(Any, super()).__init__("postgresql://simulated", _NAMES, clock=life.clock)

    def listen(self, worker: str, wake: Callable[[], object]) -> Listening:
        """See `QueueingStore.listen`."""
        return self._life.place.listen(self._life, worker, wake)

    def _new_resources(self) -> Any:
        return _OwnResources(self._life.connections, _SQL, self._life.clock, _MOST_TRANSACTIONS)
