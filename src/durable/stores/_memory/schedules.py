"""The schedules in memory: kept, found due, and ticked by one of the workers that find them so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from msgspec import Struct
from msgspec.structs import replace

from durable._engine.schedules import OF_RETENTION, DueSchedule, Scheduled
from durable._engine.starts import NewRun
from durable.stores._memory.run import Run
from durable.stores.reading import ScheduleLine, schedule_line
from durable.stores.requests import TickSchedule


class _Stored(Struct, frozen=True):
    scheduled: Scheduled
    revision: int = 1
    paused: bool = False
    due_at: datetime | None = None
    last_at: datetime | None = None
    last_id: str | None = None


class Schedules:
    """A store's schedules by their names. The store's lock is held around each call."""

    def __init__(self, runs: Mapping[str, Run]) -> None:
        self.runs = runs
        self._stored: dict[str, _Stored] = {}

    def put(self, schedules: Sequence[Scheduled]) -> None:
        """See `PutSchedules`."""
        for given in schedules:
            there = self._stored.get(given.name)
            if there is None:
                self._stored[given.name] = _Stored(given)
            elif there.scheduled != given:
                due_at = there.due_at if there.scheduled.timetable == given.timetable else None
                changed = replace(there, scheduled=given, revision=there.revision + 1, due_at=due_at)
                self._stored[given.name] = changed

    def find_due(self, names: Sequence[str], at: datetime) -> tuple[list[DueSchedule], float | None]:
        """Those of these names that are due at this moment, and in how many seconds the next one is."""
        due, later = list[DueSchedule](), list[datetime]()
        for stored in (self._stored[name] for name in names if name in self._stored):
            if stored.paused:
                continue
            is_open, scheduled = self._is_open(stored.last_id), stored.scheduled
            if stored.due_at is not None and stored.due_at > at:
                later.append(stored.due_at)
            elif stored.due_at is None or scheduled.overlap != "queue" or not is_open:
                due.append(DueSchedule(scheduled, stored.revision, stored.due_at, at, is_open))
        return due, (min(later) - at).total_seconds() if later else None

    def tick(self, tick: TickSchedule, start: Callable[[NewRun], object]) -> bool:
        """See `TickSchedule`; `start` starts a run."""
        due = tick.due
        there = self._stored.get(due.scheduled.name)
        if there is None or there.paused or (there.revision, there.due_at) != (due.revision, due.due_at):
            return False
        last_id, last_at = there.last_id, there.last_at
        for run in tick.runs:
            start(run)
            last_id, last_at = run.run_id, run.tick_at
        changed = replace(there, due_at=tick.due_at, last_id=last_id, last_at=last_at)
        self._stored[due.scheduled.name] = changed
        return True

    def pause(self, name: str, *, paused: bool) -> bool:
        """See `PauseSchedule`."""
        if (there := self._stored.get(name)) is None:
            return False
        if there.paused != paused:
            changed = replace(there, revision=there.revision + 1, paused=paused, due_at=None)
            self._stored[name] = changed
        return True

    def delete(self, name: str) -> bool:
        """See `DeleteSchedule`."""
        return self._stored.pop(name, None) is not None

    def lines(self) -> list[ScheduleLine]:
        """See `PostgresStore.schedules`."""
        return [
            schedule_line(one.scheduled, one.paused, one.due_at, one.last_at, one.last_id)
            for name, one in sorted(self._stored.items())
            if name != OF_RETENTION
        ]

    def _is_open(self, run_id: str | None) -> bool:
        run = None if run_id is None else self.runs.get(run_id)
        return run is not None and run.header is not None and run.header.is_open
