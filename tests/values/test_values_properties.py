"""What holds of every value and of every text: generated, not thought out."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import hashlib
import itertools
import json
import os
import sys
import uuid
import zoneinfo
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import durable
from durable.codecs import CodecSet, JsonCodec
from durable.codecs._failures import from_record, to_record
from durable.records import ErrorRecord
from durable.stores import memory
from harness.value_kinds import (
    Attrs,
    Colour,
    Frozen,
    FrozenStruct,
    Level,
    Line,
    Mode,
    Model,
    Node,
    Plain,
    Right,
    Struct,
    Word,
    alike,
)

CODEC = JsonCodec()
EXAMPLES = int(os.environ.get("DURABLE_EXAMPLES", "50"))  # of each kind; `make nightly` tries 3,000
MANY = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
FEWER = settings(MANY, max_examples=EXAMPLES // 3)

# -- values ---------------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    left: Any
    right: Any = None


@dataclasses.dataclass
class Bag:
    first: Any
    second: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    of: Any


@attrs.define
class Many:
    of: Any
    more: tuple[Any, ...] = ()


class Packed(msgspec.Struct):
    of: Any


class Page(pydantic.BaseModel, extra="allow"):
    of: Any = None


keys = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3)
zones = st.sampled_from(
    [
        None,
        dt.UTC,
        dt.timezone(dt.timedelta(hours=-3.5)),
        dt.timezone(dt.timedelta(hours=2), "CEST"),
        dt.timezone(dt.timedelta(seconds=1, microseconds=1)),
        ZoneInfo("Europe/Berlin"),
        ZoneInfo("America/St_Johns"),
        ZoneInfo("UTC"),
    ]
)
plain_leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(2**400), max_value=2**400)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
    | st.sampled_from(["$type", '"$type"', "\\u0000", "\\", "name", "value", "items"])
)
tagged_leaves = (
    st.datetimes(timezones=zones)
    | st.builds(lambda at, fold: at.replace(fold=fold), st.datetimes(timezones=zones), st.sampled_from([0, 1]))
    | st.dates()
    | st.times(timezones=zones)
    | st.timedeltas()
    | st.decimals()
    | st.uuids()
    | st.binary()
    | st.sampled_from([Colour.RED, Word.YES, Level.LOW, Right.READ | Right.WRITE, Right(0), Mode.A | Mode(8)])
    | st.sampled_from([Line("tea", Decimal(3)), Frozen(1), Node(1, [Node(2)]), Attrs(1), Struct(1), Model(a=1)])
    | st.just(FrozenStruct(long_name=1))
)
unstorable_leaves = st.sampled_from(
    [float("nan"), float("inf"), "a\0b", "\ud800", 2**14_000, Plain(), object(), 1j, bytearray(), iter(())]
) | st.characters(categories=["Cs"])
hashable = st.recursive(
    plain_leaves | st.dates() | st.uuids() | st.binary() | st.sampled_from([Colour.RED, Word.YES]),
    lambda inner: st.tuples(inner) | st.frozensets(inner, max_size=3) | inner.map(Key) | inner.map(Pair),
    max_leaves=3,
)


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Every type of DESIGN §6 in every other."""
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.dictionaries(keys | st.just("$type"), inner, max_size=4),
            st.dictionaries(hashable, inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.sets(hashable, max_size=3),
            st.frozensets(hashable, max_size=3),
            *(inner.map(class_) for class_ in (Pair, Bag, Many, Packed)),
            st.builds(lambda one, two: Bag(one, two), inner, inner),
            st.builds(lambda of, more: Page.model_validate({"of": of, "more": more}), inner, inner),
        ),
        max_leaves=12,
    )


def back(text: bytes) -> Any:
    return CODEC.decode(text, run_id="r", where="here")


@MANY
@given(nested(plain_leaves | tagged_leaves))
def test_what_is_made_of_storable_parts_comes_back(value: Any) -> None:
    """FAULTS 84, 120: equal, of equal types, all the way down; and its JSON is JSON that PostgreSQL takes."""
    text = CODEC.encode(value, what="it")
    assert alike(value, back(text))
    assert CODEC.encode(back(text), what="it") == text
    assert not {float("inf"), float("nan")} & set(_floats(json.loads(text)))
    assert "\0" not in str(json.loads(text))


@MANY
@given(nested(plain_leaves | tagged_leaves | unstorable_leaves))
def test_every_value_comes_back_or_is_refused(value: Any) -> None:
    """FAULTS 83, 85, 86, 87: nothing third; the refusal names a path and repeats nothing of the value."""
    try:
        text = CODEC.encode(value, what="it")
    except durable.UnstorableValue as refusal:
        assert refusal.path.startswith("$")
        assert refusal.advice
        str(refusal).encode()  # no surrogate of the value's has come into it
    else:
        assert alike(value, back(text))


def _floats(tree: Any) -> list[float]:
    if isinstance(tree, dict):
        return [n for item in tree.values() for n in _floats(item)]
    if isinstance(tree, list):
        return [n for item in tree for n in _floats(item)]
    return [tree] if isinstance(tree, float) else []


json_values = st.recursive(
    plain_leaves,
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0$")), inner)
    ),
    max_leaves=20,
)


@MANY
@given(json_values)
def test_plain_json_is_stored_as_it_is(value: Any) -> None:
    """No tag, no detour: what SQL sees is what the step returned."""
    assert CODEC.encode(value, what="it") == msgspec.json.encode(value)
    assert repr(back(CODEC.encode(value, what="it"))) == repr(value)


@MANY
@given(json_values)
def test_fingerprints_of_plain_json_are_what_they_always_were(value: Any) -> None:
    """A run that was begun by an older version is not drift."""
    expected = hashlib.blake2b(msgspec.json.encode(value, order="deterministic"), digest_size=8).hexdigest()
    assert CODEC.fingerprint(value, what="it") == expected


def shuffled(value: Any) -> Any:
    """The same with every dict in the opposite order."""
    if type(value) is dict:
        return {shuffled(key): shuffled(item) for key, item in reversed(value.items())}
    if type(value) in (list, tuple):
        return type(value)(map(shuffled, value))
    if type(value) is Bag:
        return Bag(shuffled(value.first), shuffled(value.second))
    return value


@MANY
@given(nested(plain_leaves | tagged_leaves))
def test_a_fingerprint_does_not_see_the_order_of_dicts(value: Any) -> None:
    """And sees what comes back as the same value."""
    fingerprint = CODEC.fingerprint([value], what="it")
    assert CODEC.fingerprint([shuffled(value)], what="it") == fingerprint
    assert CODEC.fingerprint([back(CODEC.encode(value, what="it"))], what="it") == fingerprint


@MANY
@given(nested(plain_leaves | tagged_leaves), nested(plain_leaves | tagged_leaves))
def test_different_values_have_different_fingerprints(a: Any, b: Any) -> None:
    """The whole value counts."""
    if CODEC.fingerprint([a], what="it") == CODEC.fingerprint([b], what="it"):
        assert repr(a) == repr(b) or a == b


def constant(value: Any) -> Callable[[], Any]:
    return lambda: value


class Stop(BaseException):
    """Leaves the run unfinished."""


@FEWER
@given(st.lists(nested(plain_leaves | tagged_leaves | unstorable_leaves), min_size=1, max_size=3))
def test_live_equals_replay(values: list[Any]) -> None:
    """FAULTS 84: what the step handed out is what a replay hands out, and neither is the very object."""
    store = memory()
    seen: list[list[Any]] = []

    def workflow(step: durable.Step, _: Any) -> None:
        seen.append([])
        for number, value in enumerate(values):
            try:
                seen[-1].append(step("make", constant(value), key=f"make-{number}"))
            except durable.UnstorableValue as refusal:
                seen[-1].append(refusal.path)
        raise Stop

    for _ in range(2):
        with pytest.raises(Stop):
            durable.run(None, workflow, id="r", store=store)
    store.close()
    live, replayed = seen
    assert alike(live, replayed)


# -- texts ----------------------------------------------------------------------------------------------------------

CALLED: list[str] = []


def planted() -> str:
    """What a record must not be able to start."""
    CALLED.append("planted")
    return "called"


@dataclasses.dataclass
class Trap:
    """A data class that tells when code of it runs."""

    x: Any = 0

    def __post_init__(self) -> None:
        CALLED.append("__post_init__")

    def __setattr__(self, name: str, value: Any) -> None:
        CALLED.append("__setattr__")

    def __setstate__(self, state: Any) -> None:
        CALLED.append("__setstate__")

    def __reduce__(self) -> Any:
        CALLED.append("__reduce__")
        return planted, ()

    def __getattr__(self, name: str) -> Any:
        CALLED.append("__getattr__")
        raise AttributeError


class NoData:
    """A class that is imported, and no data class."""

    def __init__(self) -> None:
        CALLED.append("__init__")


class ModelTrap(pydantic.BaseModel):
    """The same in pydantic."""

    x: Any = 0

    def model_post_init(self, context: Any, /) -> None:
        CALLED.append("model_post_init")

    @pydantic.field_validator("x", mode="before")
    @classmethod
    def looked_at(cls, x: Any) -> Any:
        CALLED.append("validator")
        return x


HERE = Trap.__module__
TAGS = [
    *[
        "datetime",
        "date",
        "time",
        "timedelta",
        "decimal",
        "uuid",
        "bytes",
        "tuple",
        "set",
        "frozenset",
        "dict",
        "codec",
    ],
    *["", ":", "a:b", "os:system", "builtins:eval", "builtins:object", "subprocess:Popen", "antigravity:x", "this:s"],
    *[
        f"{HERE}:{name}"
        for name in ("planted", "Trap", "NoData", "ModelTrap", "Bag", "Pair", "Packed", "Many", "Page", "Key", "CALLED")
    ],
    *["value_kinds:Colour", "value_kinds:Mode", "value_kinds:Receipt", "value_kinds:Frozen", "decimal:Decimal"],
    *["posixpath:join", "pathlib:Path", "logging:Logger", "durable.stores:PostgresStore", "enum:Enum"],
]
words = st.text(max_size=8) | st.sampled_from(
    [
        "2031-05-01",
        "2031-05-01T12:00:00+02:00",
        "12:30:00",
        "P1DT2.000000S",
        "1.5",
        "NaN",
        "aGk=",
        "Europe/Berlin",
        "RED",
        "../../etc/passwd",
        "/etc/passwd",
        "tzdata.zones",
        "a/b",
        "__init__",
        "nowhere",
        str(uuid.UUID(int=1)),
    ]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words
fields = st.sampled_from(
    ["value", "items", "zone", "zoneName", "fold", "name", "x", "of", "left", "$set", "$extra", "$private"]
)


def mangled(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    tagged = st.builds(
        lambda tag, rest: {"$type": tag, **rest},
        st.sampled_from(TAGS) | inner,
        st.dictionaries(fields, inner, max_size=4),
    )
    return st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | fields, inner, max_size=3) | tagged


WATCHED = {
    "import",
    "exec",
    "compile",
    "os.system",
    "subprocess.Popen",
    "socket.connect",
    "pickle.find_class",
    "ctypes.dlopen",
}
heard: list[str] = []
listening = [False]


@pytest.fixture(scope="module")
def watch() -> Callable[[], None]:
    """An audit hook can not be taken away again; it is deaf but here."""

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if listening[0] and event in WATCHED and not (event == "import" and str(arguments[0]).startswith("tzdata")):
            heard.append(f"{event} {arguments[0]}")

    # A zone that the system does not know is looked for in a package, which is compiled where nothing compiled may be kept.
    with contextlib.suppress(zoneinfo.ZoneInfoNotFoundError):
        zoneinfo.ZoneInfo("NaN")
    sys.addaudithook(hear)
    return lambda: None


@pytest.mark.long(4)
@settings(MANY, max_examples=5 * EXAMPLES)
@given(st.recursive(scalars, mangled, max_leaves=8))
@example({"$type": "os:system", "value": "true"})
@example({"$type": "antigravity:geohash"})
@example({"$type": "datetime", "value": "2031-05-01T12:00:00", "zone": "../../../etc/passwd"})
@example({"$type": "codec", "name": "x", "value": 1})
@example({"$type": f"{HERE}:Trap", "x": 1, "y": 2})
@example({"$type": f"{HERE}:ModelTrap", "$set": [[1]], "$private": 3})
@example({"$type": f"{HERE}:NoData"})
@example({"py/reduce": [{"py/function": "os.system"}, ["true"]]})
@example("cos\nsystem\n(S'true'\ntR.")
def test_only_our_own_errors_come_from_any_json_and_nothing_runs(watch: Any, tree: Any) -> None:
    """FAULTS 104: inert data; no import, no call."""
    text = json.dumps(tree).encode()
    CALLED.clear()
    heard.clear()
    listening[0] = True
    try:
        for codec in (CODEC, CodecSet([CODEC])):
            codec.decode(text, run_id="r", where="here")
    except durable.errors.UnreadableRecord as problem:
        assert problem.__suppress_context__ or problem.__context__ is None
    finally:
        listening[0] = False
    assert CALLED == []
    assert heard == []


@MANY
@given(
    st.binary()
    | st.text().map(str.encode)
    | st.builds(lambda a, b: a + b, st.just(b'{"$type":"datetime","value":'), st.binary())
)
def test_only_our_own_errors_come_from_any_bytes(text: bytes) -> None:
    """FAULTS 97: a text that was cut off or changed is never half a value."""
    try:
        back(text)
    except durable.errors.UnreadableRecord:
        return
    json.loads(text)


@FEWER
@given(
    st.sampled_from(
        ["builtins:ValueError", "builtins:KeyError", "builtins:OSError", "builtins:UnicodeDecodeError", "os:system"]
    )
    | st.sampled_from(
        [f"{HERE}:planted", f"{HERE}:Trap", "builtins:eval", "builtins:ExceptionGroup", "builtins:SystemExit"]
    )
    | st.text(),
    st.text(),
    st.recursive(scalars, mangled, max_leaves=6),
)
def test_every_record_of_an_exception_is_some_exception(type_: str, message: str, arguments: Any) -> None:
    """FAULTS 104: an `Exception` that is imported already, else `StepFailed`; nothing else is called."""
    CALLED.clear()
    record = ErrorRecord(type=type_, message=message, args=msgspec.Raw(json.dumps(arguments).encode()))
    exception = from_record(record, CODEC, run_id="r", where="here")
    assert isinstance(exception, Exception)
    assert CALLED == []


@FEWER
@given(st.lists(nested(plain_leaves | tagged_leaves | unstorable_leaves), max_size=3), st.text(), st.booleans())
def test_any_exception_is_the_same_live_and_replayed(arguments: list[Any], note: str, grouped: bool) -> None:
    """FAULTS 81: the record is made of anything, and what is rebuilt from it does not change when it is recorded again."""
    exception: Exception = ValueError(*arguments)
    exception.add_note(note)
    exception.__cause__ = KeyError(note)
    if grouped:
        exception = ExceptionGroup(note, [exception])
    record = to_record(exception, CODEC)
    once = from_record(record, CODEC, run_id="r", where="here")
    twice = from_record(record, CODEC, run_id="r", where="here")
    assert type(once) is type(twice)
    assert str(once) == str(twice)
    for a, b in itertools.pairwise((once, twice)):
        assert getattr(a, "__notes__", None) == getattr(b, "__notes__", None)
    if all(_comes_back(argument) for argument in arguments):
        assert type(once) is type(exception)


def _comes_back(value: Any) -> bool:
    try:
        same_text = repr(back(CODEC.encode(value, what="it"))) == repr(value)  # a set may come back in another order
        repr(value).encode()
    except (durable.UnstorableValue, UnicodeError):
        return False
    return same_text
