"""Performs the jobs of schedules as statements: put, ticked, paused and deleted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from durable.stores._postgres.job import Job
from durable.stores._postgres.schedules import ScheduleRow, Ticking
from durable.stores._postgres.session import Session, in_transaction
from durable.stores._postgres.worker_statements import WorkerStatements

_json: Final = msgspec.json.Encoder()


class ScheduleStatements:
    """Those of `Statements` that schedules ask for. Each job is a transaction of its own: there are few."""

    def __init__(self, sql: Mapping[str, bytes], workers: WorkerStatements) -> None:
        self._sql = sql
        self._workers = workers

    def put(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        """Keep schedules."""
        for job in jobs:
            rows: list[ScheduleRow] = job.payload
            with in_transaction(session, job.max_lock_wait):
                session.queue(self._sql["put_schedules"], {"schedules": _json.encode(rows).decode()})
        return [None for _ in jobs]

    def tick(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        """Begin runs of schedules that stand as they were found, and set when they are due next."""
        return [self._tick_one(session, job) for job in jobs]

    def _tick_one(self, session: Session, job: Job) -> bool:
        ticking: Ticking = job.payload
        with in_transaction(session, job.max_lock_wait):
            told = session.queue(self._sql["tick"], ticking.values())
        has_ticked = bool(told.fetchall())
        if has_ticked and ticking.wakes:
            self._workers.wake_for(session, [row.route for row in ticking.runs])
        return has_ticked

    def pause(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        """Pause schedules, or let them go on."""
        return [self._change_one(session, job, "pause_schedule") for job in jobs]

    def delete(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        """Forget schedules."""
        return [self._change_one(session, job, "delete_schedule") for job in jobs]

    def _change_one(self, session: Session, job: Job, statement: str) -> bool:
        with in_transaction(session, job.max_lock_wait):
            told = session.queue(self._sql[statement], job.payload)
        return bool(told.fetchall())
