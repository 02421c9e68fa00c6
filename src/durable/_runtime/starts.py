"""`durable.start`: what it is given, and the runs that it leaves to workers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final, Literal, TypeAlias, TypedDict, TypeVar, Unpack, overload

from durable._common.boundary import public
from durable._common.checks import check_name
from durable._common.durations import Duration
from durable._engine.starts import NewRun, Started, refuse_start
from durable._runtime.new_runs import Start, define_started, new_run
from durable._runtime.plan import MISSING
from durable._runtime.run_handles import RunHandle
from durable._runtime.signatures import AsyncWorkflow, AsyncWorkflowOf, BlockingWorkflow, BlockingWorkflowOf
from durable._runtime.sync_bridge import Coroutines, at_once, call_now
from durable.clocks import clock_of
from durable.codecs import codec_of
from durable.errors import InvalidArgument
from durable.stores._adapters.kinds import queueing_store
from durable.stores.protocol import QueueingStore
from durable.stores.requests import Enqueue, Wake

D = TypeVar("D")
I = TypeVar("I")  # noqa: E741 -- the input's type
T = TypeVar("T")

OnExisting: TypeAlias = Literal["join", "raise"]


class StartOptions(TypedDict, total=False):
    """The options of `durable.start` to a type checker; what each means is said there."""

    id: str | None
    queue: str | None
    partition: str | None
    priority: int
    at: datetime | None
    delay: Duration | None
    dedup: str | None
    deadline: Duration | datetime | None
    metadata: Mapping[str, Any] | None
    connection: Any
    on_conflict: OnExisting


@overload
def start(fn: AsyncWorkflow[D, T], *, store: QueueingStore, **options: Unpack[StartOptions]) -> RunHandle[T]: ...
@overload
def start(
    fn: AsyncWorkflowOf[D, I, T], input: I, *, store: QueueingStore, **options: Unpack[StartOptions]
) -> RunHandle[T]: ...
@overload
def start(fn: BlockingWorkflow[D, T], *, store: QueueingStore, **options: Unpack[StartOptions]) -> RunHandle[T]: ...
@overload
def start(
    fn: BlockingWorkflowOf[D, I, T], input: I, *, store: QueueingStore, **options: Unpack[StartOptions]
) -> RunHandle[T]: ...
@overload
def start(fn: str, input: Any = ..., *, store: QueueingStore, **options: Unpack[StartOptions]) -> RunHandle[Any]: ...
@public("durable.start")
def start(
    fn: Callable[..., Any] | str,
    input: Any = MISSING,
    *,
    store: QueueingStore,
    id: str | None = None,
    queue: str | None = None,
    partition: str | None = None,
    priority: int = 5,
    at: datetime | None = None,
    delay: Duration | None = None,
    dedup: str | None = None,
    deadline: Duration | datetime | None = None,
    metadata: Mapping[str, Any] | None = None,
    connection: Any = None,
    on_conflict: OnExisting = "join",
) -> RunHandle[Any]:
    """Start a run, and let go of it: a worker (`durable.Worker`) executes it. It is stored when this returns.

    - `fn`: a function that is marked with `@durable.workflow`; or its name, `"checkout"`, or `"checkout@2"` for a version.
    - `input`: as for `durable.run`.
    - `id`: by default a random one. A run of this id that is there already, of the same workflow with the same input, is
      the one (`on_conflict="join"`), whatever has become of it; `"raise"` raises `RunExists`.
    - `queue`: by default that of the workflow's mark. Only workers of this queue take the run.
    - `partition`: a text, such as a tenant's name. The partitions of a queue take turns, one run each, however many each has;
      and a `durable.Queue` may limit how many of one are executed at once.
    - `priority`: from 0, which is taken first, to 9. It is strict: while there is something of one class, none of a later one
      is begun. Between partitions the turn comes first, and it orders the runs of each.
    - `at`, an aware `datetime`, or `delay`, seconds or a `timedelta`: not to be taken before, by the store's clock.
    - `dedup`: a text; while a run of this queue with the same text has not ended, that run is the one.
    - `deadline`: seconds from now, or an aware `datetime`, after which no further step begins: `DeadlineExceeded`.
    - `metadata`: JSON values kept in the run's header, for people and queries.
    - `connection`: start it in the transaction of this connection to the store's database, whose `COMMIT` or `ROLLBACK` it
      shares: a `psycopg.Connection`, Django's `connection`, or a `Connection` of SQLAlchemy's, as `session.connection()`
      gives it. `durable.wake(store)` after the commit has it begun at once, and not by the next poll.

    Returns a handle: `handle.result(timeout=…)` waits for the outcome.

    Raises `InvalidArgument` and `UnstorableValue` before anything is stored; `RunMismatch` where the id is of another
    workflow, or of other input; `RunExists`; `RunBeingStarted` where a transaction that has not ended starts it; and the
    store's errors. After `OutcomeUnknown` it may have been started: call it again. With `connection`,
    `UnsuitableConnection` before anything is sent, and the database's errors as that connection raises them.
    """
    order = Start(input, id, priority, at, delay, dedup, deadline, metadata, partition)
    asked = _Order(fn, [order], store, queue, on_conflict)
    return at_once(_start, asked, _blocking_way(asked, connection, "durable.start"))[0]


@overload
async def start_async(
    fn: AsyncWorkflow[D, T], *, store: QueueingStore, **options: Unpack[StartOptions]
) -> RunHandle[T]: ...
@overload
async def start_async(
    fn: AsyncWorkflowOf[D, I, T], input: I, *, store: QueueingStore, **options: Unpack[StartOptions]
) -> RunHandle[T]: ...
@overload
async def start_async(
    fn: BlockingWorkflow[D, T], *, store: QueueingStore, **options: Unpack[StartOptions]
) -> RunHandle[T]: ...
@overload
async def start_async(
    fn: BlockingWorkflowOf[D, I, T], input: I, *, store: QueueingStore, **options: Unpack[StartOptions]
) -> RunHandle[T]: ...
@overload
async def start_async(
    fn: str, input: Any = ..., *, store: QueueingStore, **options: Unpack[StartOptions]
) -> RunHandle[Any]: ...
@public("durable.aio.start")
async def start_async(
    fn: Callable[..., Any] | str,
    input: Any = MISSING,
    *,
    store: QueueingStore,
    id: str | None = None,
    queue: str | None = None,
    partition: str | None = None,
    priority: int = 5,
    at: datetime | None = None,
    delay: Duration | None = None,
    dedup: str | None = None,
    deadline: Duration | datetime | None = None,
    metadata: Mapping[str, Any] | None = None,
    connection: Any = None,
    on_conflict: OnExisting = "join",
) -> RunHandle[Any]:
    """`durable.start` for asyncio; the verbs of the handle are awaited at `handle.aio`.

    `connection` is a `psycopg.AsyncConnection`, or an `AsyncConnection` of SQLAlchemy's (`await session.connection()`).
    """
    order = Start(input, id, priority, at, delay, dedup, deadline, metadata, partition)
    asked = _Order(fn, [order], store, queue, on_conflict)
    return (await _start(asked, _async_way(asked, connection, "durable.start")))[0]


@public("durable.start_many")
def start_many(
    fn: Callable[..., Any] | str,
    runs: Sequence[Start],
    *,
    store: QueueingStore,
    queue: str | None = None,
    connection: Any = None,
    on_conflict: OnExisting = "join",
) -> list[RunHandle[Any]]:
    """Start many runs of one workflow, a thousand in one commit: a handle for each, in the order of `runs`.

    Otherwise as `start`. What fails raises for all of its thousand; those before are started.
    """
    asked = _Order(fn, runs, store, queue, on_conflict)
    return at_once(_start, asked, _blocking_way(asked, connection, "durable.start_many"))


@public("durable.aio.start_many")
async def start_many_async(
    fn: Callable[..., Any] | str,
    runs: Sequence[Start],
    *,
    store: QueueingStore,
    queue: str | None = None,
    connection: Any = None,
    on_conflict: OnExisting = "join",
) -> list[RunHandle[Any]]:
    """`durable.start_many` for asyncio."""
    asked = _Order(fn, runs, store, queue, on_conflict)
    return await _start(asked, _async_way(asked, connection, "durable.start_many"))


@public("durable.wake")
def wake(store: QueueingStore) -> None:
    """Wake idle workers for what is due: after the commit of a transaction in which runs were started (`connection=`).

    Without it they are found by the next poll. Raises `InvalidArgument`, and the store's errors.
    """
    queueing_store(store, "durable.wake").perform(Wake())


@public("durable.aio.wake")
async def wake_async(store: QueueingStore) -> None:
    """`durable.wake` for asyncio."""
    await queueing_store(store, "durable.wake").aio.submit(Wake())


_Way: TypeAlias = Callable[[Enqueue], Awaitable[Sequence[Started]]]
"""How runs are stored: in a commit of their own, or in the caller's transaction."""


def _blocking_way(order: _Order, connection: Any, function: str) -> _Way:
    if connection is None:
        return Coroutines(order.store, call_now).submit

    async def within(request: Enqueue) -> Sequence[Started]:
        return await call_now(order.store.perform_within, request, connection, function)

    return within


def _async_way(order: _Order, connection: Any, function: str) -> _Way:
    if connection is None:
        return order.store.aio.submit
    return partial(order.store.submit_within, connection=connection, function=function)


async def _start(order: _Order, store_runs: _Way) -> list[RunHandle[Any]]:
    handles: list[RunHandle[Any]] = []
    for batch in order.batches():
        handles += order.handles(batch, await store_runs(Enqueue(batch)))
    return handles


_BATCH: Final = 1000  # runs in one commit


class _Order:
    """One call of `start` or `start_many`, checked: what it asks of the store, and what it makes of the answers."""

    def __init__(
        self,
        fn: Callable[..., Any] | str,
        runs: Sequence[Start],
        store: QueueingStore,
        queue: str | None,
        on_conflict: str,
    ) -> None:
        if on_conflict not in ("join", "raise"):
            raise InvalidArgument(f'on_conflict must be "join" or "raise", not {on_conflict!r}')
        self.store = queueing_store(store, "durable.start")
        self._joins = on_conflict == "join"
        self._fn = None if isinstance(fn, str) else fn
        self._definition = define_started(fn)
        queue = self._definition.queue if queue is None else check_name("a queue's name", queue)
        codec, clock = codec_of(store), clock_of(store)
        self._runs = [new_run(run, self._definition, self._fn, queue, codec, clock) for run in runs]

    def batches(self) -> list[list[NewRun]]:
        """The runs, in portions that are one statement each."""
        return [self._runs[n : n + _BATCH] for n in range(0, len(self._runs), _BATCH)]

    def handles(self, asked: Sequence[NewRun], started: Sequence[Started]) -> list[RunHandle[Any]]:
        """A handle for each; the first error raised."""
        for run, found in zip(asked, started, strict=True):
            if (error := refuse_start(run, found, joins=self._joins)) is not None:
                raise error
        return [RunHandle(self.store, found.run_id, self._fn) for found in started]
