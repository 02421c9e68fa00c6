"""What both drivers of the engine share: whatever neither blocks nor awaits."""

from __future__ import annotations

import asyncio
import copy
import inspect
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from threading import Event
from typing import Any, Final, NoReturn, TypeVar, cast
from weakref import WeakSet, ref

from durable._common.boundary import calls_out
from durable._common.checks import check_flag, check_name
from durable._common.durations import show
from durable._common.reports import say
from durable._engine.calls import Call
from durable._engine.causes import InFlight, in_flight, tag_origin
from durable._engine.decisions import (
    Abort,
    Acknowledged,
    Asked,
    Attempt,
    Leave,
    Raise,
    Raised,
    Reading,
    Rejected,
    Returned,
    Silent,
    StepOutcome,
    Undone,
    Unstorable,
    Wait,
)
from durable._engine.leases import MAX_WAIT
from durable._engine.step_kinds import Listen, Transact
from durable._engine.steps import LiveExecution
from durable._runtime.at_end import AtEnds
from durable._runtime.awaitables import explain_early_call, is_awaitable, vain_awaitable_error
from durable._runtime.bodies import Body
from durable._runtime.context import Frame, Running, current_frame, enter, leave
from durable._runtime.definitions import StepDefinition
from durable._runtime.payloads import read_signal
from durable._runtime.stack import require_stack
from durable._runtime.step_options import DEFAULTS, StepOptions
from durable._runtime.timeouts import NotBegun, call_within
from durable._runtime.values import ValueKind
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
    Unwind,
)
from durable.records import Record, StepRecord
from durable.stores.protocol import CommitRefused, RolledBack, RunStore, Transaction
from durable.stores.requests import OnLateReply

T = TypeVar("T")

_log = logging.getLogger("durable")

ASKED: Final = Asked()
ACKNOWLEDGED: Final = Acknowledged()
SILENT: Final = Silent()
_NEVER: Final = datetime.min.replace(tzinfo=UTC)
UNREAD: Final = Reading(_NEVER, 0.0)
_TIMELESS: Final = frozenset[type[StepOutcome]]({Returned, Acknowledged})  # where no listener asks when they came


class Driver:
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
        self._at_ends = AtEnds(execution, codec)
        # The threads or tasks, beside the workflow's own, that have called steps.
        self._branches: WeakSet[Any] = WeakSet()
        this = ref(self)  # weakly: a driver and its execution must not keep one another
        execution.is_alone = lambda: (driver := this()) is None or driver.is_alone()
        self._timeless = _TIMELESS if execution.emit is None else frozenset[type[StepOutcome]]()

    @property
    def run_id(self) -> str:
        return self._execution.run_id

    @property
    def epoch(self) -> int:
        return self._execution.lease.epoch

    @property
    def is_replaying(self) -> bool:
        return self._execution.journal.is_replaying

    def frame(self, inside: str | None = None, attempt: int = 0) -> Frame:
        """The frame of the workflow function, or of an attempt of the body of the step `inside`."""
        return Frame(self, inside, self._runs, attempt)

    def is_alone(self) -> bool:
        """Whether nothing of the workflow is at work but the calling thread or task, which is about to wait."""
        raise NotImplementedError

    def continue_with(self, value: Any, *, keep_history: bool) -> NoReturn:
        """Leave the workflow, which begins anew with this input."""
        frame = current_frame.get()
        if frame is not None and frame.driver is self and frame.inside is not None:
            raise NestedStep("continue_with", frame.inside)
        check_flag("keep_history", keep_history)
        text = self.encode_input(value)
        raise self._ending(self._continue(text, keep_history))

    def _continue(self, text: bytes, keep_history: bool) -> Raise | Abort:
        return self._execution.continue_with(text, self._reading(), keep_history=keep_history)

    def call_decorated(self, definition: StepDefinition, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        raise NotImplementedError

    def exit_error(self, error: DurableError) -> BaseException:
        """What a call raises where the run must not go on: `Unwind`, or the error itself once the workflow has ended."""
        return copy.copy(error) if self._execution.is_over else Unwind(error)

    def _warn_still_running(self) -> None:
        keys = ", ".join(call.key for call in self._execution.running)
        message = "run %r has ended but for its running steps, and waits for them: %s"
        say(_log, logging.WARNING, message, self._execution.run_id, keys)

    def _reading(self) -> Reading:
        cancelled = self._cancel is not None and self._cancel.is_set()
        return Reading(self.clock.now(), self.clock.elapsed(), cancelled)

    def _fingerprint(self, name: str, key: str | None, body: Body) -> str:
        """Check the call, and return the fingerprint of its arguments."""
        require_stack()
        fn, args, kwargs = body.fn, body.args, body.kwargs
        frame = current_frame.get()
        if frame is not None and frame.driver is self and frame.inside is not None:
            raise NestedStep(name, frame.inside)
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

    def draw_value(self, kind: ValueKind[T], key: str | None) -> T:
        """A value that the workflow draws, and each replay of it again."""
        frame = current_frame.get()
        if frame is not None and frame.driver is self and frame.inside is not None:
            raise InvalidArgument(
                f"step.{kind.name}() is for the workflow, and this is the body of step {frame.inside!r}, which is called once "
                f"and remembered as a whole: ask Python there, or draw the value before and hand it in"
            )
        if key is not None:
            check_name(f"the key of step.{kind.name}()", key)
        value = self._execution.draw_value(kind.name, key, kind.make(self._moment()), self._branch())
        if isinstance(value, Abort):
            raise self.exit_error(value.error)
        try:
            return kind.read(value)
        except (TypeError, ValueError):
            where, problem = f"what step.{kind.name}() has drawn", f"{show(value)} is none"
            raise UnreadableRecord(self.run_id, where, problem) from None

    def _moment(self) -> datetime:
        """Now, where a value is drawn."""
        return self.clock.now()

    def _draw(
        self, name: str, key: str | None, body: Body, fingerprint: str, branch: object, amid: InFlight | None
    ) -> Call:
        options, exception = body.options, sys.exception()
        if amid is None and exception is not None:
            amid = self._in_flight(exception)
        call = Call(key or name, name, fingerprint, key is None, body.kind, options.at_most_once, options.cleanup)
        if (at_end := body.at_end) is not None:
            call.at_end = at_end.word
        drawn = self._execution.draw(call, branch, amid)
        if at_end is not None:
            self._at_ends.note(drawn.key, at_end)
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

    def _branch(self) -> object:
        """The calling thread or task."""
        raise NotImplementedError

    def _is_cancelled(self) -> bool:
        """Whether the calling task has been asked to end."""
        raise NotImplementedError

    def _ending(self, stop: Raise | Abort | Leave) -> BaseException:
        """What a call raises that goes no further."""
        match stop:
            case Raise(error=error):
                return error
            case Abort(error=error):
                return self.exit_error(error)
            case Leave(interruption=interruption):
                return interruption

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
        token = enter(self.frame(call.key, attempt.number))
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
        frame = current_frame.get()
        if frame is not None and frame.driver is self and frame.inside is not None:
            current_frame.set(self.frame())  # the interrupt came between entering and leaving it
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
        return Raised(to_record(exception, self._codec, note=note), retry_in)

    @calls_out
    def _hand_out(self, call: Call, record: StepRecord, body: Body) -> Any:
        where = f"the record of step {call.key!r}"
        if record.error is None:
            run_id = self._execution.run_id
            if type(body.kind) is Listen:
                return read_signal(record.json, body.kind, call.name, body.annotation, self._codec, run_id=run_id)
            return self._codec.decode(record.json, run_id=run_id, where=where, annotation=body.annotation)
        exception = from_record(record.error, self._codec, run_id=self._execution.run_id, where=where)
        original, call.original = call.original, None
        if original is not None:  # as on a replay, with the live frames for a debugger
            BaseException.with_traceback(exception, traceback_of(original))  # a class may define its own
        raise tag_origin(exception, self._execution.lease.token, call.key)
