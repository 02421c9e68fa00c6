"""A row of the journal, as a record."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

from durable.records import Record


def read_record(seq: int, key: str, kind: str, text: str, at: float, epoch: int) -> Record:
    """The record of a journal's row. `at` is in seconds since 1970; a float keeps their microseconds until 2242."""
    # Equal kinds share one string: one for each record would be a tenth of all that a resumed run holds.
    return Record(seq, key, sys.intern(kind), text, datetime.fromtimestamp(at, UTC), epoch)
