"""The stage of a rehearsal: its store and clock, what a test has set up, and the runs that are being executed on it."""

from __future__ import annotations

import threading
from typing import Any, Protocol, TypeAlias, TypeVar

from durable.stores.protocol import QueueingStore
from durable.stores.requests import Cancel, OnLateReply, Request, Signal
from durable.testing._rehearsal.clock import JumpingClock
from durable.testing._rehearsal.crashes import Crash, Place
from durable.testing._rehearsal.scripts import Script
from durable.testing._rehearsal.watches import Watch

T = TypeVar("T")

RunKey: TypeAlias = tuple[object, str]
"""A run's store, by its identity, and its id."""


class OnStage(Protocol):
    """A run that is being executed."""

    watch: Watch

    def on_cancel(self, reason: str | None, *, force: bool) -> None:
        """The run was cancelled: it need not wait to hear so."""
        ...


class Stage:
    """What the runs of one rehearsal share."""

    def __init__(self, store: QueueingStore, clock: JumpingClock) -> None:
        self.store = store
        self.clock = clock
        #: The keys of the steps whose bodies were called, in order.
        self.bodies: list[str] = []
        self._scripts: dict[str, Script] = {}
        self._crashes: list[Crash] = []
        self._runs: dict[RunKey, OnStage] = {}
        self._lock = threading.Lock()

    def add_script(self, step: str, outcomes: tuple[Any, ...]) -> Script:
        """Let the step of this key, or all of this name, have these outcomes from now on."""
        script = self._scripts[step] = Script(step, outcomes)
        return script

    def add_crash(self, crash: Crash) -> Crash:
        """Let a run die of this crash, once it is armed."""
        self._crashes.append(crash)
        return crash

    def unplayed(self) -> tuple[str, ...]:
        """The steps that have a script and were never called."""
        return tuple(step for step, script in self._scripts.items() if not script.played)

    def find_script(self, key: str, name: str) -> Script | None:
        return self._scripts.get(key) or self._scripts.get(name)

    def find_crash(self, place: Place, names: tuple[str, ...]) -> Crash | None:
        """The crash that strikes here, disarmed."""
        with self._lock:
            for crash in self._crashes:
                if crash.strikes(place, names):
                    crash.armed = False
                    return crash
            return None

    def register(self, key: RunKey, run: OnStage) -> None:
        """An execution has begun."""
        with self._lock:
            self._runs[key] = run

    def unregister(self, key: RunKey, run: OnStage) -> None:
        """An execution has ended, if it had begun."""
        with self._lock:
            if self._runs.get(key) is run:
                del self._runs[key]

    def find_watch(self, key: RunKey) -> Watch | None:
        """The watch of a run that is being executed."""
        with self._lock:
            run = self._runs.get(key)
            return None if run is None else run.watch

    def perform(self, request: Request[T], on_late_reply: OnLateReply | None = None) -> T:
        """See `RunStore.perform`; branches that wait for what it brings are woken."""
        answer = self.store.perform(request, on_late_reply)
        if isinstance(request, Cancel) and answer:
            with self._lock:
                run = self._runs.get((self.store.identity, request.run_id))
            if run is not None:
                run.on_cancel(request.reason, force=request.force)
        if isinstance(request, Signal | Cancel):
            self.clock.timeline.poke()
        return answer
