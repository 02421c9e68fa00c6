"""The plan of one call of `durable.run`, checked before the store is asked anything."""

from __future__ import annotations

import functools
import inspect
import logging
import math
import threading
import warnings
from collections.abc import Callable
from datetime import datetime
from types import CodeType, FunctionType
from typing import Any, Final

from msgspec import UNSET, Struct
from msgspec.structs import force_setattr, replace

from durable._common.checks import check_name
from durable._common.durations import Duration, to_seconds, to_utc
from durable._common.reports import report
from durable._engine import runs
from durable._engine.closing import refuse_undecided
from durable._engine.continuations import times_continued
from durable._engine.decisions import Admission, Claim, ClaimReply, Decline, Granted, Reading
from durable._engine.journal import Journal
from durable._engine.leases import check_seconds
from durable._engine.steps import LiveExecution
from durable._runtime.awaitables import is_async_function
from durable._runtime.context import Driver, Running, current_frame
from durable._runtime.deps import bind_deps
from durable._runtime.policies import Policy
from durable._runtime.run_options import RunOptions, check_options
from durable._runtime.stack import require_stack
from durable._runtime.step_options import StepOptions, checked_timeout, step_options
from durable._runtime.versions import answer_by, ask_user, migrate_run
from durable._runtime.workflow import definition_of_workflow
from durable.clocks import Clock, clock_of
from durable.codecs import Codec, check_plain, codec_of, parameter_annotation, return_annotation
from durable.codecs._failures import from_record
from durable.errors import (
    ConcurrentExecution,
    DurableWarning,
    HistoryError,
    InvalidArgument,
    VersionMismatch,
)
from durable.events import LeaseTaken, RunBegan, RunEvent, RunReturned, notify
from durable.records import ErrorRecord, Kind
from durable.snapshots import Snapshot
from durable.stores import MemoryStore
from durable.stores._adapters.kinds import AnyStore, as_run_store, queueing_store
from durable.stores.protocol import RunStore

_log = logging.getLogger("durable")


class _Missing:
    """What stands for an argument that was not given."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final[Any] = _Missing()
_WITHOUT_INPUT: Final = 2  # arguments: fn(step, deps)
_WITH_INPUT: Final = 3  # fn(step, deps, input)


class Plan(Struct, frozen=True, eq=False):
    """What to execute, under which claim, and with what."""

    deps: Any
    fn: Callable[..., Any]
    claim: Claim
    store: RunStore
    takes: frozenset[int]
    options: RunOptions
    step_defaults: StepOptions
    deadline: float | None
    outer: tuple[Running, ...]
    here: Running
    codec: Codec
    clock: Clock
    #: Which failures of the run make it due again, and when; None where none does.
    run_retry: Policy | None = None
    #: When the run began first, in elapsed seconds: perhaps before this process did.
    began: float = 0.0
    #: Whether it is a worker's.
    is_queued: bool = False
    #: How many seconds a wait must have to go for the run to be suspended meanwhile.
    suspend_after: float = math.inf

    def __repr__(self) -> str:
        return f"<Plan of run {self.claim.run_id!r} of {self.claim.workflow!r}>"

    @property
    def runs(self) -> tuple[Running, ...]:
        """This run and those that it is called from."""
        return (*self.outer, self.here)

    @property
    def for_driver(
        self,
    ) -> tuple[RunStore, Codec, Clock, tuple[Running, ...], StepOptions, threading.Event | None]:
        """The arguments of a driver, after its execution."""
        return self.store, self.codec, self.clock, self.runs, self.step_defaults, self.options.cancel

    def with_store(self, store: RunStore, clock: Clock) -> Plan:
        """The same call on another store, by another clock."""
        return replace(self, store=store, clock=clock, deadline=deadline_at(self.options.deadline, clock))

    @property
    def is_async(self) -> bool:
        return is_async_function(self.fn)

    @property
    def is_late(self) -> bool:
        return self.deadline is not None and self.clock.elapsed() >= self.deadline

    def emit(self, event: RunEvent) -> None:
        if self.options.on_event is not None:
            notify(self.options.on_event, event)

    def reading(self) -> Reading:
        return Reading(self.clock.now(), self.clock.elapsed())

    def arguments(self, step: object, driver: Driver, journal: Journal) -> tuple[Any, ...]:
        """What the workflow function is called with: its `step`, its dependencies, whose steps are the driver's, its input."""
        deps = bind_deps(self.deps, driver)
        if journal.input is not None and _WITH_INPUT in self.takes:
            annotation = parameter_annotation(self.fn, _WITH_INPUT - 1)
            run_id = self.claim.run_id
            given = self.codec.decode(journal.input, run_id=run_id, where="the input", annotation=annotation)
            return step, deps, given
        if _WITHOUT_INPUT in self.takes:
            return step, deps
        raise InvalidArgument(f"run {self.claim.run_id!r} was started without an input, and its workflow takes one")

    def encode(self, value: Any) -> bytes:
        """The JSON of what the workflow returned."""
        what = f"the result of workflow {self.claim.workflow!r}"
        return self.codec.encode(value, what=what, annotation=return_annotation(self.fn))

    def encode_input(self, value: Any) -> bytes:
        """The JSON of an input with which the workflow goes on; `InvalidArgument` where it takes none."""
        if _WITH_INPUT not in self.takes:
            raise InvalidArgument(
                f"step.continue_with: the workflow {self.claim.workflow!r} takes no input; make it fn(step, deps, input)"
            )
        return self.codec.encode(value, what="the input", annotation=parameter_annotation(self.fn, _WITH_INPUT - 1))

    def decode(self, text: bytes) -> Any:
        """A result as its record gives it back."""
        run_id, annotation = self.claim.run_id, return_annotation(self.fn)
        return self.codec.decode(text, run_id=run_id, where="the result", annotation=annotation)

    def admission(self, claim: Claim, reply: ClaimReply, waited: float, polls: int) -> Admission:
        """What the reply to a claim means for this call."""
        try:
            options = self.options
            waits, wait_timeout = options.on_conflict == "wait", options.wait_timeout
            wait_timeout = None if wait_timeout is None else to_seconds("wait_timeout", wait_timeout)
            migrates = options.on_version_mismatch not in (None, "raise")
            return runs.admit(
                claim, reply, waits=waits, wait_timeout=wait_timeout, waited=waited, polls=polls, migrates=migrates
            )
        except HistoryError as error:
            return Decline(error, reply.lease if isinstance(reply, Granted) else None)

    def ask_user(self, mismatch: VersionMismatch, stored: Snapshot) -> Any:
        """The user's answer for a run of another version; of an async function, its coroutine."""
        return ask_user(self.options.on_version_mismatch, mismatch, stored)

    def migrate(self, answer: object, mismatch: VersionMismatch, stored: Snapshot) -> Snapshot:
        """The snapshot to go on with."""
        return migrate_run(answer, mismatch, stored, self.codec)

    def stored_result(self, value: bytes) -> Any:
        """The result of a run that had been completed before."""
        self.emit(RunReturned(self.claim.run_id, self.clock.now(), self.claim.workflow))
        return self.decode(value)

    def stored_failure(self, error: ErrorRecord) -> Exception:
        """The exception of a run that was executed elsewhere meanwhile."""
        self.emit(RunReturned(self.claim.run_id, self.clock.now(), self.claim.workflow))
        return from_record(error, self.codec, run_id=self.claim.run_id, where="the failure")

    def execution(self, granted: Granted, main: object) -> LiveExecution:
        """The machine that decides for this execution, its journal loaded; `RetryRefused` where that takes a decision."""
        run_id, at = self.claim.run_id, self.clock.now()
        journal = Journal(run_id, granted.records, main)
        if journal.undecided:
            raise refuse_undecided(run_id, journal.undecided)
        if granted.taken_from is not None:
            self.emit(LeaseTaken(run_id, at, granted.taken_from))
        if (cancel := granted.header.cancel) is not UNSET:
            granted.lease.ask(cancel.reason)
        epoch, recorded = granted.lease.epoch, journal.recorded
        self.emit(RunBegan(run_id, at, self.claim.workflow, epoch, recorded, granted.header, granted.records))
        failures = sum(record.kind == Kind.FAILURE for record in granted.records)
        # Whatever still holds the grant need not hold its texts, which are half of what a resumed run would keep.
        force_setattr(granted, "records", ())
        listening = None if self.options.on_event is None else self.emit
        return LiveExecution(
            self.claim.workflow,
            journal,
            granted.lease,
            listening,
            self.deadline,
            is_queued=self.is_queued,
            failures=failures,
            times_continued=times_continued(granted.header),
            suspend_after=self.suspend_after,
        )

    def retry_run_in(self, exception: Exception, failures: int) -> float | None:
        """Seconds until the run is due again that has failed with this; None where it is not."""
        if self.run_retry is None:
            return None
        try:
            return self.run_retry.retry_delay(exception, failures + 1, self.clock.elapsed() - self.began)
        except InvalidArgument as problem:  # the policy does not say: the run's own failure is what is recorded
            message = "run %r: its policy cannot say whether it is tried again"
            report(_log, logging.ERROR, message, self.claim.run_id, problem=problem)
            return None


def plan_run(
    deps: Any,
    fn: Callable[..., Any],
    id: str,
    given: AnyStore | None,
    input: Any,
    options: RunOptions,
) -> Plan:
    """Check the call: every mistake that can be seen without the store is raised here, before the store is asked."""
    require_stack()
    check_name("a run's id", id)
    store = as_run_store(_store_of_this_process() if given is None else given)
    check_options(options)
    frame = current_frame.get()
    outer = () if frame is None else tuple(run for run in frame.runs if not run.over)  # a task may outlive its run
    identity = store.identity
    if any(run.id == id and run.identity == identity for run in outer):
        advice = "A run cannot wait for itself: call the function, or give the inner run an id of its own."
        raise ConcurrentExecution(id, "the very run that makes this call", advice=advice)
    codec, clock = codec_of(store), clock_of(store)
    takes = _takes(fn, deps, given=input is not MISSING)
    definition = definition_of_workflow(fn)
    if (promise := return_annotation(fn)) is not None and (check := getattr(codec, "check_promise", None)) is not None:
        check(promise, what=f"the result of workflow {definition.name!r}")
    text = None
    if input is not MISSING:
        text = codec.encode(input, what="the input", annotation=parameter_annotation(fn, _WITH_INPUT - 1))
    if options.recover is not None:
        queueing_store(store, 'durable.run(recover="workers")')
        if not definition.is_marked:
            raise InvalidArgument(
                f'recover="workers": {definition.name} is not marked as a workflow, so that a worker could find it: put '
                f"@durable.workflow above it"
            )
    if options.on_version_mismatch is None:
        options = options._replace(on_version_mismatch=answer_by(definition.migrates))
    metadata = dict(options.metadata or {})
    check_plain(metadata, what="the metadata")
    claim = Claim(
        run_id=id,
        workflow=definition.name,
        function=definition.function,
        version=definition.version if options.version is None else options.version,
        seconds=check_seconds(options.lease),
        input=text,
        input_hash=None if text is None else codec.fingerprint(input, what="the input"),
        metadata=metadata,
        create=text is not None or _WITHOUT_INPUT in takes,
        recovers=options.recover is not None,
    )
    at = deadline_at(options.deadline, clock)
    return Plan(
        deps,
        fn,
        claim,
        store,
        takes,
        options,
        step_options(options.retry, None),
        at,
        outer,
        Running(identity, id, claim.workflow, claim.version),
        codec,
        clock,
    )


def deadline_at(deadline: Duration | datetime | None, clock: Clock) -> float | None:
    """The deadline as a reading of the elapsed-time clock."""
    if isinstance(deadline, datetime):
        return clock.elapsed() + (to_utc("deadline", deadline) - clock.now()).total_seconds()
    seconds = checked_timeout("deadline", deadline)
    return None if seconds is None else clock.elapsed() + seconds


def _takes(fn: Any, deps: Any, *, given: bool) -> frozenset[int]:
    """With how many arguments the workflow can be called; `InvalidArgument` when not as it would have to be."""
    if not callable(fn):
        order = ": it comes second, durable.run(deps, fn, id=…)" if callable(deps) else ""
        raise InvalidArgument(f"the workflow must be a function fn(step, deps), not {type(fn).__name__}{order}")
    return check_arity(fn, given=given)


def check_arity(fn: Callable[..., Any], *, given: bool, is_new: bool = False) -> frozenset[int]:
    """With how many arguments it can be called; `InvalidArgument` where that does not fit an input that is `given`, or none.

    A run that is not new may have its input in the store.
    """
    fits = arities(fn)
    if _WITH_INPUT in fits if given else _WITHOUT_INPUT in fits or (fits and not is_new):
        return fits
    wanted = "fn(step, deps, input), since an input was given" if given else "fn(step, deps), since no input was given"
    raise InvalidArgument(
        f"the workflow {definition_of_workflow(fn).name}{inspect.signature(fn)} must be callable as {wanted}"
    )


def arities(fn: Any) -> frozenset[int]:
    """With how many arguments a workflow can be called, of two and three."""
    if type(fn) is FunctionType and not fn.__defaults__ and not fn.__kwdefaults__:
        return _arities_of(fn.__code__)
    try:
        signature = inspect.signature(fn)
    except ValueError:
        raise InvalidArgument(
            f"the workflow {definition_of_workflow(fn).name!r} is not a function fn(step, deps) of yours"
        ) from None
    return frozenset(count for count in (_WITHOUT_INPUT, _WITH_INPUT) if _binds(signature, count))


@functools.lru_cache(maxsize=1024)
def _arities_of(code: CodeType) -> frozenset[int]:
    """The same for a plain function: a workflow is called often, and `inspect` takes longer than all else before it."""
    takes_more = bool(code.co_flags & inspect.CO_VARARGS)
    needs_names = bool(code.co_kwonlyargcount)
    counts = (_WITHOUT_INPUT, _WITH_INPUT)
    return frozenset(
        count
        for count in counts
        if not needs_names and (count == code.co_argcount or (takes_more and count > code.co_argcount))
    )


def _binds(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


_of_this_process: Final[dict[type, MemoryStore]] = {}


def _store_of_this_process() -> MemoryStore:
    store = _of_this_process.get(MemoryStore)
    if store is None:
        # Without a lock, which a signal handler would wait for in vain, and a forked child might find locked.
        made = MemoryStore()
        store = _of_this_process.setdefault(MemoryStore, made)
        if store is made:
            warnings.warn(
                "durable.run without store= remembers runs in this process only, and forgets them when it ends; "
                "pass store=postgres(url), or store=embedded() to try it with a real PostgreSQL",
                DurableWarning,
                stacklevel=5,
            )
    return store
