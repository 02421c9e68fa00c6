"""What must hold of runs and their children: the laws C1 to C4, at each commit and where an outcome is handed out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from durable.errors import ChildFailed
from durable.records import Kind, Status
from simulation.database import Change
from simulation.history import Broken
from simulation.server import Server
from simulation.tables import Header, Signal, Step

__all__ = ["FamilyLaws"]

_UNDER_WAY: Final = (Status.QUEUED, Status.RUNNING)
_decode: Final = msgspec.json.Decoder().decode


class FamilyLaws:
    """Raises `Broken` where a family is not as it must be.

    C1: a child is started once, whatever crashes: each workflow of a child here is that of one step of one run. C2: the commit
    that ends a child tells its parent. C3: where a cancellation was answered, nothing below goes on. C4: what a parent was
    told of a child is how that has ended.
    """

    def __init__(self, server: Server, broken: Callable[[str, str], Broken], seen: Counter[str]) -> None:
        self._seen = seen
        self._tables = server.tables
        self._broken = broken
        self._children: dict[str, str] = {}  # by workflow
        self._ends: dict[
            str, list[object]
        ] = {}  # of each child, by its workflow: its values and the states in which it has ended

    def audit(self, changes: Sequence[Change]) -> None:
        """These were committed together."""
        for change in changes:
            if type(change.after) is Header and (parent := change.after.snapshot.get("parent")) is not None:
                self._audit_child(change.before, change.after, parent, changes)

    def _audit_child(self, before: Header | None, after: Header, parent: list[str], changes: Sequence[Change]) -> None:
        if before is None:
            known = self._children.setdefault(after.snapshot["workflowName"], after.id)
            if known != after.id:
                raise self._broken("C1", f"{parent[0]} has the child {known}, and has started {after.id} in its place")
        if before is not None and before.status not in _UNDER_WAY and after.status in _UNDER_WAY:
            self._seen["a child that runs again with its parent"] += 1
        if after.status in _UNDER_WAY or (before is not None and before.status == after.status):
            return
        rows = [change.after for change in changes]
        if [parent[0], parent[1]] not in [[row.workflow_id, row.name] for row in rows if type(row) is Signal]:
            raise self._broken("C2", f"{after.id} is {after.status}, and {parent[0]} was not told: it sleeps on")
        self._seen[f"a child that is {after.status}"] += 1
        end: object = str(after.status)
        if after.status == Status.COMPLETED:
            results = [row for row in rows if type(row) is Step and row.workflow_id == after.id]
            end = [_decode(row.record) for row in results if row.kind == Kind.RESULT][-1:]
        self._ends.setdefault(after.snapshot["workflowName"], []).append(end)

    def told(self, workflow: str, outcome: Any) -> None:
        """A parent was given this outcome."""
        end: object = outcome.status if isinstance(outcome, ChildFailed) else [outcome]
        if end not in (ends := self._ends.get(workflow, [])):
            raise self._broken("C4", f"the parent of {workflow} was told {end}, which has ended as {ends}")

    def cancelled(self, run: str) -> None:
        """A cancellation of it was answered."""
        headers = filter(None, map(self._tables.snapshots.committed, list(self._tables.snapshots.rows)))
        known = {header.id: header for header in headers}
        if run not in known or known[run].status != Status.CANCELLED:
            return
        for header in known.values():
            if (header.snapshot.get("parent") or [None])[0] == run and header.status in _UNDER_WAY:
                raise self._broken("C3", f"{run} was cancelled, and its child {header.id} is {header.status}")
