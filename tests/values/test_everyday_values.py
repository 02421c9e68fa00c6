"""What everyday libraries make of a value comes back as it was: zones, attributes beside the fields, paths, ranges, scalars."""

from __future__ import annotations

import abc
import collections
import dataclasses
import datetime as dt
import enum
import fractions
import ipaddress
import pathlib
import typing
from functools import cached_property
from typing import Any, NamedTuple

import attrs
import dateutil.tz
import freezegun
import msgspec
import numpy as np
import pydantic
import pytest
import pytz
from psycopg.types.multirange import Int4Multirange, Multirange
from psycopg.types.range import DateRange, Range

import durable
from durable.codecs import JsonCodec
from durable.stores import memory
from harness.support import Database

CODEC = JsonCodec()
NOON = dt.datetime(2031, 5, 1, 12)


def through(value: Any) -> Any:
    """As a replay hands it out."""
    return CODEC.decode(CODEC.encode(value, what="it"), run_id="r", where="here")


class Parsed(pydantic.BaseModel):
    at: dt.datetime | dt.time


class Half(dt.tzinfo):
    """A fixed offset that names itself, and answers for any moment."""

    def utcoffset(self, _: dt.datetime | None) -> dt.timedelta:
        return dt.timedelta(hours=5, minutes=30)

    def dst(self, _: dt.datetime | None) -> None:
        return None

    def tzname(self, _: dt.datetime | None) -> str:
        return "IST"


class Summer(Half):
    """As the documentation of datetime makes one: without a moment it tells the winter's offset."""

    def utcoffset(self, moment: dt.datetime | None) -> dt.timedelta:
        return dt.timedelta(hours=1) + self.dst(moment)

    def dst(self, moment: dt.datetime | None) -> dt.timedelta:  # type: ignore[override]
        return dt.timedelta(hours=1 if moment is not None and 4 <= moment.month <= 9 else 0)


def parsed(text: str) -> Any:
    return Parsed.model_validate_json(f'{{"at": "{text}"}}').at


FIXED = {
    "pydantic, UTC": parsed("2031-05-01T12:00:00Z"),
    "pydantic, an offset": parsed("2031-05-01T12:00:00+05:30"),
    "pydantic, a time": parsed("12:00:00-03:00"),
    "dateutil, UTC": NOON.replace(tzinfo=dateutil.tz.tzutc()),
    "dateutil, an offset with a name": NOON.replace(tzinfo=dateutil.tz.tzoffset("BRST", -7200)),
    "dateutil, an offset": NOON.replace(tzinfo=dateutil.tz.tzoffset(None, 3600)),
    "pytz, UTC": pytz.utc.localize(NOON),
    "pytz, an offset": NOON.replace(tzinfo=pytz.FixedOffset(-90)),
    "one's own": NOON.replace(tzinfo=Half()),
    "the first year": dt.datetime(1, 1, 1, tzinfo=dateutil.tz.tzoffset(None, 3600)),
    "the last moment": dt.datetime.max.replace(tzinfo=pytz.FixedOffset(-90)),
}


@pytest.mark.parametrize("name", FIXED)
def test_a_fixed_offset_of_any_make_comes_back_as_that_offset(name: str) -> None:
    """Equal, with the same offset, and the same name where it has one."""
    value = FIXED[name]
    back = through(value)
    assert (type(back), back) == (type(value), value)
    assert back.isoformat() == value.isoformat()
    assert value.tzname() in (None, back.tzname())
    assert type(back.tzinfo) is dt.timezone
    assert CODEC.fingerprint([back], what="it") == CODEC.fingerprint([value], what="it")


@pytest.mark.parametrize(
    "zone",
    [Summer(), dateutil.tz.gettz("Europe/Berlin"), pytz.timezone("Europe/Berlin")],
    ids=["one's own", "dateutil", "pytz"],
)
def test_a_zone_with_summer_time_is_refused_by_name(zone: dt.tzinfo) -> None:
    """It is no offset, also in winter, and its rules are in no record."""
    for month in (1, 7):
        with pytest.raises(durable.UnstorableValue, match=r"cannot be named.*ZoneInfo"):
            CODEC.encode(dt.datetime(2031, month, 1, tzinfo=zone), what="it")


@dataclasses.dataclass
class Data:
    x: int

    @cached_property
    def double(self) -> int:
        return 2 * self.x


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: int


@attrs.define(slots=False)
class Attrs:
    x: int


class Struct(msgspec.Struct, dict=True):
    x: int


class Pair(NamedTuple):
    x: int


class Named(Pair):
    """With room for more."""


class Model(pydantic.BaseModel):
    x: int


class Open(pydantic.BaseModel, extra="allow"):
    x: int
    _seen: int = pydantic.PrivateAttr(default=0)


@pytest.mark.parametrize("class_", [Data, Frozen, Attrs, Struct, Named, Model, Open])
def test_attributes_beside_the_fields_are_kept(class_: Any, database: Database) -> None:
    """As SDKs set them on their models (`_request_id`): live, replayed, and in an argument's fingerprint."""
    value = class_(x=1)
    vars(value)["_request_id"] = ("req", 1)

    class Stop(BaseException):
        pass

    seen: list[Any] = []

    def workflow(step: durable.Step, _: None) -> None:
        reply = step("ask", lambda: value)
        step("log", str, reply)
        seen.append((reply, reply._request_id, type(reply)))
        raise Stop

    for _ in range(2):
        with pytest.raises(Stop):
            durable.run(None, workflow, id="r", store=database.store())
    assert seen == [(value, ("req", 1), class_)] * 2
    assert CODEC.fingerprint([value], what="it") != CODEC.fingerprint([class_(x=1)], what="it")


def test_what_is_computed_is_not_stored_and_what_cannot_be_is_named() -> None:
    """A `cached_property` is made anew; an attribute that cannot come back is refused with its path."""
    value = Data(1)
    assert value.double == 2
    assert vars(through(value)) == {"x": 1}
    value._client = object()  # type: ignore[attr-defined]
    with pytest.raises(durable.UnstorableValue) as told:
        CODEC.encode([value], what="it")
    assert told.value.path == "$[0]._client"


def test_an_attribute_of_a_row_starts_no_setter() -> None:
    """FAULTS 178: what stands beside the fields goes into the instance's dict, whatever its name."""
    text = CODEC.encode(Guarded(1), what="it").replace(b"}", b', "$attributes": {"loud": 1}}')
    assert CODEC.decode(text, run_id="r", where="here").x == 1


@dataclasses.dataclass
class Guarded:
    x: int

    @property
    def loud(self) -> int:
        return 0

    @loud.setter
    def loud(self, _: int) -> None:
        raise AssertionError


STORED = {
    "a path": pathlib.Path("/a/ü"),
    "a pure path": pathlib.PurePosixPath("a/../b"),
    "a path of Windows": pathlib.PureWindowsPath(r"c:\a"),
    "addresses": [ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("fe80::1%eth0")],
    "networks": [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fe80::/64")],
    "interfaces": [ipaddress.ip_interface("10.0.0.1/8"), ipaddress.ip_interface("fe80::1/64")],
    "a fraction": fractions.Fraction(-1, 3),
    "a deque": collections.deque([1, (2, 3), pathlib.Path("a")]),
    "a deque of bounded length": collections.deque([1], maxlen=3),
    "a range": Range(dt.date(2031, 5, 1), dt.date(2031, 6, 1), "[)"),
    "a range without an end": Range(3, None, "(]"),
    "an empty range": Range[int](empty=True),
    "a range of dates": DateRange(dt.date(2031, 5, 1), None),
    "several ranges": Multirange([Range(1, 2), Range(5, 6)]),
    "several ranges of integers": Int4Multirange([Range(1, 2)]),
    "a float of numpy": np.float64(0.1),
    "a small float of numpy": np.float32(0.1),
    "an integer of numpy": np.int64(-(2**63)),
    "an unsigned one": np.uint64(2**64 - 1),
    "a truth of numpy": np.bool_(True),
    "a text of numpy": np.str_("ü"),
    "as keys and items": {pathlib.Path("a"): {ipaddress.ip_address("::1"), fractions.Fraction(1, 2)}},
}


@pytest.mark.parametrize("name", STORED)
def test_it_is_stored_as_something_plainer(name: str) -> None:
    """Equal and of the same type, wherever it stands."""
    value = STORED[name]
    for given in (value, [value], {"x": (value,)}):
        back = through(given)
        assert back == given
        assert repr(back) == repr(given) or isinstance(value, dict)
    assert CODEC.fingerprint([through(value)], what="it") == CODEC.fingerprint([value], what="it")


@pytest.mark.parametrize("value", [np.array([1]), np.longdouble(1), np.float64("nan"), np.complex128(1), np.void(b"x")])
def test_what_numpy_has_besides_is_refused(value: Any) -> None:
    """Rather than changed."""
    with pytest.raises(durable.UnstorableValue):
        CODEC.encode(value, what="it")


class Money:
    """A user's own, of no make that is known."""

    def __init__(self, amount: fractions.Fraction, currency: str) -> None:
        self.amount, self.currency = amount, currency

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(self.currency)


class Fee(Money):
    """A subclass is not meant."""


@pytest.fixture
def taught() -> None:
    durable.stored_as(Money, lambda money: [money.amount, money.currency], lambda plain: Money(*plain))


@pytest.mark.usefixtures("taught")
def test_a_type_can_be_taught(database: Database) -> None:
    """As result, argument and input, in the annotation, live and replayed; what it is made of may be taught too."""
    price = Money(fractions.Fraction(1, 3), "EUR")

    def pay() -> Money:
        return price

    def workflow(step: durable.Step, _: None, input: Money) -> list[Money]:
        return [input, step("pay", pay), step("same", lambda money: money, input)]

    first = durable.run(None, workflow, id="r", store=database.store(), input=price)
    assert first == [price] * 3
    assert durable.result(database.store(), "r") == first
    (text,) = database.execute("SELECT record->'value'->>'$type' FROM durable_steps WHERE key = 'pay'")
    assert text == (f"{__name__}:Money",)
    with pytest.raises(durable.UnstorableValue, match="Fee"):
        CODEC.encode(Fee(fractions.Fraction(1), "EUR"), what="it")


def test_a_process_that_was_not_taught_refuses_the_record_by_name() -> None:
    """And says what to call."""

    with pytest.raises(durable.errors.UnreadableRecord, match="stored_as was not called"):
        CODEC.decode(f'{{"$type": "{__name__}:Untaught", "value": 1}}'.encode(), run_id="r", where="here")


class Untaught: ...


class Fields(typing.TypedDict):
    x: int


class Priced(abc.ABC):
    @abc.abstractmethod
    def price(self) -> int: ...


class Structural(typing.Protocol):
    x: int


class Declined(Exception): ...


class Faulty:
    """Its functions raise, or make something else."""


@pytest.mark.parametrize(
    ("to_plain", "from_plain", "told"),
    [
        (lambda _: 1 / 0, lambda _: Faulty(), "to_plain raised ZeroDivisionError"),
        (lambda _: object(), lambda _: Faulty(), "object would not come back"),
        (lambda it: it, lambda _: Faulty(), "nested"),
        (lambda _: "pl4nted", lambda _: 1 / 0, "would not come back as it is"),
        (lambda _: "pl4nted", lambda _: 7, "would not come back as it is"),
    ],
)
def test_functions_that_do_not_do_are_found_out_when_the_value_is_written(
    to_plain: Any, from_plain: Any, told: str
) -> None:
    """Never at the first resume; without a value in the message."""
    durable.stored_as(Faulty, to_plain, from_plain)
    with pytest.raises(durable.UnstorableValue, match=told) as refused:
        CODEC.encode({"a": Faulty()}, what="it")
    assert "pl4nted" not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("yarl:URL", str, str), "takes a class first, not str"),
        ((list[int], str, str), "takes a class first"),
        ((Money, None, str), "to_plain must be a function"),
        ((Money, str, "x"), "from_plain must be a function"),
        ((dt.datetime, str, str), "datetime comes back as it is already"),
        ((str, str, str), "str comes back as it is already"),
        ((dict, str, str), "dict comes back as it is already"),
        ((Fields, str, str), "Fields comes back as it is already"),
        ((object, str, str), "object is not the type of any value itself"),
        ((collections.abc.Mapping, str, str), "Mapping is not the type of any value itself"),
        ((Priced, str, str), "Priced is not the type of any value itself"),
        ((Structural, str, str), "Structural is not the type of any value itself"),
        ((pydantic.AwareDatetime, str, str), "AwareDatetime is not the type of any value itself"),
        ((type, str, str), "type has classes for its instances"),
        ((abc.ABCMeta, str, str), "ABCMeta has classes for its instances"),
        ((enum.EnumType, str, str), "EnumType has classes for its instances"),
        ((Exception, str, str), "Exception is an exception.*raise it"),
        ((BaseException, str, str), "BaseException is an exception"),
        ((KeyError, str, str), "KeyError is an exception"),
        ((Declined, str, str), "Declined is an exception"),
    ],
)
def test_what_cannot_be_taught_is_refused(arguments: Any, told: str) -> None:
    """With what to do."""
    with pytest.raises(durable.InvalidArgument, match=told):
        durable.stored_as(*arguments)


def test_a_secret_is_refused_with_the_reason() -> None:
    """Wherever it stands; or stored on purpose."""
    with pytest.raises(durable.UnstorableValue, match="out of logs, and a record would show it") as told:
        CODEC.encode(Kept(pydantic.SecretStr("pl4nted")), what="it")
    assert "pl4nted" not in str(told.value)
    durable.stored_as(pydantic.SecretBytes, lambda secret: secret.get_secret_value(), pydantic.SecretBytes)
    assert through(pydantic.SecretBytes(b"x")) == pydantic.SecretBytes(b"x")


@dataclasses.dataclass
class Kept:
    secret: Any


def test_a_clock_that_stands_still_gives_datetimes() -> None:
    """freezegun's are stored as what they stand for, inside its freeze and after it."""

    class Stop(BaseException):
        pass

    seen: list[Any] = []

    def workflow(step: durable.Step, _: None) -> None:
        moment = step("now", lambda: [dt.datetime.now(dt.UTC), dt.date.today(), dt.datetime.now()])
        step("log", str, moment)
        seen.append(moment)
        raise Stop

    with memory() as store:
        for _ in range(2):
            with freezegun.freeze_time("2031-05-01 12:00"), pytest.raises(Stop):
                durable.run(None, workflow, id="r", store=store)
        with pytest.raises(Stop):
            durable.run(None, workflow, id="r", store=store)
    assert seen == [[NOON.replace(tzinfo=dt.UTC), NOON.date(), NOON]] * 3
    assert [type(part) for part in seen[-1]] == [dt.datetime, dt.date, dt.datetime]


class Lazy:
    """What the `type` statement makes: its value is looked up when it is asked for."""

    def __init__(self, value: Any) -> None:
        self.value = value

    @property
    def __value__(self) -> Any:
        return self.value()


def tree() -> Any:
    return typing.Union[dict[str, TREE], list[TREE], str, int, None]  # noqa: UP007 -- a Lazy is no type


TREE: Any = Lazy(tree)
SELF: Any = Lazy(lambda: SELF)


@pytest.mark.parametrize(
    ("alias", "value", "kept"),
    [
        (TREE, {"a": [1, {"b": None}]}, True),
        (TREE, {"a": [1, {"b": 0.5}]}, False),
        (list[TREE], [{"a": "b"}], True),
        (list[TREE], {"a": "b"}, False),
        (SELF, 1, True),
        (typing.Optional[TREE], None, True),  # noqa: UP045 -- a Lazy is no type
    ],
)
def test_a_recursive_alias_is_looked_into_as_deep_as_the_value(alias: Any, value: Any, kept: bool) -> None:
    """`type Json = dict[str, Json] | …`: no deeper, and never for ever."""
    if kept:
        CODEC.encode(value, what="it", annotation=alias)
    else:
        with pytest.raises(durable.UnstorableValue, match="promised"):
            CODEC.encode(value, what="it", annotation=alias)
