"""The limits of the queues in a store's tables: written, changed, and looked at."""

from __future__ import annotations

from typing import Any, Final

from durable._common.checks import check_name
from durable._engine.queues import Queue, QueueLine, Rate
from durable.stores._postgres.session import Session
from durable.stores._postgres.snapshots import Snapshots, transaction
from durable.stores._postgres.sql.reading import statement
from durable.stores._postgres.starts import read_queue, render_first, render_queue

COUNTED: Final = 10_000  # runs of one queue that are counted at the most


class Queues(Snapshots):
    """The queues of a store."""

    def write(self, queue: Queue) -> None:
        """See `PostgresStore.write_queue`."""
        rate = queue.rate
        values = self._named(queue.name) | {
            "concurrency": queue.concurrency,
            "partition_concurrency": queue.partition_concurrency,
            "rate": None if rate is None else rate.limit,
            "per": None if rate is None else rate.seconds,
            "burst": None if rate is None else rate.burst,
        }

        def written(session: Session) -> None:
            with transaction(session):
                session.execute(self._statement("write_queue"), values)
                if queue.has_limits:
                    session.execute(self._statement("count_in"), values)
                session.execute(self._statement("reopen_partitions"), values)

        self.perform(written)

    def pause(self, queue: str, *, paused: bool) -> None:
        """See `PostgresStore.pause_queue`."""
        values = self._named(check_name("a queue's name", queue)) | {"paused": paused}
        self.perform(lambda session: session.execute(self._statement("pause_queue"), values) and None)

    def lines(self) -> list[QueueLine]:
        """See `PostgresStore.queues`."""
        values = {"first": render_first(self._prefix), "most": COUNTED}

        def asked(session: Session) -> list[Any]:
            return session.execute(self._statement("queues"), values).fetchall()

        return [_line(row) for row in self.perform(asked)]

    def _named(self, queue: str) -> dict[str, Any]:
        name = render_queue(queue, self._prefix)
        return {"name": name, "first": name[:-1] + ","}

    def _statement(self, name: str) -> bytes:
        return statement(self._names, name, file="queues.sql")


def _line(row: Any) -> QueueLine:
    name, concurrency, partition_concurrency, rate, per, burst, paused, held, due, partitions = row
    limit = None if rate is None else Rate(rate, per, burst)
    return QueueLine(Queue(read_queue(name), concurrency, partition_concurrency, limit), paused, held, due, partitions)
