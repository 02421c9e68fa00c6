"""`@durable.step`: a plain function outside a workflow, a step inside one."""

# Everything here is of functions and classes that only their owners know.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast, overload

import tenacity

from durable._common.boundary import public
from durable._common.checks import check_name
from durable._common.durations import Duration
from durable._runtime.context import current_frame
from durable._runtime.definitions import Receivers, StepDefinition, mark
from durable._runtime.step_options import StepOptions, step_options
from durable.errors import InvalidArgument

P = ParamSpec("P")
R = TypeVar("R")


@overload
def step(fn: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def step(
    *,
    name: str | None = ...,
    retry: tenacity.BaseRetrying | None = ...,
    timeout: Duration | None = ...,
    at_most_once: bool = ...,
    cleanup: bool = ...,
    undo: Callable[[Any], object] | None = ...,
    cancellable: bool = ...,
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
@public("@durable.step")
def step(
    fn: Callable[P, R] | None = None,
    /,
    *,
    name: str | None = None,
    retry: tenacity.BaseRetrying | None = None,
    timeout: Duration | None = None,
    at_most_once: bool = False,
    cleanup: bool = False,
    undo: Callable[[Any], object] | None = None,
    cancellable: bool = False,
) -> Any:
    """Make a function a step wherever a workflow calls it.

    `name` is the step's name, by default the function's. In a workflow, `charge(order)` and `deps.charge(order)` are
    remembered under an automatic key (`charge`, then `charge#2`); use `step("charge", charge, order, key=…)` to choose
    the key. Outside a workflow, and inside another step's body, it is the plain function that it was. `retry`, `timeout`,
    `at_most_once`, `cleanup`, `undo` and `cancellable` are as for `step(...)`, where they can be given again for one call.

    Methods of every kind are steps as well; the instance or class that they are called on is no argument. A decorator
    above this one is applied to what the step gives, anew at each replay, in `charge(order)` and `deps.charge(order)` alike;
    in `step("charge", charge, order)` it is a part of the body.

    The bare name is only known to be in a workflow where the context says so: in a thread that the workflow starts
    itself it is a plain call. `deps.charge` is bound to its run and is a step in any thread.

    Raises `InvalidArgument` for something that is not a function, or a name that cannot be one.
    """
    given = step_options(retry, timeout, at_most_once, cleanup, undo, cancellable)
    if fn is None:
        return functools.partial(_decorate, name=name, given=given)
    return _decorate(fn, name, given)


def _decorate(fn: Callable[P, R], name: str | None, given: StepOptions) -> Callable[P, R]:
    if isinstance(fn, staticmethod | classmethod):  # in either order of the decorators
        inner: Any = fn.__func__
        return cast(Callable[P, R], type(fn)(_decorate(inner, name, given)))
    if not callable(fn):
        raise InvalidArgument(_explain_no_function(fn))
    definition = StepDefinition(check_name("a step's name", name or getattr(fn, "__name__", "")), fn, given)

    @functools.wraps(fn)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        frame = current_frame.get()
        if frame is None or frame.inside is not None:
            return fn(*args, **kwargs)
        if args and type(args[0]) not in others:
            called, rest = marked.of(args)
            return cast(R, frame.driver.call_decorated(called, rest, dict(kwargs)))
        return cast(R, frame.driver.call_decorated(marked, args, dict(kwargs)))

    receivers = Receivers(wrapper)
    others, marked = receivers.others, mark(wrapper, definition._replace(receivers=receivers))
    if inspect.iscoroutinefunction(fn):
        _mark_as_async(wrapper)
    return wrapper


def _explain_no_function(given: object) -> str:
    advice = f": write @durable.step(name={given!r})" if isinstance(given, str) else ""
    return f"@durable.step decorates a function, not {type(given).__name__}{advice}"


def _mark_as_async(wrapper: Any) -> None:
    """Let `inspect.iscoroutinefunction` say what calling the function gives."""
    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(wrapper)
    else:  # CPython 3.11 asks this flag; it is the function's first instruction, and not this, that makes a coroutine
        code = wrapper.__code__
        wrapper.__code__ = code.replace(co_flags=code.co_flags | inspect.CO_COROUTINE)
