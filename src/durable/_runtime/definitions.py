"""The definition of a step by `@durable.step`: kept on its function, and found there again."""

# Everything here is of functions and classes that only their owners know.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any, Final, NamedTuple, cast

from durable._runtime.step_options import DEFAULTS, StepOptions

_MARK: Final = "__durable_step__"
_MAX_CLASSES: Final = 1000  # that are remembered of one step
_MAX_DECORATORS: Final = 100  # above one function; a chain that leads back to itself has an end, too
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
            if len(self._known) >= _MAX_CLASSES:  # of those that are made anew again and again
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
        for _ in range(_MAX_DECORATORS):
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


class StepDefinition(NamedTuple):
    """What `@durable.step` was given, and the function to call.

    Decorators copy the attributes of a function, this one too: only `step` itself is a step, and any other object that has
    this definition has a step within.
    """

    name: str
    #: Undecorated, or with everything that stands above the step.
    fn: Callable[..., Any]
    options: StepOptions = DEFAULTS
    #: What the decorator has made.
    step: object = None
    receivers: Receivers | None = None

    def of(self, args: tuple[Any, ...]) -> tuple[StepDefinition, tuple[Any, ...]]:
        """The definition and the arguments of one call: the instance that a method is called on is no argument."""
        receivers = self.receivers
        if args and receivers is not None and type(args[0]) not in receivers.others and receivers.has(args[0]):
            return self._replace(fn=MethodType(self.fn, args[0])), args[1:]
        return self, args


def mark(function: object, definition: StepDefinition) -> StepDefinition:
    """Keep a definition on the function that is its step, and return it as it is kept."""
    marked = definition._replace(step=function)
    setattr(function, _MARK, marked)
    return marked


def definition_of(fn: Any) -> StepDefinition | None:
    """What a decorated function was decorated with, and what to call for it; None for what has nothing of a step.

    Of a bound method of a step, and of an object whose `__call__` is one, `fn` is bound as well. Where something stands
    above the step, `fn` is all of it.
    """
    kind: Any = type(fn)
    if kind is FunctionType and not fn.__dict__:  # a plain one, as almost always
        return None
    definition = getattr(fn, _MARK, None)
    if isinstance(definition, StepDefinition):
        function = fn.__func__ if type(fn) is MethodType else fn
        if definition.step is not function:
            return definition._replace(fn=fn, step=None, receivers=None)
        return (
            definition
            if function is fn
            else definition._replace(fn=MethodType(definition.fn, fn.__self__), receivers=None)
        )
    if type(fn) is FunctionType:
        return None
    if isinstance(fn, functools.partial):
        definition = definition_of(cast(Any, fn).func)
        return definition and definition._replace(fn=fn, step=None, receivers=None)
    call = getattr(type(fn), "__call__", None)  # noqa: B004 -- the function behind it is wanted
    definition = getattr(call, _MARK, None)
    if isinstance(definition, StepDefinition):
        inner: Any = definition.fn if definition.step is call else call
        return definition._replace(fn=MethodType(inner, fn), receivers=None)
    return None
