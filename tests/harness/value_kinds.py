"""Every kind of value that the table in docs/values.md has a row for, and what it means that one came back."""

from __future__ import annotations

import array
import asyncio
import collections
import contextlib
import dataclasses
import datetime as dt
import enum
import fractions
import functools
import io
import ipaddress
import math
import pathlib
import queue
import random
import re
import socket
import sqlite3
import threading
import types
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Generic, NamedTuple, NewType, TypedDict, TypeVar
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pydantic

BERLIN = ZoneInfo("Europe/Berlin")
T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    GREEN = 2


class Word(enum.StrEnum):
    YES = "yes"


class Level(enum.IntEnum):
    LOW = 1


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Mode(enum.IntFlag):
    A = 1
    B = 4


@dataclasses.dataclass
class Line:
    name: str
    price: Decimal


@dataclasses.dataclass
class Receipt:
    number: int
    paid: dt.datetime
    lines: list[Line]
    colour: Colour = Colour.RED


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: int
    y: tuple[int, ...] = ()


@dataclasses.dataclass(slots=True, kw_only=True)
class Slotted:
    a: int
    b: str = "b"


@dataclasses.dataclass
class Derived:
    given: dataclasses.InitVar[int]
    total: int = dataclasses.field(init=False, default=0)

    def __post_init__(self, given: int) -> None:
        self.total += 2 * given


@dataclasses.dataclass
class Converting:
    word: str

    def __post_init__(self) -> None:
        self.word = self.word + "!"


@dataclasses.dataclass
class Cached:
    x: int

    @functools.cached_property
    def double(self) -> int:
        return 2 * self.x


@dataclasses.dataclass
class Box(Generic[T]):
    item: T


@dataclasses.dataclass
class Node:
    value: int
    below: list[Node] = dataclasses.field(default_factory=list)


@attrs.define
class Attrs:
    a: int
    b: tuple[str, ...] = ()


@attrs.frozen(slots=False, cache_hash=True)
class FrozenAttrs:
    a: int = attrs.field(converter=int)


class Point(NamedTuple):
    x: int
    y: float = 0.0


Pair = collections.namedtuple("Pair", ["left", "right"])  # noqa: PYI024 -- one of the kinds


class Struct(msgspec.Struct):
    a: int
    at: dt.date | None = None


class FrozenStruct(msgspec.Struct, frozen=True, tag="frozen", rename="camel", kw_only=True):
    long_name: int = 0


class Model(pydantic.BaseModel):
    a: int
    at: dt.datetime | None = None
    tags: set[str] = set()


class OpenModel(pydantic.BaseModel, extra="allow"):
    a: int = 1
    _hidden: int = pydantic.PrivateAttr(default=0)


class Root(pydantic.RootModel[list[int]]):
    pass


class Page(pydantic.BaseModel, Generic[T]):
    items: list[T]


IntPage = Page[int]


class Movie(TypedDict):
    title: str
    year: int


UserId = NewType("UserId", int)


class Plain:
    def __init__(self) -> None:
        self.x = 1

    def method(self) -> None:
        """To be bound."""


class SlottedPlain:
    __slots__ = ("x",)


class OwnStr(str):
    pass


class OwnInt(int):
    pass


class OwnFloat(float):
    pass


class OwnDict(dict):  # type: ignore[type-arg]
    pass


class OwnList(list):  # type: ignore[type-arg]
    pass


@dataclasses.dataclass
class ListWithFields(list):  # type: ignore[type-arg]
    x: int = 0


def opened() -> OpenModel:
    model = OpenModel.model_validate({"b": 2})
    model._hidden = 5
    return model


def carrying() -> Line:
    line = Line("tea", Decimal(3))
    line.secret = 1  # type: ignore[attr-defined]
    return line


def local() -> Any:
    @dataclasses.dataclass
    class Local:
        x: int = 1

    return Local()


def cyclic() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def nested(depth: int) -> Any:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


async def coroutine() -> None:
    """Never awaited."""


def loopless_future() -> Any:
    loop = asyncio.new_event_loop()
    loop.close()
    return loop.create_future()


@dataclasses.dataclass
class Kind:
    """A row: what it is called, how one is made, and the type that msgspec and pydantic are told."""

    name: str
    make: Callable[[], Any]
    type: Any = None

    def typed(self, value: Any) -> Any:
        return type(value) if self.type is None else self.type


def of(name: str, value: Any, type_: Any = None) -> Kind:
    return Kind(name, lambda: value, type_)


RECEIPT = Receipt(7, dt.datetime(2031, 5, 1, 12, tzinfo=BERLIN), [Line("tea", Decimal("3.50"))], Colour.GREEN)

PLAIN = [
    of("`None`", None),
    of("`bool`", True),
    of("`int`", 7),
    of("`int` of 70 bits", 2**70),
    of("`int` of 10,000 bits", 2**10_000),
    of("`int` of 20,000 bits", 2**20_000),
    of("`float`", 1.5),
    of("`float` without a fraction", 1.0),
    of("`-0.0`", -0.0),
    of("`float` of 1e300", 1e300),
    of("`float` of 5e-324", 5e-324),
    of("NaN", math.nan),
    of("infinity", math.inf),
    of("`complex`", 1 + 2j),
    of("`str`", "text"),
    of("`str` beyond the BMP", "🦉 é \u2028"),
    of("`str` with NUL", "a\0b"),
    of("`str` with a lone surrogate", "a\ud800"),
    of("`str` with the text `\\u0000`", "\\u0000"),
    of("`bytes`", b"\x00\xff"),
    of("`bytearray`", bytearray(b"ab")),
    of("`memoryview`", memoryview(b"ab")),
    of("`array.array`", array.array("i", [1, 2])),
    of("`Ellipsis`", ...),
]
CONTAINERS = [
    of("`list`", [1, "a", None]),
    of("`dict` in its order", {"b": 1, "a": 2}),
    of("`dict` with `int` keys", {1: "a", 2: "b"}, dict[int, str]),
    of('`dict` with `1` and `"1"`', {1: "a", "1": "b"}),
    of("`dict` with `bool` and `None` keys", {True: 1, None: 2}),
    of("`dict` with `float` keys", {1.0: 1, 2.5: 2}, dict[float, int]),
    of("`dict` with `tuple` keys", {(1, "a"): 2}),
    of("`dict` with date keys", {dt.date(2031, 5, 1): 2}, dict[dt.date, int]),
    of("`dict` with a key `$type`", {"$type": "date", "value": "2031-05-01"}),
    of("`tuple`", (1, "a")),
    of("`tuple[int, str]`", (1, "a"), tuple[int, str]),
    of("empty `tuple`", ()),
    of("`set`", {1, 2}),
    of("`set` of tuples", {(1, 2), (3, 4)}, set[tuple[int, int]]),
    of("`frozenset`", frozenset({"a", "b"})),
    of("`TypedDict`", Movie(title="Momo", year=1986), Movie),
    of("`OrderedDict`", collections.OrderedDict(b=1, a=2)),
    of("`defaultdict`", collections.defaultdict(list, a=[1])),
    of("`Counter`", collections.Counter("aab")),
    of("`deque`", collections.deque([1, 2])),
    of("`ChainMap`", collections.ChainMap({"a": 1})),
    of("`MappingProxyType`", types.MappingProxyType({"a": 1})),
    of("`SimpleNamespace`", types.SimpleNamespace(a=1)),
    of("`range`", range(3)),
    of("a list that contains itself", cyclic()),
    of("199 levels of lists", nested(199)),
    of("300 levels of lists", nested(300)),
]
STANDARD = [
    of("naive `datetime`", dt.datetime(2031, 5, 1, 12, 0, 0, 1)),
    of("`datetime` in UTC", dt.datetime(2031, 5, 1, 12, tzinfo=dt.UTC)),
    of("`datetime` at +05:30", dt.datetime(2031, 5, 1, 12, tzinfo=dt.timezone(dt.timedelta(hours=5.5)))),
    of("`datetime` at a named offset", dt.datetime(2031, 5, 1, tzinfo=dt.timezone(dt.timedelta(hours=2), "CEST"))),
    of("`datetime` in a `ZoneInfo`", dt.datetime(2031, 5, 1, 12, tzinfo=BERLIN)),
    of("`datetime` in the hour that comes twice", dt.datetime(2031, 10, 26, 2, 30, tzinfo=BERLIN, fold=1)),
    of("`datetime.min`", dt.datetime.min),
    of("`date`", dt.date(2031, 5, 1)),
    of("`time`", dt.time(12, 30, 0, 5)),
    of("`time` in a `ZoneInfo`", dt.time(12, 30, tzinfo=BERLIN)),
    of("`timedelta`", dt.timedelta(days=1, microseconds=1)),
    of("negative `timedelta`", -dt.timedelta(microseconds=1)),
    of("`Decimal`", Decimal("12.50")),
    of("`Decimal` of 40 digits", Decimal("1." + "1" * 39)),
    of("`Decimal` of -0E+3", Decimal("-0E+3")),
    of("`UUID`", uuid.UUID(int=7)),
    of("`Fraction`", fractions.Fraction(1, 3)),
    of("`Path`", pathlib.PurePosixPath("/tmp/x")),
    of("`IPv4Address`", ipaddress.IPv4Address("10.0.0.1")),
    of("`IPv6Network`", ipaddress.IPv6Network("fe80::/64")),
    of("`re.Pattern`", re.compile("a+")),
    of("`ZoneInfo`", BERLIN),
]
CLASSES = [
    of("`Enum`", Colour.RED),
    of("`Enum` of an `int`", Colour.GREEN),
    of("`StrEnum`", Word.YES),
    of("`IntEnum`", Level.LOW),
    of("`Flag`", Right.READ),
    of("`Flag`, combined", Right.READ | Right.WRITE),
    of("`IntFlag` with an unknown bit", Mode.A | Mode(8)),
    of("`dict` with `Enum` keys", {Colour.RED: 1}, dict[Colour, int]),
    of("data class", Line("tea", Decimal("3.50"))),
    of("data classes, nested, with everything", RECEIPT),
    of("frozen data class", Frozen(1, (2, 3))),
    of("data class with slots and `kw_only`", Slotted(a=1)),
    of("data class with `init=False` and `InitVar`", Derived(3)),
    of("data class whose `__post_init__` converts", Converting("a")),
    Kind("data class with a `cached_property`", lambda: (one := Cached(2), one.double)[0]),
    of("generic data class", Box([1]), Box[list[int]]),
    of("data class that holds itself in lists", Node(1, [Node(2)])),
    of("data class as a `dict`'s key", {Frozen(1): "a"}),
    Kind("data class with an undeclared attribute", carrying),
    Kind("data class defined in a function", local),
    of("data class that is a `list`", ListWithFields(1)),
    of("attrs class", Attrs(1, ("a",))),
    of("frozen attrs class with a converter", FrozenAttrs("3")),
    of("`NamedTuple`", Point(1)),
    of("`namedtuple`", Pair(1, "a")),
    of("`msgspec.Struct`", Struct(1, dt.date(2031, 5, 1))),
    of("`msgspec.Struct`, tagged and renamed", FrozenStruct(long_name=3)),
    of("pydantic model", Model(a=1, at=dt.datetime(2031, 5, 1, tzinfo=dt.UTC), tags={"x"})),
    Kind("pydantic model with extra and private fields", opened),
    of("pydantic `RootModel`", Root([1])),
    of("generic pydantic model", IntPage(items=[1])),
    of("`NewType`", UserId(3)),
    of("class of your own", Plain()),
    of("class of your own with slots", SlottedPlain()),
    of("`str` subclass", OwnStr("a")),
    of("`int` subclass", OwnInt(1)),
    of("`float` subclass", OwnFloat(1.5)),
    of("`dict` subclass", OwnDict(a=1)),
    of("`list` subclass", OwnList([1])),
]
HANDLES = [
    Kind("generator", lambda: (n for n in [1])),
    Kind("iterator", lambda: iter([1])),
    Kind("coroutine", coroutine),
    Kind("future", loopless_future),
    Kind("lock", threading.Lock),
    Kind("thread", threading.Thread),
    Kind("queue", queue.Queue),
    Kind("open file", lambda: pathlib.Path(__file__).open()),
    Kind("`io.BytesIO`", io.BytesIO),
    Kind("socket", socket.socket),
    Kind("database connection", lambda: sqlite3.connect(":memory:")),
    Kind("function", lambda: nested),
    Kind("lambda", lambda: lambda: 1),
    Kind("`functools.partial`", lambda: functools.partial(nested, 1)),
    Kind("bound method", lambda: Plain().method),
    Kind("class", lambda: Plain),
    Kind("module", lambda: math),
    Kind("exception", lambda: ValueError("x")),
    Kind("`random.Random`", random.Random),
    Kind("`object()`", object),
]
GROUPS = {
    "Plain": PLAIN,
    "Containers": CONTAINERS,
    "The standard library": STANDARD,
    "Classes": CLASSES,
    "What is no data": HANDLES,
}


@contextlib.contextmanager
def made(kind: Kind) -> Any:
    """One of the kind, closed afterwards if it can be."""
    value = kind.make()
    try:
        yield value
    finally:
        close = getattr(value, "close", None)
        if callable(close) and not isinstance(value, type):
            close()


VALUES_OF: dict[type, Callable[[Any], Any]] = {  # of those that are equal only to themselves, or keep more than that
    BaseException: lambda it: it.args,
    io.BytesIO: lambda it: it.getvalue(),
    random.Random: lambda it: it.getstate(),
    functools.partial: lambda it: (it.func, it.args, it.keywords),
    types.MethodType: lambda it: (it.__func__, it.__self__),
    type(iter([])): list,
    pathlib.PurePath: str,
}


def alike(a: Any, b: Any, depth: int = 0) -> bool:
    """Whether two values are equal, and of equal types, all the way down. Knows nothing of how they were made."""
    if type(a) is not type(b):
        return False
    if depth > 210:  # a value that contains itself has been alike for long enough
        return True
    if isinstance(a, dict):
        if isinstance(a, collections.defaultdict) and a.default_factory is not b.default_factory:
            return False
        pairs = zip(a.items(), b.items(), strict=False)
        return len(a) == len(b) and all(alike(x, y, depth + 1) for x, y in pairs) and rest_alike(a, b, depth)
    if isinstance(a, list | tuple | collections.deque):
        inside = zip(a, b, strict=False)
        return len(a) == len(b) and all(alike(x, y, depth + 1) for x, y in inside) and rest_alike(a, b, depth)
    if isinstance(a, set | frozenset):
        return len(a) == len(b) and all(any(alike(x, y, depth + 1) for y in b) for x in a)
    if isinstance(a, float | complex | Decimal):
        return repr(a) == repr(b) and rest_alike(a, b, depth)
    if isinstance(a, dt.datetime | dt.time):
        return (a, a.fold, repr(a.tzinfo), a.tzname()) == (b, b.fold, repr(b.tzinfo), b.tzname())
    if isinstance(a, enum.Enum):
        return a is b
    if isinstance(a, msgspec.Struct):
        return all(alike(getattr(a, name), getattr(b, name), depth + 1) for name in a.__struct_fields__)
    if isinstance(a, pydantic.BaseModel):
        one, two = ((m.model_fields_set, m.model_extra, m.__pydantic_private__) for m in (a, b))
        return alike(one, two, depth + 1) and rest_alike(a, b, depth)
    if dataclasses.is_dataclass(a) or attrs.has(type(a)):  # part by part: a NaN in one is not equal to itself
        return rest_alike(a, b, depth)
    for class_, value in VALUES_OF.items():
        if isinstance(a, class_):
            return alike(value(a), value(b), depth + 1)
    if getattr(type(a), "__eq__", None) is object.__eq__:
        return a is b or (type(a) in (Plain, SlottedPlain, object) and rest_alike(a, b, depth))
    return bool(a == b) and rest_alike(a, b, depth)


def rest_alike(a: Any, b: Any, depth: int) -> bool:
    """The same of their attributes; what is only computed from others may be missing."""

    def attributes(value: Any) -> dict[str, Any]:
        names = [slot for base in type(value).__mro__ for slot in vars(base).get("__slots__", ())]
        state = {name: getattr(value, name, None) for name in names if not name.startswith("__")}
        state |= getattr(value, "__dict__", {})
        return {
            name: item
            for name, item in state.items()
            if not isinstance(vars(type(value)).get(name), functools.cached_property) and "cached_hash" not in name
        }

    mine, yours = attributes(a), attributes(b)
    return mine.keys() == yours.keys() and all(alike(mine[name], yours[name], depth + 1) for name in mine)
