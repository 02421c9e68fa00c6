"""A store's transaction, with the place to die that a checkpoint has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from durable.records import Record
from durable.stores.protocol import Transaction
from durable.stores.requests import OnLateReply
from durable.testing._rehearsal.watches import Watch


class RehearsedTransaction:
    """The store's own `Transaction`, but that `on_commit` is called once the record is committed."""

    def __init__(self, transaction: Transaction, watch: Watch, on_commit: Callable[[Record], None]) -> None:
        self._transaction = transaction
        self._watch = watch
        self._on_commit = on_commit

    def __getattr__(self, verb: str) -> Any:
        return getattr(self._transaction, verb)

    def commit(self, record: Record, on_late_reply: OnLateReply | None = None) -> None:
        with self._watch.at_work():
            self._transaction.commit(record, on_late_reply)
        self._on_commit(record)
