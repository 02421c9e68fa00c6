"""What a store is asked about a run: each request is a value, and its class says what the store guarantees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Generic, TypeAlias, TypeVar

from msgspec import Struct

from durable._engine.continuations import name_history
from durable._engine.decisions import Awaited, Begun, Claim, ClaimReply, Granted
from durable._engine.leases import Lease
from durable._engine.schedules import DueSchedule, Scheduled
from durable._engine.starts import NewRun, Route, Started
from durable.records import Record, Status

T_co = TypeVar("T_co", covariant=True)

OnLateReply: TypeAlias = Callable[[BaseException | None], object]


class Request(Struct, Generic[T_co], frozen=True, eq=False):
    """A request whose answer is a `T_co`.

    Match it by its class alone, and read its fields: a pattern with positions computes `__match_args__` anew, which takes
    a microsecond.
    """

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"  # what it carries may be secret


class Begin(Request[ClaimReply], frozen=True, eq=False):
    """Take the lease if it is free, and read the run as its last owner left it.

    Granted: the epoch has risen by one, the token is new, a new run's header and input are written, and no earlier
    owner can write any more: the records returned are all that there will ever be from them. The store renews the
    lease by itself while `alive()` is true, until it is given back. It is in `claim.taken` as soon as it is known.

    Refused: nothing was changed.
    """

    claim: Claim
    alive: Callable[[], bool]


class Checkpoint(Request[None], frozen=True, eq=False, gc=False):
    """Append a record to the journal, if the lease's token still stands; else `LeaseLost`."""

    lease: Lease
    record: Record


class Finish(Request[None], frozen=True, eq=False, gc=False):
    """Append the last record, set the run's status and give the lease back, all or nothing; else `LeaseLost`.

    A run that was started, and has not ended by it, is due again `due_in` seconds later.
    """

    lease: Lease
    status: Status
    record: Record
    due_in: float = 0.0


class Release(Request[bool], frozen=True, eq=False, gc=False):
    """Give the lease back; the run goes back to `status`, if one is given. Quiet when the lease is no longer ours.

    A run that was started, and has not ended, is due again `due_in` seconds later, which may be infinite. With `awaits` it is
    suspended, and due as soon as there is a signal of one of these names that was not received: the answer is whether there
    is one already. One that only sleeps awaits none.
    """

    lease: Lease
    status: Status | None = None
    due_in: float = 0.0
    awaits: Sequence[Awaited] | None = None


class Continue(Request[None], frozen=True, eq=False, gc=False):
    """Let the journal begin anew with this record, an input in place 0, if the lease's token still stands; else `LeaseLost`.

    The lease stays. What was there is deleted, with the signals whose numbers are `taken`; or kept, as a completed run whose
    id is `history`, or that of the next `number` that no run has, and whose result is the input with which the run went on.
    `number` is which continuation it is, from 1.
    """

    lease: Lease
    record: Record
    keep_history: bool
    taken: Sequence[int]
    number: int

    @property
    def history(self) -> str:
        """The id under which what was there is kept."""
        return name_history(self.lease.run_id, self.number)


class Cancel(Request[bool], frozen=True, eq=False, gc=False):
    """Ask that a run which has not ended is cancelled. False, and nothing was changed, when there is no such run.

    The request stands in the run's header. Its owner hears of it, closes the run, and ends it as `cancelled`. One that has no
    owner, and has recorded something that is to be done at its end, is due at once where it was started, and else closed by
    the next claim. One that has recorded no such thing is cancelled at once.

    With `force`, or where an earlier request stands there, the lease is taken from its holder, and the status set to
    `cancelled`. Its owner can write nothing more, and is told so with `RunCancelled` by its next write.
    """

    run_id: str
    force: bool = False
    reason: str | None = None


class Signal(Request[bool], frozen=True, eq=False, gc=False):
    """Keep a message (JSON) to a run until it is received. The answer is whether the run is there.

    Where it is not, nothing is kept, but with `create_later`. Of one name and `dedup` a run gets one.
    """

    run_id: str
    name: str
    payload: str
    dedup: str | None = None
    create_later: bool = False


class Receive(Request[tuple[int, str, str] | None], frozen=True, eq=False, gc=False):
    """The number, name and payload of the first signal of these names whose number is not among the `taken`, if there is one.

    Nothing is changed: that it was received is a record in the journal, with its number.
    """

    lease: Lease
    names: Sequence[str]
    taken: Sequence[int]


class BeginChild(Request[Begun], frozen=True, eq=False, gc=False):
    """Append a record to a run's journal and start a child of it, both or neither, if the lease stands; else `LeaseLost`.

    A child that is there stands for it where it is this run's, and of the same workflow and input: if it has failed or was
    cancelled, and needs no decision, it is due again, and if it has ended otherwise, that is told its parent once more, in the
    place of what it was told before. Where what is there is another run, nothing is changed, and the answer says so.

    Of a run with a parent the end is told that in a signal, which is written with the end: by `Finish`, by `Cancel`, and where
    it is deleted before.
    """

    lease: Lease
    record: Record
    child: NewRun


class Enqueue(Request[Sequence[Started]], frozen=True, eq=False, gc=False):
    """Start runs: write header and input of each, due at its moment. Of the same id, or `dedup`, the first one stands.

    The answer says for each of `runs` which run it has led to.
    """

    runs: Sequence[NewRun]


class Wake(Request[None], frozen=True, eq=False):
    """Wake idle workers for what is due now. Nothing else is changed."""


class Polled(Struct, frozen=True):
    """What a worker has got."""

    #: The runs that it is to execute now.
    granted: Sequence[Granted]
    #: Seconds until the next run is due that it could execute; None where none is known.
    next_in: float | None
    #: How many workers are at work on this store, as far as it knows.
    workers: int = 1
    #: The `Poll.floor` of what is asked next; None where it is to be as before.
    floor: float | None = None
    #: Those of its schedules that are due.
    due: Sequence[DueSchedule] = ()
    #: Seconds until the next of them is; None where none is known.
    tick_in: float | None = None
    #: The `Poll.limited` of what is asked next.
    limited: Sequence[str] = ()


class Poll(Request[Polled], frozen=True, eq=False):
    """Take the leases of up to `count` runs that are due on these routes, the most urgent first.

    As for `Begin`, each is renewed while `alive(lease)` is true, until it is given back. Nothing is taken that is not on
    one of the routes. With `looks_for_dead`, the leases of owners that are proven to have died on this machine have ended,
    and the answer has a floor. With `says_idle`, what is started after this poll wakes the worker: see
    `QueueingStore.listen`.
    """

    routes: Sequence[Route]
    count: int
    #: The length of the leases, in seconds.
    seconds: float
    alive: Callable[[Lease], bool]
    looks_for_dead: bool = False
    #: What tells this worker from every other one; a text of letters and digits.
    worker: str = ""
    says_idle: bool = False
    #: What the store said last, so that it need not look for what was due earlier; None to look for everything.
    floor: float | None = None
    #: The names of the schedules that this worker has.
    schedules: Sequence[str] = ()
    #: Those of the queues that have limits or partitions, as the store said last; a hint, which saves it a round trip.
    limited: Sequence[str] = ()
    #: All routes that the worker has, where it does not ask for all of them now.
    serves: Sequence[Route] = ()


class PutSchedules(Request[None], frozen=True, eq=False, gc=False):
    """Keep these schedules, each in the place of what there was of its name.

    One that has another timetable now, or is new, is due when a poll has found out when; the others stay due when they are.
    """

    schedules: Sequence[Scheduled]


class TickSchedule(Request[bool], frozen=True, eq=False, gc=False):
    """Start these runs, and set when the schedule is due next, if it stands as it was found `due`; all or nothing.

    The answer is whether it did. Of a run whose id is there already, that one stands.
    """

    due: DueSchedule
    runs: Sequence[NewRun]
    due_at: datetime
    #: Whether other workers are to be woken for the runs.
    wakes: bool = True


class PauseSchedule(Request[bool], frozen=True, eq=False, gc=False):
    """Pause a schedule, or let it go on with its next moment from now. False where there is none of this name."""

    name: str
    paused: bool


class DeleteSchedule(Request[bool], frozen=True, eq=False, gc=False):
    """Forget a schedule; its runs stay. False where there is none of this name."""

    name: str


AnyRequest: TypeAlias = (
    Begin
    | BeginChild
    | Checkpoint
    | Finish
    | Release
    | Continue
    | Cancel
    | Signal
    | Receive
    | Enqueue
    | Wake
    | Poll
    | PutSchedules
    | TickSchedule
    | PauseSchedule
    | DeleteSchedule
)
