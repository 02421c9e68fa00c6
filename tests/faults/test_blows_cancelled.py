"""FAULTS 173: a cancellation at every suspension: once, twice, at every one from there on, and by a scope of anyio."""

# pyright: reportUnknownLambdaType=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# (`execute` takes workflows of either colour, as Any.)

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import anyio
import pytest

import durable
from durable.stores._adapters.kinds import AnyStore
from harness.blows import KINDS, Tally, places, store_of
from harness.support import Database

execute: Any = durable.run  # in either colour

_LEASE = 30.0
_PATIENCE = 15.0  # seconds, after which something hangs; all of it takes milliseconds

Strike = Callable[[int, int], bool]


async def _slow(value: int) -> int:
    await asyncio.sleep(0.001)
    return value


def _body(connection: Any) -> int:
    return int(connection.execute("SELECT 1").fetchone()[0])


def _workflow(*, transacts: bool) -> Callable[[Any, Any], Awaitable[Any]]:
    async def workflow(step: Any, _: Any) -> list[Any]:
        first = await step("a", lambda: 1)
        second = await step("slow", _slow, 2)
        if transacts:
            await step.transaction("t", _body)
        await step.sleep("s", 0.001)
        several = await step.map("m", _slow, [3, 4])
        return [first, second, several]

    return workflow


_RESULT = [1, 2, [3, 4]]


async def _another(step: Any, _: Any) -> int:
    return int(await step("x", lambda: 1))


class _Struck:
    """Drives a coroutine and counts its suspensions; its task is cancelled at those that `strike` says."""

    def __init__(self, coroutine: Any, strike: Callable[[int], bool]) -> None:
        self._coroutine = coroutine
        self._strike = strike
        self.suspensions = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        inner, sent, thrown = self._coroutine.__await__(), None, None
        task = asyncio.current_task()
        assert task is not None
        while True:
            try:
                yielded = inner.send(sent) if thrown is None else inner.throw(thrown)
            except StopIteration as end:
                return end.value
            thrown = None
            self.suspensions += 1
            if self._strike(self.suspensions):
                asyncio.get_running_loop().call_soon(task.cancel)
            try:
                sent = yield yielded
            except BaseException as problem:
                thrown = problem


MODES: dict[str, Strike] = {
    "once": lambda n, at: at == n,
    "twice": lambda n, at: at in (n, n + 1),
    "thrice": lambda n, at: at in (n, n + 2, n + 3),
    "at every one": lambda n, at: at >= n,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_cancellation_at_every_suspension(kind: str, mode: str, database: Database) -> None:
    tally = Tally()
    workflow, strike = _workflow(transacts=kind == "postgres"), MODES[mode]

    async def main() -> None:
        store = store_of(kind, database)
        await execute(None, workflow, id="warm", store=store)
        for n in places(1):
            run = execute(None, workflow, id=f"r{n}", store=store, lease=_LEASE)
            struck = _Struck(run, functools.partial(strike, n))
            if not await _survives(struck, store, workflow, tally, str(n)) or struck.suspensions < n:
                break

    asyncio.run(main())
    tally.show(f"cancelled {mode}, {kind}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_scope_of_anyio_that_is_cancelled_at_every_suspension(kind: str, database: Database) -> None:
    """It cancels again at each turn of the event loop, until the scope is left."""
    tally = Tally()
    workflow = _workflow(transacts=kind == "postgres")

    async def main() -> None:
        store = store_of(kind, database)
        await execute(None, workflow, id="warm", store=store)
        for n in places(1):
            reached = False

            async def scoped(n: int = n) -> Any:
                nonlocal reached
                with anyio.CancelScope() as scope:

                    def strike(at: int) -> bool:
                        nonlocal reached
                        if at == n:
                            reached = True
                            asyncio.get_running_loop().call_soon(scope.cancel)
                        return False

                    return await _Struck(execute(None, workflow, id=f"r{n}", store=store, lease=_LEASE), strike)

            if not await _survives(scoped(), store, workflow, tally, str(n)) or not reached:
                break

    asyncio.run(main())
    tally.show(f"cancelled by anyio, {kind}")


async def _survives(struck: Any, store: AnyStore, workflow: Callable[..., Any], tally: Tally, at: str) -> bool:
    """The three questions; whether it goes on."""

    async def awaited() -> Any:
        return await struck

    run = asyncio.ensure_future(awaited())
    done, _ = await asyncio.wait([run], timeout=_PATIENCE)
    if not done:
        tally.hangs.append(at)
        return False
    tally.blows += 1
    tally.came["cancelled" if run.cancelled() else type(run.exception() or run.result()).__name__] += 1
    async with asyncio.timeout(_PATIENCE):
        if await execute(None, _another, id=f"another {at}", store=store) != 1:
            tally.stores_lost.append(at)
        try:
            result = await execute(None, workflow, id=f"r{at}", store=store)
        except durable.ConcurrentExecution:
            tally.leases_kept.append(at)
        else:
            if result != _RESULT:
                tally.wrong.append(f"{at}: {result}")
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_interrupt_of_asyncio_run_gives_the_lease_back(kind: str, database: Database) -> None:
    """asyncio.run cancels what is left when it is interrupted again, and waits for that."""
    store = store_of(kind, database)

    async def body() -> int:
        await asyncio.sleep(60)
        return 1

    @durable.workflow(name="workflow")
    async def workflow(step: Any, _: Any) -> int:
        return int(await step("x", body))

    async def main() -> None:
        run = asyncio.ensure_future(execute(None, workflow, id="r", store=store))
        await asyncio.sleep(0.05)
        run.cancel()
        await asyncio.sleep(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert asyncio.run(execute(None, _another, id="again", store=store)) == 1

    @durable.workflow(name="workflow")
    async def mended(step: Any, _: Any) -> int:
        return int(await step("x", lambda: 1))

    assert asyncio.run(execute(None, mended, id="r", store=store)) == 1
