"""`always_replay`: a call of `durable.run` made of many executions, each from the journal of the last."""

from __future__ import annotations

from typing import Final

from msgspec import structs

from durable._engine.steps import LiveExecution
from durable.errors import DurableError
from durable.records import Kind, Record, StepRecord, parse, render

_MAX_SKIPPING: Final = 20  # executions in a row that skip what was recorded: all later ones will


class ReplayNow(DurableError):
    """A step is recorded: the workflow is executed once more, from its journal."""


class Replaying:
    """What the executions of one call know of each other."""

    def __init__(self) -> None:
        #: The keys of the steps that they have recorded, in order.
        self.recorded: list[str] = []
        self._skipping = 0

    def skipped(self, execution: LiveExecution) -> str:
        """What earlier executions have recorded and this one has not asked for, for a message; empty when nothing."""
        unused = set(execution.journal.unused_keys())
        return ", ".join(repr(key) for key in self.recorded if key in unused)

    def skips_for_good(self, execution: LiveExecution) -> bool:
        """Whether this execution is one of too many in a row that skip what was recorded."""
        self._skipping = self._skipping + 1 if self.skipped(execution) else 0
        return self._skipping > _MAX_SKIPPING

    def has_branched(self, execution: LiveExecution) -> bool:
        """Whether what was recorded came from several branches: then one of them may only be late."""
        records = [execution.journal.record_of(key) for key in self.recorded]
        return any(record is not None and (record.concurrent or record.unordered) for record in records)

    def as_history(self, record: Record, run_id: str) -> Record:
        """A record as a replay takes it: what this call has recorded is still the same execution, and not done anew."""
        if record.kind != Kind.STEP or record.key not in self.recorded:
            return record
        step = parse(record.text, StepRecord, run_id=run_id, where=record.key)
        if not step.cleanup and step.left is None:
            return record
        return record._replace(text=render(structs.replace(step, left=None, cleanup=False)))
