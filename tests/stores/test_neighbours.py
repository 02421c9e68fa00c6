"""What else uses the same database: an application's advisory locks, and a transaction that stays open."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

import durable
from durable import Step
from durable._engine.decisions import Claim, Granted
from durable._engine.leases import Lease
from durable.stores import PostgresStore
from durable.stores._embedded.server import Server
from durable.stores._postgres.schema import _LOCK_SPACE
from durable.stores.requests import Begin
from harness.ownership_children import remove_server, wait_until
from harness.support import Database


def three(step: Step, _: None) -> list[int]:
    return [step("number", abs, number, key=str(number)) for number in range(3)]


# -- advisory locks -------------------------------------------------------------------------------------------------


@contextmanager
def connected(database: Database) -> Iterator[psycopg.Connection[Any]]:
    """The application, on a connection of its own."""
    with psycopg.connect(database.url, autocommit=True) as connection:
        yield connection


def impatient(database: Database) -> str:
    """A way to the database on which waiting for a lock is an error, not a test that hangs."""
    return make_conninfo(database.url, options="-c lock_timeout=3s")


@contextmanager
def being_migrated(database: Database) -> Iterator[int]:
    """Our tables are being made, and that waits for the application; the second number of our lock's key."""
    with connected(database) as application:
        application.execute(f"CREATE SCHEMA {database.schema}")
        application.execute("BEGIN")
        application.execute(f"CREATE TABLE {database.schema}.durable_steps (mine int)")
        store = database.store()
        starting = threading.Thread(target=lambda: durable.run(None, three, id="first", store=store))
        starting.start()
        try:
            waits = (
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'durable' AND wait_event_type = 'Lock'"
            )
            wait_until(lambda: database.execute(waits + " AND datname = current_database()") == [(1,)], "it to wait")
            held = "SELECT objid::bigint::bit(32)::int, objsubid, mode, granted FROM pg_locks"
            held += " WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            assert [row[1:] for row in database.execute(held)] == [(2, "ExclusiveLock", True)], "one, of two keys"
            yield database.execute(held)[0][0]
        finally:
            application.execute("ROLLBACK")
            starting.join()


def test_our_advisory_lock_is_in_nobodys_way(database: Database) -> None:
    """FAULTS 54: while our tables are being made, the application takes any lock of its own, also of a like number."""
    with being_migrated(database) as table, connected(database) as application:
        try_lock = "SELECT pg_try_advisory_lock(%s::bigint)"
        both = (_LOCK_SPACE << 32) | (table & 0xFFFFFFFF)
        for key in [*range(-50, 50), table, _LOCK_SPACE, both]:
            assert application.execute(try_lock, (key,)).fetchone() == (True,), key
        try_lock = "SELECT pg_try_advisory_lock(%s, %s)"
        for keys in [(0, 0), (1, table), (table, _LOCK_SPACE), (_LOCK_SPACE, table ^ 1)]:
            assert application.execute(try_lock, keys).fetchone() == (True,), keys
        taken = (_LOCK_SPACE, table)
        assert application.execute(try_lock, taken).fetchone() == (False,), "the lock that is meant is another one"
    assert database.status("first") == "completed"
    advisory = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
    advisory += " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    assert database.execute(
        advisory + " AND pid IN (SELECT pid FROM pg_stat_activity WHERE application_name = 'durable')"
    ) == [(0,)]


def test_an_applications_advisory_locks_are_not_in_our_way(database: Database) -> None:
    """FAULTS 54: any number of them, when our tables are made and afterwards."""
    with being_migrated(database) as table:
        pass
    database.execute(f"DROP SCHEMA {database.schema} CASCADE")
    with connected(database) as application:
        application.execute("SELECT pg_advisory_lock(key) FROM generate_series(-1000, 1000) AS key")
        application.execute("SELECT pg_advisory_lock(space, 0) FROM generate_series(-1000, 1000) AS space")
        for key in (table, _LOCK_SPACE, (_LOCK_SPACE << 32) | (table & 0xFFFFFFFF)):
            application.execute("SELECT pg_advisory_lock(%s::bigint)", (key,))
        assert durable.run(None, three, id="made", store=database.store(impatient(database))) == [0, 1, 2]
        # Even the very lock: where the tables are there, none is taken.
        application.execute("SELECT pg_advisory_lock(%s, %s)", (_LOCK_SPACE, table))
        assert durable.run(None, three, id="there", store=database.store(impatient(database))) == [0, 1, 2]


# -- a transaction that stays open ----------------------------------------------------------------------------------

LEASES, BEATS = 40, 100


@pytest.fixture(scope="module")
def quiet_server() -> Iterator[str]:
    """A server of this file's own: a transaction in another database, too, puts off what can be removed in this one."""
    directory = Path(tempfile.mkdtemp(prefix="durable-test-"))
    server = Server(directory / "durable")
    yield server.url
    server.close()
    remove_server(directory / "durable")
    shutil.rmtree(directory)


@pytest.fixture
def quiet(quiet_server: str) -> Iterator[Database]:
    database = Database(quiet_server, f"t_{secrets.token_hex(6)}")
    yield database
    database.drop()


def granted(store: PostgresStore, run_id: str) -> Lease:
    """A lease on a new run, which the store's heartbeat leaves alone."""
    reply = store.perform(Begin(Claim(run_id=run_id, workflow="held", version=1, seconds=600.0), lambda: False))
    assert isinstance(reply, Granted)
    return reply.lease


def beaten(store: PostgresStore, leases: list[Lease]) -> None:
    """Renew them all, again and again."""
    for _ in range(BEATS):
        assert len(store._held.resources._renew(leases)) == LEASES


def sizes(database: Database) -> tuple[int, int]:
    """Bytes of the leases' rows, and of their indexes."""
    query = "SELECT pg_relation_size('durable_locks'), pg_indexes_size('durable_locks')"
    rows, indexes = database.execute(query)[0]
    return rows, indexes


def updates(database: Database, at_least: int) -> tuple[int, int]:
    """How many updates the leases have seen, and how many of them in their page (HOT); backends tell when they end."""
    query = f"SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_all_tables WHERE relid = '{database.schema}.durable_locks'::regclass"
    wait_until(lambda: database.execute(query)[0][0] >= at_least, "the statistics")
    all_of_them, in_their_page = database.execute(query)[0]
    return all_of_them, in_their_page


def test_leases_that_are_renewed_take_no_room(quiet: Database) -> None:
    """FAULTS 57, the comparison: every update finds room in its page, and no index hears of it."""
    with quiet.store() as store:
        leases = [granted(store, f"run-{number}") for number in range(LEASES)]
        before = sizes(quiet)
        beaten(store, leases)
    assert sizes(quiet) == before
    all_of_them, in_their_page = updates(quiet, LEASES * BEATS)
    assert in_their_page >= all_of_them - 2 * LEASES


def test_leases_that_are_renewed_under_an_open_transaction(quiet: Database) -> None:
    """FAULTS 57: nothing can be removed, so rows grow by their narrow selves, and the indexes by every second of them at
    most; no payload is copied; when the transaction has ended, the room is used again.
    """
    payload = "x" * 10_000

    def large(step: Step, _: None) -> str:
        return step("large", lambda: payload)

    with quiet.store() as store, psycopg.connect(quiet.url) as holder:
        durable.run(None, large, id="large", store=store)
        leases = [granted(store, f"run-{number}") for number in range(LEASES)]
        before = sizes(quiet)
        journal = "SELECT pg_total_relation_size('durable_steps'), pg_total_relation_size('durable_snapshots')"
        payloads = quiet.execute(journal)
        holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        holder.execute("SELECT 1")  # from here on it might look at any version of a row
        beaten(store, leases)
        held = sizes(quiet)
        holder.rollback()
        quiet.execute("VACUUM durable_locks")
        beaten(store, leases)
        after = sizes(quiet)
    renewals = LEASES * BEATS
    assert held[0] > before[0] + 50 * renewals, "the versions were removed, so this has shown nothing"
    assert held[0] < before[0] + 200 * renewals
    assert held[1] < before[1] + 2 * 60 * renewals  # two indexes, half of the updates, pages that are half full
    assert after == held
    assert quiet.execute(journal) == payloads
    all_of_them, in_their_page = updates(quiet, 2 * renewals)
    assert in_their_page > 0.7 * all_of_them
