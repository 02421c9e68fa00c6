"""The memory store: what every store means, without a disk."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from durable._engine.decisions import Claim, ClaimReply, Granted, Refused
from durable._engine.leases import Lease
from durable._engine.runs import executable
from durable.clocks import Clock, SystemClock
from durable.codecs import Codec, chosen
from durable.errors import InvalidArgument, LeaseLost, RunCancelled
from durable.snapshot import Execution, Header, Kind, Record, Status
from durable.stores._heartbeat import Heartbeat
from durable.stores._threads import ThreadedStore


@dataclass(slots=True)
class _Run:
    header: Header | None = None
    records: dict[int, Record] = field(default_factory=dict[int, Record])
    epoch: int = 0
    token: str | None = None
    expires: float = 0.0
    cancelled: bool = False


class MemoryStore:
    """Runs kept in this process: the model that every store is compared with."""

    def __init__(self, *, codec: Codec | Sequence[Codec] | None = None, clock: Clock | None = None) -> None:
        self.codec = chosen(codec)
        self._clock = clock or SystemClock()
        self._lock = threading.RLock()  # a signal handler may come while it is held
        self._runs: dict[str, _Run] = {}
        self._signals: list[tuple[str, str, str]] = []
        self._aio: ThreadedStore | None = None
        self._closed = False
        self._heartbeat = Heartbeat(self._renew, self._clock)

    def __repr__(self) -> str:
        return "<durable store in memory>"

    def begin(self, claim: Claim, alive: Callable[[], bool]) -> ClaimReply:
        """See `RunStore.begin`."""
        with self._lock:
            if self._closed:
                raise InvalidArgument("the store is closed")
            sent = self._clock.elapsed()
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
                metadata = {**claim.metadata, "version": claim.version}
                if claim.input is not None:
                    metadata["inputHash"] = claim.input_hash
                    run.records[0] = Record(0, Kind.INPUT, Kind.INPUT, claim.input.decode())
                run.header = Header(claim.workflow, Execution(Status.RUNNING), metadata=metadata)
            self._set_status(run, Status.RUNNING)
            lease = Lease(claim.run_id, run.token, run.epoch, claim.seconds, sent)
            granted = Granted(lease, run.header, _in_order(run))
        self._heartbeat.keep(lease, alive)
        return granted

    def checkpoint(self, lease: Lease, record: Record) -> None:
        """See `RunStore.checkpoint`."""
        with self._lock:
            run = self._fenced(lease)
            run.records[record.seq] = record

    def finish(self, lease: Lease, status: Status, record: Record) -> None:
        """See `RunStore.finish`."""
        with self._lock:
            run = self._fenced(lease)
            run.records[record.seq] = record
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
            self._signals.append((run_id, name, payload))

    def receive(self, lease: Lease, name: str, taken: Sequence[int]) -> tuple[int, str] | None:
        """See `RunStore.receive`."""
        with self._lock:
            sent = enumerate(self._signals, start=1)
            ours = ((n, signal[2]) for n, signal in sent if signal[:2] == (lease.run_id, name) and n not in taken)
            return next(ours, None)

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

    def _fenced(self, lease: Lease) -> _Run:
        run = self._runs.get(lease.run_id)
        if run is not None and run.cancelled:
            raise RunCancelled(lease.run_id)
        if run is None or run.token != lease.token:
            raise LeaseLost(lease.run_id, "another execution has taken it over")
        return run

    def _renew(self, leases: Sequence[Lease]) -> dict[str, bool]:
        standing: dict[str, bool] = {}
        with self._lock:
            for lease in leases:
                run = self._runs.get(lease.run_id)
                if run is not None and run.token == lease.token:
                    run.expires = self._clock.elapsed() + lease.seconds
                    standing[lease.token] = True
                lease.cancelled = run is not None and run.cancelled
        return standing

    def _set_status(self, run: _Run, status: Status) -> None:
        assert run.header is not None  # noqa: S101 -- written by the same begin
        moment = self._clock.now().isoformat()
        completed_at = moment if status is Status.COMPLETED else None
        execution = Execution(status, last_updated=moment, completed_at=completed_at)
        run.header = msgspec.structs.replace(run.header, execution=execution)


def _in_order(run: _Run) -> list[Record]:
    return [run.records[seq] for seq in sorted(run.records)]
