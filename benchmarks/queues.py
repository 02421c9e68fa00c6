"""One-step jobs on three systems, each with workers in processes of their own: `durable`, DBOS and pgqueuer, as documented.

What a job does is to append a line to a file: when it ran, and when it was started. All are measured by these lines alone.
`python benchmarks/queues.py SYSTEM URL` is a worker process, `… durable URL 25` one with so many workers; `workers.py` starts
jobs, and measures.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import durable
from durable.stores import postgres

with contextlib.suppress(ImportError):  # `make .venv/.bench` installs them
    from dbos import DBOS, DBOSClient
with contextlib.suppress(ImportError):
    from pgqueuer import PgQueuer, PsycopgDriver, Queries

AT_ONCE: Final = 32  # jobs of a worker process
SCHEMA: Final = "workers_benchmark"
_DATABASES: Final = {"dbos": "dbos_benchmark", "pgqueuer": "pgqueuer_benchmark"}


def mark(path: str, started: float) -> None:
    """What every job does."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(file, f"{time.time()} {started}\n".encode())
    finally:
        os.close(file)


def _create_database(url: str, name: str) -> bool:
    """Whether it was not there."""
    with psycopg.connect(url, autocommit=True) as connection:
        is_new = not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone()
        if is_new:
            connection.execute(f"CREATE DATABASE {name}".encode())
    return is_new


@durable.workflow(name="one")
def one(step: durable.Step, deps: Any, given: tuple[str, float]) -> None:
    """One step."""
    step("mark", lambda: mark(given[0], given[1]))


@durable.workflow(name="one_async")
async def one_async(step: durable.AsyncStep, deps: Any, given: tuple[str, float]) -> None:
    """The same as a task of an event loop, which is what pgqueuer's jobs are."""
    await step("mark", lambda: mark(given[0], given[1]))


class Durable:
    """`durable`: the result is kept, and so is the step's."""

    name = "durable"
    workflow: Any = staticmethod(one)

    def __init__(self, url: str) -> None:
        self.url = url
        self._store = postgres(url, schema=SCHEMA)

    def start(self, path: str, count: int) -> None:
        """Start so many jobs, in as few statements as it takes."""
        now = time.time()
        durable.start_many(self.workflow, [durable.Start((path, now)) for _ in range(count)], store=self._store)

    def work(self) -> None:
        """A worker process."""
        durable.Worker(self._store, None, [self.workflow], concurrency=AT_ONCE).run()

    def rest(self, count: int) -> None:
        """So many workers in a process, until SIGTERM: each as if it was alone in one, but for its share of the connections."""
        with contextlib.ExitStack() as others:
            for _ in range(count - 1):
                others.enter_context(durable.Worker(self._store, None, [self.workflow], concurrency=AT_ONCE))
            self.work()

    def close(self) -> None:
        """Let go of the database."""
        self._store.close()


class DurableAsync(Durable):
    """The same with an async workflow."""

    name = "durable-async"
    workflow = staticmethod(one_async)


class Dbos:
    """DBOS Transact: the result is kept, and so is the step's; a queue as it is by default, which is polled each second."""

    name = "dbos"

    def __init__(self, url: str) -> None:
        self.url = url
        self._client: Any = None
        parts = {key: str(value) for key, value in conninfo_to_dict(url).items() if key != "dbname"}
        query = "&".join(f"{key}={value}" for key, value in parts.items() if key not in ("user", "password"))
        self._system = f"postgresql://{parts.get('user', 'postgres')}@/{_DATABASES['dbos']}?{query}"
        self._config: Any = {"name": "benchmark", "system_database_url": self._system, "log_level": "ERROR"}
        if _create_database(url, _DATABASES["dbos"]):
            DBOS(config=self._config)
            DBOS.launch()  # which makes its tables
            DBOS.destroy()

    def start(self, path: str, count: int) -> None:
        """Start so many jobs; there is no call for many."""
        self._client = self._client or DBOSClient(system_database_url=self._system)
        for _ in range(count):
            self._client.enqueue({"workflow_name": "one", "queue_name": "jobs"}, path, time.time())

    def work(self) -> None:
        """A worker process."""

        @DBOS.step()  # type: ignore[untyped-decorator, unused-ignore]
        def step(path: str, started: float) -> None:
            mark(path, started)

        @DBOS.workflow(name="one")  # type: ignore[untyped-decorator, unused-ignore]
        def one(path: str, started: float) -> None:
            step(path, started)

        DBOS(
            config={
                "name": "benchmark",
                "system_database_url": self._system,
                "log_level": "ERROR",
                "sys_db_pool_size": AT_ONCE,
            }
        )
        DBOS.launch()
        DBOS.register_queue("jobs", worker_concurrency=AT_ONCE)
        while True:
            time.sleep(3600)

    def close(self) -> None:
        """Let go of the database."""
        if self._client is not None:
            self._client.destroy()


class Pgqueuer:
    """pgqueuer: jobs, without steps, of which nothing is kept once they are done."""

    name = "pgqueuer"

    def __init__(self, url: str) -> None:
        self.url = make_conninfo(url, dbname=_DATABASES["pgqueuer"])
        if _create_database(url, _DATABASES["pgqueuer"]):
            asyncio.run(self._with_queries(lambda queries: queries.install()))

    async def _with_queries(self, ask: Callable[[Any], Any]) -> None:
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            await ask(Queries(PsycopgDriver(connection)))

    def start(self, path: str, count: int) -> None:
        """Start so many jobs, in as few statements as it takes."""
        payload = f"{path} {time.time()}".encode()
        asyncio.run(
            self._with_queries(lambda queries: queries.enqueue(["one"] * count, [payload] * count, [0] * count))
        )

    def work(self) -> None:
        """A worker process."""
        asyncio.run(self._work())

    async def _work(self) -> None:
        connection = await psycopg.AsyncConnection.connect(self.url, autocommit=True)
        queuer = PgQueuer(PsycopgDriver(connection))

        @queuer.entrypoint("one")
        async def one(job: Any) -> None:
            path, started = job.payload.decode().split()
            mark(path, float(started))

        await queuer.run(batch_size=AT_ONCE)

    def close(self) -> None:
        """Let go of the database."""


SYSTEMS: Final[dict[str, Callable[[str], Any]]] = {
    system.name: system for system in (Durable, DurableAsync, Dbos, Pgqueuer)
}


def main(arguments: Sequence[str]) -> None:
    """A worker process."""
    system = SYSTEMS[arguments[0]](arguments[1])
    if len(arguments) > 2:
        system.rest(int(arguments[2]))
    else:
        system.work()


if __name__ == "__main__":
    main(sys.argv[1:])
