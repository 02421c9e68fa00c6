"""The statements of `queues.sql` on the model: runs that begin when their turn comes; see `statements`.

(No queue here has a rate, and none so many runs that more is admitted first.)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from durable.stores._postgres.starts import line_of
from simulation.database import NO_KEY_UPDATE, POINT, UPDATE, Progress, Statement
from simulation.slots import due_moment, has_become_due, is_held, is_limited, leases, of_queue, reopened, slot_of
from simulation.tables import Header, Lane, Lease, Limited, Result, Tables, octets_of
from simulation.worker_statements import Taken, granted, is_due, running, seen_busy, ways

__all__ = ["QUEUE_STATEMENTS"]

_SLACK: Final = 1.0  # seconds: what was opened by a statement that began later has its turn
PUT_OFF: Final = 30.0  # … after which a partition that was full is looked at again, whatever has become of it

_encode: Final = msgspec.json.Encoder().encode


def _free_slots(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    yield POINT
    now, ended = statement.clock(), list[Lease]()
    for queue in values["queues"]:
        for lease in leases(tables, statement):

            def is_over(lease: Lease, queue: str = queue) -> bool:
                return is_held(lease, of_queue(queue)) and lease.expires_at <= now

            found = yield from statement.locked(tables.locks, lease.workflow_id, UPDATE, is_over, skips=True)
            if found is not None:
                ended.append(found)

    def freed(lease: Lease) -> Lease:
        due_at = min(due_moment(lease), statement.clock())
        return lease._replace(owner_token=None, owner=f"left {lease.owner}", due_at=due_at)

    for lease in ended:
        yield from statement.update(tables.locks, lease.workflow_id, None, freed)
    yield from reopened(tables, statement, {slot_of(lease) for lease in ended})
    return Result([(len(ended),)], 1)


def _admit(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    now, found = statement.clock(), list[tuple[str, str, str]]()
    asked = list(zip(values["lines"], values["line_queues"], strict=True))
    queue_of = dict(asked)
    for line, priority in ways(values["lines"]):
        for lease in sorted(leases(tables, statement), key=due_moment):

            def is_plain(lease: Lease, way: tuple[str, int] = (line, priority)) -> bool:
                return (lease.route, lease.priority) == way and is_due(lease, now)

            if is_limited(tables, statement, queue_of[line]):
                key = lease.workflow_id
                if (yield from statement.locked(tables.locks, key, UPDATE, is_plain, skips=True)) is not None:
                    found.append((key, line, f"{queue_of[line][:-1]},null]"))
    for line, _ in asked:
        for lease in sorted(leases(tables, statement), key=due_moment):

            def is_own(lease: Lease, line: str = line) -> bool:
                return lease.owner_token is None and has_become_due(lease, line, now)

            own = yield from statement.locked(tables.locks, lease.workflow_id, UPDATE, is_own, skips=True)
            if own is not None:
                found.append((own.workflow_id, line, slot_of(own)))
    yield POINT
    for run_id, line, slot in found:

        def admitted(lease: Lease, route: str = f"{line}\t{slot}") -> Lease:
            owner = lease.owner if (lease.owner or "").startswith("left ") else None
            if lease.owner_token is not None:
                owner = f"left {lease.owner}"
            return lease._replace(route=route, owner_token=None, owner=owner)

        yield from statement.update(tables.locks, run_id, None, admitted)
    for slot, line in sorted({(slot, line) for _, line, slot in found}):
        new = Lane(slot, line, statement.clock())

        def opened(lane: Lane, new: Lane = new) -> Lane:
            return lane._replace(turn=new.turn if lane.turn is None else lane.turn)

        columns = frozenset({"turn"})
        yield from statement.upsert(tables.partitions, (slot, line), new, columns, lambda _: True, opened)
    return Result([("false",)], 1)


def _lock_queues(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    mine, is_busy = list[str](), False
    for name in values["queues"]:
        is_there = tables.queues.visible(name, statement) is not None
        if not is_there or (yield from _alone(tables, statement, name)) is not None:
            mine.append(name)
        else:
            is_busy = True
    statement.transaction.chosen["queues"] = mine
    return Result([(_encode(mine).decode(), is_busy)], 1)


def _alone(tables: Tables, statement: Statement, name: str) -> Progress[Limited | None]:
    """The limits of a queue, under which none other takes meanwhile; None where another one does."""
    return (yield from statement.locked(tables.queues, name, NO_KEY_UPDATE, skips=True))


def _count_held(tables: Tables, statement: Statement, slot_begins: str) -> int:
    """How many leases are counted in what begins so."""
    return sum(is_held(lease, slot_begins) for lease in leases(tables, statement))


class _Chosen(NamedTuple):
    name: str
    slot: str
    line: str
    place: int
    room: int
    share: int


def _lock_partitions(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    yield POINT
    chosen: list[_Chosen] = []
    for name in statement.transaction.chosen["queues"]:
        limits, room = tables.queues.visible(name, statement), int(values["count"])
        if limits is not None and limits.concurrency is not None:
            room = max(0, min(room, limits.concurrency - _count_held(tables, statement, of_queue(name))))
        lanes: list[Lane] = []
        for line, queue in zip(values["lines"], values["line_queues"], strict=True):
            if queue == name:
                lanes += yield from _first_lanes(tables, statement, line, room)
        lanes.sort(key=lambda lane: (lane.turn, lane.slot, lane.line))
        share = math.ceil(room / min(len(lanes), room)) if lanes else 0
        chosen += [_Chosen(name, lane.slot, lane.line, n, room, share) for n, lane in enumerate(lanes[:room], 1)]
    statement.transaction.chosen["lanes"] = chosen
    return Result([(_encode([one.slot for one in chosen]).decode(),)], 1)


def _first_lanes(tables: Tables, statement: Statement, line: str, room: int) -> Progress[list[Lane]]:
    seen = (tables.partitions.visible(key, statement) for key in list(tables.partitions.rows))
    until = statement.clock() + _SLACK
    open_lanes = [lane for lane in seen if lane is not None and lane.line == line and _has_turn(lane, until)]
    locked: list[Lane] = []
    for lane in sorted(open_lanes, key=lambda lane: (lane.turn or 0.0, lane.slot)):
        if len(locked) == room:
            break
        mine = yield from statement.locked(
            tables.partitions, (lane.slot, line), NO_KEY_UPDATE, lambda lane: _has_turn(lane, until), skips=True
        )
        if mine is not None:
            locked.append(mine)
    return locked


def _has_turn(lane: Lane, until: float) -> bool:
    return lane.turn is not None and lane.turn <= until


class _Member(NamedTuple):
    lane: _Chosen
    own_room: float
    nth: int
    lease: Lease


def _take_members(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    lanes: Sequence[_Chosen] = statement.transaction.chosen["lanes"]
    own_rooms: dict[_Chosen, float] = {}
    for lane in lanes:
        limits = tables.queues.visible(lane.name, statement)
        most = math.inf if limits is None or limits.partition_concurrency is None else limits.partition_concurrency
        own_rooms[lane] = most - _count_held(tables, statement, lane.slot)
    yield POINT
    members: list[_Member] = []
    for lane in lanes:
        found = yield from _first_members(tables, statement, lane, max(0, min(lane.share, own_rooms[lane])))
        members += [_Member(lane, own_rooms[lane], nth, lease) for nth, lease in enumerate(found, 1)]
    due = list(_with_room(members))[: values["count"]]
    taken: list[Taken] = []
    for n, one in enumerate(due, 1001):
        route, grant = f"{one.lane.line}\n{one.lane.slot}", granted(statement, values, n)

        def begun(lease: Lease, route: str = route, grant: Callable[[Lease], Lease] = grant) -> Lease:
            return grant(lease)._replace(route=route)

        after = yield from statement.update(tables.locks, one.lease.workflow_id, None, begun)
        if after is not None:
            taken.append(Taken(_as_it_was_left(one.lease), after, n))
    rows, octets = list[tuple[Any, ...]](), 0
    for one_taken in taken:
        lease = one_taken.lease
        run: Header | None = yield from statement.update(
            tables.snapshots, lease.workflow_id, None, running(tables, statement, one_taken)
        )
        first = tables.steps.visible((lease.workflow_id, 0), statement) if lease.epoch == 1 else None
        input_row = (None, None, None) if first is None else (first.record, first.created_at, first.epoch)
        octets += 0 if first is None else octets_of(first.record) * tables.weights[0]
        document = None if run is None else _encode(run.snapshot).decode()
        route = line_of(str(lease.route))
        rows.append((lease.workflow_id, lease.epoch, lease.owner_token, one_taken.n, route, document, *input_row))
    yield from _served(tables, statement, own_rooms, due)
    if due:
        yield from seen_busy(tables, statement, values["worker"])
    return Result(rows, len(rows), octets)


def _first_members(tables: Tables, statement: Statement, lane: _Chosen, most: float) -> Progress[list[Lease]]:
    route, locked = f"{lane.line}\t{lane.slot}", list[Lease]()
    there = [lease for lease in leases(tables, statement) if lease.route == route and lease.due_at is not None]
    for lease in sorted(there, key=lambda lease: (lease.priority, due_moment(lease))):
        if len(locked) >= most:
            break
        mine = yield from statement.locked(
            tables.locks,
            lease.workflow_id,
            UPDATE,
            lambda lease: lease.route == route and lease.due_at is not None,
            skips=True,
        )
        if mine is not None:
            locked.append(mine)
    return locked


def _with_room(members: Sequence[_Member]) -> Iterator[_Member]:
    of_slot, of_queue = Counter[str](), Counter[str]()
    for one in sorted(members, key=lambda one: (one.nth, one.lane.place)):
        of_slot[one.lane.slot] += 1
        of_queue[one.lane.name] += 1
        if of_slot[one.lane.slot] <= one.own_room and of_queue[one.lane.name] <= one.lane.room:
            yield one


def _as_it_was_left(lease: Lease) -> Lease:
    """By its last owner, as the count of deaths has it; where one has given it back, it has none."""
    if not (lease.owner or "").startswith("left "):
        return lease._replace(owner_token=None, owner=None)
    return lease._replace(owner_token=lease.owner, owner=str(lease.owner).removeprefix("left "))


def _served(
    tables: Tables, statement: Statement, own_rooms: dict[_Chosen, float], due: Sequence[_Member]
) -> Progress[None]:
    gone = {one.lease.workflow_id for one in due}
    for lane, own_room in own_rooms.items():
        given = sum(one.lane.slot == lane.slot for one in due)
        gave = sum(one.lane == lane for one in due)
        route = f"{lane.line}\t{lane.slot}"
        has_more = any(
            lease.route == route and lease.due_at is not None and lease.workflow_id not in gone
            for lease in leases(tables, statement)
        )

        def served(row: Lane, full: bool = own_room - given <= 0, more: bool = has_more, gave: int = gave) -> Lane:
            if not more:
                return row._replace(turn=None)
            if full:
                return row._replace(turn=statement.clock() + PUT_OFF)
            return row._replace(turn=statement.clock()) if gave else row

        yield from statement.update(tables.partitions, (lane.slot, lane.line), None, served)


def _next_of_queues(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    yield POINT
    now = statement.clock()
    later = [
        due_moment(lease) - now
        for lease in leases(tables, statement)
        for before, newline, _ in [(lease.route or "").partition("\n")]
        if newline and before in values["lines"] and now < due_moment(lease) < math.inf
    ]
    return Result([(min(later, default=None),)], 1)


def _recall_members(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    yield POINT
    mine, ended = f"{values['name']}.", list[Lease]()
    for queue in sorted(set(values["queues"])):
        for lease in leases(tables, statement):

            def is_mine(lease: Lease, queue: str = queue) -> bool:
                claim = (lease.owner_token or "").partition(":")[2]
                if not (is_held(lease, of_queue(queue)) and claim.startswith(mine)):
                    return False
                return bool(int(claim.removeprefix(mine).partition(".")[0]) < values["sending"])

            found = yield from statement.locked(tables.locks, lease.workflow_id, UPDATE, is_mine)
            if found is not None:
                ended.append(found)

    def back(lease: Lease) -> Lease:
        now = statement.clock()
        return lease._replace(owner_token=None, owner=None, expires_at=now, due_at=now)

    for lease in ended:
        yield from statement.update(tables.locks, lease.workflow_id, None, back)
    yield from reopened(tables, statement, {slot_of(lease) for lease in ended})
    return Result([(len(ended),)], 1)


def _held_near_of_queues(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    yield POINT
    now = statement.clock()
    rows = [
        (lease.workflow_id, lease.owner_token, lease.owner)
        for queue in values["queues"]
        for lease in leases(tables, statement)
        if is_held(lease, of_queue(queue))
        and now < due_moment(lease) <= now + values["seconds"]
        and str(lease.owner).startswith(values["host"])
        and lease.owner != values["owner"]
    ]
    return Result(rows, len(rows))


QUEUE_STATEMENTS: Final[dict[str, Callable[[Tables, Statement, Any], Progress[Result]]]] = {
    "free_slots": _free_slots,
    "admit": _admit,
    "lock_queues": _lock_queues,
    "lock_partitions": _lock_partitions,
    "take_members": _take_members,
    "next_of_queues": _next_of_queues,
    "recall_members": _recall_members,
    "held_near_of_queues": _held_near_of_queues,
}
