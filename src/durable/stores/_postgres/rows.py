"""A row of the journal, as a record."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

from durable.records import Record


def read_record(seq: int, key: str, kind: str, text: str, at: float, epoch: int) -> Record:
    """A record as a journal's row has it; `at` is in seconds since 1970, whose microseconds a float keeps until 2242."""
    # One text for all kinds alike: a text for each record would be a tenth of all that a resumed run holds.
    return Record(seq, key, sys.intern(kind), text, datetime.fromtimestamp(at, UTC), epoch)
