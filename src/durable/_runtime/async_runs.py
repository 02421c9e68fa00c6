"""An async run: claims it, awaits the workflow, keeps its lease, records how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import weakref
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
from durable._runtime.async_handles import AsyncStep
from durable._runtime.async_steps import AsyncDriver
from durable._runtime.context import enter, leave
from durable._runtime.plan import Plan
from durable._runtime.run_base import LEAVE_TIMEOUT, RunBase, leave_to_expire
from durable._runtime.shielded import wait_shielded
from durable._runtime.workflow_outcome import Continued, WorkflowOutcome
from durable.errors import AsyncMismatch, DurableError, VersionMismatch
from durable.records import Status
from durable.stores import requests


class AsyncRun(RunBase):
    """One awaited call of `run`."""

    def __init__(self, plan: Plan, new_driver: Callable[..., AsyncDriver] = AsyncDriver) -> None:
        super().__init__(plan)
        self._new_driver = new_driver

    @calls_out
    async def outcome(self, granted: Granted | None = None) -> Any:
        """What the run comes to, claimed here or under a lease that was `granted` before."""
        try:
            return await (self._claim() if granted is None else self._execute(granted))
        except BaseException as reason:
            if isinstance(reason, Exception):
                shorten(reason)
            self._over = True
            await self.give_all_back(reason)
            raise
        finally:
            self._over = self._plan.here.over = True

    @calls_out
    async def _claim(self) -> Any:
        plan, claim, polls = self._plan, self._plan.claim, 0
        began = self._clock.elapsed()
        while True:
            reply = await self._begin(claim)
            match plan.admission(claim, reply, self._clock.elapsed() - began, polls):
                case Proceed(granted=granted):
                    return await self._execute(granted)
                case Return(value=value):
                    return plan.stored_result(value)
                case Reraise(error=error):
                    raise plan.stored_failure(error)
                case ClaimAgain(seconds=seconds, claim=claim, lease=lease, recheck=recheck):
                    await self._give_back(lease)
                    await self._clock.asleep(seconds, recheck)
                    polls += 1
                case Migrate(error=mismatch):
                    await self._migrate(mismatch)
                    polls += 1
                case Decline(error=error, lease=lease):
                    await self._give_back(lease)
                    raise error
                case never:
                    assert_never(never)

    @calls_out
    async def _execute(self, granted: Granted) -> Any:
        while True:
            ended = await self._execute_once(granted)
            if not isinstance(ended, Continued):
                return ended
            granted = ended.granted

    @calls_out
    async def _execute_once(self, granted: Granted) -> Any:
        plan, outcome, lease = self._plan, WorkflowOutcome(), granted.lease
        try:
            execution = self._note(plan.execution(granted, asyncio.current_task()))
            self._driver = driver = self._new_driver(execution, *plan.for_driver)
            driver.encode_input = plan.encode_input
            arguments = plan.arguments(AsyncStep(driver), driver, execution.journal)
            token = enter(driver.frame())
        except BaseException as reason:
            await self._give_back(lease, None, reason)
            raise
        try:
            try:
                value = await plan.fn(*arguments)
                await driver.check_awaited()
                outcome.on_return(plan, value)
            except Exception as exception:
                execution.is_over = True
                await driver.check_awaited(exception)
                outcome.on_raise(plan, exception, execution.failures)
            execution.is_over = True
            await driver.drain()
        except BaseException as exception:
            outcome.on_exit(exception)
            await driver.await_checkpoints(LEAVE_TIMEOUT, exception)
        finally:
            execution.is_over = True
            leave(token)
        match await driver.close(outcome.conclusion(execution)):
            case EndRun() as finish:
                if self.on_ending is not None:
                    self.on_ending()
                try:
                    await self._finish(lease, finish)
                except DurableError as error:
                    await self._give_back(lease, None, error)
                    raise outcome.interruption(plan, execution, error) from outcome.exception
                return outcome.result(plan, execution, finish)
            case ContinueRun() as continuation:
                try:
                    await self._continue(lease, continuation)
                except DurableError as error:
                    await self._give_back(lease, None, error)
                    raise outcome.interruption(plan, execution, error) from outcome.exception
                return outcome.continuation(plan, execution, granted, continuation)
            case GiveBack(error=error, status=status):
                await self._give_back(lease, status, error or outcome.exception)
                raise outcome.interruption(plan, execution, error) from None
            case never:
                assert_never(never)

    async def _begin(self, claim: Claim) -> ClaimReply:
        task = None
        with contextlib.suppress(RuntimeError):  # no event loop at all
            task = asyncio.current_task()
        if task is None:
            raise AsyncMismatch(
                f"run {claim.run_id!r}: an async workflow runs in a task of asyncio (uvloop will do, and anyio on asyncio), "
                f"and this is none. Elsewhere, make the workflow a blocking function and call durable.run in a thread, "
                f"for example with trio.to_thread.run_sync."
            )
        # Weakly: the question whether an abandoned task is still there must not keep it, nor its event loop, whose timers do.
        this, doing = weakref.ref(self), weakref.ref(task)

        def alive() -> bool:
            run, task = this(), doing()
            return (
                run is not None and task is not None and run.is_alive(not (task.done() or task.get_loop().is_closed()))
            )

        reply = None
        try:
            reply = self._store.aio.submit(requests.Begin(claim, alive))
            return await wait_shielded(reply, LEAVE_TIMEOUT)
        except BaseException as reason:  # a lease that is granted all the same is given back, now or when it comes
            if reply is None:
                raise
            if not (reply.done() or isinstance(reason, asyncio.CancelledError | GeneratorExit)):  # a signal handler's
                await asyncio.wait([reply], timeout=LEAVE_TIMEOUT)  # the event loop may be closed before it comes
            if not reply.done():
                reply.add_done_callback(self._give_back_late)
            elif reply.exception() is None and isinstance(granted := reply.result(), Granted):
                await self._give_back(granted.lease, None, reason)
            raise

    def _give_back_late(self, reply: asyncio.Future[ClaimReply]) -> None:
        if not reply.cancelled() and reply.exception() is None and isinstance(granted := reply.result(), Granted):
            self._store.aio.submit(requests.Release(granted.lease))

    async def _finish(self, lease: Lease, finish: EndRun) -> None:
        await wait_shielded(
            self._store.aio.submit(requests.Finish(lease, finish.status, finish.record, finish.due_in)), LEAVE_TIMEOUT
        )
        self.finished = finish
        self._forget(lease)

    async def _continue(self, lease: Lease, asked: ContinueRun) -> None:
        request = requests.Continue(lease, asked.record, asked.keep_history, asked.taken, asked.number)
        await wait_shielded(self._store.aio.submit(request), LEAVE_TIMEOUT)

    async def _migrate(self, mismatch: VersionMismatch) -> None:
        stored = await self._store.aio.load(mismatch.run_id)
        if stored is not None:
            answer = self._plan.ask_user(mismatch, stored)
            if inspect.isawaitable(answer):
                answer = await answer
            await self._store.aio.replace(mismatch.run_id, stored, self._plan.migrate(answer, mismatch, stored))

    async def give_all_back(self, reason: BaseException | None = None) -> None:
        """Give back the leases that an interrupt has left."""
        for lease, status in self._leases_left():
            await self._give_back(lease, status, reason)

    async def _give_back(
        self, lease: Lease | None, status: Status | None = None, reason: BaseException | None = None
    ) -> None:
        if lease is not None and not self.leave_as_dead(lease, reason):
            self._forget(lease)
            if isinstance(reason, GeneratorExit):  # the coroutine is being closed, and may not wait any more
                # Nor can it ask where the event loop is gone, or no thread can be started: the lease ends.
                with contextlib.suppress(RuntimeError, DurableError):
                    self._store.aio.submit(self._release(lease, status, reason))
                return
            release = self._release(lease, status, reason)
            try:
                # Begun here, and not cancelled with this task.
                answer = self._store.aio.submit(release)
            except DurableError as refusal:  # where no thread can be started for it
                leave_to_expire(lease, refusal)
                return
            try:
                await wait_shielded(asyncio.ensure_future(asyncio.wait([answer], timeout=LEAVE_TIMEOUT)), LEAVE_TIMEOUT)
            except asyncio.CancelledError:
                if reason is None:
                    raise  # else `reason` is on its way
            if not answer.done():
                return
            if (problem := answer.exception()) is None:
                self._note_release(release, answer.result())
            elif isinstance(problem, DurableError):
                leave_to_expire(lease, problem)
