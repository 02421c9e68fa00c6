"""How a workflow function ended, and what that means for its run."""

from __future__ import annotations

import inspect
from typing import Any

from msgspec import Struct, structs

from durable._engine import runs
from durable._engine.closing import Closing
from durable._engine.decisions import Conclusion, ContinueRun, EndRun, Granted
from durable._engine.steps import LiveExecution
from durable._runtime.plan import Plan
from durable.codecs._failures import add_note, from_record, to_record
from durable.errors import AsyncMismatch, DurableError, RunCancelled, Unwind
from durable.records import ErrorRecord, Status


class Continued(Struct, frozen=True):
    """The run goes on with another input: what is to be executed now, under the lease that it has."""

    granted: Granted


class WorkflowOutcome:
    """It ended with a value, with an exception, or left by control flow: a cancellation, an interrupt, an error of ours."""

    def __init__(self) -> None:
        self.exception: BaseException | None = None
        self._value = b""
        self._error: ErrorRecord | None = None
        self._retry_in: float | None = None

    def on_return(self, plan: Plan, value: Any) -> None:
        if inspect.isawaitable(value):
            if inspect.iscoroutine(value):
                value.close()  # it will never be awaited, and says so here rather than in a warning
            advice = (
                "await it there, and return what it gives"
                if plan.is_async
                else "make the workflow an async function, with `async def`"
            )
            raise AsyncMismatch(f"workflow {plan.claim.workflow!r} returned something to await: {advice}")
        self._value = plan.encode(value)

    def on_raise(self, plan: Plan, exception: Exception, failures: int) -> None:
        self.exception = exception
        self._error = to_record(exception, plan.codec)
        self._retry_in = plan.retry_run_in(exception, failures)

    def on_exit(self, exception: BaseException) -> None:
        self.exception = exception
        self._error = None

    def conclusion(self, execution: LiveExecution) -> Conclusion:
        if isinstance(self.exception, Exception) and self._error is not None:
            conclusion = runs.conclude_failure(execution, self.exception, self._error, self._retry_in)
        elif self.exception is not None:
            conclusion = runs.conclude_departure(execution, self.exception)
        else:
            conclusion = runs.conclude_return(execution, self._value)
        if (error := execution.error) is not None:
            if self.exception is not None and not isinstance(self.exception, Exception):
                error.__traceback__ = self.exception.__traceback__  # it shows where the workflow was left
            Unwind.settle(error)
        return conclusion

    def result(self, plan: Plan, execution: LiveExecution, finish: EndRun) -> Any:
        """The end is committed: what the caller of `run` gets."""
        runs.emit_finish(execution, finish, plan.reading())
        if (closing := execution.closing) is not None:
            self._close(plan, closing, finish)
        if execution.error is not None:
            raise execution.error from None
        if self.exception is not None:
            raise self.exception
        return None if plan.is_queued else plan.decode(self._value)  # a worker has no caller to hand it to

    def _close(self, plan: Plan, closing: Closing, finish: EndRun) -> None:
        """How the workflow ended says less than its closing: that may have begun in an execution before."""
        run_id, ending = plan.claim.run_id, closing.ending
        problem = closing.find_failure(run_id)
        if finish.status is Status.COMPLETED:
            self.exception, self._value = None, finish.record.text.encode()
        elif ending.status == Status.CANCELLED and problem is None:
            raise closing.error or RunCancelled(run_id, ending.reason, closed=True)
        elif ending.failure is None:
            assert problem is not None  # noqa: S101 -- else it would not have failed
            raise problem
        else:
            if self._error is None or self.exception is None or closing.is_resumed:
                self.exception = from_record(ending.failure.error, plan.codec, run_id=run_id, where="the failure")
            if problem is not None:
                add_note(self.exception, problem.note)

    def continuation(self, plan: Plan, execution: LiveExecution, granted: Granted, asked: ContinueRun) -> Continued:
        """The new input is committed."""
        assert execution.error is not None  # noqa: S101 -- the control flow by which the workflow was left
        runs.emit_interruption(execution, plan.reading(), execution.error)
        header = structs.replace(granted.header, continued=asked.number)
        return Continued(Granted(granted.lease, header, [asked.record]))

    def interruption(self, plan: Plan, execution: LiveExecution, error: DurableError | None) -> BaseException:
        """The run has no outcome: what the caller of `run` gets."""
        reason = error or self.exception
        assert reason is not None  # noqa: S101 -- a run is released for a reason
        runs.emit_interruption(execution, plan.reading(), reason)
        return reason
