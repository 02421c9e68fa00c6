"""The second database: what transactions said when they were acknowledged, copied by an ordinary step."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

_PATIENCE = 30.0  # seconds for another process's turn


def create(path: str | Path) -> None:
    """Make it. Processes are killed here, not machines, so it need not wait for the disk."""
    with contextlib.closing(_opened(path)) as bank:
        bank.execute("PRAGMA journal_mode=WAL")
        bank.execute("CREATE TABLE copies (run text, key text, number int)")


def copy(path: str | Path, run: str, key: str, number: int) -> None:
    """Write down that this run's step was told this number."""
    with contextlib.closing(_opened(path)) as bank:
        bank.execute("INSERT INTO copies VALUES (?, ?, ?)", (run, key, number))


def copies(path: str | Path) -> set[tuple[str, str, int]]:
    """Everything that was written down."""
    with contextlib.closing(_opened(path)) as bank:
        return set(bank.execute("SELECT run, key, number FROM copies"))


def _opened(path: str | Path) -> sqlite3.Connection:
    bank = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
    bank.execute("PRAGMA synchronous=OFF")
    return bank
