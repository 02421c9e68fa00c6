"""FAULTS 174: a body that does something to what it stands in, a task that outlives its run, and an owner whose descriptors are closed."""

# pyright: reportUnknownLambdaType=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# (`execute` takes workflows of either colour, as Any.)

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

import durable
from durable.stores import PostgresStore, memory
from harness.machine import Machine
from harness.ownership_children import remove_server
from harness.support import Database

execute: Any = durable.run  # in either colour

_PATIENCE = 20.0  # seconds, after which something waits for itself


def within(call: Callable[[], Any]) -> Any:
    """What a call comes to on a thread of its own."""
    came: list[Any] = []

    def work() -> None:
        try:
            came.append(call())
        except BaseException as problem:
            came.append(problem)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return came[0] if came else "hangs"


DONE_TO_ITSELF: dict[str, Callable[[PostgresStore], Any]] = {
    "cancels": lambda store: durable.cancel(store, "r"),
    "cancels, awaited": lambda store: asyncio.run(durable.aio.cancel(store, "r")),
    "deletes": lambda store: store.delete("r", force=True),
    "deletes by another store": lambda store: store.delete("r", force=True),
    "saves another state of": lambda store: store.save("r", store.load("r") or {}, force=True),
}


@pytest.mark.parametrize("what", DONE_TO_ITSELF)
def test_a_transaction_does_nothing_to_its_own_run(what: str, database: Database) -> None:
    """It would wait for the lease that it holds itself."""
    store = database.store()
    other = database.store() if "another store" in what else store

    def workflow(step: Any, _: Any) -> Any:
        return step.transaction("t", lambda _: DONE_TO_ITSELF[what](other))

    came = within(lambda: execute(None, workflow, id="r", store=store))
    assert isinstance(came, durable.errors.TransactionMisused), came
    assert what.split(",", maxsplit=1)[0].split(" by", maxsplit=1)[0] in str(came)
    assert store.status("r") == "failed"


def test_a_transaction_within_another_does_nothing_to_the_outer_run(database: Database) -> None:
    store = database.store()

    def inner(step: Any, _: Any) -> Any:
        return step.transaction("t", lambda _: durable.cancel(store, "outer"))

    def outer(step: Any, _: Any) -> Any:
        return step.transaction("t", lambda _: execute(None, inner, id="inner", store=store))

    assert isinstance(within(lambda: execute(None, outer, id="outer", store=store)), durable.errors.TransactionMisused)


def test_what_concerns_another_run_is_done(database: Database) -> None:
    store = database.store()
    execute(None, lambda step, _: step("a", lambda: 1), id="other", store=store)

    def workflow(step: Any, _: Any) -> Any:
        def body(_: Any) -> int:
            durable.signal(store, "r", "s", 1)
            store.delete("other")
            return 1

        return step.transaction("t", body)

    assert within(lambda: execute(None, workflow, id="r", store=store)) == 1
    assert store.status("other") is None


TRICKS = [
    "COMMIT",
    "ROLLBACK",
    "COMMIT AND CHAIN",
    "ROLLBACK AND CHAIN",
    "COMMIT; BEGIN",
]


@pytest.mark.parametrize("trick", TRICKS)
def test_a_body_that_ends_its_transaction(trick: str, database: Database) -> None:
    """Refused by name, nothing is left behind that holds the lease, and the id is free at once."""
    see_refused(trick, database)


def test_a_body_that_prepares_its_transaction() -> None:
    """The same, on a server that takes it: what was prepared would hold the lease's row for ever."""
    directory = Path(tempfile.mkdtemp(prefix="durable-test-"))
    machine = Machine(directory / "durable", "max_prepared_transactions = 5")
    try:
        database = Database(machine.url, f"t_{secrets.token_hex(6)}")
        see_refused("PREPARE TRANSACTION 'durable-test'", database)
        database.drop()
    finally:
        machine.close()
        remove_server(directory / "durable")
        shutil.rmtree(directory)


def see_refused(trick: str, database: Database) -> None:
    store, life = database.store(), [0]

    def body(connection: Any) -> int:
        if not life[0]:
            connection.execute(trick)
        return 1

    def workflow(step: Any, _: Any) -> Any:
        return step.transaction("t", body)

    assert isinstance(within(lambda: execute(None, workflow, id="r", store=store)), durable.errors.TransactionMisused)
    assert database.execute("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()") == []
    life[0] = 1
    assert within(lambda: execute(None, workflow, id="r", store=store)) == 1


@pytest.mark.parametrize("leaves", [SystemExit, KeyboardInterrupt, ValueError], ids=lambda leaves: leaves.__name__)
def test_a_fork_in_a_body(leaves: type[BaseException], database: Database) -> None:
    """The child's unwinding leaves the parent's transaction alone, however it goes."""
    store, parent = database.store(), os.getpid()
    store.status("warm")
    database.execute("CREATE TABLE effects (n int)")

    def body(connection: Any) -> int:
        connection.execute(sql.SQL("INSERT INTO {} VALUES (1)").format(sql.Identifier(database.schema, "effects")))
        child = os.fork()
        if not child:
            raise leaves
        os.waitpid(child, 0)
        return int(connection.execute("SELECT 7").fetchone()[0])

    try:
        came = execute(None, lambda step, _: step.transaction("t", body), id="r", store=store)
    except BaseException:
        if os.getpid() != parent:
            os._exit(0)
        raise
    if os.getpid() != parent:
        os._exit(1)
    assert came == 7
    assert database.execute("SELECT n FROM effects") == [(1,)]


@pytest.mark.parametrize("kind", ["memory", "postgres"])
def test_a_task_that_outlives_its_run_may_run_that_id_again(kind: str, database: Database) -> None:
    """The run that it was born in is over: it is no part of it any more."""
    store = memory() if kind == "memory" else database.store()

    async def main() -> list[Any]:
        tasks: list[asyncio.Task[Any]] = []
        over = asyncio.Event()

        async def workflow(_step: Any, _: Any) -> int:
            async def later(id: str) -> Any:
                await over.wait()
                return await execute(None, workflow, id=id, store=store)

            async def in_a_thread() -> Any:
                await over.wait()
                return await asyncio.to_thread(
                    durable.run, None, lambda step, _: step("a", lambda: 2), id="o", store=store
                )

            if not tasks:
                tasks.extend([asyncio.create_task(later("r")), asyncio.create_task(in_a_thread())])
            return 1

        await execute(None, workflow, id="r", store=store)
        over.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == [1, 2]


def test_a_run_that_calls_itself_is_still_refused() -> None:
    with memory() as store:

        def workflow(step: Any, _: Any) -> Any:
            return step("again", lambda: execute(None, workflow, id="r", store=store))

        with pytest.raises(durable.ConcurrentExecution, match="very run"):
            execute(None, workflow, id="r", store=store)


_OWNER = """
import os, sys
import durable
from durable.stores import postgres
store = postgres(sys.argv[1], schema=sys.argv[2])
def body():
    {closes}
    print("closed", flush=True)
    sys.stdin.readline()
durable.run(None, durable.workflow(name="w")(lambda step, _: step("b", body)), id="r", store=store)
print("completed", flush=True)
"""


@pytest.mark.parametrize(
    "closes",
    [
        "os.close(store._held.resources.owner._lock)",
        "os.close(store._held.resources.owner._lock); held = os.open('/dev/null', 0)",
        "os.dup2(os.open('/dev/null', 0), store._held.resources.owner._lock)",
        "os.closerange(store._held.resources.owner._lock, store._held.resources.owner._lock + 1)",
    ],
)
def test_an_owner_whose_lock_was_closed_is_not_taken_for_dead(closes: str, database: Database) -> None:
    """By a daemoniser's closerange, or a second close of the same number."""
    store = database.store()
    store.status("warm")
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER.format(closes=closes), database.url, database.schema],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdin is not None
    assert owner.stdout is not None
    with owner:
        assert owner.stdout.readline() == "closed\n"
        with pytest.raises(durable.ConcurrentExecution):
            execute(None, durable.workflow(name="w")(lambda step, _: step("b", int)), id="r", store=store)
        owner.stdin.write("\n")
        owner.stdin.flush()
        assert owner.stdout.readline() == "completed\n"


@pytest.mark.parametrize("kind", ["blocking", "async", "one at a time"])
def test_a_role_with_two_connections_can_run_a_transaction(database: Database, kind: str) -> None:
    """One is the heartbeat's; a transaction takes the writer's as long as that needs none."""
    role = f"durable_two_{secrets.token_hex(4)}"
    database.store().status("warm")
    name, schema = sql.Identifier(role), sql.Identifier(database.schema)
    with psycopg.connect(database.url, autocommit=True) as connection:
        for statement in (
            "CREATE ROLE {name} LOGIN CONNECTION LIMIT 2",
            "GRANT USAGE ON SCHEMA {schema} TO {name}",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {name}",
            "GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {name}",
        ):
            connection.execute(sql.SQL(statement).format(name=name, schema=schema))
        limit = {"max_transactions": 1} if kind == "one at a time" else {}
        store = database.store(make_conninfo(database.url, user=role), **limit)
        release = threading.Event()

        def workflow(step: Any, _: Any) -> list[Any]:
            naps = step("nap", lambda: release.wait(0.6) or 1)  # until the heartbeat has its connection
            several = [step.transaction(f"t{n}", lambda _: 2) for n in range(2)]
            return [naps, *several, step("b", lambda: 3)]

        async def awaited(step: Any, _: Any) -> list[Any]:
            naps = await step("nap", lambda: asyncio.sleep(0.6, 1))
            several = [await step.transaction(f"t{n}", lambda _: 2) for n in range(2)]
            return [naps, *several, await step("b", lambda: 3)]

        def executed() -> Any:
            if kind == "async":
                return asyncio.run(durable.run(None, awaited, id="r", store=store, lease=1.0))
            return execute(None, workflow, id="r", store=store, lease=1.0)

        try:
            assert within(executed) == [1, 2, 2, 3]
        finally:
            store.close()
            connection.execute(sql.SQL("DROP OWNED BY {}").format(name))
            connection.execute(sql.SQL("DROP ROLE {}").format(name))


class _Struck:
    """A connection's lock, at whose taking a signal handler raises: the taker has it, and cannot know."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock

    def acquire(self, *args: Any, **kwargs: Any) -> bool:
        self._lock.acquire(*args, **kwargs)
        raise KeyboardInterrupt

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lock, name)

    def __enter__(self) -> Any:
        return self._lock.__enter__()

    def __exit__(self, *problem: object) -> None:
        self._lock.__exit__(*problem)


def test_a_signal_as_the_connection_is_taken_away(database: Database) -> None:
    """Its lock is not left locked, which the end of the transaction would wait for."""
    store = database.store()

    def body(connection: Any) -> int:
        connection.lock = _Struck(connection.lock)
        return int(connection.execute("SELECT 1").fetchone()[0])

    came = within(lambda: execute(None, lambda step, _: step.transaction("t", body), id="r", store=store))
    assert came == 1 or isinstance(came, KeyboardInterrupt)
    assert within(lambda: execute(None, lambda step, _: step("a", lambda: 1), id="another", store=store)) == 1
