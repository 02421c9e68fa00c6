"""Whose body is running here: a transaction may be begun inside the body of another one."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Final, NamedTuple

from durable.errors import TransactionMisused


class RunningBody(NamedTuple):
    """The body of a transaction, as one that is begun in it sees it."""

    #: The step's name.
    step: str
    #: The database.
    where: str
    #: The row of the transaction's lease.
    row: str
    #: Whether the transaction has not ended.
    is_open: Callable[[], bool]
    #: The body in which it was begun itself.
    around: RunningBody | None


#: The body that is running here, if one is.
innermost: Final[ContextVar[RunningBody | None]] = ContextVar("durable_within_transaction", default=None)


def is_nested() -> bool:
    """Whether this code runs in the body of a transaction."""
    body = innermost.get()
    return body is not None and body.is_open()


def refuse_own_run(where: str, row: str, what: str) -> None:
    """Raise `TransactionMisused` in the body of a transaction under this row's lease: it would wait for its own end."""
    body = innermost.get()
    while body is not None:
        if body.is_open() and (body.where, body.row) == (where, row):
            raise TransactionMisused(body.step, f"the body {what} the run that it is a step of, whose lease it holds")
        body = body.around
