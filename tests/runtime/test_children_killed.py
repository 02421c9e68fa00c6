"""Stories with children, told once and killed at every boundary, on every stage."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import pytest

from durable._engine import steps
from durable._engine.step_kinds import StartChild
from durable.errors import ChildFailed
from harness.stages import Ask, CallChild, Died, EngineStage, Stage, Story, Telling, World, children_at_work


def family(world: World) -> Telling:
    """Two children with a step between them."""
    first = yield CallChild("one", "first")
    between = yield Ask("between", world.do, ("between", first))
    second = yield CallChild("two", "second")
    return [first, between, second]


def sorry(world: World) -> Telling:
    """A child that fails, and one in its place."""
    try:
        told = yield CallChild("one", "first")
    except ChildFailed as problem:
        told = [problem.run_id.rpartition("/")[2], problem.status, repr(problem.__cause__)]
    second = yield CallChild("two", "second")
    return [told, second]


@pytest.mark.parametrize(("story", "failing"), [(family, set[str]()), (sorry, {"first"})])
def test_a_parent_that_dies_at_any_boundary_has_each_child_once(stage: Stage, story: Story, failing: set[str]) -> None:
    whole = World(failing=set(failing))
    with children_at_work(stage, whole):
        expected = stage.run(story, whole, id="whole")
    died_at = set[str]()
    for boundary in itertools.count():
        world, run_id = World(failing=set(failing)), f"run-{boundary}"
        with children_at_work(stage, world):
            with contextlib.suppress(Died):
                stage.run(story, world, id=run_id, dies_at=boundary)
            died, passed = stage.boundaries.died_at, len(stage.boundaries.passed)
            result: Any = stage.run(story, world, id=run_id)
        died_at.add(died)
        assert result == expected
        assert [world.bodies.count(one) for one in ("first", "second")] == [1, 1], died
        if not died and boundary >= passed:
            break
    assert died_at >= {"before child", "child begun", "before checkpoint", "checkpoint committed"}


def test_the_story_would_notice_a_child_that_is_started_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal that says nothing of a child's start, and ids that are drawn anew: what the record and the id are there for."""
    numbers = itertools.count()
    monkeypatch.setattr(
        "durable._engine.live_runs.name_child", lambda run_id, _, key, **__: f"{run_id}/{key}-{next(numbers)}"
    )
    monkeypatch.setattr(steps.LiveExecution, "_start", _start_without_memory)
    with pytest.raises(AssertionError):
        test_a_parent_that_dies_at_any_boundary_has_each_child_once(EngineStage(), family, set())


def _start_without_memory(self: Any, call: Any, reading: Any) -> Any:
    if isinstance(call.kind, StartChild):
        self._running[call.key] = call
        return self._next(call, reading)
    return _start(self, call, reading)


_start: Any = steps.LiveExecution._start
