"""A value from its tree. Nothing is imported or called because a tree says so: a class is found, never fetched."""

# Everything here is of types that only their owners know.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any, Final

from durable.codecs import _stdlib
from durable.codecs._names import find_class, is_class_name
from durable.codecs._problems import DecodeError
from durable.codecs._shapes import Shape, shape_of
from durable.codecs._tags import TAG, missing_codec

_UNKNOWN: Final = "it is tagged as something that this version does not know"
_UNTAGGED: Final = object()
_NODES: Final = frozenset({list, dict})


class Decoder:
    """The way of one tree to its value; the tree is used up. `annotation` helps to find classes."""

    def __init__(self, annotation: Any = None) -> None:
        self._annotation = annotation
        self._classes: dict[str, tuple[type, Shape]] = {}

    def decode(self, tree: Any) -> Any:
        """The value that was written as this tree; raises `DecodeError`, or anything at all for a mangled tree."""
        kind = type(tree)
        if kind is list:
            return self._decode_items(tree)
        if kind is not dict:
            return tree
        tag = tree.pop(TAG, _UNTAGGED)
        if tag is _UNTAGGED:
            return self._decode_fields(tree)
        known = self._classes.get(tag)
        if known is not None:
            return known[1].build(known[0], self._decode_fields(tree))
        decode = _stdlib.DECODERS.get(tag)
        if decode is not None:
            return decode(tree)
        if ":" in tag:
            class_, shape = self._look_up(tag)
            return shape.build(class_, self._decode_fields(tree))
        return self._decode_container(tag, tree)

    def _decode_items(self, tree: list[Any]) -> list[Any]:
        decode = self.decode
        for index, item in enumerate(tree):
            if type(item) in _NODES:
                tree[index] = decode(item)
        return tree

    def _decode_fields(self, tree: dict[str, Any]) -> dict[str, Any]:
        decode = self.decode
        for key, item in tree.items():
            if type(item) in _NODES:
                tree[key] = decode(item)
        return tree

    def _decode_container(self, tag: str, tree: dict[str, Any]) -> Any:
        if tag == "codec":
            raise DecodeError(missing_codec(tree.get("name")))
        items = tree.get("items")
        if type(items) is not list:
            raise DecodeError(_UNKNOWN)
        match tag:
            case "tuple":
                return tuple(self._decode_items(items))
            case "set":
                return set(self._decode_items(items))
            case "frozenset":
                return frozenset(self._decode_items(items))
            case "dict":
                return dict(self._decode_items(items))
            case _:
                raise DecodeError(_UNKNOWN)

    def _look_up(self, name: str) -> tuple[type, Shape]:
        class_ = find_class(name, self._annotation)
        shown = name if is_class_name(name) else "of its tag"
        if class_ is None:
            raise DecodeError(
                f"no class {shown} is imported here; import its module before the run, or name the class that has "
                f"taken its place with @durable.alias"
            )
        shape = shape_of(class_)
        if shape is None:
            raise DecodeError(f"{shown} is not a data class, and durable.stored_as was not called for it here")
        self._classes[name] = class_, shape
        return class_, shape
