"""What the bodies of a simulated workflow do to the world: they begin, take their time or fail, and end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

from psycopg import errors

from durable._runtime.context import current_frame
from simulation.history import CANCELLED, FAILED, INTERRUPTED, Drawn, History
from simulation.life import acting, is_behind
from simulation.scenario import Op
from simulation.tables import ACCOUNTS
from simulation.threads import wait
from simulation.timeline import Timeline

__all__ = ["Bodies", "Place", "family"]

_ENDS_THE_RUN: Final = frozenset({"except", "finally", "anyway"})  # guards that raise again what came
_TOO_LONG: Final = 3  # timeouts


class Place(Protocol):
    """Where it happens."""

    timeline: Timeline
    history: History
    sets: int  # how often its wall clock was set

    def lateness(self) -> float:
        """Seconds that the process is stopped just before the next body."""
        ...

    def fails(self, run: str, op: Op) -> bool:
        """Whether this body is one that fails."""
        ...

    def interrupts(self, run: str, op: Op) -> bool:
        """Whether Ctrl-C comes here."""
        ...

    def child_told(self, workflow: str, outcome: Any) -> None:
        """A parent has what became of this child."""
        ...

    def blind(self, op: Op, outcome: Any) -> bool:
        """Whether other code may have recorded this outcome under the step's name."""
        ...


class Bodies:
    """See `programs.Bodies`."""

    def __init__(self, place: Place, run: str) -> None:
        self._place = place
        self._name = run
        self._amid = Drawn()
        self._drawn: dict[int, Drawn] = {}  # of each site, its last call

    @property
    def _run(self) -> str:
        """The run: of a child, whatever id it was given."""
        return str(current_frame.get().driver._execution.run_id) if "/" in self._name else self._name  # type: ignore[union-attr]  # noqa: SLF001

    def called(self, op: Op) -> None:
        """See `programs.Bodies`."""
        drawn = self._amid._replace(moment=self._place.history.moment(), cleanup=op.cleanup)
        for site in (op.site, *(item.site for branch in op.branches for item in branch)):
            self._drawn[site] = drawn

    @contextmanager
    def amid(self, op: Op, problem: BaseException) -> Iterator[None]:
        """See `programs.Bodies`."""
        kind = FAILED if isinstance(problem, Exception) else INTERRUPTED
        if isinstance(problem, asyncio.CancelledError):
            kind = CANCELLED
        self._amid = Drawn(amid=kind, ends=op.how in _ENDS_THE_RUN)
        try:
            yield
        finally:
            self._amid = Drawn()

    def interrupts(self, op: Op) -> bool:
        """See `programs.Bodies`."""
        return self._place.interrupts(self._run, op)

    def begin(self, op: Op, *, late: bool) -> tuple[int, float]:
        """See `programs.Bodies`."""
        key, token = _under()
        late, drawn = late or is_behind(), self._drawn.get(op.site, Drawn())
        execution = self._place.history.body_starts(self._run, key, op.site, token, drawn, late=late)
        if not self._place.fails(self._run, op):
            return execution, op.ms / 1000
        if not op.timeout:
            raise ValueError(f"{op.site} failed")
        return execution, _TOO_LONG * op.timeout / 1000

    def transact(self, op: Op, connection: Any) -> int:
        """See `programs.Bodies`."""
        place, run = self._place, self._run
        if seconds := place.lateness():
            self.stop(seconds)
            self.work(0)
        key, token = _under()
        execution = place.history.transaction_starts(run, key, op.site, token, self._drawn.get(op.site, Drawn()))
        fails, seconds = place.fails(run, op), op.ms / 1000
        source, target = ACCOUNTS[:: 1 - 2 * (op.site % 2)]
        try:
            connection.execute("move", (-1, source))
            self.work(_TOO_LONG * op.timeout / 1000 if fails and op.timeout else seconds)
            connection.execute("move", (1, target))
            connection.execute("effect", (execution, run, op.site, token))
        except (errors.DeadlockDetected, errors.SerializationFailure):
            place.history.conflicted(run, op.site)
            raise
        if fails and not op.timeout:
            raise ValueError(f"{op.site} failed")
        return self.end(execution)

    def end(self, execution: int) -> int:
        """See `programs.Bodies`."""
        self._place.history.body_ends(execution)
        return execution

    @contextmanager
    def sleeps(self, op: Op) -> Iterator[None]:
        """See `programs.Bodies`."""
        place, (_, token) = self._place, _under()
        began, sets, is_first = place.timeline.now, place.sets, place.history.sleeps(self._run, op.site, token)
        yield
        if is_first:
            place.history.slept(self._run, op.site, op.ms / 1000, place.timeline.now - began)
            if place.sets > sets:
                place.history.seen["a sleep during which the clock was set"] += 1

    def lateness(self) -> float:
        """See `programs.Bodies`."""
        return self._place.lateness()

    def stop(self, seconds: float) -> None:
        """See `programs.Bodies`."""
        acting().paused_until = self._place.timeline.now + seconds

    def told(self, op: Op, outcome: Any, *, failed: bool = False) -> None:
        """See `programs.Bodies`."""
        shared, blind = op.name == "shared", self._place.blind(op, outcome)
        drawn, (_, token) = self._drawn.get(op.site, Drawn()), _under()
        self._place.history.told(self._run, op.site, outcome, drawn, token, failed=failed, shared=shared, blind=blind)

    def children(self, op: Op) -> list[tuple[str, str]]:
        """See `programs.Bodies`."""
        return [(name, key) for name, key, _ in family(self._run, op)]

    def child_told(self, workflow: str, outcome: Any) -> None:
        """See `programs.Bodies`."""
        self._place.child_told(workflow, outcome)

    def work(self, seconds: float) -> None:
        """See `programs.Bodies`."""
        wait(acting(), seconds, lambda _: None)

    async def awork(self, seconds: float) -> None:
        """See `programs.Bodies`."""
        await acting().clock.asleep(seconds)


def family(run: str, op: Op) -> Iterator[tuple[str, str, list[Op]]]:
    """The children of this run: the workflow of each, its key, and what it does."""
    for number, ops in enumerate(op.branches):
        yield f"w{run[1:]}c{op.site}-{number}", f"k{op.site}-{number}", ops


def _under() -> tuple[str, str]:
    """The key of the step whose body this is, and the token of the lease."""
    frame: Any = current_frame.get()
    return frame.inside, frame.driver._execution.lease.token  # noqa: SLF001
