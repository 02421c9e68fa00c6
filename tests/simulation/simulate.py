"""Simulating a scenario: places with lives in them, callers who want their runs done, and faults when they are due."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, Protocol, cast

import psycopg
from msgspec.structs import replace

from durable._common import reports
from durable._engine.starts import NewRun, Route
from durable._runtime.control import retry
from durable._runtime.schedules import Schedule
from durable.errors import (
    AmbiguousKey,
    DurableError,
    InvalidArgument,
    RetryRefused,
    RunCancelled,
    StepFailed,
    StoreUnavailable,
    WorkflowDrift,
)
from durable.stores.protocol import Listening
from durable.stores.requests import Cancel, Enqueue, Signal
from simulation import programs
from simulation.bodies import Bodies, family
from simulation.history import Broken, History
from simulation.life import Life, nobody_acts, run_here
from simulation.scenario import FAULTS, Fault, Op, Run, Scenario, Start
from simulation.server import Server
from simulation.statements import Verb
from simulation.tables import KEY_COLUMNS
from simulation.threads import Thread
from simulation.timeline import Timeline
from simulation.tripwire import watched
from simulation.worker import Listener, begin_worker
from simulation.worker_laws import WorkerLaws

__all__ = ["Conditions", "Outcome", "Witness", "simulated"]

_PATIENCE: Final = 90.0  # seconds after the last trouble, in which every run must come to its end
_PATIENCE_ON_SLOW_LINES: Final = 400.0
_AFTERWARDS: Final = 4.0  # seconds, in which what is late still arrives
_MOST_EVENTS: Final = 60_000
_SHARED_MACHINES: Final = 0.4
_CANCELS: Final = frozenset({"cancel await", "cancel again"})
_AGAIN: Final = frozenset({"gather", "guard", "interruption"})  # what lets bodies begin more often
_ANOTHER: Final = 0.0002  # seconds until the next of several cancellations
_RENAMED: Final = 500  # added to the site of a step that has another name


class Conditions(NamedTuple):
    """What is not as it should be: statements, key columns, a server that replies before it commits."""

    statements: Mapping[str, Verb] | None = None
    keys: Mapping[str, frozenset[str]] = KEY_COLUMNS
    early: bool = False


_MENDED: Final = (ValueError, StepFailed, KeyboardInterrupt, asyncio.CancelledError)  # after which a run is retried
_AS_IT_SHOULD_BE: Final = Conditions()


class Witness(Protocol):
    """Is told of what can be seen from outside, in its order, at `now` on the timeline."""

    def starts(self, server: Server) -> None:
        """A world begins: its database is empty."""
        ...

    def saw(self, now: float, what: str) -> None:
        """An event of a run, or what one of its callers has got."""
        ...


class Outcome(NamedTuple):
    """What became of a scenario: what is `broken`, if anything is; which faults came about; which situations occurred."""

    broken: Broken | None
    faults: Counter[str]
    seen: Counter[str]
    seconds: float


def simulated(scenario: Scenario, conditions: Conditions = _AS_IT_SHOULD_BE, witness: Witness | None = None) -> Outcome:
    """Let the scenario happen, and check it."""
    world = _World(scenario, conditions, witness)
    broken: Broken | None = None
    with _reporting_at_once(), watched() as touched:
        try:
            world.run()
        except Broken as problem:
            broken = world.history.broken or problem
        except Exception as problem:
            broken = Broken("crash", f"{type(problem).__name__}: {problem}")
            broken.__cause__ = problem
        finally:
            world.end()
    if touched:  # whatever came of it: this is no simulation
        broken = Broken("machine", touched[0])
    seen = world.history.seen
    seen["a wait for a row lock"] += world.server.waits
    seen["a deadlock"] += world.server.victims
    for fate, times in world.server.notified.items():
        seen[f"a notification that was {fate}"] += times
    seen["a journal that was read page by page"] += world.server.tables.pages[0]
    seen["a transaction that was idle for too long"] += world.server.idled
    return Outcome(broken, world.faults, seen, world.timeline.now)


class _AtOnce:
    """In place of the thread that calls handlers and listeners: in a world they are called where something is reported."""

    def call(self, work: Callable[[], object]) -> None:
        with contextlib.suppress(Exception):
            work()


@contextmanager
def _reporting_at_once() -> Iterator[None]:
    module = cast(Any, reports)
    before, module._reporter = module._reporter, _AtOnce()  # noqa: SLF001 -- the one thread that no world makes
    try:
        yield
    finally:
        module._reporter = before  # noqa: SLF001


class _World:
    def __init__(self, scenario: Scenario, conditions: Conditions, witness: Witness | None = None) -> None:
        self.scenario = scenario
        self.witness = witness
        self.timeline = Timeline(scenario.seed)
        self.server = Server(
            self.timeline, scenario.stalls, conditions.statements, conditions.keys, early=conditions.early
        )
        self.history = History(self.server)
        self.history.repeats = bool(scenario.slow or scenario.stalls or scenario.rate) or any(
            FAULTS[fault.kind] in ("request", "time") and fault.kind != "drop rows" for fault in scenario.faults
        )
        self.places = [_Place(self, number) for number in range(len(scenario.slots))]
        self.faults: Counter[str] = Counter({"slow wire": 1} if scenario.rate else {})
        self.server.tables.weights[0] = scenario.weight
        self.failed: Counter[tuple[str, int]] = Counter()  # how often a body has failed
        self.interrupted: Counter[tuple[str, int]] = Counter()  # how often Ctrl-C came there
        self.retried: set[int] = set()  # runs that were retried without need
        self.signalled: set[tuple[int, str]] = set()
        self.shares = self.timeline.chance(3) < _SHARED_MACHINES
        self.renamed = False  # whether any code was changed so that its records no longer fit
        self.thunks = {
            (f"r{n}", op.site) for n, run in enumerate(scenario.runs) for op in _every(run.ops) if not op.given
        }
        self.trouble = 0.0  # when the last of it is over
        self.unfinished = sum(len(slot.calls) + len(slot.starts) for slot in scenario.slots)
        self.server.deaf = scenario.deaf
        routes = {
            n: [name for run in slot.works.runs for name in self.family_of(run)]
            for n, slot in enumerate(scenario.slots)
            if slot.works
        }
        self.laws = WorkerLaws(self.server, self.history, routes, self._ended, scenario.lease, self._prompt())
        if scenario.limits is not None:
            self.laws.limit(scenario.limits)
        self.tried: set[int] = set()  # runs that a process has begun to start
        self.started: set[int] = set()  # runs whose start was acknowledged
        if witness is not None:
            witness.starts(self.server)

    def run(self) -> None:
        for place in self.places:
            place.start()
        for fault in self.scenario.faults:
            if FAULTS[fault.kind] == "time":
                self.timeline.after(fault.at, self._strike, fault)
        self._work()
        if self.history.forgets:  # what had ended may not have any more, and nobody is there who would notice
            self._cold_start()
            self._work()
        runs = {
            f"r{n}": bool(run.cancelled_at) and not run.resumed
            for n, run in enumerate(self.scenario.runs)
            if any(n == call[0] for slot in self.scenario.slots for call in slot.calls)
        }
        started = {
            f"r{start.run}": self.scenario.runs[start.run] for slot in self.scenario.slots for start in slot.starts
        }
        self.laws.end(started)
        runs |= {name: bool(run.cancelled_at) for name, run in started.items()}
        self.history.end(runs, self._due() if self._is_calm() and not started else None, started)

    def _work(self) -> None:
        """Until every caller has what he wanted, and what is late has arrived."""
        patience = _PATIENCE_ON_SLOW_LINES if self.scenario.rate else _PATIENCE
        if len(self.places) > 1:  # what one process wrote down as due, another whose clock is behind waits for
            patience += max(
                (abs(fault.amount) for fault in self.scenario.faults if fault.kind == "set clock"), default=0.0
            )
        while self.unfinished:
            before = self.trouble
            self.timeline.run(before + patience)
            self._look()
            if self.unfinished and self.trouble == before:
                waiting = [f"r{run}" for place in self.places for run in sorted(place.calls)] + self.laws.waiting()
                raise Broken("I7", f"{patience:g} s after the last trouble nobody knows how {waiting} ended")
        self.timeline.ends = False
        self.timeline.run(self.timeline.now + _AFTERWARDS)
        self._look()

    def _look(self) -> None:
        if self.history.broken is not None:
            raise self.history.broken

    def _cold_start(self) -> None:
        self.trouble = self.timeline.now
        for place in self.places:
            place.calls = place.every_call()
            self.unfinished += len(place.calls)
            if place.life is not None:
                place.life.kill("drops")
            place.start()

    def end(self) -> None:
        for place in self.places:
            if place.life is not None:
                place.life.kill("drops")
        nobody_acts()

    def struck(self, fault: Fault, seconds: float = 0.0) -> None:
        self.faults[fault.kind] += 1
        self.trouble = max(self.trouble, self.timeline.now + seconds)

    def family_of(self, run: int) -> Iterator[str]:
        """The run, and its children."""
        yield f"r{run}"
        for op in self.scenario.runs[run].ops if run < len(self.scenario.runs) else ():
            if op.kind == "family":
                yield from (f"r{run}/{key}" for _, key, _ in family(f"r{run}", op))

    def _ended(self, run: str) -> None:
        if "/" not in run:
            self.finished()

    def finished(self) -> None:
        self.unfinished -= 1
        self.timeline.ends = not self.unfinished

    def _strike(self, fault: Fault) -> None:
        self.struck(fault, fault.amount)
        match fault.kind:
            case "restart":
                self.server.crash(fault.amount)
            case "fail over":
                self.history.forgets |= fault.amount > 0
                self.server.crash(0.05, int(fault.amount))
                self.signalled = {sent for sent in self.signalled if sent[1] == "cancel"}
                for place in self.places:  # the senders look whether what they sent is still there
                    place.send_signals(0.5)
            case "set server back":
                self.history.set_back = (self.timeline.now, self.server.database.clock())
                self.server.ahead -= fault.amount
            case "drop rows":
                self.server.tables.drops[0] += int(fault.amount)
            case "starve":
                self.places[fault.slot].starved_until = self.timeline.now + fault.amount
            case never:
                raise AssertionError(never)

    @property
    def only_cancels(self) -> bool:
        """Whether nothing but cancellations goes wrong, so that no lease may be kept."""
        scenario = self.scenario
        return not (scenario.slow or scenario.stalls or scenario.rate) and all(
            fault.kind in _CANCELS for fault in scenario.faults
        )

    @property
    def only_ends_of_processes(self) -> bool:
        """Whether nothing but deaths and drains goes wrong, so that what is given back arrives."""
        scenario = self.scenario
        return not (scenario.slow or scenario.stalls or scenario.rate) and all(
            fault.kind in ("kill", "drain") for fault in scenario.faults
        )

    def _prompt(self) -> set[str]:
        """The runs whose start no idle worker may miss."""
        slots = self.scenario.slots
        has_room = all(not slot.works or slot.works.concurrency >= len(self.scenario.runs) for slot in slots)
        starts = (start for slot in slots for start in slot.starts if not start.delay and not start.open)
        has_room = has_room and self.scenario.limits is None
        return {f"r{start.run}" for start in starts if has_room and self._is_calm() and not self.scenario.deaf}

    def _is_calm(self) -> bool:
        scenario = self.scenario
        return not (scenario.faults or scenario.slow or scenario.stalls or scenario.rate)

    def _due(self) -> dict[tuple[str, int], int]:
        due: dict[tuple[str, int], int] = {}

        def count(name: str, ops: list[Op]) -> None:
            for op in ops:
                if not (op.kind == "transaction" and op.timeout):  # which may wait for others until it is over
                    due[name, op.site] = 1 + op.fails
                for branch in op.branches:
                    count(name, branch)

        for n, run in enumerate(self.scenario.runs):
            if not run.cancelled_at and not any(op.kind in _AGAIN for op in run.ops):
                count(f"r{n}", run.ops)
        return due


def _new_run(start: Start) -> NewRun:
    route = Route("default", f"w{start.run}", 1)
    partition = start.partition or None
    return NewRun(run_id=f"r{start.run}", route=route, priority=start.priority, delay=start.delay, partition=partition)


class _Place:
    """See `life.Place`."""

    def __init__(self, world: _World, number: int) -> None:
        self.world = world
        self.number = number
        self.timeline = world.timeline
        self.server = world.server
        self.history = world.history
        slot, scenario = world.scenario.slots[number], world.scenario
        self.slot = slot
        self.slow, self.lease = scenario.slow, scenario.lease
        self.skew, self.drift = slot.skew, slot.drift
        self.rate, self.sets = scenario.rate, 0
        self.starved_until = 0.0
        self.requests = self.messages = self.numbers = self.bodies = self.events = self.threads = self.turns = 0
        self.calls = self.every_call()
        self.changed = 0  # how the code differs
        self.life: Life | None = None
        self.service: Any = None  # of the worker, if one is at work
        self.drains = False
        self.until_next = 0.0  # seconds from the end of a worker to the next one
        self.running: list[asyncio.Task[Any]] = []
        self._lives = 0
        self._seen: dict[str, Any] = {} if world.witness is None else {"on_event": self._saw}
        mine = [fault for fault in scenario.faults if fault.slot == number]
        self._at_events = _by_occasion(mine, "event")
        self._at_requests = _by_occasion(mine, "request")
        self._at_bodies = _by_occasion(mine, "body")
        self._at_threads = _by_occasion(mine, "thread")
        self._at_turns = _by_occasion(mine, "turn")

    def _saw(self, what: object) -> None:
        if self.world.witness is not None:
            self.world.witness.saw(self.timeline.now, f"p{self.number} {what}")

    def every_call(self) -> dict[int, tuple[float, bool]]:
        """Each run that is to be called here: how long after the start, and whether the caller waits."""
        return {run: (after, waits) for run, after, waits in self.world.scenario.slots[self.number].calls}

    def start(self) -> None:
        """Begin a life, unless there is one."""
        if self.life is not None and not self.life.dead:
            return
        self._lives += 1
        self.running = []
        life = self.life = Life(self, self._lives)
        self.service, self.drains = None, False
        if self.slot.works is not None:
            life.after(0.0, self._work, life)
        for start in self.slot.starts:
            if start.run not in self.world.started:
                if start.open:
                    life.after(start.after, Thread(life, self._start_within, (life, start)).start)
                else:
                    life.after(start.after, _begin, self._start_run, life, start)
        for run, (after, waits) in self.calls.items():
            spec = self.world.scenario.runs[run]
            if spec.blocking:
                life.after(after, Thread(life, self._call_blocking, (life, run, spec, waits)).start)
            else:
                life.after(after, _begin, self._call, life, run, spec, waits)
            if spec.cancelled_at and (run, "cancel") not in self.world.signalled:
                life.after(spec.cancelled_at, _begin, self._cancel, life, run)

        self.send_signals(0.0)

    def send_signals(self, after: float) -> None:
        """Those that the runs which are called or started here wait for."""
        life = self.life
        if life is not None:
            for run in [*self.every_call(), *(start.run for start in self.slot.starts)]:
                for op in _waits(self.world.scenario.runs[run].ops):
                    if (run, op.name) not in self.world.signalled:
                        life.after(after + op.ms / 1000, _begin, self._signal, life, run, op)

    def happened(self, life: Life) -> None:
        self.events += 1
        if self.events > _MOST_EVENTS:
            raise Broken("I7", f"{_MOST_EVENTS} events, and no end")
        faults = self._at_events.get(self.events)
        if faults is None:
            return
        for fault in faults:
            if not life.dead:
                self._strike(fault, life)

    def fate(self) -> Fault | None:
        self.requests += 1
        faults = self._at_requests.get(self.requests)
        if faults is None:
            return None
        self.world.struck(faults[0], faults[0].amount)
        return faults[0]

    def fails(self, run: str, op: Op) -> bool:
        failed = self.world.failed
        fails = failed[run, op.site] < op.fails
        failed[run, op.site] += fails
        return fails

    def child_told(self, workflow: str, outcome: Any) -> None:
        """See `bodies.Place`."""
        self.world.laws.child_told(workflow, outcome)

    def interrupts(self, run: str, op: Op) -> bool:
        interrupted = self.world.interrupted
        comes = interrupted[run, op.site] < op.interrupts
        interrupted[run, op.site] += comes
        return comes

    def blind(self, op: Op, outcome: Any) -> bool:
        """See `bodies.Place`: the name is an automatic key, and with a thunk there are no arguments to tell."""
        world = self.world
        return world.renamed and not op.keyed and (not op.given or self.history.place_of(outcome) in world.thunks)

    def lateness(self) -> float:
        self.bodies += 1
        faults = self._at_bodies.get(self.bodies)
        if faults is None:
            return 0.0
        self.world.struck(faults[0], faults[0].amount)
        return faults[0].amount

    def lacks_thread(self) -> bool:
        self.threads += 1
        return self._comes_to(self._at_threads, self.threads)

    def turn_fails(self) -> bool:
        self.turns += 1
        return self._comes_to(self._at_turns, self.turns)

    def _comes_to(self, faults: dict[int, list[Fault]], number: int) -> bool:
        for fault in faults.get(number, ()):
            self.world.struck(fault)
        return number in faults

    def server_shows_dead(self, owner: str | None) -> bool:
        lives = {place.life.mark for place in self.world.places if place.life is not None and not place.life.dead}
        return self.world.shares and owner is not None and owner not in lives

    def _strike(self, fault: Fault, life: Life) -> None:
        match fault.kind:
            case "kill" | "change code":
                self.world.struck(fault, fault.amount)
                if fault.kind == "change code":
                    self.changed = 1 + self.events % 2
                self._kill(life, fault.how)
                self.timeline.after(fault.amount + 0.001, self.start)
            case "drain":
                self._drain(fault)
            case "pause":
                self.world.struck(fault, fault.amount)
                life.paused_until = max(life.paused_until, self.timeline.now + fault.amount)
            case "cancel await" | "cancel again":
                running = [task for task in self.running if not task.done()]
                if running:
                    self.world.struck(fault)
                    self._cancel_task(life, running[self.events % len(running)], int(fault.amount))
            case "step clock" | "set clock":
                self.world.struck(fault)
                self.skew += fault.amount
                self.sets += 1
            case never:
                raise AssertionError(never)

    def _cancel_task(self, life: Life, task: asyncio.Task[Any], more: int) -> None:
        """Now, and then so many times more, as anyio does: while what it holds is being given back."""
        if not task.done():
            task.cancel()
            if more:
                life.after(_ANOTHER, self._cancel_task, life, task, more - 1)

    def _workflow(self, run: int, spec: Run, make: Callable[..., Any]) -> Any:
        ops = spec.ops
        if self.changed == 1:
            ops = [*ops, Op("step", _RENAMED - 1, "added", keyed=True)]
        elif self.changed and ops[0].kind == "step" and (ops[0].keyed or ops[0].given):
            self.world.renamed = True
            renamed = Op("step", ops[0].site + _RENAMED, "renamed", ops[0].keyed, ops[0].ms, given=True)
            ops = [renamed, *ops[1:]]
        elif (
            self.changed and ops[0].kind == "map" and ops[0].keyed
        ):  # its items come in another order, which is no change
            ops = [replace(ops[0], branches=ops[0].branches[::-1]), *ops[1:]]
        workflow = make(ops, Bodies(self, f"r{run}"))
        workflow.__name__ = f"w{run}"
        return workflow

    async def _call(self, life: Life, run: int, spec: Run, waits: bool) -> None:
        tries = 0
        while True:
            workflow = self._workflow(run, spec, programs.asynchronous)
            calling = run_here(
                {},
                workflow,
                id=f"r{run}",
                store=life.store,
                on_conflict="wait" if waits else "raise",
                lease=self.lease,
                **self._seen,
            )
            task = life.loop.create_task(calling)
            self.running.append(task)
            await asyncio.wait([task])
            self.running.remove(task)
            problem = asyncio.CancelledError() if task.cancelled() else task.exception()
            if task.cancelled() and self.world.only_cancels:
                self.history.left_by(f"r{run}", life.mark)
            if self._is_over(run, spec, task.result() if problem is None else None, problem):
                return
            if (step := self._retried_from(run, spec, problem)) is not None:
                done = life.loop.create_future()
                Thread(life, self._retry, (life, run, step, done.set_result)).start()
                await done
            tries += 1
            await life.clock.asleep(min(1.0, 0.02 * 2**tries))

    def _call_blocking(self, life: Life, run: int, spec: Run, waits: bool) -> None:
        tries = 0
        while True:
            workflow = self._workflow(run, spec, programs.blocking)
            problem: BaseException | None = None
            value: Any = None
            try:
                value = run_here(
                    {},
                    workflow,
                    id=f"r{run}",
                    store=life.store,
                    on_conflict="wait" if waits else "raise",
                    lease=self.lease,
                    **self._seen,
                )
            except (Exception, KeyboardInterrupt) as raised:
                problem = raised
            if self._is_over(run, spec, value, problem):
                return
            if (step := self._retried_from(run, spec, problem)) is not None:
                self._retry(life, run, step)
            tries += 1
            life.clock.sleep(min(1.0, 0.02 * 2**tries))

    def _retried_from(self, run: int, spec: Run, problem: BaseException | None) -> str | None:
        """From which step the run is to be retried now ("": what it was refused for); None if it is not to be."""
        world, keys = self.world, {op.site: f"k{op.site}" if op.keyed else op.name for op in _every(spec.ops)}
        if isinstance(problem, RetryRefused):
            return keys.get(spec.decided_from, "")
        if spec.retried_from in keys and run not in world.retried and isinstance(problem, _MENDED):
            world.retried.add(run)
            return keys[spec.retried_from]
        return None

    def _retry(self, life: Life, run: int, step: str, done: Callable[[None], object] = lambda _: None) -> None:
        try:
            retry(life.store, f"r{run}", from_step=step or None, even_effects=True)
        except DurableError as problem:
            self.history.seen[f"retry: {type(problem).__name__}"] += 1
            if step and isinstance(problem, InvalidArgument):  # that step is not recorded: by name, then
                self._retry(life, run, "", done)
                return
        else:
            self.history.seen["retry: done"] += 1
        done(None)

    def _is_over(self, run: int, spec: Run, value: Any, problem: BaseException | None) -> bool:
        """Whether the caller has what he wanted."""
        name = f"r{run}"
        self.history.seen[f"run: {'returned' if problem is None else type(problem).__name__}"] += 1
        self._saw(f"{name} gave {value!r}" if problem is None else f"{name} raised {type(problem).__name__}")
        match problem:
            case None:
                self.history.returned(name, value)
                over = True
            case AmbiguousKey():
                over = True
            case RunCancelled():
                over = not spec.resumed
            case WorkflowDrift():
                self.changed = 0 if self.changed else 2
                over = self.history.drifted(name, renamed=self.world.renamed)
            case RetryRefused():
                self.history.refused(name, problem.steps)
                over = False
            case DurableError() | ValueError() | StepFailed() | ExceptionGroup():
                over = False
            case asyncio.CancelledError() | KeyboardInterrupt():
                over = False
            case _:
                raise problem
        if over and self.calls.pop(run, None) is not None:
            self.world.finished()
        return over

    # -- workers

    def _work(self, life: Life) -> None:
        works = self.slot.works
        assert works is not None
        workflows: list[Any] = []
        for run in works.runs:
            spec = self.world.scenario.runs[run]
            made = self._workflow(run, spec, programs.blocking if spec.blocking else programs.asynchronous)
            workflows.append(programs.marked(f"w{run}", made, spec.tries))
            color = programs.blocking if spec.blocking else programs.asynchronous
            for op in (op for op in spec.ops if op.kind == "family"):
                for name, key, ops in family(f"r{run}", op):
                    workflows.append(programs.marked(name, color(ops, Bodies(self, f"r{run}/{key}")), 0))
        options = {"concurrency": works.concurrency, "grace": works.grace, "lease": self.lease, **self._seen}
        options["suspend_after"] = works.suspend_after
        if works.ticks:
            options["schedules"] = [Schedule("beat", every=1, workflow="tick", missed="all")]
        try:
            self.service = begin_worker(life, self, workflows, **options)
        except StoreUnavailable:  # no thread for it: so the process ends
            self._end_life(life)
        else:
            self.world.laws.begins(self.number)

    def _drain(self, fault: Fault) -> None:
        """SIGTERM, to a worker; what starts runs is left alone."""
        if self.service is not None:
            self.world.struck(fault, fault.amount + self.slot.works.grace if self.slot.works else 0.0)
            self.drains, self.until_next = True, fault.amount
            self.service.drain()
            if fault.how == "twice":
                self.service.hurry()

    def listen(self, life: Life, worker: str, wake: Callable[[], object]) -> Listening:
        """See `life.Place`."""
        return Listener(life, worker, wake)

    def polls(self) -> None:
        """See `worker.Crew`."""
        if self.drains:
            raise self.world.laws.polls_while_draining(self._mark)

    def polled(self, ask: Any, held: set[str], began: float, granted: int) -> None:  # noqa: ARG002
        """See `worker.Crew`."""
        self.world.laws.polled(self._mark, ask, held, began, shows_dead=self.world.shares)

    def leads_to_polls(self, polls: int) -> None:
        """See `worker.Crew`."""
        self.world.laws.leads_to_polls(self._mark, polls)

    def left(self, worker: str) -> None:  # noqa: ARG002
        """See `worker.Crew`."""
        life = self.life
        if life is not None:
            self.world.laws.left(life.mark, is_calm=self.world.only_ends_of_processes)
            self.history.seen["a worker that has left"] += 1
            life.after(0.0, self._end_life, life)

    @property
    def _mark(self) -> str:
        return "" if self.life is None else self.life.mark

    def _end_life(self, life: Life) -> None:
        self._kill(life, "")
        self.timeline.after(self.until_next + 0.001, self.start)

    def _kill(self, life: Life, how: str) -> None:
        self.world.laws.died(life.mark)
        life.kill(how)

    async def _start_run(self, life: Life, start: Start) -> None:
        run = _new_run(start)
        while True:
            try:
                first = start.run not in self.world.tried
                self.world.tried.add(start.run)
                (started,) = await life.store.aio.submit(Enqueue([run]))
            except DurableError as problem:
                self.history.seen[f"start: {type(problem).__name__}"] += 1
                await life.clock.asleep(0.1)
            else:
                break
        self.world.started.add(start.run)
        if first and not started.is_new:
            raise self.history.break_with(
                "start", f"r{start.run} was started once, and its start says that it was there"
            )
        self._cancel_later(life, start.run)

    def _cancel_later(self, life: Life, run: int) -> None:
        cancelled_at = self.world.scenario.runs[run].cancelled_at
        if cancelled_at and (run, "cancel") not in self.world.signalled:
            life.after(cancelled_at, _begin, self._cancel, life, run)
        for op in self.world.scenario.runs[run].ops:
            if op.kind == "family" and op.timeout:
                life.after(op.timeout / 1000, _begin, self._cancel_child, life, f"r{run}/k{op.site}-0")

    async def _cancel_child(self, life: Life, child: str) -> None:
        self.history.cancelled(child)
        try:
            await life.store.aio.submit(Cancel(child))
        except DurableError as problem:
            self.history.seen[f"cancel: {type(problem).__name__}"] += 1

    def _start_within(self, life: Life, start: Start) -> None:
        """Start it in a transaction of the caller's, which commits it, or undoes it."""
        run = _new_run(start)
        while True:
            undone = start.undone and start.run not in self.world.tried
            self.world.tried.add(start.run)
            try:
                with life.callers_connection() as connection:
                    connection.execute(b"BEGIN ISOLATION LEVEL READ COMMITTED")
                    life.start_within(connection, run)
                    life.clock.sleep(start.open)
                    connection.execute(b"ROLLBACK" if undone else b"COMMIT")
            except (DurableError, psycopg.Error) as problem:
                self.history.seen[f"start within: {type(problem).__name__}"] += 1
            else:
                self.history.seen[f"start within: {'undone' if undone else 'done'}"] += 1
                if not undone:
                    break
                if self.server.tables.snapshots.committed(run.run_id) is not None:
                    raise self.history.break_with(
                        "start", f"{run.run_id} is there, and the transaction of its start was undone"
                    )
            life.clock.sleep(0.1)
        self.world.started.add(start.run)
        self._cancel_later(life, start.run)

    async def _signal(self, life: Life, run: int, op: Op) -> None:
        while True:
            try:
                await life.store.aio.submit(Signal(f"r{run}", op.name, str(-1 - op.site), create_later=True))
            except DurableError:
                await life.clock.asleep(0.3)
            else:
                self.world.signalled.add((run, op.name))
                return

    async def _cancel(self, life: Life, run: int) -> None:
        self.world.signalled.add((run, "cancel"))
        self.history.cancelled(f"r{run}")
        try:
            await life.store.aio.submit(Cancel(f"r{run}", force=True))
        except DurableError as problem:
            self.history.seen[f"cancel: {type(problem).__name__}"] += 1
        else:
            self.world.laws.cancelled(f"r{run}")


def _begin(act: Callable[..., Any], life: Life, *args: Any) -> None:
    life.loop.create_task(act(life, *args))


def _by_occasion(faults: list[Fault], occasion: str) -> dict[int, list[Fault]]:
    found: dict[int, list[Fault]] = {}
    for fault in faults:
        if FAULTS[fault.kind] == occasion:
            found.setdefault(int(fault.at), []).append(fault)
    return found


def _waits(ops: list[Op]) -> list[Op]:
    return [op for op in _every(ops) if op.kind == "wait"]


def _every(ops: list[Op]) -> Iterator[Op]:
    for op in ops:
        yield op
        for branch in op.branches:
            yield from _every(branch)
