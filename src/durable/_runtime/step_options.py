"""The options of a step: how often its body is called, how long it may take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, Literal, NamedTuple, TypedDict, TypeVar, cast

import tenacity

from durable._common.checks import check_flag
from durable._common.durations import Duration, check_duration, show
from durable._engine.step_kinds import Isolation
from durable._runtime.policies import Policy
from durable.errors import InvalidArgument

I = TypeVar("I")  # noqa: E741 -- an item's type


class StepOptionsDict(TypedDict, total=False):
    """The options of `step(...)` to a type checker; what each means is said there."""

    key: str | None
    retry: tenacity.BaseRetrying | None
    timeout: Duration | None
    at_most_once: bool
    cleanup: bool
    undo: Callable[[Any], object] | None
    cancellable: bool


class MapTermsDict(TypedDict, Generic[I], total=False):
    """Those of every map."""

    key: Callable[[I], object] | None
    max_concurrency: int | None
    retry: tenacity.BaseRetrying | None
    timeout: Duration | None
    cleanup: bool


class MapOptionsDict(MapTermsDict[I], total=False):
    """Likewise those of `step.map`, which has two forms."""

    undo: Callable[[Any], object] | None
    cancellable: bool


class RaisingMapOptions(MapOptionsDict[I], total=False):
    """The first failure is raised."""

    return_exceptions: Literal[False]


class CollectingMapOptions(MapOptionsDict[I]):
    """Failures stand among the results."""

    return_exceptions: Literal[True]


class RaisingTransactions(MapTermsDict[I], total=False):
    """Likewise those of `step.map_transactions`."""

    return_exceptions: Literal[False]
    isolation: Isolation


class _CollectingTransactions(MapTermsDict[I]):
    return_exceptions: Literal[True]


class CollectingTransactions(_CollectingTransactions[I], total=False):
    """Failures stand among the results."""

    isolation: Isolation


class StepOptions(NamedTuple):
    """The options of a step, checked."""

    policy: Policy | None = None
    #: Seconds, for each attempt.
    timeout: float | None = None
    #: Whether the body is never started again, whatever became of it.
    at_most_once: bool = False
    #: Whether the step is done anew whenever the run is resumed.
    cleanup: bool = False
    #: What undoes it, called with its value.
    undo: Callable[..., object] | None = None
    #: Whether its body is cancelled, where that is a coroutine, when the run is.
    cancellable: bool = False

    def merged_over(self, others: StepOptions) -> StepOptions:
        """These, and of the `others` those that are not given here."""
        at_most_once = self.at_most_once or others.at_most_once
        return StepOptions(
            policy=None if at_most_once else self.policy or others.policy,
            timeout=others.timeout if self.timeout is None else self.timeout,
            at_most_once=at_most_once,
            cleanup=not at_most_once and (self.cleanup or others.cleanup),
            undo=self.undo or others.undo,
            cancellable=self.cancellable or others.cancellable,
        )


DEFAULTS: Final = StepOptions()


def step_options(
    retry: object,
    timeout: object,
    at_most_once: object = False,
    cleanup: object = False,
    undo: Callable[..., object] | None = None,
    cancellable: object = False,
) -> StepOptions:
    """The options as a user gave them; `InvalidArgument` for those that cannot be kept."""
    if (
        retry is None
        and timeout is None
        and at_most_once is False
        and cleanup is False
        and undo is None
        and cancellable is False
    ):
        return DEFAULTS
    once, cleans_up = check_flag("at_most_once", at_most_once), check_flag("cleanup", cleanup)
    if once and cleans_up:
        raise InvalidArgument(
            "clean-up is done anew whenever the run is taken up again, which a step that runs at most once cannot be: give "
            "cleanup= or at_most_once=, not both"
        )
    if once and retry is not None:
        raise InvalidArgument("a step is retried or it runs at most once: give retry= or at_most_once=, not both")
    if undo is not None and not callable(cast(object, undo)):
        raise InvalidArgument(
            f"undo= takes a function of the step's value, not {show(undo)}: undo=release, and not undo=release(seat)"
        )
    if undo is not None and cleans_up:
        raise InvalidArgument(
            "clean-up is done whenever the run is left, and there is nothing to undo of it: give cleanup= or undo=, not both"
        )
    is_cancellable = check_flag("cancellable", cancellable)
    policy, seconds = None if retry is None else Policy(retry), checked_timeout("timeout", timeout)
    return StepOptions(policy, seconds, once, cleans_up, undo, is_cancellable)


def checked_timeout(what: str, seconds: object) -> float | None:
    """`seconds`, when they can be waited for; else `InvalidArgument`."""
    return None if seconds is None else check_duration(what, seconds)
