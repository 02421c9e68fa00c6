"""The memory store: what every store means, without a disk."""

from __future__ import annotations

import itertools
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Self

from msgspec import structs

from durable._border import public_verbs
from durable._durations import Duration
from durable._engine.decisions import Claim, ClaimReply, Granted, Refused
from durable._engine.leases import Lease
from durable._engine.runs import adopted, executable, is_foreign
from durable.clocks import Clock, SystemClock
from durable.codecs import Codec, chosen
from durable.documents import Snapshot, journal_of, snapshot_of
from durable.errors import ConcurrentExecution, InvalidArgument, LeaseLost, RunCancelled
from durable.snapshot import Execution, Header, Kind, Record, Status, checked_name, standing, taken_up
from durable.stores._heartbeat import Heartbeat
from durable.stores._owner import this_process
from durable.stores._threads import ThreadedStore
from durable.stores.listing import (
    FORCE_ADVICE,
    NO_MOMENT,
    PAGE,
    Listed,
    Progress,
    RunStatus,
    Stats,
    asked,
    asked_to_purge,
    checked_snapshot,
    stands,
)
from durable.stores.protocol import Isolation, Transaction


@dataclass(slots=True)
class _Run:
    header: Header | None = None
    records: dict[int, Record] = field(default_factory=dict[int, Record])
    updated_at: datetime = NO_MOMENT
    epoch: int = 0
    token: str | None = None
    expires: float = 0.0
    cancelled: bool = False


class _Signal(NamedTuple):
    number: int
    run_id: str
    name: str
    payload: str


@public_verbs("store", "save", "load", "delete", "list", "purge", "stats", "status")
class MemoryStore:
    """Runs kept in this process: the model that every store is compared with."""

    def __init__(self, *, codec: Codec | Sequence[Codec] | None = None, clock: Clock | None = None) -> None:
        self.codec = chosen(codec)
        self.clock = clock or SystemClock()
        self._lock = threading.RLock()  # a signal handler may come while it is held
        self._runs: dict[str, _Run] = {}
        self._signals: list[_Signal] = []
        self._numbers = itertools.count(1)
        self._aio: ThreadedStore | None = None
        self._closed = False
        self._heartbeat = Heartbeat(self._renew, self._look, self.clock)

    def __repr__(self) -> str:
        return "<durable store in memory>"

    def begin(self, claim: Claim, alive: Callable[[], bool]) -> ClaimReply:
        """See `RunStore.begin`."""
        with self._lock:
            if self._closed:
                raise InvalidArgument("the store is closed")
            sent = self.clock.elapsed()
            run = self._runs.get(claim.run_id) or _Run()
            held = run.token is not None and run.expires > sent
            if held or not executable(claim, run.header):
                endings = [record for record in _in_order(run) if record.kind in (Kind.RESULT, Kind.FAILURE)]
                return Refused(
                    run.header, endings, "this process" if held else None, run.expires - sent if held else None
                )
            self._runs[claim.run_id] = run
            run.epoch += 1
            run.token = f"{run.epoch}:{secrets.token_hex(8)}"
            run.cancelled = False
            run.expires = sent + claim.seconds
            if run.header is None:
                run.header = Header("", Execution(Status.RUNNING))
            if is_foreign(run.header) and not claim.amends:
                run.header = adopted(claim, run.header)
                if claim.input is not None:
                    self._keep(run, Record(0, Kind.INPUT, Kind.INPUT, claim.input.decode()))
            if not claim.amends:
                run.updated_at = self.clock.now()
                moment, execution = run.updated_at.isoformat(), run.header.execution
                execution = taken_up(execution, epoch=run.epoch, owner=this_process(), moment=moment)
                run.header = structs.replace(run.header, execution=execution)
            lease = Lease(claim.run_id, run.token, run.epoch, claim.seconds, sent)
            granted = Granted(lease, run.header, _in_order(run))
        self._heartbeat.keep(lease, alive)
        return granted

    def checkpoint(self, lease: Lease, record: Record) -> None:
        """See `RunStore.checkpoint`."""
        with self._lock:
            run = self._fenced(lease)
            self._keep(run, record)

    def finish(self, lease: Lease, status: Status, record: Record) -> None:
        """See `RunStore.finish`."""
        with self._lock:
            run = self._fenced(lease)
            self._keep(run, record)
            self._set_status(run, status)
            run.token = None
        self._heartbeat.drop(lease)

    def release(self, lease: Lease, status: Status | None = None) -> None:
        """See `RunStore.release`."""
        self._heartbeat.drop(lease)
        with self._lock:
            run = self._runs.get(lease.run_id)
            if run is not None and run.token == lease.token:
                run.token = None
                if status is not None:
                    self._set_status(run, status)

    def cancel(self, run_id: str) -> bool:
        """See `RunStore.cancel`."""
        with self._lock:
            run = self._runs.get(run_id)
            if run is None or run.header is None or run.header.execution.status != Status.RUNNING:
                return False
            run.token, run.cancelled = None, True
            self._set_status(run, Status.CANCELLED)
            return True

    def signal(self, run_id: str, name: str, payload: str) -> None:
        """See `RunStore.signal`."""
        with self._lock:
            self._signals.append(_Signal(next(self._numbers), run_id, name, payload))

    def receive(self, lease: Lease, name: str, taken: Sequence[int]) -> tuple[int, str] | None:
        """See `RunStore.receive`."""
        with self._lock:
            for number, run_id, named, payload in self._signals:
                if (run_id, named) == (lease.run_id, name) and number not in taken:
                    return number, payload
            return None

    def transaction(self, lease: Lease, name: str, isolation: Isolation) -> Transaction:  # noqa: ARG002
        """Not here: there is no database to do anything in."""
        raise InvalidArgument(
            f"step.transaction({name!r}) needs the database that its body works in, and the store in memory has none: "
            f"embedded() starts a real PostgreSQL for tests, postgres(url) uses yours"
        )

    def save(self, id: str, snapshot: Snapshot | Mapping[str, Any], *, force: bool = False) -> None:
        """See `PostgresStore.save`."""
        checked_name("a run's id", id)
        header, records = journal_of(checked_snapshot(id, snapshot))
        with self._lock:
            run = self._free(id, force)
            epoch = 0 if run is None else run.epoch + 1
            run = self._runs[id] = run or _Run()
            # Those of a run that was copied from elsewhere go on to be counted as they were there.
            run.epoch, run.token, run.cancelled = max(epoch, header.execution.epoch), None, False
            run.records = {record.seq: record for record in records}
            run.updated_at = self.clock.now()
            if not header.execution.last_updated:
                execution = structs.replace(header.execution, last_updated=run.updated_at.isoformat())
                header = structs.replace(header, execution=execution)
            run.header = header

    def load(self, id: str) -> Snapshot | None:
        """See `PostgresStore.load`."""
        checked_name("a run's id", id)
        with self._lock:
            run = self._runs.get(id)
            if run is None or run.header is None:
                return None
            header, records = run.header, _in_order(run)
        return snapshot_of(header, records, run_id=id)

    def replace(self, run_id: str, old: Snapshot, new: Snapshot) -> bool:
        """See `RunStore.replace`."""
        with self._lock:
            run = self._runs.get(run_id)
            if run is None or self._held(run) or self.load(run_id) != old:
                return False
            self.save(run_id, new)
            for record in _in_order(run):
                run.records[record.seq] = self._dated(record, run.epoch)
            return True

    def delete(self, id: str, *, force: bool = False) -> None:
        """See `PostgresStore.delete`."""
        checked_name("a run's id", id)
        with self._lock:
            self._free(id, force)
            self._forget(id)

    def list(
        self, *, prefix: str = "", limit: int = PAGE, status: RunStatus | None = None, after: Listed | None = None
    ) -> Sequence[Listed]:
        """See `PostgresStore.list`."""
        page = asked(prefix, limit, status, after)
        with self._lock:
            lines = [
                Listed(name, run.updated_at)
                for name, run in self._runs.items()
                if name.startswith(page.prefix) and page.status in (None, self._stands(run))
            ]
        lines.sort(key=_newest_last, reverse=True)
        return [line for line in lines if after is None or _newest_last(line) < _newest_last(after)][: page.limit]

    def purge(
        self, *, older_than: Duration, status: RunStatus | None = "completed", progress: Progress | None = None
    ) -> int:
        """See `PostgresStore.purge`."""
        seconds, wanted = asked_to_purge(older_than, status)
        with self._lock:
            before = self.clock.now() - timedelta(seconds=seconds)
            old = [
                name
                for name, run in self._runs.items()
                if run.updated_at < before and (stand := self._stands(run)) != "running" and wanted in (None, stand)
            ]
            for name in old:
                self._forget(name)
        if old and progress is not None:
            progress(len(old))
        return len(old)

    def stats(self) -> Stats:
        """See `PostgresStore.stats`."""
        with self._lock:
            runs = list(self._runs.values())
            stand = [self._stands(run) for run in runs]
            texts = [record.text for run in runs for record in run.records.values()]
        return Stats(
            running=stand.count("running"),
            interrupted=stand.count("interrupted"),
            completed=stand.count("completed"),
            failed=stand.count("failed"),
            cancelled=stand.count("cancelled"),
            unreadable=0,
            records=len(texts),
            bytes=sum(map(len, texts)),
        )

    def status(self, id: str) -> RunStatus | None:
        """See `PostgresStore.status`."""
        checked_name("a run's id", id)
        with self._lock:
            run = self._runs.get(id)
            return None if run is None else self._stands(run)

    @property
    def identity(self) -> object:
        """This very object."""
        return self

    @property
    def aio(self) -> ThreadedStore:
        """The same verbs for asyncio."""
        with self._lock:
            if self._aio is None:
                self._aio = ThreadedStore(self, threads=1)
            return self._aio

    def close(self) -> None:
        """End the threads, and take no more claims."""
        self._closed = True
        self._heartbeat.close()
        with self._lock:
            aio, self._aio = self._aio, None
        if aio is not None:
            aio.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _held(self, run: _Run) -> bool:
        return run.token is not None and run.expires > self.clock.elapsed()

    def _stands(self, run: _Run) -> RunStatus:
        return (
            stands("running" if run.header is None else run.header.execution.status, held=self._held(run)) or "failed"
        )

    def _forget(self, id: str) -> None:
        self._runs.pop(id, None)
        self._signals = [signal for signal in self._signals if signal.run_id != id]

    def _free(self, id: str, force: bool) -> _Run | None:
        """The run, if there is one; `ConcurrentExecution` if somebody is executing it."""
        run = self._runs.get(id)
        if run is not None and self._held(run) and not force:
            left = run.expires - self.clock.elapsed()
            raise ConcurrentExecution(id, "this process", left, FORCE_ADVICE)
        return run

    def _fenced(self, lease: Lease) -> _Run:
        run = self._runs.get(lease.run_id)
        if run is not None and run.cancelled:
            raise RunCancelled(lease.run_id)
        if run is None:
            raise LeaseLost(lease.run_id, "the run was deleted")
        if run.token != lease.token:
            taken = run.epoch != lease.epoch
            raise LeaseLost(lease.run_id, "another execution has taken it over" if taken else "it was given back")
        return run

    def _renew(self, leases: Sequence[Lease]) -> dict[str, bool]:
        standing: dict[str, bool] = {}
        with self._lock:
            for lease in leases:
                run = self._runs.get(lease.run_id)
                if run is not None and run.token == lease.token:
                    run.expires = self.clock.elapsed() + lease.seconds
                    standing[lease.token] = True
                lease.cancelled = run is not None and run.cancelled
        return standing

    def _look(self, leases: Sequence[Lease]) -> None:
        with self._lock:
            for lease in leases:
                run = self._runs.get(lease.run_id)
                lease.cancelled = run is not None and run.cancelled

    def _keep(self, run: _Run, record: Record) -> None:
        run.records[record.seq] = self._dated(record, run.epoch)

    def _dated(self, record: Record, epoch: int) -> Record:
        """The record, and when and under which lease it was stored, where it does not say."""
        seq, key, kind, text, at, under = record
        return Record(seq, key, kind, text, at or self.clock.now(), under or epoch)

    def _set_status(self, run: _Run, status: Status) -> None:
        assert run.header is not None  # noqa: S101 -- written by the same begin
        run.updated_at = self.clock.now()
        records = _in_order(run) if status is Status.FAILED else ()
        execution = standing(run.header.execution, status, run.updated_at.isoformat(), records)
        run.header = structs.replace(run.header, execution=execution)


def _newest_last(line: Listed) -> tuple[datetime, str]:
    return line.updated_at, line.id


def _in_order(run: _Run) -> list[Record]:
    return [run.records[seq] for seq in sorted(run.records)]
