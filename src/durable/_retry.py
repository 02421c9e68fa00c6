"""Retry policies: what tenacity's words say about an attempt that failed.

Only a policy's `stop`, `wait` and `retry` are taken. Its own loop and state live in one process; ours are recorded, so
that a restart continues a back-off instead of starting it over.
"""

from __future__ import annotations

import inspect
from typing import Any, cast

import tenacity

from durable._border import calls_out
from durable.errors import DurableError, InvalidArgument, StepTimeout

__all__ = ["Policy"]

_EXAMPLE = "tenacity.Retrying(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_exponential_jitter())"


class Policy:
    """Says of a failed attempt whether, and when, the next one is due.

    `retry` is a `tenacity.Retrying` (or `AsyncRetrying`, with predicates that do not await); else `InvalidArgument`.
    """

    __slots__ = ("_retrying",)

    def __init__(self, retry: object) -> None:
        if not isinstance(retry, tenacity.BaseRetrying):
            raise InvalidArgument(f"retry must be a policy like {_EXAMPLE}, not {type(retry).__name__}")
        for part in (retry.stop, retry.wait, retry.retry):
            if inspect.iscoroutinefunction(part) or inspect.iscoroutinefunction(getattr(part, "__call__", None)):  # noqa: B004
                raise InvalidArgument(
                    f"retry: {part!r} awaits, and a policy is asked between two attempts: make it a plain one"
                )
        if isinstance(retry.retry, tenacity.retry_if_result | tenacity.retry_if_not_result):
            raise InvalidArgument(
                "retry: a result is recorded and not tried again: raise an exception for one that will not do"
            )
        self._retrying = retry

    @calls_out
    def again_in(self, exception: Exception, attempt: int, seconds: float) -> float | None:
        """Seconds until the next attempt, after the `attempt`-th failed `seconds` after the first began; None: give up."""
        if isinstance(exception, DurableError) and not isinstance(exception, StepTimeout):
            return None  # a mistake in how a step is called; another attempt makes the same one
        policy = self._retrying
        if not policy.enabled:
            return None
        state = tenacity.RetryCallState(policy, None, (), {})
        state.attempt_number = attempt
        state.set_exception((type(exception), exception, None))
        state.start_time, state.outcome_timestamp = 0.0, seconds
        if not (isinstance(exception, tenacity.TryAgain) or cast(Any, policy.retry)(state)):
            return None
        state.upcoming_sleep = float(cast(Any, policy.wait)(state))
        return None if cast(Any, policy.stop)(state) else state.upcoming_sleep
