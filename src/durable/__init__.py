"""Durable workflows: ordinary Python functions, checkpointed in your own PostgreSQL."""

from durable._common import environment as _environment  # noqa: F401  # pyright: ignore[reportUnusedImport] -- first: it says what is missing

# isort: split
from durable import aio, errors
from durable._runtime.context import Current, current, idempotency_key
from durable._runtime.control import cancel, retry, signal
from durable._runtime.decorator import step
from durable._runtime.handles import AsyncStep, Step
from durable._runtime.run import run
from durable._runtime.run_handles import AsyncRunHandle, RunHandle, handle
from durable._runtime.starts import Start, start, start_many
from durable._runtime.state import delete_state, has_state, list_pending, result, status
from durable._runtime.workers import Worker
from durable._runtime.workflow import workflow
from durable.codecs import alias, stored_as
from durable.errors import (
    AccessDenied,
    ConcurrentExecution,
    DeadlineExceeded,
    DurableError,
    DurableWarning,
    InvalidArgument,
    LeaseLost,
    OutcomeUnknown,
    RetryRefused,
    RunCancelled,
    RunExists,
    RunMismatch,
    RunNotFound,
    RunNotOver,
    RunPoisoned,
    SchemaMismatch,
    SignalTimedOut,
    StepFailed,
    StepInterrupted,
    StepTimeout,
    StoreError,
    StoreUnavailable,
    UnstorableValue,
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
    "ConcurrentExecution",
    "Current",
    "DeadlineExceeded",
    "DurableError",
    "DurableWarning",
    "InvalidArgument",
    "LeaseLost",
    "OutcomeUnknown",
    "ResumeStateCollector",
    "RetryRefused",
    "RunCancelled",
    "RunExists",
    "RunHandle",
    "RunMismatch",
    "RunNotFound",
    "RunNotOver",
    "RunPoisoned",
    "SchemaMismatch",
    "SignalTimedOut",
    "Snapshot",
    "Start",
    "Step",
    "StepFailed",
    "StepInterrupted",
    "StepTimeout",
    "StoreError",
    "StoreUnavailable",
    "UnstorableValue",
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
    "handle",
    "has_state",
    "idempotency_key",
    "list_pending",
    "result",
    "retry",
    "run",
    "signal",
    "start",
    "start_many",
    "status",
    "step",
    "stored_as",
    "workflow",
]
