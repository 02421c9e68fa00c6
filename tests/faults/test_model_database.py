"""The model of PostgreSQL that the simulation runs on: what its row locks, snapshots and commits do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from simulation.database import KEY_SHARE, NO_KEY_UPDATE, SHARE, UPDATE, Database, Table
from simulation.server import BEGIN, Backend, Server
from simulation.session import Refused, Running, Session
from simulation.tables import KEY_COLUMNS, Account, new_database
from simulation.timeline import Timeline


class World:
    """A database, its clock, and connections to it."""

    def __init__(self, **keys: Any) -> None:
        self.time = 1000.0
        self.database, self.tables = new_database(lambda: self.time, {**KEY_COLUMNS, **keys})

    def session(self) -> Session:
        return Session(self.database, self.tables)


def a_claim(run_id: str = "r", random: str = "x.1", **changes: Any) -> dict[str, Any]:
    asked = {
        "id": run_id,
        "random": random,
        "owner": "me",
        "seconds": 10.0,
        "dead": None,
        "workflow": "w",
        "function": None,
        "version": 1,
        "input_hash": None,
        "after_failure": True,
        "may_create": True,
        "amends": False,
        "header": {
            "workflowName": "w",
            "execution": {"status": "running"},
            "formatVersion": 1,
            "steps": {},
            "metadata": {"version": 1},
        },
        "input": None,
        **changes,
    }
    claims = json.dumps([asked])
    page = {"places": [0], "most": 1000, "rows": 1000}
    return {"claims": claims, "openings": claims, "dead": [], "ids": [run_id], "randoms": [random], **page}


def claimed(session: Session, **of: Any) -> list[Running]:
    session.begin()
    values = a_claim(**of)
    answers = [session.run(name, values) for name in ("take_leases", "open_runs", "read_runs", "read_journals")]
    session.commit()
    return answers


def is_blocked(running: Running) -> bool:
    """A function, since it changes by what others do."""
    return running.blocked


def a_step(seq: int, token: str, nonce: int = 7, run_id: str = "r") -> tuple[Any, ...]:
    return (seq, f"k{seq}", "step", nonce, "{}", run_id, token)


@pytest.mark.parametrize("second", range(4))
@pytest.mark.parametrize("first", range(4))
def test_the_matrix_of_row_locks(first: int, second: int) -> None:
    """As the manual's table of conflicting row-level locks has it."""
    documented = {
        KEY_SHARE: {UPDATE},
        SHARE: {NO_KEY_UPDATE, UPDATE},
        NO_KEY_UPDATE: {SHARE, NO_KEY_UPDATE, UPDATE},
        UPDATE: {KEY_SHARE, SHARE, NO_KEY_UPDATE, UPDATE},
    }
    table: Table[Any] = Table("t")
    database = Database([table], {"t": frozenset()}, lambda: 0.0)
    holder, other = database.begin(), database.begin()
    row = table.row(1)
    assert list(holder.statement().lock(row, first)) == []
    waits = list(zip(range(1), other.statement().lock(row, second), strict=False))
    assert bool(waits) == (second in documented[first])
    assert (other in row.holders) != bool(waits)
    holder.commit()
    assert other in row.holders


def test_a_claim_waits_for_the_checkpoint_in_flight_and_reads_it() -> None:
    """FAULTS 112: with the unique index, whatever changes the token waits; and its journal has the record."""
    world = World()
    one, two = world.session(), world.session()
    claimed(one)
    world.time += 11
    one.begin()
    assert one.run("checkpoint", a_step(0, "1:x.1")).result.rowcount == 1
    two.begin()
    values = a_claim(random="y.1")
    taking = two.run("take_leases", values)
    assert taking.blocked
    one.commit()
    assert not is_blocked(taking)
    assert taking.proceed()
    two.run("open_runs", values)
    assert [row[3] for row in two.run("read_journals", values).result.rows] == ["k0"]


def test_without_the_index_the_new_owner_reads_an_empty_journal_and_the_zombie_commits() -> None:
    """The hole that the index closes."""
    world = World(locks=frozenset({"workflow_id"}))
    one, two = world.session(), world.session()
    claimed(one)
    world.time += 11
    one.begin()
    one.run("checkpoint", a_step(0, "1:x.1"))
    assert claimed(two, random="y.1")[3].result.rows == []
    one.commit()
    assert world.tables.steps.committed(("r", 0)).epoch == 1  # type: ignore[union-attr]


def test_who_waited_looks_again() -> None:
    """A checkpoint that waited for a take-over finds another token."""
    world = World()
    one, two = world.session(), world.session()
    claimed(one)
    world.time += 11
    two.begin()
    assert two.run("take_leases", a_claim(random="y.1")).result.rowcount == 1
    late = one.run("checkpoint", a_step(0, "1:x.1"))
    assert late.blocked
    two.commit()
    assert late.proceed()
    assert late.result.rowcount == 0


def test_a_renewal_passes_checkpoints_and_skips_who_changes_the_token() -> None:
    """FOR NO KEY UPDATE SKIP LOCKED: renewed, or there and not renewed, or gone."""
    world = World()
    one, two = world.session(), world.session()
    claimed(one)
    asked = (["r"], ["1:x.1"], [10.0])
    two.begin()
    two.run("checkpoint", a_step(0, "1:x.1"))
    world.time += 5
    assert one.run("renew", asked).result.rows == [("1:x.1", True)]
    assert world.tables.locks.committed("r").expires_at == world.time + 10  # type: ignore[union-attr]
    two.commit()
    two.begin()
    two.run("lock_leases", (["r"],))
    assert one.run("renew", asked).result.rows == [("1:x.1", False)]
    two.commit()
    two.run("release_batch", (["r"], ["1:x.1"], [None], [0.0], [None], [None]))
    assert one.run("renew", asked).result.rows == []


def test_the_second_inserter_waits_for_the_first_and_gets_what_it_left() -> None:
    """A new run claimed twice at once: one lease, whichever way the first transaction ends."""
    for rolls_back in (False, True):
        world = World()
        one, two = world.session(), world.session()
        one.begin()
        one.run("take_leases", a_claim())
        two.begin()
        second = two.run("take_leases", a_claim(random="y.1"))
        assert second.blocked
        if rolls_back:
            one.roll_back()
        else:
            one.commit()
        assert second.proceed()
        assert second.result.rowcount == int(rolls_back)


def test_a_circle_has_a_victim() -> None:
    """40P01, and everything that the victim did is undone; the other goes on."""
    world = World()
    one, two = world.session(), world.session()
    claimed(one, run_id="a")
    claimed(one, run_id="b")
    for session, run_id in ((one, "a"), (two, "b")):
        session.begin()
        session.run("lock_leases", ([run_id],))
    waits = one.run("lock_leases", (["b"],))
    assert waits.blocked
    victim = two.run("lock_leases", (["a"],))
    assert victim.error is not None
    assert victim.error.sqlstate == "40P01"
    with pytest.raises(Refused, match="25P02"):
        two.run("lock_leases", (["a"],))
    assert waits.proceed()


def test_waiters_queue_and_who_need_not_wait_goes_ahead() -> None:
    """A key share that is compatible with the holder passes one who waits; two who are in each other's way keep their order."""
    world = World()
    one, two, three, four = (world.session() for _ in range(4))
    claimed(one)
    one.begin()
    one.run("checkpoint", a_step(0, "1:x.1"))
    exclusive = two.run("lock_leases", (["r"],))
    assert exclusive.blocked
    assert three.run("checkpoint", a_step(1, "1:x.1")).done
    third = four.run("lock_leases", (["r"],))
    one.commit()
    assert not is_blocked(exclusive)
    assert third.blocked
    exclusive.proceed()
    assert not is_blocked(third)


def test_a_statement_sees_what_was_committed_when_it_began() -> None:
    """And a later statement of the same transaction sees more, which is why a claim reads in a statement of its own."""
    world = World()
    one, two = world.session(), world.session()
    claimed(one)
    two.begin()
    early = two.start("read_nonces", (["r"], [0]), stops=True)
    one.run("checkpoint", a_step(0, "1:x.1"))
    while not early.proceed():
        pass
    assert early.result.rows == []
    assert two.run("read_nonces", (["r"], [0])).result.rows == [("r", 0, 7)]


def test_a_standby_that_was_behind_has_forgotten() -> None:
    """Fail-over to an older prefix: consistent, and every lock is gone."""
    world = World()
    one = world.session()
    claimed(one)
    behind = world.database.commits
    one.run("checkpoint", a_step(0, "1:x.1"))
    one.begin()
    one.run("lock_leases", (["r"],))
    world.database.fail_over(behind)
    two = world.session()
    assert two.run("read_nonces", (["r"], [0])).result.rows == []
    assert two.run("lock_leases", (["r"],)).result.rows == [("r", "1:x.1", "me", 1)]


def test_finish_cancel_and_release_change_what_they_say() -> None:
    """The verbs, one after the other, with stale tokens between."""
    world = World()
    one = world.session()
    rows = [
        {
            "id": "r",
            "token": "1:x.1",
            "seq": 1,
            "key": "result",
            "kind": "result",
            "nonce": 9,
            "records": 0,
            "due_in": 0.0,
        }
    ]
    end = json.dumps([{**rows[0], "status": "completed", "record": "1"}])
    claimed(one)
    assert one.run("cancel_batch", (["r", "other"], [False, False], [None, None])).result.rows == [
        ("r", True, [None, None])
    ]
    assert one.run("cancelled", (["r"],)).result.rows == [("r", True, None)]
    assert one.run("finish_batch", (end,)).result.rows == []
    claimed(one, random="y.1")
    token = world.tables.locks.committed("r").owner_token  # type: ignore[union-attr]
    assert token == "2:y.1"
    one.run("release_batch", (["r"], ["1:x.1"], ["failed"], [0.0], [None], [None]))
    assert world.tables.snapshots.committed("r").status == "running"  # type: ignore[union-attr]
    assert (
        one.run(
            "finish_batch", (json.dumps([{**rows[0], "token": token, "status": "completed", "records": 9}]),)
        ).result.rows
        == []
    )
    end = json.dumps([{**rows[0], "token": token, "status": "completed", "record": "1"}])
    assert one.run("finish_batch", (end,)).result.rows == [("r", None)]
    assert world.tables.snapshots.committed("r").status == "completed"  # type: ignore[union-attr]
    assert one.run("cancel_batch", (["r"], [False], [None])).result.rows == []
    assert claimed(one, random="z.1")[0].result.rowcount == 0


def test_signals_are_received_in_their_order_by_what_was_taken() -> None:
    """And one that is sent twice is one."""
    world = World()
    one = world.session()
    for nonce, payload in ((5, '"a"'), (5, '"a"'), (6, '"b"')):
        row = {"n": 0, "id": "r", "name": "s", "payload": payload, "nonce": nonce, "later": True}
        one.run("signal_batch", (json.dumps([row]),))
    ask = {"n": 0, "id": "r", "names": ["s"]}
    assert one.run("receive_batch", (json.dumps([{**ask, "taken": []}]),)).result.rows == [(0, 1, "s", '"a"')]
    assert one.run("receive_batch", (json.dumps([{**ask, "taken": [1]}]),)).result.rows == [(0, 3, "s", '"b"')]


class Client:
    """The other end of a backend, which notes what it is told."""

    def __init__(self, server: Server) -> None:
        self.told: list[str] = []
        self.backend: Backend = server.backend(self)

    def replied(self, answer: Any) -> None:
        self.told.append("refused" if isinstance(answer, Refused) else "replied")

    def broken(self) -> None:
        self.told.append("broken")

    def delayed(self) -> None:
        """Of no interest here."""


def two_who_move() -> tuple[Timeline, Server, Client, Client]:
    """One has moved something in a step's transaction, which may be idle for two seconds; the other waits for it."""
    timeline = Timeline(1)
    server = Server(timeline, 0.0)
    one, two = Client(server), Client(server)
    one.backend.take([(BEGIN, None), ("transaction_settings", (2.0, "2000")), ("move", (1, "a"))])
    two.backend.take([("move", (5, "a"))])
    assert (one.told, two.told) == (["replied"], [])
    return timeline, server, one, two


def test_who_holds_a_transaction_idle_for_too_long_is_ended() -> None:
    """By the server, at the moment that the transaction has set; what it had done is undone."""
    timeline, server, one, two = two_who_move()
    timeline.run(1.9)
    assert (one.told, two.told) == (["replied"], [])
    timeline.run(2.1)
    assert (one.told, two.told) == (["replied", "broken"], ["replied"])
    assert server.tables.accounts.committed("a") == Account("a", 5)


def test_a_statement_in_time_keeps_a_transaction() -> None:
    """Idle time is counted from the last one."""
    timeline, _, one, two = two_who_move()
    timeline.after(1.9, one.backend.take, [("move", (-1, "b"))])
    timeline.run(3.8)
    assert (one.told, two.told) == (["replied", "replied"], [])


def test_what_a_client_leaves_open_is_undone() -> None:
    """As soon as the server sees the end of the connection."""
    timeline, server, one, two = two_who_move()
    one.backend.hang_up()
    timeline.run(0.1)
    assert two.told == ["replied"]
    assert server.tables.accounts.committed("a") == Account("a", 5)
