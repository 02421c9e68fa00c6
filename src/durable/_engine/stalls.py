"""Which steps' bodies have been silent for too long."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from durable._engine.calls import Call, Phase
from durable._engine.decisions import Reading
from durable._engine.leases import Lease
from durable.events import StepStalled

STALLED_AFTER: Final = 3  # leases


def find_stalled(running: Iterable[Call], lease: Lease, reading: Reading) -> list[StepStalled]:
    """The calls, of those that are running, whose bodies have been silent for too long; each is told once."""
    silent: list[StepStalled] = []
    for call in running:
        seconds = reading.elapsed - call.began
        if call.phase is Phase.BODY and not call.stalled and seconds >= STALLED_AFTER * lease.seconds:
            call.stalled = True
            silent.append(StepStalled(lease.run_id, reading.at, call.key, call.name, seconds))
    return silent
