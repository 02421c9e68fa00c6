"""Workflows made of data: what an `Op` does, in both colours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import tenacity

from durable.errors import StepFailed, StepInterrupted
from durable.testing.simulation.scenario import Op

__all__ = ["Bodies", "asynchronous", "blocking"]

_POLICIES: Final = {
    attempts: tenacity.Retrying(stop=tenacity.stop_after_attempt(attempts), wait=tenacity.wait_fixed(0.05))
    for attempts in (1, 2, 3)
}


class Bodies(Protocol):
    """The world of one execution of a workflow."""

    def begin(self, op: Op, *, late: bool) -> int:
        """A body begins; raises when it is one that fails."""
        ...

    def lateness(self) -> float:
        """Seconds that the process is stopped just before this body."""
        ...

    def stop(self, seconds: float) -> None:
        """The process is stopped."""
        ...

    def told(self, op: Op, outcome: Any, *, failed: bool = False) -> None:
        """The workflow has the step's outcome."""
        ...

    def work(self, seconds: float) -> None:
        """Let the body take its time, blocking."""
        ...

    async def awork(self, seconds: float) -> None:
        """The same for asyncio."""
        ...


def asynchronous(ops: Sequence[Op], bodies: Bodies) -> Callable[..., Any]:
    """An async workflow that does this; it returns (site, outcome) of everything."""

    async def workflow(step: Any, _: Any) -> list[Any]:
        done: list[Any] = []
        await branch(step, ops, done)
        return sorted(done)

    async def branch(step: Any, ops: Sequence[Op], done: list[Any]) -> None:
        for op in ops:
            match op.kind:
                case "gather":
                    async with asyncio.TaskGroup() as group:
                        for one in op.branches:
                            group.create_task(branch(step, one, done))
                case "sleep":
                    await step.sleep(op.name, op.ms / 1000)
                case "wait":
                    done.append([op.site, await waited(step, op)])
                case _:
                    done.append([op.site, await stepped(step, op)])

    async def waited(step: Any, op: Op) -> Any:
        outcome = await step.wait_for(op.name)
        bodies.told(op, outcome)
        return outcome

    async def stepped(step: Any, op: Op) -> Any:
        async def body(*_: int) -> int:
            if seconds := bodies.lateness():
                bodies.stop(seconds)
                await bodies.awork(0)
                execution = bodies.begin(op, late=True)
            else:
                execution = bodies.begin(op, late=False)
            if op.ms:
                await bodies.awork(op.ms / 1000)
            return execution

        key = f"k{op.site}" if op.keyed else None
        try:
            outcome = await step(
                op.name,
                body,
                *([op.site] if op.given else []),
                key=key,
                retry=_POLICIES.get(op.attempts),
                at_most_once=op.once,
            )
        except (ValueError, StepFailed, StepInterrupted) as problem:
            bodies.told(op, type(problem).__name__, failed=True)
            if isinstance(problem, StepInterrupted) or op.caught:
                return None
            raise
        bodies.told(op, outcome)
        return outcome

    return workflow


def blocking(ops: Sequence[Op], bodies: Bodies) -> Callable[..., Any]:
    """The same, blocking: there are no branches."""

    def workflow(step: Any, _: Any) -> list[Any]:
        done: list[Any] = []
        for op in ops:
            match op.kind:
                case "sleep":
                    step.sleep(op.name, op.ms / 1000)
                case "wait":
                    outcome = step.wait_for(op.name)
                    bodies.told(op, outcome)
                    done.append([op.site, outcome])
                case _:
                    done.append([op.site, stepped(step, op)])
        return done

    def stepped(step: Any, op: Op) -> Any:
        def body(*_: int) -> int:
            if seconds := bodies.lateness():
                bodies.stop(seconds)
                bodies.work(0)
                execution = bodies.begin(op, late=True)
            else:
                execution = bodies.begin(op, late=False)
            if op.ms:
                bodies.work(op.ms / 1000)
            return execution

        key = f"k{op.site}" if op.keyed else None
        try:
            outcome = step(
                op.name,
                body,
                *([op.site] if op.given else []),
                key=key,
                retry=_POLICIES.get(op.attempts),
                at_most_once=op.once,
            )
        except (ValueError, StepFailed, StepInterrupted) as problem:
            bodies.told(op, type(problem).__name__, failed=True)
            if isinstance(problem, StepInterrupted) or op.caught:
                return None
            raise
        bodies.told(op, outcome)
        return outcome

    return workflow
