"""A return annotation that no record can keep is refused at the call, before anything has happened."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import datetime as dt
import enum
import io
import ipaddress
import numbers
import pathlib
import socket
import threading
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Generic, NewType, Protocol, TypeVar

import httpx
import numpy as np
import pandas as pd
import pydantic
import pydantic.v1
import pytest
import sqlalchemy
import sqlalchemy.orm
import typing_extensions

import durable
from durable.codecs import CodecSet, JsonCodec
from durable.stores import memory

T = TypeVar("T")


class Plain:
    """Neither a data class, nor taught."""


class Base:
    """Some of its subclasses can be stored."""


@dataclasses.dataclass
class Kept(Base):
    x: int = 0


class Abstract(ABC):
    @abstractmethod
    def price(self) -> int: ...


class Structural(Protocol):
    x: int


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Box(Generic[T]):
    item: T


class Model(pydantic.BaseModel):
    x: int = 0


class Row(typing.TypedDict):
    x: int


class Number(int):
    """Of which nothing is left in JSON."""


class Implemented(Abstract):
    """An ABC, and still a class like any."""

    def price(self) -> int:
        return 1


class Old(pydantic.v1.BaseModel):
    x: int = 0


class MappedBase(sqlalchemy.orm.DeclarativeBase): ...


class Mapped(MappedBase):
    __tablename__ = "a"
    id: sqlalchemy.orm.Mapped[int] = sqlalchemy.orm.mapped_column(primary_key=True)


class MappedData(sqlalchemy.orm.MappedAsDataclass, MappedBase):
    __tablename__ = "b"
    id: sqlalchemy.orm.Mapped[int] = sqlalchemy.orm.mapped_column(primary_key=True)


class Registered(ABC):  # noqa: B024 -- a class without an abstract method is the case
    """Abstract by its name only: what is registered with it is one of it."""


Registered.register(Kept)


class Marker(ABC):  # noqa: B024 -- as above
    """Whose subclasses may be imported later."""


class AboveRegistered(Marker):
    """What is registered below is one of it, too."""


class BelowThat(AboveRegistered): ...


BelowThat.register(Kept)


HOPELESS = {
    "an iterator": Iterator[int],
    "a generator": typing.Generator[int, None, None],
    "an async iterator": typing.AsyncIterator[int],
    "an open file": typing.TextIO,
    "a buffer": io.BytesIO,
    "a socket": socket.socket,
    "a lock": threading.Event,
    "a plain class": Plain,
    "one of two": Plain | socket.socket,
    "an array": np.ndarray,
    "a secret": pydantic.SecretStr,
    "an int of one's own": Number,
    "a counter": collections.Counter[str],
    "annotated": Annotated[Plain, "x"],
    "a new type": NewType("Handle", Plain),
    "an alias": typing_extensions.TypeAliasType("Alias", Plain),
    "an event loop": asyncio.AbstractEventLoop,
    "a class": type,
    "a class of these": type[int],
    "a class of classes": type(ABC),
    "an exception": Exception,
    "an exception of a kind": KeyError,
    "a pair, one of which cannot be": tuple[int, Plain],
    "such a pair in a pair": tuple[int, tuple[Plain, int]],
    "a mapping of one's own": collections.UserDict[str, int],
    "an answer": httpx.Response,
    "a jar of cookies": httpx.Cookies,
    "an abstract class that has its methods": Implemented,
    "a model of pydantic 1": Old,
    "a mapped class": Mapped,
    "a mapped data class": MappedData,
}

POSSIBLE = {
    "anything": Any,
    "an object": object,
    "nothing": None,
    "an iterable": Iterable[int],
    "a sequence": Sequence[Plain],
    "a mapping": Mapping[str, Plain],
    "a list, which may be empty": list[Plain],
    "one of two": Plain | None,
    "a base class": Base,
    "an abstract class": Abstract,
    "a protocol": Structural,
    "a data class": Kept,
    "a generic one": Box[Plain],
    "a model": Model,
    "an enumeration": Colour,
    "a typed dict": Row,
    "a type variable": T,
    "numbers": float | int | Decimal,
    "a moment": dt.datetime,
    "a path": pathlib.Path,
    "a text of a name": "Plain",
    "a literal": typing.Literal["a"],
    "numpy's float": np.float64,
    "headers": httpx.Headers,
    "a row": sqlalchemy.Row[tuple[int]],
    "rows": Sequence[sqlalchemy.Row[Any]],
    "pandas' moment": pd.Timestamp,
    "a pair": tuple[int, str],
    "no items": tuple[()],
    "items": tuple[Plain, ...],
    "an abstract class with others below": Registered,
    "one that others are to be based on": Marker,
    "an abstract class one of whose subclasses has others": AboveRegistered,
    "a callable": typing.Callable[[], int],
    "any of two": Any | socket.socket,
}


def promising(annotation: Any, called: list[str]) -> Any:
    def body(*_: Any) -> Any:
        called.append("body")

    body.__annotations__["return"] = annotation
    return body


@pytest.mark.parametrize("name", HOPELESS)
@pytest.mark.parametrize("codec", [JsonCodec(), CodecSet([JsonCodec()])], ids=["one codec", "several"])
def test_it_is_refused_before_the_body(name: str, codec: Any) -> None:
    """By name, in a step and as the result of a workflow; nothing is stored."""
    called: list[str] = []
    body = promising(HOPELESS[name], called)
    with memory(codec=codec) as store:
        with pytest.raises(durable.UnstorableValue, match=r"result of step 'a'.*promised.*Nothing was called") as told:
            durable.run(None, lambda step, _: step("a", body), id="r", store=store)
        assert told.value.advice
        with pytest.raises(durable.UnstorableValue, match="result of workflow"):
            durable.run(None, body, id="s", store=store)
        assert store.load("s") is None
    assert called == []


@pytest.mark.parametrize("name", POSSIBLE)
def test_what_may_be_kept_is_called(name: str) -> None:
    """Whatever nobody can tell before the value is there."""
    JsonCodec().check_promise(POSSIBLE[name], what="it")


class Hooked(ABC):  # noqa: B024
    @classmethod
    def __subclasshook__(cls, other: type) -> bool:
        return other is int


class _Judging(type):
    def __instancecheck__(cls, value: object) -> bool:
        return value == 3


class Judged(metaclass=_Judging):
    """An instance is what its metaclass says."""


class _Alike(type):
    """Whose classes cannot be told apart."""

    def __eq__(cls, other: object) -> bool:
        return True

    def __hash__(cls) -> int:
        return 1


@dataclasses.dataclass(eq=False)
class Alike(metaclass=_Alike):
    x: int = 0


class LaterRow(typing_extensions.TypedDict):
    """As pydantic asks for it below Python 3.12."""

    x: int


class Positive:
    """Nothing is an instance: an annotation from which pydantic makes another type's schema."""

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> Any: ...


RETURNED: dict[str, tuple[Any, Any]] = {
    "what is registered with an ABC": (Registered, Kept(1)),
    "what a hook says": (Hooked, 3),
    "what a metaclass says": (Judged, 3),
    "an abstract number": (numbers.Number, 3),
    "a class that equals any other": (Alike, Alike(1)),
    "a typed dict of typing_extensions": (LaterRow, {"x": 1}),
    "pydantic's base class": (pydantic.BaseModel, Model(x=1)),
    "pydantic's aware moment": (pydantic.AwareDatetime, dt.datetime(2024, 1, 1, tzinfo=dt.UTC)),
    "pydantic's past date": (pydantic.PastDate, dt.date(2024, 1, 1)),
    "pydantic's JSON": (pydantic.Json, {"a": 1}),
    "pydantic's address": (pydantic.IPvAnyAddress, ipaddress.ip_address("10.0.0.1")),
    "pydantic's mail address": (pydantic.EmailStr, "a@b.example"),
    "an annotation of one's own for pydantic": (Positive, 3),
    "one of these in a list": (list[pydantic.AwareDatetime], [dt.datetime(2024, 1, 1, tzinfo=dt.UTC)]),
    "one of these or nothing": (pydantic.AwareDatetime | None, dt.datetime(2024, 1, 1, tzinfo=dt.UTC)),
}


@pytest.mark.parametrize("name", RETURNED)
def test_what_is_returned_as_promised_comes_back(name: str) -> None:
    """No annotation that type checkers take for the value's is a reason to refuse it, before the body or after."""
    annotation, value = RETURNED[name]
    body = promising(annotation, [])

    def returning(*_: Any) -> Any:
        return value

    returning.__annotations__ = body.__annotations__
    with memory() as store:
        back = durable.run(None, lambda step, _: step("a", returning), id="r", store=store)
    assert vars(back) == vars(value) if isinstance(value, Alike) else back == value


def test_a_class_that_is_taught_later_is_no_longer_refused() -> None:
    """And one that gets a subclass which can be stored."""

    class Late: ...

    codec = JsonCodec()
    with pytest.raises(durable.UnstorableValue):
        codec.check_promise(Late, what="it")

    @dataclasses.dataclass
    class Later(Late):
        x: int

    codec.check_promise(Late, what="it")

    class Taught: ...

    with pytest.raises(durable.UnstorableValue):
        codec.check_promise(Taught, what="it")
    durable.stored_as(Taught, lambda _: 1, lambda _: Taught())
    codec.check_promise(Taught, what="it")


def test_a_coroutine_promises_what_awaiting_it_gives() -> None:
    """Async bodies: before they are called."""

    async def body() -> Iterator[int]:
        raise AssertionError

    async def workflow(step: durable.AsyncStep, _: None) -> None:
        await step("a", body)

    with memory() as store, pytest.raises(durable.UnstorableValue, match="Nothing was called"):
        asyncio.run(durable.run(None, workflow, id="r", store=store))
