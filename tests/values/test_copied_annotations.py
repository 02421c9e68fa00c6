"""FAULTS 180: which annotations are a function's own promise, and which were copied to it."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import inspect
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import durable
from durable.codecs import return_annotation
from durable.stores import memory


@dataclasses.dataclass
class Order:
    """A class of this module; some functions have their own of this name."""

    n: int


@pytest.fixture
def store() -> Iterator[Any]:
    with memory() as store:
        yield store


def totals(of: int = 1) -> dict:  # type: ignore[type-arg]
    return {"a": of}


async def totals_later() -> dict:  # type: ignore[type-arg]
    return {"a": 1}


def wrapped(fn: Callable[..., Any]) -> Any:
    @functools.wraps(fn)
    def wrapper(*args: Any) -> Any:
        return json.dumps(fn(*args))

    return wrapper


def updated(fn: Callable[..., Any]) -> Any:
    def wrapper(*args: Any) -> Any:
        return json.dumps(fn(*args))

    return functools.update_wrapper(wrapper, fn, updated=())


def copied_by_hand(fn: Callable[..., Any]) -> Any:
    def wrapper(*args: Any) -> Any:
        return json.dumps(fn(*args))

    wrapper.__annotations__ = fn.__annotations__
    return wrapper


def named_by_hand(fn: Callable[..., Any]) -> Any:
    def wrapper(*args: Any) -> Any:
        return json.dumps(fn(*args))

    wrapper.__name__, wrapper.__qualname__ = fn.__name__, fn.__qualname__
    wrapper.__annotations__ = {"return": "dict"}
    return wrapper


class Wrapping:
    def __init__(self, fn: Callable[..., Any]) -> None:
        functools.update_wrapper(self, fn)
        self._fn = fn

    def __call__(self, *args: Any) -> Any:
        return json.dumps(self._fn(*args))


class Proxy:
    """Answers for another in everything, its class too."""

    def __init__(self, fn: Any) -> None:
        self._fn = fn

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._fn)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fn, name)

    def __call__(self, *args: Any) -> Any:
        return json.dumps(self._fn(*args))


class Holder:
    @wrapped
    def method(self) -> dict:  # type: ignore[type-arg]
        return {"a": 1}

    of_one = functools.partialmethod(wrapped(lambda self, of: {"a": of}), 1)


COPIES: dict[str, Callable[..., Any]] = {
    "wraps": wrapped(totals),
    "wraps twice": functools.wraps(wrapped(totals))(lambda: '{"a": 1}'),
    "update_wrapper": updated(totals),
    "annotations": copied_by_hand(totals),
    "names": named_by_hand(totals),
    "a class": Wrapping(totals),
    "a proxy": Proxy(totals),
    "a partial": functools.partial(wrapped(totals), 1),
    "a method": Holder().method,
    "a partialmethod": Holder().of_one,
    "a step": durable.step(wrapped(totals)),
    "above a step": wrapped(durable.step(totals)),
    "a dispatch": functools.partial(functools.singledispatch(wrapped(totals)), 1),
}


@pytest.mark.parametrize("kind", COPIES)
def test_a_copied_annotation_promises_nothing(store: Any, kind: str) -> None:
    """Whoever copied it, and however: what the function returns is stored."""

    def workflow(step: durable.Step, deps: Any) -> Any:
        return step("totals", COPIES[kind]), deps.totals() if kind != "above a step" else json.dumps({"a": 1})

    told = durable.run({"totals": durable.step(name="t")(COPIES[kind])}, workflow, id="r", store=store)
    assert told == ('{"a": 1}', '{"a": 1}')


def test_copied_annotations_of_async_functions_and_of_workflows(store: Any) -> None:
    """Of a step that is awaited, of a workflow's result, and of its input."""

    def later(fn: Callable[..., Any]) -> Any:
        @functools.wraps(fn)
        async def wrapper(*args: Any) -> Any:
            return json.dumps(await fn(*args))

        return wrapper

    def from_text(fn: Callable[..., Any]) -> Any:
        @functools.wraps(fn)
        def wrapper(step: durable.Step, deps: Any, given: Any) -> Any:
            return str(fn(step, deps, Order(int(given))))

        return wrapper

    @from_text
    def workflow(step: durable.Step, deps: Any, given: Order) -> int:
        return given.n

    @later
    async def workflow_later(step: durable.AsyncStep, deps: Any) -> dict[str, Any]:
        return {"told": await step("totals", later(totals_later))}

    assert durable.run({}, workflow, id="r", input="7", store=store) == "7"
    assert asyncio.run(durable.run({}, workflow_later, id="a", store=store)) == '{"told": "{\\"a\\": 1}"}'


def _calling(fn: Any, *, text: bool = False) -> Any:
    def workflow(step: durable.Step, deps: Any) -> Any:
        value: Any = step("s", fn)
        return value.text if text else value

    return workflow


def test_an_own_annotation_is_still_a_promise(store: Any) -> None:
    """Of the function, behind a partial or as a method, below a decorator that keeps its own; of a function in another."""

    def wrong() -> int:
        return "secret"  # type: ignore[return-value]

    class Called:
        def __call__(self) -> int:
            return "secret"  # type: ignore[return-value]

        def method(self) -> int:
            return "secret"  # type: ignore[return-value]

    @functools.wraps(totals, assigned=("__doc__",))
    def own() -> int:
        return "secret"  # type: ignore[return-value]

    def annotated(of: str, more: int = 2) -> int:
        return of  # type: ignore[return-value]

    for number, fn in enumerate(
        (wrong, functools.partial(wrong), Called(), Called().method, own, durable.step(wrong), functools.partial(annotated, "x"))
    ):  # fmt: skip
        with pytest.raises(durable.UnstorableValue, match="int is promised"):
            durable.run({}, _calling(fn), id=str(number), store=store)


def test_a_class_and_what_has_a_signature_of_its_own_promise_nothing(store: Any) -> None:
    """A class is its own body; `__signature__` is for readers."""

    def any_of(*args: Any) -> Any:
        return "text"

    any_of.__signature__ = inspect.signature(totals)  # type: ignore[attr-defined]
    assert return_annotation(Order) is return_annotation(any_of) is None
    assert durable.run({}, lambda step, deps: step("make", Order, 3), id="r", store=store) == Order(3)
    assert durable.run({}, lambda step, deps: step("any", any_of, 3), id="s", store=store) == "text"


def test_a_local_class_is_meant_where_it_hides_another(store: Any) -> None:
    """An annotation that is a text, as all are under `from __future__ import annotations`, is read where it was written."""

    @dataclasses.dataclass
    class Order:
        text: str

    def make() -> Order:
        return Order("mine")

    def make_wrong() -> list[Order]:
        return [Order("mine"), globals()["Order"](1)]

    for number, fn in enumerate((make, functools.wraps(make)(lambda: make()))):
        assert durable.run({}, _calling(fn, text=True), id=str(number), store=store) == "mine"
    with pytest.raises(durable.UnstorableValue, match="Order is promised"):
        durable.run({}, lambda step, deps: step("make", make_wrong), id="t", store=store)


def test_an_annotation_that_cannot_be_resolved_promises_nothing(store: Any) -> None:
    """A name for type checkers only, something that is no annotation, a class that is gone."""

    def unknown() -> Unknown:  # type: ignore[name-defined]  # noqa: F821
        return 1

    def nonsense() -> 1 / 0:  # type: ignore[valid-type]
        return 1

    def number() -> 7:  # type: ignore[valid-type]
        return 1

    for count, fn in enumerate((unknown, nonsense, number, functools.wraps(number)(lambda: 1))):
        assert durable.run({}, _calling(fn), id=str(count), store=store) == 1
