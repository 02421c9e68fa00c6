"""FAULTS 173: a stack that ends somewhere in the midst of a step: the run ends, and others run."""

# pyright: reportUnknownLambdaType=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# (`execute` takes workflows of either colour, as Any.)

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

import durable
from harness.blows import KINDS, STRIDE, Tally, store_of
from harness.support import Database

execute: Any = durable.run  # in either colour

_DEEPEST = 200  # frames before the end of the stack, more than a step takes
_THINNED = 19
_PATIENCE = 15.0


def _descend(work: Callable[[], Any], left: int) -> Any:
    return work() if left == 0 else _descend(work, left - 1)


def _deep(work: Callable[[], Any], spare: int) -> Any:
    frame, depth = inspect.currentframe(), 0
    assert frame is not None
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    return _descend(work, max(0, sys.getrecursionlimit() - depth - spare))


def _step(step: Any) -> Any:
    return step("deep", lambda: 1)


def _transaction(step: Any) -> Any:
    return step.transaction("deep", lambda connection: connection.execute("SELECT 1").fetchone()[0])


def _fails(step: Any) -> Any:
    try:
        step("fails", lambda: 1 / 0)
    except ZeroDivisionError:
        return 1


def _mapped(step: Any) -> Any:
    return step.map("deep", int, [1])[0]


@pytest.mark.parametrize(
    ("kind", "what"),
    [(kind, what) for kind in KINDS for what in (_step, _fails, _mapped)] + [("postgres", _transaction)],
)
def test_a_step_at_every_depth(kind: str, what: Callable[[Any], Any], database: Database) -> None:
    tally, store = Tally(), store_of(kind, database)

    def workflow(step: Any, _: Any, spare: int) -> Any:
        try:
            return _deep(lambda: what(step), spare)
        except RecursionError:
            return "too deep"

    def mended(step: Any, _: Any, __: int) -> Any:
        return what(step)

    mended.__name__ = mended.__qualname__ = "workflow"
    for spare in range(-3, _DEEPEST, STRIDE or _THINNED):
        run = functools.partial(execute, None, workflow, id=f"r{spare}", input=spare, store=store)
        _strike(tally, str(spare), store, run)
    assert {"too deep", "1"} <= set(tally.came)
    tally.show(f"a stack that ends in {what.__name__.strip('_')}, {kind}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_at_every_depth(kind: str, database: Database) -> None:
    """The stack ends in `durable.run` itself."""
    tally, store = Tally(), store_of(kind, database)

    def workflow(step: Any, _: Any) -> Any:
        return step("a", lambda: 1)

    for spare in range(-3, _DEEPEST, STRIDE or _THINNED):

        def run(spare: int = spare) -> Any:
            try:
                return _deep(lambda: execute(None, workflow, id=f"r{spare}", store=store), spare)
            except RecursionError:
                return "too deep"

        _strike(tally, str(spare), store, run)
        if execute(None, workflow, id=f"r{spare}", store=store) != 1:
            tally.wrong.append(str(spare))
    assert {"too deep", "1"} <= set(tally.came)
    tally.show(f"a stack that ends in a run, {kind}")


def _strike(tally: Tally, at: str, store: Any, run: Callable[[], Any]) -> None:
    came: list[Any] = []

    def work() -> None:
        try:
            came.append(run())
        except BaseException as problem:
            came.append(problem)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    tally.blows += 1
    if not came:
        tally.hangs.append(at)
        return
    tally.came[str(came[0])] += 1
    if came[0] not in (1, "too deep"):
        tally.wrong.append(f"{at}: {came[0]!r}")
    if execute(None, lambda step, _: step("x", lambda: 1), id=f"another {at}", store=store) != 1:
        tally.stores_lost.append(at)
