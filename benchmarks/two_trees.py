"""CPU time of a plain step on PostgreSQL in two checkouts, in turns: the second one's over the first one's.

    .venv/bin/python benchmarks/two_trees.py /tmp/before . [--pairs 20] [--steps 1000] [--only async] [--url URL]

Each pair has a new process of either checkout, so that no layout of the memory is measured twenty times. Both get warm, then
they take turns: first, second, second, first. What is compared is the processes' own CPU time, user's and system's, of all
their threads; the server's is not in it. Printed are the median of the pairs' ratios and the middle half of them. Both
checkouts run by this Python and what is installed for it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

import psycopg

import durable
from durable.stores import PostgresStore, embedded, postgres
from pairs import quartiles

ROOT: Final = Path(__file__).resolve().parent.parent
_MICRO: Final = 1e6


def main() -> None:
    """Print both colours' ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1000, help="of a turn")
    parser.add_argument("--only", choices=WAYS)
    parser.add_argument("--url", help="a PostgreSQL to measure on (by default an embedded one)")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        take_turns(WAYS[options.child], options.url)
        return
    with contextlib.ExitStack() as stack:
        url = options.url or stack.enter_context(embedded(ROOT / ".durable-benchmarks")).url
        for way in [options.only] if options.only else WAYS:
            compare(way, (options.before, options.after), options.pairs, options.steps, url)


def compare(way: str, trees: tuple[Path, Path], pairs: int, steps: int, url: str) -> None:
    """Print a line of figures."""
    befores, afters = list[float](), list[float]()
    for _ in range(pairs):
        with Child(trees[0], way, url) as before, Child(trees[1], way, url) as after:
            for child in (before, after):
                child.turn(steps)
            turns = [child.turn(steps) for child in (before, after, after, before)]
        befores.append((turns[0] + turns[3]) / 2 / steps)
        afters.append((turns[1] + turns[2]) / 2 / steps)
    low, middle, high = quartiles([after / before for before, after in zip(befores, afters, strict=True)])
    print(
        f"{way}: {_MICRO * statistics.median(befores):.1f} µs → {_MICRO * statistics.median(afters):.1f} µs of CPU a step; "
        f"median of {pairs} ratios {middle:.3f}, middle half {low:.3f}–{high:.3f}",
        flush=True,
    )


class Child:
    """A process of a checkout, which does what it is told in turns. A context manager."""

    def __init__(self, tree: Path, way: str, url: str) -> None:
        source = (tree / "src").resolve(strict=True)
        self._process = subprocess.Popen(
            [sys.executable, __file__, "-", "-", "--child", way, "--url", url],
            env=os.environ | {"PYTHONPATH": str(source), "PYTHONHASHSEED": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if not Path(self._answer()).is_relative_to(source):
            raise SystemExit(f"{tree} is not what its process has imported")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def turn(self, steps: int) -> float:
        """CPU seconds of so many steps."""
        print(steps, file=self._process.stdin, flush=True)
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None  # noqa: S101 -- a pipe
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a process has ended; what it said stands above")
        return line.strip()


def take_turns(execute: Callable[[PostgresStore, int], None], url: str) -> None:
    """The child's side, in a schema of its own: two checkouts need not read each other's records."""
    print(durable.__file__, flush=True)
    schema = f"tree_{uuid.uuid4().hex}"
    with postgres(url, schema=schema) as store:
        for line in sys.stdin:
            start = time.process_time()
            execute(store, int(line))
            print(time.process_time() - start, flush=True)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA {schema} CASCADE".encode())


def blocking(store: PostgresStore, steps: int) -> None:
    """A blocking run of so many steps."""

    def workflow(step: durable.Step, _: None) -> None:
        for _number in range(steps):
            step("step", _body)

    durable.run(None, workflow, id=uuid.uuid4().hex, store=store)


def asynchronous(store: PostgresStore, steps: int) -> None:
    """The same on an event loop."""

    async def workflow(step: durable.AsyncStep, _: None) -> None:
        for _number in range(steps):
            await step("step", _async_body)

    asyncio.run(durable.run(None, workflow, id=uuid.uuid4().hex, store=store))


def _body() -> int:
    return 1


async def _async_body() -> int:
    return 1


WAYS: Final = {"sync": blocking, "async": asynchronous}

if __name__ == "__main__":
    main()
