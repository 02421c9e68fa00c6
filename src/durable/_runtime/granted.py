"""The plan of a run that a worker has got."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from durable._engine.decisions import Claim, Granted
from durable._runtime.context import Running
from durable._runtime.plan import Plan, arities, deadline_at
from durable._runtime.run_options import RunOptions
from durable._runtime.step_options import step_options
from durable._runtime.workflow import WorkflowDefinition
from durable.clocks import clock_of
from durable.codecs import codec_of
from durable.events import Listener
from durable.stores.protocol import RunStore


def claim_granted(granted: Granted, definition: WorkflowDefinition) -> Claim:
    """The claim that would have led to this grant."""
    lease = granted.lease
    return Claim(
        run_id=lease.run_id,
        workflow=definition.name,
        function=definition.function,
        version=definition.version,
        seconds=lease.seconds,
        metadata=granted.header.metadata,
        taken=[lease],
    )


def plan_granted(
    deps: Any,
    fn: Callable[..., Any],
    definition: WorkflowDefinition,
    claim: Claim,
    granted: Granted,
    store: RunStore,
    on_event: Listener | None,
    suspend_after: float,
) -> Plan:
    """What to execute under this grant, and with what."""
    header, lease, clock = granted.header, granted.lease, clock_of(store)
    deadline, started = header.metadata.get("deadline"), header.execution.started_at
    moment = datetime.fromisoformat(deadline) if isinstance(deadline, str) else None
    since = (clock.now() - datetime.fromisoformat(started)).total_seconds() if started else 0.0
    return Plan(
        deps,
        fn,
        claim,
        store,
        arities(fn),
        RunOptions(definition.version, None, "raise", None, lease.seconds, moment, None, None, None, on_event),
        step_options(None, None),
        deadline_at(moment, clock),
        (),
        Running(store.identity, lease.run_id, claim.workflow, claim.version),
        codec_of(store),
        clock,
        run_retry=definition.retry,
        began=clock.elapsed() - since,
        is_queued=True,
        suspend_after=suspend_after,
    )
