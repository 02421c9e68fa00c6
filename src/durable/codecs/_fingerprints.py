"""What of a data class counts in a fingerprint."""

# Everything here is of types that only their owners know.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from durable.codecs._shapes import (
    AttrsClass,
    Conversion,
    DataClass,
    EnumClass,
    NamedTupleClass,
    PydanticModel,
    Shape,
    StructClass,
)

_PLAIN: Final = frozenset({bool, int, str, bytes})
_SIZED: Final = frozenset({list, tuple, dict, set, frozenset})


class FingerprintShape(Shape):
    """A shape without the fields that do not count: those that have their default, and those left out of `==`.

    So a class may gain a field with a default, or lose one, while runs are under way that know its values. `text` is
    how two values of a field are compared.
    """

    def __init__(self, class_: type, shape: Shape, text: Callable[[Any], bytes]) -> None:
        super().__init__(shape.names)
        self._shape = shape
        self._text = text
        self._ignored, self._defaulted = _ignored_fields(class_, shape), _fields_with_default(class_, shape)
        self._constant = _constant_defaults(class_, shape, self._defaulted)
        self.is_whole = not (self._ignored or self._defaulted or isinstance(shape, PydanticModel))

    def state(self, value: Any) -> Mapping[str, Any]:
        """The fields that count."""
        class_, shape, constant = type(value), self._shape, self._constant
        whole = shape.state(value)
        state = dict(whole)
        for name in self._ignored:
            state.pop(name, None)
        for name in self._defaulted:
            if name not in whole:
                continue
            if name in constant:
                is_default = whole[name] is constant[name] or self._is_default(whole[name], constant.get, name)
            else:
                is_default = self._is_default(whole[name], _default_of, class_, shape, name, whole)
            if is_default:
                state.pop(name, None)
        if isinstance(shape, PydanticModel):
            self._without_private_defaults(class_, state)
        return state

    def _without_private_defaults(self, class_: type, state: dict[str, Any]) -> None:
        state.pop("$set", None)  # pydantic's own == does not ask which fields were given
        attributes: Any = getattr(class_, "__private_attributes__", {})
        private = {
            name: item
            for name, item in state.pop("$private", {}).items()
            if name not in attributes or not self._is_default(item, attributes[name].get_default)
        }
        if private:
            state["$private"] = private

    def _is_default(self, item: Any, default_of: Callable[..., Any], *of: Any) -> bool:
        try:
            default = default_of(*of)
            if item is default:
                return True
            class_ = type(item)
            if class_ is not type(default):
                return False
            if class_ in _PLAIN:  # equal, and so is their text
                return bool(item == default)
            if class_ in _SIZED and len(item) != len(default):
                return False
            return self._text(item) == self._text(default)
        except Exception:  # a factory of the user's, or a default that has no text: what cannot be compared counts
            return False


def fingerprint_shape(class_: type, shape: Shape, text: Callable[[Any], bytes]) -> Shape:
    """The shape by which values of a class are fingerprinted: `shape` itself, where every field counts.

    It is kept with `shape`: `text` must be the same function each time.
    """
    if shape.for_fingerprints is None:
        without = None if isinstance(shape, EnumClass | Conversion) else FingerprintShape(class_, shape, text)
        shape.for_fingerprints = shape if without is None or without.is_whole else without
    return shape.for_fingerprints


def _ignored_fields(class_: Any, shape: Shape) -> frozenset[str]:
    """The fields that the class leaves out of `==`."""
    if isinstance(shape, DataClass):
        return frozenset(field.name for field in dataclasses.fields(class_) if not field.compare)
    if isinstance(shape, AttrsClass):
        return frozenset(field.name for field in class_.__attrs_attrs__ if not field.eq)
    return frozenset()


def _fields_with_default(class_: Any, shape: Shape) -> tuple[str, ...]:
    """The fields that have a default. Its factory is called only where a value is there to be compared."""
    names = shape.names
    if isinstance(shape, DataClass):
        fields, missing = class_.__dataclass_fields__, dataclasses.MISSING
        return tuple(n for n in names if fields[n].default is not missing or fields[n].default_factory is not missing)
    if isinstance(shape, PydanticModel):
        return tuple(name for name in names if not class_.__pydantic_fields__[name].is_required())
    if isinstance(shape, StructClass):
        return tuple(name for name in names if _struct_default(class_, name) is not msgspec.NODEFAULT)
    if isinstance(shape, AttrsClass):
        nothing = sys.modules["attr"].NOTHING
        return tuple(field.name for field in class_.__attrs_attrs__ if field.default is not nothing)
    return tuple(getattr(class_, "_field_defaults", ()))


def _constant_defaults(class_: Any, shape: Shape, names: tuple[str, ...]) -> dict[str, Any]:
    """The defaults that are the same for each instance, so that no factory of the user's is called."""
    if isinstance(shape, DataClass):
        fields, missing = class_.__dataclass_fields__, dataclasses.MISSING
        return {name: fields[name].default for name in names if fields[name].default is not missing}
    return dict(class_._field_defaults) if isinstance(shape, NamedTupleClass) else {}


def _struct_default(class_: Any, name: str) -> Any:
    fields, defaults = class_.__struct_fields__, class_.__struct_defaults__
    place = fields.index(name) - (len(fields) - len(defaults))
    return defaults[place] if place >= 0 else msgspec.NODEFAULT


def _default_of(class_: Any, shape: Shape, name: str, state: Mapping[str, Any]) -> Any:
    """The default of a field, as an instance with this state would have it."""
    if isinstance(shape, StructClass):
        default = _struct_default(class_, name)
        return default.factory() if type(default).__name__ == "Factory" else default
    if isinstance(shape, DataClass):  # asks no instance
        return shape.default(class_, name, {})
    before = shape.names[: shape.names.index(name)]
    return shape.default(class_, name, {known: state[known] for known in before})
