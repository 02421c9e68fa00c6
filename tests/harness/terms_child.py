"""Workflows that `test_terms_killed` runs in processes of their own, and kills: retried, sleeping, waiting, mapping."""

from __future__ import annotations

import asyncio
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import tenacity

import durable
from durable.events import RunEvent, StepRecorded, StepRemembered
from durable.stores import postgres
from harness.ownership_children import leave_trace

RUN: Final = "killed"
ITEMS: Final = 24
AT_ONCE: Final = 4
_TWICE: Final = tenacity.Retrying(stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_fixed(0.05))


@dataclass(frozen=True)
class Life:
    """What one process is to do: a story of `STORIES`, and where it kills itself, or waits for the test."""

    url: str
    schema: str
    effects: str
    story: str
    dies: str = ""
    waits: str = ""


class World:
    """The deps: what the bodies do leaves a line in a file."""

    def __init__(self, life: Life, meet: Callable[[], object]) -> None:
        self._life = life
        self._meet = meet

    def do(self, what: str) -> str:
        """A body."""
        leave_trace(self._life.effects, what)
        self._at(f"body {what}")
        return what

    def fail(self) -> None:
        """A body that cannot succeed."""
        self.do("charge")
        raise ConnectionError("no route")

    def measure(self, item: int) -> int:
        """The body of an item; the process dies in the middle of them all."""
        self.do(f"item {item}")
        if len(Path(self._life.effects).read_text().splitlines()) >= ITEMS // 2:  # two threads may have written
            self._at("half of the items")
        return item * item

    def hear(self, event: RunEvent) -> None:
        """A listener."""
        match event:
            case StepRecorded(key=key):
                self._at(f"recorded {key}")
            case StepRemembered(key=key):
                self._at(f"remembered {key}")
            case _:
                pass

    def _at(self, place: str) -> None:
        if place == self._life.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        if place == self._life.waits:
            self._meet()


def retried(step: durable.Step, world: World) -> Any:
    return step("charge", world.fail, retry=_TWICE)


async def retried_async(step: durable.AsyncStep, world: World) -> Any:
    return await step("charge", world.fail, retry=_TWICE)


def once(step: durable.Step, world: World) -> str:
    return step("charge", world.do, "charge", at_most_once=True)


async def once_async(step: durable.AsyncStep, world: World) -> str:
    return await step("charge", world.do, "charge", at_most_once=True)


def slept(step: durable.Step, world: World) -> str:
    step("before", world.do, "before")
    step.sleep("nap", 0.5)
    woken = step("woken", lambda: datetime.now(UTC).isoformat())
    return woken + step("after", world.do, "after")[:0]


async def slept_async(step: durable.AsyncStep, world: World) -> str:
    await step("before", world.do, "before")
    await step.sleep("nap", 0.5)
    woken = await step("woken", lambda: datetime.now(UTC).isoformat())
    return woken + (await step("after", world.do, "after"))[:0]


def approved(step: durable.Step, world: World) -> list[Any]:
    first = step.wait_for("approved", timeout=60)
    step("charge", world.do, "charge")
    return [first, step.wait_for("approved", timeout=60)]


async def approved_async(step: durable.AsyncStep, world: World) -> list[Any]:
    first = await step.wait_for("approved", timeout=60)
    await step("charge", world.do, "charge")
    return [first, await step.wait_for("approved", timeout=60)]


def mapped(step: durable.Step, world: World) -> list[int]:
    return step.map("measure", world.measure, range(ITEMS), max_concurrency=AT_ONCE)


async def mapped_async(step: durable.AsyncStep, world: World) -> list[int]:
    return await step.map("measure", world.measure, range(ITEMS), max_concurrency=AT_ONCE)


def cancelled(step: durable.Step, world: World) -> list[str]:
    return [step(name, world.do, name) for name in ("one", "two", "three")]


async def cancelled_async(step: durable.AsyncStep, world: World) -> list[str]:
    return [await step(name, world.do, name) for name in ("one", "two", "three")]


STORIES: Final[dict[str, Callable[..., Any]]] = {
    fn.__name__: fn
    for pair in (
        (retried, retried_async),
        (once, once_async),
        (slept, slept_async),
        (approved, approved_async),
        (mapped, mapped_async),
        (cancelled, cancelled_async),
    )
    for fn in pair
}


def live(pipe: Connection, life: Life) -> None:
    """One life; says ("returned", value), ("raised", class, notes), or nothing at all."""

    def meet() -> None:
        pipe.send("here")
        pipe.recv()

    world, story = World(life, meet), STORIES[life.story]
    with postgres(life.url, schema=life.schema) as store:
        try:
            outcome: Any = durable.run(world, story, id=RUN, store=store, on_event=world.hear)
            said: tuple[Any, ...] = ("returned", asyncio.run(outcome) if asyncio.iscoroutine(outcome) else outcome)
        except (durable.DurableError, ConnectionError) as problem:
            said = ("raised", type(problem).__name__, getattr(problem, "__notes__", []))
        except BaseException:
            said = ("broke", traceback.format_exc())
    pipe.send(said)
