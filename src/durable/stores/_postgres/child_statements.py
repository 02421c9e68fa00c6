"""Performs the jobs of children as statements: their starts, and what their ends wake."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import psycopg
from msgspec import Raw, Struct

from durable._engine.children import refuse_child
from durable._engine.decisions import Begun
from durable._engine.starts import NewRun, Started
from durable.stores._postgres.job import Job
from durable.stores._postgres.jobs import Begetting
from durable.stores._postgres.session import Session, begin_another, in_transaction
from durable.stores._postgres.starts import line_of
from durable.stores._postgres.together import Reply
from durable.stores._postgres.worker_statements import COMMITTED, NOT_FLUSHED, WorkerStatements

_json: Final = msgspec.json.Encoder()


class _ChildRow(Struct, gc=False):
    n: int
    id: str
    token: str
    seq: int
    key: str
    kind: str
    nonce: int
    record: Raw
    child: str
    signal: str
    workflow: str
    input_hash: str | None
    child_nonce: int


class _Ended(Struct, gc=False):
    id: str
    name: str
    nonce: int = 0


class ChildStatements:
    """Those of `Statements` that children ask for. `fates` says of writes that were not made what became of them."""

    def __init__(
        self,
        sql: Mapping[str, bytes],
        workers: WorkerStatements,
        fates: Callable[[Session, Sequence[Job], str], Sequence[Any]],
    ) -> None:
        self._sql = sql
        self._workers = workers
        self._fates = fates

    def begin(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        """Start them with the records of their parents, and wake workers for them."""
        starts, rows = list[Any](), list[_ChildRow]()
        for n, job in enumerate(jobs):
            child, start = _child_of(job)
            start.n, start.parent_token = n, job.payload.lease.token
            starts.append(start)
            rows.append(_row(n, job.payload, child, start))
        values = {
            "parents": [row.id for row in rows],
            "runs": _json.encode(starts).decode(),
            "children": _json.encode(rows).decode(),
        }
        found, committed = Reply(), Reply()
        due = [line_of(start.route) for start in starts if start.at is None and not start.delay]
        try:
            with in_transaction(session, jobs[0].max_lock_wait):
                session.queue(self._sql["fence_parents"], values)
                session.queue(self._sql["enqueue"], values)
                found = session.queue(self._sql["begin_children"], values)
                if due:  # in a transaction of its own, since a notification makes commits wait for one another
                    committed = begin_another(session)
                    session.queue(NOT_FLUSHED)
                    session.queue(self._sql["wake"], {"routes": list(set(due)), "count": len(due)})
        except psycopg.Error:
            if committed.statusmessage != COMMITTED:
                raise
            # They are started by now, whatever became of the notification: polls find them.
        return self._answers(session, jobs, {n: told for n, *told in found})

    def _answers(self, session: Session, jobs: Sequence[Job], found: Mapping[int, Sequence[Any]]) -> Sequence[Any]:
        answers: list[Any] = [None for _ in jobs]
        unwritten: list[int] = []
        for n, job in enumerate(jobs):
            child, _ = _child_of(job)
            if n in found:
                workflow, input_hash, status, is_mine, is_own, is_written = found[n]
                started = Started(child.run_id, is_mine, workflow or "", input_hash, status or "")
                answers[n] = begun = Begun(started, is_own)
                if is_written:
                    job.payload.lease.count_record()
                elif refuse_child(child, begun) is None:
                    unwritten.append(n)
            else:
                unwritten.append(n)
        if unwritten:
            for n, fate in zip(
                unwritten, self._fates(session, [jobs[n] for n in unwritten], "read_leases"), strict=True
            ):
                if fate is not None or answers[n] is None:
                    answers[n] = fate
                else:
                    jobs[n].payload.lease.count_record()
        return answers

    def wake_parents(self, session: Session, ended: Iterable[Sequence[str] | None]) -> None:
        """The parents that are suspended for the ends of these, each as the parent and the signal's name, are due."""
        rows = [_Ended(parent[0], parent[1]) for parent in ended if parent is not None and parent[0] is not None]
        if not rows:
            return
        woken = Reply()
        try:
            with in_transaction(session):
                session.queue(NOT_FLUSHED)
                woken = session.queue(self._sql["wake_awaiting"], (_json.encode(rows).decode(),))
        except psycopg.Error:  # the ends are told by now: polls notice them
            return
        self._workers.wake_for(session, [route for (route,) in woken])


def _child_of(job: Job) -> tuple[NewRun, Any]:
    """The child, and the row of its start."""
    payload: Begetting = job.payload
    assert payload.starting is not None  # noqa: S101 -- given where the job is made
    return payload.starting.runs[0], payload.starting.rows[0]


def _row(n: int, asked: Begetting, child: NewRun, start: Any) -> _ChildRow:
    lease, record = asked.lease, asked.record
    return _ChildRow(
        n,
        lease.row,
        lease.token,
        record.seq,
        record.key,
        record.kind,
        asked.nonce,
        Raw(record.text.encode()),
        start.id,
        "" if child.parent is None else child.parent[1],
        child.workflow,
        child.input_hash,
        start.nonce,
    )
