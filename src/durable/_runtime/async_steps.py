"""Performs what `_engine.steps` decides about a step, and awaits: the async form of `steps`."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, Final

from durable._common.boundary import calls_out, shorten
from durable._engine.calls import Call
from durable._engine.causes import InFlight, is_handled_around, links
from durable._engine.decisions import (
    Attempt,
    AttemptInTransaction,
    BeginChild,
    Begun,
    CallOff,
    Commit,
    Conclusion,
    Interrupted,
    Join,
    PollSignal,
    Received,
    RecordError,
    Rejected,
    Replay,
    RunBranches,
    ShowChild,
    StepDecision,
    StepOutcome,
    TakeTurn,
    Wait,
    WriteRecord,
)
from durable._engine.runs import begin_closing, end_closing
from durable._engine.starts import NewRun
from durable._engine.step_kinds import Race, Sleep
from durable._runtime.all_children import ChildWait, Failed, WaitForAll, in_order
from durable._runtime.awaitables import explain_unawaited, is_awaitable
from durable._runtime.bodies import Body, body_of_decorated
from durable._runtime.branches import is_alone
from durable._runtime.context import current_frame, enter, leave
from durable._runtime.definitions import StepDefinition
from durable._runtime.driver import ACKNOWLEDGED, ASKED, CALLED_OFF, SILENT, TURN_COME, UNREAD
from durable._runtime.mapping import MapItems, MapOptions, map_async
from durable._runtime.races import RacingDriver
from durable._runtime.shielded import wait_shielded
from durable._runtime.timeouts import NotBegun, await_within, call_on_thread, needs_thread
from durable._runtime.turns import Turns
from durable.codecs._failures import add_note
from durable.errors import AsyncMismatch, DurableError, Unwind
from durable.records import Record
from durable.stores import requests

_LOOK: Final = 0.25  # seconds between two looks whether a body is to be cancelled
_CANCELLED: Final = object()
_MAX_TURNS: Final = 10  # of the event loop, for tasks within tasks to begin what they have called


class AsyncDriver(RacingDriver):
    """Calls the steps of one async execution."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._loop = asyncio.get_running_loop()
        self._turns = Turns(self._loop, self._execution.journal.recorded > 0)
        self._change: asyncio.Future[None] | None = None
        self._races: dict[Call, dict[asyncio.Task[Any], str]] = {}  # the tasks of their branches
        self._unanswered: set[Call] = set()  # calls whose checkpoints have been sent
        self._unbegun: dict[
            Call | MapItems | WaitForAll, Coroutine[Any, Any, Any]
        ] = {}  # coroutines handed out and not awaited yet
        self._resting = set[asyncio.Task[Any]]()  # tasks that wait in a step
        self._main = main = asyncio.current_task()
        if main is not None:
            self._execution.journal.is_asked_to_end = lambda: main.cancelling() > 0

    def call_decorated(self, definition: StepDefinition, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name, fn = definition.name, definition.fn
        if not inspect.iscoroutinefunction(fn):
            raise AsyncMismatch(
                f"{name!r} is a blocking function, and this workflow is async: "
                f'call it as `await step("{name}", {getattr(fn, "__name__", "fn")}, ...)`, so that its checkpoint is awaited'
            )
        return self.call(name, None, body_of_decorated(definition, args, kwargs, self.defaults))

    async def check_awaited(self, failure: Exception | None = None) -> None:
        """Let the tasks that the workflow left behind begin, and name the steps that nothing awaits.

        `AsyncMismatch`; where the workflow has failed with something else, that gets a note.
        """
        for _ in range(_MAX_TURNS):
            await asyncio.sleep(0)  # each task that has been made begins in this turn, and may make another
            if not self._unbegun:
                return
        names = self._close_unawaited()
        if not names:
            return
        if failure is None:
            raise AsyncMismatch(explain_unawaited(names))
        add_note(failure, explain_unawaited(names))

    def _close_unawaited(self) -> list[str]:
        """Close the coroutines that nothing has awaited, and name their steps."""
        unbegun, self._unbegun = self._unbegun, {}
        names: list[str] = []
        for step, coroutine in unbegun.items():
            if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:  # not of a task that was cancelled
                names.append(step.name)
                coroutine.close()  # else Python warns of it, without the step's name
        return names

    async def drain(self) -> None:
        """Wait until no step is running."""
        while not self._execution.is_idle:
            try:
                async with asyncio.timeout(self._execution.lease.seconds):
                    while not self._execution.is_idle:
                        await self._wait_for_change()
            except TimeoutError:
                self._warn_still_running()

    async def await_checkpoints(self, seconds: float, reason: BaseException) -> None:
        """Wait until no checkpoint is on its way, `seconds` at most; not at all in a coroutine that is being closed."""
        if not isinstance(reason, GeneratorExit):
            with contextlib.suppress(asyncio.CancelledError):  # `reason` is raised, once this is over
                await wait_shielded(asyncio.ensure_future(self._await_checkpoints(seconds)), seconds)
        self._close_unawaited()

    async def _await_checkpoints(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.sleep(0)  # a task that has not begun ends in this turn
                while self._execution.is_committing:
                    await self._wait_for_change()

    def call(self, name: str, key: str | None, body: Body, amid: InFlight | None = None) -> Coroutine[Any, Any, Any]:
        """The step's coroutine. `amid`: the exception in flight where `step.map` was called, for calls in other tasks."""
        call = self._called(name, key, body, amid)
        self._unbegun[call] = handed_out = (
            self._rest(call, body) if type(body.kind) is Sleep else self._drive(call, body)
        )
        return handed_out

    def _called(self, name: str, key: str | None, body: Body, amid: InFlight | None = None) -> Call:
        fingerprint = self._fingerprint(name, key, body)
        if asyncio._get_running_loop() is not self._loop:  # noqa: SLF001 -- the one way to ask without raising
            raise _loop_error(f"step {name!r}")
        return self._draw(name, key, body, fingerprint, asyncio.current_task(), amid)

    def _drawing(self, what: str) -> contextlib.AbstractContextManager[object]:
        if asyncio._get_running_loop() is not self._loop:  # noqa: SLF001 -- likewise
            raise _loop_error(what)
        return contextlib.nullcontext()

    def map(
        self, name: str, items: Iterable[Any], how: MapOptions, body_of: Callable[[Any, InFlight | None], Body]
    ) -> Coroutine[Any, Any, list[Any]]:
        """A step for each item, in tasks."""
        amid = self._in_flight(sys.exception())
        every = MapItems(name, items, how, self.scope)

        async def begun() -> list[Any]:
            self._unbegun.pop(every, None)
            every.tell(self._execution, self.clock)
            return await map_async(every, lambda key, item: self.call(name, key, body_of(item, amid), amid))

        self._unbegun[every] = handed_out = begun()
        return handed_out

    def is_alone(self) -> bool:
        def is_ours(context: contextvars.Context) -> bool:
            frame = context.get(current_frame)
            return frame is not None and frame.driver is self

        return self._main is not None and is_alone(self._main, is_ours, self._resting)

    def _outer_exception(self, exception: BaseException) -> BaseException | None:
        # An event loop may be run in an `except` block, and is where asyncio.run ends its tasks: what is handled there is
        # not the workflow's, and an interruption raised again would leave all the other tasks as they stand.
        task = asyncio.current_task()
        root = None if task is None else getattr(task.get_coro(), "cr_frame", None)
        return next((link for link in links(exception) if link is self._before or is_handled_around(root, link)), None)

    def _branch(self) -> object:
        return asyncio.current_task()

    def _is_cancelled(self) -> bool:
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0

    @calls_out
    async def close(self, conclusion: Conclusion) -> Conclusion:
        """Do what is to be done before the run ends so, if anything is; how it ends then, or is left."""
        if self._execution.is_closing:  # what is at work is recorded before it is undone
            await self.drain()
        closing = begin_closing(self._execution, conclusion)
        if closing is None:
            return conclusion
        while self._execution.error is None and (step := closing.next_step()) is not None:
            try:
                call, body = self._closing_bodies.begin(step)
                await self._drive(call, body)
            except Exception as problem:
                self._closing_bodies.note_failure(closing, step, problem)
        return end_closing(self._execution, closing, self._closing_bodies.to_record)

    @calls_out
    async def _drive(self, call: Call, body: Body) -> Any:
        outcome: StepOutcome = ASKED
        try:
            while True:
                match self._advance(call, outcome):
                    case Attempt() as attempt:
                        outcome = await self._attempt(call, attempt, body)
                    case WriteRecord(record=record):
                        outcome = await self._checkpoint(call, record)
                    case Replay(record=record):
                        return self._hand_out(call, record, body)
                    case AttemptInTransaction(number=number, began=began):
                        outcome = await self._transact(call, Attempt(number, began), body)
                    case Wait(seconds=seconds, recheck=recheck):
                        await self._pause(call, seconds, recheck)
                        outcome = ASKED
                    case PollSignal(names=names, taken=taken):
                        outcome = await self._receive(names, taken)
                    case Commit(record=record):
                        outcome = await self._commit(call, body, record)
                    case RunBranches() as branches:
                        outcome = await self._race(call, branches, body)
                    case CallOff():
                        await self._call_off(call)
                        outcome = CALLED_OFF
                    case TakeTurn(place=place):
                        await self._take_turn(place)
                        outcome = TURN_COME
                    case Join():
                        await self._join(call)
                        outcome = ASKED
                    case BeginChild(record=record, child=child):
                        outcome = await self._begin_child(call, record, child)
                    case RecordError(error=error, cause=cause):
                        outcome = self._as_error(error, cause)
                    case ShowChild():
                        return body.call()
                    case stop:
                        raise self._ending(stop)
        except BaseException as reason:
            self._abandon(call, reason)
            if type(call.kind) is Race:
                await self._call_off(call, reason)
            shorten(reason)
            raise

    @calls_out
    async def _attempt(self, call: Call, attempt: Attempt, body: Body) -> StepOutcome:
        if (room := self._store.aio.room()) is not None:
            await self._wait_for_room(room)
        token, timeout = enter(self._frame_of(call, attempt, body)), body.options.timeout
        try:
            if body.options.cancellable and call.closing is None and not call.cleanup:
                value = await self._await_cancellable(call, body)
                if value is _CANCELLED:
                    return ASKED
            elif timeout is None:
                value = body.call()
                if is_awaitable(value):
                    value = await value
            else:
                value = await await_within(timeout, call.name, body.call, blocks=needs_thread(body.fn))
        except NotBegun as problem:
            return Rejected(problem.error)
        except Exception as exception:
            return self._as_raised(call, exception, attempt, body)
        finally:
            leave(token)
        return self._encode(call, value, body)

    async def _await_cancellable(self, call: Call, body: Body) -> Any:
        """What the body returns; `_CANCELLED` where it was cancelled since its run is, and ended without a value."""
        if body.options.timeout is None:
            value = body.call()
            if not is_awaitable(value):
                return value
        else:
            value = await_within(body.options.timeout, call.name, body.call, blocks=needs_thread(body.fn))
        task, cancelled = asyncio.ensure_future(value), False
        try:
            while not (await asyncio.wait([task], timeout=None if cancelled else _LOOK))[0]:
                if not cancelled and self._is_to_be_cancelled():
                    cancelled = task.cancel()
        except BaseException:  # this task is being left, and the body with it
            task.cancel()
            await asyncio.wait([task])
            raise
        if cancelled and (task.cancelled() or task.exception() is not None):
            return _CANCELLED
        return task.result()

    def _is_to_be_cancelled(self) -> bool:
        return self._execution.lease.cancelled or self._execution.find_ending(self._reading()) is not None

    async def _wait_for_room(self, room: asyncio.Future[None] | None) -> None:
        """Wait until the store has room for a body's record; leave the run if it may start no body by then."""
        while room is not None:
            await room
            room = self._store.aio.room()
        if stop := self._execution.abort_if_stopped(self._reading()):
            raise self.exit_error(stop.error)

    async def _transact(self, call: Call, attempt: Attempt, body: Body) -> StepOutcome:
        try:
            transaction = self._open_transaction(call, attempt, body)
        except DurableError as error:
            return Rejected(error)
        context = contextvars.copy_context()
        performed = transaction.submit(lambda: context.run(self._perform, call, attempt, body, transaction))
        return await asyncio.wrap_future(performed)

    async def _commit(self, call: Call, body: Body, record: Record) -> StepOutcome:
        try:
            answer = call_on_thread(call.name, partial(self._commit_transaction, call, body, record))
        except NotBegun as problem:
            return Rejected(problem.error)
        outcome: asyncio.Future[StepOutcome] = asyncio.wrap_future(answer)
        self._unanswered.add(call)
        try:
            await asyncio.shield(outcome)
        except asyncio.CancelledError:  # it goes on all the same, and its outcome is taken when it comes
            outcome.add_done_callback(partial(self._on_late_commit, call))
            raise
        except BaseException:
            self._unanswered.discard(call)
            raise
        self._unanswered.discard(call)
        return outcome.result()

    def _on_late_commit(self, call: Call, outcome: asyncio.Future[StepOutcome]) -> None:
        self._unanswered.discard(call)
        problem = asyncio.CancelledError() if outcome.cancelled() else outcome.exception()
        if problem is not None:
            self._abandon(call, problem)
        elif not isinstance(self._advance(call, outcome.result()), Replay):  # more to do, and no task left to do it
            self._abandon(call, asyncio.CancelledError())

    async def _checkpoint(self, call: Call, record: Record) -> StepOutcome:
        call.stored = None
        try:
            request = requests.Checkpoint(self._execution.lease, record)
            answer = self._store.aio.submit(request, partial(self._on_late_reply, call))
        except DurableError as refusal:  # it did not set out
            return Rejected(refusal)
        self._unanswered.add(call)
        try:
            # On one line: no interrupt comes between the reply and the note of it.
            call.stored = await answer is None  # type: ignore[func-returns-value]
        except asyncio.CancelledError:  # the record has been sent all the same, and its reply is taken when it comes
            if not answer.cancelled():  # it has come already, in the same turn of the loop
                self._on_late_reply(call, answer.exception())
            raise
        except BaseException as error:
            self._unanswered.discard(call)
            if isinstance(error, DurableError):
                return Rejected(error)
            raise
        self._unanswered.discard(call)
        return ACKNOWLEDGED

    def _on_late_reply(self, call: Call, error: BaseException | None) -> None:
        self._unanswered.discard(call)
        if error is None:
            if not isinstance(self._advance(call, ACKNOWLEDGED), Replay):  # more to do, and no task left to do it
                self._abandon(call, asyncio.CancelledError())
        elif isinstance(error, DurableError):
            self._advance(call, Rejected(error))
        else:
            self._abandon(call, error)

    async def _receive(self, names: Sequence[str], taken: Sequence[int]) -> StepOutcome:
        try:
            found = await self._store.aio.submit(requests.Receive(self._execution.lease, names, taken))
        except DurableError as error:
            return Rejected(error)
        return SILENT if found is None else Received(found[0], found[1], found[2].encode())

    async def _begin_child(self, call: Call, record: Record, child: NewRun) -> StepOutcome:
        call.stored = None
        try:
            answer = self._store.aio.submit(requests.BeginChild(self._execution.lease, record, child))
        except DurableError as refusal:  # it did not set out
            call.stored = False
            return Rejected(refusal)
        self._unanswered.add(call)
        try:
            await asyncio.shield(answer)
        except asyncio.CancelledError:  # it goes on all the same, and its outcome is taken when it comes
            answer.add_done_callback(partial(self._on_late_child, call))
            raise
        except BaseException as error:
            self._unanswered.discard(call)
            if isinstance(error, DurableError):
                return Rejected(error)
            raise
        self._unanswered.discard(call)
        return answer.result()

    def _on_late_child(self, call: Call, answer: asyncio.Future[Begun]) -> None:
        self._unanswered.discard(call)
        problem = asyncio.CancelledError() if answer.cancelled() else answer.exception()
        if isinstance(problem, DurableError):
            self._advance(call, Rejected(problem))
        elif problem is not None:
            self._abandon(call, problem)
        elif not isinstance(self._advance(call, answer.result()), ShowChild):  # more to do, and no task left to do it
            self._abandon(call, asyncio.CancelledError())

    def call_child(self, name: str, key: str, begin: Body, wait: Body) -> Coroutine[Any, Any, Any]:
        """The outcome of a child, started by the first of these bodies, and waited for by the second."""
        call = self._called(name, key, begin)

        async def begun() -> Any:
            await self._drive(call, begin)
            return await self.call(name, key, wait)

        self._unbegun[call] = handed_out = begun()
        return handed_out

    def wait_for_children(
        self, children: Sequence[ChildWait], *, return_exceptions: bool
    ) -> Coroutine[Any, Any, list[Any]]:
        """Their outcomes in order, once all have ended; the first exception is raised then, unless it is returned."""
        every = WaitForAll()

        async def begun() -> list[Any]:
            self._unbegun.pop(every, None)
            told: list[Any] = []
            for child in reversed(children):  # what was started last is likely to end last: one wait then for all
                try:
                    told.append(await self.call(child.name, child.key, child.wait))
                except Exception as exception:
                    told.append(Failed(exception))
            return in_order(told, return_exceptions=return_exceptions)

        self._unbegun[every] = handed_out = begun()
        return handed_out

    async def _rest(self, call: Call, body: Body) -> None:
        until = await self._drive(call, body)
        while (wait := self._next_rest(call, until)) is not None:
            await self._pause(call, wait.seconds, wait.recheck)

    async def _race(self, call: Call, run: RunBranches, body: Body) -> StepOutcome:
        self._has_raced, failures = True, list[Exception]()
        token = enter(self._frame_in(call))
        try:
            tasks = {asyncio.ensure_future(_value_of(fn)): name for name, fn in body.branches.items()}
        finally:
            leave(token)
        self._races[call] = tasks
        ended: list[asyncio.Task[Any]] = []  # in this order
        for task in tasks:
            task.add_done_callback(ended.append)
        while len(failures) < len(tasks):
            await asyncio.wait(tasks.keys() - set(ended), return_when=asyncio.FIRST_COMPLETED)
            for task in ended[len(failures) :]:
                problem = task.exception()  # or a cancellation of its own, raised
                if problem is None:
                    return self._won(call, tasks[task], task.result(), body)
                if not isinstance(problem, Exception):
                    raise problem
                self._tell_failure(call, tasks[task], problem)
                failures.append(problem)
        return self._all_out(call, run, failures, body)

    async def _call_off(self, call: Call, reason: BaseException | None = None) -> None:
        """Cancel the other branches, and wait until they have cleaned up."""
        tasks = self._races.pop(call, {})
        rest = [task for task in tasks if not task.done()]
        for task in rest:
            task.cancel()
        if rest and (reason is None or isinstance(reason, Exception | asyncio.CancelledError | Unwind)):
            await asyncio.wait(rest)
            for task in rest:
                if task.done() and not task.cancelled() and isinstance(problem := task.exception(), Exception):
                    self._tell_failure(call, tasks[task], problem)

    async def _pause(self, call: Call, seconds: float, recheck: float) -> None:  # noqa: ARG002 -- for threads
        task = asyncio.current_task()
        if task is None:
            await self.clock.asleep(seconds, recheck)
            return
        self._resting.add(task)
        try:
            await self.clock.asleep(seconds, recheck)
        finally:
            self._resting.discard(task)

    async def _take_turn(self, place: int) -> None:
        await self._turns.take(place)

    async def _join(self, call: Call) -> None:
        while self._execution.is_running(call):
            await self._wait_for_change()

    def _abandon(self, call: Call, reason: BaseException) -> None:
        if call in self._unanswered and isinstance(reason, asyncio.CancelledError):
            return  # its reply is taken when it comes
        # What a signal handler raises strikes where nothing is awaited: no reply will come.
        self._unanswered.discard(call)
        self._forsake(call)
        self._advance(call, Interrupted(type(reason).__name__))

    def _advance(self, call: Call, outcome: StepOutcome) -> StepDecision:
        if outcome is ASKED:
            self._unbegun.pop(call, None)
        reading = UNREAD if type(outcome) in self._timeless else self._reading()
        decision = self._execution.advance(call, outcome, reading)
        if self._change is not None:
            self._change.set_result(None)
            self._change = None
        return decision

    async def _wait_for_change(self) -> None:
        if self._change is None:
            self._change = self._loop.create_future()
        await asyncio.shield(self._change)


async def _value_of(fn: Callable[[], Any]) -> Any:
    """What a branch of a race returns, or what that gives when it is awaited."""
    value = fn()
    return await value if is_awaitable(value) else value


def _loop_error(what: str) -> AsyncMismatch:
    return AsyncMismatch(f"{what} belongs to an async workflow: call it on that workflow's event loop")
