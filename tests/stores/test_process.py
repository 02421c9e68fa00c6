"""A store in its process: forks, drivers that die, interpreters that end, lent pools, and locks taken in every order."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import NoneType
from typing import Any

import psycopg
import psycopg_pool
import pytest
from msgspec import structs
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

import durable
from durable import AsyncStep, Step
from durable._engine.batches import MAX_SHARED_BYTES
from durable._engine.decisions import Claim, Granted
from durable.errors import LeaseLost
from durable.events import RunEvent, StepStalled
from durable.records import Kind, Record, Status
from durable.stores import PostgresStore, postgres
from durable.stores._postgres.claims import Found
from durable.stores._postgres.connections import Connections
from durable.stores._postgres.jobs import checkpoint_job
from durable.stores.requests import Begin, Checkpoint, Finish, Release
from harness.ownership_children import PATIENCE, Child, process_of, wait_until
from harness.process_children import fork_in_a_body
from harness.programs import run_program
from harness.support import Database
from harness.writer_spies import spy_on, writer_of


def lease_row(database: Database, run_id: str) -> tuple[Any, ...]:
    """(epoch, token, end, whether it is over) of a lease."""
    query = "SELECT epoch, owner_token, expires_at, expires_at <= clock_timestamp() FROM durable_locks WHERE workflow_id = %s"
    rows = database.execute(query, run_id)
    return rows[0] if rows else (0, None, None, True)


def renewed(database: Database, run_id: str, times: int = 1) -> None:
    """Wait until a lease has been renewed so often."""
    for _ in range(times):
        end = lease_row(database, run_id)[2]
        wait_until(lambda end=end: lease_row(database, run_id)[2] > end, "a renewal")  # type: ignore[misc]


# -- fork -----------------------------------------------------------------------------------------------------------


def test_a_fork_with_a_run_in_flight(database: Database) -> None:
    """FAULTS 118: the forked child has a store of its own, and neither takes nor closes nor ends anything of its parent."""
    child = Child(fork_in_a_body, database.url, database.schema)
    try:
        report = child.hear()
        child.process.join(PATIENCE)
        assert child.process.exitcode == 0
    finally:
        child.end()
    forked = report["child"]
    assert forked["own"] == ["hello", ["hello"] * 5]
    assert forked["outcome"].startswith("LeaseLost"), forked
    assert report["outcome"] == ["one", "two by the parent", "three"]
    assert report["same"], "the parent has lost a connection"
    assert lease_row(database, "forked")[:2] == (1, None)
    assert [database.status(run_id) for run_id in ("own", "own-async")] == ["completed"] * 2
    assert forked["unraisable"] == []


# -- drivers that are gone ------------------------------------------------------------------------------------------


def test_the_lease_of_a_closed_event_loop_ends(database: Database) -> None:
    """FAULTS 119: renewed while the loop is open, and not any more when it is closed."""
    store, begun = database.store(), list[str]()

    async def waits(step: AsyncStep, _: None) -> None:
        begun.append("waits")
        await asyncio.Event().wait()

    loop = asyncio.new_event_loop()

    async def until_begun() -> asyncio.Task[None]:
        task = asyncio.ensure_future(durable.run(None, waits, id="left", store=store, lease=0.5))
        while not begun:  # noqa: ASYNC110 -- a poll is what it is
            await asyncio.sleep(0.001)
        return task

    task = loop.run_until_complete(until_begun())
    renewed(database, "left", 2)
    loop.close()
    wait_until(lambda: lease_row(database, "left")[3], "the lease to end")
    assert lease_row(database, "left")[1] is not None, "it was given back, so this has shown nothing"
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    task.get_coro().close()


def test_the_lease_of_an_abandoned_task_ends(database: Database) -> None:
    """FAULTS 119: nobody but its own future refers to the task, so nothing will ever wake it."""
    store = database.store()

    waiting: list[str] = []

    async def waits(step: AsyncStep, _: None) -> None:
        waiting.append("for nothing")
        await asyncio.get_running_loop().create_future()

    async def abandon() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)  # "Task was destroyed"
        task = asyncio.ensure_future(durable.run(None, waits, id="left", store=store, lease=0.5))
        while not waiting:  # noqa: ASYNC110 -- a poll is what it is
            await asyncio.sleep(0.001)
        del task
        deadline = time.monotonic() + 3.0
        while not lease_row(database, "left")[3] and time.monotonic() < deadline:
            gc.collect()
            await asyncio.sleep(0.05)
        assert lease_row(database, "left")[3], "it is still being renewed"
        for left in asyncio.all_tasks() - {asyncio.current_task()}:
            left.cancel()

    asyncio.run(abandon())


def test_the_lease_of_a_dead_thread_ends(database: Database) -> None:
    """FAULTS 119: a thread that takes a lease, and ends without a word."""
    store, taken, go = database.store(), threading.Event(), threading.Event()

    def take() -> None:
        store.perform(Begin(claim("left", 0.5), threading.current_thread().is_alive))
        taken.set()
        go.wait(PATIENCE)

    thread = threading.Thread(target=take)
    thread.start()
    assert taken.wait(PATIENCE)
    renewed(database, "left", 2)
    go.set()
    thread.join()
    wait_until(lambda: lease_row(database, "left")[3], "the lease to end")


def test_a_body_that_blocks_the_event_loop_keeps_its_lease(database: Database) -> None:
    """FAULTS 21: for three leases; the heartbeat asks no event loop."""
    store = database.store()

    async def stuck() -> str:
        start = database.execute("SELECT clock_timestamp()")[0][0]
        three = "SELECT clock_timestamp() > %s + interval '1.5 seconds'"
        wait_until(lambda: database.execute(three, start)[0][0], "three leases to pass")
        return "free"

    async def workflow(step: AsyncStep, _: None) -> list[str]:
        return [await step("stuck", stuck), await step("then", lambda: "then")]

    assert asyncio.run(durable.run(None, workflow, id="stuck", store=store, lease=0.5)) == ["free", "then"]
    assert lease_row(database, "stuck")[:2] == (1, None)


# -- the end of the interpreter -------------------------------------------------------------------------------------

ENDINGS = {
    "a run in a daemon thread": """
        threading.Thread(target=lambda: durable.run(None, blocking, id="run", store=store), daemon=True).start()
        begun.wait()
    """,
    "an event loop in a daemon thread": """
        threading.Thread(target=lambda: asyncio.run(durable.run(None, waiting, id="run", store=store)), daemon=True).start()
        begun.wait()
    """,
    "threads that commit all the time": """
        for number in range(10):
            call = lambda id=f"run-{number}": durable.run(None, busy, id=id, store=store, lease=0.5)
            threading.Thread(target=call, daemon=True).start()
        begun.wait()
    """,
    "an exit in a body": """
        durable.run(None, leaving, id="run", store=store)
    """,
    "nothing closed": """
        durable.run(None, done, id="run", store=store)
        asyncio.run(durable.run(None, adone, id="arun", store=store))
    """,
}

PROGRAM = """
import asyncio, sys, threading
import durable
from durable.stores import postgres
from durable.stores.requests import Begin, Checkpoint, Finish, Release
store = postgres(sys.argv[1], schema=sys.argv[2])
begun = threading.Event()

def body():
    begun.set()
    threading.Event().wait()

def blocking(step, _):
    step("body", body)

async def waiting(step, _):
    begun.set()
    await asyncio.Event().wait()

def busy(step, _):
    for number in range(1_000_000):
        step("body", lambda: number)
        if number == 20:
            begun.set()

def leaving(step, _):
    step("body", sys.exit)

def done(step, _):
    step("body", lambda: 1)

async def adone(step, _):
    await asyncio.gather(*(step("body", lambda: 1, key=str(number)) for number in range(5)))

"""


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_interpreter_ends_at_once_and_quietly(database: Database, ending: str) -> None:
    """FAULTS 79: with heartbeat, writer and watchdog alive."""
    body = textwrap.dedent(ENDINGS[ending])
    command = [sys.executable, "-c", PROGRAM + body, database.url, database.schema]
    done = run_program(command, limit=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# -- locks in every order -------------------------------------------------------------------------------------------


def claim(run_id: str, seconds: float = 30.0) -> Claim:
    return Claim(run_id=run_id, workflow="process", version=1, seconds=seconds)


def test_locks_taken_in_every_order_never_meet(database: Database) -> None:  # noqa: PLR0915 -- all that meets
    """FAULTS 117, in small: renewals, claims, checkpoints and releases of the same 50 runs, from several processes' worth."""
    url = make_conninfo(database.url, options="-c deadlock_timeout=20ms")
    stores = [database.store(url) for _ in range(3)]
    spies = [spy_on(store) for store in stores]
    ids = [f"run-{number}" for number in range(50)]
    leases, lock = dict[str, Any](), threading.Lock()
    for run_id in ids:
        reply = stores[0].perform(Begin(claim(run_id), lambda: False))
        assert isinstance(reply, Granted)
        leases[run_id] = reply.lease
    end, done, problems = time.monotonic() + 2.0, [0] * 6, list[BaseException]()

    def renews(number: int) -> None:
        chance = random.Random(number)
        while time.monotonic() < end:
            with lock:  # its own, as a heartbeat does; some of them have been given back meanwhile
                own = [
                    lease
                    for lease in leases.values()
                    if f":{process_of(stores[number]).owner.instance}." in lease.token
                ]
            if own:
                chance.shuffle(own)
                with suppress(Exception):
                    process_of(stores[number])._renew(own)
                    done[number] += 1

    async def works(number: int) -> None:
        chance, store, seq = random.Random(number + 10), stores[number], (number + 1) * 1_000_000
        writer = writer_of(store)
        instance = store._held.resources.owner.instance
        while time.monotonic() < end:
            chosen = chance.sample(ids, 40)
            with lock:
                mine = [leases[run_id] for run_id in chosen if f":{instance}." in leases[run_id].token]
            seq += 1
            jobs = [checkpoint_job(lease, Record(seq, f"key-{seq}", Kind.STEP, "{}")) for lease in mine[::2]]
            jobs += [store._requests._releasing(Release(lease)) for lease in mine[1::2]]
            jobs += [store._requests._claiming(claim(run_id), None) for run_id in chosen]
            for outcome in await asyncio.gather(*map(writer.submit, jobs), return_exceptions=True):
                if isinstance(outcome, Found) and outcome.lease is not None:
                    with lock:
                        leases[outcome.lease.run_id] = outcome.lease
            done[3 + number] += 1

    def deadlocks() -> int:
        query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        count: int = database.execute(query)[0][0]
        return count

    def renewing(number: int) -> None:
        process = process_of(stores[number])
        real = process._renew

        def watched(some: Any) -> Any:
            try:
                return real(some)
            except BaseException as problem:
                problems.append(problem)
                raise

        process._renew = watched
        renews(number)

    before = deadlocks()
    with ThreadPoolExecutor(6) as pool:
        threads = [pool.submit(renewing, number) for number in range(3)]
        threads += [pool.submit(lambda number=number: asyncio.run(works(number))) for number in range(3)]  # type: ignore[misc]
        for thread in threads:
            thread.result(PATIENCE)
    assert all(count > 5 for count in done), f"they did not meet often: {done}"
    problems += [seen.problem for spy in spies for seen in spy.seen if seen.problem is not None]
    assert [problem for problem in problems if isinstance(problem, psycopg.Error)] == []
    assert deadlocks() == before


def test_one_lease_that_somebody_locks_costs_no_other(database: Database) -> None:
    """FAULTS 28, 57: a claimer frozen in the midst of its claim, or a person with a console; its own row waits for it alone."""
    store = database.store()
    for run_id in ("free", "locked", "unlocked"):
        store.perform(Begin(claim(run_id, 0.9), lambda: True))
    with psycopg.connect(database.url) as bystander:
        lock = sql.SQL("SELECT FROM {} WHERE workflow_id = 'locked' FOR UPDATE")
        bystander.execute(lock.format(sql.Identifier(database.schema, "durable_locks")))
        renewed(database, "free", 5)
        renewed(database, "unlocked", 1)
        assert "locked" in {lease.run_id for lease, _ in store._held.resources.heartbeat._kept.values()}, (
            "it was given up"
        )
    renewed(database, "locked", 2)


@pytest.mark.parametrize("size", [0, 2 * MAX_SHARED_BYTES], ids=["small", "large"])
def test_a_claim_that_waits_for_a_transaction_holds_up_nothing_else(database: Database, size: int) -> None:
    """FAULTS 28: the last owner stands still in the midst of one. What this process commits for its other runs goes by."""
    store = database.store()
    going = store.perform(Begin(claim("going", 30.0), lambda: True))
    left = store.perform(Begin(claim("left", 30.0), lambda: True))
    assert isinstance(going, Granted)
    assert isinstance(left, Granted)
    store.perform(Release(left.lease))
    spies, value = [spy_on(store), spy_on(store, large=True)], json.dumps("x" * size)
    waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(database.url) as owner, ThreadPoolExecutor(1) as aside:
        lock = sql.SQL("SELECT FROM {} WHERE workflow_id = 'left' FOR KEY SHARE")
        owner.execute(lock.format(sql.Identifier(database.schema, "durable_locks")))
        taken = aside.submit(store.perform, Begin(structs.replace(claim("left"), input=value.encode()), lambda: True))
        wait_until(lambda: database.execute(waits) != [(0,)], "the claim to wait")
        store.perform(
            Checkpoint(going.lease, Record(0, "step", Kind.STEP, f'{{"name":"step","ok":true,"value":{value}}}'))
        )
        store.perform(Finish(going.lease, Status.COMPLETED, Record(1, "result", Kind.RESULT, "1")))
        assert not taken.done()
        assert [seen.problem for spy in spies for seen in spy.seen] == [None] * 3, (
            "the claim's connection was given up first"
        )
        owner.rollback()
        assert isinstance(taken.result(PATIENCE), Granted)
    assert database.status("going") == "completed"


def test_a_claim_that_comes_twice_while_its_run_is_being_ended(database: Database) -> None:
    """FAULTS 43: its first request was slow, and arrives when the run has failed under the lease that the second one got."""
    store = database.store()
    first, again = store._requests._claiming(claim("run"), None), store._requests._claiming(claim("run"), None)
    again.payload = first.payload
    store._held.resources.perform(first)
    waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(database.url) as ender, ThreadPoolExecutor(1) as aside:
        ender.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(database.schema)))
        ender.execute("UPDATE durable_locks SET owner_token = NULL, owner = NULL, expires_at = now()")
        ender.execute("UPDATE durable_snapshots SET snapshot = jsonb_set(snapshot, '{execution,status}', '\"failed\"')")
        arrived = aside.submit(store._held.resources.perform, again)
        wait_until(lambda: database.execute(waits) != [(0,)], "it to wait for the end")
        ender.commit()
        found = arrived.result(PATIENCE)
    # Its caller may ask once more and be granted the run; then there is a lease.
    assert found.lease is not None or database.status("run") == "failed", "it reads running, and nobody executes it"


def test_who_has_lost_his_lease_is_told_so_though_the_next_owner_is_in_a_transaction(database: Database) -> None:
    """FAULTS 16, 28: nothing of his is under way, so there is nothing to wait for, and nobody waits behind him."""
    store, other = database.store(), database.store(lock=False)
    lost, own = store.perform(Begin(claim("taken"), lambda: True)), store.perform(Begin(claim("own"), lambda: True))
    assert isinstance(lost, Granted)
    assert isinstance(own, Granted)
    assert isinstance(other.perform(Begin(claim("taken"), lambda: True)), Granted)
    spy = spy_on(store)
    record = Record(0, "step", Kind.STEP, '{"name":"step","ok":true,"value":1}')

    async def together() -> list[Any]:
        with writer_of(store)._lock:
            written = [store.aio.submit(Checkpoint(granted.lease, record)) for granted in (lost, own)]
            ended = store.aio.submit(Finish(lost.lease, Status.COMPLETED, record))
        return await asyncio.wait_for(asyncio.gather(*written, ended, return_exceptions=True), PATIENCE)

    with psycopg.connect(database.url) as owner:
        lock = sql.SQL("SELECT FROM {} WHERE workflow_id = 'taken' FOR KEY SHARE")
        owner.execute(lock.format(sql.Identifier(database.schema, "durable_locks")))
        with pytest.raises(LeaseLost):
            store.perform(Checkpoint(lost.lease, record))
        answers = asyncio.run(together())
    assert [type(answer) for answer in answers] == [LeaseLost, NoneType, LeaseLost]
    assert [seen.problem for seen in spy.seen if seen.problem is not None] == [], "somebody waited, and gave up"


@pytest.mark.long(3)
def test_a_listener_that_blocks_costs_no_lease(database: Database) -> None:
    """FAULTS 21: what it is told of a body that is silent comes by a thread of its own, and no lock is held meanwhile."""
    store, stalled, over = database.store(), threading.Event(), threading.Event()

    def listen(event: RunEvent) -> None:
        if isinstance(event, StepStalled):
            stalled.set()
            over.wait(3 * PATIENCE)

    def silent() -> str:
        assert stalled.wait(PATIENCE)
        renewed(database, "run", 4)
        durable.run(None, lambda step, _: None, id="another", store=store)
        over.set()
        return "spoken"

    def workflow(step: Step, _: None) -> str:
        return step("silent", silent)

    assert durable.run(None, workflow, id="run", store=store, lease=0.6, on_event=listen) == "spoken"
    assert lease_row(database, "run")[:2] == (1, None)


# -- lent pools -----------------------------------------------------------------------------------------------------


@pytest.fixture
def pool(database: Database) -> Iterator[psycopg_pool.ConnectionPool[Any]]:
    """A pool of one connection, made in the user's own way: dictionaries for rows, transactions, a setting."""

    def configure(connection: psycopg.Connection[Any]) -> None:
        connection.execute(sql.SQL("SET durable.mark = 'configured'"))
        connection.commit()

    options = {"row_factory": dict_row, "application_name": database.schema}
    with psycopg_pool.ConnectionPool(
        database.url, min_size=1, max_size=1, kwargs=options, configure=configure, open=True
    ) as pool:
        yield pool


@pytest.fixture
def borrower(database: Database, pool: psycopg_pool.ConnectionPool[Any]) -> Iterator[PostgresStore]:
    with postgres(schema=database.schema, pool=pool) as store:
        yield store


def check_as_it_was(pool: psycopg_pool.ConnectionPool[Any], before: int) -> None:
    """The pool is open, and its one connection is the same one, as its user left it."""
    assert not pool.closed
    assert pool.get_stats()["pool_size"] == 1
    with pool.connection(timeout=PATIENCE) as connection:
        assert not connection.autocommit
        assert connection.row_factory is dict_row
        row = connection.execute("SELECT pg_backend_pid() AS pid, current_setting('durable.mark') AS mark").fetchone()
        assert row == {"pid": before, "mark": "configured"}


def backend(pool: psycopg_pool.ConnectionPool[Any]) -> int:
    """The backend of the pool's one connection."""
    with pool.connection() as connection:
        pid: int = connection.info.backend_pid
        return pid


def test_twenty_runs_on_a_pool_of_one(
    database: Database, pool: psycopg_pool.ConnectionPool[Any], borrower: PostgresStore
) -> None:
    """FAULTS 51: a pool with a `configure`, rows as dictionaries and transactions of its own; blocking runs and async ones."""
    before = backend(pool)

    async def walk(step: AsyncStep, _: None) -> int:
        return sum([await step("number", abs, number) for number in range(5)])

    def work(step: Step, _: None) -> int:
        return sum(step("number", abs, number) for number in range(5))

    async def crowd() -> list[int]:
        return await asyncio.gather(
            *(durable.run(None, walk, id=f"a-{number}", store=borrower) for number in range(20))
        )

    with ThreadPoolExecutor(20) as threads:
        others = [threads.submit(durable.run, None, work, id=f"b-{number}", store=borrower) for number in range(20)]
        assert asyncio.run(crowd()) == [10] * 20
        assert [other.result(PATIENCE) for other in others] == [10] * 20
    borrower.close()
    check_as_it_was(pool, before)
    name = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
    wait_until(lambda: database.execute(name, database.schema) == [(1,)], "the heartbeat's connection to go")


def test_a_pool_that_its_user_exhausts_for_longer_than_the_lease(
    database: Database, pool: psycopg_pool.ConnectionPool[Any], borrower: PostgresStore
) -> None:
    """FAULTS 52: in a body, and in another thread while a checkpoint waits for a connection; the heartbeat has its own."""
    before, bodies = backend(pool), list[str]()
    held, go = threading.Event(), threading.Event()

    def holds() -> str:
        bodies.append("holds")
        with pool.connection():
            renewed(database, "run", 4)
        return "held"

    def hoard() -> None:
        with pool.connection():
            held.set()
            renewed(database, "run", 5)
            go.set()

    def meanwhile() -> str:
        bodies.append("meanwhile")
        hoarder.start()
        assert held.wait(PATIENCE)
        return "done"

    def workflow(step: Step, _: None) -> list[str]:
        return [step("holds", holds), step("meanwhile", meanwhile), step("then", lambda: "then")]

    hoarder = threading.Thread(target=hoard)
    assert durable.run(None, workflow, id="run", store=borrower, lease=0.6) == ["held", "done", "then"]
    assert go.is_set()
    hoarder.join()
    assert bodies == ["holds", "meanwhile"]
    assert lease_row(database, "run")[:2] == (1, None)
    borrower.close()
    check_as_it_was(pool, before)


def test_a_lent_connection_that_breaks_goes_back_all_the_same(
    database: Database, pool: psycopg_pool.ConnectionPool[Any], borrower: PostgresStore
) -> None:
    """FAULTS 33, 51: the pool replaces it; were it lost, the pool of one would be empty for ever."""

    def breaks() -> str:
        database.execute("SELECT pg_terminate_backend(%s)", backend(pool))
        return "broken"

    def workflow(step: Step, _: None) -> list[str]:
        return [step("breaks", breaks, key=str(number)) for number in range(3)]

    assert durable.run(None, workflow, id="run", store=borrower) == ["broken"] * 3
    borrower.close()
    check_as_it_was(pool, backend(pool))


def test_a_lent_connection_whose_server_is_not_told(
    database: Database, pool: psycopg_pool.ConnectionPool[Any], borrower: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS 51, 80: a signal handler raises while it is asked, or its server has ended it. It goes back to the pool."""

    asked = Connections.server_of

    def interrupted(connections: Connections, connection: Any) -> str:
        if threading.current_thread() is threading.main_thread():  # where signals are handled
            raise KeyboardInterrupt
        return asked(connections, connection)

    with monkeypatch.context() as patch:
        patch.setattr(Connections, "server_of", interrupted)
        asked_for = claim("run")
        with pytest.raises(KeyboardInterrupt):
            borrower.perform(Begin(asked_for, lambda: True))
    for lease in asked_for.taken:  # the writer's thread has seen to the rest of it
        borrower.perform(Release(lease))
    database.execute("SELECT pg_terminate_backend(%s, 10000)", backend(pool))
    assert isinstance(borrower.perform(Begin(claim("run"), lambda: True)), Granted)
    borrower.close()
    check_as_it_was(pool, backend(pool))
