"""Dropped rows: a change that PostgreSQL takes, and does not make."""

from __future__ import annotations

from typing import Final

from durable._engine.batches import Verb
from durable.errors import SchemaMismatch

# The SQLSTATEs by which a statement of ours says that it could not write a row, and of which table: those of a division by
# zero, of the logarithm of zero, and of a negative number's square root.
DROPPED: Final = {"22012": "journal", "2201E": "documented runs", "2201F": "leases"}
# Where a row was written without an error, twice, and is not there.
VANISHED_FROM: Final = {Verb.CLAIM: "leases", Verb.SIGNAL: "signals", Verb.CANCEL: "documented runs"}


def dropped_rows(table: str) -> SchemaMismatch:
    """The error of a change that PostgreSQL takes, and that is not made: nothing can be kept, and asking again is in vain."""
    return SchemaMismatch(
        f"of the {table}",
        "PostgreSQL took a change and did not make it: a trigger or a rule drops the row, or row-level security hides it",
        "Nothing was changed. Look at the triggers, rules and policies of our tables: none may keep a row out, or as it is.",
    )
