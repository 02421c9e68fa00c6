"""Claims: what is sent for one, and what it has found."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Final

from msgspec.structs import replace

from durable._engine.batches import MAX_BYTES, MAX_RECORDS
from durable._engine.decisions import Claim, ClaimReply, Granted, Refused
from durable._engine.headers import blank_header, open_header
from durable._engine.leases import Lease
from durable._engine.runs import is_executable
from durable._engine.starts import Route, name_workers
from durable.errors import DurableError
from durable.records import Kind, Record
from durable.snapshots import header_and_records
from durable.stores._postgres.dropped_rows import dropped_rows
from durable.stores._postgres.requirements import hidden_rows
from durable.stores._postgres.rows import read_record
from durable.stores._postgres.starts import queue_of, render_own, render_route
from durable.stores.listing import headless

_NEVER: Final = -1
BEFORE_ALL: Final = -(2**31)  # the place of no record
_claims: Final = itertools.count(1)  # of this process, whose `instance` is random


def claim_random(instance: str) -> str:
    """What no other token of a lease has, in this process or another."""
    return f"{instance}.{next(_claims)}"


class Claiming:
    """The payload of a claim. `random` makes its token, and no other claim's; sent twice, it is the same claim."""

    __slots__ = ("claim", "dead", "free_at", "owner", "random", "row", "sent")

    def __init__(self, claim: Claim, row: str, instance: str, owner: str, dead: str | None) -> None:
        self.claim = claim
        self.row = row
        self.random = claim_random(instance)
        self.owner = owner
        self.dead = dead
        self.sent: float | None = None
        self.free_at = _NEVER  # the epoch of the lease that was refused, and free; 0 where there was none


class Found:
    """What a claim has found, as far as it is read: a short journal at once, the rest of a longer one page by page.

    `lease` is the claim's own, if it was granted. `place` is where the next page begins, None when all is read; `is_long`
    says the same of the document.
    """

    __slots__ = (
        "_free_at", "_standing",
        "document", "is_long", "lease", "mine", "place", "problem", "queue", "random",
        "records", "row", "run_id", "server", "size",
        "token", "workflow",
    )  # fmt: skip

    def __init__(self, claiming: Claiming, standing: Sequence[Any], server: str) -> None:
        claim = claiming.claim
        epoch, token, owner, expires_in, route, exists, document, is_headless, is_hidden = standing
        is_mine = token == f"{epoch}:{claiming.random}"
        self.problem: DurableError | None = None
        if is_hidden:
            self.problem = hidden_rows()
        elif is_headless:
            self.problem = headless(claim.run_id)
        elif is_mine and not exists:
            self.problem = dropped_rows("documented runs")
        self.run_id, self.row, self.workflow = claim.run_id, claiming.row, claim.workflow
        self.random = claiming.random
        self.queue = ""  # out of which a worker has taken it
        self.token: str | None = token
        self.document: str | None = document
        self.is_long = exists and document is None
        self.records: list[Record] = []
        self.place: int | None = None
        self.size = MAX_BYTES  # of the next page, about
        self.server = server
        self.lease: Lease | None = None
        self._standing = (owner, expires_in) if token is not None and expires_in > 0 else (None, None)
        if route is not None and queue_of(route):
            self._standing = (name_workers(queue_of(route)), self._standing[1])
        # The epoch of a lease that is free; 0 where there is none.
        self._free_at = epoch or 0 if self._standing == (None, None) else None
        if is_mine and token is not None and claiming.sent is not None:
            self.lease = Lease(claim.run_id, token, epoch, claim.seconds, claiming.sent, claiming.row)
            claim.taken.append(self.lease)

    @property
    def owner(self) -> str | None:
        """The owner that holds the lease, if it is another."""
        return None if self.lease is not None else self._standing[0]

    @property
    def is_whole(self) -> bool:
        """Whether everything is read."""
        return self.place is None and not self.is_long

    def add(self, rows: Sequence[Sequence[Any]]) -> None:
        """One more page, as rows of `read_journals`."""
        self.place = None
        for number, (_, _, seq, key, kind, text, at, epoch, size) in enumerate(rows):
            if text is None or number == MAX_RECORDS:
                self.place, self.size = seq, max(MAX_BYTES, size)
                return
            self.records.append(read_record(seq, key, kind, text, at, epoch))

    def is_worth_another_try(self, claiming: Claiming) -> bool:
        """Whether the lease is free and was not given all the same: another has just given it back.

        Twice under one epoch it was free all the time: what takes it is dropped, which the writer says of a second `ABSENT`.
        """
        if self._free_at is None or self.lease is not None or self.problem is not None or self.is_long:
            return False
        try:
            header = None if self.document is None else header_and_records(self.document, run_id=self.run_id)[0]
        except DurableError:
            return False
        seen, claiming.free_at = claiming.free_at, self._free_at
        return seen in (_NEVER, self._free_at) and is_executable(claiming.claim, header)

    def reply(self) -> ClaimReply:
        """The reply to the claim, or its error raised."""
        header, told, problem = None, list[Record](), self.problem
        if self.document is not None:
            try:
                header, told = header_and_records(self.document, run_id=self.run_id)
            except DurableError as unreadable:
                problem = problem or unreadable
        if self.lease is not None:
            known = header or blank_header(self.workflow)
            self.lease.note_stored(len(self.records), self.server)
            return Granted(self.lease, known, told + self.records, problem=problem, queue=self.queue)
        if problem is not None:
            raise problem
        ends = [record for record in told if record.kind in (Kind.RESULT, Kind.FAILURE)]
        return Refused(header, ends + self.records, *self._standing)

    def locked_reply(self) -> Refused:
        """The reply to a claim that a transaction which has not ended stands in the way of, by what can be seen of the run."""
        if self.document is None:  # or a long one, of which it is enough that it is there
            return Refused(None, (), None, None, is_locked=True)
        refused = self.reply()
        assert isinstance(refused, Refused), "a look takes no lease"  # noqa: S101 -- our own mistake, not an input
        return replace(refused, is_locked=refused.owner is None)


def read_found(
    claimings: Sequence[Claiming], runs: Iterable[Sequence[Any]], journals: Iterable[Sequence[Any]], server: str
) -> list[Found]:
    """What the claims have found on this server: rows of `read_runs`, and the first page of each journal."""
    pages: dict[str, list[Sequence[Any]]] = {}
    for row in journals:
        pages.setdefault(row[0], []).append(row)
    standing = {row[0]: row[1:] for row in runs}
    answers = [Found(claiming, standing[claiming.row], server) for claiming in claimings]
    for found in answers:
        found.add(pages.get(found.row, ()))
    return answers


def claim_row(claiming: Claiming) -> dict[str, Any]:
    claim = claiming.claim
    prefix = claiming.row.removesuffix(claim.run_id)
    return {
        "id": claiming.row,
        "random": claiming.random,
        "owner": claiming.owner,
        "seconds": claim.seconds,
        "dead": claiming.dead,
        "workflow": claim.workflow,
        "function": claim.function,
        "version": claim.version,
        "input_hash": claim.input_hash,
        "after_failure": claim.after_failure,
        "may_create": claim.create,
        "amends": claim.amends,
        "route": render_route(Route("", claim.workflow, claim.version), prefix) if claim.recovers else None,
        "own": render_own(prefix),
    }


def opening_row(claiming: Claiming) -> dict[str, Any]:
    claim = claiming.claim
    return {
        "id": claiming.row,
        "random": claiming.random,
        "after_failure": claim.after_failure,
        "amends": claim.amends,
        "header": open_header(claim),
        "input": None if claim.input is None else claim.input.decode(),
    }
