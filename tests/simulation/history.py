"""What happened in a simulated history, and whether it may have: the invariants I1 to I9 of FAULTS.md."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from durable._engine.leases import Lease as HeldLease
from durable.errors import LeaseLost, OutcomeUnknown, StepTimeout
from durable.records import Kind, Record, Status
from durable.stores._postgres.jobs import CHECKPOINT, FINISH
from simulation.database import Change
from simulation.server import Server
from simulation.tables import Effect, Header, Lease, Step

__all__ = ["CANCELLED", "FAILED", "INTERRUPTED", "SOMETIMES", "Broken", "Drawn", "History"]

# What is in flight where a step is called.
FAILED: Final = "a failure"
CANCELLED: Final = "a cancellation"
INTERRUPTED: Final = "Ctrl-C"

_MOST_DRIFTS: Final = 6
_LONGEST_STATEMENT: Final = 12.0  # seconds
_DRIFTS: Final = 0.999  # of a sleep, by a clock that is fast
_MOST_DROPS: Final = 3  # of one record: its sending, one repetition, and one more where a reply was lost

# Situations that a large number of seeds must have led to: else what is said of them was never looked at.
SOMETIMES: Final = (
    "a body in a transaction that was undone before",
    "a body that began after its lease (the documented hole)",
    "an acknowledged body begun again in the documented hole",
    "a body that began late",
    "a body that was given up after its timeout",
    "a body that was the victim of another transaction",
    "a body that went on after its timeout",
    "a child that is cancelled",
    "a child that is completed",
    "a child that is failed",
    "a child that runs again with its parent",
    "a dead owner's lease taken over",
    "a dead owner's lease that was ended early",
    "a death under a run",
    "a failure that was given out",
    "a lease taken away by cancel",
    "a notification that was doubled",
    "a notification that was late",
    "a notification that was lost",
    "a partition that is full",
    "a poll that came after its recall",
    "a queue that is full",
    "a record of kind attempt",
    "a record of kind failure",
    "a record that was dropped",
    "a run that is cancelled",
    "a run that is completed",
    "a run that is failed",
    "a run that is free when it is left",
    "a run that a worker has taken",
    "a run that is due again later",
    "a run that was suspended",
    "a suspended run that its signal has woken",
    "a suspended run whose wait was over",
    "a run that was given back",
    "a slot that a dead owner has freed",
    "a start that was taken at once",
    "a started run that has failed",
    "a worker that has left",
    "a run that two versions of its code have spoilt",
    "a stopped run taken up by a claim that nobody waits for any more",
    "a take-over",
    "a retry by name",
    "a retry from a step",
    "a step that a retry has set aside",
    "a step that began amid a cancellation",
    "a step that began amid a failure",
    "a step that ran amid a cancellation, and again",
    "a step that was set aside, and ran again",
    "a transaction that was idle for too long",
    "clean-up that was done anew",
    "a value that another branch was given, in a run that is then refused",
    "a journal that was read page by page",
    "a sleep during which the clock was set",
    "a wait for a row lock",
    "an effect that is committed with its record",
    "an outcome that stays unknown",
    "checkpoint: LeaseLost",
    "checkpoint: RunCancelled",
    "checkpoint: StoreUnavailable",
    "finish: LeaseLost",
    "finish: RunCancelled",
    "run: AmbiguousKey",
    "run: CancelledError",
    "run: ConcurrentExecution",
    "run: ExceptionGroup",
    "run: KeyboardInterrupt",
    "run: LeaseLost",
    "run: OutcomeUnknown",
    "run: RecordsLost",
    "run: RetryRefused",
    "run: SchemaMismatch",
    "run: RunCancelled",
    "run: StepTimeout",
    "run: StoreUnavailable",
    "run: WorkflowDrift",
    "transaction: LeaseLost",
    "transaction: OutcomeUnknown",
    "transaction: RolledBack",
)


class Broken(BaseException):
    """An invariant does not hold: `invariant` is its number. Nobody's `except Exception` is to take it for his own."""

    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(f"{invariant}: {what}")
        self.invariant = invariant


class _Error(Struct):
    type: str


class _Outcome(Struct):
    """What an attempt or a step came to, of its record."""

    value: Any = None
    error: _Error | None = None


_OUTCOMES: Final = frozenset({Kind.STEP.value, Kind.ATTEMPT.value})
_TIMED_OUT: Final = f"{StepTimeout.__module__}:{StepTimeout.__name__}"
_decoded: Final = msgspec.json.Decoder(_Outcome).decode


def _outcome(record: str) -> _Outcome:
    outcome = _decoded(record)
    if isinstance(outcome.value, list):  # the two moments of a sleep, which are no execution
        outcome.value = None
    return outcome


class _Aside(Struct):
    """What a retry sets aside."""

    seqs: list[int]
    keys: list[str] = []
    from_step: str = ""


_aside: Final = msgspec.json.Decoder(_Aside).decode


def _gone(steps: list[Step]) -> set[int]:
    """The places that are set aside, as things stand: after a fail-over another record may have a place."""
    return {seq for step in steps if step.kind == Kind.ASIDE for seq in _aside(step.record).seqs}


class Drawn(NamedTuple):
    """How a workflow called a step: at which moment of the history, what was in flight, and whether it `ends` the run."""

    moment: int = 0
    amid: str = ""
    ends: bool = False
    cleanup: bool = False


class Answered(NamedTuple):
    """What the writer told somebody about a record: `refused` names a definite failure."""

    run: str
    seq: int
    epoch: int
    text: str
    refused: str
    token: str


class History:
    """Is told everything, and raises `Broken` as soon as something is wrong. `seen` counts situations."""

    def __init__(self, server: Server) -> None:
        self.seen: Counter[str] = Counter()
        self.broken: Broken | None = None  # the first one: what follows is of no interest
        self._server = server
        self._tables = server.tables
        self._told: dict[tuple[str, int], Any] = {}  # of each site what a workflow was given
        self._sites: dict[int, tuple[str, int]] = {}  # of each execution of a body, where it was
        self._starts: Counter[tuple[str, int]] = Counter()
        self._begun: dict[tuple[str, str], list[int]] = {}  # of each key the executions of its body
        self._given_up: set[int] = set()  # executions that a record calls timed out
        self._transacting: set[int] = set()  # executions in a transaction
        self._recorded: set[int] = set()  # those whose value was ever committed
        self._conflicts: Counter[tuple[str, int]] = Counter()
        self._effects: dict[
            tuple[str, int], list[int]
        ] = {}  # of each site the executions whose effects were ever committed
        self._answers: list[Answered] = []
        self._cancelled: set[str] = set()  # runs whose lease was ever taken away by `cancel`
        self._dead: set[str] = set()  # marks in the tokens of processes that are gone
        self._left: set[str] = set()  # claims under which their own process works no more
        self._drifts: Counter[str] = Counter()
        self._swapped: set[str] = set()  # runs where one branch was given another's value
        self._stopped: set[str] = set()  # runs that were ever failed or cancelled
        self._granted: dict[str, str] = {}  # of each run the token that was granted last
        self._tokens: set[str] = set()  # under which a body began
        self.repeats = False  # whether what was sent may be lost, and is then sent again for that
        self._foreign: set[tuple[str, int, Any]] = set()  # values that other code had recorded
        self._moment = 0
        self._drawn: dict[int, Drawn] = {}  # of each execution of a body, how its step was called
        self._under: dict[int, str] = {}  # and the token of its lease
        self._slept: dict[tuple[str, int], str] = {}  # of each sleep the token under which a workflow came there first
        self._first_told: dict[int, int] = {}  # of each value the moment when a workflow had it
        self.set_back = (-math.inf, 0.0)  # when the server's clock was last set back, and from where
        self._set_aside: dict[int, int] = {}  # of each value that a retry has set aside, the epoch of that
        self._decided: set[int] = set()  # values of steps on the way out that a person has decided to keep
        self._finished: set[str] = set()  # tokens under which a run was ended
        self.forgets = False  # whether a fail-over has lost what was acknowledged
        server.database.audit = self._audit

    def _broken(self, invariant: str, what: str) -> Broken:
        if self.broken is None:
            self.broken = Broken(invariant, what)
            self._server.timeline.ends = True
        return self.broken

    def break_with(self, invariant: str, what: str) -> Broken:
        """What is wrong, if nothing was before."""
        return self._broken(invariant, what)

    def was_left(self, claim: str) -> bool:
        """Whether a process works no more under this claim of its own, and has said so."""
        return claim in self._left

    # -- what processes do

    def sleeps(self, run: str, site: int, token: str) -> bool:
        """A workflow comes to a sleep. Whether none came there before under another lease, which may have begun it."""
        return self._slept.setdefault((run, site), token) == token

    def slept(self, run: str, site: int, wanted: float, seconds: float) -> None:
        """A sleep that began here is over after so many seconds, however the wall clock was set meanwhile."""
        if seconds < wanted * _DRIFTS:
            raise self._broken("time", f"the sleep of site {site} of {run} took {seconds:g} s, not {wanted:g}")

    def moment(self) -> int:
        """A number that is greater than those of all that has happened."""
        self._moment += 1
        return self._moment

    def body_starts(self, run: str, key: str, site: int, token: str, drawn: Drawn, *, late: bool) -> int:
        """A body begins under a lease; the number of this execution of it. `late`: it was stopped just before."""
        execution = self._begins(run, key, site, token, drawn)
        lease = self._tables.locks.committed(run)
        holds = lease is not None and lease.owner_token == token and lease.expires_at > self._server.database.clock()
        if late:
            self.seen[
                "a body that began late" if holds else "a body that began after its lease (the documented hole)"
            ] += 1
        elif not holds and not self.forgets and run not in self._cancelled:
            raise self._broken(
                "I2", f"a body of {run} began under {token}, which is not (or no longer) the lease: {lease}"
            )
        if (run, site) in self._told and not self.forgets:
            if late and not holds:
                self.seen["an acknowledged body begun again in the documented hole"] += 1
            elif run in self._cancelled and not holds:
                self.seen["an acknowledged body begun again by one who was cancelled"] += 1
            else:
                raise self._broken("I2", f"the body of site {site} of {run} began although it had been acknowledged")
        return execution

    def transaction_starts(self, run: str, key: str, site: int, token: str, drawn: Drawn) -> int:
        """The same for a body in a transaction, whose fence holds the lease. If it is lost, nothing is committed."""
        execution = self._begins(run, key, site, token, drawn)
        self._transacting.add(execution)
        lease = self._tables.locks.committed(run)
        if lease is None or lease.owner_token != token:
            self.seen["a body in a transaction that was undone before"] += 1
        elif (run, site) in self._told and not self.forgets:
            raise self._broken("I2", f"the transaction of site {site} of {run} began although it had been acknowledged")
        return execution

    def _begins(self, run: str, key: str, site: int, token: str, drawn: Drawn) -> int:
        if drawn.amid == INTERRUPTED:
            raise self._broken("leaving", f"a body of site {site} of {run} began while Ctrl-C was in flight")
        if drawn.amid:
            self.seen[f"a step that began amid {drawn.amid}"] += 1
        self._starts[run, site] += 1
        self._tokens.add(token)
        execution = sum(self._starts.values())
        self._sites[execution] = run, site
        self._drawn[execution], self._under[execution] = drawn, token
        self._forget_what_was_left(run, site, token)
        if any(self._sites[value] == (run, site) for value in self._set_aside):
            self.seen["a step that was set aside, and ran again"] += 1
        self._begun.setdefault((run, key), []).append(execution)
        return execution

    def _forget_what_was_left(self, run: str, site: int, token: str) -> None:
        """What ran amid a cancellation, and what is clean-up, may run again under another lease."""
        value = self._told.get((run, site))
        if value not in self._drawn or self._under[value] == token:
            return
        before = self._drawn[value]
        if before.cleanup:
            self.seen["clean-up that was done anew"] += 1
        elif before.amid == CANCELLED and value not in self._transacting:
            self.seen["a step that ran amid a cancellation, and again"] += 1
        else:
            return
        del self._told[run, site]

    def conflicted(self, run: str, site: int) -> None:
        """A body is the victim of another transaction, and is due once more."""
        self.seen["a body that was the victim of another transaction"] += 1
        self._conflicts[run, site] += 1

    def body_ends(self, execution: int) -> None:
        """A body returns, whoever still waits for it."""
        if execution in self._given_up:
            self.seen["a body that went on after its timeout"] += 1

    def place_of(self, outcome: Any) -> tuple[str, int] | None:
        """Where the body ran that an outcome is of."""
        return self._sites.get(outcome) if isinstance(outcome, int) else None

    def told(
        self,
        run: str,
        site: int,
        outcome: Any,
        drawn: Drawn,
        token: str,
        *,
        failed: bool = False,
        shared: bool = False,
        blind: bool = False,
    ) -> None:
        """A workflow was given the outcome of a step: an execution's number, or the one that failed. Where branches have
        `shared` its automatic key, it may be another's, if only the run does not end well then (the documented hole). Where
        it is `blind`, other code may have recorded it under the same name.
        """
        if failed:
            self.seen["a failure that was given out"] += 1
            return
        if shared and self._sites.get(outcome) != (run, site):
            self.seen["a value that another branch was given, in a run that is then refused"] += 1
            self._swapped.add(run)
            return
        if blind and outcome != -1 - site and self.place_of(outcome) != (run, site):
            self.seen["a value that other code has recorded under the same name"] += 1
            self._foreign.add((run, site, outcome))
            return
        if isinstance(outcome, int) and outcome != -1 - site and self._sites.get(outcome) != (run, site):
            raise self._broken("I4", f"site {site} of {run} was given what {self._sites.get(outcome)} returned")
        if outcome in self._transacting and self._tables.effects.committed(outcome) is None and not self.forgets:
            raise self._broken("together", f"site {site} of {run} was given {outcome}, whose effect is not committed")
        if not self.forgets and outcome in self._drawn and self._is_past(run, site, outcome, drawn, token):
            return
        self._first_told.setdefault(outcome, self.moment())
        before = self._told.setdefault((run, site), outcome)
        if before != outcome:
            if not self.forgets:
                raise self._broken("I4", f"site {site} of {run} was given {before}, and now {outcome}")
            self._told[run, site] = outcome

    def _is_past(self, run: str, site: int, outcome: int, drawn: Drawn, token: str) -> bool:
        """Whether this value counts no more, and is given to one who has lost the lease since."""
        before, epoch = self._drawn[outcome], int(token.partition(":")[0])
        what = f"site {site} of {run} was given {outcome}, which"
        if outcome in self._set_aside:
            if epoch > self._set_aside[outcome]:
                raise self._broken("leaving", f"{what} was set aside before")
            return True
        if self._under[outcome] != token:
            if before.cleanup:
                raise self._broken("leaving", f"{what} is clean-up of an earlier execution")
            if (
                before.amid == CANCELLED
                and before.ends
                and not drawn.amid
                and self._under[outcome] not in self._finished
            ):
                raise self._broken("leaving", f"{what} ran while its workflow was being left")
        # Its own, and late: a later execution has done the same anew meanwhile.
        latest = self._told.get((run, site))
        done_anew = before.cleanup or before.amid == CANCELLED
        return done_anew and latest in self._drawn and int(self._under[latest].partition(":")[0]) > epoch

    def left_by(self, run: str, mark: str) -> None:
        """`run` has been cancelled and left in this process, where nothing else goes wrong: its id is free."""
        lease = self._tables.locks.committed(run)
        self.seen["a run that is free when it is left"] += 1
        if lease is not None and (lease.owner_token or "").partition(":")[2].partition(".")[0] == mark:
            raise self._broken("free", f"{run} was cancelled and has been left, and its lease is kept: {lease}")

    def refused(self, run: str, keys: tuple[str, ...]) -> None:
        """`run` was refused until it is decided what becomes of these steps: each was called while something was in flight."""
        for key in keys:
            executions = [execution for execution in self._begun.get((run, key), ()) if self._drawn[execution].amid]
            if not executions and not self.forgets:
                raise self._broken(
                    "leaving", f"{run} was refused for {key!r}, which was called while nothing was in flight"
                )

    def answered(self, jobs: Any) -> None:
        """The writer answers."""
        for job in jobs:
            if job.verb is CHECKPOINT or job.verb is FINISH:
                self._answered(job.verb.name, job.payload.lease, job.payload.record, job.failure)

    def committed(self, lease: HeldLease, record: Record, failure: Exception | None) -> None:
        """What a transaction's COMMIT with this record came to, as its step is told."""
        self._answered("transaction", lease, record, failure)

    def _answered(self, verb: str, lease: HeldLease, record: Record, failure: Exception | None) -> None:
        if isinstance(failure, OutcomeUnknown):
            self.seen["an outcome that stays unknown"] += 1
            self.seen[f"{verb}: OutcomeUnknown"] += 1
            return
        refused = "" if failure is None else type(failure).__name__
        answer = Answered(lease.run_id, record.seq, lease.epoch, record.text, refused, lease.token)
        self._answers.append(answer)
        self.seen[f"{verb}: {refused or 'done'}"] += 1
        self._check(answer)
        if isinstance(failure, LeaseLost) and not self.forgets:
            row = self._tables.locks.committed(lease.run_id)
            if row is not None and row.owner_token == lease.token:
                raise self._broken("I9", f"{lease.run_id} was told that {lease.token} is lost, and it is not")

    def cancelled(self, run: str) -> None:
        """Somebody asks the run to stop."""
        self._cancelled.add(run)

    def died(self, mark: str) -> None:
        """A process is gone; this is in its tokens."""
        self._dead.add(mark)

    def left(self, claim: str) -> None:
        """The lease of this claim is not given back, and nobody works under it."""
        self._left.add(claim)

    def drifted(self, run: str, *, renamed: bool) -> bool:
        """`run` was refused as changed. Whether it is to be given up: neither the new code nor the old can go on with it."""
        if not renamed:
            raise self._broken("drift", f"{run} was refused, and its code is what it always was")
        self._drifts[run] += 1
        return self._drifts[run] >= _MOST_DRIFTS

    def returned(self, run: str, sites: list[Any]) -> None:
        """`run` returned this to a caller: (site, outcome) of each step."""
        for site, outcome in sites:
            if (
                outcome is not None
                and (run, site, outcome) not in self._foreign
                and self._told.get((run, site), outcome) != outcome
                and not self.forgets
            ):
                raise self._broken("I8", f"{run} returned {outcome} for site {site}, which was {self._told[run, site]}")

    # -- what the database does

    def _audit(self, _: int, changes: list[Change]) -> None:
        clock = self._server.database.clock()
        taken: dict[str, Change] = {}
        ended: set[str] = set()
        effects: dict[int, Effect] = {}
        moved: list[int] = []
        for change in changes:
            table = change.table.name
            if table == "locks":
                taken[change.after.workflow_id] = change
            elif table == "steps":
                ended.add(change.after.workflow_id)
            elif table == "effects":
                effects[change.after.execution] = change.after
            elif table == "accounts":
                moved.append(change.after.balance - change.before.balance)
        for change in changes:
            if type(change.after) is Lease:
                self._audit_lease(change.before, change.after, clock, finishes=change.after.workflow_id in ended)
            elif type(change.after) is Step:
                self._audit_step(change.before, change.after, taken, effects)
            elif type(change.after) is Header:
                if change.before is not None and change.before.status == Status.COMPLETED:
                    raise self._broken("I3", f"something was written to {change.after.id}, which is completed")
                if change.after.status in (Status.FAILED, Status.CANCELLED):
                    self._stopped.add(change.after.id)
                self._audit_decision(change.before, change.after, changes)
        if effects or moved:
            self._audit_effects(list(effects.values()), moved, ended)

    def _audit_decision(self, before: Header | None, after: Header, changes: list[Change]) -> None:
        """A run that is refused until something is decided stays as it is until then."""
        if before is None or not before.snapshot["execution"].get("needsDecision"):
            return
        kinds = {change.after.kind for change in changes if type(change.after) is Step}
        if not after.snapshot["execution"].get("needsDecision") and Kind.ASIDE not in kinds:
            raise self._broken("leaving", f"{after.id} needs a decision, and went on without one")

    def _stored(self, run: str) -> list[Step]:
        known = (self._tables.steps.committed((run, seq)) for seq in self._tables.seqs.get(run, ()))
        return [step for step in known if step is not None]

    def _audit_aside(self, step: Step) -> None:
        """What is set aside: of a retry from a step, at least all that was called when its value was known."""
        run, aside = step.workflow_id, _aside(step.record)
        self.seen["a retry from a step" if aside.from_step else "a retry by name"] += 1
        before = [old for old in self._stored(run) if old.seq != step.seq]
        gone = _gone(before)
        values = {
            old.seq: value
            for old in before
            if old.seq not in gone and old.kind == Kind.STEP and (value := _outcome(old.record).value) in self._drawn
        }
        if aside.from_step and not self.forgets:
            keyed = [s for s in aside.seqs if s in values and self._key(values[s]) == aside.from_step]
            origin = values[max(keyed)] if keyed else None  # clean-up has a record of each execution
            known_at = self._moment if origin is None else self._first_told.get(origin, self._moment)
            for seq, value in values.items():
                drawn = self._drawn[value]
                if drawn.moment > known_at and seq not in aside.seqs and not drawn.cleanup:
                    what = f"was called when {aside.from_step!r} was known, and stays"
                    raise self._broken("leaving", f"record {seq} of {run} {what}")
        for seq, value in values.items():
            if seq in aside.seqs:
                self.seen["a step that a retry has set aside"] += 1
                self._set_aside[value] = step.epoch
                site = self._sites[value][1]
                if self._told.get((run, site)) == value:
                    del self._told[run, site]
                if value in (effects := self._effects.get((run, site), [])):
                    effects.remove(value)
            elif aside.from_step:
                self._decided.add(value)

    def _key(self, execution: int) -> str:
        return next((key for (_, key), executions in self._begun.items() if execution in executions), "")

    def _expired_before_it_was_set_back(self, lease: Lease) -> bool:
        """Whether the server's clock was set back while the statement that took this lease was on its way."""
        at, clock = self.set_back
        return self._server.timeline.now - at < _LONGEST_STATEMENT and lease.expires_at <= clock

    def _audit_lease(self, before: Lease | None, after: Lease, clock: float, *, finishes: bool) -> None:
        if after.owner_token is not None:
            self._granted[after.workflow_id] = after.owner_token
        if before is None or before.owner_token == after.owner_token:
            return
        if after.owner_token is None:
            if after.owner == "cancelled":
                self._cancelled.add(after.workflow_id)
                self.seen["a lease taken away by cancel"] += 1
            elif str(after.owner).startswith("left "):  # so that it holds no slot any more
                self._audit_left(before, clock)
            elif not finishes and before.owner_token not in self._server.given_back | self._server.recalled:
                raise self._broken(
                    "I5", f"the lease of {after.workflow_id} was given back by somebody else than its holder"
                )
            return
        if after.epoch <= before.epoch:
            raise self._broken("I5", f"the epoch of {after.workflow_id} went from {before.epoch} to {after.epoch}")
        if before.owner_token is not None and before.owner_token not in self._server.recalled:
            if before.expires_at > clock and not self._expired_before_it_was_set_back(before):
                claim, taker = (token.partition(":")[2] for token in (before.owner_token, after.owner_token))
                mark = claim.partition(".")[0]
                own = claim in self._left and mark == taker.partition(".")[0]
                if not own and mark not in self._dead:
                    raise self._broken("I5", f"the lease of {after.workflow_id} was taken while it had time left")
                self.seen["an own lease taken again" if own else "a dead owner's lease taken over"] += 1
            self.seen["a take-over"] += 1

    def _audit_left(self, before: Lease, clock: float) -> None:
        if before.expires_at > clock and not self._expired_before_it_was_set_back(before):
            raise self._broken("I5", f"the lease of {before.workflow_id} was ended while it had time left")
        self.seen["a slot that a dead owner has freed"] += 1

    def _audit_step(
        self, before: Step | None, after: Step, taken: dict[str, Change], effects: dict[int, Effect]
    ) -> None:
        change = taken.get(after.workflow_id)
        lease = self._tables.locks.committed(after.workflow_id) if change is None else change.after
        if before is not None:
            raise self._broken("I1", f"record {after.seq} of {after.workflow_id} was written over")
        if lease is None or lease.epoch != after.epoch or (change is None and lease.owner_token is None):
            raise self._broken(
                "I3", f"record {after.seq} of {after.workflow_id} came under epoch {after.epoch}, when {lease}"
            )
        self.seen[f"a record of kind {after.kind}"] += 1
        if after.kind == Kind.ASIDE:
            self._audit_aside(after)
        elif after.kind == Kind.FAILURE and (holder := lease if change is None else change.before) is not None:
            self._finished.add(holder.owner_token or "")
        if after.kind in _OUTCOMES:
            self._audit_outcome(after, _outcome(after.record), effects)
        if self.forgets and after.kind != Kind.FAILURE:
            holder = lease if change is None or lease.owner_token is not None else change.before
            self._look_behind(after, None if holder is None else holder.owner_token)

    def _look_behind(self, after: Step, token: str | None) -> None:
        """Nothing is added by an execution that was told of a record which a fail-over has lost."""
        for answer in self._answers:
            known = answer.token == token and not answer.refused
            if known and self._tables.steps.committed((answer.run, answer.seq)) is None:
                what = f"was written by an execution whose record {answer.seq} is lost"
                raise self._broken("I1", f"record {after.seq} of {answer.run} {what}")

    def _audit_outcome(self, step: Step, outcome: _Outcome, effects: dict[int, Effect]) -> None:
        if outcome.error is not None and outcome.error.type == _TIMED_OUT:
            self.seen["a body that was given up after its timeout"] += 1
            self._given_up.update(self._begun.get((step.workflow_id, step.key), ()))
        if outcome.value in self._given_up:
            raise self._broken(
                "I9", f"{step.key!r} of {step.workflow_id} was given up, and its value is recorded after that"
            )
        if outcome.value in self._transacting:
            if outcome.value not in effects:
                raise self._broken("together", f"{step.key!r} of {step.workflow_id} was recorded without its effect")
            self._recorded.add(outcome.value)

    def _audit_effects(self, effects: list[Effect], moved: list[int], recorded: set[str]) -> None:
        if any(effect.run not in recorded or effect.execution not in self._recorded for effect in effects):
            raise self._broken("together", f"{effects} was committed without its record")
        if len(moved) != 2 * len(effects) or sum(moved) != 0:
            raise self._broken("together", f"{effects} was committed with half of what was moved: {moved}")
        for effect in effects:
            others = self._effects.setdefault((effect.run, effect.site), [])
            if any(self._tables.effects.committed(other) is not None for other in others):
                raise self._broken(
                    "together", f"the transaction of site {effect.site} of {effect.run} was committed twice"
                )
            others.append(effect.execution)
            self.seen["an effect that is committed with its record"] += 1

    # -- at the end

    def _check(self, answer: Answered) -> None:
        step = self._tables.steps.committed((answer.run, answer.seq))
        written = step is not None and (step.epoch, step.record) == (answer.epoch, answer.text)
        if self.forgets:
            return
        if answer.refused and written:
            raise self._broken(
                "I9", f"record {answer.seq} of {answer.run} is committed, and was called {answer.refused}"
            )
        if not answer.refused and not written:
            raise self._broken("I1", f"record {answer.seq} of {answer.run} was acknowledged, and is {step}")

    def end(
        self,
        runs: dict[str, bool],
        starts: dict[tuple[str, int], int] | None,
        may_fail: Collection[str] = (),
    ) -> None:
        """Everything is quiet: `runs` says of each whether it may have been left cancelled, and `may_fail` which may have
        failed; `starts` how often each body may have begun, where nothing went wrong.
        """
        for answer in self._answers:
            self._check(answer)
        for record, times in self._tables.dropped.items():
            self.seen["a record that was dropped"] += 1
            if times > _MOST_DROPS and not self.repeats:
                raise self._broken("dropped", f"{record} was dropped {times} times, and was sent again each time")
        for run, may_be_cancelled in runs.items():
            header = self._tables.snapshots.committed(run)
            status = None if header is None else header.status
            if status == Status.COMPLETED:
                self._check_result(run)
            elif (status == Status.CANCELLED and may_be_cancelled) or (
                status == Status.FAILED and (run in may_fail or self._is_ambiguous(run))
            ):
                pass
            elif self._drifts[run] >= _MOST_DRIFTS:
                self.seen["a run that two versions of its code have spoilt"] += 1
            elif self._is_ghost(run):
                self.seen["a stopped run taken up by a claim that nobody waits for any more"] += 1
            else:
                raise self._broken("I7", f"{run} has not come to an end: it is {status}")
            self.seen[f"a run that is {status}"] += 1
        for place, most in (starts or {}).items():
            if self._starts[place] > most + self._conflicts[place]:
                raise self._broken(
                    "I6", f"the body of {place} began {self._starts[place]} times, at most {most} were due"
                )

    def _check_result(self, run: str) -> None:
        if run in self._swapped:
            raise self._broken("I4", f"{run} is completed, and one of its branches was given another's value")
        seqs = sorted(self._tables.seqs.get(run, ()))
        steps = [step for step in (self._tables.steps.committed((run, seq)) for seq in seqs) if step is not None]
        results = [json.loads(step.record) for step in steps if step.kind == Kind.RESULT]
        if len(results) != 1:
            raise self._broken("I4", f"{run} is completed and has not one result")
        if not self.forgets:
            self._check_way_out(run, steps)
        recorded = [json.loads(step.record).get("value") for step in steps if step.kind == Kind.STEP]
        for site, outcome in results[0]:
            if outcome is not None and outcome not in recorded:
                raise self._broken(
                    "I8", f"{run} is completed, and site {site}, which returned {outcome}, has no record"
                )

    def _check_way_out(self, run: str, steps: list[Step]) -> None:
        """Never refunded and shipped: what a workflow did because it failed does not stand beside its result."""
        gone = _gone(self._stored(run))
        for step in steps:
            value = _outcome(step.record).value if step.kind == Kind.STEP else None
            if value not in self._drawn or step.seq in gone or value in self._decided:
                continue
            drawn, transacts = self._drawn[value], value in self._transacting
            is_kept = drawn.amid == FAILED or (drawn.amid == CANCELLED and transacts)
            if drawn.ends and is_kept and not drawn.cleanup:
                raise self._broken("leaving", f"{run} is completed, and {step.key!r}, done because it failed, stands")

    def _is_ghost(self, run: str) -> bool:
        """Whether it had stopped, and a claim that came too late for its sender has taken it up. (Known, and not mended.)"""
        return run in self._stopped and self._granted.get(run) not in self._tokens

    def _is_ambiguous(self, run: str) -> bool:
        seqs = sorted(self._tables.seqs.get(run, ()))
        steps = filter(None, (self._tables.steps.committed((run, seq)) for seq in seqs))
        return any(step.kind == Kind.FAILURE and "AmbiguousKey" in step.record for step in steps)
