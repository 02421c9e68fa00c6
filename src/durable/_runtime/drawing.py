"""What a workflow asks its driver for between two steps: values, scopes, patches, another input. And where it asks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import Token
from datetime import datetime
from threading import Event
from typing import Any, NoReturn, TypeVar

from msgspec.structs import replace

from durable._common.checks import check_flag, check_name
from durable._common.durations import show
from durable._engine.calls import Call
from durable._engine.decisions import Abort, Attempt, Leave, Raise, Reading
from durable._engine.scopes import SLASH
from durable._engine.step_kinds import Item
from durable._engine.steps import LiveExecution
from durable._runtime.bodies import NO_ITEM, Body
from durable._runtime.context import Frame, Running, current_frame, enter
from durable._runtime.definitions import StepDefinition
from durable._runtime.values import ValueKind
from durable.clocks import Clock
from durable.errors import DurableError, InvalidArgument, NestedStep, UnreadableRecord, Unwind

T = TypeVar("T")


class DrawingDriver:
    """The part of a driver that begins no step; see `driver.Driver`, which sets these."""

    clock: Clock
    encode_input: Callable[[Any], bytes]
    _execution: LiveExecution
    _runs: tuple[Running, ...]
    _cancel: Event | None

    @property
    def run_id(self) -> str:
        return self._execution.run_id

    @property
    def epoch(self) -> int:
        return self._execution.lease.epoch

    @property
    def is_replaying(self) -> bool:
        return self._execution.journal.is_replaying

    def call_decorated(self, definition: StepDefinition, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        raise NotImplementedError

    def frame(self) -> Frame:
        """The frame of the workflow function."""
        return Frame(self, None, self._runs)

    def _frame_of(self, call: Call, attempt: Attempt, body: Body) -> Frame:
        """The frame of an attempt of a body."""
        if type(body.kind) is not Item:  # as almost always
            return Frame(self, call.key, self._runs, attempt.number, "", NO_ITEM, None, current_frame.get())
        problem = body.why_without_steps
        scope = "" if problem else f"{call.key}{SLASH}"
        outer = current_frame.get()
        return Frame(self, call.key, self._runs, attempt.number, scope, problem, body.amid, outer, call.race)

    def _frame_in(self, race: Call) -> Frame:
        """The frame of the branches of a race that is called here."""
        return replace(self._frame_here() or self.frame(), race=race)

    def _frame_here(self) -> Frame | None:
        """Where a step may be called that is called now; None where that is not known, in a thread without its context."""
        frame = current_frame.get()
        return frame if frame is not None and frame.driver is self else None

    @property
    def scope(self) -> str:
        """What the keys of steps begin with that are called now."""
        frame = self._frame_here()
        return "" if frame is None else frame.scope

    def enter_scope(self, name: str) -> Token[Frame | None]:
        """Enter the scope of this name."""
        check_name("a scope's name", name)
        frame = self._frame_here()
        if frame is not None and frame.problem:
            raise InvalidArgument(
                f"step.scope({name!r}) is for the workflow, and this is the body of step {frame.inside!r}, which has no steps"
            )
        here = frame or self.frame()
        with self._drawing(f"step.scope({name!r})"): scope = self._execution.draw_scope(here.scope, name, self._branch())  # noqa: E701  # fmt: skip
        if not isinstance(scope, str):
            raise self._ending(scope)
        return enter(replace(here, scope=scope))

    def takes_patch(self, name: str) -> bool:
        """Whether the workflow takes the new way at the places of this name."""
        check_name("a patch's name", name)
        frame = self._frame_here()
        if frame is not None and frame.problem:
            raise InvalidArgument(
                f"step.patched({name!r}) is for the workflow, and this is the body of step {frame.inside!r}: ask before, and "
                f"hand the answer in"
            )
        with self._drawing(f"step.patched({name!r})"): answer = self._execution.take_patch(name)  # noqa: E701  # fmt: skip
        if isinstance(answer, Abort):
            raise self.exit_error(answer.error)
        return answer

    def _drawing(self, what: str) -> AbstractContextManager[object]:
        """In here the engine is asked for `what` the workflow draws between two steps; an error where that may not be."""
        raise NotImplementedError

    def continue_with(self, value: Any, *, keep_history: bool) -> NoReturn:
        """Leave the workflow, which begins anew with this input."""
        frame = current_frame.get()
        if frame is not None and frame.driver is self and frame.inside is not None:
            raise NestedStep("continue_with", frame.inside)
        check_flag("keep_history", keep_history)
        text = self.encode_input(value)
        raise self._ending(self._continue(text, keep_history))

    def _continue(self, text: bytes, keep_history: bool) -> Raise | Abort:
        return self._execution.continue_with(text, self._reading(), keep_history=keep_history)

    def draw_value(self, kind: ValueKind[T], key: str | None) -> T:
        """A value that the workflow draws, and each replay of it again."""
        frame = self._frame_here()
        if frame is not None and frame.problem:
            raise InvalidArgument(
                f"step.{kind.name}() is for the workflow, and this is the body of step {frame.inside!r}, which is called once "
                f"and remembered as a whole: ask Python there, or draw the value before and hand it in"
            )
        if key is not None:
            check_name(f"the key of step.{kind.name}()", key)
        scope = "" if frame is None else frame.scope
        drawn = self._drawing(f"step.{kind.name}()")
        with drawn: value = self._execution.draw_value(kind.name, key, kind.make(self._moment()), self._branch(), scope)  # noqa: E701  # fmt: skip
        if isinstance(value, Abort):
            raise self.exit_error(value.error)
        try:
            return kind.read(value)
        except (TypeError, ValueError):
            where, problem = f"what step.{kind.name}() has drawn", f"{show(value)} is none"
            raise UnreadableRecord(self.run_id, where, problem) from None

    def _moment(self) -> datetime:
        """Now, where a value is drawn."""
        return self.clock.now()

    def _branch(self) -> object:
        """The calling thread or task."""
        raise NotImplementedError

    def exit_error(self, error: DurableError) -> BaseException:
        """What a call raises where the run must not go on: `Unwind`, or the error itself once the workflow has ended."""
        return copy.copy(error) if self._execution.is_over else Unwind(error)

    def _reading(self) -> Reading:
        cancelled = self._cancel is not None and self._cancel.is_set()
        return Reading(self.clock.now(), self.clock.elapsed(), cancelled)

    def _ending(self, stop: Raise | Abort | Leave) -> BaseException:
        """What a call raises that goes no further."""
        match stop:
            case Raise(error=error):
                return error
            case Abort(error=error):
                return self.exit_error(error)
            case Leave(interruption=interruption):
                return interruption
