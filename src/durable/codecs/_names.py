"""A class by its name in records: named, and found again.

A name leads to a class that is imported already, or stands in the annotation of the function whose value is read.
Nothing is imported because a record says so.
"""

# Everything here is of types that only their owners know.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import dataclasses
import re
import sys
import typing
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from durable.errors import InvalidArgument

_NAME: Final = re.compile(r"[^\W\d][\w.]*:[^\W\d][^:\0]*")
_C = TypeVar("_C", bound=type)

_by_alias: Final[dict[str, type]] = {}  # by alias
_aliases: Final[dict[type, str]] = {}  # the first, under which its values are written


def alias(*names: str) -> Callable[[_C], _C]:
    """Decorate a class that was once called otherwise, or that cannot be found by where it stands.

        @alias("shop:Receipt")  # as records name it: module:Class
        class Invoice: ...

    Records that have one of these names are read as this class. Its values go on being written under the first of
    them, so that processes which still run the old code can read those, and the fingerprints of arguments stay as they
    are; put the oldest name first, and leave it there while runs that know it may be resumed.

    Raises `InvalidArgument` when a name is not of that form, or another class has it.
    """
    if not names:
        raise InvalidArgument('alias() needs a name, like alias("shop:Receipt")')
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidArgument(f"an alias is a text like 'shop:Receipt' (module:Class), not {name!r}")

    def decorate(class_: _C) -> _C:
        if not isinstance(class_, type):
            raise InvalidArgument(f"alias() decorates a class, not {type(class_).__name__}")
        for name in names:
            taken = _by_alias.get(name)
            if taken is not None and own_name(taken) != own_name(class_):  # the same, when its module was reloaded
                raise InvalidArgument(f"the alias {name!r} belongs to the class {own_name(taken)} already")
        for name in names:
            _by_alias[name] = class_
        _aliases[class_] = names[0]
        return class_

    return decorate


def own_name(class_: type) -> str:
    """The place of a class, as `module:Class`."""
    return f"{class_.__module__}:{class_.__qualname__}"


def name_of(class_: type) -> str:
    """The name of a class in records: its first alias, or its place."""
    return _aliases.get(class_) or own_name(class_)


def is_class_name(name: str) -> bool:
    """Whether a text is a class's name, and may stand in a message."""
    return len(name) < 200 and _NAME.fullmatch(name) is not None  # noqa: PLR2004 -- characters, for a message


def find_class(name: str, annotation: Any) -> type | None:
    """The class of this name: by alias, among the imported modules, or in the annotation; None when there is none."""
    class_ = _by_alias.get(name) or _find_imported(name)
    if class_ is None and annotation is not None:
        class_ = next((mentioned for mentioned in _classes_in(annotation) if own_name(mentioned) == name), None)
    return class_


def _find_imported(name: str) -> type | None:
    module, _, qualname = name.partition(":")
    place: Any = sys.modules.get(module)
    plain, bracket, arguments = qualname.partition("[")  # a generic model's name has its arguments in it
    *outer, last = plain.split(".")
    for part in (*outer, last + bracket + arguments):
        # Through the namespaces themselves: getattr would call the __getattr__ of a lazy module.
        place = getattr(place, "__dict__", {}).get(part)
    return place if isinstance(place, type) else None


def _classes_in(annotation: Any) -> Iterator[type]:
    """The classes in an annotation, and in the annotations of their fields."""
    seen: set[int] = set()
    open_ends = [annotation]
    while open_ends:
        place = open_ends.pop()
        if id(place) in seen:
            continue
        seen.add(id(place))
        open_ends += typing.get_args(place)
        if hasattr(place, "__value__"):  # type X = … (Python 3.12)
            open_ends.append(place.__value__)
        if isinstance(place, type):
            yield place
            open_ends += _field_types(place)


def _field_types(class_: type) -> list[Any]:
    fields = list(vars(class_).get("__annotations__", {}).values())
    if dataclasses.is_dataclass(class_):
        fields += [field.type for field in dataclasses.fields(class_)]
    if any(isinstance(field, str) for field in fields):
        try:
            fields += typing.get_type_hints(class_).values()
        except Exception:  # names that exist for type checkers only
            return fields
    return fields
