"""Dependencies are what they were given as: themselves where nothing in them is a step, and else a view that behaves alike."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import dataclasses
import functools
import threading
from collections import ChainMap, OrderedDict, UserDict, defaultdict, namedtuple
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from types import MappingProxyType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple, Self
from unittest.mock import MagicMock, Mock

import pytest

import durable
from durable.stores import memory


@durable.step
def charge(cents: int) -> str:
    """A step, which says how it was called."""
    return f"{cents} in {threading.current_thread().name}"


def seen(deps: Any, look: Callable[[Any], Any]) -> list[Any]:
    """What a workflow sees of the dependencies, blocking and async."""
    found: list[Any] = []

    def workflow(step: durable.Step, deps: Any) -> None:
        found.append(look(deps))

    async def async_workflow(step: durable.AsyncStep, deps: Any) -> None:
        found.append(look(deps))

    with closing(memory()) as store:
        durable.run(deps, workflow, id="blocking", store=store)
        asyncio.run(durable.run(deps, async_workflow, id="async", store=store))
    return found


class Pool:
    """A pool of connections, as people have it; what it knows can be seen."""

    def __init__(self, size: int = 2) -> None:
        self.size, self.open = size, 0

    def __enter__(self) -> Self:
        self.open += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.open -= 1

    async def __aenter__(self) -> Self:
        self.open += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self.open -= 1

    def __len__(self) -> int:
        return self.size

    def __contains__(self, item: object) -> bool:
        return item == "connection"

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.size))

    def __reversed__(self) -> Iterator[int]:
        return reversed(range(self.size))

    def __getitem__(self, index: int) -> int:
        return range(self.size)[index]

    def __call__(self, what: str) -> str:
        return f"called with {what}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pool) and other.size == self.size

    def __hash__(self) -> int:
        return hash(self.size)

    def __lt__(self, other: Pool) -> bool:
        return self.size < other.size

    def __add__(self, other: int) -> int:
        return self.size + other

    def __radd__(self, other: int) -> int:
        return self.size + other

    def __iadd__(self, other: int) -> Self:
        self.size += other
        return self

    def __int__(self) -> int:
        return self.size

    def __float__(self) -> float:
        return float(self.size)

    def __index__(self) -> int:
        return self.size

    def __str__(self) -> str:
        return f"pool of {self.size}"

    def __format__(self, spec: str) -> str:
        return f"{spec}:{self.size}"

    def __repr__(self) -> str:
        return f"Pool({self.size})"

    def __bytes__(self) -> bytes:
        return b"pool"

    def __matmul__(self, other: object) -> str:
        return "matmul"


class PoolWithStep(Pool):
    """The same with a step in it, so that the workflow has a view."""

    charge = staticmethod(charge)


def entered(deps: Any) -> list[Any]:
    with deps as pool:
        return [pool.open, pool is deps]


def grown(deps: Any) -> tuple[int, bool]:
    before = deps
    deps += 3
    try:
        return len(deps), deps is before
    finally:
        deps.size -= 3


LOOKS: dict[str, Callable[[Any], Any]] = {
    "with": entered,
    "len": len,
    "bool": bool,
    "not": lambda deps: not deps,
    "in": lambda deps: ("connection" in deps, "else" in deps),
    "iter": list,
    "reversed": lambda deps: list(reversed(deps)),
    "item": lambda deps: deps[1],
    "call": lambda deps: deps("it"),
    "equal": lambda deps: (deps == Pool(2), deps == Pool(3), deps != Pool(2), Pool(2) == deps, deps == deps),  # noqa: PLR0124
    "hash": lambda deps: hash(deps) == hash(Pool(2)) and deps in {deps: 1},
    "less": lambda deps: (deps < Pool(3), deps > Pool(1), min(Pool(3), deps) is deps),
    "add": lambda deps: (deps + 1, 1 + deps, deps @ 1),
    "in place": grown,
    "numbers": lambda deps: (int(deps), float(deps), [10, 20, 30][deps], bytes(deps)),
    "text": lambda deps: (str(deps), repr(deps), f"{deps:x}"),
    "isinstance": lambda deps: (isinstance(deps, Pool), isinstance(deps, dict), callable(deps)),
    "hasattr": lambda deps: (hasattr(deps, "size"), hasattr(deps, "no_such_thing"), getattr(deps, "no", 7)),
    "vars": lambda deps: vars(deps),
    "dir": lambda deps: "size" in dir(deps) and "__enter__" in dir(deps),
    "doc": lambda deps: deps.__class__.__name__.startswith("Pool"),
    "copy": lambda deps: copy.copy(deps).size,
    "no await": lambda deps: hasattr(type(deps), "__await__"),
    "stack": lambda deps: contextlib.ExitStack().enter_context(deps).__exit__(None, None, None),
}


@pytest.mark.parametrize("what", LOOKS)
def test_a_view_answers_as_the_object_does(what: str) -> None:
    for seen_of_object, seen_of_view in zip(seen(Pool(), LOOKS[what]), seen(PoolWithStep(), LOOKS[what]), strict=True):
        assert seen_of_view == seen_of_object == LOOKS[what](Pool())


def test_an_async_context_is_entered() -> None:
    async def workflow(step: durable.AsyncStep, deps: Any) -> tuple[int, bool]:
        async with deps as pool:
            return pool.open, pool is deps

    for pool in (Pool(), PoolWithStep()):
        with closing(memory()) as store:
            assert tuple(asyncio.run(durable.run(pool, workflow, id="a", store=store))) == (1, True)


@pytest.mark.parametrize(
    "use",
    [
        lambda deps: len(deps),
        lambda deps: deps["a"],
        lambda deps: deps(),
        lambda deps: iter(deps),
        lambda deps: deps + 1,
        lambda deps: entered(deps),
        lambda deps: deps < deps,  # noqa: PLR0124
        lambda deps: "a" in deps,
    ],
)
def test_what_the_object_cannot_do_its_view_cannot_either(use: Callable[[Any], Any]) -> None:
    for deps in (SimpleNamespace(a=1), SimpleNamespace(a=1, charge=charge)):
        assert all(seen(deps, lambda deps: isinstance(raised(use, deps), TypeError)))


def raised(use: Callable[[Any], Any], deps: Any) -> BaseException | None:
    """What comes of it."""
    try:
        use(deps)
    except Exception as problem:
        return problem
    return None


# -- the object itself ----------------------------------------------------------------------------------------------


class Slotted:
    """Without a dictionary."""

    __slots__ = ("charge", "url")

    def __init__(self, charge: Any = None) -> None:
        self.url = "x"
        if charge is not None:
            self.charge = charge


class Pair(NamedTuple):
    """Two of something."""

    first: Any
    second: Any


@dataclasses.dataclass
class Deps:
    """As the documentation has it."""

    charge: Any
    url: str = "x"


class Lazy:
    """Which makes what is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name == "charge":
            return charge
        raise AttributeError(name)


class Cached:
    """Which makes it once."""

    @functools.cached_property
    def charge(self) -> Any:
        return charge


class Derived:
    """Which computes it."""

    @property
    def charge(self) -> Any:
        return charge


class Inherited(PoolWithStep):
    """From a base."""


class Callable_:
    """A step by being called, and more."""

    url = "x"

    @durable.step(name="charge")
    def __call__(self, cents: int) -> str:
        return f"{cents} in {threading.current_thread().name}"


class Methodical:
    """A step that is a method."""

    @durable.step
    def charge(self, cents: int) -> str:
        return f"{cents} in {threading.current_thread().name}"


WITHOUT_A_STEP: dict[str, Any] = {
    "None": None,
    "a number": 7,
    "text": "deps",
    "a list": [1, 2],
    "a pool": Pool(),
    "a namespace": SimpleNamespace(url="x"),
    "a data class": Deps(len),
    "slots": Slotted(),
    "a pair": Pair(1, 2),
    "a class": Pool,
    "a module": contextlib,
    "a function": len,
    "a lock": threading.Lock(),
}


@pytest.mark.parametrize("what", WITHOUT_A_STEP)
def test_where_nothing_is_a_step_the_object_itself_is_handed_over(what: str) -> None:
    deps = WITHOUT_A_STEP[what]
    assert all(seen(deps, lambda given: given is deps))


def module_with_a_step() -> ModuleType:
    module = ModuleType("services")
    module.charge = charge  # type: ignore[attr-defined]
    return module


WITH_A_STEP: dict[str, Any] = {
    "a namespace": SimpleNamespace(charge=charge),
    "a data class": Deps(charge),
    "slots": Slotted(charge),
    "a class attribute": PoolWithStep(),
    "a base's": Inherited(),
    "a method": Methodical(),
    "a class": PoolWithStep,
    "a module": module_with_a_step(),
    "a property": Derived(),
    "a cached property": Cached(),
    "made when asked for": Lazy(),
    "a mock": Mock(charge=charge),
    "a magic mock": MagicMock(charge=charge),
    "a dict": {"charge": charge},
    "a read-only mapping": MappingProxyType({"charge": charge}),
    "a mapping of a class": UserDict({"charge": charge}),
}


@pytest.mark.parametrize("what", WITH_A_STEP)
def test_a_step_in_it_belongs_to_the_run_in_any_thread(what: str) -> None:
    """Wherever it comes from; and a second run of the id calls nothing."""

    def workflow(step: durable.Step, deps: Any) -> str:
        with ThreadPoolExecutor(1, "elsewhere") as pool:
            return str(pool.submit(deps.charge, 5).result())

    with closing(memory()) as store:
        for _ in range(2):
            assert durable.run(WITH_A_STEP[what], workflow, id="a", store=store) == "5 in elsewhere_0"
        snapshot = store.load("a")
        assert snapshot is not None
        assert list(snapshot.steps) == ["charge"]


def test_an_object_whose_call_is_a_step_keeps_its_attributes() -> None:
    def workflow(step: durable.Step, deps: Any) -> list[str]:
        with ThreadPoolExecutor(1, "elsewhere") as pool:
            return [deps.url, pool.submit(deps, 5).result()]

    with closing(memory()) as store:
        for _ in range(2):
            assert durable.run(Callable_(), workflow, id="a", store=store) == ["x", "5 in elsewhere_0"]
        assert list(store.load("a").steps) == ["charge"]  # type: ignore[union-attr]


@dataclasses.dataclass
class Services:
    payment: Callable_


@pytest.mark.parametrize(
    "kind", ["a mapping", "a data class", "a named tuple", "an item of a sequence", "an attribute"]
)
def test_an_object_within_whose_call_is_a_step_keeps_its_attributes(kind: str) -> None:
    """It is a step, and all else that it is."""
    payment: Any = Callable_()
    pair: Any = namedtuple("pair", "payment")  # noqa: PYI024
    made: dict[str, Any] = {
        "a mapping": {"payment": payment},
        "a data class": Services(payment),
        "a named tuple": pair(payment),
        "an item of a sequence": [payment],
        "an attribute": SimpleNamespace(payment=payment),
    }

    def workflow(step: durable.Step, deps: Any) -> list[str]:
        found = deps[0] if kind == "an item of a sequence" else deps.payment
        assert isinstance(found, Callable_)
        with ThreadPoolExecutor(1, "elsewhere") as pool:
            return [found.url, pool.submit(found, 5).result(), step("once more", found, 6)]

    with closing(memory()) as store:
        for _ in range(2):
            told = durable.run(made[kind], workflow, id="a", store=store)
            assert told[:2] == ["x", "5 in elsewhere_0"]
        assert list(store.load("a").steps) == ["charge", "once more"]  # type: ignore[union-attr]


@pytest.mark.parametrize("is_within", [True, False])
def test_an_async_call_is_a_step_of_its_run_also_where_no_run_is_known(is_within: bool) -> None:
    """In a context of its own, as for every step that the dependencies give out."""

    class Asked:
        @durable.step(name="ask")
        async def __call__(self, n: int) -> int:
            return n

    async def workflow(step: durable.AsyncStep, deps: Any) -> int:
        asked = deps.asked if is_within else deps
        return await asyncio.get_running_loop().create_task(asked(1), context=contextvars.Context())

    with closing(memory()) as store:
        deps = {"asked": Asked()} if is_within else Asked()
        assert asyncio.run(durable.run(deps, workflow, id="a", store=store)) == 1
        assert list(store.load("a").steps) == ["ask"]  # type: ignore[union-attr]


def test_a_step_can_be_all_that_there_is() -> None:
    with closing(memory()) as store:
        assert durable.run(charge, lambda step, deps: deps(5), id="a", store=store).startswith("5 in")
        assert store.load("a").steps  # type: ignore[union-attr]


def test_steps_in_a_sequence_are_bound() -> None:
    for deps in ([charge], (charge,), Pair(charge, 1)):

        def workflow(step: durable.Step, deps: Any) -> list[str]:
            first, *_ = deps
            with ThreadPoolExecutor(1, "elsewhere") as pool:
                return [pool.submit(first, 5).result(), pool.submit(deps[0], 5).result()]

        with closing(memory()) as store:
            assert durable.run(deps, workflow, id="a", store=store) == ["5 in elsewhere_0"] * 2
            assert list(store.load("a").steps) == ["charge", "charge#2"]  # type: ignore[union-attr]


# -- mappings -------------------------------------------------------------------------------------------------------


def by_name(**given: Any) -> Any:
    """What is given by name."""
    return given["n"]


MAPPING_LOOKS: dict[str, Callable[[Any], Any]] = {
    "get": lambda deps: (deps.get("n"), deps.get("no"), deps.get("no", 7)),
    "attribute": lambda deps: deps.n,
    "item": lambda deps: deps["n"],
    "keys": lambda deps: sorted(deps.keys()),
    "values": lambda deps: len(list(deps.values())),
    "items": lambda deps: dict(deps.items())["n"],
    "in": lambda deps: ("n" in deps, "no" in deps),
    "len": len,
    "bool": bool,
    "iter": sorted,
    "** ": lambda deps: sorted({**deps}),
    "call": lambda deps: by_name(**deps),
    "dict": lambda deps: dict(deps)["n"],
    "isinstance": lambda deps: isinstance(deps, Mapping),
    "hasattr": lambda deps: (hasattr(deps, "n"), hasattr(deps, "no"), hasattr(deps, "get")),
    "equal": lambda deps: (deps == dict(deps.items()), deps == {}),
}
MAPPINGS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "dict": dict,
    "OrderedDict": OrderedDict,
    "defaultdict": lambda items: defaultdict(None, items),
    "UserDict": UserDict,
    "ChainMap": lambda items: ChainMap(items, {}),
    "MappingProxyType": MappingProxyType,
}


@pytest.mark.parametrize("kind", MAPPINGS)
@pytest.mark.parametrize("what", [what for what in MAPPING_LOOKS if what != "equal"])
def test_a_mapping_is_a_mapping(kind: str, what: str) -> None:
    look = MAPPING_LOOKS[what]
    for items in ({"n": 1, "m": 2}, {"n": 1, "charge": charge}):
        deps = MAPPINGS[kind](items)
        expected = 1 if what == "attribute" else (True, False, True) if what == "hasattr" else look(deps)
        assert seen(deps, look) == [expected, expected]


def test_equal_mappings_are_equal() -> None:
    assert seen({"n": 1}, MAPPING_LOOKS["equal"]) == [(True, False)] * 2


@pytest.mark.parametrize(
    "take",
    [
        lambda deps: deps.get("charge"),
        lambda deps: next(iter(deps.values())),
        lambda deps: dict(deps.items())["charge"],
        lambda deps: dict(**deps)["charge"],
        lambda deps: deps.setdefault("charge", None),
        lambda deps: deps.copy()["charge"],
    ],
)
def test_what_a_mapping_gives_out_belongs_to_the_run(take: Callable[[Any], Any]) -> None:
    def workflow(step: durable.Step, deps: Any) -> str:
        taken = take(deps)
        with ThreadPoolExecutor(1, "elsewhere") as pool:
            return str(pool.submit(taken, 5).result())

    with closing(memory()) as store:
        durable.run({"charge": charge}, workflow, id="a", store=store)
        if "copy" not in take.__code__.co_names:  # a copy is the user's own
            assert store.load("a").steps  # type: ignore[union-attr]


def test_an_item_goes_before_a_method_and_no_default_is_made_for_one() -> None:
    made: list[int] = []
    default: defaultdict[str, Any] = defaultdict(lambda: made.append(1), n=1)
    assert seen({"get": 7, "keys": 8}, lambda deps: (deps.get, deps.keys)) == [(7, 8)] * 2
    assert seen(default, lambda deps: (deps.get("x"), len(deps))) == [(None, 1)] * 2
    assert made == []


def test_what_is_put_into_it_is_in_the_users_object() -> None:
    space, mapping = SimpleNamespace(charge=charge, old=1), dict[str, Any](charge=charge)

    def change(deps: Any) -> None:
        deps.new = 1
        with contextlib.suppress(AttributeError):
            del deps.old

    seen(space, change)
    assert vars(space) == {"charge": charge, "new": 1}
    seen(mapping, lambda deps: deps.update(n=1))
    assert mapping["n"] == 1
    seen(mapping, lambda deps: deps.__setitem__("m", 2))
    seen(mapping, lambda deps: deps.pop("n", None))
    assert mapping == {"charge": charge, "m": 2}


def test_a_data_class_is_matched_and_replaced() -> None:
    def look(deps: Any) -> Any:
        match deps:
            case Deps(url=url):
                return url, dataclasses.is_dataclass(deps), dataclasses.replace(deps, url="y").url, deps == deps  # noqa: PLR0124
        return None

    assert seen(Deps(charge), look) == [("x", True, "y", True)] * 2
