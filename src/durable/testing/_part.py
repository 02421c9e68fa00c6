"""One run's part in a rehearsal: the store and the clock that it sees, and the places where it may die."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

from msgspec import structs

from durable._engine.calls import Call
from durable._engine.decisions import Claim, ClaimReply, Granted, Listen, Sleep
from durable._engine.leases import Lease
from durable._engine.steps import Execution
from durable._runtime.bodies import Body
from durable._runtime.plan import Plan
from durable.clocks import SystemClock
from durable.errors import DurableError, Unwind, WorkflowDrift
from durable.records import Kind, Record, Status, StepRecord, parse, render
from durable.snapshots import Snapshot
from durable.stores._facades import ThreadedStore
from durable.stores.protocol import Isolation, Transaction
from durable.stores.requests import AnyRequest, Begin, Checkpoint, Finish, OnLateReply, Receive, Release, Request
from durable.testing._rehearsal.crashes import Place
from durable.testing._rehearsal.thunks import contents
from durable.testing._rehearsal.watches import Watch

if TYPE_CHECKING:
    from durable.testing.rehearsal import LeasedStore, Rehearsal

T = TypeVar("T")

_THREADS: Final = 4
_MOST_STRAYS: Final = 20  # executions in a row that do not come by what was recorded: they never will


class Again(DurableError):
    """A step is recorded: the workflow is executed once more, from its journal."""


class Replays:
    """What `always_replay` knows of the executions that one call of `durable.run` is made of."""

    def __init__(self) -> None:
        self.recorded: list[str] = []
        self.strays = 0


class Part:
    """Stands between one execution and its store: a `RunStore` of its own.

    The lease that the execution sees has no end on the clock that jumps; the real one is looked at with real time.
    """

    def __init__(self, rehearsal: Rehearsal, store: LeasedStore, plan: Plan, replays: Replays | None) -> None:
        self._rehearsal = rehearsal
        self._store = store
        self._run_id = plan.claim.run_id
        self._outer = [watch for run in plan.outer if (watch := rehearsal.watch_of((run.identity, run.id))) is not None]
        self._replays = replays
        self._seen: dict[str, object] = {}
        self._names: dict[str, str] = {}
        self._real = SystemClock()
        self._granted: Lease | None = None
        self._lease: Lease | None = None
        self._dead: DurableError | None = None
        self.execution: Execution | None = None
        self._keeps_lease = False
        self._opened = False
        self._last: str | None = None
        self.watch = Watch(rehearsal.clock, self._described, self._waits)
        self.plan = plan.with_store(self, self.watch)
        self.aio = ThreadedStore(self, _THREADS)

    # -- what the driver asks ---------------------------------------------------------------------------------------

    def asked(self, execution: Execution, call: Call, body: Body) -> bool:
        """A step is called. Whether it is a fresh one, that is to say one that has no record."""
        self._last = self._names[call.key] = call.name
        self.watch.branched |= call.concurrent
        fresh = execution.journal.settled(call.key) is None
        if self._replays is not None and call.refusal is None:
            if not call.fingerprint and self._seen.setdefault(call.key, thunk := contents(body.fn)) != thunk:
                what = (
                    "under always_replay, its thunk is another one than before, and what that returns would be dropped"
                )
                self._stray(execution, call.key, what)
            if (
                fresh
                and not call.concurrent
                and (strays := self._strays(execution))
                and not self._overlapped(execution)
            ):
                self._stray(
                    execution, call.key, f"{strays} came before it when the workflow was executed the last time"
                )
        return fresh

    def cast(self, call: Call, body: Body) -> Body:
        """What is called when the body would be."""
        if isinstance(body.kind, Sleep | Listen):  # whose bodies are the library's own
            return body
        script = self._rehearsal.script_of(call.key, call.name)
        return body if script is None else structs.replace(body, fn=script.in_place_of(body.fn))

    def begins(self, execution: Execution, call: Call) -> None:
        """A body is about to be called."""
        self._look()
        self.passes(execution, "before body", call)
        self._rehearsal.bodies.append(call.key)

    def passes(self, execution: Execution, place: Place, call: Call) -> None:
        """The run comes by this place, or dies there."""
        if (error := self._struck(place, call.key)) is not None:
            raise Unwind(execution.abort(error).error)

    def settled(self, execution: Execution, call: Call) -> None:
        """A step has been recorded, if it has: a place to die, and to begin again."""
        if execution.error is not None or execution.journal.settled(call.key) is None:
            return
        self.passes(execution, "acknowledged", call)
        if self._replays is None:
            return
        self._replays.recorded.append(call.key)
        if execution.idle:
            strays = self._strays(execution)
            self._replays.strays = self._replays.strays + 1 if strays else 0
            if self._replays.strays > _MOST_STRAYS:
                self._stray(execution, call.key, f"{strays} came before it, and no execution comes by there any more")
            raise Unwind(execution.abort(Again()).error)

    # -- what the run asks of its store -----------------------------------------------------------------------------

    def perform(self, request: Request[T], on_late_reply: OnLateReply | None = None) -> T:
        """See `RunStore`."""
        return self._answer(request, on_late_reply)  # type: ignore[arg-type, no-any-return]

    def _answer(self, request: AnyRequest, on_late_reply: OnLateReply | None) -> Any:
        match request:
            case Checkpoint(_, record):
                return self._checkpoint(record, on_late_reply)
            case Begin(claim, alive):
                return self._begin(claim, alive)
            case Finish(_, status, record):
                return self._finish(status, record)
            case Release(_, former_status):
                return self._release(former_status)
            case Receive(_, name, taken):
                return self._receive(name, taken)
            case other:
                return self._rehearsal.perform(other)

    def _begin(self, claim: Claim, alive: Callable[[], bool]) -> ClaimReply:
        self._open()
        with self._asking():
            reply = self._store.perform(Begin(claim, lambda: self._dead is None and alive()))
        if not isinstance(reply, Granted):
            return reply
        real = self._granted = reply.lease
        self._lease = Lease(real.run_id, real.token, real.epoch, real.seconds, math.inf, real.row)
        self._rehearsal.on_stage((self.identity, self._run_id), self)
        records = reply.records if self._replays is None else [self._as_history(record) for record in reply.records]
        return Granted(self._lease, reply.header, records, reply.taken_from, reply.problem)

    def _as_history(self, record: Record) -> Record:
        """A record of the execution that is being replayed, which is still the same one: nothing of it is done anew."""
        assert self._replays is not None
        if record.kind != Kind.STEP or record.key not in self._replays.recorded:
            return record
        step = parse(record.text, StepRecord, run_id=self._run_id, where=record.key)
        if not step.cleanup and step.left is None:
            return record
        return record._replace(text=render(structs.replace(step, left=None, cleanup=False)))

    def _checkpoint(self, record: Record, on_late_reply: OnLateReply | None) -> None:
        with self._asking():
            self._store.perform(Checkpoint(self._holding(), record), on_late_reply)
        self.committed(record)

    def _finish(self, status: Status, record: Record) -> None:
        if (error := self._struck("before finish", None)) is not None:
            raise error
        if self._replays is not None and self.execution is not None and (strays := self._strays(self.execution)):
            what = "this step" if strays == repr(self._replays.recorded[-1]) else strays
            raise WorkflowDrift(
                self._run_id, self._replays.recorded[-1], f"the workflow ended without coming by {what}"
            )
        with self._asking():
            self._store.perform(Finish(self._holding(), status, record))
        self._close()
        if (error := self._struck("after finish", None)) is not None:
            raise error

    def _release(self, status: Status | None) -> None:
        """A run that has died releases nothing; a lease that it does not keep is as good as taken over."""
        granted, self._granted = self._granted, None
        if granted is not None and not (self._dead is not None and self._keeps_lease):
            with self._asking():
                self._store.perform(Release(granted, None if self._dead is not None else status))
        self._close()

    def _receive(self, name: str, taken: Sequence[int]) -> tuple[int, str] | None:
        self._last = name
        with self.watch.at_work(progress=False):
            return self._store.perform(Receive(self._holding(), name, taken))

    def transaction(self, lease: Lease, name: str, isolation: Isolation) -> Transaction:  # noqa: ARG002
        """See `RunStore`."""
        return _Staged(self._store.transaction(self._holding(), name, isolation), self)

    def committed(self, record: Record) -> None:
        """The record of a step is committed, and nobody has been told: a place to die."""
        if record.kind == Kind.STEP and (error := self._struck("checkpoint sent", record.key)) is not None:
            raise error

    def load(self, id: str) -> Snapshot | None:
        """See `RunStore`."""
        return self._store.load(id)

    def replace(self, run_id: str, old: Snapshot, new: Snapshot) -> bool:
        """See `RunStore`."""
        return self._store.replace(run_id, old, new)

    @property
    def identity(self) -> object:
        """See `RunStore`."""
        return self._store.identity

    def close(self) -> None:
        """The execution is over."""
        self._close()
        self.aio.shut_down(wait=False)

    def cancelled(self) -> None:
        """Somebody has cancelled the run: it need not wait to hear so."""
        if self._lease is not None:
            self._lease.cancelled = True

    # -- what is behind that ----------------------------------------------------------------------------------------

    def _holding(self) -> Lease:
        if self._dead is not None or self._granted is None:
            raise self._dead or DurableError("the run has no lease")
        return self._granted

    @contextmanager
    def _asking(self) -> Iterator[None]:
        with self.watch.at_work():
            yield

    def _open(self) -> None:
        if not self._opened:
            self._opened = True
            self.watch.begin()
            for outer in self._outer:
                outer.lend()

    def _close(self) -> None:
        if self._opened:
            self._opened = False
            self._rehearsal.off_stage((self.identity, self._run_id), self)
            for outer in self._outer:
                outer.lend(back=True)
            self.watch.end()

    def _struck(self, place: Place, key: str | None) -> DurableError | None:
        """The death that the run has found, here or before."""
        if self._dead is None:
            names = () if key is None else (key, self._names.get(key, key))
            crash = self._rehearsal.crash_of(place, names)
            if crash is not None:
                self._keeps_lease = crash.keeps_lease
                self._dead = crash.fire(self._run_id)
        return self._dead

    def _waits(self, seconds: float) -> None:
        self._look()
        if seconds > 0 and self._last is not None and (error := self._struck("waiting", self._last)) is not None:
            raise Unwind(error)

    def _look(self) -> None:
        """Show the execution what has become of the real lease."""
        if self._lease is not None and self._granted is not None:
            self._lease.lost = self._granted.ended(self._real.elapsed())
            self._lease.cancelled |= self._granted.cancelled

    def _described(self) -> str:
        at = "" if self._last is None else f" in step {self._last!r}"
        return f"run {self._run_id!r} waits{at}"

    def _strays(self, execution: Execution) -> str:
        """What earlier executions of this very call have recorded, and this one has not asked for."""
        assert self._replays is not None
        unused = set(execution.journal.unused())
        return ", ".join(repr(key) for key in self._replays.recorded if key in unused)

    def _overlapped(self, execution: Execution) -> bool:
        """Whether what was recorded came from several branches: then one of them may only be late."""
        assert self._replays is not None
        records = [execution.journal.settled(key) for key in self._replays.recorded]
        return any(record is not None and (record.concurrent or record.unordered) for record in records)

    def _stray(self, execution: Execution, key: str, difference: str) -> Any:
        raise Unwind(execution.abort(WorkflowDrift(self._run_id, key, difference)).error)


class _Staged:
    """A transaction of the store, with the place to die that a checkpoint has."""

    def __init__(self, transaction: Transaction, part: Part) -> None:
        self._transaction = transaction
        self._part = part

    def begin(self, seconds: float) -> bool:
        """See `Transaction`."""
        return self._transaction.begin(seconds)

    def call(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """See `Transaction`."""
        return self._transaction.call(fn, args)

    def commit(self, record: Record, late: OnLateReply | None = None) -> None:
        """See `Transaction`."""
        with self._part.watch.at_work():
            self._transaction.commit(record, late)
        self._part.committed(record)

    def rollback(self) -> None:
        """See `Transaction`."""
        self._transaction.rollback()

    def abandon(self) -> None:
        """See `Transaction`."""
        self._transaction.abandon()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """See `Transaction`."""
        return self._transaction.submit(work)
