"""The store's statements on the model, one function for each name in `statements.sql`, with its parameters and rows.

Two more are a user's, who moves something between accounts and says so: `UPDATE accounts SET balance = balance + %s WHERE
name = %s`, and `INSERT INTO effects VALUES (%s, %s, %s, %s)`.

Each takes a statement of the model and the parameters that psycopg would be given; it yields where it must wait (or where
others may act), and returns a `Result`. The order in which rows are looked at, locked and written is the SQL's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from durable._engine.starts import MAX_PRIORITY
from durable.records import Kind, Status
from simulation.database import (
    KEY_SHARE,
    NO_KEY_UPDATE,
    POINT,
    UPDATE,
    Progress,
    Statement,
    Violation,
)
from simulation.queue_statements import QUEUE_STATEMENTS
from simulation.rows import appended, is_awaited, iso, owned_by, sent_to, taken_up, told_of_end, visible_steps
from simulation.slots import reopened, slot_of
from simulation.tables import Account, Effect, Header, Lease, Result, Signal, Step, Tables, octets_of
from simulation.worker_statements import WORKER_STATEMENTS

__all__ = ["STATEMENTS", "Verb"]

_ENDS: Final = frozenset({Kind.RESULT.value, Kind.FAILURE.value})
_STOPPED: Final = frozenset({Status.FAILED.value, Status.CANCELLED.value})
_OF_AN_END: Final = frozenset({"completedAt", "error", "needsDecision"})
_FORMAT: Final = 1
_NOT_THERE: Final = "22012"  # division by zero: a record that must be written was dropped
_FOREIGN: Final = ("stepOrder", "stepArgs", "lastStepKey")  # in the metadata of another tool's rows


Verb: TypeAlias = Callable[[Tables, Statement, Any], Progress[Result]]

_decode: Final = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.Encoder().encode


def _take_leases(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    dead = set(values["dead"])
    chosen: list[tuple[dict[str, Any], float]] = []
    for asked in sorted(_decode(values["claims"]), key=_by_id):
        held = tables.locks.visible(asked["id"], statement)
        if held is not None and held.expires_at > statement.clock() and held.owner_token != asked["dead"]:
            continue
        if held is not None and held.due_at is not None:  # it is the workers'
            continue
        run, has_journal = (
            tables.snapshots.visible(asked["id"], statement),
            _has_journal(tables, statement, asked["id"]),
        )
        if _may_execute(run, asked, has_journal=has_journal):
            chosen.append((asked, statement.clock() + asked["seconds"]))
    taken = 0
    for asked, expires_at in chosen:
        yield POINT
        random, owner = asked["random"], asked["owner"]

        def free(lease: Lease) -> bool:
            return (lease.expires_at <= statement.clock() or lease.owner_token in dead) and lease.due_at is None

        amends = asked["amends"]

        def over(lease: Lease, random: str = random, owner: str = owner, expires_at: float = expires_at) -> Lease:
            epoch, token = lease.epoch + 1, f"{lease.epoch + 1}:{random}"
            is_due = lease.route is not None and (lease.due_at is not None or not amends)  # noqa: B023 -- called here
            due_at = expires_at if is_due else None
            return lease._replace(epoch=epoch, owner_token=token, owner=owner, expires_at=expires_at, due_at=due_at)

        first = Lease(asked["id"], 1, f"1:{random}", owner, expires_at)
        columns = frozenset({"epoch", "owner_token", "owner", "expires_at"})
        taken += (yield from statement.upsert(tables.locks, asked["id"], first, columns, free, over)) is not None
    return Result([], taken)


def _may_execute(run: Header | None, asked: dict[str, Any], *, has_journal: bool) -> bool:
    if run is None:
        return bool(asked["may_create"]) and not has_journal
    document = run.snapshot
    if document.get("formatVersion") != _FORMAT:
        return document.get("kind") == "ResumeState"
    if not isinstance(run.status, str):
        return False
    metadata: Any = document.get("metadata") or {}
    foreign = _is_foreign(document)
    return (
        (foreign or document.get("workflowName") == asked["workflow"])
        and (asked["function"] is None or foreign or metadata.get("workflowFunction") in (None, asked["function"]))
        and metadata.get("version", asked["version"]) == asked["version"]
        and (asked["input_hash"] is None or foreign or metadata.get("inputHash") == asked["input_hash"])
        and (run.status != Status.COMPLETED or foreign)
        and (asked["after_failure"] or run.status not in _STOPPED)
        and (asked["amends"] or not _needs_decision(run))
    )


def _is_foreign(document: dict[str, Any]) -> bool:
    metadata: Any = document.get("metadata") or {}
    return not document.get("workflowName") or any(word in metadata for word in _FOREIGN)


def _needs_decision(run: Header) -> bool:
    execution: Any = run.snapshot.get("execution") or {}
    return execution.get("needsDecision") is True


def _open_runs(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    mine: list[tuple[dict[str, Any], int, str]] = []
    for asked in sorted(_decode(values["openings"]), key=_by_id):

        def is_mine(lease: Lease, random: str = asked["random"]) -> bool:
            return lease.owner_token == f"{lease.epoch}:{random}"

        if asked["amends"]:
            continue
        lease: Lease | None = yield from statement.locked(tables.locks, asked["id"], KEY_SHARE, is_mine)
        if lease is not None:
            mine.append((asked, lease.epoch, str(lease.owner).partition(" ")[0]))
    moment = iso(statement.now)
    fresh: set[str] = set()
    for asked, epoch, owner in mine:
        execution = taken_up({}, epoch, owner, moment)
        new = Header(asked["id"], {**asked["header"], "execution": execution}, statement.now)
        if (yield from statement.insert(tables.snapshots, new.id, new)):
            fresh.add(new.id)
    written = 0
    for asked, epoch, _ in mine:
        old = tables.snapshots.visible(asked["id"], statement)
        foreign = old is not None and _is_foreign(old.snapshot)
        if asked["input"] is not None and (asked["id"] in fresh or foreign):
            place, kind = (asked["id"], 0), Kind.INPUT.value
            record = Step(*place, kind, kind, 0, epoch, asked["input"], statement.now)
            written += yield from appended(tables, statement, record)
    for asked, epoch, owner in mine:

        def may(run: Header, asked: dict[str, Any] = asked) -> bool:
            return (
                (run.status != Status.COMPLETED or _is_foreign(run.snapshot))
                and (asked["after_failure"] or run.status not in _STOPPED)
                and not _needs_decision(run)
            )

        def running(run: Header, asked: dict[str, Any] = asked, epoch: int = epoch, owner: str = owner) -> Header:
            document = run.snapshot
            if not (_is_foreign(document) or _is_under_way(run)):
                document = {name: value for name, value in document.items() if name != "cancel"}
            if _is_foreign(document):
                header = asked["header"]
                known: dict[str, Any] = document.get("metadata") or {}
                metadata: dict[str, Any] = {
                    **header["metadata"],
                    **{word: value for word, value in known.items() if word not in _FOREIGN},
                }
                document = {**header, **document, "workflowName": header["workflowName"], "metadata": metadata}
            execution = taken_up(run.snapshot.get("execution") or {}, epoch, owner, moment)
            return Header(run.id, {**document, "execution": execution}, statement.now)

        yield from statement.update(tables.snapshots, asked["id"], may, running)
    return Result([], written)


def _read_runs(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    yield POINT
    rows: list[tuple[Any, ...]] = []
    for run_id in values["ids"]:
        lease = tables.locks.visible(run_id, statement)
        run = tables.snapshots.visible(run_id, statement)
        text = "" if run is None else _encode(run.snapshot).decode()
        document = text if run is not None and len(text) <= values["most"] else None
        is_headless = _has_journal(tables, statement, run_id) if run is None else None
        seen = (run is not None, document, is_headless, False)
        if lease is None:
            rows.append((run_id, None, None, None, None, None, *seen))
        else:
            left = lease.expires_at - statement.clock()
            route = None if lease.due_at is None else lease.route
            rows.append((run_id, lease.epoch, lease.owner_token, lease.owner, left, route, *seen))
    return Result(rows, len(rows))


def _load(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    yield POINT
    run = tables.snapshots.visible(values["id"], statement)
    rows: list[tuple[Any, ...]] = []
    if run is not None:
        rows.append((None, "", "header", _encode(run.snapshot).decode(), None, 0))
    for seq in sorted(tables.seqs.get(values["id"], ())):
        step = tables.steps.visible((values["id"], seq), statement)
        if step is not None:
            rows.append((seq, step.key, step.kind, step.record, step.created_at, step.epoch))
    return Result(rows, len(rows))


def _why_nothing(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    yield POINT
    return Result([(False, _has_journal(tables, statement, values["id"]))], 1)


def _has_journal(tables: Tables, statement: Statement, run_id: str) -> bool:
    return any(tables.steps.visible((run_id, seq), statement) is not None for seq in tables.seqs.get(run_id, ()))


def _read_journals(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    yield POINT
    rows: list[tuple[Any, ...]] = []
    sent = 0
    for run_id, random, since in zip(values["ids"], values["randoms"], values["places"], strict=True):
        tables.pages[0] += since in tables.seqs.get(run_id, ())
        lease = tables.locks.visible(run_id, statement)
        mine = lease is not None and lease.owner_token == f"{lease.epoch}:{random}"
        size = few = 0
        for seq in sorted(tables.seqs.get(run_id, ())):
            step = tables.steps.visible((run_id, seq), statement)
            if step is None or seq < since or not (mine or step.kind in _ENDS):
                continue
            few += 1
            if few > values["rows"] or size > values["most"]:
                break
            octets = 0 if seq == since else octets_of(step.record) * tables.weights[0]
            size += octets
            text = step.record if size <= values["most"] else None
            sent += 0 if text is None else octets_of(text) * tables.weights[0]
            rows.append((run_id, mine, seq, step.key, step.kind, text, step.created_at, step.epoch, octets))
    return Result(rows, len(rows), sent)


def _checkpoint(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    seq, key, kind, nonce, record, run_id, token = values
    lease: Lease | None = yield from statement.locked(tables.locks, run_id, KEY_SHARE, owned_by(token))
    if lease is None:
        return Result([], 0)
    step = Step(run_id, seq, key, kind, nonce, lease.epoch, record, statement.now)
    written = yield from appended(tables, statement, step)
    return Result([], int(written))


def _checkpoint_batch(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    asked: list[dict[str, Any]] = _records(values[0])
    leases: dict[str, Lease] = {}
    for run_id in sorted({row["id"] for row in asked}):
        lease = yield from statement.locked(tables.locks, run_id, KEY_SHARE)
        if lease is not None:
            leases[run_id] = lease
    missing: list[tuple[Any, ...]] = []
    for row in asked:
        lease = leases.get(row["id"])
        if lease is not None and lease.owner_token == row["token"]:
            step = _step_of(row, lease.epoch, statement.now)
            if (yield from appended(tables, statement, step)):
                continue
        missing.append((row["n"],))
    return Result(missing, len(missing))


def _transaction_settings(_: Tables, statement: Statement, values: Any) -> Progress[Result]:
    yield POINT
    statement.transaction.idle_limit = values[0]
    return Result([(statement.transaction.id, "", "", "", "", None, None)], 1)


def _restore_settings(_: Tables, __: Statement, values: Any) -> Progress[Result]:
    yield POINT
    return Result([tuple(values)], 1)


def _transaction_fence(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    lease: Lease | None = yield from statement.locked(tables.locks, values[0], KEY_SHARE)
    rows: list[tuple[Any, ...]] = [] if lease is None else [(lease.owner_token, lease.owner, lease.epoch)]
    return Result(rows, len(rows))


def _transaction_record(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    run_id, seq, key, kind, nonce, record, txid, epoch = values
    if statement.transaction.id != txid:
        raise Violation("steps", "23502")
    step = Step(run_id, seq, key, kind, nonce, epoch, record, statement.clock())
    if not (yield from appended(tables, statement, step, ignores=False)):
        raise Violation("steps", _NOT_THERE)
    return Result([(1,)], 1)


def _move(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    amount, name = values
    yield POINT

    def moved(account: Account) -> Account:
        return Account(name, account.balance + amount)

    written = yield from statement.update(tables.accounts, name, None, moved)
    return Result([], int(written is not None))


def _effect(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    yield POINT
    yield from statement.insert(tables.effects, values[0], Effect(*values), ignores=False)
    return Result([], 1)


_ENDED: Final = (Status.COMPLETED, Status.FAILED, Status.CANCELLED)


def _finish_batch(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    asked: dict[str, dict[str, Any]] = {row["id"]: row for row in _decode(values[0])}
    held, slots = list[str](), set[str]()
    for run_id in sorted(asked):
        places = ((run_id, seq) for seq in tables.seqs.get(run_id, ()))
        if asked[run_id]["records"] > sum(tables.steps.visible(place, statement) is not None for place in places):
            continue
        if tables.snapshots.visible(run_id, statement) is None:
            continue
        owned = owned_by(asked[run_id]["token"])
        if (mine := (yield from statement.locked(tables.locks, run_id, UPDATE, owned))) is not None:
            held.append(run_id)
            slots.add(slot_of(mine))
    yield from reopened(tables, statement, slots)
    leases: list[Lease] = []
    for run_id in held:
        status, due_in = asked[run_id]["status"], asked[run_id]["due_in"]
        run = tables.snapshots.visible(run_id, statement)
        if run is not None and (_is_under_way(run) or status in _ENDED) and "cancel" in run.snapshot:
            due_in = 0.0
        lease = yield from statement.update(
            tables.locks, run_id, None, _given_back(statement, status, due_in, is_over=True)
        )
        if lease is not None:
            leases.append(lease)
    moment, finished = iso(statement.now), list[Lease]()
    for lease in leases:
        status = asked[lease.workflow_id]["status"]
        ended: dict[str, Any] = {"status": status, "lastUpdated": moment}
        if status == Status.COMPLETED:
            ended["completedAt"] = moment
        elif status == Status.FAILED:
            ended |= _error(asked[lease.workflow_id]["record"])
            if "undecided" in _decode(asked[lease.workflow_id]["record"]):
                ended["needsDecision"] = True

        def over(run: Header, ended: dict[str, Any] = ended) -> Header:
            known = {name: value for name, value in run.snapshot["execution"].items() if name not in _OF_AN_END}
            document = {**run.snapshot, "execution": {**known, **ended}}
            if ended["status"] not in _ENDED and not _is_under_way(run):
                document.pop("cancel", None)
            return Header(run.id, document, statement.now)

        if (yield from statement.update(tables.snapshots, lease.workflow_id, None, over)) is not None:
            finished.append(lease)
    for lease in finished:
        row = asked[lease.workflow_id]
        if not (yield from appended(tables, statement, _step_of(row, lease.epoch, statement.now), ignores=False)):
            raise Violation("steps", _NOT_THERE)
    rows: list[tuple[Any, ...]] = []
    for lease in finished:
        row, run = asked[lease.workflow_id], tables.snapshots.visible(lease.workflow_id, statement)
        told = None if run is None or row["status"] not in _ENDED else run.snapshot.get("parent")
        if told is not None:
            is_cancelled = row["status"] == Status.CANCELLED and run is not None
            end = (
                _end_as_cancelled(run) if is_cancelled else {"status": row["status"], "record": _decode(row["record"])}
            )
            yield from told_of_end(tables, statement, told, end)
        rows.append((lease.workflow_id, told))
    return Result(rows, len(rows))


def _release_batch(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    asked = sorted(zip(*values, strict=True), key=lambda row: row[0])
    held: list[tuple[str, str | None, float, str | None]] = []
    awaited, slots = list[str](), set[str]()
    for run_id, token, status, due_in, suspended, awaits in asked:
        if (mine := (yield from statement.locked(tables.locks, run_id, UPDATE, owned_by(token)))) is not None:
            slots.add(slot_of(mine))
            run = tables.snapshots.visible(run_id, statement)
            is_asked = run is not None and _is_under_way(run) and "cancel" in run.snapshot
            if is_asked or is_awaited(tables, statement, run_id, [] if awaits is None else _decode(awaits)):
                awaited.append(run_id)
                due_in, suspended = 0.0, None  # noqa: PLW2901 -- as the statement has it
            held.append((run_id, status, due_in, suspended))
    yield from reopened(tables, statement, slots)
    for run_id, status, due_in, suspended in held:
        run = tables.snapshots.visible(run_id, statement)
        stands = status if status is not None or run is None else run.snapshot["execution"].get("status")
        back_to = _given_back(statement, stands, due_in, suspended=suspended)
        yield from statement.update(tables.locks, run_id, None, back_to)
    for run_id, status, *_ in held:
        if status is not None:
            error: dict[str, Any] = {}
            for step in visible_steps(tables, statement, run_id):
                if status == Status.FAILED and step.kind == Kind.FAILURE:
                    error |= _error(step.record)

            def back(run: Header, status: str = str(status), error: dict[str, Any] = error) -> Header:
                document = run.snapshot
                execution = {**document["execution"], "status": status, **error}
                return Header(run.id, {**document, "execution": execution}, run.updated_at)

            yield from statement.update(tables.snapshots, run_id, None, back)
    parents: dict[str, Sequence[str]] = {}
    for run_id, status, *_ in held:
        run = tables.snapshots.visible(run_id, statement)
        if status == Status.CANCELLED and run is not None and "parent" in run.snapshot:
            parents[run_id] = run.snapshot["parent"]
            yield from told_of_end(tables, statement, parents[run_id], _end_as_cancelled(run))
    return Result([(run_id, run_id in awaited, parents.get(run_id)) for run_id, *_ in held], len(held))


def _request_of(run: Header) -> dict[str, Any]:
    """What the header says of a request that the run be cancelled; empty where there is none."""
    request: dict[str, Any] = run.snapshot.get("cancel") or {}
    return request


def _end_as_cancelled(run: Header | None) -> dict[str, Any]:
    """What a run tells its parent that its owner has ended as cancelled."""
    with_parent = run is not None and _request_of(run).get("with_parent")
    return {"status": Status.CANCELLED.value} | ({"with_parent": True} if with_parent else {})


def _lock_leases(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    rows: list[tuple[Any, ...]] = []
    for run_id in sorted(set(values[0])):
        lease: Lease | None = yield from statement.locked(tables.locks, run_id, UPDATE)
        if lease is not None:
            rows.append((run_id, lease.owner_token, lease.owner, lease.epoch))
    return Result(rows, len(rows))


def _read_leases(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    yield POINT
    seen = ((run_id, tables.locks.visible(run_id, statement)) for run_id in values[0])
    rows: list[tuple[Any, ...]] = [
        (run_id, lease.owner_token, lease.owner, lease.epoch) for run_id, lease in seen if lease is not None
    ]
    return Result(rows, len(rows))


def _count_records(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    yield POINT
    rows: list[tuple[Any, ...]] = []
    for run_id in values[0]:
        places = ((run_id, seq) for seq in tables.seqs.get(run_id, ()))
        rows.append((run_id, sum(tables.steps.visible(place, statement) is not None for place in places)))
    return Result(rows, len(rows))


def _read_nonces(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    yield POINT
    rows: list[tuple[Any, ...]] = []
    for run_id, seq in zip(*values, strict=True):
        step = tables.steps.visible((run_id, seq), statement)
        if step is not None:
            rows.append((run_id, seq, step.nonce))
    return Result(rows, len(rows))


def _renew(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    asked = sorted(zip(*values, strict=True))
    kept: list[tuple[str, float]] = []
    for run_id, token, seconds in asked:
        owned = owned_by(token)
        lease = yield from statement.locked(tables.locks, run_id, NO_KEY_UPDATE, owned, skips=True)
        if lease is not None:
            kept.append((run_id, seconds))
    renewed: set[str | None] = set()
    for run_id, seconds in kept:

        def longer(lease: Lease, seconds: float = seconds) -> Lease:
            due_at, now = lease.due_at, statement.clock()
            if due_at is not None and due_at <= now + seconds / 2:
                due_at = now + seconds
            return lease._replace(expires_at=now + seconds, due_at=due_at)

        lease = yield from statement.update(tables.locks, run_id, None, longer)
        if lease is not None:
            renewed.add(lease.owner_token)
    rows: list[tuple[Any, ...]] = []
    for run_id, token, _ in asked:
        seen = tables.locks.visible(run_id, statement)
        if token in renewed or (seen is not None and seen.owner_token == token):
            rows.append((token, token in renewed))
    return Result(rows, len(rows))


def _cancelled(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    yield POINT
    seen = ((run_id, tables.locks.visible(run_id, statement)) for run_id in values[0])
    rows: list[tuple[Any, ...]] = []
    for run_id, lease in seen:
        run = tables.snapshots.visible(run_id, statement)
        if lease is None or run is None:
            continue
        is_taken = lease.owner_token is None and lease.owner == "cancelled"
        asked = run.snapshot.get("cancel") if _is_under_way(run) else None
        if is_taken or asked is not None:
            rows.append((run_id, is_taken, _request_of(run).get("reason")))
    return Result(rows, len(rows))


def _ask_batch(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    rows: list[tuple[Any, ...]] = []
    due: list[str] = []
    yield POINT
    for asked in sorted(_decode(values[0]), key=_by_id):
        run_id, nonce = asked["id"], asked["nonce"]
        lease, run = tables.locks.visible(run_id, statement), tables.snapshots.visible(run_id, statement)
        if lease is None or run is None or not _is_under_way(run):
            continue
        is_held = lease.owner_token is not None and lease.expires_at > statement.clock()
        earlier = run.snapshot.get("cancel")
        closes = any(
            step.kind == Kind.STEP.value and "at_end" in (_decode(step.record) or {})
            for step in visible_steps(tables, statement, run_id)
        )
        is_second = earlier is not None and earlier.get("nonce") != nonce
        ends = asked["force"] or is_second or not (is_held or closes)
        reason = asked["reason"] if asked["reason"] is not None else _request_of(run).get("reason")
        request: dict[str, Any] = {"at": iso(statement.now), "nonce": nonce}
        request |= ({} if reason is None else {"reason": reason}) | ({"with_parent": True} if asked["below"] else {})

        def marked(run: Header, request: dict[str, Any] = request) -> Header:
            return Header(run.id, {**run.snapshot, "cancel": request}, run.updated_at)

        if ends:
            rows.append((run_id, True, True))
            continue
        stands = (yield from statement.update(tables.snapshots, run_id, _is_under_way, marked)) is not None
        rows.append((run_id, False, stands))
        if not is_held:
            due.append(run_id)
    for run_id in due:

        def now(lease: Lease) -> Lease:
            owner = lease.owner if lease.owner_token is not None else None
            return lease._replace(due_at=statement.clock(), owner=owner)

        yield from statement.update(
            tables.locks, run_id, lambda lease: lease.route is not None and lease.due_at is not None, now
        )
    return Result(rows, len(rows))


def _cancel_batch(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    held, slots = list[str](), set[str]()
    yield POINT
    below = {run_id for run_id, is_below, _ in zip(*values, strict=True) if is_below}
    reasons = {run_id: reason for run_id, _, reason in zip(*values, strict=True) if reason is not None}
    for run_id in sorted(set(values[0])):
        if (lease := (yield from statement.locked(tables.locks, run_id, UPDATE))) is not None:
            held.append(run_id)
            slots |= {slot_of(lease)} if lease.owner_token is not None else set()
    yield from reopened(tables, statement, slots)
    seen = {run_id: tables.snapshots.visible(run_id, statement) for run_id in held}
    were_running = [run_id for run_id, run in seen.items() if run is not None and _is_under_way(run)]
    cancelled_now = {"status": Status.CANCELLED.value, "lastUpdated": iso(statement.now)}
    gone = {"completedAt", "currentStepId", "error"}
    done: list[str] = []
    for run_id in held:

        def cancelled(run: Header) -> Header:
            kept = {name: value for name, value in run.snapshot["execution"].items() if name not in gone}
            asked = {"cancel": {"at": iso(statement.now), "reason": reasons[run.id]}} if run.id in reasons else {}
            return Header(run.id, {**run.snapshot, "execution": kept | cancelled_now, **asked}, statement.now)

        if (yield from statement.update(tables.snapshots, run_id, _is_under_way, cancelled)) is not None:
            done.append(run_id)
    parents: dict[str, Sequence[str | None]] = {}
    for run_id in done:
        header = seen[run_id]
        told = None if header is None else header.snapshot.get("parent")
        if told is not None:
            end = {"status": Status.CANCELLED.value} | ({"with_parent": True} if run_id in below else {})
            yield from told_of_end(tables, statement, told, end)
            if run_id not in below:
                parents[run_id] = told
    for run_id in done:

        def away(lease: Lease) -> Lease:
            route = None if lease.route is None else lease.route.replace("\t", "\n")
            now = statement.clock()
            return lease._replace(owner_token=None, owner="cancelled", expires_at=now, due_at=None, route=route)

        yield from statement.update(tables.locks, run_id, None, away)
    rows = [
        (run_id, run_id in done, None if run_id in below else parents.get(run_id) or [None, None])
        for run_id in held
        if run_id in done or run_id in were_running
    ]
    return Result(rows, len(rows))


def _find_below(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    yield POINT
    rows: list[tuple[Any, ...]] = []
    for root in dict.fromkeys(values[0]):
        above = tables.snapshots.visible(root, statement)
        for run_id in _below(tables, statement, {root}) - {root}:
            run = tables.snapshots.visible(run_id, statement)
            if run is not None and above is not None and _is_under_way(run):
                rows.append((run_id, root, _request_of(above).get("nonce")))
    return Result(rows, len(rows))


def _below(tables: Tables, statement: Statement, runs: set[str]) -> set[str]:
    """The children of these that have not come to an end of their own, and theirs."""
    seen = (tables.snapshots.visible(run_id, statement) for run_id in list(tables.snapshots.rows))
    headers = {run.id: run for run in seen if run is not None}
    found, looked = set[str](), [*runs]
    while looked:
        above = headers.get(looked.pop())
        if above is None or above.status not in (Status.QUEUED, Status.RUNNING, Status.CANCELLED):
            continue
        for run in headers.values():
            if (run.snapshot.get("parent") or [None])[0] == above.id and run.id not in found:
                found.add(run.id)
                looked.append(run.id)
    return found


def _signal_batch(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    rows, sent = list[tuple[int, bool, bool]](), set[tuple[str, int]]()
    yield POINT
    for row in sorted(_decode(values[0]), key=lambda row: row["n"]):
        is_there = tables.snapshots.visible(row["id"], statement) is not None
        if not is_there and not row["later"]:
            rows.append((row["n"], False, True))
            continue
        tables.numbers[0] += 1
        place = row["id"], row["nonce"]
        signal = Signal(tables.numbers[0], row["id"], row["name"], row["payload"], row["nonce"])
        if (yield from statement.insert(tables.signals, place, signal)):
            tables.nonces.setdefault(row["id"], []).append(row["nonce"])
            sent.add(place)
        is_settled = place in sent or tables.signals.visible(place, statement) is not None
        rows.append((row["n"], is_there, is_settled))
    return Result(rows, len(rows))


def _receive_batch(tables: Tables, statement: Statement, values: Any) -> Progress[Result]:
    yield POINT
    rows: list[tuple[Any, ...]] = []
    for row in _decode(values[0]):
        taken = set(row["taken"])
        sent = sent_to(tables, statement, row["id"])
        waiting = [signal for signal in sent if signal.name in row["names"] and signal.number not in taken]
        if waiting:
            first = min(waiting)
            rows.append((row["n"], first.number, first.name, first.payload))
    return Result(rows, len(rows))


STATEMENTS: Final[dict[str, Verb]] = {
    "take_leases": _take_leases,
    "open_runs": _open_runs,
    "read_runs": _read_runs,
    "read_journals": _read_journals,
    "checkpoint": _checkpoint,
    "checkpoint_batch": _checkpoint_batch,
    "transaction_settings": _transaction_settings,
    "restore_settings": _restore_settings,
    "transaction_fence": _transaction_fence,
    "transaction_record": _transaction_record,
    "finish_batch": _finish_batch,
    "release_batch": _release_batch,
    "lock_leases": _lock_leases,
    "read_leases": _read_leases,
    "count_records": _count_records,
    "read_nonces": _read_nonces,
    "renew": _renew,
    "cancelled": _cancelled,
    "ask_batch": _ask_batch,
    "find_below": _find_below,
    "cancel_batch": _cancel_batch,
    "signal_batch": _signal_batch,
    "receive_batch": _receive_batch,
    **WORKER_STATEMENTS,
    **QUEUE_STATEMENTS,
    # of whole snapshots
    "load": _load,
    "why_nothing": _why_nothing,
    # A user's own, in the body of a transaction.
    "move": _move,
    "effect": _effect,
}


def _step_of(row: dict[str, Any], epoch: int, at: float) -> Step:
    return Step(row["id"], row["seq"], row["key"], row["kind"], row["nonce"], epoch, row["record"], at)


def _error(record: str) -> dict[str, Any]:
    """What a header says of a failure record, if that says anything."""
    failure = _decode(record)
    if "error" not in failure:
        return {}
    step = {"step": failure["step"]} if failure.get("step") else {}
    return {"error": {"type": failure["error"]["type"], **step}}


def _records(text: str) -> list[dict[str, Any]]:
    """The rows of a batch, each record as the text that it came as."""
    rows = msgspec.json.decode(text, type=list[dict[str, msgspec.Raw]])
    return [
        {name: bytes(raw).decode() if name == "record" else _decode(raw) for name, raw in row.items()} for row in rows
    ]


def _given_back(
    statement: Statement, status: str | None, due_in: float, *, is_over: bool = False, suspended: str | None = None
) -> Callable[[Lease], Lease]:
    goes_on = status in (Status.QUEUED, Status.RUNNING)

    def given_back(lease: Lease) -> Lease:
        now = statement.clock()
        due_at = now + due_in if goes_on and lease.route is not None else None
        priority = lease.priority
        if is_over and priority is not None and priority < 0:
            priority += MAX_PRIORITY + 1  # it was begun, and waits in its turn if it is to be tried again
        owner = None if lease.route is None else suspended
        return lease._replace(owner_token=None, owner=owner, expires_at=now, due_at=due_at, priority=priority)

    return given_back


def _is_under_way(run: Header) -> bool:
    return run.status in (Status.QUEUED, Status.RUNNING)


def _by_id(row: Mapping[str, Any]) -> Any:
    return row["id"]


def standing(tables: Tables) -> Iterable[tuple[str, Lease | None, Header | None, list[Step]]]:
    """Every run as it is committed: its lease, its header, its journal."""
    for run_id in sorted({*tables.locks.rows, *tables.snapshots.rows}):
        steps = (tables.steps.committed((run_id, seq)) for seq in sorted(tables.seqs.get(run_id, ())))
        yield run_id, tables.locks.committed(run_id), tables.snapshots.committed(run_id), list(filter(None, steps))
