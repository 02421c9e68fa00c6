"""What is copied of a run: within a store, and from a file into one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, cast

from msgspec import Struct, field

from durable._common.checks import check_name
from durable._engine.starts import Route
from durable.errors import InvalidArgument
from durable.records import Kind, Record, Status
from durable.stores.reading import SentSignal

_MOST: Final = 1_000  # runs in a transaction


class Changes(Struct, frozen=True):
    """In what a copy differs."""

    #: Records that come after those that are kept; an input takes the place of the run's own.
    records: tuple[Record, ...] = ()
    #: What is said in the header's metadata instead.
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def replaces_input(self) -> bool:
        """Whether the copy has another input."""
        return any(record.kind == Kind.INPUT for record in self.records)


class StoredRun(Struct, frozen=True, kw_only=True):
    """A run as it is taken out of one store and put into another."""

    #: Its id.
    id: str
    #: The header's document, as JSON text.
    document: str
    #: Its journal, in order. The numbers of the signals that it has received are negative: no signal of a store has such a one.
    records: Sequence[Record]
    #: The signals that were sent to it and that it has not received, in order.
    signals: Sequence[SentSignal] = ()
    #: Where it waits for workers; None where it is none of theirs.
    route: Route | None = None
    #: As in a `RunLine`.
    priority: int | None = None
    #: As in a `RunLine`.
    due_at: datetime | None = None
    #: As in a `RunLine`.
    partition: str | None = None
    #: When it was changed last; None of one that is changed by being put there.
    updated_at: datetime | None = None
    #: How many leases of it were granted.
    epoch: int = 0


def status_of_copy(*, is_a_workers: bool) -> Status:
    """The status of a copy, which nothing executes: a worker's is queued, any other is left for its next call."""
    return Status.QUEUED if is_a_workers else Status.RUNNING


def checked_keep(keep: object) -> Collection[int] | None:
    """The places of the records that are kept, None for all; `InvalidArgument`."""
    if keep is None:
        return None
    if isinstance(keep, str | bytes) or not isinstance(keep, Collection):
        raise InvalidArgument(f"keep must be the seqs of records, or None for all, not {type(keep).__name__}")
    kept = cast(Any, keep)
    if not all(isinstance(place, int) and not isinstance(place, bool) for place in kept):
        raise InvalidArgument("keep must be the seqs of records, which are ints")
    return list(kept)


def checked_ids(ids: object) -> Sequence[str]:
    """The ids of up to a thousand runs; `InvalidArgument`."""
    if isinstance(ids, str) or not isinstance(ids, Sequence):
        raise InvalidArgument(f"ids must be a list of ids, not {type(ids).__name__}")
    given = cast(Any, ids)
    if len(given) > _MOST:
        raise InvalidArgument(f"{len(given):,} runs are too many for one transaction: {_MOST:,} at most")
    return [check_name("a run's id", one) for one in given]
