"""`@durable.step`: a plain function outside a workflow, a step inside one."""

# Everything here is of functions and classes that only their owners know.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Callable
from contextvars import ContextVar, Token
from types import FunctionType, MethodType
from typing import Any, Final, NamedTuple, ParamSpec, Protocol, TypeVar, cast, overload

import tenacity
from msgspec import Struct

from durable._common.boundary import public
from durable._common.durations import Duration
from durable._runtime.options import PLAIN, Terms, terms
from durable.errors import InvalidArgument
from durable.records import checked_name

P = ParamSpec("P")
R = TypeVar("R")

_MARK: Final = "__durable_step__"
_MOST_CLASSES: Final = 1000
_MOST_DECORATORS: Final = 100  # above one function; a chain that leads back to itself has an end, too
_MADE_FROM_A_FUNCTION: Final = (
    functools.partial,
    functools.partialmethod,
    functools.singledispatchmethod,
    functools.cached_property,
)


class Receivers:
    """The classes that have a step as a method: under whatever name, below whatever decorators, from any base.

    Where a decorator hides what it decorates, the place that the function was defined in says so.
    """

    __slots__ = ("_known", "_step", "others")

    def __init__(self, step: object) -> None:
        self._step = step
        self._known: dict[type, bool] = {}
        self.others: set[type] = set()  # whose instances are certainly no receivers; looked at in each call

    def has(self, first: object) -> bool:
        """Whether a call's first argument is the instance, or the class, that the step was called on."""
        class_ = first if isinstance(first, type) else type(first)
        try:
            return self._known[class_]
        except KeyError:
            if len(self._known) >= _MOST_CLASSES:  # of those that are made anew again and again
                self._known.clear()
                self.others.clear()
            known = self._known[class_] = self._is_method_of(class_) or (
                class_ is first and self._is_method_of(type(class_))
            )
            if not known and class_ is not first:
                self.others.add(class_)
            return known
        except TypeError:  # a class without a hash
            return self._is_method_of(class_)

    def _is_method_of(self, class_: type) -> bool:
        for base in class_.__mro__:
            for part in vars(base).values():
                if _leads_to(part, self._step):
                    return not isinstance(part, staticmethod)
        inside = getattr(self._step, "__qualname__", "").rpartition(".")[0]
        module = getattr(self._step, "__module__", None)
        return any(base.__qualname__ == inside and base.__module__ == module for base in class_.__mro__)


def _leads_to(part: Any, step: object) -> bool:
    """Whether a part of a class is this step, or made from it by decorators and descriptors."""
    try:
        for _ in range(_MOST_DECORATORS):
            if part is step:
                return True
            if isinstance(part, staticmethod | classmethod | MethodType):
                part = part.__func__
            elif isinstance(part, property):
                part = part.fget
            elif isinstance(part, _MADE_FROM_A_FUNCTION):
                part = part.func
            else:
                part = getattr(part, "__wrapped__", None)
            if part is None:
                return False
    except Exception:  # of an object that answers for another, which is not there
        return False
    return False


class Options(NamedTuple):
    """What `@durable.step` was given, and the function to be called: undecorated, or with all that was put above it.

    `step` is what the decorator has made. Decorators copy what stands on a function, this too; so only that very object
    is a step by itself, and another that has these options has a step within.
    """

    name: str
    fn: Callable[..., Any]
    terms: Terms = PLAIN
    step: object = None
    receivers: Receivers | None = None

    def of(self, args: tuple[Any, ...]) -> tuple[Options, tuple[Any, ...]]:
        """The options and arguments of a call with these: the instance that a method was called on is no argument."""
        receivers = self.receivers
        if args and receivers is not None and type(args[0]) not in receivers.others and receivers.has(args[0]):
            return self._replace(fn=MethodType(self.fn, args[0])), args[1:]
        return self, args


class Driver(Protocol):
    """Calls a decorated function as a step of its run."""

    def frame(self) -> Frame:
        """The frame of the workflow function."""
        ...

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
    timeout: Duration | None = ...,
    at_most_once: bool = ...,
    cleanup: bool = ...,
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
) -> Any:
    """Make a function a step wherever a workflow calls it.

    `name` is the step's name, by default the function's. In a workflow, `charge(order)` and `deps.charge(order)` are
    remembered under an automatic key (`charge`, then `charge#2`); use `step("charge", charge, order, key=…)` to choose
    the key. Outside a workflow, and inside another step's body, it is the plain function that it was. `retry`, `timeout`,
    `at_most_once` and `cleanup` are as for `step(...)`, where they can be given again for one call.

    Methods of every kind are steps as well; the instance or class that they are called on is no argument. A decorator
    above this one is applied to what the step gives, anew at each replay, in `charge(order)` and `deps.charge(order)` alike;
    in `step("charge", charge, order)` it is a part of the body.

    The bare name is only known to be in a workflow where the context says so: in a thread that the workflow starts
    itself it is a plain call. `deps.charge` is bound to its run and is a step in any thread.

    Raises `InvalidArgument` for something that is not a function, or a name that cannot be one.
    """
    given = terms(retry, timeout, at_most_once, cleanup)
    if fn is None:
        return functools.partial(_decorated, name=name, given=given)
    return _decorated(fn, name, given)


def _decorated(fn: Callable[P, R], name: str | None, given: Terms) -> Callable[P, R]:
    if isinstance(fn, staticmethod | classmethod):  # in either order of the decorators
        inner: Any = fn.__func__
        return cast(Callable[P, R], type(fn)(_decorated(inner, name, given)))
    if not callable(fn):
        raise InvalidArgument(_no_function(fn))
    options = Options(checked_name("a step's name", name or getattr(fn, "__name__", "")), fn, given)

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
    others, marked = receivers.others, mark(wrapper, options._replace(receivers=receivers))
    if inspect.iscoroutinefunction(fn):
        _mark_as_async(wrapper)
    return wrapper


def _no_function(given: object) -> str:
    advice = f": write @durable.step(name={given!r})" if isinstance(given, str) else ""
    return f"@durable.step decorates a function, not {type(given).__name__}{advice}"


def _mark_as_async(wrapper: Any) -> None:
    """Let `inspect.iscoroutinefunction` say what calling the function gives."""
    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(wrapper)
    else:  # CPython 3.11 asks this flag; it is the function's first instruction, and not this, that makes a coroutine
        code = wrapper.__code__
        wrapper.__code__ = code.replace(co_flags=code.co_flags | inspect.CO_COROUTINE)


def mark(function: object, options: Options) -> Options:
    """Let `options_of` find these options on a function that is a step by itself, and returns them."""
    marked = options._replace(step=function)
    setattr(function, _MARK, marked)
    return marked


def options_of(fn: Any) -> Options | None:
    """What a decorated function was decorated with, and what to call for it; None for what has nothing of a step.

    Of a bound method of a step, and of an object whose `__call__` is one, `fn` is bound as well. Where something stands
    above the step, `fn` is all of it.
    """
    kind: Any = type(fn)
    if kind is FunctionType and not fn.__dict__:  # a plain one, as almost always
        return None
    options = getattr(fn, _MARK, None)
    if isinstance(options, Options):
        function = fn.__func__ if type(fn) is MethodType else fn
        if options.step is not function:
            return options._replace(fn=fn, step=None, receivers=None)
        return options if function is fn else options._replace(fn=MethodType(options.fn, fn.__self__), receivers=None)
    if type(fn) is FunctionType:
        return None
    if isinstance(fn, functools.partial):
        options = options_of(cast(Any, fn).func)
        return options and options._replace(fn=fn, step=None, receivers=None)
    call = getattr(type(fn), "__call__", None)  # noqa: B004 -- the function behind it is wanted
    options = getattr(call, _MARK, None)
    if isinstance(options, Options):
        inner: Any = options.fn if options.step is call else call
        return options._replace(fn=MethodType(inner, fn), receivers=None)
    return None
