"""A session: a connection in autocommit mode, as our statements use it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import generators
from psycopg.errors import UntranslatableCharacter, error_from_result
from psycopg.pq import ExecStatus, PipelineStatus, TransactionStatus

from durable.stores._postgres.cursors import OwnCursor
from durable.stores._postgres.together import Reply, Together

Connection: TypeAlias = psycopg.Connection[Any]

_UTF_8: Final = "utf-8"
_numbers: Final = itertools.count()  # of prepared statements: another store may use the same connection of a pool


class Session:
    """A connection in autocommit mode, lent to one user at a time.

    `prepared` has the names of the statements that `execute_write` has prepared on it. `server` says which server it leads to,
    by the moment when that was started; it is empty where that cannot be told.
    """

    __slots__ = (
        "_cursor", "_encoding", "_prepared", "_together", "autocommit", "connection", "is_lent", "prepare", "server",
    )  # fmt: skip

    def __init__(self, connection: Connection, prepared: MutableMapping[Any, bytes], server: str) -> None:
        self.connection = connection
        self.server = server
        self.is_lent = True
        self.prepare: bool | None = None
        self.autocommit = connection.autocommit
        self._encoding = connection.info.encoding
        self._prepared = prepared
        self._cursor = OwnCursor(connection)
        self._together: Together | None = None

    def execute_write(self, query: bytes, values: Sequence[bytes]) -> int:
        """Execute a statement with `$1`, `$2` … that returns no rows; the number of rows written. The values are in UTF-8.

        It bypasses psycopg's cursor, which would take up to a sixth of a step's time.
        """
        wire = self.connection.pgconn
        if self._encoding != _UTF_8:
            values = [self._encode(value) for value in values]
        if self.prepare is False or self.connection.prepare_threshold is None:
            wire.send_query_params(query, values)
        else:
            name = self._prepared.get(query)
            if name is None:
                name = b"durable_%d" % next(_numbers)
                wire.send_prepare(name, query)
                self._read_count()
                self._prepared[query] = name
            wire.send_query_prepared(name, values)
        return self._read_count()

    def _read_count(self) -> int:
        results = self.connection.wait(generators.execute(self.connection.pgconn))
        if len(results) == 1 and results[0].status == ExecStatus.COMMAND_OK:
            return results[0].command_tuples or 0
        for result in results:  # the first error is the one that says why; a pooler adds its own to a server's last
            if result.status != ExecStatus.COMMAND_OK:
                raise error_from_result(result, self.connection.info.encoding)
        raise psycopg.OperationalError(f"one statement was answered {len(results)} times")

    def _encode(self, value: bytes) -> bytes:
        try:
            return value.decode().encode(self._encoding)
        except UnicodeEncodeError:
            raise UntranslatableCharacter(f"the connection's client_encoding is {self._encoding}") from None

    def rollback(self) -> None:
        """Roll back, after which psycopg deallocates everything that is prepared."""
        self._prepared.clear()
        self._cursor.execute(b"ROLLBACK", prepare=False)

    def execute(self, query: bytes, parameters: Any = None) -> psycopg.Cursor[Any]:
        """Execute a statement whose result is read before the next one is executed."""
        self._cursor.execute(query, parameters, prepare=self.prepare)
        return self._cursor

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is queued inside is sent at the end, in one write; nothing is where an exception ends the block."""
        prepares = self.prepare is not False and self.connection.prepare_threshold is not None
        self._together = statements = Together(self._cursor, self._prepared, prepares=prepares)
        try:
            yield
        finally:
            self._together = None
        statements.send()

    def queue(self, query: bytes, parameters: Any = None) -> Any:
        """Queue a statement in `together`, or in a pipeline of psycopg's; its answer is read after the end of that."""
        if self._together is not None:
            return self._together.add(query, parameters)
        cursor = OwnCursor(self.connection)
        cursor.execute(query, parameters, prepare=self.prepare)
        return cursor


def is_sound(connection: Connection) -> bool:
    """Whether the connection is idle; an interrupt may have left it in the middle of something."""
    wire = connection.pgconn
    return wire.transaction_status == TransactionStatus.IDLE and wire.pipeline_status == PipelineStatus.OFF


def wait_briefly(seconds: float) -> bytes:
    """The setting under which what is left of a transaction waits for each lock no longer than this."""
    return b"SET LOCAL lock_timeout = %d" % round(seconds * 1000)


@contextmanager
def in_transaction(session: Session, max_lock_wait: float | None = None) -> Iterator[None]:
    """Several statements in one transaction and one round trip, under the isolation that they are written for.

    `max_lock_wait` is how long, in seconds, one of them may wait for a lock; None leaves that as it is set.
    """
    with session.together():
        session.queue(b"BEGIN ISOLATION LEVEL READ COMMITTED")
        if max_lock_wait is not None:
            session.queue(wait_briefly(max_lock_wait))
        yield
        session.queue(b"COMMIT")


def begin_another(session: Session) -> Reply:
    """Within `in_transaction`: what follows is in a transaction of its own, in the same round trip.

    The reply is that to the COMMIT of what came before.
    """
    committed: Reply = session.queue(b"COMMIT")
    session.queue(b"BEGIN ISOLATION LEVEL READ COMMITTED")
    return committed
