"""Every error of ours: what happened, to which run and step, and what to do about it.

```
BaseException
└── Unwind                     carries a DurableError past a user's `except Exception`; never leaves `durable.run`
Exception
└── DurableError
    ├── InvalidArgument        an id, key, option or function that cannot work (also a ValueError)
    ├── ColourMismatch         async where blocking is needed, or the reverse (also a TypeError)
    ├── NestedStep             step(...) inside a step's body
    ├── TransactionMisused     the body of a transactional step ended its transaction, or tried to
    ├── KeyConflict            one key, two different calls
    ├── AmbiguousKey           two branches share an automatic key
    ├── UnstorableValue        a value that could not come back as it is
    ├── StepFailed             a recorded exception whose class cannot be rebuilt here
    ├── StepTimeout            an attempt that took longer than it may (also a TimeoutError)
    ├── SignalTimedOut         no signal came in time (also a TimeoutError)
    ├── StepInterrupted        an at-most-once step that was begun, and nobody knows how it ended
    ├── RunCancelled           somebody asked the run to stop
    ├── DeadlineExceeded       the run's time is up
    ├── HistoryError           what is stored does not fit what was called
    │   ├── RunMismatch        another workflow or another input under this id
    │   ├── VersionMismatch    another version of the workflow
    │   ├── WorkflowDrift      the code no longer matches its journal
    │   ├── RetryRefused       it did more while it failed or was being left, which takes a decision
    │   ├── RunNotFound        nothing is stored under this id
    │   ├── RunNotOver         it has no result yet
    │   ├── UnreadableRecord   a stored line that cannot be understood
    │   └── RecordsLost        acknowledged lines are gone: the database went back to an earlier state
    ├── OwnershipError         somebody else may write this run
    │   ├── ConcurrentExecution
    │   ├── WaitTimedOut
    │   ├── LeaseLost
    │   └── RunOver            a step called after its run had ended
    └── StoreError             the database, or the way to it
        ├── StoreUnavailable
        ├── AccessDenied
        ├── UnsuitableServer   another database, too old a one, or one that takes no writes
        ├── SchemaMismatch
        ├── OutcomeUnknown     a write whose reply was lost
        └── ServerNotStarted   embedded PostgreSQL
```

No message carries a password, a connection string or a stored value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, TypeAlias
from weakref import WeakSet

__all__ = [
    "AccessDenied",
    "AmbiguousKey",
    "ColourMismatch",
    "ConcurrentExecution",
    "DeadlineExceeded",
    "DurableError",
    "DurableWarning",
    "HistoryError",
    "InvalidArgument",
    "KeyConflict",
    "LeaseLost",
    "NestedStep",
    "OutcomeUnknown",
    "OwnershipError",
    "RecordsLost",
    "RetryRefused",
    "RunCancelled",
    "RunMismatch",
    "RunNotFound",
    "RunNotOver",
    "RunOver",
    "SchemaMismatch",
    "ServerNotStarted",
    "SignalTimedOut",
    "StepFailed",
    "StepInterrupted",
    "StepTimeout",
    "StoreError",
    "StoreUnavailable",
    "TransactionMisused",
    "UnreadableRecord",
    "UnstorableValue",
    "UnsuitableServer",
    "Unwind",
    "VersionMismatch",
    "WaitTimedOut",
    "WorkflowDrift",
]


_Class: TypeAlias = type[BaseException]


class DurableWarning(UserWarning):
    """Something works, but not as durably as it looks."""


_UNWINDING: Final = "__durable_unwinding__"


class _Settling(BaseException):
    """What `Unwind` and `DurableError` extend alike: only so can an object of the one become one of the other."""


class DurableError(_Settling, Exception):
    """The root of every error that leaves this library."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Fields may be given by keyword, which BaseException.args does not see; pickle goes through the fields.
        if not hasattr(self, "__dataclass_fields__"):
            return super().__reduce__()  # type: ignore[return-value]
        return type(self), tuple(getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]


class Unwind(_Settling):
    """Control flow: leave the workflow now.

    A `BaseException`, because `except Exception` in a workflow must not be able to swallow the loss of a lease and go
    on without durability. `durable.run` turns it into the `DurableError` it carries. (The reasoning is that of
    `asyncio.CancelledError` and `trio.Cancelled`.)

    One that outlives its run, since a task, a future or the user's own code has kept it, becomes that error in its place:
    see `settle`.
    """

    def __init__(self, error: DurableError) -> None:
        super().__init__(error)
        self.error = error
        error.__dict__.setdefault(_UNWINDING, WeakSet()).add(self)

    @staticmethod
    def settle(error: DurableError) -> None:
        """The workflow that this error had to leave is over: whatever still carries it is an ordinary error from now on."""
        kept: Iterable[Unwind] = error.__dict__.pop(_UNWINDING, ())
        for unwind in list(kept):
            try:
                unwind.__class__ = type(error)  # type: ignore[assignment] # in place: this very object is what was kept
            except TypeError:  # a store's own class of error, of another layout
                continue
            unwind.__dict__.clear()
            unwind.__dict__.update(error.__dict__)
            unwind.args = error.args


@dataclass(eq=False, repr=False)
class InvalidArgument(DurableError, ValueError):
    """An argument that cannot work; `problem` says which and why."""

    problem: str

    def __str__(self) -> str:
        return self.problem


@dataclass(eq=False, repr=False)
class ColourMismatch(DurableError, TypeError):
    """An async function in a blocking workflow, a blocking one called bare in an async workflow, or a step never awaited."""

    problem: str

    def __str__(self) -> str:
        return self.problem


@dataclass(eq=False, repr=False)
class NestedStep(DurableError):
    """`step(...)` was called inside the body of the step `outer`."""

    name: str
    outer: str

    def __str__(self) -> str:
        return (
            f"step {self.name!r} was called inside the body of step {self.outer!r}. A step is remembered as a whole, so "
            f"it cannot contain another: call the plain function here, or call both steps from the workflow."
        )


@dataclass(eq=False, repr=False)
class TransactionMisused(DurableError):
    """The body of the transactional step `name` did with its connection what only the step may do: `problem`."""

    name: str
    problem: str

    def __str__(self) -> str:
        return (
            f"step {self.name!r}: {self.problem}. The transaction is begun before the body and committed after it, together "
            f"with the step's record: let the body return to commit, or raise to roll back. A part of it can be rolled back "
            f"with `with connection.transaction():`."
        )


@dataclass(eq=False, repr=False)
class KeyConflict(DurableError):
    """One key was used in one run for two different calls."""

    run_id: str
    key: str
    difference: str

    def __str__(self) -> str:
        return (
            f"run {self.run_id!r}: the key {self.key!r} was already used in this run with {self.difference}. A key names "
            f"one call: give each its own, for example key=f'{self.key}-{{item.id}}' in a loop."
        )


@dataclass(eq=False, repr=False)
class AmbiguousKey(DurableError):
    """Two tasks or threads repeat one automatic key, so that a replay could swap their values."""

    run_id: str
    key: str

    def __str__(self) -> str:
        return (
            f"run {self.run_id!r}: two concurrent branches both call a step named {self.key!r} without a key. Numbering "
            f"them by arrival could hand each the other's value on replay: pass key= to both, for example "
            f"step({self.key!r}, ..., key=f'{self.key}-{{item.id}}')."
        )


@dataclass(eq=False, repr=False)
class UnstorableValue(DurableError):
    """A value that JSON cannot bring back as it is; `path` leads to the part that cannot (`$.items[3].price`)."""

    what: str
    path: str
    problem: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.what} cannot be stored: at {self.path}, {self.problem}.{' ' * bool(self.advice)}{self.advice}"


@dataclass(eq=False, repr=False)
class StepFailed(DurableError):
    """A recorded exception whose class cannot be rebuilt in this process.

    `type` is the dotted name of its class, `bases` are those of the classes that it can be caught by besides; `message` is
    its text, `remote_traceback` the text of its traceback when it was recorded. `attributes` is what of it could be stored,
    decoded, by name. Match it by class with `is_a`:

        try:
            step("fetch", fetch)
        except durable.StepFailed as error:
            if not error.is_a(httpx.HTTPStatusError):
                raise
    """

    type: str
    message: str
    remote_traceback: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    bases: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.type}: {self.message}"

    def is_a(self, classes: _Class | tuple[_Class, ...], /) -> bool:
        """Whether the exception that was raised is one of this class, or of one of these, as `isinstance` would have it."""
        given = classes if isinstance(classes, tuple) else (classes,)
        names = {self.type, *self.bases}
        return any(issubclass(StepFailed, one) or f"{one.__module__}.{one.__qualname__}" in names for one in given)


@dataclass(eq=False, repr=False)
class StepTimeout(DurableError, TimeoutError):
    """An attempt of the step `name` took longer than `seconds`; a retry policy may try again."""

    name: str
    seconds: float
    advice: str = ""

    def __str__(self) -> str:
        return f"step {self.name!r} took longer than its timeout of {self.seconds:g} s.{' ' * bool(self.advice)}{self.advice}"


@dataclass(eq=False, repr=False)
class SignalTimedOut(DurableError, TimeoutError):
    """`step.wait_for(name, timeout=seconds)` waited that long, restarts included, and no signal came."""

    name: str
    seconds: float

    def __str__(self) -> str:
        return f"no signal {self.name!r} came within {self.seconds:g} s. This is recorded; durable.signal sends one."


@dataclass(eq=False, repr=False)
class StepInterrupted(DurableError):
    """The body of an at-most-once step was started by an earlier execution, and no outcome was recorded."""

    run_id: str
    key: str

    def __str__(self) -> str:
        return (
            f"run {self.run_id!r}: the step {self.key!r} was started before and no outcome was recorded, so nobody knows "
            f"whether its effect happened. It is to run at most once and is not started again: find out what became of "
            f"it, and go on accordingly (catch StepInterrupted in the workflow), or use another key or run id."
        )


@dataclass(eq=False, repr=False)
class RunCancelled(DurableError):
    """The run was cancelled: by `durable.cancel`, or by the event given as `cancel=`."""

    run_id: str

    def __str__(self) -> str:
        return f"run {self.run_id!r} was cancelled. What it had recorded is kept: durable.run with this id goes on from there."


@dataclass(eq=False, repr=False)
class DeadlineExceeded(DurableError):
    """The run was not done by the `deadline` of the call."""

    run_id: str

    def __str__(self) -> str:
        return (
            f"run {self.run_id!r} was not done by its deadline, and no further step was started. What it had recorded is "
            f"kept: durable.run with this id and a later deadline goes on from there."
        )


class HistoryError(DurableError):
    """What is stored under this id does not fit what was called. Nothing was changed."""


@dataclass(eq=False, repr=False)
class RunMismatch(HistoryError):
    """The id belongs to a run of another workflow, or of other input. `what` is "workflow", "function" or "input"."""

    run_id: str
    what: str
    stored: str
    given: str
    advice: str = ""

    def __str__(self) -> str:
        return (
            f"run {self.run_id!r} was started with the {self.what} {self.stored}, not {self.given}. An id names one "
            f"execution of one workflow: use another id for this one, or call it as it was started."
            f"{' ' * bool(self.advice)}{self.advice}"
        )


@dataclass(eq=False, repr=False)
class VersionMismatch(HistoryError):
    """The run was started by another version of the workflow."""

    run_id: str
    stored: int
    given: int

    def __str__(self) -> str:
        return (
            f"run {self.run_id!r} was started by version {self.stored} of its workflow and this is version {self.given}. "
            f"Let version {self.stored} finish it, pass version={self.stored} if the change does not matter to it, or say with "
            f"on_version_mismatch= what becomes of it."
        )


@dataclass(eq=False, repr=False)
class WorkflowDrift(HistoryError):
    """The workflow no longer makes the calls that its journal recorded."""

    run_id: str
    key: str
    difference: str

    def __str__(self) -> str:
        return (
            f"run {self.run_id!r}: at step {self.key!r} the code no longer matches the journal: {self.difference}. Its "
            f"recorded value was not handed out, and no body was started after it. Restore the old order or arguments, "
            f"give new steps an explicit key=, or start the new code under another id."
        )


@dataclass(eq=False, repr=False)
class RetryRefused(HistoryError):
    """The run is not taken up again before it is decided what becomes of its `steps` (keys). Nothing was called."""

    run_id: str
    steps: tuple[str, ...]
    problem: str = ""

    def __str__(self) -> str:
        if self.problem:
            return f"run {self.run_id!r} is not taken up again: {self.problem}."
        names, run_id = ", ".join(map(repr, self.steps)), self.run_id
        return (
            f"run {run_id!r} is not taken up again by itself: it did {names} because it was failing or being left, and that "
            f"would stand beside a success. Decide with durable.retry(store, {run_id!r}), which sets these steps aside so that "
            f"they can run again, or with durable.retry(store, {run_id!r}, from_step=KEY), which sets aside the step KEY and "
            f"all that started after it was recorded. Transactions and at-most-once steps take even_effects=True. Declare a "
            f"step with cleanup=True if it is to be done whenever a run is left, and may always be done again."
        )


@dataclass(eq=False, repr=False)
class RunNotFound(HistoryError):
    """Nothing is stored under the id of which a result was asked for."""

    run_id: str

    def __str__(self) -> str:
        return (
            f"no run {self.run_id!r} is stored here. Check the id and the store, its table, schema and prefix included."
        )


@dataclass(eq=False, repr=False)
class RunNotOver(HistoryError):
    """The run of which a result was asked for is `status`, and has none."""

    run_id: str
    status: str

    def __str__(self) -> str:
        return (
            f"run {self.run_id!r} is {self.status} and has no result yet. Call durable.run with its id to go on with it, "
            f'or with on_conflict="wait" to wait for whoever does.'
        )


@dataclass(eq=False, repr=False)
class UnreadableRecord(HistoryError):
    """A stored line that this version cannot understand; it is never taken for an absent one."""

    run_id: str
    where: str
    problem: str

    def __str__(self) -> str:
        return (
            f"run {self.run_id!r}: {self.where} cannot be read: {self.problem}. The run was left as it is; it may have "
            f"been written by a newer version of durable, or changed by hand."
        )


@dataclass(eq=False, repr=False)
class RecordsLost(HistoryError):
    """Nothing more was written, since what the database had acknowledged of the run is gone; `reason` says how that shows."""

    run_id: str
    reason: str = ""

    def __str__(self) -> str:
        gone = self.reason or "records of it that the database had acknowledged are not there any more"
        deleted = "the run was deleted with force=True, or the database" if self.reason else "it"
        return (
            f"run {self.run_id!r}: {gone}: {deleted} has gone back to an earlier state (a fail-over to a standby that was "
            f"behind, or a backup). Nothing more was added to it. Call durable.run again with this id: it goes on from what is "
            f"there, and the steps whose records are lost run again."
        )


class OwnershipError(DurableError):
    """Only the holder of the lease runs and writes a run, and that is somebody else, or nobody any more."""


@dataclass(eq=False, repr=False)
class ConcurrentExecution(OwnershipError):
    """Another process, thread or task is running this id; `expires_in` is what its lease still lasts, in seconds."""

    run_id: str
    owner: str
    expires_in: float = 0.0
    advice: str = 'Pass on_conflict="wait" to wait for its result.'

    def __str__(self) -> str:
        lasting = f" (its lease lasts another {self.expires_in:.1f} s unless renewed)" if self.expires_in else ""
        return f"run {self.run_id!r} is being executed by {self.owner}{lasting}. {self.advice}"


@dataclass(eq=False, repr=False)
class WaitTimedOut(OwnershipError):
    """`on_conflict="wait"` waited `waited` seconds and the other execution had not ended."""

    run_id: str
    waited: float

    def __str__(self) -> str:
        return (
            f"run {self.run_id!r} was still being executed by somebody else after {self.waited:.1f} s. It goes on there; "
            f"call again to wait on, or raise wait_timeout."
        )


@dataclass(eq=False, repr=False)
class LeaseLost(OwnershipError):
    """This execution may write no more: its lease ran out or was taken over."""

    run_id: str
    reason: str

    def __str__(self) -> str:
        return (
            f"run {self.run_id!r} lost its lease: {self.reason}. Nothing more was written and no further step was "
            f"started here. Call durable.run again with this id: it waits for, or continues, the run."
        )


@dataclass(eq=False, repr=False)
class RunOver(OwnershipError):
    """A step was called after its run had ended, by a task or thread that outlived the workflow function."""

    run_id: str
    name: str

    def __str__(self) -> str:
        return (
            f"step {self.name!r} was called after run {self.run_id!r} had ended. Wait for every task and thread that "
            f"calls steps before the workflow returns."
        )


class StoreError(DurableError):
    """The database refused, was not there, or is not what it should be."""


@dataclass(eq=False, repr=False)
class StoreUnavailable(StoreError):
    """PostgreSQL at `where` could not be reached or did not answer."""

    where: str
    problem: str

    def __str__(self) -> str:
        return (
            f"PostgreSQL at {self.where} is not available: {self.problem}. What was acknowledged is safe; call again with "
            f"the same id when it answers. Check the host, the port, and that the server runs."
        )


@dataclass(eq=False, repr=False)
class AccessDenied(StoreError):
    """PostgreSQL at `where` is there and says no."""

    where: str
    problem: str
    advice: str = "Check the user, the password (in the URL, $PGPASSWORD or ~/.pgpass) and the database's name."

    def __str__(self) -> str:
        return f"PostgreSQL at {self.where} refused: {self.problem}. {self.advice}"


@dataclass(eq=False, repr=False)
class UnsuitableServer(StoreError):
    """The server at `where` is none that runs can be trusted to. Nothing was read from it or written to it."""

    where: str
    problem: str
    advice: str

    def __str__(self) -> str:
        return f"the server at {self.where} cannot hold runs: {self.problem}. {self.advice}"


@dataclass(eq=False, repr=False)
class SchemaMismatch(StoreError):
    """A table that we need is missing, or something else has its name."""

    table: str
    problem: str
    advice: str = "Pass table= or schema= to postgres() to use other names; the existing table was not touched."

    def __str__(self) -> str:
        return f"the table {self.table} cannot serve as a store: {self.problem}. {self.advice}"


@dataclass(eq=False, repr=False)
class OutcomeUnknown(StoreError):
    """The reply to a write was lost and could not be settled before the lease's deadline.

    The write is there, whole, or it is not: the next `durable.run` of this id reads which, and runs the body again only
    if it is not.
    """

    run_id: str
    what: str
    problem: str

    def __str__(self) -> str:
        return (
            f"run {self.run_id!r}: whether {self.what} was committed is unknown, since the reply was lost "
            f"({self.problem}). Call durable.run again with this id: it reads what is stored and goes on from there."
        )


@dataclass(eq=False, repr=False)
class ServerNotStarted(StoreError):
    """No local PostgreSQL could be started for `embedded()`."""

    problem: str
    advice: str

    def __str__(self) -> str:
        return f"no embedded PostgreSQL could be started: {self.problem}. {self.advice}"
