"""What turns and limits cost: polls of ten runs, of which all ways are measured in one loop, so that noise hits all alike.

`python benchmarks/queue_limits.py [URL]`: from 12,000 partitions, from ten, under a limit, and without any of it.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any, Final

import durable
from durable._engine.starts import Route
from durable._runtime.new_runs import Start
from durable.records import Kind, Record, Status
from durable.stores import embedded, postgres
from durable.stores.requests import Finish, Poll

ROUNDS: Final = 100
COUNT: Final = 10  # runs a poll
WAYS: Final = ("plain", "limited", "few", "many")


@durable.workflow("job")
def job(step: durable.Step, _: Any) -> None:
    """Is never executed here."""


def fill(store: Any) -> None:
    """What each way needs, and as much more for the partitions to stay."""
    need = ROUNDS * COUNT + COUNT
    partitions: dict[str, list[str | None]] = {
        "plain": [None] * need,
        "limited": [None] * need,
        "few": [f"t{n % 10}" for n in range(need)],
        "many": [f"t{n}" for n in range(12_000)],
    }
    store.write_queue(durable.Queue("limited", concurrency=10_000))
    for queue, ones in partitions.items():
        durable.start_many(job, [Start(partition=one) for one in ones], store=store, queue=queue)


def poll(store: Any, queue: str, *, limited: bool, count: int = COUNT) -> Any:
    """What a worker asks that knows of its queues."""
    known = (queue,) if limited else ()
    return store.perform(Poll([Route(queue, "job", 1)], count, 300.0, lambda _: True, False, "w", limited=known))


def main(url: str | None) -> None:
    """Fill, poll, and print the medians."""
    with embedded() if url is None else postgres(url) as store:
        fill(store)
        for queue in WAYS[1:]:
            for _ in range(12):  # let all that is due wait for its turn, 2,000 at a time
                poll(store, queue, limited=True, count=0)
        took: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(ROUNDS):
            for way in WAYS:
                began = time.perf_counter()
                granted = poll(store, way, limited=way != "plain").granted
                took[way].append(time.perf_counter() - began)
                if len(granted) != COUNT:
                    sys.exit(f"{way}: {len(granted)} runs")
                for one in granted:
                    record = Record(len(one.records), Kind.RESULT, Kind.RESULT, '{"value":1}')
                    store.perform(Finish(one.lease, Status.COMPLETED, record))
        for way in WAYS:
            print(f"{way:8} {statistics.median(took[way]) * 1e3:6.2f} ms a poll of {COUNT}")
        print(f"12,000 partitions against ten: {statistics.median(took['many']) / statistics.median(took['few']):.2f}")
        print(
            f"a limit against none:          {statistics.median(took['limited']) / statistics.median(took['plain']):.2f}"
        )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
