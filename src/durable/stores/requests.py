"""What a store is asked about a run: each request is a value, and its class says what the store guarantees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeAlias, TypeVar

from msgspec import Struct

from durable._engine.decisions import Claim, ClaimReply, Granted
from durable._engine.leases import Lease
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


class Release(Request[None], frozen=True, eq=False, gc=False):
    """Give the lease back; the run goes back to `status`, if one is given. Quiet when the lease is no longer ours.

    A run that was started, and has not ended, is due again `due_in` seconds later.
    """

    lease: Lease
    status: Status | None = None
    due_in: float = 0.0


class Cancel(Request[bool], frozen=True, eq=False, gc=False):
    """Take the lease of a run that has not ended from its holder, and set its status to `cancelled`.

    Its owner can write nothing more, and is told so with `RunCancelled` by its next write. False, and nothing was
    changed, when there is no such run, or it has ended.
    """

    run_id: str


class Signal(Request[None], frozen=True, eq=False, gc=False):
    """Keep a message (JSON) to a run, which need not be there yet, until it is received."""

    run_id: str
    name: str
    payload: str


class Receive(Request[tuple[int, str] | None], frozen=True, eq=False, gc=False):
    """The number and payload of the first signal of this name whose number is not among the `taken`, if there is one.

    Nothing is changed: that it was received is a record in the journal, with its number.
    """

    lease: Lease
    name: str
    taken: Sequence[int]


class Enqueue(Request[Sequence[Started]], frozen=True, eq=False, gc=False):
    """Start runs: write header and input of each, due at its moment. Of the same id, or `dedup`, the first one stands.

    The answer says for each of `runs` which run it has led to.
    """

    runs: Sequence[NewRun]


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


AnyRequest: TypeAlias = Begin | Checkpoint | Finish | Release | Cancel | Signal | Receive | Enqueue | Poll
