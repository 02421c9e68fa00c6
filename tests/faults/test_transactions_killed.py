"""Transfers killed with SIGKILL, and stopped, at every boundary of a transaction on a real PostgreSQL.

The user's own tables are the witness: no transfer is doubled, missing, or half there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Final

import pytest

import durable
from harness.ownership_children import Child
from harness.proxy import Link, Moment, Proxy
from harness.support import Database
from harness.transfer_child import END, NUMBERS, Desk, Life, live, transfers, transfers_async

_BEGIN: Final = "client_connection_check_interval"  # in the statement that goes with BEGIN
_PLACES: Final = ("before begin", "before the body", "half", "after the body", "acknowledged")


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def life(request: pytest.FixtureRequest, database: Database) -> Life:
    """An undisturbed life, on two accounts."""
    database.store().list()  # makes the tables
    database.execute("CREATE TABLE accounts (name text PRIMARY KEY, balance int NOT NULL)")
    database.execute("INSERT INTO accounts VALUES ('from', 100), ('to', 0)")
    database.execute("CREATE TABLE ledger (what text NOT NULL, side text NOT NULL)")
    return Life(database.url, database.schema, request.param)


@pytest.fixture
def begin() -> Iterator[Callable[[Life], Child]]:
    """Let a life begin; the test says when it goes on."""
    children: list[Child] = []

    def begun(life: Life) -> Child:
        children.append(Child(live, life))
        assert children[-1].hear() == "ready"
        return children[-1]

    yield begun
    for child in children:
        child.end()


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    with Proxy(database.url) as proxy:
        yield proxy


def check(database: Database) -> set[int]:
    """Which transfers are there: each whole, once, and with its record."""
    ledger = sorted(what for (what,) in database.execute("SELECT what FROM ledger"))
    recorded = {key for kind, key, _ in database.journal("transfers") if kind == "step"}
    done = {int(key[-1]) for key in recorded}
    assert ledger == sorted(f"transfer-{number}-{side}" for number in done for side in ("in", "out"))
    balances = database.execute("SELECT name, balance FROM accounts ORDER BY name")
    assert balances == [("from", 100 - sum(done)), ("to", sum(done))]
    return done


def ends_well(database: Database, life: Life, begin: Callable[[Life], Child]) -> None:
    """The next life goes on at once, and the end is as it should be."""
    child = begin(Life(life.url, life.schema, life.asynchronous))
    child.say()
    assert child.hear() == END
    assert check(database) == set(NUMBERS)


@pytest.mark.parametrize("place", _PLACES)
def test_killed_in_the_process(database: Database, life: Life, begin: Callable[[Life], Child], place: str) -> None:
    """FAULTS 3, 4, 7, of a transaction."""
    child = begin(Life(life.url, life.schema, life.asynchronous, dies_at=(place, 2)))
    child.say()
    child.process.join()
    assert check(database) == ({1, 2} if place == "acknowledged" else {1})
    ends_well(database, life, begin)


@pytest.mark.parametrize("moment", list(Moment), ids=lambda moment: moment.value)
@pytest.mark.parametrize(
    ("marker", "before"),
    [(_BEGIN, set()), ("transfer-2-out", {1}), ("transfer-2-in", {1}), ("record-2", {1})],
    ids=["begin", "first half", "second half", "commit"],
)
def test_killed_on_the_wire(
    database: Database,
    life: Life,
    proxy: Proxy,
    begin: Callable[[Life], Child],
    marker: str,
    before: set[int],
    moment: Moment,
) -> None:
    """FAULTS 5, 6: whether it is committed is for the server to say, and the next life to read."""
    child = begin(Life(proxy.url, life.schema, life.asynchronous))

    def end(link: Link) -> None:
        child.kill()
        link.cut()

    trap = proxy.trap(moment, marker, end)
    child.say()
    assert trap.sprung.wait(60)
    child.process.join()
    if marker == "record-2" and moment is Moment.ANSWERED:
        before = {1, 2}
    if marker != "record-2" or moment is not Moment.FORWARDED:  # then it is just being committed, or not
        assert check(database) == before
    ends_well(database, life, begin)


def test_a_stopped_holder_is_waited_for_no_longer_than_it_may_idle(
    database: Database, life: Life, begin: Callable[[Life], Child]
) -> None:
    """FAULTS 28: SIGSTOP in the body. The take-over waits for the row until the server ends the idle transaction, which is
    after one lease. Awake again, the holder can write nothing."""
    child = begin(Life(life.url, life.schema, life.asynchronous, waits_at=("half", 2), lease=1.0))
    child.say()
    assert child.hear() == "waiting"
    with child.stopped():
        assert check(database) == {1}
        store = database.store()
        desk = Desk(life, lambda: None)
        if life.asynchronous:
            value = asyncio.run(durable.run(desk, transfers_async, id="transfers", store=store, on_conflict="wait"))
        else:
            value = durable.run(desk, transfers, id="transfers", store=store, on_conflict="wait")
        assert value == END
        child.say()
    name, _ = child.hear()
    assert name == "LeaseLost"
    assert check(database) == set(NUMBERS)
