"""Every error of ours: what happened, to which run and step, and what to do about it.

```
BaseException
└── Unwind                     carries an error past a user's `except Exception`; never leaves `durable.run`
Exception
└── DurableError
    ├── InvalidArgument        an id, key, option or function that cannot work (also a ValueError)
    │   └── UnsuitableConnection   a connection= in whose transaction nothing can be written (also a TypeError)
    ├── AsyncMismatch          async where blocking is needed, or the reverse (also a TypeError)
    ├── NestedStep             step(...) inside a step's body
    ├── TransactionMisused     the body of a transactional step ended its transaction, or tried to
    ├── KeyConflict            one key, two different calls
    ├── AmbiguousKey           two branches share an automatic key
    ├── UnstorableValue        a value that JSON cannot bring back as it is
    ├── StepFailed             a recorded exception whose class cannot be rebuilt here
    ├── StepTimeout            an attempt that took longer than its timeout (also a TimeoutError)
    ├── SignalTimedOut         no signal came in time (also a TimeoutError)
    ├── SignalMismatch         a signal's payload is not of the type that was waited for (also a ValueError)
    ├── ChildFailed            a child run has ended without a value
    ├── StepInterrupted        an at-most-once step was started before, and its outcome is unknown
    ├── RunCancelled           the run was asked to stop
    ├── ClosingFailed          an undo, or what step.on_end was given, has failed
    ├── DeadlineExceeded       the run's time is up
    ├── HistoryError           what is stored does not fit what was called
    │   ├── RunMismatch        another workflow or another input under this id
    │   ├── VersionMismatch    another version of the workflow
    │   ├── WorkflowDrift      the code no longer matches its journal
    │   ├── RetryRefused       steps recorded while the run was failing or being left need a decision
    │   ├── RunNotFound        nothing is stored under this id
    │   ├── ScheduleNotFound   there is no schedule of this name
    │   ├── RunNotOver         the run has no result yet
    │   ├── RunPoisoned        workers die under this run, one after the other
    │   ├── UnreadableRecord   a stored line that cannot be understood
    │   └── RecordsLost        acknowledged lines are gone: the database went back to an earlier state
    ├── OwnershipError         another execution owns this run, or none does any more
    │   ├── ConcurrentExecution
    │   │   └── RunBeingStarted    by a transaction that has not ended
    │   ├── WaitTimedOut
    │   ├── LeaseLost
    │   ├── RunHandedOver      this worker is being ended, and another one goes on with the run
    │   ├── RunClosing         the run is being closed, and no other step of it begins
    │   ├── RunContinued       the run goes on as itself, with a new input and an empty journal
    │   ├── RunSuspended       the run waits, and a worker goes on with it when the wait is over
    │   ├── RunExists          a run of this id is there already
    │   ├── DuplicateRun       another run of the same dedup= has not ended
    │   ├── RaceLost           a step called in a branch of a race that another one has won
    │   └── RunOver            a step called after its run had ended
    └── StoreError             the database, or the way to it
        ├── StoreUnavailable
        ├── AccessDenied
        ├── UnsuitableServer   another database, too old a version, or a server that takes no writes
        ├── SchemaMismatch
        ├── OutcomeUnknown     a write whose reply was lost
        └── ServerNotStarted   embedded PostgreSQL
```

No message carries a password, a connection string or a stored value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Final, TypeAlias
from weakref import WeakSet

_Class: TypeAlias = type[BaseException]


class DurableWarning(UserWarning):
    """Something works, but not as durably as it looks: a run without a store, for one. Nothing was refused."""


_UNWINDING: Final = "__durable_unwinding__"


class _Settling(BaseException):
    """The common base of `Unwind` and `DurableError`: only so can an object of the one become one of the other."""


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

    A `BaseException`, because an `except Exception` in a workflow must not swallow the loss of a lease and go on
    without durability. `durable.run` raises the `DurableError` that it carries instead. (The reasoning is that of
    `asyncio.CancelledError` and `trio.Cancelled`.)

    One that outlives its run, kept by a task, a future or the user's own code, becomes that error in place: see
    `settle`.
    """

    def __init__(self, error: DurableError) -> None:
        super().__init__(error)
        self.error = error
        error.__dict__.setdefault(_UNWINDING, WeakSet()).add(self)

    @staticmethod
    def settle(error: DurableError) -> None:
        """The workflow that this error had to leave is over: each `Unwind` that still carries it becomes an ordinary error."""
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
    """An id, key, option, function or store that cannot work; `problem` says which and why.

    Raised by every public function, before anything is written or called. Correct the call.
    """

    problem: str

    def __str__(self) -> str:
        return self.problem


@dataclass(eq=False, repr=False)
class UnsuitableConnection(InvalidArgument, TypeError):
    """A `connection=` in whose transaction nothing can be written; `problem` says why, and what to give instead.

    Of a kind that is not known, closed, to another database than the store's, in a transaction that has failed; or the store
    is none in PostgreSQL. Raised by `durable.start`, `start_many` and `signal` before anything is written: the caller's
    transaction stays as it was.
    """


@dataclass(eq=False, repr=False)
class AsyncMismatch(DurableError, TypeError):
    """Async code where blocking code is needed, or the reverse; `problem` says where.

    An async function in a blocking workflow, a blocking store's verb that returned an awaitable, a step of an async
    workflow that was never awaited, or an async workflow outside an asyncio task. Raised by `durable.run` and by steps;
    the value in question is not recorded. Await it, or make both sides async or both blocking.
    """

    problem: str

    def __str__(self) -> str:
        return self.problem


@dataclass(eq=False, repr=False)
class NestedStep(DurableError):
    """`step(...)` was called with the `name` inside the body of the step `outer`.

    Raised by the inner call, before its body is called. Call the plain function there, or both steps from the workflow. Only
    the items of a `step.map` may have steps of their own, and `problem` says why this one may not.
    """

    name: str
    outer: str
    problem: str = ""

    def __str__(self) -> str:
        if self.problem:
            return (
                f"step {self.name!r} was called inside the body of {self.outer!r}, an item of a step.map, which may have steps "
                f"of its own; but {self.problem}."
            )
        return (
            f"step {self.name!r} was called inside the body of step {self.outer!r}. A step is remembered as a whole, so "
            f"it cannot contain another: call the plain function here, or call both steps from the workflow."
        )


@dataclass(eq=False, repr=False)
class TransactionMisused(DurableError):
    """The body of the transactional step `name` did to its connection what only the step may do: `problem`.

    It committed, rolled back or closed, or used the connection afterwards. Raised in the body, or by `step.transaction`
    after it; the transaction is rolled back and nothing is recorded. Let the body return to commit, or raise to roll
    back.
    """

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
    """Two different calls in one run used the same `key`; `difference` says what the first call was.

    Raised by the second call, before its body is called. Give each call a key of its own.
    """

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
    """Two tasks or threads call a step of one name without `key=`, so that a replay could swap their values.

    Raised by the call that would share the automatic `key`, before its body is called. Pass `key=` in each branch.
    """

    run_id: str
    key: str

    def __str__(self) -> str:
        scope, _, name = self.key.rpartition("/")
        if not name:  # a scope is entered
            name = scope.rpartition("/")[2]
            return (
                f"run {self.run_id!r}: a scope named {name!r} is entered again while other branches are at work. Numbering "
                f"such scopes by arrival could hand each the other's values on replay: give each a name of its own, for "
                f"example step.scope(f'{name}-{{item.id}}')."
            )
        called, example = f"a step named {self.key!r}", f"step({name!r}, ..., key=f'{name}-{{item.id}}')"
        if name.startswith("step."):  # a method that draws a value
            called, example = name, name.replace("()", "(key=item.id)")
        return (
            f"run {self.run_id!r}: two concurrent branches both call {called} without a key. Numbering them by arrival could "
            f"hand each the other's value on replay: pass key= to both, for example {example}."
        )


@dataclass(eq=False, repr=False)
class UnstorableValue(DurableError):
    """A value that JSON cannot bring back as it is; `path` leads to the part that cannot (`$.items[3].price`).

    `what` is the value's role: the result of a step, an input, a signal. For a step's result, raised by the step after
    its body: the effects stand, nothing is recorded, and the body would run again. Return plain data, or teach the type
    with `durable.stored_as`.
    """

    what: str
    path: str
    problem: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.what} cannot be stored: at {self.path}, {self.problem}.{' ' * bool(self.advice)}{self.advice}"


@dataclass(eq=False, repr=False)
class StepFailed(DurableError):
    """A recorded exception whose class cannot be rebuilt in this process.

    Raised by the step that failed, live and replayed alike, in place of the original. `type` is the dotted name of its
    class and `bases` those of the classes that would catch it; `message` is its text, `remote_traceback` the text of
    its traceback, and `attributes` what of its state could be stored, decoded, by name. Match it by class with `is_a`:

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
        """Whether `isinstance(original, classes)` would hold, by the recorded names of its classes."""
        given = classes if isinstance(classes, tuple) else (classes,)
        names = {self.type, *self.bases}
        return any(issubclass(StepFailed, one) or f"{one.__module__}.{one.__qualname__}" in names for one in given)


@dataclass(eq=False, repr=False)
class StepTimeout(DurableError, TimeoutError):
    """An attempt of the step `name` took longer than its timeout of `seconds`.

    Raised by the step, and recorded as its failure unless the retry policy tries again. A blocking body is not stopped:
    it may still finish in its thread.
    """

    name: str
    seconds: float
    advice: str = ""

    def __str__(self) -> str:
        return f"step {self.name!r} took longer than its timeout of {self.seconds:g} s.{' ' * bool(self.advice)}{self.advice}"


@dataclass(eq=False, repr=False)
class SignalTimedOut(DurableError, TimeoutError):
    """`step.wait_for(name, timeout=seconds)` waited that long, restarts included, and no signal came.

    Raised by `wait_for` and recorded, so that a replay raises it again. Send signals with `durable.signal`.
    """

    name: str
    seconds: float

    def __str__(self) -> str:
        return f"no signal {self.name!r} came within {self.seconds:g} s. This is recorded; durable.signal sends one."


@dataclass(eq=False, repr=False)
class ChildFailed(DurableError):
    """The child run `run_id` has ended without a value: its `status` is "failed", "cancelled", or "deleted".

    Raised by `step.call` and `step.wait_all`, and recorded, so that a replay raises it again. Of one that has failed
    `error_type` is the class of its exception, as `module:Class`, and the exception itself is the `__cause__`.
    """

    run_id: str
    status: str
    error_type: str = ""

    def __str__(self) -> str:
        told = f": it raised {self.error_type.replace(':', '.')}" if self.error_type else ""
        return f"the child run {self.run_id!r} has ended as {self.status}{told}. A retry of its parent runs it again."


@dataclass(eq=False, repr=False)
class SignalMismatch(DurableError, ValueError):
    """The payload of the signal `name` is not of the type that `step.wait_for(name, type=…)` waits for; `problem` says where.

    The signal is received, and a replay raises this again: catch it to wait for the next one.
    """

    name: str
    problem: str

    def __str__(self) -> str:
        return (
            f"the payload of signal {self.name!r} is not of the type that is waited for: {self.problem}. "
            f"It is received; wait again for the next one."
        )


@dataclass(eq=False, repr=False)
class StepInterrupted(DurableError):
    """The body of an at-most-once step was started by an earlier execution, and no outcome was recorded.

    Whether its effect happened is unknown, so its body is not called again. Raised by the step, in each execution: find
    out what became of it, then catch this in the workflow and go on, or use another key.
    """

    run_id: str
    key: str

    def __str__(self) -> str:
        return (
            f"run {self.run_id!r}: the step {self.key!r} was started before and no outcome was recorded, so whether its "
            f"effect happened is unknown. It is to run at most once and is not started again: find out what became of it, "
            f"and go on accordingly (catch StepInterrupted in the workflow), or use another key or run id."
        )


@dataclass(eq=False, repr=False)
class RunCancelled(DurableError):
    """The run was cancelled: by `durable.cancel`, or by the event given as `cancel=`. `reason` is what the caller said.

    Raised by `durable.run`; no further step was started. Its records are kept, but for those of steps that were undone:
    `durable.run` with its id goes on from there. `closed` is whether the run heard of it, and was closed by its owner: its
    undos were performed, and what `step.on_end` was given. Otherwise its lease was taken.
    """

    run_id: str
    reason: str | None = None
    closed: bool = False

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        return (
            f"run {self.run_id!r} was cancelled{why}. What it had recorded is kept: durable.run with this id goes on from "
            f"there."
        )


@dataclass(eq=False, repr=False)
class ClosingFailed(DurableError):
    """Of what a run does at its end, some has failed: an undo, or what `step.on_end` was given.

    Raised by `durable.run` where the run would have been completed, or cancelled (`status`). The run is `failed`, and is not
    taken up again by itself: `durable.retry` lets it do the `steps` (keys) again that have failed, and then it ends as it would
    have. `kinds` are the names of what they raised. A run that has failed keeps its own failure, which gets this as a note.
    """

    run_id: str
    steps: tuple[str, ...]
    kinds: tuple[str, ...]
    status: str

    @property
    def note(self) -> str:
        """The same as a note on another failure."""
        failed = ", ".join(f"{key} ({kind})" for key, kind in zip(self.steps, self.kinds, strict=False))
        return f"at the end of run {self.run_id!r} this has failed, too: {failed}. durable.retry lets it be done again."

    def __str__(self) -> str:
        failed = ", ".join(f"{key} ({kind})" for key, kind in zip(self.steps, self.kinds, strict=False))
        return (
            f"run {self.run_id!r} was to end as {self.status}, and of what it does at its end this has failed: {failed}. "
            f"durable.retry(store, {self.run_id!r}) lets it be done again; the run ends then as it was to."
        )


@dataclass(eq=False, repr=False)
class DeadlineExceeded(DurableError):
    """The run was not done by the `deadline` of the call.

    Raised by `durable.run`; no further step was started. Its records are kept: call again with a later deadline.
    """

    run_id: str

    def __str__(self) -> str:
        return (
            f"run {self.run_id!r} was not done by its deadline, and no further step was started. What it had recorded is "
            f"kept: durable.run with this id and a later deadline goes on from there."
        )


class HistoryError(DurableError):
    """What is stored under this id does not fit what was called. Nothing stored was changed."""


@dataclass(eq=False, repr=False)
class RunMismatch(HistoryError):
    """The id belongs to a run of another workflow, or of other input. `what` is "workflow", "function" or "input".

    Raised by `durable.run` before the workflow is called. Use another id, or call the run as it was started.
    """

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
    """The run was started by version `stored` of its workflow, and this is version `given`.

    Raised by `durable.run` before the workflow is called. Let the old version finish it, pass `version=`, or say with
    `on_version_mismatch=` what becomes of it.
    """

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
    """The workflow no longer makes the calls that its journal recorded; `difference` says how, at the step `key`.

    Raised by the step and by `durable.run`. The recorded value was not handed out, and no body was called after it.
    Restore the order or arguments, give new steps a `key=`, or start the new code under another id.
    """

    run_id: str
    key: str
    difference: str

    def __str__(self) -> str:
        return (
            f"run {self.run_id!r}: at step {self.key!r} the code no longer matches the journal: {self.difference}. Its "
            f"recorded value was not handed out, and no body was started after it. Restore the old order or arguments, "
            f"give new steps an explicit key=, or start the new code under another id. Where the code has not changed, it goes "
            f"by the clock, by chance, or by which of several calls ended first: step.now(), step.random() and step.race() "
            f"are recorded."
        )


@dataclass(eq=False, repr=False)
class RetryRefused(HistoryError):
    """The run recorded the `steps` (keys) while it was failing or being left, and what becomes of them is undecided.

    Raised by `durable.run` and `durable.retry` before the workflow is called: a success would contradict these steps.
    Decide with `durable.retry`. `problem` says, where it is given, why a decision itself was refused.
    """

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
    """Nothing is stored under this id. Raised by `durable.result` and `durable.retry`: check the id and the store."""

    run_id: str

    def __str__(self) -> str:
        return (
            f"no run {self.run_id!r} is stored here. Check the id and the store, its table, schema and prefix included."
        )


@dataclass(eq=False, repr=False)
class ScheduleNotFound(HistoryError):
    """There is no schedule of this name. Raised by the verbs of `durable.schedule`: `durable schedules` lists what there is."""

    name: str

    def __str__(self) -> str:
        return (
            f"no schedule {self.name!r} is stored here: a worker that has it, Worker(…, schedules=[…]), puts it there when it "
            f"starts. Check the name and the store, its table, schema and prefix included."
        )


@dataclass(eq=False, repr=False)
class RunPoisoned(HistoryError):
    """`crashes` workers in a row have died while they executed this run, and none of them had recorded anything.

    A run that was left by `SystemExit`, as `sys.exit()` raises it, counts as one whose worker has died. The run is failed
    with it, so that it takes no more of them along. `durable.retry` brings it back.
    """

    run_id: str
    crashes: int

    def __str__(self) -> str:
        return (
            f"run {self.run_id!r} has failed: {self.crashes} workers in a row died while they executed it (or it called "
            f"sys.exit()), and none had recorded a step of it. When the cause is mended, "
            f"durable.retry(store, {self.run_id!r}) brings it back."
        )


@dataclass(eq=False, repr=False)
class RunNotOver(HistoryError):
    """The run is `status` and has no result yet.

    Raised by `durable.result`. Call `durable.run` with its id to go on with it, or to wait for the execution that does.
    """

    run_id: str
    status: str

    def __str__(self) -> str:
        if self.status == "queued":
            return f"run {self.run_id!r} is queued, and has no result before a worker has executed it."
        return (
            f"run {self.run_id!r} is {self.status} and has no result yet. Call durable.run with its id to go on with it, "
            f'or with on_conflict="wait" to wait for the execution that does.'
        )


@dataclass(eq=False, repr=False)
class UnreadableRecord(HistoryError):
    """A stored line that this version cannot understand; `where` names it, `problem` says why.

    Raised by whatever reads the run; the line is never taken for an absent one, and the run is left as it is. Upgrade,
    import the class that it names, or restore the row.
    """

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
    """Records of the run that the database had acknowledged are gone; `reason` says how that shows.

    The database went back to an earlier state: a fail-over to a standby that was behind, or a backup. Raised by
    `durable.run` before anything more is written. Call it again: it goes on from what is there, and the steps whose
    records are lost run again.
    """

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
    """Only the holder of a run's lease executes and writes it, and that is another execution, or none any more."""


@dataclass(eq=False, repr=False)
class ConcurrentExecution(OwnershipError):
    """Another process, thread or task, `owner`, is executing this run.

    `expires_in` is the rest of its lease in seconds, where that is known. Raised by `durable.run` before the workflow
    is called, and by what changes a run from outside, such as `durable.retry`. Pass `on_conflict="wait"` to wait for
    its result.
    """

    run_id: str
    owner: str
    expires_in: float = 0.0
    advice: str = 'Pass on_conflict="wait" to wait for its result.'

    def __str__(self) -> str:
        lasting = f" (its lease lasts another {self.expires_in:.1f} s unless renewed)" if self.expires_in else ""
        return f"run {self.run_id!r} is being executed by {self.owner}{lasting}. {self.advice}"


@dataclass(eq=False, repr=False)
class RunBeingStarted(ConcurrentExecution):
    """A transaction that has not ended yet starts this run, or holds what it needs, such as its `dedup`.

    What becomes of the run is known when that transaction has ended. Nothing waits for it: this is raised within 250 ms, by
    `durable.run`, `start`, `retry`, `signal` with a `dedup`, and by `save` and `delete` of a store. `durable.run` asks again
    with `on_conflict="wait"`.
    """

    owner: str = "a transaction"
    advice: str = "Call again when it has."

    def __str__(self) -> str:
        return f"run {self.run_id!r} is being started, or held, by a transaction that has not ended yet. {self.advice}"


@dataclass(eq=False, repr=False)
class RunHandedOver(OwnershipError):
    """This worker is being ended: another one goes on with the run, from its next step.

    Seen by what a workflow leaves open (`finally`, context managers), and in the event `RunInterrupted`.
    """

    run_id: str

    def __str__(self) -> str:
        return f"this worker is being ended; run {self.run_id!r} goes on with another one, from its next step"


@dataclass(eq=False, repr=False)
class RunClosing(OwnershipError):
    """The run has ended but for its closing, in an execution before this one: no other step of it begins.

    Seen by what a workflow leaves open (`finally`, context managers).
    """

    run_id: str

    def __str__(self) -> str:
        return f"run {self.run_id!r} is being closed: only what it does at its end is still done"


@dataclass(eq=False, repr=False)
class RunSuspended(OwnershipError):
    """The run waits, and holds nothing meanwhile: a worker goes on with it when the wait is over.

    Seen by what a workflow leaves open (`finally`, context managers), and in the event `RunInterrupted`. `until` is the
    moment when the wait ends (None where no time ends it), `signals` the names of which any ends it sooner.
    """

    run_id: str
    until: datetime | None
    signals: tuple[str, ...] = ()

    def __str__(self) -> str:
        names = " or ".join(map(repr, self.signals))
        ends = [] if self.until is None else [f"until {self.until.isoformat()}"]
        ends += [f"for the signal {names}"] if names else []
        return f"run {self.run_id!r} waits {', or '.join(ends)}: a worker goes on with it then"


@dataclass(eq=False, repr=False)
class RunContinued(OwnershipError):
    """The run goes on as itself, with a new input and an empty journal: see `step.continue_with`.

    Seen by what a workflow leaves open (`finally`, context managers), and in the event `RunInterrupted`.
    """

    run_id: str

    def __str__(self) -> str:
        return f"run {self.run_id!r} goes on from the beginning of its workflow, with a new input and an empty journal"


@dataclass(eq=False, repr=False)
class DuplicateRun(OwnershipError):
    """Another run of the queue with the same `dedup` has not ended, so that this one is not taken up again.

    Raised by `durable.retry` and `durable.run`; nothing was changed.
    """

    run_id: str

    def __str__(self) -> str:
        return (
            f"run {self.run_id!r} is not taken up again: another run of its queue that was started with the same dedup= has "
            f"not ended. Wait until it has, or cancel it."
        )


@dataclass(eq=False, repr=False)
class RunExists(OwnershipError):
    """A run of this id is there already; its header says `status`.

    Raised by `durable.start` with `on_conflict="raise"`; nothing was changed.
    """

    run_id: str
    status: str

    def __str__(self) -> str:
        return (
            f"run {self.run_id!r} is there already, and is {self.status}. Use another id, or leave out on_conflict to get the "
            f"handle of that run."
        )


@dataclass(eq=False, repr=False)
class WaitTimedOut(OwnershipError):
    """The run has not ended in the `waited` seconds that a caller had for it.

    Raised by `durable.run` with `on_conflict="wait"`, and by a handle's `result`; the run itself is left as it is. Call again
    to wait on, or give it more time: `wait_timeout`, or the handle's `timeout`.
    """

    run_id: str
    waited: float

    def __str__(self) -> str:
        return (
            f"run {self.run_id!r} had not ended after {self.waited:.1f} s. It goes on without this call; call again to wait "
            f"on, or give it more time (wait_timeout= of durable.run, timeout= of a handle's result)."
        )


@dataclass(eq=False, repr=False)
class LeaseLost(OwnershipError):
    """This execution may write no more: its lease ran out or was taken over; `reason` says which.

    Raised by `durable.run`. Nothing more was written, and no further step was started. Call again: it waits for the
    run, or goes on with it.
    """

    run_id: str
    reason: str

    def __str__(self) -> str:
        return (
            f"run {self.run_id!r} lost its lease: {self.reason}. Nothing more was written and no further step was "
            f"started here. Call durable.run again with this id: it waits for, or continues, the run."
        )


@dataclass(eq=False, repr=False)
class RunOver(OwnershipError):
    """The step `name` was called after its run had ended, by a task or thread that outlived the workflow function.

    Raised by the step; its body is not called. Wait for every such task and thread before the workflow returns.
    """

    run_id: str
    name: str

    def __str__(self) -> str:
        return (
            f"step {self.name!r} was called after run {self.run_id!r} had ended. Wait for every task and thread that "
            f"calls steps before the workflow returns."
        )


@dataclass(eq=False, repr=False)
class RaceLost(OwnershipError):
    """The step `name` was called in a branch of a `step.race` that another branch has won.

    It ends that branch, past any `except Exception`, and nothing else: the workflow goes on with the winner.
    """

    run_id: str
    name: str

    def __str__(self) -> str:
        return f"step {self.name!r} of run {self.run_id!r} belongs to a branch of a race that another branch has won."


class StoreError(DurableError):
    """The database refused, could not be reached, or is not what it should be."""


@dataclass(eq=False, repr=False)
class StoreUnavailable(StoreError):
    """PostgreSQL at `where` could not be reached or did not answer.

    Raised by whatever asks the store, once waiting for better times is of no more use. What was acknowledged is safe:
    call again with the same id when the server answers.
    """

    where: str
    problem: str

    def __str__(self) -> str:
        return (
            f"PostgreSQL at {self.where} is not available: {self.problem}. What was acknowledged is safe; call again with "
            f"the same id when it answers. Check the host, the port, and that the server runs."
        )


@dataclass(eq=False, repr=False)
class AccessDenied(StoreError):
    """PostgreSQL at `where` answered and refused: user, password, database or privilege.

    Raised by whatever connects first. Nothing was written. `advice` says what to check.
    """

    where: str
    problem: str
    advice: str = "Check the user, the password (in the URL, $PGPASSWORD or ~/.pgpass) and the database's name."

    def __str__(self) -> str:
        return f"PostgreSQL at {self.where} refused: {self.problem}. {self.advice}"


@dataclass(eq=False, repr=False)
class UnsuitableServer(StoreError):
    """The server at `where` cannot be trusted with runs: another database, too old a version, or a read-only one.

    Raised by the first use of a store. Nothing was read from it or written to it. `advice` says what it takes.
    """

    where: str
    problem: str
    advice: str

    def __str__(self) -> str:
        return f"the server at {self.where} cannot hold runs: {self.problem}. {self.advice}"


@dataclass(eq=False, repr=False)
class SchemaMismatch(StoreError):
    """A table that the store needs is missing, newer than this version, or something else of that name.

    Raised by the first use of a store. What is there was not touched. `advice` says what to do.
    """

    table: str
    problem: str
    advice: str = "Pass table= or schema= to postgres() to use other names; the existing table was not touched."

    def __str__(self) -> str:
        return f"the table {self.table} cannot serve as a store: {self.problem}. {self.advice}"


@dataclass(eq=False, repr=False)
class OutcomeUnknown(StoreError):
    """The reply to a write was lost, and what became of the write could not be settled before the lease's deadline.

    The write is there, whole, or it is not. Raised by `durable.run`. Call it again: it reads which, and runs the body
    again only if the record is not there.
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
    """No local PostgreSQL could be started for `embedded()`; `advice` says what is missing, and where the server's log is."""

    problem: str
    advice: str

    def __str__(self) -> str:
        return f"no embedded PostgreSQL could be started: {self.problem}. {self.advice}"


__all__ = [  # every class above, but for what begins with an underscore
    name
    for name, value in [*vars().items()]
    if isinstance(value, type) and value.__module__ == __name__ and name[0] != "_"
]  # pyright: ignore[reportUnsupportedDunderAll]
