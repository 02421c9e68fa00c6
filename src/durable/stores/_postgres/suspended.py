"""How a lease's row says that its run is suspended, and what for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from durable._engine.decisions import Awaited

#: How the owner of such a row begins, which has no token. A space follows, and the names of signals as JSON.
SUSPENDED: Final = "suspended"

_json: Final = msgspec.json.Encoder()
_names: Final = msgspec.json.Decoder(tuple[str, ...])


def render_suspended(awaits: Sequence[Awaited]) -> str:
    """The owner of the row of a run that is suspended until one of these signals comes, or only sleeps."""
    return f"{SUSPENDED} {_json.encode([awaited.name for awaited in awaits]).decode()}"


def read_suspended(owner: str | None) -> tuple[str, ...] | None:
    """The names of the signals for which a run is suspended, by the owner of its row, which has no token; None if it is not."""
    kind, _, names = (owner or "").partition(" ")
    return _names.decode(names) if kind == SUSPENDED else None
