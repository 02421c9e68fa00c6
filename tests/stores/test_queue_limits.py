"""FAULTS 124-131: what claimers do to the limits of a queue at once, in all speed and step by step."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import psycopg
import pytest
from psycopg import sql

import durable
from durable._engine.starts import Route
from durable._runtime.new_runs import Start
from durable.records import Kind, Record, Status
from durable.stores import PostgresStore
from durable.stores._postgres.polls import Polling
from durable.stores._postgres.settings import Settings
from durable.stores._postgres.sql.names import Names
from durable.stores._postgres.starts import render_queue
from durable.stores.requests import Finish, Poll
from harness.support import Database, looking

LIMIT: Final = 10
OWN_LIMIT: Final = 2
CLAIMERS: Final = 8
JOB: Final = Route("q", "job", 1)
_HELD: Final = """
    SELECT count(*), COALESCE(max(own), 0)
      FROM (SELECT count(*) OVER (PARTITION BY split_part(route, E'\\n', 2)) AS own
              FROM durable_locks WHERE owner_token IS NOT NULL AND due_at IS NOT NULL) AS held"""


@durable.workflow("job", queue="q")
def job(step: durable.Step, _: Any) -> None:
    """Is never executed here."""


def start(store: Any, partitions: Sequence[str | None], first: int = 0) -> None:
    """A run of each of these, in this order."""
    runs = [Start(id=f"r{first + n:06}", partition=one) for n, one in enumerate(partitions)]
    durable.start_many(job, runs, store=store)


def poll(store: Any, count: int = 10, *, looks: bool = True, routes: tuple[Route, ...] = (JOB,)) -> list[Any]:
    """What a worker gets."""
    return list(store.perform(Poll(routes, count, 30.0, lambda _: True, looks, "w")).granted)


def end(store: Any, granted: Any) -> None:
    """The run completes."""
    record = Record(len(granted.records), Kind.RESULT, Kind.RESULT, '{"value":1}')
    store.perform(Finish(granted.lease, Status.COMPLETED, record))


def change(store: PostgresStore, name: str, old: str, new: str) -> None:
    """Plant a fault into one of the store's statements."""
    internal: Any = store
    text = internal._sql[name].decode()
    assert old in text, f"{name} has no {old!r}"
    internal._sql[name] = text.replace(old, new).encode()


class Claimers:
    """Eight that take runs, end them, and die under some; and one that counts what is held, in one snapshot each time."""

    def __init__(self, database: Database, plant: Callable[[PostgresStore], None] | None = None) -> None:
        self.database = database
        self.worst = self.worst_own = 0
        self._plant = plant
        self._over = threading.Event()
        self._problems: list[BaseException] = []

    def serve(self, runs: int, seconds: float) -> int:
        """How many runs have not ended, when none more does, or after so many seconds."""
        threads = [threading.Thread(target=self._guard, args=(self._claim, n)) for n in range(CLAIMERS)]
        threads.append(threading.Thread(target=self._guard, args=(self._count, 0)))
        for thread in threads:
            thread.start()
        until, left = time.monotonic() + seconds, runs
        while left and time.monotonic() < until and not self._over.is_set():
            time.sleep(0.05)
            ((left,),) = self.database.execute(
                "SELECT count(*) FROM durable_snapshots WHERE snapshot->'execution'->>'status' <> 'completed'"
            )
        self._over.set()
        for thread in threads:
            thread.join()
        if self._problems:
            raise self._problems[0]
        return int(left)

    def _guard(self, work: Callable[[int], None], n: int) -> None:
        try:
            work(n)
        except BaseException as problem:
            self._problems.append(problem)
            self._over.set()

    def _claim(self, n: int) -> None:
        chance = random.Random(n)
        with self.database.store() as store:
            if self._plant is not None:
                self._plant(store)
            while not self._over.is_set():
                granted = poll(store, chance.choice([1, 3, 50]))
                if not granted:
                    time.sleep(chance.random() * 0.003)
                time.sleep(chance.random() * 0.004)
                for one in granted:
                    if chance.random() < 0.2:
                        self._die(one.lease)
                    else:
                        end(store, one)

    def _die(self, lease: Any) -> None:
        """As if its owner had died, and the lease had come to its end."""
        self.database.execute(
            "UPDATE durable_locks SET expires_at = clock_timestamp(), due_at = clock_timestamp() "
            "WHERE workflow_id = %s AND owner_token = %s",
            lease.row,
            lease.token,
        )

    def _count(self, _: int) -> None:
        with looking(self.database.url) as connection:
            connection.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(self.database.schema)))
            while not self._over.is_set():
                held, own = connection.execute(_HELD).fetchone() or (0, 0)
                self.worst, self.worst_own = max(self.worst, held), max(self.worst_own, own)


@pytest.mark.long(60)
def test_124_no_snapshot_has_more_than_the_limit(database: Database) -> None:
    """Eight claimers, of whom a fifth of the runs dies: 10 are held, never 11; 2 of a partition, never 3; and all end."""
    with database.store() as store:
        store.write_queue(durable.Queue("q", concurrency=LIMIT, partition_concurrency=OWN_LIMIT))
        start(store, [f"t{n % 20}" for n in range(400)])
        claimers = Claimers(database)
        assert claimers.serve(400, 120.0) == 0
    assert (claimers.worst, claimers.worst_own) == (LIMIT, OWN_LIMIT)


@pytest.mark.long(30)
def test_124_planted_no_lock_on_the_queues_row(database: Database) -> None:
    """Then claimers count at once, and each takes what there is room for."""

    def plant(store: PostgresStore) -> None:
        change(store, "lock_queues", "FOR NO KEY UPDATE SKIP LOCKED", "")

    with database.store() as store:
        store.write_queue(durable.Queue("q", concurrency=LIMIT))
        start(store, [f"t{n % 20}" for n in range(400)])
        claimers = Claimers(database, plant)
        claimers.serve(400, 30.0)
    assert claimers.worst > LIMIT


class Hand:
    """A claimer whose statements are sent one by one, in a transaction that stays open."""

    def __init__(self, database: Database, store: PostgresStore, queue: str = "q") -> None:
        internal: Any = store
        self.sql: dict[str, bytes] = internal._sql
        polling = Polling(
            Poll((Route(queue, "job", 1),), 10, 30.0, lambda _: True), Settings(Names(schema=database.schema), "", True, True, store.clock),
            "hand", "hand",
        )  # fmt: skip
        polling.send_again()
        self.values = polling.values_of_queues([render_queue(queue, "")], 10) | {
            "is_last": True,
            "random": f"h{id(self)}",
        }
        self.connection = psycopg.connect(database.url)
        self.connection.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(database.schema)))
        self.connection.commit()

    def send(self, *names: str) -> list[Any]:
        """The rows of the last of these statements."""
        rows: list[Any] = []
        for name in names:
            rows = self.connection.execute(self.sql[name], self.values).fetchall()
        return rows

    def commit(self) -> None:
        """The end of its transaction."""
        self.connection.commit()


@contextmanager
def hands(database: Database, store: PostgresStore, count: int) -> Iterator[list[Hand]]:
    """So many, closed at the end."""
    made = [Hand(database, store) for _ in range(count)]
    try:
        yield made
    finally:
        for hand in made:
            hand.connection.close()


def is_waiting(database: Database) -> bool:
    """Whether a statement waits for a lock of another's."""
    return bool(
        database.execute(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
    )


def end_aside(store: PostgresStore, granted: Any) -> threading.Thread:
    """Its end, on a thread."""
    thread = threading.Thread(target=end, args=(store, granted))
    thread.start()
    return thread


def lose_a_wake_up(database: Database, plant: Callable[[PostgresStore], None] | None) -> list[str]:
    """A partition of one: while a claimer, which has counted what is held, closes it, what is held ends. What is taken next."""
    with database.store() as store:
        if plant is not None:
            plant(store)
        store.write_queue(durable.Queue("q", partition_concurrency=1))
        start(store, ["a", "a"])
        (held,) = poll(store)
        database.execute("UPDATE durable_partitions SET turn = now()")
        with hands(database, store, 1) as (hand,):
            assert hand.send("admit", "lock_queues", "lock_partitions", "take_members") == [], "it is full"
            ending = end_aside(store, held)
            while ending.is_alive() and not is_waiting(database):
                time.sleep(0.01)
            assert ending.is_alive() is (plant is None), "what ends waits for who closes it"
            hand.commit()
            ending.join()
        return [one.lease.run_id for one in poll(store)]


def test_125_a_partition_that_is_closed_while_its_last_run_ends_has_a_turn(database: Database) -> None:
    """The end opens it unconditionally, and waits for the closing for that."""
    assert lose_a_wake_up(database, None) == ["r000001"]


def test_125_planted_open_it_only_where_it_is_closed(database: Database) -> None:
    """To the end it does not seem to be closed; so it stays, though there is room."""

    def plant(store: PostgresStore) -> None:
        change(
            store,
            "finish_batch",
            "WHERE slot = given.slot ORDER BY",
            "WHERE slot = given.slot AND (turn <= clock_timestamp()) IS NOT TRUE ORDER BY",
        )

    assert lose_a_wake_up(database, plant) == []


def test_125_a_partition_that_is_opened_for_another_workflow_while_what_is_held_ends(database: Database) -> None:
    """The end's snapshot is older, so it cannot open that one, which finds itself full: it is put off, and not closed for ever."""
    other = (Route("q", "other", 1),)
    with database.store() as store, database.store() as another, looking(database.url) as gate:
        store.write_queue(durable.Queue("q", partition_concurrency=1))
        start(store, ["a"])
        (held,) = poll(store)
        gate.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(database.schema)))
        with gate.transaction():
            gate.execute("SELECT FROM durable_locks WHERE workflow_id = 'r000000' FOR KEY SHARE")
            ending = end_aside(store, held)
            while not is_waiting(database):
                time.sleep(0.01)
            durable.start("other", store=another, id="other", queue="q", partition="a")
            assert poll(another, routes=other) == []
        ending.join()
        assert database.execute("SELECT count(*) FROM durable_partitions WHERE turn > now()") == [(1,)]
        database.execute("UPDATE durable_partitions SET turn = turn - interval '30 s'")
        assert [one.lease.run_id for one in poll(another, routes=other)] == ["other"]


_COUNTED: Final = """(SELECT count(*) FROM durable_locks WHERE owner_token IS NOT NULL AND strpos(route, E'\\n') > 0)"""


def overtake(database: Database, *, counts_at_once: bool) -> int:
    """One claimer takes between another one's snapshot and its lock: how many of two are held."""
    with database.store() as store:
        # A barrier between the snapshot of the statement that locks and its lock.
        change(
            store,
            "lock_queues",
            "FROM (SELECT given.name",
            "FROM (SELECT pg_advisory_xact_lock_shared(7)) AS wait, (SELECT given.name",
        )
        if counts_at_once:
            change(
                store,
                "lock_queues",
                "), '[]')::text, true),",
                f"), '[]')::text, true), set_config('durable.planted', {_COUNTED}::text, true),",
            )
            internal: Any = store
            text = internal._sql["lock_partitions"].decode()
            first = text.index("kept.concurrency - (") + len("kept.concurrency - ")
            last = text.index(") END", first) + 1
            internal._sql["lock_partitions"] = (
                text[:first] + "current_setting('durable.planted')::integer" + text[last:]
            ).encode()
        store.write_queue(durable.Queue("q", concurrency=2))
        start(store, ["a", "b", "c", "d"])
        with hands(database, store, 2) as (first, second), looking(database.url) as gate:
            return _overtaken(database, first, second, gate)


def _overtaken(database: Database, first: Hand, second: Hand, gate: Any) -> int:
    gate.execute("SELECT pg_advisory_lock(7)")
    second.send("admit")
    second.commit()
    waiting = threading.Thread(target=lambda: second.send("admit", "lock_queues", "lock_partitions", "take_members"))
    waiting.start()
    while not is_waiting(database):
        time.sleep(0.01)
    at_once = first.sql["lock_queues"].replace(b"pg_advisory_xact_lock_shared(7)", b"1")
    first.sql = {**first.sql, "lock_queues": at_once}
    assert len(first.send("admit", "lock_queues", "lock_partitions", "take_members")) == 2
    first.commit()
    gate.execute("SELECT pg_advisory_unlock(7)")
    waiting.join()
    second.commit()
    ((held,),) = database.execute("SELECT count(*) FROM durable_locks WHERE owner_token IS NOT NULL")
    return int(held)


def test_126_lock_in_one_statement_and_count_in_a_later_one(database: Database) -> None:
    """What another one has taken before the lock was granted is counted."""
    assert overtake(database, counts_at_once=False) == 2


def test_126_planted_count_in_the_statement_that_locks(database: Database) -> None:
    """Its snapshot is older than its lock."""
    assert overtake(database, counts_at_once=True) == 4


def test_127_a_dead_owner_frees_its_slot_for_the_next(database: Database) -> None:
    """At a full limit, also where none has the dead run's workflow any more; who has it takes it up again first."""
    with database.store() as store:
        store.write_queue(durable.Queue("q", concurrency=1))
        durable.start("gone", store=store, id="dead", queue="q", partition="a")
        (dead,) = poll(store, routes=(Route("q", "gone", 1),))
        start(store, ["b"])
        assert poll(store) == []
        database.execute("UPDATE durable_locks SET expires_at = now(), due_at = now() WHERE workflow_id = 'dead'")
        (taken,) = poll(store)
        assert taken.lease.run_id == "r000000"
        with pytest.raises(durable.LeaseLost):
            end(store, dead)
        end(store, taken)
        (again,) = poll(store, routes=(Route("q", "gone", 1),))
        assert (again.lease.run_id, again.header.execution.crashes) == ("dead", 1)


def test_128_a_zombie_frees_no_slot_twice(database: Database) -> None:
    """It ends its run after its slot was given on: it is told so, and there is no room for one more."""
    with database.store() as store:
        store.write_queue(durable.Queue("q", concurrency=1))
        start(store, ["a", "a", "a"])
        (zombie,) = poll(store)
        database.execute("UPDATE durable_locks SET expires_at = now(), due_at = now() WHERE owner_token IS NOT NULL")
        (again,) = poll(store)
        assert again.lease.run_id == zombie.lease.run_id
        with pytest.raises(durable.LeaseLost):
            end(store, zombie)
        assert poll(store) == []
        end(store, again)
        assert len(poll(store)) == 1


def test_129_a_queue_that_is_changed_while_runs_are_held(database: Database) -> None:
    """Lowered, paused, its row deleted by hand: what is held goes on, and what waits is there in the end."""
    with database.store() as store:
        store.write_queue(durable.Queue("q", concurrency=3))
        start(store, [None, *"abcde"])
        held = poll(store)
        assert len(held) == 3
        store.write_queue(durable.Queue("q", concurrency=1))
        durable.pause(store, "q")
        for one in held:
            end(store, one)
        assert poll(store) == []
        durable.unpause(store, "q")
        assert len(poll(store)) == 1
        database.execute("DELETE FROM durable_queues")
        assert len(poll(store)) == 2


@pytest.mark.long(60)
def test_130_each_partition_is_served_within_one_round(database: Database) -> None:
    """One of 20,000 runs first, then 9,999 with two: of the first 11,000 taken each has one, and none three."""
    with database.store() as store:
        start(store, ["big"] * 20_000)
        start(store, [f"t{n}" for n in range(9_999)] * 2, 20_000)
        names = dict(database.execute("SELECT workflow_id, split_part(route, E'\\n', 2) FROM durable_locks"))
        for _ in range(25):  # asks for none, and lets what is due wait for its turn
            poll(store, 0)
        taken = Counter[str]()
        while taken.total() < 11_000:
            granted = poll(store, 100, looks=False)
            assert granted
            taken.update(names[one.lease.row] for one in granted)
            database.execute(
                "UPDATE durable_locks SET owner_token = NULL, due_at = NULL WHERE owner_token IS NOT NULL"
            )  # as their ends would
    assert len(taken) == 10_000
    assert max(taken.values()) == 2


def test_131_what_sleeps_is_in_no_ones_way(database: Database) -> None:
    """10,000 that sleep in as many partitions, more urgent: one that is due is met at once, by a handful of rows."""
    with database.store() as store:
        store.write_queue(durable.Queue("q", concurrency=LIMIT))
        runs = [Start(id=f"s{n}", partition=f"t{n}", priority=0, delay=86400) for n in range(10_000)]
        durable.start_many(job, runs, store=store)
        durable.start(job, store=store, id="due", partition="late", priority=9)
        assert [one.lease.run_id for one in poll(store)] == ["due"]
        assert database.execute("SELECT count(*) FROM durable_partitions") == [(1,)]
