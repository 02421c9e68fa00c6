"""What a workflow is, by its function and by the mark of `@durable.workflow`."""

# Everything here is of functions and classes that only their owners know.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, Final, NamedTuple, TypeVar, cast, overload

import tenacity

from durable._common.boundary import public
from durable._common.checks import check_count, check_name
from durable._engine.workers import MAX_CRASHES
from durable._runtime.policies import Policy
from durable._runtime.versions import Migration, check_migrations, check_version
from durable.errors import InvalidArgument

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_QUEUE: Final = "default"
_MARK: Final = "__durable_workflow__"
_PLAIN: Final = (FunctionType, BuiltinFunctionType, MethodType, partial)
_MAIN: Final = ("__main__", "__mp_main__")  # the second is what a child of multiprocessing calls the first


class _Mark(NamedTuple):
    """What `@durable.workflow` was given, checked."""

    name: str | None = None
    version: int = 1
    queue: str = DEFAULT_QUEUE
    retry: Policy | None = None
    migrates: Mapping[int, Migration] | None = None
    max_crashes: int = MAX_CRASHES


_BARE: Final = _Mark()


class WorkflowDefinition(NamedTuple):
    """What a workflow function is to those who run it."""

    #: In the header of its runs.
    name: str
    #: The function as `module:qualified.name`; None where the name was given, which is then all that counts.
    function: str | None
    #: That its runs are of.
    version: int
    #: In which its runs are due.
    queue: str
    #: Which of its runs that failed are due again, and when.
    retry: Policy | None
    #: What becomes of a run of another version, by that version.
    migrates: Mapping[int, Migration] | None
    #: How many workers in a row may die under a run, without recording anything, before it is failed.
    max_crashes: int
    #: Whether `@durable.workflow` has marked it.
    is_marked: bool


@overload
def workflow(fn: F, /) -> F: ...
@overload
def workflow(
    name: str | None = ...,
    *,
    version: int = ...,
    queue: str | None = ...,
    retry: tenacity.BaseRetrying | None = ...,
    migrates: Mapping[int, Migration] | None = ...,
    max_crashes: int = ...,
) -> Callable[[F], F]: ...
@public("@durable.workflow")
def workflow(
    name: Any = None,
    *,
    version: int = 1,
    queue: str | None = None,
    retry: tenacity.BaseRetrying | None = None,
    migrates: Mapping[int, Migration] | None = None,
    max_crashes: int = MAX_CRASHES,
) -> Any:
    """Mark a function as a workflow, and give it a name that outlasts the function's own.

        @durable.workflow(name="checkout", version=2, migrates={1: to_2})
        def purchase(step, deps): ...

    A run belongs to a workflow. Without a given name that is the function: its name, its module and its qualified name
    are recorded, and a function that was moved or renamed cannot go on with a run (`RunMismatch`). With one, the name is
    all that counts, and the function may be called, and stand, anywhere; no other workflow of the same store should be
    given it.

    - `name`: a text of at most 512 bytes.
    - `version`: an int of at most 31 bits, recorded with each run that begins; `durable.run(..., version=)` overrides it.
    - `queue`: the name of the queue in which a started run is due, by default `"default"`.
    - `retry`: a `tenacity.Retrying` whose `stop`, `wait` and `retry` say when a started *run* that has failed is due again.
      (A step's own `retry` says when its body is called again.)
    - `migrates`: for each earlier version a function of a stored run's `Snapshot`, which returns the snapshot (or its
      document) to go on with, `"clear"` or `"raise"`; see `on_version_mismatch` of `durable.run`, which overrides it. Runs
      of versions that are not in it are refused.

    - `max_crashes`: how many workers in a row may die under a started run, without recording anything, before it is failed with
      `RunPoisoned`. `sys.exit()` in the run counts as such a death.

    Nothing is registered, and what is decorated is returned as it is: a function, blocking or async, a method in its class,
    a `functools.partial`, a callable object or its class. Marked again, it keeps a name that is not given anew.

    Raises `InvalidArgument` for an option that cannot be one, and for what cannot be called or cannot be marked.
    """
    given = None if name is None or isinstance(name, str) else name
    mark = _Mark(
        None if name is None or given is not None else check_name("a workflow's name", name),
        check_version(version),
        DEFAULT_QUEUE if queue is None else check_name("a queue's name", queue),
        None if retry is None else Policy(retry, of_run=True),
        check_migrations(migrates, version),
        check_count("max_crashes", max_crashes),
    )
    return functools.partial(_set_mark, mark=mark) if given is None else _set_mark(given, mark)


def _set_mark(fn: Any, mark: _Mark) -> Any:
    target: Any = fn.__func__ if isinstance(fn, staticmethod | classmethod) else fn
    if not callable(target):
        raise InvalidArgument(
            f'@durable.workflow takes a function or a name, like @durable.workflow(name="checkout"), '
            f"not {type(fn).__name__}"
        )
    if mark.name is None and (earlier := _mark_of(target)) is not None:
        if mark == _BARE:
            return fn
        mark = mark._replace(name=earlier.name)
    try:
        setattr(target, _MARK, mark)
    except Exception:  # whatever an object's own __setattr__ says
        raise InvalidArgument(
            f"@durable.workflow cannot mark this {type(target).__name__}: decorate the method or the class where it is "
            f"defined, or decorate functools.partial of it"
        ) from None
    return fn


def definition_of_workflow(fn: Any) -> WorkflowDefinition:
    """What the workflow that is this function, or other callable object, is called, and what its mark says besides."""
    outermost, mark = None, _mark_of(fn)
    while True:
        outermost = outermost or mark
        if mark is not None and mark.name is not None:
            return _define(mark.name, None, outermost)
        if not isinstance(fn, partial):
            break
        fn = cast(Any, fn).func
        mark = _mark_of(fn)
    name = str(getattr(fn, "__name__", type(fn).__name__))
    check_name("a workflow's name", name)
    stands: Any = fn if isinstance(getattr(fn, "__qualname__", None), str) else type(fn)
    if name != stands.__qualname__.rpartition(".")[2]:  # set by hand, so it was given too
        return _define(name, None, outermost)
    function = f"{_module_of(stands)}:{stands.__qualname__}"
    return _define(name, check_name("the qualified name of a workflow's function", function), outermost)


def _define(name: str, function: str | None, mark: _Mark | None) -> WorkflowDefinition:
    given = mark or _BARE
    return WorkflowDefinition(name, function, *given[1:], mark is not None)


def _mark_of(fn: Any) -> _Mark | None:
    """The mark on a function itself; of an object, the mark on what calling it calls."""
    if isinstance(fn, _PLAIN):
        mark = getattr(fn, _MARK, None)
    elif isinstance(fn, type):
        mark = vars(fn).get(_MARK)  # not that of its base, whose instances are made otherwise
    else:
        mark = getattr(fn, "__dict__", {}).get(_MARK) or _mark_of_class(type(fn))
    return mark if isinstance(mark, _Mark) else None


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
