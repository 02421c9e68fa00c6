"""The bodies of steps: of a function, a sleep, a wait for a signal, a transaction."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Final, cast, get_args

from msgspec import Struct, structs

from durable._common.boundary import calls_out
from durable._common.durations import MAX_SECONDS, Duration, add_seconds, check_duration, show, to_utc
from durable._engine.causes import InFlight
from durable._engine.closing import ON_END, UNDO
from durable._engine.signals import RESERVED, check_signal_name
from durable._engine.step_kinds import ITEM, Isolation, Item, Listen, Plain, Sleep, StepKind, Transact
from durable._runtime.awaitables import explain_early_call
from durable._runtime.definitions import StepDefinition, definition_of
from durable._runtime.step_options import DEFAULTS, StepOptions, checked_timeout
from durable.clocks import Clock
from durable.codecs import return_annotation
from durable.errors import AsyncMismatch, InvalidArgument, SignalTimedOut

#: Why most bodies may call no steps.
NO_ITEM: Final = "it is no item of a map"


class AtEnd(Struct, frozen=True):
    """What is to be done about a step when the run ends."""

    #: As in a `StepRecord`.
    word: str
    #: What is called; where it undoes the step, without its argument, the step's value.
    body: Body
    #: By which that value is read.
    annotation: Any = None


class Body(Struct, frozen=True):
    """What a step calls, and with which options.

    A step that transacts gives its body the connection as first argument. What a sleep's body returns is the moment until which
    the workflow then sleeps, or the two between which it does.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: StepOptions
    #: By which its value is written and read.
    annotation: Any = None
    kind: StepKind = Plain()
    #: Of an item, what was in flight where its map was called.
    amid: InFlight | None = None
    #: Of a child, the scope in which it was started, wherever it is waited for; None of all that is drawn where it is called.
    scope: str | None = None
    #: Of a race, by their names.
    branches: Mapping[str, Callable[[], Any]] = {}
    #: What is done about it when the run ends; None where that is nothing.
    at_end: AtEnd | None = None

    @calls_out
    def call(self) -> Any:
        return self.fn(*self.args, **self.kwargs)

    @property
    def why_without_steps(self) -> str:
        """Why it may call no steps of its own; empty where it may."""
        if type(self.kind) is not Item:
            return NO_ITEM
        if self.options.policy is not None:
            return "its map has a policy: give retry= to the steps in it, or leave them plain calls"
        if self.options.timeout is not None:
            return "its map has a timeout: give timeout= to the steps in it, or leave them plain calls"
        return ""


def body_of_call(fn: Callable[..., Any], args: tuple[Any, ...], given: StepOptions, defaults: StepOptions) -> Body:
    """The body of a call by name. A decorated function is called without being made a step again."""
    definition = definition_of(fn)
    if definition is not None:
        definition, args = definition.of(args)
        fn, given = definition.fn, given.merged_over(definition.options)
    options = defaults if given is DEFAULTS else given.merged_over(defaults)
    body = Body(fn, args, {}, options, return_annotation(fn))
    return body if options.undo is None else _with_undo(body, options.undo, defaults)


def _with_undo(body: Body, undo: Callable[..., object], defaults: StepOptions) -> Body:
    """The body of a step, with what undoes it: under its own options where it is decorated, else under the step's."""
    given = DEFAULTS if definition_of(undo) is not None else StepOptions(body.options.policy, body.options.timeout)
    undoing = body_of_call(undo, (), given, defaults)
    return structs.replace(body, at_end=AtEnd(UNDO, structs.replace(undoing, at_end=None), body.annotation))


def body_of_on_end(name: str, fn: Callable[..., Any], args: tuple[Any, ...], defaults: StepOptions) -> Body:
    """The body of `step.on_end`: it does nothing, and what is to be done comes at the end."""
    if not callable(cast(object, fn)):
        raise InvalidArgument(f"step.on_end({name!r}): {explain_early_call(fn)}")
    body = body_of_call(fn, args, DEFAULTS, defaults)
    return Body(do_nothing, (), {}, DEFAULTS, at_end=AtEnd(ON_END, structs.replace(body, at_end=None)))


def do_nothing() -> None:
    """What a step does that only says something."""


def body_of_item(
    fn: Callable[..., Any], item: Any, given: StepOptions, defaults: StepOptions, amid: InFlight | None
) -> Body:
    """The body of an item of a map, which may call steps of its own."""
    body = body_of_call(fn, (item,), given, defaults)
    return Body(body.fn, body.args, {}, body.options, body.annotation, ITEM, amid, at_end=body.at_end)


def body_of_decorated(
    definition: StepDefinition, args: tuple[Any, ...], kwargs: dict[str, Any], defaults: StepOptions
) -> Body:
    """The body of a call of the decorated function itself."""
    fn, given = definition.fn, definition.options
    options = defaults if given is DEFAULTS else given.merged_over(defaults)
    body = Body(fn, args, kwargs, options, return_annotation(fn))
    return body if options.undo is None else _with_undo(body, options.undo, defaults)


def body_of_sleep(seconds: Duration | datetime, clock: Clock) -> Body:
    """The body of a sleep: it says when to wake up, and that is what is remembered."""
    if isinstance(seconds, datetime):
        until = to_utc("the moment to sleep until", seconds)
        if (until - clock.now()).total_seconds() > MAX_SECONDS:
            raise InvalidArgument(
                f"the moment to sleep until must lie within a hundred years, not at {show(seconds)}; "
                f"step.wait_for without timeout= waits for ever"
            )
        return Body(until.isoformat, (), {}, DEFAULTS, kind=Sleep())
    duration = check_duration("the time to sleep, if it is no aware datetime,", seconds, zero=True)

    def sleeps() -> list[str]:
        began = clock.now()
        return [began.isoformat(), add_seconds(began, duration).isoformat()]

    return Body(sleeps, (), {}, DEFAULTS, kind=Sleep())


def body_of_wait(name: str, timeout: Duration | None, type_: Any = Any, names: tuple[str, ...] = ()) -> Body:
    """The body of a wait for a signal, which is called when none has come. `name` is that of the step."""
    seconds = checked_timeout("timeout", timeout)
    if isinstance(name, str) and name.startswith(RESERVED):  # else it would take what tells of a child's end
        check_signal_name(name)

    def in_vain() -> None:
        raise SignalTimedOut(name, seconds or 0.0)

    return Body(in_vain, (), {}, DEFAULTS, None if type_ is Any else type_, kind=Listen(seconds, names))


def check_signal_names(names: object) -> tuple[str, ...]:
    """The names that `wait_for_any` was given."""
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise InvalidArgument(f"step.wait_for_any takes a list of names, not {type(names).__name__}")
    given = cast("Iterable[object]", names)
    checked = tuple(dict.fromkeys(check_signal_name(name) for name in given))
    if not checked:
        raise InvalidArgument("step.wait_for_any needs at least one name: it would wait for ever")
    return checked


def body_of_transaction(
    name: str,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    given: StepOptions,
    defaults: StepOptions,
    isolation: object,
) -> Body:
    if isolation not in get_args(Isolation):
        raise InvalidArgument(f"isolation must be one of {', '.join(get_args(Isolation))}, not {isolation!r}")
    body = body_of_call(fn, args, given, defaults)
    if inspect.iscoroutinefunction(body.fn):
        raise AsyncMismatch(
            f"step.transaction({name!r}) calls a blocking function on a blocking connection, in a thread of its own where "
            f"the workflow is async: define it with `def`"
        )
    if body.options.at_most_once:
        raise InvalidArgument(
            f"step.transaction({name!r}): what it does to the database happens exactly once with its record, or not "
            f"at all: leave out at_most_once"
        )
    kind, at_end = Transact(cast(Isolation, isolation)), body.at_end
    if at_end is not None:  # in a transaction, too
        if inspect.iscoroutinefunction(at_end.body.fn):
            raise AsyncMismatch(
                f"step.transaction({name!r}) has its undo called with a blocking connection, too: define that with `def`"
            )
        at_end = structs.replace(at_end, body=structs.replace(at_end.body, kind=kind))
    return Body(body.fn, args, {}, body.options, body.annotation, kind, at_end=at_end)


def body_of_mapped(
    fn: Callable[[Any], Any], given: StepOptions, defaults: StepOptions, item: Any, amid: InFlight | None
) -> Body:
    """The same as a function of the item."""
    return body_of_item(fn, item, given, defaults, amid)


def body_of_transacted(
    name: str,
    fn: Callable[..., Any],
    given: StepOptions,
    defaults: StepOptions,
    isolation: Isolation,
    item: Any,
    _: InFlight | None,
) -> Body:
    """The transaction of an item, whose map has these terms."""
    return body_of_transaction(name, fn, (item,), given, defaults, isolation)
