"""From a scenario that fails to a small one that fails in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Final

from durable.testing.simulation.scenario import Fault, Op, Scenario, from_json, to_json

__all__ = ["shrunk"]

_MOST_TRIES: Final = 3000


def shrunk(scenario: Scenario, fails: Callable[[Scenario], bool], most: int = _MOST_TRIES) -> Scenario:
    """The smallest scenario that was found for which `fails` still says yes, after `most` tries at the most."""
    smallest, tries, again = scenario, 0, True
    while again:
        again = False
        for candidate in _smaller(smallest):
            tries += 1
            if tries > most:
                return smallest
            if fails(from_json(to_json(candidate))):  # as it will be read from a file
                smallest, again = candidate, True
                break
    return smallest


def _smaller(scenario: Scenario) -> Iterator[Scenario]:
    """Scenarios that are a little smaller, those that lose most first."""
    for place in range(len(scenario.slots)):
        if len(scenario.slots) > 1:
            yield _without_slot(scenario, place)
    for run in range(len(scenario.runs)):
        if any(call[0] == run for slot in scenario.slots for call in slot.calls):
            yield _without_run(scenario, run)
    for index in range(len(scenario.faults)):
        yield _changed(scenario, lambda copy, index=index: copy.faults.pop(index))
    for number, slot in enumerate(scenario.slots):
        for index in range(len(slot.calls)):
            yield _changed(scenario, lambda copy, number=number, index=index: copy.slots[number].calls.pop(index))
    for run, spec in enumerate(scenario.runs):
        for path in _paths(spec.ops):
            if len(spec.ops) > 1 or len(path) > 1:
                yield _changed(scenario, lambda copy, run=run, path=path: _remove(copy.runs[run].ops, path))
    for name in ("slow", "stalls"):
        if getattr(scenario, name):
            yield _changed(scenario, lambda copy, name=name: setattr(copy, name, 0.0))
    yield from _simpler(scenario)


def _simpler(scenario: Scenario) -> Iterator[Scenario]:
    for number, slot in enumerate(scenario.slots):
        for name in ("skew", "drift"):
            if getattr(slot, name):
                yield _changed(scenario, lambda copy, number=number, name=name: setattr(copy.slots[number], name, 0.0))
        for index, (run, after, waits) in enumerate(slot.calls):
            if after:
                yield _changed(
                    scenario,
                    lambda copy, number=number, index=index, call=(run, 0.0, waits): copy.slots[number].calls.__setitem__(
                        index, call
                    ),
                )
    for run, spec in enumerate(scenario.runs):
        if spec.cancelled_at:
            yield _changed(scenario, lambda copy, run=run: setattr(copy.runs[run], "cancelled_at", 0.0))
        if spec.blocking:
            yield _changed(scenario, lambda copy, run=run: setattr(copy.runs[run], "blocking", False))
        for path in _paths(spec.ops):
            op = _at(spec.ops, path)
            for name, plain in (("fails", 0), ("attempts", 0), ("once", False), ("caught", False), ("keyed", False)):
                if getattr(op, name) != plain:
                    yield _changed(
                        scenario,
                        lambda copy, run=run, path=path, name=name, plain=plain: setattr(
                            _at(copy.runs[run].ops, path), name, plain
                        ),
                    )
    for index, fault in enumerate(scenario.faults):
        for at in (1, fault.at // 2, fault.at - 1):
            if 1 <= at < fault.at:
                yield _changed(scenario, lambda copy, index=index, at=at: _move(copy.faults[index], at))


def _move(fault: Fault, at: float) -> None:
    fault.at = at


def _changed(scenario: Scenario, change: Callable[[Scenario], object]) -> Scenario:
    copy = deepcopy(scenario)
    change(copy)
    return copy


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
    return copy


def _paths(ops: list[Op], before: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    for index, op in enumerate(ops):
        yield (*before, index)
        for number, branch in enumerate(op.branches):
            yield from _paths(branch, (*before, index, number))


def _at(ops: list[Op], path: tuple[int, ...]) -> Op:
    for index, number in zip(path[:-1:2], path[1:-1:2], strict=True):
        ops = ops[index].branches[number]
    return ops[path[-1]]


def _remove(ops: list[Op], path: tuple[int, ...]) -> None:
    for index, number in zip(path[:-1:2], path[1:-1:2], strict=True):
        ops = ops[index].branches[number]
    del ops[path[-1]]
