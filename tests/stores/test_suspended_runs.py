"""A run is suspended while its signal comes, and is noticed: whatever the order of their statements, it does not sleep on."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from itertools import permutations
from typing import Any, Final

import psycopg
import pytest

import durable
from durable._engine.decisions import Awaited
from durable._engine.leases import Lease
from durable._engine.starts import Route
from durable.stores import PostgresStore
from durable.stores._postgres.suspended import render_suspended
from durable.stores.requests import Poll, Release, Signal
from harness.ownership_children import wait_until
from harness.support import Database

# What the sleeper does, one statement at a time; a signal that is committed at once, in between; and a poll's notice.
BEGIN, LOCK, SLEEP, COMMIT = "begin", "lock", "sleep", "commit"
SLEEPER: Final = (BEGIN, LOCK, SLEEP, COMMIT)
SIGNAL: Final = "signal"
NOTICE: Final = ("notice", "wake", "noticed")

HOUR: Final = 3600.0


@durable.workflow(name="listens")
def listens(step: durable.Step, deps: Any) -> Any:
    return step.wait_for("go")


def orders() -> list[tuple[str, ...]]:
    """All orders in which these can come, but for those in which the sleeper would wait for the notice that holds its lease."""
    named: list[tuple[str, ...]] = []
    for order in sorted(set(permutations("ssssgnnn"))):
        sleeper, notice = iter(SLEEPER), iter(NOTICE)
        steps = tuple(next(sleeper) if one == "s" else next(notice) if one == "n" else SIGNAL for one in order)
        place = {step: n for n, step in enumerate(steps)}
        holds = place[SIGNAL] < place["notice"]
        if not (holds and place["notice"] < place[LOCK] < place["noticed"]):
            named.append(steps)
    return named


class Play:
    """One run, held by a worker, and the connections on which the three do what they do."""

    def __init__(self, database: Database, store: PostgresStore, sql: dict[str, bytes]) -> None:
        self.database, self.store, self.sql = database, store, sql
        self._connections: list[psycopg.Connection[Any]] = []
        self.sleeper, self.poller = self.connect(), self.connect()
        self.number = 0

    def connect(self) -> psycopg.Connection[Any]:
        """Another session, in autocommit."""
        made = psycopg.connect(self.database.url, autocommit=True, options=f"-csearch_path={self.database.schema}")
        self._connections.append(made)
        return made

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    def take(self, run: str, due_in: float = math.inf) -> tuple[Lease, tuple[Any, ...]]:
        """Start a run, and take it as a worker does; its lease, and the parameters of its suspension."""
        durable.start(listens, store=self.store, id=run)
        poll = Poll([Route("default", "listens", 1)], 1, 30.0, lambda _: False)
        (granted,) = self.store.perform(poll).granted
        lease, awaits = granted.lease, [Awaited("go")]
        told = '[{"name":"go","taken":[]}]'
        return lease, ([lease.row], [lease.token], [None], [due_in], [render_suspended(awaits)], [told])

    def begin_notice(self) -> None:
        """The first statement of it."""
        self.poller.execute("BEGIN")
        self.ask(self.poller, "notice")

    def notice(self) -> None:
        """What a poll does of it."""
        self.begin_notice()
        self.ask(self.poller, "wake_suspended")
        self.poller.execute("COMMIT")

    def is_due(self, run: str) -> bool:
        """Whether a poll would take the run."""
        asked = "SELECT due_at <= clock_timestamp() FROM durable_locks WHERE workflow_id = %s"
        return self.database.execute(asked, run) == [(True,)]

    def __call__(self, order: tuple[str, ...], due_in: float) -> bool:
        """Whether the run is due at the end, after one more notice."""
        self.number += 1
        run = f"r{self.number}"
        lease, columns = self.take(run, due_in)
        ways: dict[str, Callable[[], object]] = {
            BEGIN: lambda: self.sleeper.execute("BEGIN"),
            LOCK: lambda: self.ask(self.sleeper, "lock_leases", ([lease.row],)),
            SLEEP: lambda: self.ask(self.sleeper, "release_batch", columns),
            COMMIT: lambda: self.sleeper.execute("COMMIT"),
            SIGNAL: lambda: self.store.perform(Signal(run, "go", "1")),
            "notice": self.begin_notice,
            "wake": lambda: self.ask(self.poller, "wake_suspended"),
            "noticed": lambda: self.poller.execute("COMMIT"),
        }
        for step in order:
            ways[step]()
        self.notice()
        is_due = self.is_due(run)
        self.store.perform(Release(lease))
        durable.cancel(self.store, run)
        return is_due

    def ask(self, connection: psycopg.Connection[Any], name: str, values: Any = None) -> None:
        connection.execute(self.sql[name], values)


@pytest.fixture
def play(database: Database) -> Iterator[Play]:
    with database.store() as store:
        store.status("none")
        internal: Any = store
        made = Play(database, store, dict(internal._sql))
        yield made
        made.close()


@pytest.mark.parametrize("due_in", [math.inf, HOUR], ids=["for ever", "an hour"])
def test_no_order_of_suspension_signal_and_notice_leaves_a_run_asleep(play: Play, due_in: float) -> None:
    """FAULTS 145: fifteen of them were those of the prototype, in which a notice is one statement."""
    every = orders()
    assert len(every) > 200
    assert [order for order in every if not play(order, due_in)] == []


def test_the_orders_find_a_lease_that_is_read_without_its_lock(play: Play) -> None:
    """Planted: then a poll notices a signal to a run that is just being suspended, and wakes nothing."""
    play.sql["notice"] = play.sql["notice"].replace(b"FOR NO KEY UPDATE SKIP LOCKED) AS held", b"OFFSET 0) AS held")
    assert any(not play(order, HOUR) for order in orders())


@pytest.mark.parametrize("is_planted", [False, True])
def test_what_a_sleeper_sees_is_newer_than_its_lock(play: Play, is_planted: bool) -> None:
    """It waits for an open `step.transaction` meanwhile, which a notice does not wait for. Planted: it looks while it locks."""
    lease, columns = play.take("r")
    fence = play.connect()
    fence.execute("BEGIN")
    fence.execute("SELECT FROM durable_locks WHERE workflow_id = 'r' FOR KEY SHARE")

    def sleep() -> None:
        play.sleeper.execute("BEGIN")
        if not is_planted:
            play.ask(play.sleeper, "lock_leases", ([lease.row],))
        play.ask(play.sleeper, "release_batch", columns)
        play.sleeper.execute("COMMIT")

    sleeping = threading.Thread(target=sleep)
    sleeping.start()
    blocked = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
    wait_until(lambda: play.database.execute(blocked, play.sleeper.info.backend_pid), "the sleeper waits for its lease")
    play.store.perform(Signal("r", "go", "1"))
    play.notice()
    fence.execute("COMMIT")
    sleeping.join()
    play.notice()
    assert play.is_due("r") is not is_planted


def test_a_wait_with_a_timeout_is_woken_too(play: Play) -> None:
    """Planted: only what is due never is woken."""
    play.sql["wake_suspended"] = play.sql["wake_suspended"].replace(
        b"AND owner_token IS NULL\n", b"AND owner_token IS NULL AND due_at = 'infinity'\n"
    )
    assert any(not play(order, HOUR) for order in orders())
    assert all(play(order, math.inf) for order in orders()[:20])
