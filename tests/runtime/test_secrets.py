"""FAULTS 105: neither password nor payload in what any verb says: errors with all they carry, reprs, logs at DEBUG."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from psycopg.conninfo import make_conninfo
from psycopg_pool import ConnectionPool

import durable
from durable._engine.decisions import Granted
from durable._engine.leases import Lease
from durable._engine.schedules import DueSchedule, Scheduled
from durable._engine.starts import NewRun, Route
from durable.clocks import SystemClock
from durable.records import Kind, Record, Status
from durable.stores import PostgresStore, memory, postgres
from durable.stores._adapters.kinds import as_run_store
from durable.stores.copies import StoredRun
from durable.stores.protocol import AsyncRunStore, RolledBack, RunStore, SnapshotStore
from durable.stores.requests import (
    AnyRequest,
    Begin,
    BeginChild,
    Cancel,
    Checkpoint,
    Continue,
    DeleteSchedule,
    Enqueue,
    Finish,
    PauseSchedule,
    Poll,
    PutSchedules,
    Receive,
    Release,
    Request,
    Signal,
    TickSchedule,
    Wake,
)
from durable.testing._suites.run_stores import a_claim, alive
from durable.testing._suites.snapshot_stores import a_document
from harness.programs import run_program
from harness.shelves import AsyncShelf, Shelf
from harness.support import Database

PASSWORD = "pl4nted-p4ssword"
PAYLOAD = "pl4nted-p4yload"
DOCUMENT = a_document(one=PAYLOAD) | {"input": PAYLOAD, "result": {"deep": [PAYLOAD]}}
SNAPSHOT = durable.Snapshot.from_document(DOCUMENT)
RECORD = Record(7, "key", Kind.STEP, f'{{"name":"key","ok":true,"value":"{PAYLOAD}"}}')
STORED = StoredRun(id="restored", document=json.dumps(DOCUMENT), records=[RECORD])
NEW = NewRun(run_id="new", route=Route("queue", "w", 1), input=f'"{PAYLOAD}"'.encode(), input_hash="h", dedup=PAYLOAD)
SENT = Signal("run", "name", f'"{PAYLOAD}"')

# Every verb of both protocols, with payloads wherever one goes in. (`lease` is one that is held, if it can be had.)
SCHEDULED = Scheduled(name="nightly", every=60.0, route=NEW.route, input=f'"{PAYLOAD}"')
DUE = DueSchedule(SCHEDULED, 1, None, datetime(2031, 5, 1, tzinfo=UTC), False)

VERBS: dict[str, Callable[[Any, Lease], Any]] = {
    "save": lambda store, _: store.save("run", SNAPSHOT),
    "load": lambda store, _: store.load("run"),
    "delete": lambda store, _: store.delete("run"),
    "list": lambda store, _: store.list(),
    "purge": lambda store, _: store.purge(older_than=0, status=None),
    "stats": lambda store, _: store.stats(),
    "status": lambda store, _: store.status("run"),
    "begin": lambda store, _: asked(
        store,
        Begin(
            a_claim("other", input=f'"{PAYLOAD}"'.encode(), input_hash="h", metadata={"note": PAYLOAD}, seconds=2.0),
            alive,
        ),
    ),
    "checkpoint": lambda store, lease: asked(store, Checkpoint(lease, RECORD)),
    "finish": lambda store, lease: asked(store, Finish(lease, Status.COMPLETED, RECORD)),
    "release": lambda store, lease: asked(store, Release(lease)),
    "cancel": lambda store, _: asked(store, Cancel("run")),
    "signal": lambda store, _: asked(store, SENT),
    "receive": lambda store, lease: asked(store, Receive(lease, ["name"], [])),
    "replace": lambda store, _: store.replace("run", SNAPSHOT, SNAPSHOT),
    "enqueue": lambda store, _: asked(store, Enqueue([NEW])),
    "beginchild": lambda store, lease: asked(store, BeginChild(lease, RECORD, NEW)),
    "continue": lambda store, lease: asked(store, Continue(lease, RECORD._replace(seq=0), True, [], 1)),
    "wake": lambda store, _: asked(store, Wake()),
    "poll": lambda store, _: asked(store, Poll([NEW.route], 1, 2.0, lambda _: True)),
    "putschedules": lambda store, _: asked(store, PutSchedules([SCHEDULED])),
    "tickschedule": lambda store, _: asked(store, TickSchedule(DUE, [NEW], DUE.now)),
    "pauseschedule": lambda store, _: asked(store, PauseSchedule("nightly", True)),
    "deleteschedule": lambda store, _: asked(store, DeleteSchedule("nightly")),
    "schedules": lambda store, _: store.schedules(),
    "runs": lambda store, _: store.runs(),
    "count_runs": lambda store, _: store.count_runs(),
    "header": lambda store, _: store.header("run"),
    "journal": lambda store, _: store.journal("run"),
    "signals": lambda store, _: store.signals("run"),
    "workers": lambda store, _: store.workers(),
    "health": lambda store, _: store.health(),
    "delete_many": lambda store, _: store.delete_many(["run"]),
    "copy": lambda store, _: store.copy("run", "copied"),
    "document": lambda store, _: store.document("run"),
    "restore": lambda store, _: store.restore(STORED),
}
BLOCKING: dict[str, Callable[..., Any]] = VERBS | {
    "write_queue": lambda store, _: store.write_queue(durable.Queue("mail", concurrency=2)),
    "pause_queue": lambda store, _: store.pause_queue("mail"),
    "queues": lambda store, _: store.queues(),
    "transaction": lambda store, lease: transacted(store, lease),
    # In a transaction of the caller's, whose connection is none.
    "perform_within": lambda store, _: store.perform_within(SENT, PAYLOAD, "durable.signal"),
    "submit_within": lambda store, _: asyncio.run(store.submit_within(SENT, PAYLOAD, "durable.signal")),
}


def asked(store: Any, request: Request[Any]) -> Any:
    """Of a store, or of its asyncio face."""
    return (store.perform if hasattr(store, "perform") else store.submit)(request)


def transacted(store: Any, lease: Lease) -> None:
    """A transaction with a statement and a record; what it is undone for is told as the drivers tell it."""
    transaction = store.transaction(lease, "name", "read committed")
    try:
        transaction.begin(1.0)
        transaction.call(lambda connection: connection.execute("SELECT %s::text", [PAYLOAD]), ())
        transaction.commit(RECORD)
    except RolledBack as undone:
        if isinstance(undone.problem, durable.DurableError):
            raise undone.problem from None
    finally:
        transaction.rollback()


def test_no_verb_is_left_out() -> None:
    """Of the requests, of the protocols, and of what our store offers besides."""
    requests = {kind.__name__.lower() for kind in get_args(AnyRequest)}
    verbs = {name for protocol in (SnapshotStore, RunStore) for name in vars(protocol) if not name.startswith("_")}
    offered = {name for name, _ in inspect.getmembers(PostgresStore, inspect.isfunction) if not name.startswith("_")}
    assert requests | verbs | offered <= {*BLOCKING, "perform", "identity", "aio", "close", "listen"}
    assert {name for name in vars(AsyncRunStore) if not name.startswith("_")} <= {*VERBS, "submit", "room"}


def no_lease() -> Lease:
    """One that nobody has granted."""
    return Lease("run", "1:no.such", 1, 30.0, 1e18)


def said(error: BaseException | None) -> str:
    """All that an error and what it came from can say, as far as anybody prints it."""
    texts = []
    while error is not None:
        texts += [str(error), repr(error), repr(error.args), *traceback.format_exception(error)]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(texts)


def locals_of_ours(error: BaseException | None) -> str:
    """What a crash reporter that looks into frames would print of ours."""
    texts = list[str]()
    while error is not None:
        report = traceback.TracebackException.from_exception(error, capture_locals=True)
        ours = [frame for frame in report.stack if f"{os.sep}durable{os.sep}" in frame.filename]
        texts += [f"{frame.filename}:{frame.lineno} {frame.locals}" for frame in ours]
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


def called(store: Any, verb: str, lease: Lease, colour: str) -> str:
    """What is said when a verb is called on a store, in one of the colours."""
    texts = [repr(store), str(store), repr(store.aio)]
    try:
        if colour == "sync":
            BLOCKING[verb](store, lease)
        else:

            async def main() -> None:
                await VERBS[verb](store.aio, lease)

            asyncio.run(main())
    except durable.DurableError as problem:
        texts += [said(problem), type(problem).__name__]
        assert PASSWORD not in locals_of_ours(problem)
    return "\n".join(texts)


def silent(text: str, caplog: pytest.LogCaptureFixture) -> None:
    """Neither of the secrets is there."""
    for secret in (PASSWORD, PAYLOAD):
        assert secret not in text
        assert secret not in caplog.text
        assert not any(secret in repr(record.__dict__) for record in caplog.records)


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Ours, psycopg's, asyncio's: at DEBUG."""
    caplog.set_level(logging.DEBUG)
    for name in ("durable", "psycopg", "psycopg.pool", "asyncio"):
        caplog.set_level(logging.DEBUG, name)


IN_COLOURS = [(verb, "sync") for verb in BLOCKING] + [(verb, "async") for verb in VERBS]
both_colours = pytest.mark.parametrize("colour", ["sync", "async"])


class Leaping(SystemClock):
    """Whoever sleeps has waited long enough."""

    def __init__(self) -> None:
        self._slept = 0.0

    def elapsed(self) -> float:
        return super().elapsed() + self._slept

    def sleep(self, seconds: float, recheck: float = 0.0) -> None:
        self._slept += 60.0 + seconds


@pytest.mark.parametrize(("verb", "colour"), IN_COLOURS)
def test_a_server_that_is_not_there(verb: str, colour: str, caplog: pytest.LogCaptureFixture) -> None:
    """FAULTS 105: each verb says so, with host and port."""
    with postgres(f"postgresql://u:{PASSWORD}@127.0.0.1:1/db?connect_timeout=1") as store:
        store.clock = Leaping()
        lease = Lease("run", f"1{store._held.resources.mark}x", 1, 1.0, store.clock.elapsed() - 100.0)
        text = called(store, verb, lease, colour)
    assert "127.0.0.1:1" in text.replace(repr(store), "")
    silent(text, caplog)


@pytest.fixture
def broken(database: Database) -> Callable[[str], tuple[PostgresStore, Lease]]:
    """A store with a password in its URL, a run in it, a lease on it, and then a mishap in the database."""

    def made(mishap: str) -> tuple[PostgresStore, Lease]:
        store = database.store(make_conninfo(database.url, password=PASSWORD))
        reply = store.perform(Begin(a_claim("held"), alive))
        assert isinstance(reply, Granted)
        store.save("run", SNAPSHOT)
        store.perform(Checkpoint(reply.lease, Record(1, "a", Kind.STEP, RECORD.text)))
        for statement in mishap.split(";"):
            database.execute(statement)
        return store, reply.lease

    return made


MISHAPS = {
    "a constraint": (
        "ALTER TABLE durable_steps ADD CHECK (epoch < 0) NOT VALID; ALTER TABLE durable_snapshots ADD CHECK (id = '') NOT VALID;"
        "ALTER TABLE durable_signals ADD CHECK (number < 0) NOT VALID; ALTER TABLE durable_locks ADD CHECK (epoch < 0) NOT VALID"
    ),
    "tables gone": "DROP VIEW durable_runs; DROP TABLE durable_steps, durable_snapshots, durable_locks, durable_signals,"
    " durable_schedules, durable_queues",
    "a column of another type": (
        "DROP VIEW durable_runs; ALTER TABLE durable_steps ALTER record TYPE boolean USING true;"
        "ALTER TABLE durable_signals ALTER payload TYPE boolean USING true; ALTER TABLE durable_snapshots RENAME snapshot TO other"
    ),
}


@pytest.mark.parametrize(("verb", "colour"), IN_COLOURS)
@pytest.mark.parametrize("mishap", MISHAPS)
def test_a_database_that_refuses(
    broken: Callable[[str], tuple[PostgresStore, Lease]],
    mishap: str,
    verb: str,
    colour: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """FAULTS 105: PostgreSQL's details quote the row; we do not, nor does what our errors came from."""
    store, lease = broken(MISHAPS[mishap])
    text = called(store, verb, lease, colour)
    if mishap == "tables gone":
        assert (
            any(sign in text for sign in ("Error", "Unavailable", "AccessDenied", "SchemaMismatch"))
            or verb == "release"
        ), text
    silent(text, caplog)


@pytest.mark.parametrize("verb", BLOCKING)
def test_a_store_that_is_closed_and_one_in_memory(
    verb: str, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """FAULTS 105: the other ways to fail."""
    text = ""
    for store in (memory(), database.store(make_conninfo(database.url, password=PASSWORD))):
        store.save("run", SNAPSHOT)
        text += called(store, verb, no_lease(), "sync")
        store.close()
        text += called(store, verb, no_lease(), "sync")
    silent(text, caplog)


@both_colours
@pytest.mark.parametrize("verb", ["save", "load"])
def test_a_store_of_five_verbs(verb: str, colour: str, caplog: pytest.LogCaptureFixture) -> None:
    """FAULTS 105: what its verbs raise is theirs, and is the cause of ours; our own words do not repeat it."""

    class Leaking(Shelf):
        def save(self, id: str, snapshot: durable.Snapshot) -> None:
            if verb == "save":
                raise OSError(f"{PASSWORD} {PAYLOAD}")
            super().save(id, snapshot)

        def load(self, id: str) -> durable.Snapshot | None:
            if verb == "load":
                raise OSError(f"{PASSWORD} {PAYLOAD}")
            return super().load(id)

    async def main() -> None:
        awaited = AsyncShelf()
        awaited.shelf = Leaking()

        async def workflow(step: durable.AsyncStep, _: None) -> str:
            return await step("one", lambda: PAYLOAD)

        await durable.run(None, workflow, id="run", store=awaited)

    with pytest.raises(durable.StoreError) as told:
        if colour == "sync":
            durable.run(None, lambda step, _: step("one", lambda: PAYLOAD), id="run", store=Leaking())
        else:
            asyncio.run(main())
    silent(f"{told.value} {told.value!r} {told.value.args}", caplog)


def test_a_pool_of_the_users(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """FAULTS 105: it is called by its name."""
    url = make_conninfo(database.url, password=PASSWORD)
    with ConnectionPool(url, min_size=1, open=True) as pool, postgres(pool=pool, schema=database.schema) as store:
        text = "".join(called(store, verb, no_lease(), "sync") for verb in BLOCKING)
    silent(text, caplog)


def test_the_drivers_of_a_run(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """FAULTS 105: steps, events, values that cannot be stored, drift, conflicts of keys and inputs: no value is told."""
    store, texts = database.store(make_conninfo(database.url, password=PASSWORD)), list[str]()

    def told(fn: Any, **options: Any) -> None:
        try:
            durable.run({"secret": PAYLOAD}, fn, store=store, on_event=lambda e: texts.append(repr(e)), **options)
        except durable.DurableError as problem:
            texts.append(said(problem))

    def workflow(step: durable.Step, deps: Any, given: Any = None) -> Any:
        texts.append(repr(step))
        step("fine", lambda x: x, PAYLOAD)
        return step("not fine", lambda: {"a": [PAYLOAD, object()]})

    def other_arguments(step: durable.Step, deps: Any, given: Any = None) -> Any:
        return step("fine", lambda x: x, PAYLOAD + "!")

    other_arguments.__name__ = "workflow"

    def conflict(step: durable.Step, deps: Any) -> Any:
        step("a", lambda x: x, PAYLOAD, key="k")
        step("a", lambda x: x, PAYLOAD + "!", key="k")

    told(workflow, id="one", input=PAYLOAD)
    told(workflow, id="one", input=PAYLOAD + "!")
    told(other_arguments, id="one")
    told(conflict, id="two")
    told(workflow, id="three", metadata={"a": {PAYLOAD: object()}})
    try:
        durable.signal(store, "one", "name", {PAYLOAD: object()})
    except durable.DurableError as problem:
        texts.append(said(problem))
    texts += [repr(store), repr(store.load("one")), repr(as_run_store(store))]
    kinds = [
        name
        for name in ("UnstorableValue", "RunMismatch", "WorkflowDrift", "KeyConflict")
        if name not in "".join(texts)
    ]
    assert kinds == []
    silent("\n".join(texts), caplog)


def test_a_store_that_was_not_made_can_be_printed() -> None:
    """FAULTS 105: by a crash reporter that looks into frames; it has no more than it was given."""
    with pytest.raises(durable.InvalidArgument) as told:
        postgres(f"postgresql://u:{PASSWORD}@h:99999x/db")
    assert PASSWORD not in said(told.value)
    assert repr(object.__new__(PostgresStore)) == "<durable store in PostgreSQL, not made>"


@pytest.mark.parametrize(
    "arguments",
    [["--help"], [], ["--table", "x" * 64], ["--no-such"], ["--since", "x"], ["--role", "r", "--schema", "s"]],
)
def test_the_command_line(arguments: list[str]) -> None:
    """FAULTS 105: `durable schema` knows $DATABASE_URL as little as $PGPASSWORD."""
    secrets = {"DATABASE_URL": f"postgresql://u:{PASSWORD}@127.0.0.1:1/db", "PGPASSWORD": PASSWORD}
    command = [sys.executable, "-X", "dev", "-m", "durable", "schema", *arguments]
    done = run_program(command, env=os.environ | secrets)
    assert done.stdout + done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
