"""Statements that are sent together: in one write, and answered together.

psycopg's own pipeline sends each by itself. Each time it waits for the socket, and lets the other threads of the process in
between, which with an event loop at work may take some milliseconds; and each time the server is woken.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any, Final

import psycopg
from psycopg import adapt, generators
from psycopg.abc import Transformer
from psycopg.adapt import PyFormat
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGresult

from durable.stores._postgres.cursors import OwnCursor
from durable.stores._postgres.sql.placeholders import number_parameters

_numbers: Final = itertools.count()
_GOOD: Final = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK)


class Reply:
    """What a statement is answered, once it is: its rows, and how it was done ("COMMIT"; None where it was not)."""

    __slots__ = ("rows", "statusmessage")

    def __init__(self) -> None:
        self.rows: Sequence[tuple[Any, ...]] = ()
        self.statusmessage: str | None = None

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.rows)

    def fetchall(self) -> Sequence[tuple[Any, ...]]:
        """All rows."""
        return self.rows

    def take(self, transformer: Transformer, result: PGresult) -> None:
        """Note what has come."""
        transformer.set_pgresult(result)
        self.rows = transformer.load_rows(0, result.ntuples, tuple)
        self.statusmessage = None if result.command_status is None else result.command_status.decode()


class Together:
    """Statements of one session. `prepared` has the names of those that are prepared on its connection."""

    def __init__(self, cursor: OwnCursor, prepared: MutableMapping[Any, bytes], *, prepares: bool) -> None:
        self._cursor = cursor
        self._prepared = prepared
        self._prepares = prepares
        self._statements: list[tuple[bytes, Sequence[Any] | None, Reply]] = []

    def add(self, query: bytes, parameters: Sequence[Any] | Mapping[str, Any] | None) -> Reply:
        """One more statement, and what it will be answered."""
        values: Sequence[Any] | None = None
        if parameters is not None:
            query, names = number_parameters(query)
            values = [parameters[name] for name in names] if isinstance(parameters, Mapping) else parameters
        reply = Reply()
        self._statements.append((query, values, reply))
        return reply

    def send(self) -> None:
        """Send them and read what they are answered; raises the error of the first that fails."""
        connection, wire = self._cursor.connection, self._cursor.connection.pgconn
        wire.enter_pipeline_mode()
        takers: list[Callable[[PGresult], object]] = []  # of what each command is answered
        for query, values, reply in self._statements:
            transformer: Transformer = adapt.Transformer(self._cursor)
            parameters = None if values is None else transformer.dump_sequence(values, [PyFormat.AUTO] * len(values))
            types, formats = (None, None) if values is None else (transformer.types, transformer.formats)
            kind = Format.TEXT if values is None else Format.BINARY
            if self._prepares:
                name = self._prepared.get((query, types))
                if name is None:
                    name = b"durable_t%d" % next(_numbers)
                    wire.send_prepare(name, query, types)
                    takers.append(partial(self._note_prepared, (query, types), name))
                wire.send_query_prepared(name, parameters, formats, kind)
            else:
                wire.send_query_params(query, parameters, types, formats, kind)
            takers.append(partial(reply.take, transformer))
        wire.pipeline_sync()
        results = connection.wait(_results(wire, len(takers)))
        for take, result in zip(takers, results, strict=False):
            if result.status in _GOOD:
                take(result)
        refused = next((result for result in results if result.status not in _GOOD), None)
        if len(results) == len(takers):
            wire.exit_pipeline_mode()
        elif refused is None:
            raise psycopg.OperationalError(f"{len(results)} of {len(takers)} commands were answered")
        if refused is not None:
            raise error_from_result(refused, connection.info.encoding)

    def _note_prepared(self, statement: tuple[bytes, Any], name: bytes, _: PGresult) -> None:
        self._prepared[statement] = name


def _results(wire: Any, count: int) -> Generator[Any, Any, list[PGresult]]:
    """What so many commands are answered, one after the other, and the end of all; fewer where the connection is lost."""
    yield from generators.send(wire)
    results: list[PGresult] = []
    for _ in range(count):
        told = yield from generators.fetch_many(wire)
        if not told:
            return results
        results.append(told[0])
    yield from generators.fetch_many(wire)
    return results
