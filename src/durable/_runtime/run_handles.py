"""A handle: what can be asked of a run that was started, from wherever."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, TypeVar

from msgspec import UNSET

from durable._common.boundary import calls_out, public, public_verbs
from durable._common.checks import check_name
from durable._common.durations import Duration, check_duration
from durable._engine.backoff import FIRST_RETRY, backoff
from durable._runtime.control import cancel, cancel_async, retry, retry_async, signal, signal_async
from durable._runtime.forks import Order, fork_run, fork_run_async
from durable._runtime.plan import MISSING
from durable._runtime.sync_bridge import Coroutines, at_once, call_now
from durable._runtime.workflow import definition_of_workflow
from durable.clocks import pace_of
from durable.codecs import codec_of, return_annotation
from durable.codecs._failures import from_record
from durable.errors import RunCancelled, RunNotFound, UnreadableRecord, WaitTimedOut
from durable.records import Status
from durable.snapshots import Snapshot
from durable.stores._adapters.kinds import queueing_store
from durable.stores.protocol import QueueingStore

T = TypeVar("T")

_OVER: Final = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})


class _Handle(Generic[T]):
    """Which run, in which store, of which workflow."""

    __slots__ = ("_fn", "_store", "id")

    def __init__(self, store: QueueingStore, id: str, fn: Callable[..., Any] | None) -> None:
        #: The run's id.
        self.id = id
        self._store = store
        self._fn = fn

    def __repr__(self) -> str:
        return f"<handle of run {self.id!r}>"

    @calls_out
    def _outcome(self, snapshot: Snapshot) -> T:
        """What a run has come to that is over."""
        codec, where = codec_of(self._store), "the result"
        match snapshot.execution.status:
            case Status.FAILED if snapshot.failure is not None:
                raise from_record(snapshot.failure.error, codec, run_id=self.id, where="the failure")
            case Status.CANCELLED:
                raise RunCancelled(self.id)
            case _ if snapshot.result is UNSET:
                raise UnreadableRecord(self.id, where, "the run is over and has no record of it")
            case _:
                annotation = None if self._fn is None else return_annotation(self._fn)
                value: T = codec.decode(bytes(snapshot.result), run_id=self.id, where=where, annotation=annotation)
                return value


@public_verbs("handle", "status", "result", "cancel", "signal", "retry", "fork")
class RunHandle(_Handle[T]):
    """A run that was started. A handle holds nothing, and can be made anew anywhere: `durable.handle(store, id, fn)`."""

    __slots__ = ()

    @property
    def aio(self) -> AsyncRunHandle[T]:
        """The same verbs, to be awaited."""
        return AsyncRunHandle(self._store, self.id, self._fn)

    def status(self) -> str | None:
        """See `durable.status`."""
        return self._store.status(self.id)

    def result(self, timeout: Duration | None = None) -> T:
        """What the workflow returns, waited for `timeout` seconds at most (None: as long as it takes).

        Raises what the workflow raised; `RunCancelled`; `RunNotFound` where it was deleted; `WaitTimedOut`; and the store's
        errors.
        """
        clock = pace_of(self._store)
        runs, time = Coroutines(self._store, call_now), Coroutines(clock, call_now)
        return self._outcome(at_once(wait_for_end, runs, self.id, clock.elapsed, time.sleep, timeout))

    def cancel(self, *, force: bool = False, reason: str | None = None) -> bool:
        """See `durable.cancel`."""
        return cancel(self._store, self.id, force=force, reason=reason)

    def signal(
        self,
        name: str,
        payload: Any = None,
        *,
        dedup: str | None = None,
        connection: Any = None,
        create_later: bool = False,
    ) -> bool:
        """See `durable.signal`."""
        options: Any = {"dedup": dedup, "connection": connection, "create_later": create_later}
        return signal(self._store, self.id, name, payload, **options)

    def retry(self, *, from_step: str | None = None, even_effects: bool = False) -> list[str]:
        """See `durable.retry`. The run is due at once then."""
        return retry(self._store, self.id, from_step=from_step, even_effects=even_effects)

    def fork(
        self,
        *,
        from_step: str | None = None,
        input: Any = MISSING,
        new_id: str | None = None,
        even_effects: bool = False,
    ) -> RunHandle[T]:
        """See `durable.fork`."""
        order = Order(self._store, self.id, from_step, input, new_id, even_effects=even_effects)
        return RunHandle(self._store, fork_run(order), self._fn)


@public_verbs("handle.aio", "status", "result", "cancel", "signal", "retry", "fork")
class AsyncRunHandle(_Handle[T]):
    """The verbs of a `RunHandle` as coroutines."""

    __slots__ = ()

    async def status(self) -> str | None:
        """See `RunHandle.status`."""
        return await self._store.aio.status(self.id)

    async def result(self, timeout: Duration | None = None) -> T:  # noqa: ASYNC109 -- as `RunHandle.result` has it
        """See `RunHandle.result`."""
        clock = pace_of(self._store)
        return self._outcome(await wait_for_end(self._store.aio, self.id, clock.elapsed, clock.asleep, timeout))

    async def cancel(self, *, force: bool = False, reason: str | None = None) -> bool:
        """See `RunHandle.cancel`."""
        return await cancel_async(self._store, self.id, force=force, reason=reason)

    async def signal(
        self,
        name: str,
        payload: Any = None,
        *,
        dedup: str | None = None,
        connection: Any = None,
        create_later: bool = False,
    ) -> bool:
        """See `RunHandle.signal`."""
        options: Any = {"dedup": dedup, "connection": connection, "create_later": create_later}
        return await signal_async(self._store, self.id, name, payload, **options)

    async def retry(self, *, from_step: str | None = None, even_effects: bool = False) -> list[str]:
        """See `RunHandle.retry`."""
        return await retry_async(self._store, self.id, from_step=from_step, even_effects=even_effects)

    async def fork(
        self,
        *,
        from_step: str | None = None,
        input: Any = MISSING,
        new_id: str | None = None,
        even_effects: bool = False,
    ) -> RunHandle[T]:
        """See `durable.fork`."""
        order = Order(self._store, self.id, from_step, input, new_id, even_effects=even_effects)
        return RunHandle(self._store, await fork_run_async(order), self._fn)


@public("durable.fork")
def fork(
    store: QueueingStore,
    id: str,
    *,
    from_step: str | None = None,
    input: Any = MISSING,
    new_id: str | None = None,
    even_effects: bool = False,
) -> RunHandle[Any]:
    """Make another run, `new_id` (by default a random one), of what the run `id` has recorded; that one stays as it is.

    - With `from_step`, the step of that key runs again in the new run, and every step that started after it was recorded, as
      for `durable.retry`. Without it, what a retry would run again; of a completed run it has to be given.
    - `input`: another input; the steps that are kept have seen the old one.
    - `even_effects`: also where transactions and at-most-once steps would happen once more.

    The new run is queued for the workers where the old one was; one that was not started is left for the next `durable.run`.
    What was recorded is copied byte by byte, and what does not count is set aside. A `deadline` and `dedup` are not taken over.

    Raises `RunExists` where there is a run `new_id`; `RetryRefused` where effects stand in the way; `RunNotFound`;
    `InvalidArgument` where no step of this key is recorded; `UnstorableValue`, `UnreadableRecord`, and the store's errors.
    """
    order = Order(store, id, from_step, input, new_id, even_effects=even_effects)
    return RunHandle(order.store, fork_run(order), None)


@public("durable.aio.fork")
async def fork_async(
    store: QueueingStore,
    id: str,
    *,
    from_step: str | None = None,
    input: Any = MISSING,
    new_id: str | None = None,
    even_effects: bool = False,
) -> RunHandle[Any]:
    """`durable.fork` for asyncio. Cancelled, it goes on by itself."""
    order = Order(store, id, from_step, input, new_id, even_effects=even_effects)
    return RunHandle(order.store, await fork_run_async(order), None)


@public("durable.handle")
def handle(store: QueueingStore, id: str, fn: Callable[..., Any] | None = None) -> RunHandle[Any]:
    """The handle of a run by its id; nothing is asked of the store.

    `fn` is its workflow, whose annotation says as what its result is read. Raises `InvalidArgument`.
    """
    if fn is not None:
        definition_of_workflow(fn)
    return RunHandle(queueing_store(store, "durable.handle"), check_name("a run's id", id), fn)


async def wait_for_end(
    runs: Any,
    id: str,
    elapsed: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]],
    timeout: Duration | None,  # noqa: ASYNC109 -- the clock may be none of asyncio's
) -> Snapshot:
    """The run once it is over; `RunNotFound`, `WaitTimedOut`."""
    limit = math.inf if timeout is None else check_duration("timeout", timeout, zero=True)
    began, polls = elapsed(), 0
    while True:
        status = await runs.status(id)
        if status in _OVER:
            snapshot: Snapshot | None = await runs.load(id)
            if snapshot is not None and snapshot.execution.status in _OVER:
                return snapshot
        elif status is None:
            raise RunNotFound(id)
        if (waited := elapsed() - began) >= limit:
            raise WaitTimedOut(id, waited)
        await sleep(min(backoff(polls, FIRST_RETRY), limit - waited))
        polls += 1
