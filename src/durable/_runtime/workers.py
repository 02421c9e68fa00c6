"""`durable.Worker`: polls for runs that are due, executes them, and leaves in good order."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import signal
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from types import FrameType, ModuleType
from typing import Any, Final, Self

from durable._common.boundary import calls_out, public_verbs
from durable._common.durations import Duration, check_duration
from durable._engine.leases import check_seconds
from durable._engine.queues import Queue
from durable._engine.workers import WorkerState
from durable._runtime.new_runs import split_version
from durable._runtime.retention import Retention
from durable._runtime.run import run
from durable._runtime.schedules import Schedule
from durable._runtime.worker_service import WorkerService
from durable._runtime.worker_setup import OnFailed, WorkerSetup
from durable.errors import InvalidArgument
from durable.events import Listener
from durable.stores._adapters.kinds import queueing_store
from durable.stores.protocol import QueueingStore

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


@public_verbs("worker", "run", "run_until_idle", "drain")
class Worker:
    """Executes runs that `durable.start` has started, as many at once as there is room for.

        worker = durable.Worker(store, deps, [checkout, remind])
        worker.run()

    - `store`: `postgres(url)`, `embedded()`, or `memory()` in one process.
    - `deps`: what each workflow gets, as for `durable.run`; or a mapping whose keys are workflow functions, each with its own.
      `deps_factory`, a function without arguments, makes them instead: once in a process, before the first poll.
    - `workflows`: functions that are marked with `@durable.workflow`, and modules, of which all marked functions are taken.
      A run of another workflow, or of another version, is left to workers that have it.
    - `queues`: names of queues, or `durable.Queue` with the limits that all workers are to keep; by default those of the
      workflows' marks.
    - `concurrency`: how many runs are executed at once: blocking ones on threads, async ones on an event loop. A mapping
      gives each queue a number of its own: `{"mail": 4, "orders": 28}`.
    - `grace`: seconds after the first SIGTERM, or `drain()`, in which what is executed may come to its next step; what has
      not by then is given back, and begins that step again elsewhere.
    - `lease`: as for `durable.run`.
    - `suspend_after`: seconds. A run that has longer to wait, while nothing else of it is in flight, is suspended: it leaves
      its thread or task, and is gone on with when the wait is over.
    - `schedules`: a list of `durable.Schedule`. Any worker of the fleet that has one may begin its runs, and one does.
    - `retention`: a list of `durable.Retention`, which say what is deleted that has ended; workers take turns at it.
    - `on_failed(handle, exception)` is called when a run has failed and is not tried again; what it raises is logged.
    - `on_event`: as for `durable.run`, for all runs.

    Raises `InvalidArgument`.
    """

    def __init__(
        self,
        store: QueueingStore,
        deps: Any = None,
        workflows: Iterable[Callable[..., Any] | ModuleType] = (),
        *,
        deps_factory: Callable[[], Any] | None = None,
        queues: Sequence[str | Queue] | None = None,
        concurrency: int | Mapping[str, int] = 32,
        grace: Duration = 20.0,
        lease: Duration = 30.0,
        suspend_after: Duration = 1.0,
        schedules: Sequence[Schedule] = (),
        retention: Sequence[Retention] = (),
        on_failed: OnFailed | None = None,
        on_event: Listener | None = None,
    ) -> None:
        self._setup = WorkerSetup(
            queueing_store(store, "durable.Worker"),
            workflows,
            queues,
            check_seconds(lease),
            check_duration("suspend_after", suspend_after, zero=True),
            on_failed,
            on_event,
            schedules,
            retention,
        )
        if deps_factory is not None and deps is not None:
            raise InvalidArgument("deps and deps_factory= were given: pass the one that makes the dependencies")
        self._setup.deps, self._deps_factory = self._setup.check_deps(deps), deps_factory
        self._concurrency = self._setup.check_concurrency(concurrency)
        self._grace = check_duration("grace", grace, zero=True)
        self._service: WorkerService | None = None

    def __repr__(self) -> str:
        return f"<durable worker for {', '.join(sorted({route.workflow for route in self._setup.routes}))}>"

    def run(self) -> None:
        """Work until SIGTERM or SIGINT (Ctrl-C), or `drain()`: then no new runs, and the end when those that it holds have
        stopped at their next steps, or the grace is over. A second signal ends it at once.

        In another than the main thread there are no signals, and `drain()` ends it.

        A database that cannot be reached is waited for. What only a change of the set-up mends is raised instead:
        `AccessDenied`, `SchemaMismatch`, `UnsuitableServer`, `ServerNotStarted` at the start, and `InvalidArgument` once the
        store is closed.
        """
        service = self._begin()
        with _signals_drain(service):
            self._serve(service)

    def run_until_idle(self) -> None:
        """Work until nothing is due any more: for tests, cron, and hosts that start a process on demand.

        A run that is due later is left for later.
        """
        service = self._begin(until_idle=True)
        with _signals_drain(service):
            self._serve(service)

    def drain(self) -> None:
        """As SIGTERM does, from any thread: take no new runs. Returns at once.

        A worker that is not at work is left as it is: `run()` after it works.
        """
        if self._service is not None:
            self._service.drain()

    def __enter__(self) -> Self:
        self._start(self._begin())
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if (service := self._service) is not None:
            service.end()
            self._close(service, is_failing=kind is not None)

    async def __aenter__(self) -> Self:
        self._start(self._begin(asyncio.get_running_loop()))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if (service := self._service) is not None:
            await asyncio.to_thread(service.end)
            self._close(service, is_failing=kind is not None)

    @calls_out
    def _begin(self, loop: asyncio.AbstractEventLoop | None = None, *, until_idle: bool = False) -> WorkerService:
        if self._service is not None:
            raise InvalidArgument("this worker is at work already: make another one, or raise its concurrency=")
        self._make_deps()
        state = WorkerState(self._concurrency, self._grace, until_idle=until_idle)
        given = self._concurrency
        total = given if isinstance(given, int) else sum(given.values())
        self._service = service = WorkerService(self._setup, loop, total, state)
        return service

    def _make_deps(self) -> None:
        if self._deps_factory is not None and self._setup.deps is None:
            self._setup.deps = self._setup.check_deps(self._deps_factory())

    def _start(self, service: WorkerService) -> None:
        try:
            service.start()
        except BaseException:  # such as: no thread can be started; the next try may succeed
            self._service = None
            raise

    def _serve(self, service: WorkerService) -> None:
        is_failing = True
        try:
            service.serve()
            is_failing = False
        finally:
            self._close(service, is_failing=is_failing)

    def _close(self, service: WorkerService, *, is_failing: bool) -> None:
        """It is at work no more: raise what ended it, unless something else is being raised."""
        self._service = None
        if service.error is not None and not is_failing:
            raise service.error

    def set_grace(self, seconds: float) -> None:
        """As `grace=`, from a command line."""
        self._grace = check_duration("grace", seconds, zero=True)


def execute_here(worker: Worker, workflow: str, id: str, **options: Any) -> None:
    """`durable.run` of a workflow of this worker, by its name, as a command line has it: on its store, with its dependencies.

    When the process dies on the way, a worker goes on with the run. Raises what `durable.run` raises.
    """
    worker._make_deps()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] -- of this very file
    setup = worker._setup  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] -- of this very file
    fn, deps = setup.choose(*split_version(workflow))
    made = run(deps, fn, id=id, store=setup.store, recover="workers", **options)
    if inspect.isawaitable(made):
        asyncio.run(_await(made))


def store_of(worker: Worker) -> QueueingStore:
    """Where a worker looks for runs."""
    return worker._setup.store  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] -- of this very file


async def _await(made: Awaitable[Any]) -> Any:
    return await made


@contextlib.contextmanager
def _signals_drain(service: WorkerService) -> Iterator[None]:
    """SIGTERM and SIGINT let it drain, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    told: list[int] = []

    def on_signal(number: int, _: FrameType | None) -> None:
        told.append(number)
        service.drain()
        if len(told) > 1:
            service.hurry()

    before = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # else it was installed by other than Python code, and cannot be put back
                signal.signal(number, handler)
