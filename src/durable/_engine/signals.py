"""What tells a signal to a run from any other."""

from __future__ import annotations

import hashlib
from typing import Final

from durable._common.checks import check_name
from durable.errors import InvalidArgument

RESERVED: Final = "durable:"  # how names begin by which the library itself tells a run something
FIRST_OF_DEDUP: Final = 2**62  # from here on a nonce stands for a name and a dedup; below it is chance


def check_signal_name(name: object) -> str:
    """The name of a signal that a user sends or waits for; `InvalidArgument` where it can be none, or is the library's own."""
    checked = check_name("a signal's name", name)
    if checked.startswith(RESERVED):
        raise InvalidArgument(
            f"a signal's name must not begin with {RESERVED!r}, as {checked[:60]!r} does: so the library tells a run of the "
            f"ends of its children, for which step.call and step.wait_all wait; choose another name"
        )
    return checked


def hash_dedup(name: str, dedup: str) -> int:
    """The nonce of what of one name and `dedup` a run gets once; the SQL function derives the same."""
    digest = hashlib.sha256(f"{len(name)}:{name}{dedup}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % FIRST_OF_DEDUP + FIRST_OF_DEDUP


def dedup_hash_of(nonce: int) -> int | None:
    """The nonce, if it stands for a `dedup`."""
    return nonce if nonce >= FIRST_OF_DEDUP else None
