"""An exception taken apart, and made again without its constructor.

Nothing of the user's is called to make one: the built-in class that an exception is based on makes the instance from
its arguments, and the rest of its state is put into place. So a record cannot start a constructor, and one that takes
other arguments than it hands on is no obstacle.
"""

# Everything here is of types that only their owners know.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any, Final, NamedTuple, TypeVar, cast

# Kept elsewhere in a record, or of no use beyond this execution.
_NOT_STATE: Final = frozenset(
    {"__notes__", "__durable_origin__", "__dict__", "__weakref__", *vars(BaseException), *vars(object)}
)
_TOO_GENERAL: Final = (Exception, BaseException, object)

E = TypeVar("E", bound=BaseException)


class Parts(NamedTuple):
    """What an exception is made of: its arguments, and what it carries besides, by name."""

    args: tuple[Any, ...]
    state: dict[str, Any]


def take_apart(exception: BaseException) -> Iterator[Parts]:
    """The ways to take an exception apart, the plainest first: the caller tries which of them gives it back.

    The second is what the class itself tells pickle, where that is arguments and a dict: psycopg's errors turn the
    server's answer into plain data there.
    """
    base = _builtin_base(type(exception))
    _, args, *rest = cast(tuple[Any, ...], base.__reduce__(exception))
    state = {**_missing_name(exception), **(rest[0] if rest and rest[0] else {}), **_slots(exception)}
    yield Parts(args, _drop_our_own(state))
    if type(exception).__reduce__ is not base.__reduce__:
        told: Any = exception.__reduce__()
        if isinstance(told, tuple) and told[0] is type(exception) and 2 <= len(told) <= 3:  # noqa: PLR2004 -- class, arguments, state
            _, args, *rest = told
            if not rest or rest[0] is None or isinstance(rest[0], dict):
                yield Parts(args, _drop_our_own(rest[0] if rest and rest[0] else {}))


def put_together(class_: type[E], parts: Parts) -> Iterator[E]:
    """New exceptions of this class made of these parts: the caller takes the first that has the original's text.

    The second is one whose own constructor kept the arguments from its built-in base, as smtplib's errors do: an
    `OSError` without an errno. Raises whatever the base says to arguments that it cannot take.
    """
    base = _builtin_base(class_)
    first: E = base.__new__(class_, *parts.args)
    base.__init__(first, *parts.args)
    yield _restore(first, parts.state)
    second: E = base.__new__(class_)
    second.args = parts.args
    yield _restore(second, parts.state)


def _restore(exception: E, state: Mapping[str, Any]) -> E:
    for name, item in _drop_our_own(state).items():
        place = _place(type(exception), name)
        if place is None:
            exception.__dict__[name] = item
        else:
            place.__set__(exception, item)
    return exception


def bases_of(class_: type) -> Iterator[type]:
    """The classes by which an exception of this class can be caught, without those that catch nearly everything."""
    return (base for base in class_.__mro__[1:] if base not in _TOO_GENERAL and not base.__name__.startswith("_"))


def _builtin_base(class_: type) -> type[BaseException]:
    base: type[BaseException] = next(base for base in class_.__mro__ if vars(builtins).get(base.__name__) is base)
    return base


def _missing_name(exception: BaseException) -> dict[str, Any]:
    """The name that an `AttributeError` or a `NameError` is about, which pickle is not told before Python 3.12."""
    for base in (AttributeError, NameError):
        if isinstance(exception, base) and (name := vars(base)["name"].__get__(exception)) is not None:
            return {"name": name}
    return {}


def _slots(exception: BaseException) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for class_ in type(exception).__mro__:
        if vars(builtins).get(class_.__name__) is class_:
            break
        for name, place in vars(class_).items():
            if isinstance(place, MemberDescriptorType) and hasattr(exception, name):
                state[name] = place.__get__(exception, class_)
    return state


def _place(class_: type, name: str) -> MemberDescriptorType | GetSetDescriptorType | None:
    """Where a part of the state lives, if not in the instance's dict: in a slot, or in a field of a built-in class."""
    place = next((vars(base)[name] for base in class_.__mro__ if name in vars(base)), None)
    return place if isinstance(place, MemberDescriptorType | GetSetDescriptorType) else None


def _drop_our_own(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in state.items() if name not in _NOT_STATE}
