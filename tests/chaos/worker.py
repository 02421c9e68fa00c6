"""A process that executes runs until all have ended, whatever becomes of them meanwhile."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, assert_never

import msgspec
from psycopg.conninfo import make_conninfo

import durable
from chaos.effects import Log
from chaos.plants import planted
from chaos.programs import INPUTS, KINDS, OutOfOrder, awaiting, blocking, migrate
from chaos.scene import AsyncScene, Scene, World
from durable.errors import (
    ConcurrentExecution,
    DurableError,
    LeaseLost,
    OutcomeUnknown,
    RecordsLost,
    RunCancelled,
    StoreUnavailable,
    VersionMismatch,
)
from durable.stores import postgres
from durable.stores._postgres.sql.loader import load_migrations, load_statements
from durable.stores._postgres.sql.names import Names

load_migrations(Names())  # read before the fork, and not by each worker
load_statements(Names())
_THREADS: Final = 4
_TASKS: Final = 8
_PAUSE: Final = 0.05  # seconds between two looks at what others execute

_BLOCKING: Final = {kind: blocking(program) for kind, program in KINDS.items()}
_AWAITING: Final = {kind: awaiting(program) for kind, program in KINDS.items()}


@dataclass(frozen=True)
class Orders:
    """What a worker is to do."""

    url: str
    schema: str
    directory: str  # where the log, the bank and the owners' files are
    runs: tuple[str, ...]
    seed: str
    asynchronous: bool = False
    version: int = 2
    lease: float = 1.0
    deadly: float = 0.0
    slow: float = 0.0
    plant: str = ""


def work(orders: Orders) -> None:
    """Execute all runs, in any order, beside others who do the same; ends when each has a result."""
    directory = Path(orders.directory)
    os.environ["XDG_RUNTIME_DIR"] = orders.directory
    errors = os.open(directory / "errors", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(errors, 2)
    planted(orders.plant)
    log = Log(directory / "effects")
    chance = random.Random(f"{orders.seed} {os.getpid()}")
    url = make_conninfo(orders.url, application_name=f"w{os.getpid()}")  # by which the audit knows who wrote
    with postgres(url, schema=orders.schema) as store:
        world = World(log, store, directory, orders.schema, orders.version, chance, orders.deadly, orders.slow)
        crew = _Crew(orders, world)
        log.append("worker", more="async" if orders.asynchronous else "sync")
        if orders.asynchronous:
            asyncio.run(crew.tasks())
        else:
            crew.threads()
    log.append("worker over")


class _Crew:
    """The threads or tasks of one worker, and what is still to be done."""

    def __init__(self, orders: Orders, world: World) -> None:
        self._orders = orders
        self._world = world
        self._left = list(orders.runs)
        self._taken: set[str] = set()
        self._lock = threading.Lock()

    def threads(self) -> None:
        threads = [threading.Thread(target=self._thread) for _ in range(_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    async def tasks(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(_TASKS):
                group.create_task(self._task())

    def _thread(self) -> None:
        while self._left:
            if (run := self._next()) is None:
                time.sleep(_PAUSE)
                continue
            try:
                scene = Scene(self._world, run)
                result = durable.run(scene, _BLOCKING[_kind(run)], **self._options(run, scene))
            except BaseException as problem:
                pause = self._went_wrong(run, problem)
            else:
                pause = self._went_well(run, result)
            time.sleep(pause)
            self._give_back(run)

    async def _task(self) -> None:
        while self._left:
            if (run := self._next()) is None:
                await asyncio.sleep(_PAUSE)
                continue
            try:
                scene = AsyncScene(self._world, run)
                result = await durable.run(scene, _AWAITING[_kind(run)], **self._options(run, scene))
            except BaseException as problem:
                pause = self._went_wrong(run, problem)
            else:
                pause = self._went_well(run, result)
            await asyncio.sleep(pause)
            self._give_back(run)

    def _options(self, run: str, scene: Scene) -> dict[str, Any]:
        moves = _kind(run) == "moved"
        return {
            "id": run,
            "store": self._world.store,
            "input": scene.number % INPUTS,
            "lease": self._orders.lease,
            "on_event": scene.listen,
            "version": self._orders.version if moves else 1,
            "on_version_mismatch": migrate if moves and self._orders.version > 1 else None,
        }

    def _next(self) -> str | None:
        with self._lock:
            free = [run for run in self._left if run not in self._taken]
            run = self._world.chance.choice(free) if free else None
            if run is not None:
                self._taken.add(run)
            return run

    def _give_back(self, run: str) -> None:
        with self._lock:
            self._taken.discard(run)

    def _done(self, run: str) -> None:
        with self._lock:
            self._left.remove(run)

    def _went_well(self, run: str, result: Any) -> float:
        self._world.log.append("result", run, more=msgspec.json.encode(result).decode())
        self._done(run)
        return 0.0

    def _went_wrong(self, run: str, problem: BaseException) -> float:
        """How long to wait before anything else is tried. What nobody expects is written down for the judge."""
        word, more, pause = "error", type(problem).__name__, 0.01
        match problem:
            case ConcurrentExecution():
                return _PAUSE
            case VersionMismatch() if self._orders.version == 1:  # the newer ones see to it
                self._done(run)
            case LeaseLost() | OutcomeUnknown() | RecordsLost() | RunCancelled() | OutOfOrder():
                pass
            case StoreUnavailable():
                pause = _PAUSE
            case DurableError() | Exception() | BaseException():
                word, more = "surprise", "".join(traceback.format_exception(problem))[-3000:]
            case never:
                assert_never(never)
        self._world.log.append(word, run, more=more)
        return pause


def _kind(run: str) -> str:
    return run.partition("-")[0]
