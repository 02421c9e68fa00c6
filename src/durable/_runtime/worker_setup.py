"""What a worker was made with: its workflows, what they get, and which runs it asks for."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, Final, cast

from msgspec import structs

from durable._common.checks import check_count, check_name
from durable._common.reports import report
from durable._engine.backoff import PUT_OFF
from durable._engine.decisions import Claim, Granted
from durable._engine.leases import Lease
from durable._engine.queues import Queue
from durable._engine.schedules import OF_RETENTION, DueSchedule
from durable._engine.starts import Route
from durable._engine.workers import Ask, GrantDecision, judge, version_of
from durable._runtime.granted import claim_granted, plan_granted
from durable._runtime.held_runs import HeldRun
from durable._runtime.retention import check_retention
from durable._runtime.run_handles import RunHandle
from durable._runtime.schedules import find_ticks, run_of_tick, store_schedules, turns_of_retention
from durable._runtime.versions import answer_by, ask_user, migrate_run
from durable._runtime.workflow import WorkflowDefinition, definition_of_workflow
from durable.codecs import codec_of
from durable.errors import InvalidArgument, VersionMismatch
from durable.events import Listener
from durable.stores.protocol import QueueingStore
from durable.stores.requests import Poll, Release, TickSchedule

OnFailed = Callable[[RunHandle[Any], BaseException], object]

_log = logging.getLogger("durable")


class WorkerSetup:
    """The workflows of a worker and what goes with them, checked: what it asks for, and what it makes of what it gets."""

    def __init__(
        self,
        store: QueueingStore,
        workflows: Iterable[Callable[..., Any] | ModuleType],
        queues: Sequence[str | Queue] | None,
        lease: float,
        suspend_after: float,
        on_failed: OnFailed | None,
        on_event: Listener | None,
        schedules: object = (),
        retention: object = (),
    ) -> None:
        self.store: Final = store
        #: What is stored of its schedules, by their names.
        self.schedules: Final = store_schedules(schedules, codec_of(store))
        #: What it deletes when it is its turn.
        self.retention: Final = check_retention(retention)
        if self.retention:
            self.schedules[OF_RETENTION] = turns_of_retention()
        #: What its workflows get: one for all, or a mapping whose keys are workflow functions.
        self.deps: Any = None
        self._workflows = _collect(workflows)
        self.routes: Final = _routes(self._workflows, queues)
        self._queues = [queue for queue in queues or () if isinstance(queue, Queue)]
        self._lease = lease
        self._suspend_after = suspend_after
        self._on_failed = on_failed
        self._on_event = on_event

    def check_deps(self, deps: Any) -> Any:
        """The dependencies; `InvalidArgument` where they are given by workflow, and one of the workflows has none."""
        if (by_workflow := _by_workflow(deps)) is not None:
            for fn, definition in self._workflows.values():
                if fn not in by_workflow:
                    raise InvalidArgument(
                        f"deps are given by workflow, and {definition.name} has none: add {definition.name}: None, or its own"
                    )
        return deps

    def poll(self, ask: Ask, worker: str, turn: int, alive: Callable[[Lease], bool], floor: float | None) -> Poll:
        """The request of its n-th poll; the routes take turns at being the first."""
        first = turn % len(self.routes)
        routes = self.routes[first:] + self.routes[:first]
        if ask.queues is not None:
            routes = [route for route in routes if route.queue in ask.queues or not route.queue]
        schedules = list(self.schedules)
        poll = Poll(routes, ask.count, self._lease, alive, ask.looks_for_dead, worker, ask.says_idle, floor, schedules)
        return poll if ask.queues is None else structs.replace(poll, serves=self.routes)

    def check_concurrency(self, concurrency: int | Mapping[str, int]) -> int | dict[str, int]:
        """The number, or one for each queue; `InvalidArgument`."""
        if not isinstance(concurrency, Mapping):
            return check_count("concurrency", concurrency)
        given, queues = concurrency, {route.queue for route in self.routes if route.queue}
        for queue in sorted(queues - set(given)):
            raise InvalidArgument(f"concurrency= is given by queue, and has no number for {queue!r}")
        for queue in sorted(map(str, set(given) - queues)):
            raise InvalidArgument(f"concurrency= has a number for {queue!r}, which is none of the worker's queues")
        return {queue: check_count(f"concurrency of {queue!r}", given[queue]) for queue in sorted(queues)}

    def write_queues(self) -> None:
        """Let the limits that it was given be those of all workers."""
        for queue in self._queues:
            self.store.write_queue(queue)

    def tick(self, due: DueSchedule, *, is_full: bool) -> TickSchedule:
        """What is to be stored of a schedule that is due. Raises `DurableError`."""
        ticks, codec = find_ticks(due), codec_of(self.store)
        runs = [run_of_tick(due.scheduled, at, codec) for at in ticks.begun] if due.scheduled.name else []
        wakes = is_full or due.scheduled.route not in self.routes
        return TickSchedule(due, runs, ticks.due_at, wakes)

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
        store, run_id = self.store, granted.lease.run_id
        store.perform(Release(granted.lease, due_in=PUT_OFF))  # where the migration fails, the next one is not at once
        stored = store.load(run_id)
        if stored is not None:
            answer = ask_user(answer_by(self._find(granted)[1].migrates), mismatch, stored)
            if inspect.isawaitable(answer):
                answer = asyncio.run(_await(answer))
            store.replace(run_id, stored, migrate_run(answer, mismatch, stored, codec_of(store)))

    def _find(self, granted: Granted) -> tuple[Callable[..., Any], WorkflowDefinition]:
        return self._workflows[granted.header.workflow_name, version_of(granted.header)]

    def choose(self, name: str, version: int | None) -> tuple[Callable[..., Any], Any]:
        """A workflow by its name, the newest without a version; with its dependencies. Raises `InvalidArgument`."""
        known = [one for one in self._workflows.values() if one[1].name == name and version in (None, one[1].version)]
        if not known:
            there = sorted({f"{one.name}@{one.version}" for _, one in self._workflows.values()})
            wanted = name if version is None else f"{name}@{version}"
            raise InvalidArgument(f"the worker has no workflow {wanted!r}: it has {', '.join(there)}")
        fn, _ = max(known, key=lambda one: one[1].version)
        by_workflow = _by_workflow(self.deps)
        return fn, self.deps if by_workflow is None else by_workflow[fn]

    def hold(self, granted: Granted, claim: Claim) -> HeldRun:
        """The run, ready to be executed."""
        fn, definition = self._find(granted)
        by_workflow = _by_workflow(self.deps)
        deps = self.deps if by_workflow is None else by_workflow[fn]
        plan = plan_granted(deps, fn, definition, claim, granted, self.store, self._on_event, self._suspend_after)
        return HeldRun(granted, plan)

    def report_failure(self, run_id: str, problem: BaseException) -> None:
        """A run has failed: say so."""
        if self._on_failed is not None:
            try:
                self._on_failed(RunHandle(self.store, run_id, None), problem)
            except BaseException as raised:
                report(_log, logging.ERROR, "on_failed failed for run %r", run_id, problem=raised)


def _by_workflow(deps: Any) -> Mapping[Any, Any] | None:
    """The dependencies where they are given by workflow; None where they are one for all."""
    given: Mapping[Any, Any] = cast("Any", deps) if isinstance(deps, Mapping) else {}
    return given if any(map(callable, given)) else None


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


def _routes(workflows: _Workflows, queues: Sequence[str | Queue] | None) -> list[Route]:
    if isinstance(queues, str | Queue):
        raise InvalidArgument(f"queues must be a list of names, or of durable.Queue, like [{queues!r}]")
    routes = dict[Route, None]()
    for (name, version), (_, definition) in workflows.items():
        for queue in [definition.queue] if queues is None else queues:
            called = queue.name if isinstance(queue, Queue) else check_name("a queue's name", queue)
            routes[Route(called, name, version)] = None
    for name, version in workflows if routes else ():  # what durable.run began, for workers to recover
        routes[Route("", name, version)] = None
    if not routes:
        raise InvalidArgument("queues= has no name in it: leave it out for the queues of the workflows' marks")
    return list(routes)
