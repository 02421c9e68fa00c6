"""The two drivers of the engine, side by side: `Step` blocks, `AsyncStep` awaits.

Each performs what the engine decides and reports what came of it. They differ in colour only, which a test checks by
stripping it; what has no colour is in `_Driver`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, TypeVar, TypeVarTuple, assert_never, cast, overload

from durable._decorator import Frame, current_frame, enter, leave, options_of
from durable._engine.blame import marked
from durable._engine.decisions import (
    Abort,
    Acknowledged,
    Asked,
    Attempt,
    Checkpoint,
    Interrupted,
    Join,
    Raise,
    Raised,
    Reading,
    Rejected,
    Replay,
    Returned,
    StepDecision,
    StepOutcome,
    Unstorable,
)
from durable._engine.journal import Call
from durable._engine.steps import Execution
from durable.clocks import Clock
from durable.codecs import Codec, after_the_body, returns
from durable.errors import ColourMismatch, DurableError, InvalidArgument, NestedStep, UnstorableValue, Unwind
from durable.failures import from_record, to_record
from durable.snapshot import Record, StepRecord, checked_name
from durable.stores.protocol import RunStore

_log = logging.getLogger("durable")

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_ASKED: Final = Asked()
_ACKNOWLEDGED: Final = Acknowledged()
_NEVER: Final = datetime.min.replace(tzinfo=UTC)
_UNREAD: Final = Reading(_NEVER, 0.0)


class _Driver:
    """What both drivers have in common: everything that neither blocks nor awaits."""

    def __init__(
        self,
        execution: Execution,
        store: RunStore,
        codec: Codec,
        clock: Clock,
        runs: tuple[tuple[object, str], ...],
    ) -> None:
        self._execution = execution
        self._store = store
        self._codec = codec
        self._clock = clock
        self._runs = runs

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of run {self._execution.run_id!r}>"

    def frame(self, inside: str | None = None) -> Frame:
        """The frame of the workflow function, or of the body of the step `inside`."""
        return Frame(self, inside, self._runs)

    def call_decorated(self, name: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `_decorator.Driver`."""
        raise NotImplementedError

    def look(self) -> None:
        """Say which bodies have been silent for too long; called by the heartbeat's thread."""
        for event in self._execution.stalled(Reading(self._clock.now(), self._clock.elapsed())):
            _log.warning("run %r: step %r has been running for %.0f s", event.run_id, event.key, event.seconds)
            if self._execution.tell is not None:
                self._execution.tell(event)

    def _still_running(self) -> None:
        keys = ", ".join(self._execution.keys_running)
        _log.warning("run %r has ended but for its running steps, and waits for them: %s", self._execution.run_id, keys)

    def _reading(self, outcome: StepOutcome) -> Reading:
        if self._execution.tell is not None:
            return Reading(self._clock.now(), self._clock.elapsed())
        # Nobody listens: the clock matters only where a body may be started.
        return Reading(_NEVER, self._clock.elapsed()) if outcome is _ASKED else _UNREAD

    def _fingerprint(
        self, name: str, key: str | None, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> str:
        """The fingerprint of a call's arguments, once the call itself has been found sound."""
        frame = current_frame.get()
        if frame is not None and frame.driver is self and frame.inside is not None:
            raise NestedStep(name, frame.inside)
        checked_name("a step's name", name)
        if key is not None:
            checked_name("a step's key", key)
        if not callable(cast(object, fn)):
            advice = "pass the function and its arguments, or a thunk: step(name, lambda: fn(arg))"
            raise InvalidArgument(f"step {name!r}: {type(fn).__name__} is not a function: {advice}")
        if kwargs:  # charge(order) and charge(order=order) are the same call
            bound = inspect.signature(fn).bind(*args, **kwargs)
            args, kwargs = bound.args, bound.kwargs
        arguments = [*args, kwargs] if kwargs else list(args)
        return self._codec.fingerprint(arguments, what=f"an argument of step {name!r}") if arguments else ""

    def _encoded(self, call: Call, value: Any, fn: Callable[..., Any]) -> Returned | Unstorable:
        try:
            what = f"the result of step {call.key!r}"
            return Returned(self._codec.encode(value, what=what, annotation=returns(fn)))
        except UnstorableValue as problem:
            problem.advice = after_the_body(value, problem.advice)
            return Unstorable(problem)

    def _failed(self, call: Call, exception: Exception) -> Raised:
        call.original = exception
        return Raised(to_record(exception, self._codec))

    def _handed_out(self, call: Call, record: StepRecord, fn: Callable[..., Any]) -> Any:
        where = f"the record of step {call.key!r}"
        if record.error is None:
            run_id = self._execution.run_id
            return self._codec.decode(record.json, run_id=run_id, where=where, annotation=returns(fn))
        exception = from_record(record.error, self._codec, run_id=self._execution.run_id, where=where)
        original, call.original = call.original, None
        if original is not None:  # the same exception as on a replay, with the live frames for whoever debugs it
            exception = exception.with_traceback(original.__traceback__)
        raise marked(exception, self._execution.lease.token, call.key)


class Step(_Driver):
    """`step(...)` in a blocking workflow."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._lock = threading.RLock()  # guards the execution
        self._changed = threading.Condition(self._lock)
        self._waiting = 0

    def __call__(self, name: str, fn: Callable[[*Ts], T], *args: *Ts, key: str | None = None) -> T:
        """Call `fn(*args)` once and remember its outcome under `key` (by default the name, numbered on repetition).

        Returns what the record gives back: a new copy of the value. Raises what the body raised, rebuilt from its
        record; `KeyConflict`, `NestedStep`, `InvalidArgument`, `UnstorableValue` for a call that cannot be remembered.
        Where the run must not go on (its lease lost, its code drifted), control leaves the workflow past any
        `except Exception`.
        """
        options = options_of(fn)
        value: T = self._called(name, key, fn if options is None else options.fn, args, {})
        return value

    def call_decorated(self, name: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `_decorator.Driver`."""
        return self._called(name, None, fn, args, kwargs)

    def drain(self) -> None:
        """Wait until no step is running."""
        while not self._wait_until(lambda: self._execution.idle, self._execution.lease.seconds):
            self._still_running()

    def settle(self, seconds: float, _: BaseException) -> None:
        """Wait until no checkpoint is on its way, `seconds` at most."""
        self._wait_until(lambda: not self._execution.committing, seconds)

    def _called(
        self, name: str, key: str | None, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        fingerprint = self._fingerprint(name, key, fn, args, kwargs)
        with self._lock:
            branch, unwinding = threading.current_thread(), sys.exception() is not None
            call = self._execution.call(name, key, fingerprint, branch, unwinding=unwinding)
        return self._driven(call, fn, args, kwargs)

    def _driven(self, call: Call, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        outcome: StepOutcome = _ASKED
        try:
            while True:
                match self._advance(call, outcome):
                    case Replay(record):
                        return self._handed_out(call, record, fn)
                    case Attempt():
                        outcome = self._attempted(call, fn, args, kwargs)
                    case Checkpoint(record):
                        outcome = self._checkpointed(call, record)
                    case Join():
                        self._joined(call)
                        outcome = _ASKED
                    case Raise(error):
                        raise error
                    case Abort(error):
                        raise Unwind(error)
                    case never:
                        assert_never(never)
        except BaseException as reason:
            self._abandoned(call, reason)
            raise

    def _attempted(
        self, call: Call, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> StepOutcome:
        token = enter(self.frame(call.key))
        try:
            value = fn(*args, **kwargs)
        except Exception as exception:
            return self._failed(call, exception)
        finally:
            leave(token)
        if inspect.isawaitable(value):
            return Unstorable(_async_in_blocking(call.name, value))
        return self._encoded(call, value, fn)

    def _checkpointed(self, _: Call, record: Record) -> StepOutcome:
        try:
            self._store.checkpoint(self._execution.lease, record)
        except DurableError as error:
            return Rejected(error)
        return _ACKNOWLEDGED

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


class AsyncStep(_Driver):
    """`await step(...)` in an async workflow."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._loop = asyncio.get_running_loop()
        self._change: asyncio.Future[None] | None = None
        self._unanswered: set[Call] = set()  # calls whose checkpoints are on their way

    @overload
    def __call__(
        self, name: str, fn: Callable[[*Ts], Awaitable[T]], *args: *Ts, key: str | None = None
    ) -> Coroutine[Any, Any, T]: ...
    @overload
    def __call__(
        self, name: str, fn: Callable[[*Ts], T], *args: *Ts, key: str | None = None
    ) -> Coroutine[Any, Any, T]: ...
    def __call__(self, name: str, fn: Any, *args: Any, key: str | None = None) -> Any:  # type: ignore[misc] # mypy: *Ts is not Any
        """Call `fn(*args)`, and await what it returns if that can be awaited; otherwise as `Step`.

        The key is drawn at this call, the body begins when the coroutine is awaited. A blocking function runs on the
        event loop: use `asyncio.to_thread` in it if it takes long.
        """
        options = options_of(fn)
        return self._called(name, key, fn if options is None else options.fn, args, {})

    def call_decorated(self, name: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `_decorator.Driver`."""
        if not inspect.iscoroutinefunction(fn):
            raise ColourMismatch(
                f"{name!r} is a blocking function, and this workflow is async: "
                f'call it as `await step("{name}", {getattr(fn, "__name__", "fn")}, ...)`, so that its checkpoint is awaited'
            )
        return self._called(name, None, fn, args, kwargs)

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

    def _called(
        self, name: str, key: str | None, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        if asyncio._get_running_loop() is not self._loop:  # noqa: SLF001 -- the one way to ask without raising
            raise ColourMismatch(f"step {name!r} belongs to an async workflow: call it on that workflow's event loop")
        fingerprint = self._fingerprint(name, key, fn, args, kwargs)
        branch, unwinding = asyncio.current_task(), sys.exception() is not None
        call = self._execution.call(name, key, fingerprint, branch, unwinding=unwinding)
        return self._driven(call, fn, args, kwargs)

    async def _driven(self, call: Call, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        outcome: StepOutcome = _ASKED
        try:
            while True:
                match self._advance(call, outcome):
                    case Replay(record):
                        return self._handed_out(call, record, fn)
                    case Attempt():
                        outcome = await self._attempted(call, fn, args, kwargs)
                    case Checkpoint(record):
                        outcome = await self._checkpointed(call, record)
                    case Join():
                        await self._joined(call)
                        outcome = _ASKED
                    case Raise(error):
                        raise error
                    case Abort(error):
                        raise Unwind(error)
                    case never:
                        assert_never(never)
        except BaseException as reason:
            self._abandoned(call, reason)
            raise

    async def _attempted(
        self, call: Call, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> StepOutcome:
        token = enter(self.frame(call.key))
        try:
            value = fn(*args, **kwargs)
            if inspect.isawaitable(value):
                value = await value
        except Exception as exception:
            return self._failed(call, exception)
        finally:
            leave(token)
        return self._encoded(call, value, fn)

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
        return _ACKNOWLEDGED

    def _answered_late(self, call: Call, error: BaseException | None) -> None:
        self._unanswered.discard(call)
        if error is None:
            self._advance(call, _ACKNOWLEDGED)
        elif isinstance(error, DurableError):
            self._advance(call, Rejected(error))
        else:
            self._abandoned(call, error)

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
