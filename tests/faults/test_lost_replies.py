"""Connections cut around every statement, silent servers, and servers that end a statement or a connection."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

import durable
from durable import AsyncStep, Step
from durable.stores import PostgresStore
from durable.stores._postgres.job import ABSENT, Job
from durable.stores._postgres.jobs import CHECKPOINT, CLAIM, FINISH
from durable.stores._postgres.verbs import PostgresVerb
from harness.ownership_children import PATIENCE, wait_until
from harness.proxy import Link, Moment, Proxy, Trap
from harness.support import Database, needs
from harness.writer_spies import spy_on, waiting, writer_of

Workflow: TypeAlias = Callable[..., Any]

RUN = "wired"
BRANCHES = [f"branch-{number}" for number in range(6)]
END = "the very end"


class Bodies:
    """The workflows' dependencies: what ran, and what a body does besides."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.meanwhile: Callable[[str], object] = lambda _: None

    def body(self, key: str) -> str:
        """The body of every step."""
        self.ran.append(key)
        self.meanwhile(key)
        return f"value of {key}"


def in_turn(step: Step, deps: Bodies) -> list[str]:
    return [step("body", deps.body, key, key=key) for key in ("one", "two", "three")] + [END]


async def async_in_turn(step: AsyncStep, deps: Bodies) -> list[str]:
    return [await step("body", deps.body, key, key=key) for key in ("one", "two", "three")] + [END]


def at_once(step: Step, deps: Bodies) -> list[str]:
    with ThreadPoolExecutor(len(BRANCHES)) as pool:
        return list(pool.map(lambda key: step("body", deps.body, key, key=key), BRANCHES))


async def async_at_once(step: AsyncStep, deps: Bodies) -> list[str]:
    return await asyncio.gather(*(step("body", deps.body, key, key=key) for key in BRANCHES))


KEYS = {in_turn: ["one", "two", "three"], async_in_turn: ["one", "two", "three"]} | {
    at_once: BRANCHES,
    async_at_once: BRANCHES,
}


@pytest.fixture(params=[in_turn, async_in_turn], ids=["sync", "async"])
def workflow(request: pytest.FixtureRequest) -> Workflow:
    chosen: Workflow = request.param
    return chosen


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    with Proxy(database.url) as proxy:
        yield proxy


def run(store: PostgresStore, workflow: Workflow, deps: Bodies, *, lease: float = 30.0) -> Any:
    """Run it in its colour."""
    outcome = durable.run(deps, workflow, id=RUN, store=store, lease=lease)
    return asyncio.run(outcome) if asyncio.iscoroutine(outcome) else outcome


def nonces(database: Database) -> dict[str, int]:
    """The nonce of each key; that no key has two is checked by the way."""
    rows = database.execute("SELECT key, nonce FROM durable_steps WHERE workflow_id = %s", RUN)
    assert len(dict(rows)) == len(rows), "a key has two records"
    return dict(rows)


def check_undisturbed(database: Database, workflow: Workflow, deps: Bodies) -> None:
    """Each body ran once, there is one record of each key, and one owner has written it all."""
    keys = KEYS[workflow]
    assert sorted(deps.ran) == sorted(keys)
    assert sorted(nonces(database)) == sorted([*keys, "result"])
    assert database.status(RUN) == "completed"
    assert database.execute("SELECT epoch, owner_token FROM durable_locks") == [(1, None)]
    assert database.execute("SELECT DISTINCT epoch FROM durable_steps") == [(1,)]


# -- cut ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", list(Moment), ids=lambda moment: moment.value)
@pytest.mark.parametrize(
    ("verb", "marker"),
    [(CLAIM, "may_create"), (CHECKPOINT, "value of two"), (FINISH, END)],
    ids=["claim", "checkpoint", "finish"],
)
def test_a_cut_connection_is_not_noticed(
    database: Database, proxy: Proxy, workflow: Workflow, verb: PostgresVerb, marker: str, moment: Moment
) -> None:
    """FAULTS 40, 41: before the statement is forwarded, while the server works on it, and with the reply on its way."""
    store, deps = database.store(proxy.url), Bodies()
    spy = spy_on(store)
    trap = proxy.trap(moment, marker, Link.cut)

    assert run(store, workflow, deps)[-1] == END

    assert trap.sprung.wait(PATIENCE)
    check_undisturbed(database, workflow, deps)
    (settled,) = [seen for seen in spy.seen if seen.how == "read_back" and seen.problem is None]
    performed = [seen.names for seen in spy.of("perform", verb) if settled.names[0] in seen.names]
    assert settled.verb is verb
    if verb is CLAIM:
        assert len(performed) == 2, "a claim whose reply is lost is found by claiming again with the same random"
    elif moment is Moment.FORWARDED:  # committed or not, but known
        assert len(performed) == (2 if settled.answers == [ABSENT] else 1)
    else:
        assert settled.answers == [None if moment is Moment.ANSWERED else ABSENT]
        assert len(performed) == (1 if moment is Moment.ANSWERED else 2)
    if verb is not CLAIM:
        assert settled.names[0] in nonces(database).values()


@pytest.mark.parametrize("moment", list(Moment), ids=lambda moment: moment.value)
@pytest.mark.parametrize("workflow", [at_once, async_at_once], ids=["sync", "async"])
def test_a_cut_connection_under_a_batch_is_not_noticed(
    database: Database, proxy: Proxy, workflow: Workflow, moment: Moment
) -> None:
    """FAULTS 40, 41, for a batch: it is read back as a batch, and only what is absent is sent again."""
    store, deps = database.store(proxy.url), Bodies()
    spy = spy_on(store)
    traps: list[Trap] = []
    cut: list[str] = []

    def before(how: str, jobs: Sequence[Job]) -> None:
        if how == "perform" and jobs[0].verb is CHECKPOINT and not traps:
            # The first of them, whether alone or not, are held up until all have been handed over: the rest is a batch.
            wait_until(lambda: len(jobs) + waiting(writer_of(store)) == len(BRANCHES), "the others to hand over")
            first = [job.payload.record.key for job in jobs]
            cut.extend(BRANCHES if len(first) == len(BRANCHES) else (key for key in BRANCHES if key not in first))
            key = cut[0]
            traps.append(proxy.trap(moment, f"value of {key}", Link.cut))

    spy.before = before
    assert run(store, workflow, deps) == [f"value of {key}" for key in BRANCHES]

    assert traps[0].sprung.wait(PATIENCE)
    check_undisturbed(database, workflow, deps)
    (settled,) = [seen for seen in spy.of("read_back", CHECKPOINT) if seen.problem is None]
    assert len(settled.names) == len(cut)
    assert set(settled.names) <= set(nonces(database).values())
    if moment is not Moment.FORWARDED:
        assert set(settled.answers or ()) == {None if moment is Moment.ANSWERED else ABSENT}
    performed = [name for seen in spy.of("perform", CHECKPOINT) for name in seen.names]
    again = [name for name in settled.names if performed.count(name) > 1]
    assert len(again) == list(settled.answers or ()).count(ABSENT)


def test_a_connection_cut_again_and_again_is_not_noticed(database: Database, proxy: Proxy, workflow: Workflow) -> None:
    """FAULTS 40, 41: reading back and sending again are cut like everything else."""
    store, deps = database.store(proxy.url), Bodies()
    spy = spy_on(store)
    kinds = [(Moment.SENT, "value of two"), (Moment.SENT, "FOR UPDATE"), (Moment.ANSWERED, "value of two")]
    kinds += [(Moment.ANSWERED, "FOR UPDATE")]  # the second reading back
    traps: list[Trap] = []

    def spring(link: Link) -> None:
        link.cut()
        if kinds:
            lay()

    def lay() -> None:
        moment, marker = kinds.pop(0)
        traps.append(proxy.trap(moment, marker, spring))

    lay()
    assert run(store, workflow, deps)[-1] == END
    assert len(traps) == 4
    assert all(trap.sprung.wait(PATIENCE) for trap in traps)
    check_undisturbed(database, workflow, deps)
    assert [seen.answers for seen in spy.of("read_back", CHECKPOINT)] == [None, [ABSENT], None, [None]]


def test_a_statement_that_comes_after_its_own_retry_changes_nothing(
    database: Database, proxy: Proxy, workflow: Workflow
) -> None:
    """FAULTS 43: held up on the wire while the client has given it up, read back and sent again."""
    store, deps = database.store(proxy.url), Bodies()
    nonce: list[int] = []

    def hold(link: Link) -> None:
        link._client.shutdown(2)
        wait_until(lambda: "two" in nonces(database), "the retry to be committed")
        nonce.append(nonces(database)["two"])

    proxy.trap(Moment.SENT, "value of two", hold)
    arrived = proxy.trap(Moment.ANSWERED, "value of two", lambda _: None)

    assert run(store, workflow, deps)[-1] == END

    assert arrived.sprung.wait(PATIENCE)
    check_undisturbed(database, workflow, deps)
    assert nonces(database)["two"] == nonce[0]


# -- unreachable ----------------------------------------------------------------------------------------------------


@contextmanager
def unreachable(proxy: Proxy, moment: Moment, marker: str) -> Iterator[None]:
    """The connection is cut at this moment, and no other one is let through; in the end it is."""
    connect = proxy._connect

    def refuse() -> Any:
        raise ConnectionRefusedError

    def cut(_: Link) -> None:
        proxy._connect = refuse  # type: ignore[method-assign]
        for link in proxy._links:
            link.cut()

    proxy.trap(moment, marker, cut)
    try:
        yield
    finally:
        proxy._connect = connect  # type: ignore[method-assign]


@pytest.mark.parametrize("moment", [Moment.SENT, Moment.ANSWERED], ids=lambda moment: moment.value)
@pytest.mark.parametrize(
    ("verb", "marker"),
    [(CLAIM, "may_create"), (CHECKPOINT, "value of two"), (FINISH, END)],
    ids=["claim", "checkpoint", "finish"],
)
def test_what_cannot_be_read_back_is_called_unknown(
    database: Database, proxy: Proxy, workflow: Workflow, verb: PostgresVerb, marker: str, moment: Moment
) -> None:
    """FAULTS 40, 41: unreachable until the lease is over; the caller is not told that it failed, and the next run goes on."""
    store, deps = database.store(proxy.url), Bodies()
    with unreachable(proxy, moment, marker), pytest.raises(durable.OutcomeUnknown, match=RUN):
        run(store, workflow, deps, lease=0.5)
    committed = moment is Moment.ANSWERED
    before = {CLAIM: [], CHECKPOINT: ["one", "two"], FINISH: ["one", "two", "three"]}[verb]
    assert deps.ran == before
    assert (database.status(RUN) == "completed") == (committed and verb is FINISH)

    again = Bodies()
    outcome = durable.run(again, workflow, id=RUN, store=store, on_conflict="wait")
    assert (asyncio.run(outcome) if asyncio.iscoroutine(outcome) else outcome)[-1] == END

    lost = {"two"} if verb is CHECKPOINT and not committed else set()
    assert again.ran == [key for key in KEYS[workflow] if key not in before or key in lost]
    assert sorted(nonces(database)) == sorted([*KEYS[workflow], "result"])


# -- silent ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", [Moment.SENT, Moment.ANSWERED], ids=lambda moment: moment.value)
@pytest.mark.parametrize(
    ("verb", "marker"),
    [(CLAIM, "may_create"), (CHECKPOINT, "value of two"), (FINISH, END)],
    ids=["claim", "checkpoint", "finish"],
)
def test_a_connection_that_falls_silent_is_given_up(
    database: Database, proxy: Proxy, verb: PostgresVerb, marker: str, moment: Moment
) -> None:
    """FAULTS 42: nothing comes through any more, and nobody says so. Without the watchdog this would hang."""
    store, deps, over = database.store(proxy.url), Bodies(), threading.Event()
    spy = spy_on(store)
    trap = proxy.trap(moment, marker, lambda _: over.wait(PATIENCE))
    try:
        assert run(store, in_turn, deps, lease=1.0)[-1] == END
        assert not trap.sprung.is_set(), "the silence ended before the run did"
    finally:
        over.set()
    check_undisturbed(database, in_turn, deps)
    assert len(spy.of("read_back", verb)) == 1


def test_a_backend_that_stands_still_is_given_up(database: Database, workflow: Workflow) -> None:
    """FAULTS 42, 43: stopped before a checkpoint, and woken when that has been committed by another backend."""
    name = f"stopped-{secrets.token_hex(4)}"
    store, deps = database.store(make_conninfo(database.url, application_name=name)), Bodies()
    spy, stopped, guard = spy_on(store), list[int](), list[subprocess.Popen[bytes]]()

    def stop(key: str) -> None:
        if key == "two":
            (pid,) = backends(database, name)
            command = Path(f"/proc/{pid}/cmdline")
            if os.geteuid() != 0 or not command.exists() or b"postgres" not in command.read_bytes():
                pytest.skip("the server's processes are out of reach")
            # A stopped backend is in everybody's way: should this process be killed, the pipe's end wakes it.
            guard.append(subprocess.Popen(["sh", "-c", f"read _; kill -CONT {pid}"], stdin=subprocess.PIPE))
            os.kill(pid, signal.SIGSTOP)
            stopped.append(pid)

    deps.meanwhile = stop
    try:
        assert run(store, workflow, deps, lease=1.0)[-1] == END
        written = nonces(database)
    finally:
        for one in guard:
            one.communicate()
    wait_until(lambda: stopped[0] not in backends(database, name), "the backend to have done what it had been sent")
    check_undisturbed(database, workflow, deps)
    assert nonces(database) == written
    assert [seen.answers for seen in spy.of("read_back", CHECKPOINT)] == [[ABSENT]]


# -- ended by the server --------------------------------------------------------------------------------------------


def backends(database: Database, name: str) -> list[int]:
    """The backends of an application."""
    return [pid for (pid,) in database.execute("SELECT pid FROM pg_stat_activity WHERE application_name = %s", name)]


@contextmanager
def lease_locked(database: Database) -> Iterator[psycopg.Connection[Any]]:
    """Nobody can look at a lease in here but as a bystander."""
    with psycopg.connect(database.url) as connection:
        connection.execute(
            sql.SQL("SELECT FROM {} FOR UPDATE").format(sql.Identifier(database.schema, "durable_locks"))
        )
        yield connection


class Obstacle:
    """Locks the lease while "two" is being written, until the test has seen enough."""

    def __init__(self, database: Database) -> None:
        self._lock = lease_locked(database)

    def put_in(self, key: str) -> None:
        """For `Bodies.meanwhile`."""
        if key == "two":
            self._lock.__enter__()

    def take_away(self) -> None:
        """Let everybody pass again."""
        self._lock.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("setting", "state"), [("statement_timeout", "57014"), ("lock_timeout", "55P03")], ids=["statement", "lock"]
)
def test_a_checkpoint_that_times_out_in_the_server_is_tried_again(
    database: Database, workflow: Workflow, setting: str, state: str
) -> None:
    """FAULTS 45, 47: nothing was committed, which is certain; it is tried until it goes through, and the step does not fail."""
    database.store().list()  # the tables are there: what makes them has more to do, and no more time
    store, deps = database.store(make_conninfo(database.url, options=f"-c {setting}=60ms")), Bodies()
    obstacle, spy = Obstacle(database), spy_on(store)
    deps.meanwhile = obstacle.put_in

    def before(_: str, jobs: Sequence[Job]) -> None:
        failed = [seen for seen in spy.of("perform", CHECKPOINT) if seen.problem is not None]
        if len(failed) == 2:
            obstacle.take_away()

    spy.before = before
    assert run(store, workflow, deps)[-1] == END
    check_undisturbed(database, workflow, deps)
    problems = [seen.problem for seen in spy.seen if seen.problem is not None]
    assert [problem.sqlstate for problem in problems if isinstance(problem, psycopg.Error)] == [state, state]
    assert not spy.of("read_back", CHECKPOINT), "what is certain need not be read back"


def test_a_checkpoint_that_times_out_for_too_long_is_a_definite_failure(database: Database, workflow: Workflow) -> None:
    """FAULTS 45: the run stops, the failure is the store's and not the step's, and the next run goes on."""
    database.store().list()  # the tables are there, as above
    store, deps = database.store(make_conninfo(database.url, options="-c statement_timeout=60ms")), Bodies()
    obstacle = Obstacle(database)
    deps.meanwhile = obstacle.put_in
    with pytest.raises(durable.StoreUnavailable, match="57014"):
        run(store, workflow, deps, lease=0.5)
    obstacle.take_away()
    assert database.status(RUN) == "running"
    assert [key for _, key, _ in database.journal(RUN)] == ["one"]
    again = Bodies()
    outcome = durable.run(again, workflow, id=RUN, store=store, on_conflict="wait")
    assert (asyncio.run(outcome) if asyncio.iscoroutine(outcome) else outcome)[-1] == END
    assert again.ran == ["two", "three"]


def test_a_checkpoint_whose_transaction_the_server_ends_is_read_back(database: Database, workflow: Workflow) -> None:
    """FAULTS 47: `transaction_timeout` ends the session, perhaps with the COMMIT behind it: what became of it is asked for."""
    needs(database, "transaction_timeout", 17)
    database.store().list()  # the tables are there, as above
    store, deps = database.store(make_conninfo(database.url, options="-c transaction_timeout=100ms")), Bodies()
    obstacle, spy = Obstacle(database), spy_on(store)
    deps.meanwhile = obstacle.put_in

    def before(_: str, jobs: Sequence[Job]) -> None:
        if [seen for seen in spy.of("perform", CHECKPOINT) if seen.problem is not None]:
            obstacle.take_away()

    spy.before = before
    assert run(store, workflow, deps)[-1] == END
    check_undisturbed(database, workflow, deps)
    problems = [seen.problem for seen in spy.seen if seen.problem is not None]
    assert [problem.sqlstate for problem in problems if isinstance(problem, psycopg.Error)] == ["25P04"]
    assert [seen.answers for seen in spy.of("read_back", CHECKPOINT)] == [[ABSENT]]


def test_a_backend_terminated_between_two_steps_is_not_noticed(database: Database, workflow: Workflow) -> None:
    """FAULTS 33: the heartbeat's, too."""
    name = f"doomed-{secrets.token_hex(4)}"
    store, deps = database.store(make_conninfo(database.url, application_name=name)), Bodies()
    deps.meanwhile = lambda _: terminate(database, name)
    assert run(store, workflow, deps)[-1] == END
    check_undisturbed(database, workflow, deps)


def test_a_backend_terminated_in_a_checkpoint_is_not_noticed(database: Database, workflow: Workflow) -> None:
    """FAULTS 33: while it waits in the server for the lease's row."""
    name = f"doomed-{secrets.token_hex(4)}"
    store, deps = database.store(make_conninfo(database.url, application_name=name)), Bodies()
    obstacle, spy = Obstacle(database), spy_on(store)
    deps.meanwhile = obstacle.put_in

    def murder() -> None:
        waits = "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'"
        wait_until(lambda: database.execute(waits, name), "the checkpoint to wait in the server")
        terminate(database, name)
        wait_until(lambda: spy.of("read_back", CHECKPOINT), "the checkpoint to be read back")
        obstacle.take_away()

    murderer = threading.Thread(target=murder)
    murderer.start()
    assert run(store, workflow, deps)[-1] == END
    murderer.join()
    check_undisturbed(database, workflow, deps)
    assert [seen.answers for seen in spy.of("read_back", CHECKPOINT)] == [[ABSENT]]


@pytest.mark.long(3)
def test_backends_terminated_all_the_time_are_not_noticed(database: Database) -> None:
    """FAULTS 33, in small: ten runs, and every 30 ms all connections are gone."""
    name = f"doomed-{secrets.token_hex(4)}"
    store, bodies, over = (
        database.store(make_conninfo(database.url, application_name=name)),
        list[str](),
        threading.Event(),
    )
    killed: list[int] = []

    async def walk(step: AsyncStep, _: None, run_id: str) -> list[str]:
        async def body(number: int) -> str:
            bodies.append(f"{run_id}/{number}")
            await asyncio.sleep(0.02)
            return f"{run_id}/{number}"

        return [await step("body", body, number, key=str(number)) for number in range(8)]

    async def everybody() -> list[list[str]]:
        ids = [f"run-{number}" for number in range(10)]
        return await asyncio.gather(*(durable.run(None, walk, id=run_id, store=store, input=run_id) for run_id in ids))

    def murder() -> None:
        wait_until(lambda: len(bodies) >= 10, "all to have begun: a claim may be told that the store is out of reach")
        while not over.wait(0.03):
            killed.append(terminate(database, name))

    with store, ThreadPoolExecutor(1) as aside:
        murderer = aside.submit(murder)
        try:
            results = asyncio.run(everybody())
        finally:
            over.set()
        murderer.result()
    assert results == [[f"run-{number}/{step}" for step in range(8)] for number in range(10)]
    assert sorted(bodies) == sorted(value for result in results for value in result), "a body ran twice"
    assert database.execute("SELECT count(*), count(DISTINCT (workflow_id, key)) FROM durable_steps") == [(100, 100)]
    assert sum(killed) >= 3


def terminate(database: Database, name: str) -> int:
    """Terminate the backends of an application, and wait until they are gone; how many there were."""
    query = "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = %s"
    count: int = database.execute(query, name)[0][0]
    return count


def test_what_was_sent_and_not_found_may_still_come(database: Database) -> None:
    """FAULTS 43: found absent, and then refused: the first sending may arrive yet. (Found by simulation.)"""
    store = database.store()
    spy = spy_on(store)

    def lost(how: str, jobs: Sequence[Job]) -> None:
        if jobs[0].verb is FINISH and how == "perform":
            if len(spy.of("perform", FINISH)) == 1:
                raise psycopg.OperationalError("the connection is lost")
            raise psycopg.errors.InsufficientPrivilege("permission denied")

    spy.before = lost
    with pytest.raises(durable.OutcomeUnknown, match="the run's end"):
        durable.run(Bodies(), in_turn, id=RUN, store=store)
    assert spy.of("read_back", FINISH)[0].answers == [ABSENT]
