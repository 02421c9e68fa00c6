"""Schedules: which ticks of one that is due begin a run, and when it is due next."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from msgspec import Struct

from durable._engine.starts import Route

MAX_TICKS: Final = 100  # that begin runs in one poll, of a schedule whose missed ticks are all made up for
LATE: Final = 60.0  # seconds after its moment, from which on a tick that no worker has looked at was missed
MIN_EVERY: Final = 1.0  # seconds: an idle worker polls no more often
LAST: Final = datetime(9999, 1, 1, tzinfo=UTC)  # when a schedule is due whose timetable has no moment left
OF_RETENTION: Final = ""  # the name of the schedule, which no other can have, by which workers take turns at retention
RETENTION_INTERVAL: Final = 60.0  # seconds between two turns
MAX_DELETED: Final = (
    10_000  # runs that one turn deletes by one policy: what it takes is well below the time to the next
)

MISSED: Final = ("latest", "all", "skip")
OVERLAPS: Final = ("allow", "queue", "skip")

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class Scheduled(Struct, frozen=True, kw_only=True):
    """What a schedule says, as it is stored."""

    #: Its name.
    name: str
    #: Five fields, as cron has them; None where `every` says when.
    cron: str | None = None
    #: The name of the time zone of these fields.
    zone: str = "UTC"
    #: Seconds between two ticks, which are multiples of that since the beginning of 1970, in UTC.
    every: float | None = None
    #: What becomes of ticks at which no worker was there: one of `MISSED`.
    missed: str = "latest"
    #: What becomes of a tick whose former run has not ended: one of `OVERLAPS`.
    overlap: str = "allow"
    #: Where its runs wait.
    route: Route
    #: The workflow's function, as `module:qualified.name`.
    function: str | None = None
    #: The JSON of the input of each run; None where it is the tick, or there is none.
    input: str | None = None
    #: The fingerprint of that input.
    input_hash: str | None = None
    #: Whether the input of each run is its tick.
    takes_tick: bool = False

    def __repr__(self) -> str:
        return f"<Scheduled {self.name!r}>"  # its input may be secret

    @property
    def timetable(self) -> tuple[str | None, str, float | None]:
        """What says when it ticks. Another one is never applied to the past."""
        return self.cron, self.zone, self.every


class DueSchedule(Struct, frozen=True):
    """A schedule that a poll has found due."""

    scheduled: Scheduled
    #: How often it was changed; a tick is refused to what has not seen the last change.
    revision: int
    #: The moment of its next tick; None where that is to be found first: it is new, or was changed or paused.
    due_at: datetime | None
    #: The moment, by the store's clock.
    now: datetime
    #: Whether the run of its last tick has not ended.
    is_open: bool


class Question(Struct, frozen=True):
    """What is asked of a timetable: its moments from the `first`, itself one, to `until`, and the one after them.

    At the most so many as `count`, the earliest of them; or only the last, where that is None. No moments, but only the one
    after `until`, where there is no `first`.
    """

    first: datetime | None
    until: datetime
    count: int | None


class Moments(Struct, frozen=True):
    """The answer: moments in their order, and the next after the last of them, or after `until`."""

    found: Sequence[datetime]
    following: datetime | None


class Ticks(Struct, frozen=True):
    """What is to be stored."""

    #: The moments for which runs begin.
    begun: Sequence[datetime]
    #: When the schedule is due next.
    due_at: datetime


def ask_timetable(due: DueSchedule) -> Question:
    """What the timetable of a schedule is to be asked. One whose runs wait for one another begins one at a time."""
    scheduled = due.scheduled
    if scheduled.missed != "all":
        return Question(due.due_at, due.now, None)
    return Question(due.due_at, due.now, 1 if scheduled.overlap == "queue" else MAX_TICKS)


def decide_ticks(due: DueSchedule, moments: Moments) -> Ticks:
    """Which of these moments begin a run."""
    scheduled, begun = due.scheduled, list(moments.found)
    if scheduled.missed == "skip":
        begun = [at for at in begun if (due.now - at).total_seconds() <= LATE]
    if scheduled.overlap == "skip":  # the second of several would meet the first
        begun = [] if due.is_open else begun[:1]
    return Ticks(begun, moments.following or LAST)


def find_multiples(every: float, question: Question) -> Moments:
    """The answer of a timetable that has a moment each so many seconds."""
    step = round(every * 1_000_000)
    if question.first is None:
        return Moments((), _multiple(step, _count(step, question.until) + 1))
    first, last = _count(step, question.first), _count(step, question.until)
    if question.count is None:
        first = max(first, last)
    else:
        last = min(last, first + question.count - 1)
    return Moments([_multiple(step, n) for n in range(first, last + 1)], _multiple(step, last + 1))


def tick_id(name: str, at: datetime) -> str:
    """The id of the run of a tick: `nightly/2026-12-01T02:30:00+01:00`, in the schedule's own time, which `at` is told in."""
    return f"{name}/{at.isoformat()}"


def _count(step: int, at: datetime) -> int:
    return (at - _EPOCH) // _MICROSECOND // step


def _multiple(step: int, n: int) -> datetime:
    try:
        return _EPOCH + timedelta(microseconds=n * step)
    except OverflowError:
        return LAST
