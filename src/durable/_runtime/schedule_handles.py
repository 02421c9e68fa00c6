"""A handle on a schedule: what people and tools do with it, from wherever."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from durable._common.boundary import public, public_verbs
from durable._common.durations import to_utc
from durable._engine.schedules import Question, Scheduled
from durable._runtime.run_handles import RunHandle
from durable._runtime.schedules import check_schedule_name, run_of_tick
from durable._runtime.sync_bridge import Coroutines, at_once, call_now
from durable._runtime.timetables import find_moments
from durable.clocks import clock_of
from durable.codecs import codec_of
from durable.errors import InvalidArgument, ScheduleNotFound
from durable.stores._adapters.kinds import readable_store
from durable.stores.protocol import ReadableStore
from durable.stores.reading import ScheduleLine
from durable.stores.requests import DeleteSchedule, Enqueue, PauseSchedule

MAX_BACKFILL: Final = 10_000  # moments of one backfill
_BATCH: Final = 1000  # runs in one commit


class _Handle:
    """Which schedule, in which store."""

    __slots__ = ("_store", "name")

    def __init__(self, store: ReadableStore, name: str) -> None:
        #: The schedule's name.
        self.name = name
        self._store = store

    def __repr__(self) -> str:
        return f"<handle of schedule {self.name!r}>"


@public_verbs("schedule", "status", "pause", "resume", "run_now", "backfill", "delete")
class ScheduleHandle(_Handle):
    """A schedule of a store. Made anywhere by `durable.schedule(store, name)`; each verb raises `ScheduleNotFound`."""

    __slots__ = ()

    @property
    def aio(self) -> AsyncScheduleHandle:
        """The same verbs, to be awaited."""
        return AsyncScheduleHandle(self._store, self.name)

    def status(self) -> ScheduleLine:
        """What it says, when it is due next, and what it started last."""
        return at_once(_find, _blocking(self._store), self.name)

    def pause(self) -> None:
        """Start nothing until it is resumed, whatever workers that have it are started meanwhile."""
        at_once(_pause, _blocking(self._store), self.name, paused=True)

    def resume(self) -> None:
        """Go on with the next moment from now: those in the pause are over."""
        at_once(_pause, _blocking(self._store), self.name, paused=False)

    def run_now(self) -> RunHandle[Any]:
        """Start one run more, at once, whatever `overlap` says and also in a pause: its tick's moment is now."""
        return at_once(_run_now, self._store, _blocking(self._store), self.name)

    def backfill(self, since: datetime, until: datetime) -> list[RunHandle[Any]]:
        """Start the runs of the moments from `since` to `until`, aware and inclusive, which are past: those that are not there.

        At most ten thousand; raises `InvalidArgument` for more.
        """
        return at_once(_backfill, self._store, _blocking(self._store), self.name, since, until)

    def delete(self) -> None:
        """Forget it; its runs stay. A worker that has it among its schedules puts it back at its next start."""
        at_once(_delete, _blocking(self._store), self.name)


@public_verbs("schedule.aio", "status", "pause", "resume", "run_now", "backfill", "delete")
class AsyncScheduleHandle(_Handle):
    """The verbs of a `ScheduleHandle` for asyncio."""

    __slots__ = ()

    async def status(self) -> ScheduleLine:
        """See `ScheduleHandle.status`."""
        return await _find(self._store.aio, self.name)

    async def pause(self) -> None:
        """See `ScheduleHandle.pause`."""
        await _pause(self._store.aio, self.name, paused=True)

    async def resume(self) -> None:
        """See `ScheduleHandle.resume`."""
        await _pause(self._store.aio, self.name, paused=False)

    async def run_now(self) -> RunHandle[Any]:
        """See `ScheduleHandle.run_now`."""
        return await _run_now(self._store, self._store.aio, self.name)

    async def backfill(self, since: datetime, until: datetime) -> list[RunHandle[Any]]:
        """See `ScheduleHandle.backfill`."""
        return await _backfill(self._store, self._store.aio, self.name, since, until)

    async def delete(self) -> None:
        """See `ScheduleHandle.delete`."""
        await _delete(self._store.aio, self.name)


@public("durable.schedule")
def schedule(store: Any, name: str) -> ScheduleHandle:
    """A handle on the schedule of this name, to look at it, pause and resume it, run it now, fill a gap, or delete it.

    Nothing is asked of the store before a verb is. Raises `InvalidArgument`.
    """
    return ScheduleHandle(readable_store(store, "durable.schedule"), check_schedule_name(name))


def _blocking(store: ReadableStore) -> Any:
    return Coroutines(store, call_now)


async def _find(store: Any, name: str) -> ScheduleLine:
    lines: Sequence[ScheduleLine] = await store.schedules()
    for line in lines:
        if line.name == name:
            return line
    raise ScheduleNotFound(name)


async def _pause(store: Any, name: str, *, paused: bool) -> None:
    if not await store.submit(PauseSchedule(name, paused)):
        raise ScheduleNotFound(name)


async def _delete(store: Any, name: str) -> None:
    if not await store.submit(DeleteSchedule(name)):
        raise ScheduleNotFound(name)


async def _run_now(store: ReadableStore, verbs: Any, name: str) -> RunHandle[Any]:
    line = await _find(verbs, name)
    (handle,) = await _start(store, verbs, line.scheduled, [clock_of(store).now()])
    return handle


async def _backfill(
    store: ReadableStore, verbs: Any, name: str, since: datetime, until: datetime
) -> list[RunHandle[Any]]:
    scheduled, now = (await _find(verbs, name)).scheduled, clock_of(store).now()
    first, last = _moment("since", since), _moment("until", until)
    if last < first:
        raise InvalidArgument(f"until must not lie before since: {until} and {since} were given")
    if last > now:
        raise InvalidArgument(f"until must not lie in the future, where the schedule ticks by itself: {until}")
    moments = moments_between(scheduled, first, last)
    if len(moments) > MAX_BACKFILL:
        raise InvalidArgument(f"these are more than {MAX_BACKFILL:,} moments: give a shorter range")
    return await _start(store, verbs, scheduled, moments)


def moments_between(scheduled: Scheduled, since: datetime, until: datetime) -> list[datetime]:
    """The moments of a schedule from one to another, inclusive; one more than a backfill has, at the most."""
    after = find_moments(scheduled, Question(None, _just_before(since), None)).following
    if after is None or after > until:
        return []
    return list(find_moments(scheduled, Question(after, until, MAX_BACKFILL + 1)).found)


async def _start(
    store: ReadableStore, verbs: Any, scheduled: Scheduled, moments: Sequence[datetime]
) -> list[RunHandle[Any]]:
    codec = codec_of(store)
    runs = [run_of_tick(scheduled, at, codec) for at in moments]
    handles: list[RunHandle[Any]] = []
    for n in range(0, len(runs), _BATCH):
        started = await verbs.submit(Enqueue(runs[n : n + _BATCH]))
        handles += [RunHandle(store, one.run_id, None) for one in started]
    return handles


def _moment(what: str, given: object) -> datetime:
    if not isinstance(given, datetime):
        raise InvalidArgument(f"{what} must be an aware datetime, not {type(given).__name__}")
    return to_utc(what, given)


def _just_before(at: datetime) -> datetime:
    try:
        return at - timedelta(microseconds=1)
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)
