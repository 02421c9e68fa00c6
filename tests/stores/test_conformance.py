"""Every store passes the suites that `durable.testing` ships: both of ours, also through PgBouncer, and one of five verbs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

import pytest

from durable.stores import MemoryStore, PostgresStore, memory
from durable.testing import (
    AsyncSnapshotStoreSuite,
    LeasedStoreSuite,
    RunStoreSuite,
    SnapshotStoreSuite,
    TransactionSuite,
)
from harness.pgbouncer import bouncer
from harness.shelves import AsyncShelf, Shelf
from harness.support import Database, needs_pgbouncer


class InMemory:
    @pytest.fixture
    def store(self) -> Iterator[MemoryStore]:
        with memory() as store:
            yield store


class InPostgres:
    @pytest.fixture
    def store(self, database: Database) -> PostgresStore:
        return database.store()


class ThroughPgBouncer:
    @pytest.fixture
    def store(self, database: Database) -> Iterator[PostgresStore]:
        with bouncer(database.url) as started, database.store(started.url) as store:
            yield store


class UnderAPrefix:
    """Beside other runs of the same ids, which nobody may see."""

    @pytest.fixture
    def store(self, database: Database) -> PostgresStore:
        with database.store(prefix="other_") as other:
            for name in ("run", "a", "nothing", "x" * 500):
                other.save(name, {"kind": "ResumeState", "steps": []})
        return database.store(prefix="o_", table="durable_snapshots")


class TestSnapshotsInMemory(InMemory, LeasedStoreSuite):
    """The model."""


class TestRunsInMemory(InMemory, RunStoreSuite):
    """The model."""


class TestSnapshotsInPostgres(InPostgres, LeasedStoreSuite):
    """The product."""


class TestRunsInPostgres(InPostgres, RunStoreSuite):
    """The product."""


class TestTransactionsInPostgres(InPostgres, TransactionSuite):
    """The product."""


@needs_pgbouncer
class TestTransactionsThroughPgBouncer(ThroughPgBouncer, TransactionSuite):
    """In transaction mode."""


class TestTransactionsUnderAPrefix(UnderAPrefix, TransactionSuite):
    """The fence is on the row with the prefix."""


@needs_pgbouncer
class TestSnapshotsThroughPgBouncer(ThroughPgBouncer, LeasedStoreSuite):
    """In transaction mode."""


@needs_pgbouncer
class TestRunsThroughPgBouncer(ThroughPgBouncer, RunStoreSuite):
    """In transaction mode."""


class TestRunsUnderAPrefix(UnderAPrefix, RunStoreSuite):
    """Ids and lock ids carry it."""


class TestSnapshotsOnAShelf(SnapshotStoreSuite):
    """A user's own."""

    @pytest.fixture
    def store(self) -> Shelf:
        return Shelf()


class TestSnapshotsOnAShelfThatIsAwaited(AsyncSnapshotStoreSuite):
    """A user's own, whose verbs are coroutines."""

    @pytest.fixture
    def make_store(self) -> Callable[[], Awaitable[AsyncShelf]]:
        async def make() -> AsyncShelf:
            return AsyncShelf()

        return make
