"""Whose body is running here: a transaction may be begun inside the body of another one."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final, Protocol

from durable.errors import TransactionMisused


class OpenTransaction(Protocol):
    """A transaction, as one that is begun in its body sees it."""

    @property
    def name(self) -> str:
        """The step's name."""
        ...

    @property
    def around(self) -> OpenTransaction | None:
        """The transaction in whose body this one is called."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether it was begun, and has not ended."""
        ...

    def holds(self, where: str, row: str) -> bool:
        """Whether its lease has this row, in this database."""
        ...


#: The transaction whose body is running here, if one is.
innermost: Final[ContextVar[OpenTransaction | None]] = ContextVar("durable_within_transaction", default=None)


def is_nested() -> bool:
    """Whether this code runs in the body of a transaction."""
    around = innermost.get()
    return around is not None and around.is_open


def refuse_own_run(where: str, row: str, what: str) -> None:
    """Raise `TransactionMisused` in the body of a transaction under this row's lease: it would wait for its own end."""
    around = innermost.get()
    while around is not None:
        if around.is_open and around.holds(where, row):
            raise TransactionMisused(around.name, f"the body {what} the run that it is a step of, whose lease it holds")
        around = around.around
