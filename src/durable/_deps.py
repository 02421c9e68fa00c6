"""The dependencies as a workflow sees them: every decorated function bound to the run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any, cast

from durable._border import calls_out
from durable._decorator import Driver, current_frame, enter, leave, mark, options_of


class BoundDeps:
    """Looks like the user's object, but what it gives out as a step belongs to one run, in any thread.

    A mapping's items are its attributes.
    """

    __slots__ = ("_durable_deps", "_durable_driver")

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
        value = _item(cast(Mapping[str, Any], deps), name) if isinstance(deps, Mapping) else getattr(deps, name)
        return _bound(value, object.__getattribute__(self, "_durable_driver"))

    @calls_out
    def __getitem__(self, name: Any) -> Any:
        deps: Any = object.__getattribute__(self, "_durable_deps")
        return _bound(deps[name], object.__getattribute__(self, "_durable_driver"))

    def __contains__(self, name: Any) -> bool:
        return name in object.__getattribute__(self, "_durable_deps")

    def __iter__(self) -> Any:
        return iter(object.__getattribute__(self, "_durable_deps"))

    def __len__(self) -> int:
        return len(object.__getattribute__(self, "_durable_deps"))

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(object.__getattribute__(self, "_durable_deps"), name, value)

    def __repr__(self) -> str:
        return repr(object.__getattribute__(self, "_durable_deps"))


@calls_out
def _item(deps: Mapping[str, Any], name: str) -> Any:
    try:
        return deps[name]
    except KeyError:
        there = ", ".join(map(repr, deps)) or "nothing"
        raise AttributeError(f"the dependencies have no {name!r}; they have {there}") from None


def _bound(value: Any, driver: Driver) -> Any:
    options = options_of(value)
    if options is None:
        return value

    @functools.wraps(value)
    def bound(*args: Any, **kwargs: Any) -> Any:
        frame = current_frame.get()
        if frame is not None and frame.inside is not None:
            return options.fn(*args, **kwargs)
        called, rest = options.of(args)
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
    async def awaited_around(*args: Any, **kwargs: Any) -> Any:
        frame = current_frame.get()
        if frame is not None and (frame.driver is driver or frame.inside is not None):
            return await value(*args, **kwargs)
        token = enter(driver.frame())
        try:
            return await value(*args, **kwargs)
        finally:
            leave(token)

    if options.fn is not value:
        chosen: Any = bound
    else:  # a decorator stands above the step, which finds its run by the frame
        chosen = awaited_around if inspect.iscoroutinefunction(value) else around
    mark(chosen, options)
    return chosen
