"""What people and tools ask of a store in PostgreSQL: each a question that only reads, and that ends soon."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import psycopg

from durable._common.checks import check_name
from durable._engine.signals import dedup_hash_of
from durable.errors import InvalidArgument
from durable.records import Header, Record
from durable.snapshots import header_and_records
from durable.stores._owner import HOST
from durable.stores._postgres.rows import read_record
from durable.stores._postgres.schedules import read_moment, read_scheduled
from durable.stores._postgres.session import Session
from durable.stores._postgres.snapshots import Snapshots
from durable.stores._postgres.sql.reading import Question, ask, statement
from durable.stores._postgres.starts import name_route, partition_of, queue_of, render_first
from durable.stores._postgres.suspended import read_suspended
from durable.stores.listing import Listed
from durable.stores.reading import (
    COUNTED,
    DAY,
    NEVER,
    EndedRuns,
    Filter,
    Health,
    LeaseFacts,
    RunLine,
    ScheduleLine,
    SentSignal,
    WorkerLine,
    checked_filter,
    checked_journal,
    checked_lines,
    read_line,
    schedule_line,
)

_PATIENCE: Final = 3_000  # milliseconds of one question
_NARROW: Final = "Ask for less: a status, a workflow's name and a moment (since) have indexes."


class Reading(Snapshots):
    """The runs in a store's tables, to look at."""

    def runs(self, filter: Filter | None, limit: int, after: RunLine | Listed | None) -> Sequence[RunLine]:
        """See `PostgresStore.runs`."""
        limit, last = checked_lines(limit, after)
        wanted = checked_filter(filter)
        question = ask(wanted, self._prefix, limit, last)
        owners = {self._held.resources.owner.text: False}  # whether each is dead
        while True:
            rows = self._asked("runs", question, owners)
            held = {
                owner: token
                for *_, owner, token, _, _, _, _, _ in rows
                if token is not None and owner not in (None, *owners)
            }
            found = {owner: self._is_dead(owner, token) for owner, token in held.items()}
            owners |= found
            # What was asked for by its lease does not belong here where the owner is dead, or lives after all.
            if not question.by_lease or ("running" in wanted.statuses) not in found.values():
                return [self._line(row, owners) for row in rows]

    def count_runs(self, filter: Filter | None, limit: int) -> int:
        """See `PostgresStore.count_runs`."""
        limit, _ = checked_lines(limit, None, COUNTED)
        question = ask(checked_filter(filter), self._prefix, limit, None)
        ((count,),) = self._asked("count", question, {})
        return int(count)

    def header(self, id: str) -> Header | None:
        """See `PostgresStore.header`."""
        values, query = {"id": self._settings.row(id)}, statement(self._names, "header")
        found = self.perform(lambda session: session.execute(query, values).fetchone())
        return None if found is None else header_and_records(found[0], run_id=id)[0]

    def journal(self, id: str, after: int | None, limit: int) -> Sequence[Record]:
        """See `PostgresStore.journal`."""
        values = {"id": self._settings.row(id), "after": checked_journal(id, after, limit), "limit": limit}
        query = statement(self._names, "journal")
        return [read_record(*row) for row in self.perform(lambda session: session.execute(query, values).fetchall())]

    def workers(self) -> list[WorkerLine]:
        """See `PostgresStore.workers`."""
        values = {"first": render_first(self._prefix)} if self._prefix else {}
        mine, ours = (
            (f"starts_with({column}, %(first)s)" if self._prefix else "true") for column in ("route", "one.route")
        )
        query = statement(self._names, "workers", (("mine", mine), ("ours", ours)))
        rows = self.perform(lambda session: session.execute(query, values).fetchall())
        return [
            WorkerLine(
                worker,
                owner.split(" ")[0],
                tuple(name_route(route) for route in routes),
                idle,
                leaving,
                datetime.fromtimestamp(seen, UTC),
                held,
            )
            for worker, owner, routes, idle, leaving, seen, held in rows
        ]

    def schedules(self) -> list[ScheduleLine]:
        """See `PostgresStore.schedules`."""
        values, query = {"prefix": self._prefix}, statement(self._names, "schedules")
        rows = self.perform(lambda session: session.execute(query, values).fetchall())
        return [
            schedule_line(
                read_scheduled(row, self._prefix),
                row["paused"],
                read_moment(row["due_at"]),
                read_moment(row["last_at"]),
                None if row["last_id"] is None else row["last_id"].removeprefix(self._prefix),
            )
            for row in (msgspec.json.decode(text) for (text,) in rows)
        ]

    def health(self) -> Health:
        """See `PostgresStore.health`."""
        values = {"prefix": self._prefix, "day": DAY, "first": render_first(self._prefix)}
        names = ("ended", "due_longest", "stuck", "connections", "oldest_transaction")
        ended, due, stuck, connections, oldest = self._read_only(
            {name: statement(self._names, name) for name in names}, values
        )
        count, stuck_for = stuck[0]
        is_capped = sum(row[3] for row in ended) == DAY
        return Health(
            ended=tuple(EndedRuns(max(0, ago), completed, failed) for ago, completed, failed, _, _ in ended),
            counted_since=min(row[4] for row in ended).astimezone(UTC) if is_capped else None,
            due_for=due[0][0],
            stuck=count,
            stuck_for=stuck_for,
            connections=tuple(connections[0]),
            open_transaction=tuple(oldest[0]) if oldest else None,
        )

    def signals(self, id: str) -> Sequence[SentSignal]:
        """See `PostgresStore.signals`."""
        values, query = {"id": self._settings.row(check_name("a run's id", id))}, statement(self._names, "signals")
        rows = self.perform(lambda session: session.execute(query, values).fetchall())
        return [
            SentSignal(number, name, text, datetime.fromtimestamp(at, UTC), dedup_hash_of(nonce))
            for number, name, text, at, nonce in rows
        ]

    def _asked(self, name: str, question: Question, owners: Mapping[str, bool]) -> Sequence[Any]:
        values = question.values
        if "lease" in dict(question.parts)["joined"]:
            values = values | {"host": HOST, "known": [*owners]}
        if question.by_lease:
            values = values | {"dead": [owner for owner, dead in owners.items() if dead]}
        (rows,) = self._read_only({name: statement(self._names, name, question.parts)}, values)
        return rows

    def _read_only(self, queries: Mapping[str, bytes], values: Mapping[str, Any]) -> list[list[Any]]:
        """The rows of each, in one round trip."""

        def asked(session: Session) -> list[list[Any]]:
            try:
                with session.connection.pipeline():
                    session.queue(b"BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY")
                    session.queue(statement(self._names, "patience"), {"patience": str(_PATIENCE)})
                    answers = [session.queue(query, values) for query in queries.values()]
                    session.queue(b"COMMIT")
                return [answer.fetchall() for answer in answers]
            except psycopg.errors.QueryCanceled:
                raise InvalidArgument(f"this question takes more than {_PATIENCE / 1000:g} s. {_NARROW}") from None

        return self.perform(asked)

    def _line(self, row: Any, owners: Mapping[str, bool]) -> RunLine:
        row_id, at, workflow, version, execution, held, owner, token, route, due, priority, key, seq, parent = row
        lease = LeaseFacts(
            held=bool(held) and not owners.get(owner, False),
            awaits=None if token is not None else read_suspended(owner),
            queue=None if route is None else queue_of(route),
            due_at=None if due is None else NEVER if math.isinf(due) else datetime.fromtimestamp(due, UTC),
            priority=priority,
            partition=None if route is None else partition_of(route),
        )
        told = _parsed(execution)
        of = (parent or "").removeprefix(self._prefix)
        return read_line(row_id.removeprefix(self._prefix), at, workflow, _parsed(version), told, lease, (key, seq), of)


def _parsed(text: str | None) -> Any:
    return None if text is None else msgspec.json.decode(text)
