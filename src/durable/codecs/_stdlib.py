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

from durable.codecs._problems import DecodeError, Unencodable
from durable.codecs._tags import TAG

Tree = dict[str, Any]

_DURATION: Final = re.compile(r"P(-?\d+)DT(\d+)\.(\d{6})S", re.ASCII)
_ANY_YEAR: Final = 2001
# ZoneInfo looks for a zone in directories and in the package tzdata: what a row says must be no more than a zone's name.
_ZONE: Final = re.compile(r"[A-Za-z0-9_+-]{1,40}(/[A-Za-z0-9_+-]{1,40}){0,3}", re.ASCII)


def _encode_zone(tree: Tree, zone: tzinfo | None, value: datetime | None) -> Tree:
    if zone is None or zone is UTC:
        return tree
    if type(zone) is ZoneInfo:
        if zone.key is None:
            raise Unencodable("its zone was read from a file and has no name", "Use ZoneInfo(name).")
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
        raise Unencodable(f"its tzinfo is a {kind.__module__}.{kind.__qualname__}, which cannot be named", advice)
    return tree


def _fixed_offset(zone: tzinfo, value: datetime | None) -> timedelta | None:
    """The offset of a zone that says it is the same all year round; None for any other zone."""
    year = value.year if value is not None else _ANY_YEAR
    moments = [None, *(datetime(year, month, 1, tzinfo=zone) for month in range(1, 13))]
    try:
        offsets = {zone.utcoffset(moment) for moment in moments}
        saved = {zone.dst(moment) for moment in moments}
    except Exception:  # a zone of the user's that does not answer for one of them
        return None
    offset = offsets.pop()
    return offset if not offsets and saved <= {None, timedelta(0)} else None


def _decode_zone(tree: Tree, offset: timedelta | None, zone: tzinfo | None) -> tzinfo | None:
    if "zone" in tree:
        if not _ZONE.fullmatch(tree["zone"]):
            raise DecodeError("its zone has no name")
        return ZoneInfo(tree["zone"])
    if "zoneName" in tree and offset is not None:
        return timezone(offset, tree["zoneName"])
    return zone


def _encode_datetime(_: object, value: datetime) -> Tree:
    tree = _encode_zone({TAG: "datetime", "value": value.isoformat()}, value.tzinfo, value)
    if value.fold:
        tree["fold"] = 1
    return tree


def _decode_datetime(tree: Tree) -> datetime:
    value = datetime.fromisoformat(tree["value"])
    if len(tree) == 1:
        return value
    return value.replace(tzinfo=_decode_zone(tree, value.utcoffset(), value.tzinfo), fold=tree.get("fold", 0))


def _encode_time(_: object, value: time) -> Tree:
    tree = _encode_zone({TAG: "time", "value": value.isoformat()}, value.tzinfo, None)
    if value.fold:
        tree["fold"] = 1
    return tree


def _decode_time(tree: Tree) -> time:
    value = time.fromisoformat(tree["value"])
    return value.replace(tzinfo=_decode_zone(tree, value.utcoffset(), value.tzinfo), fold=tree.get("fold", 0))


def _encode_timedelta(_: object, value: timedelta) -> Tree:
    # ISO 8601, which PostgreSQL reads as an interval.
    return {TAG: "timedelta", "value": f"P{value.days}DT{value.seconds}.{value.microseconds:06d}S"}


def _decode_timedelta(tree: Tree) -> timedelta:
    parts = _DURATION.fullmatch(tree["value"])
    if parts is None:
        raise DecodeError("it is not a duration")
    days, seconds, microseconds = map(int, parts.groups())
    return timedelta(days, seconds, microseconds)


def _encode_bytes(_: object, value: bytes) -> Tree:
    return {TAG: "bytes", "value": binascii.b2a_base64(value, newline=False).decode()}


def _decode_bytes(tree: Tree) -> bytes:
    return binascii.a2b_base64(tree["value"], strict_mode=True)


def _encode_as(tag: str) -> Callable[[object, Any], Tree]:
    return lambda _, value: {TAG: tag, "value": str(value)}


def _decode_by(kind: Callable[[str], Any]) -> Callable[[Tree], Any]:
    return lambda tree: kind(tree["value"])


# Called with the encoder, which none of them needs, and the value.
ENCODERS: Final[dict[type, Callable[[object, Any], Tree]]] = {
    datetime: _encode_datetime,
    date: _encode_as("date"),
    time: _encode_time,
    timedelta: _encode_timedelta,
    Decimal: _encode_as("decimal"),
    UUID: _encode_as("uuid"),
    bytes: _encode_bytes,
}

DECODERS: Final[dict[str, Callable[[Tree], Any]]] = {
    "datetime": _decode_datetime,
    "date": _decode_by(date.fromisoformat),
    "time": _decode_time,
    "timedelta": _decode_timedelta,
    "decimal": _decode_by(Decimal),
    "uuid": _decode_by(UUID),
    "bytes": _decode_bytes,
}
