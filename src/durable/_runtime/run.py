"""`durable.run`: its signature, and which form of a run performs it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar, Unpack, overload

import tenacity

from durable._common.boundary import public
from durable._common.durations import Duration
from durable._runtime.async_runs import AsyncRun
from durable._runtime.context import current_frame
from durable._runtime.handles import Pending
from durable._runtime.plan import MISSING, Plan, plan_run
from durable._runtime.run_options import AnyRunOptions, BlockingRunOptions, OnConflict, Recover, RunOptions
from durable._runtime.runs import BlockingRun
from durable._runtime.signatures import AsyncWorkflow, AsyncWorkflowOf, BlockingWorkflow, BlockingWorkflowOf
from durable._runtime.versions import OnVersionMismatch
from durable.events import Listener
from durable.stores._adapters.kinds import AnyStore

D = TypeVar("D")
I = TypeVar("I")  # noqa: E741 -- the input's type
T = TypeVar("T")


@overload
def run(deps: D, fn: BlockingWorkflow[D, T], *, id: str, **options: Unpack[BlockingRunOptions]) -> T: ...
@overload
def run(
    deps: D, fn: BlockingWorkflowOf[D, I, T], *, id: str, input: I = ..., **options: Unpack[BlockingRunOptions]
) -> T: ...
@overload
def run(deps: D, fn: AsyncWorkflow[D, T], *, id: str, **options: Unpack[AnyRunOptions]) -> Pending[T]: ...
@overload
def run(
    deps: D, fn: AsyncWorkflowOf[D, I, T], *, id: str, input: I = ..., **options: Unpack[AnyRunOptions]
) -> Pending[T]: ...
@public("durable.run")
def run(
    deps: Any,
    fn: Callable[..., Any],
    *,
    id: str,
    store: AnyStore | None = None,
    input: Any = MISSING,
    version: int | None = None,
    on_version_mismatch: OnVersionMismatch | None = None,
    on_conflict: OnConflict = "raise",
    wait_timeout: Duration | None = None,
    lease: Duration = 30.0,
    deadline: Duration | datetime | None = None,
    metadata: Mapping[str, Any] | None = None,
    cancel: threading.Event | None = None,
    retry: tenacity.BaseRetrying | None = None,
    on_event: Listener | None = None,
    recover: Recover | None = None,
) -> Any:
    """Execute the workflow `fn` as the run `id`, or go on with it where it stopped.

    - `deps` is handed to `fn`: an object, or a mapping, whose items become attributes. Where a step is in it, or may be, `fn`
      is given a view of it that behaves alike, and whose steps belong to this run in any thread.
    - `fn(step, deps)`, or `fn(step, deps, input)`; for an `async def` this returns a coroutine. A run belongs to its
      function, or to the name that `durable.workflow` has given it.
    - `store` keeps the run; without one it lives in this process only, and a `DurableWarning` says so once.
    - `input` is recorded at the first call; omitted at a later one, the recorded input is used.
    - `version` of the workflow, recorded at the first call; by default the one that `durable.workflow` has given it, or 1.
      `on_version_mismatch` says what becomes of a run that another version started: `"raise"` `VersionMismatch`, `"clear"`
      what it remembers and begin anew with its input, or what a function of its `Snapshot` and its version returns: one of
      these words, or the snapshot (or document) to go on with. The function may be async for an async workflow. It is
      called while no process executes the run, and again if the run was changed before its answer could be stored. By
      default the workflow's `migrates` answer, or the mismatch is raised.
    - `on_conflict`: while this id is executed elsewhere, `"raise"` `ConcurrentExecution` or `"wait"` for the outcome,
      at most `wait_timeout` seconds (None: as long as it takes).
    - `lease`: seconds after which others may take the run over from a process that fell silent; at least 0.5, and longer
      than the longest time that this process may be frozen (garbage collection, a C call that holds the GIL).
    - `deadline`: seconds from now, or an aware `datetime`, after which no further step begins: `DeadlineExceeded`. A body
      that is still running then is not stopped, but its lease is not renewed any more.
    - A `timedelta` will do wherever seconds are asked for.
    - `metadata`: JSON values kept in the run's header, for people and queries.
    - `cancel`: a `threading.Event`; once it is set the run is `cancelled` at the next step, or in a wait within a second.
    - `retry`: a `tenacity.Retrying` for every step that has no policy of its own; see `step`.
    - `recover="workers"`: when this call leaves the run before its end (a crash, an interrupt), a `durable.Worker` that has the
      workflow, which `@durable.workflow` marks, goes on with it, with its own dependencies. Otherwise the next call does.
    - `on_event` is called with each event, one at a time, between two steps; what it raises is logged.

    Returns what the workflow returned, as its record gives it back. A completed run returns its stored result without
    calling anything; a failed one runs again the steps whose failure led to it.

    Raises what the workflow raised; `InvalidArgument` before anything is touched; `RunMismatch`, `VersionMismatch`,
    `WorkflowDrift`, `UnreadableRecord` when the stored run does not fit, and leaves it as it is; `ConcurrentExecution`,
    `WaitTimedOut`; `LeaseLost` when the lease ended under it; `RecordsLost` when the database went back under it;
    `RunCancelled`, `DeadlineExceeded`; `StoreUnavailable`, `AccessDenied`, `UnsuitableServer`, `SchemaMismatch`,
    `OutcomeUnknown` from the store.
    """
    options = RunOptions(
        version,
        on_version_mismatch,
        on_conflict,
        wait_timeout,
        lease,
        deadline,
        metadata,
        cancel,
        retry,
        on_event,
        recover,
    )
    plan = plan_run(deps, fn, id, store, input, options)
    if (rehearse := getattr(plan.store, "rehearse", None)) is not None:  # see durable.testing.Rehearsal
        return rehearse(plan, is_async=plan.is_async)
    return run_claimed(plan)


def run_claimed(plan: Plan) -> Any:
    """Claim the run, and return what it comes to; of an async workflow, a coroutine of that."""
    if plan.is_async:
        return AsyncRun(plan).outcome()
    run, before = BlockingRun(plan), current_frame.get()
    try:
        return run.outcome()
    finally:  # also when a signal handler has raised where nothing else could see to it
        try:
            run.give_all_back()
        finally:
            current_frame.set(before)
