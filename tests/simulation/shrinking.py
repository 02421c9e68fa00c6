"""From a scenario that fails to a small one that fails in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any, Final

from simulation.scenario import Op, Scenario, from_json, to_json

__all__ = ["shrunk"]

_MOST_TRIES: Final = 3000
_PLAIN: Final = (
    ("fails", 0),
    ("attempts", 0),
    ("timeout", 0),
    ("at_once", 0),
    ("once", False),
    ("caught", False),
    ("keyed", False),
    ("cleanup", False),
    ("interrupts", 0),
)
_PLAIN_STARTS: Final = (
    ("after", 0.0),
    ("delay", 0.0),
    ("priority", 5),
    ("undone", False),
    ("open", 0.0),
    ("partition", ""),
)


def shrunk(scenario: Scenario, fails: Callable[[Scenario], bool], most: int = _MOST_TRIES) -> Scenario:
    """The smallest scenario that was found for which `fails` still says yes, after `most` tries at the most."""
    smallest, tries, again = scenario, 0, True
    while again:
        again = False
        for candidate in filter(_is_worked, _smaller(smallest)):
            tries += 1
            if tries > most:
                return smallest
            if fails(from_json(to_json(candidate))):  # as it will be read from a file
                smallest, again = candidate, True
                break
    return smallest


def _is_worked(scenario: Scenario) -> bool:
    """Whether there is a worker for all that is started."""
    known = {run for slot in scenario.slots if slot.works is not None for run in slot.works.runs}
    return all(start.run in known for slot in scenario.slots for start in slot.starts)


def _smaller(scenario: Scenario) -> Iterator[Scenario]:
    """Scenarios that are a little smaller, those that lose most first."""
    for place in range(len(scenario.slots)):
        if len(scenario.slots) > 1:
            yield _without_slot(scenario, place)
    for run in range(len(scenario.runs)):
        if run in {call[0] for slot in scenario.slots for call in slot.calls} | {
            start.run for slot in scenario.slots for start in slot.starts
        }:
            yield _without_run(scenario, run)
    for index in range(len(scenario.faults)):
        copy = deepcopy(scenario)
        del copy.faults[index]
        yield copy
    for number, slot in enumerate(scenario.slots):
        for index in range(len(slot.calls)):
            copy = deepcopy(scenario)
            del copy.slots[number].calls[index]
            yield copy
        yield from _plainer(scenario, ("slots", number), "works", None)
    for run, spec in enumerate(scenario.runs):
        for path in _paths(spec.ops):
            if len(spec.ops) > 1 or len(path) > 1:
                copy = deepcopy(scenario)
                _remove(copy.runs[run].ops, path)
                yield copy
    yield from _simpler(scenario)


def _simpler(scenario: Scenario) -> Iterator[Scenario]:
    """Scenarios of the same size with less that is special about them."""
    for name in ("slow", "stalls", "rate", "deaf"):
        yield from _plainer(scenario, (), name, 0.0)
    yield from _plainer(scenario, (), "limits", None)
    for name in ("concurrency", "partition_concurrency") if scenario.limits is not None else ():
        yield from _plainer(scenario, ("limits",), name, 0)
    for number, slot in enumerate(scenario.slots):
        for name in ("skew", "drift"):
            yield from _plainer(scenario, ("slots", number), name, 0.0)
        yield from _plainer(scenario, ("slots", number), "calls", [(run, 0.0, waits) for run, _, waits in slot.calls])
        for index in range(len(slot.starts)):
            for name, plain in _PLAIN_STARTS:
                yield from _plainer(scenario, ("slots", number, "starts", index), name, plain)
        for name, plain in (("concurrency", 1), ("grace", 0.0)) if slot.works is not None else ():
            yield from _plainer(scenario, ("slots", number, "works"), name, plain)
    for run, spec in enumerate(scenario.runs):
        for name, plain in (
            ("cancelled_at", 0.0),
            ("blocking", False),
            ("decided_from", -1),
            ("retried_from", -1),
            ("tries", 0),
        ):
            yield from _plainer(scenario, ("runs", run), name, plain)
        for path in _paths(spec.ops):
            op: list[str | int] = ["runs", run, "ops", path[0]]
            for number, index in zip(path[1::2], path[2::2], strict=True):
                op += ["branches", number, index]
            for name, plain in _PLAIN:
                yield from _plainer(scenario, op, name, plain)
    for number, fault in enumerate(scenario.faults):
        for at in (1, fault.at // 2, fault.at - 1):
            if 1 <= at < fault.at:
                yield from _plainer(scenario, ("faults", number), "at", at)


def _plainer(scenario: Scenario, path: Sequence[str | int], name: str, plain: object) -> Iterator[Scenario]:
    """The scenario with something plain in place of what is special, if it is, at this path of names and indexes."""
    copy: Any = deepcopy(scenario)
    part = copy
    for turn in path:
        part = getattr(part, turn) if isinstance(turn, str) else part[turn]
    if getattr(part, name) != plain:
        setattr(part, name, plain)
        yield copy


def _without_slot(scenario: Scenario, place: int) -> Scenario:
    copy = deepcopy(scenario)
    del copy.slots[place]
    copy.faults = [fault for fault in copy.faults if fault.slot != place]
    for fault in copy.faults:
        fault.slot -= fault.slot > place
    return copy


def _without_run(scenario: Scenario, run: int) -> Scenario:
    copy = deepcopy(scenario)
    for slot in copy.slots:
        slot.calls = [call for call in slot.calls if call[0] != run]
        slot.starts = [start for start in slot.starts if start.run != run]
        if slot.works is not None:
            slot.works.runs = [other for other in slot.works.runs if other != run] or slot.works.runs
    return copy


def _paths(ops: list[Op], before: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    for index, op in enumerate(ops):
        yield (*before, index)
        for number, branch in enumerate(op.branches):
            yield from _paths(branch, (*before, index, number))


def _remove(ops: list[Op], path: tuple[int, ...]) -> None:
    for index, number in zip(path[:-1:2], path[1:-1:2], strict=True):
        ops = ops[index].branches[number]
    del ops[path[-1]]
