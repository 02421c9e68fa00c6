"""Data classes: the fields of each, and an instance made from them again.

No constructor is called where that can be avoided: what was checked and converted when the value was made needs it no
second time, and a record must not be able to start code. A msgspec.Struct can only be made by its class.
"""

# Everything here is of types that only their owners know.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from enum import EnumType, Flag
from functools import cached_property
from typing import Any, Final, cast
from weakref import WeakKeyDictionary

import msgspec

from durable.codecs._problems import DecodeError, Unencodable
from durable.codecs._tags import TAG

BESIDE: Final = "$attributes"  # what an instance carries besides the fields of its class, as many SDKs' models do
# In the instance's dict, and no part of the value: how it was made, and what is computed from it.
_NOT_STATE: Final = {"__orig_class__", "_attrs_cached_hash"}


class Shape:
    """How the instances of one class are taken apart and put together. It holds no reference to the class itself."""

    def __init__(self, names: tuple[str, ...], *, in_dict: bool = False) -> None:
        self.names = names
        self.known = frozenset(names)
        self._in_dict = in_dict
        self.for_fingerprints: Shape | None = None  # what fingerprints are made by; see `_fingerprints`
        if TAG in self.known:
            raise Unencodable(f"a field of its class is called {TAG}", "Call it otherwise.")

    def state(self, value: Any) -> Mapping[str, Any]:
        """The fields of an instance by name, and `BESIDE`; `Unencodable` when a field is missing."""
        own = cast(dict[str, Any], getattr(value, "__dict__", {}))
        if tuple(own) == self.names or own.keys() == self.known:  # the first takes a third of the second
            return own
        try:
            state = {name: getattr(value, name) for name in self.names}
        except AttributeError:
            raise Unencodable("a field of it has no value", "Give every field one.") from None
        if own and (beside := self.beside(type(value), own)):
            state[BESIDE] = beside
        return state

    def beside(self, class_: type, own: dict[str, Any]) -> dict[str, Any]:
        """The attributes of an instance besides its fields, without those that a `cached_property` has computed."""
        names = [name for name in own if name not in self.known and name not in _NOT_STATE]
        return {name: own[name] for name in names if not isinstance(_class_attribute(class_, name), cached_property)}

    def build(self, class_: type, state: dict[str, Any]) -> Any:
        """A new instance; a field that the class has gained takes its default, one that it has lost is left out."""
        beside: dict[str, Any] = {}
        if tuple(state) != self.names and state.keys() != self.known:
            beside = state.pop(BESIDE, beside)
            state = self._fit(class_, state)
        value: Any = object.__new__(class_)
        if self._in_dict:
            value.__dict__.update(state)
        else:
            for name, item in state.items():
                object.__setattr__(value, name, item)
        return _put_beside(value, beside) if beside else value

    def _fit(self, class_: type, state: dict[str, Any]) -> dict[str, Any]:
        fitted: dict[str, Any] = {}
        for name in self.names:
            fitted[name] = state[name] if name in state else self.default(class_, name, fitted)
        return fitted

    def default(self, class_: type, name: str, before: Mapping[str, Any]) -> Any:  # noqa: ARG002 -- for those who look
        """The default of a field in a new instance whose earlier fields are `before`."""
        raise DecodeError(f"it has no {name!r}, and the class no default for it")


class DataClass(Shape):
    """A `dataclasses.dataclass`."""

    def __init__(self, class_: Any) -> None:
        names = tuple(field.name for field in dataclasses.fields(class_))
        super().__init__(names, in_dict=_in_dict(class_, names))

    def default(self, class_: type, name: str, before: Mapping[str, Any]) -> Any:
        """The field's default, or its factory's."""
        field = class_.__dataclass_fields__[name]  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        if field.default is not dataclasses.MISSING:
            return field.default
        if field.default_factory is not dataclasses.MISSING:
            return field.default_factory()
        return super().default(class_, name, before)


class AttrsClass(Shape):
    """A class of `attrs`."""

    def __init__(self, class_: Any) -> None:
        names = tuple(field.name for field in class_.__attrs_attrs__)
        super().__init__(names, in_dict=_in_dict(class_, names))
        properties = getattr(class_, "__attrs_props__", None)
        hashability = getattr(getattr(properties, "hashability", None), "name", "")
        self._caches_hash = hashability == "HASHABLE_CACHED" or "_attrs_cached_hash" in vars(class_)

    def build(self, class_: type, state: dict[str, Any]) -> Any:
        """As `Shape.build`; a cached hash is computed anew."""
        value = super().build(class_, state)
        if self._caches_hash:
            object.__setattr__(value, "_attrs_cached_hash", None)
        return value

    def default(self, class_: Any, name: str, before: Mapping[str, Any]) -> Any:
        """The field's default, or its factory's, converted."""
        library: Any = sys.modules["attr"]
        field: Any = next(field for field in class_.__attrs_attrs__ if field.name == name)
        default, converter = field.default, field.converter
        own_way: Any = getattr(library, "Converter", ())  # not in every version
        if default is library.NOTHING:
            return super().default(class_, name, before)
        instance: Any = object.__new__(class_)  # for those that ask it for the fields before them
        for known, item in before.items():
            object.__setattr__(instance, known, item)
        if isinstance(default, library.Factory):
            default = default.factory(instance) if default.takes_self else default.factory()
        if converter is None:
            return default
        if isinstance(converter, own_way):
            return converter.__call__(default, instance, field)  # which the instance has, and not its class
        return converter(default)


class StructClass(Shape):
    """A `msgspec.Struct`."""

    def __init__(self, class_: type[msgspec.Struct]) -> None:
        super().__init__(class_.__struct_fields__)

    def build(self, class_: type, state: dict[str, Any]) -> Any:
        """Made by the class, which fills in defaults and calls `__post_init__`, as msgspec itself does."""
        if state.keys() == self.known:
            return class_(**state)
        value = class_(**{name: item for name, item in state.items() if name in self.known})
        return _put_beside(value, state.get(BESIDE, {}))


class NamedTupleClass(Shape):
    """A `typing.NamedTuple` or `collections.namedtuple`."""

    def __init__(self, class_: Any) -> None:
        super().__init__(class_._fields)

    def state(self, value: Any) -> Mapping[str, Any]:
        """The items by name."""
        state = dict(zip(self.names, tuple.__iter__(value), strict=True))
        own = getattr(value, "__dict__", None)
        if own and (beside := self.beside(type(value), own)):
            state[BESIDE] = beside
        return state

    def build(self, class_: Any, state: dict[str, Any]) -> Any:
        """From the items in their order."""
        if tuple(state) == self.names:
            return tuple.__new__(class_, state.values())
        beside = state.pop(BESIDE, {})
        return _put_beside(tuple.__new__(class_, self._fit(class_, state).values()), beside)

    def default(self, class_: Any, name: str, before: Mapping[str, Any]) -> Any:
        defaults = class_._field_defaults
        return defaults[name] if name in defaults else super().default(class_, name, before)


class PydanticModel(Shape):
    """A `pydantic.BaseModel`: its fields, what was set of them, extra and private ones, and what was put beside them."""

    _SET: Final = "$set"
    _EXTRA: Final = "$extra"
    _PRIVATE: Final = "$private"

    def __init__(self, class_: Any) -> None:
        super().__init__(tuple(class_.__pydantic_fields__))

    def state(self, value: Any) -> Mapping[str, Any]:
        """The fields; what was set, extra and private ones only where they say something."""
        state = dict(super().state(value))
        if value.__pydantic_fields_set__ != self.known:
            state[self._SET] = sorted(value.__pydantic_fields_set__)
        if value.__pydantic_extra__:
            state[self._EXTRA] = dict(value.__pydantic_extra__)
        if value.__pydantic_private__:
            state[self._PRIVATE] = dict(value.__pydantic_private__)
        return state

    def build(self, class_: Any, state: dict[str, Any]) -> Any:
        """Made as by unpickling: nothing is validated a second time."""
        fields_set = set(state.pop(self._SET, self.known))
        extra, private, beside = state.pop(self._EXTRA, {}), state.pop(self._PRIVATE, {}), state.pop(BESIDE, {})
        if state.keys() != self.known:
            state = self._fit(class_, state)
        value = class_.__new__(class_)
        object.__setattr__(value, "__dict__", state)
        object.__setattr__(value, "__pydantic_fields_set__", fields_set)
        its_own = {
            "__pydantic_extra__": extra if class_.model_config.get("extra") == "allow" else None,
            "__pydantic_private__": private if class_.__private_attributes__ else None,
        }
        for name, item in its_own.items():
            if hasattr(_class_attribute(class_, name), "__set__"):  # a RootModel has no place for them
                object.__setattr__(value, name, item)
        return _put_beside(value, beside) if beside else value

    def default(self, class_: Any, name: str, before: Mapping[str, Any]) -> Any:
        """The field's default, or its factory's, validated where the class asks for that."""
        field = class_.__pydantic_fields__[name]
        if field.is_required():
            return super().default(class_, name, before)
        if getattr(field, "default_factory_takes_validated_data", False):
            default = field.get_default(call_default_factory=True, validated_data=dict(before))
        else:
            default = field.get_default(call_default_factory=True)
        validates = (
            class_.model_config.get("validate_default") if field.validate_default is None else field.validate_default
        )
        if not validates:
            return default
        value = class_.__new__(class_)
        object.__setattr__(value, "__dict__", dict(before))
        object.__setattr__(value, "__pydantic_fields_set__", set(before))
        object.__setattr__(value, "__pydantic_extra__", None)
        object.__setattr__(value, "__pydantic_private__", None)
        class_.__pydantic_validator__.validate_assignment(value, name, default)
        return value.__dict__[name]


class EnumClass(Shape):
    """An `enum.Enum`: the name of the member, or the number of a combination of flags."""

    def __init__(self) -> None:
        super().__init__(())

    def state(self, value: Any) -> Mapping[str, Any]:
        """The member's name, which is more stable than its value."""
        class_: Any = type(value)
        if class_.__members__.get(value._name_) is value:
            return {"name": value._name_}
        if not _is_combinable(class_):
            raise Unencodable("it is no member of its enumeration", "Return a member.")
        return {"value": value._value_}

    def build(self, class_: Any, state: dict[str, Any]) -> Any:
        """The member itself."""
        if "name" in state:
            if state["name"] not in class_.__members__:
                raise DecodeError("the enumeration has no such member any more")
            return class_.__members__[state["name"]]
        if not _is_combinable(class_) or type(state["value"]) is not int:
            raise DecodeError("it is no combination of flags")
        return class_(state["value"])


class Conversion(Shape):
    """A class that is stored as something plainer; see `_conversions`."""

    def __init__(self, to_plain: Callable[[Any], Any], from_plain: Callable[[Any], Any]) -> None:
        super().__init__(("value",))
        self._to_plain = to_plain
        self._from_plain = from_plain

    def state(self, value: Any) -> Mapping[str, Any]:
        try:
            return {"value": self._to_plain(value)}
        except Exception as problem:
            raise Unencodable(f"its to_plain raised {type(problem).__name__}", "See durable.stored_as.") from None

    def build(self, class_: type, state: dict[str, Any]) -> Any:
        try:
            value = self._from_plain(state["value"])
        except Exception as problem:
            raise DecodeError(f"the from_plain of {class_.__qualname__} raised {type(problem).__name__}") from None
        if type(value) is not class_:
            raise DecodeError(f"the from_plain of {class_.__qualname__} made a {type(value).__name__}")
        return value


_shapes: Final[WeakKeyDictionary[type, Shape]] = WeakKeyDictionary()
recipes: Final[dict[str, Callable[[type], Shape | None]]] = {}  # for the classes of a package, by its name


def shape_of(class_: type) -> Shape | None:
    """The shape of exactly this class; None when it is no data class."""
    shape = _shapes.get(class_)
    if shape is None:
        shape = _make_shape(class_)
        if shape is not None:
            _shapes[class_] = shape
    return shape


def set_shape(class_: type, shape: Shape) -> None:
    """Let instances of exactly this class have this shape."""
    _shapes[class_] = shape


def _make_shape(class_: Any) -> Shape | None:
    recipe = recipes.get(class_.__module__.partition(".")[0])
    if recipe is not None and (shape := recipe(class_)) is not None:
        return shape
    # An object of SQLAlchemy's mapper, also where it is a data class or a model, belongs to its session.
    if _class_attribute(class_, "_sa_class_manager") is not None:
        return None
    if isinstance(class_, EnumType):
        return EnumClass()
    if issubclass(class_, msgspec.Struct):
        return StructClass(class_)
    if issubclass(class_, tuple):
        return NamedTupleClass(class_) if hasattr(class_, "_fields") else None  # pyright: ignore[reportUnknownArgumentType]
    pydantic: Any = sys.modules.get("pydantic")
    if pydantic is not None and issubclass(class_, pydantic.BaseModel):
        return PydanticModel(class_)
    if hasattr(class_, "__attrs_attrs__"):
        return AttrsClass(class_)
    return DataClass(class_) if dataclasses.is_dataclass(class_) else None


def _in_dict(class_: type, names: tuple[str, ...]) -> bool:
    """Whether all fields live in the instance's dict, and none behind a slot or a property."""
    try:
        blank: object = object.__new__(class_)
    except TypeError:
        raise Unencodable("its class is built on a type that holds more than fields", "Hold that in a field.") from None
    behind = (_class_attribute(class_, name) for name in names)
    return hasattr(blank, "__dict__") and not any(hasattr(place, "__set__") for place in behind)


def _put_beside(value: Any, beside: Mapping[str, Any]) -> Any:
    if beside:
        value.__dict__.update(beside)  # no attribute is set, which could start a setter
    return value


def _class_attribute(class_: type, name: str) -> object:
    return next((vars(base)[name] for base in class_.__mro__ if name in vars(base)), None)


def _is_combinable(class_: Any) -> bool:
    """Whether members can be combined, by `Flag` itself and no code of the user's."""
    return issubclass(class_, Flag) and class_._missing_.__func__ is Flag._missing_.__func__  # type: ignore[attr-defined]
