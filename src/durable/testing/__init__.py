"""What the library's own tests use, for yours."""

from durable.testing.awaited_stores import AsyncSnapshotStoreSuite
from durable.testing.run_stores import RunStoreSuite
from durable.testing.snapshot_stores import LeasedStoreSuite, SnapshotStoreSuite
from durable.testing.transactions import TransactionSuite

__all__ = [
    "AsyncSnapshotStoreSuite",
    "LeasedStoreSuite",
    "RunStoreSuite",
    "SnapshotStoreSuite",
    "TransactionSuite",
]
