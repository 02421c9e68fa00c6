"""A noisy tenant: its three hundred runs came first, and no other tenant waits for them. In a terminal live.

python examples/noisy_tenant.py              plays it all: two worker processes, one of which gets a kill -9
python examples/noisy_tenant.py work QUEUE   is a worker process
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter

from processes import finish, kill, open_store, start, wait_until

import durable
from durable.stores import Filter, PostgresStore

LIMIT = 6
TENANTS = {"noisy": 300, "ada": 3, "grace": 3, "edsger": 3}


@durable.workflow(name="report")
def report(step: durable.Step, _: None, tenant: str) -> str:
    """One step, which takes a moment."""
    return step("write", write, tenant)


def write(tenant: str) -> str:
    """The world is slow."""
    time.sleep(0.02)
    return f"a report for {tenant}"


def work(queue: str) -> None:
    """A worker: six of the queue's runs at once, whatever number of such processes there is."""
    limits = durable.Queue(queue, concurrency=LIMIT)
    with open_store() as store:
        durable.Worker(store, None, [report], queues=[limits]).run()


def play() -> None:
    """The whole story."""
    queue = f"reports-{os.getpid()}-{time.time_ns()}"
    with open_store() as store:
        for tenant, count in TENANTS.items():
            orders = [
                durable.Start(tenant, id=f"{queue}-{tenant}-{number}", partition=tenant)
                for number in range(count)
            ]
            durable.start_many(report, orders, store=store, queue=queue)
        print(f"noisy has started {TENANTS['noisy']} reports; then three others three each.\n")
        workers = [start(__file__, "work", queue) for _ in range(2)]

        def ended() -> Counter[str]:
            """How many reports of each are there; the picture of it is drawn."""
            held = sum(line.held for line in store.queues() if line.queue.name == queue)
            if held > LIMIT:
                sys.exit(f"{held} are executed at once")
            found = Counter(
                {tenant: count_ended(store, f"{queue}-{tenant}-") for tenant in TENANTS}
            )
            draw(found)
            return found

        quiet = {tenant: count for tenant, count in TENANTS.items() if tenant != "noisy"}
        wait_until(lambda: quiet.items() <= ended().items(), "the quiet ones", *workers)
        left = TENANTS["noisy"] - ended()["noisy"]
        print(
            f"All others are done; noisy waits for most of its own: {left > TENANTS['noisy'] // 2}"
        )
        kill(workers[0], "while noisy waits")
        wait_until(lambda: ended() == TENANTS, "the reports of noisy", workers[1])
        workers[1].terminate()
        finish(workers[1])
        print(f"Never more than {LIMIT} at once, and no tenant waited for the noisy one.")


def count_ended(store: PostgresStore, prefix: str) -> int:
    """How many of these runs are completed."""
    return store.count_runs(Filter(prefix=prefix, statuses=("completed",)))


def draw(found: Counter[str]) -> None:
    """A bar for each tenant, in place of the last ones; nothing where there is no terminal."""
    if sys.stdout.isatty():
        for tenant, count in TENANTS.items():
            bar = "█" * (found[tenant] * 30 // count)
            print(f"\x1b[2K{tenant:>8} {bar:30} {found[tenant]}/{count}")
        print(f"\x1b[{len(TENANTS)}A", end="", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(sys.argv[2])
    else:
        play()
