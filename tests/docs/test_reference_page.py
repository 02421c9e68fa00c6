"""The reference page, sentence by sentence: each test is named after one, and quotes it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from msgspec import structs
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

import durable
from durable import ResumeStateCollector, Workflow
from durable.stores import Listed, PostgresStore, SnapshotStore, embedded, memory, postgres, schema_sql
from durable.stores._embedded.server import Server
from durable.stores._postgres import snapshots
from harness.programs import run_program
from harness.support import POISONS, Database

USER = {"id": "123", "name": "Ada"}
ORDER = {"order": "o-1", "for": "123"}


class Deps:
    """What the page's workflow works with; it counts its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.broken = False

    def fetch_user(self, user_id: str) -> dict[str, str]:
        self.calls.append("fetch_user")
        return {"id": user_id, "name": "Ada"}

    def create_order(self, user: dict[str, str]) -> dict[str, str]:
        self.calls.append("create_order")
        if self.broken:
            raise ConnectionError("the shop is closed")
        return {"order": "o-1", "for": user["id"]}


def checkout(step: durable.Step, deps: Deps) -> dict[str, str]:
    """The page's workflow."""
    user = step("fetchUser", lambda: deps.fetch_user("123"), key="fetch-user")
    return step("createOrder", lambda: deps.create_order(user), key="create-order")


@pytest.fixture
def url(database: Database) -> str:
    """A URL that leads to this test's own schema."""
    database.execute(f"CREATE SCHEMA {database.schema}")
    return make_conninfo(database.url, options=f"-csearch_path={database.schema}")


@pytest.fixture
def store(url: str) -> Iterator[PostgresStore]:
    with postgres(url) as store:
        yield store


@pytest.fixture
def deps() -> Deps:
    return Deps()


def is_awaitlys(document: Any) -> bool:
    """Whether a document is one of awaitly's format: what its own validation asks for."""
    steps, execution = document["steps"], document["execution"]
    return (
        document["formatVersion"] == 1
        and all(step["ok"] is True or {"error", "cause"} <= set(step) for step in steps.values())
        and execution["status"] in ("running", "completed", "failed")
        and isinstance(execution["lastUpdated"], str)
    )


# -- the head, and Installation ---------------------------------------------------------------------------------------


def test_a_ready_to_use_postgresql_persistence_adapter(store: PostgresStore, deps: Deps) -> None:
    """provides a ready-to-use PostgreSQL persistence adapter for awaitly workflows"""
    assert durable.run(deps, checkout, id="ready", store=store) == ORDER


def test_installation_brings_the_driver() -> None:
    """npm install awaitly-postgres pg"""
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text("utf-8")
    assert '"psycopg[binary]' in text
    assert '"psycopg-pool' in text


# -- Quick Start ------------------------------------------------------------------------------------------------------


def test_one_liner_setup(url: str) -> None:
    """const store = postgres('postgresql://localhost/mydb')"""
    with postgres(url) as store:
        assert store.list() == []


def test_save_what_the_collector_has(store: PostgresStore, deps: Deps) -> None:
    """await store.save('checkout-123', collector.getResumeState())"""
    collector = ResumeStateCollector()
    assert Workflow("workflow", deps, on_event=collector.handle_event).run(checkout) == ORDER
    store.save("checkout-123", collector.resume_state())
    loaded = store.load("checkout-123")
    assert loaded is not None
    assert loaded.document() == collector.resume_state().document()


def test_later_restore_and_resume(store: PostgresStore, deps: Deps) -> None:
    """Later: restore + resume"""
    collector = ResumeStateCollector()
    workflow = Workflow("workflow", deps, on_event=collector.handle_event)
    deps.broken = True
    with pytest.raises(ConnectionError):
        workflow.run(checkout)
    store.save("checkout-123", collector.resume_state())
    deps.broken = False
    assert workflow.run(checkout, resume_state=store.load("checkout-123")) == ORDER
    assert deps.calls == ["fetch_user", "create_order", "create_order"]


def test_no_saved_state_is_a_fresh_start(store: PostgresStore, deps: Deps) -> None:
    """resumeState: savedState ?? undefined"""
    assert Workflow("workflow", deps).run(checkout, resume_state=store.load("nothing")) == ORDER


def test_a_collector_on_a_resumed_run_has_the_whole_state(store: PostgresStore, deps: Deps) -> None:
    """... also of steps that were not asked for this time, so that saving it over the old one loses nothing."""

    def longer(step: durable.Step, deps: Deps) -> None:
        checkout(step, deps)
        step("third", lambda: 3, key="third")

    collector = ResumeStateCollector()
    workflow = Workflow("workflow", deps, on_event=collector.handle_event)
    workflow.run(longer)
    store.save("x", collector.resume_state())
    resumed = ResumeStateCollector()
    with pytest.raises(RuntimeError):
        Workflow("workflow", deps, on_event=resumed.handle_event).run(stops_at_once, resume_state=store.load("x"))
    assert set(resumed.resume_state().steps) == {"fetch-user", "create-order", "third"}
    assert resumed.resume_state().document()["steps"] == collector.resume_state().document()["steps"]


def stops_at_once(step: durable.Step, _: Deps) -> None:
    step("fetchUser", lambda: None, key="fetch-user")
    raise RuntimeError("enough")


def test_a_collector_on_a_durable_run_loses_neither_input_nor_result(store: PostgresStore) -> None:
    """The state of a run is more than its steps."""

    def doubled(step: durable.Step, _: None, number: int) -> int:
        return step("double", lambda: number * 2)

    collector = ResumeStateCollector()
    durable.run(None, doubled, id="x", store=store, input=21, on_event=collector.handle_event, metadata={"who": "c-7"})
    before = store.load("x")
    store.save("x", collector.resume_state())
    after = store.load("x")
    assert before is not None
    assert after is not None
    for part in ("input", "result", "metadata", "workflowName"):
        assert after.document()[part] == before.document()[part], part
    moment = before.steps["double"].at  # the server's, where the collector has this process's
    assert structs.replace(after.steps["double"], at=moment) == before.steps["double"]
    assert durable.run(None, doubled, id="x", store=store) == 42


# -- Configuration ----------------------------------------------------------------------------------------------------


def test_string_shorthand(server_url: str, url: str) -> None:
    """postgres('postgresql://user:password@localhost:5432/dbname'), and libpq's other form"""
    parts = {key: str(value) for key, value in conninfo_to_dict(url).items() if value is not None}
    host, user, port = parts["host"].replace("/", "%2F"), parts.get("user", ""), parts.get("port", "5432")
    options = parts["options"].replace("=", "%3D")
    uri = f"postgresql://{user}:secret@/{parts['dbname']}?host={host}&port={port}&options={options}"
    for form in (uri, url):
        with postgres(form) as store:
            assert store.list() == []
            assert "secret" not in repr(store)
    assert server_url


def test_several_hosts(url: str, tmp_path: Path) -> None:
    """Multi-host URLs: the first that can be reached, and takes writes."""
    parts = {key: str(value) for key, value in conninfo_to_dict(url).items() if value is not None}
    both = make_conninfo(url, host=f"{tmp_path},{parts['host']}")
    with postgres(both) as store:
        assert store.list() == []
        assert str(tmp_path) in repr(store)


def test_a_host_that_takes_no_writes_is_passed_over(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several hosts that are all read-only none is used."""
    monkeypatch.setattr(snapshots, "_PATIENCE", 1.0)  # seconds in which one may come to take writes
    host = str(conninfo_to_dict(url)["host"])
    options = f"{conninfo_to_dict(url)['options']} -cdefault_transaction_read_only=on"
    both = make_conninfo(url, host=f"{host},{host}", options=options)
    with postgres(both) as store, pytest.raises(durable.StoreError, match=r"read-only|read-write"):
        store.list()


def test_object_options(url: str, database: Database, deps: Deps) -> None:
    """table, prefix, autoCreateTable, lock: { lockTableName }"""
    options: dict[str, Any] = {"table": "my_workflow_snapshots", "prefix": "orders:", "lock": "my_workflow_locks"}
    with postgres(url, auto_create_table=True, **options) as store:
        durable.run(deps, checkout, id="7", store=store)
        assert [line.id for line in store.list()] == ["7"]
    assert database.execute("SELECT id FROM my_workflow_snapshots") == [("orders:7",)]
    assert database.execute("SELECT workflow_id FROM my_workflow_locks") == [("orders:7",)]


def test_the_tables_default_name(store: PostgresStore, database: Database) -> None:
    """Default: 'awaitly_snapshots', which here is durable_snapshots"""
    store.list()
    assert database.execute("SELECT count(*) FROM durable_snapshots") == [(0,)]


def test_a_schema_holds_all_tables(database: Database, deps: Deps) -> None:
    """schema=, FAULTS 108: equal ids in two schemas of one process never meet."""
    other = Database(database.url, f'{database.schema}_"Ö" x')
    try:
        one, two = database.store(), other.store()
        durable.run(deps, checkout, id="x", store=one)
        assert (durable.status(one, "x"), durable.status(two, "x")) == ("completed", None)
        durable.run(deps, checkout, id="x", store=two)
        one.delete("x")
        assert (durable.status(one, "x"), durable.status(two, "x")) == (None, "completed")
    finally:
        other.drop()


@pytest.mark.parametrize("name", ['"; DROP TABLE x; --', "select", "UPPER", "ü%s {steps}", "per%cent", "_" * 52])
def test_names_are_quoted(database: Database, deps: Deps, name: str) -> None:
    """FAULTS 103: any name within PostgreSQL's limit is that table's name."""
    store = database.store(table=name, prefix="%_", lock=f"{name[:40]}_l")
    assert durable.run(deps, checkout, id="x", store=store) == ORDER
    store.save("y", {"kind": "ResumeState", "steps": []})
    assert [line.id for line in store.list()] == ["y", "x"]
    assert store.stats().runs == 2
    store.delete("y")
    assert store.purge(older_than=0) == 1
    identifier = sql.Identifier(database.schema, name)
    with psycopg.connect(database.url) as connection:
        assert connection.execute(sql.SQL("SELECT count(*) FROM {}").format(identifier)).fetchone() == (0,)


@pytest.mark.parametrize("option", ["table", "schema", "lock"])
@pytest.mark.parametrize("name", ["x" * 64, "ü" * 32, "", "a\0b"])
def test_names_that_would_be_cut_off_are_refused(option: str, name: str) -> None:
    """FAULTS 103: two long names that begin alike would become one."""
    with pytest.raises(durable.InvalidArgument, match=option):
        postgres("postgresql://localhost/mydb", **{option: name})  # type: ignore[arg-type]


def test_two_long_names_that_begin_alike_have_indexes_of_their_own(database: Database) -> None:
    """An index is looked for by its name."""
    for last in "ab":
        database.store(table="t" * 51 + last).list()
    rows = database.execute(
        "SELECT count(*) FROM pg_indexes WHERE schemaname = %s AND indexname ~ '_(updated_at|status)_idx$'",
        database.schema,
    )
    assert rows == [(4,)]


def test_the_lock_table_may_not_be_another_one() -> None:
    """lock="durable_steps" """
    with pytest.raises(durable.InvalidArgument, match="lock"):
        postgres("postgresql://localhost/mydb", lock="durable_steps")


@pytest.mark.parametrize("prefix", ["a_", "a%", "a\\", "orders:", "'"])
def test_another_prefixs_ids_never_show(database: Database, deps: Deps, prefix: str) -> None:
    """FAULTS 102: `_` and `%` are letters."""
    mine, others = database.store(prefix=prefix), database.store()
    for name in ("axb", "a", "a%b", "orders", f"{prefix.upper()}1"):
        if not name.startswith(prefix):
            others.save(name, {"kind": "ResumeState", "steps": []})
    count = others.stats().runs
    durable.run(deps, checkout, id="1", store=mine)
    assert [line.id for line in mine.list()] == ["1"]
    assert mine.stats().runs == 1
    assert mine.purge(older_than=0, status=None) == 1
    assert others.stats().runs == count


def test_an_error_names_the_id_as_it_was_given(database: Database) -> None:
    """The prefix is the store's business, also in ConcurrentExecution, LeaseLost and events."""
    store, seen = database.store(prefix="p:"), set[str]()

    def taken(step: durable.Step, _: None) -> None:
        store.delete("x", force=True)
        step("late", lambda: None)

    with pytest.raises(durable.LeaseLost) as lost:
        durable.run(None, taken, id="x", store=store, on_event=lambda event: seen.add(event.run_id))
    assert lost.value.run_id == "x"
    assert seen == {"x"}


def test_auto_create_table_false_says_what_is_missing(database: Database) -> None:
    """autoCreateTable: false; the tables are checked, and nothing is made."""
    with pytest.raises(durable.SchemaMismatch, match=r"durable_migrations.* does not exist.*durable schema"):
        database.store(auto_create_table=False).list()
    assert database.execute("SELECT FROM pg_namespace WHERE nspname = %s", database.schema) == []
    database.store().list()
    assert database.store(auto_create_table=False).list() == []


def test_the_script_is_what_a_dba_needs_and_dml_is_enough_afterwards(database: Database, deps: Deps) -> None:
    """FAULTS 106: printed, applied by the owner, used by a role that may create nothing."""
    role = f"{database.schema}_app"
    command = [sys.executable, "-m", "durable", "schema", "--schema", database.schema, "--role", role]
    printed = run_program(command, check=True, env=os.environ).stdout
    assert printed == schema_sql(schema=database.schema, role=role)
    with psycopg.connect(database.url, autocommit=True) as owner:
        owner.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
        try:
            owner.execute(printed.encode())
            store = database.store(make_conninfo(database.url, user=role), auto_create_table=False)
            assert durable.run(deps, checkout, id="x", store=store) == ORDER
            assert store.purge(older_than=0) == 1
            store.close()
        finally:
            owner.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))


def test_a_role_that_may_not_create_is_told_the_grant(database: Database) -> None:
    """FAULTS 106: migrate fails with the exact GRANT needed, and with it it works."""
    role = f"{database.schema}_none"
    database.execute(f"CREATE SCHEMA {database.schema}")
    with psycopg.connect(database.url, autocommit=True) as owner:
        owner.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
        try:
            store = database.store(make_conninfo(database.url, user=role))
            with pytest.raises(durable.AccessDenied) as told:
                store.list()
            grant = str(told.value).partition("To let it: ")[2].partition(";")[0]
            assert grant == f'GRANT USAGE, CREATE ON SCHEMA "{database.schema}" TO "{role}"'
            owner.execute(grant.encode())
            assert store.list() == []
            store.close()
        finally:
            owner.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))


def test_bring_your_own_pool(url: str, deps: Deps) -> None:
    """pool: pool; with a row factory and autocommit of its own, and never closed"""
    with ConnectionPool(url, min_size=1, max_size=2, kwargs={"row_factory": dict_row}, open=True) as pool:
        with postgres(pool=pool) as store:
            durable.run(deps, checkout, id="x", store=store)
            assert store.list()[0].id == "x"
            assert store.load("x") is not None
        with pool.connection() as connection:
            row: Any = connection.execute("SELECT 1 AS one").fetchone()
            assert row == {"one": 1}


# -- Store Interface and Usage Examples -------------------------------------------------------------------------------


def test_the_store_implements_the_snapshotstore_interface(store: PostgresStore) -> None:
    """The store implements the SnapshotStore interface; so does memory()."""
    with memory() as other:
        stores: list[SnapshotStore] = [store, other]
    assert len(stores) == 2


def test_load_returns_none_if_not_found(store: PostgresStore) -> None:
    """Load snapshot (returns null if not found)"""
    assert store.load("wf-123") is None


def test_delete_snapshot(store: PostgresStore) -> None:
    """Delete snapshot"""
    store.save("wf-123", {"kind": "ResumeState", "steps": []})
    store.delete("wf-123")
    assert store.load("wf-123") is None


def test_list_recent_workflows(store: PostgresStore) -> None:
    """[{ id: 'wf-123', updatedAt: '2024-01-15T10:30:00Z' }, ...]"""
    before = datetime.now(UTC)
    store.save("wf-123", {"kind": "ResumeState", "steps": []})
    ((name, updated_at),) = store.list(limit=100)
    assert name == "wf-123"
    assert updated_at.tzinfo is UTC
    assert abs((updated_at - before).total_seconds()) < 3600


def test_list_with_prefix_filter(store: PostgresStore) -> None:
    """store.list({ prefix: 'orders:', limit: 50 })"""
    for name in ("orders:1", "carts:1", "orders:2"):
        store.save(name, {"kind": "ResumeState", "steps": []})
    assert [line.id for line in store.list(prefix="orders:", limit=50)] == ["orders:2", "orders:1"]


def test_pages_are_stable_where_moments_are_equal_or_missing(store: PostgresStore, database: Database) -> None:
    """Newest first with a stable order, also over rows that another tool wrote without a moment."""
    store.list()
    document = json.dumps({"kind": "ResumeState", "steps": []})
    database.execute("INSERT INTO durable_snapshots SELECT 'm' || n, %s, now() FROM generate_series(1, 25) n", document)
    database.execute("INSERT INTO durable_snapshots SELECT 'n' || n, %s, NULL FROM generate_series(1, 5) n", document)
    # The order is the statement's, and not by chance that of an index.
    database.execute("DROP INDEX durable_snapshots_updated_at_idx, durable_snapshots_status_idx")
    seen, page = list[Listed](), store.list(limit=4)
    while page:
        seen += page
        page = store.list(limit=4, after=page[-1])
    assert len(seen) == len({line.id for line in seen}) == 30
    assert [line.id for line in seen[:5]] == ["n5", "n4", "n3", "n2", "n1"]


def test_clean_shutdown(url: str) -> None:
    """await store.close()"""
    store = postgres(url)
    store.list()
    store.close()
    store.close()
    with pytest.raises(durable.InvalidArgument, match="closed"):
        store.list()


def test_every_verb_has_its_coroutine(store: PostgresStore) -> None:
    """Promise<...>: store.aio"""

    async def main() -> None:
        await store.aio.save("wf-123", {"kind": "ResumeState", "steps": []})
        assert await store.aio.load("wf-123") is not None
        assert [line.id for line in await store.aio.list(limit=1)] == ["wf-123"]
        assert await store.aio.status("wf-123") == "interrupted"
        assert (await store.aio.stats()).runs == 1
        await store.aio.delete("wf-123")
        assert await store.aio.purge(older_than=0) == 0
        await store.aio.close()

    asyncio.run(main())


# -- Table Schema -----------------------------------------------------------------------------------------------------


def test_the_adapter_automatically_creates_a_table_with_the_following_schema(
    store: PostgresStore, database: Database
) -> None:
    """id TEXT PRIMARY KEY, snapshot JSONB NOT NULL, updated_at TIMESTAMPTZ DEFAULT NOW(), an index on it descending"""
    store.list()
    columns = """
    SELECT column_name, data_type, is_nullable, column_default FROM information_schema.columns
     WHERE table_schema = %s AND table_name = 'durable_snapshots' ORDER BY ordinal_position"""
    assert database.execute(columns, database.schema) == [
        ("id", "text", "NO", None),
        ("snapshot", "jsonb", "NO", None),
        ("updated_at", "timestamp with time zone", "YES", "now()"),
    ]
    ((index,),) = database.execute(
        "SELECT indexdef FROM pg_indexes WHERE schemaname = %s AND indexname = 'durable_snapshots_updated_at_idx'",
        database.schema,
    )
    assert "updated_at DESC" in index


def test_the_view_shows_header_and_journal_as_load_does(store: PostgresStore, database: Database, deps: Deps) -> None:
    """One document of a run, completed, failed or saved."""
    durable.run(deps, checkout, id="completed", store=store)
    deps.broken = True
    with pytest.raises(ConnectionError):
        durable.run(deps, checkout, id="failed", store=store)
    failed = store.load("failed")
    assert failed is not None
    store.save("saved", failed)
    for name in ("completed", "failed", "saved"):
        loaded = store.load(name)
        assert loaded is not None
        ((viewed,),) = database.execute("SELECT snapshot FROM durable_runs WHERE id = %s", name)
        assert viewed == loaded.document(), name
        assert is_awaitlys(viewed)


# -- With Durable Execution -------------------------------------------------------------------------------------------


def test_use_the_same_store_with_durable_run(store: PostgresStore, deps: Deps) -> None:
    """{ id: 'checkout-123', store }"""
    assert durable.run(deps, checkout, id="checkout-123", store=store) == ORDER
    assert durable.run(deps, checkout, id="checkout-123", store=store) == ORDER
    assert deps.calls == ["fetch_user", "create_order"]
    assert durable.result(store, "checkout-123") == ORDER
    assert (durable.status(store, "checkout-123"), durable.has_state(store, "checkout-123")) == ("completed", True)
    durable.delete_state(store, "checkout-123")
    assert not durable.has_state(store, "checkout-123")
    with pytest.raises(durable.RunNotFound, match="checkout-123"):
        durable.result(store, "checkout-123")


def test_a_result_that_is_not_there_yet_is_named(store: PostgresStore, deps: Deps) -> None:
    """durable.result of an interrupted and of a failed run."""
    store.save("x", {"kind": "ResumeState", "steps": []})
    with pytest.raises(durable.RunNotOver, match="running"):
        durable.result(store, "x")
    deps.broken = True
    with pytest.raises(ConnectionError):
        durable.run(deps, checkout, id="y", store=store)
    with pytest.raises(ConnectionError, match="the shop is closed"):
        durable.result(store, "y")


def test_only_one_process_runs_a_given_workflow_id_at_a_time(store: PostgresStore, url: str) -> None:
    """so only one process runs a given workflow ID at a time: on by default here"""
    refused: list[type[Exception]] = []

    def meanwhile(step: durable.Step, _: None) -> None:
        with postgres(url) as other:
            try:
                durable.run(None, meanwhile, id="x", store=other)
            except durable.DurableError as problem:
                refused.append(type(problem))

    durable.run(None, meanwhile, id="x", store=store)
    assert refused == [durable.ConcurrentExecution]


def test_lock_off_lets_the_latest_take_over(url: str) -> None:
    """lock=False: nobody is refused; the earlier one can write nothing more."""
    with postgres(url, lock=False) as one, postgres(url, lock=False) as two:

        def inner(step: durable.Step, _: None) -> int:
            return step("n", lambda: 2, key="n")

        def outer(step: durable.Step, _: None) -> int:
            inner_result.append(durable.run(None, named("outer", inner), id="x", store=two))
            return step("m", lambda: 1, key="m")

        inner_result: list[int] = []
        with pytest.raises(durable.DurableError) as told:
            durable.run(None, outer, id="x", store=one)
    assert isinstance(told.value, durable.LeaseLost | durable.ConcurrentExecution)


def named(name: str, fn: Any) -> Any:
    """The function under another name."""
    fn.__name__ = name
    return fn


# -- Features ---------------------------------------------------------------------------------------------------------


def test_the_url_from_the_environment(url: str, deps: Deps, monkeypatch: pytest.MonkeyPatch) -> None:
    """postgres(process.env.DATABASE_URL!), which is what is taken when nothing is named"""
    monkeypatch.setenv("DATABASE_URL", url)
    with postgres() as store:
        assert durable.run(deps, checkout, id="checkout-123", store=store) == ORDER
    with postgres(os.environ["DATABASE_URL"]) as store:
        assert durable.status(store, "checkout-123") == "completed"


def test_automatic_table_creation(url: str, database: Database) -> None:
    """No manual schema setup required"""
    with postgres(url) as store:
        store.save("x", {"kind": "ResumeState", "steps": []})
    assert database.execute("SELECT id FROM durable_snapshots") == [("x",)]


def test_jsonb_storage(store: PostgresStore, database: Database) -> None:
    """Native PostgreSQL JSON support"""
    store.save("x", {"kind": "ResumeState", "steps": [["user", {"ok": True, "value": USER}]]})
    rows = database.execute("SELECT snapshot->'steps'->'user'->'value'->>'name' FROM durable_snapshots")
    assert rows == [("Ada",)]


def test_timestamps(store: PostgresStore, deps: Deps) -> None:
    """Automatic updated_at tracking: of saves, and of a run's begin and end"""
    store.save("x", {"kind": "ResumeState", "steps": []})
    (saved,) = store.list()
    durable.run(deps, checkout, id="x", store=store)
    (ended,) = store.list()
    assert ended.updated_at > saved.updated_at


# -- Production Considerations ----------------------------------------------------------------------------------------


def test_the_pool_is_managed_automatically(url: str, database: Database, deps: Deps) -> None:
    """Connection pooling - Efficient connection management: as many runs as you like, on a handful of connections"""
    together, counted = threading.Barrier(20), list[int]()

    def at_once(step: durable.Step, deps: Deps) -> None:
        checkout(step, deps)
        if together.wait(30) == 0:
            query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s"
            counted.append(database.execute(query, database.schema)[0][0])
        together.wait(30)

    with postgres(make_conninfo(url, application_name=database.schema)) as store, ThreadPoolExecutor(20) as threads:
        runs = [threads.submit(durable.run, deps, at_once, id=f"x{n}", store=store) for n in range(20)]
        for run in runs:
            run.result()
    assert 1 <= counted[0] <= 4


def test_a_pool_with_custom_settings(url: str, database: Database, deps: Deps) -> None:
    """For high-load scenarios, bring your own pool with custom settings: max: 20, min: 5, idleTimeoutMillis: 30000"""
    with ConnectionPool(url, max_size=20, min_size=5, max_idle=30.0, open=True) as pool:
        with postgres(pool=pool) as store:
            assert durable.run(deps, checkout, id="x", store=store) == ORDER
        stats = pool.get_stats()
        assert (stats["pool_max"], stats["pool_min"], stats["requests_num"] > 0) == (20, 5, True)
    assert database.status("x") == "completed"


def test_cleanup_list_and_delete_completed_workflows(store: PostgresStore, deps: Deps) -> None:
    """if (snapshot?.execution.status === 'completed') await store.delete(id)"""
    durable.run(deps, checkout, id="done", store=store)
    store.save("not done", {"kind": "ResumeState", "steps": []})
    for name, _ in store.list(limit=1000):
        snapshot = store.load(name)
        if snapshot is not None and snapshot.execution.status == "completed":
            store.delete(name)
    assert [line.id for line in store.list()] == ["not done"]


def test_monitoring_check_table_size(store: PostgresStore, database: Database) -> None:
    """SELECT pg_size_pretty(pg_total_relation_size('awaitly_snapshots'));"""
    store.list()
    ((size,),) = database.execute("SELECT pg_size_pretty(pg_total_relation_size('durable_snapshots'));")
    assert size.endswith(("bytes", "kB"))


def test_monitoring_count_by_status(store: PostgresStore, database: Database, deps: Deps) -> None:
    """SELECT (snapshot->'execution')->>'status' AS status, COUNT(*) ... at any moment, also while a run is going on"""
    query = """SELECT (snapshot->'execution')->>'status' AS status, COUNT(*)
FROM durable_snapshots
GROUP BY 1;"""

    def counting(_: durable.Step, __: None) -> list[list[Any]]:
        return [list(row) for row in sorted(database.execute(query))]

    durable.run(deps, checkout, id="x", store=store)
    assert durable.run(None, counting, id="y", store=store) == [["completed", 1], ["running", 1]]
    assert database.execute(query) == [("completed", 2)]


# -- Requirements -----------------------------------------------------------------------------------------------------


def test_requirements_are_said() -> None:
    """PostgreSQL >= 12"""
    page = (Path(__file__).resolve().parents[2] / "docs" / "postgres.md").read_text("utf-8")
    assert "PostgreSQL 12 or newer" in page
    assert sys.version_info >= (3, 11)


def test_a_server_comes_along(tmp_path: Path) -> None:
    """embedded(): the quick start without a server of one's own."""
    with embedded(tmp_path / "data") as store:
        assert store.list() == []
    assert Server is not None


# -- Coming from awaitly: a table that its adapter has written ------------------------------------------------------------

AWAITLYS_DDL = """
CREATE TABLE IF NOT EXISTS awaitly_snapshots (
  id TEXT PRIMARY KEY, snapshot JSONB NOT NULL, updated_at TIMESTAMPTZ DEFAULT NOW());
CREATE INDEX IF NOT EXISTS awaitly_snapshots_updated_at_idx ON awaitly_snapshots (updated_at DESC);
"""
FAILED = {"ok": False, "error": "DOWN", "cause": {"type": "error", "name": "Error", "message": "down"}}
AWAITLYS_ROWS: dict[str, dict[str, Any]] = {
    "half": {
        "formatVersion": 1,
        "steps": {"fetch-user": {"ok": True, "value": USER}, "create-order": FAILED | {"meta": {"origin": "result"}}},
        "execution": {"status": "failed", "lastUpdated": "2024-01-15T10:30:00.000Z", "currentStepId": "create-order"},
        "metadata": {"version": 1, "lastStepKey": "create-order", "workflowId": "wf-1"},
        "warnings": [{"type": "lossy_value", "stepId": "fetch-user", "path": "$", "reason": "non-json"}],
    },
    "done": {
        "formatVersion": 1,
        "steps": {"fetch-user": {"ok": True, "value": USER}, "create-order": {"ok": True, "value": ORDER}},
        "execution": {
            "status": "completed",
            "lastUpdated": "2024-01-15T10:30:00.000Z",
            "completedAt": "2024-01-15T10:30:00.000Z",
        },
    },
    "state": {"kind": "ResumeState", "steps": [["fetch-user", {"ok": True, "value": USER}], ["create-order", FAILED]]},
    "undefined": {"kind": "ResumeState", "steps": [["fetch-user", {"ok": True}]]},
    "thrown": {
        "kind": "ResumeState",
        "steps": [["create-order", FAILED | {"cause": {"type": "thrown", "stringRepresentation": "7"}}]],
    },
}


@pytest.fixture
def awaitlys(url: str, database: Database) -> Iterator[PostgresStore]:
    """A table as its adapter leaves it."""
    for statement in AWAITLYS_DDL.split(";\n"):
        database.execute(statement)
    for name, document in AWAITLYS_ROWS.items():
        insert = "INSERT INTO awaitly_snapshots (id, snapshot, updated_at) VALUES (%s, %s, NOW())"
        database.execute(insert, name, json.dumps(document))
    with postgres(url, table="awaitly_snapshots") as store:
        yield store


def test_its_rows_are_listed_and_loaded(awaitlys: PostgresStore) -> None:
    """All of them; a failure is shown as what it was."""
    assert {line.id for line in awaitlys.list()} == set(AWAITLYS_ROWS)
    half = awaitlys.load("half")
    assert half is not None
    assert half.steps["fetch-user"].ok
    assert half.steps["create-order"].error is not None
    assert half.steps["create-order"].error.message == "down"
    assert half.metadata["workflowId"] == "wf-1"
    stats = awaitlys.stats()
    assert (stats.completed, stats.failed, stats.interrupted) == (1, 1, 3)


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("half", ["create_order"]),
        ("done", []),
        ("state", ["create_order"]),
        ("thrown", ["fetch_user", "create_order"]),
    ],
)
def test_its_runs_are_resumed(awaitlys: PostgresStore, deps: Deps, name: str, calls: list[str]) -> None:
    """In its format a recorded failed step is one that ran; here it runs again."""
    assert durable.run(deps, checkout, id=name, store=awaitlys) == ORDER
    assert deps.calls == calls
    assert durable.run(deps, checkout, id=name, store=awaitlys) == ORDER
    assert deps.calls == calls
    loaded = awaitlys.load(name)
    assert loaded is not None
    assert (loaded.workflow_name, loaded.execution.status) == ("checkout", "completed")
    with pytest.raises(durable.RunMismatch):
        durable.run(deps, stops_at_once, id=name, store=awaitlys)


def test_its_runs_take_an_input_when_they_are_first_resumed(awaitlys: PostgresStore) -> None:
    """It records none; from the first claim on the run has one."""

    def with_input(step: durable.Step, _: None, number: int) -> list[Any]:
        if number == 1 and not tried:
            tried.append(number)
            raise ValueError("once")
        return [number, step("fetchUser", lambda: None, key="fetch-user")]

    tried: list[int] = []
    with pytest.raises(ValueError, match="once"):
        durable.run(None, with_input, id="state", store=awaitlys, input=1)
    with pytest.raises(durable.RunMismatch):
        durable.run(None, with_input, id="state", store=awaitlys, input=2)
    assert durable.run(None, with_input, id="state", store=awaitlys) == [1, USER]


def test_its_runs_are_cleaned_up(awaitlys: PostgresStore, database: Database) -> None:
    """By hand and by age."""
    awaitlys.delete("half")
    assert awaitlys.purge(older_than=0) == 1
    assert awaitlys.purge(older_than=0, status=None) == 3
    assert database.execute("SELECT * FROM awaitly_snapshots") == []


def test_what_is_written_there_validates_as_its_format(awaitlys: PostgresStore, database: Database, deps: Deps) -> None:
    """By save, and by durable.run at every moment."""
    collector = ResumeStateCollector()
    deps.broken = True
    with pytest.raises(ConnectionError):
        durable.run(deps, checkout, id="new", store=awaitlys, on_event=collector.handle_event)
    awaitlys.save("saved", collector.resume_state())
    half = awaitlys.load("half")
    assert half is not None
    awaitlys.save("again", half)
    for name in ("new", "saved", "again"):
        ((document,),) = database.execute("SELECT snapshot FROM awaitly_snapshots WHERE id = %s", name)
        assert is_awaitlys(document), document


# -- FAULTS 97 and 104: what is stored is not believed ----------------------------------------------------------------------


@pytest.mark.parametrize("poison", POISONS)
def test_a_poisoned_snapshot_is_never_a_fresh_start(
    store: PostgresStore, database: Database, deps: Deps, poison: str
) -> None:
    """FAULTS 97: its run is refused with the reason, again and again; others go on."""
    store.list()
    database.execute("INSERT INTO durable_snapshots VALUES ('bad', %s)", poison)
    for _ in range(2):
        with pytest.raises(durable.errors.UnreadableRecord, match="bad"):
            durable.run(deps, checkout, id="bad", store=store)
    assert deps.calls == []
    assert durable.run(deps, checkout, id="good", store=store) == ORDER
    assert {line.id for line in store.list()} == {"good", "bad"}
    assert store.stats().runs == 2
    store.delete("bad")
    assert durable.run(deps, checkout, id="bad", store=store) == ORDER


def test_a_journal_without_its_header_is_not_nothing(store: PostgresStore, database: Database, deps: Deps) -> None:
    """FAULTS 97: load says so."""
    durable.run(deps, checkout, id="x", store=store)
    database.execute("DELETE FROM durable_snapshots")
    with pytest.raises(durable.errors.UnreadableRecord, match="journal"):
        store.load("x")


def test_no_secret_in_any_error_repr_or_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 105: a password in the URL, with several hosts, through the verbs."""
    monkeypatch.setattr(snapshots, "_PATIENCE", 1.0)  # seconds in which the server may come back
    caplog.set_level(0)
    store = postgres("postgresql://u:pl4nted@127.0.0.1:1,127.0.0.1:2/db?connect_timeout=1")
    texts = [repr(store)]
    with pytest.raises(durable.StoreUnavailable) as told:
        store.list()
    texts += [str(told.value), repr(told.value), caplog.text]
    store.close()
    assert not any("pl4nted" in text for text in texts)
