"""What an application, or the body of a transaction, sets on its connections is for its own SQL: FAULTS 181."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.types.string import TextLoader
from psycopg_pool import ConnectionPool

import durable
from durable.stores import PostgresStore, postgres
from harness.support import Database

SETTINGS = [
    "datestyle=SQL,DMY", "datestyle=German", "intervalstyle=sql_standard", "timezone=Asia/Kathmandu", "bytea_output=escape",
    "extra_float_digits=-15", "array_nulls=off", "standard_conforming_strings=off", "default_transaction_isolation=serializable",
    "search_path=pg_catalog", "transform_null_equals=on", "xmloption=document",
]  # fmt: skip


@pytest.fixture
def registered() -> Iterator[None]:
    """The application's own loaders and dumpers, for all of psycopg."""

    class Shout(psycopg.adapt.Dumper):
        oid = psycopg.adapters.types["text"].oid

        def dump(self, obj: Any) -> bytes:
            return str(obj).upper().encode()

    before = psycopg.adapters
    kept = psycopg.adapt.AdaptersMap(before)
    for name in ("timestamptz", "int8", "int4", "bool", "float8", "text", "json", "numeric"):
        before.register_loader(name, TextLoader)
    before.register_dumper(str, Shout)
    yield
    for name in ("_dumpers", "_loaders", "_dumpers_by_oid"):
        setattr(before, name, getattr(kept, name))


def used(store: PostgresStore) -> None:
    """Most verbs."""

    def workflow(step: durable.Step, _: None) -> list[Any]:
        durable.signal(store, "run", "go", 1)
        return [
            step("one", lambda: 1.1),
            step.wait_for("go", timeout=10),
            step.transaction("two", lambda _connection: 2),
        ]

    def fails(step: durable.Step, _: None) -> None:
        step("one", lambda: 1)
        raise ValueError

    for _ in range(2):
        assert durable.run(None, workflow, id="run", store=store) == [1.1, 1, 2]
        with pytest.raises(ValueError, match=r"^$"):
            durable.run(None, fails, id="failing", store=store)
    lines = store.list()
    assert sorted(line.id for line in lines) == ["failing", "run"]
    assert all(isinstance(line[1], dt.datetime) and line[1].utcoffset() is not None for line in lines)
    assert store.status("run") == "completed"
    assert store.status("failing") == "failed"
    snapshot = store.load("run")
    assert snapshot is not None
    store.save("saved", snapshot)
    store.delete("saved")


@pytest.mark.parametrize("way", ["url", "pool"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_of_the_application(database: Database, setting: str, way: str) -> None:
    """R-F14: of a role, a database, or a URL."""
    url = make_conninfo(database.url, options=f"-c {setting}")
    if way == "url":
        used(database.store(url))
    else:
        with ConnectionPool(url, min_size=1, open=True) as pool, postgres(pool=pool, schema=database.schema) as store:
            used(store)


@pytest.mark.parametrize("way", ["url", "pool"])
def test_adapters_of_the_application(database: Database, registered: None, way: str) -> None:
    """R-F14: they are for its SQL: that of a transaction's body as well, and not for ours."""
    if way == "url":
        store = database.store()
        used(store)
    else:
        with (
            ConnectionPool(database.url, min_size=1, open=True) as pool,
            postgres(pool=pool, schema=database.schema) as store,
        ):
            used(store)
        store = database.store()

    def body(connection: psycopg.Connection[Any]) -> list[Any]:
        row = connection.execute("SELECT 1::int8, %s::text", ["x"]).fetchone()
        return list(row or ())

    assert durable.run(None, lambda step, _: step.transaction("t", body), id="own", store=store) == ["1", "X"]


Act = Callable[[psycopg.Connection[Any]], object]
LEFT: dict[str, tuple[Act, str, Any]] = {
    "lock": (
        lambda c: c.execute("SELECT pg_advisory_lock(77)"),
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()", 0),
    "listen": (lambda c: c.execute("LISTEN x"), "SELECT count(*) FROM pg_listening_channels()", 0),
    "cursor": (lambda c: c.execute("DECLARE cc CURSOR WITH HOLD FOR SELECT 1"), "SELECT count(*) FROM pg_cursors", 0),
    "prepared": (
        lambda c: c.execute("PREPARE pp AS SELECT 1"), "SELECT count(*) FROM pg_prepared_statements WHERE from_sql", 0),
    "temporary": (
        lambda c: c.execute("CREATE TEMP TABLE tt (x int)"), "SELECT count(*) FROM pg_class WHERE relpersistence = 't'", 0),
    "setting": (lambda c: c.execute("SET statement_timeout = 12345"), "SELECT current_setting('statement_timeout')", "0"),
    "role": (lambda c: c.execute("SET ROLE pg_monitor"), "SELECT current_setting('role')", "none"),
    "adapter": (lambda c: c.adapters.register_loader("int8", TextLoader), "SELECT 5::int8", 5),
    "row factory": (lambda c: setattr(c, "row_factory", psycopg.rows.dict_row), "SELECT 5", 5),
    "threshold": (lambda c: setattr(c, "prepare_threshold", 0), "SELECT 5", 5),
}  # fmt: skip


@pytest.mark.parametrize("what", LEFT)
@pytest.mark.parametrize("fails", [False, True])
def test_what_a_body_leaves_is_gone_for_the_next(database: Database, what: str, fails: bool) -> None:
    """R-F13, A-c42: also when it fails; it is the same connection, if it is one that can be used again."""
    store = database.store(max_transactions=1)
    act, query, expected = LEFT[what]

    def leaves(connection: psycopg.Connection[Any]) -> None:
        act(connection)
        if fails:
            raise ValueError

    def looks(connection: psycopg.Connection[Any]) -> Any:
        row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return [row[0], connection.prepare_threshold]

    def workflow(step: durable.Step, _: None) -> Any:
        before = step.transaction("before", looks)
        try:
            step.transaction("leaves", leaves)
        except ValueError:
            assert fails
        assert step("plain", lambda: 1) == 1
        assert step.transaction("looks", looks) == before
        return before[0]

    assert durable.run(None, workflow, id="run", store=store) == expected


def test_handlers_of_a_body_are_gone_for_the_next(database: Database) -> None:
    """R-F13: it hears its own notices, and no other's."""
    store, heard = database.store(max_transactions=1), list[str | None]()

    def hears(connection: psycopg.Connection[Any]) -> None:
        connection.add_notice_handler(lambda notice: heard.append(notice.message_primary))
        connection.execute("DO $$ BEGIN RAISE NOTICE 'mine'; END $$")

    def notices(connection: psycopg.Connection[Any]) -> None:
        connection.execute("DO $$ BEGIN RAISE NOTICE 'another'; END $$")

    for number, body in enumerate((hears, notices)):

        def workflow(step: durable.Step, _: None, body: Act = body) -> None:
            step.transaction("t", body)

        durable.run(None, workflow, id=f"run-{number}", store=store)
    assert heard == ["mine"]
