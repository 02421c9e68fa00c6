"""The worker that a command line names: `shop.flows:worker`."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
import traceback
from types import ModuleType
from typing import Any

from durable._runtime.workers import Worker
from durable.errors import InvalidArgument


def load_worker(target: str) -> Worker:
    """Import the module, with the current directory on `sys.path`, and take the worker, or what makes one.

    Raises `InvalidArgument`, in one line.
    """
    name, _, attribute = target.partition(":")
    if not name or not attribute:
        raise InvalidArgument(f"{target!r} names no worker: say MODULE:WORKER, like shop.flows:worker")
    found = _attribute(_import(name), attribute)
    if isinstance(found, Worker):
        return found
    if not inspect.isroutine(found) or not _takes_nothing(found):
        raise InvalidArgument(
            f"{target} is no worker ({_describe(found)}): name a durable.Worker, or a function without arguments that makes one"
        )
    try:
        made = found()
    except Exception as problem:
        raise InvalidArgument(f"{target}() failed: {_where(problem)}") from problem
    if not isinstance(made, Worker):
        raise InvalidArgument(f"{target}() returned no worker ({_describe(made)}): let it return a durable.Worker")
    return made


def _import(name: str) -> ModuleType:
    if (here := os.getcwd()) not in sys.path:  # noqa: PTH109 -- `sys.path` has texts
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except Exception as problem:
        missing = problem.name if isinstance(problem, ModuleNotFoundError) else None
        if missing is not None and f"{name}.".startswith(f"{missing}."):
            raise InvalidArgument(
                f"there is no module {missing!r} in {here}, nor installed: run the command in the directory that has it"
            ) from problem
        raise InvalidArgument(
            f"importing {name} failed: {_where(problem)}; `python -c 'import {name}'` shows the whole traceback"
        ) from problem


def _attribute(module: ModuleType, name: str) -> Any:
    if (found := getattr(module, name, None)) is not None:
        return found
    workers = [known for known, value in vars(module).items() if isinstance(value, Worker)]
    likely = workers or difflib.get_close_matches(name, vars(module), n=1)
    hint = f"it has {', '.join(likely)}" if likely else "put a durable.Worker there, or a function that returns one"
    raise InvalidArgument(f"the module {module.__name__} has no {name!r}: {hint}")


def _takes_nothing(fn: Any) -> bool:
    try:
        inspect.signature(fn).bind()
    except (TypeError, ValueError):
        return False
    return True


def _describe(value: object) -> str:
    if inspect.isroutine(value):
        return f"a function of {inspect.signature(value)}"
    return "None" if value is None else f"of type {type(value).__name__}"


def _where(problem: BaseException) -> str:
    """The exception in one line, with the line that raised it."""
    text = " ".join(str(problem).split())
    told = f"{type(problem).__name__}: {text}" if text else type(problem).__name__
    if isinstance(problem, SyntaxError):
        return told  # its text says where
    frame = traceback.extract_tb(problem.__traceback__)[-1]
    return f"{told} ({frame.filename}, line {frame.lineno})"
