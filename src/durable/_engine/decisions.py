"""The vocabulary between engine and driver: kinds of steps, decisions, and the outcomes that answer them.

What holds plain data only is made without the garbage collector's knowledge (`gc=False`): it can be in no cycle, and of those
that come several times a step every one would bring the next collection nearer. Exceptions know frames, and can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias

from msgspec import Struct, field

from durable._engine.leases import LONGEST_WAIT, Lease
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


# -- kinds of steps: what a call is, besides its name, its arguments and its options ------------------------------

Isolation: TypeAlias = Literal["read committed", "repeatable read", "serializable"]


class Plain(Struct, frozen=True, gc=False):
    """Call the body, and record its outcome."""


class Sleep(Struct, frozen=True, gc=False):
    """Record the moment of waking, which is all that the body says; then let the time pass, as `Execution.rest` tells."""


class Listen(Struct, frozen=True, gc=False):
    """Record the payload of a signal of the step's name. The body is called if none comes in time, and raises."""

    #: Seconds from the first call until then; None waits for ever.
    patience: float | None


class Transact(Struct, frozen=True, gc=False):
    """Call the body in a transaction of the store, and commit that together with the record."""

    #: The transaction's isolation level.
    isolation: Isolation


StepKind: TypeAlias = Plain | Sleep | Listen | Transact
PLAIN: Final = Plain()


# -- decisions about a step ---------------------------------------------------------------------------------------


class Replay(Struct, frozen=True, gc=False):
    """Hand out this record: its value, decoded anew, or its error, rebuilt and raised."""

    record: StepRecord


class Attempt(Struct, frozen=True, gc=False):
    """Call the body, and answer with `Returned`, `Raised`, `Unstorable` or `Interrupted`.

    It is the `number`-th attempt; when the first `began`, in elapsed seconds, may lie before this process did.
    """

    number: int
    began: float


class AttemptInTransaction(Struct, frozen=True, gc=False):
    """Call the body in a transaction of the store, and keep that open until what became of the attempt is decided.

    Otherwise as `Attempt`; besides its answers there is `Undone`, and `Asked` when the body could not be begun in time.
    """

    number: int
    began: float


class Wait(Struct, frozen=True, gc=False):
    """Let `seconds` pass, or `look` of them if that is less; then answer with `Asked` again.

    `seconds` is infinite where no time brings what is waited for.
    """

    seconds: float
    look: float = LONGEST_WAIT


class Receive(Struct, frozen=True, gc=False):
    """Look for a signal of this name whose number is not among the `taken`; answer with `Received` or `Silent`."""

    name: str
    taken: Sequence[int]


class Checkpoint(Struct, frozen=True, gc=False):
    """Commit this record, and answer with `Acknowledged` or `Rejected`."""

    record: Record


class Commit(Struct, frozen=True, gc=False):
    """Commit this record and the open transaction together; answer as for `Checkpoint`, or with `Undone` or `Raised`."""

    record: Record


class Join(Struct, frozen=True, gc=False):
    """The same key is running: wait until it has settled, then answer with `Asked` again."""


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
    Replay | Attempt | AttemptInTransaction | Wait | Receive | Checkpoint | Commit | Join | Raise | Abort | Leave
)


# -- outcomes of a step -------------------------------------------------------------------------------------------


class Asked(Struct, frozen=True, gc=False):
    """The workflow waits for this step, for the first time or still."""


class Returned(Struct, frozen=True, gc=False):
    """The body returned; `value` is the JSON of what it returned, `elapsed` a reading of the elapsed-time clock (None: now)."""

    value: bytes
    elapsed: float | None = None

    def __repr__(self) -> str:
        return f"<Returned {len(self.value)} bytes>"


class Raised(Struct, frozen=True, gc=False):
    """The body raised an `Exception`, which has this record. `again_in` seconds it is to be tried again; None: it is not."""

    error: ErrorRecord
    again_in: float | None = None


class Received(Struct, frozen=True, gc=False):
    """There is a signal, and this is the JSON of its payload."""

    number: int
    payload: bytes

    def __repr__(self) -> str:
        return f"<Received signal {self.number}, {len(self.payload)} bytes>"


class Silent(Struct, frozen=True, gc=False):
    """There is no such signal yet."""


class Unstorable(Struct, frozen=True):
    """The body has ended in something that cannot be recorded: a value that cannot be stored, or a policy that cannot say."""

    error: DurableError


class Undone(Struct, frozen=True):
    """The transaction was rolled back through no fault of the body's, so nothing of the attempt has happened.

    `otherwise` is the outcome when that happens again and again: the body's own failure, where it is always the victim of
    a conflict (or what its policy said of it), or a rejection, where the database is lost each time.
    """

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
    Asked | Returned | Raised | Received | Silent | Unstorable | Undone | Interrupted | Acknowledged | Rejected
)


# -- how a run begins ---------------------------------------------------------------------------------------------


class Claim(Struct, frozen=True, kw_only=True):
    """A request for the right to run `run_id`.

    `function` is that of the workflow, as `module:qualified.name`; None where the workflow's name was given, and tells enough.
    `input` is its JSON, None when none was given; `input_hash` its fingerprint. `seconds` is the lease's length.
    `after_failure` says whether a run that has failed, or was cancelled, may be taken up again (not by one who only
    waited for it), `create` whether a run that is not there may be started (not without the input that its workflow needs).
    One that `amends` asks for the run in order to change what it remembers, not to execute it: its header stays as it is.
    `taken` are the leases that were granted for it and not given back: a store adds one as soon as it knows, so that a caller
    who is interrupted before the reply finds it there.
    """

    run_id: str
    workflow: str
    function: str | None = None
    version: int
    seconds: float
    input: bytes | None = None
    input_hash: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    after_failure: bool = True
    create: bool = True
    amends: bool = False
    taken: list[Lease] = field(default_factory=list[Lease])

    def __repr__(self) -> str:
        return f"<Claim of run {self.run_id!r} of {self.workflow!r}, version {self.version}>"


class Granted(Struct, frozen=True):
    """The lease is ours, and this is the run as its last owner left it.

    `taken_from` names an owner that was found dead on this machine before its lease had ended. `problem` says that what
    is stored cannot be read: then the lease is to be given back.
    """

    lease: Lease
    header: Header
    records: Sequence[Record]
    taken_from: str | None = None
    problem: DurableError | None = None


class Refused(Struct, frozen=True):
    """The lease is not ours: somebody holds it, or the run has ended, or it is not the run that the claim describes.

    `records` holds only how the run ended. `owner` and `expires_in` (seconds, by the server's clock) describe a lease
    that lasts, else they are None.
    """

    header: Header | None
    records: Sequence[Record]
    owner: str | None
    expires_in: float | None


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
    """Give `lease` back, if one was granted; wait `seconds`, or `look` of them as in `Wait`; then send `claim`."""

    seconds: float
    claim: Claim
    lease: Lease | None = None
    look: float = LONGEST_WAIT


class Decline(Struct, frozen=True):
    """Raise this without executing anything; give `lease` back first, if one was granted."""

    error: DurableError
    lease: Lease | None = None


class Migrate(Struct, frozen=True):
    """The run is of another version, and nobody executes it: let the user say what becomes of it, then claim it again."""

    error: VersionMismatch


Admission: TypeAlias = Proceed | Return | Reraise | ClaimAgain | Migrate | Decline


# -- how a run ends -----------------------------------------------------------------------------------------------


class Finish(Struct, frozen=True):
    """Commit this last record and status, and give the lease back, in one commit."""

    status: Status
    record: Record


class Release(Struct, frozen=True):
    """Give the lease back without an outcome; the run can be resumed at once. Then raise `error`, if there is one.

    `status` is `cancelled`, or what the run goes back to, where nothing was written to one that had failed before; None
    leaves it running.
    """

    error: DurableError | None
    status: Status | None = None


Conclusion: TypeAlias = Finish | Release
