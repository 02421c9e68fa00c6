"""Bugs, planted in a worker before it begins, which the judge must find."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from durable.records import Kind
from durable.stores._postgres import requests, schema
from durable.stores._postgres import store as stores
from durable.stores._postgres.claims import Found
from durable.stores._postgres.job import ABSENT
from durable.stores._postgres.jobs import checkpoint_job
from durable.stores._postgres.sql.loader import load_statements
from durable.stores._postgres.sql.names import Names
from durable.stores._postgres.statements import Statements
from durable.stores._postgres.store import AsyncPostgresStore, PostgresStore
from durable.stores._postgres.transaction import PostgresTransaction
from durable.stores.requests import Checkpoint, Request

_LATE: Final = 0.02  # seconds by which something is done too late


def planted(name: str) -> None:
    """Plant this one in this process; none if it has no name."""
    if name:
        PLANTS[name]()


def no_fence() -> None:
    """A checkpoint is written whoever holds the lease."""
    _other_sql("checkpoint", b"AND owner_token = %s", b"AND %s::text IS NOT NULL")
    _other_sql("checkpoint_batch", b"AND lease.owner_token = asked.token", b"")


def no_index() -> None:
    """Nobody sees that the index is missing, without which a take-over does not wait for writes in flight."""
    _replace(schema, "_KEYS", schema._KEYS[:-1])


def acknowledged_before_commit() -> None:
    """A checkpoint is acknowledged, and written a little later."""

    perform, submit = PostgresStore.perform, AsyncPostgresStore.submit

    def early(store: PostgresStore, request: Request[Any], on_late_reply: Any = None) -> Any:
        if not isinstance(request, Checkpoint):
            return perform(store, request, on_late_reply)
        threading.Timer(_LATE, perform, [store, request]).start()
        return None

    def awaited(aio: AsyncPostgresStore, request: Request[Any], on_late_reply: Any = None) -> asyncio.Future[Any]:
        return (
            _done(early(aio._store, request))
            if isinstance(request, Checkpoint)
            else submit(aio, request, on_late_reply)
        )

    _replace(PostgresStore, "perform", early)
    _replace(AsyncPostgresStore, "submit", awaited)


def lost_reply_trusted() -> None:
    """A write whose reply was lost is believed to be there."""
    fate = Statements._fate

    def trusting(self: Statements, *told: Any) -> Any:
        answer = fate(self, *told)
        return None if answer is ABSENT else answer

    _replace(Statements, "_fate", trusting)


def taken_from_the_living() -> None:
    """Every owner is taken for dead."""
    _replace(requests, "is_dead", lambda *_: True)


def last_record_overlooked() -> None:
    """Whoever takes a run over does not see its last record."""
    told = Found.reply

    def forgetting(found: Found) -> Any:
        if found.lease is not None and found.records and found.records[-1].kind == Kind.STEP:
            found.records.pop()
        return told(found)

    _replace(Found, "reply", forgetting)


def transaction_in_two() -> None:
    """A transaction's effect is committed first, and its record afterwards."""

    def commit(self: PostgresTransaction, record: Any, _late: Any = None) -> None:
        session, lease = self._session, self._lease
        assert session is not None
        session.connection.execute(b"COMMIT", prepare=False)
        time.sleep(_LATE)
        nonce = checkpoint_job(lease, record).payload.nonce
        row = (record.seq, record.key, record.kind, nonce, record.text, lease.row, lease.token)
        session.connection.execute(self._owner.sql["checkpoint"], row, prepare=False)
        self._end()

    _replace(PostgresTransaction, "commit", commit)


def beginning_not_recorded() -> None:
    """That an at-most-once body begins is not recorded."""
    perform, submit = PostgresStore.perform, AsyncPostgresStore.submit

    def skipping(store: PostgresStore, request: Request[Any], on_late_reply: Any = None) -> Any:
        return None if _begins_a_body(request) else perform(store, request, on_late_reply)

    def awaited(aio: AsyncPostgresStore, request: Request[Any], on_late_reply: Any = None) -> asyncio.Future[Any]:
        return _done(None) if _begins_a_body(request) else submit(aio, request, on_late_reply)

    _replace(PostgresStore, "perform", skipping)
    _replace(AsyncPostgresStore, "submit", awaited)


def _begins_a_body(request: Request[Any]) -> bool:
    return isinstance(request, Checkpoint) and request.record.kind == Kind.ATTEMPT


def _done(answer: Any) -> asyncio.Future[Any]:
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    done.set_result(answer)
    return done


def _other_sql(name: str, part: bytes, instead: bytes) -> None:
    told = load_statements

    def changed(names: Names, file: str = "statements.sql") -> Mapping[str, bytes]:
        known = dict(told(names, file))
        if name not in known:  # of another file
            return known
        assert part in known[name], "the statement has changed: change the plant"
        return known | {name: known[name].replace(part, instead)}

    _replace(stores, "load_statements", changed)


def _replace(owner: object, name: str, part: object) -> None:
    assert hasattr(owner, name), "it has another name: change the plant"
    setattr(owner, name, part)


PLANTS: Final[dict[str, Callable[[], None]]] = {
    plant.__name__.replace("_", " "): plant
    for plant in (
        no_fence,
        no_index,
        acknowledged_before_commit,
        lost_reply_trusted,
        taken_from_the_living,
        last_record_overlooked,
        transaction_in_two,
        beginning_not_recorded,
    )
}
