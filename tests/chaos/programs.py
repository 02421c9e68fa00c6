"""The workflows: every feature in eight kinds of runs, told once for both colours.

Each is a generator that yields what `step(...)` gave it. Blocking, that is the value already; async, it is awaited first.
What a run returns depends on its input alone, so that a run without faults says what all others must return.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator
from typing import Any, Final

import tenacity

import durable
from durable.snapshots import Snapshot

Program = Callable[[Any, Any, int], Generator[Any, Any, Any]]

INPUTS: Final = 5
PATIENT: Final = tenacity.Retrying(
    stop=tenacity.stop_after_attempt(400),
    wait=tenacity.wait_fixed(0.02),
    retry=tenacity.retry_if_exception_type((ConnectionError, durable.StoreError)),
)
BIG: Final = 300 * 1024  # bytes: more than travels with others


class OutOfOrder(Exception):
    """A world that is repaired only after a run has failed on it."""


def order(step: Any, scene: Any, n: int) -> Generator[Any, Any, Any]:
    """Ordinary steps, a retried one, and two that reach for other runs."""
    stock = yield step("reserve", scene.work, "reserve", n, key="reserve")
    paid = yield step("charge", scene.flaky, "charge", n * 100, key="charge", retry=PATIENT)
    yield step("tell", scene.tell, "tell", f"patient-{scene.number}", n, key="tell", retry=PATIENT)
    yield step("halt", scene.halt, "halt", f"halted-{scene.number}", key="halt", retry=PATIENT)
    receipt = yield step("receipt", scene.work, "receipt", f"{n} for {paid}", key="receipt")
    return {"stock": stock, "paid": paid, "receipt": receipt}


def fan(step: Any, scene: Any, n: int) -> Generator[Any, Any, Any]:
    """Many steps at once, and a value that is too big to travel with others."""
    sizes = yield step.map("measure", scene.measure, [f"item {n}.{i}" for i in range(6)], key=str, max_concurrency=3)
    pair = yield scene.together(
        step("left", scene.work, "left", n, key="left"), step("right", scene.work, "right", -n, key="right")
    )
    big = yield step("big", scene.big, "big", n, key="big")
    return {"sizes": sizes, "pair": list(pair), "big": zlib.crc32(big.encode())}


def money(step: Any, scene: Any, n: int) -> Generator[Any, Any, Any]:
    """Transactions, each of which is told to the bank."""
    for i in range(3):
        number = yield step.transaction("transfer", scene.transfer, i, n + 1, key=f"transfer-{i}")
        yield step("copy", scene.copy, f"copy-{i}", f"transfer-{i}", number, key=f"copy-{i}")
    return {"transferred": 3 * (n + 1)}


def patient(step: Any, scene: Any, n: int) -> Generator[Any, Any, Any]:
    """A sleep, and a signal that another run sends at least once."""
    yield step("before", scene.work, "before", n, key="before")
    yield step.sleep("nap", 0.1)
    told = yield step.wait_for("go")
    after = yield step("after", scene.work, "after", told + 1, key="after")
    return {"told": told, "after": after}


def once(step: Any, scene: Any, n: int) -> Generator[Any, Any, Any]:
    """A body that is never begun twice, and what becomes of a run whose body was interrupted."""
    yield step("ask", scene.work, "ask", n, key="ask")
    try:
        paid = yield step("pay", scene.work, "pay", n, key="pay", at_most_once=True)
    except durable.StepInterrupted:
        paid = yield step("look", scene.work, "look", n, key="look")
    return {"paid": paid}


def halted(step: Any, scene: Any, n: int) -> Generator[Any, Any, Any]:
    """Steps and sleeps, cancelled by another run and taken up again."""
    done = []
    for i in range(3):
        done.append((yield step("part", scene.work, f"part-{i}", n + i, key=f"part-{i}")))
        yield step.sleep(f"nap {i}", 0.05)
    return done


def broken(step: Any, scene: Any, n: int) -> Generator[Any, Any, Any]:
    """A step that fails the run until its world is repaired."""
    first = yield step("first", scene.work, "first", n, key="first")
    second = yield step("second", scene.broken, "second", n * 2, key="second")
    third = yield step("third", scene.work, "third", first + second, key="third")
    return {"third": third}


def moved(step: Any, scene: Any, n: int) -> Generator[Any, Any, Any]:
    """Two versions: in the second one a step has another name."""
    name = "pay" if scene.version == 1 else "charge"
    paid = yield step(name, scene.work, "pay", n, key=name)
    shipped = yield step("ship", scene.work, "ship", n + 1, key="ship")
    noted = yield step("note", scene.work, "note", n + 2, key="note")
    return [paid, shipped, noted]


def migrate(snapshot: Snapshot, version: int) -> Any:
    """A run of the first version, for the second."""
    document = snapshot.document()
    if "pay" in document["steps"]:
        document["steps"] = {
            {"pay": "charge"}.get(key, key): record | ({"name": "charge"} if key == "pay" else {})
            for key, record in document["steps"].items()
        }
    return document


def repeated(key: str) -> str:
    """The key under which the newest version knows a step."""
    return "charge" if key == "pay" else key


KINDS: Final[dict[str, Program]] = {
    program.__name__: program for program in (order, fan, money, patient, once, halted, broken, moved)
}


def blocking(program: Program) -> Callable[[Any, Any, int], Any]:
    """The program as a blocking workflow."""

    def workflow(step: Any, scene: Any, n: int) -> Any:
        running, value = program(step, scene, n), None
        while True:
            try:
                value = running.send(value)
            except StopIteration as end:
                return end.value

    workflow.__name__ = workflow.__qualname__ = program.__name__
    return workflow


def awaiting(program: Program) -> Callable[[Any, Any, int], Any]:
    """The program as an async workflow."""

    async def workflow(step: Any, scene: Any, n: int) -> Any:
        running = program(step, scene, n)
        advance, value = running.send, None
        while True:
            try:
                pending = advance(value)
            except StopIteration as end:
                return end.value
            try:
                advance, value = running.send, await pending
            except Exception as problem:
                advance, value = running.throw, problem

    workflow.__name__ = workflow.__qualname__ = program.__name__
    return workflow
