"""The two drivers of a rehearsal: the real ones, that say where they are."""

from __future__ import annotations

from typing import Any

from durable._engine.calls import Call
from durable._engine.decisions import Attempt, StepOutcome
from durable._runtime.driver import Body, Driver
from durable._runtime.handles import AsyncStep, Step
from durable.stores.protocol import Transaction
from durable.testing._part import Part

__all__ = ["AsyncRehearsedStep", "RehearsedStep"]


class _Rehearsed(Driver):
    """What has no colour in it."""

    def __init__(self, part: Part, *args: Any) -> None:
        super().__init__(*args)
        self._part = part
        part.execution = self._execution

    def _performed(self, call: Call, attempt: Attempt, body: Body, transaction: Transaction) -> StepOutcome:
        self._part.begins(self._execution, call)
        with self._part.watch.at_work():
            outcome = super()._performed(call, attempt, self._part.cast(call, body), transaction)
        self._part.passes(self._execution, "after body", call)
        return outcome


class RehearsedStep(_Rehearsed, Step):
    """`Step`, with a part to play."""

    def _driven(self, call: Call, body: Body) -> Any:
        fresh = self._part.asked(self._execution, call, body)
        try:
            return super()._driven(call, body)
        finally:
            if fresh:
                with self._lock:
                    self._part.settled(self._execution, call)

    def _attempted(self, call: Call, attempt: Attempt, body: Body) -> StepOutcome:
        self._part.begins(self._execution, call)
        with self._part.watch.at_work():
            outcome = super()._attempted(call, attempt, self._part.cast(call, body))
        self._part.passes(self._execution, "after body", call)
        return outcome


class AsyncRehearsedStep(_Rehearsed, AsyncStep):
    """`AsyncStep`, with a part to play."""

    async def _driven(self, call: Call, body: Body) -> Any:
        fresh = self._part.asked(self._execution, call, body)
        try:
            return await super()._driven(call, body)
        finally:
            if fresh:
                self._part.settled(self._execution, call)

    async def _attempted(self, call: Call, attempt: Attempt, body: Body) -> StepOutcome:
        self._part.begins(self._execution, call)
        with self._part.watch.at_work():
            outcome = await super()._attempted(call, attempt, self._part.cast(call, body))
        self._part.passes(self._execution, "after body", call)
        return outcome
