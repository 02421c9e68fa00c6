"""Timetables: the moments of a crontab's line in a time zone. What asks the zones and cronsim stands here."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from durable._common.durations import show
from durable._engine.schedules import LAST, Moments, Question, Scheduled, find_multiples
from durable.errors import InvalidArgument

# Back from now, in which the last moment is looked for: the first in which there is one.
_WINDOWS: Final = tuple(timedelta(minutes=minutes) for minutes in (2, 90, 25 * 60, 32 * 24 * 60, 367 * 24 * 60))
_ALIASES: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


def find_moments(scheduled: Scheduled, question: Question) -> Moments:
    """The answer of a schedule's timetable. `InvalidArgument` where its zone, or its fields, are not known here."""
    if scheduled.every is not None:
        return find_multiples(scheduled.every, question)
    zone, cron = zone_of(scheduled.zone), scheduled.cron or ""
    if question.first is None:
        return Moments((), next(moments_after(cron, zone, question.until), None))
    if question.count is None:
        found = _last(cron, zone, question.first, question.until)
        return Moments([found], next(moments_after(cron, zone, question.until), None))
    some, later = [question.first], moments_after(cron, zone, question.first)
    for at in later:
        if len(some) == question.count or at > question.until:
            return Moments(some, at)
        some.append(at)
    return Moments(some, None)


def moments_after(cron: str, zone: ZoneInfo, at: datetime) -> Iterator[datetime]:
    """The moments of these fields after that one, in UTC: two of one zone would be compared by what its clocks show."""
    from cronsim import CronSim, CronSimError  # noqa: PLC0415 -- only what has a crontab's line needs it

    last = at
    try:
        # From before the hours that may come twice: asked from within the second, it would answer from within the first.
        for moment in CronSim(_ALIASES.get(cron, cron), (at - timedelta(hours=3)).astimezone(zone)):
            if moment.astimezone(UTC) > last:  # each moves on, and none comes twice, where clocks are put back
                last = moment.astimezone(UTC)
                if last >= LAST:
                    return
                yield last
    except (CronSimError, OverflowError, ValueError) as problem:
        raise InvalidArgument(f"cron must be five fields, like '30 2 * * *', not {show(cron)}: {problem}") from None


def check_cron(given: object, zone: ZoneInfo, now: datetime) -> str:
    """Five fields, or `@daily` and its like, that have a moment after `now`; else `InvalidArgument`."""
    if not isinstance(given, str):
        raise InvalidArgument(f"cron must be a text of five fields, like '30 2 * * *', not {type(given).__name__}")
    cron = " ".join(given.split())
    if cron not in _ALIASES and cron.count(" ") != 4:  # noqa: PLR2004 -- between five fields
        raise InvalidArgument(
            f"cron must be five fields, like '30 2 * * *', or one of {', '.join(_ALIASES)}, not {show(given)}; for seconds "
            "there is every="
        )
    if next(moments_after(cron, zone, now), None) is None:
        raise InvalidArgument(f"cron {show(given)} has no moment to come")
    return cron


def zone_of(name: str) -> ZoneInfo:
    """The zone of this name, or `InvalidArgument` where it is not known here."""
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, TypeError):  # not found is a KeyError
        pass
    except KeyError:
        pass
    raise InvalidArgument(
        f"the time zone {show(name)} is not known here: it must be a name of the tz database, like 'Europe/Berlin'; where the "
        "machine has none of that, pip install tzdata"
    )


def _last(cron: str, zone: ZoneInfo, first: datetime, until: datetime) -> datetime:
    """The last moment up to `until`, at the earliest `first`, which is one."""
    for window in _WINDOWS:
        since = until - window
        if since <= first:
            break
        if (found := _last_of(cron, zone, since, until)) is not None:
            return found
    return _last_of(cron, zone, first, until) or first


def _last_of(cron: str, zone: ZoneInfo, since: datetime, until: datetime) -> datetime | None:
    found = None
    for at in moments_after(cron, zone, since):
        if at > until:
            break
        found = at
    return found
