"""What turns and limits cost: polls of ten runs, of which all ways are measured in one loop, so that noise hits all alike.

    python benchmarks/queue_limits.py [--url URL] [--dbos]

From 12,000 partitions, from ten, under a limit, and without any of it; with `--dbos` its claims of ten beside these, in the
same loop and on the same server, and then eight claimers of each under a limit of ten.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import durable
from durable._engine.starts import Route
from durable._runtime.new_runs import Start
from durable.records import Kind, Record, Status
from durable.stores import embedded, postgres
from durable.stores.requests import Finish, Poll

ROUNDS: Final = 100
COUNT: Final = 10  # runs a poll
WAYS: Final = ("plain", "limited", "few", "many")
SCHEMA: Final = "queue_limits"


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
    store.write_queue(durable.Queue("crowd", concurrency=10))
    partitions["crowd"] = [None] * 4_000
    for queue, ones in partitions.items():
        durable.start_many(job, [Start(partition=one) for one in ones], store=store, queue=queue)


def poll(store: Any, queue: str, *, limited: bool, count: int = COUNT) -> Any:
    """What a worker asks that knows of its queues."""
    known = (queue,) if limited else ()
    return store.perform(Poll([Route(queue, "job", 1)], count, 300.0, lambda _: True, False, "w", limited=known))


def as_sqlalchemy(url: str) -> str:
    """The address as SQLAlchemy wants it; a socket's directory stands in its query."""
    known: dict[str, Any] = conninfo_to_dict(url)
    address = f"{known.get('user', 'postgres')}@/{known['dbname']}?host={known['host']}&port={known.get('port', 5432)}"
    return f"postgresql+psycopg://{address}"


class Dbos:
    """What DBOS's workers ask, without the workers: its own function on a database of its own."""

    def __init__(self, url: str) -> None:
        from dbos import _queue  # noqa: PLC0415 -- only where it is asked for
        from dbos._serialization import DefaultSerializer  # noqa: PLC0415
        from dbos._sys_db import SystemDatabase  # noqa: PLC0415

        internal: Any = _queue
        self._queue = internal.Queue
        self._token = internal._INTERNAL_QUEUE_CONSTRUCTION  # noqa: SLF001
        create: Any = SystemDatabase.create
        self._database = create(
            system_database_url=as_sqlalchemy(url), engine_kwargs={"pool_size": 2},
            engine=None, schema="dbos", serializer=DefaultSerializer(), executor_id="e", app_name=None,
        )  # fmt: skip
        self.connection = psycopg.connect(url, autocommit=True)

    def fill(self, queue: str, runs: int) -> None:
        """So many that are due."""
        self._database.run_migrations()
        self.connection.execute(
            "INSERT INTO dbos.workflow_status (workflow_uuid, status, name, queue_name, application_version, created_at, "
            "updated_at, priority, executor_id) SELECT %s || i, 'ENQUEUED', 'job', %s, 'v1', i, i, 0, 'e' "
            "FROM generate_series(1, %s) AS i",
            (f"{queue}-", queue, runs),
        )

    def claim(self, queue: str, **limits: int) -> list[str]:
        """The ids of what it gets."""
        made = self._queue(queue, token=self._token, **limits)
        ids, _ = self._database.start_queued_workflows(made, f"e{os.getpid()}", "v1", None)
        return list(ids)

    def end(self, ids: list[str]) -> None:
        """They are completed."""
        query = "UPDATE dbos.workflow_status SET status = 'SUCCESS' WHERE workflow_uuid = ANY (%s)"
        self.connection.execute(query, (ids,))


def end(store: Any, granted: Any) -> int:
    """They are completed; how many these are."""
    for one in granted:
        record = Record(len(one.records), Kind.RESULT, Kind.RESULT, '{"value":1}')
        store.perform(Finish(one.lease, Status.COMPLETED, record))
    return len(granted)


def claim_for_a_while(name: str, url: str, seconds: float = 4.0) -> tuple[int, int, int]:
    """One claimer that ends what it claims, run by run: runs, tries that came to an error, tries."""
    claim = _claimer(name, url)
    until, runs, errors, tries = time.monotonic() + seconds, 0, 0, 0
    while time.monotonic() < until:
        tries += 1
        try:
            runs += claim()
        except Exception:
            errors += 1
        time.sleep(random.random() * 0.005)
    return runs, errors, tries


def _claimer(name: str, url: str) -> Callable[[], int]:
    if name == "durable":
        store = postgres(url, schema=SCHEMA)
        return lambda: end(store, take(store, "crowd"))
    dbos = Dbos(url)

    def theirs() -> int:
        ids = dbos.claim("crowd", concurrency=COUNT)
        for one in ids:
            dbos.end([one])
        return len(ids)

    return theirs


def compare_crowds(urls: dict[str, str]) -> None:
    """Eight claimers, each a process of its own, under a limit of ten."""
    for name, url in urls.items():
        with multiprocessing.get_context("spawn").Pool(8) as pool:
            told = pool.starmap(claim_for_a_while, [(name, url)] * 8, chunksize=1)
        runs, errors, tries = (sum(column) for column in zip(*told, strict=True))
        print(
            f"{name:8} 8 claimers under a limit of 10: {runs / 4.0:.0f} runs/s, {errors} of {tries} tries came to an error"
        )


def take(store: Any, way: str) -> Any:
    """What a poll gets."""
    return poll(store, way, limited=way != "plain").granted


def measure(store: Any, dbos: Dbos | None) -> dict[str, list[float]]:
    """How long each poll took, by its way."""
    ways: dict[str, Callable[[], Any]] = {way: partial(take, store, way) for way in WAYS}
    if dbos is not None:
        known = dbos
        ways["DBOS plain"] = lambda: known.claim("plain", worker_concurrency=COUNT)
        ways["DBOS limited"] = lambda: known.claim("limited", concurrency=COUNT)
    took: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, claim in ways.items():
            began = time.perf_counter()
            granted = claim()
            took[way].append(time.perf_counter() - began)
            if len(granted) != COUNT:
                sys.exit(f"{way}: {len(granted)} runs")
            if dbos is not None and way.startswith("DBOS"):
                dbos.end(granted)
            else:
                end(store, granted)
    return took


def main() -> None:
    """Fill, poll, and print the medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--url")
    parser.add_argument("--dbos", action="store_true")
    options = parser.parse_args()
    with embedded(".durable-bench") if options.url is None else postgres(options.url) as made:
        url = str(getattr(made, "url", options.url))
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
        with postgres(url, schema=SCHEMA) as store:
            fill(store)
            dbos = None
            if options.dbos:
                with psycopg.connect(url, autocommit=True) as connection:
                    connection.execute("DROP DATABASE IF EXISTS queue_limits_dbos WITH (FORCE)")
                    connection.execute("CREATE DATABASE queue_limits_dbos")
                dbos_url = make_conninfo(url, dbname="queue_limits_dbos")
                dbos = Dbos(dbos_url)
                for queue in ("plain", "limited", "crowd"):
                    dbos.fill(queue, 4_000)
            for queue in (*WAYS[1:], "crowd"):
                for _ in range(12):  # let all that is due wait for its turn, 2,000 at a time
                    poll(store, queue, limited=True, count=0)
            took = measure(store, dbos)
            medians = {way: statistics.median(times) for way, times in took.items()}
            for way, median in medians.items():
                print(f"{way:12} {median * 1e3:6.2f} ms a poll of {COUNT}")
            print(f"12,000 partitions against ten:  {medians['many'] / medians['few']:.2f}")
            print(f"a limit against none:           {medians['limited'] / medians['plain']:.2f}")
            if dbos is not None:
                print(f"the same of DBOS:               {medians['DBOS limited'] / medians['DBOS plain']:.2f}")
                compare_crowds({"durable": url, "DBOS": dbos_url})


if __name__ == "__main__":
    main()
