"""Stores of five verbs: a dict of JSON texts, blocking and async."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import durable
from durable.stores import Listed


class Shelf:
    """Five verbs over a dict of JSON texts."""

    def __init__(self) -> None:
        self.texts: dict[str, tuple[datetime, bytes]] = {}
        self.saves = 0

    def save(self, id: str, snapshot: durable.Snapshot) -> None:
        self.saves += 1
        self.texts[id] = datetime.now(UTC), snapshot.to_json()

    def load(self, id: str) -> durable.Snapshot | None:
        return durable.Snapshot.from_json(self.texts[id][1]) if id in self.texts else None

    def delete(self, id: str) -> None:
        self.texts.pop(id, None)

    def list(self, *, prefix: str = "", limit: int = 100) -> Sequence[Listed]:
        lines = [Listed(name, at) for name, (at, _) in self.texts.items() if name.startswith(prefix)]
        return sorted(lines, key=lambda line: (line.updated_at, line.id), reverse=True)[:limit]

    def close(self) -> None:
        """Nothing is open."""


class AsyncShelf:
    """The same, whose verbs are coroutines that let others go first."""

    def __init__(self) -> None:
        self.shelf = Shelf()
        self.inside = 0
        self.together = 0

    async def save(self, id: str, snapshot: durable.Snapshot) -> None:
        self.inside += 1
        self.together = max(self.together, self.inside)
        await asyncio.sleep(0)
        self.inside -= 1
        self.shelf.save(id, snapshot)

    async def load(self, id: str) -> durable.Snapshot | None:
        await asyncio.sleep(0)
        return self.shelf.load(id)

    async def delete(self, id: str) -> None:
        self.shelf.delete(id)

    async def list(self, *, prefix: str = "", limit: int = 100) -> Sequence[Listed]:
        return self.shelf.list(prefix=prefix, limit=limit)

    async def close(self) -> None:
        self.shelf.close()
