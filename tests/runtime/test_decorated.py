"""FAULTS 180: decorators above and below a step, methods of every kind, objects, in both colours."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import functools
import gc
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import durable
from durable.stores import memory


@pytest.fixture
def store() -> Iterator[Any]:
    with memory() as store:
        yield store


def recorded(store: Any, id: str = "r") -> dict[str, Any]:
    """The values of the steps that a run has recorded."""
    return {key: durable.Snapshot.document(store.load(id))["steps"][key]["value"] for key in store.load(id).steps}


def twice(fn: Callable[..., Any]) -> Any:
    """A decorator, as most are."""

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs) * 2

    return wrapper


def twice_untold(fn: Callable[..., Any]) -> Any:
    """One that does not say what it decorates."""

    def wrapper(*args: Any) -> Any:
        return fn(*args) * 2

    return wrapper


def awaited_twice(fn: Callable[..., Any]) -> Any:
    """One for async functions."""

    @functools.wraps(fn)
    async def wrapper(*args: Any) -> Any:
        return await fn(*args) * 2

    return wrapper


class Twice:
    """One that is a class, and a descriptor."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        functools.update_wrapper(self, fn)
        self._fn = fn

    def __call__(self, *args: Any) -> Any:
        return self._fn(*args) * 2

    def __get__(self, owner: object, _: object) -> Any:
        return self if owner is None else functools.partial(self, owner)


class Proxy:
    """An object that answers for another in everything, as wrapt's do."""

    def __init__(self, wrapped: Any) -> None:
        self.__dict__["_wrapped"] = wrapped

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_wrapped"], name)

    def __call__(self, *args: Any) -> Any:
        return self.__dict__["_wrapped"](*args) * 2


@durable.step
def price(amount: int) -> int:
    """A step."""
    return amount


ABOVE: dict[str, Callable[[Any], Any]] = {
    "wraps": twice,
    "two of them": lambda fn: functools.wraps(fn)(lambda x: twice(fn)(x)),
    "a class": Twice,
    "a proxy": Proxy,
    "untold": twice_untold,
    "a cache": lambda fn: functools.lru_cache(twice(fn)),
    "a partial": lambda fn: functools.partial(twice(lambda amount, unit: fn(amount)), unit="EUR"),
    "a dispatch": lambda fn: functools.singledispatch(twice(fn)),
}


@pytest.mark.parametrize("kind", ABOVE)
def test_what_stands_above_a_step_is_applied(store: Any, kind: str) -> None:
    """By the bare name, through deps, from an attribute and an item, in a thread, and by a name of its own."""
    decorated = ABOVE[kind](price)
    calls: dict[str, Callable[[Any, Any], Any]] = {
        "bare": lambda step, deps: decorated(10),
        "deps": lambda step, deps: deps.price(10),
        "item": lambda step, deps: deps["price"](10),
        "name": lambda step, deps: step("price", decorated, 10),
        "deps by name": lambda step, deps: step("price", deps.price, 10),
        "map": lambda step, deps: step.map("price", decorated, [10])[0],
    }
    for way, call in calls.items():
        if kind == "a cache":
            decorated.cache_clear()
        assert durable.run({"price": decorated}, call, id=way, store=store) == 20, way
        assert list(recorded(store, way).values()) == [10 if way in ("bare", "deps", "item") else 20], way


@pytest.mark.parametrize("kind", ["wraps", "a class", "a proxy", "a dispatch"])
def test_what_stands_above_a_step_keeps_to_its_run_in_any_thread(store: Any, kind: str) -> None:
    """A thread without the workflow's context: the function from `deps` knows its run all the same."""

    def workflow(step: durable.Step, deps: Any) -> list[Any]:
        told: list[Any] = []
        fn = deps.price
        thread = threading.Thread(target=lambda: told.append(fn(10)))
        thread.start()
        thread.join()
        return told

    assert durable.run({"price": ABOVE[kind](price)}, workflow, id="r", store=store) == [20]
    assert recorded(store) == {"price": 10}


def test_the_terms_of_a_step_hold_below_a_decorator(store: Any) -> None:
    """`at_most_once` and `retry` of the decorator count by name too, whatever is above it."""

    @functools.wraps(price)
    def outer(amount: int) -> int:
        return once(amount)

    @durable.step(at_most_once=True)
    def once(amount: int) -> int:
        return amount

    for number, fn in enumerate((once, twice(once), functools.partial(once), Twice(once))):

        def workflow(step: durable.Step, deps: Any, fn: Any = fn) -> Any:
            return step("once", fn, 1)

        durable.run({}, workflow, id=str(number), store=store)
        assert store.load(str(number)).steps["once"].once


async def send_now(text: str) -> str:
    return text


def test_async_steps_below_decorators(store: Any) -> None:
    """An async decorator, a blocking one that hands on what is to be awaited, and a task without the context."""
    send = durable.step(send_now)

    @functools.wraps(send)
    def handed_on(text: str) -> Any:
        return send(text)

    for way, fn in (("async", awaited_twice(send)), ("blocking", handed_on), ("plain", send)):
        value = "hihi" if way == "async" else "hi"

        async def workflow(step: durable.AsyncStep, deps: Any, fn: Any = fn) -> Any:
            return [await deps.send("hi"), await fn("hi"), await step("send", fn, "hi")]

        async def outside(step: durable.AsyncStep, deps: Any) -> Any:
            async def task() -> Any:
                return await deps.send("hi")

            return await asyncio.get_running_loop().create_task(task(), context=contextvars.Context())

        assert asyncio.run(durable.run({"send": fn}, workflow, id=way, store=store)) == [value] * 3, way
        assert len(recorded(store, way)) == 3
        assert asyncio.run(durable.run({"send": fn}, outside, id=f"{way} 2", store=store)) == value, way
        assert recorded(store, f"{way} 2") == {"send_now": "hi"}


def test_a_decorated_async_function_is_seen_as_one() -> None:
    """By inspect, on every Python; as a method, a partial and from deps; a blocking one is not."""

    class Mail:
        send = durable.step(send_now)

        @durable.step(name="sent")
        async def sent(self) -> None: ...

        @classmethod
        @durable.step
        async def of_class(cls) -> None: ...

    seen: list[Any] = []

    async def workflow(step: durable.AsyncStep, deps: Any) -> None:
        seen.extend([deps.send, deps.price])

    send = durable.step(send_now)
    asyncio.run(durable.run({"send": awaited_twice(send), "price": price}, workflow, id="r", store=memory()))
    for fn in (send, Mail().sent, Mail.of_class, functools.partial(send, "x"), awaited_twice(send), seen[0]):
        assert inspect.iscoroutinefunction(fn)
    for fn in (price, twice(price), seen[1]):
        assert not inspect.iscoroutinefunction(fn)
    assert asyncio.run(send("hi")) == "hi"
    coroutine = send("hi")
    assert inspect.iscoroutine(coroutine)
    coroutine.close()


class Base:
    """Steps that are methods, of every kind. An instance cannot be stored, so it must never be taken for an argument."""

    rate = 2

    def __init__(self) -> None:
        self.lock = threading.Lock()

    @durable.step
    def plain(self, x: int) -> int:
        return x * self.rate

    pay = plain

    @classmethod
    @durable.step
    def of_class(cls, x: int) -> int:
        return x * cls.rate

    @durable.step
    @classmethod
    def of_class_too(cls, x: int) -> int:
        return x * cls.rate

    @staticmethod
    @durable.step
    def static(x: int) -> int:
        return x * 2

    @durable.step
    @staticmethod
    def static_too(x: int) -> int:
        return x * 2

    @twice
    @durable.step
    def below(self, x: int) -> int:
        return x

    @twice_untold
    @durable.step
    def below_untold(self, x: int) -> int:
        return x

    @Twice
    @durable.step
    def below_a_class(self, x: int) -> int:
        return x

    @classmethod
    @twice
    @durable.step
    def class_below(cls, x: int) -> int:
        return x

    @durable.step
    @twice
    def above(self, x: int) -> int:
        return x

    of_one = functools.partialmethod(plain, 3)

    @property
    def made(self) -> Any:
        return durable.step(self.undecorated)

    def undecorated(self, x: int) -> int:
        return x * self.rate

    @functools.singledispatchmethod
    @durable.step
    def dispatched(self, x: int) -> int:
        return x * self.rate

    @durable.step
    def overridden(self, x: int) -> int:
        return x

    @durable.step
    def __call__(self, x: int) -> int:
        return x * self.rate


class Sub(Base):
    """The same, inherited; one is overridden, and its base's called."""

    def overridden(self, x: int) -> int:
        return super().overridden(x) * 2

    inherited = Base.plain


METHODS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "plain": (lambda it: it.plain(3), "plain"),
    "alias": (lambda it: it.pay(3), "plain"),
    "class method": (lambda it: it.of_class(3), "of_class"),
    "class method, from below": (lambda it: it.of_class_too(3), "of_class_too"),
    "static method": (lambda it: it.static(3), "static"),
    "static method, from below": (lambda it: it.static_too(3), "static_too"),
    "below a decorator": (lambda it: it.below(3), "below"),
    "below one that does not tell": (lambda it: it.below_untold(3), "below_untold"),
    "below a class": (lambda it: it.below_a_class(3), "below_a_class"),
    "class method below a decorator": (lambda it: it.class_below(3), "class_below"),
    "above a decorator": (lambda it: it.above(3), "above"),
    "partialmethod": (lambda it: it.of_one(), "plain"),
    "property": (lambda it: it.made(3), "undecorated"),
    "singledispatchmethod": (lambda it: it.dispatched(3), "dispatched"),
    "super": (lambda it: Sub.overridden(it, 3) if isinstance(it, Sub) else it.overridden(3) * 2, "overridden"),
    "object": (lambda it: it(3), "__call__"),
    "unbound": (lambda it: Base.plain(it, 3), "plain"),
}


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("class_", [Base, Sub])
def test_methods_of_every_kind_are_steps(store: Any, kind: str, class_: type[Base]) -> None:
    """What they are called on is no argument; the arguments are watched all the same."""
    call, name = METHODS[kind]
    it, other = class_(), class_()
    life: list[Any] = [it]

    class Left(BaseException): ...

    def workflow(step: durable.Step, deps: Any) -> Any:
        value = call(life[0])
        if life[0] is it:
            raise Left
        return value

    with pytest.raises(Left):
        durable.run({}, workflow, id="r", store=store)
    assert list(recorded(store)) == [name]
    assert bool(store.load("r").steps[name].fingerprint)
    life[0] = other
    assert durable.run({}, workflow, id="r", store=store) == 6
    assert call(it) == 6


ALSO_OF_A_CLASS = ("plain", "pay", "of_class", "static", "below", "above")


@pytest.mark.parametrize(
    ("attribute", "args", "as_class"),
    [(name, (3,), as_class) for name in ALSO_OF_A_CLASS for as_class in (False, True)]
    + [
        ("made", (3,), False),
        ("dispatched", (3,), False),
        ("of_one", (), False),
    ],  # of a class, a descriptor gives itself
)
def test_methods_of_deps_are_steps_in_any_thread(
    store: Any, attribute: str, args: tuple[Any, ...], as_class: bool
) -> None:
    """`deps.method(…)` is bound to its run; so is a class that is given as deps."""
    is_of_class = attribute in ("of_class", "static")
    if as_class and not is_of_class:
        args = (Base(), *args)

    def workflow(step: durable.Step, deps: Any) -> Any:
        told: list[Any] = []
        fn = getattr(deps, attribute)
        thread = threading.Thread(target=lambda: told.append(fn(*args)))
        thread.start()
        thread.join()
        return told

    assert durable.run(Base if as_class else Base(), workflow, id="r", store=store) == [6]
    assert len(recorded(store)) == 1


def test_methods_by_name(store: Any) -> None:
    """`step("name", it.method, 3)`, bound or not, and an object: neither has its instance as an argument."""
    it = Sub()

    def workflow(step: durable.Step, deps: Any) -> list[Any]:
        bound = [it.plain, it.below, it.of_class, Base.static, it, it.made, it.dispatched, it.overridden, it.above]
        told = [step("m", fn, 3) for fn in bound]
        told += [step("deps", getattr(deps, name), 3) for name in ("plain", "below", "of_class")]
        return [*told, step("u", Base.plain, it, 3), step("p", it.of_one)]

    assert durable.run(it, workflow, id="r", store=store) == [6] * 14
    assert {step.fingerprint for key, step in store.load("r").steps.items() if key != "p"} == {
        store.load("r").steps["m"].fingerprint
    }


@dataclasses.dataclass
class Fields:
    """Dependencies as fields; with a default a step stands in the class, and is no method of it for that."""

    price: Callable[[int], int] = price
    other: Callable[[int], int] = dataclasses.field(default=twice(price))


@dataclasses.dataclass(slots=True)
class Slots:
    """The same in slots."""

    price: Callable[[int], int] = price
    other: Callable[[int], int] = dataclasses.field(default=twice(price))


@pytest.mark.parametrize("class_", [Fields, Slots])
def test_fields_that_hold_steps(store: Any, class_: Any) -> None:
    """Through deps and by their object; the argument is the first argument."""
    deps = class_()

    def workflow(step: durable.Step, given: Any) -> list[int]:
        return [given.price(3), given.other(3), deps.price(3), deps.other(3)]

    assert durable.run(deps, workflow, id="r", store=store) == [3, 6, 3, 6]
    assert len({step.fingerprint for step in store.load("r").steps.values()}) == 1


def test_a_function_that_becomes_a_method_later(store: Any) -> None:
    """Set on a class from outside, under another name, below a decorator, and for a class of classes."""

    class Meta(type):
        @durable.step
        def meta(cls, x: int) -> int:
            return x * 2

    class Late(metaclass=Meta):
        lock = threading.Lock()

    def outside(self: Any, x: int) -> int:
        return x * 2

    def outside_too(self: Any, x: int) -> int:
        return x

    Late.one = durable.step(outside)  # type: ignore[attr-defined]
    Late.two = twice(durable.step(name="two")(outside_too))  # type: ignore[attr-defined]

    def workflow(step: durable.Step, deps: Any) -> list[int]:
        late: Any = Late()
        return [late.one(3), late.two(3), Late.meta(3)]

    assert durable.run({}, workflow, id="r", store=store) == [6, 6, 6]


def test_a_run_leaves_nothing_behind_in_its_steps(store: Any) -> None:
    """What is known of classes is bounded, and no driver is kept by it."""
    seen: list[Any] = []

    def workflow(step: durable.Step, deps: Any) -> None:
        seen.append(weakref.ref(step))
        for number in range(3):
            step("price", deps.price, number)
            deps.price(number)
            made = dataclasses.make_dataclass(f"Made{number}", ["n"])
            step("p", lambda value: 1, made(1))

    durable.run({"price": twice(price)}, workflow, id="r", store=store)
    gc.collect()
    assert seen[0]() is None
