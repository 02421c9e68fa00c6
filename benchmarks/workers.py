"""Workers measured beside DBOS and pgqueuer in one run: start to body, drain by one and two processes, and what idle ones ask.

    python benchmarks/workers.py [--runs 10000] [--retained 1000000] [--idle 1 10 100]
                                 [--systems durable durable-async dbos pgqueuer]

Only the ratios mean anything: to a commit of one row in the same run, and to one another.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import sql

from durable.stores import embedded
from queues import SCHEMA, SYSTEMS

OURS: Final = {"durable", "durable-async"}
_PATIENCE: Final = 300.0  # seconds
_STARTS: Final = 100  # of which the latency is measured
_APART: Final = 0.05  # seconds
_IN_A_PROCESS: Final = 25  # idle workers: a process for each of a hundred is more than two cores can start
_CONNECTIONS: Final = 400  # each idle worker has one on which it listens
_ENOUGH: Final = 500  # jobs of a system that is drained slowly, or started one by one

_RETAIN: Final = """
    INSERT INTO durable_locks (workflow_id, epoch, expires_at, route, priority, due_at)
    SELECT 'old' || i, 1, now(), '["","default","one",1]', 5, NULL FROM generate_series(1, {runs}) AS i;
    INSERT INTO durable_snapshots (id, snapshot, updated_at)
    SELECT 'old' || i,
           '{{"formatVersion": "1", "workflowName": "one", "metadata": {{}}, "execution": {{"status": "completed"}}}}', now()
      FROM generate_series(1, {runs}) AS i;
    INSERT INTO durable_steps (workflow_id, seq, key, kind, nonce, epoch, record)
    SELECT 'old' || i, seq, seq::text, 'step', 0, 1, '1' FROM generate_series(1, {runs}) AS i, generate_series(0, 2) AS seq
"""


# By another process: a server stays as it is for as long as the process that has started it.
_ADMIT: Final = f"""
import psycopg
from durable.stores import embedded
with embedded(".durable-bench") as store, psycopg.connect(store.url, autocommit=True) as connection:
    connection.execute("ALTER SYSTEM SET max_connections = {_CONNECTIONS}")
"""


@contextlib.contextmanager
def workers(name: str, url: str, count: int, *more: str) -> Iterator[None]:
    """So many worker processes."""
    command = [sys.executable, str(Path(__file__).with_name("queues.py")), name, url, *more]
    processes = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM if name.startswith("durable") else signal.SIGKILL)
        for process in processes:
            process.wait()


def lines(path: Path, count: int) -> list[tuple[float, float]]:
    """When each job ran, and when it was started, once there are so many."""
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        text = path.read_text() if path.exists() else ""
        if text.count("\n") >= count:
            return [(float(ran), float(started)) for ran, started in map(str.split, text.splitlines())]
        time.sleep(0.05)
    raise TimeoutError(f"{path.name}: {text.count(chr(10))} of {count} jobs have run")


def latencies(system: Any, directory: Path, connection: psycopg.Connection[Any]) -> tuple[list[float], float]:
    """Seconds from just before a start until its body, of starts apart from one another, and of a commit between two of them.

    A commit after a pause takes several times as long as one right after another, like all that a start does: whatever it needs
    has gone from the processor's caches, and the disk rests.
    """
    path = directory / f"{system.name}-latency"
    with workers(system.name, system.url, 1):
        system.start(str(path), 1)
        lines(path, 1)
        path.unlink()
        between: list[float] = []
        for number in range(_STARTS):
            system.start(str(path), 1)
            time.sleep(_APART)
            between.append(commit(connection, number))
            time.sleep(_APART)
        return sorted(ran - started for ran, started in lines(path, _STARTS)), statistics.median(between)


def drained(system: Any, directory: Path, runs: int, processes: int) -> float:
    """Jobs a second, from the first body to the last."""
    path = directory / f"{system.name}-{processes}"
    system.start(str(path), runs)
    with workers(system.name, system.url, processes):
        ran = sorted(ran for ran, _ in lines(path, runs))
    return (runs - 1) / (ran[-1] - ran[0])


def commits(connection: psycopg.Connection[Any]) -> list[float]:
    """Seconds of commits of one row, one right after another."""
    connection.execute("CREATE TEMPORARY TABLE IF NOT EXISTS one_row (number integer)")
    connection.execute("DROP TABLE IF EXISTS public.one_row; CREATE TABLE public.one_row (number integer)")
    return [commit(connection, number) for number in range(200)]


def commit(connection: psycopg.Connection[Any], number: int) -> float:
    """Seconds of a commit of one row."""
    began = time.perf_counter()
    connection.execute("INSERT INTO public.one_row VALUES (%s)", (number,))
    return time.perf_counter() - began


def idle(connection: psycopg.Connection[Any], name: str, url: str, count: int, seconds: float = 20.0) -> float:
    """Transactions a second of so many idle workers."""
    asked = "SELECT sum(xact_commit + xact_rollback) FROM pg_stat_database WHERE datname = current_database()"
    resting = sql.SQL("SELECT count(*) FROM {}.durable_workers WHERE idle").format(sql.Identifier(SCHEMA))
    each = max(n for n in range(1, _IN_A_PROCESS + 1) if count % n == 0)
    with workers(name, url, count // each, str(each)):
        until = time.monotonic() + _PATIENCE
        while connection.execute(resting).fetchone() != (count,):
            if time.monotonic() > until:
                raise TimeoutError(f"{connection.execute(resting).fetchone()} of {count} workers have come to rest")
            time.sleep(0.1)
        time.sleep(10.0)  # they know how many they are, and poll accordingly
        ((before,),) = connection.execute(asked).fetchall()
        time.sleep(seconds)
        ((after,),) = connection.execute(asked).fetchall()
    return float(after - before) / seconds


def main() -> None:
    """Measure, and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--retained", type=int, default=0, help="runs that have ended before, of durable")
    parser.add_argument("--systems", nargs="*", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--idle", nargs="*", type=int, default=[1, 10], help="how many idle workers, of durable")
    given = parser.parse_args()
    subprocess.run([sys.executable, "-c", _ADMIT], check=True)
    store = embedded(".durable-bench", schema=SCHEMA)
    with psycopg.connect(store.url, autocommit=True) as connection, tempfile.TemporaryDirectory() as directory:
        connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE".encode())
        connection.execute("DROP DATABASE IF EXISTS pgqueuer_benchmark WITH (FORCE)")
        connection.execute("DROP DATABASE IF EXISTS dbos_benchmark WITH (FORCE)")
        store.stats()
        if given.retained:
            connection.execute(f"SET search_path TO {SCHEMA}".encode())
            for statement in _RETAIN.format(runs=given.retained).split(";\n"):
                connection.execute(statement.encode())
            connection.execute("VACUUM ANALYZE")
            print(f"beside {given.retained:,} runs that have ended")
        rates: dict[str, float] = {}
        for name in given.systems:
            system = SYSTEMS[name](store.url)
            in_a_row = statistics.median(commits(connection))
            took, apart = latencies(system, Path(directory), connection)
            middle, worst = statistics.median(took), took[int(len(took) * 0.99)]
            print(
                f"{name:13} start to body: median {middle / apart:.1f} commits as far apart, p99 {worst / apart:.1f} "
                f"(one of these is {apart / in_a_row:.1f} commits in a row)",
                flush=True,
            )
            runs = min(given.runs, _ENOUGH) if name == "dbos" else given.runs
            for processes in (1, 2):
                rates[f"{name} {processes}"] = drained(system, Path(directory), runs, processes)
            rate, twice = rates[f"{name} 1"], rates[f"{name} 2"]
            print(
                f"{name:13} drain by one process: {rate * in_a_row:.2f} jobs a commit in a row; by two {twice / rate:.2f} ×"
            )
            system.close()
        for ours in OURS & set(given.systems):
            for other in set(given.systems) - OURS:
                print(f"{ours} drains {rates[f'{ours} 1'] / rates[f'{other} 1']:.2f} times as fast as {other}")
        for count in given.idle:
            print(f"durable, {count} idle: {idle(connection, 'durable', store.url, count):.1f} transactions a second")
    store.close()


if __name__ == "__main__":
    main()
