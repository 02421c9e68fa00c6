"""A run that is started and left to workers: where it waits, and what it means to start it again."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from msgspec import Struct, field

from durable.errors import DurableError, RunExists, RunMismatch

UNHASHED: Final = "unhashed"  # the fingerprint of an input that SQL has stored: what it would be is not known
MAX_PRIORITY: Final = 9  # classes of priority are counted from 0, the most urgent


class Route(Struct, frozen=True, gc=False):
    """What a run waits for: a worker of this queue that has this version of the workflow."""

    #: The queue's name.
    queue: str
    #: The workflow's name.
    workflow: str
    #: The version of the workflow.
    version: int


class NewRun(Struct, frozen=True, kw_only=True):
    """A run to be started."""

    #: The run's id.
    run_id: str
    #: Where it waits.
    route: Route
    #: The workflow's function, as `module:qualified.name`; None where the workflow was named, which tells enough.
    function: str | None = None
    #: From 0, the most urgent, to `MAX_PRIORITY`.
    priority: int = 5
    #: When it is due; None where `delay` says so.
    at: datetime | None = None
    #: Seconds until it is due, by the store's clock.
    delay: float = 0.0
    #: The JSON of the input; None where none was given.
    input: bytes | None = None
    #: The fingerprint of the input.
    input_hash: str | None = None
    #: What the user has to say of the run, and its deadline.
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    #: A text that no other run of the queue has which has not ended.
    dedup: str | None = None
    #: Whose runs it is one of, which take turns with those of others; None without one.
    partition: str | None = None
    #: Of a child, the row of the run that starts it, and the name of the signal by which that is told of its end.
    parent: tuple[str, str] | None = None
    #: Of which moment of a schedule it is the run; None where none has started it.
    tick_at: datetime | None = None

    def __repr__(self) -> str:
        return f"<NewRun {self.run_id!r} of {self.workflow!r}>"

    @property
    def workflow(self) -> str:
        return self.route.workflow

    @property
    def version(self) -> int:
        return self.route.version


class Started(Struct, frozen=True, gc=False):
    """The run that a start has led to: the new one, or one that is there."""

    #: Its id. Another than was asked for where a run of the same `dedup` has not ended.
    run_id: str
    #: Whether it was started by this request.
    is_new: bool
    #: The name of its workflow.
    workflow: str
    #: The fingerprint of its input.
    input_hash: str | None
    #: The status in its header.
    status: str


def name_workers(queue: str) -> str:
    """What to call the owner of a run that waits in a queue, or is executed out of it."""
    return f"the workers of the queue {queue!r}"


def refuse_start(run: NewRun, started: Started, *, joins: bool) -> DurableError | None:
    """Why a start cannot stand for the run that it has led to; None where it can.

    `joins` is whether the caller takes a run that is there already for the one it wants.
    """
    if started.is_new or started.run_id != run.run_id:  # the second is what `dedup` asks for
        return None
    if started.workflow != run.workflow:
        return RunMismatch(run.run_id, "workflow", repr(started.workflow), repr(run.workflow))
    if started.input_hash != run.input_hash and not (started.input_hash == UNHASHED and run.input_hash is not None):
        stored = f"with hash {started.input_hash}" if started.input_hash else "of no input at all"
        given = f"the one with hash {run.input_hash}" if run.input_hash else "none"
        return RunMismatch(run.run_id, "input", stored, given)
    return None if joins else RunExists(run.run_id, started.status)
