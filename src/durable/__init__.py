"""Durable workflows: ordinary Python functions, checkpointed in your own PostgreSQL."""

from durable._common import environment as _environment  # noqa: F401  # pyright: ignore[reportUnusedImport] -- first: it says what is missing

# isort: split
from durable import aio, errors
from durable._runtime.context import Current, current, idempotency_key
from durable._runtime.control import cancel, retry, signal
from durable._runtime.decorator import step
from durable._runtime.handles import AsyncStep, Step
from durable._runtime.run import run
from durable._runtime.state import delete_state, has_state, list_pending, result, status
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
    RunMismatch,
    RunNotFound,
    RunNotOver,
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
    "RunMismatch",
    "RunNotFound",
    "RunNotOver",
    "SchemaMismatch",
    "SignalTimedOut",
    "Snapshot",
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
    "Workflow",
    "WorkflowDrift",
    "aio",
    "alias",
    "cancel",
    "current",
    "delete_state",
    "errors",
    "has_state",
    "idempotency_key",
    "list_pending",
    "result",
    "retry",
    "run",
    "signal",
    "status",
    "step",
    "stored_as",
    "workflow",
]
