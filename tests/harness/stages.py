"""Five ways to run one story: the pure engine, and both stores under both drivers.

A *story* is a generator: it yields an `Ask` (one step) or `Together` (some at once), is sent what the step returns, and is
thrown what it raises. So it is written once, and each stage performs it through its own driver.

A story's `except` and `finally` are left whenever it yields. Where it matters what is in flight, a *program* takes its place:
an `async def` that awaits `step(...)` like any async workflow, and is run by both drivers and by the engine all the same.

Every stage can *die*: at the n-th boundary of a life the process is as good as gone. Nothing is released, nothing is
said; the next life finds what was committed by then.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeGuard, TypeVar, cast

from msgspec import Raw, structs

import durable
from durable._engine import runs, step_kinds
from durable._engine.calls import Call
from durable._engine.causes import InFlight, in_flight, tag_origin
from durable._engine.children import ChildEnd, name_end, render_end
from durable._engine.closing import ON_END, UNDO, Closing, ClosingStep
from durable._engine.decisions import (
    Abort,
    Acknowledged,
    Asked,
    Attempt,
    AttemptInTransaction,
    BeginChild,
    Begun,
    CalledOff,
    CallOff,
    Claim,
    ClaimReply,
    Commit,
    Conclusion,
    Decline,
    EndRun,
    GiveBack,
    Granted,
    Interrupted,
    Join,
    Leave,
    PollSignal,
    Proceed,
    Raise,
    Raised,
    Reading,
    Received,
    RecordError,
    Refused,
    Replay,
    Reraise,
    Return,
    Returned,
    RunBranches,
    ShowChild,
    Silent,
    StepOutcome,
    TakeTurn,
    TurnCome,
    Wait,
    Won,
    WriteRecord,
)
from durable._engine.headers import stamp_header
from durable._engine.journal import Journal
from durable._engine.leases import Lease
from durable._engine.retry_cut import aside_record, cut_for_retry
from durable._engine.starts import NewRun, Route, Started
from durable._engine.step_kinds import Isolation
from durable._engine.steps import LiveExecution
from durable._runtime.step_options import step_options
from durable.codecs import JsonCodec
from durable.codecs._failures import from_record, to_record
from durable.errors import Unwind
from durable.records import (
    ErrorRecord,
    Execution,
    FailureRecord,
    Header,
    Kind,
    Record,
    Status,
    StepRecord,
    parse,
    render,
)
from durable.snapshots import Snapshot
from durable.stores import MemoryStore, PostgresStore, requests
from durable.stores.protocol import Transaction
from durable.stores.requests import Begin, OnLateReply, Request
from harness.support import Database

T = TypeVar("T")

_START = datetime(2026, 1, 1, tzinfo=UTC)


class Ask(NamedTuple):
    """One step."""

    name: str
    fn: Callable[..., Any]
    args: tuple[Any, ...] = ()
    key: str | None = None
    terms: Mapping[str, Any] = {}


class Together(NamedTuple):
    """Steps at the same time; the first failure is raised when it comes."""

    asks: Sequence[Ask | Transfer]


Telling: TypeAlias = Generator["Ask | Together | CallChild | OnEnd", Any, Any]
"""A story, told step by step: what it asks for, and what it is answered."""


class Transfer(NamedTuple):
    """One step in a transaction; `fn` gets a connection first."""

    name: str
    fn: Callable[..., Any]
    args: tuple[Any, ...] = ()
    key: str | None = None
    terms: Mapping[str, Any] = {}


class Sleep(NamedTuple):
    """Let time pass."""

    name: str
    seconds: float


class WaitFor(NamedTuple):
    """Wait for a signal."""

    name: str
    timeout: float | None = None
    key: str | None = None


class CallChild(NamedTuple):
    """Start a child, a run of `story_child`, and wait for it. On a store it takes a worker (`children_at_work`)."""

    key: str
    input: str


class Race(NamedTuple):
    """The first of these wins; in a branch one step is asked for."""

    branches: Mapping[str, Ask | Sleep | WaitFor]
    key: str | None = None


class OnEnd(NamedTuple):
    """Something to be done however the run ends."""

    name: str
    fn: Callable[..., Any]
    args: tuple[Any, ...] = ()


Demand: TypeAlias = Ask | Transfer | Together | Sleep | WaitFor | Race | CallChild | OnEnd
Story: TypeAlias = Callable[..., Generator[Any, Any, Any]]
Program: TypeAlias = Callable[[Any, Any], Coroutine[Any, Any, Any]]


class Died(BaseException):
    """The process is gone."""


@dataclass
class World:
    """What the steps do to the world, and what becomes of them."""

    failing: set[str] = field(default_factory=set)
    failures: Counter[str] = field(default_factory=Counter)  # that are still to come
    interrupting: set[str] = field(default_factory=set)  # bodies in which Ctrl-C comes
    endless: set[str] = field(default_factory=set)  # bodies that wait until they are cancelled
    cancelling: set[str] = field(default_factory=set)  # bodies in which the run is asked to be cancelled
    cancel: threading.Event = field(default_factory=threading.Event)
    bodies: list[str] = field(default_factory=list)
    boundaries: Boundaries | None = None
    table: str = "booked"

    def do(self, what: str, *of: Any) -> Any:
        """A step's body: leaves its trace, then fails or returns."""
        if self.boundaries is not None:
            self.boundaries.pass_one("before body")
        self.bodies.append(what)
        if what in self.cancelling:
            self.cancel.set()
        if what in self.interrupting:
            raise KeyboardInterrupt
        if what in self.failing or self.failures[what] > 0:
            self.failures[what] -= 1
            raise ValueError(f"{what} failed")
        if self.boundaries is not None:
            self.boundaries.pass_one("after body")
        return {"done": what, "of": list(of)}

    def work(self, what: str) -> str:
        """The body of a child's step, in a process that does not die: leaves its trace, and fails or returns."""
        self.bodies.append(what)
        if what in self.failing:
            raise ValueError(f"{what} failed")
        return f"{what} done"

    def book(self, connection: Any, what: str, *of: Any) -> Any:
        """A transactional step's body: two lines in the table, between which it can die, or fail as above."""
        connection.execute(f"INSERT INTO {self.table} VALUES (%s)", (f"{what} from",))
        done = self.do(what, *of)
        connection.execute(f"INSERT INTO {self.table} VALUES (%s)", (f"{what} to",))
        return done


@durable.workflow(name="story-child")
def story_child(step: durable.Step, world: World, what: str) -> str:
    """What a child of a story does: one step."""
    return step("work", world.work, what)


@contextlib.contextmanager
def children_at_work(stage: Stage, world: World) -> Iterator[None]:
    """While children of this stage's runs are executed."""
    store = getattr(stage, "_store", None)
    if store is None:
        yield
        return
    with durable.Worker(store, world, [story_child], concurrency=2):
        yield


class Boundaries:
    """Counts the boundaries of a life, and ends it at the one of this number, or at the first of this name."""

    def __init__(self, deadly: int | str | None = None) -> None:
        self.deadly = deadly
        self.passed: list[str] = []
        self.dead = False
        self.died_at = ""

    def pass_one(self, what: str | None) -> None:
        """The process passes a boundary, or dies there; None is no boundary."""
        if what is None:
            return
        if self.dead:
            raise Died
        if self.deadly in (len(self.passed), what):
            self.dead, self.died_at = True, what
            raise Died
        self.passed.append(what)


class Stage(Protocol):
    """A way to live one life of a story."""

    def run(
        self,
        story: Story | Program,
        world: World,
        *,
        id: str = "run-1",
        dies_at: int | str | None = None,
        **options: Any,
    ) -> Any:
        """One `durable.run`; raises what it raises, or `Died`. Says in `boundaries` which ones it passed."""
        ...

    def signal(self, id: str, name: str, payload: Any) -> None:
        """`durable.signal`."""
        ...

    def retry(self, id: str, **options: Any) -> list[str]:
        """`durable.retry`."""
        ...

    boundaries: Boundaries

    @property
    def booked(self) -> list[str]:
        """What was done in transactions."""
        ...


class EngineStage:
    """The pure engine, a dictionary for a store, and the smallest driver there can be."""

    def __init__(self) -> None:
        self.boundaries = Boundaries()
        self._headers: dict[str, Header] = {}
        self._records: dict[str, list[Record]] = {}
        self._epochs: Counter[str] = Counter()
        self._codec = JsonCodec()
        self._now = _START
        self.waited = 0.0
        self._signals: list[tuple[str, str, bytes]] = []
        self._losers: dict[Call, list[Call]] = {}
        self._children: set[str] = set()
        self._world = World()
        self.booked: list[str] = []
        self._open: dict[Call, _Pending] = {}
        self._at_end: dict[str, Ask | OnEnd] = {}
        self._cancel: threading.Event | None = None

    def run(
        self,
        story: Story | Program,
        world: World,
        *,
        id: str = "run-1",
        dies_at: int | str | None = None,
        **options: Any,
    ) -> Any:
        world.boundaries = self.boundaries = Boundaries(dies_at)
        self._world = world
        self._cancel, self._at_end = options.get("cancel"), {}
        given = options.get("input", ...)
        text = None if given is ... else self._codec.encode(given, what="the input")
        hashed = None if given is ... else self._codec.fingerprint(given, what="the input")
        claim = Claim(
            run_id=id,
            workflow=story.__name__,
            version=options.get("version", 1),
            seconds=30.0,
            input=text,
            input_hash=hashed,
        )
        reply = self._begun(claim)
        match runs.admit(claim, reply, waits=False, wait_timeout=None, waited=0.0, polls=0):
            case Proceed(granted):
                return self._executed(story, world, granted)
            case Return(value):
                return self._codec.decode(value, run_id=id, where="the result")
            case Reraise(error):
                raise from_record(error, self._codec, run_id=id, where="the failure")
            case Decline(error, _):
                raise error
            case other:
                raise AssertionError(other)

    def _begun(self, claim: Claim) -> ClaimReply:
        self.boundaries.pass_one("before claim")
        header = self._headers.get(claim.run_id)
        records = self._records.setdefault(claim.run_id, [])
        if not runs.is_executable(claim, header):
            return Refused(header, list(records), None, None)
        self._epochs[claim.run_id] += 1
        if header is None:
            metadata: dict[str, Any] = {"version": claim.version}
            if claim.input is not None:
                metadata["inputHash"] = claim.input_hash
                records.append(Record(0, Kind.INPUT, Kind.INPUT, claim.input.decode()))
            header = Header(claim.workflow, Execution(Status.RUNNING), metadata=metadata)
        self._headers[claim.run_id] = header
        self.boundaries.pass_one("claim committed")
        epoch = self._epochs[claim.run_id]
        return Granted(Lease(claim.run_id, f"{epoch}:x", epoch, claim.seconds, math.inf), header, list(records))

    def _executed(self, story: Story | Program, world: World, granted: Granted) -> Any:
        journal = Journal(granted.lease.run_id, granted.records, "main")
        if journal.undecided:
            raise durable.RetryRefused(journal.run_id, journal.undecided)
        execution = LiveExecution(story.__name__, journal, granted.lease, None)
        arguments = [world]
        if journal.input is not None:
            arguments.append(self._codec.decode(journal.input, run_id=granted.lease.run_id, where="the input"))
        error: ErrorRecord | None = None
        exception: BaseException | None = None
        value: Any = None
        try:
            if is_program(story):
                value = at_once(story(_EngineSteps(lambda ask: self._asked(execution, ask)), world))
            else:
                value = told(cast(Story, story)(*arguments), lambda ask: self._asked(execution, ask))
            conclusion = runs.conclude_return(execution, self._codec.encode(value, what="the result"))
        except Exception as problem:
            exception, error = problem, to_record(problem, self._codec)
            conclusion = runs.conclude_failure(execution, problem, error)
        except Died:
            raise
        except BaseException as leaving:
            exception, conclusion = leaving, runs.conclude_departure(execution, leaving)
        conclusion = self._closed(execution, conclusion)
        match conclusion:
            case EndRun(status, record):
                self.boundaries.pass_one("before finish")
                self._records[granted.lease.run_id].append(record)
                header = self._headers[granted.lease.run_id]
                self._headers[granted.lease.run_id] = stamp_header(header, status, self._now, [record])
                self.boundaries.pass_one("finish committed")
                if (closing := execution.closing) is not None:
                    return self._ended(execution, closing, status, record, exception)
                if exception is not None:
                    raise exception
                return value
            case GiveBack(reason, status):
                assert exception is not None
                if status is not None:
                    header = self._headers[granted.lease.run_id]
                    self._headers[granted.lease.run_id] = stamp_header(header, status, self._now)
                raise reason or exception

    def _closed(self, execution: LiveExecution, conclusion: Conclusion) -> Conclusion:
        closing = runs.begin_closing(execution, conclusion)
        if closing is None:
            return conclusion
        while execution.error is None and (step := closing.next_step()) is not None:
            try:
                ask = self._asked_at_end(execution, step)
                call = execution.closing_call(step, step_kinds.PLAIN, at_most_once=False)
                outcome: StepOutcome | _Settled = Asked()
                while not isinstance(outcome, _Settled):
                    outcome = self._turn(execution, call, ask, outcome)
            except Exception as problem:
                if execution.error is None:
                    closing.note_failure(step, to_record(problem, self._codec))
        return runs.end_closing(execution, closing, lambda problem: to_record(problem, self._codec))

    def _asked_at_end(self, execution: LiveExecution, step: ClosingStep) -> Ask:
        if not step.closes:
            return Ask(step.name, lambda: None)
        asked = self._at_end.get(step.closes)
        if asked is None or step.record is None:
            raise durable.WorkflowDrift(execution.run_id, step.closes, "the workflow does not come by it")
        if isinstance(asked, OnEnd):
            return Ask(step.name, lambda: asked.fn(*asked.args) and None)
        value = self._codec.decode(step.record.json, run_id=execution.run_id, where="a step")
        return Ask(step.name, lambda: asked.terms["undo"](value) and None, terms={"retry": asked.terms.get("retry")})

    def _ended(
        self, execution: LiveExecution, closing: Closing, status: str, record: Record, exception: BaseException | None
    ) -> Any:
        if status == Status.COMPLETED:
            return self._codec.decode(record.text.encode(), run_id=execution.run_id, where="the result")
        if status == Status.CANCELLED:
            raise durable.RunCancelled(execution.run_id, closing.ending.reason, closed=True)
        if isinstance(exception, Exception) and closing.ending.failure is not None and not closing.is_resumed:
            raise exception
        failure = parse(record.text, FailureRecord, run_id=execution.run_id, where="the failure")
        raise from_record(failure.error, self._codec, run_id=execution.run_id, where="the failure")

    def retry(self, id: str, **options: Any) -> list[str]:
        """Set steps aside."""
        records, header, from_step = self._records[id], self._headers[id], options.get("from_step")
        found = cut_for_retry(id, header, records, from_step, even_effects=options.get("even_effects", False))
        records.append(aside_record(found, records, from_step))
        self._headers[id] = stamp_header(header, Status.RUNNING, self._now)
        return list(found.keys)

    def signal(self, id: str, name: str, payload: Any) -> None:
        """Send a signal."""
        self._signals.append((id, name, self._codec.encode(payload, what="a payload")))

    def _slept(self, execution: LiveExecution, sleep: Sleep) -> None:
        now = self._now
        moments = [now.isoformat(), (now + timedelta(seconds=sleep.seconds)).isoformat()]
        asleep = Ask(sleep.name, lambda: moments, terms={"kind": step_kinds.Sleep()})
        call = self._call(execution, asleep)
        outcome: StepOutcome | _Settled = Asked()
        while not isinstance(outcome, _Settled):
            outcome = self._turn(execution, call, asleep, outcome)
        began, until = map(datetime.fromisoformat, outcome.value)
        while (decision := execution.rest(call, began, until, self._reading)) is not None:
            assert isinstance(decision, Wait)
            self._now += timedelta(seconds=decision.seconds)
            self.waited += decision.seconds

    def _asked(self, execution: LiveExecution, ask: Demand) -> Any:
        if isinstance(ask, Sleep):
            return self._slept(execution, ask)
        if isinstance(ask, CallChild):
            return self._called_child(execution, ask)
        asks: Sequence[Any] = ask.asks if isinstance(ask, Together) else [ask]
        calls = [(self._call(execution, one), one) for one in asks]
        outcomes: dict[int, StepOutcome] = {}
        results: dict[int, Any] = {}
        failure: BaseException | None = None
        # Everybody takes one turn after the other, which is as concurrent as a pure engine can be.
        waiting = list(range(len(calls)))
        while waiting:
            for index in list(waiting):
                call, one = calls[index]
                try:
                    outcome = self._turn(execution, call, one, outcomes.get(index, Asked()))
                except Exception as problem:
                    waiting.remove(index)
                    failure = failure or problem
                else:
                    if isinstance(outcome, _Settled):
                        waiting.remove(index)
                        results[index] = outcome.value
                    else:
                        outcomes[index] = outcome
        if failure is not None:
            raise failure
        values = [results[index] for index in range(len(calls))]
        return values if isinstance(ask, Together) else values[0]

    def _called_child(self, execution: LiveExecution, ask: CallChild) -> Any:
        child_id, parent = execution.name_child(ask.key)
        text = self._codec.encode(ask.input, what="the input")
        input_hash = self._codec.fingerprint(ask.input, what="the input")
        route = Route("default", "story-child", 1)
        child = NewRun(run_id=child_id, route=route, input=text, input_hash=input_hash, parent=parent)
        fingerprint, value = self._codec.fingerprint([ask.input], what="an argument"), None
        for kind in (step_kinds.StartChild(child), step_kinds.AwaitChild(child)):
            call = execution.draw(Call(ask.key, child.workflow, fingerprint, kind=kind), "main", _in_flight(execution))
            outcome: StepOutcome | _Settled = Asked()
            while not isinstance(outcome, _Settled):
                outcome = self._turn(execution, call, ask, outcome)
            value = outcome.value
        return value

    def _child_begun(self, execution: LiveExecution, record: Record, child: NewRun) -> Begun:
        """A child is started with its parent's record; it has ended when its parent looks next."""
        self._records[execution.run_id].append(record)
        is_new = child.run_id not in self._children
        if is_new:
            self._children.add(child.run_id)
            what = self._codec.decode(child.input or b"", run_id=child.run_id, where="the input")
            try:
                end = ChildEnd(Status.COMPLETED, Raw(self._codec.encode(self._world.work(what), what="a result")))
            except ValueError as problem:
                end = ChildEnd(Status.FAILED, Raw(render(FailureRecord(to_record(problem, self._codec))).encode()))
            self._signals.append((execution.run_id, name_end(child.run_id), render_end(end).encode()))
        return Begun(Started(child.run_id, is_new, child.workflow, child.input_hash, Status.QUEUED), is_own=True)

    def _raced(self, execution: LiveExecution, race: Call, asked: Race, number: int) -> StepOutcome:
        calls = {name: self._call(execution, one, race) for name, one in asked.branches.items()}
        outcomes: dict[str, StepOutcome] = {}
        failures: list[Exception] = []
        waiting = list(calls)
        while waiting:
            for name in list(waiting):
                call, one = calls[name], asked.branches[name]
                try:
                    outcome = self._turn(execution, call, one, outcomes.get(name, Asked()))
                except Exception as problem:
                    waiting.remove(name)
                    failures.append(problem)
                else:
                    if isinstance(outcome, _Settled):
                        self._losers[race] = [calls[other] for other in waiting if other != name]
                        return Won(name, self._codec.encode(outcome.value, what="a value"))
                    outcomes[name] = outcome
        return Raised(to_record(ExceptionGroup(f"all of {race.key} failed in {number}", failures), self._codec))

    def _call(
        self, execution: LiveExecution, ask: Ask | WaitFor | Sleep | Race | OnEnd, race: Call | None = None
    ) -> Call:
        branch = "main" if race is None else ask
        if isinstance(ask, OnEnd):
            call = execution.draw(Call(ask.name, ask.name, auto=True, at_end=ON_END), "main", _in_flight(execution))
            self._at_end[call.key] = ask
            return call
        if isinstance(ask, Race):
            name, raced = " | ".join(ask.branches), step_kinds.Race(tuple(ask.branches))
            return execution.draw(Call(ask.key or name, name, auto=ask.key is None, kind=raced), "main")
        if isinstance(ask, Sleep):
            raise NotImplementedError("a sleep in a branch of the pure engine")
        if isinstance(ask, WaitFor):
            listen = step_kinds.Listen(ask.timeout)
            waits = Call(ask.key or ask.name, ask.name, auto=ask.key is None, kind=listen, race=race)
            return execution.draw(waits, branch)
        fingerprint = self._codec.fingerprint(list(ask.args), what="an argument") if ask.args else ""
        kind = (
            step_kinds.Transact("read committed")
            if isinstance(ask, Transfer)
            else ask.terms.get("kind", step_kinds.PLAIN)
        )
        options = {option: ask.terms.get(option, False) for option in ("at_most_once", "cleanup")}
        call = Call(ask.key or ask.name, ask.name, fingerprint, ask.key is None, kind, race=race, **options)
        if ask.terms.get("undo") is not None:
            call.at_end = UNDO
        execution.draw(call, branch, _in_flight(execution))
        if call.at_end:
            self._at_end[call.key] = ask
        return call

    @property
    def _reading(self) -> Reading:
        cancelled = self._cancel is not None and self._cancel.is_set()
        return Reading(self._now, (self._now - _START).total_seconds(), cancelled)

    def _turn(self, execution: LiveExecution, call: Call, ask: Any, outcome: StepOutcome) -> StepOutcome | _Settled:  # noqa: PLR0915 -- a case for each decision
        match execution.advance(call, outcome, self._reading):
            case Replay(record):
                return _Settled(self._handed_out(execution, call, record))
            case Wait(seconds, recheck):
                self._now += timedelta(seconds=min(seconds, recheck))
                self.waited += min(seconds, recheck)
                return Asked()
            case PollSignal(names, taken):
                sent = enumerate(self._signals, start=1)
                here = [(n, name, text) for n, (to, name, text) in sent if to == execution.run_id and name in names]
                return next((Received(*signal) for signal in here if signal[0] not in taken), Silent())
            case Attempt() if isinstance(ask, WaitFor):
                return Raised(to_record(durable.SignalTimedOut(ask.name, ask.timeout or 0.0), self._codec))
            case Attempt(number, began) | AttemptInTransaction(number, began):
                pending = self._open[call] = _Pending()
                args = (pending, *ask.args) if isinstance(ask, Transfer) else ask.args
                try:
                    value = None if isinstance(ask, OnEnd) else ask.fn(*args)
                    return Returned(self._codec.encode(value, what="the result"))
                except durable.UnstorableValue as problem:
                    execution.advance(call, Interrupted("unstorable"), self._reading)
                    raise problem from None
                except Exception as problem:
                    policy = step_options(None if isinstance(ask, OnEnd) else ask.terms.get("retry"), None).policy
                    seconds = self._reading.elapsed - began
                    retry_in = None if policy is None else policy.retry_delay(problem, number, seconds)
                    return Raised(to_record(problem, self._codec), retry_in)
                except BaseException as leaving:
                    execution.advance(call, Interrupted(type(leaving).__name__), self._reading)
                    raise
            case WriteRecord(record):
                self.boundaries.pass_one("before checkpoint")
                self._records[execution.run_id].append(record)
                self.boundaries.pass_one("checkpoint committed")
                return Acknowledged()
            case BeginChild(record, child):
                self.boundaries.pass_one("before child")
                begun = self._child_begun(execution, record, child)
                self.boundaries.pass_one("child begun")
                return begun
            case ShowChild():
                return _Settled(None)
            case RecordError(error, cause):
                if cause is not None:
                    error.__cause__ = from_record(cause, self._codec, run_id=execution.run_id, where="a child")
                return Raised(to_record(error, self._codec))
            case Commit(record):
                self.boundaries.pass_one("before commit")
                self._records[execution.run_id].append(record)
                self.booked += self._open.pop(call).rows
                self.boundaries.pass_one("committed")
                return Acknowledged()
            case RunBranches(number):
                return self._raced(execution, call, ask, number)
            case CallOff():
                for loser in self._losers.pop(call, []):
                    lost = execution.advance(loser, Asked(), self._reading)
                    assert isinstance(lost, Abort) and isinstance(lost.error, durable.errors.RaceLost), lost
                return CalledOff()
            case TakeTurn():
                return TurnCome()
            case Join():
                return Asked()
            case Raise(error):
                raise error
            case Abort(error):
                raise Unwind(error)
            case Leave(interruption):
                raise interruption

    def _handed_out(self, execution: LiveExecution, call: Call, record: StepRecord) -> Any:
        self.boundaries.pass_one("acknowledged")
        if record.error is None:
            value = self._codec.decode(record.json, run_id=execution.run_id, where="a step")
            return tuple(value) if isinstance(call.kind, step_kinds.Race) else value
        exception = from_record(record.error, self._codec, run_id=execution.run_id, where="a step")
        raise tag_origin(exception, execution.lease.token, call.key)


def _in_flight(execution: LiveExecution) -> InFlight | None:
    exception = sys.exception()
    if exception is None:
        return None
    token, cancellation = execution.lease.token, asyncio.CancelledError
    return in_flight(exception, None, token, "main", cancellation=cancellation, is_cancelled=lambda: False)


class _EngineSteps:
    """`step` for a program on the pure engine."""

    def __init__(self, perform: Callable[[Demand], Any]) -> None:
        self._perform = perform

    async def __call__(
        self, name: str, fn: Callable[..., Any], *args: Any, key: str | None = None, **terms: Any
    ) -> Any:
        return self._perform(Ask(name, fn, args, key, terms))

    async def map(self, name: str, fn: Callable[..., Any], items: Iterable[Any], **terms: Any) -> list[Any]:
        return [self._perform(Ask(name, fn, (item,), f"{name}[{n}]", terms)) for n, item in enumerate(items)]

    async def sleep(self, name: str, seconds: float) -> None:
        self._perform(Sleep(name, seconds))

    async def transaction(
        self, name: str, fn: Callable[..., Any], *args: Any, key: str | None = None, **terms: Any
    ) -> Any:
        return self._perform(Transfer(name, fn, args, key, terms))


class _BlockingSteps:
    """`step` for a program in a blocking workflow: nothing it gives has to be waited for."""

    def __init__(self, step: durable.Step) -> None:
        self._step = step

    async def __call__(self, *args: Any, **options: Any) -> Any:
        return self._step(*args, **options)

    async def map(self, name: str, fn: Callable[[Any], Any], items: Iterable[Any], **options: Any) -> Any:
        told = (lambda item: at_once(fn(item))) if inspect.iscoroutinefunction(fn) else fn
        return self._step.map(name, told, items, **options)

    def scope(self, name: str) -> Any:
        return self._step.scope(name)

    def patched(self, name: str) -> bool:
        return self._step.patched(name)

    async def sleep(self, *args: Any, **options: Any) -> Any:
        return self._step.sleep(*args, **options)

    async def transaction(self, *args: Any, **options: Any) -> Any:
        return self._step.transaction(*args, **options)


def is_program(story: Story | Program) -> TypeGuard[Program]:
    """Whether it is told by an `async def`."""
    return inspect.iscoroutinefunction(story)


def at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits for something")


class _Settled(NamedTuple):
    value: Any


class _Pending:
    """What an engine stage's body gets for a connection: nothing of it is there before the commit."""

    def __init__(self) -> None:
        self.rows: list[str] = []

    def execute(self, _: str, row: tuple[str]) -> None:
        self.rows += row


def told(story: Generator[Demand, Any, Any], perform: Callable[[Demand], Any]) -> Any:
    """Tell a story: perform what it asks, send or throw what came of it, return what it returns."""
    try:
        ask = next(story)
        while True:
            try:
                value = perform(ask)
            except Exception as problem:
                ask = story.throw(problem)
            else:
                ask = story.send(value)
    except StopIteration as end:
        return end.value


async def told_async(story: Generator[Demand, Any, Any], perform: Callable[[Demand], Any]) -> Any:
    """The same, awaiting."""
    try:
        ask = next(story)
        while True:
            try:
                value = await perform(ask)
            except Exception as problem:
                ask = story.throw(problem)
            else:
                ask = story.send(value)
    except StopIteration as end:
        return end.value


# Of each request, the boundary before it, and the one after it: of a blocking store, and of an awaited one.
_AROUND: dict[type[Request[Any]], tuple[str | None, str | None, str | None]] = {
    requests.Begin: ("before claim", "claim committed", "claim committed"),
    requests.BeginChild: ("before child", "child begun", "child begun"),
    requests.Checkpoint: ("before checkpoint", "checkpoint committed", "checkpoint committed"),
    requests.Finish: ("before finish", "finish committed", "finish committed"),
    requests.Receive: ("look for a signal", None, "looked for a signal"),
    requests.Release: ("release", None, "released"),
}


def _while_alive(request: Request[T], boundaries: Boundaries) -> Request[T]:
    """A dead process renews nothing."""
    if not isinstance(request, Begin):
        return request
    alive = request.alive
    return cast("Request[T]", structs.replace(request, alive=lambda: alive() and not boundaries.dead))


class DyingStore:
    """A store whose process dies at a boundary, and which is silent from then on."""

    def __init__(self, store: MemoryStore | PostgresStore, boundaries: Boundaries) -> None:
        self._store = store
        self._boundaries = boundaries
        self.aio = _DyingAio(store, boundaries)

    @property
    def identity(self) -> object:
        return self._store.identity

    def perform(self, request: Request[T], on_late_reply: OnLateReply | None = None) -> T:
        before, after, _ = _AROUND.get(type(request), (None, None, None))
        self._boundaries.pass_one(before)
        answer = self._store.perform(_while_alive(request, self._boundaries), on_late_reply)
        self._boundaries.pass_one(after)
        return answer

    def transaction(self, lease: Lease, name: str, isolation: Isolation) -> Transaction:
        return DyingTransaction(self._store.transaction(lease, name, isolation), self._boundaries)

    def load(self, id: str) -> Snapshot | None:
        return self._store.load(id)

    def replace(self, run_id: str, old: Snapshot, new: Snapshot) -> bool:
        self._boundaries.pass_one("before replacing")
        replaced = self._store.replace(run_id, old, new)
        self._boundaries.pass_one("replaced")
        return replaced

    def close(self) -> None:
        self._store.close()


class DyingTransaction:
    """A transaction whose process dies at a boundary; its connection is gone then."""

    def __init__(self, transaction: Transaction, boundaries: Boundaries) -> None:
        self._transaction = transaction
        self._boundaries = boundaries

    def begin(self, seconds: float) -> bool:
        self._boundaries.pass_one("before begin")
        begun = self._transaction.begin(seconds)
        self._boundaries.pass_one("begun")
        return begun

    def call(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        return self._transaction.call(fn, args)

    def commit(self, record: Record, late: OnLateReply | None = None) -> None:
        try:
            self._boundaries.pass_one("before commit")
        except Died:
            self._transaction.abandon()
            raise
        self._transaction.commit(record, late)
        self._boundaries.pass_one("committed")

    def rollback(self) -> None:
        if self._boundaries.dead:
            self._transaction.abandon()
        self._transaction.rollback()

    def abandon(self) -> None:
        self._transaction.abandon()

    def submit(self, work: Callable[[], Any]) -> Future[Any]:
        return self._transaction.submit(work)


class _DyingAio:
    """The asyncio face of a dying store: each request in a task, so that it begins at the call."""

    def __init__(self, store: MemoryStore | PostgresStore, boundaries: Boundaries) -> None:
        self._store = store
        self._boundaries = boundaries

    def submit(self, request: Request[T], on_late_reply: OnLateReply | None = None) -> asyncio.Future[T]:
        before, _, after = _AROUND.get(type(request), (None, None, None))
        if before is None:
            return self._store.aio.submit(request)

        async def performed() -> T:
            self._boundaries.pass_one(before)
            answer = await self._store.aio.submit(_while_alive(request, self._boundaries), on_late_reply)
            self._boundaries.pass_one(after)
            return answer

        return asyncio.ensure_future(performed())

    def load(self, id: str) -> Awaitable[Snapshot | None]:
        return self._store.aio.load(id)

    async def replace(self, run_id: str, old: Snapshot, new: Snapshot) -> bool:
        self._boundaries.pass_one("before replacing")
        replaced = await self._store.aio.replace(run_id, old, new)
        self._boundaries.pass_one("replaced")
        return replaced

    def room(self) -> asyncio.Future[None] | None:
        return self._store.aio.room()


class StoreStage:
    """A real store under one of the real drivers."""

    def __init__(self, store: MemoryStore | PostgresStore, end_lease: Callable[[str], None], *, is_async: bool) -> None:
        self.boundaries = Boundaries()
        self._store = store
        self._end_lease = end_lease
        self._is_async = is_async
        self.table = ""  # for what is done in transactions
        self._booked: Callable[[], list[str]] = list

    @property
    def booked(self) -> list[str]:
        return self._booked()

    def run(
        self,
        story: Story | Program,
        world: World,
        *,
        id: str = "run-1",
        dies_at: int | str | None = None,
        **options: Any,
    ) -> Any:
        world.boundaries = self.boundaries = Boundaries(dies_at)
        world.table = self.table
        store = DyingStore(self._store, self.boundaries)
        workflow: Any
        if is_program(story):
            workflow = story if self._is_async else _blocking(story)
        else:
            generator = cast(Story, story)
            workflow = _async_workflow(generator) if self._is_async else _workflow(generator)
        if "input" in options or _wants_input(story):
            inner = workflow
            workflow = _named(story, _with_input_async(inner) if self._is_async else _with_input(inner))
        try:
            result = durable.run(world, workflow, id=id, store=store, **options)
            return asyncio.run(result) if self._is_async else result
        finally:
            if self.boundaries.dead:
                self._end_lease(id)

    def signal(self, id: str, name: str, payload: Any) -> None:
        if self._is_async:
            asyncio.run(durable.aio.signal(self._store, id, name, payload, create_later=True))
        else:
            durable.signal(self._store, id, name, payload, create_later=True)

    def retry(self, id: str, **options: Any) -> list[str]:
        if self._is_async:
            return asyncio.run(durable.aio.retry(self._store, id, **options))
        return durable.retry(self._store, id, **options)


def _wants_input(story: Any) -> bool:
    return not inspect.iscoroutinefunction(story) and bool(story.__code__.co_argcount > 1)


def _blocking(program: Any) -> Any:
    def workflow(step: durable.Step, deps: Any) -> Any:
        return at_once(program(_BlockingSteps(step), deps))

    return _named(program, workflow)


def _named(story: Any, workflow: Any) -> Any:
    workflow.__name__ = story.__name__
    return workflow


def _with_input(inner: Any) -> Any:
    def workflow(step: Any, deps: Any, input: Any) -> Any:
        return inner(step, deps, input)

    return workflow


def _with_input_async(inner: Any) -> Any:
    async def workflow(step: Any, deps: Any, input: Any) -> Any:
        return await inner(step, deps, input)

    return workflow


def _workflow(story: Story) -> Any:
    def workflow(step: durable.Step, deps: Any, *input: Any) -> Any:
        def perform(ask: Demand) -> Any:
            if isinstance(ask, Sleep):
                return step.sleep(ask.name, ask.seconds)
            if isinstance(ask, Race):
                return step.race(key=ask.key, **{name: partial(perform, one) for name, one in ask.branches.items()})
            if isinstance(ask, OnEnd):
                return step.on_end(ask.name, ask.fn, *ask.args)
            if isinstance(ask, WaitFor):
                return step.wait_for(ask.name, timeout=ask.timeout, key=ask.key)
            if isinstance(ask, CallChild):
                return step.call(story_child, ask.input, key=ask.key)
            if isinstance(ask, Transfer):
                return step.transaction(ask.name, ask.fn, *ask.args, key=ask.key, **ask.terms)
            if isinstance(ask, Ask):
                return step(ask.name, ask.fn, *ask.args, key=ask.key, **ask.terms)
            with ThreadPoolExecutor(len(ask.asks)) as pool:
                futures = [pool.submit(perform, one) for one in ask.asks]
            return [future.result() for future in futures]

        return told(story(deps, *input), perform)

    return _named(story, workflow)


def _async_workflow(story: Story) -> Any:
    async def workflow(step: durable.AsyncStep, deps: Any, *input: Any) -> Any:
        async def perform(ask: Demand) -> Any:
            if isinstance(ask, Sleep):
                return await step.sleep(ask.name, ask.seconds)
            if isinstance(ask, Race):
                return await step.race(
                    key=ask.key, **{name: partial(perform, one) for name, one in ask.branches.items()}
                )
            if isinstance(ask, OnEnd):
                return await step.on_end(ask.name, ask.fn, *ask.args)
            if isinstance(ask, WaitFor):
                return await step.wait_for(ask.name, timeout=ask.timeout, key=ask.key)
            if isinstance(ask, CallChild):
                return await step.call(story_child, ask.input, key=ask.key)
            if isinstance(ask, Transfer):
                return await step.transaction(ask.name, ask.fn, *ask.args, key=ask.key, **ask.terms)
            if isinstance(ask, Ask):
                return await step(ask.name, _sometimes_async(ask.fn), *ask.args, key=ask.key, **ask.terms)
            return await asyncio.gather(*[perform(one) for one in ask.asks])

        return await told_async(story(deps, *input), perform)

    return _named(story, workflow)


def _sometimes_async(fn: Callable[..., Any]) -> Callable[..., Any]:
    async def body(*args: Any) -> Any:
        await asyncio.sleep(0)
        return fn(*args)

    return body


def memory_stage(*, is_async: bool) -> StoreStage:
    """The memory store."""
    store = MemoryStore()

    def end_lease(run_id: str) -> None:
        if run_id in store._runs:
            store._runs[run_id].expires = 0.0

    return StoreStage(store, end_lease, is_async=is_async)


def postgres_stage(database: Database, *, is_async: bool) -> StoreStage:
    """The PostgreSQL store."""
    store = database.store()
    store.perform(Begin(Claim(run_id="warm-up", workflow="none", version=1, seconds=30.0, create=False), lambda: True))
    stage = StoreStage(store, database.end_lease, is_async=is_async)
    stage.table = f"{database.schema}.booked"
    database.execute("CREATE TABLE booked (what text)")
    stage._booked = lambda: [what for (what,) in database.execute("SELECT what FROM booked ORDER BY ctid")]
    return stage
