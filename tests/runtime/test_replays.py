"""A stored run, replayed by the code of today: nothing is called, and what has drifted is said."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

import durable
from durable.stores import memory
from durable.testing import Rehearsal, Replayed, replay
from harness.support import Database


def never(*_: Any) -> Any:
    raise AssertionError("a body was called")


def performed(outcome: Any) -> Any:
    return asyncio.run(outcome) if inspect.iscoroutine(outcome) else outcome


def checkout(step: durable.Step, deps: Any, input: str) -> str:
    user = step("fetch", deps["fetch"], input)
    step.sleep("cool down", 3600)
    payment = step("charge", deps["charge"], user, 42)
    return f"{user} paid {payment}"


async def checkout_async(step: durable.AsyncStep, deps: Any, input: str) -> str:
    user = await step("fetch", deps["fetch"], input)
    await step.sleep("cool down", 3600)
    payment = await step("charge", deps["charge"], user, 42)
    return f"{user} paid {payment}"


checkout_async.__name__ = "checkout"
REAL = {"fetch": str.upper, "charge": lambda user, euros: euros}
NONE = dict.fromkeys(REAL, never)


def stored(workflow: Callable[..., Any] = checkout, *, dies_in: str | None = None) -> Any:
    """The snapshot of a run that is completed, or died in the middle of a step."""
    with Rehearsal() as rehearsal:
        if dies_in is None:
            performed(durable.run(REAL, workflow, id="run-1", store=rehearsal, input="ada"))
        else:
            with rehearsal.crash_at("after body", dies_in):
                performed(durable.run(REAL, workflow, id="run-1", store=rehearsal, input="ada"))
        return rehearsal.load("run-1")


@pytest.mark.parametrize("workflow", [checkout, checkout_async])
def test_unchanged_code_comes_to_the_same_end(workflow: Any) -> None:
    """By recorded steps only, and in no time."""
    found = performed(replay(NONE, workflow, stored()))
    assert found.check() is found
    assert found == Replayed("replayed", replayed=("fetch", "cool down", "charge"), ended=True, result="ADA paid 42")


@pytest.mark.parametrize("workflow", [checkout, checkout_async])
def test_an_interrupted_run_says_what_it_would_run_next(workflow: Any) -> None:
    """The step whose body may have run, and was not recorded."""
    found = performed(replay(NONE, workflow, stored(dies_in="charge"))).check()
    assert (found.replayed, found.next, found.ended) == (("fetch", "cool down"), ("charge",), False)


def test_a_failed_run_says_which_steps_run_again() -> None:
    """Those whose failure ended it."""

    def order(step: durable.Step, deps: Any) -> None:
        step("reserve", lambda: None)
        step("charge", int, "none")

    with memory() as store:
        with pytest.raises(ValueError, match="invalid literal"):
            durable.run({}, order, id="run-1", store=store)
        found = replay({}, order, store.load("run-1") or {}).check()
    assert (found.replayed, found.next) == (("reserve",), ("charge",))


def other_arguments(step: durable.Step, deps: Any, input: str) -> str:
    user = step("fetch", deps["fetch"], input)
    step.sleep("cool down", 3600)
    return f"{user} paid {step('charge', deps['charge'], user, 43)}"


def one_more_before(step: durable.Step, deps: Any, input: str) -> str:
    step("audit", never)
    return checkout(step, deps, input)


def one_more_after(step: durable.Step, deps: Any, input: str) -> str:
    result = checkout(step, deps, input)
    step("audit", never)
    return result


def another_result(step: durable.Step, deps: Any, input: str) -> str:
    return checkout(step, deps, input) + "!"


def raises_now(step: durable.Step, deps: Any, input: str) -> None:
    checkout(step, deps, input)
    raise ValueError(input)


@pytest.mark.parametrize(
    ("changed", "fits_interrupted", "says"),
    [
        (other_arguments, True, "step 'charge'.*other arguments"),
        (one_more_before, False, "step 'audit'.*new, and comes before"),
        (one_more_after, True, "step 'audit'.*completed without it"),
        (another_result, True, "something else then"),
        (raises_now, True, "raises ValueError now"),
    ],
)
def test_changed_code_is_told_what_has_drifted(changed: Any, fits_interrupted: bool, says: str) -> None:
    """In a completed run and in one that goes on; a change after the record's end is none for that."""
    complete, interrupted = stored(), stored(dies_in="charge")
    changed.__name__ = "checkout"
    found = replay(NONE, changed, complete)
    with pytest.raises(durable.WorkflowDrift, match=says):
        found.check()
    assert (replay(NONE, changed, interrupted).drift is None) is fits_interrupted


def test_a_step_that_is_gone_is_told_as_unused() -> None:
    """That alone is no drift: see the guarantees."""

    def shorter(step: durable.Step, deps: Any, input: str) -> str:
        return "ADA paid 42" if step("charge", deps["charge"], "ADA", 42) else ""

    shorter.__name__ = "checkout"
    found = replay(NONE, shorter, stored()).check()
    assert found.unused == ("fetch", "cool down")


def test_another_workflow_is_another() -> None:
    """By its name, as `durable.run` would say."""

    def refund(step: durable.Step, deps: Any, input: str) -> None: ...

    assert isinstance(replay(NONE, refund, stored()).drift, durable.RunMismatch)


def test_steps_side_by_side_are_all_told() -> None:
    """Those without a record that are called together."""

    async def both(step: durable.AsyncStep, deps: Any, input: str) -> list[Any]:
        return list(await asyncio.gather(*(step(name, never, key=name) for name in ("a", "b"))))

    both.__name__ = "checkout"
    found = performed(replay(NONE, both, stored(dies_in="fetch"))).check()
    assert found.next == ("a", "b")


def test_a_run_of_another_version_is_replayed_as_that() -> None:
    """What it would be refused for says nothing about the code."""
    with memory() as store:
        durable.run(REAL, one_step, id="run-1", store=store, version=7)
        assert replay(NONE, one_step, store.load("run-1") or {}).check().ended


def one_step(step: durable.Step, deps: Any) -> Any:
    return step("charge", deps["charge"], "ada", 1)


def test_a_document_or_a_file_will_do(tmp_path: Path, database: Database) -> None:
    """As CI keeps them: what PostgreSQL said, as a mapping, as text, and in a file that somebody has indented."""
    store = database.store()
    durable.run(REAL, one_step, id="run-1", store=store)
    snapshot = store.load("run-1")
    assert snapshot is not None
    file = tmp_path / "run-1.json"
    file.write_text(json.dumps(snapshot.document(), indent=2))
    for source in (snapshot, snapshot.document(), snapshot.to_json(), snapshot.to_json().decode(), file):
        assert replay(NONE, one_step, source).check().result == 1
    assert [record[:2] for record in database.journal("run-1")] == [("step", "charge"), ("result", "result")]


@pytest.mark.parametrize("source", [b"no json", {"formatVersion": 99}, 7])
def test_what_is_no_snapshot_is_refused(source: Any) -> None:
    """With an error of ours."""
    with pytest.raises(durable.DurableError):
        replay(NONE, one_step, source)


def test_a_function_that_is_no_workflow_is_refused() -> None:
    """As `durable.run` refuses it."""
    with pytest.raises(durable.InvalidArgument):
        replay(NONE, cast(Any, len), stored())
