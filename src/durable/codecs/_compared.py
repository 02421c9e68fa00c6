"""What of a data class counts where values are told apart by their fingerprints."""

# Everything here is of types that only their owners know.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final
from weakref import WeakKeyDictionary

import msgspec

from durable.codecs._shapes import AttrsClass, DataClass, PydanticModel, Shape, StructClass

_SIZED: Final = frozenset({str, bytes, list, tuple, dict, set, frozenset})


class Compared(Shape):
    """A shape without what does not count: a field that has its default, and one that its class leaves out of `==`.

    So a class may gain a field with a default, or lose one, while runs are under way that know its values. `text` is how two
    values of a field are compared.
    """

    def __init__(self, class_: type, shape: Shape, text: Callable[[Any], bytes]) -> None:
        super().__init__(shape.names)
        self._class = class_
        self._shape = shape
        self._text = text
        known = _known.get(class_)
        if known is None:
            known = _known[class_] = _ignored(class_, shape), _defaulted(class_, shape)
        self._ignored, self._defaulted = known

    def state(self, value: Any) -> Mapping[str, Any]:
        """The fields that count."""
        whole = self._shape.state(value)
        state = dict(whole)
        for name in self._ignored:
            state.pop(name, None)
        for name in self._defaulted:
            if name in whole and self._is_default(whole[name], _default, self._class, self._shape, name, whole):
                state.pop(name, None)
        if isinstance(self._shape, PydanticModel):
            self._without_private_defaults(state)
        return state

    def _without_private_defaults(self, state: dict[str, Any]) -> None:
        state.pop("$set", None)  # pydantic's own == does not ask which fields were given
        attributes: Any = getattr(self._class, "__private_attributes__", {})
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
            if class_ is not type(default) or (class_ in _SIZED and len(item) != len(default)):
                return False
            return self._text(item) == self._text(default)
        except Exception:  # a factory of the user's, or a default that has no text: what cannot be compared counts
            return False


_known: Final[WeakKeyDictionary[type, tuple[frozenset[str], tuple[str, ...]]]] = WeakKeyDictionary()


def _ignored(class_: Any, shape: Shape) -> frozenset[str]:
    """The fields that the class leaves out when it compares."""
    if isinstance(shape, DataClass):
        return frozenset(field.name for field in dataclasses.fields(class_) if not field.compare)
    if isinstance(shape, AttrsClass):
        return frozenset(field.name for field in class_.__attrs_attrs__ if not field.eq)
    return frozenset()


def _defaulted(class_: Any, shape: Shape) -> tuple[str, ...]:
    """The fields that have a default. Its factory is called only where a value is there to be compared."""
    names = shape.names
    if isinstance(shape, DataClass):
        fields, missing = class_.__dataclass_fields__, dataclasses.MISSING
        return tuple(n for n in names if fields[n].default is not missing or fields[n].default_factory is not missing)
    if isinstance(shape, PydanticModel):
        return tuple(name for name in names if not class_.__pydantic_fields__[name].is_required())
    if isinstance(shape, StructClass):
        return tuple(name for name in names if _of_struct(class_, name) is not msgspec.NODEFAULT)
    if isinstance(shape, AttrsClass):
        nothing = sys.modules["attr"].NOTHING
        return tuple(field.name for field in class_.__attrs_attrs__ if field.default is not nothing)
    return tuple(getattr(class_, "_field_defaults", ()))


def _of_struct(class_: Any, name: str) -> Any:
    fields, defaults = class_.__struct_fields__, class_.__struct_defaults__
    place = fields.index(name) - (len(fields) - len(defaults))
    return defaults[place] if place >= 0 else msgspec.NODEFAULT


def _default(class_: Any, shape: Shape, name: str, state: Mapping[str, Any]) -> Any:
    """The default of a field, as an instance with this state would have it."""
    if isinstance(shape, StructClass):
        default = _of_struct(class_, name)
        return default.factory() if type(default).__name__ == "Factory" else default
    before = shape.names[: shape.names.index(name)]
    return shape.default(class_, name, {known: state[known] for known in before})
