"""`durable.run`: claim, execute, conclude."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import threading
import weakref
from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime
from typing import Any, Final, Literal, TypeVar, assert_never, overload

import tenacity

from durable._common.boundary import calls_out, public, shorten
from durable._common.durations import Duration
from durable._common.reports import say
from durable._engine import runs
from durable._engine.decisions import (
    Claim,
    ClaimAgain,
    ClaimReply,
    Conclusion,
    Decline,
    Finish,
    Granted,
    Migrate,
    Proceed,
    Release,
    Reraise,
    Return,
)
from durable._engine.leases import Lease
from durable._engine.steps import Execution
from durable._runtime.decorator import current_frame, enter, leave
from durable._runtime.handles import AsyncStep, Pending, Step
from durable._runtime.plan import OMITTED, Options, Plan, planned
from durable._runtime.shielded import see_through
from durable._runtime.versions import OnVersionMismatch
from durable.codecs._failures import to_record
from durable.errors import (
    AsyncMismatch,
    DurableError,
    Unwind,
    VersionMismatch,
)
from durable.events import Listener
from durable.records import ErrorRecord, Record, Status
from durable.stores._adapters.kinds import AnyStore
from durable.stores.protocol import RunStore, SnapshotStore

D = TypeVar("D")
I = TypeVar("I")  # noqa: E741 -- the input's type
T = TypeVar("T")

OnConflict = Literal["raise", "wait"]

_PATIENCE: Final = 5.0  # seconds that a run which is being left waits for its last checkpoints, then for its release

_log = logging.getLogger("durable")


@overload
def run(
    deps: D,
    fn: Callable[[Step, D], T],
    *,
    id: str,
    store: RunStore | SnapshotStore | None = ...,
    version: int = ...,
    on_version_mismatch: OnVersionMismatch | None = ...,
    on_conflict: OnConflict = ...,
    wait_timeout: Duration | None = ...,
    lease: Duration = ...,
    deadline: Duration | datetime | None = ...,
    metadata: Mapping[str, Any] | None = ...,
    cancel: threading.Event | None = ...,
    retry: tenacity.BaseRetrying | None = ...,
    on_event: Listener | None = ...,
) -> T: ...
@overload
def run(
    deps: D,
    fn: Callable[[Step, D, I], T],
    *,
    id: str,
    store: RunStore | SnapshotStore | None = ...,
    input: I = ...,
    version: int = ...,
    on_version_mismatch: OnVersionMismatch | None = ...,
    on_conflict: OnConflict = ...,
    wait_timeout: Duration | None = ...,
    lease: Duration = ...,
    deadline: Duration | datetime | None = ...,
    metadata: Mapping[str, Any] | None = ...,
    cancel: threading.Event | None = ...,
    retry: tenacity.BaseRetrying | None = ...,
    on_event: Listener | None = ...,
) -> T: ...
@overload
def run(
    deps: D,
    fn: Callable[[AsyncStep, D], Coroutine[Any, Any, T]],
    *,
    id: str,
    store: AnyStore | None = ...,
    version: int = ...,
    on_version_mismatch: OnVersionMismatch | None = ...,
    on_conflict: OnConflict = ...,
    wait_timeout: Duration | None = ...,
    lease: Duration = ...,
    deadline: Duration | datetime | None = ...,
    metadata: Mapping[str, Any] | None = ...,
    cancel: threading.Event | None = ...,
    retry: tenacity.BaseRetrying | None = ...,
    on_event: Listener | None = ...,
) -> Pending[T]: ...
@overload
def run(
    deps: D,
    fn: Callable[[AsyncStep, D, I], Coroutine[Any, Any, T]],
    *,
    id: str,
    store: AnyStore | None = ...,
    input: I = ...,
    version: int = ...,
    on_version_mismatch: OnVersionMismatch | None = ...,
    on_conflict: OnConflict = ...,
    wait_timeout: Duration | None = ...,
    lease: Duration = ...,
    deadline: Duration | datetime | None = ...,
    metadata: Mapping[str, Any] | None = ...,
    cancel: threading.Event | None = ...,
    retry: tenacity.BaseRetrying | None = ...,
    on_event: Listener | None = ...,
) -> Pending[T]: ...
@public("durable.run")
def run(
    deps: Any,
    fn: Callable[..., Any],
    *,
    id: str,
    store: AnyStore | None = None,
    input: Any = OMITTED,
    version: int = 1,
    on_version_mismatch: OnVersionMismatch | None = None,
    on_conflict: OnConflict = "raise",
    wait_timeout: Duration | None = None,
    lease: Duration = 30.0,
    deadline: Duration | datetime | None = None,
    metadata: Mapping[str, Any] | None = None,
    cancel: threading.Event | None = None,
    retry: tenacity.BaseRetrying | None = None,
    on_event: Listener | None = None,
) -> Any:
    """Execute the workflow `fn` as the run `id`, or go on with it where it stopped.

    - `deps` is handed to `fn`: an object, or a mapping, whose items become attributes. Where a step is in it, or may be, `fn`
      is given a view of it that behaves alike, and whose steps belong to this run in any thread.
    - `fn(step, deps)`, or `fn(step, deps, input)`; for an `async def` this returns a coroutine. A run belongs to its
      function, or to the name that `durable.workflow` has given it.
    - `store` keeps the run; without one it lives in this process only, and a `DurableWarning` says so once.
    - `input` is recorded at the first call; omitted at a later one, the recorded input is used.
    - `version` of the workflow, recorded at the first call. `on_version_mismatch` says what becomes of a run that another
      version has started: `"raise"` `VersionMismatch`, `"clear"` what it remembers and begin anew with its input, or what a
      function of its `Snapshot` and its version returns: one of these words, or the snapshot (or document) to go on with. The
      function may be async for an async workflow. It is asked while nobody executes the run, and again if the run is
      changed before its answer has been stored.
    - `on_conflict`: when somebody else is executing this id, `"raise"` `ConcurrentExecution` or `"wait"` for the outcome,
      at most `wait_timeout` seconds (None: as long as it takes).
    - `lease`: seconds after which others may take the run over from a process that fell silent; at least 0.5, and longer
      than the longest time that this process may be frozen (garbage collection, a C call that holds the GIL).
    - `deadline`: seconds from now, or an aware `datetime`, after which no further step begins: `DeadlineExceeded`. A body
      that is still running then is not stopped, but its lease is not renewed any more.
    - A `timedelta` will do wherever seconds are asked for.
    - `metadata`: JSON values kept in the run's header, for people and queries.
    - `cancel`: a `threading.Event`; once it is set the run is `cancelled` at the next step, or in a wait within a second.
    - `retry`: a `tenacity.Retrying` for every step that has no policy of its own; see `step`.
    - `on_event` is called with each event, one at a time, between two steps; what it raises is logged.

    Returns what the workflow returned, as its record gives it back. A completed run returns its stored result without
    calling anything; a failed one runs again the steps whose failure led to it.

    Raises what the workflow raised; `InvalidArgument` before anything is touched; `RunMismatch`, `VersionMismatch`,
    `WorkflowDrift`, `UnreadableRecord` when the stored run does not fit, and leaves it as it is; `ConcurrentExecution`,
    `WaitTimedOut`; `LeaseLost` when the lease ended under it; `RecordsLost` when the database went back under it;
    `RunCancelled`, `DeadlineExceeded`; `StoreUnavailable`, `AccessDenied`, `UnsuitableServer`, `SchemaMismatch`,
    `OutcomeUnknown` from the store.
    """
    options = Options(
        version, on_version_mismatch, on_conflict, wait_timeout, lease, deadline, metadata, cancel, retry, on_event
    )
    plan = planned(deps, fn, id, store, input, options)
    if (rehearse := getattr(plan.store, "rehearse", None)) is not None:  # see durable.testing.Rehearsal
        return rehearse(plan, is_async=plan.is_async)
    if plan.is_async:
        return AsyncRun(plan).outcome()
    before, blocking = current_frame.get(), BlockingRun(plan)
    try:
        return blocking.outcome()
    finally:  # also when a signal handler has raised where nothing else could see to it
        try:
            blocking.give_all_back()
        finally:
            current_frame.set(before)


class _Either:
    """What a call of `run` is in either colour."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._store = plan.store
        self._clock = plan.clock
        self._driver: Step | AsyncStep | None = None
        self._over = False
        self._granted: Granted | None = None  # until its journal is loaded
        self._execution: Execution | None = None

    def _loaded(self, main: object) -> Execution:
        """The machine for what was granted, which is let go: half of what a resumed run would hold are its journal's texts."""
        granted, self._granted = self._granted, None
        assert granted is not None, "asked for twice"  # noqa: S101 -- our own mistake, not an input
        self._execution = self._plan.execution(granted, main)
        return self._execution

    def _is_back(self, lease: Lease) -> None:
        """The lease needs no giving back any more."""
        with contextlib.suppress(ValueError):
            self._plan.claim.taken.remove(lease)

    def _left_over(self) -> list[tuple[Lease, Status | None]]:
        """The leases that this call of `run` still has, though it is over, and what their run goes back to."""
        status = None if self._execution is None else self._execution.journal.former_status()
        return [(lease, status) for lease in list(self._plan.claim.taken)]

    def _alive(self, running: bool) -> bool:
        """Whether somebody still works under the lease; asked by the heartbeat, which has a look at the steps too."""
        if self._over or not running or self._plan.is_late:
            return False
        if self._driver is not None:
            self._driver.look()
        return True


class BlockingRun(_Either):
    """One blocking call of `run`."""

    def __init__(self, plan: Plan, driver: Callable[..., Step] = Step) -> None:
        super().__init__(plan)
        self._new_driver = driver

    @calls_out
    def outcome(self) -> Any:
        try:
            return self._admitted()
        except BaseException as reason:
            if isinstance(reason, Exception):
                shorten(reason)
            self._over = True
            self.give_all_back(reason)
            raise
        finally:
            self._over = self._plan.here.over = True

    @calls_out
    def _admitted(self) -> Any:
        plan, claim, polls = self._plan, self._plan.claim, 0
        began = self._clock.elapsed()
        while True:
            reply = self._begun(claim)
            match plan.admission(claim, reply, self._clock.elapsed() - began, polls):
                case Proceed(granted):
                    self._granted, lease = granted, granted.lease
                    del reply, granted
                    return self._executed(lease)
                case Return(value):
                    return plan.stored_result(value)
                case Reraise(error):
                    raise plan.stored_failure(error)
                case ClaimAgain(seconds, claim, lease, look):
                    self._give_back(lease)
                    self._clock.sleep(seconds, look)
                    polls += 1
                case Migrate(mismatch):
                    self._migrated(mismatch)
                    polls += 1
                case Decline(error, lease):
                    self._give_back(lease)
                    raise error
                case never:
                    assert_never(never)

    @calls_out
    def _executed(self, lease: Lease) -> Any:
        plan, end = self._plan, _End()
        try:
            execution = self._loaded(threading.current_thread())
            self._driver = driver = self._new_driver(execution, *plan.for_driver)
            arguments = plan.arguments(driver, execution.journal)
            token = enter(driver.frame())
        except BaseException as reason:
            self._give_back(lease, None, reason)
            raise
        try:
            try:
                value = plan.fn(*arguments)
                driver.see_begun()
                end.returned(plan, value)
            except Exception as exception:
                execution.over = True
                driver.see_begun(exception)
                end.raised(plan, exception)
            execution.over = True
            driver.drain()
        except BaseException as exception:
            end.left(exception)
            driver.settle(_PATIENCE, exception)
        finally:
            execution.over = True
            leave(token)
        match end.conclusion(execution):
            case Finish(status, record) as finish:
                try:
                    self._finished(lease, status, record)
                except DurableError as error:
                    self._give_back(lease)
                    raise end.interruption(plan, execution, error) from end.exception
                return end.outcome(plan, execution, finish)
            case Release(error, status):
                self._give_back(lease, status, end.exception)
                raise end.interruption(plan, execution, error) from None
            case never:
                assert_never(never)

    def _begun(self, claim: Claim) -> ClaimReply:
        thread = threading.current_thread()
        return self._store.begin(claim, lambda: self._alive(thread.is_alive()))

    def _finished(self, lease: Lease, status: Status, record: Record) -> None:
        self._store.finish(lease, status, record)
        self._is_back(lease)

    def _migrated(self, mismatch: VersionMismatch) -> None:
        stored = self._store.load(mismatch.run_id)
        if stored is not None:
            answer = self._plan.answer(mismatch, stored)
            if inspect.isawaitable(answer):
                raise _async_answer(answer)
            self._store.replace(mismatch.run_id, stored, self._plan.migrated(answer, mismatch, stored))

    def give_all_back(self, reason: BaseException | None = None) -> None:
        """Whatever an interrupt has kept from being given back."""
        for lease, status in self._left_over():
            self._give_back(lease, status, reason)

    def _give_back(self, lease: Lease | None, status: Status | None = None, _: BaseException | None = None) -> None:
        if lease is not None:
            try:
                self._store.release(lease, status)
            except DurableError as problem:  # whatever it is, it must not replace what the run has come to
                _left_to_end(lease, problem)
            self._is_back(lease)


class AsyncRun(_Either):
    """One awaited call of `run`."""

    def __init__(self, plan: Plan, driver: Callable[..., AsyncStep] = AsyncStep) -> None:
        super().__init__(plan)
        self._new_driver = driver

    @calls_out
    async def outcome(self) -> Any:
        try:
            return await self._admitted()
        except BaseException as reason:
            if isinstance(reason, Exception):
                shorten(reason)
            self._over = True
            await self.give_all_back(reason)
            raise
        finally:
            self._over = self._plan.here.over = True

    @calls_out
    async def _admitted(self) -> Any:
        plan, claim, polls = self._plan, self._plan.claim, 0
        began = self._clock.elapsed()
        while True:
            reply = await self._begun(claim)
            match plan.admission(claim, reply, self._clock.elapsed() - began, polls):
                case Proceed(granted):
                    self._granted, lease = granted, granted.lease
                    del reply, granted
                    return await self._executed(lease)
                case Return(value):
                    return plan.stored_result(value)
                case Reraise(error):
                    raise plan.stored_failure(error)
                case ClaimAgain(seconds, claim, lease, look):
                    await self._give_back(lease)
                    await self._clock.asleep(seconds, look)
                    polls += 1
                case Migrate(mismatch):
                    await self._migrated(mismatch)
                    polls += 1
                case Decline(error, lease):
                    await self._give_back(lease)
                    raise error
                case never:
                    assert_never(never)

    @calls_out
    async def _executed(self, lease: Lease) -> Any:
        plan, end = self._plan, _End()
        try:
            execution = self._loaded(asyncio.current_task())
            self._driver = driver = self._new_driver(execution, *plan.for_driver)
            arguments = plan.arguments(driver, execution.journal)
            token = enter(driver.frame())
        except BaseException as reason:
            await self._give_back(lease, None, reason)
            raise
        try:
            try:
                value = await plan.fn(*arguments)
                await driver.see_begun()
                end.returned(plan, value)
            except Exception as exception:
                execution.over = True
                await driver.see_begun(exception)
                end.raised(plan, exception)
            execution.over = True
            await driver.drain()
        except BaseException as exception:
            end.left(exception)
            await driver.settle(_PATIENCE, exception)
        finally:
            execution.over = True
            leave(token)
        match end.conclusion(execution):
            case Finish(status, record) as finish:
                try:
                    await self._finished(lease, status, record)
                except DurableError as error:
                    await self._give_back(lease)
                    raise end.interruption(plan, execution, error) from end.exception
                return end.outcome(plan, execution, finish)
            case Release(error, status):
                await self._give_back(lease, status, end.exception)
                raise end.interruption(plan, execution, error) from None
            case never:
                assert_never(never)

    async def _begun(self, claim: Claim) -> ClaimReply:
        task = None
        with contextlib.suppress(RuntimeError):  # no event loop at all
            task = asyncio.current_task()
        if task is None:
            raise AsyncMismatch(
                f"run {claim.run_id!r}: an async workflow runs in a task of asyncio (uvloop will do, and anyio on asyncio), "
                f"and this is none. Elsewhere, make the workflow a blocking function and call durable.run in a thread, "
                f"for example with trio.to_thread.run_sync."
            )
        # Weakly: an abandoned task must not be kept by the very question whether it is still there. Nor its event loop, whose
        # timers keep it.
        this, doing = weakref.ref(self), weakref.ref(task)

        def alive() -> bool:
            run, task = this(), doing()
            return run is not None and task is not None and run._alive(not (task.done() or task.get_loop().is_closed()))  # noqa: SLF001

        reply = None
        try:
            reply = self._store.aio.begin(claim, alive)
            return await see_through(reply, _PATIENCE)
        except BaseException as reason:  # a lease that is granted all the same is given back, now or when it comes
            if reply is None:
                raise
            if not (reply.done() or isinstance(reason, asyncio.CancelledError | GeneratorExit)):  # a signal handler's
                await asyncio.wait([reply], timeout=_PATIENCE)  # the event loop may be closed before it comes
            if not reply.done():
                reply.add_done_callback(self._give_back_late)
            elif reply.exception() is None and isinstance(granted := reply.result(), Granted):
                await self._give_back(granted.lease, None, reason)
            raise

    def _give_back_late(self, reply: asyncio.Future[ClaimReply]) -> None:
        if not reply.cancelled() and reply.exception() is None and isinstance(granted := reply.result(), Granted):
            self._store.aio.release(granted.lease)

    async def _finished(self, lease: Lease, status: Status, record: Record) -> None:
        await see_through(self._store.aio.finish(lease, status, record), _PATIENCE)
        self._is_back(lease)

    async def _migrated(self, mismatch: VersionMismatch) -> None:
        stored = await self._store.aio.load(mismatch.run_id)
        if stored is not None:
            answer = self._plan.answer(mismatch, stored)
            if inspect.isawaitable(answer):
                answer = await answer
            await self._store.aio.replace(mismatch.run_id, stored, self._plan.migrated(answer, mismatch, stored))

    async def give_all_back(self, reason: BaseException | None = None) -> None:
        """Whatever an interrupt has kept from being given back."""
        for lease, status in self._left_over():
            await self._give_back(lease, status, reason)

    async def _give_back(
        self, lease: Lease | None, status: Status | None = None, reason: BaseException | None = None
    ) -> None:
        if lease is not None:
            self._is_back(lease)
            if isinstance(reason, GeneratorExit):  # the coroutine is being closed, and may not wait any more
                # Nor can it ask where the event loop is gone, or no thread can be started: the lease ends.
                with contextlib.suppress(RuntimeError, DurableError):
                    self._store.aio.release(lease, status)
                return
            try:
                release = self._store.aio.release(lease, status)  # begun here, and not cancelled with this task
            except DurableError as refusal:  # where no thread can be started for it
                _left_to_end(lease, refusal)
                return
            try:
                await see_through(asyncio.ensure_future(asyncio.wait([release], timeout=_PATIENCE)), _PATIENCE)
            except asyncio.CancelledError:
                if reason is None:
                    raise  # else `reason` is on its way
            if release.done() and isinstance(problem := release.exception(), DurableError):
                _left_to_end(lease, problem)


class _End:
    """How a workflow function ended: with a value, an exception, or in flight from something else."""

    def __init__(self) -> None:
        self.exception: BaseException | None = None
        self._value = b""
        self._error: ErrorRecord | None = None

    def returned(self, plan: Plan, value: Any) -> None:
        if inspect.isawaitable(value):
            if inspect.iscoroutine(value):
                value.close()  # it will never be awaited, and says so here rather than in a warning
            advice = (
                "await it there, and return what it gives"
                if plan.is_async
                else "but is not an async function: define it with `async def`"
            )
            raise AsyncMismatch(f"workflow {plan.claim.workflow!r} returned something to await: {advice}")
        self._value = plan.encoded(value)

    def raised(self, plan: Plan, exception: Exception) -> None:
        self.exception = exception
        self._error = to_record(exception, plan.codec)

    def left(self, exception: BaseException) -> None:
        self.exception = exception
        self._error = None

    def conclusion(self, execution: Execution) -> Conclusion:
        if isinstance(self.exception, Exception) and self._error is not None:
            conclusion = runs.raised(execution, self.exception, self._error)
        elif self.exception is not None:
            conclusion = runs.left(execution, self.exception)
        else:
            conclusion = runs.returned(execution, self._value)
        if (error := execution.error) is not None:
            if self.exception is not None and not isinstance(self.exception, Exception):
                error.__traceback__ = self.exception.__traceback__  # it shows where the workflow was left
            Unwind.settle(error)
        return conclusion

    def outcome(self, plan: Plan, execution: Execution, finish: Finish) -> Any:
        """The end is committed: what the caller of `run` gets."""
        runs.finished(execution, finish, plan.reading())
        if execution.error is not None:
            raise execution.error from None
        if self.exception is not None:
            raise self.exception
        return plan.decoded(self._value)

    def interruption(self, plan: Plan, execution: Execution, error: DurableError | None) -> BaseException:
        """The run has no outcome: what the caller of `run` gets."""
        reason = error or self.exception
        assert reason is not None  # noqa: S101 -- a run is released for a reason
        runs.interrupted(execution, plan.reading(), reason)
        return reason


def _async_answer(answer: Any) -> AsyncMismatch:
    if inspect.iscoroutine(answer):
        answer.close()
    return AsyncMismatch(
        "on_version_mismatch is an async function, and the workflow is a blocking one: make them of one colour"
    )


def _left_to_end(lease: Lease, problem: DurableError) -> None:
    message = "the lease on run %r could not be given back (%s) and ends by itself"
    say(_log, logging.WARNING, message, lease.run_id, type(problem).__name__)
