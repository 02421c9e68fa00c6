"""A replay of a stored run by the code of today, which calls no body and writes nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar, overload

import msgspec
from msgspec import UNSET, structs

from durable._engine.calls import Call
from durable._engine.step_kinds import Item
from durable._engine.steps import LiveExecution
from durable._runtime.async_runs import AsyncRun
from durable._runtime.async_steps import AsyncDriver
from durable._runtime.awaitables import is_async_function
from durable._runtime.bodies import Body
from durable._runtime.driver import Driver
from durable._runtime.plan import Plan
from durable._runtime.run import run
from durable._runtime.runs import BlockingRun
from durable._runtime.signatures import AsyncWorkflow, AsyncWorkflowOf, BlockingWorkflow, BlockingWorkflowOf
from durable._runtime.steps import BlockingDriver
from durable.clocks import SystemClock
from durable.codecs import Codec
from durable.errors import AmbiguousKey, DurableError, HistoryError, KeyConflict, Unwind, WorkflowDrift
from durable.records import Execution, Status
from durable.snapshots import Snapshot, as_history
from durable.stores import MemoryStore
from durable.stores.listing import checked_snapshot

D = TypeVar("D")

Source: TypeAlias = Snapshot | Mapping[str, Any] | bytes | str | os.PathLike[str]
"""A stored run: its snapshot, or the document of one as a mapping, as JSON, or as a file (a `Path`)."""

_run: Final[Callable[..., Any]] = run  # the overloads are for callers who know what they call


@dataclass(frozen=True)
class Replayed:
    """What came of a replay.

    - `drift`: why the code no longer fits the record, None where it does. A completed run must end again, by recorded steps
      only, with the same result.
    - `replayed`: the keys of the recorded steps that it called, in order; `unused`: those that it did not call.
    - `next`: the keys of the steps without a record that it called, which `durable.run` would run next: the first, and
      those beside it.
    - `ended`: whether the workflow came to its end. `result` is then what it returned, or `error` what it raised.
    """

    run_id: str
    drift: DurableError | None = None
    replayed: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    next: tuple[str, ...] = ()
    ended: bool = False
    result: Any = field(default=None, repr=False)
    error: Exception | None = None

    def check(self) -> Replayed:
        """Return this if the code fits the record; else raise `drift`."""
        if self.drift is not None:
            raise self.drift
        return self


@overload
def replay(
    deps: D,
    fn: AsyncWorkflow[D, Any] | AsyncWorkflowOf[D, Any, Any],
    source: Source,
    *,
    id: str = ...,
    codec: Codec | Sequence[Codec] | None = ...,
) -> Coroutine[Any, Any, Replayed]: ...
@overload
def replay(
    deps: D,
    fn: BlockingWorkflow[D, object] | BlockingWorkflowOf[D, Any, object],
    source: Source,
    *,
    id: str = ...,
    codec: Codec | Sequence[Codec] | None = ...,
) -> Replayed: ...
def replay(
    deps: Any,
    fn: Callable[..., Any],
    source: Source,
    *,
    id: str = "replayed",
    codec: Codec | Sequence[Codec] | None = None,
) -> Any:
    """Execute `fn` on the record of a run, up to the first step without one: what would become of the run today.

    No body is called, no time passes, and nothing is stored; the code between the steps is executed, with these `deps`.
    `id` is for messages, `codec` as for the run's store. For an `async def` this returns a coroutine.

    Raises `UnreadableRecord` or `InvalidArgument` for a source that is no snapshot, `OSError` for a file that cannot be read.
    """
    record = _Record(id, _read_source(source, id), codec)
    outcome = partial(_run, deps, fn, id=id, store=record, version=record.version)
    if is_async_function(fn):
        return _replay_async(record, outcome())
    with record:
        try:
            return record.on_return(outcome())
        except Exception as problem:
            return record.on_raise(problem)


async def _replay_async(record: _Record, outcome: Coroutine[Any, Any, Any]) -> Replayed:
    with record:
        try:
            return record.on_return(await outcome)
        except Exception as problem:
            return record.on_raise(problem)


class _Halt(DurableError):
    """The workflow has come to a step without a record."""


@dataclass
class _Walk:
    """How far a replay has come."""

    replayed: list[str] = field(default_factory=list[str])
    next: list[str] = field(default_factory=list[str])
    execution: LiveExecution | None = None
    #: Whether the run had come to its end.
    had_ended: bool = False

    def come_to(self, execution: LiveExecution, call: Call) -> None:
        """A step is called; the walk ends here if it has no record."""
        if call.refusal is None and execution.error is None and execution.journal.record_of(call.key) is not None:
            if call.key not in self.replayed:
                self.replayed.append(call.key)
        elif call.refusal is None and type(call.kind) is Item and execution.journal.holds(call.key):
            return  # it was left in its body, which calls what is recorded
        elif call.refusal is None and not isinstance(execution.error, HistoryError):
            self.next.append(call.key)
            raise Unwind(execution.abort(_Halt()).error)


class _WalkingDriver(Driver):
    """A driver that tells how far it has come, and draws the moments of today."""

    def __init__(self, walk: _Walk, *args: Any) -> None:
        super().__init__(*args)
        self._walk = walk
        walk.execution = self._execution
        self._execution.journal.had_ended = walk.had_ended

    def _moment(self) -> datetime:
        return SystemClock.now()


class _BlockingDriver(_WalkingDriver, BlockingDriver):
    def _drive(self, call: Call, body: Body) -> Any:
        with self._lock:
            self._walk.come_to(self._execution, call)
        return super()._drive(call, body)


class _AsyncDriver(_WalkingDriver, AsyncDriver):
    async def _drive(self, call: Call, body: Body) -> Any:
        self._walk.come_to(self._execution, call)
        return await super()._drive(call, body)


class _Afterwards(SystemClock):
    """A clock on which everything that was waited for is past."""

    def now(self) -> datetime:
        return datetime.max.replace(tzinfo=UTC)


class _Record(MemoryStore):
    """A store of one run, and what its replay finds out."""

    def __init__(self, run_id: str, snapshot: Snapshot, codec: Codec | Sequence[Codec] | None) -> None:
        super().__init__(codec=codec)
        self._run_id = run_id
        self._snapshot = snapshot
        self._walk = _Walk(had_ended=snapshot.execution.status == Status.COMPLETED)
        self.version = snapshot.metadata.get("version", 1)
        self.save(run_id, _reopen(snapshot))

    def rehearse(self, plan: Plan, *, is_async: bool) -> Any:
        """See `durable.run`."""
        there = plan.with_store(self, _Afterwards())
        if is_async:
            return AsyncRun(there, partial(_AsyncDriver, self._walk)).outcome()
        return BlockingRun(there, partial(_BlockingDriver, self._walk)).outcome()

    def on_return(self, value: Any) -> Replayed:
        """The workflow has come to its end."""
        return self._report(self._changed_result(value), ended=True, result=value)

    def on_raise(self, problem: Exception) -> Replayed:
        """It has come to a step without a record, to a step that does not fit, or to an exception of its own."""
        match problem:
            case _Halt():
                return self._report(self._unended())
            case HistoryError() | KeyConflict() | AmbiguousKey():
                return self._report(problem)
            case _ if self._walk.execution is None:
                raise problem
            case _:
                what = f"it returned then, and raises {type(problem).__name__} now"
                return self._report(self._drift("result", what) if self._knows_end else None, ended=True, error=problem)

    def _report(self, drift: DurableError | None, **end: Any) -> Replayed:
        walk = self._walk
        unused = () if walk.execution is None else walk.execution.journal.unused_keys()
        return Replayed(self._run_id, drift, tuple(walk.replayed), unused, tuple(walk.next), **end)

    @property
    def _was_completed(self) -> bool:
        return self._snapshot.execution.status == Status.COMPLETED

    @property
    def _knows_end(self) -> bool:
        """Whether the run has to end as it did: not if it drew, after its last record, what no record holds."""
        drawn = None if self._walk.execution is None else self._walk.execution.journal.drawn
        return self._was_completed and not (drawn is not None and drawn.has_unheld)

    def _unended(self) -> WorkflowDrift | None:
        key = self._walk.next[0]
        return self._drift(key, "the run was completed without it") if self._was_completed else None

    def _changed_result(self, value: Any) -> WorkflowDrift | None:
        if not self._knows_end or self._snapshot.result is UNSET:
            return None
        text = self.codec.encode(value, what="the result")
        if msgspec.json.decode(bytes(self._snapshot.result)) == msgspec.json.decode(text):
            return None
        return self._drift("result", "it returned something else then")

    def _drift(self, key: str, difference: str) -> WorkflowDrift:
        return WorkflowDrift(self._run_id, key, difference)


def _read_source(source: Source, run_id: str) -> Snapshot:
    if isinstance(source, os.PathLike):
        source = Path(source).read_bytes()
    if isinstance(source, str | bytes):
        return Snapshot.from_json(source, run_id=run_id)
    return checked_snapshot(run_id, source)


def _reopen(snapshot: Snapshot) -> Snapshot:
    """The run as before its workflow returned, or as if one had begun it, to find out what it returns today."""
    snapshot = as_history(snapshot)
    if snapshot.execution.status not in (Status.COMPLETED, Status.QUEUED):
        return snapshot
    standing = Execution(Status.RUNNING, last_updated=snapshot.execution.last_updated)
    return structs.replace(snapshot, execution=standing, result=UNSET)
