"""A value from its tree. Nothing is imported or called because a tree says so: a class is found, never fetched."""

# Everything here is of types that only their owners know.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any, Final

from durable.codecs import _kinds
from durable.codecs._names import found, is_name
from durable.codecs._shapes import Shape, shape_of
from durable.codecs._tags import TAG, Misread, missing_codec

_UNKNOWN: Final = "it is tagged as something that this version does not know"
_UNTAGGED: Final = object()
_NODES: Final = frozenset({list, dict})


class Reading:
    """One tree on its way, which is used up. `annotation` helps to find classes."""

    def __init__(self, annotation: Any = None) -> None:
        self._annotation = annotation
        self._classes: dict[str, tuple[type, Shape]] = {}

    def value(self, tree: Any) -> Any:
        """The value that was written as this tree; raises `Misread`, or what a mangled tree leads to."""
        kind = type(tree)
        if kind is list:
            return self._items(tree)
        if kind is not dict:
            return tree
        tag = tree.pop(TAG, _UNTAGGED)
        if tag is _UNTAGGED:
            return self._fields(tree)
        known = self._classes.get(tag)
        if known is not None:
            return known[1].build(known[0], self._fields(tree))
        read = _kinds.READERS.get(tag)
        if read is not None:
            return read(tree)
        if ":" in tag:
            class_, shape = self._known(tag)
            return shape.build(class_, self._fields(tree))
        return self._container(tag, tree)

    def _items(self, tree: list[Any]) -> list[Any]:
        value = self.value
        for index, item in enumerate(tree):
            if type(item) in _NODES:
                tree[index] = value(item)
        return tree

    def _fields(self, tree: dict[str, Any]) -> dict[str, Any]:
        value = self.value
        for key, item in tree.items():
            if type(item) in _NODES:
                tree[key] = value(item)
        return tree

    def _container(self, tag: str, tree: dict[str, Any]) -> Any:
        if tag == "codec":
            raise Misread(missing_codec(tree.get("name")))
        items = tree.get("items")
        if type(items) is not list:
            raise Misread(_UNKNOWN)
        match tag:
            case "tuple":
                return tuple(self._items(items))
            case "set":
                return set(self._items(items))
            case "frozenset":
                return frozenset(self._items(items))
            case "dict":
                return dict(self._items(items))
            case _:
                raise Misread(_UNKNOWN)

    def _known(self, name: str) -> tuple[type, Shape]:
        class_ = found(name, self._annotation)
        shown = name if is_name(name) else "of its tag"
        if class_ is None:
            raise Misread(
                f"no class {shown} is imported here; import its module before the run, or name the class that has "
                f"taken its place with @durable.alias"
            )
        shape = shape_of(class_)
        if shape is None:
            raise Misread(f"{shown} is not a data class, and durable.stored_as was not called for it here")
        self._classes[name] = class_, shape
        return class_, shape
