"""The drivers of a rehearsal: the real ones, which tell the rehearsed run where they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from durable._engine.calls import Call
from durable._engine.decisions import Attempt, StepOutcome
from durable._runtime.async_steps import AsyncDriver
from durable._runtime.bodies import Body
from durable._runtime.driver import Driver
from durable._runtime.steps import BlockingDriver
from durable.records import Record
from durable.stores.protocol import Transaction
from durable.testing._rehearsal.runs import RehearsedRun


class _Rehearsed(Driver):
    """What both drivers share."""

    def __init__(self, run: RehearsedRun, *args: Any) -> None:
        super().__init__(*args)
        self._run = run
        run.execution = self._execution

    def _perform(self, call: Call, attempt: Attempt, body: Body, transaction: Transaction) -> StepOutcome:
        self._run.on_body(self._execution, call)
        with self._run.watch.at_work():
            outcome = super()._perform(call, attempt, self._run.scripted(call, body), transaction)
        self._run.pass_by(self._execution, "after body", call)
        return outcome


class BlockingRehearsedDriver(_Rehearsed, BlockingDriver):
    """A `BlockingDriver` that tells its run."""

    def _drive(self, call: Call, body: Body) -> Any:
        fresh = self._run.on_call(self._execution, call, body)
        try:
            return super()._drive(call, body)
        finally:
            if fresh:
                with self._lock:
                    self._run.on_settled(self._execution, call)

    def _attempt(self, call: Call, attempt: Attempt, body: Body) -> StepOutcome:
        self._run.on_body(self._execution, call)
        with self._run.watch.at_work():
            outcome = super()._attempt(call, attempt, self._run.scripted(call, body))
        self._run.pass_by(self._execution, "after body", call)
        return outcome


class AsyncRehearsedDriver(_Rehearsed, AsyncDriver):
    """An `AsyncDriver` that tells its run."""

    # Also while a request is on its way to the store's thread, and its answer back.

    async def _receive(self, names: Sequence[str], taken: Sequence[int]) -> StepOutcome:
        with self._run.watch.at_work(progress=False):
            return await super()._receive(names, taken)

    async def _checkpoint(self, call: Call, record: Record) -> StepOutcome:
        with self._run.watch.at_work():
            return await super()._checkpoint(call, record)

    async def _drive(self, call: Call, body: Body) -> Any:
        fresh = self._run.on_call(self._execution, call, body)
        try:
            return await super()._drive(call, body)
        finally:
            if fresh:
                self._run.on_settled(self._execution, call)

    async def _attempt(self, call: Call, attempt: Attempt, body: Body) -> StepOutcome:
        self._run.on_body(self._execution, call)
        with self._run.watch.at_work():
            outcome = await super()._attempt(call, attempt, self._run.scripted(call, body))
        self._run.pass_by(self._execution, "after body", call)
        return outcome
