"""Queues with limits: how many runs are begun, whose turn it is, and that nothing is ever stuck."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

import durable
from durable._engine.decisions import Awaited, Granted
from durable._engine.starts import Route
from durable._runtime.new_runs import Start
from durable.operate.transfer import export_run, read_runs
from durable.records import Kind, Record, Status
from durable.stores import Filter, memory
from durable.stores.requests import Finish, Poll, Polled, Release
from harness.support import Database


@durable.workflow("job", queue="mail")
def job(step: durable.Step, _: Any) -> None:
    """Is never executed here."""


@durable.workflow("other", queue="mail")
def other(step: durable.Step, _: Any) -> None:
    """Is never executed here."""


def plain(step: durable.Step, _: Any) -> None:
    """A run that durable.run executes itself."""


_numbers = itertools.count()
JOB, OTHER = Route("mail", "job", 1), Route("mail", "other", 1)


@pytest.fixture(params=["memory", "postgres"])
def store(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Both stores: the first is the model."""
    if request.param == "memory":
        with memory() as store:
            yield store
    else:
        database: Database = request.getfixturevalue("database")
        with database.store() as store:
            yield store


def poll(store: Any, count: int = 10, *routes: Route, looks: bool = False, seconds: float = 30.0) -> Polled:
    """What a worker gets."""
    return store.perform(Poll(routes or (JOB,), count, seconds, lambda _: True, looks, "w"))  # type: ignore[no-any-return]


def take(store: Any, count: int = 10, *routes: Route, looks: bool = False) -> list[str]:
    """The ids of what a worker gets."""
    return [granted.lease.run_id for granted in poll(store, count, *routes, looks=looks).granted]


def end(store: Any, granted: Granted) -> None:
    """The run completes."""
    place = len(granted.records)
    store.perform(Finish(granted.lease, Status.COMPLETED, Record(place, Kind.RESULT, Kind.RESULT, '{"value":1}')))


def start(store: Any, count: int, partition: str | None = None, **options: Any) -> list[str]:
    """So many runs."""
    ids = [options.pop("id")] if "id" in options else [f"r{next(_numbers):05}" for _ in range(count)]
    durable.start_many(job, [Start(id=one, partition=partition, **options) for one in ids], store=store)
    return ids


def test_no_more_are_held_than_the_limit_says(store: Any) -> None:
    """A queue of three: three at once, the next when one has ended, in the order in which they came."""
    store.write_queue(durable.Queue("mail", concurrency=3))
    ids = start(store, 5)
    first = poll(store).granted
    assert [one.lease.run_id for one in first] == ids[:3]
    assert take(store) == []
    end(store, first[1])
    assert take(store) == [ids[3]]
    assert take(store) == []
    store.perform(Release(first[0].lease))
    assert take(store) == [ids[0]], "what was begun goes on first"


def test_partitions_take_turns(store: Any) -> None:
    """One of each, whoever was first and however many each has; with few of them, several of each."""
    noisy = start(store, 6, "noisy")
    quiet = [start(store, 1, f"t{n}")[0] for n in range(3)]
    assert take(store, 4) == [noisy[0], *quiet]
    assert take(store, 2) == noisy[1:3]
    late = start(store, 2, "late")
    assert sorted(take(store, 4)) == sorted([noisy[3], late[0], noisy[4], late[1]])
    assert take(store) == [noisy[5]]


def test_a_partition_holds_no_more_than_its_limit(store: Any) -> None:
    """Counted over all its workflows; a partition at its limit is in the way of no other."""
    store.write_queue(durable.Queue("mail", partition_concurrency=2))
    start(store, 5, "a")
    durable.start(other, store=store, id="other", partition="a")
    others = start(store, 2, "b")
    got = poll(store, 10, JOB, OTHER).granted
    assert len([one for one in got if one.lease.run_id not in others]) == 2
    assert {one.lease.run_id for one in got} >= set(others)
    assert take(store, 10, JOB, OTHER) == []
    held = next(one for one in got if one.lease.run_id not in others)
    end(store, held)
    assert len(take(store, 10, JOB, OTHER)) == 1


def test_what_waits_holds_no_slot_and_is_no_member(store: Any) -> None:
    """A run that is suspended is not taken before its signal comes (the first text of this took it 20 times of 20)."""
    store.write_queue(durable.Queue("mail", concurrency=1, partition_concurrency=1))
    (first, second) = start(store, 2, "a")
    (granted,) = poll(store).granted
    assert granted.lease.run_id == first
    store.perform(Release(granted.lease, due_in=float("inf"), awaits=[Awaited("go", ())]))
    assert take(store) == [second]
    for _ in range(20):
        assert take(store) == []


def test_a_rate_spreads_beginnings(store: Any) -> None:
    """Two at once, then none until the interval is over; the poll says when."""
    store.write_queue(durable.Queue("mail", rate=durable.Rate(1, per=20, burst=2)))
    ids = start(store, 3)
    assert take(store) == ids[:2]
    polled = poll(store)
    assert polled.granted == []
    assert polled.next_in is not None
    assert 10 < polled.next_in <= 20


def test_paused_begins_nothing_and_keeps_places(store: Any) -> None:
    """And what is held goes on."""
    ids = start(store, 2)
    (granted,) = poll(store, 1).granted
    durable.pause(store, "mail")
    more = start(store, 1)
    assert take(store) == []
    end(store, granted)
    durable.unpause(store, "mail")
    assert take(store) == [ids[1], *more]


def test_limits_change_while_runs_are_held(store: Any) -> None:
    """Lowered: nothing is given up, and none begins until there is room. Raised: at once. Taken away: all."""
    store.write_queue(durable.Queue("mail", concurrency=4))
    start(store, 10)
    held = list(poll(store).granted)
    store.write_queue(durable.Queue("mail", concurrency=2))
    for _ in range(2):
        end(store, held.pop())
        assert take(store) == []
    end(store, held.pop())
    assert len(take(store)) == 1
    store.write_queue(durable.Queue("mail", concurrency=3))
    assert len(take(store)) == 1
    store.write_queue(durable.Queue("mail"))
    assert len(take(store)) == 4
    assert store.queues()[0].held == 7


def test_what_was_held_before_there_was_a_limit_counts(store: Any) -> None:
    """Four are held, and then the limit of three comes."""
    start(store, 6)
    held = poll(store, 4).granted
    store.write_queue(durable.Queue("mail", concurrency=3))
    end(store, held[0])
    assert take(store) == []
    end(store, held[1])
    assert len(take(store)) == 1


def test_priorities_within_a_partition(store: Any) -> None:
    """The turn comes first; of a partition the most urgent, then the first."""
    store.write_queue(durable.Queue("mail", concurrency=10))
    start(store, 1, "b", id="b")
    start(store, 1, "a", id="late", priority=9)
    start(store, 1, "a", id="soon", priority=0)
    assert sorted(take(store, 2)) == ["b", "soon"]
    assert take(store, 2) == ["late"]


def test_lists_queues(store: Any) -> None:
    """With limits, and how many are held and due."""
    store.write_queue(durable.Queue("mail", concurrency=1, rate=durable.Rate(600, per=60, burst=20)))
    start(store, 3, "a")
    durable.start("plain", store=store, queue="orders")
    take(store, 1)
    mail, orders = store.queues()
    assert mail.queue == durable.Queue("mail", concurrency=1, rate=durable.Rate(600, per=60.0, burst=20))
    assert mail[1:] == (False, 1, 2, 1)
    assert (orders.queue, *orders[1:]) == (durable.Queue("orders"), False, 0, 1, 0)


def test_a_worker_serves_a_limited_queue(store: Any) -> None:
    """With its limits given to it, and one run at a time: as fast as they end, not as often as it polls."""
    ids = start(store, 12, "a")
    queue = durable.Queue("mail", concurrency=1)
    durable.Worker(store, None, [job], queues=[queue]).run_until_idle()
    assert Counter(store.status(one) for one in ids) == {"completed": 12}


def test_a_worker_has_a_number_for_each_queue(store: Any) -> None:
    """Four and two; a queue without one, or one that it does not have, is refused by name."""
    seen: list[tuple[str, int]] = []
    running = Counter[str]()

    @durable.workflow("counted")
    def counted(step: durable.Step, _: Any, queue: str) -> None:
        running[queue] += 1
        seen.append((queue, running[queue]))
        step("wait", time.sleep, 0.02)
        running[queue] -= 1

    for queue in ("mail", "orders"):
        for _ in range(8):
            durable.start(counted, queue, store=store, queue=queue)
    queues = ["mail", "orders"]
    durable.Worker(store, None, [counted], queues=queues, concurrency={"mail": 1, "orders": 3}).run_until_idle()
    assert len(seen) == 16
    assert max(count for queue, count in seen if queue == "mail") == 1
    assert max(count for queue, count in seen if queue == "orders") <= 3
    with pytest.raises(durable.InvalidArgument, match="has no number for 'orders'"):
        durable.Worker(store, None, [counted], queues=queues, concurrency={"mail": 1})
    with pytest.raises(durable.InvalidArgument, match="'post', which is none of the worker's queues"):
        durable.Worker(store, None, [counted], queues=["mail"], concurrency={"mail": 1, "post": 3})


def test_sql_starts_in_a_partition(database: Database) -> None:
    """By the function, with the same route as a start has; and whoever could execute it before can execute it."""
    with database.store() as store:
        durable.start(job, store=store, id="a", partition='t\u00e9n"ant')
        database.execute("SELECT durable_start('job', id => 'b', queue => 'mail', partition => %s)", 't\u00e9n"ant')
        ((first, second),) = database.execute(
            "SELECT (SELECT route FROM durable_locks WHERE workflow_id = 'a'), "
            "(SELECT route FROM durable_locks WHERE workflow_id = 'b')"
        )
        assert first == second
        with pytest.raises(psycopg.Error, match="the partition must have"):
            database.execute("SELECT durable_start('job', partition => '')")


def test_a_plain_runs_row_is_not_a_byte_longer(database: Database) -> None:
    """What a run is counted in stands in a column that was there."""
    with database.store() as store:
        durable.run(None, plain, id="plain", store=store)
        (row,) = database.execute(
            "SELECT count(*) FROM pg_attribute WHERE attrelid = 'durable_locks'::regclass AND attnum > 0"
        )
    assert row == (8,), "a ninth column makes the map of NULLs, and so each row, eight bytes longer"


@pytest.mark.parametrize("colour", ["blocking", "async"])
def test_pauses_in_both_colours(store: Any, colour: str) -> None:
    """Twice is once; and another queue goes on."""
    for _ in range(2):
        if colour == "async":
            asyncio.run(durable.aio.pause(store, "mail"))
        else:
            durable.pause(store, "mail")
    start(store, 1)
    durable.start("job", store=store, queue="post", id="post")
    assert take(store, 10, JOB, Route("post", "job", 1)) == ["post"]
    with pytest.raises(durable.InvalidArgument, match="a queue's name must not be empty"):
        durable.pause(store, "")


def test_a_queue_is_held_and_copied_by_its_partition(store: Any) -> None:
    """Cancelled while it waits for its turn, taken up again, forked: it is of its partition still."""
    store.write_queue(durable.Queue("mail", concurrency=1))
    first, second = start(store, 2, "a")
    assert take(store) == [first]
    durable.cancel(store, second)
    durable.retry(store, second)
    durable.cancel(store, first, force=True)
    assert take(store) == [second]
    durable.fork(store, second, new_id="copy")
    durable.cancel(store, second, force=True)
    assert take(store) == ["copy"]
    assert store.queues()[0].held == 1


def test_a_run_is_found_and_moved_with_its_partition(store: Any) -> None:
    """By its queue, before and after its turn is entered; and an export has what it is of."""
    store.write_queue(durable.Queue("mail", concurrency=1))
    ids = start(store, 2, "a")
    assert {line.partition for line in store.runs(Filter(queues=("mail",)))} == {"a"}
    assert take(store) == ids[:1]
    assert {line.id for line in store.runs(Filter(queues=("mail",)))} == set(ids)
    (stored,) = read_runs(export_run(store, ids[1]))
    store.delete(ids[1])
    store.restore(stored)
    (line,) = store.runs(Filter(ids=(ids[1],)))
    assert (line.queue, line.partition) == ("mail", "a")
    assert store.stats().queued == 1


def test_a_run_that_is_deleted_while_it_is_held_frees_its_place(store: Any) -> None:
    """By force: its partition, which had no turn since it was full, has one."""
    store.write_queue(durable.Queue("mail", partition_concurrency=1))
    first, second = start(store, 2, "a")
    assert take(store) == [first]
    assert take(store) == []
    store.delete(first, force=True)
    assert take(store) == [second]


def test_a_partition_at_its_limit_is_in_no_others_way(store: Any) -> None:
    """FAULTS 130: three that are full, and have got something new, come before the one that is not; there is room for one."""
    store.write_queue(durable.Queue("mail", partition_concurrency=1))
    for name in "abc":
        start(store, 1, name)
    assert len(take(store)) == 3
    for name in "abc":
        start(store, 2, name)
    (free,) = start(store, 1, "d")
    assert take(store, 1) == [free]
    assert take(store, 1) == []


def test_a_purge_by_queue_finds_what_was_in_a_partition(store: Any) -> None:
    """And leaves alone what was in another queue."""
    start(store, 2, "a")
    start(store, 1)
    durable.start(job, store=store, id="elsewhere", queue="orders", partition="a")
    for granted in poll(store, 10, JOB, Route("orders", "job", 1)).granted:
        end(store, granted)
    assert store.purge(older_than=0, queue="mail") == 3
    assert [line.id for line in store.runs()] == ["elsewhere"]


def test_a_worker_of_schedules_alone_asks_with_no_route(store: Any) -> None:
    """Also where it has heard of queues with limits before."""
    store.write_queue(durable.Queue("mail", concurrency=1))
    start(store, 1)
    asked = Poll((), 5, 30.0, lambda _: True, True, "w", limited=("mail",))
    assert store.perform(asked).granted == []


def test_a_forked_child_has_the_limits_of_its_memory_store() -> None:
    """Its runs are copied, and so are the limits that they are under."""
    with memory() as store:
        store.write_queue(durable.Queue("mail", concurrency=1))
        start(store, 2)
        store.renew()
        assert len(take(store)) == 1
