"""Starts as PostgreSQL gets them: one round trip for the runs and the notification, which may fail without them."""

from __future__ import annotations

from typing import Any

import pytest

import durable
from harness.proxy import Proxy
from harness.support import Database


@durable.workflow("started")
def started(step: durable.Step, _: Any) -> None:
    """Is never executed here."""


def test_a_start_and_its_notification_are_one_round_trip(database: Database) -> None:
    with Proxy(database.url) as proxy, database.store(proxy.url) as store:
        durable.start(started, id="warm-up", store=store)
        before = proxy.count()
        durable.start(started, id="run", store=store)
        assert proxy.count().since(before).round_trips == 1


def test_a_run_is_started_though_no_worker_can_be_notified(database: Database) -> None:
    """It is committed by then; the next poll finds it."""
    with database.store() as store:
        store.stats()
        database.execute("ALTER TABLE durable_workers RENAME TO elsewhere")
        handle = durable.start(started, id="run", store=store)
        assert handle.status() == "queued"
        assert database.execute("SELECT count(*) FROM durable_locks WHERE route IS NOT NULL") == [(1,)]
        database.execute("ALTER TABLE elsewhere RENAME TO durable_workers")
        durable.start(started, id="next", store=store)


def test_a_start_that_fails_is_not_taken_for_one_whose_notification_failed(database: Database) -> None:
    with database.store() as store:
        store.stats()
        database.execute("ALTER TABLE durable_snapshots RENAME TO elsewhere")
        with pytest.raises(durable.DurableError):
            durable.start(started, id="run", store=store)
        database.execute("ALTER TABLE elsewhere RENAME TO durable_snapshots")
        assert database.execute("SELECT count(*) FROM durable_locks") == [(0,)]
