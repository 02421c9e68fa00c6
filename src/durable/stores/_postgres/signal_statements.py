"""Performs the jobs of signals as statements: those that are sent, and those that are received."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import psycopg

from durable.stores._postgres.job import ABSENT, Job
from durable.stores._postgres.session import Session, begin_another, in_transaction
from durable.stores._postgres.together import Reply
from durable.stores._postgres.worker_statements import COMMITTED, NOT_FLUSHED, WorkerStatements
from durable.stores._postgres.write_rows import number_rows


class SignalStatements:
    """Those of `Statements` that signals ask for. `workers` wakes what is due."""

    def __init__(self, sql: Mapping[str, bytes], workers: WorkerStatements) -> None:
        self._sql = sql
        self._workers = workers

    def signal(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        """Send them, and make due what is suspended for them."""
        values, committed, woken = (number_rows(jobs),), Reply(), Reply()
        rows = Reply()
        try:
            with in_transaction(session, jobs[0].max_lock_wait if jobs[0].verb.waits_briefly else None):
                rows = session.queue(self._sql["signal_batch"], values)
                committed = begin_another(session)
                session.queue(NOT_FLUSHED)
                woken = session.queue(self._sql["wake_awaiting"], values)
        except psycopg.Error:
            if committed.statusmessage != COMMITTED:
                raise
            # The signals are sent by now, whatever became of the runs that wait for them: polls notice them.
        self._workers.wake_for(session, [route for (route,) in woken])
        return read_signalled(rows, len(jobs))

    def receive(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        """The first that each has not received; None where there is none."""
        found = {n: tuple(signal) for n, *signal in session.execute(self._sql["receive_batch"], (number_rows(jobs),))}
        return [found.get(n) for n in range(len(jobs))]


def read_signalled(rows: Iterable[tuple[Any, ...]], count: int) -> list[Any]:
    """Of each signal whether its run is there; `ABSENT` for one that is to be there, and is not."""
    told = {n: is_there if is_settled else ABSENT for n, is_there, is_settled in rows}
    return [told[n] for n in range(count)]
