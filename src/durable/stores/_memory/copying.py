"""Copies of runs in memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec import UNSET, structs

from durable._common.boundary import public_verbs
from durable._common.checks import check_name
from durable._common.locks import locked
from durable._engine.headers import reopen
from durable.clocks import Clock
from durable.errors import RunExists, RunNotFound
from durable.records import Header, Record
from durable.snapshots import header_and_records
from durable.stores._memory.queue import Queue
from durable.stores._memory.run import Run
from durable.stores._memory.signals import Signals
from durable.stores._memory.snapshots import SnapshotVerbs
from durable.stores.copies import Changes, StoredRun, checked_ids, checked_keep, status_of_copy
from durable.stores.requests import Signal


@public_verbs("store", "delete_many", "copy", "document", "restore")
class CopyingVerbs(SnapshotVerbs):
    """The verbs of the store in memory that copy runs."""

    clock: Clock
    _lock: Any
    _runs: dict[str, Run]
    _signals: Signals
    _queue: Queue

    @locked
    def copy(self, src: str, dst: str, *, keep: Collection[int] | None = None, changes: Changes | None = None) -> None:
        """See `PostgresStore.copy`."""
        kept, changes = checked_keep(keep), changes or Changes()
        check_name("a run's id", src)
        check_name("the id of a copy", dst)
        if (there := self._runs.get(dst)) is not None:
            raise RunExists(dst, "" if there.header is None else there.header.execution.status)
        run = self._runs.get(src)
        if run is None or run.header is None:
            raise RunNotFound(src)
        at = self.clock.now()
        records = {seq: record for seq, record in run.records.items() if kept is None or seq in kept}
        records |= {record.seq: _dated(record, at, run.epoch) for record in changes.records}
        is_a_workers = run.route is not None and run.route.queue != ""
        header = _copied(run.header, changes.metadata, status_of_copy(is_a_workers=is_a_workers), at)
        self._runs[dst] = Run(
            header,
            records,
            at,
            run.epoch,
            foreign=run.foreign,
            route=run.route,
            priority=run.priority,
            due_at=None if run.route is None else at,
            partition=run.partition,
        )
        self._queue.note(dst)
        self._queue.wake()

    @locked
    def delete_many(self, ids: Sequence[str]) -> Sequence[str]:
        """See `PostgresStore.delete_many`."""
        now = self.clock.elapsed()
        free = [name for name in checked_ids(ids) if (run := self._runs.get(name)) is None or not run.is_held(now)]
        for name in free:
            self._runs.pop(name, None)
            self._signals.forget(name)
        return free

    @locked
    def document(self, id: str) -> str | None:
        """See `PostgresStore.document`."""
        run = self._runs.get(check_name("a run's id", id))
        return None if run is None or run.header is None else msgspec.json.encode(run.header).decode()

    @locked
    def restore(self, run: StoredRun, *, replace: bool = False) -> None:
        """See `PostgresStore.restore`."""
        check_name("a run's id", run.id)
        header, _ = header_and_records(run.document, run_id=run.id)
        there = self._free(run.id, False)
        if there is not None and not replace:
            raise RunExists(run.id, "stored here")
        epoch = max(run.epoch, 0 if there is None else there.epoch + 1)
        at = self.clock.now()
        records = {record.seq: _dated(record, at, epoch) for record in run.records}
        self._runs[run.id] = Run(
            header,
            records,
            run.updated_at or at,
            epoch,
            route=run.route,
            priority=run.priority or 0,
            due_at=run.due_at,
            partition=run.partition,
        )
        self._signals.forget(run.id)
        for signal in run.signals:
            sent = Signal(run.id, signal.name, signal.payload)
            self._signals.keep(sent, signal.at, signal.dedup_hash)
        self._queue.note(run.id)


def _copied(header: Header, metadata: Mapping[str, Any], status: str, at: datetime) -> Header:
    execution = structs.replace(reopen(header.execution), status=status, last_updated=at.isoformat(), crashes=0)
    told = {key: value for key, value in header.metadata.items() if key != "deadline"}
    return structs.replace(
        header, execution=execution, metadata={**told, **metadata}, dedup=UNSET, continued=UNSET, parent=UNSET
    )


def _dated(record: Record, at: datetime, epoch: int) -> Record:
    return record if record.at is not None else record._replace(at=at, epoch=epoch)
