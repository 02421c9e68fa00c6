"""A run as it is kept in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from msgspec import UNSET, structs

from durable._common.durations import add_seconds
from durable._engine.decisions import Awaited, Claim
from durable._engine.headers import stamp_header
from durable._engine.leases import Lease
from durable._engine.starts import Route, name_workers
from durable.errors import LeaseLost, RunCancelled
from durable.records import CancelRequest, Header, Kind, Record, Status, StepRecord
from durable.stores.listing import NO_MOMENT, RunStatus, stands

NEVER: Final = datetime.max.replace(tzinfo=UTC)  # the moment at which only a signal makes a run due


@dataclass(slots=True)
class Run:
    """A run; all but its records and the end of its lease is changed by putting another one in its place."""

    header: Header | None = None
    records: dict[int, Record] = field(default_factory=dict[int, Record])
    updated_at: datetime = NO_MOMENT
    epoch: int = 0
    token: str | None = None
    expires: float = 0.0
    cancelled: bool = False
    foreign: dict[str, StepRecord] = field(default_factory=dict[str, StepRecord])  # another tool's failures
    route: Route | None = None  # of a run that was started
    priority: int = 0
    due_at: datetime | None = None  # when a worker may take it; None of one that has ended, or is no worker's
    awaits: tuple[Awaited, ...] | None = None  # of one that is suspended, what brings it on; None of any other
    partition: str | None = None  # of a run that was started
    is_left: bool = False  # its last owner died under it, and it was taken from that before another one had it

    def is_held(self, now: float) -> bool:
        """Whether it is being executed."""
        return self.token is not None and self.expires > now

    @property
    def is_a_workers(self) -> bool:
        """Whether only workers may take it: it is due, and no call began it."""
        return self.due_at is not None and self.route is not None and self.route.queue != ""

    def routed(self, before: Run, claim: Claim, at: datetime) -> Run:
        """The run, claimed at this moment, with the route that it had before or that the claim gives it."""
        route = before.route or (Route("", claim.workflow, claim.version) if claim.recovers else None)
        is_due = route is not None and (before.due_at is not None or not claim.amends)
        due_at = at + timedelta(seconds=claim.seconds) if is_due else None
        priority = 5 if before.route is None else before.priority
        return replace(self, route=route, priority=priority, due_at=due_at, partition=before.partition)

    def rerouted(self, before: Run, version: Any, at: datetime) -> Run:
        """The run, in the place of what it was before; of another version it may be gone on with at once."""
        route, due_at, awaits = before.route, before.due_at, before.awaits
        if route is not None and due_at is not None and version != route.version:
            route, due_at, awaits = Route(route.queue, route.workflow, version), at, None
        header = self.header
        if header is not None and before.header is not None:  # no document has it
            header = structs.replace(
                header, dedup=before.header.dedup, continued=before.header.continued, parent=before.header.parent
            )
        self = replace(self, header=header, priority=before.priority, partition=before.partition)  # noqa: PLW0642
        return replace(self, route=route, due_at=due_at, awaits=awaits)

    def owner(self, now: float) -> str | None:
        """By what it is executed, or will be; None where nothing stands in the way of a claim."""
        if self.is_a_workers and self.route is not None:
            return name_workers(self.route.queue)
        return "this process" if self.is_held(now) else None

    def is_awaiting(self, name: str) -> bool:
        """Whether it is suspended until there is a signal of this name, or until then at the latest."""
        return self.awaits is not None and any(awaited.name == name for awaited in self.awaits)

    def is_due(self, at: datetime, now: float) -> bool:
        """Whether a worker may take it at this moment, and at this reading; if it was not given back, when the lease ends."""
        return self.due_at is not None and not self.is_held(now) and (self.token is not None or self.due_at <= at)

    def turn(self) -> tuple[bool, int, datetime | None]:
        """Its place among what is due: what was begun goes on before anything else is."""
        is_begun = self.header is not None and self.header.execution.status != Status.QUEUED
        return not is_begun, self.priority, self.due_at

    def due_again(self, at: datetime, due_in: float, status: Status | None) -> datetime | None:
        """When it is due after its holder has left it with this status."""
        stands = self.header.execution.status if status is None and self.header is not None else status
        over = stands not in (Status.QUEUED, Status.RUNNING)
        return None if self.route is None or over else later(at, due_in)

    def stands(self, now: float) -> RunStatus:
        status = "running" if self.header is None else self.header.execution.status
        return stands(status, held=self.is_held(now), suspended=self.awaits is not None) or "failed"

    def has_closing(self) -> bool:
        """Whether something is to be done when it ends."""
        return any('"at_end"' in record.text and record.kind == Kind.STEP for record in self.records.values())

    @property
    def is_asked(self) -> bool:
        """Whether it is open, and was asked to be cancelled."""
        return self.header is not None and self.header.is_open and self.header.cancel is not UNSET

    def asked(self, cancel: CancelRequest) -> Run:
        """The run with this request, for the reason of an earlier one where it says none."""
        assert self.header is not None  # noqa: S101 -- it is open
        earlier = self.header.cancel
        if cancel.reason is None and earlier is not UNSET:
            cancel = structs.replace(cancel, reason=earlier.reason)
        return replace(self, header=structs.replace(self.header, cancel=cancel))

    def has(self, record: Record) -> bool:
        """Whether this record stands in its journal."""
        stored = self.records.get(record.seq)
        return stored is not None and (stored.key, stored.kind, stored.text) == (record.key, record.kind, record.text)

    def journal(self) -> list[Record]:
        """Its records in order."""
        return [self.records[seq] for seq in sorted(self.records)]

    def continued_with(self, record: Record, number: int, at: datetime) -> tuple[Run, Run]:
        """The run, whose journal begins anew with this input; and what it was, as a run that is completed."""
        assert self.header is not None  # noqa: S101 -- written by the same begin
        seq = max(self.records, default=-1) + 1
        records = self.records | {seq: record._replace(seq=seq, key=Kind.RESULT, kind=Kind.RESULT)}
        header = structs.replace(stamp_header(self.header, Status.COMPLETED, at), dedup=UNSET, parent=UNSET)
        history = Run(header, records, at, self.epoch)
        anew = structs.replace(self.header, continued=number)
        return replace(self, header=anew, records={0: record}), history

    def stamped(self, status: Status, at: datetime, **changes: Any) -> Run:
        """The run with these changes and this status, to be put in its place: a look sees all of it or nothing."""
        assert self.header is not None  # noqa: S101 -- written by the same begin
        changed = replace(self, **changes)
        records = changed.journal() if status is Status.FAILED else ()
        return replace(changed, header=stamp_header(self.header, status, at, records), updated_at=at)


def later(moment: datetime, seconds: float) -> datetime:
    """The moment so many seconds later; `NEVER` where these are infinite."""
    return NEVER if seconds == math.inf else add_seconds(moment, seconds)


def fenced(run: Run | None, lease: Lease) -> Run:
    """The run that stands under this lease's id, if it is the lease's own; `LeaseLost` or `RunCancelled` if not."""
    if run is None or run.epoch < lease.epoch:  # an epoch only rises: this is another run, of the same id
        raise LeaseLost(lease.run_id, "the run was deleted")
    if run.cancelled:
        raise RunCancelled(lease.run_id)
    if run.token != lease.token:
        taken = run.epoch != lease.epoch
        why = "another execution has taken it over" if taken else lease.gone or "it was given back"
        raise LeaseLost(lease.run_id, why)
    return run
