"""`@durable.workflow`, and what a workflow function is called in the header of its runs."""

# Everything here is of functions and classes that only their owners know.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, Final, NamedTuple, TypeVar, cast, overload

from durable._common.boundary import public
from durable._common.checks import check_name
from durable.errors import InvalidArgument

__all__ = ["Identity", "identity_of", "workflow"]

F = TypeVar("F", bound=Callable[..., Any])

_MARK: Final = "__durable_workflow__"
_PLAIN: Final = (FunctionType, BuiltinFunctionType, MethodType, partial)
_MAIN: Final = ("__main__", "__mp_main__")  # the second is what a child of multiprocessing calls the first


class _Given(NamedTuple):
    """What `@durable.workflow` was given."""

    name: str | None


class Identity(NamedTuple):
    """What tells one workflow from another in a header.

    `function` is its function as `module:qualified.name`; None where the name was given, which is then all that counts.
    """

    name: str
    function: str | None


@overload
def workflow(fn: F, /) -> F: ...
@overload
def workflow(name: str | None = None) -> Callable[[F], F]: ...
@public("@durable.workflow")
def workflow(name: Any = None) -> Any:
    """Mark a function as a workflow, and give it a name that outlasts the function's own.

        @durable.workflow(name="checkout")
        def purchase(step, deps): ...

    A run belongs to a workflow. Without a given name that is the function: its name, its module and its qualified name
    are recorded, and a function that was moved or renamed cannot go on with a run (`RunMismatch`). With one, the name is
    all that counts, and the function may be called, and stand, anywhere; no other workflow of the same store should be
    given it.

    `name` is a text of at most 512 bytes. Nothing is registered, and what is decorated is returned as it is: a function,
    blocking or async, a method in its class, a `functools.partial`, a callable object or its class.

    Raises `InvalidArgument` for a name that cannot be one, and for what cannot be called or cannot be marked.
    """
    if name is not None and not isinstance(name, str):
        return _set_mark(name, _Given(None))
    given = _Given(None if name is None else check_name("a workflow's name", name))
    return functools.partial(_set_mark, given=given)


def _set_mark(fn: Any, given: _Given) -> Any:
    target: Any = fn.__func__ if isinstance(fn, staticmethod | classmethod) else fn
    if not callable(target):
        raise InvalidArgument(
            f'@durable.workflow takes a function or a name, like @durable.workflow(name="checkout"), '
            f"not {type(fn).__name__}"
        )
    if given.name is None and _mark_of(target) is not None:
        return fn
    try:
        setattr(target, _MARK, given)
    except Exception:  # whatever an object's own __setattr__ says
        raise InvalidArgument(
            f"@durable.workflow cannot mark this {type(target).__name__}: decorate the method or the class where it is "
            f"defined, or decorate functools.partial of it"
        ) from None
    return fn


def identity_of(fn: Any) -> Identity:
    """How the workflow that is this function, or other callable object, is recorded."""
    while True:
        mark = _mark_of(fn)
        if mark is not None and mark.name is not None:
            return Identity(mark.name, None)
        if not isinstance(fn, partial):
            break
        fn = cast(Any, fn).func
    name = str(getattr(fn, "__name__", type(fn).__name__))
    check_name("a workflow's name", name)
    stands: Any = fn if isinstance(getattr(fn, "__qualname__", None), str) else type(fn)
    if name != stands.__qualname__.rpartition(".")[2]:  # set by hand, so it was given too
        return Identity(name, None)
    function = f"{_module_of(stands)}:{stands.__qualname__}"
    return Identity(name, check_name("the qualified name of a workflow's function", function))


def _mark_of(fn: Any) -> _Given | None:
    """The mark on a function itself; of an object, the mark on what calling it calls."""
    if isinstance(fn, _PLAIN):
        mark = getattr(fn, _MARK, None)
    elif isinstance(fn, type):
        mark = vars(fn).get(_MARK)  # not that of its base, whose instances are made otherwise
    else:
        mark = getattr(fn, "__dict__", {}).get(_MARK) or _mark_of_class(type(fn))
    return mark if isinstance(mark, _Given) else None


def _mark_of_class(class_: type) -> object:
    """The mark of the class which says how its instances are called: one that overrides `__call__` is another workflow."""
    for base in class_.__mro__:
        if _MARK in vars(base):
            return vars(base)[_MARK]
        if "__call__" in vars(base):
            return getattr(vars(base)["__call__"], _MARK, None)
    return None


def _module_of(stands: Any) -> str:
    """The module of a function or class. One that is run as a script goes by the name that it is imported by."""
    module = str(getattr(stands, "__module__", None) or _MAIN[0])
    if module not in _MAIN and not module.startswith("<"):
        return module
    inner = inspect.unwrap(getattr(stands, "__func__", stands))
    if isinstance(inner, type):  # by a function in it: what is called __main__ may be what runs it, such as a profiler
        inner = next((part for part in vars(inner).values() if getattr(part, "__module__", None) == module), inner)
    place: dict[str, Any] = getattr(inner, "__globals__", None) or getattr(sys.modules.get(module), "__dict__", {})
    name = getattr(place.get("__spec__"), "name", None)
    if isinstance(name, str) and name not in _MAIN:  # python -m shop
        return name
    file = place.get("__file__") or getattr(getattr(inner, "__code__", None), "co_filename", None)
    return _imported_as(file) if isinstance(file, str) and not file.startswith("<") else _MAIN[0]


@functools.lru_cache(maxsize=256)
def _imported_as(file: str) -> str:
    """The name by which a script is imported: that of its file, after those of the packages around it."""
    path = Path(file)
    parts = [path.stem]
    while (path.parent / "__init__.py").is_file():
        path = path.parent
        parts.insert(0, path.name)
    return ".".join(parts)
