"""What a call of `run` was given besides what to run."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypedDict, cast

import tenacity

from durable._common.durations import Duration, check_duration
from durable._engine.headers import FOREIGN_METADATA
from durable._runtime.versions import OnVersionMismatch, check_answer, check_version
from durable.errors import InvalidArgument
from durable.events import Listener
from durable.stores._adapters.kinds import AnyStore
from durable.stores.protocol import RunStore, SnapshotStore

OnConflict: TypeAlias = Literal["raise", "wait"]
Recover: TypeAlias = Literal["workers"]

_RESERVED: Final = {"version", "inputHash", "workflowFunction", "deadline", *FOREIGN_METADATA}


class _RunOptions(TypedDict, total=False):
    """The options of `durable.run` to a type checker; what each means is said there."""

    version: int | None
    on_version_mismatch: OnVersionMismatch | None
    on_conflict: OnConflict
    wait_timeout: Duration | None
    lease: Duration
    deadline: Duration | datetime | None
    metadata: Mapping[str, Any] | None
    cancel: threading.Event | None
    retry: tenacity.BaseRetrying | None
    on_event: Listener | None
    recover: Recover | None


class BlockingRunOptions(_RunOptions, total=False):
    """Those of a blocking workflow, whose store blocks too."""

    store: RunStore | SnapshotStore | None


class AnyRunOptions(_RunOptions, total=False):
    """Those of an async workflow, whose store may be of any kind."""

    store: AnyStore | None


class RunOptions(NamedTuple):
    """The same as they were given, or by default."""

    version: int | None
    on_version_mismatch: OnVersionMismatch | None
    on_conflict: str
    wait_timeout: Duration | None
    lease: Duration
    deadline: Duration | datetime | None
    metadata: Mapping[str, Any] | None
    cancel: threading.Event | None
    retry: object
    on_event: Listener | None
    recover: str | None = None


def check_options(options: RunOptions) -> None:
    """`InvalidArgument` for an option that cannot be one."""
    version, on_conflict, wait_timeout = options.version, options.on_conflict, options.wait_timeout
    if version is not None:
        check_version(version)
    check_answer(options.on_version_mismatch)
    if on_conflict not in ("raise", "wait"):
        raise InvalidArgument(f'on_conflict must be "raise" or "wait", not {on_conflict!r}')
    if options.recover not in (None, "workers"):
        raise InvalidArgument(f'recover must be "workers" or None, not {options.recover!r}')
    if wait_timeout is not None:
        check_duration("wait_timeout", wait_timeout, zero=True)
    check_metadata(options.metadata)
    if options.cancel is not None and not isinstance(options.cancel, threading.Event):
        raise InvalidArgument(f"cancel must be a threading.Event, not {type(options.cancel).__name__}")
    if options.on_event is not None and not callable(options.on_event):
        raise InvalidArgument(f"on_event must be a function of one event, not {type(options.on_event).__name__}")


def check_metadata(given: object) -> dict[str, Any]:
    """The metadata as a dict of its own; `InvalidArgument` for what cannot be any."""
    if not isinstance(given, Mapping | None):
        raise InvalidArgument(f"metadata must be a mapping, not {type(given).__name__}")
    metadata = dict[str, Any](cast("Mapping[str, Any]", given or {}))
    if _RESERVED & set(metadata):
        raise InvalidArgument(
            f"metadata must not have the keys {sorted(_RESERVED)}: they are the library's own, or tell another tool's runs"
        )
    return metadata
