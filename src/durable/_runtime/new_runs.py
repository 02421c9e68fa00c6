"""A run to be started: what it is given, checked."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, get_type_hints

from msgspec import Struct

from durable._common.checks import check_name
from durable._common.durations import Duration, check_duration, to_utc
from durable._engine.starts import MAX_PRIORITY, NewRun, Route
from durable._engine.workers import MAX_CRASHES
from durable._runtime.plan import MISSING, check_arity
from durable._runtime.run_options import check_metadata
from durable._runtime.versions import check_version
from durable._runtime.workflow import DEFAULT_QUEUE, WorkflowDefinition, definition_of_workflow
from durable.clocks import Clock
from durable.codecs import Codec, check_plain, parameter_annotation
from durable.errors import InvalidArgument

_DIGITS: Final = 11  # of a version, which is larger then than any
_INPUT: Final = 2  # the place of the workflow's parameter


class Start(Struct, frozen=True):
    """One of the runs of `start_many`; its fields are the options of `start`."""

    #: The workflow's input.
    input: Any = MISSING
    #: The run's id, by default a random one.
    id: str | None = None
    #: From 0, the most urgent, to 9.
    priority: int = 5
    #: When it is due, an aware moment.
    at: datetime | None = None
    #: Seconds until it is due.
    delay: Duration | None = None
    #: A text that no other run of the queue has which has not ended.
    dedup: str | None = None
    #: Seconds from now, or an aware moment, after which no further step begins.
    deadline: Duration | datetime | None = None
    #: JSON values kept in the run's header.
    metadata: Mapping[str, Any] | None = None
    #: Whose runs it is one of: a tenant, a customer.
    partition: str | None = None


# A step may return one, so its record names a module that stays. Its annotations were read as texts in the module it is in.
Start.__annotations__ = get_type_hints(Start)
Start.__module__ = "durable"


def new_run(
    start: Start,
    definition: WorkflowDefinition,
    fn: Callable[..., Any] | None,
    queue: str,
    codec: Codec,
    clock: Clock,
    *,
    parent: tuple[str, str] | None = None,
) -> NewRun:
    """The run, of this workflow and in this queue; a child of the `parent`, see `NewRun`."""
    given = start.input is not MISSING
    if fn is not None:
        check_arity(fn, given=given, is_new=True)
    annotation = None if fn is None else parameter_annotation(fn, _INPUT)
    text = codec.encode(start.input, what="the input", annotation=annotation) if given else None
    metadata = check_metadata(start.metadata)
    check_plain(metadata, what="the metadata")
    if (deadline := _moment("deadline", start.deadline, clock)) is not None:
        metadata = {**metadata, "deadline": deadline.isoformat()}
    if start.at is not None and start.delay is not None:
        raise InvalidArgument("at= and delay= both say when the run is due: give one of them")
    return NewRun(
        run_id=uuid.uuid4().hex if start.id is None else check_name("a run's id", start.id),
        route=Route(queue, definition.name, definition.version),
        function=definition.function,
        priority=_check_priority(start.priority),
        at=None if start.at is None else _check_moment("at", start.at),
        delay=0.0 if start.delay is None else check_duration("delay", start.delay, zero=True),
        input=text,
        input_hash=codec.fingerprint(start.input, what="the input") if given else None,
        metadata=metadata,
        dedup=None if start.dedup is None else check_name("dedup", start.dedup),
        partition=None if start.partition is None else check_name("partition", start.partition),
        parent=parent,
    )


def _moment(what: str, given: Duration | datetime | None, clock: Clock) -> datetime | None:
    if given is None or isinstance(given, datetime):
        return None if given is None else _check_moment(what, given)
    return clock.now() + timedelta(seconds=check_duration(what, given, zero=True))


def split_version(text: str) -> tuple[str, int | None]:
    """`name@2` as its two parts; what follows no `@` as digits has no version."""
    name, at, version = text.rpartition("@")
    if not at or not version.isascii() or not version.isdecimal():
        return text, None
    return name, int(version.lstrip("0")[:_DIGITS] or "0")  # more of them are too many already


def define_started(fn: Callable[..., Any] | str) -> WorkflowDefinition:
    """The workflow that is to be started: a function that is marked, or `name` or `name@version`."""
    if isinstance(fn, str):
        name, version = split_version(fn)
        checked = check_name("a workflow's name", name)
        return WorkflowDefinition(
            checked,
            None,
            check_version(1 if version is None else version),
            DEFAULT_QUEUE,
            None,
            None,
            MAX_CRASHES,
            True,
        )
    if not callable(fn):
        raise InvalidArgument(f"a workflow function, or its name, can be started, not {type(fn).__name__}")
    definition = definition_of_workflow(fn)
    if not definition.is_marked:
        raise InvalidArgument(
            f"{definition.name} is not marked as a workflow, so that workers could find it: put @durable.workflow above it"
        )
    return definition


def _check_priority(given: object) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given <= MAX_PRIORITY:
        raise InvalidArgument(f"priority must be an int from 0, the most urgent, to {MAX_PRIORITY}, not {given!r}")
    return given


def _check_moment(what: str, given: object) -> datetime:
    if not isinstance(given, datetime):
        raise InvalidArgument(f"{what} must be an aware datetime, not {type(given).__name__}")
    return to_utc(what, given)
