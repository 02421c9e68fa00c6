"""Workflows made of data: what an `Op` does, in both colours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

import tenacity
from greenlet import GreenletExit

import durable
from durable.errors import ChildFailed, SignalTimedOut, StepFailed, StepInterrupted, StepTimeout
from simulation.loop import Group
from simulation.scenario import Op

__all__ = ["Bodies", "asynchronous", "blocking", "marked"]

_POLICIES: Final = {
    attempts: tenacity.Retrying(stop=tenacity.stop_after_attempt(attempts), wait=tenacity.wait_fixed(0.05))
    for attempts in (1, 2, 3)
}
_CATCHES: Final[dict[str, type[BaseException]]] = {
    "except": Exception,
    "finally": BaseException,
    "anyway": BaseException,
    "fallback": Exception,
    "caught": asyncio.CancelledError,
}
_GOES_ON: Final = frozenset({"fallback", "caught"})
_DEATHS: Final = (GreenletExit, GeneratorExit)  # how the simulation ends a process
_FAILURES: Final = (ValueError, StepFailed, StepInterrupted, StepTimeout)


class Bodies(Protocol):
    """The world of one execution of a workflow."""

    def begin(self, op: Op, *, late: bool) -> tuple[int, float]:
        """A body begins: the number of this execution, and the seconds it takes. Raises when it is one that fails."""
        ...

    def transact(self, op: Op, connection: Any) -> int:
        """All of a body in a transaction, blocking; its value."""
        ...

    def end(self, execution: int) -> int:
        """A body ends; its value."""
        ...

    def lateness(self) -> float:
        """Seconds that the process is stopped just before this body."""
        ...

    def stop(self, seconds: float) -> None:
        """The process is stopped."""
        ...

    def called(self, op: Op) -> None:
        """The workflow calls this step, or this map."""
        ...

    def amid(self, op: Op, problem: BaseException) -> AbstractContextManager[None]:
        """In here the second branch of a guard is done, because of this."""
        ...

    def sleeps(self, op: Op) -> AbstractContextManager[None]:
        """In here the workflow sleeps."""
        ...

    def interrupts(self, op: Op) -> bool:
        """Whether Ctrl-C comes now."""
        ...

    def told(self, op: Op, outcome: Any, *, failed: bool = False) -> None:
        """The workflow has the step's outcome."""
        ...

    def children(self, op: Op) -> list[tuple[str, str]]:
        """The workflows of a family's children, each with its key."""
        ...

    def child_told(self, workflow: str, outcome: Any) -> None:
        """The workflow has what became of a child: its value, or a `ChildFailed`."""
        ...

    def work(self, seconds: float) -> None:
        """Let the body take its time, blocking."""
        ...

    async def awork(self, seconds: float) -> None:
        """The same for asyncio."""
        ...


def asynchronous(ops: Sequence[Op], bodies: Bodies) -> Callable[..., Any]:  # noqa: PLR0915 -- a short function for each kind of operation
    """An async workflow that does this; it returns (site, outcome) of everything."""

    async def workflow(step: Any, _: Any) -> list[Any]:
        done: list[Any] = []
        await branch(step, ops, done)
        return sorted(done)

    async def branch(step: Any, ops: Sequence[Op], done: list[Any]) -> None:
        for op in ops:
            match op.kind:
                case "gather":
                    async with Group() as group:
                        for one in op.branches:
                            group.create_task(branch(step, one, done))
                case "family":
                    await called(step, op)
                case "guard":
                    await guarded(step, op, done)
                case "map":
                    done += await mapped(step, op)
                case "sleep":
                    with bodies.sleeps(op):
                        await step.sleep(op.name, op.ms / 1000)
                case "wait":
                    done.append([op.site, await waited(step, op)])
                case _:
                    done.append([op.site, await stepped(step, op)])

    async def guarded(step: Any, op: Op, done: list[Any]) -> None:
        inside, out = op.branches
        try:
            await branch(step, inside, done)
        except _DEATHS:
            raise
        except _CATCHES[op.how] as problem:
            with bodies.amid(op, problem):
                await branch(step, out, done)
            if op.how not in _GOES_ON:
                raise
            if isinstance(problem, asyncio.CancelledError) and (task := asyncio.current_task()) is not None:
                task.uncancel()
        else:
            if op.how == "finally":
                await branch(step, out, done)

    async def called(step: Any, op: Op) -> None:
        children = bodies.children(op)
        if len(children) == 1:
            ((fn, key),) = children
            try:
                outcomes = [await step.call(fn, key=key)]
            except ChildFailed as problem:
                outcomes = [problem]
        else:
            handles = [await step.start(fn, key=key) for fn, key in children]
            outcomes = await step.wait_all(handles, return_exceptions=True)
        _told_of(bodies, op, children, outcomes)

    async def waited(step: Any, op: Op) -> Any:
        try:
            outcome = await step.wait_for(op.name, timeout=op.timeout / 1000 or None)
        except SignalTimedOut as problem:
            bodies.told(op, type(problem).__name__, failed=True)
            return None
        bodies.told(op, outcome)
        return outcome

    async def stepped(step: Any, op: Op) -> Any:
        async def body(*_: int) -> int:
            return await performed(op)

        given = [op.site] if op.given else []
        bodies.called(op)
        try:
            if op.kind == "transaction":
                outcome = await step.transaction(op.name, _transacting(bodies, op), *given, key=_key(op), **_terms(op))
            else:
                terms = {**_terms(op), "at_most_once": op.once, "cleanup": op.cleanup}
                outcome = await step(op.name, body, *given, key=_key(op), **terms)
        except _FAILURES as problem:
            if _is_final(bodies, op, problem):
                raise
            return None
        bodies.told(op, outcome)
        return outcome

    async def mapped(step: Any, op: Op) -> list[Any]:
        items = _items(op)

        async def body(site: int) -> int:
            return await performed(items[site])

        bodies.called(op)
        try:
            outcomes = await step.map(op.name, body, list(items), **_options(op))
        except _FAILURES as problem:
            bodies.told(op, type(problem).__name__, failed=True)
            raise
        return _told(bodies, items, outcomes)

    async def performed(op: Op) -> int:
        if seconds := bodies.lateness():
            bodies.stop(seconds)
            await bodies.awork(0)
            execution, takes = bodies.begin(op, late=True)
        else:
            execution, takes = bodies.begin(op, late=False)
        if takes:
            await bodies.awork(takes)
        return bodies.end(execution)

    return workflow


def blocking(ops: Sequence[Op], bodies: Bodies) -> Callable[..., Any]:  # noqa: PLR0915 -- a short function for each kind of operation
    """The same, blocking: there are no branches."""

    def workflow(step: Any, _: Any) -> list[Any]:
        done: list[Any] = []
        branch(step, ops, done)
        return sorted(done)

    def branch(step: Any, ops: Sequence[Op], done: list[Any]) -> None:
        for op in ops:
            match op.kind:
                case "family":
                    called(step, op)
                case "guard":
                    guarded(step, op, done)
                case "interruption":
                    if bodies.interrupts(op):
                        raise KeyboardInterrupt
                case "map":
                    done += mapped(step, op)
                case "sleep":
                    with bodies.sleeps(op):
                        step.sleep(op.name, op.ms / 1000)
                case "wait":
                    done.append([op.site, waited(step, op)])
                case _:
                    done.append([op.site, stepped(step, op)])

    def guarded(step: Any, op: Op, done: list[Any]) -> None:
        inside, out = op.branches
        try:
            branch(step, inside, done)
        except _DEATHS:
            raise
        except _CATCHES[op.how] as problem:
            with bodies.amid(op, problem):
                branch(step, out, done)
            if op.how not in _GOES_ON:
                raise
        else:
            if op.how == "finally":
                branch(step, out, done)

    def called(step: Any, op: Op) -> None:
        children = bodies.children(op)
        if len(children) == 1:
            ((fn, key),) = children
            try:
                outcomes = [step.call(fn, key=key)]
            except ChildFailed as problem:
                outcomes = [problem]
        else:
            handles = [step.start(fn, key=key) for fn, key in children]
            outcomes = step.wait_all(handles, return_exceptions=True)
        _told_of(bodies, op, children, outcomes)

    def waited(step: Any, op: Op) -> Any:
        try:
            outcome = step.wait_for(op.name, timeout=op.timeout / 1000 or None)
        except SignalTimedOut as problem:
            bodies.told(op, type(problem).__name__, failed=True)
            return None
        bodies.told(op, outcome)
        return outcome

    def stepped(step: Any, op: Op) -> Any:
        def body(*_: int) -> int:
            return performed(op)

        given = [op.site] if op.given else []
        bodies.called(op)
        try:
            if op.kind == "transaction":
                outcome = step.transaction(op.name, _transacting(bodies, op), *given, key=_key(op), **_terms(op))
            else:
                terms = {**_terms(op), "at_most_once": op.once, "cleanup": op.cleanup}
                outcome = step(op.name, body, *given, key=_key(op), **terms)
        except _FAILURES as problem:
            if _is_final(bodies, op, problem):
                raise
            return None
        bodies.told(op, outcome)
        return outcome

    def mapped(step: Any, op: Op) -> list[Any]:
        items = _items(op)

        def body(site: int) -> int:
            return performed(items[site])

        bodies.called(op)
        try:
            outcomes = step.map(op.name, body, list(items), **_options(op))
        except _FAILURES as problem:
            bodies.told(op, type(problem).__name__, failed=True)
            raise
        return _told(bodies, items, outcomes)

    def performed(op: Op) -> int:
        if seconds := bodies.lateness():
            bodies.stop(seconds)
            bodies.work(0)
            execution, takes = bodies.begin(op, late=True)
        else:
            execution, takes = bodies.begin(op, late=False)
        if takes:
            bodies.work(takes)
        if op.interrupts and bodies.interrupts(op):
            raise KeyboardInterrupt
        return bodies.end(execution)

    return workflow


def marked(name: str, workflow: Callable[..., Any], tries: int) -> Callable[..., Any]:
    """A workflow that workers find under this name, whose runs are tried so often."""
    policy = (
        tenacity.Retrying(stop=tenacity.stop_after_attempt(tries), wait=tenacity.wait_fixed(0.3)) if tries else None
    )
    return durable.workflow(name, retry=policy)(workflow)


def _transacting(bodies: Bodies, op: Op) -> Callable[..., int]:
    """The body of a transaction, which blocks whatever the workflow's colour."""

    def body(connection: Any, *_: int) -> int:
        return bodies.transact(op, connection)

    return body


def _told_of(bodies: Bodies, op: Op, children: list[tuple[str, str]], outcomes: Sequence[Any]) -> None:
    for (workflow, _), outcome in zip(children, outcomes, strict=True):
        bodies.child_told(workflow, outcome)
    failed = next((one for one in outcomes if isinstance(one, ChildFailed)), None)
    if failed is not None and not op.caught:
        raise failed


def _key(op: Op) -> str | None:
    return f"k{op.site}" if op.keyed else None


def _terms(op: Op) -> dict[str, Any]:
    return {"retry": _POLICIES.get(op.attempts), "timeout": op.timeout / 1000 or None}


def _is_final(bodies: Bodies, op: Op, problem: Exception) -> bool:
    """Whether the workflow fails of it."""
    bodies.told(op, type(problem).__name__, failed=True)
    return not (isinstance(problem, StepInterrupted) or op.caught)


def _items(op: Op) -> dict[int, Op]:
    """The items of a map, by their sites."""
    return {one.site: one for branch in op.branches for one in branch}


def _options(op: Op) -> dict[str, Any]:
    key: Callable[[int], str] | None = "k{}".format if op.keyed else None
    return {"key": key, "max_concurrency": op.at_once or None, "return_exceptions": op.caught, **_terms(op)}


def _told(bodies: Bodies, items: dict[int, Op], outcomes: Sequence[Any]) -> list[Any]:
    done: list[Any] = []
    for op, outcome in zip(items.values(), outcomes, strict=True):
        failed = isinstance(outcome, _FAILURES)
        bodies.told(op, type(outcome).__name__ if failed else outcome, failed=failed)
        done.append([op.site, None if failed else outcome])
    return done
