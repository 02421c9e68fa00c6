"""Types that are stored as something plainer, the user's and the standard library's."""

# Everything here is of types that only their owners know.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import fractions
import inspect
import ipaddress
import pathlib
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from durable._common.boundary import public
from durable.codecs._annotations import is_stand_in, is_typed_dict
from durable.codecs._encoder import has_own_form
from durable.codecs._names import alias
from durable.codecs._shapes import Conversion, set_shape
from durable.errors import InvalidArgument

V = TypeVar("V")


@public("durable.stored_as")
def stored_as(type_: type[V], to_plain: Callable[[V], Any], from_plain: Callable[[Any], V]) -> None:
    """Let values of a type be stored as something plainer, wherever they stand. ::

        durable.stored_as(yarl.URL, str, yarl.URL)
        durable.stored_as(Money, lambda money: [money.amount, money.currency], Money.of)

    `to_plain(value)` gives what is stored: anything that can be, other types with a `stored_as` of their own included.
    `from_plain` gets that, decoded, and makes an equal value of exactly this type from it, in any process and for as
    long as its records are kept: register it where the type is defined or first imported, since a process that has not
    done so refuses the record by name. Instances of subclasses are not meant. A row can make `from_plain` run, with any
    plain value: let it compute and nothing else.

    A second call for a type takes the place of the first. Raises `InvalidArgument` for what is no class or cannot be
    called, and for a type that has a form already (`str`, `datetime`, `UUID`, …).
    """
    if not isinstance(type_, type):
        raise InvalidArgument(f"stored_as takes a class first, not {type(type_).__name__}")
    for name, function in (("to_plain", to_plain), ("from_plain", from_plain)):
        if not callable(function):
            raise InvalidArgument(f"stored_as: {name} must be a function of one value, not {type(function).__name__}")
    if has_own_form(type_) or is_typed_dict(type_):
        raise InvalidArgument(f"stored_as: {type_.__qualname__} comes back as it is already; make a class of your own")
    if reason := _never_a_value(type_):
        raise InvalidArgument(f"stored_as: {type_.__qualname__} {reason}")
    set_shape(type_, Conversion(to_plain, from_plain))


def _never_a_value(type_: type) -> str:
    """Why no value is ever exactly of this type, as the end of a sentence; empty when one may be."""
    if type_ is object or inspect.isabstract(type_) or getattr(type_, "_is_protocol", False) or is_stand_in(type_):
        return "is not the type of any value itself: name the type that values have, one call for each"
    if issubclass(type_, type):
        return "has classes for its instances, and they are no data: return a name, and look it up where it is used"
    if issubclass(type_, BaseException):
        return (
            "is an exception, and those are remembered when a step raises them, class and attributes and all: raise it, "
            "or return data made from it. See durable.testing.survives"
        )
    return ""


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
