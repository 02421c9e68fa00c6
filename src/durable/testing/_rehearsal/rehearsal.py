"""The rehearsal: a store to run on in a test, where time jumps, bodies are scripted, and a run dies where it is told to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self, TypeVar

from durable._common.durations import Duration
from durable._engine.leases import Lease
from durable._engine.queues import Queue
from durable._engine.step_kinds import Isolation
from durable._runtime.async_runs import AsyncRun
from durable._runtime.plan import Plan
from durable._runtime.runs import BlockingRun
from durable.clocks import SystemClock
from durable.codecs import Codec, codec_of
from durable.errors import InvalidArgument
from durable.snapshots import Snapshot
from durable.stores import MemoryStore, PostgresStore
from durable.stores._facades import AsyncStore
from durable.stores.listing import PAGE, Listed, Progress, RunStatus, Stats
from durable.stores.protocol import Listening, QueueingStore, Transaction
from durable.stores.requests import OnLateReply, Request
from durable.testing._rehearsal.clock import JumpingClock
from durable.testing._rehearsal.crashes import Crash, Place
from durable.testing._rehearsal.drivers import AsyncRehearsedDriver, BlockingRehearsedDriver
from durable.testing._rehearsal.held import HeldAsyncRun, HeldBlockingRun
from durable.testing._rehearsal.replaying import Replaying, ReplayNow
from durable.testing._rehearsal.runs import RehearsedRun
from durable.testing._rehearsal.scripts import Script
from durable.testing._rehearsal.stage import Stage

T = TypeVar("T")


class _Moments(SystemClock):
    """Says what moment it is by the clock that jumps, and counts real seconds: in these leases last."""

    def __init__(self, clock: JumpingClock) -> None:
        self.now = clock.now


class Rehearsal:
    """A store for tests, around a real one: `durable.run(..., store=rehearsal)` runs as it would, but

    - sleeps, back-offs and waits take no time: see `clock`;
    - `script` puts values and exceptions in the place of a step's bodies;
    - `crash_at` lets a run die at a place, as if its process had been killed; the next `durable.run` resumes it;
    - with `always_replay`, the workflow is executed again from its journal after each step, so that code which does not do
      the same again is `WorkflowDrift` in an ordinary test. (Bodies are called as often as ever.)

    A `Worker` on it takes what is due by `clock`, which a test moves.

    `store` is `memory()` by default, or a PostgreSQL store; it is not closed. A `timeout=` for a body, and leases, are
    measured in real time. `bodies` are the keys of the steps whose bodies were called, in order.
    """

    def __init__(
        self, store: QueueingStore | None = None, *, clock: JumpingClock | None = None, always_replay: bool = False
    ) -> None:
        if store is not None and not isinstance(store, MemoryStore | PostgresStore):
            raise InvalidArgument(f"a rehearsal is around memory() or a PostgreSQL store, not {type(store).__name__}")
        self._owns_store = store is None
        self.clock = clock or JumpingClock()
        #: By which workers and handles wait: `clock` stands still, unless a run waits.
        self.pace = SystemClock()
        self._store: QueueingStore = MemoryStore(clock=_Moments(self.clock)) if store is None else store
        self.always_replay = always_replay
        self._stage = Stage(self._store, self.clock)
        self.bodies = self._stage.bodies
        self._lock = threading.Lock()
        self._aio: AsyncStore | None = None

    def __repr__(self) -> str:
        return f"<Rehearsal on {self._store!r}>"

    # -- what a test says -------------------------------------------------------------------------------------------

    def script(self, step: str, *outcomes: Any) -> Script:
        """From now on, let the step of this key, or all of this name, have these outcomes instead of calling its body.

        Each call of the body takes the next one, and the last one stays. An exception (or its class) is raised, a value is
        returned, and both go the way of all outcomes: encoded, retried, recorded.
        """
        return self._stage.add_script(step, outcomes)

    def crash_at(self, place: Place, step: str | None = None, *, keeps_lease: bool = False) -> Crash:
        """A block in which one run dies at this place: in the step of this key or name, or in the first that comes there.

        The run ends with `Crashed`, which the block takes; nothing more of it reaches the store. (Its `finally` clauses are
        executed: this is one process.) The next `durable.run` goes on at once, as where a process died on the same machine;
        with `keeps_lease` its lease stays until it ends, as where the machine is gone.
        """
        return self._stage.add_crash(Crash(place, step, keeps_lease=keeps_lease))

    def unplayed(self) -> tuple[str, ...]:
        """The steps that have a script and were never called."""
        return self._stage.unplayed()

    # -- what a run asks --------------------------------------------------------------------------------------------

    def rehearse(self, plan: Plan, *, is_async: bool) -> Any:
        """The outcome of this call of `durable.run`: see there."""
        replaying = Replaying() if self.always_replay else None
        return self._run_async(plan, replaying) if is_async else self._run_blocking(plan, replaying)

    def _run_blocking(self, plan: Plan, replaying: Replaying | None) -> Any:
        while True:
            run = RehearsedRun(self._stage, plan, replaying)
            try:
                return BlockingRun(run.plan, partial(BlockingRehearsedDriver, run)).outcome()
            except ReplayNow:
                continue
            finally:
                run.close()

    async def _run_async(self, plan: Plan, replaying: Replaying | None) -> Any:
        while True:
            run = RehearsedRun(self._stage, plan, replaying)
            try:
                return await AsyncRun(run.plan, partial(AsyncRehearsedDriver, run)).outcome()
            except ReplayNow:
                continue
            finally:
                run.close()

    def hold(self, plan: Plan) -> HeldBlockingRun | HeldAsyncRun:
        """A run of a worker, to be executed under its lease."""
        run = RehearsedRun(self._stage, plan, None)
        return HeldAsyncRun(run) if plan.is_async else HeldBlockingRun(run)

    # -- the store's verbs ------------------------------------------------------------------------------------------

    def perform(self, request: Request[T], on_late_reply: OnLateReply | None = None) -> T:
        """See `RunStore`; branches that wait for what it brings are woken."""
        return self._stage.perform(request, on_late_reply)

    def listen(self, worker: str, wake: Callable[[], object]) -> Listening:
        """See `QueueingStore`."""
        return self._store.listen(worker, wake)

    def write_queue(self, queue: Queue) -> None:
        """See `QueueingStore`."""
        self._store.write_queue(queue)

    def pause_queue(self, name: str, *, paused: bool = True) -> None:
        """See `QueueingStore`."""
        self._store.pause_queue(name, paused=paused)

    def skip(self, until: float) -> bool:
        """Let time jump to what is due next, at `until` elapsed seconds at the latest; False where runs are at work.

        Asked by a worker that holds nothing, and has suspended runs. In a store that was given these are due by its own clock.
        """
        return self._owns_store and self.clock.timeline.skip(until)

    def perform_within(self, request: Request[T], connection: Any, function: str) -> T:
        """See `QueueingStore`."""
        return self._store.perform_within(request, connection, function)

    async def submit_within(self, request: Request[T], connection: Any, function: str) -> T:
        """See `QueueingStore`."""
        return await self._store.submit_within(request, connection, function)

    def transaction(self, lease: Lease, name: str, isolation: Isolation) -> Transaction:
        """See `RunStore`."""
        return self._store.transaction(lease, name, isolation)

    def save(self, id: str, snapshot: Snapshot | Mapping[str, Any], *, force: bool = False) -> None:
        """See `PostgresStore.save`."""
        self._store.save(id, snapshot, force=force)

    def load(self, id: str) -> Snapshot | None:
        """See `SnapshotStore`."""
        return self._store.load(id)

    def replace(self, run_id: str, old: Snapshot, new: Snapshot) -> bool:
        """See `RunStore`."""
        return self._store.replace(run_id, old, new)

    def delete(self, id: str, *, force: bool = False) -> None:
        """See `PostgresStore.delete`."""
        self._store.delete(id, force=force)

    def list(
        self, *, prefix: str = "", limit: int = PAGE, status: RunStatus | None = None, after: Listed | None = None
    ) -> Sequence[Listed]:
        """See `PostgresStore.list`."""
        return self._store.list(prefix=prefix, limit=limit, status=status, after=after)

    def status(self, id: str) -> RunStatus | None:
        """See `PostgresStore.status`."""
        return self._store.status(id)

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
        return self._store.purge(
            older_than=older_than, status=status, queue=queue, metadata=metadata, limit=limit, progress=progress
        )

    def stats(self) -> Stats:
        """See `PostgresStore.stats`."""
        return self._store.stats()

    @property
    def codec(self) -> Codec:
        """The store's own."""
        return codec_of(self._store)

    @property
    def identity(self) -> object:
        """The store's own: a run here is a run there."""
        return self._store.identity

    @property
    def aio(self) -> AsyncStore:
        """The same store for asyncio."""
        with self._lock:
            if self._aio is None:
                self._aio = AsyncStore(self)
            return self._aio

    def close(self) -> None:
        """End the threads, and close the store if it is its own."""
        if self._aio is not None:
            self._aio.shut_down()
        if self._owns_store:
            self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
