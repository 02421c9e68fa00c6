"""The PostgreSQL store: its verbs, in both colours."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final, Self, TypeVar

from durable._common.boundary import public_verbs
from durable._common.durations import Duration
from durable._engine.leases import Lease
from durable._engine.queues import Queue, QueueLine
from durable._engine.step_kinds import Isolation
from durable.clocks import Clock, SystemClock
from durable.codecs import Codec, as_codec
from durable.records import Header, Record
from durable.snapshots import Snapshot
from durable.stores._facades import AsyncReadingVerbs, AsyncSnapshotVerbs
from durable.stores._postgres import schema
from durable.stores._postgres.async_requests import AsyncRequests
from durable.stores._postgres.callers_transactions import CallersTransactions
from durable.stores._postgres.connections import Connections
from durable.stores._postgres.conninfo import Pool
from durable.stores._postgres.copying import Copying
from durable.stores._postgres.held import Held
from durable.stores._postgres.listener import listen
from durable.stores._postgres.queues import Queues
from durable.stores._postgres.reading import Reading
from durable.stores._postgres.requests import Requests
from durable.stores._postgres.resources import Resources
from durable.stores._postgres.settings import Settings
from durable.stores._postgres.snapshots import Snapshots
from durable.stores._postgres.sql.loader import load_statements
from durable.stores._postgres.sql.names import Names
from durable.stores._postgres.transaction import PostgresTransaction
from durable.stores.copies import Changes, StoredRun, checked_keep
from durable.stores.listing import PAGE, Listed, Progress, RunStatus, Stats, checked_prefix
from durable.stores.protocol import Listening
from durable.stores.reading import COUNTED, LINES, Filter, Health, RunLine, ScheduleLine, SentSignal, WorkerLine
from durable.stores.requests import OnLateReply, Request

T = TypeVar("T")

MAX_TRANSACTIONS: Final = 8  # at once, of one process: each has a connection


@public_verbs(
    "store",
    "save",
    "load",
    "delete",
    "list",
    "purge",
    "stats",
    "status",
    "runs",
    "count_runs",
    "header",
    "journal",
    "signals",
    "workers",
    "schedules",
    "health",
    "delete_many",
    "queues",
    "write_queue",
    "pause_queue",
    "copy",
    "document",
    "restore",
)
class PostgresStore:
    """Runs in the user's own PostgreSQL. Made by `postgres(url)` and `embedded()`; nothing is opened before first use."""

    def __init__(
        self,
        url: str | None,
        names: Names,
        *,
        prefix: str = "",
        create: bool = True,
        excludes: bool = True,
        pool: Pool | None = None,
        take_over_dead: bool = True,
        max_transactions: int = MAX_TRANSACTIONS,
        codec: Codec | Sequence[Codec] | None = None,
        strict: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self.codec = as_codec(codec)
        self.clock = clock or SystemClock()
        settings = Settings(names, checked_prefix(prefix), excludes, take_over_dead, self.clock)
        self._url = url
        self._names = names
        self._prefix = settings.prefix
        self._create = create
        self._pool = pool
        self._max_transactions = max_transactions
        self._sql = {**load_statements(names), **load_statements(names, "queues.sql")}
        self._strict = strict
        self._held = Held(self._new_resources)
        self._requests = Requests(self._held, settings)
        self._snapshots = Snapshots(self._held, settings)
        self._reading = Reading(self._held, settings)
        self._copying = Copying(self._held, settings)
        self._queues = Queues(self._held, settings)
        self._callers = CallersTransactions(self._snapshots.perform, settings, self._requests)
        self._aio = AsyncPostgresStore(self, self._held, self._requests)

    def __repr__(self) -> str:
        held = getattr(self, "_held", None)
        if held is None:  # its URL could not be read, and what there is of it is printed
            return "<durable store in PostgreSQL, not made>"
        return f"<durable store in PostgreSQL at {held.made.connections.where}, {self._names.quoted['snapshots']}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        held = getattr(self, "_held", None)
        if held is not None and held.is_left_open:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    @property
    def identity(self) -> object:
        """The database, the table in it, and the prefix of the ids."""
        return (self._held.made.connections.where, self._names, self._prefix)

    @property
    def aio(self) -> AsyncPostgresStore:
        """The same store for asyncio."""
        return self._aio

    def perform(self, request: Request[T], on_late_reply: OnLateReply | None = None) -> T:
        """See `RunStore.perform`. One round trip, one commit, shared with what waits at the same time.

        A `Begin` takes two when the last owner was found dead on this machine, and more where the journal has more than a few
        hundred KB: that is read in pages, when the lease is being renewed already.
        """
        return self._requests.perform(request, on_late_reply)  # type: ignore[arg-type, no-any-return]

    def perform_within(self, request: Request[T], connection: Any, function: str) -> T:
        """See `QueueingStore.perform_within`. One statement, and with the first on a connection one or two more."""
        return self._callers.perform(request, connection, function)

    async def submit_within(self, request: Request[T], connection: Any, function: str) -> T:
        """See `QueueingStore.submit_within`."""
        return await self._callers.submit(request, connection, function)

    def transaction(self, lease: Lease, name: str, isolation: Isolation) -> PostgresTransaction:
        """See `RunStore.transaction`. Two round trips around those of the body, one commit."""
        return PostgresTransaction(self._requests.held_here(lease).transactions, lease, name, isolation)

    def listen(self, worker: str, wake: Callable[[], object]) -> Listening:
        """See `QueueingStore.listen`. By LISTEN, on a connection of its own."""
        return listen(self._held.resources.connections, self._sql, self.clock, worker, wake)

    def save(self, id: str, snapshot: Snapshot | Mapping[str, Any], *, force: bool = False) -> None:
        """Keep this snapshot, or document of one, under the id, in place of what was there, journal and all.

        It goes through `jsonb`: values come back equal, the keys of dicts perhaps in another order.

        Raises `ConcurrentExecution` when the run is being executed, unless `force`: then its owner can write no more, and
        their `run` raises `LeaseLost`. `UnreadableRecord` when the document is none that this version knows, and
        `InvalidArgument` for that of a run which is queued: it does not say in which queue; `durable.start` does.
        """
        self._snapshots.save(id, snapshot, force=force)

    def replace(self, run_id: str, old: Snapshot, new: Snapshot) -> bool:
        """See `RunStore.replace`. A reply that was lost makes it False, though it was done.

        The journal stays one: `jsonb` would make another value of a float like 1e16 or -0.0, and reorder dicts.
        """
        return self._snapshots.replace(run_id, old, new)

    def load(self, id: str) -> Snapshot | None:
        """The run as one document, header and journal together, as they were at one moment; None when there is none.

        Raises `UnreadableRecord` when what is there is not understood: it is never taken for nothing.
        """
        return self._snapshots.load(id)

    def delete(self, id: str, *, force: bool = False) -> None:
        """Forget the run, with its journal and the signals that it has not received. Quiet when there is none.

        Raises `ConcurrentExecution` when it is being executed, unless `force`: see `save`.
        """
        self._snapshots.delete(id, force=force)

    def list(
        self, *, prefix: str = "", limit: int = PAGE, status: RunStatus | None = None, after: Listed | None = None
    ) -> Sequence[Listed]:
        """A page of ids with the moment of their last save, begin or end, newest first; equal moments by id, descending.

        `prefix` is what ids begin with, taken literally, after the store's own prefix: a search, and no border between tenants,
        so it need not end in a separator. `status` "queued" means that no worker has taken the run yet, "running" under a lease
        that lasts, "suspended" while it waits, "interrupted" without one, or under that of an owner proven to be dead here.
        `after` is the last line of the page before: no line comes twice, and none is left out but such as were written
        meanwhile, which are newer.
        """
        return self._snapshots.list(prefix=prefix, limit=limit, status=status, after=after)

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
        """Delete the runs whose last save, begin or end lies more than `older_than` seconds back; how many there were.

        `status` says which: "completed", "failed", "cancelled", "interrupted", or None for all of these; never one that is
        queued, suspended or being executed. `queue` narrows it to runs that were started in that queue, `metadata` to those
        whose metadata has these texts, and `limit` to so many. With any status, but with neither queue nor metadata, journals
        go whose header was deleted by SQL, by the moment of their last record. It goes in transactions of a hundred runs,
        oldest first, and `progress` is called after each with the number deleted so far. What is interrupted has deleted what
        it said, and can be called again.
        """
        return self._snapshots.purge(
            older_than=older_than, status=status, queue=queue, metadata=metadata, limit=limit, progress=progress
        )

    def stats(self) -> Stats:
        """How many runs there are by where they stand, and how much room they take. Its time grows with the number of runs."""
        return self._snapshots.stats()

    def status(self, id: str) -> RunStatus | None:
        """Where a run stands, None when there is none. Raises `UnreadableRecord` as `load` does."""
        return self._snapshots.status(id)

    def runs(
        self, filter: Filter | None = None, *, limit: int = PAGE, after: RunLine | Listed | None = None
    ) -> Sequence[RunLine]:
        """A page of the runs for which `filter` holds, as for `list`: newest first, from the line `after` on.

        One statement, which only reads. Raises `InvalidArgument`, also for a question that takes more than three seconds, and
        the store's errors.
        """
        return self._reading.runs(filter, limit, after)

    def count_runs(self, filter: Filter | None = None, *, limit: int = COUNTED) -> int:
        """How many runs there are for which `filter` holds, counted as far as `limit`. Raises what `runs` raises.

        It goes by leases alone: a run whose owner has died on this machine is running until its lease ends.
        """
        return self._reading.count_runs(filter, limit)

    def header(self, id: str) -> Header | None:
        """The header of a run; None where there is none. Raises `UnreadableRecord`, and the store's errors."""
        return self._reading.header(id)

    def journal(self, id: str, *, after: int | None = None, limit: int = LINES) -> Sequence[Record]:
        """The records of a run as they were stored, in order: at most `limit`, whose `seq` is greater than `after`.

        None where there is no such run. What a document brought that was saved is in `load` only.
        """
        return self._reading.journal(id, after, limit)

    def signals(self, id: str) -> Sequence[SentSignal]:
        """The signals that were sent to a run, in the order of receiving; those too that it has received."""
        return self._reading.signals(id)

    def workers(self) -> Sequence[WorkerLine]:
        """The workers that were heard of in the last hour, by their processes."""
        return self._reading.workers()

    def queues(self) -> Sequence[QueueLine]:
        """The queues that have limits, are paused, or have runs that are due or held, by their names.

        Counted as far as ten thousand of each. Raises the store's errors.
        """
        return self._queues.lines()

    def write_queue(self, queue: Queue) -> None:
        """Let these be the limits of the queue from now on, for all workers. Raises the store's errors.

        Nothing that is held is given up: where that is more than the limits let, none begins until it is less.
        """
        self._queues.write(queue)

    def pause_queue(self, name: str, *, paused: bool = True) -> None:
        """See `durable.pause`; with `paused=False`, `durable.unpause`."""
        self._queues.pause(name, paused=paused)

    def schedules(self) -> Sequence[ScheduleLine]:
        """The schedules of this store, by their names: when each is due, and what it started last."""
        return self._reading.schedules()

    def health(self) -> Health:
        """What ended in the last day, what waits for how long, and whether the server has room. Raises the store's errors.

        `InvalidArgument` where that takes more than three seconds.
        """
        return self._reading.health()

    def delete_many(self, ids: Sequence[str]) -> Sequence[str]:
        """Forget these runs, a thousand at most, in one transaction: those that are not being executed. Returns their ids."""
        return self._copying.delete_many(ids)

    def copy(self, src: str, dst: str, *, keep: Collection[int] | None = None, changes: Changes | None = None) -> None:
        """Make the run `dst` of what is recorded of `src`, byte by byte: the records whose `seq` is in `keep`, None for all.

        The copy has the metadata of `src` (but its deadline), and its queue, in which it is due at once; a run that was not
        started is left for the next `durable.run` of its id. `changes` are for `durable.fork`.

        Raises `RunExists` where there is a run `dst`, `RunNotFound`, `InvalidArgument`, and the store's errors.
        """
        self._copying.copy(src, dst, checked_keep(keep), changes or Changes())

    def document(self, id: str) -> str | None:
        """The header of a run as it is stored, as JSON text; None where there is none."""
        return self._copying.document(id)

    def restore(self, run: StoredRun, *, replace: bool = False) -> None:
        """Put a run into this store that was taken out of another, byte by byte. One that is there is replaced, if `replace`.

        Its moments are what they were, that of its last change too, by which it is listed and purged.

        Raises `RunExists`, `ConcurrentExecution` for a run that is being executed, `UnstorableValue`, and the store's errors.
        """
        self._copying.restore(run, replace=replace)

    def close(self) -> None:
        """Commit what waits, then let go of connections and threads. Quiet when closed already."""
        self._held.close()

    def _new_resources(self) -> Resources:
        prepare = partial(schema.prepare, names=self._names, create=self._create)
        connections = Connections(self._url, self._pool, prepare, self.clock, strict=self._strict)
        return Resources(connections, self._sql, self.clock, self._max_transactions)


class AsyncPostgresStore(AsyncReadingVerbs, AsyncSnapshotVerbs):
    """The verbs of a PostgreSQL store for asyncio."""

    def __init__(self, store: PostgresStore, held: Held, requests: Requests) -> None:
        super().__init__(store)
        self._store = store
        self._held = held
        self._requests = AsyncRequests(held, requests)

    def submit(self, request: Request[T], on_late_reply: OnLateReply | None = None) -> asyncio.Future[T]:
        """See `AsyncRunStore.submit` and `PostgresStore.perform`."""
        return self._requests.submit(request, on_late_reply)  # type: ignore[arg-type]

    def room(self) -> asyncio.Future[None] | None:
        """See `AsyncRunStore.room`."""
        return self._held.resources.room()

    async def close(self) -> None:
        """See `PostgresStore.close`."""
        await asyncio.to_thread(self._store.close)
