"""Where the caller's time goes, by function: cProfile over one workload, and its shares by part of the library.

    .venv/bin/python benchmarks/hot.py sync|async|many|resume|replay [--size N] [--lines 25]

cProfile charges every call of a Python function something, so many small calls look dearer than they are; read the shares as
a map and not as a measure.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import limits
import ours
from durable.stores import embedded

ROOT: Final = Path(__file__).resolve().parent.parent


class Here:
    """Turns of a contestant in this very process: one to get warm, one that is profiled."""

    def __init__(self, size: int) -> None:
        self.profile = cProfile.Profile()
        self.over = False
        self._size = size
        self._left = 2

    def __iter__(self) -> Iterator[int]:
        return self.few(2)

    def few(self, count: int) -> Iterator[int]:
        """See `Turns.few`."""
        for _ in range(count):
            if not self._left:
                self.over = True
                return
            self._left -= 1
            if self._left:
                yield self._size
            else:
                self.profile.enable()
                yield self._size
                self.profile.disable()
        self.over = not self._left


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=["sync", "async", "many", "resume", "replay"])
    parser.add_argument("--size", type=int, default=5000, help="steps")
    parser.add_argument("--lines", type=int, default=25)
    options = parser.parse_args()
    with embedded(ROOT / ".durable-benchmarks") as server:
        limits.make_table(server.url)
        url, size = server.url, options.size
        turns: Any = Here(1 if options.workload == "resume" else size)
        work: dict[str, Callable[[], object]] = {
            "sync": lambda: ours.one_workflow(turns, url, 2),
            "async": lambda: ours.one_async_workflow(turns, url, 2),
            "many": lambda: ours.many_async_workflows(turns, url, 50),
            "resume": lambda: ours.resume(turns, url, size),
            "replay": lambda: ours.replayed_alone(turns, size),
        }
        work[options.workload]()
    stats = pstats.Stats(turns.profile)
    shares(stats, size)
    stats.sort_stats("tottime").print_stats(options.lines)


def shares(stats: Any, steps: int) -> None:
    """Microseconds a step by file."""
    spent: Counter[str] = Counter()
    for (file, _, name), (_, _, own, _, _) in stats.stats.items():
        where = file.rsplit("/durable/", 1)[-1] if "/durable/" in file else file.rsplit("/", 1)[-1]
        spent[f"C: {name}" if file == "~" else where] += own
    for name, seconds in spent.most_common(14):
        print(f"{seconds / steps * 1e6:8.2f} µs  {name[:90]}")


if __name__ == "__main__":
    main()
