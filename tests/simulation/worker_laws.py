"""What must hold of runs that workers execute: the laws W2 to W9 and W11 of workers, after every statement.

(W1, one lease at a time and no acknowledged body begun again, is I2, I3 and I5 of `History`; W10 is `IdlePolls`.)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from durable._engine.workers import MAX_CRASHES, Ask
from durable.records import Status
from durable.stores._postgres.starts import line_of
from simulation.database import Change, Transaction
from simulation.family_laws import FamilyLaws
from simulation.history import Broken, History
from simulation.idle_law import IdlePolls
from simulation.limit_laws import LimitLaws
from simulation.rows import names_awaited
from simulation.scenario import Limits
from simulation.server import Server
from simulation.tables import Header, Lane, Lease, Signal, Ticked

__all__ = ["WorkerLaws"]

_UNDER_WAY: Final = (Status.QUEUED, Status.RUNNING)
_CLOCKS: Final = 1e-6  # seconds: what adding and subtracting moments costs
_AT_ONCE: Final = 0.5  # seconds in which a start that is not missed is taken: less than an idle worker's interval
_SETTLED: Final = 2.0  # seconds after a process's death in which something of it may still arrive


class WorkerLaws:
    """Is told what commits, and raises `Broken` as soon as something is wrong.

    `routes` are the runs that each place's worker has; `on_end` is called with each run that ends; a `lease` lasts so many
    seconds; `prompt` are runs whose start none may miss: nothing goes wrong, there is always room, and they are due at once.
    """

    def __init__(
        self,
        server: Server,
        history: History,
        routes: Mapping[int, Collection[str]],
        on_end: Callable[[str], object],
        lease: float,
        prompt: Collection[str],
    ) -> None:
        self._server = server
        self._history = history
        self._tables = server.tables
        self._routes = routes
        self._on_end = on_end
        self._lease = lease
        self._prompt = prompt
        self._families = FamilyLaws(server, self._broken, history.seen)
        self._idle = IdlePolls(server, self._broken)
        self._died: dict[str, float] = {}  # of each mark, when
        self._began: dict[str, float] = {}  # of each route's run, when its first worker was at work
        self._ended: set[str] = set()
        self._last_tick: float | None = None
        self._taken_at: dict[str, float] = {}  # of each run, when it was taken last
        self._limits: LimitLaws | None = None
        self._left: dict[str, Lease] = {}  # of each run, what its owner has left, which holds no slot any more
        self._seen_by_poll: dict[str, int] = {}  # of each run that was taken last, the commits that the poll saw
        audit = server.database.audit

        def audited(number: int, changes: list[Change]) -> None:
            if audit is not None:
                audit(number, changes)
            self._audit(changes)

        server.database.audit = audited
        server.on_statement = self._executed

    def limit(self, limits: Limits) -> None:
        """The queue has these, before anything happens."""
        self._idle.is_off = True
        self._limits = LimitLaws(self._tables, limits, self._broken)

    def begins(self, place: int) -> None:
        """A worker of this place is at work."""
        for run in self._routes.get(place, ()):
            self._began.setdefault(run, self._server.timeline.now)

    def died(self, mark: str) -> None:
        """A process is gone."""
        self._died[mark] = self._server.timeline.now

    def polled(self, mark: str, ask: Ask, held: set[str], began: float, *, shows_dead: bool) -> None:
        """A worker has the reply to a poll, and holds these tokens: no other lease is its own, or a dead neighbour's."""
        for lease in self._held():
            owner, claim = _mark(lease), str(lease.owner_token).partition(":")[2]
            is_running = lease.expires_at > self._server.database.clock() and not self._is_late(claim)
            if owner == mark and is_running and lease.owner_token not in held and not self._history.was_left(claim):
                raise self._broken("W9", f"{lease} was granted to a worker that does not hold it")
            looked = (
                ask.looks_for_dead
                and shows_dead
                and len(held) < ask.count
                and line_of(str(lease.route)) in self._had(mark)
            )
            looked = looked and self._taken_at[lease.workflow_id] < began
            if looked and self._died.get(owner, began) < began - _SETTLED and self._is_due_later(lease):
                raise self._broken("W7", f"{lease}, whose owner is dead, was left by a worker that has looked")

    def left(self, mark: str, *, is_calm: bool) -> None:
        """A worker has come to its end, in a world where nothing `is_calm` enough keeps it from giving back what it held."""
        for lease in self._held():
            if is_calm and _mark(lease) == mark:
                raise self._broken("W9", f"{lease} is still held by a worker that has left")

    def child_told(self, workflow: str, outcome: object) -> None:
        """A parent has what became of this child."""
        self._families.told(workflow, outcome)

    def cancelled(self, run: str) -> None:
        """A cancellation of this run has been answered."""
        self._families.cancelled(run)

    def leads_to_polls(self, mark: str, polls: int = 1) -> None:
        """Something has, which leads to so many polls of this worker."""
        self._idle.leads_to_polls(mark, polls)

    def polls_while_draining(self, mark: str) -> Broken:
        """What is wrong then."""
        return self._broken("W9", f"{mark} has polled after it was told to drain")

    def waiting(self) -> list[str]:
        """The runs that were started, and have not ended."""
        leases = map(self._tables.locks.committed, sorted(self._tables.locks.rows))
        return [lease.workflow_id for lease in leases if lease is not None and lease.due_at is not None]

    def end(self, started: Collection[str]) -> None:
        """Everything is quiet: all that was started has ended, and nothing is held."""
        for run in started:
            if run not in self._ended:
                raise self._broken("W2", f"{run} was started, and has not ended")
        for lease in self._held():
            raise self._broken("W9", f"{lease} is still held when every run has ended")

    def _broken(self, law: str, what: str) -> Broken:
        return self._history.break_with(law, what)

    def _is_late(self, claim: str) -> bool:
        """Whether a sending has taken this that came after it was recalled: such a lease ends by itself."""
        name, sending = claim.split(".")[:2], claim.split(".")[2]
        return int(sending) < self._server.recalls.get(".".join(name), 0)

    def _held(self) -> list[Lease]:
        leases = map(self._tables.locks.committed, list(self._tables.locks.rows))
        return [lease for lease in leases if lease is not None and lease.route and lease.owner_token]

    def _had(self, mark: str) -> set[str | None]:
        return {self._route_of(run) for run in self._routes.get(_place(mark), ())}

    def _route_of(self, run: str) -> str | None:
        lease = self._tables.locks.committed(run)
        return None if lease is None or lease.route is None else line_of(lease.route)

    def _is_due_later(self, lease: Lease) -> bool:
        return lease.due_at is not None and lease.due_at > self._server.database.clock()

    # -- what the database does

    def _executed(self, statement: str, transaction: Transaction) -> None:
        if self._limits is not None:
            self._limits.executed(transaction)
        if statement in ("poll", "take_members"):
            self._seen_by_poll |= {row.key: transaction.snapshot for _, row in transaction.written}
        if statement == "enqueue" and any(_is_there(row, transaction) for row in transaction.locked):
            locked = [row.key for row in transaction.locked if _is_there(row, transaction)]
            raise self._broken("W4", f"a start has locked {locked}, which are committed")

    def _audit(self, changes: list[Change]) -> None:
        headers: dict[str, Change] = {}
        for change in changes:
            if type(change.after) is Ticked:
                self._audit_tick(change.after)
        for change in changes:
            if type(change.after) is Header:
                headers[change.after.id] = change
        self._families.audit(changes)
        touched: dict[str, Lease | None] = {run: self._tables.locks.committed(run) for run in headers}
        for change in changes:
            if type(change.after) is Lease and change.after.route is not None:
                touched[change.after.workflow_id] = change.after
                self._audit_lease(change.before, change.after, headers.get(change.after.workflow_id))
        for run, lease in touched.items():
            if lease is not None and lease.route is not None:
                self._audit_run(lease, self._tables.snapshots.committed(run))
        for run in {*touched, *(change.after.workflow_id for change in changes if type(change.after) is Signal)}:
            if (lease := self._tables.locks.committed(run)) is not None and (names := names_awaited(lease)) is not None:
                self._audit_suspended(lease, names)
        if self._limits is not None and any(type(change.after) in (Lease, Lane) for change in changes):
            self._limits.audit(self._server.database.clock(), self._history.seen)

    def _audit_suspended(self, lease: Lease, names: list[str]) -> None:
        """W8: it holds nothing. And W2: what brings it on has not come, or a poll will notice it."""
        run, now = lease.workflow_id, self._server.database.clock()
        if lease.expires_at > now + _CLOCKS:
            raise self._broken("W8", f"{run} is suspended, and has a lease: {lease}")
        if lease.due_at is None:
            raise self._broken("W2", f"{run} is suspended, and nothing brings it on: {lease}")
        if lease.due_at > now and (signal := self._find_call(run, names)) is not None:
            raise self._broken("W2", f"{run} sleeps on, though {signal} was noticed: {lease}")

    def _find_call(self, run: str, names: Iterable[str]) -> Signal | None:
        """A signal of these names that was noticed, and that the run has not received."""
        for nonce in self._tables.nonces.get(run, ()):
            signal = self._tables.signals.committed((run, nonce))
            if signal is not None and signal.noticed and signal.name in names and not self._is_received(signal):
                return signal
        return None

    def _is_received(self, signal: Signal) -> bool:
        steps = (
            self._tables.steps.committed((signal.workflow_id, seq)) for seq in self._tables.seqs[signal.workflow_id]
        )
        return any(step is not None and f'"signal":{signal.number},' in f"{step.record[:-1]}," for step in steps)

    def _audit_run(self, lease: Lease, header: Header | None) -> None:
        run, status = lease.workflow_id, None if header is None else header.status
        if (status in _UNDER_WAY) != (lease.due_at is not None):
            raise self._broken("W2", f"{run} is {status}, and due at {lease.due_at}")
        if lease.owner_token is not None:
            if lease.due_at is not None and lease.due_at > lease.expires_at + _CLOCKS:
                raise self._broken("W7", f"if its owner dies, {run} is due later than its lease ends: {lease}")
            if status != Status.RUNNING:
                raise self._broken("W2", f"{run} is held, and is {status}")
        if status in _UNDER_WAY:
            self._ended.discard(run)  # a child that runs again with its parent
        if header is not None and status not in _UNDER_WAY and run not in self._ended:
            self._ended.add(run)
            self._audit_end(header)
            self._on_end(run)

    def _audit_end(self, header: Header) -> None:
        if header.status == Status.FAILED:
            execution = header.snapshot["execution"]
            error: dict[str, str] = execution.get("error") or {}
            is_poisoned = error.get("type", "").endswith("RunPoisoned")
            if is_poisoned and execution.get("crashes", 0) < MAX_CRASHES:
                raise self._broken("poison", f"{header.id} was buried after {execution.get('crashes')} deaths")
            self._history.seen["a run that was buried" if is_poisoned else "a started run that has failed"] += 1

    def _audit_tick(self, ticked: Ticked) -> None:
        """Each moment of the schedule of a second begins one run, in their order, without a hole."""
        at = datetime.fromisoformat(ticked.id.partition("/")[2]).timestamp()
        if self._last_tick is not None and at != self._last_tick + 1.0:
            raise self._broken("W5", f"{ticked.id} was begun after the moment {self._last_tick - at:+g} s from it")
        self._last_tick = at
        self._history.seen["a moment of a schedule that has begun its run"] += 1

    def _audit_lease(self, before: Lease | None, after: Lease, header: Change | None) -> None:
        now, seen = self._server.database.clock(), self._history.seen
        if before is None:
            return
        if names_awaited(before) is not None and after.owner_token is None and after.due_at is not None:
            seen["a suspended run that its signal has woken"] += 1
        if before.owner_token == after.owner_token:
            if after.owner_token is not None and after.expires_at < before.expires_at - _CLOCKS:
                self._audit_early_end(after)
            elif after.due_at is not None and after.due_at < after.expires_at - self._lease / 2 - _CLOCKS:
                raise self._broken("W2", f"{after} was renewed, and is due long before it ends")
            return
        if after.owner_token is None:
            if str(after.owner).startswith("left "):
                self._left[after.workflow_id] = before
            if names_awaited(after) is not None:
                seen["a run that was suspended"] += 1
            elif after.due_at is not None:
                seen["a run that was given back" if after.due_at <= now else "a run that is due again later"] += 1
            return
        seen["a run that a worker has taken"] += 1
        seen["a suspended run whose wait was over"] += names_awaited(before) is not None
        self._idle.leads_to_polls(_mark(after), 2)
        self._taken_at[after.workflow_id] = self._server.timeline.now
        self._audit_taking(before, after, header, now)

    def _is_called(self, lease: Lease) -> bool:
        """Whether what it is suspended for has come: a poll notices that, and takes the run in the same transaction."""
        is_called = self._find_call(lease.workflow_id, names_awaited(lease) or ()) is not None
        self._history.seen["a suspended run that its signal has woken"] += is_called
        return is_called

    def _audit_early_end(self, lease: Lease) -> None:
        mark, claim = _mark(lease), str(lease.owner_token).partition(":")[2]
        if mark not in self._died and not self._history.was_left(claim):
            raise self._broken("W7", f"{lease} was ended early, and its owner lives")
        self._history.seen["a dead owner's lease that was ended early"] += 1

    def _audit_taking(self, before: Lease, after: Lease, header: Change | None, now: float) -> None:
        run, mark = after.workflow_id, _mark(after)
        if after.epoch != before.epoch + 1:
            raise self._broken("I5", f"{run} was taken under epoch {after.epoch} after {before.epoch}")
        if run.partition("/")[0] not in self._routes.get(
            _place(mark), ()
        ):  # who has a parent's workflow has its children's
            raise self._broken("W6", f"{mark} has taken {run}, whose workflow it does not have")
        if before.due_at is None or (
            before.owner_token is None and before.due_at > now and not self._is_called(before)
        ):
            raise self._broken("W2", f"{run} was taken before it was due: {before}")
        if (
            before.owner_token is not None
            and before.expires_at > now
            and before.owner_token not in self._server.recalled
        ):
            self._audit_early_end(before)
        if header is None:
            raise self._broken("W2", f"{run} was taken, and its header stays as it was")
        self._audit_crashes(self._as_it_was_left(before), header)
        if self._is_late(str(after.owner_token).partition(":")[2]):
            self._history.seen["a poll that came after its recall"] += 1
        if run in self._prompt and before.epoch == 0:
            late = now - max(before.due_at, self._began.get(run, now))
            if late > _AT_ONCE:
                raise self._broken("W11", f"{run} was taken {late:.3f} s after it was due, by a worker that was idle")
            self._history.seen["a start that was taken at once"] += 1

    def _as_it_was_left(self, lease: Lease) -> Lease:
        is_left = lease.owner_token is None and str(lease.owner).startswith("left ")
        return self._left.get(lease.workflow_id, lease) if is_left else lease

    def _audit_crashes(self, before: Lease, header: Change) -> None:
        old, new = (run.snapshot["execution"].get("crashes", 0) for run in (header.before, header.after))
        run = before.workflow_id
        if before.owner_token is None or before.owner_token in self._server.recalled:
            due = {0, old}  # nought where something was recorded before it was given back
            if before is self._left.get(run):  # its slot was freed before the poll was recalled, whose reply was lost
                due |= self._due_crashes(run, before.epoch, old)
        else:
            due = self._due_crashes(run, before.epoch, old)
            workers = self._tables.workers
            known = filter(None, map(workers.committed, workers.rows))
            if any(worker.leaving and worker.owner == before.owner for worker in known):
                due.add(old)
        if self._tables.started[0] > -1.0:  # a server that has been restarted since is no worker's fault
            due.add(old)
        if new not in due:
            raise self._broken("poison", f"{run} counts {new} deaths after {old}, and {due} are due")
        if new:
            self._history.seen["a death under a run"] += 1

    def _due_crashes(self, run: str, epoch: int, known: int) -> set[int]:
        """What a poll may count that takes a run from an owner which did not give it back."""
        rows = [self._tables.steps.rows[run, seq] for seq in self._tables.seqs.get(run, ())]
        written = [commit for row in rows for commit, step in row.versions if step.epoch == epoch]
        if not written:
            return {known + 1}
        if min(written) <= self._seen_by_poll.get(run, 0):
            return {0}
        self._history.seen["a record that came between a poll and its lock"] += 1
        return {0, known + 1}


def _is_there(row: Any, transaction: Transaction) -> bool:
    """Whether it is committed, and is no lease of a parent, which is locked so that a child may be started."""
    return bool(row.versions) and row.key not in transaction.fenced


def _mark(lease: Lease) -> str:
    return str(lease.owner_token).partition(":")[2].partition(".")[0]


def _place(mark: str) -> int:
    return int(mark[1:].partition("l")[0])
