"""The two drivers of a rehearsal: the real ones, that say where they are."""

from __future__ import annotations

from typing import Any

from durable._engine.calls import Call
from durable._engine.decisions import Attempt, StepOutcome
from durable._runtime.async_steps import AsyncDriver
from durable._runtime.bodies import Body
from durable._runtime.driver import Driver
from durable._runtime.steps import BlockingDriver
from durable.stores.protocol import Transaction
from durable.testing._part import Part

__all__ = ["AsyncRehearsedDriver", "BlockingRehearsedDriver"]


class _Rehearsed(Driver):
    """What has no colour in it."""

    def __init__(self, part: Part, *args: Any) -> None:
        super().__init__(*args)
        self._part = part
        part.execution = self._execution

    def _perform(self, call: Call, attempt: Attempt, body: Body, transaction: Transaction) -> StepOutcome:
        self._part.begins(self._execution, call)
        with self._part.watch.at_work():
            outcome = super()._perform(call, attempt, self._part.cast(call, body), transaction)
        self._part.passes(self._execution, "after body", call)
        return outcome


class BlockingRehearsedDriver(_Rehearsed, BlockingDriver):
    """`BlockingDriver`, with a part to play."""

    def _drive(self, call: Call, body: Body) -> Any:
        fresh = self._part.asked(self._execution, call, body)
        try:
            return super()._drive(call, body)
        finally:
            if fresh:
                with self._lock:
                    self._part.settled(self._execution, call)

    def _attempt(self, call: Call, attempt: Attempt, body: Body) -> StepOutcome:
        self._part.begins(self._execution, call)
        with self._part.watch.at_work():
            outcome = super()._attempt(call, attempt, self._part.cast(call, body))
        self._part.passes(self._execution, "after body", call)
        return outcome


class AsyncRehearsedDriver(_Rehearsed, AsyncDriver):
    """`AsyncDriver`, with a part to play."""

    async def _drive(self, call: Call, body: Body) -> Any:
        fresh = self._part.asked(self._execution, call, body)
        try:
            return await super()._drive(call, body)
        finally:
            if fresh:
                self._part.settled(self._execution, call)

    async def _attempt(self, call: Call, attempt: Attempt, body: Body) -> StepOutcome:
        self._part.begins(self._execution, call)
        with self._part.watch.at_work():
            outcome = await super()._attempt(call, attempt, self._part.cast(call, body))
        self._part.passes(self._execution, "after body", call)
        return outcome
