"""`durable.Worker`: polls for runs that are due, executes them, and leaves in good order."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import signal
import threading
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from types import FrameType, ModuleType
from typing import Any, Final, Self, assert_never, cast

from durable._common.boundary import calls_out, public_verbs
from durable._common.checks import check_count, check_name
from durable._common.durations import Duration, check_duration
from durable._common.reports import report
from durable._common.threads import start_daemon
from durable._engine.backoff import PUT_OFF
from durable._engine.decisions import Granted, Migrate
from durable._engine.leases import Lease, check_seconds
from durable._engine.starts import Route
from durable._engine.workers import (
    LEAVE_TIMEOUT,
    Ask,
    Bury,
    Execute,
    GrantDecision,
    Leave,
    PutOff,
    Rest,
    ReturnRuns,
    WorkerState,
    judge,
    version_of,
)
from durable._runtime.granted import claim_granted, plan_granted
from durable._runtime.held_runs import HeldRun, HeldRuns
from durable._runtime.run_handles import RunHandle
from durable._runtime.versions import answer_by, ask_user, migrate_run
from durable._runtime.workflow import WorkflowDefinition, definition_of_workflow
from durable.clocks import clock_of
from durable.codecs import codec_of
from durable.codecs._failures import to_record
from durable.errors import DurableError, InvalidArgument, RunHandedOver, VersionMismatch
from durable.events import Listener
from durable.records import FailureRecord, Kind, Record, Status, render
from durable.stores._adapters.kinds import queueing_store
from durable.stores.protocol import Listening, QueueingStore
from durable.stores.requests import Finish, Poll, Release

OnFailed = Callable[[RunHandle[Any], BaseException], object]

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_MAX_REST: Final = 3600.0  # seconds, for a lock's time-out

_log = logging.getLogger("durable")


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
    - `queues`: names of queues; by default those of the workflows' marks.
    - `concurrency`: how many runs are executed at once: blocking ones on threads, async ones on an event loop.
    - `grace`: seconds after the first SIGTERM, or `drain()`, in which what is executed may come to its next step; what has
      not by then is given back, and begins that step again elsewhere.
    - `lease`: as for `durable.run`.
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
        queues: Sequence[str] | None = None,
        concurrency: int = 32,
        grace: Duration = 20.0,
        lease: Duration = 30.0,
        on_failed: OnFailed | None = None,
        on_event: Listener | None = None,
    ) -> None:
        self._store = queueing_store(store, "durable.Worker")
        self._workflows = _collect(workflows)
        self._routes = _routes(self._workflows, queues)
        if deps_factory is not None and deps is not None:
            raise InvalidArgument("deps and deps_factory= were given: pass the one that makes the dependencies")
        self._deps, self._deps_factory = deps, deps_factory
        self._concurrency = check_count("concurrency", concurrency)
        self._grace = check_duration("grace", grace, zero=True)
        self._lease = check_seconds(lease)
        self._on_failed = on_failed
        self._on_event = on_event
        self._service: _Service | None = None

    def __repr__(self) -> str:
        return f"<durable worker for {', '.join(sorted({route.workflow for route in self._routes}))}>"

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
        """As SIGTERM does, from any thread: take no new runs. Returns at once."""
        if self._service is not None:
            self._service.drain()

    def __enter__(self) -> Self:
        self._begin().start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if (service := self._service) is not None:
            service.end()
            self._close(service, is_failing=kind is not None)

    async def __aenter__(self) -> Self:
        self._begin(asyncio.get_running_loop()).start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if (service := self._service) is not None:
            await asyncio.to_thread(service.end)
            self._close(service, is_failing=kind is not None)

    @calls_out
    def _begin(self, loop: asyncio.AbstractEventLoop | None = None, *, until_idle: bool = False) -> _Service:
        if self._service is not None:
            raise InvalidArgument("this worker is at work already: make another one, or raise its concurrency=")
        if self._deps_factory is not None and self._deps is None:
            self._deps = self._deps_factory()
        self._service = service = _Service(
            self, loop, WorkerState(self._concurrency, self._grace, until_idle=until_idle)
        )
        return service

    def _serve(self, service: _Service) -> None:
        is_failing = True
        try:
            service.serve()
            is_failing = False
        finally:
            self._close(service, is_failing=is_failing)

    def _close(self, service: _Service, *, is_failing: bool) -> None:
        """It is at work no more: raise what ended it, unless something else is being raised."""
        self._service = None
        if service.error is not None and not is_failing:
            raise service.error

    def set_grace(self, seconds: float) -> None:
        """As `grace=`, from a command line."""
        self._grace = check_duration("grace", seconds, zero=True)

    # -- what a service asks ----------------------------------------------------------------------------------------

    def new_runs(self) -> HeldRuns:
        """What it holds."""
        return HeldRuns(self._concurrency)

    @property
    def store(self) -> QueueingStore:
        """Its store."""
        return self._store

    def poll(self, ask: Ask, worker: str, turn: int, alive: Callable[[Lease], bool], floor: float | None) -> Poll:
        """The request of its n-th poll; the routes take turns at being the first."""
        first = turn % len(self._routes)
        routes = self._routes[first:] + self._routes[:first]
        return Poll(routes, ask.count, self._lease, alive, ask.looks_for_dead, worker, ask.says_idle, floor)

    def judge(self, granted: Granted, *, is_draining: bool) -> GrantDecision:
        """What this worker makes of a run that it has got."""
        found = self._workflows.get((granted.header.workflow_name, version_of(granted.header)))
        if found is None:
            return judge(granted, None, is_draining=is_draining)
        _, definition = found
        claim = claim_granted(granted, definition)
        return judge(granted, claim, max_crashes=definition.max_crashes, is_draining=is_draining)

    def migrate(self, granted: Granted, mismatch: VersionMismatch) -> None:
        """Take a run of an earlier version to that of its workflow here. Its lease is given back first."""
        store, run_id = self._store, granted.lease.run_id
        store.perform(Release(granted.lease, due_in=PUT_OFF))  # where the migration fails, the next one is not at once
        stored = store.load(run_id)
        if stored is not None:
            answer = ask_user(answer_by(self._find(granted)[1].migrates), mismatch, stored)
            if inspect.isawaitable(answer):
                answer = asyncio.run(_await(answer))
            store.replace(run_id, stored, migrate_run(answer, mismatch, stored, codec_of(store)))

    def _find(self, granted: Granted) -> tuple[Callable[..., Any], WorkflowDefinition]:
        return self._workflows[granted.header.workflow_name, version_of(granted.header)]

    def hold(self, granted: Granted) -> HeldRun:
        """The run, ready to be executed."""
        fn, definition = self._find(granted)
        deps = _deps_of(fn, self._deps)
        return HeldRun(granted, plan_granted(deps, fn, definition, granted, self._store, self._on_event))

    def report_failure(self, run_id: str, problem: BaseException) -> None:
        """A run has failed: say so."""
        if self._on_failed is not None:
            try:
                self._on_failed(RunHandle(self._store, run_id, None), problem)
            except Exception as raised:
                report(_log, logging.ERROR, "on_failed failed for run %r", run_id, problem=raised)


class _Service:
    """A worker at work, from its start to its end. One thread performs what its state decides."""

    def __init__(self, worker: Worker, loop: asyncio.AbstractEventLoop | None, state: WorkerState) -> None:
        #: What ended it, if it was not asked to leave.
        self.error: DurableError | None = None
        self._thread: threading.Thread | None = None
        self._worker = worker
        self._loop = loop
        self._store = worker.store
        self._clock = clock_of(worker.store)
        self._state = state
        self._runs = worker.new_runs()
        self._id = uuid.uuid4().hex
        self._turn = 0
        self._listening: Listening | None = None
        self._is_cut_off = False  # the last poll has failed
        self._floor: float | None = None
        # What other threads and signal handlers have to say, and a latch that they release: an Event's lock may be held by
        # the very thread that a signal handler interrupts.
        self._told: deque[Callable[[], object]] = deque()
        self._latch = threading.Lock()
        self._latch.acquire()

    def start(self) -> None:
        """Work on a thread of its own. Raises `StoreUnavailable` where none can be started."""
        self._thread = start_daemon("durable-worker", self._serve_alone, self._on_failure)

    def end(self) -> None:
        """Leave, and wait until that is done."""
        self.drain()
        if self._thread is not None:
            self._thread.join()

    def serve(self) -> None:
        """Work until it is time to leave."""
        self._runs.enter(self._loop)
        self._listening = listening = self._store.listen(self._id, self.wake)
        try:
            while self._step():
                pass
        finally:
            self._runs.close()
            listening.close()

    def wake(self) -> None:
        """Something may be due."""
        self._tell(lambda: self._state.wake(self._clock.elapsed()))

    def drain(self) -> None:
        """Take no new runs, and leave."""
        now = self._clock.elapsed()
        self._runs.hand_over()
        self._tell(lambda: self._drain(now))

    def hurry(self) -> None:
        """Leave at once."""
        now = self._clock.elapsed()
        self._tell(lambda: self._state.hurry(now))

    def _serve_alone(self) -> None:
        self.serve()
        if self.error is not None:  # at once: the thread that began it may not look for hours
            report(_log, logging.ERROR, "the worker has ended: %s", self.error)

    def _on_failure(self, problem: Exception) -> None:
        report(_log, logging.ERROR, "the worker failed, and goes on", problem=problem)

    def _tell(self, what: Callable[[], object]) -> None:
        self._told.append(what)
        with contextlib.suppress(RuntimeError):  # released already
            self._latch.release()

    def _drain(self, now: float) -> None:
        self._state.drain(now)
        self._runs.hand_over()
        if self._listening is not None:
            self._listening.drain()

    def _step(self) -> bool:
        self._hear()
        match self._state.decide(self._clock.elapsed()):
            case Ask() as ask:
                self._poll(ask)
            case Rest(seconds=seconds):
                self._latch.acquire(timeout=min(seconds, _MAX_REST))
            case ReturnRuns():
                self._give_back()
            case Leave(error=error):
                self.error = error
                return False
            case never:
                assert_never(never)
        return True

    def _hear(self) -> None:
        while self._told:
            self._told.popleft()()

    def _poll(self, ask: Ask) -> None:
        self._turn += 1
        try:
            floor = None if ask.looks_for_dead else self._floor
            polled = self._store.perform(self._worker.poll(ask, self._id, self._turn, self._runs.is_alive, floor))
        except DurableError as problem:
            self._state.failed(self._clock.elapsed(), problem)
            if self._state.is_draining:
                self._runs.hand_over()
            elif not self._is_cut_off:  # said once, however long it takes
                report(_log, logging.WARNING, "the worker cannot poll, and tries again: %s", problem)
            self._is_cut_off = True
            return
        if self._is_cut_off:
            self._is_cut_off = False
            report(_log, logging.INFO, "the worker polls again")
        self._floor = self._floor if polled.floor is None else polled.floor
        self._state.polled(self._clock.elapsed(), ask, len(polled.granted), polled.next_in, polled.workers)
        self._hear()  # it may be time to leave
        for granted in polled.granted:
            self._begin(granted)

    def _begin(self, granted: Granted) -> None:
        lease = granted.lease
        try:
            match self._worker.judge(granted, is_draining=self._state.is_draining):
                case Execute():
                    self._runs.start(self._worker.hold(granted), self._on_end)
                    return
                case Migrate(error=mismatch):
                    migrated = self._runs.submit(lambda: self._worker.migrate(granted, mismatch))
                    migrated.add_done_callback(lambda future: self._tell(lambda: self._end_migration(granted, future)))
                    return
                case Bury(error=error):
                    record = _failure(granted, error, self._store)
                    self._store.perform(Finish(lease, Status.FAILED, record))
                    self._worker.report_failure(lease.run_id, error)
                case PutOff(error=error, seconds=seconds):
                    if error is not None:
                        report(_log, logging.ERROR, "run %r cannot be executed as it stands: %s", lease.run_id, error)
                    self._store.perform(Release(lease, due_in=seconds))
                case never:
                    assert_never(never)
        except Exception as problem:  # such as: no thread can be started
            report(_log, logging.ERROR, "run %r could not be begun, and is given back", lease.run_id, problem=problem)
            with contextlib.suppress(DurableError):
                self._store.perform(Release(lease, due_in=1.0))
        self._state.ended(self._clock.elapsed())

    def _end_migration(self, granted: Granted, migrated: Future[object]) -> None:
        self._state.ended(self._clock.elapsed(), 0.0)
        if (problem := migrated.exception()) is not None:
            report(_log, logging.ERROR, "run %r could not be migrated", granted.lease.run_id, problem=problem)

    def _on_end(self, run: HeldRun, problem: BaseException | None) -> None:
        self._tell(lambda: self._end(run, problem))

    def _end(self, run: HeldRun, problem: BaseException | None) -> None:
        self._runs.remove(run)
        self._state.ended(self._clock.elapsed(), run.due_in)
        run_id = run.lease.run_id
        if problem is not None and run.has_failed:
            report(_log, logging.ERROR, "run %r has failed", run_id, problem=problem)
            self._worker.report_failure(run_id, problem)
        elif problem is not None and not isinstance(problem, RunHandedOver):
            report(_log, logging.WARNING, "run %r was left (%s)", run_id, type(problem).__name__)

    def _give_back(self) -> None:
        giving = threading.Thread(target=self._runs.give_back, name="durable-worker-gives-back", daemon=True)
        giving.start()
        giving.join(LEAVE_TIMEOUT)


def _deps_of(fn: Callable[..., Any], deps: Any) -> Any:
    """The dependencies of one workflow, where they are given by workflow; else those of all."""
    if isinstance(deps, Mapping) and any(map(callable, cast("Any", deps))):
        return cast("Any", deps).get(fn)
    return cast("Any", deps)


def _failure(granted: Granted, error: DurableError, store: QueueingStore) -> Record:
    place = max((record.seq for record in granted.records), default=-1) + 1
    failure = FailureRecord(to_record(error, codec_of(store)))
    return Record(place, Kind.FAILURE, Kind.FAILURE, render(failure))


async def _await(answer: Awaitable[Any]) -> Any:
    return await answer


_Workflows = dict[tuple[str, int], tuple[Callable[..., Any], WorkflowDefinition]]


def _collect(workflows: Iterable[Callable[..., Any] | ModuleType]) -> _Workflows:
    """The workflows by name and version, those included from which they migrate."""
    if callable(workflows) or isinstance(workflows, ModuleType):
        raise InvalidArgument(
            "workflows must be a list of workflow functions and modules: Worker(store, deps, [checkout])"
        )
    found: _Workflows = {}
    for given in workflows:
        for fn in _marked_in(given) if isinstance(given, ModuleType) else [given]:
            definition = definition_of_workflow(fn)
            if not definition.is_marked:
                raise InvalidArgument(f"{definition.name} is not marked as a workflow: put @durable.workflow above it")
            other, _ = found.setdefault((definition.name, definition.version), (fn, definition))
            if other is not fn:
                raise InvalidArgument(
                    f"two workflows are called {definition.name!r}, version {definition.version}: give one of them another name"
                )
    for fn, definition in list(found.values()):  # what another function has as its own version is not migrated
        for earlier in definition.migrates or ():
            found.setdefault((definition.name, earlier), (fn, definition))
    if not found:
        raise InvalidArgument("a worker needs workflows: Worker(store, deps, [checkout, remind])")
    return found


def _marked_in(module: ModuleType) -> list[Callable[..., Any]]:
    functions: list[Callable[..., Any]] = [value for value in vars(module).values() if inspect.isroutine(value)]
    marked = [fn for fn in functions if definition_of_workflow(fn).is_marked]
    if not marked:
        raise InvalidArgument(f"the module {module.__name__} has no function that is marked with @durable.workflow")
    return marked


def _routes(workflows: _Workflows, queues: Sequence[str] | None) -> list[Route]:
    if isinstance(queues, str):
        raise InvalidArgument(f"queues must be a list of names, like [{queues!r}]")
    routes = dict[Route, None]()
    for (name, version), (_, definition) in workflows.items():
        for queue in [definition.queue] if queues is None else queues:
            routes[Route(check_name("a queue's name", queue), name, version)] = None
    for name, version in workflows if routes else ():  # what durable.run began, for workers to recover
        routes[Route("", name, version)] = None
    if not routes:
        raise InvalidArgument("queues= has no name in it: leave it out for the queues of the workflows' marks")
    return list(routes)


@contextlib.contextmanager
def _signals_drain(service: _Service) -> Iterator[None]:
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
            signal.signal(number, handler)
