"""What the library's own tests use, for yours."""

from durable.testing.run_stores import RunStoreSuite
from durable.testing.snapshot_stores import LeasedStoreSuite, SnapshotStoreSuite
from durable.testing.transactions import TransactionSuite

__all__ = ["LeasedStoreSuite", "RunStoreSuite", "SnapshotStoreSuite", "TransactionSuite"]
