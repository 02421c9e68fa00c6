"""The signals that were sent to runs in memory."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import NamedTuple

from msgspec import structs

from durable._engine.signals import hash_dedup
from durable.stores.reading import SentSignal
from durable.stores.requests import Signal


class _Sent(NamedTuple):
    number: int
    signal: Signal
    at: datetime
    dedup_hash: int | None


class Signals:
    """In the order of their sending. The store's lock is held around each call."""

    def __init__(self) -> None:
        self._sent: list[_Sent] = []
        self._numbers = itertools.count(1)

    def send(self, signal: Signal, at: datetime, *, is_there: bool) -> None:
        """See `Signal`; `is_there` is whether its run is. It is sent at this moment."""
        dedup_hash = None if signal.dedup is None else hash_dedup(signal.name, signal.dedup)
        if (is_there or signal.create_later) and not self._has(signal.run_id, dedup_hash):
            self.keep(signal, at, dedup_hash)

    def keep(self, signal: Signal, at: datetime, dedup_hash: int | None) -> None:
        """Keep a signal for a run; it is sent at this moment."""
        self._sent.append(_Sent(next(self._numbers), signal, at, dedup_hash))

    def _has(self, run_id: str, dedup_hash: int | None) -> bool:
        return dedup_hash is not None and any(
            one.signal.run_id == run_id and one.dedup_hash == dedup_hash for one in self._sent
        )

    def find(self, run_id: str, names: Collection[str], taken: Sequence[int]) -> tuple[int, str, str] | None:
        """The number, name and payload of the first of these names that was not taken."""
        for number, signal, _, _ in self._sent:
            if signal.run_id == run_id and signal.name in names and number not in taken:
                return number, signal.name, signal.payload
        return None

    def sent_to(self, run_id: str) -> list[SentSignal]:
        """All that were sent to a run, received or not."""
        return [
            SentSignal(number, signal.name, signal.payload, at, dedup_hash)
            for number, signal, at, dedup_hash in self._sent
            if signal.run_id == run_id
        ]

    def hand_over(self, run_id: str, received: Sequence[int], history: str | None, at: datetime) -> None:
        """What the run has received is its history's, or goes; that one with its `dedup` has come stays, under no name."""
        before, self._sent = self._sent, []
        remembered = list[int]()
        for sent in before:
            if sent.signal.run_id != run_id or sent.number not in received:
                self._sent.append(sent)
                continue
            if history is not None:
                self._sent.append(sent._replace(signal=structs.replace(sent.signal, run_id=history)))
            if sent.dedup_hash is not None:
                remembered.append(sent.dedup_hash)
        for dedup_hash in remembered:
            self.keep(Signal(run_id, "", "null"), at, dedup_hash)

    def take_back(self, run_id: str, name: str) -> None:
        """Those of this name count no more."""
        self._sent = [sent for sent in self._sent if (sent.signal.run_id, sent.signal.name) != (run_id, name)]

    def forget(self, run_id: str) -> None:
        self._sent = [sent for sent in self._sent if sent.signal.run_id != run_id]
