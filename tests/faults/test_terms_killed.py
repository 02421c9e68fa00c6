"""Retries, at-most-once steps, sleeps, waits, maps and cancellations, each killed once with SIGKILL on a real PostgreSQL.

Every boundary of theirs is in `test_terms` and `test_waits`, in one process; here the process is really gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import durable
from harness.ownership_children import PATIENCE, Child
from harness.support import Database
from harness.terms_child import AT_ONCE, ITEMS, RUN, Life, live


class Lives:
    """The lives of one run, told by what they leave behind."""

    def __init__(self, database: Database, effects: Path, colour: str) -> None:
        self.database = database
        self.effects = effects
        self.effects.touch()
        self._colour = colour
        self._children: list[Child] = []

    def begin(self, story: str, *, dies: str = "", waits: str = "") -> Child:
        """The next life."""
        life = Life(self.database.url, self.database.schema, str(self.effects), story + self._colour, dies, waits)
        child = Child(live, life)
        self._children.append(child)
        return child

    def dies(self, story: str, place: str) -> None:
        """A life that ends there, by its own hand."""
        child = self.begin(story, dies=place)
        child.process.join(PATIENCE)
        assert child.process.exitcode == -9

    def ends(self, story: str) -> tuple[Any, ...]:
        """A life that comes to the end, and how."""
        said: tuple[Any, ...] = self.begin(story).hear()
        return said

    @property
    def bodies(self) -> Counter[str]:
        """How often each body ran."""
        return Counter(self.effects.read_text().splitlines())

    def recorded(self) -> list[str]:
        """The keys of the steps that are recorded."""
        return [key for kind, key, _ in self.database.journal(RUN) if kind == "step"]

    def end(self) -> None:
        for child in self._children:
            child.end()


@pytest.fixture(params=["", "_async"], ids=["sync", "async"])
def lives(request: pytest.FixtureRequest, database: Database, tmp_path: Path) -> Iterator[Lives]:
    lives = Lives(database, tmp_path / "effects", request.param)
    yield lives
    lives.end()


def test_a_killed_back_off_goes_on_counting(lives: Lives) -> None:
    """Of two attempts one was before the kill: there is one more, and the error says two."""
    lives.dies("retried", "remembered charge")
    assert lives.ends("retried") == ("raised", "ConnectionError", ["step 'charge' failed in 2 attempts"])
    assert lives.bodies == {"charge": 2}


def test_a_step_that_was_killed_is_not_begun_again_if_it_must_not(lives: Lives) -> None:
    """It is found begun, and nobody knows how it ended."""
    lives.dies("once", "body charge")
    assert lives.ends("once")[:2] == ("raised", "StepInterrupted")
    assert lives.bodies == {"charge": 1}


def test_a_killed_sleep_wakes_at_its_moment(lives: Lives) -> None:
    """That which was recorded before the kill; the steps before it do not run again."""
    lives.dies("slept", "recorded nap")
    ((_, until),) = [record["value"] for _, key, record in lives.database.journal(RUN) if key == "nap"]
    word, woken = lives.ends("slept")
    assert word == "returned"
    assert datetime.fromisoformat(woken) >= datetime.fromisoformat(until)
    assert lives.recorded() == ["before", "nap", "woken", "after"]
    assert lives.bodies == {"before": 1, "after": 1}


def test_signals_outlive_the_processes_that_wait_for_them(lives: Lives) -> None:
    """Killed while it waits, and again when it has just received: each signal is received once, in order."""
    lives.dies("approved", "remembered approved")
    store = lives.database.store()
    for number in (1, 2):
        durable.signal(store, RUN, "approved", {"stage": number})
    lives.dies("approved", "recorded approved")
    lives.dies("approved", "recorded charge")
    assert lives.ends("approved") == ("returned", [{"stage": 1}, {"stage": 2}])
    assert lives.bodies == {"charge": 1}


def test_a_killed_map_runs_the_missing_items(lives: Lives) -> None:
    """Those that were recorded do not run again; those that were at work may."""
    lives.dies("mapped", "half of the items")
    recorded = set(lives.recorded())
    assert len(recorded) >= ITEMS // 2 - AT_ONCE
    before = lives.bodies
    assert lives.ends("mapped") == ("returned", [item * item for item in range(ITEMS)])
    ran_again = {name for name, times in lives.bodies.items() if times > 1}
    assert ran_again <= set(before)
    assert not ran_again & {f"item {key[len('measure[') : -1]}" for key in recorded}
    assert set(lives.bodies) == {f"item {item}" for item in range(ITEMS)}


def _cancel_then_kill(store: Any, child: Child) -> None:
    assert durable.cancel(store, RUN, force=True)
    child.kill()


def _kill_then_cancel(store: Any, child: Child) -> None:
    child.kill()
    assert durable.cancel(store, RUN, force=True)


@pytest.mark.parametrize("end", [_cancel_then_kill, _kill_then_cancel])
def test_a_cancelled_run_stays_cancelled_whoever_is_killed(lives: Lives, end: Callable[[Any, Child], None]) -> None:
    """Before its owner has noticed, or after it is gone; on demand it goes on from there."""
    child = lives.begin("cancelled", waits="body two")
    assert child.hear() == "here"
    store = lives.database.store()
    end(store, child)
    assert store.status(RUN) == "cancelled"
    assert lives.recorded() == ["one"]
    assert lives.ends("cancelled") == ("returned", ["one", "two", "three"])
    assert lives.bodies == {"one": 1, "two": 2, "three": 1}
