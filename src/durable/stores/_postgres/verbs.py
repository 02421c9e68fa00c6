"""What the writers know of a verb: its way to the database, and what it means when a row is not there or is refused."""

from __future__ import annotations

from enum import Enum

from durable._engine.batches import Verb


class Way(Enum):
    """Where jobs wait, and for what; `Resources.writer` says why there are several."""

    BY_SIZE = "among small ones, or among large ones"
    ASIDE = "among large ones: it may wait for another transaction"
    OF_CLAIMS = "among claims, or with what is long of these"
    OF_JOURNALS = "with what is long of claims"
    OF_STARTS = "among starts, and what else may wait for one of the same id or `dedup`"
    OF_POLLS = "among polls, which wait for nothing"


class PostgresVerb(Verb, frozen=True, eq=False):
    """A verb, with all that tells it from others outside of its own statement."""

    way: Way = Way.BY_SIZE
    #: Whether a value of the user's goes with it, at which a refusal is aimed.
    carries_value: bool = False
    #: The table of its row, as `SchemaMismatch` names it.
    table: str = "journal"
    #: Whether it gives way where a transaction that may stay open holds what it wants: see `Verdict.LOCKED`.
    waits_briefly: bool = False
    #: Whether its statement fails by one of the SQLSTATEs in `dropped.DROPPED` when a row is dropped.
    checks_rows: bool = False
