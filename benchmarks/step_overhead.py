"""What a step costs beside bare prepared INSERTs: the rows W1 and W2 of `run.py`, without the peers.

.venv/bin/python benchmarks/step_overhead.py [--url URL] [--effort 1.0]
"""

from __future__ import annotations

import argparse

import page
import run


def main() -> None:
    """Print the two workloads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a PostgreSQL to measure on (by default an embedded one)")
    parser.add_argument("--effort", type=float, default=1.0)
    options = parser.parse_args()
    print(page.table(run.measure(options.url, ["W1", "W2"], effort=options.effort, peers=False)))


if __name__ == "__main__":
    main()
