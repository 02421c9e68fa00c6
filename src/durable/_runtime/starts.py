"""`durable.start`: what it is given, and the runs that it leaves to workers."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, Literal, TypeAlias, TypedDict, TypeVar, Unpack, get_type_hints, overload

from msgspec import Struct

from durable._common.boundary import public
from durable._common.checks import check_name
from durable._common.durations import Duration, check_duration, to_utc
from durable._engine.starts import MAX_PRIORITY, NewRun, Route, Started, refuse_start
from durable._engine.workers import MAX_CRASHES
from durable._runtime.plan import MISSING, check_arity
from durable._runtime.run_handles import RunHandle
from durable._runtime.run_options import check_metadata
from durable._runtime.signatures import AsyncWorkflow, AsyncWorkflowOf, BlockingWorkflow, BlockingWorkflowOf
from durable._runtime.sync_bridge import Coroutines, at_once, call_now
from durable._runtime.versions import check_version
from durable._runtime.workflow import DEFAULT_QUEUE, WorkflowDefinition, definition_of_workflow
from durable.clocks import clock_of
from durable.codecs import check_plain, codec_of, parameter_annotation
from durable.errors import InvalidArgument
from durable.stores._adapters.kinds import queueing_store
from durable.stores.protocol import QueueingStore
from durable.stores.requests import Enqueue, Wake

D = TypeVar("D")
I = TypeVar("I")  # noqa: E741 -- the input's type
T = TypeVar("T")

OnExisting: TypeAlias = Literal["join", "raise"]

_DIGITS: Final = 11  # of a version, which is larger then than any
_INPUT: Final = 2  # the place of the workflow's parameter


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


class Start(Struct, frozen=True):
    """One of the runs of `start_many`; its fields are the options of `start`."""

    #: The workflow's input.
    input: Any = MISSING
    #: The run's id, by default a random one.
    id: str | None = None
    #: From 0, the most urgent, to 9.
    priority: int = 5
    #: When it is due, an aware moment.
    at: datetime | None = None
    #: Seconds until it is due.
    delay: Duration | None = None
    #: A text that no other run of the queue has which has not ended.
    dedup: str | None = None
    #: Seconds from now, or an aware moment, after which no further step begins.
    deadline: Duration | datetime | None = None
    #: JSON values kept in the run's header.
    metadata: Mapping[str, Any] | None = None
    #: Whose runs it is one of: a tenant, a customer.
    partition: str | None = None


# A step may return one, so its record names a module that stays. Its annotations were read as texts in the module it is in.
Start.__annotations__ = get_type_hints(Start)
Start.__module__ = "durable"


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
        self._queue = self._definition.queue if queue is None else check_name("a queue's name", queue)
        self._codec, self._clock = codec_of(store), clock_of(store)
        self._runs = [self._new_run(run) for run in runs]

    def batches(self) -> list[list[NewRun]]:
        """The runs, in portions that are one statement each."""
        return [self._runs[n : n + _BATCH] for n in range(0, len(self._runs), _BATCH)]

    def handles(self, asked: Sequence[NewRun], started: Sequence[Started]) -> list[RunHandle[Any]]:
        """A handle for each; the first error raised."""
        for run, found in zip(asked, started, strict=True):
            if (error := refuse_start(run, found, joins=self._joins)) is not None:
                raise error
        return [RunHandle(self.store, found.run_id, self._fn) for found in started]

    def _new_run(self, start: Start) -> NewRun:
        definition, fn, given = self._definition, self._fn, start.input is not MISSING
        if fn is not None:
            check_arity(fn, given=given, is_new=True)
        annotation = None if fn is None else parameter_annotation(fn, _INPUT)
        text = self._codec.encode(start.input, what="the input", annotation=annotation) if given else None
        metadata = check_metadata(start.metadata)
        check_plain(metadata, what="the metadata")
        if (deadline := self._moment("deadline", start.deadline)) is not None:
            metadata = {**metadata, "deadline": deadline.isoformat()}
        if start.at is not None and start.delay is not None:
            raise InvalidArgument("at= and delay= both say when the run is due: give one of them")
        return NewRun(
            run_id=uuid.uuid4().hex if start.id is None else check_name("a run's id", start.id),
            route=Route(self._queue, definition.name, definition.version),
            function=definition.function,
            priority=_check_priority(start.priority),
            at=None if start.at is None else _check_moment("at", start.at),
            delay=0.0 if start.delay is None else check_duration("delay", start.delay, zero=True),
            input=text,
            input_hash=self._codec.fingerprint(start.input, what="the input") if given else None,
            metadata=metadata,
            dedup=None if start.dedup is None else check_name("dedup", start.dedup),
            partition=None if start.partition is None else check_name("partition", start.partition),
        )

    def _moment(self, what: str, given: Duration | datetime | None) -> datetime | None:
        if given is None or isinstance(given, datetime):
            return None if given is None else _check_moment(what, given)
        return self._clock.now() + timedelta(seconds=check_duration(what, given, zero=True))


def split_version(text: str) -> tuple[str, int | None]:
    """`name@2` as its two parts; what follows no `@` as digits has no version."""
    name, at, version = text.rpartition("@")
    if not at or not version.isascii() or not version.isdecimal():
        return text, None
    return name, int(version.lstrip("0")[:_DIGITS] or "0")  # more of them are too many already


def define_started(fn: Callable[..., Any] | str) -> WorkflowDefinition:
    """The workflow that is to be started: a function that is marked, or `name` or `name@version`."""
    if isinstance(fn, str):
        name, version = split_version(fn)
        checked = check_name("a workflow's name", name)
        return WorkflowDefinition(
            checked,
            None,
            check_version(1 if version is None else version),
            DEFAULT_QUEUE,
            None,
            None,
            MAX_CRASHES,
            True,
        )
    if not callable(fn):
        raise InvalidArgument(f"a workflow function, or its name, can be started, not {type(fn).__name__}")
    definition = definition_of_workflow(fn)
    if not definition.is_marked:
        raise InvalidArgument(
            f"{definition.name} is not marked as a workflow, so that workers could find it: put @durable.workflow above it"
        )
    return definition


def _check_priority(given: object) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given <= MAX_PRIORITY:
        raise InvalidArgument(f"priority must be an int from 0, the most urgent, to {MAX_PRIORITY}, not {given!r}")
    return given


def _check_moment(what: str, given: object) -> datetime:
    if not isinstance(given, datetime):
        raise InvalidArgument(f"{what} must be an aware datetime, not {type(given).__name__}")
    return to_utc(what, given)
