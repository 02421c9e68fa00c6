"""What the database's errors mean for a step's transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import psycopg

from durable._engine.batches import Verdict
from durable._engine.leases import Lease
from durable.errors import DurableError, LeaseLost, StoreUnavailable, TransactionMisused, UnstorableValue
from durable.stores._postgres.dropped_rows import DROPPED, dropped_rows
from durable.stores._postgres.error_messages import describe
from durable.stores._postgres.guarded import ENDED
from durable.stores._postgres.job import Job
from durable.stores._postgres.lease_checks import NOT_ITS_OWN
from durable.stores._postgres.sqlstates import classify
from durable.stores.protocol import CommitRefused, RolledBack

LOST: Final = "the connection was lost before the transaction was committed"

_NOT_NULL: Final = "23502"
_NOT_UNIQUE: Final = "23505"
_READ_ONLY: Final = "25006"


def errors_behind(problem: BaseException) -> Iterator[psycopg.Error]:
    """The database's errors among an exception and its causes."""
    seen: set[int] = set()
    at: BaseException | None = problem
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        if isinstance(at, psycopg.Error):
            yield at
        at = at.__cause__ or at.__context__


def is_conflict(error: psycopg.Error) -> bool:
    """Whether the transaction was in conflict with another one, and may be done anew."""
    return error.sqlstate is not None and classify(error.sqlstate) is Verdict.CONFLICT


def is_exhausted(error: psycopg.Error) -> bool:
    """Whether the server is out of something, such as disk space, which is not the body's fault."""
    return error.sqlstate is not None and error.sqlstate.startswith("53")


def explain_refusal(
    problem: psycopg.Error, job: Job, step: str, explain: Callable[[psycopg.Error], DurableError], *, is_written: bool
) -> Exception:
    """The error for a refused record, or a refused COMMIT after it if the record `is_written`: nothing was committed."""
    state = problem.sqlstate
    match classify(state):
        case Verdict.CONFLICT:
            return RolledBack(problem)
        case _ if state == _READ_ONLY:
            return TransactionMisused(step, "the body made its transaction read-only, so no record can be written")
        case Verdict.PASSING | Verdict.UNPREPARED:
            return RolledBack(explain(problem))
        case _ if is_written:  # what was deferred until the COMMIT, like a constraint of the user's
            return CommitRefused(problem)
        case _ if state == _NOT_NULL:
            return TransactionMisused(step, ENDED)
        case _ if state == _NOT_UNIQUE:
            return LeaseLost(job.run_id, NOT_ITS_OWN)
        case _ if DROPPED.get(state or "") == "journal":  # by a trigger or a rule: the record was not written
            return dropped_rows("journal")
        case Verdict.REFUSED:
            return UnstorableValue(job.what, "$", f"PostgreSQL refused it with SQLSTATE {state}")
        case _:
            return explain(problem)


def explain_loss(problem: psycopg.Error | None, where: str, lease: Lease) -> RolledBack:
    """The error to raise when the connection was lost, and the transaction with it."""
    why = "" if problem is None else f" ({describe(problem)})"
    bounds = (
        f"A body may leave it idle for as long as the lease lasts, {lease.seconds:g} s, or the server's "
        f"idle_in_transaction_session_timeout, and take as long as its transaction_timeout, if it has them"
    )
    return RolledBack(StoreUnavailable(where, f"{LOST}{why}. {bounds}"))
