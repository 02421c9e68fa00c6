"""The dependencies as a workflow sees them: every decorated function bound to the run."""

# Everything here is of objects and classes that only their owners know.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, ItemsView, Iterator, Mapping, ValuesView
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any, Final, NamedTuple, cast

from durable._common.boundary import calls_out
from durable._runtime.context import Driver, current_frame, enter, leave
from durable._runtime.definitions import definition_of, mark


class _Pair(NamedTuple):
    field: object


# Of a class, that can be looked at without calling anything, and gives out what it is.
_STILL: Final = (
    FunctionType,
    BuiltinFunctionType,
    WrapperDescriptorType,
    MethodDescriptorType,
    ClassMethodDescriptorType,
    MemberDescriptorType,
    GetSetDescriptorType,
    type(vars(_Pair)["field"]),  # of every named tuple
    type,
)
# Special methods that the view has itself, or that make an object and not its behaviour.
_NOT_PASSED_ON: Final = frozenset(
    {
        "__class__", "__class_getitem__", "__del__", "__delattr__", "__dict__", "__doc__", "__getattr__", "__getattribute__",
        "__init__", "__init_subclass__", "__module__", "__new__", "__qualname__", "__setattr__", "__slots__",
        "__subclasshook__", "__weakref__", "__annotations__", "__annotate__", "__abstractmethods__", "__mro__",
    }
)  # fmt: skip


def bind_deps(deps: Any, driver: Driver) -> Any:
    """The user's object itself where nothing in it is a step; else a view of it, whose steps belong to the run.

    A mapping always has a view, which gives its items as attributes.
    """
    if deps is None:
        return None
    if isinstance(deps, Mapping) or _may_give_a_step(deps):
        return _view_of(type(deps))(deps, driver)
    return _bind(deps, driver)


class BoundDeps:
    """Looks like the user's object, but what it gives out as a step belongs to one run, in any thread.

    A mapping's items are its attributes. What Python looks up on a class (`with`, `len`, `in`, `==` …) is passed on by a
    subclass for each class of dependencies.
    """

    __slots__ = ("__weakref__", "_durable_deps", "_durable_driver")

    def __init__(self, deps: Any, driver: Driver) -> None:
        object.__setattr__(self, "_durable_deps", deps)
        object.__setattr__(self, "_durable_driver", driver)

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleVariableOverride, reportIncompatibleMethodOverride]
        """The user's class, so that `isinstance` says what it would of the user's object."""
        deps: object = object.__getattribute__(self, "_durable_deps")
        return type(deps)

    @calls_out
    def __getattr__(self, name: str) -> Any:
        deps: Any = object.__getattribute__(self, "_durable_deps")
        driver: Driver = object.__getattribute__(self, "_durable_driver")
        if not isinstance(deps, Mapping):
            return _pass_out(self, deps, getattr(deps, name))
        if name not in deps and hasattr(deps, name):
            return _of_mapping(self, deps, driver, name)
        return _bind(_item(cast(Mapping[str, Any], deps), name), driver)

    @calls_out
    def __setattr__(self, name: str, value: Any) -> None:
        setattr(object.__getattribute__(self, "_durable_deps"), name, value)

    @calls_out
    def __delattr__(self, name: str) -> None:
        delattr(object.__getattribute__(self, "_durable_deps"), name)


def _unwrap(view: object) -> Any:
    """The user's object behind a view; anything else as it is."""
    return object.__getattribute__(view, "_durable_deps") if issubclass(type(view), BoundDeps) else view


def _pass_out(view: BoundDeps, deps: Any, value: Any) -> Any:
    """What the user's object answers, with its steps bound; where it answers with itself, as `__enter__` does, its view."""
    return view if value is deps else _bind(value, object.__getattribute__(view, "_durable_driver"))


_views: Final[weakref.WeakKeyDictionary[type, type[BoundDeps]]] = weakref.WeakKeyDictionary()


def _view_of(kind: type) -> type[BoundDeps]:
    """The class of views of this class's objects."""
    try:
        # Without a lock, which a signal handler would wait for in vain, and a forked child might find locked.
        view = _views.get(kind)
        return view if view is not None else _views.setdefault(kind, _new_view(kind))
    except TypeError:  # its metaclass has no hash
        return _new_view(kind)


def _new_view(kind: type) -> type[BoundDeps]:
    special: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        for name, value in vars(base).items():
            if name.startswith("__") and name.endswith("__") and name not in _NOT_PASSED_ON:
                special[name] = _pass_on(name, value) if hasattr(value, "__get__") else value
    return type("BoundDeps", (BoundDeps,), {**special, "__slots__": (), "__module__": __name__})


def _pass_on(name: str, method: Any) -> Any:
    if isinstance(method, GetSetDescriptorType | MemberDescriptorType | property):
        return property(calls_out(lambda view: getattr(_unwrap(view), name)))

    @calls_out
    def passed_on(view: BoundDeps, *args: Any, **kwargs: Any) -> Any:
        deps = _unwrap(view)
        bound = _bind(_find_special(deps, name), object.__getattribute__(view, "_durable_driver"))
        answer = bound(*map(_unwrap, args), **kwargs)
        if name == "__iter__" and answer is not deps and not isinstance(deps, Mapping):
            return _each(view, deps, answer)
        return _pass_out(view, deps, answer)

    if inspect.iscoroutinefunction(method):

        @calls_out
        async def awaited(view: BoundDeps, *args: Any, **kwargs: Any) -> Any:
            deps = _unwrap(view)
            bound = _bind(_find_special(deps, name), object.__getattribute__(view, "_durable_driver"))
            return _pass_out(view, deps, await bound(*map(_unwrap, args), **kwargs))

        return awaited
    return passed_on


def _find_special(deps: Any, name: str) -> Callable[..., Any]:
    """A special method as Python looks it up: on the class."""
    for base in type(deps).__mro__:
        if name in vars(base):
            found = vars(base)[name]
            return cast(Callable[..., Any], found.__get__(deps, type(deps)))
    raise AttributeError(name)


@calls_out
def _each(view: BoundDeps, deps: Any, items: Iterator[Any]) -> Iterator[Any]:
    for item in items:
        yield _pass_out(view, deps, item)


@calls_out
def _item(deps: Mapping[str, Any], name: str) -> Any:
    try:
        return deps[name]
    except KeyError:
        there = ", ".join(map(repr, deps)) or "nothing"
        raise AttributeError(f"the dependencies have no {name!r}; they have {there}") from None


def _of_mapping(view: BoundDeps, deps: Mapping[Any, Any], driver: Driver, name: str) -> Any:
    """An attribute of the mapping's own, like `get`, whose answers are bound too."""
    found = getattr(deps, name)
    if name == "items":
        return functools.partial(ItemsView, cast(Mapping[Any, Any], view))
    if name == "values":
        return functools.partial(ValuesView, cast(Mapping[Any, Any], view))
    if not callable(found):
        return _bind(found, driver)

    @calls_out
    def called(*args: Any, **kwargs: Any) -> Any:
        return _pass_out(view, deps, found(*map(_unwrap, args), **kwargs))

    return functools.wraps(found)(called) if definition_of(found) is None else _bind(found, driver)


# -- what may give out a step ---------------------------------------------------------------------------------------

# Of each class: whether it is still, and its slots.
_classes: Final[weakref.WeakKeyDictionary[type, tuple[bool, list[str]]]] = weakref.WeakKeyDictionary()


def _may_give_a_step(deps: Any) -> bool:
    """Whether an attribute or item of it is a step, or what it gives out cannot be known before it is asked for."""
    kind = type(deps)
    try:
        known = _classes.get(kind)
        if known is None:
            known = _classes[kind] = (_is_still(kind), _slots(kind))
    except TypeError:  # its metaclass has no hash
        known = (_is_still(kind), _slots(kind))
    still, slots = known
    if not still:
        return True
    if isinstance(deps, list | tuple | set | frozenset) and any(_is_step(item) for item in deps):
        return True
    if isinstance(deps, type) and not all(map(_holds_still, deps.__mro__)):
        return True
    if isinstance(deps, ModuleType) and "__getattr__" in vars(deps):
        return True
    if any(_is_step(value) for value in getattr(deps, "__dict__", {}).values()):
        return True
    return any(_is_step(getattr(deps, name, None)) for name in slots)


def _is_step(value: object) -> bool:
    return definition_of(value) is not None


def _is_still(kind: type) -> bool:
    """Whether all that the class itself gives its objects can be seen, and is no step."""
    return all(_holds_still(base) for base in kind.__mro__ if base not in (object, type))


def _holds_still(base: type) -> bool:
    parts = vars(base)
    if "__getattr__" in parts or ("__getattribute__" in parts and type(parts["__getattribute__"]) is FunctionType):
        return False
    return all(_is_still_part(part) for name, part in parts.items() if name != "__dict__")


def _is_still_part(part: Any) -> bool:
    if isinstance(part, classmethod | staticmethod):
        part = part.__func__
    return not _is_step(part) and (isinstance(part, _STILL) or not hasattr(type(part), "__get__"))


def _slots(kind: type) -> list[str]:
    return [
        name for base in kind.__mro__ for name, part in vars(base).items() if isinstance(part, MemberDescriptorType)
    ]


# -- steps ----------------------------------------------------------------------------------------------------------


def _bind(value: Any, driver: Driver) -> Any:
    definition = definition_of(value)
    if definition is None:
        return value
    if getattr(definition.fn, "__self__", None) is value:
        return _view_of(type(value))(value, driver)  # a step by the `__call__` of its class, and what it is besides

    @functools.wraps(value)
    def bound(*args: Any, **kwargs: Any) -> Any:
        frame = current_frame.get()
        if frame is not None and frame.inside is not None:
            return definition.fn(*args, **kwargs)
        called, rest = definition.of(args)
        return driver.call_decorated(called, rest, kwargs)

    @functools.wraps(value)
    def around(*args: Any, **kwargs: Any) -> Any:
        frame = current_frame.get()
        if frame is not None and (frame.driver is driver or frame.inside is not None):
            return value(*args, **kwargs)
        token = enter(driver.frame())
        try:
            return value(*args, **kwargs)
        finally:
            leave(token)

    @functools.wraps(value)
    async def await_around(*args: Any, **kwargs: Any) -> Any:
        frame = current_frame.get()
        if frame is not None and (frame.driver is driver or frame.inside is not None):
            return await value(*args, **kwargs)
        token = enter(driver.frame())
        try:
            return await value(*args, **kwargs)
        finally:
            leave(token)

    if definition.fn is not value:
        chosen: Any = bound
    else:  # a decorator stands above the step, which finds its run by the frame
        chosen = await_around if inspect.iscoroutinefunction(value) else around
    mark(chosen, definition)
    return chosen
