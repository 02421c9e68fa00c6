"""What it costs to write a value and to read it again, beside msgspec, pydantic and pickle, in one run.

    python benchmarks/codec.py

Each figure is the best of rounds in which all take turns, since what others do on the machine only adds to it. `durable`
is told no type, and includes the check that the value comes back as it was; `bare` is the least that such a check can cost
for plain JSON. msgspec and pydantic are told the type, which is compiled before the clock starts, and check what they
read; pickle is told nothing, and checks nothing.
"""

from __future__ import annotations

import argparse
import marshal
import math
import pickle
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, TypeVar

import msgspec
import pydantic

from durable.codecs import JsonCodec


@dataclass
class Line:
    """A line of an order."""

    sku: str
    price: float
    count: int
    note: str


@dataclass
class ExactLine:
    """The same, with a price that needs a tag."""

    sku: str
    price: Decimal
    count: int


@dataclass
class Order:
    """An order: 9 KB of JSON are eleven of them."""

    number: int
    paid: datetime
    lines: list[Line]
    tags: tuple[str, ...]


@dataclass
class ExactOrder:
    """The same of exact lines."""

    number: int
    paid: datetime
    lines: list[ExactLine]
    tags: tuple[str, ...]


T = TypeVar("T")

START = datetime(2031, 5, 1, 12, tzinfo=UTC)
SMALL = {"id": "u-1234567", "name": "someone", "total": 42, "price": 12.5, "ok": True, "tags": ["a", "b"], "n": None}


def orders(order: Callable[..., T], line: Callable[[int, int], Any]) -> list[T]:
    """Eleven orders of six lines."""
    return [
        order(number, START + timedelta(minutes=number), [line(number, n) for n in range(6)], ("new", "paid"))
        for number in range(11)
    ]


ORDERS = orders(Order, lambda number, n: Line(f"sku-{number}-{n}", n / 4, n, "no sugar, but " * 3))
EXACT = orders(ExactOrder, lambda number, n: ExactLine(f"sku-{number}-{n}", Decimal(n) / 4, n))
ROWS = [
    {"id": n, "name": f"name {n}", "x": n * 1.1, "list": [1, 2, 3], "text": "hello world " * 3} for n in range(9_800)
]


@dataclass
class Case:
    """One value, its type, how often it is written and read a round, and the goal in microseconds."""

    name: str
    value: Any
    type: Any
    times: int
    goal: float


CASES = [
    Case("a dict of 100 bytes", SMALL, dict[str, Any], 2_000, 4.0),
    Case("9 KB of nested data classes", ORDERS, list[Order], 20, 600.0),
    Case("… with a Decimal in each", EXACT, list[ExactOrder], 20, math.inf),
    Case("1 MB of plain JSON", ROWS, list[dict[str, Any]], 1, 25_000.0),
]


def durable_way(value: Any, _: Any) -> Callable[[], Any]:
    """As a step does."""
    codec = JsonCodec()
    return lambda: codec.decode(codec.encode(value, what="it"), run_id="r", where="here")


def bare_way(value: Any, _: Any) -> Callable[[], Any]:
    """The least that a checked round trip of plain JSON can be: msgspec, and marshal to compare."""
    encode, decode, dumps = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode, marshal.dumps

    def both() -> Any:
        text = encode(value)
        if dumps(value, 2) != dumps(decode(text), 2):
            raise ValueError
        return decode(text)

    return both


def msgspec_way(value: Any, type_: Any) -> Callable[[], Any]:
    """Told the type."""
    encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder(type_).decode
    return lambda: decode(encode(value))


def pydantic_way(value: Any, type_: Any) -> Callable[[], Any]:
    """Told the type."""
    adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(type_)
    return lambda: adapter.validate_json(adapter.dump_json(value))


def pickle_way(value: Any, _: Any) -> Callable[[], Any]:
    """The newest protocol."""
    return lambda: pickle.loads(pickle.dumps(value, -1))  # noqa: S301 -- what was written here a moment ago


WAYS = {
    "durable": durable_way,
    "bare": bare_way,
    "msgspec": msgspec_way,
    "pydantic": pydantic_way,
    "pickle": pickle_way,
}


def microseconds(way: Callable[[], Any], times: int) -> float:
    """What one costs, over so many."""
    start = time.perf_counter()
    for _ in range(times):
        way()
    return (time.perf_counter() - start) / times * 1e6


def measure(case: Case, rounds: int) -> dict[str, float]:
    """The best of each way; all take turns."""
    ways = {name: make(case.value, case.type) for name, make in WAYS.items()}
    if case.value is not SMALL and case.value is not ROWS:
        del ways["bare"]  # knows plain JSON only
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(microseconds(way, case.times))
    return {name: min(values) for name, values in times.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    print(f"µs to write and read again; Python {platform.python_version()}, {platform.machine()}")
    print(f"{'':28s} {'bytes':>9s} {'goal':>9s} {'':3s}" + "".join(f"{name:>10s}" for name in WAYS))
    for case in CASES:
        size = len(JsonCodec().encode(case.value, what="it"))
        figures = measure(case, rounds)
        met = "" if case.goal == math.inf else "yes" if figures["durable"] <= case.goal else "NO"
        goal = "" if case.goal == math.inf else f"{case.goal:,.0f}"
        cells = "".join(f"{figures[name]:10,.1f}" if name in figures else f"{'–':>10s}" for name in WAYS)
        print(f"{case.name:28s} {size:9,d} {goal:>9s} {met:3s}{cells}")


if __name__ == "__main__":
    main()
