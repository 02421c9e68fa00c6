"""Checks of a lease, before and after what is written under it: whether it stands, on a server that has the whole run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias

from durable._engine.leases import Lease
from durable.errors import DurableError, LeaseLost, RecordsLost, RunCancelled
from durable.stores._postgres.session import Session

_TAKEN: Final = "another execution has taken it over"
_RETURNED: Final = "it was given back"
NOT_ITS_OWN: Final = "a record that is not its own stands in its place"

Standing: TypeAlias = tuple[str | None, str | None, int]
"""What stands in a lease's row: token, owner, epoch."""


def refused(lease: Lease, standing: Standing | None) -> DurableError | None:
    """Why this lease may write no more, by what stands in its row, if there is one; None when it may.

    An epoch only rises. One that is lower, or another's under the same, is of a time before this claim, or of a row that was
    made anew after the run had been deleted; so is none at all. Which of the two, only who has seen the deletion can tell.
    """
    token, owner, epoch = standing or (None, None, -1)
    if token == lease.token:
        return None
    if epoch > lease.epoch or (epoch == lease.epoch and token is None):
        if token is None and owner == "cancelled":
            return RunCancelled(lease.run_id)
        return LeaseLost(lease.run_id, _TAKEN if epoch > lease.epoch else _RETURNED)
    if lease.gone is not None:
        return LeaseLost(lease.run_id, lease.gone)
    return RecordsLost(
        lease.run_id, "its lease is not there any more" if standing is None else "its lease is an earlier one"
    )


def unverified_leases(session: Session, leases: Iterable[Lease]) -> Sequence[tuple[Lease, int]]:
    """The leases that are not known on the session's server, each with how many records of its run were acknowledged.

    Read this before the counting query: another connection may add records in between.
    """
    return [(lease, lease.records) for lease in leases if lease.server != session.server]


def leases_missing_records(
    session: Session, sql: Mapping[str, bytes], unverified: Sequence[tuple[Lease, int]]
) -> Sequence[Lease]:
    """Those of the unverified leases whose run has fewer records here than that; the others are known here now."""
    if not unverified:
        return ()
    counts: dict[str, int] = dict(session.execute(sql["count_records"], ([lease.row for lease, _ in unverified],)))
    lost: list[Lease] = []
    for lease, records in unverified:
        if counts[lease.row] < records:
            lost.append(lease)
        else:
            lease.server = session.server
    return lost
