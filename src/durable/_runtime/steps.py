"""The two drivers of the engine, side by side: `BlockingDriver` blocks, `AsyncDriver` awaits.

Each performs what the engine decides and reports what came of it. They differ in colour only, which a test checks by
stripping it; what has no colour is in `_driver.Driver`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import threading
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, assert_never

from durable._common.boundary import calls_out, shorten
from durable._common.locks import locked
from durable._engine.calls import Call
from durable._engine.causes import InFlight, is_handled_around, links
from durable._engine.decisions import (
    Abort,
    Attempt,
    AttemptInTransaction,
    Checkpoint,
    Commit,
    Interrupted,
    Join,
    Leave,
    Raise,
    Receive,
    Received,
    Rejected,
    Replay,
    Sleep,
    StepDecision,
    StepOutcome,
    Unstorable,
    Wait,
)
from durable._runtime.bodies import (
    NotBegun,
    awaitable_in_vain,
    awaited_within,
    called_within,
    can_be_awaited,
    needs_a_thread,
    never_awaited,
    on_a_thread,
)
from durable._runtime.decorator import Options, enter, leave
from durable._runtime.driver import ACKNOWLEDGED, ASKED, SILENT, UNREAD, Body, Driver
from durable._runtime.mapping import Items, mapped, mapped_async
from durable._runtime.shielded import see_through
from durable.codecs._failures import add_note
from durable.errors import AsyncMismatch, DurableError
from durable.records import Record

_MAX_TURNS: Final = 10  # of the event loop, for tasks within tasks to begin what they have called


class BlockingDriver(Driver):
    """Performs what the engine decides, and blocks while it does."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._lock = threading.RLock()  # guards the execution
        self._changed = threading.Condition(self._lock)
        self._waiting = 0

    def call_decorated(self, options: Options, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `_decorator.Driver`."""
        return self._called(options.name, None, self._body(options.fn, args, kwargs, options.terms))

    def see_begun(self, failure: Exception | None = None) -> None:
        """Nothing is left to begin: a blocking step begins where it is called."""

    def drain(self) -> None:
        """Wait until no step is running."""
        while not self._wait_until(lambda: self._execution.idle, self._execution.lease.seconds):
            self._still_running()

    def settle(self, seconds: float, _: BaseException) -> None:
        """Wait until no checkpoint is on its way, `seconds` at most."""
        self._wait_until(lambda: not self._execution.committing, seconds)

    def _called(self, name: str, key: str | None, body: Body, amid: InFlight | None = None) -> Any:
        """What the step gives; `amid` is what is in flight where the call was handed on, if it was."""
        fingerprint = self._fingerprint(name, key, body)
        # In one line, as in `_locks`: nothing can strike between the call and the end of the block.
        with self._lock: call = self._draw(name, key, body, fingerprint, threading.current_thread(), amid)  # noqa: E701  # fmt: skip
        return self._rested(call, body) if isinstance(body.kind, Sleep) else self._driven(call, body)

    def _mapped(self, every: Items, called: Callable[[str, Any], Any]) -> list[Any]:
        return mapped(every, called)

    def _handled_outside(self, exception: BaseException) -> BaseException | None:  # noqa: ARG002 -- the async driver asks it
        return self._before

    def _branch(self) -> object:
        return threading.current_thread()

    def _is_cancelled(self) -> bool:
        return False

    @calls_out
    def _driven(self, call: Call, body: Body) -> Any:
        outcome: StepOutcome = ASKED
        try:
            while True:
                match self._advance(call, outcome):
                    case Attempt() as attempt:
                        outcome = self._attempted(call, attempt, body)
                    case Checkpoint(record):
                        outcome = self._checkpointed(call, record)
                    case Replay(record):
                        return self._handed_out(call, record, body)
                    case AttemptInTransaction(number, began):
                        outcome = self._transacted(call, Attempt(number, began), body)
                    case Wait(seconds, look):
                        self._clock.sleep(seconds, look)
                        outcome = ASKED
                    case Receive(signal, taken):
                        outcome = self._received(signal, taken)
                    case Commit(record):
                        outcome = self._committed(call, body, record)
                    case Join():
                        self._joined(call)
                        outcome = ASKED
                    case Raise(error):
                        raise error
                    case Abort(error):
                        raise self.leaving(error)
                    case Leave(interruption):
                        raise interruption
                    case never:
                        assert_never(never)
        except BaseException as reason:
            self._abandoned(call, reason)
            shorten(reason)
            raise

    @calls_out
    def _attempted(self, call: Call, attempt: Attempt, body: Body) -> StepOutcome:
        token, timeout = enter(self.frame(call.key)), body.terms.timeout
        try:
            value = body.call() if timeout is None else called_within(timeout, call.name, body.call)
        except NotBegun as problem:
            return Rejected(problem.error)
        except Exception as exception:
            return self._failed(call, exception, attempt, body)
        finally:
            leave(token)
        if can_be_awaited(value):
            why = "and its workflow is a blocking function: make the workflow `async def`, or give it a blocking step"
            return Unstorable(awaitable_in_vain(call.name, value, why))
        return self._encoded(call, value, body)

    def _transacted(self, call: Call, attempt: Attempt, body: Body) -> StepOutcome:
        try:
            transaction = self._opened(call, attempt, body)
        except DurableError as error:
            return Rejected(error)
        return self._performed(call, attempt, body, transaction)

    def _committed(self, call: Call, body: Body, record: Record) -> StepOutcome:
        return self._committing(call, body, record, partial(self._answered_late, call))

    def _checkpointed(self, call: Call, record: Record) -> StepOutcome:
        late = partial(self._answered_late, call)
        try:
            # On one line: nothing comes between the answer and that it is known.
            call.stored = self._store.checkpoint(self._execution.lease, record, late) is None  # type: ignore[func-returns-value]
        except DurableError as error:
            return Rejected(error)
        return ACKNOWLEDGED

    def _answered_late(self, call: Call, error: BaseException | None) -> None:
        """An interrupt has come in place of the answer, which is this: what is recorded stays so, and the interrupt goes on."""
        if error is None:
            self._advance(call, ACKNOWLEDGED)
        elif isinstance(error, DurableError):
            self._advance(call, Rejected(error))
        else:
            call.stored = False

    def _received(self, signal: str, taken: Sequence[int]) -> StepOutcome:
        try:
            found = self._store.receive(self._execution.lease, signal, taken)
        except DurableError as error:
            return Rejected(error)
        return SILENT if found is None else Received(found[0], found[1].encode())

    def _rested(self, call: Call, body: Body) -> None:
        until = self._driven(call, body)
        while True:
            match self._resting(call, until):
                case Wait(seconds, look):
                    self._clock.sleep(seconds, look)
                case Abort(error):
                    raise self.leaving(error)
                case None:
                    return
                case never:
                    assert_never(never)

    def _joined(self, call: Call) -> None:
        self._wait_until(lambda: not self._execution.running(call))

    def _abandoned(self, call: Call, reason: BaseException) -> None:
        self._forsaken(call)
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


class AsyncDriver(Driver):
    """The same for asyncio: awaits."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._loop = asyncio.get_running_loop()
        self._change: asyncio.Future[None] | None = None
        self._unanswered: set[Call] = set()  # calls whose checkpoints are on their way
        self._unbegun: dict[Call | Items, Coroutine[Any, Any, Any]] = {}  # what was handed out, until it is awaited
        if (main := asyncio.current_task()) is not None:
            self._execution.journal.is_asked_to_end = lambda: main.cancelling() > 0

    def call_decorated(self, options: Options, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `_decorator.Driver`."""
        name, fn = options.name, options.fn
        if not inspect.iscoroutinefunction(fn):
            raise AsyncMismatch(
                f"{name!r} is a blocking function, and this workflow is async: "
                f'call it as `await step("{name}", {getattr(fn, "__name__", "fn")}, ...)`, so that its checkpoint is awaited'
            )
        return self._called(name, None, self._body(fn, args, kwargs, options.terms))

    async def see_begun(self, failure: Exception | None = None) -> None:
        """Let the tasks begin that the workflow has left behind, and say which of its steps nothing awaits.

        `AsyncMismatch`; where the workflow has failed with something else, that gets a note.
        """
        for _ in range(_MAX_TURNS):
            await asyncio.sleep(0)  # each task that has been made begins in this turn, and may make another
            if not self._unbegun:
                return
        names = self._forgotten()
        if not names:
            return
        if failure is None:
            raise AsyncMismatch(never_awaited(names))
        add_note(failure, never_awaited(names))

    def _forgotten(self) -> list[str]:
        """The names of the steps that nothing has awaited. From here on they can no longer be."""
        unbegun, self._unbegun = self._unbegun, {}
        names: list[str] = []
        for step, coroutine in unbegun.items():
            if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:  # not of a task that was cancelled
                names.append(step.name)
                coroutine.close()  # else it would say in a warning what is said here, without the step's name
        return names

    async def drain(self) -> None:
        """Wait until no step is running."""
        while not self._execution.idle:
            try:
                async with asyncio.timeout(self._execution.lease.seconds):
                    while not self._execution.idle:
                        await self._changed()
            except TimeoutError:
                self._still_running()

    async def settle(self, seconds: float, reason: BaseException) -> None:
        """Wait until no checkpoint is on its way, `seconds` at most; not at all in a coroutine that is being closed."""
        if not isinstance(reason, GeneratorExit):
            with contextlib.suppress(asyncio.CancelledError):  # `reason` is raised, once this is over
                await see_through(asyncio.ensure_future(self._settled(seconds)), seconds)
        self._forgotten()

    async def _settled(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.sleep(0)  # a task that has not begun ends in this turn
                while self._execution.committing:
                    await self._changed()

    def _called(self, name: str, key: str | None, body: Body, amid: InFlight | None = None) -> Coroutine[Any, Any, Any]:
        """What the step gives; `amid` is what is in flight where the call was handed on, if it was."""
        fingerprint = self._fingerprint(name, key, body)
        if asyncio._get_running_loop() is not self._loop:  # noqa: SLF001 -- the one way to ask without raising
            raise AsyncMismatch(f"step {name!r} belongs to an async workflow: call it on that workflow's event loop")
        call = self._draw(name, key, body, fingerprint, asyncio.current_task(), amid)
        self._unbegun[call] = handed_out = (
            self._rested(call, body) if isinstance(body.kind, Sleep) else self._driven(call, body)
        )
        return handed_out

    def _mapped(self, every: Items, called: Callable[[str, Any], Coroutine[Any, Any, Any]]) -> Coroutine[Any, Any, Any]:
        async def begun() -> list[Any]:
            self._unbegun.pop(every, None)
            return await mapped_async(every, called)

        self._unbegun[every] = handed_out = begun()
        return handed_out

    def _handled_outside(self, exception: BaseException) -> BaseException | None:
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
    async def _driven(self, call: Call, body: Body) -> Any:
        outcome: StepOutcome = ASKED
        try:
            while True:
                match self._advance(call, outcome):
                    case Attempt() as attempt:
                        outcome = await self._attempted(call, attempt, body)
                    case Checkpoint(record):
                        outcome = await self._checkpointed(call, record)
                    case Replay(record):
                        return self._handed_out(call, record, body)
                    case AttemptInTransaction(number, began):
                        outcome = await self._transacted(call, Attempt(number, began), body)
                    case Wait(seconds, look):
                        await self._clock.asleep(seconds, look)
                        outcome = ASKED
                    case Receive(signal, taken):
                        outcome = await self._received(signal, taken)
                    case Commit(record):
                        outcome = await self._committed(call, body, record)
                    case Join():
                        await self._joined(call)
                        outcome = ASKED
                    case Raise(error):
                        raise error
                    case Abort(error):
                        raise self.leaving(error)
                    case Leave(interruption):
                        raise interruption
                    case never:
                        assert_never(never)
        except BaseException as reason:
            self._abandoned(call, reason)
            shorten(reason)
            raise

    @calls_out
    async def _attempted(self, call: Call, attempt: Attempt, body: Body) -> StepOutcome:
        if (room := self._store.aio.room()) is not None:
            await self._admitted(room)
        token, timeout = enter(self.frame(call.key)), body.terms.timeout
        try:
            if timeout is None:
                value = body.call()
                if can_be_awaited(value):
                    value = await value
            else:
                value = await awaited_within(timeout, call.name, body.call, blocks=needs_a_thread(body.fn))
        except NotBegun as problem:
            return Rejected(problem.error)
        except Exception as exception:
            return self._failed(call, exception, attempt, body)
        finally:
            leave(token)
        return self._encoded(call, value, body)

    async def _admitted(self, room: asyncio.Future[None] | None) -> None:
        """Wait until the store has room for what a body will bring, if a body may still be started then."""
        while room is not None:
            await room
            room = self._store.aio.room()
        if stop := self._execution.stopped(self._reading()):
            raise self.leaving(stop.error)

    async def _transacted(self, call: Call, attempt: Attempt, body: Body) -> StepOutcome:
        try:
            transaction = self._opened(call, attempt, body)
        except DurableError as error:
            return Rejected(error)
        context = contextvars.copy_context()
        performed = transaction.submit(lambda: context.run(self._performed, call, attempt, body, transaction))
        return await asyncio.wrap_future(performed)

    async def _committed(self, call: Call, body: Body, record: Record) -> StepOutcome:
        try:
            answer = on_a_thread(call.name, partial(self._committing, call, body, record))
        except NotBegun as problem:
            return Rejected(problem.error)
        outcome: asyncio.Future[StepOutcome] = asyncio.wrap_future(answer)
        self._unanswered.add(call)
        try:
            await asyncio.shield(outcome)
        except asyncio.CancelledError:  # it is on its way all the same, and its outcome is heard when it comes
            outcome.add_done_callback(partial(self._committed_late, call))
            raise
        except BaseException:
            self._unanswered.discard(call)
            raise
        self._unanswered.discard(call)
        return outcome.result()

    def _committed_late(self, call: Call, outcome: asyncio.Future[StepOutcome]) -> None:
        self._unanswered.discard(call)
        problem = asyncio.CancelledError() if outcome.cancelled() else outcome.exception()
        if problem is not None:
            self._abandoned(call, problem)
        elif not isinstance(self._advance(call, outcome.result()), Replay):  # there is more to do, and nobody to do it
            self._abandoned(call, asyncio.CancelledError())

    async def _checkpointed(self, call: Call, record: Record) -> StepOutcome:
        call.stored = None
        try:
            answer = self._store.aio.checkpoint(self._execution.lease, record, partial(self._answered_late, call))
        except DurableError as refusal:  # it did not set out
            return Rejected(refusal)
        self._unanswered.add(call)
        try:
            # On one line: nothing comes between the answer and that it is known.
            call.stored = await answer is None  # type: ignore[func-returns-value]
        except asyncio.CancelledError:  # the record is on its way all the same, and its answer is heard when it comes
            if not answer.cancelled():  # it has come already, in the same turn of the loop
                self._answered_late(call, answer.exception())
            raise
        except BaseException as error:
            self._unanswered.discard(call)
            if isinstance(error, DurableError):
                return Rejected(error)
            raise
        self._unanswered.discard(call)
        return ACKNOWLEDGED

    def _answered_late(self, call: Call, error: BaseException | None) -> None:
        self._unanswered.discard(call)
        if error is None:
            if not isinstance(self._advance(call, ACKNOWLEDGED), Replay):  # there is more to do, and nobody to do it
                self._abandoned(call, asyncio.CancelledError())
        elif isinstance(error, DurableError):
            self._advance(call, Rejected(error))
        else:
            self._abandoned(call, error)

    async def _received(self, signal: str, taken: Sequence[int]) -> StepOutcome:
        try:
            found = await self._store.aio.receive(self._execution.lease, signal, taken)
        except DurableError as error:
            return Rejected(error)
        return SILENT if found is None else Received(found[0], found[1].encode())

    async def _rested(self, call: Call, body: Body) -> None:
        until = await self._driven(call, body)
        while True:
            match self._resting(call, until):
                case Wait(seconds, look):
                    await self._clock.asleep(seconds, look)
                case Abort(error):
                    raise self.leaving(error)
                case None:
                    return
                case never:
                    assert_never(never)

    async def _joined(self, call: Call) -> None:
        while self._execution.running(call):
            await self._changed()

    def _abandoned(self, call: Call, reason: BaseException) -> None:
        if call in self._unanswered and isinstance(reason, asyncio.CancelledError):
            return  # its answer is heard when it comes
        self._unanswered.discard(
            call
        )  # of what a signal handler raises, which strikes where nothing is awaited, there is none
        self._forsaken(call)
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

    async def _changed(self) -> None:
        if self._change is None:
            self._change = self._loop.create_future()
        await asyncio.shield(self._change)
