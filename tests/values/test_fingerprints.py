"""Fingerprints of arguments and inputs: what may change in a class while runs are under way, and what must be seen."""

from __future__ import annotations

import json
import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import durable
from durable.codecs import JsonCodec
from durable.stores import memory
from harness.value_kinds import alike

CODEC = JsonCodec()
NAME = "fingerprints_shop"

# How each library says: a class Order of these fields; a field with a default, with a factory, and left out of `==`.
LIBRARIES: dict[str, tuple[str, str]] = {
    "dataclass": ("import dataclasses as dc\nfactory = lambda f: dc.field(default_factory=f)\n", "@dc.dataclass\nclass {}:"),
    "frozen": (
        "import dataclasses as dc\nfactory = lambda f: dc.field(default_factory=f)\n",
        "@dc.dataclass(frozen=True, slots=True)\nclass {}:",
    ),
    "attrs": ("import attrs\nfactory = lambda f: attrs.field(factory=f)\n", "@attrs.define\nclass {}:"),
    "attrs in a dict": ("import attrs\nfactory = lambda f: attrs.field(factory=f)\n", "@attrs.frozen(slots=False)\nclass {}:"),
    "struct": ("import msgspec\nfactory = lambda f: msgspec.field(default_factory=f)\n", "class {}(msgspec.Struct, kw_only=True):"),
    "pydantic": ("import pydantic\nfactory = lambda f: pydantic.Field(default_factory=f)\n", "class {}(pydantic.BaseModel):"),
    "namedtuple": ("from typing import NamedTuple\n", "class {}(NamedTuple):"),
}  # fmt: skip
COMMON = "from typing import Any\nfrom decimal import Decimal\nimport uuid\n"


@pytest.fixture(autouse=True)
def module() -> Iterator[None]:
    """The module is forgotten after each test."""
    yield
    sys.modules.pop(NAME, None)


def deployed(library: str, *fields: str, name: str = "Order", more: str = "") -> Any:
    """The module of this text, imported in the place of the one before."""
    imports, head = LIBRARIES[library]
    made = sys.modules[NAME] = types.ModuleType(NAME)
    exec(COMMON + imports + more + head.format(name) + "".join(f"\n    {field}" for field in fields), made.__dict__)
    return made


def fingerprint(value: Any) -> str:
    return CODEC.fingerprint([value], what="it")


def of_factories(library: str, *fields: str) -> tuple[str, ...]:
    return () if library == "namedtuple" else fields


BEFORE = ("n: int", "currency: str = 'EUR'")
ADDED: dict[str, tuple[str, ...]] = {
    "one": ("note: str | None = None",),
    "several": ("note: str | None = None", "rate: float = -0.0", "count: int = 0", "price: Decimal = Decimal('1.0')"),
    "of a class": ("line: Any = (1, 'a')", "when: Any = frozenset({1})"),
    "made by a factory": ("tags: list = factory(list)", "more: dict = factory(lambda: {'a': [1]})"),
}
PLACES: dict[str, Callable[[Any], Any]] = {
    "alone": lambda value: value,
    "in a list": lambda value: [1, [value, value]],
    "in a dict": lambda value: {"a": {"$type": value}, "b": value},
    "in a tuple": lambda value: (value, {2: value}),
}


KINDS = [
    (library, added)
    for library in LIBRARIES
    for added in ADDED
    if (library, added) != ("namedtuple", "made by a factory")
]


@pytest.mark.parametrize(("library", "added"), KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_a_field_with_a_default_may_come_and_go(library: str, added: str, place: str) -> None:
    """A run that is under way goes on after the deploy, and after it was rolled back: argument and input alike."""
    life, ran, within = [0], list[str](), PLACES[place]

    class Left(BaseException): ...

    def mail(value: Any) -> str:
        ran.append("mail")
        return "mailed"

    def workflow(step: durable.Step, deps: Any, given: Any) -> Any:
        made = step("make", lambda: within(sys.modules[NAME].Order(n=1)))
        step("mail", mail, made)
        step("mail the input", mail, given)
        if life[0] < 4:
            raise Left
        return made

    with memory() as store:
        for fields in (BEFORE, (*BEFORE, *ADDED[added]), BEFORE, (*BEFORE, *ADDED[added])):
            shop = deployed(library, *fields)
            with pytest.raises(Left):
                durable.run({}, workflow, id="r", store=store, input=within(shop.Order(n=1)))
            life[0] += 1
        deployed(library, *ADDED[added][::-1], *BEFORE[1:], "n: int = 7") if library != "namedtuple" else None
        given = within(sys.modules[NAME].Order(n=1))
        assert alike(durable.run({}, workflow, id="r", store=store, input=given), given)
    assert ran == ["mail", "mail"]


ATTRS_DEFAULT = """y: int = attrs.field()
    @y.default
    def _of_y(self):
        return self.n + len(self.currency)"""
VALIDATED = """y: int = 0
    model_config = pydantic.ConfigDict(validate_default=True)
    @pydantic.field_validator("y")
    @classmethod
    def _one_more(cls, y):
        return y + 1"""
ASKING: dict[str, tuple[str, str, object]] = {
    "attrs: of the instance": ("attrs", "y: int = attrs.Factory(lambda self: self.n + 1, takes_self=True)", 2),
    "attrs: by a method": ("attrs", ATTRS_DEFAULT, 4),
    "attrs: converted": ("attrs", "y: int = attrs.field(default='3', converter=int)", 3),
    "attrs: converted by the instance": (
        "attrs",
        "y: Any = attrs.field(default=3, converter=attrs.Converter(lambda y, self: y + self.n, takes_self=True))",
        4,
    ),
    "pydantic: of what was validated": (
        "pydantic",
        "y: int = pydantic.Field(default_factory=lambda given: given['n'] + 1)",
        2,
    ),
    "pydantic: validated": ("pydantic", "y: int = pydantic.Field(default='3', validate_default=True)", 3),
    "pydantic: validated by its class": ("pydantic", VALIDATED, 1),
    "pydantic: by its alias": (
        "pydantic",
        "y: int = pydantic.Field(default='3', validate_default=True, validation_alias='why')",
        3,
    ),
}


@pytest.mark.parametrize("kind", ASKING)
@pytest.mark.parametrize("place", PLACES)
def test_a_default_may_ask_the_instance_and_may_be_converted(kind: str, place: str) -> None:
    """What is compared, and what a value of before is read as, is the field as a new instance has it."""
    library, field, expected = ASKING[kind]
    within = PLACES[place]
    before = within(deployed(library, *BEFORE).Order(n=1))
    stored, print_before = CODEC.encode(before, what="it"), fingerprint(before)
    new = deployed(library, *BEFORE, field).Order(n=1)
    assert new.y == expected
    assert fingerprint(within(new)) == print_before
    assert alike(CODEC.decode(stored, run_id="", where=""), within(new))
    other = deployed(library, *BEFORE, field).Order(n=1)
    object.__setattr__(other, "y", 77)
    assert fingerprint(within(other)) != print_before


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_differs_from_its_default_counts(library: str) -> None:
    """A new field with another value, a default of another type, and each field by its own name."""
    before = fingerprint(deployed(library, *BEFORE).Order(n=1))
    shop = deployed(library, *BEFORE, "note: Any = 1", "mark: Any = 1", "empty: Any = None")
    changed: tuple[dict[str, Any], ...] = (
        {},
        {"note": 2},
        {"note": True},
        {"note": 1.0},
        {"mark": 2},
        {"note": 2, "mark": 2},
        {"note": None},
        {"empty": 1},
        {"empty": ()},
        {"empty": []},
        {"currency": "USD"},
    )
    others = [shop.Order(n=1, **changes) for changes in changed]
    told = [fingerprint(other) for other in others]
    assert told[0] == before
    assert len(set(told)) == len(told)


@pytest.mark.parametrize("library", ["dataclass", "attrs", "struct", "pydantic"])
def test_what_differs_from_what_a_factory_makes_counts(library: str) -> None:
    """Also inside of it; what a factory never makes twice counts every time, and one that raises harms nothing."""
    fields = (*BEFORE, "tags: list = factory(lambda: ['a'])", "id: Any = factory(uuid.uuid4)")
    shop = deployed(library, *fields)
    one = shop.Order(n=1, id=1)
    assert fingerprint(one) == fingerprint(shop.Order(n=1, id=1, tags=["a"]))
    assert len({fingerprint(shop.Order(n=1, id=1, tags=tags)) for tags in (["a"], [], ["b"], ["a", "a"])}) == 4
    assert fingerprint(shop.Order(n=1)) != fingerprint(shop.Order(n=1))
    raising = deployed(library, *BEFORE, "bad: Any = factory(lambda: 1 / 0)")
    assert fingerprint(raising.Order(n=1, bad=1)) != fingerprint(raising.Order(n=1, bad=2))


def test_fields_that_a_class_leaves_out_of_comparing_do_not_count() -> None:
    """Equal values have equal fingerprints: `compare=False`, `eq=False`; what pydantic remembers of how a model was made."""
    shop = deployed(
        "dataclass",
        "n: int",
        "at: float = dc.field(default=0.0, compare=False)",
        "seen: Any = dc.field(init=False, default=0)",
    )
    assert fingerprint(shop.Order(1, at=1.0)) == fingerprint(shop.Order(1, at=2.0)) != fingerprint(shop.Order(2))
    seen = shop.Order(1)
    seen.seen = 5
    assert fingerprint(seen) != fingerprint(shop.Order(1))
    shop = deployed("attrs", "n: int", "at: float = attrs.field(default=0.0, eq=False)")
    assert fingerprint(shop.Order(1, at=1.0)) == fingerprint(shop.Order(1, at=2.0)) != fingerprint(shop.Order(2))
    before = fingerprint(deployed("pydantic", *BEFORE).Order(n=1))
    shop = deployed("pydantic", *BEFORE, "note: str | None = None", "_hidden: int = 3")
    assert before == fingerprint(shop.Order(n=1)) == fingerprint(shop.Order(n=1, note=None, currency="EUR"))
    hidden = shop.Order(n=1)
    hidden._hidden = 4
    assert fingerprint(hidden) != before


def test_defaults_that_are_converted_or_inherited() -> None:
    """A default counts as an instance has it; a field counts wherever in the bases it stands."""
    shop = deployed("attrs", "n: int", "price: Any = attrs.field(default='1.5', converter=Decimal)")
    before = fingerprint(deployed("attrs", "n: int").Order(1))
    assert fingerprint(shop.Order(1)) == before != fingerprint(shop.Order(1, price="2"))
    base = "@dc.dataclass\nclass Base:\n    n: int\n"
    before = fingerprint(deployed("dataclass", "m: int = 2", name="Order(Base)", more=base).Order(1, 3))
    shop = deployed("dataclass", "m: int = 2", name="Order(Base)", more=base + "    note: Any = None\n")
    assert fingerprint(shop.Order(1, m=3)) == before != fingerprint(shop.Order(1, note=0, m=3))


# -- values that look like the codec's own trees --------------------------------------------------------------------

TAGS = st.sampled_from(
    ["tuple", "set", "frozenset", "dict", "codec", "bytes", "decimal", f"{__name__}:X", "x", None, 1]
)
NAMES = st.sampled_from(["$type", "items", "value", "name", "$set", "a", "$type "])
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from(["", "$type", "\\u0024type", '"$type"', "tuple", "1"]),
    st.sampled_from([b"", b"a", 0.0, -0.0, 1.0]),
)  # fmt: skip


def _more(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    items = st.lists(parts, max_size=3)
    return st.one_of(
        items,
        items.map(tuple),
        st.dictionaries(NAMES, parts, max_size=3),
        st.builds(lambda tag, of: {"$type": tag, "items": of}, TAGS, items),
        st.builds(lambda tag, of: {"$type": tag, "value": of, "name": "n"}, TAGS, parts),
        st.dictionaries(st.sampled_from([1, None, (1,), "1", True, "$type", b"x"]), parts, max_size=2),
        st.frozensets(st.sampled_from([1, "1", None, (1,), b"x"]), max_size=2),
    )


LOOKALIKES = st.recursive(LEAVES, _more, max_leaves=8)


def _told(value: Any) -> Any:
    """The value with its types, and dicts and sets without an order: equal when no fingerprint may tell two apart."""
    match value:
        case dict():
            return "dict", frozenset((_told(key), _told(item)) for key, item in value.items())
        case list() | tuple():
            return type(value).__name__, tuple(_told(item) for item in value)
        case frozenset():
            return "frozenset", frozenset(_told(item) for item in value)
        case _:
            return type(value).__name__, repr(value)


# Repetitions of one kind: `make nightly` tries three thousand.
@settings(max_examples=int(os.environ.get("DURABLE_EXAMPLES", "300")), deadline=None, derandomize=True)
@given(st.lists(LOOKALIKES, min_size=2, max_size=6))
def test_values_that_look_like_the_codecs_trees_are_told_apart(values: list[Any]) -> None:
    """Different values, different fingerprints; equal ones, equal ones; and each comes back as it was."""
    told: dict[str, Any] = {}
    for value in [*values, *(_forged(value) for value in values)]:
        mark = _told(value)
        assert told.setdefault(fingerprint(value), mark) == mark
        text = CODEC.encode(value, what="it")
        assert fingerprint(CODEC.decode(text, run_id="r", where="it")) == fingerprint(value)


def _forged(value: Any) -> Any:
    """The tree that the codec writes of a value, as a value of its own."""
    return json.loads(CODEC.encode(value, what="it"))
