"""What tells a signal to a run from any other."""

from __future__ import annotations

import hashlib
from typing import Final

FIRST_OF_DEDUP: Final = 2**62  # from here on a nonce stands for a name and a dedup; below it is chance


def hash_dedup(name: str, dedup: str) -> int:
    """The nonce of what of one name and `dedup` a run gets once; the SQL function derives the same."""
    digest = hashlib.sha256(f"{len(name)}:{name}{dedup}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % FIRST_OF_DEDUP + FIRST_OF_DEDUP


def dedup_hash_of(nonce: int) -> int | None:
    """The nonce, if it stands for a `dedup`."""
    return nonce if nonce >= FIRST_OF_DEDUP else None
