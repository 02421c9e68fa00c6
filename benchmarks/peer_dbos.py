"""The workflows that are measured, on DBOS Transact (`pip install dbos`).

As its documentation has it: decorated functions, a system database in PostgreSQL, workflows started in the background with
`start_workflow` and at most so many executor threads, or awaited on one event loop. Its pool is as large as there are
workflows at once; its other settings are its own, but that it logs errors only.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlencode

from dbos import DBOS
from psycopg.conninfo import conninfo_to_dict

from lanes import Turns
from limits import VALUE
from ours import STEPS_EACH

_turns: Any = None  # a workflow's arguments are stored; this cannot be
_finished = threading.Event()


@DBOS.step()
def step() -> dict[str, object]:
    """What every step does."""
    return VALUE


@DBOS.step()
async def async_step() -> dict[str, object]:
    """The same, async."""
    return VALUE


@DBOS.workflow()
def one(turns_each: int) -> None:
    """A workflow that goes on for so many turns."""
    for size in _turns.few(turns_each):
        for _ in range(size):
            step()


@DBOS.workflow()
def short() -> None:
    """One of many."""
    for _ in range(STEPS_EACH):
        step()


@DBOS.workflow()
async def async_short() -> None:
    """One of many, async."""
    for _ in range(STEPS_EACH):
        await async_step()


@DBOS.workflow()
def long(steps: int) -> None:
    """One that is replayed; the time is taken from its first line to its last."""
    start = time.perf_counter()
    for _ in range(steps):
        step()
    if _turns is not None:
        _turns.took(time.perf_counter() - start)


def one_workflow(turns: Turns, url: str, turns_each: int) -> None:
    """W1."""
    global _turns  # noqa: PLW0603
    _turns = turns
    with _launch(url, 5):
        while not turns.over:
            one(turns_each)


def many_workflows(turns: Turns, url: str, at_once: int) -> None:
    """W2, blocking."""
    with _launch(url, at_once):
        for size in turns:
            handles = [DBOS.start_workflow(short) for _ in range(size // STEPS_EACH)]
            for handle in handles:
                handle.get_result()


def many_async_workflows(turns: Turns, url: str, at_once: int) -> None:
    """W2, async."""

    async def some(count: int) -> None:
        todo = iter(range(count))

        async def work() -> None:
            for _ in todo:
                await async_short()

        await asyncio.gather(*(work() for _ in range(at_once)))

    with _launch(url, at_once), asyncio.Runner() as runner:
        for size in turns:
            runner.run(some(size // STEPS_EACH))


def resume(turns: Turns, url: str, steps: int) -> None:
    """W5: `fork_workflow` after its last step, which replays them all."""
    global _turns  # noqa: PLW0603
    with _launch(url, 5):
        first = DBOS.start_workflow(long, steps)
        first.get_result()
        _turns = turns
        for _ in turns:
            DBOS.fork_workflow(first.workflow_id, steps + 1).get_result()


@contextmanager
def _launch(url: str, at_once: int) -> Iterator[None]:
    parts = {key: str(value) for key, value in conninfo_to_dict(url).items() if key != "dbname"}
    name = quote(parts.pop("user", "postgres")) + ":" + quote(parts.pop("password", ""))
    DBOS(
        config={
            "name": "benchmark",
            "system_database_url": f"postgresql://{name}@/dbos_benchmark?{urlencode(parts)}",
            "sys_db_pool_size": at_once,
            "max_executor_threads": at_once,
            "log_level": "ERROR",
        }
    )
    logging.getLogger("dbos").setLevel(logging.ERROR)
    DBOS.launch()
    try:
        yield
    finally:
        DBOS.destroy()
