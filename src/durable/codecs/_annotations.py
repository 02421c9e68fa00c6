"""The annotations of a function, against which values are held.

Only what shows at a glance is checked: an annotation that names nothing to look for (`Any`, a type variable, a
callable, a protocol, a name that exists for type checkers only) holds for every value, and the fields of a data class
are not looked at.
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

_SAYS_ANOTHER: Final = frozenset({"__wrapped__", "__signature__"})  # what `inspect.signature` asks first
_TAKES_ANY: Final = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS  # as what a decorator puts around a function does
Mismatch = tuple[str, str]  # path, problem
Check = Callable[[Any, str], Mismatch | None]


def return_annotation(fn: Any) -> Any:
    """The resolved return annotation of a function, or None when it has none, or one that cannot be resolved.

    An annotation that a decorator copied from the function it decorates is no promise of the decorator's, which may
    return anything: it becomes `X | Any`, in which the classes of X are still found.
    """
    function = fn if type(fn) is types.FunctionType else _python_function(fn)
    if function is None or "return" not in function.__annotations__:
        return None
    annotation = _resolve(function, "return")
    if type(annotation) is not type and getattr(annotation, "__origin__", None) in (Awaitable, Coroutine):
        annotation = typing.get_args(annotation)[-1]  # what awaiting it gives
    code = function.__code__
    if not (function.__dict__ or code.co_flags & _TAKES_ANY) and code.co_qualname == function.__qualname__:
        return annotation  # as almost always
    return annotation if annotation is None or _is_own(function) else _or_any(annotation)


def parameter_annotation(fn: Any, position: int) -> Any:
    """The resolved annotation of a function's parameter at this position, counted from 0; as for `return_annotation`."""
    function = _python_function(fn)
    if function is None or not function.__annotations__:
        return None
    if function is fn and position < function.__code__.co_argcount and not function.__dict__.keys() & _SAYS_ANOTHER:
        name = function.__code__.co_varnames[
            position
        ]  # as almost always: `inspect` takes longer than all else before a run
    else:
        try:
            name = list(inspect.signature(fn).parameters)[position]
        except (ValueError, IndexError, TypeError):
            return None
    if name not in function.__annotations__:
        return None
    annotation = _resolve(function, name)
    is_own = _is_own(function) and not hasattr(function, "__signature__")
    return annotation if annotation is None or is_own else _or_any(annotation)


def _python_function(fn: Any) -> types.FunctionType | None:
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
    code, annotations = function.__code__, function.__annotations__  # (see also the usual case, in `return_annotation`)
    if code.co_qualname != function.__qualname__:
        return False
    wrapped = getattr(function, "__wrapped__", None)
    if wrapped is not None and annotations == getattr(wrapped, "__annotations__", None):
        return False
    return len(annotations) == 1 or annotations.keys() - {"return"} <= set(code.co_varnames)


def _or_any(annotation: Any) -> Any:
    try:
        return Union[annotation, Any]  # noqa: UP007 -- it may be of any kind
    except TypeError:  # it is none for typing
        return None


def _resolve(function: types.FunctionType, name: str) -> Any:
    annotation = function.__annotations__[name]
    if isinstance(annotation, str):
        # Anew each time, which takes as long as a look into a cache by function, and knows a class that was defined again.
        try:
            owner = inspect.unwrap(function) if hasattr(function, "__wrapped__") else function
            enclosed = None if owner.__closure__ is None else _enclosed_names(owner)
            annotation = eval(_compile(annotation), owner.__globals__, enclosed)  # noqa: S307 -- of the user's code
        except Exception:  # a name that exists for type checkers only, or in another function only
            return None
    if annotation is None:
        return types.NoneType
    return None if annotation is Any or annotation is object else annotation


def _enclosed_names(function: types.FunctionType) -> dict[str, Any]:
    """The names that a function takes from the functions around it, such as a class that is defined there."""
    names: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            names[name] = cell.cell_contents
        except ValueError:  # not yet, or no more
            continue
    return names


@functools.lru_cache(maxsize=1024)
def _compile(annotation: str) -> types.CodeType:
    return compile(annotation, "<annotation>", "eval")


def find_mismatch(value: Any, annotation: Any) -> Mismatch | None:
    """Where a value is not what the annotation says, as path and problem; None when it is, or when that cannot be told."""
    check = _check_for(annotation)
    if check is None:
        return None
    try:
        return check(value, "$")
    except Exception:  # an isinstance of the user's own, or a value that changes meanwhile
        return None


def _check_for(annotation: Any) -> Check | None:
    try:
        return _make_check(annotation)
    except TypeError:  # it cannot be hashed
        return None


@functools.lru_cache(maxsize=1024)
def _make_check(annotation: Any) -> Check | None:
    """The check of an annotation; None when there is nothing to look for."""
    if annotation is None or annotation is type(None):
        return _Instance(type(None), "None")
    if isinstance(annotation, NewType):
        return _check_for(annotation.__supertype__)
    if hasattr(annotation, "__value__"):  # type X = … (Python 3.12), which may stand within itself
        return _Alias(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is None:
        return _class_check(annotation) if isinstance(annotation, type) else None
    if origin is typing.Annotated:
        return _check_for(arguments[0])
    if origin is Union or origin is types.UnionType:
        return _union_check([_check_for(argument) for argument in arguments], _show(annotation))
    if origin is Literal:
        return _literal_check(arguments)
    if not isinstance(origin, type) or origin is type:
        return None
    return _generic_check(origin, arguments, _show(annotation))


def _class_check(class_: type) -> Check | None:
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
    """Whether a class is a `TypedDict`, also that of `typing_extensions`, which pydantic asks for below Python 3.12."""
    return typing.is_typeddict(class_) or (issubclass(class_, dict) and hasattr(class_, "__total__"))


def is_stand_in(class_: type) -> bool:
    """Whether a class stands for values of other classes, as pydantic's `AwareDatetime` does: it has no instances."""
    return (
        hasattr(class_, "__get_pydantic_core_schema__")
        and class_.__bases__ == (object,)
        and "__init__" not in vars(class_)
    )


class _Instance:
    """Whether a value is of a class; `exact` are the types that certainly are, for a look at many values at once."""

    __slots__ = ("_class", "_name", "exact")

    def __init__(self, class_: Any, name: str) -> None:
        self._class = class_
        self._name = name
        self.exact = frozenset(class_ if isinstance(class_, tuple) else (class_,))

    def __call__(self, value: Any, path: str) -> Mismatch | None:
        if isinstance(value, self._class):
            return None
        return path, f"{its_type(value)} was returned where {self._name} is promised"


class _Alias:
    """What a `type` statement stands for, looked up once there is a value: a recursive alias goes as deep as the value."""

    __slots__ = ("_alias",)

    def __init__(self, alias: Any) -> None:
        self._alias = alias

    def __call__(self, value: Any, path: str) -> Mismatch | None:
        check = _check_for(self._alias.__value__)
        return None if check is None else check(value, path)


def _is_certain(part: Check | None, values: Iterable[Any]) -> bool:
    return part is None or (isinstance(part, _Instance) and part.exact.issuperset(map(type, values)))


def _union_check(checks: list[Check | None], name: str) -> Check | None:
    if None in checks:
        return None
    possible = cast(list[Check], checks)

    def check(value: Any, path: str) -> Mismatch | None:
        wrongs = [check(value, path) for check in possible]
        if None in wrongs:
            return None
        deeper = [wrong for wrong in wrongs if wrong is not None and wrong[0] != path]
        return deeper[0] if deeper else (path, f"{its_type(value)} was returned where {name} is promised")

    return check


def _literal_check(allowed: tuple[Any, ...]) -> Check:
    def check(value: Any, path: str) -> Mismatch | None:
        if any(type(value) is type(one) and value == one for one in allowed):
            return None
        return path, f"{its_type(value)} was returned that is none of the Literal's values"

    return check


def _generic_check(origin: type, arguments: tuple[Any, ...], name: str) -> Check | None:
    whole = _class_check(origin)
    if whole is None:
        return None
    if origin is tuple:
        parts = _tuple_check(arguments)
    elif issubclass(origin, Mapping) and len(arguments) == 2:  # noqa: PLR2004 -- of keys and of values
        parts = _mapping_check(_check_for(arguments[0]), _check_for(arguments[1]))
    elif issubclass(origin, Iterable) and len(arguments) == 1 and origin.__module__ in ("builtins", "collections.abc"):
        parts = _items_check(_check_for(arguments[0]))
    else:
        parts = None
    known = _Instance(origin, name)
    if parts is None:
        return known

    def check(value: Any, path: str) -> Mismatch | None:
        return known(value, path) or parts(value, path)

    return check


def _tuple_check(arguments: tuple[Any, ...]) -> Check | None:
    if len(arguments) == 2 and arguments[1] is ...:  # noqa: PLR2004 -- tuple[X, ...]
        return _items_check(_check_for(arguments[0]))
    checks = [_check_for(argument) for argument in arguments]

    def check(value: Any, path: str) -> Mismatch | None:
        if len(value) != len(checks):
            return path, f"a tuple of {len(value)} was returned where one of {len(checks)} is promised"
        found = (part(item, f"{path}[{n}]") for n, (part, item) in enumerate(zip(checks, value, strict=True)) if part)
        return next((wrong for wrong in found if wrong), None)

    return check


def _items_check(part: Check | None) -> Check | None:
    if part is None:
        return None

    def check(value: Any, path: str) -> Mismatch | None:
        if not isinstance(value, list | tuple | set | frozenset):  # a text is a Sequence[str] of texts, for ever
            return None
        if _is_certain(part, value):
            return None
        return next((wrong for n, item in enumerate(value) if (wrong := part(item, f"{path}[{n}]"))), None)

    return check


def _mapping_check(key: Check | None, item: Check | None) -> Check | None:
    if key is None and item is None:
        return None

    def check(value: Any, path: str) -> Mismatch | None:
        if _is_certain(key, value) and _is_certain(item, value.values()):
            return None
        for name, content in value.items():
            within = f"{path}.{name}" if type(name) is str and name.isidentifier() else f"{path}[…]"
            wrong = (key and key(name, within)) or (item and item(content, within))
            if wrong:
                return wrong
        return None

    return check


def _show(annotation: Any) -> str:
    return str(annotation).replace("typing.", "")
