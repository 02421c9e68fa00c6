"""Schedules as they stand in their table: what is sent for one, and what is read of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from msgspec import Struct

from durable._engine.schedules import DueSchedule, Scheduled
from durable._engine.starts import Route
from durable.stores._postgres.starts import Rows, StartRow, plan_start
from durable.stores.requests import TickSchedule

_json: Final = msgspec.json.Encoder()


class ScheduleRow(Struct, gc=False):
    """A schedule, as it is put."""

    id: str
    cron: str | None
    zone: str
    every: float | None
    missed: str
    overlap: str
    start: Mapping[str, Any]


class Ticking(Struct, eq=False):
    """The payload of a tick."""

    row: str
    revision: int
    due_at: datetime | None
    next_at: datetime
    runs: list[StartRow]
    last_at: datetime | None
    wakes: bool

    def values(self) -> dict[str, Any]:
        """The parameters of its statement."""
        return {
            "id": self.row,
            "revision": self.revision,
            "due_at": self.due_at,
            "next_at": self.next_at,
            "runs": _json.encode(self.runs).decode(),
            "last_at": self.last_at,
            "last_id": self.runs[-1].id if self.runs else None,
        }


def plan_put(schedules: Sequence[Scheduled], store: Rows) -> list[ScheduleRow]:
    """What is sent for these schedules, in the order of their rows."""
    return sorted((_row(one, store.prefix) for one in schedules), key=lambda row: row.id)


def plan_tick(tick: TickSchedule, store: Rows) -> Ticking:
    """What is sent for a tick."""
    due, runs = tick.due, tick.runs
    rows = plan_start(runs, store).rows
    last_at = runs[-1].tick_at if runs else None
    name = store.prefix + due.scheduled.name
    return Ticking(name, due.revision, due.due_at, tick.due_at, rows, last_at, tick.wakes)


def read_due(text: str | None, prefix: str) -> tuple[list[DueSchedule], float | None]:
    """The schedules that a poll has found due, and in how many seconds the next one is; as it tells them."""
    if text is None:
        return [], None
    told = msgspec.json.decode(text)
    now = read_moment(told["now"])
    assert now is not None  # noqa: S101 -- the statement's own
    due = [
        DueSchedule(read_scheduled(row, prefix), row["revision"], read_moment(row["due_at"]), now, row["is_open"])
        for row in told["due"] or ()
    ]
    return due, told["next_in"]


def read_scheduled(row: Mapping[str, Any], prefix: str) -> Scheduled:
    """What a row of the table says."""
    start = row["start"]
    return Scheduled(
        name=row["id"].removeprefix(prefix),
        cron=row["cron"],
        zone=row["zone"],
        every=row["every"],
        missed=row["missed"],
        overlap=row["overlap"],
        route=Route(start["queue"], start["workflow"], start["version"]),
        function=start["function"],
        input=start["input"],
        input_hash=start["inputHash"],
        takes_tick=start["takesTick"],
    )


def read_moment(text: str | None) -> datetime | None:
    """A moment, as PostgreSQL writes it in JSON."""
    return None if text is None else datetime.fromisoformat(text).astimezone(UTC)


def _row(scheduled: Scheduled, prefix: str) -> ScheduleRow:
    route = scheduled.route
    start = {
        "queue": route.queue,
        "workflow": route.workflow,
        "version": route.version,
        "function": scheduled.function,
        "input": scheduled.input,
        "inputHash": scheduled.input_hash,
        "takesTick": scheduled.takes_tick,
    }
    return ScheduleRow(
        prefix + scheduled.name,
        scheduled.cron,
        scheduled.zone,
        scheduled.every,
        scheduled.missed,
        scheduled.overlap,
        start,
    )
