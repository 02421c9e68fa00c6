"""The functions that a workflow can be, to a type checker: blocking or async, without an input or with one."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias, TypeVar

from durable._runtime.async_handles import AsyncStep
from durable._runtime.handles import Step

D = TypeVar("D")
I = TypeVar("I")  # noqa: E741 -- the input's type
T = TypeVar("T")

BlockingWorkflow: TypeAlias = Callable[[Step, D], T]
BlockingWorkflowOf: TypeAlias = Callable[[Step, D, I], T]
AsyncWorkflow: TypeAlias = Callable[[AsyncStep, D], Coroutine[Any, Any, T]]
AsyncWorkflowOf: TypeAlias = Callable[[AsyncStep, D, I], Coroutine[Any, Any, T]]
