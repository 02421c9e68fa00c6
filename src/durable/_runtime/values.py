"""The values that a workflow draws: how each is made, and read back from what is recorded."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from random import SystemRandom
from typing import Any, Final, Generic, TypeVar
from uuid import UUID, uuid4

from msgspec import Struct

from durable.records import Drawable

T = TypeVar("T")


class ValueKind(Struct, Generic[T], frozen=True):
    """Something that is another each time it is asked for."""

    #: Of the method of `step` that draws it.
    name: str
    #: From this moment, or from nothing.
    make: Callable[[datetime], Drawable]
    #: Raises `TypeError` or `ValueError` for what was not made here.
    read: Callable[[Any], T]


_chance: Final = SystemRandom()  # a forked process must not draw what its parent does

NOW: Final = ValueKind[datetime]("now", datetime.isoformat, datetime.fromisoformat)
UUID4: Final = ValueKind[UUID]("uuid", lambda _: str(uuid4()), UUID)
RANDOM: Final = ValueKind[float]("random", lambda _: _chance.random(), float)
