"""Types that are stored as something plainer: a user's own, and some that everybody meets."""

# Everything here is of types that only their owners know.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import fractions
import ipaddress
import pathlib
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar

from durable._border import public
from durable.codecs._names import alias
from durable.codecs._shapes import Shape, Stored, give_shape, recipes
from durable.codecs._writing import is_known
from durable.errors import InvalidArgument

V = TypeVar("V")


@public("durable.stored_as")
def stored_as(type_: type[V], to_plain: Callable[[V], Any], from_plain: Callable[[Any], V]) -> None:
    """Let values of a type be stored as something plainer, wherever they stand. ::

        durable.stored_as(yarl.URL, str, yarl.URL)
        durable.stored_as(Money, lambda money: [money.amount, money.currency], Money.of)

    `to_plain(value)` gives what is stored: anything that can be, other types with a `stored_as` of their own included.
    `from_plain` gets that, decoded, and makes an equal value of exactly this type from it, in any process and for as long as
    its records are kept: register it where the type is defined or first imported, since a process that has not done so
    refuses the record by name. Instances of subclasses are not meant. A row can make `from_plain` run, with any plain
    value: let it compute and nothing else.

    A second call for a type takes the place of the first. Raises `InvalidArgument` for what is no class or cannot be
    called, and for a type that has a form already (`str`, `datetime`, `UUID`, …).
    """
    if not isinstance(type_, type):
        raise InvalidArgument(f"stored_as takes a class first, not {type(type_).__name__}")
    for name, function in (("to_plain", to_plain), ("from_plain", from_plain)):
        if not callable(function):
            raise InvalidArgument(f"stored_as: {name} must be a function of one value, not {type(function).__name__}")
    if is_known(type_):
        raise InvalidArgument(f"stored_as: {type_.__qualname__} comes back as it is already; make a class of your own")
    give_shape(type_, Stored(to_plain, from_plain))


def _deque_to_plain(value: deque[Any]) -> dict[str, Any]:
    return {"items": list(value), "maxlen": value.maxlen}


def _deque_from_plain(plain: dict[str, Any]) -> deque[Any]:
    return deque(plain["items"], plain["maxlen"])


# PosixPath and its kin moved to another module in Python 3.13, and are read by either version.
for _path in (pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath, pathlib.WindowsPath):
    alias(f"pathlib:{_path.__name__}")(_path)
    stored_as(_path, str, _path)
for _address in (
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Network,
    ipaddress.IPv6Network,
    ipaddress.IPv4Interface,
    ipaddress.IPv6Interface,
):
    stored_as(_address, str, _address)
stored_as(fractions.Fraction, str, fractions.Fraction)
stored_as(deque, _deque_to_plain, _deque_from_plain)


def _psycopg(class_: Any) -> Shape | None:
    kinds = {base.__qualname__ for base in class_.__mro__ if base.__module__.startswith("psycopg.types.")}
    if "Range" in kinds:
        return Stored(
            lambda it: None if it.isempty else [it.lower, it.upper, it.bounds],
            lambda plain: class_(empty=True) if plain is None else class_(*plain),
        )
    return Stored(list, class_) if "Multirange" in kinds else None


_NUMPY_SCALARS: Final = frozenset(
    {"bool", "bool_", "str_", "bytes_", "float16", "float32", "float64"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)


def _numpy(class_: Any) -> Shape | None:
    if class_.__module__ == "numpy" and class_.__qualname__ in _NUMPY_SCALARS:
        return Stored(lambda it: it.item(), class_)
    return None


recipes.update(psycopg=_psycopg, numpy=_numpy)
