"""What a function says it returns, and whether a value is that.

Only what can be decided at a glance is: an annotation that names nothing to look for (`Any`, a type variable, a callable,
a protocol, a name that exists for type checkers only) is true of every value, and the fields of a data class are its own
affair.
"""

# Everything here is of types that only their owners know.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any, Final, Literal, NewType, Union, cast

from durable.codecs._advice import its_type

_TAKES_ANY: Final = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS  # as what a decorator puts around a function does
Wrong = tuple[str, str]  # path, problem
Check = Callable[[Any, str], Wrong | None]


def returns(fn: Any) -> Any:
    """The resolved return annotation of a function, or None when it has none, or one that cannot be resolved.

    One that a decorator has copied from the function that it decorates is no promise of the decorator's: what it returns may
    be that, or anything. It is `X | Any`, in which the classes of X are still found.
    """
    function = fn if type(fn) is types.FunctionType else _function(fn)
    if function is None or "return" not in function.__annotations__:
        return None
    annotation = _resolved(function, "return")
    if type(annotation) is not type and getattr(annotation, "__origin__", None) in (Awaitable, Coroutine):
        annotation = typing.get_args(annotation)[-1]  # what awaiting it gives
    code = function.__code__
    if not (function.__dict__ or code.co_flags & _TAKES_ANY) and code.co_qualname == function.__qualname__:
        return annotation  # as almost always
    return annotation if annotation is None or _is_own(function) else _perhaps(annotation)


def accepts(fn: Any, position: int) -> Any:
    """The resolved annotation of a function's parameter at this position, counted from 0; as for `returns`."""
    function = _function(fn)
    if function is None or not function.__annotations__:
        return None
    try:
        name = list(inspect.signature(fn).parameters)[position]
    except (ValueError, IndexError, TypeError):
        return None
    if name not in function.__annotations__:
        return None
    annotation = _resolved(function, name)
    is_own = _is_own(function) and not hasattr(function, "__signature__")
    return annotation if annotation is None or is_own else _perhaps(annotation)


def _function(fn: Any) -> types.FunctionType | None:
    # By the type itself: an object that answers for another calls itself by that one's class.
    while True:
        if issubclass(type(fn), functools.partial):
            fn = fn.func
        elif type(fn) is types.MethodType:
            fn = fn.__func__
        else:
            break
    if type(fn) is not types.FunctionType:
        fn = getattr(type(fn), "__call__", None)  # noqa: B004 -- the function behind it is wanted
    return fn if type(fn) is types.FunctionType else None


def _is_own(function: types.FunctionType) -> bool:
    """Whether a function's annotations were written at it, and not copied to it."""
    code, annotations = function.__code__, function.__annotations__  # (see also the usual case, in `returns`)
    if code.co_qualname != function.__qualname__:
        return False
    wrapped = getattr(function, "__wrapped__", None)
    if wrapped is not None and annotations == getattr(wrapped, "__annotations__", None):
        return False
    return len(annotations) == 1 or all(name in code.co_varnames for name in annotations if name != "return")


def _perhaps(annotation: Any) -> Any:
    try:
        return Union[annotation, Any]  # noqa: UP007 -- it may be of any kind
    except TypeError:  # it is none for typing
        return None


def _resolved(function: types.FunctionType, name: str) -> Any:
    annotation = function.__annotations__[name]
    if isinstance(annotation, str):
        # Anew each time, which takes as long as a look into a cache by function, and knows a class that was defined again.
        try:
            owner = inspect.unwrap(function) if hasattr(function, "__wrapped__") else function
            enclosed = None if owner.__closure__ is None else _enclosed(owner)
            annotation = eval(_compiled(annotation), owner.__globals__, enclosed)  # noqa: S307 -- of the user's code
        except Exception:  # a name that exists for type checkers only, or in another function only
            return None
    if annotation is None:
        return types.NoneType
    return None if annotation is Any or annotation is object else annotation


def _enclosed(function: types.FunctionType) -> dict[str, Any]:
    """What the function has of those around it, such as a class that is defined there."""
    names: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            names[name] = cell.cell_contents
        except ValueError:  # not yet, or no more
            continue
    return names


@functools.lru_cache(maxsize=1024)
def _compiled(annotation: str) -> types.CodeType:
    return compile(annotation, "<annotation>", "eval")


def mismatch(value: Any, annotation: Any) -> Wrong | None:
    """Where a value is not what the annotation says, as path and problem; None when it is, or nobody can tell."""
    check = _check(annotation)
    if check is None:
        return None
    try:
        return check(value, "$")
    except Exception:  # an isinstance of the user's own, or a value that changes meanwhile
        return None


def _check(annotation: Any) -> Check | None:
    try:
        return _cached(annotation)
    except TypeError:  # it cannot be hashed
        return None


@functools.lru_cache(maxsize=1024)
def _cached(annotation: Any) -> Check | None:
    """How to look; None when there is nothing to look for."""
    if annotation is None or annotation is type(None):
        return _Instance(type(None), "None")
    if isinstance(annotation, NewType):
        return _check(annotation.__supertype__)
    if hasattr(annotation, "__value__"):  # type X = … (Python 3.12), which may stand within itself
        return _Alias(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is None:
        return _of_class(annotation) if isinstance(annotation, type) else None
    if origin is typing.Annotated:
        return _check(arguments[0])
    if origin is Union or origin is types.UnionType:
        return _any_of([_check(argument) for argument in arguments], _text(annotation))
    if origin is Literal:
        return _literal(arguments)
    if not isinstance(origin, type) or origin is type:
        return None
    return _generic(origin, arguments, _text(annotation))


def _of_class(class_: type) -> Check | None:
    if class_ is object or is_stand_in(class_):
        return None
    if getattr(class_, "_is_protocol", False) and not getattr(class_, "_is_runtime_protocol", False):
        return None
    if is_typed_dict(class_):
        return _Instance(dict, class_.__name__)
    if class_ is float:
        return _Instance((float, int), "float")  # as type checkers have it
    return _Instance(class_, class_.__qualname__)


def is_typed_dict(class_: type) -> bool:
    """Whether a class stands for plain dicts: also one by `typing_extensions`, which pydantic asks for below Python 3.12."""
    return typing.is_typeddict(class_) or (issubclass(class_, dict) and hasattr(class_, "__total__"))


def is_stand_in(class_: type) -> bool:
    """Whether a class stands for values of other classes, as pydantic's `AwareDatetime` does: it has no instances."""
    return (
        hasattr(class_, "__get_pydantic_core_schema__")
        and class_.__bases__ == (object,)
        and "__init__" not in vars(class_)
    )


class _Instance:
    """Whether a value is of a class; `exact` are types that certainly are, of which many can be looked at at once."""

    __slots__ = ("_class", "_name", "exact")

    def __init__(self, class_: Any, name: str) -> None:
        self._class = class_
        self._name = name
        self.exact = frozenset(class_ if isinstance(class_, tuple) else (class_,))

    def __call__(self, value: Any, path: str) -> Wrong | None:
        if isinstance(value, self._class):
            return None
        return path, f"{its_type(value)} was returned where {self._name} is promised"


class _Alias:
    """What a `type` statement stands for, looked up when a value is there: by then each level of it is one of the value."""

    __slots__ = ("_alias",)

    def __init__(self, alias: Any) -> None:
        self._alias = alias

    def __call__(self, value: Any, path: str) -> Wrong | None:
        check = _check(self._alias.__value__)
        return None if check is None else check(value, path)


def _certainly(part: Check | None, values: Iterable[Any]) -> bool:
    return part is None or (isinstance(part, _Instance) and part.exact.issuperset(map(type, values)))


def _any_of(checks: list[Check | None], name: str) -> Check | None:
    if None in checks:
        return None
    possible = cast(list[Check], checks)

    def check(value: Any, path: str) -> Wrong | None:
        wrongs = [check(value, path) for check in possible]
        if None in wrongs:
            return None
        deeper = [wrong for wrong in wrongs if wrong is not None and wrong[0] != path]
        return deeper[0] if deeper else (path, f"{its_type(value)} was returned where {name} is promised")

    return check


def _literal(allowed: tuple[Any, ...]) -> Check:
    def check(value: Any, path: str) -> Wrong | None:
        if any(type(value) is type(one) and value == one for one in allowed):
            return None
        return path, f"{its_type(value)} was returned that is none of the Literal's values"

    return check


def _generic(origin: type, arguments: tuple[Any, ...], name: str) -> Check | None:
    whole = _of_class(origin)
    if whole is None:
        return None
    if origin is tuple:
        parts = _tuple(arguments)
    elif issubclass(origin, Mapping) and len(arguments) == 2:  # noqa: PLR2004 -- of keys and of values
        parts = _mapping(_check(arguments[0]), _check(arguments[1]))
    elif issubclass(origin, Iterable) and len(arguments) == 1 and origin.__module__ in ("builtins", "collections.abc"):
        parts = _items(_check(arguments[0]))
    else:
        parts = None
    known = _Instance(origin, name)
    if parts is None:
        return known

    def check(value: Any, path: str) -> Wrong | None:
        return known(value, path) or parts(value, path)

    return check


def _tuple(arguments: tuple[Any, ...]) -> Check | None:
    if len(arguments) == 2 and arguments[1] is ...:  # noqa: PLR2004 -- tuple[X, ...]
        return _items(_check(arguments[0]))
    checks = [_check(argument) for argument in arguments]

    def check(value: Any, path: str) -> Wrong | None:
        if len(value) != len(checks):
            return path, f"a tuple of {len(value)} was returned where one of {len(checks)} is promised"
        found = (part(item, f"{path}[{n}]") for n, (part, item) in enumerate(zip(checks, value, strict=True)) if part)
        return next((wrong for wrong in found if wrong), None)

    return check


def _items(part: Check | None) -> Check | None:
    if part is None:
        return None

    def check(value: Any, path: str) -> Wrong | None:
        if not isinstance(value, list | tuple | set | frozenset):  # a text is a Sequence[str] of texts, for ever
            return None
        if _certainly(part, value):
            return None
        return next((wrong for n, item in enumerate(value) if (wrong := part(item, f"{path}[{n}]"))), None)

    return check


def _mapping(key: Check | None, item: Check | None) -> Check | None:
    if key is None and item is None:
        return None

    def check(value: Any, path: str) -> Wrong | None:
        if _certainly(key, value) and _certainly(item, value.values()):
            return None
        for name, content in value.items():
            within = f"{path}.{name}" if type(name) is str and name.isidentifier() else f"{path}[…]"
            wrong = (key and key(name, within)) or (item and item(content, within))
            if wrong:
                return wrong
        return None

    return check


def _text(annotation: Any) -> str:
    return str(annotation).replace("typing.", "")
