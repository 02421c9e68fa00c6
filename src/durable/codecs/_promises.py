"""Return annotations of which no value can be stored, found before a body is called."""

# Everything here is of types that only their owners know.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import functools
import inspect
import io
import types
import typing
from abc import ABC, ABCMeta
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from importlib import import_module
from typing import Any, Final, NewType, Union

from durable.codecs._advice import advice_for
from durable.codecs._annotations import is_stand_in, is_typed_dict
from durable.codecs._encoder import has_own_form
from durable.codecs._problems import Unencodable
from durable.codecs._shapes import shape_of

# Abstract, and still certain: an iterator or a reader is used up by being recorded.
_USED_UP: Final = (
    Iterator,
    Generator,
    AsyncIterator,
    AsyncGenerator,
    io.IOBase,
    typing.IO,
    typing.TextIO,
    typing.BinaryIO,
)
_KNOWN_HOOKS: Final = ("collections.abc", "typing", "builtins", "contextlib", "os")  # true of their own class only
_MAX_SUBCLASSES: Final = 100  # that are looked at


# Kept is what is in order, and no exception: a class may be taught, or subclassed.
@functools.lru_cache(maxsize=1024)
def check_promise(annotation: Any) -> None:
    """Raise `Unencodable` for an annotation of which no value can be stored; pass where that is not certain."""
    class_ = _find_unstorable(annotation, set())
    if class_ is not None:
        name = class_.__qualname__ if class_.__module__ == "builtins" else f"{class_.__module__}.{class_.__qualname__}"
        raise Unencodable(f"{name} is promised, and no value of that type could be stored", advice_for(class_))


def _find_unstorable(annotation: Any, seen: set[int]) -> type | None:
    """The class of which no instance can be stored, if every value of the annotation is one."""
    if id(annotation) in seen:
        return None
    seen.add(id(annotation))
    if isinstance(annotation, NewType):
        return _find_unstorable(annotation.__supertype__, seen)
    if hasattr(annotation, "__value__"):  # type X = … (Python 3.12)
        return _find_unstorable(annotation.__value__, seen)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _find_unstorable(arguments[0], seen)
    if origin is Union or origin is types.UnionType:
        found = [_find_unstorable(argument, seen) for argument in arguments]
        return found[0] if all(found) else None
    if origin is tuple and arguments[1:] != (...,):  # of parts that are all there
        return next((bad for part in arguments if (bad := _find_unstorable(part, seen)) is not None), None)
    class_ = annotation if origin is None else origin
    return class_ if isinstance(class_, type) and _is_unstorable(class_) else None


def _is_unstorable(class_: type) -> bool:
    if any(class_ is one for one in _USED_UP) or issubclass(class_, io.IOBase | BaseException | type):
        return True
    if any(class_ is one for one in (object, Any, types.NoneType)) or is_typed_dict(class_) or is_stand_in(class_):
        return False
    if not _is_decided_by_subclasses(class_):
        return False
    return all(_is_refused(one) for one in _with_subclasses(class_))


def _is_decided_by_subclasses(class_: type) -> bool:
    """Whether every instance is of the class or of one of its subclasses, and these can be known."""
    metaclass: Any = type(class_)
    check = metaclass.__instancecheck__
    if check is type.__instancecheck__:
        return True
    # Else an ABC or a protocol. One that has the methods which its bases ask for is a class like any, unless others were
    # registered with it; one that is declared as an ABC is there for others to be based on, which may be defined later.
    # This narrows it.
    is_of_abc = check is ABCMeta.__instancecheck__ or check.__module__.partition(".")[0] == "pydantic"
    if not is_of_abc or ABC in class_.__bases__ or inspect.isabstract(class_):
        return False
    hooks = (base.__module__ for base in class_.__mro__ if "__subclasshook__" in vars(base))
    return all(module in _KNOWN_HOOKS for module in hooks) and not any(map(_has_registered, _with_subclasses(class_)))


def _has_registered(class_: type) -> bool:
    if not isinstance(class_, ABCMeta):
        return False
    try:
        registry, *_ = import_module("_abc")._get_dump(class_)  # noqa: SLF001 -- there is no other way to ask
    except Exception:  # another Python than CPython
        return True
    return bool(registry)


def _with_subclasses(class_: type) -> list[type]:
    classes = [class_]
    for one in classes:
        if len(classes) > _MAX_SUBCLASSES:
            return [object]
        classes += type.__subclasses__(one)
    return classes


def _is_refused(class_: type) -> bool:
    if class_ is object or has_own_form(class_) or class_.__module__ == "freezegun.api":
        return False
    try:
        return shape_of(class_) is None
    except Unencodable:
        return True
    except Exception:  # a metaclass of the user's
        return False
