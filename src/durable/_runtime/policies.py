"""Retry policies: what tenacity's words say about an attempt that failed.

Of a policy `stop`, `wait` and `retry` are taken. Its own loop and state live in one process; ours are recorded, so that a
restart continues a back-off instead of starting it over. What else tenacity would do for a policy is refused by name.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, Final, cast

import tenacity
from tenacity import asyncio as tenacity_asyncio

from durable._common.boundary import calls_out
from durable._common.durations import show
from durable.errors import (
    AmbiguousKey,
    AsyncMismatch,
    InvalidArgument,
    KeyConflict,
    NestedStep,
    RetryRefused,
    RunMismatch,
    StepInterrupted,
    TransactionMisused,
    UnstorableValue,
    VersionMismatch,
    WorkflowDrift,
)

# Of our own errors those that a body makes by itself. Others pass: a store that is away, a run that has not ended.
_MISTAKES: Final = (
    InvalidArgument,
    AsyncMismatch,
    NestedStep,
    TransactionMisused,
    KeyConflict,
    AmbiguousKey,
    UnstorableValue,
    RunMismatch,
    VersionMismatch,
    WorkflowDrift,
    RetryRefused,
    StepInterrupted,
)

_EXAMPLE: Final = "tenacity.Retrying(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_exponential_jitter())"
_DEFAULTS: Final[tuple[Any, ...]] = (tenacity.Retrying(), tenacity.AsyncRetrying())

# What a policy may not have, and where it belongs.
_NOT_TAKEN: Final = {
    "before": "begin the body with it, or listen to StepBegan with on_event=",
    "after": "listen to StepRetrying with on_event=, which says the attempt, the error and when the next one is due",
    "before_sleep": "listen to StepRetrying with on_event=, which says the attempt, the error and when the next one is due",
    "retry_error_callback": "the last error is raised: catch it in the workflow, and go on with another value there",
    "retry_error_cls": "the last error itself is raised, in no RetryError: catch it in the workflow",
    "sleep": "a back-off is recorded and waited for by the run; cancel= ends it",
}
_LOOP: Final = (frozenset(dir(tenacity.Retrying)) | frozenset(dir(tenacity.AsyncRetrying))) - frozenset(dir(object))

_ON_RESULTS: Final = (
    tenacity.retry_if_result,
    tenacity.retry_if_not_result,
    tenacity.retry_unless_exception_type,
    tenacity.retry_if_not_exception_message,
    type(tenacity.retry_always),
    tenacity_asyncio.retry_if_result,
)
_RAISED: Final = "raise an exception in the body for a result that will not do"


class Policy:
    """Says of a failed attempt whether, and when, the next one is due.

    `retry` is a `tenacity.Retrying` (or `AsyncRetrying`, with parts that do not await) that asks for nothing but that; else
    `InvalidArgument`. `of_run` is whether an attempt is one of a whole run, and not of a step's body.
    """

    __slots__ = ("_judges_results", "_retrying")

    def __init__(self, retry: object, *, of_run: bool = False) -> None:
        if not isinstance(retry, tenacity.BaseRetrying):
            raise InvalidArgument(f"retry must be a policy like {_EXAMPLE}, not {type(retry).__name__}")
        _check_loop(retry)
        for name, advice in _NOT_TAKEN.items():
            given = getattr(retry, name)
            if given is not None and all(given is not getattr(default, name) for default in _DEFAULTS):
                why = "of a policy for runs, only its stop, wait and retry are" if of_run else advice
                raise InvalidArgument(f"retry: a policy's {name}= is not taken: {why}")
        for name in ("stop", "wait", "retry"):
            _check_part(name, getattr(retry, name))
        if retry.enabled and _never_stops(retry.stop) and _never_waits(retry.wait):
            raise InvalidArgument(
                f"retry: without stop= and wait= {'a run' if of_run else 'the body'} is tried again for ever, without a pause: "
                f"give one of them, as in {_EXAMPLE}"
            )
        self._retrying = retry
        self._judges_results = retry.enabled and not all(
            _is_tenacitys(cast(type, type(part))) for part in _parts(retry.retry)
        )

    @calls_out
    def retry_delay(
        self,
        exception: Exception,
        attempt: int,
        seconds: float,
        fn: Any = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] = {},  # noqa: B006 -- handed on, and never changed
    ) -> float | None:
        """Seconds until the next attempt, after the `attempt`-th failed `seconds` after the first began; None: give up.

        `fn(*args, **kwargs)` is the call, for a part of the policy that looks at it.

        `InvalidArgument` when a part of the policy fails, or answers with nonsense.
        """
        if isinstance(exception, _MISTAKES):
            return None  # another attempt makes the same one
        policy = self._retrying
        if not policy.enabled:
            return None
        state = tenacity.RetryCallState(policy, fn, args, kwargs)
        state.attempt_number = attempt
        state.set_exception((type(exception), exception, None))
        state.start_time, state.outcome_timestamp = 0.0, seconds
        if not (isinstance(exception, tenacity.TryAgain) or _ask("retry", policy.retry, state)):
            return None
        state.upcoming_sleep = _seconds(_ask("wait", policy.wait, state), state)
        return None if _ask("stop", policy.stop, state) else state.upcoming_sleep

    @calls_out
    def check_result(self, value: object, attempt: int, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """`InvalidArgument` for a policy that would have the body called again because of what it returned.

        Only a predicate of the user's own need be asked, tenacity's are known.
        """
        if not self._judges_results:
            return
        state = tenacity.RetryCallState(self._retrying, fn, args, kwargs)
        state.attempt_number = attempt
        state.set_result(value)
        try:
            again = cast(Any, self._retrying.retry)(state)
        except Exception:
            return
        if again:
            raise InvalidArgument(
                f"retry: the policy's retry={show(self._retrying.retry)} would have the body called again for its result, "
                f"and results are not judged: {_RAISED}, and let the predicate look at outcome.exception(). The body did run."
            )


def _check_loop(retry: tenacity.BaseRetrying) -> None:
    """Tenacity's loop is not run: a policy with a loop of its own is refused."""
    for kind in type(retry).__mro__:
        if _is_tenacitys(kind):
            continue
        changed = sorted(name for name in vars(kind).keys() & _LOOP if callable(vars(kind)[name]))
        if changed:
            raise InvalidArgument(
                f"retry: {kind.__name__} changes tenacity's loop ({', '.join(changed)}), which is not run: a policy's stop, "
                f"wait and retry are taken"
            )


def _is_tenacitys(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "tenacity"


def _check_part(name: str, part: Any) -> None:
    if isinstance(part, type):
        raise InvalidArgument(f"retry: {name}={part.__name__} is a class: call it, as in {_EXAMPLE}")
    if not callable(part):
        raise InvalidArgument(f"retry: {name}={show(part)} cannot be called: take one of tenacity's, as in {_EXAMPLE}")
    for each in _parts(part):
        if _awaits(each) or _awaits(getattr(each, "predicate", None)):
            raise InvalidArgument(
                f"retry: {show(each)} awaits, and a policy is asked between two attempts: make it a plain one"
            )
    if name == "retry" and _is_on_results(part):
        raise InvalidArgument(f"retry: {show(part)}: a result is recorded and not tried again: {_RAISED}")


def _awaits(fn: Any) -> bool:
    while isinstance(fn, functools.partial):
        fn = fn.func
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004


def _parts(part: Any) -> list[Any]:
    """A strategy, and those that it combines."""
    return [part, *(each for inner in _members(part) for each in _parts(inner))]


def _members(part: Any) -> tuple[Any, ...]:
    for name in ("retries", "stops", "wait_funcs", "strategies"):
        inner = getattr(part, name, None)
        if isinstance(inner, tuple | list):
            return tuple(cast(list[Any], inner))
    return ()


def _is_on_results(predicate: Any) -> bool:
    if isinstance(predicate, tenacity.retry_any):
        return any(map(_is_on_results, predicate.retries))
    if isinstance(predicate, tenacity.retry_all):
        return bool(predicate.retries) and all(map(_is_on_results, predicate.retries))
    return isinstance(predicate, _ON_RESULTS)


def _never_stops(stop: Any) -> bool:
    if isinstance(stop, tenacity.stop_any):
        return all(map(_never_stops, stop.stops))
    if isinstance(stop, tenacity.stop_all):
        return any(map(_never_stops, stop.stops))
    return isinstance(stop, type(tenacity.stop_never))


def _never_waits(wait: Any) -> bool:
    """Whether it is one of tenacity's that never lets a second pass. A user's own is not judged."""
    match wait:
        case tenacity.wait_fixed():  # `wait_none` is one
            return not wait.wait_fixed
        case tenacity.wait_combine():
            return all(map(_never_waits, wait.wait_funcs))
        case tenacity.wait_chain():
            return _never_waits(wait.strategies[-1])
        case tenacity.wait_random():
            return not wait.wait_random_max
        case tenacity.wait_exponential():  # and the random one
            return not (wait.max and wait.multiplier) and not wait.min
        case tenacity.wait_exponential_jitter():
            return not wait.max
        case tenacity.wait_incrementing():
            return not wait.max or not (wait.start or wait.increment)
        case _:
            return False


@calls_out
def _ask(name: str, part: Callable[[Any], object], state: tenacity.RetryCallState) -> object:
    try:
        answer = cast(Any, part)(state)
    except Exception as problem:
        raise InvalidArgument(
            f"retry: the policy's {name}={show(part)} raised {type(problem).__name__}: {problem}. {_after(state)}"
        ) from problem
    if inspect.isawaitable(answer):
        if inspect.iscoroutine(answer):
            answer.close()
        raise InvalidArgument(
            f"retry: the policy's {name}={show(part)} awaits, and a policy is asked between two attempts: "
            f"make it a plain one. {_after(state)}"
        )
    return answer


def _seconds(answer: object, state: tenacity.RetryCallState) -> float:
    if isinstance(answer, str | bytes):
        answer = show(answer)
    try:
        seconds = float(cast(Any, answer))
    except Exception:  # whatever it is, it is no number, or an int beyond every float
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise InvalidArgument(
            f"retry: the policy's wait must come to a number of seconds, zero or more, not {show(answer)}. {_after(state)}"
        )
    return seconds


def _after(state: tenacity.RetryCallState) -> str:
    exception = None if state.outcome is None else state.outcome.exception()
    return (
        f"Nothing is recorded of attempt {state.attempt_number} of the body, which raised {type(exception).__name__}."
    )
