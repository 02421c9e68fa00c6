"""A value as a tree of JSON-native parts."""

# Everything here is of types that only their owners know.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, cast

import msgspec

from durable.codecs import _kinds
from durable.codecs._advice import advice_for
from durable.codecs._compared import compared
from durable.codecs._names import found, name_of
from durable.codecs._shapes import BESIDE, Shape, shape_of
from durable.codecs._tags import TAG, Refusal

MAX_INT_BITS: Final = 13_000  # Python reads at most 4,300 digits
_LONGEST_STEP: Final = 40  # characters of a key in a path

_TRUSTED: Final = frozenset({type(None), bool, int, str})
_CERTAIN: Final = frozenset({type(None), bool})
_sorted_text: Final = msgspec.json.Encoder(order="deterministic").encode


class Writing:
    """One value on its way. Every container looks up the writers of its parts itself: a call less for each.

    `annotation` helps to find classes; `careful` looks into each int and string, which is done only once something is
    known to be wrong with one; `canonical` makes equal trees of equal values, without what does not count in `_compared`, and
    does not ask whether classes can be found again.
    """

    def __init__(self, annotation: Any = None, *, careful: bool = False, canonical: bool = False) -> None:
        self._annotation = annotation
        self._canonical = canonical
        self._leaves = _CERTAIN if careful else _TRUSTED
        self._classes: dict[type, tuple[str, Shape]] = {}

    def tree(self, value: Any) -> Any:
        """The tree of a value; raises `Refusal`, or `RecursionError` when it is too deep."""
        kind = type(value)
        if kind in self._leaves:
            return value
        return (_writers(kind) or _of_object)(self, value)

    def of_float(self, value: float) -> float:
        if not math.isfinite(value):
            raise Refusal("JSON has no NaN and no infinities", "Return None, or a text, in its place.")
        return value

    def of_int(self, value: int) -> int:
        if value.bit_length() > MAX_INT_BITS:
            raise Refusal(f"an int has more than {MAX_INT_BITS} bits", "Return it as bytes, or as hexadecimal text.")
        return value

    def of_text(self, value: str) -> str:
        if "\0" in value:
            raise Refusal("a string contains a NUL character, which PostgreSQL cannot store", "Return it as bytes.")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Refusal("a string contains a lone surrogate, which is not text", "Return it as bytes.") from None
        return value

    def of_list(self, value: Any) -> list[Any]:
        leaves = self._leaves
        items: list[Any] = []
        try:
            for item in value:
                kind = type(item)
                items.append(item if kind in leaves else (_writers(kind) or _of_object)(self, item))
        except Refusal as refusal:
            raise refusal.within(f"[{len(items)}]") from None
        return items

    def of_dict(self, value: dict[Any, Any]) -> dict[str, Any]:
        leaves = self._leaves
        out: dict[str, Any] = {}
        key: Any = None
        try:
            for key, item in value.items():
                if type(key) is not str or key == TAG:
                    break
                if leaves is _CERTAIN:
                    self._key(key)
                kind = type(item)
                out[key] = item if kind in leaves else (_writers(kind) or _of_object)(self, item)
            else:
                return out
        except Refusal as refusal:
            raise refusal.within(_step(key)) from None
        return self._pairs(value)

    def _key(self, key: str) -> None:
        try:
            self.of_text(key)
        except Refusal as refusal:
            raise refusal.within("(key)") from None

    def _pairs(self, value: dict[Any, Any]) -> dict[str, Any]:
        pairs: list[tuple[Any, Any]] = []
        key: Any = None
        try:
            for key, item in value.items():
                pairs.append((self.tree(key), self.tree(item)))
        except Refusal as refusal:
            raise refusal.within(_step(key)) from None
        if self._canonical:
            pairs.sort(key=_sorted_text)
        return {TAG: "dict", "items": pairs}

    def of_tuple(self, value: tuple[Any, ...]) -> dict[str, Any]:
        return {TAG: "tuple", "items": self.of_list(value)}

    def of_set(self, value: set[Any] | frozenset[Any]) -> dict[str, Any]:
        # Two equal sets may have two orders; what is compared must have one.
        return {TAG: type(value).__name__, "items": sorted(self.of_list(value), key=_sorted_text)}

    def of_object(self, value: Any) -> dict[str, Any]:
        class_ = type(value)
        known = self._classes.get(class_)
        if known is None:
            if class_.__module__ == "freezegun.api":  # a date or datetime of a test whose clock stands still
                real = next(base for base in class_.__mro__ if base in _WRITERS)
                return cast(dict[str, Any], _WRITERS[real](self, value))
            known = self._known(class_)
        name, shape = known
        leaves = self._leaves
        out: dict[str, Any] = {TAG: name}
        field = ""
        try:
            state = shape.state(value)
            for field, item in state.items():
                kind = type(item)
                out[field] = item if kind in leaves else (_writers(kind) or _of_object)(self, item)
        except Refusal as refusal:
            raise refusal.within(f".{field}" if field and field != BESIDE else "") from None
        return out

    def _known(self, class_: type) -> tuple[str, Shape]:
        shape = shape_of(class_)
        if shape is None:
            where = f"{class_.__module__}.{class_.__qualname__}"
            raise Refusal(f"a value of type {where} would not come back as it is", advice_for(class_))
        name = name_of(class_)
        if not self._canonical and found(name, self._annotation) is not class_:
            instead = (
                " Or return what its ._asdict() gives." if issubclass(class_, tuple) else ""
            )  # made for a cursor's rows
            raise Refusal(
                f"the class {class_.__module__}.{class_.__qualname__} could not be found again by its name",
                "Define it at the top level of its module, name it in the function's return annotation, or give it a "
                f"name of its own with @durable.alias.{instead}",
            )
        if self._canonical:
            shape = compared(class_, shape, _canonical_text)
        self._classes[class_] = name, shape
        return name, shape


_WRITERS: Final[dict[type, Callable[[Any, Any], Any]]] = {
    float: Writing.of_float,
    int: Writing.of_int,
    str: Writing.of_text,
    list: Writing.of_list,
    dict: Writing.of_dict,
    tuple: Writing.of_tuple,
    set: Writing.of_set,
    frozenset: Writing.of_set,
    **_kinds.WRITERS,
}

_writers: Final = _WRITERS.get


def is_known(class_: type) -> bool:
    """Whether values of exactly this type have a form of their own in JSON, or a tag."""
    return class_ in _TRUSTED or class_ in _WRITERS


def _canonical_text(value: Any) -> bytes:
    return _sorted_text(Writing(canonical=True).tree(value))


_of_object: Final[Callable[[Any, Any], Any]] = Writing.of_object


def _step(key: Any) -> str:
    """A dict's key as a step of a path: only what looks like a name, since others may be anybody's data."""
    return f".{key}" if type(key) is str and key.isidentifier() and len(key) <= _LONGEST_STEP else "[…]"
