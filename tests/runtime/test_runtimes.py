"""Where Python code may run besides plain threads and asyncio: signal handlers, other event loops, trio.

A signal handler runs between two bytecodes of the main thread, whatever that is doing: so each test of signals is a
process of its own, whose main thread belongs to nobody else.
"""

from __future__ import annotations

import asyncio
import re
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import pytest
import trio
import uvloop

import durable
from durable import AsyncStep, Step
from durable._runtime.context import enter
from durable.stores import MemoryStore, PostgresStore, memory
from harness.ownership_children import PATIENCE
from harness.programs import run_program
from harness.support import Database

# -- event loops ----------------------------------------------------------------------------------------------------


async def crowd(store: PostgresStore) -> list[Any]:
    """Ten runs at once, of branches and of steps in turn; one is cancelled, one fails, and they are run again."""
    troubled = {7, 8}

    async def body(value: int) -> int:
        await asyncio.sleep(0)
        return value

    async def workflow(step: AsyncStep, _: None, number: int) -> int:
        values = await asyncio.gather(*(step("branch", body, value, key=f"branch-{value}") for value in range(5)))
        for value in range(3):
            values.append(await step("turn", body, value))
        if number in troubled:
            troubled.remove(number)
            if number == 7:
                raise ValueError(number)
            await asyncio.sleep(PATIENCE)
        return sum(values) + number

    def run(number: int) -> Any:
        return durable.run(None, workflow, id=f"run-{number}", store=store, input=number)

    tasks = [asyncio.ensure_future(run(number)) for number in range(10)]
    await asyncio.wait(tasks[:8] + tasks[9:])
    tasks[8].cancel()
    await asyncio.wait(tasks)
    assert tasks[8].cancelled()
    assert isinstance(tasks[7].exception(), ValueError)
    return [await run(number) for number in range(10)]


LOOPS: dict[str, Callable[..., Any]] = {
    "uvloop": lambda entry, store: asyncio.Runner(loop_factory=uvloop.new_event_loop).run(entry(store)),
    "anyio on asyncio": lambda entry, store: anyio.run(entry, store),
    "anyio on uvloop": lambda entry, store: anyio.run(entry, store, backend_options={"use_uvloop": True}),
}


@pytest.mark.parametrize("loop", LOOPS)
def test_another_event_loop_of_asyncios_kind(database: Database, loop: str) -> None:
    """FAULTS 80: everything is as on the loop of the standard library."""
    store = database.store()
    assert LOOPS[loop](crowd, store) == [13 + number for number in range(10)]
    assert database.execute("SELECT count(*) FROM durable_locks WHERE owner_token IS NOT NULL") == [(0,)]
    keys = "SELECT count(*), count(DISTINCT (workflow_id, key)) FROM durable_steps WHERE kind = 'step'"
    assert database.execute(keys) == [(80, 80)]


def test_tasks_of_anyio_that_are_cancelled_together(database: Database) -> None:
    """FAULTS 80: a cancel scope cancels again and again until its tasks are gone; leases are given back all the same."""
    store, began = database.store(), list[int]()

    async def waits(step: AsyncStep, _: None, number: int) -> None:
        await step("first", lambda: number)
        began.append(number)
        await anyio.sleep_forever()

    async def cancelled() -> None:
        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(partial(durable.run, None, waits, id=f"run-{number}", store=store, input=number))
            with anyio.fail_after(PATIENCE):
                while len(began) < 5:  # noqa: ASYNC110 -- a poll is what it is
                    await anyio.sleep(0.001)
            group.cancel_scope.cancel()

    anyio.run(cancelled)
    store.close()
    assert database.execute("SELECT epoch, owner_token FROM durable_locks") == [(1, None)] * 5


async def awaited(step: AsyncStep, _: None) -> int:
    return await step("one", lambda: 1)


def blocking(step: Step, _: None) -> int:
    return step("one", lambda: 1)


def by_hand(run: Callable[[], Any]) -> Any:
    """No event loop at all, as curio and other drivers of coroutines look to us."""
    return run().send(None)


def as_a_guest(run: Callable[[], Any]) -> Any:
    """Trio as a guest of asyncio: there is a running loop, but the coroutine is no task of it."""
    outcomes: list[Any] = []

    async def host() -> None:
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def finished(outcome: Any) -> None:
            outcomes.append(outcome)
            done.set()

        trio.lowlevel.start_guest_run(
            run,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=finished,
            host_uses_signal_set_wakeup_fd=True,
        )
        await done.wait()

    asyncio.run(host())
    return outcomes[0].unwrap()


@pytest.mark.parametrize("driver", [trio.run, by_hand, as_a_guest], ids=["trio", "by hand", "trio as a guest"])
def test_an_event_loop_of_another_kind_is_refused(database: Database, driver: Callable[..., Any]) -> None:
    """FAULTS 80: with the way out, before anything is touched; and that way leads out."""
    store = database.store()
    with pytest.raises(durable.errors.AsyncMismatch, match=r"'run'.*asyncio.*trio\.to_thread\.run_sync"):
        driver(lambda: durable.run(None, awaited, id="run", store=store))
    assert not store._held.resources.used
    memory = MemoryStore()
    with pytest.raises(durable.errors.AsyncMismatch, match="asyncio"):
        driver(lambda: durable.run(None, awaited, id="run", store=memory))
    memory.close()

    async def elsewhere() -> Any:
        return await trio.to_thread.run_sync(lambda: durable.run(None, blocking, id="run", store=store))

    assert trio.run(elsewhere) == 1


# -- signals --------------------------------------------------------------------------------------------------------

PROLOGUE = """
import asyncio, faulthandler, logging, signal, sys
import durable
from durable.stores import postgres
faulthandler.dump_traceback_later(25, exit=True)
store = postgres(sys.argv[1], schema=sys.argv[2])
bodies = []

def body(key):
    bodies.append(key)
    return key

def ten(step, _, run_id):
    return [step("body", body, f"{run_id}/{number}", key=str(number)) for number in range(10)]

async def aten(step, _, run_id):
    return [await step("body", body, f"{run_id}/{number}", key=str(number)) for number in range(10)]

def run(run_id, workflow=ten):
    return durable.run(None, workflow, id=run_id, store=store, input=run_id)

def expected(run_id):
    return [f"{run_id}/{number}" for number in range(10)]

"""

STORMS = {
    "a handler that runs workflows": """
        handled = []
        def handler(*_):
            run_id = f"handled-{len(handled)}"
            handled.append(run_id)
            if len(handled) <= 20:
                assert run(run_id) == expected(run_id)
        signal.signal(signal.SIGALRM, handler)
        run("first")
        signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
        number = 0
        while len(handled) < 20:
            assert run(f"main-{number}") == expected(f"main-{number}")
            assert asyncio.run(run(f"amain-{number}", aten)) == expected(f"amain-{number}")
            number += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert len(bodies) == len(set(bodies)), "a body ran twice"
    """,
    "a handler in the midst of a count": """
        handled = []
        def trace(frame, event, _):  # as a signal could come there
            if frame.f_code.co_name == "count_record" and event == "line" and len(handled) < 3:
                handled.append(f"handled-{len(handled)}")
                assert run(handled[-1]) == expected(handled[-1])
            return trace
        sys.settrace(trace)
        assert run("first") == expected("first")
        sys.settrace(None)
        assert len(handled) == 3
    """,
    "a handler that does nothing": """
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        for number in range(10):
            assert run(f"main-{number}") == expected(f"main-{number}")
            assert asyncio.run(run(f"amain-{number}", aten)) == expected(f"amain-{number}")
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert len(bodies) == len(set(bodies)), "a body ran twice"
    """,
    "a handler that raises": """
        class TooLate(BaseException):
            pass
        logging.disable()  # a lease may be left to end by itself, which is said
        armed, raised = [], []
        def handler(*_):
            if armed:
                raised.append(armed.pop())
                raise TooLate
        signal.signal(signal.SIGALRM, handler)
        run("first")
        for number in range(60):
            run_id, acknowledged = f"main-{number}", []
            def tens(step, _, run_id):
                for key in expected(run_id):
                    acknowledged.append(step("body", body, key, key=key))
            def once_more():
                durable.run(None, tens, id=run_id, store=store, input=run_id, on_conflict="wait", lease=0.5)
            try:
                armed.append(run_id)
                signal.setitimer(signal.ITIMER_REAL, 0.0005 + number % 50 * 0.0002)
                once_more()
                armed.clear()
            except (TooLate, durable.OutcomeUnknown):
                pass
            signal.setitimer(signal.ITIMER_REAL, 0)
            first, done = list(acknowledged), len(bodies)
            acknowledged.clear()
            once_more()
            assert acknowledged in (expected(run_id), []), "neither run to its end nor handed out from the store"
            assert not set(first) & set(bodies[done:]), "an acknowledged step ran again"
        assert len(raised) > 10
    """,
}


@pytest.mark.parametrize("after", [1, 2], ids=["the workflow's frame", "a body's frame"])
def test_an_interrupt_just_after_a_frame_was_entered_leaves_none_behind(after: int) -> None:
    """FAULTS 80: as by a signal handler that raises where no `try` is entered yet. The id can be run again at once."""
    store, left = memory(), [after]

    def interrupt(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code is enter.__code__ and event == "return":
            left[0] -= 1
            if not left[0]:
                sys.settrace(None)
                raise KeyboardInterrupt
        return interrupt

    def workflow(step: durable.Step, _: None) -> int:
        return step("step", lambda: 1)

    before = sys.gettrace()
    sys.settrace(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            durable.run(None, workflow, id="run", store=store)
    finally:
        sys.settrace(before)
    assert durable.run(None, workflow, id="run", store=store) == 1


_COLLECTED = re.compile(
    r"Exception ignored in: <generator object BasePipeline\._exit_gen at 0x[0-9a-f]+>\n"
    r"Traceback \(most recent call last\):\n(?: .*\n)+"
    r"psycopg\.OperationalError: flush request failed: connection pointer is NULL\n"
)


def storm(database: Database, body: str) -> None:
    """A process of its own, which ends well and quietly."""
    command = [sys.executable, "-c", PROLOGUE + textwrap.dedent(body) + "\nstore.close()\n", database.url]
    done = run_program([*command, database.schema])
    # A pipeline's generator of psycopg's that a handler's exception has left says this, and only this, as it is collected: the
    # connection was closed meanwhile. Nothing of ours can keep it from that.
    said = _COLLECTED.sub("", done.stderr)
    assert (done.returncode, done.stdout, said) == (0, "", ""), done.stderr


@pytest.mark.parametrize("handler", STORMS)
def test_signals_in_the_midst_of_runs(database: Database, handler: str) -> None:
    """FAULTS 80: `setitimer`, which finds the main thread anywhere: in a body, in a checkpoint, under a lock."""
    storm(database, STORMS[handler])
