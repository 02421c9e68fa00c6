"""Says that bodies have been running for too long."""

from __future__ import annotations

import logging
from typing import Final

from durable._common.reports import call_listener, report
from durable._engine.decisions import Reading
from durable._engine.stalls import find_stalled
from durable._engine.steps import LiveExecution
from durable.clocks import Clock

_log: Final = logging.getLogger("durable")


def report_stalls(execution: LiveExecution, clock: Clock) -> None:
    """Report those of an execution; called by the heartbeat's thread."""
    reading = Reading(clock.now(), clock.elapsed())
    for event in find_stalled(execution.running, execution.lease, reading):
        message = "run %r: step %r has been running for %.0f s"
        report(_log, logging.WARNING, message, event.run_id, event.key, event.seconds)
        if (emit := execution.emit) is not None:  # a listener that takes its time must not cost a lease
            call_listener(emit, event)
