"""One execution in a rehearsal: the store and the clock that it sees, and the places where it may die."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn, TypeVar, cast

from msgspec import structs

from durable._engine.calls import Call
from durable._engine.decisions import Begun, Claim, ClaimReply, Granted
from durable._engine.leases import Lease
from durable._engine.step_kinds import AwaitChild, Isolation, Listen, Sleep, StartChild
from durable._engine.steps import LiveExecution
from durable._runtime.bodies import Body
from durable._runtime.plan import Plan
from durable.clocks import SystemClock
from durable.errors import DurableError, Unwind, WorkflowDrift
from durable.records import Kind, Record
from durable.snapshots import Snapshot
from durable.stores._facades import ThreadPoolFacade
from durable.stores.protocol import Transaction
from durable.stores.requests import (
    AnyRequest,
    Begin,
    BeginChild,
    Checkpoint,
    Continue,
    Finish,
    OnLateReply,
    Receive,
    Release,
    Request,
)
from durable.testing._rehearsal.crashes import Place
from durable.testing._rehearsal.replaying import Replaying, ReplayNow
from durable.testing._rehearsal.stage import RunKey, Stage
from durable.testing._rehearsal.thunks import contents
from durable.testing._rehearsal.transactions import RehearsedTransaction
from durable.testing._rehearsal.watches import Watch

T = TypeVar("T")

_THREADS: Final = 4
_ANOTHER_THUNK: Final = (
    "under always_replay, its thunk is another one than before, and what that returns would be dropped"
)


class RehearsedRun:
    """Stands between one execution and its store: a `RunStore` of its own.

    The lease that the execution sees has no end on the clock that jumps; the real one is looked at with real time.
    """

    def __init__(self, stage: Stage, plan: Plan, replaying: Replaying | None) -> None:
        self._stage = stage
        self._store = stage.store
        self._run_id = plan.claim.run_id
        self._outer = [watch for run in plan.outer if (watch := stage.find_watch((run.identity, run.id))) is not None]
        self._replaying = replaying
        self._seen: dict[str, object] = {}
        self._names: dict[str, str] = {}
        self._real = SystemClock()
        self._granted: Lease | None = None
        self._lease: Lease | None = None
        self._dead: DurableError | None = None
        self._keeps_lease = False
        self._opened = False
        self._last: str | None = None
        self.execution: LiveExecution | None = None
        self.watch = Watch(stage.clock, self._describe, self._on_wait)
        self.plan = plan.with_store(self, self.watch)
        self.aio = ThreadPoolFacade(self, _THREADS)

    # -- what its driver says ---------------------------------------------------------------------------------------

    def on_call(self, execution: LiveExecution, call: Call, body: Body) -> bool:
        """A step is called. Whether it is a fresh one, that is to say one that has no record."""
        self._last = self._names[call.key] = call.name
        self.watch.branched |= call.concurrent
        fresh = execution.journal.record_of(call.key) is None
        if (replaying := self._replaying) is not None and call.refusal is None:
            if not call.fingerprint and self._seen.setdefault(call.key, thunk := contents(body.fn)) != thunk:
                self._drift(execution, call.key, _ANOTHER_THUNK)
            is_next = fresh and not call.concurrent
            if is_next and (skipped := replaying.skipped(execution)) and not replaying.has_branched(execution):
                what = f"{skipped} came before it when the workflow was executed the last time"
                self._drift(execution, call.key, what)
        return fresh

    def scripted(self, call: Call, body: Body) -> Body:
        """What is called when the body would be."""
        if isinstance(body.kind, Sleep | Listen | StartChild | AwaitChild):  # whose bodies are the library's own
            return body
        script = self._stage.find_script(call.key, call.name)
        return body if script is None else structs.replace(body, fn=script.in_place_of(body.fn))

    def on_body(self, execution: LiveExecution, call: Call) -> None:
        """A body is about to be called."""
        self._look_at_lease()
        self.pass_by(execution, "before body", call)
        self._stage.bodies.append(call.key)

    def pass_by(self, execution: LiveExecution, place: Place, call: Call) -> None:
        """The run comes by this place, or dies there."""
        if (error := self._fire(place, call.key)) is not None:
            raise Unwind(execution.abort(error).error)

    def on_settled(self, execution: LiveExecution, call: Call) -> None:
        """A step has been recorded, if it has: a place to die, and to begin again."""
        if execution.error is not None or execution.journal.record_of(call.key) is None:
            return
        self.pass_by(execution, "acknowledged", call)
        if (replaying := self._replaying) is None:
            return
        replaying.recorded.append(call.key)
        if execution.is_idle:
            if replaying.skips_for_good(execution):
                what = f"{replaying.skipped(execution)} came before it, and no execution comes by there any more"
                self._drift(execution, call.key, what)
            raise Unwind(execution.abort(ReplayNow()).error)

    def on_cancel(self, reason: str | None, *, force: bool) -> None:
        """The run was cancelled: it need not wait to hear so."""
        if self._lease is not None:
            self._lease.cancelled |= force
            self._lease.ask(reason)

    # -- what its execution asks of the store -----------------------------------------------------------------------

    def perform(self, request: Request[T], on_late_reply: OnLateReply | None = None) -> T:
        return self._answer(request, on_late_reply)  # type: ignore[arg-type, no-any-return]

    def _answer(self, request: AnyRequest, on_late_reply: OnLateReply | None) -> Any:
        match request:
            case Checkpoint(lease=_, record=record):
                return self._checkpoint(record, on_late_reply)
            case Begin(claim=claim, alive=alive):
                return self._begin(claim, alive)
            case Finish():
                return self._finish(request)
            case Release():
                return self._release(request)
            case Continue():
                return self._continue(request)
            case BeginChild():
                return self._begin_child(request)
            case Receive(lease=_, names=names, taken=taken):
                return self._receive(names, taken)
            case other:
                return self._stage.perform(other)

    def _begin(self, claim: Claim, alive: Callable[[], bool]) -> ClaimReply:
        self._open()
        with self.watch.at_work():
            reply = self._store.perform(Begin(claim, lambda: self._dead is None and alive()))
        return self._on_grant(reply) if isinstance(reply, Granted) else reply

    def adopt(self, granted: Granted) -> Granted:
        """What the execution gets of a lease that was granted to the worker which holds the run."""
        self._open()
        shown = self._on_grant(granted)
        self.plan.claim.taken[:] = [shown.lease]
        return shown

    def _on_grant(self, reply: Granted) -> Granted:
        real = self._granted = reply.lease
        self._lease = Lease(real.run_id, real.token, real.epoch, real.seconds, math.inf, real.row)
        self._stage.register(self._key, self)
        records = reply.records
        if (replaying := self._replaying) is not None:
            records = [replaying.as_history(record, self._run_id) for record in records]
        return Granted(self._lease, reply.header, records, reply.taken_from, reply.problem)

    def _checkpoint(self, record: Record, on_late_reply: OnLateReply | None) -> None:
        with self.watch.at_work():
            self._store.perform(Checkpoint(self._held_lease(), record), on_late_reply)
        self._on_commit(record)

    def _begin_child(self, request: BeginChild) -> Begun:
        with self.watch.at_work():
            return self._store.perform(structs.replace(request, lease=self._held_lease()))

    def _on_commit(self, record: Record) -> None:
        """The record of a step is committed, and the run has not heard so: a place to die."""
        if record.kind == Kind.STEP and (error := self._fire("checkpoint sent", record.key)) is not None:
            raise error

    def _finish(self, finish: Finish) -> None:
        if (error := self._fire("before finish", None)) is not None:
            raise error
        replaying = self._replaying
        if replaying is not None and self.execution is not None and (skipped := replaying.skipped(self.execution)):
            last = replaying.recorded[-1]
            what = "this step" if skipped == repr(last) else skipped
            raise WorkflowDrift(self._run_id, last, f"the workflow ended without coming by {what}")
        with self.watch.at_work():
            self._store.perform(Finish(self._held_lease(), finish.status, finish.record, finish.due_in))
        self._close()
        if (error := self._fire("after finish", None)) is not None:
            raise error

    def _release(self, release: Release) -> bool:
        """A run that has died releases nothing; a lease that it does not keep is as good as taken over."""
        granted, self._granted, answer = self._granted, None, False
        if granted is not None and self._dead is not None and self._keeps_lease:
            granted.is_left = True
        elif granted is not None:
            died = self._dead is not None
            with self.watch.at_work():
                answer = self._store.perform(Release(granted) if died else structs.replace(release, lease=granted))
        self._close()
        return answer

    def _continue(self, request: Continue) -> None:
        with self.watch.at_work():
            self._store.perform(structs.replace(request, lease=self._held_lease()))
        self._seen.clear()  # with another input its thunks may be others

    def _receive(self, names: Sequence[str], taken: Sequence[int]) -> tuple[int, str, str] | None:
        self._last = " or ".join(names)
        with self.watch.at_work(progress=False):
            return self._store.perform(Receive(self._held_lease(), names, taken))

    def transaction(self, lease: Lease, name: str, isolation: Isolation) -> Transaction:  # noqa: ARG002
        transaction = self._store.transaction(self._held_lease(), name, isolation)
        return cast(Transaction, RehearsedTransaction(transaction, self.watch, self._on_commit))

    def load(self, id: str) -> Snapshot | None:
        return self._store.load(id)

    def replace(self, run_id: str, old: Snapshot, new: Snapshot) -> bool:
        return self._store.replace(run_id, old, new)

    @property
    def identity(self) -> object:
        return self._store.identity

    @property
    def _key(self) -> RunKey:
        return self.identity, self._run_id

    def close(self) -> None:
        """The execution is over."""
        if self._lease is not None and self._granted is not None:
            self._granted.is_left |= self._lease.is_left
        self._close()
        self.aio.shut_down(wait=False)

    # -- what is behind that ----------------------------------------------------------------------------------------

    def _held_lease(self) -> Lease:
        if self._dead is not None or self._granted is None:
            raise self._dead or DurableError("the run has no lease")
        return self._granted

    def _open(self) -> None:
        if not self._opened:
            self._opened = True
            self.watch.begin()
            for outer in self._outer:
                outer.lend()

    def _close(self) -> None:
        if self._opened:
            self._opened = False
            self._stage.unregister(self._key, self)
            for outer in self._outer:
                outer.lend(back=True)
            self.watch.end()

    def _fire(self, place: Place, key: str | None) -> DurableError | None:
        """The death that the run has found, here or before."""
        if self._dead is None:
            names = () if key is None else (key, self._names.get(key, key))
            crash = self._stage.find_crash(place, names)
            if crash is not None:
                self._keeps_lease = crash.keeps_lease
                self._dead = crash.fire(self._run_id)
        return self._dead

    def _on_wait(self, seconds: float) -> None:
        self._look_at_lease()
        if seconds > 0 and self._last is not None and (error := self._fire("waiting", self._last)) is not None:
            raise Unwind(error)

    def _look_at_lease(self) -> None:
        """Show the execution what has become of the real lease."""
        if self._lease is not None and self._granted is not None:
            self._lease.lost = self._granted.why_ended(self._real.elapsed())
            self._lease.cancelled |= self._granted.cancelled
            if self._granted.asked:
                self._lease.ask(self._granted.reason)

    def _describe(self) -> str:
        at = "" if self._last is None else f" in step {self._last!r}"
        return f"run {self._run_id!r} waits{at}"

    def _drift(self, execution: LiveExecution, key: str, difference: str) -> NoReturn:
        raise Unwind(execution.abort(WorkflowDrift(self._run_id, key, difference)).error)
