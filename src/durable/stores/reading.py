"""What people and tools ask of a store: which runs there are, where each stands, and what is recorded of one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple, TypeAlias, cast, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from msgspec import Struct, field

from durable._common.checks import check_name
from durable._common.durations import to_utc
from durable._engine.schedules import LAST, Scheduled
from durable.errors import InvalidArgument
from durable.stores.listing import NO_MOMENT, Listed, RunStatus, stands

Standing: TypeAlias = RunStatus | Literal["unreadable"]
"""Where a run stands; `unreadable` where its header says a word that this version does not know."""

COUNTED: Final = 10_001  # runs, at which a count ends: "10k+"
LINES: Final = 10_000  # records in one answer
DAY: Final = 100_000  # runs of the last day that are looked at
NEVER: Final = datetime.max.replace(tzinfo=UTC)  # of a run that is due when something wakes it
_LARGEST_PAGE: Final = 1_000


class Filter(Struct, frozen=True, kw_only=True):
    """Which runs are meant: those for which all that is given holds. Of several values of one field any one may."""

    #: What their ids begin with, taken literally.
    prefix: str = ""
    #: Their ids.
    ids: tuple[str, ...] = ()
    #: The ids of the runs that have started them as children.
    parents: tuple[str, ...] = ()
    #: The names of their workflows.
    workflows: tuple[str, ...] = ()
    #: Where they stand.
    statuses: tuple[RunStatus, ...] = ()
    #: The queues that they were started in.
    queues: tuple[str, ...] = ()
    #: Of failed runs, the exception's class: its name, or `module:Class`.
    errors: tuple[str, ...] = ()
    #: Of failed runs, the step that raised it: its key, or its name.
    steps: tuple[str, ...] = ()
    #: By key of their metadata, what stands there, as text.
    metadata: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    #: Changed last at this moment or later.
    since: datetime | None = None
    #: Changed last before this moment.
    before: datetime | None = None


class RunLine(NamedTuple):
    """A line of a list of runs. Moments are aware and in UTC."""

    #: Its id.
    id: str
    #: Where it stands.
    status: Standing
    #: The workflow's name; empty where another tool did not say it.
    workflow: str
    #: The workflow's version; None where that is no number.
    version: int | None
    #: The last save, begin or end.
    updated_at: datetime
    #: When it was claimed first; None before that.
    started_at: datetime | None
    #: The queue that it was started in; None of one that `durable.run` began.
    queue: str | None
    #: When a worker may take it, later than now if it waits (`datetime.max`: until something wakes it). None where none may.
    due_at: datetime | None
    #: The names of the signals that bring on a suspended run at once; empty of any other, and of one that only sleeps.
    awaits: tuple[str, ...]
    #: From 0, the most urgent, to 9; None where it is no worker's.
    priority: int | None
    #: The step that was recorded last, by its key; empty before the first.
    last_key: str
    #: How many records there are, up to and with that one.
    records: int
    #: Of a failed run, the exception's class, as `module:Class`; else empty.
    error: str
    #: Of a failed run, the key of the step that raised it; else empty.
    error_step: str
    #: The process of the last execution, as `host:pid`; empty before the first.
    owner: str
    #: How many leases of the run were granted.
    executions: int
    #: How many workers in a row have died under it.
    crashes: int
    #: Whether the failed run goes on only when `durable.retry` has set some steps aside.
    needs_decision: bool
    #: Whose run it is, as its start has said; None without that.
    partition: str | None = None
    #: Of a child, the id of the run that has started it; else empty.
    parent: str = ""


class SentSignal(NamedTuple):
    """A signal that was sent to a run. Which were received stands in its journal, by number."""

    #: Its number, in the order of receiving.
    number: int
    #: Its name; empty of one that was received before the run was continued, of which only the `dedup` is remembered.
    name: str
    #: The JSON text of its payload.
    payload: str
    #: When it was sent, aware and in UTC.
    at: datetime
    #: What stands for its name and `dedup`; None where it was sent without one.
    dedup_hash: int | None = None


class WorkerLine(NamedTuple):
    """A worker that is at work, or was a moment ago."""

    #: What tells it from every other one.
    id: str
    #: The process, as `host:pid`.
    owner: str
    #: What it executes, as `queue: workflow@version`; the queue is empty for what `durable.run` began.
    routes: tuple[str, ...]
    #: Whether it waits for something to be due.
    idle: bool
    #: Whether it takes no more.
    leaving: bool
    #: When it was heard of last, aware and in UTC.
    seen_at: datetime
    #: How many runs its process holds.
    held: int


class ScheduleLine(NamedTuple):
    """A schedule, and where it stands. Its moments are aware, in its own time zone where that is known here, else in UTC."""

    name: str
    #: Its fields, as cron has them, or `every 10 s`.
    timetable: str
    #: The name of its time zone.
    zone: str
    #: What it starts, as `workflow@version`.
    workflow: str
    queue: str
    #: "latest", "all" or "skip".
    missed: str
    #: "allow", "queue" or "skip".
    overlap: str
    #: Whether it starts nothing until it is resumed.
    paused: bool
    #: When its next run is due; None while it is paused, or where no worker that has it has polled since it was changed.
    due_at: datetime | None
    #: The moment of its last run, and that run's id; None where there was none.
    last_at: datetime | None
    last_id: str | None
    #: What it says, as it is stored.
    scheduled: Scheduled


class EndedRuns(NamedTuple):
    """How many runs changed last in one hour, and ended with that."""

    #: How many hours ago: 0 is the last sixty minutes.
    hours_ago: int
    completed: int
    failed: int


class Health(NamedTuple):
    """How a store stands just now; each part costs one statement that ends soon."""

    #: The hours of the last day in which runs ended, the last one first.
    ended: tuple[EndedRuns, ...] = ()
    #: Where more changed in a day than is counted: the moment from which on it is, aware and in UTC.
    counted_since: datetime | None = None
    #: For how many seconds the run has waited that is due longest, and that no worker has taken; None where none is due.
    due_for: float | None = None
    #: How many runs were left by their calls, with no worker to take them up; 10,001 at most.
    stuck: int = 0
    #: For how many seconds the oldest of these has been so.
    stuck_for: float | None = None
    #: How many connections the server has, and how many it allows; None of a store without a server.
    connections: tuple[int, int] | None = None
    #: The oldest transaction that is open in this database: its process on the server, and for how many seconds.
    open_transaction: tuple[int, float] | None = None


class LeaseFacts(NamedTuple):
    """What a run's lease says of it."""

    #: Whether it lasts.
    held: bool = False
    #: Of a suspended run, the names of the signals that bring it on, none where it only sleeps; None of any other.
    awaits: tuple[str, ...] | None = None
    #: The queue's name, empty of what a call began for workers to recover; None where the run is no worker's.
    queue: str | None = None
    #: As in a `RunLine`.
    due_at: datetime | None = None
    #: As in a `RunLine`.
    priority: int | None = None
    #: As in a `RunLine`.
    partition: str | None = None


def read_line(
    id: str,
    updated_at: datetime | None,
    workflow: object,
    version: object,
    execution: object,
    lease: LeaseFacts,
    last: tuple[str | None, int | None],
    parent: str = "",
) -> RunLine:
    """The line of a run, by what its header says, of whatever make that is."""
    told = _mapping(execution)
    error = _mapping(told.get("error"))
    status: Standing = (
        stands(_text(told.get("status")) or "running", held=lease.held, suspended=lease.awaits is not None)
        or "unreadable"
    )
    key, seq = last
    return RunLine(
        id=id,
        status=status,
        workflow=_text(workflow),
        version=_number(version),
        updated_at=NO_MOMENT if updated_at is None else updated_at.astimezone(UTC),
        started_at=_moment(told.get("startedAt")),
        queue=lease.queue or None,
        due_at=lease.due_at,
        awaits=lease.awaits or (),
        priority=None if lease.priority is None else lease.priority % 10,  # ten less once it was begun
        last_key=key or "",
        records=0 if seq is None else seq + 1,
        error=_text(error.get("type")),
        error_step=_text(error.get("step")),
        owner=_text(told.get("owner")),
        executions=_number(told.get("epoch")) or 0,
        crashes=_number(told.get("crashes")) or 0,
        needs_decision=told.get("needsDecision") is True,
        partition=lease.partition,
        parent=parent,
    )


def schedule_line(
    scheduled: Scheduled, paused: bool, due_at: datetime | None, last_at: datetime | None, last_id: str | None
) -> ScheduleLine:
    """A line of `schedules`."""
    route = scheduled.route
    return ScheduleLine(
        scheduled.name,
        scheduled.cron or f"every {scheduled.every:g} s",
        scheduled.zone,
        f"{route.workflow}@{route.version}",
        route.queue,
        scheduled.missed,
        scheduled.overlap,
        paused,
        None if due_at is None or paused or due_at >= LAST else _in_zone(due_at, scheduled.zone),
        None if last_at is None else _in_zone(last_at, scheduled.zone),
        last_id,
        scheduled,
    )


def _in_zone(at: datetime, zone: str) -> datetime:
    try:
        return at.astimezone(ZoneInfo(zone))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return at.astimezone(UTC)


def checked_filter(filter: object) -> Filter:
    """The filter, or `InvalidArgument` naming what is wrong with it."""
    if filter is None:
        return Filter()
    if not isinstance(filter, Filter):
        raise InvalidArgument(f"filter must be a durable.stores.Filter, or None for all, not {type(filter).__name__}")
    known = get_args(RunStatus)
    for name in ("ids", "parents", "workflows", "statuses", "queues", "errors", "steps"):
        for value in _values(name, getattr(filter, name)):
            if name == "statuses" and value not in known:
                raise InvalidArgument(f"a status is one of {', '.join(known)}, not {value!r}")
    for key, values in filter.metadata.items():
        _values("metadata", (key, *_values("metadata", values)))
    _values("prefix", (filter.prefix,))
    for name in ("since", "before"):
        moment = getattr(filter, name)
        if moment is not None:
            if not isinstance(moment, datetime):
                raise InvalidArgument(f"{name} must be an aware datetime, not {type(moment).__name__}")
            to_utc(name, moment)
    return filter


def checked_lines(limit: object, after: object, largest: int = _LARGEST_PAGE) -> tuple[int, Listed | None]:
    """How many runs are asked for, and the line after which they begin."""
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= largest:
        raise InvalidArgument(f"limit must be a number of runs from 1 to {largest:,}, not {limit!r}")
    if isinstance(after, RunLine):
        return limit, Listed(after.id, after.updated_at)
    if after is not None and not isinstance(after, Listed):
        raise InvalidArgument(f"after must be the last line of the page before, not {type(after).__name__}")
    return limit, after


def checked_journal(id: object, after: object, limit: object) -> int:
    """The place from which records are asked for; `InvalidArgument`."""
    check_name("a run's id", id)
    if after is not None and (isinstance(after, bool) or not isinstance(after, int)):
        raise InvalidArgument(f"after must be the seq of a record, or None for all of them, not {after!r}")
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= LINES:
        raise InvalidArgument(f"limit must be a number of records from 1 to {LINES:,}, not {limit!r}")
    return -(2**31) if after is None else min(max(after, -(2**31)), 2**31 - 1)


def matches_text(stored: object, wanted: Collection[str]) -> bool:
    """Whether a value of metadata is one of these texts: a number or a truth value as JSON writes it."""
    if isinstance(stored, bool):
        return ("true" if stored else "false") in wanted
    return isinstance(stored, str | int | float) and str(stored) in wanted


def names_of_error(type_: str) -> tuple[str, str]:
    """By what an exception's class is asked for: `module:Class`, and the name alone."""
    return type_, type_.rpartition(":")[2].rpartition(".")[2]


def names_of_step(key: str) -> tuple[str, str]:
    """By what a step is asked for: its key, and that without the number or the item, which is mostly its name."""
    if key.endswith("]") and "[" in key:
        return key, key.partition("[")[0]
    name, mark, number = key.rpartition("#")
    return key, name if mark and number.isdecimal() else key


def _values(name: str, values: Iterable[object]) -> Iterable[object]:
    if isinstance(values, str):
        raise InvalidArgument(f"{name} must be a tuple of texts, like ({values!r},)")
    for value in values:
        if not isinstance(value, str) or "\0" in value:
            raise InvalidArgument(f"{name} has texts without NUL characters, not {type(value).__name__}")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidArgument(f"{name} contains a lone surrogate, which is not text") from None
    return values


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _moment(value: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) and value else None
        return None if moment is None or moment.utcoffset() is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
