"""Processes to strike down: what the examples that survive kill -9 share."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from durable.stores import PostgresStore, embedded, postgres

_PATIENCE = 200.0  # seconds until a story that does not go on is given up


class Ledger:
    """The world's own book, outside the database: a line for each deed, only ever appended to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def write(self, deed: str) -> None:
        """Note a deed."""
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        os.write(file, f"{deed}\n".encode())
        os.close(file)

    def deeds(self) -> list[str]:
        """What has been done, in order."""
        return self.path.read_text("utf-8").splitlines()

    def counts(self) -> Counter[str]:
        """How often each deed was done."""
        return Counter(self.deeds())


def open_store() -> PostgresStore:
    """The PostgreSQL of $DATABASE_URL, or one that is started here and keeps its data in `.durable`."""
    return postgres() if os.environ.get("DATABASE_URL") else embedded(".durable")


def recorded_steps(store: PostgresStore, run_id: str) -> set[str]:
    """The keys of the steps that are recorded of a run."""
    snapshot = store.load(run_id)
    return set() if snapshot is None else set(snapshot.steps)


def start(file: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Another process of the same example."""
    process = subprocess.Popen([sys.executable, file, *arguments])
    print(f"  process {process.pid}: {' '.join([Path(file).name, *arguments])}", flush=True)
    return process


def wait_until(
    condition: Callable[[], object], what: str, *processes: subprocess.Popen[bytes]
) -> None:
    """Look until something is so; the story is over when it never is, or when a process has ended before."""
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline or any(process.poll() is not None for process in processes):
            for process in processes:
                process.kill()
            sys.exit(f"this was waited for in vain: {what}")
        time.sleep(0.005)


def kill(process: subprocess.Popen[bytes], when: str) -> None:
    """Kill -9."""
    process.kill()
    process.wait()
    print(f"  kill -9 {when}: nothing was cleaned up\n", flush=True)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Let it come to its end."""
    if process.wait(_PATIENCE) != 0:
        sys.exit(f"process {process.pid} failed")
