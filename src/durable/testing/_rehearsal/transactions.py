"""A store's transaction, with the place to die that a checkpoint has."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from durable.records import Record
from durable.stores.protocol import Transaction
from durable.stores.requests import OnLateReply
from durable.testing._rehearsal.watches import Watch

T = TypeVar("T")


class RehearsedTransaction:
    """A `Transaction` around the store's own; `on_commit` is called once the record is committed."""

    def __init__(self, transaction: Transaction, watch: Watch, on_commit: Callable[[Record], None]) -> None:
        self._transaction = transaction
        self._watch = watch
        self._on_commit = on_commit

    def begin(self, seconds: float) -> bool:
        """See `Transaction`."""
        return self._transaction.begin(seconds)

    def call(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """See `Transaction`."""
        return self._transaction.call(fn, args)

    def commit(self, record: Record, on_late_reply: OnLateReply | None = None) -> None:
        """See `Transaction`."""
        with self._watch.at_work():
            self._transaction.commit(record, on_late_reply)
        self._on_commit(record)

    def rollback(self) -> None:
        """See `Transaction`."""
        self._transaction.rollback()

    def abandon(self) -> None:
        """See `Transaction`."""
        self._transaction.abandon()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """See `Transaction`."""
        return self._transaction.submit(work)
