"""Runs that SQL starts, and signals that it sends: functions in the store's schema, for triggers and other languages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import psycopg
import pytest
from psycopg import sql

import durable
from durable.errors import RunMismatch
from durable.stores import PostgresStore
from harness.support import Database

ORDER: Final = {"n": 1.0, "text": "żółw 🐢", "big": 1e16, "none": None, "list": [True, -0.0]}


@durable.workflow(name="checkout", version=2)
def checkout(step: durable.Step, deps: Any, order: dict[str, Any]) -> Any:
    return [order, step.wait_for("go")]


@durable.workflow(name="bare")
def bare(step: durable.Step, deps: Any) -> str:
    return "bare"


@pytest.fixture
def store(database: Database) -> Iterator[PostgresStore]:
    with database.store() as made:
        made.stats()
        yield made


def worked(store: PostgresStore) -> None:
    durable.Worker(store, None, [checkout, bare]).run_until_idle()


def one(database: Database, query: str, *values: Any) -> Any:
    ((value,),) = database.execute(query, *values)
    return value


def test_sql_starts_a_run_and_signals_it(store: PostgresStore, database: Database) -> None:
    text = json.dumps(ORDER, indent=2)
    run_id = one(database, "SELECT durable_start('checkout@2', %s::json, id => 'order-7')", text)
    assert (run_id, store.status("order-7")) == ("order-7", "queued")
    assert one(database, "SELECT durable_signal('order-7', 'go', %s::json)", '{"a": [1]}') is True
    worked(store)
    assert durable.result(store, "order-7") == [ORDER, {"a": [1]}]


def test_what_is_left_out_is_as_in_python(store: PostgresStore, database: Database) -> None:
    run_id = one(database, "SELECT durable_start('bare')")
    document, handle = store.load(run_id), durable.start(bare, store=store)
    other = store.load(handle.id)
    assert document is not None
    assert other is not None
    for field in ("workflow_name", "result", "failure", "input"):
        assert getattr(document, field) == getattr(other, field)
    leases = database.execute("SELECT route, priority, epoch, owner_token FROM durable_locks")
    assert leases[0] == leases[1]
    assert set(document.metadata) == set(other.metadata) - {"workflowFunction"}
    assert one(database, "SELECT durable_signal(%s, 'go')", run_id) is True
    assert database.execute("SELECT payload::text FROM durable_signals") == [("null",)]


def test_it_is_in_the_transaction_that_calls_it(store: PostgresStore, database: Database) -> None:
    start = sql.SQL("SELECT {}.durable_start('bare', id => 'a')").format(sql.Identifier(database.schema))
    with psycopg.connect(database.url) as connection:
        connection.execute(start)
        assert store.status("a") is None
        connection.rollback()
        assert store.status("a") is None
        connection.execute(start)
        connection.commit()
    assert store.status("a") == "queued"


def test_a_trigger_starts_a_run_for_each_row(store: PostgresStore, database: Database) -> None:
    database.execute("CREATE TABLE orders (number integer, euros numeric)")
    database.execute(
        "CREATE FUNCTION started() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM durable_start("
        "'checkout@2', row_to_json(NEW), id => 'order-' || NEW.number, dedup => 'order'); RETURN NEW; END $$"
    )
    database.execute("CREATE TRIGGER starts AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION started()")
    database.execute("INSERT INTO orders VALUES (7, 42.50), (8, 1)")
    assert (store.status("order-7"), store.status("order-8")) == ("queued", None)  # one of a dedup
    assert one(database, "SELECT durable_signal('order-7', 'go')") is True
    worked(store)
    assert durable.result(store, "order-7") == [{"number": 7, "euros": 42.5}, None]


def test_the_same_again_is_the_same_run(store: PostgresStore, database: Database) -> None:
    start = "SELECT durable_start('checkout@2', '{\"n\": 1, \"m\": 2}', id => 'a')"
    assert [one(database, start), one(database, start)] == ["a", "a"]
    assert one(database, "SELECT durable_start('checkout@2', '{\"m\":2,\"n\":1}', id => 'a')") == "a"
    assert durable.start(checkout, {"n": 1, "m": 2}, id="a", store=store).id == "a"  # its input is not compared
    with pytest.raises(RunMismatch):
        durable.start(bare, id="a", store=store)
    for other in ("'bare', '{\"n\": 1, \"m\": 2}'", "'checkout@2', '{\"n\": 2}'", "'checkout@2'"):
        with pytest.raises(psycopg.errors.UniqueViolation, match='the run "a"'):
            one(database, f"SELECT durable_start({other}, id => 'a')")
    durable.start(checkout, {"n": 1}, id="b", store=store)
    assert one(database, "SELECT durable_start('checkout@2', '{\"n\": 1}', id => 'b')") == "b"
    assert one(database, "SELECT durable_start('bare', id => 'c', dedup => 'one')") == "c"
    assert one(database, "SELECT durable_start('bare', id => 'd', dedup => 'one')") == "c"
    assert durable.start(bare, id="d", dedup="one", store=store).id == "c"
    durable.Worker(store, None, [bare]).run_until_idle()
    assert one(database, "SELECT durable_start('bare', id => 'd', dedup => 'one')") == "d"


def test_dedups_of_signals_are_those_of_python(store: PostgresStore, database: Database) -> None:
    handle = durable.start(bare, id="a", store=store)
    assert handle.signal("gó", 1, dedup="click") is True
    assert one(database, "SELECT durable_signal('a', 'gó', '2', dedup => 'click')") is True
    assert one(database, "SELECT durable_signal('a', 'gó', '3', dedup => 'other')") is True
    assert handle.signal("gó", 4, dedup="other") is True
    assert database.execute("SELECT payload::text FROM durable_signals ORDER BY number") == [("1",), ("3",)]


def test_a_signal_to_no_run_is_kept_only_for_later(store: PostgresStore, database: Database) -> None:
    assert one(database, "SELECT durable_signal('none', 'go')") is False
    assert one(database, "SELECT count(*) FROM durable_signals") == 0
    assert one(database, "SELECT durable_signal('none', 'go', create_later => true)") is False
    assert one(database, "SELECT count(*) FROM durable_signals") == 1


def test_options_route_the_run(database: Database) -> None:
    with database.store(prefix="shop/") as store:
        store.stats()
        options = (
            "id => 'a', queue => 'q\"1', priority => 2, delay => '1 hour', prefix => 'shop/', metadata => '{\"by\": 1}'"
        )
        assert one(database, f"SELECT durable_start('bare', {options}, dedup => 'x')") == "a"
        assert (
            one(
                database, f"SELECT durable_start('bare', {options.replace(chr(39) + 'a', chr(39) + 'b')}, dedup => 'x')"
            )
            == "a"
        )
        durable.start(bare, id="c", queue='q"1', priority=2, delay=3600, metadata={"by": 1}, store=store, dedup="y")
        lines = database.execute("SELECT route, priority, due_at > now() + interval '50 min' FROM durable_locks")
        assert lines[0] == lines[1] == ('["shop/","q\\"1","bare",1]', 2, True)
        documents = [store.load(name) for name in "ac"]
        assert [document and document.metadata["by"] for document in documents] == [1, 1]
        assert durable.start(bare, id="b", queue='q"1', dedup="x", store=store).id == "a"
        assert one(database, "SELECT durable_signal('a', 'go', prefix => 'shop/')") is True


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ("durable_start('')", "the name of the workflow"),
        ("durable_start(NULL)", "the name of the workflow"),
        ("durable_start('bare', id => '')", "the id must have"),
        ("durable_start('bare', id => repeat('x', 513))", "the id must have"),
        ("durable_start('bare', id => '', prefix => 'shop/')", "the id must have"),
        ("durable_start('bare@2147483648')", "the version after the @"),
        ("durable_start('bare@99999999999999999999999')", "the version after the @"),
        ("durable_start('bare', '1e400')", "too great"),
        ("durable_start('bare', '{\"a\": [1, -1e400]}')", "too great"),
        ("durable_start('bare', metadata => '{\"a\": 1e400}')", "too great"),
        ("durable_signal('', 'go', prefix => 'shop/')", "id, name and dedup"),
        ("durable_signal('a', 'go', '[1e400]')", "too great"),
        ("durable_start('bare', queue => '')", "queue and dedup"),
        ("durable_start('bare', dedup => '')", "queue and dedup"),
        ("durable_start('bare', priority => 10)", "the priority must be"),
        ("durable_start('bare', priority => NULL)", "the priority must be"),
        ("durable_start('bare', at => now(), delay => '1 s')", "give one of them"),
        ("durable_start('bare', at => 'infinity')", "within a hundred years"),
        ("durable_start('bare', at => '20000-01-01')", "within a hundred years"),
        ("durable_start('bare', at => '4000-01-01 BC')", "within a hundred years"),
        ("durable_start('bare', delay => '101 years')", "within a hundred years"),
        ("durable_start('bare', (repeat('[', 300) || repeat(']', 300))::json)", "more than 200 levels"),
        (
            """durable_start('bare', metadata => ('{"a": ' || repeat('[', 300) || repeat(']', 300) || '}')::jsonb)""",
            "more than 200 levels",
        ),
        ("durable_signal('a', 'go', (repeat('[', 300) || repeat(']', 300))::json)", "more than 200 levels"),
        ("durable_start('bare', delay => '-1 s')", "within a hundred years"),
        ("durable_start('bare', metadata => '[1]')", "the metadata must be an object"),
        *[
            (f"durable_start('bare', metadata => '{{\"{key}\": 1}}')", "the metadata must be an object")
            for key in ("stepOrder", "deadline", "version", "inputHash", "workflowFunction")
        ],
        ('durable_start(\'bare\', \'{"a": [{"$type": "datetime"}]}\')', "a key \\$type"),
        ("durable_start('bare', '{\"a\": {\"\\u0024type\": 1}}')", "a key \\$type"),
        ("durable_start('bare', '{\"a\": \"\\u0000\"}')", "Unicode escape"),
        ("durable_signal('', 'go')", "id, name and dedup"),
        ("durable_signal('a', '')", "id, name and dedup"),
        ("durable_signal(NULL, 'go')", "id, name and dedup"),
        ("durable_signal('a', 'go', dedup => '')", "id, name and dedup"),
        ("durable_signal('a', 'go', '{\"$type\": 1}')", "a key \\$type"),
    ],
)
def test_what_no_run_can_have_is_refused(store: PostgresStore, database: Database, call: str, why: str) -> None:
    durable.start(bare, id="a", store=store)
    before = database.everything()
    with pytest.raises(psycopg.Error, match=why):
        database.execute(f"SELECT {call}")
    assert database.everything() == before


def test_a_text_that_looks_like_a_tag_is_none(store: PostgresStore, database: Database) -> None:
    text = json.dumps({"a": "$type", "b": '{"$type": 1}'})
    one(database, "SELECT durable_start('checkout@2', %s::json, id => 'a')", text)
    one(database, "SELECT durable_signal('a', 'go')")
    worked(store)
    assert durable.result(store, "a") == [json.loads(text), None]


def test_nobody_may_before_a_grant_and_then_without_rights_on_the_tables(
    store: PostgresStore, database: Database
) -> None:
    role, schema = sql.Identifier("role_" + database.schema), sql.Identifier(database.schema)
    with psycopg.connect(database.url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {}").format(role))
        try:
            admin.execute(sql.SQL("GRANT USAGE, CREATE ON SCHEMA {} TO {}").format(schema, role))
            admin.execute(sql.SQL("SET ROLE {}").format(role))
            # What stands in the way of a search path that is not the function's own is not called.
            mine = "CREATE FUNCTION {}.now() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE 'mine'; END $$"
            admin.execute(sql.SQL(mine).format(schema))
            admin.execute(sql.SQL("SET search_path TO {}, pg_catalog").format(schema))
            for call in ("durable_start('bare', id => 'a')", "durable_signal('a', 'go')"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    admin.execute(sql.SQL("SELECT " + call))
            admin.execute("RESET ROLE")
            admin.execute(sql.SQL("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {} TO {}").format(schema, role))
            admin.execute(sql.SQL("SET ROLE {}").format(role))
            assert admin.execute("SELECT durable_start('bare', id => 'a')").fetchone() == ("a",)
            assert admin.execute("SELECT durable_signal('a', 'go')").fetchone() == (True,)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                admin.execute("SELECT * FROM durable_locks")
        finally:
            admin.execute("RESET ROLE")
            admin.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(role))
    assert store.status("a") == "queued"


@pytest.mark.parametrize("table", ['it\'s 100% "mine"', "{braces}", "Über", "@steps@ $body$ %s", "$migration$ %(id)s"])
def test_the_functions_are_named_after_the_tables(database: Database, table: str) -> None:
    with database.store(table=table) as store:
        store.stats()
        with psycopg.connect(database.url, autocommit=True) as connection:
            start = sql.Identifier(database.schema, f"{table}_start")
            assert connection.execute(sql.SQL("SELECT {}('bare', id => 'a')").format(start)).fetchone() == ("a",)
        worked(store)
        assert durable.result(store, "a") == "bare"
