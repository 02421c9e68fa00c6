"""Performs the jobs of workers as statements: runs that are started, and taken when they are due."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec
import psycopg

from durable.clocks import Clock
from durable.stores._postgres.job import Job
from durable.stores._postgres.polls import Due, Polling
from durable.stores._postgres.session import Session, begin_another, in_transaction
from durable.stores._postgres.starts import Starting, line_of, read_started
from durable.stores._postgres.together import Reply
from durable.stores._postgres.turns import Turns

COMMITTED: Final = "COMMIT"  # what a transaction is answered that is committed
#: Before what a crash may take with it.
NOT_FLUSHED: Final = b"SET LOCAL synchronous_commit = off"
# Its estimates speak for a plan of its own each time, and planning a poll takes several times as long as executing it.
_PLANNED_ONCE: Final = b"SET LOCAL plan_cache_mode = force_generic_plan"
# Of a table without statistics the planner believes that half of all signals are unnoticed, and reads and sorts them all.
_BY_INDEX: Final = b"SET LOCAL enable_seqscan = off"
_BY_CHOICE: Final = b"SET LOCAL enable_seqscan TO DEFAULT"

_json: Final = msgspec.json.Encoder()


class WorkerStatements:
    """Those of `Statements` that workers, and starts for them, ask for."""

    def __init__(self, sql: Mapping[str, bytes], clock: Clock) -> None:
        self._sql = sql
        self._clock = clock
        self._turns = Turns(sql, clock)

    def enqueue(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        """Store the runs that were started, and wake workers for them."""
        startings: list[Starting] = [job.payload for job in jobs]
        rows = [row for starting in startings for row in starting.rows]
        for n, row in enumerate(rows):
            row.n = n
        values = {"runs": _json.encode(rows).decode()}
        due = [line_of(row.route) for row in rows if row.at is None and not row.delay]
        new, found, committed = Reply(), Reply(), Reply()
        try:
            with in_transaction(session, jobs[0].max_lock_wait):
                new = session.queue(self._sql["enqueue"], values)
                found = session.queue(self._sql["read_started"], values)
                if due:  # in a transaction of its own, since a notification makes commits wait for one another
                    committed = begin_another(session)
                    session.queue(NOT_FLUSHED)
                    session.queue(self._sql["wake"], {"routes": list(set(due)), "count": len(due)})
        except psycopg.Error:
            if committed.statusmessage != COMMITTED:
                raise
            # The runs are started by now, whatever became of the notification: polls find them.
        return read_started(startings, {n for (n,) in new}, found.fetchall(), startings[0].prefix)

    def wake_for(self, session: Session, due: Sequence[str]) -> None:
        """Wake workers for what is due: in a transaction of its own, since a notification makes commits wait for one another.

        The runs are started by now, whatever becomes of this: polls find them.
        """
        if due:
            with suppress(psycopg.Error), in_transaction(session):
                session.queue(NOT_FLUSHED)
                session.queue(self._sql["wake"], {"routes": list(set(due)), "count": len(due)})

    def wake(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        """Wake workers for what is due, whatever started it."""
        with in_transaction(session):
            session.queue(NOT_FLUSHED)
            session.queue(self._sql["wake_due"], {"first": jobs[0].payload})
        return [None for _ in jobs]

    def poll(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        """Take what is due, for one worker after the other."""
        return [self._poll_one(session, job) for job in jobs]

    def _poll_one(self, session: Session, job: Job) -> Due:
        """First what waits for its turn, or what is due in the queues without limits: the worker's routes take turns at it."""
        polling: Polling = job.payload
        known, count = polling.limited, polling.poll.count
        # What is given back, and whose owners have died, goes first: the second half knows of it.
        is_first = not job.doubtful and not polling.dead
        is_first = is_first and any(route.queue in polling.poll.limited for route in polling.poll.routes[:1])
        taken = self._turns.take(session, polling, known, count) if is_first else None
        try:
            due = self._poll_due(session, job, count - (0 if taken is None else len(taken.rows)))
        except BaseException:
            job.doubtful = job.doubtful or taken is not None
            raise
        if taken is None and due.limited:
            try:
                taken = self._turns.take(session, polling, due.limited, count - len(due.found))
            except BaseException:  # what was taken before is given back by the next sending
                job.doubtful = True
                raise
        if taken is not None:
            due.add(polling, taken.rows, taken.next_in, session.server, taken.sent)
            due.held = [*due.held, *taken.held]
        return due

    def _poll_due(self, session: Session, job: Job, count: int) -> Due:
        polling: Polling = job.payload
        polling.sent = self._clock.elapsed()
        if job.doubtful:
            polling.send_again()
        values, held, woken = polling.values() | {"count": count}, None, None
        with in_transaction(session):
            is_first = not polling.dead
            if is_first and polling.poll.says_idle:
                session.queue(NOT_FLUSHED)
                session.queue(self._sql["say_idle"], values)
                begin_another(session)
            session.queue(_PLANNED_ONCE)
            if is_first and polling.poll.looks_for_dead:  # with the poll: an idle worker is to cost one transaction
                session.queue(_BY_INDEX)
                session.queue(self._sql["notice"], {})
                woken = session.queue(self._sql["wake_suspended"], {})
                session.queue(_BY_CHOICE)
            if job.doubtful:  # what was taken by sendings whose replies were lost
                session.queue(self._sql["recall"], values)
                session.queue(self._sql["recall_members"], values)
            if polling.dead:
                session.queue(self._sql["expire"], values)
            due = session.queue(self._sql["poll"], values)
            if is_first and polling.poll.looks_for_dead:
                held = session.queue(self._sql["held_near"], values)
        mine = polling.routes if polling.poll.count else ()
        self.wake_for(session, [route for (route,) in woken or () if route not in mine])
        return Due(polling, due.fetchall(), [] if held is None else held.fetchall(), session.server)
