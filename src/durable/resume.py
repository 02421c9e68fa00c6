"""The low-level way: run a workflow in this process, collect its state, and hand the state to a later run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, Generic, TypeVar, overload

from msgspec import UNSET, structs

from durable._common.boundary import public
from durable._common.checks import check_name
from durable._engine.headers import blank_header, reopen, stamp_header
from durable._runtime.awaitables import is_async_function
from durable._runtime.handles import Pending
from durable._runtime.plan import MISSING
from durable._runtime.run import run
from durable._runtime.signatures import AsyncWorkflow, AsyncWorkflowOf, BlockingWorkflow, BlockingWorkflowOf
from durable._runtime.workflow import workflow
from durable.events import Listener, RunBegan, RunCompleted, RunEvent, RunFailed, StepRecorded, StepRemembered
from durable.records import FailureRecord, Kind, Record, Status, render
from durable.snapshots import Snapshot, as_history, snapshot_of
from durable.stores import memory
from durable.stores.listing import checked_snapshot

__all__ = ["ResumeStateCollector", "Workflow"]

D = TypeVar("D")
I = TypeVar("I")  # noqa: E741 -- the input's type
T = TypeVar("T")


class Workflow(Generic[D]):
    """A workflow's name, what it works with, and who listens: for those who keep its state themselves.

    ```python
    collector = ResumeStateCollector()
    workflow = Workflow("checkout", deps, on_event=collector.handle_event)
    workflow.run(checkout)
    store.save("checkout-123", collector.resume_state())
    # later
    workflow.run(checkout, resume_state=store.load("checkout-123"))
    ```

    Nothing is durable here before you have saved it. `durable.run` does that after each step, and sees to it that of one
    id one execution goes on.
    """

    @public("Workflow")
    def __init__(self, name: str, deps: D, *, on_event: Listener | None = None, version: int = 1) -> None:
        self._name = check_name("a workflow's name", name)
        self._deps = deps
        self._on_event = on_event
        self._version = version

    def __repr__(self) -> str:
        return f"<Workflow {self._name!r}>"

    @overload
    def run(self, fn: BlockingWorkflow[D, T], *, resume_state: Snapshot | Mapping[str, Any] | None = ...) -> T: ...
    @overload
    def run(
        self,
        fn: BlockingWorkflowOf[D, I, T],
        *,
        resume_state: Snapshot | Mapping[str, Any] | None = ...,
        input: I = ...,
    ) -> T: ...
    @overload
    def run(
        self, fn: AsyncWorkflow[D, T], *, resume_state: Snapshot | Mapping[str, Any] | None = ...
    ) -> Pending[T]: ...
    @overload
    def run(
        self, fn: AsyncWorkflowOf[D, I, T], *, resume_state: Snapshot | Mapping[str, Any] | None = ..., input: I = ...
    ) -> Pending[T]: ...
    @public("Workflow.run")
    def run(
        self, fn: Callable[..., Any], *, resume_state: Snapshot | Mapping[str, Any] | None = None, input: Any = MISSING
    ) -> Any:
        """Execute `fn` with this workflow's `deps`, as `durable.run` does, but on nothing that outlives the call.

        `resume_state` is a snapshot, or the document of one: the steps in it are handed out and not run again, but for
        those whose failure ended it. `fn` itself always runs, also where the state is that of a completed run.

        Returns what `fn` returned and raises what it raised; `RunMismatch`, `VersionMismatch`, `WorkflowDrift` and
        `UnreadableRecord` when the state is not this workflow's.
        """
        settled = None if resume_state is None else _to_be_resumed(checked_snapshot(self._name, resume_state))
        if is_async_function(fn):
            return self._awaited(fn, settled, input)
        with memory() as store:
            if settled is not None:
                store.save(self._name, settled)
            return _run(self._deps, self._named(fn), **self._options(store, input))

    async def _awaited(self, fn: Callable[..., Any], settled: Snapshot | None, input: Any) -> Any:
        with memory() as store:
            if settled is not None:
                store.save(self._name, settled)
            return await _run(self._deps, self._named(fn), **self._options(store, input))

    def _options(self, store: Any, input: Any) -> dict[str, Any]:
        options = {"id": self._name, "store": store, "version": self._version, "on_event": self._on_event}
        return options if input is MISSING else options | {"input": input}

    def _named(self, fn: Callable[..., Any]) -> Any:
        """The function under the workflow's name."""

        def called(*args: Any) -> Any:
            return fn(*args)

        async def awaited(*args: Any) -> Any:
            return await fn(*args)

        wrapped = functools.update_wrapper(awaited if is_async_function(fn) else called, fn, assigned=())
        return workflow(name=self._name)(wrapped)


class ResumeStateCollector:
    """Collects the whole state of a run from its events: what was recorded before, and what is now.

    Pass `collector.handle_event` as `on_event`; `resume_state()` is then the run's snapshot at any moment, also of a run
    that was itself resumed: saving it over the old one loses nothing, not even steps that were not asked for this time.
    (The idea and the name are awaitly's `createResumeStateCollector`.)
    """

    def __init__(self) -> None:
        self._run_id = ""
        self._epoch = 0
        self._header = blank_header()
        self._records: list[Record] = []

    def handle_event(self, event: RunEvent) -> None:
        """Take note of one event."""
        match event:
            case RunBegan(run_id=run_id, at=at, workflow=workflow, epoch=epoch, header=header, records=records):
                self._epoch = epoch
                self._run_id, self._records = run_id, list(records)
                self._header = stamp_header(header or blank_header(workflow), Status.RUNNING, at)
            case StepRecorded(at=at, key=key, record=record):
                self._note(at, Status.RUNNING, Kind.STEP, render(record), key)
            case StepRemembered(at=at, key=key, record=record):
                self._note(at, Status.RUNNING, Kind.ATTEMPT, render(record), key)
            case RunCompleted(at=at, result=result):
                self._note(at, Status.COMPLETED, Kind.RESULT, result)
            case RunFailed(at=at, failure=FailureRecord() as failure):
                self._note(at, Status.FAILED, Kind.FAILURE, render(failure))
            case _:
                pass

    def resume_state(self) -> Snapshot:
        """The run's snapshot as far as it has come, for `store.save` and `resume_state=`."""
        return snapshot_of(self._header, self._records, run_id=self._run_id)

    def _note(self, at: datetime, status: Status, kind: Kind, text: str, key: str = "") -> None:
        self._records.append(Record(len(self._records), key or kind, kind, text, at, self._epoch))
        self._header = stamp_header(self._header, status, at, self._records)


_run: Final[Callable[..., Any]] = run  # the overloads are for callers who know what they call


def _to_be_resumed(state: Snapshot) -> Snapshot:
    """The state as one that a run goes on from: neither over nor queued, whatever it was."""
    if state.execution.status == Status.QUEUED:
        return structs.replace(state, execution=reopen(state.execution))
    if state.execution.status != Status.COMPLETED:
        return state
    return structs.replace(as_history(state), execution=reopen(state.execution), result=UNSET)
