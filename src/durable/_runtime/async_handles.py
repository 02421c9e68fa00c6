"""What an async workflow holds: `AsyncStep`, whose steps are awaited."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, Literal, NoReturn, TypeVar, TypeVarTuple, Unpack, overload
from uuid import UUID

import tenacity
from psycopg import Connection

from durable._common.boundary import public
from durable._common.checks import check_flag
from durable._common.durations import Duration
from durable._engine.step_kinds import Isolation
from durable._runtime.async_steps import AsyncDriver
from durable._runtime.bodies import (
    body_of_call,
    body_of_mapped,
    body_of_on_end,
    body_of_sleep,
    body_of_transacted,
    body_of_transaction,
    body_of_wait,
    check_signal_names,
)
from durable._runtime.children import ChildHandle, ChildOptions, check_handles, plan_child
from durable._runtime.handles import Pending, Step
from durable._runtime.mapping import MapOptions
from durable._runtime.new_runs import Start
from durable._runtime.plan import MISSING
from durable._runtime.races import body_of_race
from durable._runtime.scopes import Scope
from durable._runtime.step_options import (
    CollectingMapOptions,
    CollectingTransactions,
    RaisingMapOptions,
    RaisingTransactions,
    StepOptionsDict,
    step_options,
)
from durable._runtime.values import NOW, RANDOM, UUID4

I = TypeVar("I")  # noqa: E741 -- an item's type
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class AsyncStep:
    """`await step(...)` in an async workflow."""

    __slots__ = ("__weakref__", "_driver")

    def __init__(self, driver: AsyncDriver) -> None:
        self._driver = driver

    def __repr__(self) -> str:
        return f"<AsyncStep of run {self._driver.run_id!r}>"

    @property
    def run_id(self) -> str:
        """See `Step.run_id`."""
        return self._driver.run_id

    @property
    def attempt(self) -> int:
        """See `Step.attempt`."""
        return self._driver.epoch

    @overload
    def __call__(
        self, name: str, fn: Callable[[*Ts], Awaitable[T]], *args: *Ts, **options: Unpack[StepOptionsDict]
    ) -> Pending[T]: ...
    @overload  # not of plain T: mypy would take a coroutine for the value
    def __call__(
        self, name: str, fn: Callable[[*Ts], Awaitable[T] | T], *args: *Ts, **options: Unpack[StepOptionsDict]
    ) -> Pending[T]: ...
    @public("step")  # type: ignore[misc] # mypy: *Ts is not Any
    def __call__(
        self,
        name: str,
        fn: Any,
        *args: Any,
        key: str | None = None,
        retry: tenacity.BaseRetrying | None = None,
        timeout: Duration | None = None,
        at_most_once: bool = False,
        cleanup: bool = False,
        undo: Callable[[Any], object] | None = None,
        cancellable: bool = False,
    ) -> Any:
        """Call `fn(*args)`, and await what it returns if that can be awaited; otherwise as `Step`.

        The key is drawn at this call, the body begins when the coroutine is awaited; a run is not completed while one never was
        (`AsyncMismatch`), and waits for tasks that the workflow has left behind with a step. A blocking function runs on the
        event loop: use `asyncio.to_thread` in it if it takes long. With a `timeout` an async body is cancelled, and a
        blocking one runs in a thread of its own.
        """
        driver, given = self._driver, step_options(retry, timeout, at_most_once, cleanup, undo, cancellable)
        return driver.call(name, key, body_of_call(fn, args, given, driver.defaults))

    @public("step.on_end")
    def on_end(self, name: str, fn: Callable[[*Ts], object], *args: *Ts) -> Pending[None]:
        """See `Step.on_end`; to be awaited."""
        driver = self._driver
        return driver.call(name, None, body_of_on_end(name, fn, args, driver.defaults))

    @overload
    def map(
        self, name: str, fn: Callable[[I], Awaitable[T]], items: Iterable[I], **options: Unpack[RaisingMapOptions[I]]
    ) -> Pending[list[T]]: ...
    @overload
    def map(
        self, name: str, fn: Callable[[I], Awaitable[T]], items: Iterable[I], **options: Unpack[CollectingMapOptions[I]]
    ) -> Pending[list[T | Exception]]: ...
    @overload
    def map(
        self,
        name: str,
        fn: Callable[[I], Awaitable[T] | T],
        items: Iterable[I],
        **options: Unpack[RaisingMapOptions[I]],
    ) -> Pending[list[T]]: ...
    @overload
    def map(
        self,
        name: str,
        fn: Callable[[I], Awaitable[T] | T],
        items: Iterable[I],
        **options: Unpack[CollectingMapOptions[I]],
    ) -> Pending[list[T | Exception]]: ...
    @public("step.map")
    def map(
        self,
        name: str,
        fn: Callable[[I], Any],
        items: Iterable[I],
        *,
        key: Callable[[I], object] | None = None,
        max_concurrency: int | None = None,
        return_exceptions: bool = False,
        retry: tenacity.BaseRetrying | None = None,
        timeout: Duration | None = None,
        cleanup: bool = False,
        undo: Callable[[Any], object] | None = None,
        cancellable: bool = False,
    ) -> Pending[list[Any]]:
        """See `Step.map`; on tasks."""
        how = MapOptions(key, max_concurrency, return_exceptions)
        given = step_options(retry, timeout, cleanup=cleanup, undo=undo, cancellable=cancellable)
        return self._driver.map(name, items, how, partial(body_of_mapped, fn, given, self._driver.defaults))

    @public("step.sleep")
    def sleep(self, name: str, seconds: Duration | datetime, *, key: str | None = None) -> Pending[None]:
        """See `Step.sleep`."""
        return self._driver.call(name, key, body_of_sleep(seconds, self._driver.clock))

    @overload
    def wait_for(self, name: str, *, timeout: Duration | None = ..., key: str | None = ...) -> Pending[Any]: ...
    @overload
    def wait_for(
        self, name: str, *, type: type[T], timeout: Duration | None = ..., key: str | None = ...
    ) -> Pending[T]: ...
    @overload
    def wait_for(
        self, name: str, *, type: Any, timeout: Duration | None = ..., key: str | None = ...
    ) -> Pending[Any]: ...
    @public("step.wait_for")
    def wait_for(
        self, name: str, *, type: Any = Any, timeout: Duration | None = None, key: str | None = None
    ) -> Pending[Any]:
        """See `Step.wait_for`."""
        return self._driver.call(name, key, body_of_wait(name, timeout, type))

    @public("step.wait_for_any")
    def wait_for_any(
        self, names: Iterable[str], *, timeout: Duration | None = None, key: str | None = None
    ) -> Pending[tuple[str, Any]]:
        """See `Step.wait_for_any`."""
        checked = check_signal_names(names)
        name = " | ".join(checked)
        return self._driver.call(name, key, body_of_wait(name, timeout, names=checked))

    @overload
    def call(
        self, fn: Callable[[AsyncStep, Any], Coroutine[Any, Any, T]], *, key: str, **options: Unpack[ChildOptions]
    ) -> Pending[T]: ...
    @overload
    def call(
        self,
        fn: Callable[[AsyncStep, Any, I], Coroutine[Any, Any, T]],
        input: I,
        *,
        key: str,
        **options: Unpack[ChildOptions],
    ) -> Pending[T]: ...
    @overload
    def call(self, fn: Callable[[Step, Any], T], *, key: str, **options: Unpack[ChildOptions]) -> Pending[T]: ...
    @overload
    def call(
        self, fn: Callable[[Step, Any, I], T], input: I, *, key: str, **options: Unpack[ChildOptions]
    ) -> Pending[T]: ...
    @overload
    def call(self, fn: str, input: Any = ..., *, key: str, **options: Unpack[ChildOptions]) -> Pending[Any]: ...
    @public("step.call")
    def call(
        self,
        fn: Callable[..., Any] | str,
        input: Any = MISSING,
        *,
        key: str,
        queue: str | None = None,
        priority: int = 5,
        at: datetime | None = None,
        delay: Duration | None = None,
        deadline: Duration | datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
        partition: str | None = None,
    ) -> Any:
        """See `Step.call`."""
        order = Start(input, None, priority, at, delay, None, deadline, metadata, partition)
        child = plan_child(self._driver, fn, key, order, queue)
        return self._driver.call_child(child.name, key, child.begin, child.wait)

    @overload
    def start(
        self, fn: Callable[[AsyncStep, Any], Coroutine[Any, Any, T]], *, key: str, **options: Unpack[ChildOptions]
    ) -> Pending[ChildHandle[T]]: ...
    @overload
    def start(
        self,
        fn: Callable[[AsyncStep, Any, I], Coroutine[Any, Any, T]],
        input: I,
        *,
        key: str,
        **options: Unpack[ChildOptions],
    ) -> Pending[ChildHandle[T]]: ...
    @overload
    def start(
        self, fn: Callable[[Step, Any], T], *, key: str, **options: Unpack[ChildOptions]
    ) -> Pending[ChildHandle[T]]: ...
    @overload
    def start(
        self, fn: Callable[[Step, Any, I], T], input: I, *, key: str, **options: Unpack[ChildOptions]
    ) -> Pending[ChildHandle[T]]: ...
    @overload
    def start(
        self, fn: str, input: Any = ..., *, key: str, **options: Unpack[ChildOptions]
    ) -> Pending[ChildHandle[Any]]: ...
    @public("step.start")
    def start(
        self,
        fn: Callable[..., Any] | str,
        input: Any = MISSING,
        *,
        key: str,
        queue: str | None = None,
        priority: int = 5,
        at: datetime | None = None,
        delay: Duration | None = None,
        deadline: Duration | datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
        partition: str | None = None,
    ) -> Any:
        """See `Step.start`; awaited for the handle."""
        order = Start(input, None, priority, at, delay, None, deadline, metadata, partition)
        child = plan_child(self._driver, fn, key, order, queue)
        return self._driver.call(child.name, key, child.begin)

    @overload
    def wait_all(
        self, handles: Iterable[ChildHandle[T]], *, return_exceptions: Literal[False] = ...
    ) -> Pending[list[T]]: ...
    @overload
    def wait_all(
        self, handles: Iterable[ChildHandle[T]], *, return_exceptions: Literal[True]
    ) -> Pending[list[T | Exception]]: ...
    @public("step.wait_all")
    def wait_all(self, handles: Iterable[ChildHandle[Any]], *, return_exceptions: bool = False) -> Any:
        """See `Step.wait_all`."""
        check_flag("return_exceptions", return_exceptions)
        return self._driver.wait_for_children(check_handles(self._driver, handles), return_exceptions=return_exceptions)

    @overload
    def race(self, *, key: str | None = ..., **branches: Callable[[], Awaitable[T]]) -> Pending[tuple[str, T]]: ...
    @overload
    def race(self, *, key: str | None = ..., **branches: Callable[[], Awaitable[T] | T]) -> Pending[tuple[str, T]]: ...
    @public("step.race")
    def race(self, *, key: str | None = None, **branches: Callable[[], Any]) -> Pending[tuple[str, Any]]:
        """See `Step.race`; on tasks. Those of the other branches are cancelled, and awaited, before it returns."""
        name, body = body_of_race(branches)
        return self._driver.call(name, key, body)

    @public("step.continue_with")
    def continue_with(self, input: Any, *, keep_history: bool = True) -> NoReturn:
        """See `Step.continue_with`; not awaited."""
        self._driver.continue_with(input, keep_history=keep_history)

    @public("step.transaction")
    def transaction(
        self,
        name: str,
        fn: Callable[[Connection[Any], *Ts], T],
        *args: *Ts,
        key: str | None = None,
        retry: tenacity.BaseRetrying | None = None,
        timeout: Duration | None = None,
        cleanup: bool = False,
        undo: Callable[[Connection[Any], Any], object] | None = None,
        isolation: Isolation = "read committed",
    ) -> Pending[T]:
        """See `Step.transaction`; `fn` is called in a thread of the store's."""
        driver, given = self._driver, step_options(retry, timeout, cleanup=cleanup, undo=undo)
        return driver.call(name, key, body_of_transaction(name, fn, args, given, driver.defaults, isolation))

    @overload
    def map_transactions(
        self,
        name: str,
        fn: Callable[[Connection[Any], I], T],
        items: Iterable[I],
        **options: Unpack[RaisingTransactions[I]],
    ) -> Pending[list[T]]: ...
    @overload
    def map_transactions(
        self,
        name: str,
        fn: Callable[[Connection[Any], I], T],
        items: Iterable[I],
        **options: Unpack[CollectingTransactions[I]],
    ) -> Pending[list[T | Exception]]: ...
    @public("step.map_transactions")
    def map_transactions(
        self,
        name: str,
        fn: Callable[[Connection[Any], I], Any],
        items: Iterable[I],
        *,
        key: Callable[[I], object] | None = None,
        max_concurrency: int | None = None,
        return_exceptions: bool = False,
        retry: tenacity.BaseRetrying | None = None,
        timeout: Duration | None = None,
        cleanup: bool = False,
        isolation: Isolation = "read committed",
    ) -> Pending[list[Any]]:
        """See `Step.map_transactions`; `fn` is called in threads of the store's."""
        how, given = MapOptions(key, max_concurrency, return_exceptions), step_options(retry, timeout, cleanup=cleanup)
        defaults = self._driver.defaults
        body_of_transaction(name, fn, (), given, defaults, isolation)  # what cannot be one is no outcome of an item
        body_of = partial(body_of_transacted, name, fn, given, defaults, isolation)
        return self._driver.map(name, items, how, body_of)

    @public("step.now")
    def now(self, *, key: str | None = None) -> datetime:
        """See `Step.now`; not awaited."""
        return self._driver.draw_value(NOW, key)

    @public("step.uuid")
    def uuid(self, *, key: str | None = None) -> UUID:
        """See `Step.uuid`; not awaited."""
        return self._driver.draw_value(UUID4, key)

    @public("step.random")
    def random(self, *, key: str | None = None) -> float:
        """See `Step.random`; not awaited."""
        return self._driver.draw_value(RANDOM, key)

    @public("step.scope")
    def scope(self, name: str) -> Scope:
        """See `Step.scope`; entered by `with`."""
        return Scope(self._driver, name)

    @public("step.patched")
    def patched(self, name: str) -> bool:
        """See `Step.patched`; not awaited."""
        return self._driver.takes_patch(name)
