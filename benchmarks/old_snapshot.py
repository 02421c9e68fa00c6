"""What a transaction that stays open costs the leases: no version of a row that it might see can be removed meanwhile.

    .venv/bin/python benchmarks/old_snapshot.py [--url URL] [--leases 1000] [--beats 360]

By default one hour of a process with 1,000 leases of 30 s, which are renewed every 10 s: 100 renewals a second, here as
fast as they go. After each beat a checkpoint is written. The same twice, without and with a transaction that was begun
before; compared are the last quarters, which is when the old versions have piled up.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import ExitStack
from typing import NamedTuple

import psycopg

from durable._engine.decisions import Claim, Granted
from durable._engine.leases import Lease
from durable.records import Kind, Record
from durable.stores import PostgresStore, embedded, postgres
from durable.stores.requests import Begin, Checkpoint

SCHEMA = "old_snapshot"
TEXT = '{"name":"step","ok":true,"value":{"id":"u-123","tier":"gold member","n":[1,2,3,4]}}'


class Figures(NamedTuple):
    """Milliseconds of one beat (all leases in one statement) and of one checkpoint, and what became of the table."""

    beat_p50: float
    beat_p99: float
    checkpoint_p50: float
    checkpoint_p99: float
    hot_percent: float
    leases_kib: float
    indexes_kib: float


def measure(url: str, leases: int, beats: int, *, held: bool) -> Figures:
    """One round, on tables of its own."""
    with ExitStack() as stack:
        aside = stack.enter_context(psycopg.connect(url, autocommit=True))
        aside.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
        store = stack.enter_context(postgres(url, schema=SCHEMA))
        owned = [claim(store, f"run-{number}") for number in range(leases)]
        if held:
            holder = stack.enter_context(psycopg.connect(url))
            holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            holder.execute("SELECT 1")
        renew = store._held.resources._renew  # noqa: SLF001 -- what the heartbeat's thread calls when it is time
        beat_times: list[float] = []
        checkpoint_times: list[float] = []
        for number in range(1, beats + 1):
            start = time.perf_counter()
            renew(owned)
            renewed = time.perf_counter()
            store.perform(Checkpoint(owned[number % leases], Record(number, f"step-{number}", Kind.STEP, TEXT)))
            beat_times.append((renewed - start) * 1000)
            checkpoint_times.append((time.perf_counter() - renewed) * 1000)
        store.close()  # its backends tell their statistics when they end
        time.sleep(1)
        row = aside.execute(
            "SELECT 100.0 * n_tup_hot_upd / n_tup_upd, pg_relation_size(relid) / 1024, pg_indexes_size(relid) / 1024"
            " FROM pg_stat_all_tables WHERE schemaname = %s AND relname = 'durable_locks'",
            (SCHEMA,),
        ).fetchone()
        assert row is not None  # noqa: S101 -- the table was there a moment ago
        last = beats * 3 // 4
        return Figures(
            *(p for times in (beat_times[last:], checkpoint_times[last:]) for p in percentiles(times)), *map(float, row)
        )


def claim(store: PostgresStore, run_id: str) -> Lease:
    """A lease on a new run; the store's own heartbeat leaves it alone."""
    reply = store.perform(Begin(Claim(run_id=run_id, workflow="held", version=1, seconds=86_400.0), lambda: False))
    assert isinstance(reply, Granted)  # noqa: S101 -- there is no other owner
    return reply.lease


def percentiles(times: list[float]) -> tuple[float, float]:
    """The median, and the 99th."""
    return statistics.median(times), statistics.quantiles(times, n=100)[98]


def main() -> None:
    """Print both rounds and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url")
    parser.add_argument("--leases", type=int, default=1000)
    parser.add_argument("--beats", type=int, default=360)
    options = parser.parse_args()
    with ExitStack() as stack:
        url = options.url or stack.enter_context(embedded(".durable-benchmarks")).url
        free, held = (measure(url, options.leases, options.beats, held=held) for held in (False, True))
        print(f"{'':>16s}{'without':>10s}{'with':>10s}{'ratio':>8s}")
        for name in Figures._fields:
            one, other = getattr(free, name), getattr(held, name)
            print(f"{name:>16s}{one:10.2f}{other:10.2f}{other / one:8.2f}")


if __name__ == "__main__":
    main()
