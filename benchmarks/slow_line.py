"""What was acknowledged can be resumed over 1 MB/s: a journal of 60 MB, a value of 60 MB, under the default lease (FAULTS 171).

    .venv/bin/python benchmarks/slow_line.py [MEGABYTES [MB_A_SECOND]]

Two minutes and more for each. What it prints: seconds, statements a second of the run, and renewals of its lease.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

import contextlib

import durable
from durable.stores import PostgresStore, embedded, postgres
from harness.proxy import Proxy
from harness.wires import Wire


class Line(Wire):
    """So many bytes a second, each way."""

    rate = 1e6

    def carry(self, _: str, arrived: bytes, sink: socket.socket) -> None:
        """Pass it on, and take one's time."""
        sink.sendall(arrived)
        time.sleep(len(arrived) / self.rate)


class _Left(BaseException):
    pass


counts = {"statements": 0, "renewals": 0}


def journal(megabytes: int) -> Any:
    """A workflow with so much in its journal, that is left the first time."""
    left: list[int] = []

    def workflow(step: durable.Step, _: None) -> int:
        size = sum(len(step("blob", lambda: os.urandom(500_000).hex(), key=str(n))) for n in range(megabytes))
        if not left:
            left.append(1)
            raise _Left
        return size

    return workflow


def value(megabytes: int) -> Any:
    """A workflow with one value of that size, and a statement of how often its body ran."""

    def workflow(step: durable.Step, _: None) -> int:
        return len(step("blob", lambda: os.urandom(megabytes * 500_000).hex()))

    return workflow


def measure(what: str, workflow: Any, slow: PostgresStore) -> None:
    """Run it over the line, and say how that went."""
    counts.update(statements=0, renewals=0)
    for writer in ("_small", "_large", "_claims", "_long"):
        performer = getattr(slow._held.resources, writer)._sender._performer  # noqa: SLF001
        if not hasattr(performer, "counted"):
            perform = performer.perform

            def counting(lane: Any, jobs: Any, perform: Any = perform) -> Any:
                counts["statements"] += 1
                return perform(lane, jobs)

            performer.perform, performer.counted = counting, True
    heartbeat = slow._held.resources.heartbeat  # noqa: SLF001
    renew = heartbeat._renew  # noqa: SLF001

    def renewing(leases: Any) -> Any:
        counts["renewals"] += 1
        return renew(leases)

    heartbeat._renew = renewing  # noqa: SLF001
    began = time.monotonic()
    result = durable.run(None, workflow, id=what, store=slow)
    took = time.monotonic() - began
    rate = counts["statements"] / took
    print(f"{what}: {result / 1e6:.0f} MB in {took:.1f} s, {rate:.2f} statements/s, {counts['renewals']} renewals")
    heartbeat._renew = renew  # noqa: SLF001


def main(megabytes: int, rate: float) -> None:
    """The journal is written at full speed, and read over the line; the value is written over it, and read."""
    Line.rate = rate * 1e6
    with tempfile.TemporaryDirectory(dir="/tmp") as directory, embedded(directory) as fast:
        long = journal(megabytes)
        with contextlib.suppress(_Left):
            durable.run(None, long, id="a journal", store=fast)
        url = fast._url  # noqa: SLF001
        with Proxy(str(url), Line) as proxy, postgres(proxy.url) as slow:
            measure("a journal", long, slow)
            measure("a value", value(megabytes), slow)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60, float(sys.argv[2]) if len(sys.argv) > 2 else 1.0)
