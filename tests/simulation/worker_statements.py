"""The statements of starts and of workers on the model; see `statements`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from durable._engine.starts import MAX_PRIORITY
from durable.records import Kind, Status
from durable.stores._postgres.starts import line_of
from simulation.database import KEY_SHARE, NO_KEY_UPDATE, POINT, UPDATE, Progress, Statement
from simulation.rows import appended, iso, names_awaited, sent_to, taken_up, told_of_end, visible_steps
from simulation.slots import due_moment, is_limited, limited_queues
from simulation.tables import Header, Lease, Result, Schedule, Signal, Step, Tables, Ticked, Worker, octets_of

__all__ = ["WORKER_STATEMENTS", "Taken", "granted", "is_due", "running", "seen_busy", "ways"]

_UNDER_WAY: Final = (Status.QUEUED, Status.RUNNING)
_OF_AN_END: Final = ("completedAt", "currentStepId", "error", "crashes")
_SILENT: Final = 86400.0  # seconds after which a worker's row goes
_SEEN_WITHIN: Final = 20.0  # … in which a worker counts
_FLOOR: Final = 2.0  # … before a poll, from which on starts may still be under way
_SEEN_EVERY: Final = 10.0  # … after which its poll says that it was seen
_MOST_NOTICED: Final = 1000  # signals that one poll notices
_MAX_HELD: Final = 1000  # leases that are looked at for dead owners

_decode: Final = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.Encoder().encode


def _enqueue(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    new: list[dict[str, Any]] = []
    yield POINT

    def is_free(row: dict[str, Any]) -> bool:
        is_known = tables.snapshots.visible(row["id"], statement) or tables.locks.visible(row["id"], statement)
        if row.get("parent_token") is not None:
            parent = tables.locks.visible(row["header"]["parent"][0], statement)
            if parent is None or parent.owner_token != row["parent_token"]:
                return False
        is_there = is_known is not None or visible_steps(tables, statement, row["id"])
        return not is_there and _holder_of(tables, statement, row["header"].get("dedup")) is None

    asked = sorted(_distinct(_decode(values["runs"]), is_free), key=lambda row: row["id"])
    queued = {"status": Status.QUEUED.value, "lastUpdated": iso(statement.now)}
    headed: list[dict[str, Any]] = []
    for row in asked:
        header = Header(row["id"], {**row["header"], "execution": queued}, statement.now)
        if row["header"].get("dedup") is None or (yield from _is_kept_out(tables, statement, header)):
            continue
        if (yield from statement.insert(tables.snapshots, header.id, header)):
            headed.append(row)
    for row in [row for row in asked if row["header"].get("dedup") is None or row in headed]:
        now = statement.clock()
        due_at = now + row["delay"] if row["at"] is None else datetime.fromisoformat(row["at"]).timestamp()
        lease = Lease(row["id"], 0, None, None, now, row["route"], row["priority"], due_at)
        if (yield from statement.insert(tables.locks, lease.workflow_id, lease)):
            new.append(row)
    for row in [row for row in new if row["header"].get("dedup") is None]:
        header = Header(row["id"], {**row["header"], "execution": queued}, statement.now)
        if (yield from statement.insert(tables.snapshots, header.id, header)):
            headed.append(row)
    for row in headed:
        if row["input"] is not None:
            kind = Kind.INPUT.value
            yield from appended(
                tables, statement, Step(row["id"], 0, kind, kind, row["nonce"], 0, row["input"], statement.now)
            )
    return Result([(row["n"],) for row in headed], len(headed))


def _fence_parents(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    statement.transaction.fenced = set(values["parents"])
    for run_id in sorted(statement.transaction.fenced):
        yield from statement.locked(tables.locks, run_id, KEY_SHARE)
    return Result([], 0)


def _begin_children(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    yield POINT
    rows: list[tuple[Any, ...]] = []
    for asked, record in zip(_decode(values["children"]), _records(values["children"]), strict=True):
        run = tables.snapshots.visible(asked["child"], statement)
        lease = tables.locks.visible(asked["id"], statement)
        if run is None:
            continue
        first = tables.steps.visible((run.id, 0), statement)
        is_mine = first is not None and (first.nonce, first.kind) == (asked["child_nonce"], Kind.INPUT)
        is_mine |= run.snapshot.get("nonce") == asked["child_nonce"]
        is_own = run.snapshot.get("parent") == [asked["id"], asked["signal"]]
        metadata: dict[str, Any] = run.snapshot.get("metadata") or {}
        workflow, input_hash = run.snapshot.get("workflowName"), metadata.get("inputHash")
        is_written = False
        if is_own and workflow == asked["workflow"] and lease is not None and lease.owner_token == asked["token"]:
            step = Step(
                asked["id"],
                asked["seq"],
                asked["key"],
                asked["kind"],
                asked["nonce"],
                lease.epoch,
                record,
                statement.now,
            )
            is_written = yield from appended(tables, statement, step)
        if is_written and not is_mine:
            yield from _join(tables, statement, asked, run)
        rows.append((asked["n"], workflow, input_hash, _text(run.status), is_mine, is_own, is_written))
    return Result(rows, len(rows))


def _records(text: str) -> list[str]:
    return [bytes(row["record"]).decode() for row in msgspec.json.decode(text, type=list[dict[str, msgspec.Raw]])]


def _join(tables: Tables, statement: Statement, asked: dict[str, Any], run: Header) -> Progress[None]:
    """A child that is there runs again, where it has failed or was cancelled; of any other that has ended it is told again."""
    execution = run.snapshot["execution"]
    again = None
    if run.status in (Status.FAILED, Status.CANCELLED) and not execution.get("needsDecision"):
        again = yield from statement.update(
            tables.locks,
            run.id,
            lambda lease: lease.route is not None and lease.owner_token is None,
            lambda lease: lease._replace(due_at=statement.clock(), owner=None),
        )
    if again is not None:
        kept = {name: told for name, told in execution.items() if name not in _OF_AN_END}
        fresh = {**run.snapshot, "execution": kept | {"status": "queued", "lastUpdated": iso(statement.now)}}
        yield from statement.update(tables.snapshots, run.id, None, lambda _: Header(run.id, fresh, statement.now))
    for signal in sent_to(tables, statement, asked["id"]):
        if signal.name == asked["signal"]:
            key = signal.workflow_id, signal.nonce
            yield from statement.update(
                tables.signals, key, None, lambda signal: signal._replace(name="", noticed=True)
            )
    if again is None and run.status in (Status.COMPLETED, Status.FAILED, Status.CANCELLED):
        end: dict[str, Any] = {"status": _text(run.status)}
        kind = {Status.COMPLETED: Kind.RESULT, Status.FAILED: Kind.FAILURE}.get(Status(str(run.status)))
        last = [step for step in visible_steps(tables, statement, run.id) if step.kind == kind]
        if last:
            end["record"] = _decode(last[-1].record)
        yield from told_of_end(tables, statement, (asked["id"], asked["signal"]), end)


def _distinct(asked: Sequence[dict[str, Any]], is_free: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """The first of each id, and of these that are free the first of each `dedup`."""
    by_id: dict[str, dict[str, Any]] = {}
    for row in sorted(asked, key=lambda row: row["n"]):
        by_id.setdefault(row["id"], row)
    by_dedup: dict[str, dict[str, Any]] = {}
    for row in filter(is_free, by_id.values()):
        dedup = row["header"].get("dedup")
        by_dedup.setdefault(row["id"] if dedup is None else _encode(dedup).decode(), row)
    return list(by_dedup.values())


def _holder_of(tables: Tables, statement: Statement, dedup: Any) -> Header | None:
    """The run of this `dedup` that has not ended, as the statement sees it."""
    if dedup is None:
        return None
    seen = (tables.snapshots.visible(run_id, statement) for run_id in list(tables.snapshots.rows))
    return next((run for run in seen if run is not None and _has(run, dedup)), None)


def _is_kept_out(tables: Tables, statement: Statement, header: Header) -> Progress[bool]:
    """Whether another run has the `dedup` that has not ended; one that is being written is waited for."""
    dedup = header.snapshot.get("dedup")
    for row in [] if dedup is None else list(tables.snapshots.rows.values()):
        newest = row.pending[-1][1] if row.pending else row.committed()
        if row.key != header.id and newest is not None and _has(newest, dedup):
            yield from statement.undecided(row)
            committed = row.newest(statement.transaction)
            if committed is not None and _has(committed, dedup):
                return True
    return False


def _has(run: Header, dedup: Any) -> bool:
    return run.snapshot.get("dedup") == dedup and run.status in _UNDER_WAY


def _read_started(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    yield POINT
    rows: list[tuple[Any, ...]] = []
    for asked in _decode(values["runs"]):
        run = tables.snapshots.visible(asked["id"], statement)
        if run is None:
            run = _holder_of(tables, statement, asked["header"].get("dedup"))
        if run is not None:
            first = tables.steps.visible((run.id, 0), statement)
            is_mine = first is not None and (first.nonce, first.kind) == (asked["nonce"], Kind.INPUT)
            is_mine |= run.snapshot.get("nonce") == asked["nonce"]
            metadata: dict[str, Any] = run.snapshot.get("metadata") or {}
            input_hash = metadata.get("inputHash")
            rows.append((asked["n"], run.id, run.snapshot.get("workflowName"), input_hash, _text(run.status), is_mine))
    return Result(rows, len(rows))


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


class Taken(NamedTuple):
    """What a poll has taken: the lease as it was, as it is, and its place."""

    before: Lease
    lease: Lease
    n: int


def _poll(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    began = statement.clock()
    next_in = min((due_moment(lease) - began for lease in _on(tables, statement, values, began)), default=None)
    least = min((due_moment(lease) for lease in _on(tables, statement, values, -math.inf)), default=math.inf)
    floor = min(least, began - _FLOOR) - 0.00001 if values["asks_floor"] else None
    since = -math.inf if values["floor"] is None else values["floor"]

    due: list[Lease] = []
    limited = limited_queues(tables, statement, values, began)
    queue_of = dict(zip(values["routes"], values["route_queues"], strict=True))
    for route, priority in ways(values["routes"]):
        for key in _in_order(tables, statement, route, priority):
            if len(due) == values["count"] or is_limited(tables, statement, queue_of[route]):
                break

            def holds(lease: Lease, way: tuple[str, int] = (route, priority)) -> bool:
                return (lease.route, lease.priority) == way and _is_due(lease, began) and due_moment(lease) >= since

            lease = yield from statement.locked(tables.locks, key, UPDATE, holds, skips=True)
            if lease is not None:
                due.append(lease)
    taken: list[Taken] = []
    for n, before in enumerate(due, 1):
        after = yield from statement.update(tables.locks, before.workflow_id, None, granted(statement, values, n))
        if after is not None:
            taken.append(Taken(before, after, n))
    rows: list[tuple[Any, ...]] = []
    octets = 0
    for one in taken:
        run: Header | None = yield from statement.update(
            tables.snapshots, one.lease.workflow_id, None, running(tables, statement, one)
        )
        first = tables.steps.visible((one.lease.workflow_id, 0), statement) if one.lease.epoch == 1 else None
        input_row = (None, None, None) if first is None else (first.record, first.created_at, first.epoch)
        octets += 0 if first is None else octets_of(first.record) * tables.weights[0]
        lease, document = one.lease, None if run is None else _encode(run.snapshot).decode()
        rows.append((lease.workflow_id, lease.epoch, lease.owner_token, one.n, lease.route, document, *input_row))
    yield from _seen(tables, statement, values["worker"], is_busy=bool(due))
    others = (tables.workers.visible(key, statement) for key in list(tables.workers.rows))
    workers = sum(other is not None and other.seen_at > began - _SEEN_WITHIN for other in others)
    if len(due) == values["count"]:
        next_in = None
    told = _schedules_of(tables, statement, values["schedules"], began)
    answer = [(next_in, workers, floor, limited, told, *row) for row in rows or [(None,) * 9]]
    return Result(answer, len(answer), octets)


def _schedules_of(tables: Tables, statement: Statement, names: Sequence[str], now: float) -> str | None:
    """What a poll tells of the worker's schedules: those that are due, and when the next one is."""
    mine = [row for row in (tables.schedules.visible(name, statement) for name in names) if row is not None]
    later = [row.due_at - now for row in mine if row.due_at is not None and row.due_at > now]
    due = [
        _decode(row.said)
        | {
            "revision": row.revision,
            "due_at": None if row.due_at is None else iso(row.due_at),
            "is_open": False,
        }
        for row in mine
        if row.due_at is None or row.due_at <= now
    ]
    return _encode({"now": iso(now), "next_in": min(later, default=None), "due": due}).decode() if mine else None


def _put_schedules(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    yield POINT
    for asked in _decode(values["schedules"]):
        timetable, said = (asked["cron"], asked["zone"], asked["every"]), _encode(asked).decode()
        new = Schedule(asked["id"], timetable, said)
        if not (yield from statement.insert(tables.schedules, new.id, new)):

            def changed(row: Schedule, new: Schedule = new) -> Schedule:
                due_at = row.due_at if row.timetable == new.timetable else None
                return new._replace(revision=row.revision + 1, due_at=due_at)

            def differs(row: Schedule, said: str = said) -> bool:
                return row.said != said

            yield from statement.update(tables.schedules, new.id, differs, changed)
    return Result([], 0)


def _tick(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    due_at, next_at = (None if at is None else at.timestamp() for at in (values["due_at"], values["next_at"]))

    def stands(row: Schedule) -> bool:
        return _stands(row, values["revision"], due_at)

    found = yield from statement.locked(tables.schedules, values["id"], UPDATE, stands, skips=True)
    if found is None:
        return Result([], 0)
    yield from statement.update(tables.schedules, found.id, None, lambda row: row._replace(due_at=next_at))
    for run in _decode(values["runs"]):
        yield from statement.insert(tables.ticked, (run["id"], run["nonce"]), Ticked(run["id"], run["nonce"]))
    return Result([(found.id,)], 1)


def _stands(row: Schedule, revision: int, due_at: float | None) -> bool:
    """Whether a schedule stands as it was found due."""
    return (row.revision, row.due_at) == (revision, due_at)


def is_due(lease: Lease, now: float) -> bool:
    """Whether a poll takes it, whatever its route."""
    return _is_due(lease, now)


def _is_due(lease: Lease, now: float) -> bool:
    return due_moment(lease) <= now and (lease.owner_token is None or lease.expires_at <= now)


def granted(statement: Statement, values: Any, n: int) -> Callable[[Lease], Lease]:
    """The lease of the n-th run that a poll takes."""

    def granted(lease: Lease) -> Lease:
        epoch, ends_at = _next_epoch(lease), statement.clock() + values["seconds"]
        token = f"{epoch}:{values['random']}.{n}"
        priority = lease.priority
        if priority is not None and priority >= 0:
            priority -= MAX_PRIORITY + 1
        return lease._replace(
            epoch=epoch, owner_token=token, owner=values["owner"], expires_at=ends_at, due_at=ends_at, priority=priority
        )

    return granted


def _next_epoch(lease: Lease) -> int:
    return lease.epoch + 1


def running(tables: Tables, statement: Statement, taken: Taken) -> Callable[[Header], Header]:
    """The header of a run that was taken, with how many workers in a row have died under it."""
    epoch, owner = taken.lease.epoch, str(taken.lease.owner).partition(" ")[0]

    def running(run: Header) -> Header:
        before: dict[str, Any] = run.snapshot.get("execution") or {}
        crashes = _count_crashes(tables, statement, taken, before)
        execution = taken_up(before, epoch, owner, iso(statement.now))
        if crashes is not None:
            execution["crashes"] = crashes
        return Header(run.id, {**run.snapshot, "execution": execution}, statement.now)

    return running


def _count_crashes(tables: Tables, statement: Statement, taken: Taken, execution: dict[str, Any]) -> int | None:
    """How many workers in a row have died under the run; None where none has."""
    known: int | None = execution.get("crashes")
    steps = visible_steps(tables, statement, taken.lease.workflow_id)
    if taken.lease.epoch == 1 or any(step.epoch == taken.lease.epoch - 1 for step in steps):
        return None
    if taken.before.owner_token is None:
        return known
    if "began" in execution and tables.started[0] > datetime.fromisoformat(execution["began"]).timestamp():
        return known  # it was the server that went, and the worker perhaps with it
    others = (tables.workers.visible(key, statement) for key in list(tables.workers.rows))
    if any(other is not None and other.leaving and other.owner == taken.before.owner for other in others):
        return known
    return (known or 0) + 1


def seen_busy(tables: Tables, statement: Statement, worker: str) -> Progress[None]:
    """A worker that has got something besides is not idle."""
    yield from statement.update(tables.workers, worker, lambda row: row.idle, lambda row: row._replace(idle=False))


def _seen(tables: Tables, statement: Statement, worker: str, *, is_busy: bool) -> Progress[None]:
    began = statement.clock()

    def is_old(row: Worker) -> bool:
        return bool(row.routes) and (row.seen_at < began - _SEEN_EVERY or (row.idle and is_busy))

    def seen(row: Worker) -> Worker:
        return row._replace(idle=row.idle and not is_busy, seen_at=statement.clock())

    yield from statement.update(tables.workers, worker, is_old, seen)


def _notice(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:  # noqa: ARG001 -- it has none
    yield POINT
    every = ((run_id, nonce) for run_id, nonces in list(tables.nonces.items()) for nonce in set(nonces))
    seen = (tables.signals.visible(key, statement) for key in every)
    fresh: list[Signal] = []
    for signal in sorted(one for one in seen if one is not None and not one.noticed)[:_MOST_NOTICED]:
        key = signal.workflow_id, signal.nonce
        newest = yield from statement.locked(tables.signals, key, NO_KEY_UPDATE, _is_unnoticed, skips=True)
        if newest is not None:
            fresh.append(newest)
    locked: set[str] = set()
    for run_id in sorted({signal.workflow_id for signal in fresh}):
        if (yield from _looked_at(tables, statement, run_id)) is not None:
            locked.add(run_id)
    noticed = [
        signal
        for signal in fresh
        if signal.workflow_id in locked or tables.locks.visible(signal.workflow_id, statement) is None
    ]
    statement.transaction.noticed = [(signal.workflow_id, signal.nonce) for signal in noticed]
    return Result([(_encode([signal.number for signal in noticed]).decode(),)], 1)


def _is_unnoticed(signal: Signal) -> bool:
    return not signal.noticed


def _looked_at(tables: Tables, statement: Statement, run_id: str) -> Progress[Lease | None]:
    """The lease of a run to which a signal has come, locked; None where it is locked elsewhere."""
    return (yield from statement.locked(tables.locks, run_id, NO_KEY_UPDATE, skips=True))


def _wake_suspended(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:  # noqa: ARG001 -- it has none
    yield POINT
    seen = (tables.signals.visible(key, statement) for key in statement.transaction.noticed)
    signals = list(filter(None, seen))
    names: dict[str, set[str]] = {}
    for signal in signals:
        names.setdefault(signal.workflow_id, set()).add(signal.name)
    routes: set[str | None] = set()
    for run_id, sent in sorted(names.items()):

        def is_awaiting(lease: Lease, sent: set[str] = sent) -> bool:
            return _is_asleep(lease) and not sent.isdisjoint(names_awaited(lease) or ())

        woken = yield from statement.update(
            tables.locks, run_id, is_awaiting, lambda lease: lease._replace(owner=None, due_at=statement.clock())
        )
        if woken is not None:
            routes.add(line_of(str(woken.route)))
    for signal in signals:
        key = signal.workflow_id, signal.nonce
        yield from statement.update(tables.signals, key, None, lambda signal: signal._replace(noticed=True))
    return Result([(route,) for route in sorted(routes, key=str)], len(routes))


def _is_asleep(lease: Lease) -> bool:
    return lease.owner_token is None


def _wake_awaiting(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    yield POINT
    locked: list[tuple[str, int]] = []
    for row in sorted(_decode(values[0]), key=lambda row: row["id"]):

        def is_awaiting(lease: Lease, name: str = row["name"]) -> bool:
            return name in (names_awaited(lease) or ())

        if (yield from statement.locked(tables.locks, row["id"], NO_KEY_UPDATE, is_awaiting, skips=True)) is not None:
            locked.append((row["id"], row["nonce"]))
    for key in locked:
        yield from statement.update(tables.signals, key, None, lambda signal: signal._replace(noticed=True))
    routes: set[str | None] = set()
    for run_id in sorted({run_id for run_id, _ in locked}):
        woken = yield from statement.update(
            tables.locks, run_id, None, lambda lease: lease._replace(owner=None, due_at=statement.clock())
        )
        if woken is not None:
            routes.add(line_of(str(woken.route)))
    return Result([(route,) for route in sorted(routes, key=str)], len(routes))


def _say_idle(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    yield POINT
    now = statement.clock()
    for key in list(tables.workers.rows):

        def is_silent(row: Worker) -> bool:
            return bool(row.routes) and row.seen_at < now - _SILENT

        yield from statement.update(tables.workers, key, is_silent, lambda row: Worker(row.id))
    new = Worker(values["worker"], tuple(values["serves"]), True, now, values["owner"])

    def idle(row: Worker) -> Worker:
        return new if not row.routes else row._replace(idle=True, seen_at=now)

    columns = frozenset({"idle", "seen_at"})
    yield from statement.upsert(tables.workers, new.id, new, columns, lambda _: True, idle)
    return Result([], 1)


def _drain(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    yield POINT
    told = yield from statement.update(
        tables.workers,
        values["worker"],
        lambda row: bool(row.routes),
        lambda row: row._replace(idle=False, leaving=True),
    )
    return Result([], int(told is not None))


def _leave(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    yield POINT
    gone = yield from statement.update(
        tables.workers, values["worker"], lambda row: bool(row.routes), lambda row: Worker(row.id)
    )
    return Result([], int(gone is not None))


def _wake(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    yield POINT
    since, routes = statement.clock() - _SEEN_WITHIN, set(values["routes"])

    def is_idle(row: Worker) -> bool:
        return row.idle and row.seen_at > since and not routes.isdisjoint(row.routes)

    seen = (tables.workers.visible(key, statement) for key in list(tables.workers.rows))
    idle = sorted((row for row in seen if row is not None and is_idle(row)), key=lambda row: -row.seen_at)
    locked: list[str] = []
    for row in idle:
        if len(locked) == values["count"]:
            break
        if (yield from statement.locked(tables.workers, row.id, UPDATE, is_idle, skips=True)) is not None:
            locked.append(row.id)
    for worker in locked:
        yield from statement.update(tables.workers, worker, None, lambda row: row._replace(idle=False))
        statement.transaction.notifies.append(worker)
    return Result([("",) for _ in locked], len(locked))


def _recall(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    yield POINT
    began, mine = statement.clock(), f"{values['name']}."

    def is_mine(lease: Lease) -> bool:
        claim = (lease.owner_token or "").partition(":")[2]
        if not (began < due_moment(lease) < math.inf and claim.startswith(mine)):
            return False
        return bool(int(claim.removeprefix(mine).partition(".")[0]) < values["sending"])

    def back(lease: Lease) -> Lease:
        now = statement.clock()
        return lease._replace(owner_token=None, owner=None, expires_at=now, due_at=now)

    locked: list[str] = []
    for lease in list(_on(tables, statement, values, began)):
        if (yield from statement.locked(tables.locks, lease.workflow_id, UPDATE, is_mine)) is not None:
            locked.append(lease.workflow_id)  # noqa: PERF401 -- a comprehension cannot yield
    for run_id in locked:
        yield from statement.update(tables.locks, run_id, None, back)
    return Result([], len(locked))


def _held_near(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    yield POINT
    began = statement.clock()
    rows = [
        (lease.workflow_id, lease.owner_token, lease.owner)
        for lease in _on(tables, statement, values, began)
        if due_moment(lease) <= began + values["seconds"]
        and lease.owner is not None
        and lease.owner_token is not None  # else it says what its run is suspended for
        and lease.owner.startswith(values["host"])
        and lease.owner != values["owner"]
    ]
    return Result(rows[:_MAX_HELD], len(rows[:_MAX_HELD]))


def _expire(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    yield POINT
    tokens = set(values["dead"])

    def over(lease: Lease) -> Lease:
        now = statement.clock()
        return lease._replace(expires_at=now, due_at=now)

    ended = 0
    for run_id in values["dead_ids"]:
        ended += (
            yield from statement.update(tables.locks, run_id, lambda lease: lease.owner_token in tokens, over)
        ) is not None
    return Result([], ended)


def ways(routes: Sequence[str]) -> Iterator[tuple[str, int]]:
    """The parts of the index that a worker looks at: what was begun, then the most urgent, and of each the routes in turn."""
    for priority in range(-MAX_PRIORITY - 1, MAX_PRIORITY + 1):
        for route in routes:
            yield route, priority


def _in_order(tables: Tables, statement: Statement, route: str, priority: int) -> list[str]:
    """The runs of one part of the index, as the statement sees them."""
    seen = (tables.locks.visible(key, statement) for key in list(tables.locks.rows))
    there = [lease for lease in seen if lease is not None and (lease.route, lease.priority) == (route, priority)]
    return [lease.workflow_id for lease in sorted(there, key=due_moment)]


def _on(tables: Tables, statement: Statement, values: Any, after: float) -> Iterator[Lease]:
    """The leases of these routes that are due later."""
    for route, priority in ways(values["routes"]):
        for key in _in_order(tables, statement, route, priority):
            lease = tables.locks.visible(key, statement)
            if lease is not None and after < due_moment(lease) < math.inf:
                yield lease


WORKER_STATEMENTS: Final[dict[str, Callable[[Tables, Statement, Any], Progress[Result]]]] = {
    "enqueue": _enqueue,
    "fence_parents": _fence_parents,
    "begin_children": _begin_children,
    "read_started": _read_started,
    "poll": _poll,
    "notice": _notice,
    "wake_suspended": _wake_suspended,
    "wake_awaiting": _wake_awaiting,
    "say_idle": _say_idle,
    "wake": _wake,
    "drain": _drain,
    "leave": _leave,
    "put_schedules": _put_schedules,
    "tick": _tick,
    "recall": _recall,
    "held_near": _held_near,
    "expire": _expire,
}
