"""The vocabulary between engine and driver: decisions, and the outcomes that answer them.

What holds plain data only is hidden from the garbage collector (`gc=False`): it can be part of no cycle, and each of the
several that a step makes would bring the next collection nearer. Exceptions hold frames, and can be part of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

from msgspec import Struct, field

from durable._engine.leases import MAX_WAIT, Lease
from durable._engine.starts import NewRun, Started
from durable.errors import DurableError, VersionMismatch
from durable.records import ErrorRecord, Header, Record, Status, StepRecord


class Reading(Struct, frozen=True, gc=False):
    """The world as the driver read it."""

    #: The moment on the wall clock, which may be set at any time.
    at: datetime
    #: The seconds of this process, in which everything that passes in it is counted.
    elapsed: float
    #: Whether the run has been asked, in this process, to stop.
    cancelled: bool = False


# -- decisions about a step ---------------------------------------------------------------------------------------


class Replay(Struct, frozen=True, gc=False):
    """Hand out this record: its value, decoded anew, or its error, rebuilt and raised."""

    record: StepRecord


class Attempt(Struct, frozen=True, gc=False):
    """Call the body, and answer with `Returned`, `Raised`, `Unstorable` or `Interrupted`."""

    #: Which attempt this is, counted from 1 over all executions.
    number: int
    #: When the first attempt began, in elapsed seconds: perhaps before this process did.
    began: float


class AttemptInTransaction(Struct, frozen=True, gc=False):
    """Call the body in a transaction of the store, and keep that open until what became of the attempt is decided.

    Otherwise as `Attempt`; besides its answers there is `Undone`, and `Asked` when the body could not be begun in time.
    """

    number: int
    began: float


class RunBranches(Struct, frozen=True, gc=False):
    """Begin all branches of a race; answer with `Won`, with `Raised` when none is left, or with `Unstorable`."""

    number: int
    began: float


class CallOff(Struct, frozen=True, gc=False):
    """The winner is recorded: end what is left of the other branches, then answer with `CalledOff`."""


class Wait(Struct, frozen=True, gc=False):
    """Let time pass, then answer with `Asked` again."""

    #: How long; infinite where no time brings what is waited for.
    seconds: float
    #: Seconds after which to answer all the same, if that is sooner.
    recheck: float = MAX_WAIT


class PollSignal(Struct, frozen=True, gc=False):
    """Look for a signal that no call has received; answer with `Received` or `Silent`."""

    #: The names, of which any will do.
    names: tuple[str, ...]
    #: The numbers of the signals that were received.
    taken: Sequence[int]


class WriteRecord(Struct, frozen=True, gc=False):
    """Commit this record, and answer with `Acknowledged` or `Rejected`."""

    record: Record


class Commit(Struct, frozen=True, gc=False):
    """Commit this record and the open transaction together; answer as for `WriteRecord`, or with `Undone` or `Raised`."""

    record: Record


class BeginChild(Struct, frozen=True):
    """Commit this record and start this child together, and answer with `Begun` or `Rejected`.

    A child that is there already is the one, if it is of the same workflow and input, and this run's: where that had failed
    or was cancelled it runs again, and where it has ended its end is told once more. Otherwise nothing is written.
    """

    record: Record
    child: NewRun


class ShowChild(Struct, frozen=True, gc=False):
    """The child is started: hand out its handle."""


class RecordError(Struct, frozen=True):
    """The step fails with this error, caused by what the other record says: answer with its record, as `Raised`."""

    error: DurableError
    cause: ErrorRecord | None = None


class Join(Struct, frozen=True, gc=False):
    """The same key is running: wait until it has settled, then answer with `Asked` again."""


class TakeTurn(Struct, frozen=True, gc=False):
    """Let all that an earlier outcome has woken come to rest, in the order of the places; then answer with `TurnCome`."""

    #: The place of the outcome's record.
    place: int


class Raise(Struct, frozen=True):
    """Raise this at the call; the workflow may catch it."""

    error: DurableError


class Abort(Struct, frozen=True):
    """Leave the workflow with this, past every `except Exception`."""

    error: DurableError


class Leave(Struct, frozen=True):
    """Raise this again at the call: the process, or its work here, is being ended, and nothing more is begun."""

    interruption: BaseException


StepDecision: TypeAlias = (
    Replay
    | Attempt
    | AttemptInTransaction
    | RunBranches
    | CallOff
    | Wait
    | PollSignal
    | WriteRecord
    | Commit
    | BeginChild
    | ShowChild
    | RecordError
    | Join
    | TakeTurn
    | Raise
    | Abort
    | Leave
)


# -- outcomes of a step -------------------------------------------------------------------------------------------


class Asked(Struct, frozen=True, gc=False):
    """The workflow waits for this step, for the first time or still."""


class TurnCome(Struct, frozen=True, gc=False):
    """What earlier outcomes have woken has come to rest."""


class Returned(Struct, frozen=True, gc=False):
    """The body returned."""

    #: The JSON of what it returned.
    value: bytes
    #: When, as a reading of the elapsed-time clock; None is now.
    elapsed: float | None = None

    def __repr__(self) -> str:
        return f"<Returned {len(self.value)} bytes>"


class Won(Struct, frozen=True, gc=False):
    """A branch of a race returned, before any other."""

    #: Its name.
    name: str
    #: The JSON of what it returned.
    value: bytes

    def __repr__(self) -> str:
        return f"<Won by {self.name!r}, {len(self.value)} bytes>"


class CalledOff(Struct, frozen=True, gc=False):
    """The other branches of a race begin nothing more."""


class Raised(Struct, frozen=True, gc=False):
    """The body raised an `Exception`."""

    #: The exception's record.
    error: ErrorRecord
    #: Seconds until the body is to be tried again; None where it is not.
    retry_in: float | None = None
    #: The keys of the steps called in the body whose failures led to it.
    led: tuple[str, ...] = ()


class Received(Struct, frozen=True, gc=False):
    """There is a signal."""

    #: Its number, by which it is told from others.
    number: int
    #: Its name.
    name: str
    #: The JSON of its payload.
    payload: bytes

    def __repr__(self) -> str:
        return f"<Received signal {self.number}, {len(self.payload)} bytes>"


class Silent(Struct, frozen=True, gc=False):
    """There is no such signal yet."""


class Begun(Struct, frozen=True, gc=False):
    """What the start of a child has led to."""

    #: The run of its id.
    started: Started
    #: Whether that is this run's child.
    is_own: bool


class Unstorable(Struct, frozen=True):
    """The body has ended in something that cannot be recorded: a value that cannot be stored, or a policy that cannot say."""

    error: DurableError


class Undone(Struct, frozen=True):
    """The transaction was rolled back through no fault of the body's, so nothing of the attempt has happened."""

    #: The outcome if that happens again and again: the body's own failure, where it is always the victim of a conflict (or what
    #: its policy said of it), or a rejection, where the database is lost each time.
    otherwise: Raised | Unstorable | Rejected


class Interrupted(Struct, frozen=True, gc=False):
    """The step was left by an exception that is not its body's: an interrupt, or a cancellation. See `Call.stored`."""

    reason: str


class Acknowledged(Struct, frozen=True, gc=False):
    """The store has committed the record."""


class Rejected(Struct, frozen=True):
    """The store has not committed the record, or cannot say."""

    error: DurableError


StepOutcome: TypeAlias = (
    Asked
    | TurnCome
    | Returned
    | Won
    | CalledOff
    | Raised
    | Received
    | Silent
    | Begun
    | Unstorable
    | Undone
    | Interrupted
    | Acknowledged
    | Rejected
)


# -- how a run begins ---------------------------------------------------------------------------------------------


class Claim(Struct, frozen=True, kw_only=True):
    """A request for the right to write a run."""

    #: The run's id.
    run_id: str
    #: The workflow's name.
    workflow: str
    #: The workflow's function, as `module:qualified.name`; None where the workflow was named, which tells enough.
    function: str | None = None
    #: The version of the code that asks.
    version: int
    #: The length of the lease.
    seconds: float
    #: The JSON of the input; None where none was given.
    input: bytes | None = None
    #: The fingerprint of the input.
    input_hash: str | None = None
    #: What the user has to say of the run.
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    #: Whether a run that has failed or was cancelled may be taken up again: not by a caller that only waited for it.
    after_failure: bool = True
    #: Whether a run that is not there may be started: not without the input that its workflow needs.
    create: bool = True
    #: Whether the run is to be changed in what it remembers, and not executed: its header stays as it is.
    amends: bool = False
    #: Whether a worker that has the workflow may go on with it when this execution has left it.
    recovers: bool = False
    #: The leases that were granted and not given back. A store adds one as soon as it knows, so that a caller who is
    #: interrupted before the reply finds it there.
    taken: list[Lease] = field(default_factory=list[Lease])

    def __repr__(self) -> str:
        return f"<Claim of run {self.run_id!r} of {self.workflow!r}, version {self.version}>"


class Granted(Struct, frozen=True):
    """The lease is ours, and this is the run as its last owner left it."""

    #: The right to write the run.
    lease: Lease
    #: The run's header.
    header: Header
    #: The run's journal, in the order of its places.
    records: Sequence[Record]
    #: An owner that was found dead on this machine before its lease had ended.
    taken_from: str | None = None
    #: Why what is stored cannot be read, if it cannot: then the lease is to be given back.
    problem: DurableError | None = None
    #: The queue out of which a worker has taken it; empty of a claim.
    queue: str = ""


class Refused(Struct, frozen=True):
    """The lease is not ours: another owner holds it, or the run has ended, or it is not the run that the claim describes."""

    #: The run's header, if the run is there.
    header: Header | None
    #: How the run ended, and nothing else of its journal.
    records: Sequence[Record]
    #: The owner of a lease that lasts; None where none does.
    owner: str | None
    #: Seconds until that lease ends, by the server's clock.
    expires_in: float | None
    #: Whether a transaction that has not ended stands in the way: it starts the run, or holds what the claim wants.
    is_locked: bool = False


ClaimReply: TypeAlias = Granted | Refused


class Proceed(Struct, frozen=True):
    """Execute the workflow under this grant."""

    granted: Granted


class Return(Struct, frozen=True):
    """The run is completed: return its stored result, whose JSON this is."""

    value: bytes

    def __repr__(self) -> str:
        return f"<Return {len(self.value)} bytes>"


class Reraise(Struct, frozen=True):
    """The run we waited for has failed: raise its stored error."""

    error: ErrorRecord


class ClaimAgain(Struct, frozen=True):
    """Give back the lease, if one was granted; wait; then claim again."""

    #: How long to wait, as in `Wait`.
    seconds: float
    #: The claim to send then.
    claim: Claim
    #: The lease to give back.
    lease: Lease | None = None
    #: As in `Wait`.
    recheck: float = MAX_WAIT


class Decline(Struct, frozen=True):
    """Raise this without executing anything."""

    #: What to raise.
    error: DurableError
    #: The lease to give back first, if one was granted.
    lease: Lease | None = None


class Migrate(Struct, frozen=True):
    """The run is of another version, and is not being executed: let the user say what becomes of it, then claim it again."""

    error: VersionMismatch


Admission: TypeAlias = Proceed | Return | Reraise | ClaimAgain | Migrate | Decline


# -- how a run ends -----------------------------------------------------------------------------------------------


class Awaited(Struct, frozen=True, gc=False):
    """Signals of one name, of which any that was not received brings a run on."""

    #: Their name.
    name: str
    #: The numbers of those that were received.
    taken: Sequence[int] = ()


class Suspension(Struct, frozen=True):
    """What a run waits for that holds nothing meanwhile."""

    #: When the wait ends, as a reading of the elapsed-time clock; infinite where no time ends it.
    until: float
    #: The signals that end it sooner.
    awaits: tuple[Awaited, ...] = ()


class EndRun(Struct, frozen=True):
    """Commit this last record and status, and give the lease back, in one commit."""

    status: Status
    record: Record
    #: Seconds until the run is due again, where the status says that it has not ended.
    due_in: float = 0.0


class GiveBack(Struct, frozen=True):
    """Give the lease back without an outcome: the run can be resumed, at once or when its wait is over."""

    #: What to raise then.
    error: DurableError | None
    #: `cancelled`, or what the run goes back to, where nothing was written to one that had failed; None leaves it running.
    status: Status | None = None
    #: What the run waits for; None where it may be taken up again at once.
    suspension: Suspension | None = None


class ContinueRun(Struct, frozen=True):
    """Put this record, the run's new input, in the place of its journal, and execute the run again under the same lease."""

    record: Record
    #: Whether the journal stays, under an id of its own.
    keep_history: bool
    #: The numbers of the signals that were received: they stay with the journal.
    taken: Sequence[int]
    #: Which continuation of the run it is, from 1.
    number: int


Conclusion: TypeAlias = EndRun | GiveBack | ContinueRun
