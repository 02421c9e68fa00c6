"""A blow at every place: what strikes a run where it cannot be expected, and three questions after it.

Does the run end, does another run work, is the id free at once? `make test` thins the places out; `DURABLE_BLOWS=1` (in
`make nightly`) takes them all, and `DURABLE_BLOWS=10` each tenth.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from durable import Snapshot
from durable.stores import memory
from durable.stores._adapters.kinds import AnyStore
from durable.stores.listing import Listed
from harness.support import Database

STRIDE = int(os.environ.get("DURABLE_BLOWS") or 0)
KINDS = ("memory", "postgres", "five verbs")
"""Every kind of store."""


def places(thinned: int) -> Iterator[int]:
    """The numbers of the places to strike, from 1: all, each STRIDE-th, or each `thinned`-th in `make test`."""
    number = 1
    while True:
        yield number
        number += STRIDE or thinned


class Dictionary:
    """A store of five verbs, as a user writes one."""

    def __init__(self) -> None:
        self.saved: dict[str, bytes] = {}

    def save(self, id: str, snapshot: Snapshot) -> None:
        self.saved[id] = snapshot.to_json()

    def load(self, id: str) -> Snapshot | None:
        text = self.saved.get(id)
        return None if text is None else Snapshot.from_json(text)

    def delete(self, id: str) -> None:
        self.saved.pop(id, None)

    def list(self, *, prefix: str = "", limit: int = 100) -> list[Listed]:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is open."""


def store_of(kind: str, database: Database, **options: Any) -> AnyStore:
    """A new store of this kind."""
    if kind == "memory":
        return memory()
    return Dictionary() if kind == "five verbs" else database.store(**options)


@dataclass
class Tally:
    """What came of so many blows."""

    blows: int = 0
    hangs: list[str] = field(default_factory=list[str])
    stores_lost: list[str] = field(default_factory=list[str])
    leases_kept: list[str] = field(default_factory=list[str])
    wrong: list[str] = field(default_factory=list[str])
    came: Counter[str] = field(default_factory=Counter[str])

    def show(self, title: str) -> None:
        """Print the counts, and add them to $DURABLE_BLOWS_FIGURES; fail where anything was lost."""
        line = (
            f"{title}: {self.blows} blows, {len(self.hangs)} hangs, {len(self.stores_lost)} lost slots, "
            f"{len(self.leases_kept)} leases kept, {len(self.wrong)} wrong results; {dict(self.came)}"
        )
        print(line)
        if figures := os.environ.get("DURABLE_BLOWS_FIGURES"):
            with Path(figures).open("a") as file:
                file.write(line + "\n")
        assert self.blows, "nothing was struck"
        assert not (self.hangs or self.stores_lost or self.leases_kept or self.wrong), "\n".join(
            [line, *self.hangs, *self.stores_lost, *self.leases_kept, *self.wrong]
        )


_PATIENCE = 20.0  # seconds, after which something hangs
HANGS = "hangs"


def within(call: Any) -> Any:
    """What a call comes to on a thread of its own."""
    came: list[Any] = []

    def work() -> None:
        try:
            came.append(call())
        except BaseException as problem:
            came.append(problem)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return came[0] if came else HANGS
