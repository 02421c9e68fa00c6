"""The writer: what an error means to it, and what it owes to each caller that waits, whatever becomes of the others."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from msgspec.structs import replace
from psycopg.conninfo import make_conninfo
from psycopg_pool import ConnectionPool

import durable
from durable import AsyncStep, Step
from durable._common.reports import flush
from durable._engine import batches
from durable._engine.batches import Verdict
from durable._engine.decisions import Claim, Granted
from durable._engine.leases import Lease
from durable.records import Kind, Record, Status
from durable.stores import PostgresStore, postgres
from durable.stores._postgres import jobs as made
from durable.stores._postgres.job import Job
from durable.stores._postgres.jobs import (
    CANCEL,
    CHECKPOINT,
    CLAIM,
    DELETE_SCHEDULE,
    ENQUEUE,
    FINISH,
    LOOK,
    PAUSE_SCHEDULE,
    POLL,
    PUT_SCHEDULES,
    RELEASE,
    SIGNAL,
    SIGNAL_ONCE,
    TICK,
    WAKE,
    checkpoint_job,
    finish_job,
)
from durable.stores._postgres.sqlstates import classify
from durable.stores._postgres.verbs import PostgresVerb
from durable.stores.requests import Begin, Cancel, Checkpoint, Finish, Release
from harness.ownership_children import wait_until
from harness.proxy import Proxy
from harness.support import Database
from harness.writer_spies import spy_on, waiting, writer_of


@pytest.mark.parametrize(
    ("state", "sent", "meaning"),
    [
        (None, False, Verdict.UNREACHED),
        ("57P01", False, Verdict.UNREACHED),
        (None, True, Verdict.UNKNOWN),
        ("08006", True, Verdict.UNKNOWN),
        ("57P01", True, Verdict.UNKNOWN),
        ("57P02", True, Verdict.UNKNOWN),
        ("57P03", True, Verdict.UNKNOWN),
        ("57P05", True, Verdict.UNKNOWN),
        ("25P03", True, Verdict.UNKNOWN),
        ("25P04", True, Verdict.UNKNOWN),  # its timer may go off while the server commits
        ("58030", True, Verdict.UNKNOWN),
        ("40001", True, Verdict.CONFLICT),
        ("40P01", True, Verdict.CONFLICT),
        ("40003", True, Verdict.UNKNOWN),  # statement_completion_unknown says what it is
        ("26000", True, Verdict.UNPREPARED),
        ("42P05", True, Verdict.UNPREPARED),
        ("22P02", True, Verdict.REFUSED),
        ("23514", True, Verdict.REFUSED),
        ("54001", True, Verdict.REFUSED),
        ("25006", True, Verdict.PASSING),
        ("53100", True, Verdict.PASSING),
        ("53300", True, Verdict.PASSING),
        ("55P03", True, Verdict.PASSING),
        ("57014", True, Verdict.PASSING),
        ("42501", True, Verdict.FINAL),
        ("42P01", True, Verdict.FINAL),
        ("XX000", True, Verdict.FINAL),
    ],
)
def test_what_an_error_means(state: str | None, sent: bool, meaning: Verdict) -> None:
    assert classify(state, sent=sent) is meaning
    assert (classify(state, sent=sent, waits_briefly=True) is Verdict.LOCKED) is (state == "55P03")


def test_what_is_asked_from_outside_fails_at_once() -> None:
    """And a release, whose lease ends by itself. What a running workflow writes is tried again."""
    verbs = [verb for verb in vars(made).values() if isinstance(verb, PostgresVerb)]
    jobs = [Job(verb, "run", 1, 0.0) for verb in verbs]
    assert {job.verb for job in batches.recover(jobs, Verdict.UNREACHED).failed} == {
        CLAIM,
        LOOK,
        CANCEL,
        SIGNAL,
        SIGNAL_ONCE,
        RELEASE,
        ENQUEUE,
        WAKE,
        POLL,
        PUT_SCHEDULES,
        TICK,
        PAUSE_SCHEDULE,
        DELETE_SCHEDULE,
    }


# -- what it owes ---------------------------------------------------------------------------------------------------


def claim(run_id: str) -> Claim:
    return Claim(run_id=run_id, workflow="written", version=1, seconds=60.0, input=None, input_hash=None, metadata={})


def leased(store: PostgresStore, *run_ids: str) -> list[Lease]:
    """Leases on new runs."""
    leases = []
    for run_id in run_ids:
        reply = store.perform(Begin(claim(run_id), lambda: True))
        assert isinstance(reply, Granted)
        leases.append(reply.lease)
    return leases


def record(seq: int, text: str = '{"name":"x","ok":true,"value":1}') -> Record:
    return Record(seq, f"key-{seq}", Kind.STEP, text)


def together(store: PostgresStore, jobs: Sequence[Job], *, large: bool = False) -> list[Any]:
    """Hand jobs over so that they go in one batch, from an event loop; the outcome of each, an error as a value."""
    writer = writer_of(store, "large" if large else "small")

    def seized() -> bool:
        with writer._lock:
            was_busy, writer._busy = writer._busy, -1
            return not was_busy

    async def handed_over() -> list[Any]:
        wait_until(seized, "the writer to have done with the last batch")
        futures = [writer.submit(job) for job in jobs]
        with writer._lock:
            writer._finish([])
        return await asyncio.gather(*futures, return_exceptions=True)

    return asyncio.run(handed_over())


@pytest.fixture
def store(database: Database) -> Iterator[PostgresStore]:
    with database.store() as store:
        yield store


def test_of_a_batch_only_what_is_refused_fails(database: Database, store: PostgresStore) -> None:
    """FAULTS 115: a record that PostgreSQL does not take for JSON, one too deep for it, a lost lease, one taken place."""
    good, lost = leased(store, "good", "lost")
    database.execute("UPDATE durable_locks SET epoch = epoch + 1, owner_token = 'thief' WHERE workflow_id = 'lost'")
    store.perform(Checkpoint(good, record(900)))
    jobs = {number: checkpoint_job(good, record(number)) for number in range(1, 101)}
    jobs[17] = checkpoint_job(good, record(17, '{"ok": tru}'))
    jobs[18] = checkpoint_job(good, record(18, '{"value":' + "[" * 60_000 + "]" * 60_000 + "}"))
    jobs[60] = checkpoint_job(lost, record(60))
    jobs[61] = checkpoint_job(good, record(900, '{"name":"another"}'))
    spy = spy_on(store)

    outcomes = dict(zip(jobs, together(store, list(jobs.values())), strict=True))

    assert len(spy.seen[0].names) == 50
    failed = {number: type(outcome) for number, outcome in outcomes.items() if outcome is not None}
    assert failed == {
        17: durable.UnstorableValue,
        18: durable.UnstorableValue,
        60: durable.LeaseLost,
        61: durable.LeaseLost,
    }
    assert "SQLSTATE 22P02" in str(outcomes[17])
    assert "tru" not in str(outcomes[17]).replace("PostgreSQL", ""), "the value is quoted"
    written = [
        seq for (seq,) in database.execute("SELECT seq FROM durable_steps WHERE workflow_id = 'good' ORDER BY 1")
    ]
    assert written == [number for number in range(1, 101) if number not in (17, 18, 60, 61)] + [900]
    assert database.journal("lost") == []
    store.perform(Checkpoint(good, record(901)))


def test_of_two_lives_of_a_run_in_one_batch_only_the_new_one_has_written(
    database: Database, store: PostgresStore
) -> None:
    """A run is cancelled and taken up again by the same process, and both lives write to the same place at once."""
    (old,) = leased(store, "run")
    assert store.perform(Cancel("run", force=True))
    (new,) = leased(store, "run")
    spy = spy_on(store)

    jobs = [checkpoint_job(old, record(1, '"old"')), checkpoint_job(new, record(1, '"new"'))]
    outcomes = together(store, jobs)

    assert len(spy.seen[0].names) == 2
    assert isinstance(outcomes[0], durable.LeaseLost)
    assert outcomes[1] is None
    assert database.journal("run")[-1:] == [("step", "key-1", "new")]


def test_of_a_batch_of_ends_only_what_is_refused_fails(database: Database, store: PostgresStore) -> None:
    """FAULTS 115, for finishes; each is its own run, and what failed is as it was."""
    ids = [f"run-{number}" for number in range(12)]
    leases = leased(store, *ids)
    database.execute("UPDATE durable_locks SET epoch = epoch + 1, owner_token = 'thief' WHERE workflow_id = 'run-5'")
    texts = ["{" if number == 3 else str(number) for number in range(12)]
    jobs = [
        finish_job(Finish(lease, Status.COMPLETED, Record(1, "result", Kind.RESULT, text)))
        for lease, text in zip(leases, texts, strict=True)
    ]
    outcomes = together(store, jobs)
    failed = {number: type(outcome) for number, outcome in enumerate(outcomes) if outcome is not None}
    assert failed == {3: durable.UnstorableValue, 5: durable.LeaseLost}
    assert {run_id for run_id in ids if database.status(run_id) == "running"} == {"run-3", "run-5"}
    store.perform(Release(leases[3]))


def test_checkpoints_and_ends_share_a_commit_and_only_what_is_refused_fails(
    database: Database, store: PostgresStore
) -> None:
    """Each by itself, where PostgreSQL takes one of them not: as in batches of one verb."""
    ids = [f"run-{number}" for number in range(12)]
    leases = leased(store, *ids)
    database.execute(
        "UPDATE durable_locks SET epoch = epoch + 1, owner_token = 'thief' WHERE workflow_id IN ('run-4', 'run-5')"
    )

    def job(number: int, text: str) -> Job:
        if number % 2:
            end = Record(1, "result", Kind.RESULT, text)
            return finish_job(Finish(leases[number], Status.COMPLETED, end))
        return checkpoint_job(leases[number], record(1, text))

    spy = spy_on(store)
    outcomes = together(store, [job(number, str(number)) for number in range(6)])
    assert [len(seen.names) for seen in spy.seen] == [6]
    assert [type(outcome) for outcome in outcomes] == [type(None)] * 4 + [durable.LeaseLost] * 2
    assert [database.status(run_id) for run_id in ids[:6]] == ["running", "completed"] * 2 + ["running"] * 2
    assert [database.journal(run_id) for run_id in ids[:4]] == [
        [("step", "key-1", 0)],
        [("result", "result", 1)],
        [("step", "key-1", 2)],
        [("result", "result", 3)],
    ]

    outcomes = together(store, [job(number, "{" if number in (8, 9) else str(number)) for number in range(6, 12)])
    failed = {number: type(outcome) for number, outcome in enumerate(outcomes, 6) if outcome is not None}
    assert failed == {8: durable.UnstorableValue, 9: durable.UnstorableValue}
    assert database.journal("run-8") == []
    assert database.status("run-9") == "running"
    assert [database.journal(run_id)[-1][2] for run_id in ("run-6", "run-7", "run-10", "run-11")] == [6, 7, 10, 11]


def test_a_cancelled_future_and_a_closed_loop_are_nobody_elses_business(
    database: Database, store: PostgresStore
) -> None:
    """FAULTS 116: their records are in the batch, and are written; the others are answered, and the writer lives."""
    leases = leased(store, "cancelled", "closed", "patient", "thread", "after")
    writer, held, go_on = writer_of(store), threading.Event(), threading.Event()
    spy = spy_on(store)

    def hold(_: str, jobs: Sequence[Job]) -> None:
        held.set()
        assert go_on.wait(30)

    spy.before = hold
    with ThreadPoolExecutor(1) as aside:
        blocker = aside.submit(store.perform, Checkpoint(leases[4], record(1)))
        assert held.wait(30)

        async def leave_behind() -> None:
            writer.submit(checkpoint_job(leases[1], record(1)))

        async def wait_and_cancel() -> list[Any]:
            cancelled = writer.submit(checkpoint_job(leases[0], record(1)))
            patient = writer.submit(checkpoint_job(leases[2], record(1)))
            cancelled.cancel()
            go_on.set()
            return list(await asyncio.gather(cancelled, patient, return_exceptions=True))

        asyncio.run(leave_behind())  # its loop is closed when this returns
        first, second = asyncio.run(wait_and_cancel())
        assert blocker.result(30) is None
    assert isinstance(first, asyncio.CancelledError)
    assert second is None
    assert len(spy.seen[1].names) == 3, "they were not in one batch"
    store.perform(Checkpoint(leases[3], record(1)))
    assert database.execute("SELECT count(*) FROM durable_steps WHERE key = 'key-1'") == [(5,)]


def test_who_cannot_be_told_keeps_nobody_else_from_being_told(database: Database, store: PostgresStore) -> None:
    """FAULTS 116: an answer that comes late is passed on to a closed loop, which raises; in the same batch others wait."""
    leases = leased(store, "closed", "cancelled", "patient", "after")
    writer, held, go_on = writer_of(store), threading.Event(), threading.Event()

    def hold(_: str, jobs: Sequence[Job]) -> None:
        held.set()
        assert go_on.wait(30)

    def unheard(_: Job) -> None:
        raise RuntimeError("Event loop is closed")

    spy_on(store).before = hold
    with ThreadPoolExecutor(1) as aside:
        blocker = aside.submit(store.perform, Checkpoint(leases[3], record(1)))
        assert held.wait(30)

        def deaf(lease: Lease) -> asyncio.Future[Any]:
            job = checkpoint_job(lease, record(1))
            job.on_orphan = unheard
            return writer.submit(job)

        async def leave_behind() -> None:
            deaf(leases[0])

        async def wait_and_cancel() -> None:
            deaf(leases[1]).cancel()
            patient = writer.submit(checkpoint_job(leases[2], record(1)))
            go_on.set()
            assert await asyncio.wait_for(patient, 30) is None

        asyncio.run(leave_behind())
        asyncio.run(wait_and_cancel())
        assert blocker.result(30) is None


def test_no_body_is_started_while_too_much_waits(
    database: Database, store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue is bounded by bytes: tasks wait before their bodies, where threads wait for their checkpoints."""
    monkeypatch.setattr(batches, "MAX_WAITING", 50_000)
    writer, go_on, started, most = writer_of(store), threading.Event(), list[int](), list[int]()

    async def body(number: int) -> str:
        started.append(number)
        most.append(writer._backlog.bytes)
        return "x" * 5_000

    async def workflow(step: AsyncStep, _: None) -> int:
        values = await asyncio.gather(*(step("body", body, number, key=str(number)) for number in range(100)))
        return sum(map(len, values))

    def hold(_: str, jobs: Sequence[Job]) -> None:
        if jobs[0].verb is CHECKPOINT:
            assert go_on.wait(30)

    def let_go() -> None:
        try:
            wait_until(lambda: writer._room_waiters or len(started) == 100, "some to wait")
        finally:
            go_on.set()

    spy_on(store).before = hold
    with ThreadPoolExecutor(1) as aside:
        holder = aside.submit(let_go)
        assert asyncio.run(durable.run(None, workflow, id="wide", store=store)) == 500_000
        holder.result(30)
    assert sorted(started) == list(range(100))
    assert max(most) < 50_000
    assert not writer._room_waiters


def test_a_run_whose_lease_ends_while_it_waits_for_room_starts_no_body(
    database: Database, store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its deadline was checked before it began to wait."""
    (other,) = leased(store, "other")
    monkeypatch.setattr(batches, "MAX_WAITING", 1)
    writer, go_on, bodies = writer_of(store), threading.Event(), list[str]()

    def hold(_: str, jobs: Sequence[Job]) -> None:
        if jobs[0].verb is CHECKPOINT:
            assert go_on.wait(30)

    async def workflow(step: AsyncStep, _: None) -> None:
        futures = [writer.submit(checkpoint_job(other, record(number))) for number in range(1, 40)]
        late = asyncio.ensure_future(step("late", lambda: bodies.append("late")))
        while not writer._room_waiters:  # noqa: ASYNC110 -- a poll is what it is
            await asyncio.sleep(0.001)
        database.execute("UPDATE durable_locks SET epoch = epoch + 1, owner_token = 'thief' WHERE workflow_id = 'run'")
        (lease,) = (lease for lease, _ in store._held.resources.heartbeat._kept.values() if lease.run_id == "run")
        store._held.resources.heartbeat.beat()
        assert lease.lost
        go_on.set()
        await asyncio.gather(late, *futures)

    spy_on(store).before = hold
    with pytest.raises(durable.LeaseLost):
        asyncio.run(durable.run(None, workflow, id="run", store=store))
    assert bodies == []


def test_who_waits_for_room_is_told_when_it_is_too_late(
    database: Database, store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is out of reach: what filled the queue is given up, and so is what waited to get into it."""
    short = [store.perform(Begin(replace(claim(run_id), seconds=0.5), lambda: False)) for run_id in ("first", "second")]
    first, second = (reply.lease for reply in short if isinstance(reply, Granted))
    monkeypatch.setattr(batches, "MAX_WAITING", 1)

    def out_of_reach(_: float) -> Any:
        raise durable.StoreUnavailable("nowhere", "it is away")

    monkeypatch.setattr(store._held.resources.connections, "take", out_of_reach)
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(store.perform, Checkpoint(lease, record(1))) for lease in (first, second)]
        assert [type(call.exception(30)) for call in calls] == [durable.StoreUnavailable] * 2
    monkeypatch.undo()


def test_the_lease_of_a_claim_that_nobody_waits_for_any_more_is_given_back(
    database: Database, store: PostgresStore
) -> None:
    """FAULTS 116: its event loop is closed before the claim is granted."""
    leased(store, "first")  # connects
    held, go_on = threading.Event(), threading.Event()

    def hold(_: str, jobs: Sequence[Job]) -> None:
        if jobs[0].verb is CLAIM:
            held.set()
            assert go_on.wait(30)

    spy_on(store).before = hold
    loop = asyncio.new_event_loop()

    async def leave_behind() -> None:
        writer_of(store).submit(store._requests._claiming(claim("orphan"), None))

    loop.run_until_complete(leave_behind())
    assert held.wait(30)
    loop.close()
    go_on.set()
    free = "SELECT count(*) FROM durable_locks WHERE workflow_id = 'orphan' AND epoch = 1 AND owner_token IS NULL"
    wait_until(lambda: database.execute(free) == [(1,)], "the lease to be given back")


def test_the_writers_own_death_is_told_and_survived(
    database: Database, store: PostgresStore, caplog: pytest.LogCaptureFixture
) -> None:
    """What waits for this batch gets `OutcomeUnknown`, whoever comes later is served."""
    (lease,) = leased(store, "run")
    spy = spy_on(store)

    def stumble(_: str, jobs: Sequence[Job]) -> None:
        if len(spy.seen) == 1:
            raise RecursionError("unexpected")

    spy.before = stumble
    outcomes = together(store, [checkpoint_job(lease, record(number)) for number in range(1, 4)])
    assert [type(outcome) for outcome in outcomes] == [durable.OutcomeUnknown] * 3
    assert "RecursionError" in str(outcomes[0])
    flush(5.0)
    assert "the writer failed" in caplog.text
    assert together(store, [checkpoint_job(lease, record(number)) for number in range(4, 7)]) == [None] * 3
    store.perform(Checkpoint(lease, record(7)))
    assert [key for _, key, _ in database.journal("run")] == ["key-4", "key-5", "key-6", "key-7"]


def test_a_lone_callers_own_death_is_told_in_the_same_way(database: Database, store: PostgresStore) -> None:
    """A workflow that catches `Exception` must not go on after it, and the next caller is served."""
    bodies: list[str] = []
    spy = spy_on(store)

    def stumble(_: str, jobs: Sequence[Job]) -> None:
        if jobs[0].verb is CHECKPOINT and len(spy.of("perform", CHECKPOINT)) == 1:
            raise RecursionError("unexpected")

    def workflow(step: Step, _: None) -> None:
        for key in ("one", "two"):
            try:
                step(key, lambda key=key: bodies.append(key), key=key)  # type: ignore[misc]
            except Exception:
                bodies.append("swallowed")

    spy.before = stumble
    with pytest.raises(durable.OutcomeUnknown):
        durable.run(None, workflow, id="run", store=store)
    assert bodies == ["one"]
    spy.before = lambda _how, _jobs: None
    durable.run(None, workflow, id="run", store=store)
    assert bodies == ["one", "one", "two"]


@pytest.mark.parametrize("problem", [psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected])
def test_a_victim_of_a_conflict_is_tried_again_in_halves(
    database: Database, store: PostgresStore, problem: type[psycopg.Error]
) -> None:
    """40001 and 40P01: nothing was committed, and smaller batches get through; nobody hears of it."""
    (lease,) = leased(store, "run")
    spy = spy_on(store)

    def collide(_: str, jobs: Sequence[Job]) -> None:
        if len(jobs) > 2:
            raise problem

    spy.before = collide
    assert together(store, [checkpoint_job(lease, record(number)) for number in range(1, 9)]) == [None] * 8
    assert sorted(len(seen.names) for seen in spy.seen) == [2, 2, 2, 2, 4, 4, 8]
    assert len(database.journal("run")) == 8


def test_who_is_always_the_victim_is_told(database: Database, store: PostgresStore) -> None:
    """A bounded number of times, and the others are not kept from their turn."""
    (lease,) = leased(store, "run")
    spy = spy_on(store)
    jobs = [checkpoint_job(lease, record(number)) for number in range(1, 9)]
    unlucky = jobs[2].payload.nonce

    def collide(_: str, jobs: Sequence[Job]) -> None:
        if unlucky in [job.payload.nonce for job in jobs]:
            raise psycopg.errors.SerializationFailure

    spy.before = collide
    outcomes = together(store, jobs)
    assert [type(outcome) for outcome in outcomes if outcome is not None] == [durable.StoreUnavailable]
    assert isinstance(outcomes[2], durable.StoreUnavailable)
    assert sum(unlucky in seen.names for seen in spy.seen) == batches.MAX_CONFLICTS
    assert len(database.journal("run")) == 7


def test_a_lone_blocking_caller_commits_on_its_own_thread(store: PostgresStore) -> None:
    """There is no thread of the writer's in the end, and each batch came from the caller."""
    spy, threads = spy_on(store), set()
    spy.before = lambda _how, _jobs: threads.add(threading.current_thread())

    def workflow(step: Step, _: None) -> list[int]:
        return [step("number", lambda number=number: number) for number in range(5)]  # type: ignore[misc]

    assert durable.run(None, workflow, id="alone", store=store) == [0, 1, 2, 3, 4]
    assert threads == {threading.current_thread()}
    assert len(spy.seen) == 7
    assert writer_of(store)._thread is None


def test_many_threads_share_statements(database: Database) -> None:
    """Fifty threads with ten steps each: far fewer round trips than records."""

    def workflow(step: Step, _: None) -> int:
        return sum(step("number", lambda number=number: number) for number in range(10))  # type: ignore[misc]

    with Proxy(database.url) as proxy, database.store(proxy.url) as store:
        durable.run(None, workflow, id="warm-up", store=store)
        before = proxy.count()
        with ThreadPoolExecutor(50) as pool:
            ids = [f"run-{number}" for number in range(50)]
            results = list(pool.map(lambda run_id: durable.run(None, workflow, id=run_id, store=store), ids))
        count = proxy.count().since(before)
    assert results == [45] * 50
    assert database.execute("SELECT count(*) FROM durable_steps WHERE workflow_id <> 'warm-up'") == [(550,)]
    assert count.round_trips < 300, "600 entries were not committed together"


def test_large_records_go_by_another_way(database: Database, store: PostgresStore) -> None:
    """While a large one is held up, a small one passes; both are written."""
    (lease,) = leased(store, "run")
    small, large = spy_on(store), spy_on(store, large=True)
    held, go_on = threading.Event(), threading.Event()

    def hold(_: str, jobs: Sequence[Job]) -> None:
        held.set()
        assert go_on.wait(30)

    large.before = hold
    text = json.dumps({"name": "x", "ok": True, "value": "x" * 300_000})
    with ThreadPoolExecutor(1) as aside:
        one = aside.submit(store.perform, Checkpoint(lease, record(1, text)))
        assert held.wait(30)
        store.perform(Checkpoint(lease, record(2)))
        assert not one.done()
        go_on.set()
        one.result(30)
    assert (len(small.seen), len(large.seen)) == (1, 1)
    assert [len(value["value"]) if seq == "key-1" else 0 for _, seq, value in database.journal("run")] == [300_000, 0]


def test_each_event_loop_is_woken_once_for_a_batch(database: Database, store: PostgresStore) -> None:
    """A batch of one loop's records: one `call_soon_threadsafe`."""
    (lease,) = leased(store, "run")
    jobs = [checkpoint_job(lease, record(number)) for number in range(batches.MIN_ENTRIES)]
    spy, calls = spy_on(store), []
    writer = writer_of(store)

    async def counted() -> None:
        loop = asyncio.get_running_loop()
        real = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *args, **kwargs: (calls.append(args[0]), real(*args, **kwargs))[1]  # type: ignore[method-assign, func-returns-value]
        with writer._lock:
            writer._busy = -1
        futures = [writer.submit(job) for job in jobs]
        with writer._lock:
            writer._finish([])
        await asyncio.gather(*futures)

    asyncio.run(counted())
    assert [len(seen.names) for seen in spy.seen] == [batches.MIN_ENTRIES]
    assert len(calls) == 1


def test_of_two_claims_of_a_run_in_a_batch_one_is_granted(database: Database, store: PostgresStore) -> None:
    """Also when many runs are claimed with them: each exactly once."""
    leased(store, "warm-up")
    jobs = [store._requests._claiming(claim(f"run-{number % 5}"), None) for number in range(15)]
    outcomes = together(store, jobs)
    granted = [found.lease for found in outcomes if found.lease is not None]
    refused = [found for found in outcomes if found.lease is None]
    assert sorted(lease.run_id for lease in granted) == [f"run-{number}" for number in range(5)]
    assert len(refused) == 10
    assert all(found.owner is not None for found in refused)
    for lease in granted:
        store.perform(Release(lease))


DEEP: Any = "bottom"
for _ in range(190):  # in a list, and that in a record
    DEEP = [DEEP]

AWKWARD: dict[str, Any] = {
    "null": None,
    "empty text": "",
    "quotes": "'single' \"double\" `back` $$dollars$$ %s %(x)s {0} \\ \\' \\u0041 ; --",
    "lines": "a\nb\r\nc\td\x08\x0c\x1b\x7f",
    "unicode": "ünï\u2028\u2029\ufeff𝄞\U0010ffff\u0301",
    "order": {"z": 1, "a": 2, "10": 3, "9": 4},
    "numbers": [1e16, 1.0, -0.0, 1e-320, 10**18, -1, 0.1],
    "deep": DEEP,
    "list of nulls": [None, [None], {"null": None}],
    "false": False,
    "like a row": '{"n": 0, "id": "run", "token": "x"}',
}


@pytest.mark.parametrize("form", ["single", "batch"])
def test_values_come_back_verbatim(database: Database, store: PostgresStore, form: str) -> None:
    """JSON null, quotes, depth, unicode and order, as a step's value and as a run's result, alone and among others."""
    spy = spy_on(store)

    async def steps(step: AsyncStep, _: None) -> list[Any]:
        async def one(key: str) -> Any:
            return await step(key, lambda: AWKWARD[key], key=f"{key} 'ü\"")

        return [await one(key) for key in AWKWARD] if form == "single" else await asyncio.gather(*map(one, AWKWARD))

    async def result(step: AsyncStep, _: None, key: str) -> Any:
        return AWKWARD[key]

    async def both() -> tuple[list[Any], list[Any]]:
        values = await durable.run(None, steps, id="steps", store=store)
        runs = [durable.run(None, result, id=f"'{key}\"", store=store, input=key) for key in AWKWARD]
        return values, await asyncio.gather(*runs) if form == "batch" else [await one for one in runs]

    expected = json.dumps(list(AWKWARD.values()))
    for _again in range(2):  # live, then replayed by a look into the store
        values, results = asyncio.run(both())
        assert json.dumps(values) == expected
        assert json.dumps(results) == expected
    sizes = {verb: max(len(seen.names) for seen in spy.of("perform", verb)) for verb in (CHECKPOINT, FINISH)}
    assert all((size > 1) == (form == "batch") for size in sizes.values()), sizes
    stored = database.execute(
        "SELECT record->>'value' IS NULL, record::text FROM durable_steps WHERE starts_with(key, 'null ')"
    )
    assert [null for null, _ in stored] == [True]
    assert '"value":null' in stored[0][1]


@pytest.mark.parametrize("lent", [False, True])
def test_another_encoding_of_the_client_changes_no_value(database: Database, lent: bool) -> None:
    """What goes past psycopg's cursor is encoded as what goes by it; what the encoding has no place for is refused."""

    def workflow(step: Step, _: Any) -> list[str]:
        values = [step("one", lambda: "\u00e9", key="k\u00e9y")]
        if lent:
            with pytest.raises(durable.UnstorableValue):
                step("two", lambda: "\u2713")
        else:
            values.append(step("two", lambda: "\u2713"))
        return values

    database.store().list()
    url = make_conninfo(database.url, client_encoding="LATIN1")
    with ConnectionPool(url, min_size=1, open=True) as pool:
        store = postgres(pool=pool, schema=database.schema) if lent else database.store(url)
        values = durable.run(None, workflow, id="run", store=store)
        store.close()
    steps = {key: record["value"] for kind, key, record in database.journal("run") if kind == "step"}
    assert steps == ({"k\u00e9y": "\u00e9"} if lent else {"k\u00e9y": "\u00e9", "two": "\u2713"})
    assert values == list(steps.values())


def test_what_is_prepared_outlives_a_rollback(database: Database, store: PostgresStore) -> None:
    """After one psycopg deallocates everything, what it has not prepared included."""

    def workflow(step: Step, _: Any) -> None:
        step("one", lambda: 1)
        with pytest.raises(durable.ConcurrentExecution):
            store.delete("run")
        step("two", lambda: 2)

    durable.run(None, workflow, id="run", store=store)
    assert store._held.resources.connections.prepares


def test_two_stores_prepare_on_one_lent_connection(database: Database) -> None:
    """Under names that are not each other's."""
    database.store().list()
    with ConnectionPool(database.url, min_size=1, max_size=1, open=True) as pool:
        for prefix in ("a:", "b:"):
            with postgres(pool=pool, schema=database.schema, prefix=prefix) as store:
                durable.run(None, lambda step, _: step("one", lambda: 1), id="run", store=store)
                assert store._held.resources.connections.prepares


def test_closing_commits_what_waits(database: Database) -> None:
    """And whoever comes later is told."""
    store = database.store()
    (lease,) = leased(store, "run")
    held, go_on = threading.Event(), threading.Event()

    def hold(_: str, jobs: Sequence[Job]) -> None:
        held.set()
        assert go_on.wait(30)

    spy_on(store).before = hold
    with ThreadPoolExecutor(3) as aside:
        first = aside.submit(store.perform, Checkpoint(lease, record(1)))
        assert held.wait(30)
        second = aside.submit(store.perform, Checkpoint(lease, record(2)))
        wait_until(lambda: waiting(writer_of(store)) == 1, "the second to wait")
        closing = aside.submit(store.close)
        wait_until(writer_of(store)._closing.is_set, "the store to be closing")
        go_on.set()
        closing.result(30)
        assert (first.result(30), second.result(30)) == (None, None)
    assert len(database.journal("run")) == 2
    with pytest.raises(durable.InvalidArgument, match="closed"):
        store.perform(Checkpoint(lease, record(3)))
