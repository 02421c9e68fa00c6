"""Items with steps, scopes and patches, killed at every boundary, in both colours and both stores."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from harness.stages import Died, StoreStage, World, memory_stage, postgres_stage
from harness.support import Database


async def handling(step: Any, world: World) -> Any:
    """Two items that have steps in a scope, and a branch that is patched."""
    ways = []

    async def handle(item: str) -> Any:
        read = await step("read", world.do, f"read-{item}")
        with step.scope("deep"):
            return [read, await step("read", world.do, f"parse-{item}")]

    done = await step.map("handle", handle, "ab", key=str, max_concurrency=1)
    ways.append("new" if step.patched("way") else "old")
    await step(ways[0], world.do, ways[0])
    return [done, await step("last", world.do, "last")]


BODIES = {"read-a", "parse-a", "read-b", "parse-b", "new", "last"}


@pytest.fixture(params=["memory", "postgres"])
def stores(request: pytest.FixtureRequest) -> Any:
    if request.param == "memory":
        return memory_stage
    database: Database = request.getfixturevalue("database")
    return lambda *, is_async: postgres_stage(database, is_async=is_async)


@pytest.mark.parametrize("is_async", [False, True], ids=["blocking", "async"])
def test_killed_at_every_boundary_it_goes_on(stores: Any, is_async: bool) -> None:
    """A body whose record was committed never runs again; of the others the one that was killed does."""
    stage: StoreStage = stores(is_async=is_async)
    whole = World()
    expected = stage.run(handling, whole, id="undisturbed")
    assert Counter(whole.bodies) == dict.fromkeys(BODIES, 1)
    boundaries = len(stage.boundaries.passed)
    assert boundaries > 30
    for deadly in range(boundaries):
        world, run_id = World(), f"dies-at-{deadly}"
        with pytest.raises(Died):
            stage.run(handling, world, id=run_id, dies_at=deadly)
        died_at = stage.boundaries.died_at
        assert stage.run(handling, world, id=run_id) == expected
        again = [body for body, times in Counter(world.bodies).items() if times > 1]
        assert len(again) <= (died_at in ("after body", "before checkpoint")), (deadly, died_at, again)
        assert set(world.bodies) == BODIES
