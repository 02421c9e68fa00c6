"""One call of `durable.run`, checked: what is to be executed, under which claim, and with what."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from durable._decorator import Driver, current_frame
from durable._deps import BoundDeps
from durable._engine import runs
from durable._engine.decisions import Admission, Claim, ClaimReply, Decline, Granted, Reading
from durable._engine.journal import Journal
from durable._engine.leases import checked_seconds
from durable._engine.steps import Execution
from durable.clocks import Clock, SystemClock
from durable.codecs import Codec, JsonCodec
from durable.errors import ConcurrentExecution, DurableWarning, HistoryError, InvalidArgument
from durable.events import LeaseTaken, Listener, RunBegan, RunEvent, RunReturned, safely
from durable.failures import from_record
from durable.snapshot import ErrorRecord, checked_name
from durable.stores import MemoryStore
from durable.stores._whole import run_store
from durable.stores.protocol import RunStore, SnapshotStore

OMITTED: Final[Any] = ...
_WITHOUT_INPUT: Final = 2  # arguments: fn(step, deps)
_WITH_INPUT: Final = 3  # fn(step, deps, input)
_RESERVED: Final = {"version", "inputHash"}


@dataclass(frozen=True, slots=True)
class Plan:
    """One call of `run`, checked."""

    deps: Any = field(repr=False)
    fn: Callable[..., Any]
    claim: Claim
    store: RunStore
    waits: bool
    wait_timeout: float | None
    takes: frozenset[int]
    on_event: Listener | None
    outer: tuple[tuple[object, str], ...]
    codec: Codec = field(default_factory=JsonCodec)
    clock: Clock = field(default_factory=SystemClock)

    @property
    def runs(self) -> tuple[tuple[object, str], ...]:
        """This run and those that it is called from."""
        return (*self.outer, (self.store.identity, self.claim.run_id))

    def tell(self, event: RunEvent) -> None:
        """Tell the listener, if there is one."""
        if self.on_event is not None:
            safely(self.on_event, event)

    def reading(self) -> Reading:
        """The clock, read."""
        return Reading(self.clock.now(), self.clock.elapsed())

    def arguments(self, driver: Driver, journal: Journal) -> tuple[Any, ...]:
        """What the workflow function is called with."""
        deps = BoundDeps(self.deps, driver)
        if journal.input is not None and _WITH_INPUT in self.takes:
            return driver, deps, self.codec.decode(journal.input, run_id=self.claim.run_id, where="the input")
        if _WITHOUT_INPUT in self.takes:
            return driver, deps
        raise InvalidArgument(f"run {self.claim.run_id!r} was started without an input, and its workflow takes one")

    def encoded(self, value: Any) -> bytes:
        """The JSON of what the workflow returned."""
        return self.codec.encode(value, what=f"the result of workflow {self.claim.workflow!r}")

    def decoded(self, text: bytes) -> Any:
        """A result as its record gives it back."""
        return self.codec.decode(text, run_id=self.claim.run_id, where="the result")

    def admission(self, claim: Claim, reply: ClaimReply, waited: float, polls: int) -> Admission:
        """What the reply to a claim means for this call."""
        try:
            return runs.admitted(
                claim, reply, waits=self.waits, wait_timeout=self.wait_timeout, waited=waited, polls=polls
            )
        except HistoryError as error:
            return Decline(error, reply.lease if isinstance(reply, Granted) else None)

    def stored_result(self, value: bytes) -> Any:
        """The result of a run that had been completed before."""
        self.tell(RunReturned(self.claim.run_id, self.clock.now(), self.claim.workflow))
        return self.decoded(value)

    def stored_failure(self, error: ErrorRecord) -> Exception:
        """The exception of a run that somebody else has executed meanwhile."""
        self.tell(RunReturned(self.claim.run_id, self.clock.now(), self.claim.workflow))
        return from_record(error, self.codec, run_id=self.claim.run_id, where="the failure")

    def execution(self, granted: Granted, main: object) -> Execution:
        """The machine that decides for this execution, its journal loaded."""
        run_id, at = self.claim.run_id, self.clock.now()
        journal = Journal(run_id, granted.records, main)
        if granted.taken_from is not None:
            self.tell(LeaseTaken(run_id, at, granted.taken_from))
        epoch, recorded = granted.lease.epoch, journal.recorded
        self.tell(RunBegan(run_id, at, self.claim.workflow, epoch, recorded, granted.header, granted.records))
        listening = None if self.on_event is None else self.tell
        return Execution(self.claim.workflow, journal, granted.lease, listening)


def planned(
    deps: Any,
    fn: Callable[..., Any],
    id: str,
    given: RunStore | SnapshotStore | None,
    input: Any,
    version: int,
    on_conflict: str,
    wait_timeout: float | None,
    lease: float,
    metadata: Mapping[str, Any] | None,
    on_event: Listener | None,
) -> Plan:
    """The call, checked: every mistake that can be seen without the store is named here, before it is asked."""
    checked_name("a run's id", id)
    store = run_store(_store_of_this_process() if given is None else given)
    if isinstance(version, bool) or not isinstance(version, int) or not -(2**31) <= version < 2**31:
        raise InvalidArgument(f"version must be an int of at most 31 bits, not {version!r}")
    if on_conflict not in ("raise", "wait"):
        raise InvalidArgument(f'on_conflict must be "raise" or "wait", not {on_conflict!r}')
    if wait_timeout is not None and not (isinstance(wait_timeout, int | float) and wait_timeout >= 0):
        raise InvalidArgument(f"wait_timeout must be a number of seconds or None, not {wait_timeout!r}")
    if on_event is not None and not callable(on_event):
        raise InvalidArgument(f"on_event must be a function of one event, not {type(on_event).__name__}")
    frame = current_frame.get()
    outer = () if frame is None else frame.runs
    if (store.identity, id) in outer:
        advice = "A run cannot wait for itself: call the function, or give the inner run an id of its own."
        raise ConcurrentExecution(id, "the very run that makes this call", advice=advice)
    codec = JsonCodec()
    takes = _takes(fn, given=input is not OMITTED)
    text = None if input is OMITTED else codec.encode(input, what="the input")
    if not isinstance(metadata, Mapping | None):
        raise InvalidArgument(f"metadata must be a mapping, not {type(metadata).__name__}")
    if _RESERVED & set(metadata or ()):
        raise InvalidArgument(f"metadata must not have the keys {sorted(_RESERVED)}: they are the library's own")
    codec.encode(dict(metadata or {}), what="the metadata")
    claim = Claim(
        run_id=id,
        workflow=checked_name("a workflow's name", _name(fn)),
        version=version,
        seconds=checked_seconds(lease),
        input=text,
        input_hash=None if text is None else codec.fingerprint(input, what="the input"),
        metadata=dict(metadata or {}),
        create=text is not None or _WITHOUT_INPUT in takes,
    )
    return Plan(deps, fn, claim, store, on_conflict == "wait", wait_timeout, takes, on_event, outer, codec)


def _takes(fn: Any, *, given: bool) -> frozenset[int]:
    """With how many arguments the workflow can be called; `InvalidArgument` when not as it would have to be."""
    if not callable(fn):
        raise InvalidArgument(f"the workflow must be a function fn(step, deps), not {type(fn).__name__}")
    try:
        signature = inspect.signature(fn)
    except ValueError:
        raise InvalidArgument(f"the workflow {_name(fn)!r} is not a function fn(step, deps) of yours") from None
    fits = frozenset(count for count in (_WITHOUT_INPUT, _WITH_INPUT) if _binds(signature, count))
    if _WITH_INPUT in fits if given else fits:
        return fits
    wanted = "fn(step, deps, input), since input= was given" if given else "fn(step, deps)"
    raise InvalidArgument(f"the workflow {_name(fn)}{signature} must be callable as {wanted}")


def _binds(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _name(fn: Any) -> str:
    while isinstance(fn, partial):
        fn = fn.func
    return str(getattr(fn, "__name__", type(fn).__name__))


_process_lock = threading.Lock()
_process_store: MemoryStore | None = None


def _store_of_this_process() -> MemoryStore:
    global _process_store  # noqa: PLW0603 -- one per process is what it is
    with _process_lock:
        if _process_store is None:
            _process_store = MemoryStore()
            warnings.warn(
                "durable.run without store= remembers runs in this process only, and forgets them when it ends; "
                "pass store=postgres(url), or store=embedded() to try it with a real PostgreSQL",
                DurableWarning,
                stacklevel=4,
            )
        return _process_store
