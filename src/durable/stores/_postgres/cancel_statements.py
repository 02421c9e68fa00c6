"""Performs cancellations as statements: runs are asked to end, and those below them, or are ended at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from durable.stores._postgres.child_statements import ChildStatements
from durable.stores._postgres.job import ABSENT
from durable.stores._postgres.jobs import Cancelling
from durable.stores._postgres.session import Session, in_transaction

_json: Final = msgspec.json.Encoder()


class CancelStatements:
    """Those of `Statements` that end runs before their time."""

    def __init__(self, sql: Mapping[str, bytes], children: ChildStatements) -> None:
        self._sql = sql
        self._children = children

    def cancel(self, session: Session, cancellings: Sequence[Cancelling]) -> Sequence[Any]:
        """Ask these runs, and all below them, to end; of each whether it was there and had not ended."""
        done = self._cancel_all(session, [*cancellings, *self._find_below(session, cancellings)])
        self._cancel_later(session, cancellings)
        return [done.get(one.id, False) for one in cancellings]

    def cancel_below(self, session: Session, rows: Sequence[str]) -> None:
        """These runs were cancelled by their owners: what they had started since they were asked to be is asked, too."""
        self._cancel_later(session, [Cancelling(row, False, None, 0) for row in rows])

    def _cancel_later(self, session: Session, cancellings: Sequence[Cancelling]) -> None:
        """A run may start another child until it hears that it is to end."""
        known: set[str] = set()
        while more := [one for one in self._find_below(session, cancellings) if one.id not in known]:
            known.update(one.id for one in more)
            self._cancel_all(session, more)

    def _find_below(self, session: Session, cancellings: Sequence[Cancelling]) -> list[Cancelling]:
        """The runs below these, to be cancelled as they are: by the same request."""
        roots = {one.id: one for one in cancellings}
        below: dict[str, Cancelling] = {}
        for row, root, nonce in session.execute(self._sql["find_below"], (list(roots),)).fetchall():
            asked = roots[root]
            number = asked.nonce or nonce or 0  # of one whose caller has cancelled it, who has sent no request
            below[row] = Cancelling(row, asked.force, asked.reason, number, below=True)
        return [one for row, one in below.items() if row not in roots]

    def _cancel_all(self, session: Session, cancellings: Sequence[Cancelling]) -> Mapping[str, Any]:
        done: dict[str, Any] = {}
        # By force nothing need be known of the run.
        ends = {one.id: one.force for one in cancellings if one.force}
        if asked := [one for one in cancellings if one.id not in ends]:
            with in_transaction(session):
                session.queue(self._sql["lock_leases"], ([one.id for one in asked],))
                told = session.queue(self._sql["ask_batch"], (_json.encode(asked).decode(),))
            answers = told.fetchall()
            ends |= {row: is_to_end for row, is_to_end, _ in answers}
            done = {row: True if stands else ABSENT for row, _, stands in answers}
        return done | self._take_away(session, [one for one in cancellings if ends.get(one.id)])

    def _take_away(self, session: Session, cancellings: Sequence[Cancelling]) -> dict[str, Any]:
        """Take the leases of these runs, and set them to be cancelled; of each what came of it."""
        if not cancellings:
            return {}
        values = (
            [one.id for one in cancellings],
            [one.below for one in cancellings],
            [one.reason for one in cancellings],
        )
        told: list[tuple[str, bool, Sequence[str] | None]] = session.execute(
            self._sql["cancel_batch"], values
        ).fetchall()
        were_cancelled = {row: is_cancelled for row, is_cancelled, _ in told}
        self._children.wake_parents(session, [parent for _, is_cancelled, parent in told if is_cancelled])
        return {
            one.id: were_cancelled.get(one.id, False) or (ABSENT if one.id in were_cancelled else False)
            for one in cancellings
        }
