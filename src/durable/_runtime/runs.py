"""A blocking run: claims it, calls the workflow, keeps its lease, records how it ended."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import Any, assert_never

from durable._common.boundary import calls_out, shorten
from durable._engine.decisions import (
    Claim,
    ClaimAgain,
    ClaimReply,
    ContinueRun,
    Decline,
    EndRun,
    GiveBack,
    Granted,
    Migrate,
    Proceed,
    Reraise,
    Return,
)
from durable._engine.leases import Lease
from durable._runtime.context import enter, leave
from durable._runtime.handles import Step
from durable._runtime.plan import Plan
from durable._runtime.run_base import LEAVE_TIMEOUT, RunBase, leave_to_expire
from durable._runtime.steps import BlockingDriver
from durable._runtime.workflow_outcome import Continued, WorkflowOutcome
from durable.errors import AsyncMismatch, DurableError, VersionMismatch
from durable.records import Status
from durable.stores import requests


class BlockingRun(RunBase):
    """One blocking call of `run`."""

    def __init__(self, plan: Plan, new_driver: Callable[..., BlockingDriver] = BlockingDriver) -> None:
        super().__init__(plan)
        self._new_driver = new_driver

    @calls_out
    def outcome(self, granted: Granted | None = None) -> Any:
        """What the run comes to, claimed here or under a lease that was `granted` before."""
        try:
            return self._claim() if granted is None else self._execute(granted)
        except BaseException as reason:
            if isinstance(reason, Exception):
                shorten(reason)
            self._over = True
            self.give_all_back(reason)
            raise
        finally:
            self._over = self._plan.here.over = True

    @calls_out
    def _claim(self) -> Any:
        plan, claim, polls = self._plan, self._plan.claim, 0
        began = self._clock.elapsed()
        while True:
            reply = self._begin(claim)
            match plan.admission(claim, reply, self._clock.elapsed() - began, polls):
                case Proceed(granted=granted):
                    return self._execute(granted)
                case Return(value=value):
                    return plan.stored_result(value)
                case Reraise(error=error):
                    raise plan.stored_failure(error)
                case ClaimAgain(seconds=seconds, claim=claim, lease=lease, recheck=recheck):
                    self._give_back(lease)
                    self._clock.sleep(seconds, recheck)
                    polls += 1
                case Migrate(error=mismatch):
                    self._migrate(mismatch)
                    polls += 1
                case Decline(error=error, lease=lease):
                    self._give_back(lease)
                    raise error
                case never:
                    assert_never(never)

    @calls_out
    def _execute(self, granted: Granted) -> Any:
        while True:
            ended = self._execute_once(granted)
            if not isinstance(ended, Continued):
                return ended
            granted = ended.granted

    @calls_out
    def _execute_once(self, granted: Granted) -> Any:
        plan, outcome, lease = self._plan, WorkflowOutcome(), granted.lease
        try:
            execution = self._note(plan.execution(granted, threading.current_thread()))
            self._driver = driver = self._new_driver(execution, *plan.for_driver)
            driver.encode_input = plan.encode_input
            arguments = plan.arguments(Step(driver), driver, execution.journal)
            token = enter(driver.frame())
        except BaseException as reason:
            self._give_back(lease, None, reason)
            raise
        try:
            try:
                value = plan.fn(*arguments)
                driver.check_awaited()
                outcome.on_return(plan, value)
            except Exception as exception:
                execution.is_over = True
                driver.check_awaited(exception)
                outcome.on_raise(plan, exception, execution.failures)
            execution.is_over = True
            driver.drain()
        except BaseException as exception:
            outcome.on_exit(exception)
            driver.await_checkpoints(LEAVE_TIMEOUT, exception)
        finally:
            execution.is_over = True
            leave(token)
        match driver.close(outcome.conclusion(execution)):
            case EndRun() as finish:
                if self.on_ending is not None:
                    self.on_ending()
                try:
                    self._finish(lease, finish)
                except DurableError as error:
                    self._give_back(lease, None, error)
                    raise outcome.interruption(plan, execution, error) from outcome.exception
                return outcome.result(plan, execution, finish)
            case ContinueRun() as continuation:
                try:
                    self._continue(lease, continuation)
                except DurableError as error:
                    self._give_back(lease, None, error)
                    raise outcome.interruption(plan, execution, error) from outcome.exception
                return outcome.continuation(plan, execution, granted, continuation)
            case GiveBack(error=error, status=status):
                self._give_back(lease, status, error or outcome.exception)
                raise outcome.interruption(plan, execution, error) from None
            case never:
                assert_never(never)

    def _begin(self, claim: Claim) -> ClaimReply:
        thread = threading.current_thread()
        return self._store.perform(requests.Begin(claim, lambda: self.is_alive(thread.is_alive())))

    def _finish(self, lease: Lease, finish: EndRun) -> None:
        self._store.perform(requests.Finish(lease, finish.status, finish.record, finish.due_in))
        self.finished = finish
        self._forget(lease)

    def _continue(self, lease: Lease, asked: ContinueRun) -> None:
        self._store.perform(requests.Continue(lease, asked.record, asked.keep_history, asked.taken, asked.number))

    def _migrate(self, mismatch: VersionMismatch) -> None:
        stored = self._store.load(mismatch.run_id)
        if stored is not None:
            answer = self._plan.ask_user(mismatch, stored)
            if inspect.isawaitable(answer):
                raise _async_answer_error(answer)
            self._store.replace(mismatch.run_id, stored, self._plan.migrate(answer, mismatch, stored))

    def give_all_back(self, reason: BaseException | None = None) -> None:
        """Give back the leases that an interrupt has left."""
        for lease, status in self._leases_left():
            self._give_back(lease, status, reason)

    def _give_back(
        self, lease: Lease | None, status: Status | None = None, reason: BaseException | None = None
    ) -> None:
        if lease is not None and not self.leave_as_dead(lease, reason):
            try:
                release = self._release(lease, status, reason)
                self._note_release(release, self._store.perform(release))
            except DurableError as problem:  # it must not replace what the run has come to
                leave_to_expire(lease, problem)
            self._forget(lease)


def _async_answer_error(answer: Any) -> AsyncMismatch:
    if inspect.iscoroutine(answer):
        answer.close()
    return AsyncMismatch(
        "on_version_mismatch, or migrates of the workflow, is an async function, and the workflow is a blocking one: "
        "make both blocking, or both async"
    )
