"""Runs that are copied, within a store and into one: what was recorded stays what it is, to the byte."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import Any, Final

import msgspec
import psycopg

from durable._common.checks import check_name
from durable._engine.starts import Route
from durable.errors import InvalidArgument, RunExists, RunNotFound
from durable.records import Record
from durable.stores._postgres.dropped_rows import dropped_rows
from durable.stores._postgres.session import Session, in_transaction
from durable.stores._postgres.snapshots import Snapshots, transaction
from durable.stores._postgres.sql.loader import load_statements
from durable.stores._postgres.sql.reading import statement
from durable.stores._postgres.starts import line_of, render_route, render_slot
from durable.stores.copies import Changes, StoredRun, checked_ids, status_of_copy

_json: Final = msgspec.json.Encoder()
_AT_ONCE: Final = 1_000  # records in one statement


class Copying(Snapshots):
    """Copies of the runs in a store's tables."""

    def copy(self, src: str, dst: str, keep: Collection[int] | None, changes: Changes) -> None:
        """See `PostgresStore.copy`."""
        to = self._own_row(check_name("the id of a copy", dst), "copies to")
        values: dict[str, Any] = {
            "from": self._settings.row(src),
            "to": to,
            "keep": None if keep is None else sorted(keep),
            "metadata": _json.encode(changes.metadata).decode(),
            "without": ["input"] if changes.replaces_input else [],
            "nonce": random.getrandbits(62),
        }
        sent = False

        def copied(session: Session) -> str | None:
            nonlocal sent
            if sent and session.execute(self._statement("was_copied"), values).fetchone() == (True,):
                return None  # the reply was lost
            sent = True
            with transaction(session):
                leased = session.execute(self._statement("copy_lease"), values).fetchone()
                if leased is None:
                    raise self._why_not(session, src, dst, to)
                (route,) = leased
                told = values | {"status": status_of_copy(is_a_workers=_is_a_workers(route, self._prefix))}
                if session.execute(self._statement("copy_header"), told).fetchone() != (1,):
                    raise dropped_rows("documented runs")
                session.execute(self._statement("copy_journal"), values)
                self._write_records(session, to, changes.records)
            return None if route is None else str(route)

        if (route := self.perform(copied)) is not None:
            self.perform(lambda session: self._wake(session, route))

    def delete_many(self, ids: Sequence[str]) -> list[str]:
        """See `PostgresStore.delete_many`."""
        rows = {self._own_row(name, "deletes"): name for name in checked_ids(ids)}

        def deleted(session: Session) -> list[str]:
            with transaction(session):
                values = {"ids": list(rows), "force": not self._settings.excludes, "epoch": 0, "stays": True}
                free = [row for (row,) in session.execute(self._query("lock_runs"), values)]
                self._delete(session, free)
                self._held.resources.heartbeat.mark_deleted(free)
            return free

        return [rows[row] for row in self.perform(deleted)]

    def document(self, id: str) -> str | None:
        """See `PostgresStore.document`."""
        values = {"id": self._settings.row(id)}
        found = self.perform(lambda session: session.execute(self._statement("document"), values).fetchone())
        return None if found is None else str(found[0])

    def restore(self, run: StoredRun, *, replace: bool) -> None:
        """See `PostgresStore.restore`."""
        row = self._own_row(run.id, "restores")
        route = run.route
        values: dict[str, Any] = {
            "id": row,
            "ids": [row],
            "stays": False,
            "snapshot": run.document,
            "route": None if route is None else _render(route, run.partition, self._prefix),
            "priority": run.priority,
            "due": None if run.due_at is None else run.due_at.timestamp(),
            "updated": None if run.updated_at is None else run.updated_at.isoformat(),
        }

        def restored(session: Session) -> None:
            with transaction(session):
                self._lock(session, run.id, row, force=False, epoch=run.epoch)
                if not replace and session.execute(self._statement("is_there"), values).fetchone() == (True,):
                    raise RunExists(run.id, "stored here")
                if session.execute(self._statement("restore_header"), values).fetchone() != (1,):
                    raise dropped_rows("documented runs")
                self._delete(session, [row], "delete_journals")
                self._write_records(session, row, run.records)
                session.execute(self._statement("restore_lease"), values)
                session.execute(self._statement("forget_signals"), values)
                self._send_again(session, row, run)

        self.perform(restored)

    def _send_again(self, session: Session, row: str, run: StoredRun) -> None:
        for signal in run.signals:
            values = {
                "id": row,
                "name": signal.name,
                "payload": signal.payload,
                "nonce": random.getrandbits(62) if signal.dedup_hash is None else signal.dedup_hash,
                "at": signal.at.timestamp(),
            }
            if session.execute(self._statement("send_again"), values).fetchone() is None:
                raise dropped_rows("signals")

    def _write_records(self, session: Session, row: str, records: Sequence[Record]) -> None:
        for first in range(0, len(records), _AT_ONCE):
            some = records[first : first + _AT_ONCE]
            values = {"id": row, "records": _json.encode(some).decode()}
            if session.execute(self._statement("write_records"), values).rowcount != len(some):
                raise dropped_rows("journal")

    def _why_not(self, session: Session, src: str, dst: str, to: str) -> Exception:
        there = session.execute(self._query("status"), {"id": to}).fetchone()
        if there is not None:
            return RunExists(dst, there[0])
        if session.execute(self._statement("is_there"), {"id": self._settings.row(src)}).fetchone() != (True,):
            return RunNotFound(src)
        return InvalidArgument(f"something is left of a run {dst!r}: store.delete({dst!r}) takes it away")

    def _wake(self, session: Session, route: str) -> None:
        """As for a start: it is a hint, and the next poll finds what was queued anyway."""
        try:
            with in_transaction(session):
                session.queue(load_statements(self._names)["wake"], {"routes": [line_of(route)], "count": 1})
        except psycopg.Error:
            return

    def _statement(self, name: str) -> bytes:
        return statement(self._names, name, file="copying.sql")


def _render(route: Route, partition: str | None, prefix: str) -> str:
    """A route as it stands in a lease's row, with what its run is counted in."""
    line = render_route(route, prefix)
    return line if partition is None else f"{line}\n{render_slot(route.queue, partition, prefix)}"


def _is_a_workers(route: str | None, prefix: str) -> bool:
    """Whether it was started in a queue; what a call began, for workers to recover, goes on as it is."""
    return route is not None and not route.startswith(_json.encode([prefix, ""]).decode()[:-1])
