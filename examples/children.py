"""A report of five regions, each a run of its own, killed half-way: what a child has done is not done again.

python examples/children.py                     plays it all: kill -9 after two regions, and a second process
python examples/children.py work ID LEDGER      works until the report ID is there
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from processes import Ledger, finish, kill, open_store, start, wait_until

import durable

REGIONS = ["north", "east", "south", "west", "centre"]
AT_ONCE = 2  # places of the worker: the report holds none of them while it waits


class World:
    """Counts what was sold, slowly, and writes in its ledger that it did."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def count(self, region: str) -> int:
        """What was sold in a region."""
        self._ledger.write(region)
        time.sleep(0.2)  # the world is slow
        return 100 * len(region)


@durable.workflow(name="region")
def count_region(step: durable.Step, world: World, region: str) -> int:
    """A child: with its own id, steps and retries."""
    return step("count", world.count, region)


@durable.workflow(name="report")
def report(step: durable.Step, _: World) -> dict[str, int]:
    """The parent: it starts them all, and is suspended until they have ended."""
    children = [step.start(count_region, region, key=region) for region in REGIONS]
    return dict(zip(REGIONS, step.wait_all(children), strict=True))


def work(run_id: str, ledger: Path) -> None:
    """Work until the report is there."""
    with open_store() as store:
        world = World(Ledger(ledger))
        with durable.Worker(store, world, [report, count_region], concurrency=AT_ONCE, lease=2):
            handle = durable.start(report, id=run_id, store=store)
            sold = handle.result(timeout=60)
    print(f"    {sum(sold.values())} were sold in {len(sold)} regions")


def play() -> None:
    """The whole story."""
    with tempfile.TemporaryDirectory() as directory, open_store() as store:
        ledger, run_id = (
            Ledger(Path(directory) / "world"),
            f"report-{os.getpid()}-{time.time_ns()}",
        )

        def ended() -> set[str]:
            return {
                region
                for region in REGIONS
                if durable.status(store, f"{run_id}/{region}") == "completed"
            }

        print(f"A report of {len(REGIONS)} regions, {AT_ONCE} at once.\n")
        first = start(__file__, "work", run_id, str(ledger.path))
        wait_until(lambda: len(ended()) >= AT_ONCE, "two of the regions", first)
        kill(first, "half-way")
        before = ended()
        print("    some regions are counted\n")
        finish(start(__file__, "work", run_id, str(ledger.path)))
        counts = ledger.counts()
        print("\n  The world's own ledger, outside the database:")
        print(f"    {len(counts)} regions were counted")
        again = {region for region, times in counts.items() if times > 1}
        print(f"    {len(again & before)} of those that had ended were counted again")
        if set(counts) != set(REGIONS) or again & before or len(again) > AT_ONCE:
            sys.exit("  That is not as promised!")
        print("\n  Each region is a run of its own, and none that had ended was started again.")


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            play()
        case ["work", run_id, ledger]:
            work(run_id, Path(ledger))
        case _:
            sys.exit(__doc__)
