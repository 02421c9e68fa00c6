"""`durable.Retention`: what of the runs that have ended workers delete, and when."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias, cast

from durable._common.boundary import public
from durable._common.durations import Duration
from durable._common.reports import report
from durable._engine.schedules import MAX_DELETED
from durable.errors import DurableError, InvalidArgument
from durable.stores.listing import checked_purge
from durable.stores.protocol import LeasedStore

Purged: TypeAlias = Literal["completed", "failed", "cancelled", "interrupted"]

_log = logging.getLogger("durable")


class Retention:
    """How long runs are kept that have ended. Given to workers: `Worker(…, retention=[durable.Retention(after=30 * 86400)])`.

    - `after`: seconds or a `timedelta`, since the run's last save, begin or end.
    - `status`: "completed", "failed", "cancelled" or "interrupted"; None for all of these. Never goes what is queued, suspended
      or being executed.
    - `queue`: only runs that were started in this queue.
    - `metadata`: only runs whose metadata has these values, as texts: `{"customer": "acme"}`.

    About once a minute one of the fleet's workers deletes what is old enough: a hundred runs in a transaction, and at most ten
    thousand for each policy; the next turn goes on. Raises `InvalidArgument`.
    """

    @public("durable.Retention")
    def __init__(
        self,
        *,
        after: Duration,
        status: Purged | None = "completed",
        queue: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        wanted = checked_purge(after, status, queue, metadata, what="after")
        self.options: Final[Mapping[str, Any]] = {
            "older_than": wanted.seconds,
            "status": wanted.status,
            "queue": wanted.queue,
            "metadata": wanted.metadata or None,
        }

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={value!r}" for name, value in self.options.items() if value is not None)
        return f"<retention, {told}>"


def check_retention(given: object) -> list[Retention]:
    """A worker's policies. Raises `InvalidArgument`."""
    if isinstance(given, Retention) or not isinstance(given, Sequence):
        raise InvalidArgument("retention must be a list of policies: Worker(…, retention=[durable.Retention(after=…)])")
    policies: Sequence[Any] = cast(Any, given)
    for policy in policies:
        if not isinstance(policy, Retention):
            raise InvalidArgument(f"retention has durable.Retention(…) in it, and not {type(policy).__name__}")
    return list(policies)


def apply_retention(store: LeasedStore, policies: Sequence[Retention]) -> None:
    """One turn: delete what is old enough, a bounded number of runs. What fails is logged, and tried again at the next turn."""
    for policy in policies:
        try:
            deleted = store.purge(**policy.options, limit=MAX_DELETED)
        except DurableError as problem:
            report(_log, logging.WARNING, "%r could not be applied, and is at the next turn: %s", policy, problem)
            continue
        if deleted:
            report(_log, logging.INFO, "%r: %d runs deleted", policy, deleted)
