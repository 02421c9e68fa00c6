"""What a store can be asked about its snapshots: pages of ids, how many there are, and which are to be cleaned up."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple, TypeAlias, cast, get_args

from durable._common.checks import check_count, check_name
from durable._common.durations import check_duration
from durable.errors import InvalidArgument, UnreadableRecord
from durable.records import Status
from durable.snapshots import Snapshot

RunStatus: TypeAlias = Literal["queued", "running", "suspended", "interrupted", "completed", "failed", "cancelled"]
"""Where a run stands: `queued` for a worker, `running` under a lease that lasts, `suspended` until its wait is over and a
worker goes on with it, `interrupted` without a lease, or at its end."""

Progress: TypeAlias = Callable[[int], object]
"""Called after each batch with how many runs have been deleted so far."""

PAGE: Final = 100  # snapshots in a page, and runs deleted in one transaction
NO_MOMENT: Final = datetime.min.replace(tzinfo=UTC)  # of a row that another tool wrote without one
FORCE_ADVICE: Final = "Wait until it has ended, or pass force=True: what executes it can then write nothing more."
# What a store's prefix may end in: no name goes on after it, so none is begun by it.
SEPARATORS: Final = string.punctuation
_LARGEST_PAGE: Final = 100_000


class Listed(NamedTuple):
    """A line of a list. `updated_at` is the aware UTC moment of the last save, begin or end."""

    id: str
    updated_at: datetime


class Stats(NamedTuple):
    """How much a store holds: runs by where they stand, records of the journal, and bytes on disk, indexes included.

    `unreadable` are those whose status is an unknown word. `orphaned` are journals whose header SQL has
    deleted, which are no runs: `purge` takes them, and `delete(id)` each.

    `unserved` says, as `queue: workflow@version`, what is due and no worker has that was at work in the last minute.

    Runs, records and orphans are those of the store's prefix, `bytes` those of its whole tables. All are exact, but where the
    journals take more than 128 MiB: there `records` `is_estimate` (never 0 where there are some), by the server's statistics,
    and an orphan without a row among the leases, which every run leaves there, is not seen.
    """

    running: int
    interrupted: int
    completed: int
    failed: int
    cancelled: int
    unreadable: int
    records: int
    bytes: int
    orphaned: int = 0
    is_estimate: bool = False
    queued: int = 0
    suspended: int = 0
    unserved: tuple[str, ...] = ()

    @property
    def runs(self) -> int:
        """All of them."""
        return (
            self.queued
            + self.running
            + self.suspended
            + self.interrupted
            + self.completed
            + self.failed
            + self.cancelled
            + self.unreadable
        )


class PageQuery(NamedTuple):
    """A question about snapshots, checked."""

    prefix: str = ""
    limit: int = PAGE
    status: RunStatus | None = None
    after: Listed | None = None


def checked_page(prefix: object, limit: object, status: object, after: object) -> PageQuery:
    """The question for a page, or `InvalidArgument` naming what is wrong with it."""
    if not isinstance(prefix, str) or "\0" in prefix:
        raise InvalidArgument(f"prefix must be a string without NUL characters, not {type(prefix).__name__}")
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= _LARGEST_PAGE:
        raise InvalidArgument(f"limit must be a number of snapshots from 1 to {_LARGEST_PAGE:,}, not {limit!r}")
    if after is not None and not isinstance(after, Listed):
        raise InvalidArgument(f"after must be the last line of the page before, not {type(after).__name__}")
    return PageQuery(prefix, limit, _status(status), after)


class PurgeQuery(NamedTuple):
    """What is to go, checked."""

    #: Of its age.
    seconds: float
    status: RunStatus | None = "completed"
    #: In which it was started; None for any, and for what was never started.
    queue: str | None = None
    metadata: Mapping[str, str] = {}
    #: How many runs at most.
    limit: int | None = None

    @property
    def takes_orphans(self) -> bool:
        """Whether journals without a header are among it, of which no queue and no metadata are known."""
        return self.queue is None and not self.metadata

    def portion(self, total: int) -> int:
        """How many to delete next, when so many are gone."""
        return PAGE if self.limit is None else min(PAGE, self.limit - total)


def checked_purge(
    older_than: object,
    status: object,
    queue: object = None,
    metadata: object = None,
    limit: int | None = None,
    what: str = "older_than",
) -> PurgeQuery:
    """What is to go, or `InvalidArgument`; `what` is how the age was called."""
    seconds = check_duration(what, older_than, zero=True)
    checked = _status(status)
    if checked == "running":
        raise InvalidArgument('runs that are being executed are never purged: status may not be "running"')
    if checked in ("queued", "suspended"):
        raise InvalidArgument(
            f"runs that are {checked} have not ended, and are never purged: cancel them first, or delete(id) each"
        )
    if limit is not None:
        check_count("limit", limit)
    wanted = None if queue is None else check_name("a queue's name", queue)
    return PurgeQuery(seconds, checked, wanted, _checked_metadata(metadata), limit)


def _checked_metadata(given: object) -> Mapping[str, str]:
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not given:
        raise InvalidArgument('metadata must be a mapping of texts, like {"customer": "acme"}')
    texts: Mapping[Any, Any] = cast(Any, given)
    for key, value in texts.items():
        check_name("a key of metadata", key)
        if not isinstance(value, str) or "\0" in value:
            raise InvalidArgument(f"metadata[{key!r}] must be a text, as it stands in the run's header, not {value!r}")
    return dict(texts)


def checked_prefix(prefix: object) -> str:
    """A store's prefix: text that an id can begin with, up to and with a separator.

    Without one the store of `tenant1` would hold the runs of `tenant10` too: it would list them, and purge them.
    """
    if prefix == "":
        return ""
    checked = check_name("prefix", prefix)
    if checked[-1] not in SEPARATORS:
        shown = checked[-40:]
        raise InvalidArgument(
            f"prefix {shown!r} must end in a separator, like ':' or '/' (one of {SEPARATORS}): without one this store would "
            f"also see, and purge, the runs of a prefix that begins with it, like {shown + '0'!r}: write {shown + ':'!r}"
        )
    return checked


def checked_snapshot(id: str, snapshot: Snapshot | Mapping[str, Any]) -> Snapshot:
    """What is to be saved; `InvalidArgument` when it is no snapshot, `UnreadableRecord` when it is no document of one."""
    if isinstance(snapshot, Snapshot):
        return snapshot
    if not isinstance(snapshot, Mapping):
        raise InvalidArgument(f"a snapshot or its document can be saved, not {type(snapshot).__name__}")
    return Snapshot.from_document(snapshot, run_id=id)


def savable_snapshot(id: str, snapshot: Snapshot | Mapping[str, Any]) -> Snapshot:
    """What is to be saved, like `checked_snapshot`; `InvalidArgument` for a run that waits for workers.

    No document says in which queue, how urgent, and when it is due: without these no worker would ever take it.
    """
    checked = checked_snapshot(id, snapshot)
    if checked.execution.status == Status.QUEUED:
        raise InvalidArgument(
            f"run {id!r} is queued in this document, which says neither in which queue nor when it is due, so that no worker "
            f"would take it: durable.start begins a run that workers take, and with the status 'running' in its place "
            f"durable.run goes on with what is saved"
        )
    return checked


def headless(id: str) -> UnreadableRecord:
    """The error of a run whose header is gone, and whose journal is there: what it would replay has no run any more."""
    return UnreadableRecord(
        id, "the header", "it is missing, and its journal is there: store.delete(id) takes away what is left of the run"
    )


def stands(status: str, *, held: bool, suspended: bool) -> RunStatus | None:
    """Where a run stands whose header says `status`, and which is `held`, or `suspended`, or not; None for an unknown word."""
    match status:
        case "running":
            return "running" if held else "suspended" if suspended else "interrupted"
        case "queued" | "completed" | "failed" | "cancelled":
            return status
        case _:
            return None


def _status(status: object) -> RunStatus | None:
    known: tuple[RunStatus, ...] = get_args(RunStatus)
    if status is None:
        return None
    for name in known:
        if status == name:
            return name
    raise InvalidArgument(f"status must be one of {', '.join(known)}, or None for all, not {status!r}")
