"""What the two drivers of the engine have in common: everything that neither blocks nor awaits."""

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
from typing import Any, Final, cast, get_args

from msgspec import Struct

from durable._common.boundary import calls_out
from durable._common.durations import MAX_SECONDS, Duration, checked_duration, in_utc, later, shown
from durable._common.reports import report, say, tell_aside
from durable._engine.calls import Call
from durable._engine.causes import InFlight, in_flight, marked
from durable._engine.decisions import (
    Abort,
    Acknowledged,
    Asked,
    Attempt,
    Isolation,
    Listen,
    Plain,
    Raised,
    Reading,
    Rejected,
    Returned,
    Silent,
    Sleep,
    StepKind,
    StepOutcome,
    Transact,
    Undone,
    Unstorable,
    Wait,
)
from durable._engine.leases import LONGEST_WAIT
from durable._engine.steps import Execution
from durable._runtime.bodies import NotBegun, awaitable_in_vain, called_too_early, called_within, can_be_awaited
from durable._runtime.decorator import Frame, Options, Running, current_frame, enter, leave, options_of
from durable._runtime.options import PLAIN, Terms, checked_timeout
from durable._runtime.stack import require_stack
from durable.clocks import Clock
from durable.codecs import Codec, advice_after_body, return_annotation
from durable.codecs._failures import from_record, to_record, traceback_of
from durable.errors import (
    AsyncMismatch,
    DurableError,
    InvalidArgument,
    NestedStep,
    SignalTimedOut,
    StepTimeout,
    TransactionMisused,
    UnreadableRecord,
    UnstorableValue,
    Unwind,
)
from durable.records import Record, StepRecord, checked_name
from durable.stores.protocol import CommitRefused, Late, RolledBack, RunStore, Transaction

_log = logging.getLogger("durable")

ASKED: Final = Asked()
ACKNOWLEDGED: Final = Acknowledged()
SILENT: Final = Silent()
_NEVER: Final = datetime.min.replace(tzinfo=UTC)
UNREAD: Final = Reading(_NEVER, 0.0)
_TIMELESS: Final = frozenset[type[StepOutcome]]({Returned, Acknowledged})  # where no listener asks when they came


class Body(Struct, frozen=True):
    """What a step calls, and on which terms.

    Its value is written and read by its `annotation`. A step that transacts gives its body the connection as first argument.
    What a sleep's body returns is the moment until which the workflow then sleeps, or the two between which it does.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    terms: Terms
    annotation: Any = None
    kind: StepKind = Plain()

    @calls_out
    def call(self) -> Any:
        """What the body returns."""
        return self.fn(*self.args, **self.kwargs)


class Driver:
    """See the module."""

    def __init__(
        self,
        execution: Execution,
        store: RunStore,
        codec: Codec,
        clock: Clock,
        runs: tuple[Running, ...],
        terms: Terms = PLAIN,
        cancel: Event | None = None,
    ) -> None:
        self._execution = execution
        self._store = store
        self._codec = codec
        self._check_promise: Callable[..., None] | None = getattr(codec, "check_promise", None)
        # What was looked at last, and is sound: in a loop it is the same object.
        self._promised: object = None
        self._checked: object = self  # no name yet: None may be the first that is given
        self._clock = clock
        self._runs = runs
        self._terms = terms
        self._cancel = cancel
        self._before = sys.exception()  # what the caller of `run` is handling has nothing to do with the workflow
        self._open: dict[Call, tuple[Transaction, Attempt]] = {}
        self._timeless = _TIMELESS if execution.tell is None else frozenset[type[StepOutcome]]()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of run {self._execution.run_id!r}>"

    def frame(self, inside: str | None = None) -> Frame:
        """The frame of the workflow function, or of the body of the step `inside`."""
        return Frame(self, inside, self._runs)

    def call_decorated(self, options: Options, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `_decorator.Driver`."""
        raise NotImplementedError

    def leaving(self, error: DurableError) -> BaseException:
        """What a call raises where the run must not go on: an ordinary error once there is no workflow to be left."""
        return copy.copy(error) if self._execution.over else Unwind(error)

    def look(self) -> None:
        """Say which bodies have been silent for too long; called by the heartbeat's thread."""
        for event in self._execution.stalled(Reading(self._clock.now(), self._clock.elapsed())):
            message = "run %r: step %r has been running for %.0f s"
            report(_log, logging.WARNING, message, event.run_id, event.key, event.seconds)
            if (tell := self._execution.tell) is not None:  # a listener that takes its time must not cost a lease
                tell_aside(tell, event)

    def _still_running(self) -> None:
        keys = ", ".join(self._execution.keys_running)
        message = "run %r has ended but for its running steps, and waits for them: %s"
        say(_log, logging.WARNING, message, self._execution.run_id, keys)

    def _reading(self) -> Reading:
        cancelled = self._cancel is not None and self._cancel.is_set()
        return Reading(self._clock.now(), self._clock.elapsed(), cancelled)

    def _body(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], terms: Terms) -> Body:
        terms = self._terms if terms is PLAIN else terms.over(self._terms)
        return Body(fn, args, kwargs, terms, return_annotation(fn))

    def _plain_body(self, fn: Callable[..., Any], args: tuple[Any, ...], terms: Terms) -> Body:
        """The body of a call by name, which does not make a step of a decorated function again."""
        options = options_of(fn)
        if options is None:
            return self._body(fn, args, {}, terms)
        options, args = options.of(args)
        return self._body(options.fn, args, {}, terms.over(options.terms))

    def _fingerprint(self, name: str, key: str | None, body: Body) -> str:
        """The fingerprint of a call's arguments, once the call itself has been found sound."""
        require_stack()
        fn, args, kwargs = body.fn, body.args, body.kwargs
        frame = current_frame.get()
        if frame is not None and frame.driver is self and frame.inside is not None:
            raise NestedStep(name, frame.inside)
        if name is not self._checked:
            self._checked = checked_name("a step's name", name)
        if key is not None:
            checked_name("a step's key", key)
        if not callable(cast(object, fn)):
            raise InvalidArgument(f"step {name!r}: {called_too_early(fn)}")
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
        terms, exception = body.terms, sys.exception()
        if amid is None and exception is not None:
            amid = self._in_flight(exception)
        return self._execution.call(
            name, key, fingerprint, branch, amid, body.kind, at_most_once=terms.at_most_once, cleanup=terms.cleanup
        )

    def _in_flight(self, exception: BaseException | None) -> InFlight | None:
        """What is in flight where this exception is being handled, if it was raised since the workflow was entered."""
        if exception is None or exception is self._before:
            return None
        return in_flight(
            exception,
            self._handled_outside(exception),
            self._execution.lease.token,
            self._branch(),
            cancellation=asyncio.CancelledError,
            is_cancelled=self._is_cancelled,
        )

    def _handled_outside(self, exception: BaseException) -> BaseException | None:
        """What of this exception, and of what it came of, is handled by the caller of the workflow, or of its event loop."""
        raise NotImplementedError

    def _branch(self) -> object:
        """The thread or task that calls."""
        raise NotImplementedError

    def _is_cancelled(self) -> bool:
        """Whether it has been asked to end."""
        raise NotImplementedError

    def _sleeping(self, seconds: Duration | datetime) -> Body:
        """The body of a sleep: it says when to wake up, and that is what is remembered."""
        if isinstance(seconds, datetime):
            until = in_utc("the moment to sleep until", seconds)
            if (until - self._clock.now()).total_seconds() > MAX_SECONDS:
                raise InvalidArgument(
                    f"the moment to sleep until must lie within a hundred years, not at {shown(seconds)}; "
                    f"step.wait_for without timeout= waits for ever"
                )
            return Body(until.isoformat, (), {}, PLAIN, kind=Sleep())
        duration = checked_duration("the time to sleep, if it is no aware datetime,", seconds, zero=True)

        def sleeps() -> list[str]:
            began = self._clock.now()
            return [began.isoformat(), later(began, duration).isoformat()]

        return Body(sleeps, (), {}, PLAIN, kind=Sleep())

    def _resting(self, call: Call, recorded: object) -> Wait | Abort | None:
        """What a sleep does next: one for some seconds has two moments in its record, one until a moment has that."""
        try:
            match recorded:
                case [str(began), str(until)]:
                    return self._execution.rest(
                        call, datetime.fromisoformat(began), datetime.fromisoformat(until), self._reading()
                    )
                case _:
                    return self._execution.rest(call, None, datetime.fromisoformat(str(recorded)), self._reading())
        except (TypeError, ValueError):  # a naive one, or none
            where = f"the record of step {call.key!r}"
            problem = f"{shown(recorded)} is no moment to sleep until"
            raise UnreadableRecord(self._execution.run_id, where, problem) from None

    def _listening(self, name: str, timeout: Duration | None) -> Body:
        """The body of a wait for a signal."""
        patience = checked_timeout("timeout", timeout)

        def in_vain() -> None:
            raise SignalTimedOut(name, patience or 0.0)

        return Body(in_vain, (), {}, PLAIN, kind=Listen(patience))

    def _transacting(
        self, name: str, fn: Callable[..., Any], args: tuple[Any, ...], given: Terms, isolation: object
    ) -> Body:
        """The body of a step in a transaction."""
        if isolation not in get_args(Isolation):
            raise InvalidArgument(f"isolation must be one of {', '.join(get_args(Isolation))}, not {isolation!r}")
        body = self._plain_body(fn, args, given)
        if inspect.iscoroutinefunction(body.fn):
            raise AsyncMismatch(
                f"step.transaction({name!r}) calls a blocking function on a blocking connection, in a thread of its own where "
                f"the workflow is async: define it with `def`"
            )
        if body.terms.at_most_once:
            raise InvalidArgument(
                f"step.transaction({name!r}): what it does to the database happens exactly once with its record, or not "
                f"at all: leave out at_most_once"
            )
        return Body(body.fn, args, {}, body.terms, body.annotation, Transact(cast(Isolation, isolation)))

    def _opened(self, call: Call, attempt: Attempt, body: Body) -> Transaction:
        """The transaction for an attempt, not begun yet."""
        assert isinstance(body.kind, Transact), "an attempt in a transaction, of a step without one"  # noqa: S101 -- a bug
        transaction = self._store.transaction(self._execution.lease, call.name, body.kind.isolation)
        self._open[call] = transaction, attempt
        return transaction

    def _performed(self, call: Call, attempt: Attempt, body: Body, transaction: Transaction) -> StepOutcome:
        """What comes of an attempt in its transaction, which stays open for the record if the body returned. Blocks."""
        returned = False
        try:
            outcome = self._begun_and_called(call, attempt, body, transaction)
            returned = isinstance(outcome, Returned)
            return outcome
        finally:
            if not returned:
                transaction.rollback()
                self._open.pop(call, None)

    def _begun_and_called(self, call: Call, attempt: Attempt, body: Body, transaction: Transaction) -> StepOutcome:
        try:
            while not transaction.begin(LONGEST_WAIT):
                if self._execution.obstacle(self._reading()) is not None:
                    return ASKED
        except RolledBack as undone:
            return self._undone(call, undone, attempt, body)
        except DurableError as error:
            return Rejected(error)
        work, timeout = partial(transaction.call, body.fn, body.args), body.terms.timeout
        token = enter(self.frame(call.key))
        try:
            value = work() if timeout is None else called_within(timeout, call.name, work)
        except RolledBack as undone:
            return self._undone(call, undone, attempt, body)
        except NotBegun as problem:
            return Rejected(problem.error)
        except Exception as exception:
            if isinstance(exception, StepTimeout):
                transaction.abandon()
            return self._failed(call, exception, attempt, body)
        finally:
            leave(token)
        if can_be_awaited(value):
            return Unstorable(
                awaitable_in_vain(call.name, value, "and a transaction is blocking: give it such a function")
            )
        return self._encoded(call, value, body)

    def _committing(self, call: Call, body: Body, record: Record, late: Late | None = None) -> StepOutcome:
        """What comes of committing an open transaction with this record. Blocks."""
        transaction, attempt = self._open[call]
        try:
            call.stored = transaction.commit(record, late) is None  # type: ignore[func-returns-value] # see `_checkpointed`
        except RolledBack as undone:
            outcome: StepOutcome = self._undone(call, undone, attempt, body)
        except TransactionMisused as error:
            outcome = self._failed(call, error, attempt, body)
        except DurableError as error:
            outcome = Rejected(error)
        except CommitRefused as refused:
            outcome = self._failed(call, refused.problem, attempt, body)
        else:
            outcome = ACKNOWLEDGED
        self._open.pop(call, None)  # an interrupt leaves it there, to be abandoned
        return outcome

    def _undone(self, call: Call, undone: RolledBack, attempt: Attempt, body: Body) -> Undone:
        problem = undone.problem
        if isinstance(problem, DurableError):
            return Undone(Rejected(problem))
        return Undone(self._failed(call, problem, attempt, body))

    def _forsaken(self, call: Call) -> None:
        """Nobody waits for this call any more: what its transaction did is undone, and its body's frame is left."""
        frame = current_frame.get()
        if frame is not None and frame.driver is self and frame.inside is not None:  # entered, and interrupted there
            current_frame.set(self.frame())
        if call in self._open:
            self._open[call][0].abandon()
            self._open.pop(call, None)

    def _encoded(self, call: Call, value: Any, body: Body) -> Returned | Unstorable:
        policy = body.terms.policy
        try:
            if policy is not None:
                policy.check_result(value, call.attempts, body.fn, body.args, body.kwargs)
            what = f"the result of step {call.key!r}"
            return Returned(self._codec.encode(value, what=what, annotation=body.annotation), self._clock.elapsed())
        except UnstorableValue as problem:
            problem.advice = advice_after_body(value, problem.advice)
            return Unstorable(problem)
        except InvalidArgument as problem:
            return Unstorable(problem)

    @calls_out
    def _failed(self, call: Call, exception: Exception, attempt: Attempt, body: Body) -> Raised | Unstorable:
        again_in, policy = None, body.terms.policy
        if policy is not None:
            seconds = self._clock.elapsed() - attempt.began
            try:
                again_in = policy.again_in(exception, attempt.number, seconds, body.fn, body.args, body.kwargs)
            except InvalidArgument as problem:  # the policy does not say whether this was the last attempt
                return Unstorable(problem)
        is_last = again_in is None and attempt.number > 1
        note = f"step {call.key!r} failed in {attempt.number} attempts" if is_last else ""
        call.original = exception
        return Raised(to_record(exception, self._codec, note=note), again_in)

    @calls_out
    def _handed_out(self, call: Call, record: StepRecord, body: Body) -> Any:
        where = f"the record of step {call.key!r}"
        if record.error is None:
            run_id = self._execution.run_id
            return self._codec.decode(record.json, run_id=run_id, where=where, annotation=body.annotation)
        exception = from_record(record.error, self._codec, run_id=self._execution.run_id, where=where)
        original, call.original = call.original, None
        if original is not None:  # the same exception as on a replay, with the live frames for whoever debugs it
            BaseException.with_traceback(exception, traceback_of(original))  # a class may have its own
        raise marked(exception, self._execution.lease.token, call.key)
