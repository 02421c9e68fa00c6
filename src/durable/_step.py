"""The two drivers of the engine, side by side: `Step` blocks, `AsyncStep` awaits.

Each performs what the engine decides and reports what came of it. They differ in colour only, which a test checks by
stripping it; what has no colour is in `_driver.Driver`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar, TypeVarTuple, assert_never, overload

import tenacity

from durable._bodies import awaited_within, called_within, can_be_awaited
from durable._decorator import Options, enter, leave
from durable._driver import ACKNOWLEDGED, ASKED, SILENT, Body, Driver
from durable._engine.decisions import (
    Abort,
    Attempt,
    Checkpoint,
    Interrupted,
    Join,
    Raise,
    Receive,
    Received,
    Rejected,
    Replay,
    StepDecision,
    StepOutcome,
    Unstorable,
    Wait,
)
from durable._engine.journal import Call
from durable._map import Items, mapped, mapped_async
from durable._terms import terms
from durable.errors import ColourMismatch, DurableError, Unwind
from durable.snapshot import Record

I = TypeVar("I")  # noqa: E741 -- an item's type
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Pending: TypeAlias = Coroutine[None, None, T]
"""What an async call gives, to be awaited. (It yields nothing of interest; were that Any, mypy's `gather` would forget T.)"""


class Step(Driver):
    """`step(...)` in a blocking workflow."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._lock = threading.RLock()  # guards the execution
        self._changed = threading.Condition(self._lock)
        self._waiting = 0

    def __call__(
        self,
        name: str,
        fn: Callable[[*Ts], T],
        *args: *Ts,
        key: str | None = None,
        retry: tenacity.BaseRetrying | None = None,
        timeout: float | None = None,
        at_most_once: bool = False,
    ) -> T:
        """Call `fn(*args)` once and remember its outcome under `key` (by default the name, numbered on repetition).

        - `retry`: a `tenacity.Retrying` whose `stop`, `wait` and `retry` say when a body that raised is called again. The
          attempts and the next one's moment are recorded, and a restart goes on from there.
        - `timeout`: seconds for each attempt, after which `StepTimeout` is raised in its place. The body then goes on in a
          thread of its own, and nothing is recorded of it.
        - `at_most_once`: record that the body begins before it does (one more commit). Found begun and not ended, the step
          raises `StepInterrupted`; its body is never started again, not even to resume a failed run.

        Returns what the record gives back: a new copy of the value. Raises what the body raised, rebuilt from its
        record; `KeyConflict`, `NestedStep`, `InvalidArgument`, `UnstorableValue` for a call that cannot be remembered.
        Where the run must not go on (its lease lost, its code drifted), control leaves the workflow past any
        `except Exception`.
        """
        value: T = self._called(name, key, self._plain_body(fn, args, terms(retry, timeout, at_most_once)))
        return value

    def call_decorated(self, options: Options, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `_decorator.Driver`."""
        return self._called(options.name, None, self._body(options.fn, args, kwargs, options.terms))

    @overload
    def map(
        self,
        name: str,
        fn: Callable[[I], T],
        items: Iterable[I],
        *,
        key: Callable[[I], object] | None = ...,
        max_concurrency: int | None = ...,
        return_exceptions: Literal[False] = ...,
        retry: tenacity.BaseRetrying | None = ...,
        timeout: float | None = ...,
    ) -> list[T]: ...
    @overload
    def map(
        self,
        name: str,
        fn: Callable[[I], T],
        items: Iterable[I],
        *,
        key: Callable[[I], object] | None = ...,
        max_concurrency: int | None = ...,
        return_exceptions: Literal[True],
        retry: tenacity.BaseRetrying | None = ...,
        timeout: float | None = ...,
    ) -> list[T | Exception]: ...
    def map(
        self,
        name: str,
        fn: Callable[[I], Any],
        items: Iterable[I],
        *,
        key: Callable[[I], object] | None = None,
        max_concurrency: int | None = None,
        return_exceptions: bool = False,
        retry: tenacity.BaseRetrying | None = None,
        timeout: float | None = None,
    ) -> list[Any]:
        """Call `fn(item)` for each item, a step each, on `max_concurrency` threads (32 by default); the results in order.

        An item's key is `name[0]`, `name[1]` …, or `name[…]` of what `key(item)` says: choose it where the items may come in
        another order. Each is recorded as it ends, and only the missing ones run when the run is resumed. When one fails, no
        other is begun, and its exception is raised; with `return_exceptions=True` it stands in the list instead.
        """
        given = terms(retry, timeout)
        every = Items(name, items, key, max_concurrency, return_exceptions=return_exceptions)
        return mapped(every, lambda one, item: self._called(name, one, self._plain_body(fn, (item,), given)))

    def sleep(self, name: str, seconds: float | datetime, *, key: str | None = None) -> None:
        """Let `seconds` pass, or until an aware `datetime`. The moment of waking is recorded: restarts do not begin anew."""
        self._rested(self._called(name, key, self._sleeping(seconds)))

    def wait_for(self, name: str, *, timeout: float | None = None, key: str | None = None) -> Any:
        """Wait for `durable.signal(store, id, name, payload)`, from any process, and return the payload.

        Signals of a name are received in their order, each by one call, also when they were sent before. After `timeout`
        seconds (None: never), restarts included, `SignalTimedOut` is raised, and recorded.
        """
        return self._called(name, key, self._listening(name, timeout))

    def drain(self) -> None:
        """Wait until no step is running."""
        while not self._wait_until(lambda: self._execution.idle, self._execution.lease.seconds):
            self._still_running()

    def settle(self, seconds: float, _: BaseException) -> None:
        """Wait until no checkpoint is on its way, `seconds` at most."""
        self._wait_until(lambda: not self._execution.committing, seconds)

    def _called(self, name: str, key: str | None, body: Body) -> Any:
        fingerprint = self._fingerprint(name, key, body)
        with self._lock:
            call = self._draw(name, key, body, fingerprint, threading.current_thread())
        return self._driven(call, body)

    def _driven(self, call: Call, body: Body) -> Any:
        outcome: StepOutcome = ASKED
        try:
            while True:
                match self._advance(call, outcome):
                    case Replay(record):
                        return self._handed_out(call, record, body.fn)
                    case Attempt() as attempt:
                        outcome = self._attempted(call, attempt, body)
                    case Wait(seconds, look):
                        self._clock.sleep(seconds, look)
                        outcome = ASKED
                    case Receive(signal, taken):
                        outcome = self._received(signal, taken)
                    case Checkpoint(record):
                        outcome = self._checkpointed(call, record)
                    case Join():
                        self._joined(call)
                        outcome = ASKED
                    case Raise(error):
                        raise error
                    case Abort(error):
                        raise Unwind(error)
                    case never:
                        assert_never(never)
        except BaseException as reason:
            self._abandoned(call, reason)
            raise

    def _attempted(self, call: Call, attempt: Attempt, body: Body) -> StepOutcome:
        token, timeout = enter(self.frame(call.key)), body.terms.timeout
        try:
            value = body.call() if timeout is None else called_within(timeout, call.name, body.call)
        except Exception as exception:
            return self._failed(call, exception, attempt, body.terms.policy)
        finally:
            leave(token)
        if can_be_awaited(value):
            return Unstorable(_async_in_blocking(call.name, value))
        return self._encoded(call, value, body.fn)

    def _checkpointed(self, _: Call, record: Record) -> StepOutcome:
        try:
            self._store.checkpoint(self._execution.lease, record)
        except DurableError as error:
            return Rejected(error)
        return ACKNOWLEDGED

    def _received(self, signal: str, taken: Sequence[int]) -> StepOutcome:
        try:
            found = self._store.receive(self._execution.lease, signal, taken)
        except DurableError as error:
            return Rejected(error)
        return SILENT if found is None else Received(found[0], found[1].encode())

    def _rested(self, until: object) -> None:
        while True:
            match self._resting(until):
                case Wait(seconds, look):
                    self._clock.sleep(seconds, look)
                case Abort(error):
                    raise Unwind(error)
                case None:
                    return
                case never:
                    assert_never(never)

    def _joined(self, call: Call) -> None:
        self._wait_until(lambda: not self._execution.running(call))

    def _abandoned(self, call: Call, reason: BaseException) -> None:
        self._advance(call, Interrupted(type(reason).__name__))

    def _advance(self, call: Call, outcome: StepOutcome) -> StepDecision:
        with self._lock:
            decision = self._execution.advance(call, outcome, self._reading(outcome))
            if self._waiting:
                self._changed.notify_all()
            return decision

    def _wait_until(self, condition: Callable[[], bool], seconds: float | None = None) -> bool:
        with self._lock:
            self._waiting += 1
            try:
                return self._changed.wait_for(condition, seconds)
            finally:
                self._waiting -= 1


class AsyncStep(Driver):
    """`await step(...)` in an async workflow."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._loop = asyncio.get_running_loop()
        self._change: asyncio.Future[None] | None = None
        self._unanswered: set[Call] = set()  # calls whose checkpoints are on their way

    @overload
    def __call__(
        self,
        name: str,
        fn: Callable[[*Ts], Awaitable[T]],
        *args: *Ts,
        key: str | None = ...,
        retry: tenacity.BaseRetrying | None = ...,
        timeout: float | None = ...,
        at_most_once: bool = ...,
    ) -> Pending[T]: ...
    @overload
    def __call__(
        self,
        name: str,
        fn: Callable[[*Ts], Awaitable[T] | T],  # not plain T: mypy would take a coroutine for the value
        *args: *Ts,
        key: str | None = ...,
        retry: tenacity.BaseRetrying | None = ...,
        timeout: float | None = ...,
        at_most_once: bool = ...,
    ) -> Pending[T]: ...
    def __call__(  # type: ignore[misc] # mypy: *Ts is not Any
        self,
        name: str,
        fn: Any,
        *args: Any,
        key: str | None = None,
        retry: tenacity.BaseRetrying | None = None,
        timeout: float | None = None,
        at_most_once: bool = False,
    ) -> Any:
        """Call `fn(*args)`, and await what it returns if that can be awaited; otherwise as `Step`.

        The key is drawn at this call, the body begins when the coroutine is awaited. A blocking function runs on the
        event loop: use `asyncio.to_thread` in it if it takes long. With a `timeout` an async body is cancelled, and a
        blocking one runs in a thread of its own.
        """
        return self._called(name, key, self._plain_body(fn, args, terms(retry, timeout, at_most_once)))

    def call_decorated(self, options: Options, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `_decorator.Driver`."""
        name, fn = options.name, options.fn
        if not inspect.iscoroutinefunction(fn):
            raise ColourMismatch(
                f"{name!r} is a blocking function, and this workflow is async: "
                f'call it as `await step("{name}", {getattr(fn, "__name__", "fn")}, ...)`, so that its checkpoint is awaited'
            )
        return self._called(name, None, self._body(fn, args, kwargs, options.terms))

    @overload
    def map(
        self,
        name: str,
        fn: Callable[[I], Awaitable[T]],
        items: Iterable[I],
        *,
        key: Callable[[I], object] | None = ...,
        max_concurrency: int | None = ...,
        return_exceptions: Literal[False] = ...,
        retry: tenacity.BaseRetrying | None = ...,
        timeout: float | None = ...,
    ) -> Pending[list[T]]: ...
    @overload
    def map(
        self,
        name: str,
        fn: Callable[[I], Awaitable[T]],
        items: Iterable[I],
        *,
        key: Callable[[I], object] | None = ...,
        max_concurrency: int | None = ...,
        return_exceptions: Literal[True],
        retry: tenacity.BaseRetrying | None = ...,
        timeout: float | None = ...,
    ) -> Pending[list[T | Exception]]: ...
    @overload
    def map(
        self,
        name: str,
        fn: Callable[[I], Awaitable[T] | T],
        items: Iterable[I],
        *,
        key: Callable[[I], object] | None = ...,
        max_concurrency: int | None = ...,
        return_exceptions: Literal[False] = ...,
        retry: tenacity.BaseRetrying | None = ...,
        timeout: float | None = ...,
    ) -> Pending[list[T]]: ...
    @overload
    def map(
        self,
        name: str,
        fn: Callable[[I], Awaitable[T] | T],
        items: Iterable[I],
        *,
        key: Callable[[I], object] | None = ...,
        max_concurrency: int | None = ...,
        return_exceptions: Literal[True],
        retry: tenacity.BaseRetrying | None = ...,
        timeout: float | None = ...,
    ) -> Pending[list[T | Exception]]: ...
    def map(
        self,
        name: str,
        fn: Callable[[I], Any],
        items: Iterable[I],
        *,
        key: Callable[[I], object] | None = None,
        max_concurrency: int | None = None,
        return_exceptions: bool = False,
        retry: tenacity.BaseRetrying | None = None,
        timeout: float | None = None,
    ) -> Coroutine[Any, Any, list[Any]]:
        """See `Step.map`; on tasks."""
        given = terms(retry, timeout)
        every = Items(name, items, key, max_concurrency, return_exceptions=return_exceptions)
        return mapped_async(every, lambda one, item: self._called(name, one, self._plain_body(fn, (item,), given)))

    def sleep(self, name: str, seconds: float | datetime, *, key: str | None = None) -> Pending[None]:
        """See `Step.sleep`."""
        return self._rested(self._called(name, key, self._sleeping(seconds)))

    def wait_for(self, name: str, *, timeout: float | None = None, key: str | None = None) -> Pending[Any]:
        """See `Step.wait_for`."""
        return self._called(name, key, self._listening(name, timeout))

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
        if isinstance(reason, GeneratorExit):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._execution.committing:
                    await self._changed()

    def _called(self, name: str, key: str | None, body: Body) -> Coroutine[Any, Any, Any]:
        if asyncio._get_running_loop() is not self._loop:  # noqa: SLF001 -- the one way to ask without raising
            raise ColourMismatch(f"step {name!r} belongs to an async workflow: call it on that workflow's event loop")
        fingerprint = self._fingerprint(name, key, body)
        call = self._draw(name, key, body, fingerprint, asyncio.current_task())
        return self._driven(call, body)

    async def _driven(self, call: Call, body: Body) -> Any:
        outcome: StepOutcome = ASKED
        try:
            while True:
                match self._advance(call, outcome):
                    case Replay(record):
                        return self._handed_out(call, record, body.fn)
                    case Attempt() as attempt:
                        outcome = await self._attempted(call, attempt, body)
                    case Wait(seconds, look):
                        await self._clock.asleep(seconds, look)
                        outcome = ASKED
                    case Receive(signal, taken):
                        outcome = await self._received(signal, taken)
                    case Checkpoint(record):
                        outcome = await self._checkpointed(call, record)
                    case Join():
                        await self._joined(call)
                        outcome = ASKED
                    case Raise(error):
                        raise error
                    case Abort(error):
                        raise Unwind(error)
                    case never:
                        assert_never(never)
        except BaseException as reason:
            self._abandoned(call, reason)
            raise

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
                blocks = not inspect.iscoroutinefunction(body.fn)
                value = await awaited_within(timeout, call.name, body.call, blocks=blocks)
        except Exception as exception:
            return self._failed(call, exception, attempt, body.terms.policy)
        finally:
            leave(token)
        return self._encoded(call, value, body.fn)

    async def _admitted(self, room: asyncio.Future[None] | None) -> None:
        """Wait until the store has room for what a body will bring, if a body may still be started then."""
        while room is not None:
            await room
            room = self._store.aio.room()
        if stop := self._execution.stopped(self._reading(ASKED)):
            raise Unwind(stop.error)

    async def _checkpointed(self, call: Call, record: Record) -> StepOutcome:
        answer = self._store.aio.checkpoint(self._execution.lease, record, partial(self._answered_late, call))
        self._unanswered.add(call)
        try:
            await answer
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

    async def _rested(self, falling_asleep: Coroutine[Any, Any, Any]) -> None:
        until = await falling_asleep
        while True:
            match self._resting(until):
                case Wait(seconds, look):
                    await self._clock.asleep(seconds, look)
                case Abort(error):
                    raise Unwind(error)
                case None:
                    return
                case never:
                    assert_never(never)

    async def _joined(self, call: Call) -> None:
        while self._execution.running(call):
            await self._changed()

    def _abandoned(self, call: Call, reason: BaseException) -> None:
        if call not in self._unanswered:
            self._advance(call, Interrupted(type(reason).__name__))

    def _advance(self, call: Call, outcome: StepOutcome) -> StepDecision:
        decision = self._execution.advance(call, outcome, self._reading(outcome))
        if self._change is not None:
            self._change.set_result(None)
            self._change = None
        return decision

    async def _changed(self) -> None:
        if self._change is None:
            self._change = self._loop.create_future()
        await asyncio.shield(self._change)


def _async_in_blocking(name: str, value: Any) -> ColourMismatch:
    if inspect.iscoroutine(value):
        value.close()  # it will never be awaited, and says so here rather than in a warning
    return ColourMismatch(
        f"step {name!r} returned something to await, and its workflow is a blocking function: "
        f"make the workflow `async def`, or give it a blocking step"
    )
