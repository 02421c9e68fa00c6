"""A transaction that the body has prepared (`PREPARE TRANSACTION`), which would hold the lease for ever."""

from __future__ import annotations

import logging
from typing import Final

import psycopg
from psycopg.sql import SQL, Literal

from durable._common.reports import say
from durable.errors import TransactionMisused
from durable.stores._postgres.session import Session

_FIND: Final = b"SELECT gid FROM pg_catalog.pg_prepared_xacts WHERE transaction = %s::text::xid"
_XID: Final = 0xFFFFFFFF  # of a transaction's number; the rest is an epoch

_log = logging.getLogger("durable")


def roll_back_prepared(session: Session, number: int, step: str) -> TransactionMisused | None:
    """Roll back the prepared transaction of this number; the misuse that it was, None when there was none."""
    try:
        prepared = session.execute(_FIND, (number & _XID,)).fetchall()
        for (name,) in prepared:
            session.execute(SQL("ROLLBACK PREPARED {}").format(Literal(name)).as_bytes(session.connection))
    except psycopg.Error as problem:
        message = "step %r: a prepared transaction could not be looked for (%s)"
        say(_log, logging.WARNING, message, step, problem.sqlstate)
        return None
    if not prepared:
        return None
    return TransactionMisused(
        step, "the body prepared the transaction (PREPARE TRANSACTION), which has been rolled back"
    )
