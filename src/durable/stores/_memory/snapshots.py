"""Whole runs in memory, as documents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from msgspec import structs

from durable._common.boundary import public_verbs
from durable._common.checks import check_name
from durable._common.durations import Duration
from durable._common.locks import hold, locked
from durable.clocks import Clock
from durable.errors import ConcurrentExecution
from durable.records import Header, Record, StepRecord
from durable.snapshots import Snapshot, foreign_failures, journal_of, snapshot_of, with_foreign_failures
from durable.stores._memory.children import Children
from durable.stores._memory.pages import count, find_old, find_page
from durable.stores._memory.run import Run
from durable.stores._memory.signals import Signals
from durable.stores.listing import (
    FORCE_ADVICE,
    PAGE,
    Listed,
    Progress,
    PurgeQuery,
    RunStatus,
    Stats,
    checked_page,
    checked_purge,
    savable_snapshot,
)
from durable.stores.requests import Signal


@public_verbs("store", "save", "load", "delete", "list", "purge", "stats", "status")
class SnapshotVerbs:
    """The verbs of the store in memory over whole runs."""

    clock: Clock
    _lock: Any
    _runs: dict[str, Run]
    _signals: Signals
    _children: Children
    _send: Callable[[Signal, datetime], object]
    _dated: Callable[[Record, int], Record]

    def save(self, id: str, snapshot: Snapshot | Mapping[str, Any], *, force: bool = False) -> None:
        """See `PostgresStore.save`."""
        check_name("a run's id", id)
        self._save_over(id, savable_snapshot(id, snapshot), force)

    @locked
    def _save_over(self, id: str, snapshot: Snapshot, force: bool) -> None:
        before = self._runs.get(id)
        self._put(id, snapshot, force)
        if before is not None and (signal := self._children.told_of(before, is_deleted=True)) is not None:
            self._send(signal, self.clock.now())

    @locked
    def _put(self, id: str, snapshot: Snapshot, force: bool = False) -> None:
        header, records = journal_of(snapshot)
        run = self._free(id, force)
        at = self.clock.now()
        if not header.execution.last_updated:
            execution = structs.replace(header.execution, last_updated=at.isoformat())
            header = structs.replace(header, execution=execution)
        by_seq = {record.seq: record for record in records}
        # Those of a run that was copied from elsewhere go on to be counted as they were there.
        epoch = max(0 if run is None else run.epoch + 1, header.execution.epoch)
        self._runs[id] = Run(header, by_seq, at, epoch, foreign=foreign_failures(snapshot))

    def load(self, id: str) -> Snapshot | None:
        """See `PostgresStore.load`."""
        check_name("a run's id", id)
        stored = self._stored(id)
        if stored is None:
            return None
        header, records, foreign = stored
        return with_foreign_failures(snapshot_of(header, records, run_id=id), foreign)

    @locked
    def replace(self, run_id: str, old: Snapshot, new: Snapshot) -> bool:
        """See `RunStore.replace`."""
        run = self._runs.get(run_id)
        if run is None or run.is_held(self.clock.elapsed()) or self.load(run_id) != old:
            return False
        self._put(run_id, new)
        saved = self._runs[run_id]
        dated = {seq: self._dated(record, saved.epoch) for seq, record in saved.records.items()}
        self._runs[run_id] = replace(saved, records=dated).rerouted(run, new.metadata.get("version"), self.clock.now())
        return True

    @locked
    def delete(self, id: str, *, force: bool = False) -> None:
        """See `PostgresStore.delete`."""
        check_name("a run's id", id)
        self._free(id, force)
        self._forget(id)

    def list(
        self, *, prefix: str = "", limit: int = PAGE, status: RunStatus | None = None, after: Listed | None = None
    ) -> Sequence[Listed]:
        """See `PostgresStore.list`."""
        page = checked_page(prefix, limit, status, after)
        return hold(self._lock, find_page, self._runs, page, self.clock.elapsed())

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
        purged = self._purge(checked_purge(older_than, status, queue, metadata, limit))
        if purged and progress is not None:
            progress(purged)
        return purged

    @locked
    def _purge(self, wanted: PurgeQuery) -> int:
        before = self.clock.now() - timedelta(seconds=wanted.seconds)
        for name in (old := find_old(self._runs, before, wanted, self.clock.elapsed())):
            self._forget(name)
        return len(old)

    @locked
    def stats(self) -> Stats:
        """See `PostgresStore.stats`."""
        return count(self._runs, self.clock.elapsed())

    @locked
    def status(self, id: str) -> RunStatus | None:
        """See `PostgresStore.status`."""
        check_name("a run's id", id)
        run = self._runs.get(id)
        return None if run is None else run.stands(self.clock.elapsed())

    @locked
    def _stored(self, id: str) -> tuple[Header, Sequence[Record], Mapping[str, StepRecord]] | None:
        run = self._runs.get(id)
        return None if run is None or run.header is None else (run.header, run.journal(), run.foreign)

    def _forget(self, id: str) -> None:
        run = self._runs.pop(id, None)
        self._signals.forget(id)
        if run is not None and (signal := self._children.told_of(run, is_deleted=True)) is not None:
            self._send(signal, self.clock.now())

    def _free(self, id: str, force: bool) -> Run | None:
        """The run, if there is one; `ConcurrentExecution` if it is being executed."""
        run = self._runs.get(id)
        if run is not None and run.is_held(self.clock.elapsed()) and not force:
            left = run.expires - self.clock.elapsed()
            raise ConcurrentExecution(id, "this process", left, FORCE_ADVICE)
        return run
