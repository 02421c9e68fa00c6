"""Tells which kind of store `durable` was given."""

from __future__ import annotations

import inspect
from typing import Any, Final, TypeAlias

from durable.errors import AsyncMismatch, InvalidArgument
from durable.stores._adapters.async_snapshots import AsyncSnapshotAdapter
from durable.stores._adapters.snapshots import SnapshotAdapter
from durable.stores.protocol import AsyncSnapshotStore, QueueingStore, ReadableStore, RunStore, SnapshotStore

AnyStore: TypeAlias = RunStore | SnapshotStore | AsyncSnapshotStore

_VERBS: Final = ("save", "load", "delete", "list")  # and close, which may be either way: we never call it


def as_run_store(store: AnyStore) -> RunStore:
    """The store itself, if it can be run on, or a way to run on its five verbs; `InvalidArgument` if it has not even these."""
    given: Any = store  # the verbs are looked for, since structural types cannot be told apart
    if not isinstance(store, type):
        if hasattr(store, "perform") and hasattr(store, "aio"):
            runs: RunStore = given
            return runs
        if hasattr(store, "submit") and hasattr(store, "room"):
            raise InvalidArgument(
                "store.aio shows a store's verbs as coroutines; pass the store itself, which an async workflow awaits by itself"
            )
    _check(store, (*_VERBS, "close"))
    return AsyncSnapshotAdapter(given) if is_awaited(store) else SnapshotAdapter(given)


def queueing_store(store: Any, function: str) -> QueueingStore:
    """The store, if runs can wait in it for workers; else `InvalidArgument` for `function`."""
    runs: Any = as_run_store(store)
    if runs is not store:
        raise InvalidArgument(
            f"{function} needs a store in which runs can wait for workers, like postgres(url) or embedded(), and "
            f"{type(store).__name__} has only the five verbs"
        )
    queueing: QueueingStore = runs
    return queueing


def readable_store(store: Any, function: str) -> ReadableStore:
    """The store, if people and tools can look into it; else `InvalidArgument` for `function`."""
    queueing: Any = queueing_store(store, function)
    if not hasattr(queueing, "copy"):
        raise InvalidArgument(f"{function} needs the store itself, like postgres(url), and not {type(store).__name__}")
    readable: ReadableStore = queueing
    return readable


def _check(store: object, verbs: tuple[str, ...]) -> None:
    if isinstance(store, str | type) or not all(hasattr(store, verb) for verb in verbs):
        given, called = type(store).__name__, getattr(store, "__name__", "")
        if callable(store) and called:
            given = f"{called} itself: call it, {called}(…)"
        raise InvalidArgument(
            f"store must be a store, like postgres(url) or embedded(), or an object with the verbs "
            f"{', '.join(verbs)}, not {given}"
        )


def is_awaited(store: object) -> bool:
    """Whether its verbs are coroutines; `InvalidArgument` if some are and some are not, or if it has none."""
    _check(store, _VERBS)
    awaited = [verb for verb in _VERBS if inspect.iscoroutinefunction(getattr(store, verb, None))]
    if awaited and len(awaited) < len(_VERBS):
        rest = ", ".join(verb for verb in _VERBS if verb not in awaited)
        raise InvalidArgument(
            f"the verbs {', '.join(awaited)} of {type(store).__name__} are coroutines, and {rest} are not: make them alike"
        )
    return bool(awaited)


def blocking(store: Any, function: str) -> SnapshotStore:
    """The store, whose verbs must block for `durable.{function}`."""
    if is_awaited(store):
        raise AsyncMismatch(
            f"the verbs of {type(store).__name__} are coroutines: await durable.aio.{function}(...) instead of "
            f"durable.{function}(...)"
        )
    verbs: SnapshotStore = store
    return verbs
