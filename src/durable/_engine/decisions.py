"""The vocabulary between engine and driver: decisions, the outcomes that answer them, and the store's two replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

from durable._engine.leases import Lease
from durable.errors import DurableError
from durable.snapshot import ErrorRecord, Header, Record, Status, StepRecord


class Reading(NamedTuple):
    """The clock as the driver read it: a moment for people, seconds for decisions."""

    at: datetime
    elapsed: float


# -- decisions about a step ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Replay:
    """Hand out this record: its value, decoded anew, or its error, rebuilt and raised."""

    record: StepRecord


@dataclass(frozen=True, slots=True)
class Attempt:
    """Call the body, and answer with `Returned`, `Raised`, `Unstorable` or `Interrupted`."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Commit this record, and answer with `Acknowledged` or `Rejected`."""

    record: Record


@dataclass(frozen=True, slots=True)
class Join:
    """The same key is running: wait until it has settled, then answer with `Asked` again."""


@dataclass(frozen=True, slots=True)
class Raise:
    """Raise this at the call; the workflow may catch it."""

    error: DurableError


@dataclass(frozen=True, slots=True)
class Abort:
    """Leave the workflow with this, past every `except Exception`."""

    error: DurableError


StepDecision: TypeAlias = Replay | Attempt | Checkpoint | Join | Raise | Abort


# -- outcomes of a step -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """The workflow waits for this step."""


@dataclass(frozen=True, slots=True)
class Returned:
    """The body returned; `value` is the JSON of what it returned."""

    value: bytes


@dataclass(frozen=True, slots=True)
class Raised:
    """The body raised an `Exception`, which has this record."""

    error: ErrorRecord


@dataclass(frozen=True, slots=True)
class Unstorable:
    """The body returned something that cannot be stored."""

    error: DurableError


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The body, or the wait for its checkpoint, was left by something that is not an `Exception`."""

    reason: str


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The store has committed the record."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """The store has not committed the record, or cannot say."""

    error: DurableError


StepOutcome: TypeAlias = Asked | Returned | Raised | Unstorable | Interrupted | Acknowledged | Rejected


# -- how a run begins ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A request for the right to run `run_id`.

    `input` is its JSON, None when none was given; `input_hash` its fingerprint. `seconds` is the lease's length.
    `after_failure` says whether a run that has failed may be taken up again (not by one who only waited for it),
    `create` whether a run that is not there may be started (not without the input that its workflow needs).
    """

    run_id: str
    workflow: str
    version: int
    seconds: float
    input: bytes | None = field(default=None, repr=False)
    input_hash: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    after_failure: bool = True
    create: bool = True


@dataclass(frozen=True, slots=True)
class Granted:
    """The lease is ours, and this is the run as its last owner left it.

    `taken_from` names an owner that was found dead on this machine before its lease had ended. `problem` says that what
    is stored cannot be read: then the lease is to be given back.
    """

    lease: Lease
    header: Header
    records: Sequence[Record]
    taken_from: str | None = None
    problem: DurableError | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The lease is not ours: somebody holds it, or the run has ended, or it is not the run that the claim describes.

    `records` holds only how the run ended. `owner` and `expires_in` (seconds, by the server's clock) describe a lease
    that lasts, else they are None.
    """

    header: Header | None
    records: Sequence[Record]
    owner: str | None
    expires_in: float | None


ClaimReply: TypeAlias = Granted | Refused


@dataclass(frozen=True, slots=True)
class Proceed:
    """Execute the workflow under this grant."""

    granted: Granted


@dataclass(frozen=True, slots=True)
class Return:
    """The run is completed: return its stored result, whose JSON this is."""

    value: bytes


@dataclass(frozen=True, slots=True)
class Reraise:
    """The run we waited for has failed: raise its stored error."""

    error: ErrorRecord


@dataclass(frozen=True, slots=True)
class ClaimAgain:
    """Give `lease` back, if one was granted; wait `seconds`; then send `claim`."""

    seconds: float
    claim: Claim
    lease: Lease | None = None


@dataclass(frozen=True, slots=True)
class Decline:
    """Raise this without executing anything; give `lease` back first, if one was granted."""

    error: DurableError
    lease: Lease | None = None


Admission: TypeAlias = Proceed | Return | Reraise | ClaimAgain | Decline


# -- how a run ends -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finish:
    """Commit this last record and status, and give the lease back, in one commit."""

    status: Status
    record: Record


@dataclass(frozen=True, slots=True)
class Release:
    """Give the lease back without an outcome; the run can be resumed at once. Then raise `error`, if there is one.

    `status` is what the run goes back to, where nothing was written to one that had failed before; None leaves it running.
    """

    error: DurableError | None
    status: Status | None = None


Conclusion: TypeAlias = Finish | Release
