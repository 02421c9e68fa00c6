"""Durable workflows: ordinary Python functions, checkpointed in your own PostgreSQL."""

from durable._decorator import step
from durable._run import run
from durable._step import AsyncStep, Step
from durable.errors import *  # noqa: F403 -- the error tree is part of the front door
from durable.errors import __all__ as _errors
from durable.events import ResumeStateCollector

__all__ = ["AsyncStep", "ResumeStateCollector", "Step", "run", "step", *_errors]  # noqa: PLE0604
