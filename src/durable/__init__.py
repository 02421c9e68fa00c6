"""Durable workflows: ordinary Python functions, checkpointed in your own PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable._common import environment as _environment  # noqa: F401  # pyright: ignore[reportUnusedImport] -- first: it says what is missing

# Each name is loaded at its first use: a command's `--help`, and who wants an error's class alone, need no database driver.
if TYPE_CHECKING:
    from durable import aio, errors
    from durable._engine.queues import Queue, Rate
    from durable._runtime.async_handles import AsyncStep
    from durable._runtime.children import ChildHandle
    from durable._runtime.context import Current, current, idempotency_key
    from durable._runtime.control import cancel, retry, signal
    from durable._runtime.decorator import step
    from durable._runtime.handles import Step
    from durable._runtime.new_runs import Start
    from durable._runtime.queues import pause, unpause
    from durable._runtime.retention import Retention
    from durable._runtime.run import run
    from durable._runtime.run_handles import AsyncRunHandle, RunHandle, fork, handle
    from durable._runtime.schedule_handles import ScheduleHandle, schedule
    from durable._runtime.schedules import Schedule
    from durable._runtime.starts import start, start_many, wake
    from durable._runtime.state import delete_state, has_state, list_pending, result, status
    from durable._runtime.ticks import Tick
    from durable._runtime.workers import Worker
    from durable._runtime.workflow import workflow
    from durable.codecs import alias, stored_as
    from durable.errors import (
        AccessDenied,
        ChildFailed,
        ClosingFailed,
        ConcurrentExecution,
        DeadlineExceeded,
        DurableError,
        DurableWarning,
        InvalidArgument,
        LeaseLost,
        OutcomeUnknown,
        RetryRefused,
        RunBeingStarted,
        RunCancelled,
        RunExists,
        RunMismatch,
        RunNotFound,
        RunNotOver,
        RunPoisoned,
        ScheduleNotFound,
        SchemaMismatch,
        SignalMismatch,
        SignalTimedOut,
        StepFailed,
        StepInterrupted,
        StepTimeout,
        StoreError,
        StoreUnavailable,
        UnstorableValue,
        UnsuitableConnection,
        UnsuitableServer,
        VersionMismatch,
        WaitTimedOut,
        WorkflowDrift,
    )
    from durable.resume import ResumeStateCollector, Workflow
    from durable.snapshots import Snapshot

__all__ = [
    "AccessDenied",
    "AsyncRunHandle",
    "AsyncStep",
    "ChildFailed",
    "ChildHandle",
    "ClosingFailed",
    "ConcurrentExecution",
    "Current",
    "DeadlineExceeded",
    "DurableError",
    "DurableWarning",
    "InvalidArgument",
    "LeaseLost",
    "OutcomeUnknown",
    "Queue",
    "Rate",
    "ResumeStateCollector",
    "Retention",
    "RetryRefused",
    "RunBeingStarted",
    "RunCancelled",
    "RunExists",
    "RunHandle",
    "RunMismatch",
    "RunNotFound",
    "RunNotOver",
    "RunPoisoned",
    "Schedule",
    "ScheduleHandle",
    "ScheduleNotFound",
    "SchemaMismatch",
    "SignalMismatch",
    "SignalTimedOut",
    "Snapshot",
    "Start",
    "Step",
    "StepFailed",
    "StepInterrupted",
    "StepTimeout",
    "StoreError",
    "StoreUnavailable",
    "Tick",
    "UnstorableValue",
    "UnsuitableConnection",
    "UnsuitableServer",
    "VersionMismatch",
    "WaitTimedOut",
    "Worker",
    "Workflow",
    "WorkflowDrift",
    "aio",
    "alias",
    "cancel",
    "current",
    "delete_state",
    "errors",
    "fork",
    "handle",
    "has_state",
    "idempotency_key",
    "list_pending",
    "pause",
    "result",
    "retry",
    "run",
    "schedule",
    "signal",
    "start",
    "start_many",
    "status",
    "step",
    "stored_as",
    "unpause",
    "wake",
    "workflow",
]

if not TYPE_CHECKING:
    _MODULES = ("aio", "clocks", "codecs", "errors", "events", "records", "resume", "snapshots", "stores")
    _HOMES = {
        name: home
        for home, names in {
            "_engine.queues": "Queue Rate",
            "_runtime.children": "ChildHandle",
            "_runtime.context": "Current current idempotency_key",
            "_runtime.control": "cancel retry signal",
            "_runtime.decorator": "step",
            "_runtime.async_handles": "AsyncStep",
            "_runtime.handles": "Step",
            "_runtime.queues": "pause unpause",
            "_runtime.retention": "Retention",
            "_runtime.run": "run",
            "_runtime.run_handles": "AsyncRunHandle RunHandle fork handle",
            "_runtime.schedule_handles": "ScheduleHandle schedule",
            "_runtime.schedules": "Schedule",
            "_runtime.new_runs": "Start",
            "_runtime.starts": "start start_many wake",
            "_runtime.state": "delete_state has_state list_pending result status",
            "_runtime.ticks": "Tick",
            "_runtime.workers": "Worker",
            "_runtime.workflow": "workflow",
            "codecs": "alias stored_as",
            "resume": "ResumeStateCollector Workflow",
            "snapshots": "Snapshot",
        }.items()
        for name in names.split()
    }

    def __getattr__(name: str) -> object:
        """A public name, or a public module, at its first use."""
        import importlib  # noqa: PLC0415 -- no name of ours

        if name in _MODULES:
            return importlib.import_module(f"durable.{name}")
        if name not in __all__:
            raise AttributeError(f"module 'durable' has no attribute {name!r}")
        home = importlib.import_module(f"durable.{_HOMES.get(name, 'errors')}")
        globals()[name] = found = getattr(home, name)
        return found

    def __dir__() -> list[str]:
        return sorted({*__all__, *_MODULES, *(name for name in globals() if name.startswith("_"))})
