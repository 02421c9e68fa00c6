"""Runs of a rehearsal that a worker holds: executed under the lease that its poll was granted."""

from __future__ import annotations

from functools import partial
from typing import Any

from durable._engine.decisions import Granted
from durable._runtime.async_runs import AsyncRun
from durable._runtime.runs import BlockingRun
from durable.testing._rehearsal.drivers import AsyncRehearsedDriver, BlockingRehearsedDriver
from durable.testing._rehearsal.runs import RehearsedRun


class HeldBlockingRun(BlockingRun):
    """One of a blocking workflow."""

    def __init__(self, run: RehearsedRun) -> None:
        super().__init__(run.plan, partial(BlockingRehearsedDriver, run))
        self._rehearsed = run

    def outcome(self, granted: Granted | None = None) -> Any:
        """See `BlockingRun.outcome`."""
        try:
            return super().outcome(None if granted is None else self._rehearsed.adopt(granted))
        finally:
            self._rehearsed.close()


class HeldAsyncRun(AsyncRun):
    """One of an async workflow."""

    def __init__(self, run: RehearsedRun) -> None:
        super().__init__(run.plan, partial(AsyncRehearsedDriver, run))
        self._rehearsed = run

    async def outcome(self, granted: Granted | None = None) -> Any:
        """See `AsyncRun.outcome`."""
        try:
            return await super().outcome(None if granted is None else self._rehearsed.adopt(granted))
        finally:
            self._rehearsed.close()
