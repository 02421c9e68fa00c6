"""Instructions of this process for a step, counted by callgrind: what no neighbour and no clock can change.

    .venv/bin/python benchmarks/instructions.py [--steps 2000]

The same run twice, with so many steps and with twice as many: the difference is the steps'. The server's own are not in it.
The start of
a process differs by some three million from one to the next: of 200 steps that is a tenth, of 2,000 a hundredth. Compare two
checkouts by the same Python, one after the other.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import subprocess
import sys
from typing import Final

import durable
from durable.stores import embedded, memory, postgres

_COLLECTED: Final = re.compile(r"Collected : (\d+)")
_WARM: Final = 50  # steps: statements are prepared, caches filled


def main() -> None:
    """Print both stores' counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--within", choices=["memory", "postgres"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.within:
        execute(options.within, options.steps)
        return
    with embedded() as server:
        server.stats()  # started, and its tables made
        for kind in ("memory", "postgres"):
            once, twice = (collect(kind, steps, server.url) for steps in (options.steps, 2 * options.steps))
            print(f"{kind}: {(twice - once) / options.steps:,.0f} instructions a step")


def execute(kind: str, steps: int) -> None:
    """A blocking run of so many steps."""

    def workflow(step: durable.Step, _: None) -> None:
        for _number in range(_WARM + steps):
            step("step", _body)

    gc.freeze()  # a full collection of all that was imported costs as much as ten steps, and may fall into one of the two runs
    with memory() if kind == "memory" else postgres(os.environ["BENCH_URL"]) as store:
        durable.run(None, workflow, id=f"run-{os.getpid()}", store=store)


def _body() -> int:
    return 1


def collect(kind: str, steps: int, url: str) -> int:
    """Instructions of a process that does it."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable, __file__]
    environment = os.environ | {"BENCH_URL": url, "PYTHONHASHSEED": "0"}
    told = subprocess.run(
        [*command, "--within", kind, "--steps", str(steps)], env=environment, capture_output=True, text=True, check=True
    )
    found = _COLLECTED.search(told.stderr)
    if found is None:
        raise SystemExit(told.stderr)
    return int(found[1])


if __name__ == "__main__":
    main()
