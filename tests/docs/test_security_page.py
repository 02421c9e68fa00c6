"""SECURITY.md on what a stored row can make run: each hook of each kind of class is planted, and rows of them are read."""

from __future__ import annotations

import dataclasses
import enum
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import attrs
import msgspec
import pydantic
import pytest

from durable.codecs import JsonCodec

CALLED: Final[list[str]] = []


def hook(name: str, value: Any = None) -> Any:
    CALLED.append(name)
    return value


@dataclasses.dataclass
class Plain:
    number: int
    more: list[int] = dataclasses.field(default_factory=lambda: hook("factory", []))

    def __new__(cls, *_: Any, **__: Any) -> Any:
        hook("__new__")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        hook("__post_init__")

    def __setattr__(self, name: str, value: Any) -> None:
        hook("__setattr__")
        super().__setattr__(name, value)


def converted(value: int) -> int:
    return int(hook("converter", value))


def validated(*_: Any) -> None:
    hook("validator")


@attrs.define
class Attrs:
    number: int = attrs.field(converter=converted, validator=validated)
    more: int = attrs.field(default=7, converter=converted)

    def __attrs_post_init__(self) -> None:
        hook("__post_init__")


class Pydantic(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(validate_default=True)
    number: int
    more: int = pydantic.Field(default=7)

    def __new__(cls, *_: Any, **__: Any) -> Any:
        hook("__new__")
        return super().__new__(cls)

    @pydantic.field_validator("number", "more")
    @classmethod
    def check(cls, value: int) -> int:
        return int(hook("validator", value))

    def model_post_init(self, _: Any, /) -> None:
        hook("__post_init__")


class Named(NamedTuple):
    number: int
    more: int = 7


class Struct(msgspec.Struct):
    number: int
    more: int = 7

    def __post_init__(self) -> None:
        hook("__post_init__")


class Colour(enum.Enum):
    RED = "red"

    @classmethod
    def _missing_(cls, _: object) -> Any:
        return hook("_missing_", cls.RED)


@pytest.fixture(autouse=True)
def _here() -> Iterator[None]:
    """Rows name this module, which is imported by a path of its own."""
    sys.modules.setdefault(__name__, sys.modules[Plain.__module__])
    CALLED.clear()
    yield
    CALLED.clear()


CODEC: Final = JsonCodec()


@pytest.mark.parametrize(
    ("make", "whole", "shortened"),
    [
        (lambda: Plain(1), [], ["factory"]),
        (lambda: Attrs(1), [], ["converter"]),
        (lambda: Pydantic(number=1), ["__new__"], ["__new__", "__new__", "validator"]),
        (lambda: Named(1), [], []),
        (lambda: Struct(1), ["__post_init__"], ["__post_init__"]),
        (lambda: Colour.RED, [], None),
    ],
    ids=["dataclass", "attrs", "pydantic", "NamedTuple", "Struct", "Enum"],
)
def test_what_a_row_makes_run(make: Callable[[], Any], whole: list[str], shortened: list[str] | None) -> None:
    """Of a row as it was written, and of one that leaves out a field which has a default."""
    value = make()
    text = CODEC.encode(value, what="it")
    CALLED.clear()
    assert CODEC.decode(text, run_id="r", where="it") == value
    assert sorted(CALLED) == whole
    if shortened is not None:
        row = msgspec.json.decode(text)
        del row["more"]
        CALLED.clear()
        CODEC.decode(msgspec.json.encode(row), run_id="r", where="it")
        assert sorted(CALLED) == shortened
