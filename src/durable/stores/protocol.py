"""What a store is: the protocols that it keeps, blocking and for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from durable._common.durations import Duration
from durable._engine.leases import Lease
from durable._engine.queues import Queue, QueueLine
from durable._engine.step_kinds import Isolation
from durable.clocks import Clock
from durable.records import Header, Record
from durable.snapshots import Snapshot
from durable.stores.copies import Changes, StoredRun
from durable.stores.listing import PAGE, Listed, Progress, RunStatus, Stats
from durable.stores.reading import COUNTED, LINES, Filter, Health, RunLine, ScheduleLine, SentSignal, WorkerLine
from durable.stores.requests import OnLateReply, Request

T = TypeVar("T")


class SnapshotStore(Protocol):
    """Five verbs over whole snapshots by id: what `durable.run` needs at the least, and what you can bring yourself.

    `Snapshot.to_json()` and `Snapshot.from_json(text)` are all that a store needs to know of what it keeps. Such a store
    knows no leases: `durable.run` then promises one execution of an id per process, and not more.
    """

    def save(self, id: str, snapshot: Snapshot) -> None:
        """Keep this snapshot under the id, in place of what was there; it is durable when this returns."""
        ...

    def load(self, id: str) -> Snapshot | None:
        """The snapshot that was saved last, None when there is none."""
        ...

    def delete(self, id: str) -> None:
        """Forget the id. Quiet when there is nothing."""
        ...

    def list(self, *, prefix: str = "", limit: int = 100) -> Sequence[Listed]:
        """Up to `limit` ids that begin with `prefix`, taken literally, with the moment of their last save: newest first."""
        ...

    def close(self) -> None:
        """Let go of everything. Quiet when closed already."""
        ...


class AsyncSnapshotStore(Protocol):
    """A `SnapshotStore` whose verbs are coroutines, for async workflows. All five are; `close` may be either way."""

    async def save(self, id: str, snapshot: Snapshot) -> None:
        """See `SnapshotStore.save`."""
        ...

    async def load(self, id: str) -> Snapshot | None:
        """See `SnapshotStore.load`."""
        ...

    async def delete(self, id: str) -> None:
        """See `SnapshotStore.delete`."""
        ...

    async def list(self, *, prefix: str = "", limit: int = 100) -> Sequence[Listed]:
        """See `SnapshotStore.list`."""
        ...

    async def close(self) -> None:
        """See `SnapshotStore.close`."""
        ...


class RunStore(Protocol):
    """A store that `durable.run` can execute under. It blocks, and is safe for threads.

    It either does all that a request or a method says, and that is committed when it returns, or raises and has done
    nothing – except `OutcomeUnknown`, which says that it cannot tell.

    Requests are values, so that what only passes them on says so once. The rest are methods: `load` and `replace` are
    about a whole snapshot, under no lease and in no batch with others; a `transaction` stays open, and has methods of its
    own; `identity`, `aio` and `close` are about the store, and about no run.
    """

    def perform(self, request: Request[T], on_late_reply: OnLateReply | None = None) -> T:
        """Do what is asked, and return its answer: see each class in `requests`.

        When the caller of a `Checkpoint` is interrupted (a signal handler raises), `on_late_reply` is called before that
        goes on, with what has become of the record: None when it is stored, the store's error (`OutcomeUnknown` too), or the
        interrupt when it was not sent.
        """
        ...

    def load(self, id: str) -> Snapshot | None:
        """The whole run, as it is at one moment; None when there is none."""
        ...

    def replace(self, run_id: str, old: Snapshot, new: Snapshot) -> bool:
        """Put `new` in the place of a run that still is what `load` said, `old`, and that is not being executed.

        False, and nothing was changed, where it is not so any more. Signals stay.
        """
        ...

    def transaction(self, lease: Lease, name: str, isolation: Isolation) -> Transaction:
        """A transaction for the step `name`, not begun yet; `InvalidArgument` from a store that has none to offer."""
        ...

    @property
    def identity(self) -> object:
        """Equal for two stores that hold the same runs, as far as can be known without asking."""
        ...

    @property
    def aio(self) -> AsyncRunStore:
        """The same store for asyncio."""
        ...

    def close(self) -> None:
        """Let go of connections and threads. Quiet when closed already."""
        ...


class Transaction(Protocol):
    """A transaction in the store's database, in which a step's body works and its record is written. Its verbs block."""

    def begin(self, seconds: float) -> bool:
        """Begin, and lock the lease's row: from here on the run cannot be taken over before the end.

        False when there was no room for it within `seconds`. Raises `LeaseLost`, `RunCancelled`, `StoreUnavailable`, and what
        else the store does; nothing was begun then.
        """
        ...

    def call(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """What `fn(connection, *args)` returns or raises; the connection is of no use afterwards.

        `RolledBack` when it was not the body's fault that it came to nothing, `TransactionMisused` when it did what ends
        the transaction.
        """
        ...

    def commit(self, record: Record, on_late_reply: OnLateReply | None = None) -> None:
        """Commit what the body did together with this record.

        Raises `RolledBack`, `LeaseLost`, `RunCancelled`, `TransactionMisused`, and `CommitRefused` for what the database has
        against the body's work as late as that: nothing was committed. `OutcomeUnknown` when it cannot be told.
        When the caller is interrupted, `on_late_reply` is called as by `RunStore.perform`.
        """
        ...

    def rollback(self) -> None:
        """Undo what the body did. Quiet when the end has come already."""
        ...

    def abandon(self) -> None:
        """The same at once, from any thread, also while the body is working: it cannot be committed any more."""
        ...

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Call `work`, which performs this transaction, on a thread of the store's, when one is free."""
        ...


class NotCommitted(Exception):
    """Nothing of a transaction was committed; `problem` says why."""

    def __init__(self, problem: Exception) -> None:
        super().__init__(problem)
        self.problem = problem


class RolledBack(NotCommitted):
    """Through no fault of the body's.

    `problem` is what to say when that goes on: a `DurableError`, or the database's own exception, to be the body's.
    """


class CommitRefused(NotCommitted):
    """The database has something against what the body did, a deferred constraint for example."""


class AsyncRunStore(Protocol):
    """A `RunStore` for asyncio, with the same guarantees. What `load` and `replace` do begins when it is awaited."""

    def submit(self, request: Request[T], on_late_reply: OnLateReply | None = None) -> asyncio.Future[T]:
        """See `RunStore.perform`. Begins at the call and goes on if the future is cancelled.

        Of a `Checkpoint` whose future was cancelled before the answer came, `on_late_reply` is called on the event loop with
        the answer (the error, or None). (A shield around the future would do, and costs a tenth of a step.)
        """
        ...

    def load(self, id: str) -> Awaitable[Snapshot | None]:
        """See `RunStore.load`."""
        ...

    def replace(self, run_id: str, old: Snapshot, new: Snapshot) -> Awaitable[bool]:
        """See `RunStore.replace`."""
        ...

    def room(self) -> asyncio.Future[None] | None:
        """Back-pressure for asyncio: None, or a future to await before another body is started.

        Threads need no such question: `checkpoint` holds them while too much is waiting in the store.
        """
        ...


class AsyncQueueingStore(AsyncRunStore, Protocol):
    """A `QueueingStore` for asyncio."""

    async def status(self, id: str) -> RunStatus | None:
        """See `PostgresStore.status`."""
        ...


class LeasedStore(RunStore, Protocol):
    """A store that `durable.run` takes leases from, and whose snapshots can be seen to. Its verbs block."""

    def save(self, id: str, snapshot: Snapshot | Mapping[str, Any], *, force: bool = False) -> None:
        """See `PostgresStore.save`."""
        ...

    def delete(self, id: str, *, force: bool = False) -> None:
        """See `PostgresStore.delete`."""
        ...

    def list(
        self, *, prefix: str = "", limit: int = PAGE, status: RunStatus | None = None, after: Listed | None = None
    ) -> Sequence[Listed]:
        """See `PostgresStore.list`."""
        ...

    def purge(
        self,
        *,
        older_than: Duration,
        status: RunStatus | None = "completed",
        queue: str | None = None,
        metadata: Mapping[str, str] | None = None,
        limit: int | None = None,
        progress: Progress | None = None,
    ) -> int:
        """See `PostgresStore.purge`."""
        ...

    def stats(self) -> Stats:
        """See `PostgresStore.stats`."""
        ...

    def status(self, id: str) -> RunStatus | None:
        """See `PostgresStore.status`."""
        ...


class Listening(Protocol):
    """What a worker hears of a store, and the store of it."""

    def drain(self) -> None:
        """The worker is leaving: what dies with it from now on has not crashed."""
        ...

    def close(self) -> None:
        """The worker has left: `wake` is called no more."""
        ...


class QueueingStore(LeasedStore, Protocol):
    """A store in which runs can wait for workers."""

    def perform_within(self, request: Request[T], connection: Any, function: str) -> T:
        """Do what is asked in the transaction of a caller's own connection, whose COMMIT or ROLLBACK it shares.

        `Enqueue` and `Signal` only; `function` is what the caller called. Raises `UnsuitableConnection`, `AsyncMismatch`, and
        what the database has against it as the connection's own error.
        """
        ...

    async def submit_within(self, request: Request[T], connection: Any, function: str) -> T:
        """The same on an async connection."""
        ...

    def write_queue(self, queue: Queue) -> None:
        """See `PostgresStore.write_queue`."""
        ...

    def pause_queue(self, name: str, *, paused: bool = True) -> None:
        """See `PostgresStore.pause_queue`."""
        ...

    def listen(self, worker: str, wake: Callable[[], object]) -> Listening:
        """From now on `wake` is called, on any thread, when something is due for an idle worker.

        Not for each such thing: what is not heard of is found by the next poll.
        """
        ...

    @property
    def aio(self) -> AsyncQueueingStore:
        """The same store for asyncio."""
        ...


class ReadableStore(QueueingStore, Protocol):
    """A store that people and tools can look into."""

    clock: Clock

    def runs(
        self, filter: Filter | None = None, *, limit: int = PAGE, after: RunLine | Listed | None = None
    ) -> Sequence[RunLine]:
        """See `PostgresStore.runs`."""
        ...

    def count_runs(self, filter: Filter | None = None, *, limit: int = COUNTED) -> int:
        """See `PostgresStore.count_runs`."""
        ...

    def header(self, id: str) -> Header | None:
        """See `PostgresStore.header`."""
        ...

    def journal(self, id: str, *, after: int | None = None, limit: int = LINES) -> Sequence[Record]:
        """See `PostgresStore.journal`."""
        ...

    def copy(self, src: str, dst: str, *, keep: Collection[int] | None = None, changes: Changes | None = None) -> None:
        """See `PostgresStore.copy`."""
        ...

    def document(self, id: str) -> str | None:
        """See `PostgresStore.document`."""
        ...

    def restore(self, run: StoredRun, *, replace: bool = False) -> None:
        """See `PostgresStore.restore`."""
        ...

    def workers(self) -> Sequence[WorkerLine]:
        """See `PostgresStore.workers`."""
        ...

    def queues(self) -> Sequence[QueueLine]:
        """See `PostgresStore.queues`."""
        ...

    def schedules(self) -> Sequence[ScheduleLine]:
        """See `PostgresStore.schedules`."""
        ...

    def health(self) -> Health:
        """See `PostgresStore.health`."""
        ...

    def delete_many(self, ids: Sequence[str]) -> Sequence[str]:
        """See `PostgresStore.delete_many`."""
        ...

    def signals(self, id: str) -> Sequence[SentSignal]:
        """See `PostgresStore.signals`."""
        ...
