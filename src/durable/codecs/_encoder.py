"""A value as a tree of JSON-native parts."""

# Everything here is of types that only their owners know.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, cast

import msgspec

from durable.codecs import _stdlib
from durable.codecs._advice import advice_for
from durable.codecs._fingerprints import fingerprint_shape
from durable.codecs._names import find_class, name_of
from durable.codecs._problems import Unencodable
from durable.codecs._shapes import BESIDE, Shape, shape_of
from durable.codecs._tags import TAG

MAX_INT_BITS: Final = 13_000  # Python reads at most 4,300 digits
_MAX_STEP: Final = 40  # characters of a key in a path

_TRUSTED: Final = frozenset({type(None), bool, int, str})
_CERTAIN: Final = frozenset({type(None), bool})
_sorted_text: Final = msgspec.json.Encoder(order="deterministic").encode


class Encoder:
    """The way of one value to its tree.

    `annotation` helps to find classes. `careful` looks into each int and string, to find the one that is known to be
    wrong. `canonical` makes equal trees of equal values, without the fields that do not count in fingerprints, and does
    not ask whether classes can be found again.
    """

    # Every container looks up the encoders of its parts itself, which saves a call for each.

    def __init__(self, annotation: Any = None, *, careful: bool = False, canonical: bool = False) -> None:
        self._annotation = annotation
        self._canonical = canonical
        self._leaves = _CERTAIN if careful else _TRUSTED
        self._classes: dict[type, tuple[str, Shape]] = {}

    def encode(self, value: Any) -> Any:
        """The tree of a value; raises `Unencodable`, or `RecursionError` when it is too deep."""
        kind = type(value)
        if kind in self._leaves:
            return value
        return (_encoder_of(kind) or _encode_object)(self, value)

    def encode_float(self, value: float) -> float:
        if not math.isfinite(value):
            raise Unencodable("JSON has no NaN and no infinities", "Return None, or a text, in its place.")
        return value

    def encode_int(self, value: int) -> int:
        if value.bit_length() > MAX_INT_BITS:
            raise Unencodable(
                f"an int has more than {MAX_INT_BITS} bits", "Return it as bytes, or as hexadecimal text."
            )
        return value

    def encode_text(self, value: str) -> str:
        if "\0" in value:
            raise Unencodable("a string contains a NUL character, which PostgreSQL cannot store", "Return it as bytes.")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Unencodable("a string contains a lone surrogate, which is not text", "Return it as bytes.") from None
        return value

    def encode_list(self, value: Any) -> list[Any]:
        leaves = self._leaves
        items: list[Any] = []
        try:
            for item in value:
                kind = type(item)
                items.append(item if kind in leaves else (_encoder_of(kind) or _encode_object)(self, item))
        except Unencodable as unencodable:
            raise unencodable.within(f"[{len(items)}]") from None
        return items

    def encode_dict(self, value: dict[Any, Any]) -> dict[str, Any]:
        leaves = self._leaves
        out: dict[str, Any] = {}
        key: Any = None
        try:
            for key, item in value.items():
                if type(key) is not str or key == TAG:
                    break
                if leaves is _CERTAIN:
                    self._check_key(key)
                kind = type(item)
                out[key] = item if kind in leaves else (_encoder_of(kind) or _encode_object)(self, item)
            else:
                return out
        except Unencodable as unencodable:
            raise unencodable.within(_path_step(key)) from None
        return self._encode_pairs(value)

    def _check_key(self, key: str) -> None:
        try:
            self.encode_text(key)
        except Unencodable as unencodable:
            raise unencodable.within("(key)") from None

    def _encode_pairs(self, value: dict[Any, Any]) -> dict[str, Any]:
        pairs: list[tuple[Any, Any]] = []
        key: Any = None
        try:
            for key, item in value.items():
                pairs.append((self.encode(key), self.encode(item)))
        except Unencodable as unencodable:
            raise unencodable.within(_path_step(key)) from None
        if self._canonical:
            pairs.sort(key=_sorted_text)
        return {TAG: "dict", "items": pairs}

    def encode_tuple(self, value: tuple[Any, ...]) -> dict[str, Any]:
        return {TAG: "tuple", "items": self.encode_list(value)}

    def encode_set(self, value: set[Any] | frozenset[Any]) -> dict[str, Any]:
        # Two equal sets may have two orders; what is compared must have one.
        return {TAG: type(value).__name__, "items": sorted(self.encode_list(value), key=_sorted_text)}

    def encode_object(self, value: Any) -> dict[str, Any]:
        class_ = type(value)
        known = self._classes.get(class_)
        if known is None:
            if class_.__module__ == "freezegun.api":  # a date or datetime of a test whose clock stands still
                real = next(base for base in class_.__mro__ if base in _ENCODERS)
                return cast(dict[str, Any], _ENCODERS[real](self, value))
            known = self._look_up(class_)
        name, shape = known
        leaves = self._leaves
        out: dict[str, Any] = {TAG: name}
        field = ""
        try:
            state = shape.state(value)
            for field, item in state.items():
                kind = type(item)
                out[field] = item if kind in leaves else (_encoder_of(kind) or _encode_object)(self, item)
        except Unencodable as unencodable:
            raise unencodable.within(f".{field}" if field and field != BESIDE else "") from None
        return out

    def _look_up(self, class_: type) -> tuple[str, Shape]:
        shape = shape_of(class_)
        if shape is None:
            where = f"{class_.__module__}.{class_.__qualname__}"
            raise Unencodable(f"a value of type {where} would not come back as it is", advice_for(class_))
        name = name_of(class_)
        if not self._canonical and find_class(name, self._annotation) is not class_:
            # Made for a cursor's rows.
            instead = " Or return what its ._asdict() gives." if issubclass(class_, tuple) else ""
            raise Unencodable(
                f"the class {class_.__module__}.{class_.__qualname__} could not be found again by its name",
                "Define it at the top level of its module, name it in the function's return annotation, or give it a "
                f"name of its own with @durable.alias.{instead}",
            )
        if self._canonical:
            shape = fingerprint_shape(class_, shape, _canonical_text)
        self._classes[class_] = name, shape
        return name, shape


_ENCODERS: Final[dict[type, Callable[[Any, Any], Any]]] = {
    float: Encoder.encode_float,
    int: Encoder.encode_int,
    str: Encoder.encode_text,
    list: Encoder.encode_list,
    dict: Encoder.encode_dict,
    tuple: Encoder.encode_tuple,
    set: Encoder.encode_set,
    frozenset: Encoder.encode_set,
    **_stdlib.ENCODERS,
}

_encoder_of: Final = _ENCODERS.get


def has_own_form(class_: type) -> bool:
    """Whether values of exactly this type are native to JSON or have a tag of their own."""
    return class_ in _TRUSTED or class_ in _ENCODERS


def _canonical_text(value: Any) -> bytes:
    return _sorted_text(Encoder(canonical=True).encode(value))


_encode_object: Final[Callable[[Any, Any], Any]] = Encoder.encode_object


def _path_step(key: Any) -> str:
    """A dict's key as a step of a path: only one that looks like a name, since any other may be private data."""
    return f".{key}" if type(key) is str and key.isidentifier() and len(key) <= _MAX_STEP else "[…]"
