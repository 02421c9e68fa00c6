"""What both drivers of the engine share: whatever neither blocks nor awaits."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from threading import Event
from typing import Any, Final, TypeVar, cast
from weakref import WeakSet, ref

from durable._common.boundary import calls_out
from durable._common.checks import check_name
from durable._common.durations import show
from durable._common.reports import say
from durable._engine.calls import Call
from durable._engine.causes import InFlight, in_flight, joined, origin_keys, tag_origin
from durable._engine.decisions import (
    Abort,
    Acknowledged,
    Asked,
    Attempt,
    CalledOff,
    Raised,
    Reading,
    Rejected,
    Returned,
    Silent,
    StepOutcome,
    TurnCome,
    Undone,
    Unstorable,
    Wait,
)
from durable._engine.leases import MAX_WAIT
from durable._engine.step_kinds import Listen, Race, StartChild, Transact
from durable._engine.steps import LiveExecution
from durable._runtime.at_end import ClosingBodies
from durable._runtime.awaitables import explain_early_call, is_awaitable, vain_awaitable_error
from durable._runtime.bodies import NO_ITEM, Body
from durable._runtime.context import Running, current_frame, enter, leave
from durable._runtime.drawing import DrawingDriver
from durable._runtime.payloads import read_signal, read_winner
from durable._runtime.stack import require_stack
from durable._runtime.step_options import DEFAULTS, StepOptions
from durable._runtime.timeouts import NotBegun, call_within
from durable.clocks import Clock
from durable.codecs import Codec, advice_after_body
from durable.codecs._failures import from_record, to_record, traceback_of
from durable.errors import (
    DurableError,
    InvalidArgument,
    NestedStep,
    StepTimeout,
    TransactionMisused,
    UnreadableRecord,
    UnstorableValue,
)
from durable.records import ErrorRecord, Record, StepRecord
from durable.stores.protocol import CommitRefused, RolledBack, RunStore, Transaction
from durable.stores.requests import OnLateReply

T = TypeVar("T")

_log = logging.getLogger("durable")

ASKED: Final = Asked()
CALLED_OFF: Final = CalledOff()
TURN_COME: Final = TurnCome()
ACKNOWLEDGED: Final = Acknowledged()
SILENT: Final = Silent()
_NEVER: Final = datetime.min.replace(tzinfo=UTC)
UNREAD: Final = Reading(_NEVER, 0.0)
_TIMELESS: Final = frozenset[type[StepOutcome]]({Returned, Acknowledged})  # where no listener asks when they came


class Driver(DrawingDriver):
    """Calls the steps of one execution; the `context.Driver` of its frames."""

    def __init__(
        self,
        execution: LiveExecution,
        store: RunStore,
        codec: Codec,
        clock: Clock,
        runs: tuple[Running, ...],
        defaults: StepOptions = DEFAULTS,
        cancel: Event | None = None,
    ) -> None:
        self.clock = clock
        #: The JSON of an input of the workflow; see `Plan.encode_input`.
        self.encode_input: Callable[[Any], bytes] = partial(codec.encode, what="the input")
        self._execution = execution
        self._store = store
        self._codec = codec
        self._check_promise: Callable[..., None] | None = getattr(codec, "check_promise", None)
        # The name and the annotation that were checked last: in a loop they are the same objects.
        self._promised: object = None
        self._checked: object = self  # no name yet: None may be the first that is given
        self._runs = runs
        self.defaults = defaults
        self._cancel = cancel
        self._before = sys.exception()  # what the caller of `run` is handling has nothing to do with the workflow
        self._open: dict[Call, tuple[Transaction, Attempt]] = {}
        self._has_raced = False  # whether a frame may say in which race it is
        self._closing_bodies = ClosingBodies(execution, codec)
        # The threads or tasks, beside the workflow's own, that have called steps.
        self._branches: WeakSet[Any] = WeakSet()
        this = ref(self)  # weakly: a driver and its execution must not keep one another
        execution.is_alone = lambda: (driver := this()) is None or driver.is_alone()
        self._timeless = _TIMELESS if execution.emit is None else frozenset[type[StepOutcome]]()

    @property
    def codec(self) -> Codec:
        """The codec of the store."""
        return self._codec

    def name_child(self, key: str) -> tuple[str, tuple[str, str]]:
        """The id of the child that the step of this key starts, and its parent; see `NewRun`."""
        return self._execution.name_child(key)

    def is_alone(self) -> bool:
        """Whether nothing of the workflow is at work but the calling thread or task, which is about to wait."""
        raise NotImplementedError

    def _warn_still_running(self) -> None:
        keys = ", ".join(call.key for call in self._execution.running)
        message = "run %r has ended but for its running steps, and waits for them: %s"
        say(_log, logging.WARNING, message, self._execution.run_id, keys)

    def _fingerprint(self, name: str, key: str | None, body: Body) -> str:
        """Check the call, and return the fingerprint of its arguments."""
        require_stack()
        fn, args, kwargs = body.fn, body.args, body.kwargs
        frame = current_frame.get()
        if frame is not None and frame.problem and frame.driver is self:
            raise NestedStep(name, str(frame.inside), "" if frame.problem is NO_ITEM else frame.problem)
        if name is not self._checked:
            self._checked = check_name("a step's name", name)
        if key is not None:
            check_name("a step's key", key)
        if not callable(cast(object, fn)):
            raise InvalidArgument(f"step {name!r}: {explain_early_call(fn)}")
        if body.annotation is not None and body.annotation is not self._promised and self._check_promise is not None:
            self._check_promise(body.annotation, what=f"the result of step {name!r}")
            self._promised = body.annotation
        if kwargs:  # charge(order) and charge(order=order) are the same call
            bound = inspect.signature(fn).bind(*args, **kwargs)
            args, kwargs = bound.args, bound.kwargs
        if not (args or kwargs):
            return ""
        arguments = [*args, kwargs] if kwargs else list(args)
        return self._codec.fingerprint(arguments, what=f"an argument of step {name!r}")

    def _draw(
        self, name: str, key: str | None, body: Body, fingerprint: str, branch: object, amid: InFlight | None
    ) -> Call:
        options, exception = body.options, sys.exception()
        if amid is None and exception is not None:
            amid = self._in_flight(exception)
        call = Call(key or name, name, fingerprint, key is None, body.kind, options.at_most_once, options.cleanup)
        frame = current_frame.get()
        if body.scope or (frame is not None and (frame.scope or self._has_raced)):  # almost never
            frame = self._frame_here()
            call.scope = body.scope if body.scope is not None else "" if frame is None else frame.scope
            call.key = check_name("a step's key", call.scope + call.key)
            call.race = None if frame is None else frame.race
            if frame is not None and frame.scope:
                call.within = frame.inside
                if frame.amid is not None:
                    amid = joined(frame.amid, amid)
        if (at_end := body.at_end) is not None:
            call.at_end = at_end.word
        drawn = self._execution.draw(call, branch, amid)
        if at_end is not None:
            self._closing_bodies.note(drawn.key, at_end)
        if drawn.concurrent:
            self._branches.add(branch)
        return drawn

    def _in_flight(self, exception: BaseException | None) -> InFlight | None:
        """What is in flight while this exception is handled, if it was raised since the workflow was entered."""
        if exception is None or exception is self._before:
            return None
        return in_flight(
            exception,
            self._outer_exception(exception),
            self._execution.lease.token,
            self._branch(),
            cancellation=asyncio.CancelledError,
            is_cancelled=self._is_cancelled,
        )

    def _outer_exception(self, exception: BaseException) -> BaseException | None:
        """The link of this exception's chain that the caller of the workflow, or of its event loop, is handling."""
        raise NotImplementedError

    def _is_cancelled(self) -> bool:
        """Whether the calling task has been asked to end."""
        raise NotImplementedError

    def _next_rest(self, call: Call, recorded: object) -> Wait | None:
        """The next wait of a sleep; None at its end.

        A sleep of some seconds records two moments; one until a moment records that.
        """
        try:
            match recorded:
                case [str(began), str(until)]:
                    rest = self._execution.rest(
                        call, datetime.fromisoformat(began), datetime.fromisoformat(until), self._reading()
                    )
                case _:
                    rest = self._execution.rest(call, None, datetime.fromisoformat(str(recorded)), self._reading())
        except (TypeError, ValueError):  # a naive moment, or none at all
            where = f"the record of step {call.key!r}"
            problem = f"{show(recorded)} is no moment to sleep until"
            raise UnreadableRecord(self._execution.run_id, where, problem) from None
        if isinstance(rest, Abort):
            raise self.exit_error(rest.error)
        return rest

    def _open_transaction(self, call: Call, attempt: Attempt, body: Body) -> Transaction:
        """The transaction for an attempt, not begun yet."""
        assert isinstance(body.kind, Transact), "an attempt in a transaction, of a step without one"  # noqa: S101 -- a bug
        transaction = self._store.transaction(self._execution.lease, call.name, body.kind.isolation)
        self._open[call] = transaction, attempt
        return transaction

    def _perform(self, call: Call, attempt: Attempt, body: Body, transaction: Transaction) -> StepOutcome:
        """The outcome of an attempt in its transaction, which stays open for the record if the body returned. Blocks."""
        returned = False
        try:
            outcome = self._begin_and_call(call, attempt, body, transaction)
            returned = isinstance(outcome, Returned)
            return outcome
        finally:
            if not returned:
                transaction.rollback()
                self._open.pop(call, None)

    def _begin_and_call(self, call: Call, attempt: Attempt, body: Body, transaction: Transaction) -> StepOutcome:
        try:
            while not transaction.begin(MAX_WAIT):
                if self._execution.find_obstacle(self._reading()) is not None:
                    return ASKED
        except RolledBack as undone:
            return self._as_undone(call, undone, attempt, body)
        except DurableError as error:
            return Rejected(error)
        work, timeout = partial(transaction.call, body.fn, body.args), body.options.timeout
        token = enter(self._frame_of(call, attempt, body))
        try:
            value = work() if timeout is None else call_within(timeout, call.name, work)
        except RolledBack as undone:
            return self._as_undone(call, undone, attempt, body)
        except NotBegun as problem:
            return Rejected(problem.error)
        except Exception as exception:
            if isinstance(exception, StepTimeout):
                transaction.abandon()
            return self._as_raised(call, exception, attempt, body)
        finally:
            leave(token)
        if is_awaitable(value):
            return Unstorable(
                vain_awaitable_error(call.name, value, "and a transaction is blocking: give it such a function")
            )
        return self._encode(call, value, body)

    def _commit_transaction(
        self, call: Call, body: Body, record: Record, on_late_reply: OnLateReply | None = None
    ) -> StepOutcome:
        """The outcome of committing an open transaction with this record. Blocks."""
        transaction, attempt = self._open[call]
        try:
            call.stored = transaction.commit(record, on_late_reply) is None  # type: ignore[func-returns-value] # see `_checkpoint`
        except RolledBack as undone:
            outcome: StepOutcome = self._as_undone(call, undone, attempt, body)
        except TransactionMisused as error:
            outcome = self._as_raised(call, error, attempt, body)
        except DurableError as error:
            outcome = Rejected(error)
        except CommitRefused as refused:
            outcome = self._as_raised(call, refused.problem, attempt, body)
        else:
            outcome = ACKNOWLEDGED
        self._open.pop(call, None)  # an interrupt leaves it there, for `_forsake`
        return outcome

    def _as_undone(self, call: Call, undone: RolledBack, attempt: Attempt, body: Body) -> Undone:
        problem = undone.problem
        if isinstance(problem, DurableError):
            return Undone(Rejected(problem))
        return Undone(self._as_raised(call, problem, attempt, body))

    def _forsake(self, call: Call) -> None:
        """The call was left by an exception: abandon its transaction, and leave its body's frame."""
        frame = self._frame_here()
        if frame is not None and frame.inside == call.key:
            current_frame.set(frame.outer)  # the interrupt came between entering and leaving it
        if call in self._open:
            self._open[call][0].abandon()
            self._open.pop(call, None)

    def _encode(self, call: Call, value: Any, body: Body) -> Returned | Unstorable:
        policy = body.options.policy
        try:
            if policy is not None:
                policy.check_result(value, call.attempts, body.fn, body.args, body.kwargs)
            if call.closing is not None:  # its value is never asked for
                value = None
            what = f"the result of step {call.key!r}"
            return Returned(self._codec.encode(value, what=what, annotation=body.annotation), self.clock.elapsed())
        except UnstorableValue as problem:
            problem.advice = advice_after_body(value, problem.advice)
            return Unstorable(problem)
        except InvalidArgument as problem:
            return Unstorable(problem)

    @calls_out
    def _as_raised(self, call: Call, exception: Exception, attempt: Attempt, body: Body) -> Raised | Unstorable:
        retry_in, policy = None, body.options.policy
        if policy is not None:
            seconds = self.clock.elapsed() - attempt.began
            try:
                retry_in = policy.retry_delay(exception, attempt.number, seconds, body.fn, body.args, body.kwargs)
            except InvalidArgument as problem:  # the policy does not say whether this was the last attempt
                return Unstorable(problem)
        is_last = retry_in is None and attempt.number > 1
        note = f"step {call.key!r} failed in {attempt.number} attempts" if is_last else ""
        call.original = exception
        led = origin_keys(exception, self._execution.lease.token) if call.holds else ()
        return Raised(to_record(exception, self._codec, note=note), retry_in, led)

    @calls_out
    def _as_error(self, error: DurableError, cause: ErrorRecord | None) -> Raised:
        if cause is not None:
            error.__cause__ = from_record(
                cause, self._codec, run_id=self._execution.run_id, where="the failure of a child"
            )
        return Raised(to_record(error, self._codec))

    @calls_out
    def _hand_out(self, call: Call, record: StepRecord, body: Body) -> Any:
        where = f"the record of step {call.key!r}"
        if type(body.kind) is StartChild and (record.error is None or record.child):
            return body.call()  # the handle; the outcome is for what waits
        if record.error is None:
            run_id = self._execution.run_id
            if type(body.kind) is Race:
                return read_winner(record.json, body.branches, self._codec, run_id=run_id, where=where)
            if type(body.kind) is Listen:
                return read_signal(record.json, body.kind, call.name, body.annotation, self._codec, run_id=run_id)
            return self._codec.decode(record.json, run_id=run_id, where=where, annotation=body.annotation)
        exception = from_record(record.error, self._codec, run_id=self._execution.run_id, where=where)
        original, call.original = call.original, None
        if original is not None:  # as on a replay, with the live frames for a debugger
            BaseException.with_traceback(exception, traceback_of(original))  # a class may define its own
        raise tag_origin(exception, self._execution.lease.token, call.key)
