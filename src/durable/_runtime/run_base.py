"""What both forms of a run share: whatever neither blocks nor awaits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable
from typing import Final, cast

from durable._common.reports import say
from durable._engine.backoff import delay_run
from durable._engine.decisions import EndRun
from durable._engine.leases import Lease
from durable._engine.steps import LiveExecution
from durable._runtime.driver import Driver
from durable._runtime.plan import Plan
from durable._runtime.stalled_bodies import report_stalls
from durable.errors import DurableError, RunSuspended
from durable.records import Status
from durable.stores.requests import Release

#: Seconds that a run which is being left waits for its last checkpoints, and again for its release.
LEAVE_TIMEOUT: Final = 5.0

# Errors, and what comes from outside and says nothing of the run; what else leaves it would end a process, like `SystemExit`.
_NO_DEATH: Final = (Exception, asyncio.CancelledError, KeyboardInterrupt, GeneratorExit)

_log = logging.getLogger("durable")


class RunBase:
    """One call of `run`, blocking or async."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._store = plan.store
        self._clock = plan.clock
        self._driver: Driver | None = None
        self._over = False
        self._leaves = False
        self._execution: LiveExecution | None = None
        #: Called when nothing is left but to record how it ended.
        self.on_ending: Callable[[], object] | None = None
        #: How it was ended, once that is committed.
        self.finished: EndRun | None = None
        #: Seconds until it is due again, once it is suspended.
        self.suspended_for = math.inf

    def _forget(self, lease: Lease) -> None:
        """Note that the lease is given back."""
        with contextlib.suppress(ValueError):
            self._plan.claim.taken.remove(lease)

    def _leases_left(self) -> list[tuple[Lease, Status | None]]:
        """The leases that this call still has after its end, each with the status that its run goes back to."""
        status = self.former_status()
        return [(lease, status) for lease in list(self._plan.claim.taken)]

    def former_status(self) -> Status | None:
        """What the run goes back to when it is left now; None leaves it running."""
        return None if self._execution is None else self._execution.former_status()

    def _release(self, lease: Lease, status: Status | None, reason: BaseException | None) -> Release:
        """The request that gives the lease back, for this reason."""
        suspension = None if self._execution is None else self._execution.suspension
        if suspension is None or not isinstance(reason, RunSuspended):
            return Release(lease, status, delay_run(reason))
        return Release(lease, status, max(0.0, suspension.until - self._clock.elapsed()), suspension.awaits)

    def _note_release(self, release: Release, is_due: bool) -> None:
        """The lease is given back; a suspended run `is_due` at once where what it awaits is there already."""
        if release.awaits is not None:
            self.suspended_for = 0.0 if is_due else release.due_in

    def leave_as_dead(self, lease: Lease, reason: BaseException | None) -> bool:
        """Let the lease end by itself, as if this process had died, where a worker's run was left by what ends a process.

        The worker lives on. When the lease has ended, the run is taken again, and a death is counted: it is not begun for ever.
        """
        if not self._plan.is_queued or reason is None or not _is_death(reason):
            return False
        lease.is_left = True
        self._forget(lease)
        return True

    def hand_over(self) -> None:
        """Let another worker go on with the run at its next step."""
        self._leaves = True
        if self._execution is not None:
            self._execution.is_leaving = True

    def _note(self, execution: LiveExecution) -> LiveExecution:
        """Note what is being executed now."""
        self._execution = execution
        execution.is_leaving = self._leaves  # asked for before there was one
        return execution

    def is_alive(self, running: bool) -> bool:
        """Whether work still goes on under the lease. Asked by the heartbeat; stalled steps are reported by the way."""
        if self._over or not running or (self._plan.is_late and not (self._execution and self._execution.is_closing)):
            return False
        if self._driver is not None and self._execution is not None:
            report_stalls(self._execution, self._driver.clock)
        return True


def _is_death(reason: BaseException) -> bool:
    """Whether this would end a process; of a group, whether any of its leaves would."""
    if isinstance(reason, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", reason)
        return group.split(_NO_DEATH)[1] is not None
    return not isinstance(reason, _NO_DEATH)


def leave_to_expire(lease: Lease, problem: DurableError) -> None:
    """Warn that the lease could not be given back."""
    message = "the lease on run %r could not be given back (%s) and ends by itself"
    say(_log, logging.WARNING, message, lease.run_id, type(problem).__name__)
