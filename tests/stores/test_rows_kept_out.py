"""FAULTS 172: a trigger, a rule or a policy that drops or hides our rows is an error by name, after one repetition.

Never an endless loop, never "no records", and other runs work meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg import sql

import durable
from durable.errors import AccessDenied, SchemaMismatch, UnsuitableServer
from durable.stores._postgres.session import Session
from harness.support import Database

SKIP = (
    "CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF {} THEN RETURN NULL; END IF; RETURN {}; END'"
)
WHEN = {  # the table, the operation, and of which rows
    "a step": ("durable_steps", "INSERT", "NEW.workflow_id = ''x'' AND NEW.kind = ''step''"),
    "an attempt": ("durable_steps", "INSERT", "NEW.workflow_id = ''x'' AND NEW.kind = ''attempt''"),
    "the result": ("durable_steps", "INSERT", "NEW.workflow_id = ''x'' AND NEW.kind = ''result''"),
    "a header": ("durable_snapshots", "INSERT", "NEW.id = ''x''"),
    "the end of a header": (
        "durable_snapshots",
        "UPDATE",
        "NEW.id = ''x'' AND NEW.snapshot->''execution''->>''status'' = ''completed''",
    ),
    "a lease": ("durable_locks", "INSERT", "NEW.workflow_id = ''x''"),
}


def drop(database: Database, table: str, operation: str, condition: str) -> None:
    row = "OLD" if operation == "DELETE" else "NEW"
    database.execute(SKIP.format(condition, row))
    database.execute(f"CREATE TRIGGER skip BEFORE {operation} ON {table} FOR EACH ROW EXECUTE FUNCTION skip()")


def work(step: durable.Step, _: None) -> int:
    return step("one", lambda: 1) + step("once", lambda: 2) + pay()


@durable.step(at_most_once=True)
def pay() -> int:
    """A step that remembers its attempt."""
    return 3


async def work_async(step: durable.AsyncStep, _: None) -> int:
    async def one() -> int:
        return 1

    both = await asyncio.gather(step("one", one), step("two", one))
    return sum(both) + await step("three", durable.step(at_most_once=True)(one))


def outcome(workflow: Any, store: Any, name: str) -> Any:
    ended = durable.run(None, workflow, id=name, store=store)
    if not hasattr(ended, "__await__"):
        return ended

    async def awaited() -> Any:
        return await ended

    return asyncio.run(awaited())


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """The statements that were sent."""
    statements: list[bytes] = []
    for name in ("execute_write", "execute", "queue"):
        real = getattr(Session, name)

        def noted(session: Session, query: bytes, *args: Any, real: Any = real) -> Any:
            statements.append(query)
            return real(session, query, *args)

        monkeypatch.setattr(Session, name, noted)
    yield statements


@pytest.mark.parametrize("workflow", [work, work_async])
@pytest.mark.parametrize("what", WHEN)
def test_a_trigger_that_drops_a_row_is_named(database: Database, what: str, workflow: Any, sent: list[bytes]) -> None:
    """The run ends with the error, its lease is free, another run works; with the trigger gone it goes on."""
    store = database.store()
    outcome(workflow, store, "warm")
    drop(database, *WHEN[what])
    sent.clear()
    with pytest.raises(SchemaMismatch, match="trigger"):
        outcome(workflow, store, "x")
    assert len(sent) < 60, "one repetition, and not on and on"
    assert database.status("x") != "completed"
    assert outcome(workflow, store, "y") == outcome(workflow, store, "warm")
    database.execute("DROP FUNCTION skip() CASCADE")
    assert outcome(workflow, store, "x") == outcome(workflow, store, "warm")


def test_a_transactions_work_is_not_committed_without_its_record(database: Database) -> None:
    """The body's row and the record, or neither."""
    store = database.store()
    store.list()
    database.execute("CREATE TABLE booked (n integer)")

    def books(step: durable.Step, _: None) -> None:
        into = sql.SQL("INSERT INTO {} VALUES (1)").format(sql.Identifier(database.schema, "booked"))
        step.transaction("book", lambda connection: connection.execute(into) and None)

    durable.run(None, books, id="warm", store=store)
    drop(database, *WHEN["a step"])
    with pytest.raises(SchemaMismatch, match="trigger"):
        durable.run(None, books, id="x", store=store)
    assert database.execute("SELECT count(*) FROM booked") == [(1,)]


def test_save_and_delete_say_so_too(database: Database) -> None:
    """What was not written was not saved, and what stays was not deleted."""
    store = database.store()
    durable.run(None, work, id="z", store=store)
    drop(database, "durable_snapshots", "INSERT", "NEW.id = ''x''")
    with pytest.raises(SchemaMismatch, match="trigger"):
        store.save("x", {"kind": "ResumeState", "steps": []})
    database.execute("DROP FUNCTION skip() CASCADE")
    for table, name in (("durable_snapshots", "OLD.id"), ("durable_steps", "OLD.workflow_id")):
        drop(database, table, "DELETE", f"{name} = ''z''")
        before = database.everything()
        with pytest.raises(SchemaMismatch, match="trigger"):
            store.delete("z")
        assert database.everything() == before
        database.execute("DROP FUNCTION skip() CASCADE")
    assert durable.run(None, work, id="z", store=store) == 6


NAMED = {
    "durable_steps": "the journal",
    "durable_snapshots": "the documented runs",
    "durable_locks": "the leases",
    "durable_signals": "the signals",
}
VERBS: dict[str, Callable[[Any], Any]] = {
    "run": lambda store: durable.run(None, work, id="x", store=store),
    "run, waiting": lambda store: durable.run(None, work, id="x", store=store, on_conflict="wait"),
    "cancel": lambda store: durable.cancel(store, "x"),
    "signal": lambda store: durable.signal(store, "x", "go", 1),
    "save": lambda store: store.save("x", {"kind": "ResumeState", "steps": []}),
    "delete": lambda store: store.delete("x"),
    "purge": lambda store: store.purge(older_than=0, status=None),
}
KEPT_OUT = [  # a verb whose row of a table is dropped, or is left as it is
    *[("run", "durable_snapshots", "UPDATE"), ("run", "durable_locks", "UPDATE"), ("run", "durable_locks", "INSERT")],
    ("run, waiting", "durable_locks", "UPDATE"),
    *[("cancel", "durable_snapshots", "UPDATE"), ("cancel", "durable_locks", "UPDATE")],
    ("signal", "durable_signals", "INSERT"),
    *[
        ("save", "durable_steps", "DELETE"),
        ("save", "durable_locks", "UPDATE"),
        ("save", "durable_snapshots", "UPDATE"),
    ],
    *[("delete", table, "DELETE") for table in NAMED],
    *[("purge", table, "DELETE") for table in NAMED],
    ("delete", "durable_locks", "UPDATE"),
]


@pytest.mark.parametrize(("verb", "table", "operation"), KEPT_OUT)
def test_every_verb_names_the_table(database: Database, verb: str, table: str, operation: str) -> None:
    """Whatever it is that does not happen: at once, and with all as it was, so that it can be done again."""
    store = database.store()
    fails = [True]

    def interrupted(step: durable.Step, _: None) -> int:
        value = step("one", lambda: 1) + step("once", lambda: 2)
        if fails:
            raise KeyboardInterrupt
        return int(value)

    def done(verb: str) -> Any:
        if verb.startswith("run"):
            return durable.run(None, interrupted, id="x", store=store, on_conflict="wait" if "," in verb else "raise")
        return VERBS[verb](store)

    with pytest.raises(KeyboardInterrupt):
        done("run")
    fails.clear()
    durable.signal(store, "x", "other", 1)
    of = {"durable_snapshots": "id"}.get(table, "workflow_id")
    drop(database, table, operation, f"{'OLD' if operation == 'DELETE' else 'NEW'}.{of} = ''x''")
    before = database.everything()
    with pytest.raises(SchemaMismatch, match=f"the table of {NAMED[table]} .*trigger"):
        done(verb)
    if verb != "run":
        assert database.everything() == before
    database.execute("DROP FUNCTION skip() CASCADE")
    done(verb)
    if verb.startswith("run"):
        assert database.status("x") == "completed"
    elif verb in ("delete", "purge"):
        assert database.everything() == [[], [], []]
        assert database.execute("SELECT 1 FROM durable_signals") == []


LEFT_AS_IT_IS = [  # a verb whose change of a row is taken, and not made
    *[("run", "durable_snapshots"), ("cancel", "durable_snapshots"), ("cancel, forced", "durable_locks")],
    *[("save", "durable_snapshots"), ("save, forced", "durable_locks"), ("delete, forced", "durable_locks")],
]


@pytest.mark.parametrize(("verb", "table"), LEFT_AS_IT_IS)
def test_a_trigger_that_leaves_a_row_as_it_is(database: Database, verb: str, table: str) -> None:
    """`RETURN OLD`: PostgreSQL counts such a row among those that were changed, and says so."""
    store = database.store()
    verbs: dict[str, Callable[[Any], Any]] = {
        **VERBS,
        "cancel, forced": lambda store: durable.cancel(store, "x", force=True),
        "save, forced": lambda store: store.save("x", {"kind": "ResumeState", "steps": []}, force=True),
        "delete, forced": lambda store: store.delete("x", force=True),
    }
    with pytest.raises(KeyboardInterrupt):
        durable.run(None, interrupt, id="x", store=store)
    database.execute("UPDATE durable_locks SET owner_token = '1:another', expires_at = now() + interval '1 h'")
    if verb in ("run", "save"):
        database.execute("UPDATE durable_locks SET owner_token = NULL, expires_at = now()")
    changes = "NEW.snapshot->''execution''->>''status'' IS DISTINCT FROM ''running''" if verb == "run" else "true"
    database.execute(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS "
        f"'BEGIN IF {changes} THEN RETURN OLD; END IF; RETURN NEW; END'"
    )
    database.execute(f"CREATE TRIGGER keep BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION keep()")
    before = database.everything()
    with pytest.raises(SchemaMismatch, match=f"the table of {NAMED[table]} .*trigger"):
        verbs[verb](store) if verb != "run" else durable.run(None, ends, id="x", store=store)
    if verb != "run":
        assert database.everything() == before
    assert database.status("x") == "running"


@durable.workflow(name="stays interrupted")
def ends(step: durable.Step, _: None) -> int:
    """The same, to its end."""
    return step("one", lambda: 1)


def test_a_migration_does_not_lose_a_record_to_a_trigger(database: Database) -> None:
    """A journal is replaced by one of the same length, or not at all."""
    store = database.store()
    durable.run(None, work, id="x", store=store)
    database.execute("UPDATE durable_snapshots SET snapshot = jsonb_set(snapshot, '{execution,status}', '\"failed\"')")
    old = store.load("x")
    assert old is not None
    drop(database, "durable_steps", "INSERT", "NEW.workflow_id = ''x'' AND NEW.key = ''once''")
    before = database.everything()
    with pytest.raises(SchemaMismatch, match="the table of the journal"):
        store.replace("x", old, old)
    assert database.everything() == before


def test_cancelling_a_run_that_ends_meanwhile_is_no_fault(database: Database) -> None:
    """What was running when the cancellation began, and has ended when it comes by, is not cancelled; nothing is said of triggers."""
    store = database.store()
    with pytest.raises(KeyboardInterrupt):
        durable.run(None, interrupt, id="x", store=store)
    with psycopg.connect(database.url) as ending, ThreadPoolExecutor() as pool:
        ending.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(database.schema)))
        ending.execute("SELECT FROM durable_locks WHERE workflow_id = 'x' FOR UPDATE")
        cancelled = pool.submit(durable.cancel, store, "x")
        while not database.execute("SELECT 1 FROM pg_locks WHERE NOT granted"):
            assert not cancelled.done()
        ending.execute(
            "UPDATE durable_snapshots SET snapshot = jsonb_set(snapshot, '{execution,status}', '\"failed\"')"
        )
        ending.commit()
        assert cancelled.result() is False


@durable.workflow(name="stays interrupted")
def interrupt(step: durable.Step, _: None) -> None:
    """A run that stays interrupted."""
    step("one", lambda: 1)
    raise KeyboardInterrupt


def test_a_rule_is_named_or_refused(database: Database) -> None:
    """`DO INSTEAD NOTHING`: PostgreSQL itself refuses it beside ON CONFLICT; nothing hangs either way."""
    store = database.store()
    durable.run(None, work, id="warm", store=store)
    database.execute("CREATE RULE nothing AS ON INSERT TO durable_steps DO INSTEAD NOTHING")
    with pytest.raises(durable.DurableError):
        durable.run(None, work, id="x", store=store)
    assert store.status("x") != "completed"
    database.execute("DROP RULE nothing ON durable_steps")
    # Anew: PostgreSQL keeps a prepared statement that the rule has made nothing of.
    assert durable.run(None, work, id="x", store=database.store()) == 6


@pytest.mark.parametrize(
    ("verb", "table", "operation"),
    [
        ("run", "durable_snapshots", "UPDATE"),
        ("run", "durable_locks", "UPDATE"),
        ("cancel", "durable_locks", "UPDATE"),
        ("signal", "durable_signals", "INSERT"),
        *[("delete", table, "DELETE") for table in NAMED],
    ],
)
def test_a_rule_is_no_outage(database: Database, verb: str, table: str, operation: str) -> None:
    """PostgreSQL cannot do what is asked of a table with such a rule, ever: the host and the port are not what to look at."""
    store = database.store()
    with pytest.raises(KeyboardInterrupt):
        durable.run(None, interrupt, id="x", store=store)
    database.execute(f"CREATE RULE nothing AS ON {operation} TO {table} DO INSTEAD NOTHING")
    before = database.everything()
    with pytest.raises(AccessDenied, match="rule") as it:
        VERBS[verb](database.store())
    assert not re.search(r"\bport\b", str(it.value))
    assert database.everything() == before


@pytest.mark.parametrize("table", ["durable_steps", "durable_snapshots", "durable_locks", "durable_signals"])
@pytest.mark.parametrize("opened", [True, False])
def test_row_level_security_is_refused(database: Database, table: str, opened: bool) -> None:
    """At first use, and at a claim where it was turned on afterwards: no body runs again for want of its record."""
    role, ran = f"{database.schema}_app", list[int]()
    admin = database.store()

    def body() -> int:
        ran.append(1)
        return 42

    def interrupted(step: durable.Step, _: None) -> int:
        value = step("one", body)
        if len(ran) == 1 and not again:
            raise KeyboardInterrupt
        return int(value)

    again: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        durable.run(None, interrupted, id="x", store=admin)
    with psycopg.connect(database.url, autocommit=True) as owner:
        owner.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
        schema, named = sql.Identifier(database.schema), sql.Identifier(role)
        owner.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(schema, named))
        owner.execute(sql.SQL("GRANT ALL ON ALL TABLES IN SCHEMA {} TO {}").format(schema, named))
    try:
        app = database.store(psycopg.conninfo.make_conninfo(database.url, user=role))
        if opened:
            assert [line.id for line in app.list()] == ["x"]
        database.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        database.execute(f"CREATE POLICY p ON {table} FOR INSERT WITH CHECK (true)")
        again.append(1)
        with pytest.raises(durable.DurableError, match="row-level security"):
            durable.run(None, interrupted, id="x", store=app)
        assert ran == [1]
        if table in ("durable_steps", "durable_snapshots"):
            with pytest.raises(SchemaMismatch, match="row-level security"):
                app.load("nothing")
        database.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
        assert durable.run(None, interrupted, id="x", store=app) == 42
        assert ran == [1]
        app.close()
    finally:
        with psycopg.connect(database.url, autocommit=True) as owner:
            owner.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role)))
            owner.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


@pytest.mark.parametrize("table", ["durable_steps", "durable_snapshots", "durable_locks", "durable_signals"])
def test_an_unlogged_table_is_told_and_refused_by_strict(
    database: Database, table: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A crash of the server empties it, whatever was acknowledged."""
    database.store().list()
    database.execute(f"ALTER TABLE {table} SET UNLOGGED")
    with pytest.raises(UnsuitableServer, match=rf"{table}.* is UNLOGGED"):
        durable.run(None, work, id="x", store=database.store(strict=True))
    assert database.status("x") is None
    with caplog.at_level(logging.WARNING):
        assert durable.run(None, work, id="x", store=database.store()) == 6
    assert caplog.text.count("is UNLOGGED") == 1
    assert table in caplog.text
