"""`durable.Tick`: what a run gets that a schedule has begun."""

from __future__ import annotations

from datetime import datetime
from typing import get_type_hints

from msgspec import Struct

from durable.codecs import alias


@alias("durable:Tick")  # wherever it is read, also where `durable.Tick` was never asked for
class Tick(Struct, frozen=True):
    """The input of a run that a schedule has begun."""

    #: The schedule's name.
    schedule: str
    #: Its moment, aware and in the schedule's time zone; long past, where it was made up for.
    at: datetime


# Its annotations were read as texts in the module it is in.
Tick.__annotations__ = get_type_hints(Tick)
Tick.__module__ = "durable"
