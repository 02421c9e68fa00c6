"""What a worker does next: how many runs it asks for and when, what it makes of each, and how it leaves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Final, TypeAlias

from msgspec import Struct

from durable._engine.backoff import PUT_OFF, backoff, delay_run
from durable._engine.decisions import Claim, Granted, Migrate
from durable._engine.runs import find_mismatch
from durable.errors import (
    AccessDenied,
    DurableError,
    InvalidArgument,
    RunMismatch,
    RunPoisoned,
    SchemaMismatch,
    ServerNotStarted,
    UnsuitableServer,
    VersionMismatch,
)
from durable.records import Header

# Seconds between two polls of an idle worker: longer the more workers there are, so that a fleet polls twice a second, until
# each would poll too seldom.
MIN_INTERVAL: Final = 1.0
MAX_INTERVAL: Final = 5.0
_PER_WORKER: Final = 0.5
FULL_INTERVAL: Final = 10.0  # seconds between two polls of one that has no room, by which others know that it is there
MAX_CRASHES: Final = 3  # workers in a row that may die under a run before it is failed
MAX_BATCH: Final = 100  # runs that are asked for at once
SAME_REQUEST: Final = 0.5  # seconds in which one request to leave may come by two ways
GATHER: Final = 0.01  # seconds in which a worker with a backlog waits for more free slots, so that a poll takes several
ENOUGH: Final = 0.25  # of all slots: for so many free ones it does not wait
LEAVE_TIMEOUT: Final = 1.0  # seconds for giving back what is left when the grace is over

# What a worker that has not polled yet ends with, since a mistake in its set-up is likelier than a fault that passes.
_SETUP_ERRORS: Final = (AccessDenied, SchemaMismatch, ServerNotStarted, UnsuitableServer)


class Ask(Struct, frozen=True, gc=False):
    """Poll, and answer with `polled` or `failed`."""

    #: For how many runs at most.
    count: int
    #: Whether it is time to look for leases of the dead.
    looks_for_dead: bool = False
    #: Whether to say, before the poll, that the worker has room, so that what is started after it wakes the worker.
    says_idle: bool = False
    #: Of which queues; None for all that the worker has.
    queues: frozenset[str] | None = None


class Rest(Struct, frozen=True, gc=False):
    """Let time pass, until something changes."""

    #: Seconds; infinite where only a change brings something to do.
    seconds: float


class ReturnRuns(Struct, frozen=True, gc=False):
    """Give back every lease that is still held: the grace is over."""


class Leave(Struct, frozen=True, gc=False):
    """Nothing is held any more, or there is no time left for it."""

    #: What ended the worker; None where it was asked to leave.
    error: DurableError | None = None


WorkerDecision: TypeAlias = Ask | Rest | ReturnRuns | Leave


class _Phase(Enum):
    WORKING = 1
    DRAINING = 2
    LEAVING = 3


class WorkerState:
    """Decides for one worker, by readings of its clock. Not safe for threads.

    A worker at work asks when something may be due that it has room for: at the moment that the last poll named, when it is
    woken, when a run has ended after a poll that may have left some, and otherwise from time to time. A run of which only the
    end is to be recorded leaves its place to another one; with these it holds twice as many as it executes, at the most. One
    that drains asks no more, and keeps what it holds until that has stopped, for `grace` seconds.

    `concurrency` is a number for all, or one for each queue.
    """

    def __init__(self, concurrency: int | Mapping[str, int], grace: float, *, until_idle: bool = False) -> None:
        self._of_queues = {} if isinstance(concurrency, int) else dict(concurrency)
        self._concurrency = concurrency if isinstance(concurrency, int) else sum(concurrency.values())
        self._executed = Counter[str]()  # of each queue, where each has a number of its own
        self._grace = grace
        self._until_idle = until_idle
        self._is_settled = False  # nothing has happened since a poll that found nothing
        self._interval = MIN_INTERVAL
        self._has_said_idle = False
        self._is_woken = False  # something is due: to take it comes before saying that there is room for more
        self._phase = _Phase.WORKING
        self._held = 0
        self._ending = 0  # of these: what is executed no more
        self._next_poll = -math.inf
        self._next_look = -math.inf
        self._has_more = False  # the last poll got all that it asked for
        self._is_limited = False  # something may be due that a limit keeps back until a run has ended
        self._failures = 0
        self._leave_at = math.inf
        self._asked_at = -math.inf  # to leave
        self._has_polled = False
        self._next_word = -math.inf
        self._next_tick = math.inf  # of its schedules
        self._error: DurableError | None = None

    @property
    def is_draining(self) -> bool:
        """Whether it takes nothing more."""
        return self._phase is not _Phase.WORKING

    def decide(self, now: float) -> WorkerDecision:
        """What to do at this reading."""
        if self._phase is _Phase.WORKING:
            free = self._free
            if free <= 0:  # what it takes nothing of, it says that it is there
                at = min(self._next_word, self._next_tick)
                return Ask(0) if now >= at else Rest(at - now)
            if self._until_idle and not self._held and self._is_settled:
                return Leave()
            if now < self._next_poll:
                return Rest(self._next_poll - now)
            # The first poll always does: a worker that is not on the list cannot say, either, that it is leaving.
            says_idle = not self._has_polled or not (self._has_said_idle or self._is_woken or self._has_more)
            queues = frozenset(queue for queue in self._of_queues if self._left_of(queue) > 0) or None
            most = min([free, MAX_BATCH, *(self._left_of(queue) for queue in queues or ())])
            return Ask(most, now >= self._next_look, says_idle, queues)
        if not self._held:
            return Leave(self._error)
        if now < self._leave_at:
            return Rest(self._leave_at - now)
        if self._phase is _Phase.DRAINING:
            self._phase, self._leave_at = _Phase.LEAVING, now + LEAVE_TIMEOUT
            return ReturnRuns()
        return Leave(self._error)

    def polled(
        self,
        now: float,
        asked: Ask,
        granted: int,
        next_in: float | None,
        workers: int = 1,
        tick_in: float | None = None,
        *,
        is_limited: bool = False,
        queues: Sequence[str] = (),
    ) -> None:
        """A poll has taken so many runs; the next is due in so many seconds, as far as is known, and its next schedule.

        So many `workers` there are, this one included. Where one of its queues is limited, the end of any run may make room
        for another one. `queues` are those of the runs, one of each.
        """
        self._executed.update(queues)
        self._is_limited = is_limited
        self._failures, self._has_polled, self._next_word = 0, True, now + FULL_INTERVAL
        self._next_tick = math.inf if tick_in is None else now + tick_in
        if not asked.count:
            return
        self._held += granted
        self._has_more = granted == asked.count
        self._is_settled, self._is_woken = not granted, False
        self._has_said_idle = not granted and (self._has_said_idle or asked.says_idle)
        self._interval = min(MAX_INTERVAL, max(MIN_INTERVAL, workers * _PER_WORKER))
        rest = min(self._interval, math.inf if next_in is None else max(0.0, next_in))
        self._next_poll = min(now + rest, self._next_tick) if self._has_said_idle else now
        if self._has_more and self._free <= 0:
            self._next_poll = math.inf  # until one has ended
        if asked.looks_for_dead:
            self._next_look = now + self._interval

    def ticked(self, now: float, due_in: float, begun: int) -> None:
        """One of its schedules has ticked by it: so many runs have begun, and the next tick is in so many seconds."""
        self._next_tick = min(self._next_tick, now + max(0.0, due_in))
        if begun:
            self._is_settled = False
            self._next_poll = now
        self._next_poll = min(self._next_poll, self._next_tick)

    def failed(self, now: float, error: DurableError) -> None:
        """A poll has failed: try again, or leave with the error where no other try can mend it.

        Once a poll has succeeded, what failed may work again (a fail-over leads to a standby for a while, a right is taken away
        and given back), unless the store itself is closed.
        """
        self._failures += 1
        self._next_poll = now + backoff(self._failures)
        if isinstance(error, InvalidArgument) or (not self._has_polled and isinstance(error, _SETUP_ERRORS)):
            self._error = error
            self.drain(now)

    def ending(self, now: float, queue: str = "") -> None:
        """One of the runs that it holds is executed no more, and its end is being recorded."""
        self._ending += 1
        self._executed[queue] -= 1
        if not self._failures:
            self._next_poll = min(self._next_poll, now + self._gathers_for())

    def ended(self, now: float, due_in: float = math.inf, *, was_ending: bool = False, queue: str = "") -> None:
        """One of the runs that it holds is held no more; it is due again in so many seconds, if it is."""
        self._held -= 1
        self._ending -= was_ending
        self._executed[queue] -= not was_ending
        self._is_settled = False
        if not self._failures:
            self._next_poll = min(self._next_poll, now + min(due_in, self._gathers_for()))

    @property
    def _free(self) -> int:
        """How many runs more there is room for."""
        free = min(self._concurrency - (self._held - self._ending), 2 * self._concurrency - self._held)
        return min(free, max(map(self._left_of, self._of_queues), default=free))

    def _left_of(self, queue: str) -> int:
        """How many runs more there is room for of a queue that has a number of its own."""
        return self._of_queues[queue] - self._executed[queue]

    def _gathers_for(self) -> float:
        """Seconds until a free slot is to be filled; infinite where nothing is known that could fill it."""
        if self._has_more:
            free = self._free
            return 0.0 if free >= ENOUGH * self._concurrency else GATHER
        if self._is_limited or self._of_queues:
            return GATHER
        return 0.0 if self._until_idle and not self._held else math.inf

    def wake(self, now: float) -> None:
        """Something may be due; the start that said so takes this worker for a busy one now."""
        self._has_said_idle = self._is_settled = False
        self._is_woken = True
        if not self._failures:
            self._next_poll = now

    def drain(self, now: float) -> None:
        """Take nothing more, and leave when nothing is held, or the grace is over."""
        if self._phase is _Phase.WORKING:
            self._phase, self._leave_at, self._asked_at = _Phase.DRAINING, now + self._grace, now

    def hurry(self, now: float) -> None:
        """The same once more: then there is no grace.

        Unless it comes at once after the first: a supervisor may send a signal to all processes, and a parent hand it on.
        """
        self.drain(now)
        if now >= self._asked_at + SAME_REQUEST:
            self._leave_at = min(self._leave_at, now)


class Execute(Struct, frozen=True):
    """Execute the run, as if this claim had been granted."""

    claim: Claim


class Bury(Struct, frozen=True):
    """Fail the run with this error, without calling anything."""

    error: DurableError


class PutOff(Struct, frozen=True):
    """Give the lease back; the run is due again later."""

    #: Why it cannot be executed; None where only this worker does not.
    error: DurableError | None
    #: Until it is due.
    seconds: float


GrantDecision: TypeAlias = Execute | Migrate | Bury | PutOff


def version_of(header: Header) -> int:
    """Of which version of its workflow a run is."""
    version: int = header.metadata.get("version", 1)
    return version


def judge(
    granted: Granted, claim: Claim | None, *, max_crashes: int = MAX_CRASHES, is_draining: bool = False
) -> GrantDecision:
    """What a worker makes of a run that it has got; `claim` is how it would ask for it, None if it has no such workflow."""
    run_id, header = granted.lease.run_id, granted.header
    if is_draining:
        return PutOff(None, 0.0)
    if granted.problem is not None:
        return PutOff(granted.problem, delay_run(granted.problem))
    if header.execution.crashes >= max_crashes:
        return Bury(RunPoisoned(run_id, header.execution.crashes))
    if claim is None:
        return PutOff(RunMismatch(run_id, "workflow", repr(header.workflow_name), "one that this worker has"), PUT_OFF)
    mismatch = find_mismatch(claim, header)
    if isinstance(mismatch, VersionMismatch):
        return Migrate(mismatch)
    return Execute(claim) if mismatch is None else PutOff(mismatch, PUT_OFF)
