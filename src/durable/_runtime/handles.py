"""What a workflow holds: `Step`; `async_handles` has its awaited form."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, Literal, NoReturn, TypeAlias, TypeVar, TypeVarTuple, Unpack, overload
from uuid import UUID

import tenacity
from psycopg import Connection

from durable._common.boundary import public
from durable._common.checks import check_flag
from durable._common.durations import Duration
from durable._engine.step_kinds import Isolation
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
    step_options,
)
from durable._runtime.steps import BlockingDriver
from durable._runtime.values import NOW, RANDOM, UUID4

I = TypeVar("I")  # noqa: E741 -- an item's type
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Pending: TypeAlias = Coroutine[None, None, T]
"""What an async call gives, to be awaited. (It yields nothing of interest; were that Any, mypy's `gather` would forget T.)"""


class Step:
    """`step(...)` in a blocking workflow."""

    __slots__ = ("__weakref__", "_driver")

    def __init__(self, driver: BlockingDriver) -> None:
        self._driver = driver

    def __repr__(self) -> str:
        return f"<Step of run {self._driver.run_id!r}>"

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self._driver.run_id

    @property
    def attempt(self) -> int:
        """Which execution of the run this is: the number of its lease, counted from 1, of which `durable.retry` takes one too.

        The attempt of a step's body is `durable.current().attempt`.
        """
        return self._driver.epoch

    @public("step")
    def __call__(
        self,
        name: str,
        fn: Callable[[*Ts], T],
        *args: *Ts,
        key: str | None = None,
        retry: tenacity.BaseRetrying | None = None,
        timeout: Duration | None = None,
        at_most_once: bool = False,
        cleanup: bool = False,
        undo: Callable[[Any], object] | None = None,
        cancellable: bool = False,
    ) -> T:
        """Call `fn(*args)` once and remember its outcome under `key` (by default the name, numbered on repetition).

        - `retry`: a `tenacity.Retrying` whose `stop`, `wait` and `retry` say when a body that raised is called again. The
          attempts and the next one's moment are recorded, and a restart goes on from there.
        - `timeout`: seconds, or a `timedelta`, for each attempt, after which `StepTimeout` is raised in its place. The body
          then goes on in a thread of its own, and nothing is recorded of it.
        - `at_most_once`: record that the body begins before it does (one more commit). Found begun and not ended, the step
          raises `StepInterrupted`; its body is never started again, not even to resume a failed run.
        - `cleanup`: what is to be done whenever the run is left, like a notification or an unlock. The step never keeps a
          failed run from being taken up again, and is then done anew; so its value is good for this execution only. It is
          also done while the run is being cancelled.
        - `undo`: a function of the step's value. Where the run ends failed or cancelled, it is called for each step that was
          done, the last one recorded first, each call a step of its own (`undo:KEY`), under the `retry` and `timeout` of the
          step, or of its own if it is decorated. What was undone, and all that started after it, is set aside then: a run that
          is taken up again does it anew.
        - `cancellable`: where the body is a coroutine, cancel it when the run is cancelled. Any other body goes on to its end,
          and is recorded.

        Returns what the record gives back: a new copy of the value. Raises what the body raised, rebuilt from its
        record; `KeyConflict`, `NestedStep`, `InvalidArgument`, `UnstorableValue` for a call that cannot be remembered.
        Where the run must not go on (its lease lost, its code drifted), control leaves the workflow past any
        `except Exception`.
        """
        driver, given = self._driver, step_options(retry, timeout, at_most_once, cleanup, undo, cancellable)
        value: T = driver.call(name, key, body_of_call(fn, args, given, driver.defaults))
        return value

    @public("step.on_end")
    def on_end(self, name: str, fn: Callable[[*Ts], object], *args: *Ts) -> None:
        """Have `fn(*args)` called when the run ends, however it ends: completed, failed or cancelled; after all undos.

        From the return of this call on that is remembered: it costs a commit. The call at the end is a step of its own
        (`end:NAME`), under the options that `fn` is decorated with; the last one asked for comes first. A run that is left
        without an end (a crash, a hand-over, a cancellation with `force=True`) performs it when it ends after all.
        """
        driver = self._driver
        driver.call(name, None, body_of_on_end(name, fn, args, driver.defaults))

    @overload
    def map(
        self, name: str, fn: Callable[[I], T], items: Iterable[I], **options: Unpack[RaisingMapOptions[I]]
    ) -> list[T]: ...
    @overload
    def map(
        self, name: str, fn: Callable[[I], T], items: Iterable[I], **options: Unpack[CollectingMapOptions[I]]
    ) -> list[T | Exception]: ...
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
    ) -> list[Any]:
        """Call `fn(item)` for each item, a step each, on `max_concurrency` threads (32 by default); the results in order.

        An item's key is `name[0]`, `name[1]` …, or `name[…]` of what `key(item)` says: choose it where the items may come in
        another order. Each is recorded as it ends, and only the missing ones run when the run is resumed. When one fails, no
        other is begun, and its exception is raised; with `return_exceptions=True` it stands in the list instead. `cleanup`,
        `undo` and `cancellable` as for `step(...)`.
        """
        how = MapOptions(key, max_concurrency, return_exceptions)
        given = step_options(retry, timeout, cleanup=cleanup, undo=undo, cancellable=cancellable)
        return self._driver.map(name, items, how, partial(body_of_mapped, fn, given, self._driver.defaults))

    @public("step.sleep")
    def sleep(self, name: str, seconds: Duration | datetime, *, key: str | None = None) -> None:
        """Let `seconds` (or a `timedelta`) pass, or wait until an aware `datetime`.

        The moment of waking is recorded: restarts do not begin anew. Seconds last as long as they do, also where the wall
        clock is set meanwhile; a `datetime` has come when the wall clock says so.
        """
        self._driver.call(name, key, body_of_sleep(seconds, self._driver.clock))

    @overload
    def wait_for(self, name: str, *, timeout: Duration | None = ..., key: str | None = ...) -> Any: ...
    @overload
    def wait_for(self, name: str, *, type: type[T], timeout: Duration | None = ..., key: str | None = ...) -> T: ...
    @overload
    def wait_for(self, name: str, *, type: Any, timeout: Duration | None = ..., key: str | None = ...) -> Any: ...
    @public("step.wait_for")
    def wait_for(self, name: str, *, type: Any = Any, timeout: Duration | None = None, key: str | None = None) -> Any:
        """Wait for `durable.signal(store, id, name, payload)`, from any process, and return the payload.

        Signals of a name are received in their order, each by one call, also when they were sent before. After `timeout`
        seconds (None: never), restarts included, `SignalTimedOut` is raised, and recorded. With a `type` the payload is
        returned as that, also where it was sent as plain JSON; `SignalMismatch` where it is no such value.
        """
        return self._driver.call(name, key, body_of_wait(name, timeout, type))

    @public("step.wait_for_any")
    def wait_for_any(
        self, names: Iterable[str], *, timeout: Duration | None = None, key: str | None = None
    ) -> tuple[str, Any]:
        """Wait for a signal of any of these names: the name and the payload of the first that was sent.

        Otherwise as `wait_for`.
        """
        checked = check_signal_names(names)
        name = " | ".join(checked)
        value: tuple[str, Any] = self._driver.call(name, key, body_of_wait(name, timeout, names=checked))
        return value

    @overload
    def call(
        self, fn: Callable[[Any, Any], Coroutine[Any, Any, T]], *, key: str, **options: Unpack[ChildOptions]
    ) -> T: ...
    @overload
    def call(
        self,
        fn: Callable[[Any, Any, I], Coroutine[Any, Any, T]],
        input: I,
        *,
        key: str,
        **options: Unpack[ChildOptions],
    ) -> T: ...
    @overload
    def call(self, fn: Callable[[Step, Any], T], *, key: str, **options: Unpack[ChildOptions]) -> T: ...
    @overload
    def call(self, fn: Callable[[Step, Any, I], T], input: I, *, key: str, **options: Unpack[ChildOptions]) -> T: ...
    @overload
    def call(self, fn: str, input: Any = ..., *, key: str, **options: Unpack[ChildOptions]) -> Any: ...
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
        """Start a child, a run of its own for workers, wait for its end, and return its value.

        - `fn`: a function that is marked with `@durable.workflow`; or its name, `"resize"`, or `"resize@2"` for a version.
        - `key`: the step's key. The child's id is this run's, `/`, and the key: a replay, and a resume, join the same child.
        - `queue`, `priority`, `at`, `delay`, `deadline`, `metadata`, `partition`: of the child, as for `durable.start`.

        While it waits, a run of a worker holds no place there. The child's outcome is recorded in this run, and not asked for
        again. `durable.cancel` of this run cancels its children; one that fails or is completed leaves them alone.

        Raises `ChildFailed` where the child has failed, was cancelled, or was deleted; `RunExists` and `RunMismatch` where its
        id is that of another run, which is recorded, too; and what `step(...)` raises.
        """
        order = Start(input, None, priority, at, delay, None, deadline, metadata, partition)
        child = plan_child(self._driver, fn, key, order, queue)
        return self._driver.call_child(child.name, key, child.begin, child.wait)

    @overload
    def start(
        self, fn: Callable[[Any, Any], Coroutine[Any, Any, T]], *, key: str, **options: Unpack[ChildOptions]
    ) -> ChildHandle[T]: ...
    @overload
    def start(
        self,
        fn: Callable[[Any, Any, I], Coroutine[Any, Any, T]],
        input: I,
        *,
        key: str,
        **options: Unpack[ChildOptions],
    ) -> ChildHandle[T]: ...
    @overload
    def start(self, fn: Callable[[Step, Any], T], *, key: str, **options: Unpack[ChildOptions]) -> ChildHandle[T]: ...
    @overload
    def start(
        self, fn: Callable[[Step, Any, I], T], input: I, *, key: str, **options: Unpack[ChildOptions]
    ) -> ChildHandle[T]: ...
    @overload
    def start(self, fn: str, input: Any = ..., *, key: str, **options: Unpack[ChildOptions]) -> ChildHandle[Any]: ...
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
        """Start a child, and return its handle, for `wait_all`; otherwise as `call`.

        The start is recorded, in one commit with the child's own rows. Whether the child is waited for or not, it goes on.
        """
        order = Start(input, None, priority, at, delay, None, deadline, metadata, partition)
        child = plan_child(self._driver, fn, key, order, queue)
        return self._driver.call(child.name, key, child.begin)

    @overload
    def wait_all(self, handles: Iterable[ChildHandle[T]], *, return_exceptions: Literal[False] = ...) -> list[T]: ...
    @overload
    def wait_all(
        self, handles: Iterable[ChildHandle[T]], *, return_exceptions: Literal[True]
    ) -> list[T | Exception]: ...
    @public("step.wait_all")
    def wait_all(self, handles: Iterable[ChildHandle[Any]], *, return_exceptions: bool = False) -> Any:
        """Wait until all these children have ended, and return their values in order.

        Then the first exception in that order is raised, of a child that has no value (`ChildFailed`); with
        `return_exceptions=True` it stands in the list instead. Takes what `start` has returned in this execution.
        """
        check_flag("return_exceptions", return_exceptions)
        return self._driver.wait_for_children(check_handles(self._driver, handles), return_exceptions=return_exceptions)

    @public("step.race")
    def race(self, *, key: str | None = None, **branches: Callable[[], T]) -> tuple[str, T]:
        """Call the `branches`, which take no arguments, beside each other: the name and the value of the first that returns.

        The winner is recorded, under the branches' names or `key`: a replay returns it, and begins no branch. A branch may
        call steps, and has a thread. One that raises is out, and the others go on; where all did, an `ExceptionGroup` of
        what they raised is raised, and recorded. When the race is decided, the other branches begin no more steps: waits end,
        and a body that runs goes on in its thread, which the end of the run waits for.

        Raises `InvalidArgument` where there is no branch, or one is no function, and `UnstorableValue`; else as `step(...)`.
        """
        name, body = body_of_race(branches)
        value: tuple[str, T] = self._driver.call(name, key, body)
        return value

    @public("step.continue_with")
    def continue_with(self, input: Any, *, keep_history: bool = True) -> NoReturn:
        """Begin the workflow anew as the same run, with this `input` and an empty journal. It does not return.

        For a run that lives for years: no execution replays what was before. The old journal is kept as a completed run of its
        own, whose id is the run's, `~` and a number from 1 on, and whose result is the new input; or, with
        `keep_history=False`, deleted. Both happen in one commit, or neither. Signals that were not received yet stay;
        so do the run's deadline and metadata, and `durable.run` and `durable.start` still compare with the first input.

        Control leaves the workflow past any `except Exception`, and `finally` clauses are executed. Raises `InvalidArgument`
        where the workflow takes no input, or other branches are at work, and `UnstorableValue`; the store's errors interrupt
        the run.
        """
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
    ) -> T:
        """Call `fn(connection, *args)` in a transaction of the store's database, and commit it together with the step's record.

        Both are committed or neither is: what `fn` does to the database happens exactly once. `fn` is a blocking function,
        the connection a `psycopg.Connection` in a transaction at the `isolation` given; return to commit, raise to roll back,
        `with connection.transaction():` for a part. It may leave the connection idle for as long as the lease lasts. What it
        does elsewhere happens at least once, as in any step: a deadlock, a serialization failure, the loss of the
        connection, or a server that is out of disk space or memory has it called again.

        `key`, `retry`, `timeout`, `cleanup`, the value and the errors are as for `step(...)`, and so is `undo`, which is called
        as `undo(connection, value)` in a transaction of its own; besides these,
        `TransactionMisused` for a body that ends the transaction or tries to. A store that is no PostgreSQL ends the run
        with `InvalidArgument`.
        """
        driver, given = self._driver, step_options(retry, timeout, cleanup=cleanup, undo=undo)
        value: T = driver.call(name, key, body_of_transaction(name, fn, args, given, driver.defaults, isolation))
        return value

    @overload
    def map_transactions(
        self,
        name: str,
        fn: Callable[[Connection[Any], I], T],
        items: Iterable[I],
        **options: Unpack[RaisingTransactions[I]],
    ) -> list[T]: ...
    @overload
    def map_transactions(
        self,
        name: str,
        fn: Callable[[Connection[Any], I], T],
        items: Iterable[I],
        **options: Unpack[CollectingTransactions[I]],
    ) -> list[T | Exception]: ...
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
    ) -> list[Any]:
        """Call `fn(connection, item)` for each item, each in a transaction of its own, which is committed with its record.

        `key`, `max_concurrency`, `return_exceptions` and what comes back are as for `map`, the rest as for `transaction`. At
        most `max_transactions` of the store are open at once.
        """
        how, given = MapOptions(key, max_concurrency, return_exceptions), step_options(retry, timeout, cleanup=cleanup)
        defaults = self._driver.defaults
        body_of_transaction(name, fn, (), given, defaults, isolation)  # what cannot be one is no outcome of an item
        body_of = partial(body_of_transacted, name, fn, given, defaults, isolation)
        return self._driver.map(name, items, how, body_of)

    @public("step.now")
    def now(self, *, key: str | None = None) -> datetime:
        """The moment, as an aware UTC `datetime`: the same in every replay.

        It costs no commit: the next record that is written holds it, and all that depends on it comes with or after that
        record. A process that dies before leaves nothing by which the value would be known: the next execution draws anew,
        and a body that had begun with the old value is called with the new one. What such a body does elsewhere is told
        apart by `durable.idempotency_key()`, not by a drawn value.

        Repeated calls are numbered in their order. Where branches run beside each other, or results are taken as they come,
        that order is not sure (`AmbiguousKey`): give each call a `key`. The same key is the same value. Values are
        stored as they are, also where the store's codec seals those of steps.
        """
        return self._driver.draw_value(NOW, key)

    @public("step.uuid")
    def uuid(self, *, key: str | None = None) -> UUID:
        """A random UUID (version 4), the same in every replay; otherwise as `now`."""
        return self._driver.draw_value(UUID4, key)

    @public("step.random")
    def random(self, *, key: str | None = None) -> float:
        """A random number from 0 up to and without 1, the same in every replay; otherwise as `now`."""
        return self._driver.draw_value(RANDOM, key)

    @public("step.scope")
    def scope(self, name: str) -> Scope:
        """In `with step.scope("name"):` the key of each step begins with `name/`, so that it is told from others of its name.

        For a helper function, and for the body of a loop. Scopes lie within each other: `outer/inner/key`. A name that is
        entered again is numbered like a step's, `name#2/`, and like that, where other branches are at work, has to be
        another (`AmbiguousKey`). A task or thread that carries the context on is in the scope in which it was made; a thread
        that you start yourself is in none. The items of a `step.map` have scopes of their own.
        """
        return Scope(self._driver, name)

    @public("step.patched")
    def patched(self, name: str) -> bool:
        """Whether to take the new way at a place where a workflow was changed: `if step.patched("name"):` new, `else:` old.

        True where the run comes there first with this code; False where it had passed there before, by the old way: something
        is recorded that comes later. The answer is the same in every replay, and one for all places of a name in a run. Like a
        value of `step.now()` it costs no commit: the next record that is written holds it.

        Where branches run beside each other, the answer is False as long as anything recorded may still be asked for.
        """
        return self._driver.takes_patch(name)
