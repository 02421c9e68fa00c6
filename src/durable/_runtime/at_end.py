"""What a run does at its end, as its steps have said: the bodies of its closing."""

from __future__ import annotations

import logging
from typing import Final

from msgspec import structs

from durable._common.reports import say
from durable._engine.calls import Call
from durable._engine.closing import UNDO, Closing, ClosingStep
from durable._engine.steps import LiveExecution
from durable._runtime.bodies import AtEnd, Body, do_nothing
from durable._runtime.step_options import DEFAULTS
from durable.codecs import Codec
from durable.codecs._failures import to_record
from durable.errors import WorkflowDrift
from durable.records import ErrorRecord

_MARKING: Final = Body(do_nothing, (), {}, DEFAULTS)  # of the step with which a closing begins

_log = logging.getLogger("durable")


class ClosingBodies:
    """The functions of one execution, by the keys of the steps that they undo, or that asked for them."""

    def __init__(self, execution: LiveExecution, codec: Codec) -> None:
        self._execution = execution
        self._codec = codec
        self._known: dict[str, AtEnd] = {}

    def note(self, key: str, at_end: AtEnd) -> None:
        """A step says what is to be done about it; the first call of a key does."""
        self._known.setdefault(key, at_end)

    def begin(self, step: ClosingStep) -> tuple[Call, Body]:
        """A step of the closing, and its body; raises what stands in its way."""
        body = self._body(step) if step.closes else _MARKING
        return self._execution.closing_call(step, body.kind, at_most_once=body.options.at_most_once), body

    def _body(self, step: ClosingStep) -> Body:
        at_end, record, run_id = self._known.get(step.closes), step.record, self._execution.run_id
        if at_end is None or record is None:
            problem = "the workflow does not come by it any more, and so does not say what undoes it"
            raise WorkflowDrift(run_id, step.closes, problem)
        if at_end.word != UNDO:
            return at_end.body
        where = f"the record of step {step.closes!r}"
        value = self._codec.decode(record.json, run_id=run_id, where=where, annotation=at_end.annotation)
        return structs.replace(at_end.body, args=(value,))

    def note_failure(self, closing: Closing, step: ClosingStep, problem: Exception) -> None:
        """A step of the closing has raised this."""
        if self._execution.error is None:  # else the whole closing is left
            run_id, kind = self._execution.run_id, type(problem).__name__
            say(_log, logging.ERROR, "run %r: %s has failed (%s)", run_id, step.key, kind)
            closing.note_failure(step, self.to_record(problem))

    def to_record(self, problem: Exception) -> ErrorRecord:
        """The record of what is raised."""
        return to_record(problem, self._codec)
