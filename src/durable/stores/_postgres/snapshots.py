"""Whole snapshots in PostgreSQL: saved, loaded, deleted, listed, counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import msgspec
import psycopg
from msgspec import UNSET, structs
from psycopg.errors import LockNotAvailable

from durable._common.boundary import calls_out
from durable._common.durations import Duration
from durable._engine.batches import MAX_LOCK_WAIT
from durable.errors import (
    AccessDenied,
    ConcurrentExecution,
    DurableError,
    InvalidArgument,
    RunBeingStarted,
    StoreUnavailable,
    UnreadableRecord,
    UnstorableValue,
)
from durable.snapshots import Snapshot, foreign_failures, journal_of, merge_journal
from durable.stores._owner import HOST, is_dead
from durable.stores._postgres.dropped_rows import dropped_rows
from durable.stores._postgres.held import Held
from durable.stores._postgres.nesting import refuse_own_run
from durable.stores._postgres.requirements import hidden_rows
from durable.stores._postgres.rows import read_record
from durable.stores._postgres.schema import deletion_grant
from durable.stores._postgres.session import Session
from durable.stores._postgres.settings import Settings
from durable.stores._postgres.sql.snapshots import (
    AFTER,
    BY_LEASE,
    IDLE,
    STATUSES,
    ids_of_journals,
    is_small,
    narrow_purge,
    statement,
)
from durable.stores._postgres.starts import name_route, render_first
from durable.stores.listing import (
    FORCE_ADVICE,
    NO_MOMENT,
    PAGE,
    Listed,
    Progress,
    RunStatus,
    Stats,
    checked_page,
    checked_purge,
    headless,
    savable_snapshot,
    stands,
)

T = TypeVar("T")

_PATIENCE: Final = 10.0  # seconds in which a lost connection, or a server that restarts, is tried again
_SILENCE: Final = 60.0  # seconds without an answer, after which a connection is given up
_RETRY: Final = 0.1  # seconds between two tries
_LOOKS: Final = 3  # at a lease that is free and cannot be taken: others may hold it for a moment each time
_DELETIONS: Final = {  # and what each of them leaves nothing in
    "delete_headers": "documented runs",
    "delete_journals": "journal",
    "delete_signals": "signals",
    "delete_leases": "leases",
}
_TRANSIENT: Final = ("08", "40", "53", "57P")  # SQLSTATE: connection, serialization, resources, restart

_json: Final = msgspec.json.Encoder()


class Snapshots:
    """The whole snapshots in a store's tables."""

    def __init__(self, held: Held, settings: Settings) -> None:
        self._held = held
        self._settings = settings
        self._names = settings.names
        self._prefix = settings.prefix
        self._clock = settings.clock

    def save(self, id: str, snapshot: Snapshot | Mapping[str, Any], *, force: bool = False) -> None:
        """See `PostgresStore.save`."""
        row = self._own_row(id, "saves another state of")
        checked = self._dated(savable_snapshot(id, snapshot))
        values = {"id": row, "ids": [row], "snapshot": checked.to_json().decode(), "stays": False}

        def saved(session: Session) -> None:
            with transaction(session):
                self._lock(session, id, row, force=force, epoch=checked.execution.epoch)
                session.execute(self._query("tell_replaced"), {"id": row})
                self._write(session, values)
                self._delete(session, [row], "delete_journals")

        self.perform(saved)

    def replace(self, run_id: str, old: Snapshot, new: Snapshot) -> bool:
        """See `RunStore.replace`. A reply that was lost makes it False, though it was done.

        The journal stays one: `jsonb` would make another value of a float like 1e16 or -0.0, and reorder dicts.
        """
        row = self._own_row(run_id, "replaces")
        records = journal_of(new)[1]
        document = structs.replace(
            self._dated(new), steps=foreign_failures(new), attempts={}, input=UNSET, result=UNSET, failure=None
        )
        values = {
            "id": row,
            "ids": [row],
            "stays": True,
            "snapshot": document.to_json().decode(),
            "records": _json.encode(records).decode(),
        }

        def replaced(session: Session) -> None:
            with transaction(session):
                self._lock(session, run_id, row, force=False, epoch=new.execution.epoch, stays=True)
                if self._read(session, run_id, row) != old:
                    raise ConcurrentExecution(run_id, "another caller, which has changed it meanwhile")
                self._write(session, values)
                if new.metadata.get("version") != old.metadata.get("version"):
                    session.execute(self._query("reroute"), {"id": row, "version": new.metadata.get("version")})
                self._delete(session, [row], "delete_journals")
                if session.execute(self._query("write_journal"), values).rowcount != len(records):
                    raise dropped_rows("journal")

        try:
            self.perform(replaced)
        except ConcurrentExecution:
            return False
        return True

    def _write(self, session: Session, values: Mapping[str, Any]) -> None:
        if session.execute(self._query("write"), values).fetchone() != (True,):
            raise dropped_rows("documented runs")

    def _dated(self, snapshot: Snapshot) -> Snapshot:
        """With the moment of this change, where it says none."""
        if snapshot.execution.last_updated:
            return snapshot
        execution = structs.replace(snapshot.execution, last_updated=self._clock.now().isoformat())
        return structs.replace(snapshot, execution=execution)

    def load(self, id: str) -> Snapshot | None:
        """See `PostgresStore.load`."""
        row = self._settings.row(id)
        return self.perform(lambda session: self._read(session, id, row))

    def _read(self, session: Session, id: str, row: str) -> Snapshot | None:
        rows = session.execute(self._query("load"), {"id": row}).fetchall()
        if not rows:
            self._check_nothing(session, id, row)
            return None
        (_, _, kind, text, _, _), *journal = rows
        if kind != "header":
            raise headless(id)
        return merge_journal(text, [read_record(*line) for line in journal], run_id=id)

    def delete(self, id: str, *, force: bool = False) -> None:
        """See `PostgresStore.delete`."""
        row = self._own_row(id, "deletes")

        def deleted(session: Session) -> None:
            with transaction(session):
                self._lock(session, id, row, force=force)
                self._delete(session, [row])
                self._held.resources.heartbeat.mark_deleted([row])

        self.perform(deleted)

    def list(
        self, *, prefix: str = "", limit: int = PAGE, status: RunStatus | None = None, after: Listed | None = None
    ) -> Sequence[Listed]:
        """See `PostgresStore.list`."""
        page = checked_page(prefix, limit, status, after)
        after_what = "nothing" if after is None else "no moment" if after.updated_at == NO_MOMENT else "a moment"
        by_lease = page.status in BY_LEASE
        name, condition = ("list_by_lease", BY_LEASE[page.status]) if by_lease else ("list", STATUSES[page.status])
        query = self._query(name, prefix=page.prefix, status=condition, after=AFTER[after_what])
        values: dict[str, Any] = {"prefix": self._prefix + page.prefix, "limit": page.limit}
        if after is not None:
            values |= {"moment": after.updated_at, "id": self._prefix + after.id}
        owners = {self._held.resources.owner.text: False} if by_lease else {}  # whether each is dead
        while True:
            values |= {"host": HOST, "known": [*owners], "dead": [owner for owner, dead in owners.items() if dead]}
            rows = self.perform(lambda session, values=values: session.execute(query, values).fetchall())  # type: ignore[misc]
            held = {owner: token for *_, owner, token in rows if owner not in (None, *owners)}
            found = {owner: self._is_dead(owner, token) for owner, token in held.items()}
            owners |= found
            if (page.status == "running") not in found.values():  # else some do not belong here, and others may
                return [Listed(row.removeprefix(self._prefix), _moment(at)) for row, at, *_ in rows]

    def _is_dead(self, owner: str | None, token: str | None) -> bool:
        """Whether a lease's owner has died on this machine, so that a claim from here would take its run over at once."""
        return self._settings.take_over_dead and owner is not None and owner.startswith(HOST) and is_dead(owner, token)

    @calls_out
    def purge(
        self,
        *,
        older_than: Duration,
        status: RunStatus | None = "completed",
        queue: str | None = None,
        metadata: Mapping[str, str] | None = None,
        limit: int | None = None,
        progress: Progress | None = None,
    ) -> int:
        """See `PostgresStore.purge`."""
        wanted = checked_purge(older_than, status, queue, metadata, limit)
        condition = STATUSES[wanted.status]
        old = self._query("old", status=condition, idle=IDLE, narrowed=narrow_purge(wanted))
        still_old = self._query("still_old", status=condition)
        values: dict[str, Any] = {"prefix": self._prefix, "force": False, "epoch": 0, "stays": True}
        values |= {"limit": PAGE, "queue": wanted.queue}
        values |= {"keys": list(wanted.metadata), "texts": list(wanted.metadata.values())}

        def batch(session: Session) -> tuple[int, int]:
            found = [row for (row,) in session.execute(old, values)]
            with transaction(session):
                free = [row for (row,) in session.execute(self._query("lock_runs"), values | {"ids": found})]
                gone = [row for (row,) in session.execute(still_old, values | {"ids": free})]
                self._delete(session, gone)
                self._held.resources.heartbeat.mark_deleted(gone)
            return len(found), len(gone)

        def orphans(session: Session) -> tuple[int, int]:
            size, *_ = session.execute(self._query("sizes"), {}).fetchone() or (0,)
            old_orphans = self._query("old_orphans", of="run.workflow_id", journals=ids_of_journals(size))
            found = [row for (row,) in session.execute(old_orphans, values)]
            with transaction(session):
                free = [row for (row,) in session.execute(self._query("lock_runs"), values | {"ids": found})]
                gone = [row for (row,) in session.execute(self._query("still_orphans"), {"ids": free})]
                self._delete(session, gone)
            return len(found), len(gone)

        (moment,) = self.perform(
            lambda session: session.execute(self._query("moment"), {"seconds": wanted.seconds}).fetchall()
        )
        values["before"], total = moment[0], 0
        for some in (batch, orphans) if wanted.takes_orphans else (batch,):
            while (portion := wanted.portion(total)) > 0:
                values["limit"] = portion
                found, gone = self.perform(some)
                total += gone
                if gone and progress is not None:
                    progress(total)
                if found < portion or not gone:
                    break
        return total

    def stats(self) -> Stats:
        """See `PostgresStore.stats`."""
        values = {"prefix": self._prefix}

        def asked(session: Session) -> tuple[Sequence[Any], int, int, int, bool, tuple[str, ...]]:
            def number(name: str, **parts: str) -> Any:
                (found,) = session.execute(self._query(name, **parts), values).fetchone() or (0,)
                return found

            counts = session.execute(self._query("counts"), values).fetchall()
            journals, records, size = session.execute(self._query("sizes"), {}).fetchone() or (0, 0, 0)
            if not (is_estimate := not is_small(journals)):
                records = number("records", of="run.workflow_id")
            elif self._prefix:
                records = math.ceil(records * number("share"))
            orphaned = number("orphans", of="run.workflow_id", journals=ids_of_journals(journals))
            unserved = session.execute(self._query("unserved"), {"first": render_first(self._prefix)}).fetchall()
            return counts, records, size, orphaned, is_estimate, tuple(name_route(route) for (route,) in unserved)

        counts, records, size, orphaned, is_estimate, unserved = self.perform(asked)
        runs = {
            "queued": 0,
            "running": 0,
            "suspended": 0,
            "interrupted": 0,
            "completed": 0,
            "failed": 0,
            "cancelled": 0,
            "unreadable": 0,
        }
        for status, held, suspended, owner, token, count in counts:
            is_held = held and not self._is_dead(owner, token)
            runs[stands(status, held=is_held, suspended=suspended) or "unreadable"] += count
        return Stats(**runs, records=records, bytes=size, orphaned=orphaned, is_estimate=is_estimate, unserved=unserved)

    def status(self, id: str) -> RunStatus | None:
        """See `PostgresStore.status`."""
        values = {"id": self._settings.row(id)}

        def asked(session: Session) -> Any:
            found = session.execute(self._query("status"), values).fetchone()
            if found is None:
                self._check_nothing(session, id, values["id"])
            return found

        found = self.perform(asked)
        if found is None:
            return None
        status, held, suspended, owner, token = found
        is_held = held and not self._is_dead(owner, token)
        if (stand := stands(status, held=is_held, suspended=suspended)) is None:
            raise UnreadableRecord(id, "the snapshot", f"its status is {status[:40]!r}, which is not known here")
        return stand

    def _check_nothing(self, session: Session, id: str, row: str) -> None:
        """That a run which was not found is not there: neither hidden, nor without its header only."""
        is_hidden, has_journal = session.execute(self._query("why_nothing"), {"id": row}).fetchone() or (False, False)
        if is_hidden:
            raise hidden_rows()
        if has_journal:
            raise headless(id)

    def _own_row(self, id: str, what: str) -> str:
        """The row of a run that is to be changed, which is refused to the body of a transaction under its own lease."""
        row = self._settings.row(id)
        refuse_own_run(self._held.resources.connections.where, row, what)
        return row

    def _lock(self, session: Session, id: str, row: str, *, force: bool, epoch: int = 0, stays: bool = False) -> None:
        """Take the lease's row. One that is there is waited for; what is not there may be just being started."""
        values = {"id": row, "wait": f"{MAX_LOCK_WAIT * 1000:.0f}ms"}
        is_brief = session.execute(self._query("wait_briefly"), values).rowcount > 0
        try:
            self._try_to_lock(session, id, row, force=force, epoch=epoch, stays=stays)
        except LockNotAvailable:
            if is_brief:
                raise RunBeingStarted(id) from None
            raise

    def _try_to_lock(self, session: Session, id: str, row: str, *, force: bool, epoch: int, stays: bool) -> None:
        forced = force or not self._settings.excludes
        values = {"ids": [row], "id": row, "force": forced, "epoch": epoch, "stays": stays}
        for _ in range(_LOOKS):
            if session.execute(self._query("lock_runs"), values).rowcount:
                return
            owner, left = session.execute(self._query("holder"), values).fetchone() or ("", 0.0)
            if left > 0 and not forced:
                raise ConcurrentExecution(id, owner, left, FORCE_ADVICE)
        raise dropped_rows("leases")

    def _delete(self, session: Session, rows: Sequence[str], *names: str) -> None:
        """Delete what there is of these runs, whose leases are held, or only what these statements do."""
        for name in names or _DELETIONS:
            if session.execute(self._query(name), {"ids": rows}).fetchone() != (True,):
                raise dropped_rows(_DELETIONS[name])

    def _query(self, name: str, *, prefix: str = "", of: str = "run.id", **parts: str) -> bytes:
        """A statement with its parts filled in; the prefix is that `of` this column."""
        prefixed = f"starts_with({of}, %(prefix)s)" if self._prefix or prefix else "true"
        return statement(self._names, name, (("prefixed", prefixed), *parts.items()))

    def perform(self, work: Callable[[Session], T]) -> T:
        """What `work` comes to on a connection; it is done again when the connection is lost, so it must bear that."""
        if self._held.is_closed:
            raise InvalidArgument("the store is closed")
        connections, began = self._held.resources.connections, self._clock.elapsed()
        while True:
            try:
                return self._once(work)
            except psycopg.Error as problem:
                state = problem.sqlstate
                if state is not None and state[:2] in ("22", "54") and not problem.diag.context:
                    raise UnstorableValue("the snapshot", "$", "PostgreSQL refuses it as jsonb") from None
                lost = state is None or state.startswith(_TRANSIENT)
                meaning = connections.explain(problem)
                if isinstance(meaning, AccessDenied) and state == "42501":
                    meaning.advice = f"What it takes: {deletion_grant(self._names)}the role."
            except StoreUnavailable as problem:
                lost, meaning = True, problem
            if not lost or self._clock.elapsed() - began > _PATIENCE:
                raise meaning from None
            self._clock.sleep(_RETRY)

    def _once(self, work: Callable[[Session], T]) -> T:
        resources = self._held.resources
        session = resources.connections.take(self._clock.elapsed() + _PATIENCE)
        try:
            resources.watchdog.watch(session.connection, self._clock.elapsed() + _SILENCE)
            try:
                return work(session)
            finally:
                resources.watchdog.unwatch(session.connection)
        finally:
            resources.connections.give_back(session)


@contextmanager
def transaction(session: Session) -> Iterator[None]:
    """Several statements, whose answers are looked at, in one transaction."""
    session.execute(b"BEGIN ISOLATION LEVEL READ COMMITTED")
    try:
        yield
        session.execute(b"COMMIT")
    except DurableError:
        session.rollback()
        raise


def _moment(at: datetime | None) -> datetime:
    return NO_MOMENT if at is None else at.astimezone(UTC)
