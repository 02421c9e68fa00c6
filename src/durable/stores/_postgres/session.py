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

Connection: TypeAlias = psycopg.Connection[Any]

_UTF_8: Final = "utf-8"
_numbers: Final = itertools.count()  # of prepared statements: another store may use the same connection of a pool


class Session:
    """A connection in autocommit mode, lent to one user at a time.

    `prepared` has the names of the statements that `execute_write` has prepared on it. `server` says which server it leads to,
    by the moment when that was started; it is empty where that cannot be told.
    """

    __slots__ = ("_cursor", "_encoding", "_prepared", "autocommit", "connection", "is_lent", "prepare", "server")

    def __init__(self, connection: Connection, prepared: MutableMapping[bytes, bytes], server: str) -> None:
        self.connection = connection
        self.server = server
        self.is_lent = True
        self.prepare: bool | None = None
        self.autocommit = connection.autocommit
        self._encoding = connection.info.encoding
        self._prepared = prepared
        self._cursor = OwnCursor(connection)

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

    def queue(self, query: bytes, parameters: Any = None) -> psycopg.Cursor[Any]:
        """Queue a statement in a pipeline; its result is read after the pipeline's end."""
        cursor = OwnCursor(self.connection)
        cursor.execute(query, parameters, prepare=self.prepare)
        return cursor


def is_sound(connection: Connection) -> bool:
    """Whether the connection is idle; an interrupt may have left it in the middle of something."""
    wire = connection.pgconn
    return wire.transaction_status == TransactionStatus.IDLE and wire.pipeline_status == PipelineStatus.OFF


@contextmanager
def in_transaction(session: Session) -> Iterator[None]:
    """Several statements in one transaction and one round trip, under the isolation that they are written for."""
    with session.connection.pipeline():
        session.queue(b"BEGIN ISOLATION LEVEL READ COMMITTED")
        yield
        session.queue(b"COMMIT")


def begin_another(session: Session) -> None:
    """Within `in_transaction`: what follows is in a transaction of its own, in the same round trip."""
    session.queue(b"COMMIT")
    session.queue(b"BEGIN ISOLATION LEVEL READ COMMITTED")
