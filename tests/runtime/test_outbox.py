"""What is started in a transaction of the caller's: there with its commit, gone with its rollback, in nobody's way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

import durable
from durable._engine.starts import Route
from durable.errors import AsyncMismatch, RunExists, RunMismatch, UnsuitableConnection
from durable.stores import PostgresStore, memory
from durable.stores.requests import Poll
from harness.ownership_children import wait_until
from harness.support import Database

WITHIN: Final = 30.0  # seconds, for what a worker does at once


@durable.workflow(name="checkout")
def checkout(step: durable.Step, deps: Any, order: dict[str, Any]) -> Any:
    return step("charge", lambda: order["n"] + 1)


@durable.workflow(name="bare")
def bare(step: durable.Step, deps: Any) -> str:
    return "bare"


@pytest.fixture
def store(database: Database) -> Iterator[PostgresStore]:
    with database.store() as made:
        made.stats()  # its tables are there
        yield made


@pytest.fixture
def connection(database: Database) -> Iterator[psycopg.Connection[Any]]:
    """The caller's own connection, which does not know of the store's schema."""
    with psycopg.connect(database.url) as made:
        yield made


def is_waiting(database: Database, connection: psycopg.Connection[Any]) -> bool:
    """Whether this connection waits for a lock just now."""
    return bool(database.execute("SELECT 1 FROM pg_locks WHERE NOT granted AND pid = %s", connection.info.backend_pid))


Start = Callable[..., str]


@pytest.fixture(params=["blocking", "async"])
def start(request: pytest.FixtureRequest, database: Database) -> Start:
    """Starts a run in a transaction of its own connection, which it then ends as it is told; returns the run's id."""

    def blocking(store: PostgresStore, *args: Any, end: str, **options: Any) -> str:
        with psycopg.connect(database.url) as made:
            handle = durable.start(*args, store=store, connection=made, **options)
            made.execute(sql.SQL(end))
            return handle.id

    async def awaited(store: PostgresStore, *args: Any, end: str, **options: Any) -> str:
        async with await psycopg.AsyncConnection.connect(database.url) as made:
            handle = await durable.aio.start(*args, store=store, connection=made, **options)
            await made.execute(sql.SQL(end))
            return handle.id

    return blocking if request.param == "blocking" else lambda *args, **options: asyncio.run(awaited(*args, **options))


def test_a_start_is_there_with_the_commit(store: PostgresStore, start: Start) -> None:
    assert start(store, checkout, {"n": 3}, id="order-3", end="COMMIT") == "order-3"
    assert store.status("order-3") == "queued"
    with durable.Worker(store, None, [checkout]):
        assert durable.handle(store, "order-3", checkout).result(WITHIN) == 4


def test_a_start_is_gone_with_the_rollback(store: PostgresStore, start: Start, database: Database) -> None:
    before = database.everything()
    start(store, checkout, {"n": 3}, id="order-3", dedup="order-3", end="ROLLBACK")
    assert store.status("order-3") is None
    assert database.everything() == before
    assert durable.start(checkout, {"n": 4}, id="order-3", dedup="order-3", store=store).status() == "queued"


def test_nothing_is_seen_before_the_commit(store: PostgresStore, connection: psycopg.Connection[Any]) -> None:
    handle = durable.start(checkout, {"n": 1}, store=store, connection=connection)
    assert (handle.status(), store.stats().queued) == (None, 0)
    durable.Worker(store, None, [checkout]).run_until_idle()
    assert handle.status() is None
    connection.commit()
    durable.Worker(store, None, [checkout]).run_until_idle()
    assert handle.result() == 2


def test_wake_wakes_an_idle_worker_for_what_was_committed(
    store: PostgresStore, connection: psycopg.Connection[Any], database: Database
) -> None:
    woken = threading.Event()
    listening = store.listen("w1", woken.set)
    try:
        routes = [Route("default", "checkout", 1)]
        store.perform(Poll(routes, 0, 30.0, lambda lease: True, worker="w1", says_idle=True))
        durable.start(checkout, {"n": 2}, store=store, connection=connection)
        durable.wake(store)  # nothing is due yet
        connection.commit()
        assert database.execute("SELECT idle FROM durable_workers") == [(True,)]
        durable.wake(store)
        assert woken.wait(WITHIN)
        assert database.execute("SELECT idle FROM durable_workers") == [(False,)]
    finally:
        listening.close()


def test_the_answers_are_those_of_any_start(store: PostgresStore, connection: psycopg.Connection[Any]) -> None:
    given: dict[str, Any] = {"store": store, "connection": connection}
    durable.start(checkout, {"n": 1}, id="a", **given)
    assert durable.start(checkout, {"n": 1}, id="a", **given).id == "a"  # in the same transaction
    connection.commit()
    assert durable.start(checkout, {"n": 1}, id="a", **given).id == "a"
    with pytest.raises(RunMismatch):
        durable.start(checkout, {"n": 2}, id="a", **given)
    with pytest.raises(RunExists):
        durable.start(checkout, {"n": 1}, id="a", on_conflict="raise", **given)
    assert durable.start(bare, id="d", dedup="one", **given).id == "d"
    assert durable.start(bare, id="e", dedup="one", **given).id == "d"
    connection.commit()  # no answer has ended the transaction
    assert durable.start(bare, id="e", dedup="one", **given).id == "d"
    assert [store.status(name) for name in "ade"] == ["queued", "queued", None]


def test_many_are_started_in_one_transaction(store: PostgresStore, connection: psycopg.Connection[Any]) -> None:
    runs = [durable.Start({"n": n}, id=f"run-{n}") for n in range(2500)]
    handles = durable.start_many(checkout, runs, store=store, connection=connection)
    assert (len(handles), store.stats().queued) == (2500, 0)
    connection.rollback()
    assert store.stats().queued == 0
    durable.start_many(checkout, runs, store=store, connection=connection)
    connection.commit()
    assert store.stats().queued == 2500


def test_two_transactions_with_one_dedup_lead_to_one_run(store: PostgresStore, database: Database) -> None:
    """The second waits for the first, and then is not refused: in its transaction nothing has failed."""
    with psycopg.connect(database.url) as first, psycopg.connect(database.url) as second:
        durable.start(bare, id="a", dedup="one", store=store, connection=first)
        started: list[str] = []

        async def both() -> None:
            waiting = asyncio.to_thread(durable.start, bare, id="b", dedup="one", store=store, connection=second)
            task = asyncio.ensure_future(waiting)
            await asyncio.to_thread(wait_until, lambda: is_waiting(database, second), "the second to wait")
            first.commit()
            started.append((await task).id)

        asyncio.run(both())
        second.commit()
    assert started == ["a"]
    assert (store.status("b"), store.stats().queued) == (None, 1)
    assert database.execute("SELECT workflow_id FROM durable_locks") == [("a",)]


def test_one_statement_is_sent_and_nothing_is_left_behind(store: PostgresStore, database: Database) -> None:
    connection: psycopg.Connection[Any]
    with psycopg.connect(database.url, prepare_threshold=0, row_factory=dict_row) as connection:
        durable.start(bare, store=store, connection=connection)  # asks once where it leads
        connection.commit()
        sent: list[str] = []
        wait = connection.wait

        def counting(*args: Any, **options: Any) -> Any:
            sent.append("")
            return wait(*args, **options)

        connection.wait = counting  # type: ignore[method-assign]
        durable.start(checkout, {"n": 1}, store=store, connection=connection)
        assert len(sent) == 1  # which psycopg has begin its transaction by itself
        del connection.wait
        prepared = connection.execute("SELECT statement FROM pg_prepared_statements").fetchall()
        assert [row for row in prepared if "durable" in row["statement"]] == []
        assert connection.info.transaction_status.name == "INTRANS"
        assert connection.execute("SELECT 1 AS one").fetchone() == {"one": 1}


@pytest.mark.parametrize("settings", ["", "search_path = pg_temp", "search_path = ''", "client_encoding = LATIN1"])
def test_settings_of_the_caller_do_not_matter(store: PostgresStore, database: Database, settings: str) -> None:
    with psycopg.connect(database.url) as connection:
        if settings:
            connection.execute(sql.SQL("SET " + settings))
        handle = durable.start(checkout, {"n": 1, "text": "żółw 🐢"}, id="一", store=store, connection=connection)
        connection.commit()
    document = store.load(handle.id)
    assert isinstance(document, durable.Snapshot)
    assert isinstance(document.input, msgspec.Raw)
    assert bytes(document.input).decode() == '{"n":1,"text":"żółw 🐢"}'


def test_an_autocommit_connection_commits_at_once_but_in_a_block(store: PostgresStore, database: Database) -> None:
    with psycopg.connect(database.url, autocommit=True) as connection:
        durable.start(bare, id="a", store=store, connection=connection)
        assert store.status("a") == "queued"
        with connection.transaction():
            durable.start(bare, id="b", store=store, connection=connection)
            assert store.status("b") is None
        assert store.status("b") == "queued"
        with connection.transaction(force_rollback=True):
            durable.start(bare, id="c", store=store, connection=connection)
        assert store.status("c") is None


def test_a_savepoint_takes_its_starts_with_it(store: PostgresStore, connection: psycopg.Connection[Any]) -> None:
    durable.start(bare, id="a", store=store, connection=connection)
    with connection.transaction(force_rollback=True):
        durable.start(bare, id="b", store=store, connection=connection)
    connection.commit()
    assert (store.status("a"), store.status("b")) == ("queued", None)


def test_a_pipeline_of_the_callers_goes_on(store: PostgresStore, connection: psycopg.Connection[Any]) -> None:
    with connection.pipeline():
        asked = connection.execute("SELECT 1")
        durable.start(bare, id="a", store=store, connection=connection)
        connection.execute("SELECT 2")
    assert asked.fetchone() == (1,)
    connection.commit()
    assert store.status("a") == "queued"


def test_the_body_of_a_transactional_step_starts_a_run_with_it(store: PostgresStore) -> None:
    failing = [True]

    def orders(connection: psycopg.Connection[Any]) -> str:
        handle = durable.start(bare, id="child", store=store, connection=connection)
        if failing.pop():
            raise ValueError
        return handle.id

    def parent(step: durable.Step, deps: Any) -> str:
        return step.transaction("order", orders)

    with pytest.raises(ValueError):
        durable.run(None, parent, id="parent", store=store)
    assert store.status("child") is None
    failing.append(False)
    assert durable.run(None, parent, id="parent", store=store) == "child"
    assert store.status("child") == "queued"


# -- what is refused


def test_a_closed_connection_is_refused(store: PostgresStore, database: Database) -> None:
    connection = psycopg.connect(database.url)
    connection.close()
    with pytest.raises(UnsuitableConnection, match="closed"):
        durable.start(bare, store=store, connection=connection)


def test_a_transaction_that_has_failed_is_refused(store: PostgresStore, connection: psycopg.Connection[Any]) -> None:
    durable.start(bare, id="a", store=store, connection=connection)
    with pytest.raises(psycopg.errors.DivisionByZero):
        connection.execute("SELECT 1 / 0")
    with pytest.raises(UnsuitableConnection, match="roll it back first"):
        durable.start(bare, id="b", store=store, connection=connection)
    connection.rollback()
    durable.start(bare, id="b", store=store, connection=connection)
    connection.commit()
    assert (store.status("a"), store.status("b")) == (None, "queued")


def test_another_database_is_refused_and_its_transaction_goes_on(store: PostgresStore, database: Database) -> None:
    name = database.schema + "_other"
    with psycopg.connect(database.url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    try:
        with psycopg.connect(make_conninfo(database.url, dbname=name)) as elsewhere:
            elsewhere.execute("CREATE TABLE mine AS SELECT 1")
            with pytest.raises(UnsuitableConnection, match=f"leads to the database '{name}'"):
                durable.start(bare, store=store, connection=elsewhere)
            assert elsewhere.execute("SELECT * FROM mine").fetchall() == [(1,)]
            elsewhere.commit()
            # The same schema and tables are there: it is another database all the same.
            elsewhere.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(database.schema)))
            elsewhere.execute(sql.SQL("CREATE TABLE {}.durable_snapshots ()").format(sql.Identifier(database.schema)))
            with pytest.raises(UnsuitableConnection, match="leads to the database"):
                durable.start(bare, store=store, connection=elsewhere)
    finally:
        with psycopg.connect(database.url, autocommit=True) as admin:
            admin.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(name)))


@pytest.mark.parametrize("given", [7, "postgresql://localhost", psycopg.Connection, object()])
def test_what_is_no_connection_is_a_type_error_that_says_what_is(store: PostgresStore, given: object) -> None:
    with pytest.raises(TypeError, match=r"psycopg.Connection, Django's connection, or a Connection of SQLAlchemy's"):
        durable.start(bare, store=store, connection=given)
    with pytest.raises(TypeError, match="AsyncConnection"):
        asyncio.run(durable.aio.start(bare, store=store, connection=given))


def test_a_connection_of_the_other_colour_is_refused(store: PostgresStore, database: Database) -> None:
    async def both() -> None:
        async with await psycopg.AsyncConnection.connect(database.url) as awaited:
            with pytest.raises(AsyncMismatch, match=r"await durable.aio.start\(…\)"):
                durable.start(bare, store=store, connection=awaited)
        with psycopg.connect(database.url) as blocking, pytest.raises(AsyncMismatch, match=r"call durable.start\(…\)"):
            await durable.aio.start(bare, store=store, connection=blocking)

    asyncio.run(both())


def test_the_store_in_memory_refuses_a_connection(connection: psycopg.Connection[Any]) -> None:
    with memory() as store:
        with pytest.raises(UnsuitableConnection, match="the store in memory has none"):
            durable.start(bare, store=store, connection=connection)
        with pytest.raises(UnsuitableConnection, match="the store in memory has none"):
            asyncio.run(durable.aio.start(bare, store=store, connection=connection))


def test_errors_of_the_database_are_the_connections_own(store: PostgresStore, database: Database) -> None:
    durable.start(bare, id="a", store=store)
    with psycopg.connect(database.url) as connection:
        connection.execute("SET default_transaction_read_only = on")
        connection.commit()
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            durable.start(bare, id="b", store=store, connection=connection)
