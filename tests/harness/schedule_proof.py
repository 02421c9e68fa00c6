"""Processes that share a schedule of a second and are killed and started again: one run a moment, and none without.

    python -m harness.schedule_proof URL [--processes 8] [--seconds 120]

prints what it has found, and ends with 1 where a moment has no run, or two. `tests/faults/test_schedules_killed.py` does it for a
few seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import sql

import durable
from durable.stores import postgres

__all__ = ["Found", "prove"]

_TESTS: Final = Path(__file__).resolve().parents[1]
_CHILD: Final = "work"
_BETWEEN: Final = (0.5, 2.0)  # seconds from one death to the next
_CAUGHT_UP: Final = 60.0  # seconds after the last death, in which all that was missed is to have its run


@durable.workflow(name="tick")
def tick(step: durable.Step, deps: Any, tick: durable.Tick) -> str:
    """One step."""
    return step("told", tick.at.isoformat)


def beat() -> durable.Schedule:
    """The schedule that all of them have."""
    return durable.Schedule("beat", every=1, workflow=tick, missed="all")


class Found(NamedTuple):
    """What has come of it."""

    moments: int
    missed: int
    doubled: int
    killed: int
    unfinished: int


def prove(url: str, schema: str, *, processes: int, seconds: float, seed: int = 0) -> Found:
    """Do it; the schema is made, and stays."""
    draw, killed = random.Random(seed), 0
    with postgres(url, schema=schema) as store:
        store.runs(limit=1)  # the tables are there
        crew = [_start(url, schema) for _ in range(processes)]
        try:
            _wait_for_tick(store, None)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                time.sleep(draw.uniform(*_BETWEEN))
                place = draw.randrange(processes)
                how = draw.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
                crew[place].send_signal(how)
                crew[place].wait()
                killed += 1
                crew[place] = _start(url, schema)
            _wait_for_tick(store, _now(url) - timedelta(seconds=1))
        finally:
            for process in crew:
                process.terminate()
            for process in crew:
                process.wait()
        durable.Worker(store, None, [tick]).run_until_idle()
        ids = [line.id for line in _all(store)]
        unfinished = sum(line.status != "completed" for line in _all(store))
    # Which runs the moments have led to, by what each was given: an id that is there twice cannot be seen by its row.
    moments = sorted(datetime.fromisoformat(one.removeprefix("beat/")) for one in ids)
    told = Counter(moments)
    gaps = sum(round((later - earlier).total_seconds()) - 1 for earlier, later in itertools.pairwise(sorted(told)))
    return Found(len(told), gaps, sum(count - 1 for count in told.values()), killed, unfinished)


def _all(store: Any) -> list[Any]:
    lines: list[Any] = []
    while page := store.runs(limit=1000, after=lines[-1] if lines else None):
        lines += page
    return lines


def _wait_for_tick(store: Any, since: datetime | None) -> None:
    """Until a moment has had its run that is not before this one."""
    limit = time.monotonic() + _CAUGHT_UP
    while time.monotonic() < limit:
        last = next((line.last_at for line in store.schedules()), None)
        if last is not None and (since is None or last >= since):
            return
        time.sleep(0.1)


def _now(url: str) -> datetime:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None
    now: datetime = row[0]
    return now


def _start(url: str, schema: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "harness.schedule_proof", url, "--schema", schema, f"--{_CHILD}"]
    return subprocess.Popen(command, cwd=_TESTS, env=os.environ.copy(), stderr=subprocess.DEVNULL)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--schema")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(f"--{_CHILD}", action="store_true")
    given = parser.parse_args()
    if given.work:
        with postgres(given.url, schema=given.schema, auto_create_table=False) as store:
            durable.Worker(store, None, [tick], schedules=[beat()], grace=1.0).run()
        return 0
    schema = given.schema or f"schedules_{secrets.token_hex(4)}"
    try:
        found = prove(given.url, schema, processes=given.processes, seconds=given.seconds, seed=given.seed)
    finally:
        with contextlib.suppress(psycopg.Error), psycopg.connect(given.url) as connection:
            connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))
    sys.stdout.write(f"{found._asdict()}\n")
    return 0 if found.moments and not (found.missed or found.doubled or found.unfinished) else 1


if __name__ == "__main__":
    sys.exit(main())
