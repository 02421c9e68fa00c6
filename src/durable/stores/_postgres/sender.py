"""The sender: takes a batch to the database, and each of its jobs to an answer.

What an error means is said by `sqlstates` and `_engine/batches`, and what that is to each job by `batch_results`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import psycopg

from durable._engine import batches
from durable._engine.batches import Verdict
from durable.clocks import Clock
from durable.errors import DurableError
from durable.stores._postgres.batch_results import take_answers, take_lock, take_nothing, take_refusal
from durable.stores._postgres.connections import Connections
from durable.stores._postgres.job import Job, deliver
from durable.stores._postgres.session import Session
from durable.stores._postgres.sqlstates import classify
from durable.stores._postgres.watchdog import Watchdog


class Performer(Protocol):
    """Turns batches into statements. Both verbs give an answer for each job: a value, or an error *as a value*."""

    def perform(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        """Commit a batch of one verb."""
        ...

    def read_back(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        """Say what became of jobs whose reply was lost; `ABSENT` for one that was not committed."""
        ...


class Sender:
    """Sends the batches of one writer, one after the other."""

    def __init__(self, performer: Performer, connections: Connections, clock: Clock, watchdog: Watchdog) -> None:
        self._performer = performer
        self._connections = connections
        self._clock = clock
        self._watchdog = watchdog
        self._session: Session | None = None  # in use, by the batch that is being performed

    def perform(self, batch: list[Job]) -> list[Job]:
        """Perform a batch and answer its jobs; returns those to be tried again after a pause."""
        portions, later = [batch], list[Job]()
        while portions:
            portion = portions.pop()
            try:
                answers = self._attempt(portion)
            except (psycopg.Error, DurableError) as problem:
                sent = isinstance(problem, psycopg.Error)
                briefly = portion[0].verb.waits_briefly
                verdict = classify(getattr(problem, "sqlstate", None), sent=sent, waits_briefly=briefly)
                if verdict is Verdict.UNPREPARED:
                    self._connections.prepares = False
                follow = batches.recover(portion, verdict)
                meaning = self._connections.explain(problem) if isinstance(problem, psycopg.Error) else problem
                for job in portion:
                    job.trouble = meaning
                if verdict is Verdict.REFUSED:
                    self._refuse(follow.failed, problem)
                elif verdict is Verdict.LOCKED:
                    take_lock(follow.failed)
                    deliver(follow.failed)
                else:
                    self.give_up(follow.failed)
                portions += follow.at_once
                later += follow.later
            else:
                portions += self._answer(portion, answers)
        return later

    def _attempt(self, jobs: list[Job]) -> Sequence[Any]:
        first, connections = jobs[0], self._connections
        if len(jobs) == 1:
            deadline, size = first.deadline, first.size
        else:
            deadline, size = batches.first_deadline(jobs), sum(job.size for job in jobs)
        self._session = session = connections.take(deadline)
        try:
            if connections.unfit is not None:
                raise connections.unfit
            now = self._clock.elapsed()
            self._watchdog.watch(session.connection, now + batches.reply_timeout(deadline, now), size)
            return (self._performer.read_back if first.unknown else self._performer.perform)(session, jobs)
        finally:
            self._watchdog.unwatch(session.connection)
            self._session = None
            connections.give_back(session)

    def _answer(self, jobs: list[Job], answers: Sequence[Any]) -> list[list[Job]]:
        """Answer the jobs that have an answer; returns the portions to be sent again at once: what was found absent."""
        if not any(answers):  # all done, with no value to return
            for job, answer in zip(jobs, answers, strict=True):
                job.answer = answer
            deliver(jobs)
            return []
        absent = take_answers(jobs, answers)
        deliver([job for job in jobs if job not in absent] if absent else jobs)
        return [absent] if absent else []

    def _refuse(self, jobs: list[Job], problem: Exception) -> None:
        take_refusal(jobs, problem)
        deliver(jobs)

    def give_up(self, jobs: list[Job], reason: str = "") -> None:
        take_nothing(jobs, self._connections.where, reason)
        deliver(jobs)

    def give_session_back(self) -> None:
        """Give back the session that an interrupted batch was using."""
        session, self._session = self._session, None
        if session is not None:
            self._watchdog.unwatch(session.connection)
            self._connections.give_back(session)
