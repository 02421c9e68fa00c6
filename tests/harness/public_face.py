"""The public face, a line for each name: `dir(durable)`, and the signature of everything on the API page.

    python tests/harness/public_face.py > tests/golden/public.txt

renews what `test_public_face.py` compares with. Private names of `dir` are left out: they are modules that happen to be imported. It wants a
process of its own, since a submodule that is imported is a name of `dir` from then on.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import durable

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
_DIRECTIVE = re.compile(r"^\.\. auto(\w+):: ([\w.]+)\n((?:   .*\n)*)", re.MULTILINE)
_OPTION = re.compile(r":([\w-]+):([^:]*)")


class _Text(str):
    """An annotation as it is written: a signature shows the `repr` of what is no class."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def lines() -> list[str]:
    """What a user can see, in the order of the page."""
    names = [name for name in dir(durable) if not name.startswith("_")]
    return [f"dir(durable): {', '.join(names)}", "", *(line for entry in _entries() for line in entry)]


def _entries() -> Iterator[Iterator[str]]:
    for kind, name, text in _DIRECTIVE.findall(PAGE.read_text("utf-8")):
        options = {option: [word.strip(" \n,") for word in words.split()] for option, words in _OPTION.findall(text)}
        if kind == "module":
            yield _module(name, options)
        else:
            module, _, member = name.rpartition(".")
            yield _shown(name, getattr(importlib.import_module(module), member), options)


def _module(name: str, options: dict[str, list[str]]) -> Iterator[str]:
    module = importlib.import_module(name)
    public = getattr(module, "__all__", None) or [
        member
        for member, value in vars(module).items()
        if not member.startswith("_") and getattr(value, "__module__", "") == name
    ]
    for member in sorted(public):
        if member not in options.get("exclude-members", ()):
            yield from _shown(f"{name}.{member}", getattr(module, member), options)


def _shown(name: str, value: Any, options: dict[str, list[str]]) -> Iterator[str]:
    if not inspect.isclass(value):
        yield f"{name}{_signature(value)}"
        return
    bases = [base.__name__ for base in value.__bases__ if base is not object]
    yield f"class {name}{_signature(value)}" + f"  # a {', '.join(bases)}" * bool(bases)
    if "members" not in options:
        return
    stops = set(options.get("inherited-members", [base.__name__ for base in value.__mro__[1:]]))
    members: dict[str, Any] = {}
    for base in reversed([base for base in value.__mro__ if base.__name__ not in stops]):
        members |= vars(base)
    for member, inner in sorted(members.items()):
        special = member in options.get("special-members", ())
        if (special or not member.startswith("_")) and member not in options.get("exclude-members", ()):
            yield f"    {member}{_member(inner)}"


def _member(value: Any) -> str:
    if isinstance(value, (staticmethod, classmethod)):
        return f"{_signature(value.__func__)}  # {type(value).__name__}"
    if isinstance(value, property):
        return f": {inspect.signature(value.fget).return_annotation}" if value.fget else ""
    return _signature(value) if inspect.isfunction(value) else ""


def _signature(value: Any) -> str:
    """As `inspect.signature` has it, without the quotes of annotations; "" where there is none, or it is not written in Python."""
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        return ""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # an exception with the constructor of `BaseException`
        return ""
    if inspect.isclass(value):
        signature = signature.replace(return_annotation=signature.empty)
    parameters = [one.replace(annotation=_written(one.annotation)) for one in signature.parameters.values()]
    written = signature.replace(parameters=parameters, return_annotation=_written(signature.return_annotation))
    return re.sub(r" at 0x[0-9a-f]+", "", str(written))


def _written(annotation: Any) -> Any:
    text = getattr(annotation, "__forward_arg__", annotation)
    return _Text(text) if isinstance(text, str) else annotation


if __name__ == "__main__":
    print("\n".join(lines()))
