"""A server whose disk takes longer to flush: `commit_delay` makes PostgreSQL wait that long before it flushes a commit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg


@contextmanager
def slower(url: str, microseconds: int) -> Iterator[None]:
    """In here every flush of the server takes this much longer. The role must be a superuser, the server one's own."""
    try:
        _set(url, f"commit_delay = {microseconds}", "commit_siblings = 0")
        yield
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM RESET commit_delay")
            connection.execute("ALTER SYSTEM RESET commit_siblings")
            connection.execute("SELECT pg_reload_conf()")


def _set(url: str, *settings: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for setting in settings:
            connection.execute(f"ALTER SYSTEM SET {setting}".encode())
        connection.execute("SELECT pg_reload_conf()")
