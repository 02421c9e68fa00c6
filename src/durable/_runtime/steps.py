"""Performs what `_engine.steps` decides about a step, and blocks.

`async_steps` awaits instead. A test strips `await` from both and compares the rest; what needs neither is in `driver`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from durable._common.boundary import calls_out, shorten
from durable._common.locks import locked
from durable._engine.calls import Call
from durable._engine.causes import InFlight
from durable._engine.decisions import (
    Abort,
    Attempt,
    AttemptInTransaction,
    BeginChild,
    CallOff,
    Commit,
    Conclusion,
    Interrupted,
    Join,
    PollSignal,
    Raise,
    Received,
    RecordError,
    Rejected,
    Replay,
    RunBranches,
    ShowChild,
    StepDecision,
    StepOutcome,
    TakeTurn,
    Unstorable,
    Wait,
    WriteRecord,
)
from durable._engine.leases import MAX_WAIT
from durable._engine.runs import begin_closing, end_closing
from durable._engine.starts import NewRun
from durable._engine.step_kinds import Race, Sleep
from durable._runtime.all_children import ChildWait, Failed, in_order
from durable._runtime.awaitables import is_awaitable, vain_awaitable_error
from durable._runtime.bodies import Body, body_of_decorated
from durable._runtime.branches import have_ended
from durable._runtime.context import enter, leave
from durable._runtime.definitions import StepDefinition
from durable._runtime.driver import ACKNOWLEDGED, ASKED, CALLED_OFF, SILENT, TURN_COME, UNREAD
from durable._runtime.mapping import MapItems, MapOptions, map_blocking
from durable._runtime.races import Heat, RacingDriver
from durable._runtime.timeouts import NotBegun, call_on_thread, call_within
from durable.clocks import SystemClock
from durable.errors import DurableError
from durable.records import Record
from durable.stores import requests


class BlockingDriver(RacingDriver):
    """Calls the steps of one blocking execution."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._lock = threading.RLock()  # guards the execution
        self._changed = threading.Condition(self._lock)
        self._waiting = 0
        self._main = threading.current_thread()
        self._mapping: MapItems | None = None
        self._races: dict[Call, Heat] = {}

    def call_decorated(self, definition: StepDefinition, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.call(definition.name, None, body_of_decorated(definition, args, kwargs, self.defaults))

    def check_awaited(self, failure: Exception | None = None) -> None:
        """Nothing is left to begin: a blocking step begins where it is called."""

    def drain(self) -> None:
        """Wait until no step is running."""
        while not self._wait_until(lambda: self._execution.is_idle, self._execution.lease.seconds):
            self._warn_still_running()

    def await_checkpoints(self, seconds: float, _: BaseException) -> None:
        """Wait until no checkpoint is on its way, `seconds` at most."""
        self._wait_until(lambda: not self._execution.is_committing, seconds)

    def call(self, name: str, key: str | None, body: Body, amid: InFlight | None = None) -> Any:
        """The step's value. `amid`: the exception in flight where `step.map` was called, for calls on other threads."""
        fingerprint = self._fingerprint(name, key, body)
        # On one line, as in `_common.locks`: no interrupt comes between the call and the end of the block.
        with self._lock: call = self._draw(name, key, body, fingerprint, threading.current_thread(), amid)  # noqa: E701  # fmt: skip
        return self._rest(call, body) if type(body.kind) is Sleep else self._drive(call, body)

    def _drawing(self, what: str) -> AbstractContextManager[object]:  # noqa: ARG002 -- any thread may
        return self._lock

    def map(
        self, name: str, items: Iterable[Any], how: MapOptions, body_of: Callable[[Any, InFlight | None], Body]
    ) -> list[Any]:
        """A step for each item, on threads."""
        amid = self._in_flight(sys.exception())
        every = MapItems(name, items, how, self.scope)
        every.tell(self._execution, self.clock)
        outer = self._mapping
        if threading.current_thread() is self._main:
            self._mapping = every
        try:
            return map_blocking(every, lambda key, item: self.call(name, key, body_of(item, amid), amid))
        finally:
            self._mapping = outer

    def is_alone(self) -> bool:
        this = threading.current_thread()
        if not have_ended(branch for branch in list(self._branches) if branch is not this and branch is not self._main):
            return False
        mapping = self._mapping  # what the main thread waits for, if this is another
        return this is self._main or (mapping is not None and mapping.is_last)

    def _outer_exception(self, exception: BaseException) -> BaseException | None:  # noqa: ARG002 -- the async driver asks it
        return self._before

    def _branch(self) -> object:
        return threading.current_thread()

    def _is_cancelled(self) -> bool:
        return False

    @calls_out
    def close(self, conclusion: Conclusion) -> Conclusion:
        """Do what is to be done before the run ends so, if anything is; how it ends then, or is left."""
        if self._execution.is_closing:  # what is at work is recorded before it is undone
            self.drain()
        closing = begin_closing(self._execution, conclusion)
        if closing is None:
            return conclusion
        while self._execution.error is None and (step := closing.next_step()) is not None:
            try:
                call, body = self._closing_bodies.begin(step)
                self._drive(call, body)
            except Exception as problem:
                self._closing_bodies.note_failure(closing, step, problem)
        return end_closing(self._execution, closing, self._closing_bodies.to_record)

    @calls_out
    def _drive(self, call: Call, body: Body) -> Any:
        outcome: StepOutcome = ASKED
        try:
            while True:
                match self._advance(call, outcome):
                    case Attempt() as attempt:
                        outcome = self._attempt(call, attempt, body)
                    case WriteRecord(record=record):
                        outcome = self._checkpoint(call, record)
                    case Replay(record=record):
                        return self._hand_out(call, record, body)
                    case AttemptInTransaction(number=number, began=began):
                        outcome = self._transact(call, Attempt(number, began), body)
                    case Wait(seconds=seconds, recheck=recheck):
                        self._pause(call, seconds, recheck)
                        outcome = ASKED
                    case PollSignal(names=names, taken=taken):
                        outcome = self._receive(names, taken)
                    case Commit(record=record):
                        outcome = self._commit(call, body, record)
                    case RunBranches() as branches:
                        outcome = self._race(call, branches, body)
                    case CallOff():
                        self._call_off(call)
                        outcome = CALLED_OFF
                    case TakeTurn(place=place):
                        self._take_turn(place)
                        outcome = TURN_COME
                    case Join():
                        self._join(call)
                        outcome = ASKED
                    case BeginChild(record=record, child=child):
                        outcome = self._begin_child(call, record, child)
                    case RecordError(error=error, cause=cause):
                        outcome = self._as_error(error, cause)
                    case ShowChild():
                        return body.call()
                    case stop:
                        raise self._ending(stop)
        except BaseException as reason:
            self._abandon(call, reason)
            if type(call.kind) is Race:
                self._call_off(call, reason)
            shorten(reason)
            raise

    @calls_out
    def _attempt(self, call: Call, attempt: Attempt, body: Body) -> StepOutcome:
        token, timeout = enter(self._frame_of(call, attempt, body)), body.options.timeout
        try:
            value = body.call() if timeout is None else call_within(timeout, call.name, body.call)
        except NotBegun as problem:
            return Rejected(problem.error)
        except Exception as exception:
            return self._as_raised(call, exception, attempt, body)
        finally:
            leave(token)
        if is_awaitable(value):
            why = "and its workflow is a blocking function: make the workflow `async def`, or give it a blocking step"
            return Unstorable(vain_awaitable_error(call.name, value, why))
        return self._encode(call, value, body)

    def _transact(self, call: Call, attempt: Attempt, body: Body) -> StepOutcome:
        try:
            transaction = self._open_transaction(call, attempt, body)
        except DurableError as error:
            return Rejected(error)
        return self._perform(call, attempt, body, transaction)

    def _commit(self, call: Call, body: Body, record: Record) -> StepOutcome:
        return self._commit_transaction(call, body, record, partial(self._on_late_reply, call))

    def _checkpoint(self, call: Call, record: Record) -> StepOutcome:
        on_late_reply = partial(self._on_late_reply, call)
        try:
            # On one line: no interrupt comes between the reply and the note of it.
            call.stored = self._store.perform(requests.Checkpoint(self._execution.lease, record), on_late_reply) is None
        except DurableError as error:
            return Rejected(error)
        return ACKNOWLEDGED

    def _on_late_reply(self, call: Call, error: BaseException | None) -> None:
        """The store's reply, when an interrupt was raised in its place: a stored record counts, and the interrupt goes on."""
        if error is None:
            self._advance(call, ACKNOWLEDGED)
        elif isinstance(error, DurableError):
            self._advance(call, Rejected(error))
        else:
            call.stored = False

    def _receive(self, names: Sequence[str], taken: Sequence[int]) -> StepOutcome:
        try:
            found = self._store.perform(requests.Receive(self._execution.lease, names, taken))
        except DurableError as error:
            return Rejected(error)
        return SILENT if found is None else Received(found[0], found[1], found[2].encode())

    def _begin_child(self, call: Call, record: Record, child: NewRun) -> StepOutcome:
        call.stored = None
        try:
            return self._store.perform(requests.BeginChild(self._execution.lease, record, child))
        except DurableError as error:
            return Rejected(error)

    def call_child(self, name: str, key: str, begin: Body, wait: Body) -> Any:
        """The outcome of a child, started by the first of these bodies, and waited for by the second."""
        self.call(name, key, begin)
        return self.call(name, key, wait)

    def wait_for_children(self, children: Sequence[ChildWait], *, return_exceptions: bool) -> list[Any]:
        """Their outcomes in order, once all have ended; the first exception is raised then, unless it is returned."""
        told: list[Any] = []
        for child in reversed(children):  # what was started last is likely to end last: one wait then for all
            try:
                told.append(self.call(child.name, child.key, child.wait))
            except Exception as exception:
                told.append(Failed(exception))
        return in_order(told, return_exceptions=return_exceptions)

    def _rest(self, call: Call, body: Body) -> None:
        until = self._drive(call, body)
        while (wait := self._next_rest(call, until)) is not None:
            self._pause(call, wait.seconds, wait.recheck)

    @locked
    def _continue(self, text: bytes, keep_history: bool) -> Raise | Abort:
        return super()._continue(text, keep_history)

    @locked
    def _next_rest(self, call: Call, recorded: object) -> Wait | None:
        return super()._next_rest(call, recorded)

    def _race(self, call: Call, run: RunBranches, body: Body) -> StepOutcome:
        self._has_raced, heat, failures = True, Heat(), list[Exception]()
        self._races[call] = heat
        token = enter(self._frame_in(call))
        try:
            for name, fn in body.branches.items():
                call_on_thread(name, fn).add_done_callback(partial(self._on_branch_end, heat, name))
        except NotBegun as problem:
            return Rejected(problem.error)
        finally:
            leave(token)
        while len(failures) < len(body.branches):
            self._wait_until(lambda: len(heat.ended) > len(failures) or self._execution.has_lost(call))
            if len(heat.ended) == len(failures):
                return ASKED
            name, answer = heat.ended[len(failures)]
            failure = answer.exception()
            if failure is None:
                value = answer.result()
                if not is_awaitable(value):
                    return self._won(call, name, value, body)
                why = "and its workflow is a blocking function: make the workflow `async def`, or await nothing there"
                return Unstorable(vain_awaitable_error(name, value, why))
            if not isinstance(failure, Exception):
                raise failure
            self._tell_failure(call, name, failure)
            failures.append(failure)
        return self._all_out(call, run, failures, body)

    def _on_branch_end(self, heat: Heat, name: str, answer: Future[Any]) -> None:
        heat.ended.append((name, answer))
        self._report_change()

    def _call_off(self, call: Call, reason: BaseException | None = None) -> None:  # noqa: ARG002 -- for asyncio
        """Wake the branches that only wait. What another does goes on in its thread, up to its next step."""
        heat = self._races.pop(call, None)
        if heat is not None:
            heat.over.set()
            self._report_change()
            for thread in list(heat.pausing):
                thread.join(MAX_WAIT)

    def _pause(self, call: Call, seconds: float, recheck: float) -> None:
        heat = None if call.race is None else self._races.get(call.race)
        if heat is None or not isinstance(self.clock, SystemClock):
            self.clock.sleep(seconds, recheck)
            return
        this = threading.current_thread()
        heat.pausing.add(this)
        try:
            heat.over.wait(min(seconds, recheck))
        finally:
            heat.pausing.discard(this)

    def _take_turn(self, place: int) -> None:
        """At once: what an outcome wakes in another thread cannot be known."""

    def _join(self, call: Call) -> None:
        self._wait_until(lambda: not self._execution.is_running(call))

    def _abandon(self, call: Call, reason: BaseException) -> None:
        self._forsake(call)
        self._advance(call, Interrupted(type(reason).__name__))

    def _advance(self, call: Call, outcome: StepOutcome) -> StepDecision:
        reading = UNREAD if type(outcome) in self._timeless else self._reading()
        with self._lock: decision = self._execution.advance(call, outcome, reading)  # noqa: E701  # fmt: skip
        if self._waiting:
            self._report_change()
        return decision

    @locked
    def _report_change(self) -> None:
        self._changed.notify_all()

    @locked
    def _wait_until(self, condition: Callable[[], bool], seconds: float | None = None) -> bool:
        self._waiting += 1
        try:
            return self._changed.wait_for(condition, seconds)
        finally:
            self._waiting -= 1
