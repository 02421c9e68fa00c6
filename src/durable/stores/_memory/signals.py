"""The signals that were sent to runs in memory."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple


class _Signal(NamedTuple):
    number: int
    run_id: str
    name: str
    payload: str


class Signals:
    """In the order of their sending. The store's lock is held around each call."""

    def __init__(self) -> None:
        self._sent: list[_Signal] = []
        self._numbers = itertools.count(1)

    def keep(self, run_id: str, name: str, payload: str) -> None:
        """Keep a signal for a run, which may come later."""
        self._sent.append(_Signal(next(self._numbers), run_id, name, payload))

    def find(self, run_id: str, name: str, taken: Sequence[int]) -> tuple[int, str] | None:
        """The number and the payload of the first of this name that was not taken."""
        for number, receiver, named, payload in self._sent:
            if (receiver, named) == (run_id, name) and number not in taken:
                return number, payload
        return None

    def forget(self, run_id: str) -> None:
        self._sent = [signal for signal in self._sent if signal.run_id != run_id]
