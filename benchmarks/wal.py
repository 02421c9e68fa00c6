"""Bytes of WAL for a step and for a run, with full-page writes off: what the stored formats cost on the disk.

    .venv/bin/python benchmarks/wal.py [--steps 500]

Sequential steps whose value is one digit, on a server of its own. Bodies of no time, and bodies of two milliseconds, whose
records say so. A run's share is what its claim and its end write: of a first execution, and of a twelfth, whose header
remembers those before. Compare two checkouts by the same Python, one after the other.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from typing import Any, Final

import psycopg

import durable
from durable.stores import PostgresStore, embedded

_EXECUTIONS: Final = 12
_numbers: Final = itertools.count()  # of runs: in the order of their ids, so that all of them fill the index alike


def main() -> None:
    """Print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as directory, embedded(directory) as store:
        _run(store, steps, 0.0)
        with psycopg.connect(store.url, autocommit=True) as connection:
            for setting in ("full_page_writes", "autovacuum"):
                connection.execute(f"ALTER SYSTEM SET {setting} = off".encode())
            connection.execute("SELECT pg_reload_conf()")
            connection.execute("CHECKPOINT")
            wal = Wal(connection)
            for seconds in (0.0, 0.002):
                none, all_ = (_bytes(wal, store, count, seconds) for count in (0, steps))
                print(
                    f"a body of {seconds * 1000:.0f} ms: {(all_ - none) / steps:,.0f} bytes a step, {none:,.0f} a run"
                )
            print(f"execution {_EXECUTIONS} of a run: {_twelfth(wal, store):,.0f} bytes")


class Wal:
    """How much is written ahead; nothing else may be at work."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def now(self) -> str:
        """Where the log ends."""
        return str(self._one("SELECT pg_current_wal_insert_lsn()"))

    def since(self, start: str) -> float:
        """Bytes since then."""
        return float(self._one("SELECT pg_current_wal_insert_lsn() - %s::pg_lsn", start))

    def _one(self, query: str, *parameters: object) -> Any:
        row = self._connection.execute(query.encode(), parameters).fetchone()
        assert row is not None  # noqa: S101 -- a function's answer
        return row[0]


def _bytes(wal: Wal, store: PostgresStore, steps: int, seconds: float) -> float:
    start = wal.now()
    _run(store, steps, seconds)
    return wal.since(start)


def _run(store: PostgresStore, steps: int, seconds: float) -> None:
    def body() -> int:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            pass
        return 1

    def workflow(step: durable.Step, _: None) -> None:
        for _number in range(steps):
            step("step", body)

    durable.run(None, workflow, id=f"run-{next(_numbers):06}", store=store)


class _Left(BaseException):
    """A run is interrupted."""


def _twelfth(wal: Wal, store: PostgresStore) -> float:
    def workflow(step: durable.Step, _: None) -> None:
        raise _Left

    start = wal.now()
    for _ in range(_EXECUTIONS):
        start = wal.now()
        try:
            durable.run(None, workflow, id="interrupted", store=store)
        except _Left:
            continue
    return wal.since(start)


if __name__ == "__main__":
    main()
