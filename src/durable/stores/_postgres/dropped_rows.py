"""Dropped rows: changes that PostgreSQL accepts and does not make."""

from __future__ import annotations

from typing import Final

from durable.errors import SchemaMismatch

# By these SQLSTATEs a statement of ours says that a row was not written, and of which table: those of a division by zero, of
# the logarithm of zero, and of the square root of a negative number.
DROPPED: Final = {"22012": "journal", "2201E": "documented runs", "2201F": "leases"}


def dropped_rows(table: str) -> SchemaMismatch:
    """The error of a change that PostgreSQL accepted and did not make: nothing can be stored, and trying again is in vain."""
    return SchemaMismatch(
        f"of the {table}",
        "PostgreSQL took a change and did not make it: a trigger or a rule drops the row, or row-level security hides it",
        "Nothing was changed. Look at the triggers, rules and policies of our tables: none may keep a row out, or as it is.",
    )
