"""The standard library's plain types: the tag of each, how it is written and how it is read."""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from durable.codecs._tags import TAG, Misread, Refusal

Tree = dict[str, Any]

_DURATION: Final = re.compile(r"P(-?\d+)DT(\d+)\.(\d{6})S", re.ASCII)
_ANY_YEAR: Final = 2001
# ZoneInfo looks for a zone in directories and in the package tzdata: what a row says must be no more than a zone's name.
_ZONE: Final = re.compile(r"[A-Za-z0-9_+-]{1,40}(/[A-Za-z0-9_+-]{1,40}){0,3}", re.ASCII)


def _write_zone(tree: Tree, zone: tzinfo | None, value: datetime | None) -> Tree:
    if zone is None or zone is UTC:
        return tree
    if type(zone) is ZoneInfo:
        if zone.key is None:
            raise Refusal("its zone was read from a file and has no name", "Use ZoneInfo(name).")
        tree["zone"] = zone.key
    elif type(zone) is timezone:
        _, *name = zone.__getinitargs__()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue,reportUnknownMemberType,reportUnknownVariableType]
        if name:
            tree["zoneName"] = name[0]
    elif (offset := _fixed_offset(zone, value)) is not None:  # as pydantic, dateutil, pytz and others make them
        name = zone.tzname(value)
        if name and name != str(timezone(offset)):
            tree["zoneName"] = name
    else:
        kind = type(zone)
        advice = "Use datetime.UTC, datetime.timezone or zoneinfo.ZoneInfo."
        raise Refusal(f"its tzinfo is a {kind.__module__}.{kind.__qualname__}, which cannot be named", advice)
    return tree


def _fixed_offset(zone: tzinfo, value: datetime | None) -> timedelta | None:
    """The offset of a zone that has the same one all year round, and says so; None for any other."""
    year = value.year if value is not None else _ANY_YEAR
    moments = [None, *(datetime(year, month, 1, tzinfo=zone) for month in range(1, 13))]
    try:
        offsets = {zone.utcoffset(moment) for moment in moments}
        saved = {zone.dst(moment) for moment in moments}
    except Exception:  # a zone of the user's that does not answer for one of them
        return None
    offset = offsets.pop()
    return offset if not offsets and saved <= {None, timedelta(0)} else None


def _read_zone(tree: Tree, offset: timedelta | None, zone: tzinfo | None) -> tzinfo | None:
    if "zone" in tree:
        if not _ZONE.fullmatch(tree["zone"]):
            raise Misread("its zone has no name")
        return ZoneInfo(tree["zone"])
    if "zoneName" in tree and offset is not None:
        return timezone(offset, tree["zoneName"])
    return zone


def _write_datetime(_: object, value: datetime) -> Tree:
    tree = _write_zone({TAG: "datetime", "value": value.isoformat()}, value.tzinfo, value)
    if value.fold:
        tree["fold"] = 1
    return tree


def _read_datetime(tree: Tree) -> datetime:
    value = datetime.fromisoformat(tree["value"])
    if len(tree) == 1:
        return value
    return value.replace(tzinfo=_read_zone(tree, value.utcoffset(), value.tzinfo), fold=tree.get("fold", 0))


def _write_time(_: object, value: time) -> Tree:
    tree = _write_zone({TAG: "time", "value": value.isoformat()}, value.tzinfo, None)
    if value.fold:
        tree["fold"] = 1
    return tree


def _read_time(tree: Tree) -> time:
    value = time.fromisoformat(tree["value"])
    return value.replace(tzinfo=_read_zone(tree, value.utcoffset(), value.tzinfo), fold=tree.get("fold", 0))


def _write_timedelta(_: object, value: timedelta) -> Tree:
    # ISO 8601, which PostgreSQL reads as an interval.
    return {TAG: "timedelta", "value": f"P{value.days}DT{value.seconds}.{value.microseconds:06d}S"}


def _read_timedelta(tree: Tree) -> timedelta:
    parts = _DURATION.fullmatch(tree["value"])
    if parts is None:
        raise Misread("it is not a duration")
    days, seconds, microseconds = map(int, parts.groups())
    return timedelta(days, seconds, microseconds)


def _write_bytes(_: object, value: bytes) -> Tree:
    return {TAG: "bytes", "value": binascii.b2a_base64(value, newline=False).decode()}


def _read_bytes(tree: Tree) -> bytes:
    return binascii.a2b_base64(tree["value"], strict_mode=True)


def _as_text(tag: str) -> Callable[[object, Any], Tree]:
    return lambda _, value: {TAG: tag, "value": str(value)}


def _of_text(kind: Callable[[str], Any]) -> Callable[[Tree], Any]:
    return lambda tree: kind(tree["value"])


# Called with the writing that they are a part of, which none of them needs, and the value.
WRITERS: Final[dict[type, Callable[[object, Any], Tree]]] = {
    datetime: _write_datetime,
    date: _as_text("date"),
    time: _write_time,
    timedelta: _write_timedelta,
    Decimal: _as_text("decimal"),
    UUID: _as_text("uuid"),
    bytes: _write_bytes,
}

READERS: Final[dict[str, Callable[[Tree], Any]]] = {
    "datetime": _read_datetime,
    "date": _of_text(date.fromisoformat),
    "time": _read_time,
    "timedelta": _read_timedelta,
    "decimal": _of_text(Decimal),
    "uuid": _of_text(UUID),
    "bytes": _read_bytes,
}
