"""Workers under the faults of WORKERS.md §10.8, by number; those that need no other process are in test_workers.py."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg import sql
from psycopg_pool import ConnectionPool

import durable
from durable._engine import workers as decisions
from durable._engine.decisions import Granted
from durable._engine.starts import Route
from durable._runtime.held_runs import HeldRuns
from durable.errors import RunExists
from durable.records import Kind, Record
from durable.stores import PostgresStore, postgres
from durable.stores.requests import Checkpoint, Poll, Release
from harness.machine import Machine
from harness.ownership_children import remove_server, traces, wait_until
from harness.pgbouncer import SERVERS, bouncer
from harness.proxy import Link, Moment, Proxy
from harness.support import Database, needs_pgbouncer
from harness.worker_children import PLACES, fragile, waits, worker_process

WITHIN: Final = 25.0  # seconds, below the length of a lease: nothing here waits for one to end
POLL: Final = "WITH due AS MATERIALIZED"
START: Final = '"route"'  # among the parameters


@durable.workflow(name="note")
def note(step: durable.Step, deps: list[int], n: int) -> int:
    """One step that leaves a trace."""

    def body() -> int:
        deps.append(n)
        return n

    return step("note", body)


@durable.workflow(name="bare")
def bare(step: durable.Step, deps: list[int]) -> str:
    """It takes nothing."""
    return "bare"


def due(store: PostgresStore, workflow: str = "note") -> Granted | None:
    """What a worker gets that asks for one run."""
    route = [Route("default", workflow, 1)]
    granted = store.perform(Poll(route, 1, 30.0, lambda lease: True)).granted
    return granted[0] if granted else None


# -- death ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_a_worker_is_killed(database: Database, tmp_path: Path, place: str) -> None:
    """FAULTS 123: between grant and first step, in a body, before the finish. What was acknowledged does not begin again."""
    effects = str(tmp_path / "effects")
    with database.store() as store:
        run = durable.start(fragile, {"place": place, "effects": effects}, store=store)
        process = worker_process(database.url, database.schema)
        assert process.wait(WITHIN) == -signal.SIGKILL
        process.communicate()
        with durable.Worker(store, None, [fragile]):
            assert run.result(WITHIN) == "done"
        header = store.load(run.id)
        assert header is not None
        assert header.execution.crashes == (place == "granted")  # elsewhere something was recorded under its lease
    assert (
        traces(effects) == {"granted": ["one", "two"], "body": ["one", "two", "two"], "finish": ["one", "two"]}[place]
    )


def crash(database: Database, store: PostgresStore) -> int:
    """Take the run, and leave it as the dead do; how many have died so before."""
    granted = due(store)
    assert granted is not None
    end_all_leases(database)
    return granted.header.execution.crashes


def end_all_leases(database: Database) -> None:
    """As if their time had passed."""
    database.execute("UPDATE durable_locks SET expires_at = now(), due_at = now() WHERE owner_token IS NOT NULL")


def test_progress_ends_a_row_of_crashes_and_a_clean_release_does_not_lengthen_it(database: Database) -> None:
    """FAULTS 142."""
    with database.store() as store:
        durable.start(note, 1, store=store)
        assert [crash(database, store) for _ in range(3)] == [0, 1, 2]
        granted = due(store)
        assert granted is not None
        assert granted.header.execution.crashes == 3
        store.perform(Release(granted.lease))  # as a worker does that drains: that is neither a crash nor progress
        assert crash(database, store) == 3
        granted = due(store)
        assert granted is not None
        store.perform(Checkpoint(granted.lease, Record(1, "note", Kind.STEP, '{"value": 1}')))
        end_all_leases(database)
        assert [crash(database, store) for _ in range(2)] == [0, 1]


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    directory = Path(tempfile.mkdtemp(prefix="durable-test-"))
    machine = Machine(directory / "durable")
    yield machine
    machine.close()
    remove_server(directory / "durable")
    shutil.rmtree(directory)


def test_the_database_is_restarted_under_a_worker(machine: Machine, tmp_path: Path) -> None:
    """FAULTS 142: who dies meanwhile has not died of the run; who lives goes on, polls and hears as before."""
    database = Database(machine.url, f"t_{secrets.token_hex(6)}")
    effects = str(tmp_path / "effects")
    with postgres(machine.url, schema=database.schema) as store, durable.Worker(store, noted := list[int](), [note]):
        assert durable.start(note, 1, store=store).result(WITHIN) == 1
        run = durable.start(waits, {"effects": effects}, store=store)
        process = worker_process(database.url, database.schema)
        wait_until(lambda: traces(effects) == ["begun"], "the body to begin")
        machine.down(signal.SIGQUIT)
        process.kill()
        process.communicate()
        machine.up()
        assert durable.start(note, 2, store=store).result(WITHIN) == 2
        with durable.Worker(store, None, [waits]):
            assert run.result(WITHIN) == "done"
        header = store.load(run.id)
        assert header is not None
        assert header.execution.crashes == 0
        assert noted == [1, 2]
    database.drop()


# -- replies that are lost, late or in vain -----------------------------------------------------------------------------------


def test_the_reply_to_a_poll_is_lost(database: Database) -> None:
    """FAULTS 144: what it had taken is taken again by the same worker, at once, and its body begins once."""
    with database.store() as other, Proxy(database.url) as proxy, database.store(proxy.url) as store:
        run = durable.start(note, 1, store=other)
        lost = proxy.trap(Moment.ANSWERED, POLL, Link.cut)
        with durable.Worker(store, noted := list[int](), [note]):
            assert run.result(WITHIN) == 1
        assert lost.sprung.is_set()
        assert noted == [1]
        header = other.load(run.id)
        assert header is not None
        assert (header.execution.epoch, header.execution.crashes) == (2, 0)


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("takes", [False, True])
def test_the_reply_to_a_start_is_lost(database: Database, takes: bool, ends: bool) -> None:
    """What is there when it is sent again is its own run, also where that has no input, and where a worker was quicker."""
    workflow, given = (note, (1,)) if takes else (bare, ())
    with database.store() as other, Proxy(database.url) as proxy, database.store(proxy.url) as store:
        again: Any = partial(durable.start, workflow, *given, id="mine", on_conflict="raise")

        def lose(link: Link) -> None:
            if ends:
                durable.Worker(other, [], [note, bare]).run_until_idle()
            link.cut()

        lost = proxy.trap(Moment.ANSWERED, START, lose)
        assert again(store=store).status() == ("completed" if ends else "queued")
        assert lost.sprung.is_set()
        with pytest.raises(RunExists):
            again(store=store)
        proxy.trap(Moment.ANSWERED, START, lose)
        with pytest.raises(RunExists):
            again(store=store)


def test_a_worker_is_told_to_drain_while_its_poll_is_under_way(database: Database) -> None:
    """FAULTS 143, 144: what the reply grants is given back, and due at once."""
    with database.store() as other, Proxy(database.url) as proxy, database.store(proxy.url) as store:
        run = durable.start(note, 1, store=other)
        worker = durable.Worker(store, noted := list[int](), [note])
        answered = proxy.trap(Moment.ANSWERED, POLL, lambda link: worker.drain())
        worker.run()
        assert answered.sprung.is_set()
        assert noted == []
        granted = due(other)
        assert granted is not None
        assert granted.lease.run_id == run.id
        assert granted.header.execution.crashes == 0


def test_a_worker_process_gets_sigterm_while_its_poll_is_under_way(database: Database, tmp_path: Path) -> None:
    """FAULTS 143."""
    with database.store() as store, Proxy(database.url) as proxy:
        run = durable.start(fragile, {"place": "", "effects": str(tmp_path / "effects")}, store=store)
        process: list[subprocess.Popen[str]] = []
        begun = threading.Event()

        def terminate(link: Link) -> None:
            assert begun.wait(WITHIN)
            process[0].send_signal(signal.SIGTERM)

        proxy.trap(Moment.ANSWERED, POLL, terminate)
        process.append(worker_process(proxy.url, database.schema))
        begun.set()
        assert process[0].wait(WITHIN) == 0
        process[0].communicate()
        with durable.Worker(store, None, [fragile]):
            assert run.result(WITHIN) == "done"
        assert traces(tmp_path / "effects") == ["one", "two"]


# -- notifications --------------------------------------------------------------------------------------------------------------


def listeners(database: Database) -> set[int]:
    """The server's processes that listen for workers."""
    asked = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%%'"
    return {pid for (pid,) in database.execute(asked)}


def test_a_listener_is_cut(database: Database) -> None:
    """FAULTS 137: what is started meanwhile is found by the next poll, and the listener comes back."""
    with database.store() as store, durable.Worker(store, [], [note]):
        wait_until(lambda: len(listeners(database)) == 1, "the worker to listen")
        (cut,) = listeners(database)
        database.execute("SELECT pg_terminate_backend(%s)", cut)
        assert durable.start(note, 1, store=store).result(WITHIN) == 1
        wait_until(lambda: len(listeners(database) - {cut}) == 1, "the worker to listen again")
        assert durable.start(note, 2, store=store).result(WITHIN) == 2


def test_a_notification_is_lost(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 137: it costs time, and nothing else."""
    monkeypatch.setattr("durable._runtime.worker_service.WorkerService.wake", lambda service: None)
    with database.store() as store, durable.Worker(store, [], [note]):
        assert durable.start(note, 0, store=store).result(WITHIN) == 0

        def rests() -> bool:  # the start's word may come after the worker has taken its run, and taken it for busy
            return bool(database.execute("SELECT 1 FROM durable_workers WHERE idle")) or (
                durable.start(note, 0, store=store).result(WITHIN) != 0
            )

        wait_until(rests, "the worker to rest")
        assert durable.start(note, 1, store=store).result(WITHIN) == 1


def test_a_start_wakes_one_of_many_idle_workers(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 138: a start leads to at most three polls, however many workers there are. None here polls by its clock."""
    workers, starts = 20, 20
    monkeypatch.setattr(decisions, "MIN_INTERVAL", 3600.0)
    monkeypatch.setattr(decisions, "MAX_INTERVAL", 3600.0)
    polls: list[int] = []
    with database.store() as store, contextlib.ExitStack() as stack:
        store.stats()  # there are tables to look into
        perform = store.perform

        def counted(request: Any, on_late_reply: Any = None) -> Any:
            if isinstance(request, Poll):
                polls.append(1)
            return perform(request, on_late_reply)

        monkeypatch.setattr(store, "perform", counted)
        made = [durable.Worker(store, [], [note]) for _ in range(workers)]
        for worker in made:
            stack.enter_context(worker)

        def idle() -> int:
            ((count,),) = database.execute("SELECT count(*) FROM durable_workers WHERE idle")
            return int(count)

        wait_until(lambda: idle() == workers == len(listeners(database)), "all to rest")
        polls.clear()
        for n in range(starts):
            assert durable.start(note, n, store=store).result(WITHIN) == n
            wait_until(lambda: idle() == workers, "all to rest again")
        assert len(polls) <= 3 * starts
        for worker in made:
            worker.drain()  # all at once


# -- other users of the database -------------------------------------------------------------------------------------------------


def test_a_start_waits_for_an_open_transaction_of_the_same_id_and_no_worker_does(database: Database) -> None:
    """FAULTS 133: rolled back, it has never been; and what is at work meanwhile goes on."""
    with database.store() as store, database.store() as other, durable.Worker(other, noted := list[int](), [note]):
        assert durable.start(note, 1, store=other).result(WITHIN) == 1
        with psycopg.connect(database.url) as open_one:
            open_one.execute(
                f"INSERT INTO {database.schema}.durable_locks (workflow_id, epoch, expires_at) VALUES ('x', 0, now())".encode()
            )
            starting = threading.Thread(target=lambda: durable.start(note, 3, store=store, id="x"))
            starting.start()
            asked = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'transactionid' AND datname = current_database()"
            wait_until(lambda: bool(database.execute(asked)), "the start to wait")
            assert durable.start(note, 2, store=other).result(WITHIN) == 2
            open_one.rollback()
        starting.join(WITHIN)
        assert durable.handle(other, "x", note).result(WITHIN) == 3
        assert noted == [1, 2, 3]


def test_a_pool_of_one(database: Database) -> None:
    """FAULTS 166."""
    with (
        ConnectionPool(database.url, min_size=1, max_size=1, open=True) as pool,
        postgres(pool=pool, schema=database.schema) as store,
        durable.Worker(store, noted := list[int](), [note], concurrency=4),
    ):
        runs = [durable.start(note, n, store=store) for n in range(8)]
        assert [run.result(WITHIN) for run in runs] == list(range(8))
        assert sorted(noted) == list(range(8))


@needs_pgbouncer
def test_behind_a_pooler_workers_poll(database: Database) -> None:
    """FAULTS 166: its sessions are other clients' a moment later, so none of them listens."""
    with (
        bouncer(database.url) as through,
        database.store(through.url) as store,
        durable.Worker(store, noted := list[int](), [note], concurrency=4),
    ):
        runs = [durable.start(note, n, store=store) for n in range(8)]
        assert [run.result(WITHIN) for run in runs] == list(range(8))
        assert sorted(noted) == list(range(8))
        with psycopg.connect(through.url, autocommit=True, prepare_threshold=None) as client:
            for _ in range(2 * SERVERS):  # each of its sessions in turn
                assert client.execute("SELECT pg_listening_channels()").fetchall() == []


# -- where a worker is ------------------------------------------------------------------------------------------------------------


def test_threads_run_out(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 165, law W9: what cannot be begun is given back, and begun later."""
    refused: list[int] = []
    start = HeldRuns.start

    def start_later(runs: Any, run: Any, on_end: Callable[..., Any]) -> None:
        if not refused:
            refused.append(1)
            raise durable.StoreUnavailable("this process", "no thread can be started")
        start(runs, run, on_end)

    monkeypatch.setattr(HeldRuns, "start", start_later)
    with database.store() as store, durable.Worker(store, [], [note]):
        run = durable.start(note, 1, store=store)
        assert run.result(WITHIN) == 1
        header = store.load(run.id)
        assert header is not None
        assert (header.execution.epoch, header.execution.crashes) == (2, 0)


def test_a_worker_in_a_worker_and_two_in_one_process(database: Database) -> None:
    """FAULTS 167."""
    with database.store() as store:

        @durable.workflow(name="outer")
        def outer(step: durable.Step, deps: Any) -> int:
            def body() -> int:
                inner = durable.start(note, 1, store=store)
                durable.Worker(store, [], [note]).run_until_idle()
                return int(inner.result(WITHIN))

            return step("inner", body)

        with durable.Worker(store, None, [outer], concurrency=1), durable.Worker(store, None, [outer], concurrency=1):
            runs = [durable.start(outer, store=store) for _ in range(4)]
            assert [run.result(WITHIN) for run in runs] == [1] * 4


def test_a_process_forks_while_its_worker_is_at_work(database: Database) -> None:
    """FAULTS 167: the child has no worker, and touches none of its parent's leases."""
    inside, goes_on = threading.Event(), threading.Event()

    @durable.workflow(name="forked")
    def forked(step: durable.Step, deps: Any) -> str:
        def body() -> str:
            inside.set()
            assert goes_on.wait(WITHIN)
            return "parent"

        return step("body", body)

    with database.store() as store, durable.Worker(store, None, [forked]) as worker:
        run = durable.start(forked, store=store)
        assert inside.wait(WITHIN)
        before = database.execute("SELECT owner_token, epoch FROM durable_locks")
        child = os.fork()
        if not child:
            status = 1
            try:
                worker.drain()  # there is none here
                worker.__exit__(None)
                status = 0 if store.status(run.id) == "running" else 2
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert database.execute("SELECT owner_token, epoch FROM durable_locks") == before
        goes_on.set()
        assert run.result(WITHIN) == "parent"
        assert durable.start(forked, store=store).result(WITHIN) == "parent"  # it still polls and hears


def test_the_dead_are_found_beside_a_backlog(database: Database, tmp_path: Path) -> None:
    """Law W7: also by a worker whose every poll gets all that it asks for."""
    seen: list[str | None] = []
    with database.store() as store:
        run = durable.start(fragile, {"place": "body", "effects": str(tmp_path / "effects")}, store=store)
        process = worker_process(database.url, database.schema)
        assert process.wait(WITHIN) == -signal.SIGKILL
        process.communicate()

        @durable.workflow(name="look")
        def look(step: durable.Step, deps: Any) -> None:
            seen.append(store.status(run.id))

        durable.start_many(look, [durable.Start(priority=0) for _ in range(30)], store=store)
        durable.Worker(store, None, [look, fragile], concurrency=1).run_until_idle()
        assert seen[-1] == "completed"


def test_a_run_that_was_buried_is_retried_from_nought(database: Database) -> None:
    """FAULTS 142: the dead letter is brought back by `retry`, and its crashes do not count any more."""
    with database.store() as store:
        run = durable.start(note, 1, store=store)
        for _ in range(3):
            crash(database, store)
        durable.Worker(store, noted := list[int](), [note]).run_until_idle()
        assert (run.status(), noted) == ("failed", [])
        run.retry()
        durable.Worker(store, noted, [note]).run_until_idle()
        assert (run.status(), noted) == ("completed", [1])


# -- ends that take their time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_run_whose_end_waits_for_the_database_keeps_no_other_from_being_executed(
    database: Database, is_async: bool
) -> None:
    """With room for one: the second is executed while another transaction has the first one's header."""
    begun = threading.Event()
    header = sql.SQL("SELECT FROM {} WHERE id = 'first' FOR UPDATE").format(
        sql.Identifier(database.schema, "durable_snapshots")
    )
    with psycopg.connect(database.url) as blocker:

        def body(n: int) -> int:
            if n == 1:
                blocker.execute(header)
            else:
                begun.set()
            return n

        @durable.workflow(name="held_up")
        def blocking(step: durable.Step, deps: Any, n: int) -> int:
            return step("body", body, n)

        @durable.workflow(name="held_up_async")
        async def awaiting(step: durable.AsyncStep, deps: Any, n: int) -> int:
            return await step("body", body, n)

        workflow: Any = awaiting if is_async else blocking
        with database.store() as store:
            first = durable.start(workflow, 1, id="first", priority=1, store=store)
            second = durable.start(workflow, 2, id="second", priority=9, store=store)
            with durable.Worker(store, None, [workflow], concurrency=1):
                assert begun.wait(WITHIN)
                assert database.status("first") == "running"
                blocker.rollback()
                assert (first.result(timeout=WITHIN), second.result(timeout=WITHIN)) == (1, 2)
