"""What the library's own tests use, for yours: a rehearsal for workflows, and the suites that a store must pass."""

from durable.testing._rehearsal.clock import JumpingClock
from durable.testing._rehearsal.crashes import Crash, Crashed, Place
from durable.testing._rehearsal.rehearsal import Rehearsal
from durable.testing._rehearsal.scripts import Script
from durable.testing._rehearsal.timeline import RehearsalError
from durable.testing._suites.async_snapshot_stores import AsyncSnapshotStoreSuite
from durable.testing._suites.run_stores import RunStoreSuite
from durable.testing._suites.snapshot_stores import LeasedStoreSuite, SnapshotStoreSuite
from durable.testing._suites.transactions import TransactionSuite
from durable.testing.replays import Replayed, replay
from durable.testing.survival import survives

__all__ = [
    "AsyncSnapshotStoreSuite",
    "Crash",
    "Crashed",
    "JumpingClock",
    "LeasedStoreSuite",
    "Place",
    "Rehearsal",
    "RehearsalError",
    "Replayed",
    "RunStoreSuite",
    "Script",
    "SnapshotStoreSuite",
    "TransactionSuite",
    "replay",
    "survives",
]
