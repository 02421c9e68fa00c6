"""The children of runs in memory: started, told of when they end, and found below a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime

from msgspec import UNSET, Raw, structs

from durable._engine.children import DELETED, ChildEnd, refuse_child, render_end
from durable._engine.decisions import Begun
from durable._engine.headers import stamp_header
from durable._engine.starts import NewRun
from durable.records import Kind, Status
from durable.stores._memory.queue import Queue
from durable.stores._memory.run import Run
from durable.stores._memory.signals import Signals
from durable.stores.requests import Signal


class Children:
    """What a store's runs are to one another. The store's lock is held around each call."""

    def __init__(self, runs: dict[str, Run], queue: Queue, signals: Signals) -> None:
        self._runs = runs
        self._queue = queue
        self._signals = signals

    def begin(self, child: NewRun, at: datetime) -> Begun:
        """See `BeginChild`: all but its record."""
        started = self._queue.start(child, at)
        run = self._runs[child.run_id]
        begun = Begun(started, is_own=run.header is not None and run.header.parent == child.parent)
        if not started.is_new and child.parent is not None and refuse_child(child, begun) is None:
            self._signals.take_back(*child.parent)
            self._join(child.run_id, run, at)
        return begun

    def _join(self, run_id: str, run: Run, at: datetime) -> None:
        """A child that is there: it runs again, or is told of once more, or is under way."""
        header = run.header
        assert header is not None  # noqa: S101 -- just found there
        execution = header.execution
        if (
            execution.status in (Status.FAILED, Status.CANCELLED)
            and not execution.needs_decision
            and run.route is not None
        ):
            fresh = stamp_header(header, Status.QUEUED, at)
            fresh = structs.replace(fresh, execution=structs.replace(fresh.execution, crashes=0))
            self._runs[run_id] = replace(run, header=fresh, updated_at=at, due_at=at, awaits=None, cancelled=False)
            self._queue.note(run_id)
            self._queue.wake()
        elif (signal := self.told_of(run)) is not None:
            self._signals.send(signal, at, is_there=True)

    def told_of(self, run: Run, *, with_parent: bool = False, is_deleted: bool = False) -> Signal | None:
        """The signal that tells a run's parent of its end; None where it has none, or has not ended."""
        header = run.header
        if header is None or header.parent is UNSET or header.is_open is not is_deleted:
            return None
        parent, name = header.parent
        if is_deleted:
            return Signal(parent, name, render_end(ChildEnd(DELETED)))
        kind = {Status.COMPLETED: Kind.RESULT, Status.FAILED: Kind.FAILURE}.get(Status(header.execution.status))
        text = next((record.text for record in reversed(run.journal()) if record.kind == kind), None)
        if header.execution.status == Status.CANCELLED and header.cancel is not UNSET:
            with_parent = with_parent or header.cancel.with_parent
        end = ChildEnd(header.execution.status, UNSET if text is None else Raw(text.encode()), with_parent)
        return Signal(parent, name, render_end(end))

    def below(self, run_id: str) -> list[str]:
        """The runs below this one that have not ended, the nearest first; not below one that has come to its own end."""
        return [
            name
            for name in self._all_below(run_id)
            if (header := self._runs[name].header) is not None and header.is_open
        ]

    def _all_below(self, run_id: str) -> Iterator[str]:
        above = self._runs.get(run_id)
        if above is None or above.header is None or above.header.execution.status in (Status.COMPLETED, Status.FAILED):
            return
        for name, run in list(self._runs.items()):
            if run.header is not None and run.header.parent is not UNSET and run.header.parent[0] == run_id:
                yield name
                yield from self._all_below(name)
