"""`@durable.step`: a plain function outside a workflow, a step inside one."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any, Final, NamedTuple, ParamSpec, Protocol, TypeVar, cast, overload

import tenacity
from msgspec import Struct

from durable._terms import PLAIN, Terms, terms
from durable.errors import InvalidArgument
from durable.snapshot import checked_name

P = ParamSpec("P")
R = TypeVar("R")

_MARK: Final = "__durable_step__"


class Options(NamedTuple):
    """What `@durable.step` was given, and the undecorated function."""

    name: str
    fn: Callable[..., Any]
    terms: Terms = PLAIN


class Driver(Protocol):
    """Calls a decorated function as a step of its run."""

    def call_decorated(self, options: Options, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The step's value, or for an async workflow its awaitable."""
        ...


class Running(Struct, eq=False):
    """A run that is being executed, as long as it is."""

    identity: object  # of its store
    id: str
    over: bool = False


class Frame(Struct, frozen=True, eq=False):
    """Where a piece of code runs: under which driver, in which step's body (None: in the workflow itself).

    `runs` are the runs that it is part of, outermost first.
    """

    driver: Driver
    inside: str | None
    runs: tuple[Running, ...]


current_frame: Final[ContextVar[Frame | None]] = ContextVar("durable_frame", default=None)


def enter(frame: Frame) -> Token[Frame | None]:
    """Code that runs from here on is in this frame."""
    return current_frame.set(frame)


def leave(token: Token[Frame | None]) -> None:
    """Back to the frame before."""
    try:  # noqa: SIM105 -- once per step: contextlib.suppress takes longer than all the rest of it
        current_frame.reset(token)
    except ValueError:  # a coroutine closed from outside its task: the context that was entered is gone with that
        pass


def idempotency_key() -> str:
    """A key for whoever acts on a step's behalf: the same in every attempt of it, and in every resume of its run.

    32 hexadecimal digits, from the run's id and the step's key. Raises `InvalidArgument` outside a step's body.
    """
    frame = current_frame.get()
    if frame is None or frame.inside is None:
        raise InvalidArgument("idempotency_key() is for the body of a step, and this is not in one")
    run_id = frame.runs[-1].id
    return hashlib.blake2b(f"{len(run_id)}:{run_id}{frame.inside}".encode(), digest_size=16).hexdigest()


@overload
def step(fn: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def step(
    *,
    name: str | None = ...,
    retry: tenacity.BaseRetrying | None = ...,
    timeout: float | None = ...,
    at_most_once: bool = ...,
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def step(
    fn: Callable[P, R] | None = None,
    /,
    *,
    name: str | None = None,
    retry: tenacity.BaseRetrying | None = None,
    timeout: float | None = None,
    at_most_once: bool = False,
) -> Any:
    """Make a function a step wherever a workflow calls it.

    `name` is the step's name, by default the function's. In a workflow, `charge(order)` and `deps.charge(order)` are
    remembered under an automatic key (`charge`, then `charge#2`); use `step("charge", charge, order, key=…)` to choose
    the key. Outside a workflow, and inside another step's body, it is the plain function that it was. `retry`, `timeout`
    and `at_most_once` are as for `step(...)`, where they can be given again for one call.

    The bare name is only known to be in a workflow where the context says so: in a thread that the workflow starts
    itself it is a plain call. `deps.charge` is bound to its run and is a step in any thread.

    Raises `InvalidArgument` for something that is not a function, or a name that cannot be one.
    """
    given = terms(retry, timeout, at_most_once)
    if fn is None:
        return functools.partial(_decorated, name=name, given=given)
    return _decorated(fn, name, given)


def _decorated(fn: Callable[P, R], name: str | None, given: Terms) -> Callable[P, R]:
    if not callable(fn):
        raise InvalidArgument(f"@durable.step decorates a function, not {type(fn).__name__}")
    options = Options(checked_name("a step's name", name or getattr(fn, "__name__", "")), fn, given)

    @functools.wraps(fn)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        frame = current_frame.get()
        if frame is None or frame.inside is not None:
            return fn(*args, **kwargs)
        if args and getattr(type(args[0]), fn.__name__, None) is wrapper:  # self.charge(order): self is no argument
            bound = options._replace(fn=fn.__get__(args[0]))
            return cast(R, frame.driver.call_decorated(bound, args[1:], dict(kwargs)))
        return cast(R, frame.driver.call_decorated(options, args, dict(kwargs)))

    mark(wrapper, options)
    if sys.version_info >= (3, 12) and inspect.iscoroutinefunction(fn):
        inspect.markcoroutinefunction(wrapper)
    return wrapper


def mark(function: object, options: Options) -> None:
    """Let `options_of` find these options on a function."""
    setattr(function, _MARK, options)


def options_of(fn: object) -> Options | None:
    """What a decorated function, or a bound method of one, was decorated with; None for any other object."""
    options = getattr(fn, _MARK, None)
    if not isinstance(options, Options):
        return None
    owner = getattr(fn, "__self__", None)
    if owner is not None:  # a method: its plain form is bound too
        return options._replace(fn=options.fn.__get__(owner))
    return options
