"""What somebody else may put in the way of our statements: functions and operators on the search path, triggers that speak.

FAULTS 172, 177.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg_pool import ConnectionPool

import durable
from durable.errors import AccessDenied, StoreUnavailable, UnstorableValue
from durable.stores import PostgresStore, postgres
from durable.stores._postgres.sql.loader import load_migrations, load_statements, qualify
from durable.stores._postgres.sql.names import Names
from harness.pgbouncer import bouncer, program
from harness.support import Database

SECRET = "s3cr3t"


@pytest.fixture
def trapped(database: Database) -> Iterator[str]:
    """The URL of a database of its own, in whose public schema every function and operator that fits better is a trap."""
    name = f"trapped_{secrets.token_hex(4)}"
    with closing(psycopg.connect(database.url, autocommit=True)) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        url = make_conninfo(database.url, dbname=name)
        with closing(psycopg.connect(url, autocommit=True)) as inside:
            for trap in traps():
                inside.execute(trap.encode())
        yield url
        connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(name)))


def traps() -> list[str]:
    """Functions that raise, of our functions' names, for the types that they are called with."""
    body = "LANGUAGE plpgsql AS $$ BEGIN RAISE 'a trap'; END $$"
    functions = {
        "to_jsonb(timestamptz)": "jsonb",
        "to_jsonb(text)": "jsonb",
        "to_jsonb(bigint)": "jsonb",
        "jsonb_build_object(text, text, text, timestamptz)": "jsonb",
        "jsonb_build_object(text, jsonb)": "jsonb",
        "unnest(text[])": "SETOF text",
        "array_position(text[], text)": "integer",
        "jsonb_set(jsonb, text[], jsonb)": "jsonb",
        "json_to_recordset(text)": "SETOF record",
        "max(integer)": "integer",
        "pg_advisory_xact_lock(smallint, integer)": "void",
        "pg_advisory_xact_lock(integer, integer)": "void",
        "pg_column_size(json)": "integer",
        "pg_column_size(jsonb)": "integer",
        "count(bigint)": "bigint",
    }
    operators = [
        ("||", "bigint", "bigint"), ("||", "bigint", "text"), ("||", "text", "bigint"), ("||", "integer", "integer"),
        ("->", "jsonb", "jsonb"), ("->>", "jsonb", "jsonb"), ("->", "json", "json"), ("->>", "json", "json"),
    ]  # fmt: skip
    made = [f"CREATE FUNCTION public.{signature} RETURNS {kind} {body}" for signature, kind in functions.items()]
    for number, (name, left, right) in enumerate(operators):
        made += [
            f"CREATE FUNCTION public.trap_{number}({left}, {right}) RETURNS text {body}",
            f"CREATE OPERATOR public.{name} (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = public.trap_{number})",
        ]
    return made


def used(store: PostgresStore) -> None:
    """Every verb."""

    def workflow(step: durable.Step, _: None, given: int) -> int:
        durable.signal(store, "run", "go", 1)
        step("step", lambda: 1)
        step.transaction("transaction", lambda connection: connection.execute("SELECT 1").rowcount)
        return int(step.wait_for("go", timeout=5)) + given

    def fails(step: durable.Step, _: None) -> None:
        step("step", lambda: 1)
        raise ValueError

    for _ in range(2):
        assert durable.run(None, workflow, id="run", store=store, input=1) == 2
        with pytest.raises(ValueError, match=r"^$"):
            durable.run(None, fails, id="failing", store=store)
    snapshot = store.load("run")
    assert snapshot is not None
    store.save("saved", snapshot)
    assert len(store.list()) == 3
    assert store.status("run") == "completed"
    durable.cancel(store, "saved")
    store.delete("saved")


@pytest.mark.parametrize("way", ["url", "schema", "pool", "pgbouncer"])
def test_nothing_on_the_search_path_is_called(trapped: str, way: str) -> None:
    """A-c10: whoever may create in a schema of the path takes over nobody's role."""
    with closing(psycopg.connect(trapped, autocommit=True)) as connection, pytest.raises(psycopg.Error, match="a trap"):
        connection.execute("SELECT to_jsonb(now())")  # the traps work
    if way == "pgbouncer":
        if program() is None:
            pytest.skip("PgBouncer is not installed")
        with bouncer(trapped) as started, postgres(started.url) as store:
            used(store)
    elif way == "pool":
        with ConnectionPool(trapped, min_size=1, open=True) as pool, postgres(pool=pool) as store:
            used(store)
    else:
        with postgres(trapped, schema="ours" if way == "schema" else None) as store:
            used(store)


def test_every_function_of_ours_is_qualified() -> None:
    """Whoever adds a statement need not think of it."""
    names = Names()
    texts = [
        *load_statements(names).values(),
        *load_statements(names, "snapshots.sql").values(),
        *load_migrations(names).values(),
    ]
    for text in texts:
        bare = re.sub(r"'(?:[^']|'')*'|\"[^\"]*\"|--[^\n]*", "", text.decode())
        assert not re.findall(r"(?<![\w.%])(?!extract|trim|unnest)[a-z_]\w*\(", bare)
        assert not re.findall(r"(?<!pg_catalog\.)(?:\|\||->)(?!\))", bare.replace("->>)", ")"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT now()", "SELECT pg_catalog.now()"),
        ("SELECT 'now()', \"f(\", x.f(1)", "SELECT 'now()', \"f(\", x.f(1)"),
        ("a||b->'x->y'", "a OPERATOR(pg_catalog.||) b OPERATOR(pg_catalog.->) 'x->y'"),
        ("unnest(%s::text[]) AS x (y)", "pg_catalog.unnest(%s::text[]) AS x (y)"),
        ("unnest(%(a)s, %(b)s) AS x (y)", "unnest(%(a)s, %(b)s) AS x (y)"),
        ("extract(epoch FROM now())", "extract(epoch FROM pg_catalog.now())"),
        ("COALESCE(a, b)", "COALESCE(a, b)"),
    ],
)
def test_qualified(text: str, expected: str) -> None:
    assert qualify(text) == expected


# -- a trigger that speaks ----------------------------------------------------------------------------------------------


def raising(database: Database, table: str, state: str, when: str = "true") -> None:
    """A trigger of the user's own, which quotes what it refuses."""
    database.execute(f"""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
          IF {when} THEN
            RAISE EXCEPTION 'no: %%', NEW USING ERRCODE = '{state}', CONSTRAINT = '{SECRET}', TABLE = '{SECRET}', DETAIL = '{SECRET}';
          END IF;
          RETURN NEW;
        END $$""")  # fmt: skip
    database.execute(f"CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION refuse()")


def one(step: durable.Step, _: None) -> str:
    return step("one", lambda: SECRET)


def booked(step: durable.Step, _: None) -> str:
    return step.transaction("one", lambda _connection: SECRET)


@pytest.mark.parametrize("workflow", [one, booked])
@pytest.mark.parametrize("state", ["P0001", "ZZ001", "23514", "22000", "09000", "38000", "44000"])
def test_a_trigger_that_refuses_a_record(
    database: Database, workflow: Callable[[durable.Step, None], str], state: str
) -> None:
    """It is the record that is refused: not the database that is away; and nothing of what it says is passed on."""
    store = database.store()
    store.list()
    raising(database, "durable_steps", state, f"NEW.record::text LIKE '%%{SECRET}%%'")
    with pytest.raises(UnstorableValue, match=f"SQLSTATE {state}") as caught:
        durable.run(None, workflow, id="run", store=store)
    told = f"{caught.value} {caught.value!r} {caught.value.__cause__} {'' if caught.value.__suppress_context__ else caught.value.__context__}"
    assert SECRET not in told
    assert database.status("run") == "failed"


@pytest.mark.parametrize("table", ["durable_locks", "durable_snapshots"])
@pytest.mark.parametrize("state", ["P0001", "ZZ001", "23514"])
def test_a_trigger_that_refuses_a_claim(database: Database, table: str, state: str) -> None:
    store = database.store()
    store.list()
    raising(database, table, state)
    with pytest.raises(AccessDenied, match=f"SQLSTATE {state}.*trigger") as caught:
        durable.run(None, one, id=SECRET, store=store)
    assert str(caught.value).count(SECRET) == 0


@pytest.mark.parametrize("state", ["53100", "57014", "58030"])
def test_a_trigger_that_speaks_as_the_server_does(database: Database, state: str) -> None:
    """What may pass is waited for, and yet not quoted."""
    store = database.store()
    store.list()
    raising(database, "durable_locks", state)
    with pytest.raises(durable.DurableError) as caught:
        durable.run(None, one, id=SECRET, store=store, lease=0.5)
    assert isinstance(caught.value, StoreUnavailable) or state == "58030"
    assert str(caught.value).replace(repr(SECRET), "").count(SECRET) == 0


def test_one_record_that_is_refused_costs_no_other(database: Database) -> None:
    """In a batch, whatever SQLSTATE the trigger has chosen."""

    async def many(step: durable.AsyncStep, _: None) -> list[object]:
        async def body(number: int) -> str:
            return SECRET if number == 7 else "fine"

        await step("first", body, 0)
        steps = (step("one", body, number, key=str(number)) for number in range(30))
        return [str(type(outcome).__name__) for outcome in await asyncio.gather(*steps, return_exceptions=True)]

    store = database.store()
    store.list()
    raising(database, "durable_steps", "ZZ001", f"NEW.record::text LIKE '%%{SECRET}%%'")
    outcomes = asyncio.run(durable.run(None, many, id="run", store=store))
    assert outcomes == ["UnstorableValue" if number == 7 else "str" for number in range(30)]


# -- refusals that do not pass ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["no schema", "no database", "no role", "no tables"])
def test_what_does_not_pass_is_said_at_once(database: Database, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """R-F15: after one attempt."""
    options = {
        "no schema": {"options": "-c search_path="},
        "no database": {"dbname": "no_such_database"},
        "no role": {"user": "no_such_role"},
        "no tables": {},
    }[what]
    store = postgres(make_conninfo(database.url, **options), schema=database.schema if what == "no tables" else None)
    if what == "no tables":
        store.list()
        database.execute("DROP TABLE durable_snapshots CASCADE")
    attempts: list[int] = []
    connections = store._held.resources.connections
    connected = connections._connect_somewhere

    def counted(seconds: int) -> psycopg.Connection[Any]:
        attempts.append(1)
        return connected(seconds)

    monkeypatch.setattr(connections, "_connect_somewhere", counted)
    for verb in (lambda: store.status("x"), lambda: store.list(), lambda: durable.run(None, one, id="x", store=store)):
        with pytest.raises(AccessDenied):
            verb()
    assert len(attempts) <= 3
    store.close()


@pytest.mark.parametrize(
    "options",
    [
        {"port": "99999"},
        {"service": "no_such_service"},
        {"sslmode": "nonsense"},
        {"require_auth": "nonsense"},
        {"require_auth": "scram-sha-256"},  # which this server does not ask for
        {"channel_binding": "require"},
        {"target_session_attrs": "nonsense"},
        {"load_balance_hosts": "nonsense"},
        {"ssl_min_protocol_version": "nonsense"},
        {"host": "/" + "x" * 200},
        {"sslnegotiation": "direct", "sslmode": "prefer"},
        {"host": "a,b", "port": "1,2,3"},
        {"connect_timeout": "soon"},
        {"host": "127.0.0.1", "keepalives": "perhaps"},
    ],
    ids=str,
)
def test_options_that_libpq_cannot_read_are_said_at_once(database: Database, options: dict[str, str]) -> None:
    """And not asked again: no server was asked at all, or it will ask for the same tomorrow."""
    store = postgres(make_conninfo(database.url, **options), schema=database.schema)
    attempts: list[int] = []
    connections = store._held.resources.connections
    connected = connections._connect_somewhere

    def counted(seconds: int) -> psycopg.Connection[Any]:
        attempts.append(1)
        return connected(seconds)

    connections._connect_somewhere = counted  # type: ignore[method-assign]
    with closing(store), pytest.raises(AccessDenied) as told:
        store.status("x")
    assert "URL" in str(told.value)
    assert len(attempts) <= 1


@pytest.mark.parametrize(
    "words",
    [
        'connection to server on socket "/nowhere/.s.PGSQL.5432" failed: No such file or directory',
        'connection to server at "10.0.0.1", port 5432 failed: Network is unreachable',
        "out of memory",
    ],
)
def test_a_server_that_is_not_there_yet_is_no_such_mistake(database: Database, words: str) -> None:
    """What libpq says at once may still pass."""
    meaning = database.store()._held.resources.connections.explain(
        psycopg.OperationalError(f"connection is bad: {words}")
    )
    assert type(meaning) is durable.StoreUnavailable
