"""A worker of the simulation: the product's own, on simulated threads, that listens on the modelled channels."""

# Its classes are made by `rebound`, and known as nothing in particular.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, Protocol

import psycopg

from durable._engine.workers import Ask
from durable._runtime.async_runs import AsyncRun
from durable._runtime.held_runs import HeldRun, HeldRuns
from durable._runtime.worker_service import WorkerService
from durable._runtime.worker_setup import WorkerSetup
from durable._runtime.workers import Worker
from durable.errors import DurableError
from simulation import life as lives
from simulation import threads
from simulation.life import Life, acting

__all__ = ["Crew", "Listener", "begin_worker"]

_THREADING: Final = lives.OURS["threading"]
_LISTENS_WITHIN: Final = 1.0  # seconds that the end of a worker waits for its listener
_ANOTHER_TRY: Final = 0.1


class Crew(Protocol):
    """What is asked of whoever looks at a worker."""

    def polls(self) -> None:
        """It is about to send a poll."""
        ...

    def polled(self, ask: Ask, held: set[str], began: float, granted: int) -> None:
        """The reply to a poll that was sent when it `began` has come, and what was granted is begun: it holds these tokens."""
        ...

    def leads_to_polls(self, polls: int) -> None:
        """To it has happened what leads to so many polls."""
        ...

    def left(self, worker: str) -> None:
        """It has come to its end by itself."""
        ...


class _BlockingRun(lives.BlockingRunHere):  # type: ignore[misc]
    def __init__(self, plan: Any) -> None:
        super().__init__(plan, lives.BlockingDriverHere)


class _AsyncRun(AsyncRun):
    def __init__(self, plan: Any) -> None:
        super().__init__(plan, lives.AsyncDriverHere)


class _Uuid:
    """What stands for `uuid`."""

    def uuid4(self) -> Any:
        """See `uuid.uuid4`."""
        place = acting().place
        place.numbers += 1
        return _Name(f"{acting().mark}n{place.numbers}")


class _Name:
    def __init__(self, name: str) -> None:
        self.hex = name


_OURS: Final = {"threading": _THREADING}
_HeldRun: Final[Any] = threads.rebound(HeldRun, {"BlockingRun": _BlockingRun, "AsyncRun": _AsyncRun})
_HeldRuns: Final[Any] = threads.rebound(HeldRuns, {**_OURS, "Daemons": lives.DaemonsHere})
_RealSetup: Final[Any] = threads.rebound(WorkerSetup, {"HeldRun": _HeldRun})
_RealService: Final[Any] = threads.rebound(
    WorkerService, {**_OURS, "uuid": _Uuid(), "HeldRuns": _HeldRuns, "start_daemon": lives.start_daemon}
)


class _Setup(_RealSetup):  # type: ignore[misc]
    """One whose polls are told before they are sent."""

    crew: Crew

    def poll(self, *args: Any) -> Any:
        """See `WorkerSetup.poll`."""
        self.crew.polls()
        return super().poll(*args)


class _WatchedService(_RealService):  # type: ignore[misc]
    """One whose polls are told."""

    def _poll(self, ask: Ask) -> None:
        began, state = acting().timeline.now, self._state
        failures = state._failures  # noqa: SLF001 -- whether this one came to something
        super()._poll(ask)
        if state._failures <= failures and not acting().dead:  # noqa: SLF001
            held = {lease.token for lease in self._runs._runs}  # noqa: SLF001
            self._setup.crew.polled(ask, held, began, len(held))
        elif not acting().dead:
            self._setup.crew.leads_to_polls(1)

    def wake(self) -> None:
        """See `WorkerService.wake`: a poll that takes what is due, and one that says that there is room for more."""
        self._setup.crew.leads_to_polls(2)
        super().wake()

    def _tick(self, due: Any, *, is_full: bool) -> None:
        self._setup.crew.leads_to_polls(1)
        super()._tick(due, is_full=is_full)

    def _end(self, run: Any, problem: BaseException | None) -> None:
        self._setup.crew.leads_to_polls(1)
        super()._end(run, problem)


_Worker: Final[Any] = threads.rebound(Worker, {"WorkerService": _WatchedService, "WorkerSetup": _Setup})


def begin_worker(life: Life, crew: Crew, workflows: list[Any], **options: Any) -> Any:
    """Begin to work; the service, which can be told to `drain` and to `hurry`. `StoreUnavailable` without a thread."""
    worker = _Worker(life.store, {}, workflows, **options)
    worker._setup.crew = crew  # noqa: SLF001
    service = worker._begin(life.loop)  # noqa: SLF001 -- as `async with` does

    def serve() -> None:
        worker._serve(service)  # noqa: SLF001
        if not life.dead:
            crew.left(service._id)  # noqa: SLF001

    service._thread = lives.start_daemon("durable-worker", serve, service._on_failure)  # noqa: SLF001
    return service


class Listener:
    """Hears what is said on the channel of a worker; see `stores._postgres.listener`."""

    def __init__(self, life: Life, worker: str, wake: Callable[[], object]) -> None:
        self._life = life
        self._worker = worker
        self._wake = wake
        self._over = False
        self._drains = False
        self._changed = threads.Event(life)
        self._thread = threads.Thread(life, self._listen)
        self._thread.start()

    def drain(self) -> None:
        """The worker is leaving."""
        self._drains = True
        self._changed.set()

    def close(self) -> None:
        """Hear nothing more, and take the worker off the list."""
        self._over = True
        self._changed.set()
        self._thread.join(_LISTENS_WITHIN)

    def _listen(self) -> None:
        while not self._over:
            try:
                self._hear()
            except (DurableError, psycopg.Error):
                self._life.clock.sleep(_ANOTHER_TRY)

    def _hear(self) -> None:
        wire = self._life.connections.connect(math.inf)
        wire.on_close = self._changed.set
        wire.hear(self._worker, self._wake)
        self._wake()  # for what was started meanwhile
        while True:
            self._changed.clear()
            if wire.closed:
                return
            if self._over:
                wire.execute(b"leave", {"worker": self._worker})
                wire.close()
                return
            if self._drains:
                self._drains = False
                wire.execute(b"drain", {"worker": self._worker})
            self._changed.wait()
