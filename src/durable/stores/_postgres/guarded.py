"""A connection as a step's body gets it: it cannot end its transaction, and cannot be used after it."""

from __future__ import annotations

import time
from functools import cache
from typing import Any, Final, NoReturn, cast

import psycopg
from psycopg.adapt import AdaptersMap
from psycopg.pq import PipelineStatus, TransactionStatus

from durable.errors import TransactionMisused
from durable.stores._postgres.cursors import OwnCursor
from durable.stores._postgres.session import Connection
from durable.stores._postgres.watchdog import shut_down

ENDED: Final = (
    "the body ended the transaction, and what it had done was committed, or rolled back, without the step's record"
)

_MAX_WAIT: Final = 10.0  # seconds, for a statement that another thread of the body has under way when it returns
_PAUSE: Final = 0.001
_MAX_CANCEL: Final = 30.0  # psycopg's default

_NOT_SOUND: Final = {
    TransactionStatus.INERROR: "the body went on after an SQL error, which had ended all that the transaction could do",
    TransactionStatus.ACTIVE: "the body returned with a statement, or a COPY, still under way",
}


class GuardedConnection(psycopg.Connection[Any]):
    """Another face of a connection that has an owner elsewhere; made by `guard`.

    Everything that psycopg does on a connection goes through `wait`, also for cursors and copies that were made from it.
    So nothing is executed after the end, wherever the connection was kept, in whatever thread.
    """

    _step: str
    _over: bool
    _initial: tuple[list[Any], list[Any], int | None]
    ended: bool

    def __del__(self, *_: Any) -> None:
        """Do nothing: closing it is its owner's business."""

    def __enter__(self) -> NoReturn:
        self._refuse("`with connection:`, which commits and closes")

    def commit(self) -> NoReturn:
        """Refused."""
        self._refuse("commit()")

    def rollback(self) -> NoReturn:
        """Refused."""
        self._refuse("rollback()")

    def close(self) -> NoReturn:
        """Refused."""
        self._refuse("close()")

    def set_autocommit(self, value: bool) -> NoReturn:  # noqa: ARG002
        """Refused, and with it `connection.autocommit = …`."""
        self._refuse("autocommit")

    def cancel(self) -> None:
        """As psycopg's, while the body has the connection: later it would cancel another's statement."""
        if not self._over:
            super().cancel()

    def cancel_safe(self, *, timeout: float = _MAX_CANCEL) -> None:
        """The same as `cancel`."""
        if not self._over:
            super().cancel_safe(timeout=timeout)

    def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
        """Let the connection work, while the body may use it."""
        if self._over:
            raise self.misused("its connection was used after the body had returned")
        if self.ended:
            raise self.misused(ENDED)
        try:
            return super().wait(gen, *args, **options)
        finally:
            # After a COMMIT or ROLLBACK among the statements. One that BEGIN follows is noticed when the record is written.
            self.ended = self.pgconn.transaction_status == TransactionStatus.IDLE
            if self.ended:
                raise self.misused(ENDED)

    def take_away(self) -> TransactionMisused | None:
        """Take it from the body; the error that forbids a commit, None when there is none."""
        self.revoke()
        if not self._wait_until_free():
            shut_down(self)  # else the end of the transaction would wait for that statement too
            return self.misused(_NOT_SOUND[TransactionStatus.ACTIVE])
        if self.ended:
            return self.misused(ENDED)
        if self.pgconn.pipeline_status != PipelineStatus.OFF:
            return self.misused("the body returned with a pipeline still open")
        problem = _NOT_SOUND.get(TransactionStatus(self.pgconn.transaction_status))
        return None if problem is None else self.misused(problem)

    def _wait_until_free(self) -> bool:
        """Wait until no statement is under way, which a revoked connection does not begin; False when one stays.

        The lock is asked, not acquired: a signal's handler may raise as soon as it is, and would leave it locked.
        """
        until = time.monotonic() + _MAX_WAIT
        while self.lock.locked():
            if time.monotonic() >= until:
                return False
            time.sleep(_PAUSE)
        return True

    def revoke(self) -> None:
        """Let the body begin nothing more with it, without waiting, and undo what the body has set on it."""
        if not self._over:
            self._over = True
            self._notice_handlers[:], self._notify_handlers[:], self._prepared.prepare_threshold = self._initial

    def misused(self, problem: str) -> TransactionMisused:
        """The error that says so of the step."""
        return TransactionMisused(self._step, problem)

    def _refuse(self, what: str) -> NoReturn:
        raise self.misused(f"the body may not use {what}")


def guard(connection: Connection, step: str) -> GuardedConnection:
    """The guarded face of this connection, for the body of a step."""
    face: GuardedConnection = object.__new__(_guarded_class(cast(Any, type(connection))))
    # The same socket, lock and prepared statements. What is set on the face stays there, also adapters. On a connection of ours
    # these are the adapters that the application has registered for all of its connections.
    is_ours = connection.cursor_factory is OwnCursor
    adapters = AdaptersMap(psycopg.adapters if is_ours else connection.adapters)
    face.__dict__.update(
        connection.__dict__, _autocommit=False, _adapters=adapters, _step=step, _over=False, ended=False
    )
    if is_ours:
        face.cursor_factory = psycopg.Cursor
    parts = face.__dict__
    face.__dict__["_initial"] = (
        list(parts["_notice_handlers"]),
        list(parts["_notify_handlers"]),
        parts["_prepared"].prepare_threshold,
    )
    return face


@cache
def _guarded_class(kind: Any) -> type[GuardedConnection]:
    return GuardedConnection if kind is psycopg.Connection else type(kind.__name__, (GuardedConnection, kind), {})
