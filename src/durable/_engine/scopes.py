"""What keys look like in a scope: what is called in one begins with its name and a slash."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

SLASH: Final = "/"


def holders(key: str) -> Iterator[str]:
    """The keys that a step would have in whose body the step of this key was called, the innermost first."""
    end = key.rfind(SLASH)
    while end > 0:
        yield key[:end]
        end = key.rfind(SLASH, 0, end)
