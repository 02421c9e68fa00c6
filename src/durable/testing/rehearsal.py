"""The rehearsal: a store to run on in a test, where time jumps, bodies are scripted, and a run dies where it is told to."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Self, TypeAlias, TypeVar

from durable._common.durations import Duration
from durable._engine.leases import Lease
from durable._runtime.async_runs import AsyncRun
from durable._runtime.plan import Plan
from durable._runtime.runs import BlockingRun
from durable.codecs import Codec
from durable.errors import InvalidArgument
from durable.snapshots import Snapshot
from durable.stores import MemoryStore, PostgresStore, memory
from durable.stores._facades import AsyncStore
from durable.stores.listing import PAGE, Listed, Progress, RunStatus, Stats
from durable.stores.protocol import Isolation, Transaction
from durable.stores.requests import Cancel, OnLateReply, Request, Signal
from durable.testing._drivers import AsyncRehearsedDriver, BlockingRehearsedDriver
from durable.testing._part import Again, Part, Replays
from durable.testing._rehearsal.clock import JumpingClock
from durable.testing._rehearsal.crashes import Crash, Place
from durable.testing._rehearsal.scripts import Script
from durable.testing._rehearsal.watches import Watch

__all__ = ["LeasedStore", "Rehearsal"]

T = TypeVar("T")

LeasedStore: TypeAlias = MemoryStore | PostgresStore
_Run: TypeAlias = tuple[object, str]


class Rehearsal:
    """A store for tests, around a real one: `durable.run(..., store=rehearsal)` runs as it would, but

    - sleeps, back-offs and waits take no time: see `clock`;
    - `script` puts values and exceptions in the place of a step's bodies;
    - `crash_at` lets a run die at a place, as if its process had been killed; the next `durable.run` resumes it;
    - with `always_replay`, the workflow is executed again from its journal after each step, so that code which does not do
      the same again is `WorkflowDrift` in an ordinary test. (Bodies are called as often as ever.)

    `store` is `memory()` by default, or a PostgreSQL store; it is not closed. A `timeout=` for a body, and leases, are
    measured in real time. `bodies` are the keys of the steps whose bodies were called, in order.
    """

    def __init__(
        self,
        store: LeasedStore | None = None,
        *,
        clock: JumpingClock | None = None,
        always_replay: bool = False,
    ) -> None:
        if store is not None and not isinstance(store, MemoryStore | PostgresStore):
            raise InvalidArgument(f"a rehearsal is around memory() or a PostgreSQL store, not {type(store).__name__}")
        self._store: LeasedStore = memory() if store is None else store
        self._owns = store is None
        self.clock = clock or JumpingClock()
        self.always_replay = always_replay
        self.bodies: list[str] = []
        self._scripts: dict[str, Script] = {}
        self._crashes: list[Crash] = []
        self._parts: dict[_Run, Part] = {}
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
        script = Script(step, outcomes)
        self._scripts[step] = script
        return script

    def crash_at(self, place: Place, step: str | None = None, *, keeps_lease: bool = False) -> Crash:
        """A block in which one run dies at this place: in the step of this key or name, or in the first that comes there.

        The run ends with `Crashed`, which the block takes; nothing more of it reaches the store. (Its `finally` clauses are
        executed: this is one process.) The next `durable.run` goes on at once, as where a process died on the same machine;
        with `keeps_lease` its lease stays until it ends, as where the machine is gone.
        """
        crash = Crash(place, step, keeps_lease=keeps_lease)
        self._crashes.append(crash)
        return crash

    def unplayed(self) -> tuple[str, ...]:
        """The steps that have a script and were never called."""
        return tuple(step for step, script in self._scripts.items() if not script.played)

    # -- what a run asks --------------------------------------------------------------------------------------------

    def rehearse(self, plan: Plan, *, is_async: bool) -> Any:
        """The outcome of this call of `durable.run`: see there."""
        replays = Replays() if self.always_replay else None
        return self._awaited(plan, replays) if is_async else self._called(plan, replays)

    def _called(self, plan: Plan, replays: Replays | None) -> Any:
        while True:
            part = Part(self, self._store, plan, replays)
            try:
                return BlockingRun(part.plan, partial(BlockingRehearsedDriver, part)).outcome()
            except Again:
                continue
            finally:
                part.close()

    async def _awaited(self, plan: Plan, replays: Replays | None) -> Any:
        while True:
            part = Part(self, self._store, plan, replays)
            try:
                return await AsyncRun(part.plan, partial(AsyncRehearsedDriver, part)).outcome()
            except Again:
                continue
            finally:
                part.close()

    def script_of(self, key: str, name: str) -> Script | None:
        """The script for a step."""
        return self._scripts.get(key) or self._scripts.get(name)

    def crash_of(self, place: Place, names: tuple[str, ...]) -> Crash | None:
        """The crash that strikes here, disarmed."""
        with self._lock:
            for crash in self._crashes:
                if crash.strikes(place, names):
                    crash.armed = False
                    return crash
            return None

    def on_stage(self, run: _Run, part: Part) -> None:
        """An execution has begun."""
        with self._lock:
            self._parts[run] = part

    def off_stage(self, run: _Run, part: Part) -> None:
        """An execution has ended, if it had begun."""
        with self._lock:
            if self._parts.get(run) is part:
                del self._parts[run]

    def watch_of(self, run: _Run) -> Watch | None:
        """The watch of a run that is being executed."""
        with self._lock:
            part = self._parts.get(run)
            return None if part is None else part.watch

    # -- the store's verbs ------------------------------------------------------------------------------------------

    def perform(self, request: Request[T], on_late_reply: OnLateReply | None = None) -> T:
        """See `RunStore`; what waits for it is woken."""
        answer = self._store.perform(request, on_late_reply)
        if isinstance(request, Cancel) and answer:
            self._cancelled(request.run_id)
        if isinstance(request, Signal | Cancel):
            self.clock.timeline.poke()
        return answer

    def _cancelled(self, run_id: str) -> None:
        with self._lock:
            part = self._parts.get((self.identity, run_id))
        if part is not None:
            part.cancelled()

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
        self, *, older_than: Duration, status: RunStatus | None = "completed", progress: Progress | None = None
    ) -> int:
        """See `PostgresStore.purge`."""
        return self._store.purge(older_than=older_than, status=status, progress=progress)

    def stats(self) -> Stats:
        """See `PostgresStore.stats`."""
        return self._store.stats()

    @property
    def codec(self) -> Codec:
        """The store's own."""
        return self._store.codec

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
        """End the threads, and close the store if nobody else gave it."""
        if self._aio is not None:
            self._aio.shut_down()
        if self._owns:
            self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
