"""What both drivers do about a race: its branches, its winner, and the branches that are out of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from threading import Event, Thread
from typing import Any, Final

from durable._common.boundary import calls_out
from durable._common.checks import check_name
from durable._common.reports import say
from durable._engine.calls import Call
from durable._engine.decisions import Attempt, RunBranches, StepOutcome, Unstorable, Won
from durable._engine.step_kinds import Race
from durable._runtime.awaitables import explain_early_call
from durable._runtime.bodies import Body
from durable._runtime.driver import Driver
from durable._runtime.step_options import DEFAULTS
from durable.codecs import advice_after_body, return_annotation
from durable.errors import InvalidArgument, UnstorableValue

_log: Final = logging.getLogger("durable")


def body_of_race(branches: Mapping[str, Callable[[], Any]]) -> tuple[str, Body]:
    """The name and the body of a race. `InvalidArgument` where there is nothing to run, or a branch is no function."""
    if not branches:
        raise InvalidArgument("step.race needs at least one branch, as in step.race(quick=ask_one, slow=ask_another)")
    for name, fn in branches.items():
        check_name("the name of a branch", name)
        if not callable(fn):
            raise InvalidArgument(f"branch {name!r} of step.race: {explain_early_call(fn)}")
    names = tuple(branches)
    return " | ".join(names), Body(_run_branches, (), {}, DEFAULTS, kind=Race(names), branches=dict(branches))


def _run_branches() -> None:
    """Stands for the body of a race, which has branches instead."""


class Heat:
    """The branches of a race, on threads."""

    def __init__(self) -> None:
        #: The names of those that have ended, in that order, each with what came of it.
        self.ended: list[tuple[str, Any]] = []
        #: Set when the others are to begin nothing more.
        self.over = Event()
        #: The threads that let time pass.
        self.pausing: set[Thread] = set()


class RacingDriver(Driver):
    """What neither blocks nor awaits."""

    @calls_out
    def _won(self, call: Call, name: str, value: Any, body: Body) -> StepOutcome:
        what = f"the result of branch {name!r} of race {call.key!r}"
        try:
            return Won(name, self._codec.encode(value, what=what, annotation=return_annotation(body.branches[name])))
        except UnstorableValue as problem:
            problem.advice = advice_after_body(value, problem.advice)
            return Unstorable(problem)
        except InvalidArgument as problem:
            return Unstorable(problem)

    def _all_out(self, call: Call, run: RunBranches, failures: list[Exception], body: Body) -> StepOutcome:
        every = ExceptionGroup(f"every branch of race {call.key!r} failed", failures)
        return self._as_raised(call, every, Attempt(run.number, run.began), body)

    def _tell_failure(self, call: Call, name: str, problem: BaseException) -> None:
        message = "run %r: branch %r of race %r failed (%s) and is out of it"
        say(_log, logging.WARNING, message, self.run_id, name, call.key, type(problem).__name__)
