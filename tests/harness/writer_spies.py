"""What the tests of the writer see of it: every batch that goes to the database, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from durable._engine.batches import Verb
from durable.stores import PostgresStore
from durable.stores._postgres.job import Job
from durable.stores._postgres.jobs import CLAIM, READ, RELEASE, RENEW, RETURN
from durable.stores._postgres.sender import Performer
from durable.stores._postgres.session import Session
from durable.stores._postgres.writer import Writer
from harness.ownership_children import process_of


@dataclass
class Seen:
    """One call of the performer: `how` is "perform" or "read_back"; a nonce (a claim's random) names each job."""

    how: str
    verb: Verb
    names: list[Any]
    answers: Sequence[Any] | None = None
    problem: BaseException | None = None


@dataclass
class Spy:
    """A performer that passes everything on to the real one, and may be told to act first, or to raise."""

    real: Performer
    before: Callable[[str, Sequence[Job]], object] = lambda _how, _jobs: None
    seen: list[Seen] = field(default_factory=list)

    def perform(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        """See `sender.Performer`."""
        return self._passed_on("perform", self.real.perform, session, jobs)

    def read_back(self, session: Session, jobs: Sequence[Job]) -> Sequence[Any]:
        """See `sender.Performer`."""
        return self._passed_on("read_back", self.real.read_back, session, jobs)

    def of(self, how: str, verb: Verb) -> list[Seen]:
        """The calls of one kind."""
        return [seen for seen in self.seen if seen.how == how and seen.verb is verb]

    def _passed_on(
        self, how: str, verb: Callable[[Session, Sequence[Job]], Sequence[Any]], session: Session, jobs: Sequence[Job]
    ) -> Sequence[Any]:
        seen = Seen(how, jobs[0].verb, [name_of(job) for job in jobs])
        self.seen.append(seen)
        try:
            self.before(how, jobs)
            seen.answers = verb(session, jobs)
        except BaseException as problem:
            seen.problem = problem
            raise
        return seen.answers


def name_of(job: Job) -> Any:
    """What tells this job from any other."""
    if job.verb is CLAIM:
        return job.payload.random
    if job.verb in (RELEASE, RETURN, RENEW):
        return job.run_id
    return job.payload.place if job.verb is READ else job.payload.nonce


def writer_of(store: PostgresStore, which: Literal["small", "large", "claims", "long"] = "small") -> Writer:
    """A store's writer: for small entries, for large ones, for claims, or for what is long of these."""
    writer: Writer = getattr(process_of(store), f"_{which}")
    return writer


def spy_on(store: PostgresStore, *, large: bool = False) -> Spy:
    """Watch a store's writers from now on: that for large entries, or those for all others."""
    ways: tuple[Literal["small", "claims", "long"], ...] = ("small", "claims", "long")
    writers = [writer_of(store, "large")] if large else [writer_of(store, way) for way in ways]
    spy = Spy(writers[0]._sender._performer)
    for writer in writers:
        writer._sender._performer = spy
    return spy


def waiting(writer: Writer) -> int:
    """How many entries wait for their turn."""
    with writer._lock:
        return sum(len(queue) for queue in writer._backlog._waiting.values())
