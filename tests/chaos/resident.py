"""A process that stays: it executes runs at a steady rate, has guests who sleep and wait, and deletes what is old."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Final

from psycopg.conninfo import make_conninfo

import durable
from chaos.crush import crush
from chaos.leaks import Leak, leak
from chaos.programs import OutOfOrder, Program, awaiting, blocking
from chaos.traffic import OFTEN, AsyncDesk, Desk, Probe, Stay, guest, halted, probe
from durable._engine.leases import Lease
from durable.errors import LeaseLost, OutcomeUnknown, RunCancelled, StoreUnavailable
from durable.stores import PostgresStore, postgres
from durable.stores.listing import RunStatus

NAME: Final = "resident"  # of its sessions
TRANSACTIONS: Final = 2  # at once, at most
ENDS: Final[tuple[RunStatus, ...]] = ("completed", "failed", "cancelled")
_THREADS: Final = 4  # for short blocking runs; as many tasks again for async ones, and more if these are slow
_TASKS: Final = 16
_BLOCKING_GUESTS: Final = 0.1  # of all
_TICKS: Final = 60  # of a probe
_LATE: Final = 1.0  # seconds after its beginning when a run is halted


@dataclass(frozen=True)
class Pace:
    """How much goes on. `keep`: how long runs are kept when they have ended. All times in seconds."""

    guests: int
    stay: Stay
    lease: float
    keep: float
    purge: float  # between two purges
    count: float  # between two counts of all objects, which take the interpreter for a while
    rate: float = 8.0  # short runs a second
    tick: float = 0.5  # between two steps of the probe


def pace(seconds: float) -> Pace:
    """An hour's, or the same in small for less: what begins must come to its end several times."""
    keep = min(120.0, seconds / 20)
    return Pace(
        guests=min(300, 10 + int(seconds / 12)),
        stay=Stay(naps=16, nap=min(15.0, seconds / 200)),
        lease=min(9.0, max(1.5, seconds / 20)),
        keep=keep,
        purge=keep / 8,
        count=min(60.0, seconds / 60),
    )


@dataclass(frozen=True)
class Orders:
    """What a resident is to do. `leak`: what it is to forget."""

    url: str
    directory: str
    pace: Pace
    leak: str = ""


@dataclass
class Report:
    """What it says of itself. Times are in seconds, and are those since its last report."""

    tasks: int
    objects: int
    counts: Counter[str]
    times: dict[str, list[float]]
    surprises: list[str]


def reside(orders: Orders, leader: Connection) -> None:
    """Do so until the leader says "end"; a `Report` at each "report", and one when all is over."""
    os.environ["XDG_RUNTIME_DIR"] = orders.directory
    errors = os.open(f"{orders.directory}/errors-{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(errors, 2)
    url = make_conninfo(orders.url, application_name=NAME)
    with postgres(url, max_transactions=TRANSACTIONS) as store:
        crush(store, orders.url, TRANSACTIONS)
        resident = _Resident(orders.pace, store, leak(orders.leak, orders.url))
        asyncio.run(resident.lives(leader))
    leader.send(resident.report())


class _Resident:
    def __init__(self, pace: Pace, store: PostgresStore, leaking: Leak) -> None:
        self._pace = pace
        self._store = store
        self._leak = leaking
        self._waiting: dict[str, None] = {}
        self._house: set[str] = set()  # whoever stays until he is told or cancelled
        self._over = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()  # guards what follows
        self._counts: Counter[str] = Counter()
        self._times: dict[str, list[float]] = {"checkpoint": [], "beat": [], "purge": []}
        self._surprises: list[str] = []
        self._objects, self._counted = 0, float("-inf")

    async def lives(self, leader: Connection) -> None:
        self._loop = asyncio.get_running_loop()
        self._watch_beats()
        blocking_guests = max(1, round(self._pace.guests * _BLOCKING_GUESTS))
        threads = [threading.Thread(target=self._blocking_guests, args=(n,)) for n in range(blocking_guests)]
        threads.append(threading.Thread(target=self._probe))
        ear = threading.Thread(target=self._listens, args=(leader,))
        with ThreadPoolExecutor(_THREADS) as pool:
            for thread in (*threads, ear):
                thread.start()
            async with asyncio.TaskGroup() as group:
                for n in range(blocking_guests, self._pace.guests):
                    group.create_task(self._async_guests(n))
                group.create_task(self._purge())
                await self._short_runs(group, pool)
                await self._show_out()
            for thread in (*threads, ear):
                await asyncio.to_thread(thread.join)
        while await self._store.aio.purge(older_than=0, status="interrupted"):
            pass
        await self._purged(0.0)
        self._loop = None

    def report(self) -> Report:
        if time.monotonic() - self._counted >= self._pace.count:
            gc.collect()
            self._objects, self._counted = len(gc.get_objects()), time.monotonic()
        tasks = len(asyncio.all_tasks(self._loop)) if self._loop is not None else 0
        with self._lock:
            times, self._times = self._times, {name: [] for name in self._times}
            return Report(tasks, self._objects, self._counts.copy(), times, self._surprises[:5])

    # -- what it is asked -----------------------------------------------------------------------------------------------

    def _listens(self, leader: Connection) -> None:
        with contextlib.suppress(EOFError):  # it has died
            while leader.recv() != "end":
                leader.send(self.report())
        self._over.set()

    # -- short runs -----------------------------------------------------------------------------------------------------

    async def _short_runs(self, group: asyncio.TaskGroup, pool: ThreadPoolExecutor) -> None:
        """One after the other when its time has come, and later if too many are under way."""
        began, number = time.monotonic(), 0
        threads, tasks = asyncio.Semaphore(_THREADS), asyncio.Semaphore(_TASKS)
        while not self._over.is_set():
            await asyncio.sleep(max(0.0, began + number / self._pace.rate - time.monotonic()))
            program = OFTEN[number % len(OFTEN)]
            run = f"{program.__name__}-{number}"
            is_async = (number // len(OFTEN) + number) % 2 == 0
            room = tasks if is_async else threads
            await room.acquire()
            executing = self._async(program, run, number) if is_async else self._in(pool, program, run, number)
            group.create_task(executing).add_done_callback(partial(_leaves, room))
            if program is halted:
                self._house.add(run)
                group.create_task(self._halt(run))
            self._leak.at_run()
            number += 1

    async def _in(self, pool: ThreadPoolExecutor, program: Program, run: str, number: int) -> None:
        await asyncio.get_running_loop().run_in_executor(pool, self._blocking, program, run, number)

    def _blocking(self, program: Program, run: str, number: int, deps: Any = None) -> None:
        deps = deps or Desk(self._store, self._pace.stay, self._waiting)
        for again in (False, True):
            try:
                durable.run(deps, blocking(program), id=run, store=self._store, input=number, lease=self._pace.lease)
            except BaseException as problem:
                if self._ended(program, problem) and not again:
                    continue
            else:
                self._count("completed")
            break
        self._house.discard(run)

    async def _async(self, program: Program, run: str, number: int) -> None:
        deps = AsyncDesk(self._store, self._pace.stay, self._waiting)
        workflow = awaiting(program)
        for again in (False, True):
            try:
                await durable.run(deps, workflow, id=run, store=self._store, input=number, lease=self._pace.lease)
            except asyncio.CancelledError:
                raise
            except BaseException as problem:
                if self._ended(program, problem) and not again:
                    continue
            else:
                self._count("completed")
            break
        self._house.discard(run)

    def _ended(self, program: Program, problem: BaseException) -> bool:
        """Write down how; whether it is run again."""
        kind = program.__name__
        match problem:
            case OutOfOrder() if kind == "repaired":
                self._count("failed, run again")
                return True
            case OutOfOrder() if kind == "failed":
                self._count("failed")
            case RunCancelled() if kind == "halted" or self._over.is_set():
                self._count("cancelled")
            case LeaseLost() | OutcomeUnknown() | StoreUnavailable():
                self._count(type(problem).__name__)
            case _:
                with self._lock:
                    self._surprises.append("".join(traceback.format_exception(problem))[-3000:])
        return False

    async def _halt(self, run: str) -> None:
        """A little after it has begun."""
        halted = False
        while not (halted or self._over.is_set()):
            await asyncio.sleep(_LATE)
            halted = await durable.aio.cancel(self._store, run)

    # -- guests ---------------------------------------------------------------------------------------------------------

    def _blocking_guests(self, room: int) -> None:
        visit = 0
        while not self._over.wait(0):
            self._comes(run := f"guest-{room}-{visit}")
            self._blocking(guest, run, room + visit)
            self._goes(run)
            visit += 1

    async def _async_guests(self, room: int) -> None:
        visit = 0
        while not self._over.is_set():
            self._comes(run := f"guest-{room}-{visit}")
            await self._async(guest, run, room + visit)
            self._goes(run)
            visit += 1

    def _comes(self, run: str) -> None:
        self._house.add(run)
        self._waiting[run] = None

    def _goes(self, run: str) -> None:
        if self._waiting.pop(run, self) is self:
            self._count("told by a signal")

    async def _show_out(self) -> None:
        """Until the last one has gone: one who came just now may have come too late to be cancelled."""
        while self._house:
            for run in list(self._house):
                await durable.aio.cancel(self._store, run)
            await asyncio.sleep(_LATE / 10)

    # -- what is measured -----------------------------------------------------------------------------------------------

    def _probe(self) -> None:
        deps = Probe(partial(self._note, "checkpoint"), partial(self._over.wait, self._pace.tick))
        number = 0
        while not self._over.is_set():
            self._blocking(probe, f"probe-{number}", _TICKS, deps)
            number += 1

    def _watch_beats(self) -> None:
        """How long each takes, and how many leases it renews."""
        heartbeat = self._store._held.resources.heartbeat
        renew = heartbeat._renew

        def timed(leases: Sequence[Lease]) -> Mapping[str, bool]:
            began = time.perf_counter()
            answer = renew(leases)
            self._note("beat", time.perf_counter() - began)
            self._count("leases renewed", len(answer))
            return answer

        heartbeat._renew = timed

    async def _purge(self) -> None:
        while not self._over.is_set():
            await asyncio.sleep(self._pace.purge)
            await self._purged(self._pace.keep)

    async def _purged(self, older_than: float) -> None:
        if self._leak.purges:
            began = time.perf_counter()
            for ended in ENDS:
                self._count("purged", await self._store.aio.purge(older_than=older_than, status=ended))
            self._note("purge", time.perf_counter() - began)

    def _note(self, name: str, seconds: float) -> None:
        with self._lock:
            self._times[name].append(seconds)

    def _count(self, name: str, by: int = 1) -> None:
        with self._lock:
            self._counts[name] += by


def _leaves(room: asyncio.Semaphore, _: object) -> None:
    room.release()
