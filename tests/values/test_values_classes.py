"""Classes: found again by name, by alias and in annotations; changed meanwhile; and what functions promise."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import sys
import types
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, NamedTuple, NewType, Protocol, TypedDict, TypeVar

import attrs
import msgspec
import pydantic
import pytest

import durable
from durable.codecs import JsonCodec, alias, parameter_annotation, return_annotation
from durable.stores import memory
from harness.value_kinds import Colour, FrozenAttrs, Line, Right, alike

if TYPE_CHECKING:
    from nowhere import Unknown  # type: ignore[import-not-found]

CODEC = JsonCodec()
T = TypeVar("T")


def back(text: bytes, annotation: Any = None) -> Any:
    return CODEC.decode(text, run_id="r", where="the record", annotation=annotation)


def encoded(value: Any, annotation: Any = None) -> bytes:
    return CODEC.encode(value, what="it", annotation=annotation)


def refusal(value: Any, annotation: Any = None) -> durable.UnstorableValue:
    with pytest.raises(durable.UnstorableValue) as it:
        encoded(value, annotation)
    return it.value


def unreadable(text: bytes | str) -> str:
    with pytest.raises(durable.errors.UnreadableRecord) as it:
        back(text.encode() if isinstance(text, str) else text)
    return str(it.value)


@pytest.fixture
def module() -> Iterator[types.ModuleType]:
    """A module that is imported while the test lasts."""
    module = types.ModuleType("shop_of_the_test")
    sys.modules[module.__name__] = module
    yield module
    sys.modules.pop(module.__name__, None)


def define(module: types.ModuleType, source: str) -> None:
    """Let the module have this code, as a deploy would."""
    prelude = "from dataclasses import dataclass, field\nimport durable\n"
    exec(prelude + source, module.__dict__)


# -- names ----------------------------------------------------------------------------------------------------------


def test_a_renamed_class_is_found_by_its_alias_and_written_under_it(module: types.ModuleType) -> None:
    """So that a rename breaks neither history, nor processes with the old code, nor fingerprints."""
    define(module, "@dataclass\nclass Receipt:\n    total: int")
    text, fingerprint = encoded(module.Receipt(3)), CODEC.fingerprint([module.Receipt(3)], what="it")
    del module.Receipt
    assert "no class shop_of_the_test:Receipt is imported here" in unreadable(text)
    define(module, '@durable.alias("shop_of_the_test:Receipt")\n@dataclass\nclass Invoice:\n    total: int')
    value = back(text)
    assert (type(value), value.total) == (module.Invoice, 3)
    assert encoded(value) == text
    assert CODEC.fingerprint([value], what="it") == fingerprint


def test_a_module_may_be_imported_anew(module: types.ModuleType) -> None:
    """A reload defines the same alias again; another class may not have it."""
    source = '@durable.alias("shop_of_the_test:Old")\n@dataclass\nclass New:\n    total: int'
    define(module, source)
    text = encoded(module.New(1))
    define(module, source)
    assert type(back(text)) is module.New
    with pytest.raises(durable.InvalidArgument, match="belongs to"):
        define(module, '@durable.alias("shop_of_the_test:Old")\n@dataclass\nclass Other:\n    total: int')


@pytest.mark.parametrize("names", [(), ("Receipt",), ("shop.Receipt",), ("shop:",), (3,), ("a:b\0",)])
def test_an_alias_that_is_none(names: Any) -> None:
    """Named at once, with the form that it has to have."""
    with pytest.raises(durable.InvalidArgument, match="alias"):
        alias(*names)


def test_an_alias_is_of_a_class() -> None:
    """Not of a function."""
    with pytest.raises(durable.InvalidArgument, match="decorates a class"):
        alias("shop:f")(len)  # type: ignore[type-var]


def test_a_class_of_a_function_is_found_in_the_annotation_or_refused() -> None:
    """By itself, within generics, and among the fields of a class that is named there."""

    @dataclasses.dataclass
    class Inner:
        x: int

    @dataclasses.dataclass
    class Outer:
        inner: Inner
        more: list[Inner]

    assert "could not be found again" in refusal(Inner(1)).problem
    assert "@durable.alias" in refusal(Inner(1)).advice
    for value, annotation in ((Inner(1), Inner), ([Inner(1)], list[Inner] | None), ({"a": Inner(1)}, dict[str, Inner])):
        assert back(encoded(value, annotation), annotation) == value


def test_a_local_class_comes_back_through_a_run() -> None:
    """The annotation of the step's function is what finds it, live and on replay."""

    class Point(NamedTuple):
        x: int

    def locate() -> Point:
        return Point(1)

    locate.__annotations__["return"] = Point  # as it is without the __future__ import
    store, seen = memory(), []

    def workflow(step: durable.Step, _: Any) -> None:
        seen.append(step("locate", locate))
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            durable.run(None, workflow, id="r", store=store)
    store.close()
    assert seen == [Point(1), Point(1)]
    assert {type(value) for value in seen} == {Point}


def test_another_class_of_that_name_is_not_taken_for_it(module: types.ModuleType) -> None:
    """A name that now means another class is refused when it is written."""
    define(module, "@dataclass\nclass A:\n    x: int")
    old = module.A(1)
    define(module, "@dataclass\nclass A:\n    x: int")
    assert "could not be found again" in refusal(old).problem


# -- classes that change between two deploys ------------------------------------------------------------------------


def test_a_new_field_takes_its_default_and_a_removed_one_is_left_out(module: types.ModuleType) -> None:
    """In each kind of data class."""
    for old, new, expected in (
        (
            "@dataclass\nclass C:\n    x: int\n    gone: int = 1",
            "@dataclass\nclass C:\n    x: int\n    y: list = field(default_factory=list)\n    z: int = 5",
            {"x": 3, "y": [], "z": 5},
        ),
        (
            "import attrs\n@attrs.define\nclass C:\n    x: int\n    gone: int = 1",
            "import attrs\n@attrs.define\nclass C:\n    x: int\n    y: list = attrs.Factory(list)\n    z: int = 5",
            {"x": 3, "y": [], "z": 5},
        ),
        (
            "import msgspec\nclass C(msgspec.Struct):\n    x: int\n    gone: int = 1",
            "import msgspec\nclass C(msgspec.Struct):\n    x: int\n    z: int = 5",
            {"x": 3, "z": 5},
        ),
        (
            "import typing\nclass C(typing.NamedTuple):\n    x: int\n    gone: int = 1",
            "import typing\nclass C(typing.NamedTuple):\n    x: int\n    z: int = 5",
            {"x": 3, "z": 5},
        ),
        (
            "import pydantic\nclass C(pydantic.BaseModel):\n    x: int\n    gone: int = 1",
            "import pydantic\nclass C(pydantic.BaseModel):\n    x: int\n    z: int = 5",
            {"x": 3, "z": 5},
        ),
    ):
        define(module, old)
        text = encoded(module.C(x=3))
        define(module, new)
        value = back(text)
        assert {name: getattr(value, name) for name in expected} == expected
        assert not hasattr(value, "gone")


@pytest.mark.parametrize(
    "base",
    [
        "@dataclass\nclass C:",
        "import attrs\n@attrs.define\nclass C:",
        "import msgspec\nclass C(msgspec.Struct):",
        "import typing\nclass C(typing.NamedTuple):",
        "import pydantic\nclass C(pydantic.BaseModel):",
    ],
)
def test_a_new_field_without_a_default_is_said(module: types.ModuleType, base: str) -> None:
    """Loud, and the run is left as it is."""
    define(module, f"{base}\n    x: int")
    text = encoded(module.C(x=3))
    define(module, f"{base}\n    x: int\n    y: int\n".replace("    x", "    x", 1))
    assert "cannot be read" in unreadable(text)


def test_a_member_that_is_gone_is_said(module: types.ModuleType) -> None:
    """An enumeration's names are its history."""
    define(module, "import enum\nclass E(enum.Enum):\n    A = 1")
    text = encoded(module.E.A)
    define(module, "import enum\nclass E(enum.Enum):\n    B = 1")
    assert "no such member" in unreadable(text)
    define(module, "import enum\nclass E(enum.Enum):\n    A = 'another value'")
    assert back(text) is module.E.A


def test_nothing_of_the_class_runs_when_it_is_read() -> None:
    """`__init__`, `__post_init__`, converters and validators have had their turn."""
    ran: list[str] = []

    @alias("test:Converting")
    @dataclasses.dataclass
    class Converting:
        x: int

        def __post_init__(self) -> None:
            ran.append("post")

    def converted(x: Any) -> int:
        ran.append("converter")
        return int(x)

    @alias("test:Converted")
    @attrs.define
    class Converted:
        x: int = attrs.field(converter=converted)

    @alias("test:Validated")
    class Validated(pydantic.BaseModel):
        x: int

        @pydantic.field_validator("x")
        @classmethod
        def look(cls, x: int) -> int:
            ran.append("validator")
            return x

    values = [Converting(1), Converted(1), Validated(x=1)]
    ran.clear()
    assert alike(back(encoded(values)), values)
    assert ran == []


# -- promises -------------------------------------------------------------------------------------------------------

UserId = NewType("UserId", int)


class Movie(TypedDict):
    title: str


class Quacks(Protocol):
    def quack(self) -> None: ...


@dataclasses.dataclass
class Box(Generic[T]):
    item: T


KEPT: list[tuple[Any, Any]] = [
    (1, int),
    (1, float),
    (True, int),
    (None, None),
    (None, int | None),
    ("a", Literal["a", "b"]),
    ([1, 2], list[int]),
    ([1, "a"], list[int | str]),
    ({"a": [1]}, dict[str, list[int]]),
    ({"a": 1}, Mapping[str, Any]),
    ((1, "a"), tuple[int, str]),
    ((1, 2, 3), tuple[int, ...]),
    ((), tuple[()]),
    ({1}, set[int]),
    ("text", Sequence[str]),
    ([Line("a", Decimal(1))], list[Line]),
    (Colour.RED, Colour),
    (UserId(1), UserId),
    ({"title": "Momo"}, Movie),
    (1, Annotated[int, "a number"]),
    (Box(1), Box[int]),
    (1, T),
    (1, Quacks),
    (1, "Unresolved"),
    (1, Any),
    (dt.datetime(2031, 5, 1, tzinfo=dt.UTC), dt.date),
]


@pytest.mark.parametrize(("value", "annotation"), KEPT, ids=lambda it: str(it)[:40])
def test_a_promise_that_is_kept(value: Any, annotation: Any) -> None:
    """Or that nobody can look into at a glance."""
    assert alike(back(encoded(value, annotation), annotation), value)


BROKEN: list[tuple[Any, Any, str]] = [
    ("1", int, "$"),
    (1.0, int, "$"),
    (None, str, "$"),
    (1, type(None), "$"),
    ("c", Literal["a", "b"], "$"),
    (True, Literal[1], "$"),
    ([1, "a"], list[int], "$[1]"),
    ({"a": [1, None]}, dict[str, list[int]], "$.a[1]"),
    ({1: 1}, dict[str, int], "$[…]"),
    ((1, 2), tuple[int, str], "$[1]"),
    ((1,), tuple[int, str], "$"),
    ([1], tuple[int, ...], "$"),
    ({"total": 3}, Line, "$"),
    ([{"total": 3}], list[Line] | None, "$[0]"),
    ("red", Colour, "$"),
    (1, Annotated[str, "a name"], "$"),
    ([1], Movie, "$"),
    ([Colour.RED, Right.READ], Sequence[Colour], "$[1]"),
]


@pytest.mark.parametrize(("value", "annotation", "path"), BROKEN, ids=lambda it: str(it)[:40])
def test_a_promise_that_is_broken(value: Any, annotation: Any, path: str) -> None:
    """Refused, with what came and what should have, never with the value."""
    problem = refusal(value, annotation)
    assert problem.path == path
    assert "annotation" in problem.advice


def test_what_a_function_returns_is_looked_up_through_what_wraps_it() -> None:
    """Functions, methods, partials, callable objects, async ones; nothing where nothing is said or it cannot be known."""

    class Able:
        def method(self) -> list[Line]:
            return []

        def __call__(self, x: Colour) -> int:
            return 1

    async def soon() -> Line:
        raise NotImplementedError

    def later() -> Awaitable[Line]:
        raise NotImplementedError

    def unknown() -> Unknown:
        raise NotImplementedError

    assert return_annotation(Able().method) == list[Line]
    assert return_annotation(functools.partial(Able().method)) == list[Line]
    assert return_annotation(Able()) is int
    assert return_annotation(soon) is return_annotation(later) is Line
    assert [return_annotation(fn) for fn in (unknown, len, lambda: 1, int, define.__annotations__)] == [None] * 5
    assert return_annotation(define) is type(None)
    assert parameter_annotation(define, 1) is str
    assert parameter_annotation(Able(), 0) is Colour
    assert (
        parameter_annotation(Able(), 5) is parameter_annotation(len, 0) is parameter_annotation(lambda x: x, 0) is None
    )


def test_a_broken_promise_of_a_step_is_its_own_failure() -> None:
    """The message says that the body did run, what type it returned, and what to do."""

    def total() -> int:
        return "secret"  # type: ignore[return-value]

    def workflow(step: durable.Step, _: Any) -> str:
        try:
            return str(step("total", total))
        except durable.UnstorableValue as problem:
            return str(problem)

    store = memory()
    text = durable.run(None, workflow, id="r", store=store)
    store.close()
    assert text == (
        "the result of step 'total' cannot be stored: at $, str was returned where int is promised. The body did run and "
        "its effects stand; it returned a value of type str, and nothing was recorded, so it would run again. Correct the "
        "annotation, or return what it says."
    )


def test_messages_of_all_kinds_have_the_type_and_the_way_out() -> None:
    """Nothing of the value but its type's name."""

    class Session:
        def __repr__(self) -> str:
            return "secret"

    problem = refusal({"items": [{}, {"price": Session()}]})
    assert problem.path == "$.items[1].price"
    assert str(problem).endswith(
        "Session would not come back as it is. Return plain data, make its class a dataclass, an attrs class, a "
        "NamedTuple, a msgspec.Struct or a pydantic model, or teach it with durable.stored_as."
    )
    assert "secret" not in str(problem)
    assert "list(...)" in refusal(iter([1])).advice
    assert "Await it" in refusal(_done()).advice
    assert "plain dict" in refusal(_Dict()).advice
    assert "Raise it" in refusal(ValueError()).advice


class _Dict(dict[str, int]):
    pass


class _done(Awaitable[None]):
    def __await__(self) -> Any:
        return iter(())


def test_a_hash_that_attrs_keeps_is_computed_anew() -> None:
    """The copy has the place for it, and can be a key."""
    assert {back(encoded(FrozenAttrs(3))): 1} == {FrozenAttrs(3): 1}  # type: ignore[arg-type, unused-ignore]


class Counting(msgspec.Struct):
    """It is another each time that it is made."""

    x: int

    def __post_init__(self) -> None:
        self.x += 1


def test_what_is_another_when_it_is_made_again_is_refused() -> None:
    """The check that it comes back looks at the value itself, and trusts no class."""
    assert "would not come back as it is" in refusal([Counting(1)]).problem


def test_a_zone_is_a_name_and_nothing_else() -> None:
    """Else zoneinfo would look for it among files and packages."""
    for zone in ("../x", "/x", "a.b", "x" * 1000, ""):
        assert "its zone has no name" in unreadable(f'{{"$type":"datetime","value":"2031-05-01","zone":"{zone}"}}')


def test_struct_is_built_by_its_class() -> None:
    """msgspec has no other way; its `__post_init__` runs, as it does in msgspec."""
    assert issubclass(_Struct, msgspec.Struct)
    assert back(encoded(_Struct(1))) == _Struct(1)


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    x: int
