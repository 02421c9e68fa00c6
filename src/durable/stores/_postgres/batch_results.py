"""What an answer, an error or silence means for each job of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from psycopg.errors import UniqueViolation

from durable.errors import (
    DuplicateRun,
    DurableError,
    OutcomeUnknown,
    RunBeingStarted,
    StoreUnavailable,
    UnstorableValue,
)
from durable.stores._postgres.dropped_rows import DROPPED, dropped_rows
from durable.stores._postgres.job import ABSENT, Job
from durable.stores._postgres.sql.names import DEDUP_SUFFIX

_OF_DATA: Final = ("22", "54")  # classes of SQLSTATE; what they are about in a claim is its input


def take_answers(jobs: Sequence[Job], answers: Sequence[Any]) -> list[Job]:
    """Note on each job its answer; returns those that were found absent and are to be sent again."""
    absent: list[Job] = []
    for job, answer in zip(jobs, answers, strict=True):
        if (
            answer is ABSENT and job.vanished and not job.unknown and job.doubtful
        ):  # an earlier sending may still arrive
            job.failure = OutcomeUnknown(job.run_id, job.what, "rows were dropped")
        elif answer is ABSENT and job.vanished and not job.unknown:
            job.failure = dropped_rows(job.verb.table)
        elif answer is ABSENT:
            job.vanished |= not job.unknown
            job.unknown = False
            absent.append(job)
        elif isinstance(answer, DurableError):
            job.failure = answer
        else:
            job.answer = answer
    return absent


def take_refusal(jobs: Sequence[Job], problem: Exception) -> None:
    """Note on each job that the database refused it."""
    # By its SQLSTATE only: the server's own words may quote the value.
    state = getattr(problem, "sqlstate", None)
    refusal = f"PostgreSQL refused it with SQLSTATE {state} ({type(problem).__name__})"
    taken = str(problem.diag.constraint_name) if isinstance(problem, UniqueViolation) else ""
    for job in jobs:
        if taken.endswith(DEDUP_SUFFIX):
            job.failure = DuplicateRun(job.run_id)
        elif state in DROPPED and job.verb.checks_rows:
            job.failure = dropped_rows(DROPPED[state])
        elif job.verb.carries_value or (state or "").startswith(_OF_DATA):
            job.failure = UnstorableValue(job.what, "$", refusal)
        else:
            job.failure = job.trouble


def take_lock(jobs: Sequence[Job]) -> None:
    """Note on each job that a transaction which has not ended holds what it wants."""
    for job in jobs:
        job.failure = OutcomeUnknown(job.run_id, job.what, "locked") if job.doubtful else RunBeingStarted(job.run_id)


def take_nothing(jobs: Sequence[Job], where: str, reason: str) -> None:
    """Note on each job that no answer came, and that it is given up."""
    for job in jobs:
        if job.doubtful or reason:
            why = reason or (type(job.trouble).__name__ if job.trouble else "no reply")
            job.failure = OutcomeUnknown(job.run_id, job.what, why)
        else:
            job.failure = job.trouble or StoreUnavailable(where, "it did not answer in time")
