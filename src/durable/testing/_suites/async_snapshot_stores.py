"""What every store of snapshots must do whose verbs are coroutines: a suite to inherit in your tests.

```python
class TestMyStore(AsyncSnapshotStoreSuite):
    @pytest.fixture
    def make_store(self) -> Callable[[], Awaitable[MyStore]]:
        return my_empty_store  # called, and awaited, once for each test, on the event loop that uses the store
```
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import durable
from durable.errors import AsyncMismatch
from durable.stores.protocol import AsyncSnapshotStore
from durable.testing._suites.raising import raises
from durable.testing._suites.snapshot_stores import SnapshotStoreSuite

MakeStore: TypeAlias = Callable[[], Awaitable[AsyncSnapshotStore]]

_PATIENCE: Final = 60.0  # seconds, for one verb


class AsyncSnapshotStoreSuite:
    """The five verbs as coroutines: all that `SnapshotStoreSuite` asks for, and what `durable.run` makes of them.

    A fixture `make_store` gives an async function that returns an empty store; the tests need nothing else.
    """

    def test_an_async_run_goes_on_from_what_it_saved(self, make_store: MakeStore) -> None:
        """`durable.run` on it: a failure is mended, no settled step runs again, and the result is kept."""
        calls: list[str] = []

        async def square(number: int) -> int:
            calls.append(f"square {number}")
            if calls.count("square 3") == 1 and number == 3:
                raise OSError(5, "not yet")
            return number * number

        async def workflow(step: durable.AsyncStep, _: None) -> list[int]:
            first = await step("square", square, 1, key="first")
            rest = await asyncio.gather(*(step("square", square, n, key=f"s{n}") for n in (2, 4, 5)))
            return [first, *rest, await step("square", square, 3, key="last")]

        async def main() -> None:
            store = await make_store()
            with raises(OSError):
                await durable.run(None, workflow, id="run", store=store)
            assert await durable.aio.status(store, "run") == "failed"
            for _ in range(2):
                assert await durable.run(None, workflow, id="run", store=store) == [1, 4, 16, 25, 9]
            assert calls.count("square 3") == 2
            assert len(calls) == 6
            assert await durable.aio.result(store, "run") == [1, 4, 16, 25, 9]
            assert await durable.aio.list_pending(store) == []
            await durable.aio.delete_state(store, "run")
            assert not await durable.aio.has_state(store, "run")

        asyncio.run(main())

    def test_of_one_id_one_execution_goes_on(self, make_store: MakeStore) -> None:
        """The others wait for its result."""
        calls: list[int] = []

        async def work() -> int:
            calls.append(1)
            await asyncio.sleep(0)
            return 7

        async def workflow(step: durable.AsyncStep, _: None) -> int:
            return await step("work", work)

        async def main() -> list[int]:
            store = await make_store()
            runs = [durable.run(None, workflow, id="run", store=store, on_conflict="wait") for _ in range(10)]
            return await asyncio.gather(*runs)

        assert asyncio.run(main()) == [7] * 10
        assert len(calls) == 1

    def test_a_blocking_workflow_is_refused(self, make_store: MakeStore) -> None:
        """Before anything is touched, and with the way out."""

        def workflow(_: durable.Step, __: None) -> None:
            raise AssertionError

        async def main() -> None:
            store: Any = await make_store()
            with raises(AsyncMismatch) as told:
                durable.run(None, workflow, id="run", store=store)
            assert "async def" in str(told.error)
            with raises(AsyncMismatch) as told:
                durable.result(store, "run")
            assert "durable.aio.result" in str(told.error)
            assert await store.load("run") is None

        asyncio.run(main())


def _ask_through_loop(test: Callable[..., None]) -> Callable[..., None]:
    """A test of blocking verbs, asked of verbs that are coroutines."""

    def ask(self: object, make_store: MakeStore) -> None:
        with _run_loop() as await_there:
            test(self, _Blocking(await_there(_make(make_store)), await_there))

    functools.update_wrapper(ask, test)
    ask.__signature__ = inspect.signature(AsyncSnapshotStoreSuite.test_a_blocking_workflow_is_refused)  # type: ignore[attr-defined]
    del ask.__wrapped__  # type: ignore[attr-defined]
    return ask


async def _make(make_store: MakeStore) -> AsyncSnapshotStore:
    return await make_store()


@contextmanager
def _run_loop() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """An event loop in a thread, and a way to await something on it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield lambda coroutine: asyncio.run_coroutine_threadsafe(coroutine, loop).result(_PATIENCE)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class _Blocking:
    """The store's verbs, blocking: each is awaited on the loop."""

    def __init__(self, store: AsyncSnapshotStore, await_there: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._store = store
        self._awaited = await_there

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        call = getattr(self._store, verb)
        return lambda *given, **options: self._awaited(call(*given, **options))


for _name, _test in vars(SnapshotStoreSuite).items():
    if _name.startswith("test_"):
        setattr(AsyncSnapshotStoreSuite, _name, _ask_through_loop(_test))
