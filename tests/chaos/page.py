"""docs/reliability.md, made of the figures."""

from __future__ import annotations

from pathlib import Path


def write(path: Path) -> str:
    """The page."""
    raise NotImplementedError(path)
